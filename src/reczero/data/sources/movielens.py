"""MovieLens (GroupLens): real ratings, times, titles and genres, in the four layouts of its editions.

| edition | ratings | films |
|---|---|---|
| 100K | `u.data`, separated by tabs | `u.item`, separated by bars, Latin-1, one flag for each genre (`u.genre`) |
| 100K, in the package RecBole | `ml-100k.inter` | `ml-100k.item` |
| 1M, 10M | `ratings.dat`, separated by `::` | `movies.dat`; 1M in Latin-1, 10M in UTF-8 |
| 20M, 25M, 32M, latest | `ratings.csv` | `movies.csv` |
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl

from reczero.errors import UserError

from ..raw import Layout, Quarantine, RawFile, Report, read_columns, silent
from ..tables import Clock, ScaleRule
from .base import NO_ITEMS, Given, Raw, Source, expect

GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
NO_GENRE = ("unknown", "(no genres listed)")
WHOLE, HALVES = ScaleRule(1, 5, 1, ()), ScaleRule(0.5, 5, 0.5, ())


class _Edition(NamedTuple):
    ratings: str
    films: str
    layout: Layout
    columns: tuple[str, str, str, str]  # user, item, rating, time
    scale: ScaleRule


_BY_PLACE = ("#1", "#2", "#3", "#4")
EDITIONS = (
    _Edition("u.data", "u.item", Layout("\t", header=False, quoted=False), _BY_PLACE, WHOLE),
    _Edition(
        "ml-100k.inter", "ml-100k.item", Layout("\t", quoted=False),
        ("user_id:token", "item_id:token", "rating:float", "timestamp:float"), WHOLE,
    ),
    # 1M has whole stars and 10M halves, in the same layout.
    _Edition(
        "ratings.dat", "movies.dat", Layout("::", header=False, quoted=False), _BY_PLACE,
        ScaleRule(0.5, 5, None, ((1, 5), (0.5, 5))),
    ),
    _Edition("ratings.csv", "movies.csv", Layout(","), ("userId", "movieId", "rating", "timestamp"), HALVES),
)  # fmt: skip


class MovieLens(Source):
    name = "movielens"
    title = "MovieLens of any size"
    reviews = "the .zip, the folder it unpacks to, or the file of ratings (u.data, ratings.dat, ratings.csv)"
    items = "with a file of ratings: u.item, movies.dat or movies.csv; found by itself beside it"
    scale = "1-5 or 0.5-5"

    def files(self, given: Given) -> list[Path]:
        _, ratings, films = locate(given.reviews, given.items)
        genres = ratings.with_name("u.genre")
        return [path for path in dict.fromkeys((ratings, films, genres)) if path is not None and path.is_file()]

    def read(self, given: Given, report: Report = silent) -> Raw:
        if given.columns:
            raise UserError(f"--columns: the columns of {self.name} are known; for other tables take --source table.")
        edition, ratings, films = locate(given.reviews, given.items)
        quarantine = Quarantine()
        file = RawFile(ratings, "interactions", quarantine, report, (edition.ratings,))
        expect(self, file, edition.columns, edition.layout)
        names = dict(zip(("user_id", "item_id", "rating", "timestamp"), edition.columns, strict=True))
        interactions = read_columns(file, names, edition.layout)
        film_file = RawFile(films or Path(), "items", quarantine, report, (edition.films,))
        items = _films(edition, film_file) if films is not None else ()
        rule = ScaleRule.parse(given.scale) if given.scale else edition.scale
        found = {"layout": f"{edition.ratings}, {edition.films}"} if films else {"items": NO_ITEMS}
        clock = Clock(given.time_format or "s")
        return Raw(interactions, items, file, film_file, rule, clock, found)


def locate(path: Path, items: Path | None = None) -> tuple[_Edition, Path, Path | None]:
    """Which layout a folder, a .zip or a file of ratings has, and the files of ratings and of films."""
    if path.is_dir():
        for folder in (path, *sorted(p for p in path.iterdir() if p.is_dir())):
            for edition in EDITIONS:
                if (folder / edition.ratings).is_file() and (folder / edition.films).is_file():
                    return edition, folder / edition.ratings, items or folder / edition.films
        raise UserError(f"{path}: no MovieLens in it; expected {_expected()}.")
    names = _zipped(path)
    if names is not None:
        for edition in EDITIONS:
            if edition.ratings in names and edition.films in names:
                return edition, path, items or path
        raise UserError(f"{path}: no MovieLens in it; expected {_expected()}.")
    edition = _edition_of(path)
    beside = path.with_name(edition.films)
    return edition, path, items or (beside if beside.is_file() else None)


def _expected() -> str:
    return ", or ".join(f"{edition.ratings} and {edition.films}" for edition in EDITIONS)


def _zipped(path: Path) -> set[str] | None:
    """The bare names in a .zip; None for what is none. UserError for a missing or damaged file."""
    import zipfile

    if not path.exists():
        raise UserError(f"{path}: no such file or folder; check the path.")
    try:
        if path.open("rb").read(2) != b"PK":
            return None
        with zipfile.ZipFile(path) as archive:
            return {Path(name).name for name in archive.namelist() if not name.endswith("/")}
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read ({error}): cut short or damaged; get it again.") from error


def _edition_of(path: Path) -> _Edition:
    """By its name (with .gz or not), else by its first line."""
    for edition in EDITIONS:
        if path.name.removesuffix(".gz") == edition.ratings:
            return edition
    lines = RawFile(path).beginning().decode("utf-8", "replace").splitlines()
    first = lines[0] if lines else ""
    if first.count("::") > 2:
        return EDITIONS[2]
    if first.startswith("userId,"):
        return EDITIONS[3]
    if first.count("\t") == 3:
        return EDITIONS[1 if "user_id:token" in first else 0]
    raise UserError(f"{path}: not ratings of MovieLens; expected {_expected()}; other tables: --source table.")


def _films(edition: _Edition, file: RawFile) -> Iterator[pl.DataFrame]:
    layout = edition.layout
    if edition.films == "u.item":
        file.encoding = "latin-1"
        expect(MovieLens(), file, _flags().values(), Layout("|", False, False))
        yield from map(_flagged(_genres(file)), read_columns(file, _flags(), Layout("|", False, False)))
    elif edition.films == "ml-100k.item":
        columns = {
            "item_id": "item_id:token", "title": "movie_title:token_seq", "year": "release_year:token",
            "categories": "class:token_seq",
        }  # fmt: skip
        expect(MovieLens(), file, columns.values(), layout)
        yield from map(_packaged, read_columns(file, columns, layout))
    else:
        columns = {"item_id": "movieId", "title": "title", "categories": "genres"}
        if edition.films == "movies.dat":
            file.encoding, columns = _encoding(file), {"item_id": "#1", "title": "#2", "categories": "#3"}
        expect(MovieLens(), file, columns.values(), layout)
        yield from map(_without_no_genre, read_columns(file, columns, layout))


def _encoding(file: RawFile) -> str:
    """1M is in Latin-1 and 10M in UTF-8, and nothing in them says so."""
    with file.opened() as content:
        try:
            content.read().decode("utf-8")
        except UnicodeDecodeError:
            return "latin-1"
    return "utf-8"


def _without_no_genre(films: pl.DataFrame) -> pl.DataFrame:
    none = films["categories"].is_in(NO_GENRE)
    return films.with_columns(pl.when(~none).then("categories"))


def _flags() -> dict[str, str]:
    """film | title (year) | release date | video date | link | one flag for each genre."""
    return {"item_id": "#1", "title": "#2"} | {f"flag{n}": f"#{6 + n}" for n in range(len(GENRES))}


def _genres(file: RawFile) -> tuple[str, ...]:
    """The publisher's own list where it lies beside the films, in the same archive or folder."""
    beside = RawFile(file.path if file.path.suffix == ".zip" else file.path.with_name("u.genre"), member=("u.genre",))
    try:
        lines = beside.beginning().decode("latin-1").splitlines()
    except UserError:  # it is not needed: its content is well known
        return GENRES
    found = tuple(line.split("|")[0] for line in lines if line.strip())
    return found if len(found) == len(GENRES) else GENRES


def _flagged(genres: tuple[str, ...]):
    def films(raw: pl.DataFrame) -> pl.DataFrame:
        flags = raw.select(f"flag{n}" for n in range(len(genres))).rows()
        names = [[g for g, flag in zip(genres, row, strict=True) if flag == "1" and g not in NO_GENRE] for row in flags]
        return raw.select("line", "item_id", "title", pl.Series("categories", names, pl.List(pl.String)))

    return films


def _packaged(raw: pl.DataFrame) -> pl.DataFrame:
    """The title lacks its year, which stands in the next column: joined again, as the publisher writes it."""
    # One film is unknown to the publisher too; the copy misspells it, in both columns.
    title = (
        pl.when(pl.col("title") == "unkonwn")
        .then(pl.lit("unknown"))
        .when(pl.col("year") != "")
        .then(pl.format("{} ({})", "title", "year"))
        .otherwise("title")
    )
    genres = pl.col("categories").str.split(" ").list.filter(~pl.element().is_in(["", *NO_GENRE]))
    return raw.select("line", "item_id", title.alias("title"), genres.alias("categories"))
