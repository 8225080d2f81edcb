"""The publishers whose files we read (`SOURCES`), and the data sets that we know by name (`PUBLISHED`)."""

from .amazon import Amazon2014, Amazon2018, Amazon2023
from .base import Given, Raw, Source
from .movielens import MovieLens
from .published import PUBLISHED, Published
from .table import Imdb, Table
from .yelp import Yelp

SOURCES: dict[str, Source] = {
    source.name: source for source in (MovieLens(), Amazon2014(), Amazon2018(), Amazon2023(), Yelp(), Imdb(), Table())
}

__all__ = ["PUBLISHED", "SOURCES", "Given", "Published", "Raw", "Source"]
