"""Small files as each publisher writes them, and slow readers of them: json, csv, ast, datetime and plain loops.

`FORMATS` has one of each. No reader of ours is imported: all that both sides share is the names of the columns.
"""

import ast
import csv
import gzip
import html
import io
import json
import random
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from slow_checker import Row, Thing, some

from reczero.data import Dataset
from reczero.reasoning import Scale

DAY = 86_400
START = 16_204 * DAY  # 2014-05-14, midnight UTC
AVERAGE, COUNT, RANK = 4.7321987, 876_543_210, "RANKMARK"  # what publishers say of all time: nowhere to be seen after

Record = dict[str, Any]
Written = tuple[Path, Path | None]  # the reviews or the folder of all, the items
Read = tuple[list[Row], dict[str, Thing]]


@dataclass(frozen=True, kw_only=True)
class Format:
    """One published layout, which writes and reads files. `shown` is what some items must look like, said by hand."""

    source: str = "table"
    rows: list[Row]
    shown: dict[str, Thing]
    scale: Scale = Scale(1, 5, 1)


class Made(NamedTuple):
    """Files of a format, and what the command made of them."""

    form: "Table | MovieLens"
    reviews: Path
    items: Path | None
    dataset: Dataset


# The fixtures of conftest.py.
Prepare = Callable[..., Dataset]
Refused = Callable[..., str]
Published = Callable[[str], Made]


def packed(path: Path, kind: str, suffix: str, folder: Path) -> Path:
    """A copy of a file, or zip of a folder, compressed."""
    target = folder / f"packed-{kind}" / f"{path.name}{suffix}"
    target.parent.mkdir(exist_ok=True)
    if kind == "gz":
        target.write_bytes(gzip.compress(path.read_bytes()))
        return target
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            archive.write(file, f"{path.name}/{file.name}" if path.is_dir() else file.name)
    return target


# --- ratings to write -------------------------------------------------------------------------------------------------


def world(users: list[str], items: list[str], grid: Sequence[float], texts: list[str | None], step: int) -> list[Row]:
    """182 ratings in 70 moments `step` seconds apart: ties and repeats abound, and the last user has two rows only."""
    chance = random.Random(1)

    def rare(ids: list[str]) -> str:
        return ids[int(len(ids) * chance.random() ** 2)]

    def row(user: str) -> Row:
        when = START + step * chance.randrange(70)
        return Row(user, rare(items), chance.choice(grid), when, chance.choice(texts), chance.choice(texts))

    return [*(row(rare(users[:-1])) for _ in range(180)), row(users[-1]), row(users[-1])]


USERS = ["7", "A3", "10", "NA", "9", "é1", "用户", "1e5", "u 8", "A10", "1000000000000000000000007", "b", "a", "rare"]
ITEMS = ["0439023483", "12", "B00A", "b00a", "7", "100", "ä", "B.1", "null", "B0-2", "B03", "B04", "B05"]
NUMBERS = ["7", "10", "9", "100", "1", "25", "3", "44", "12", "6", "5", "2", "13"]
CINEMA = ["Titanic: Part 2 (1997)", "12", "After Life (2019– )", "Amélie", "M", "100% Wolf (2020)", "7", "Up", "Heat"]
WHOLE, TEN = [1.0, 2.0, 3.0, 4.0, 5.0], [float(n) for n in range(1, 11)]
HALVES = [n / 2 for n in TEN]
TIDY: list[str | None] = ["Fine.", "NA", "ünï 用户 😀", "semi; colon, comma | bar", "</rate>", "", None]
WILD = [*TIDY, 'She said "no", twice', "two\nlines", "a\u2028b\x85c\x0bd", "tab\there", " \n"]
ENTITIES = [*WILD, "Tom &amp; Jerry", "a &#34;b&#34; &lt;c&gt; it&#39;s"]


class Clock(NamedTuple):
    """How a table writes its times."""

    write: Callable[[int], Any]
    read: Callable[[Any], int]


def dates(form: str) -> Clock:
    zero = "0" if form.startswith("%d ") else ""  # IMDb has none before the day
    return Clock(
        lambda seconds: datetime.fromtimestamp(seconds, UTC).strftime(form).lstrip(zero),
        lambda text: int(datetime.strptime(text, form).replace(tzinfo=UTC).timestamp()),
    )


SECONDS = Clock(int, int)
MILLISECONDS = Clock(lambda seconds: 1000 * seconds + 137 * seconds % 1000, lambda text: int(text) // 1000)
MOMENTS = Clock(
    lambda seconds: datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None),
    lambda moment: int(moment.replace(tzinfo=UTC).timestamp()),
)


