"""Ratings and texts: where they come from, how they are split, and what was known the moment before each of them."""

from .dataset import EXAMPLES, Dataset, Split, spread
from .known import Known
from .origin import About, Origin
from .prepare import LEAKS, cached, join_parts, open_data, prepare, prepare_cached, prepare_part, prepare_source
from .raw import WHOLE, Part
from .settings import PrepareSettings, when
from .sources import PUBLISHED, SOURCES, Published, Source

__all__ = [
    "EXAMPLES",
    "LEAKS",
    "PUBLISHED",
    "SOURCES",
    "WHOLE",
    "About",
    "Dataset",
    "Known",
    "Origin",
    "Part",
    "PrepareSettings",
    "Published",
    "Source",
    "Split",
    "cached",
    "join_parts",
    "open_data",
    "prepare",
    "prepare_cached",
    "prepare_part",
    "prepare_source",
    "spread",
    "when",
]
