"""Anybody's own table: CSV, TSV, JSON lines or Parquet, its columns named by the user or guessed and shown."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import polars as pl

from reczero.errors import UserError

from ..raw import Quarantine, RawFile, Report, column_names, guess_layout, listed, read_columns, silent
from ..tables import Clock, ScaleRule, named
from .base import ITEM_COLUMNS, NEEDED, NO_ITEMS, Given, Raw, Source

# Usual names, in lower case without signs between words; the more telling first.
USUAL: dict[str, tuple[str, ...]] = {
    "user_id": (
        "userid", "user", "reviewerid", "reviewer", "customerid", "customer", "memberid", "member", "accountid",
        "account", "uid", "username", "clientid", "client", "buyerid", "buyer", "personid", "person", "reader",
    ),
    "item_id": (
        "itemid", "item", "parentasin", "asin", "productid", "product", "sku", "movieid", "movie", "filmid", "film",
        "bookid", "book", "isbn", "businessid", "business", "articleid", "article", "songid", "song", "trackid",
        "track", "gameid", "game", "showid", "show", "recipeid", "recipe", "restaurantid", "restaurant", "iid",
    ),
    "rating": (
        "rating", "ratings", "stars", "star", "starrating", "score", "overall", "userrating", "reviewrating",
        "bookrating", "reviewscore", "grade", "rate",
    ),
    "timestamp": (
        "timestamp", "unixreviewtime", "time", "datetime", "date", "reviewtime", "reviewdate", "ratingtime",
        "ratingdate", "ratedat", "createdat", "created", "eventtime", "ts",
    ),
    "review": (
        "review", "reviewtext", "reviewbody", "reviewdetail", "reviewcontent", "text", "body", "comment", "content",
    ),
    "summary": ("summary", "reviewsummary", "headline", "reviewheadline", "reviewtitle"),
}  # fmt: skip
USUAL_ITEMS: dict[str, tuple[str, ...]] = {
    "item_id": (*USUAL["item_id"], "id"),
    "title": (
        "title", "name", "itemname", "itemtitle", "productname", "producttitle", "movietitle", "filmtitle", "booktitle",
        "film", "movie", "book", "product",
    ),
    "categories": ("categories", "category", "genres", "genre", "class", "tags", "type", "maincategory"),
    "creator": (
        "creator", "brand", "author", "authors", "artist", "director", "store", "manufacturer", "publisher", "maker",
    ),
    "price": ("price",),
    "description": ("description", "plotsummary", "plot", "synopsis", "overview", "about", "abstract"),
}  # fmt: skip
_OPTIONS = ("user", "item", "rating", "timestamp", "review", "summary", "item_key", *ITEM_COLUMNS)
_ALSO = {"time": "timestamp", "date": "timestamp", "user_id": "user", "item_id": "item"}


class Table(Source):
    name = "table"
    title = "any table"
    reviews = "CSV, TSV, JSON lines or Parquet with a user, an item, a rating and a time in each row"
    items = "the same, with an id and a title in each row"
    scale = "guessed"
    rule: ClassVar[ScaleRule] = ScaleRule()

    def read(self, given: Given, report: Report = silent) -> Raw:
        asked = _asked(given.columns)
        quarantine = Quarantine()
        reviews = RawFile(given.reviews, "interactions", quarantine, report, (), given.encoding)
        file = RawFile(given.items or Path(), "items", quarantine, report, (), given.encoding)
        # A column by its place means that there is no header line.
        layout = None
        if reviews.kind() == "text":
            by_place = any(asked.get(name, "").startswith("#") for name in ("user", "item", "rating", "timestamp"))
            layout = guess_layout(reviews, not by_place)
        there = column_names(reviews, layout)
        own = {ours.removesuffix("_id"): ours for ours in USUAL}
        columns = _guess(there, USUAL, {own[name]: theirs for name, theirs in asked.items() if name in own}, reviews)
        found = {"columns": named({_key(ours, reviews): theirs for ours, theirs in columns.items()})}
        if absent := [name for name in ("review", "summary") if name not in columns]:
            found["columns"] += f" (no {', no '.join(absent)})"

        items: Iterable[pl.DataFrame] = ()
        of_ratings = False
        if given.items is not None:
            item_layout = guess_layout(file) if file.kind() == "text" else None
            names = column_names(file, item_layout)
            said = {name: theirs for name, theirs in asked.items() if name in ITEM_COLUMNS}
            if "item_key" in asked:
                said["item_id"] = asked["item_key"]
            elif columns.get("item_id") in names:
                said["item_id"] = columns["item_id"]
            usual = USUAL_ITEMS
            of_ratings = {columns.get(name) for name in ("user_id", "rating")} <= set(names)
            if of_ratings:  # a review's headline would pass for the item's title: only what is named is taken
                usual = {name: USUAL_ITEMS[name] for name in USUAL_ITEMS if name in said or name == "item_id"}
            item_columns = _guess(names, usual, said, file)
            if missing := [name for name in ("item_id", "title") if name not in item_columns]:
                raise _missing(file, missing, names)
            found["item columns"] = named({_key(ours, file): theirs for ours, theirs in item_columns.items()})
            items = read_columns(file, item_columns, item_layout)
        else:
            if unused := [name for name in asked if name in (*ITEM_COLUMNS, "item_key")]:
                raise UserError(f"--columns {', '.join(unused)}: describe items; name their table with --items.")
            found["items"] = NO_ITEMS

        needed = [name for name in NEEDED if name not in columns]
        if needed and needed != ["timestamp"]:
            raise _missing(reviews, needed, there)
        rule = ScaleRule.parse(given.scale) if given.scale else self.rule
        interactions = read_columns(reviews, columns, layout)
        clock = Clock(given.time_format)
        timed = "timestamp" in columns
        return Raw(interactions, items, reviews, file, rule, clock, found, timed, items_vary=not of_ratings)


def _asked(columns: Mapping[str, str]) -> dict[str, str]:
    """What the user said, by our names. UserError for names that are none."""
    asked = {_ALSO.get(name, name): theirs for name, theirs in columns.items()}
    if unknown := [name for name in asked if name not in _OPTIONS]:
        raise UserError(f"--columns: no {', '.join(unknown)}; its names are {', '.join(_OPTIONS)}.")
    return asked


def _plain(name: str) -> str:
    """`User ID`, `user_id` and RecBole's `user_id:token` -> userid."""
    return re.sub(r"[\W_]", "", name.split(":")[0].lower())