# --- files of records: JSON lines, Python literals, separated text, Parquet -------------------------------------------


def json_lines(path: Path, records: Iterable[Record]) -> Path:
    path.write_bytes("".join(json.dumps(r, ensure_ascii=i % 3 == 0) + "\n" for i, r in enumerate(records)).encode())
    return path


def lines(path: Path, encoding: str = "utf-8") -> list[str]:
    """Lines end at a line feed, and nowhere else."""
    return [line for line in path.read_bytes().decode(encoding).split("\n") if line]


def write_records(path: Path, records: list[Record], mark: str = ",") -> None:
    """In every other line of JSON what is null is left out, as some publishers do."""
    if path.suffix.startswith(".json"):
        json_lines(path, ({k: v for k, v in r.items() if v is not None or n % 2} for n, r in enumerate(records)))
    elif path.suffix == ".parquet":
        pl.DataFrame(records, infer_schema_length=None).write_parquet(path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]), delimiter=mark, lineterminator="\n")
            writer.writeheader()
            writer.writerows(records)


def read_records(path: Path, mark: str = ",") -> list[Record]:
    if path.suffix.startswith(".json"):
        return [json.loads(line) for line in lines(path)]
    if path.suffix == ".parquet":
        return pl.read_parquet(path).to_dicts()
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=mark))


@dataclass(frozen=True, kw_only=True)
class Table(Format):
    """Reviews and items in two files of records.

    columns: the names of user, item, rating, time, review and summary; item_columns: of key, title, categories,
    creator, price and description; a dash is none. junk: what else a row has. items: the records of the items' file,
    and `labels` the categories of one, read slowly. clean: what becomes of texts.
    """

    file: str
    columns: str
    clock: Clock
    junk: Record
    items: list[Record]
    item_columns: str = ""
    labels: Callable[[Record], list[str]] = lambda record: record["categories"]
    clean: Callable[[Any], str | None] = some
    mark: str = ","
    number: Callable[[float], Any] = float
    ids: Callable[[str], Any] = str
    literal: bool = False

    def write(self, folder: Path, rows: list[Row]) -> Written:
        user, item, rating, when, review, summary = self.columns.split()
        reviews = []
        for r in rows:
            record = {when: self.clock.write(r.timestamp), review: r.review, user: self.ids(r.user), **self.junk}
            record |= {rating: self.number(r.rating), item: self.ids(r.item), summary: r.summary}
            reviews.append({name: value for name, value in record.items() if name != "-"})
        path, items = folder / self.file, folder / f"items-{self.file}"
        write_records(path, reviews, self.mark)
        if self.literal:
            items.write_text("".join(f"{record!r}\n" for record in self.items), encoding="utf-8")
        elif self.items:
            write_records(items, self.items, self.mark)
        return path, items if self.items else None

    def read(self, reviews: Path, items: Path | None) -> Read:
        user, item, rating, when, *texts = self.columns.split()
        rows = []
        for r in read_records(reviews, self.mark):
            review, summary = (self.clean(r.get(name)) for name in texts)
            rows.append(Row(str(r[user]), str(r[item]), float(r[rating]), self.clock.read(r[when]), review, summary))
        if items is None:
            return rows, {}
        things = {}
        key, title, _, *rest = self.item_columns.split()
        for r in map(ast.literal_eval, lines(items)) if self.literal else read_records(items, self.mark):
            values = [" ".join(v) if isinstance(v, list) else v for v in map(r.get, rest)]
            name = self.clean(r.get(title)) or r[key]
            things[str(r[key])] = Thing(name, self.labels(r), *map(self.clean, values))
        return rows, things


# --- Amazon, Yelp, IMDb -----------------------------------------------------------------------------------------------


def unescape(text: Any) -> str | None:
    return None if text is None else some(html.unescape(str(text)))


