"""The data sets we know how to get and read: one file each, listed here."""

import difflib

from reczero.errors import UserError

from .base import Raw, Source
from .movielens import MovieLens100K

SOURCES: dict[str, Source] = {source.name: source for source in (MovieLens100K(),)}


def find_source(name: str) -> Source:
    """The source called `name`; a UserError names the nearest ones when there is none."""
    if name in SOURCES:
        return SOURCES[name]
    near = difflib.get_close_matches(name.lower(), SOURCES, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are: {', '.join(SOURCES)}."
    raise UserError(f"no data source is called {name!r}; {hint} `reczero data list` shows them all.")


__all__ = ["SOURCES", "Raw", "Source", "find_source"]