def _guess(
    there: Sequence[str], usual: Mapping[str, tuple[str, ...]], asked: Mapping[str, str], file: RawFile
) -> dict[str, str]:
    """our name -> theirs: as asked, else the first usual name; no column is taken twice, but a title may be the id."""
    if wrong := [f"{_key(ours, file)}={theirs}" for ours, theirs in asked.items() if theirs not in there]:
        raise UserError(f"{file.path}: no such column: {', '.join(wrong)}; there are {listed(there)}.")
    if twice := sorted({theirs for theirs in asked.values() if [*asked.values()].count(theirs) > 1}):
        raise UserError(f"--columns: {', '.join(twice)} can't be two things at once.")
    by_plain: dict[str, str] = {}
    for name in there:
        by_plain.setdefault(_plain(name), name)
    found = dict(asked)
    for ours, names in usual.items():
        if ours in found:
            continue
        taken = set(found.values()) - ({found["item_id"]} if ours == "title" and "item_id" in found else set())
        candidates = [by_plain[name] for name in names if name in by_plain and by_plain[name] not in taken]
        if candidates:
            found[ours] = candidates[0]
    if twice := [theirs for theirs in found.values() if [*there].count(theirs) > 1]:
        raise UserError(f"{file.path}: has two columns called {twice[0]}; rename one, or count columns: #1, #2, …")
    return {ours: found[ours] for ours in usual if ours in found}


def _key(ours: str, file: RawFile) -> str:
    """What `--columns` calls it."""
    return "item_key" if ours == "item_id" and file.table == "items" else ours.removesuffix("_id")


def _missing(file: RawFile, missing: Sequence[str], there: Sequence[str]) -> UserError:
    keys = [_key(ours, file) for ours in missing]
    example = ",".join(f"{key}=…" for key in keys)
    return UserError(
        f"{file.path}: no column for {', '.join(keys)}; there are {listed(there)}. Name them: --columns {example}"
    )


class Imdb(Table):
    """Tables of IMDb reviews; there are several copies, with columns of many names."""

    name = "imdb"
    title = "IMDb reviews"
    reviews = "JSON lines or CSV with reviewer, film, rating 1-10, date, text"
    scale = "1-10"
    rule = ScaleRule(1, 10, None, ())