META_2018: list[Record] = [
    {"asin": "0439023483", "title": "Salt &amp; Pepper &#34;Mill&#34;", "category": ["Home &amp; Kitchen", "Mills"]}
    | {"description": ["First.", "Second &amp; last."], "also_buy": [RANK], "brand": "Peugeot &amp; Fils"}
    | {"rank": f"{COUNT} in {RANK}", "price": "$12.99"},
    {"asin": "12", "title": "", "category": [], "brand": "", "price": "", "description": ["", ""], "rank": [RANK]},
    {"asin": "B00A", "title": "Only a title"},
    {"asin": "UNRATED", "title": "Unrated\u2028thing", "category": ["Books"], "price": "$1,200.00"},
]
META_2014: list[Record] = [
    {"asin": "0439023483", "title": 'It\'s a "Game"', "price": 9.5, "imUrl": "http://example.org/x.jpg"}
    | {"related": {"also_bought": [RANK], "also_viewed": []}, "salesRank": {"Books": COUNT}, "brand": "Scholastic"}
    | {"categories": [["Books", "Fiction"], ["Books", "X"], ["X", "Y"]]}
    | {"description": "Two\nlines: 用户 \\ 'quoted'"},
    {"asin": "UNRATED", "categories": [["Books"]], "salesRank": {}},
    {"asin": "B00A", "title": "Plain", "price": 12.99, "brand": "", "description": "", "categories": [[]]},
]
OF_ALL_TIME = {"average_rating": AVERAGE, "rating_number": COUNT, "features": [], "details": {"Rank": RANK}}
META_2023: list[Record] = [
    OF_ALL_TIME
    | {"parent_asin": "0439023483", "title": "A game", "main_category": "Books", "categories": ["Books", "Fun"]}
    | {"description": ["One.", "Two."], "price": 12.99, "store": "Scholastic", "bought_together": None},
    OF_ALL_TIME
    | {"parent_asin": "12", "title": "A bar", "main_category": "All Beauty", "categories": [], "description": []}
    | {"price": None, "store": None},
    OF_ALL_TIME
    | {"parent_asin": "UNRATED", "title": "Nothing known", "main_category": None, "categories": [], "description": []}
    | {"price": "from 14.95", "store": "Shop"},
]
BUSINESSES: list[Record] = [
    {"business_id": "12", "name": "Joe's Bar", "categories": "Bars, Food Trucks, Pizza", "attributes": {"A": "B"}},
    {"business_id": "UNRATED", "name": "Café", "categories": None, "hours": None},
]
amazon2018 = Table(
    source="amazon2018", file="reviews.json", columns="reviewerID asin overall unixReviewTime reviewText summary",
    clock=SECONDS, junk={"vote": RANK, "verified": True, "helpful": [COUNT, COUNT], "reviewTime": "09 1, 2001"},
    items=[*META_2018, META_2018[0]], item_columns="asin title category brand price description",
    labels=lambda r: [html.unescape(name) for name in r.get("category", [])],
    clean=unescape, rows=world(USERS, ITEMS, WHOLE, ENTITIES, DAY),
    shown={
        "0439023483": Thing(
            'Salt & Pepper "Mill"', ["Home & Kitchen", "Mills"], "Peugeot & Fils", "$12.99", "First. Second & last."
        ),
        "12": Thing("12"), "B00A": Thing("Only a title"),
        "UNRATED": Thing("Unrated\u2028thing", ["Books"], None, "$1,200.00"),
    },
)  # fmt: skip
amazon2014 = replace(
    amazon2018, source="amazon2014", items=META_2014, literal=True,
    labels=lambda r: list(dict.fromkeys(name for group in r.get("categories", []) for name in group)),
    shown={
        "0439023483": Thing(
            "It's a \"Game\"", ["Books", "Fiction", "X", "Y"], "Scholastic", "9.5", "Two\nlines: 用户 \\ 'quoted'"
        ),
        "UNRATED": Thing("UNRATED", ["Books"]), "B00A": Thing("Plain", price="12.99"),
    },
)  # fmt: skip
amazon2023 = Table(
    source="amazon2023", file="All_Beauty.jsonl", columns="user_id parent_asin rating timestamp text title",
    clock=MILLISECONDS, junk={"images": [], "asin": "VARIANT", "helpful_vote": COUNT, "verified_purchase": True},
    items=META_2023, item_columns="parent_asin title categories store price description",
    labels=lambda r: r["categories"] or [name for name in [r.get("main_category")] if name],
    rows=world(USERS, ITEMS, WHOLE, WILD, 1),
    shown={
        "0439023483": Thing("A game", ["Books", "Fun"], "Scholastic", "12.99", "One. Two."),
        "12": Thing("A bar", ["All Beauty"]), "UNRATED": Thing("Nothing known", [], "Shop", "from 14.95"),
    },
)  # fmt: skip
yelp = Table(
    source="yelp", file="yelp_academic_dataset_review.json", columns="user_id business_id stars date text -",
    clock=dates("%Y-%m-%d %H:%M:%S"), junk={"review_id": "r1", "useful": COUNT, "funny": COUNT, "cool": COUNT},
    items=[r | {"stars": AVERAGE, "review_count": COUNT, "is_open": 1} for r in BUSINESSES],
    item_columns="business_id name categories - - -",
    labels=lambda r: [name for name in (r.get("categories") or "").split(", ") if name],
    rows=world(USERS, ITEMS, WHOLE, WILD, 5000),
    shown={"12": Thing("Joe's Bar", ["Bars", "Food Trucks", "Pizza"]), "UNRATED": Thing("Café")},
)  # fmt: skip
imdb = Table(
    source="imdb", file="part-01.json", columns="reviewer movie rating review_date review_detail review_summary",
    clock=dates("%d %B %Y"), junk={"review_id": "rw1", "spoiler_tag": 0, "helpful": [str(COUNT), str(COUNT)]},
    items=[], number="{:g}".format, scale=Scale(1, 10, 1), rows=world(USERS, CINEMA, TEN, WILD, DAY),
    shown={name: Thing(name) for name in CINEMA},
)  # fmt: skip


