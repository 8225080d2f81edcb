"""Ratings and texts: where they come from, how they are split, and what was known the moment before each of them."""

from .dataset import Dataset, Split, spread
from .prepare import PrepareSettings, prepare, prepare_source
from .sources import SOURCES, Raw, Source, find_source

__all__ = [
    "SOURCES",
    "Dataset",
    "PrepareSettings",
    "Raw",
    "Source",
    "Split",
    "find_source",
    "prepare",
    "prepare_source",
    "spread",
]