# --- MovieLens: a folder ----------------------------------------------------------------------------------------------

GENRES = [
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
]  # fmt: skip
FILMS = {
    "7": Thing("Toy Story (1995)", ["Animation", "Children's", "Comedy"]),
    "10": Thing("Usual Suspects, The (1995)", ["Crime", "Thriller"]),
    "9": Thing("Misérables, Les (1995)", ["Drama", "Musical"]),
    "100": Thing("unknown"),
    "9999": Thing('"Great" Unrated (1998)', ["Film-Noir", "Sci-Fi"]),
}
NO_GENRES = "(no genres listed)"


def joined(mark: str, fields: Iterable[str]) -> str:
    """A line with its end; CSV files are quoted and end on \\r\\n."""
    if mark != ",":
        return mark.join(fields) + "\n"
    line = io.StringIO()
    csv.writer(line).writerow(fields)
    return line.getvalue()


def flagged(genres: list[str]) -> list[str]:
    """Date, no video and link, and a flag for each genre, as in u.item."""
    known = ["01-Jan-1995", "", "http://example.org"] if genres else ["", "", ""]
    return [*known, *(str(int(genre in (genres or ["unknown"]))) for genre in GENRES)]


def unflagged(rest: list[str]) -> list[str]:
    return [genre for genre, flag in zip(GENRES, rest[3:], strict=True) if flag == "1" and genre != "unknown"]


@dataclass(frozen=True, kw_only=True)
class MovieLens(Format):
    """An edition: its two files, their separators and headers, their encoding; beside them lies what is not ours."""

    name: str
    files: tuple[str, str] = ("ratings.dat", "movies.dat")
    marks: tuple[str, str] = ("::", "::")
    headers: tuple[str, str] = ("", "")
    encoding: str = "utf-8"
    beside: dict[str, str]
    genres: Callable[[list[str]], list[str]] = lambda genres: ["|".join(genres) or NO_GENRES]
    genres_of: Callable[[list[str]], list[str]] = lambda rest: [] if rest == [NO_GENRES] else rest[0].split("|")

    def write(self, folder: Path, rows: list[Row]) -> Written:
        home = folder / self.name
        home.mkdir()
        number = "{:.1f}" if self.marks[0] == "," else "{:g}"
        ratings = [joined(self.marks[0], [r.user, r.item, number.format(r.rating), str(r.timestamp)]) for r in rows]
        films = [joined(self.marks[1], [i, t.title, *self.genres(t.categories)]) for i, t in self.shown.items()]
        for name, header, content in zip(self.files, self.headers, (ratings, films), strict=True):
            (home / name).write_bytes("".join([header, *content]).encode(self.encoding))
        for name, text in self.beside.items():
            (home / name).write_text(text)
        return home, None

    def read(self, reviews: Path, items: Path | None) -> Read:
        ratings, films = (self._fields(reviews, which) for which in (0, 1))
        rows = [Row(user, item, float(rating), int(when)) for user, item, rating, when in ratings]
        return rows, {item: Thing(title, self.genres_of(rest)) for item, title, *rest in films}

    def _fields(self, home: Path, which: int) -> list[list[str]]:
        found = lines(home / self.files[which], self.encoding)[bool(self.headers[which]) :]
        mark = self.marks[which]
        return list(csv.reader(found)) if mark == "," else [line.split(mark) for line in found]


def movielens(name: str, grid: list[float], beside: dict[str, str], **rest: Any) -> MovieLens:
    rows, scale = world(NUMBERS, NUMBERS, grid, [None], 1), Scale(grid[0], 5, grid[0])
    shown = rest.pop("shown", {item: film for item, film in FILMS.items() if film.categories})
    return MovieLens(source="movielens", name=name, rows=rows, scale=scale, shown=shown, beside=beside, **rest)


# --- tables of anybody ------------------------------------------------------------------------------------------------

BOOKS = {
    "12": Thing("War, and Peace", ["Novels", "War & Peace"], "Tolstoy; Leo", "9.5", 'A "long"\tone'),
    "9999": Thing("Unrated", [], None, "12.25"),
    "7": Thing("Crime", ["Novels"], "Dostoevsky", None, "Short."),
}


def books(
    file: str, columns: str, item_columns: str, clock: Clock, step: int, mark: str = ",", join: str | None = None
) -> Table:
    """With `join` between categories; or with lists of them, and numbers for ids and prices."""
    tidy = file.endswith(".tsv")
    things = BOOKS | {"12": BOOKS["12"]._replace(description="A long one")} if tidy else BOOKS
    names, items = item_columns.split(), []
    for key, (title, categories, creator, price, description) in things.items():
        values: list[Any] = [key, title, categories, creator, price, description]
        if join is None:
            values[0], values[4] = int(key), price and float(price)
        else:
            values[2] = join.join(categories)
        items.append(dict(zip(names, values, strict=True)) | {"average_rating": AVERAGE, "num_ratings": COUNT})
    ids = (USERS, ITEMS) if join else (NUMBERS, NUMBERS)
    return Table(
        file=file, mark=mark, columns=columns, clock=clock, junk={"helpful_votes": COUNT}, items=items,
        number="{:g}".format if join else float, ids=str if join else int, item_columns=item_columns,
        labels=lambda r: [name for name in r[names[2]].split(join) if name] if join else r[names[2]],
        rows=world(*ids, WHOLE, TIDY if tidy else WILD, step), shown=things,
    )  # fmt: skip


FORMATS: dict[str, Table | MovieLens] = {
    "amazon2018": amazon2018,
    "amazon2014": amazon2014,
    "amazon2023": amazon2023,
    "yelp": yelp,
    "imdb-json": imdb,
    "imdb-csv": replace(imdb, file="reviews.csv"),
    "ml-100k": movielens(
        "ml-100k", WHOLE, files=("u.data", "u.item"), marks=("\t", "|"), encoding="latin-1", shown=FILMS,
        genres=flagged, genres_of=unflagged,
        beside={
            "u.genre": "".join(f"{genre}|{n}\n" for n, genre in enumerate(GENRES)) + "\n",
            "u1.base": "1\t1\t5\t874965758\n",  # other people's splits, and what they say of users
            "u.user": f"7|24|M|{RANK}|85711\n", "README": "SUMMARY & USAGE LICENSE\n",
        },
    ),
    "ml-1m": movielens(
        "ml-1m", WHOLE, encoding="latin-1", beside={"README": "SUMMARY\n", "users.dat": f"7::M::{RANK}::10\n"}
    ),
    "ml-10m": movielens("ml-10M100K", HALVES, beside={"README": "SUMMARY\n", "tags.dat": f"7::M::{RANK}::10\n"}),
    "ml-25m": movielens(
        "ml-25m", HALVES, files=("ratings.csv", "movies.csv"), marks=(",", ","), shown=FILMS,
        headers=("userId,movieId,rating,timestamp\r\n", "movieId,title,genres\r\n"),
        beside={
            "tags.csv": f'userId,movieId,tag,timestamp\n7,7,"{RANK}\n",1\n', "README.txt": "Summary\n",
            "links.csv": "movieId,imdbId,tmdbId\n7,0114709,862\n",
        },
    ),
    "table-comma": books(
        "comma.csv", "customer book score date comment summary", "book title genres author price description",
        dates("%Y-%m-%d"), DAY, ",", "|",
    ),
    "table-semicolon": books(
        "semicolon.csv", "user film stars date review headline", "film title categories creator price description",
        dates("%Y-%m-%d %H:%M:%S"), 5000, ";", ", ",
    ),
    "table-tab": books(
        "tab.csv", "userId item rating timestamp text summary", "item title categories brand price description",
        MILLISECONDS, 1, "\t", "|",
    ),
    "table-tsv": books(
        "table.tsv", "userId productId rating time text summary", "productId title categories brand price description",
        SECONDS, 1, "\t", "|",
    ),
    "table-json": books(
        "table.jsonl", "user_id item_id rating timestamp review summary",
        "item_id title categories brand price description", dates("%Y-%m-%dT%H:%M:%SZ"), 5000,
    ),
    "table-parquet": books(
        "table.parquet", "user asin rating time text headline", "asin title genres author price description",
        MOMENTS, 5000,
    ),
}  # fmt: skip
