"""Every published format through the command line, against a slow checker that reads the same files in its own way.

Nothing here imports a reader: files are written as their publishers write them, `reczero data prepare` runs over them,
and what it wrote is compared with what json, csv, ast, datetime and plain loops make of the same bytes.
"""

import ast
import csv
import gzip
import html
import json
import math
import random
import re
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest

from reczero.cli.main import run
from reczero.data import Dataset
from reczero.reasoning import Scale, Template

PARQUET = ("interactions.parquet", "items.parquet", "examples.parquet")
DAY = 86_400
START = 16_204 * DAY  # 2014-05-14, midnight UTC
AVERAGE, COUNT, RANK = 4.7321987, 876_543_210, "RANKMARK"  # what publishers say of all time: nowhere to be seen after


@pytest.fixture(autouse=True)
def far_from_greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times in files are UTC, wherever the machine stands."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "America/New_York")
        time.tzset()
        yield
    time.tzset()


class Row(NamedTuple):
    user: str
    item: str
    rating: float
    timestamp: int
    review: str | None = None
    summary: str | None = None


class Thing(NamedTuple):
    title: str
    categories: list[str] = []
    creator: str | None = None
    price: str | None = None
    description: str | None = None


def some(text: Any) -> str | None:
    """Text as it is kept: what is blank is none."""
    return None if text is None or not str(text).strip() else str(text)


# --- the slow checker -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """What the user chose. `words` says it on the command line, the checker does it in plain loops."""

    split: str = "time"
    train: float = 0.8
    validation: float = 0.1
    test: float = 0.1
    history: int = 10
    min_user_history: int = 1
    min_item_history: int = 1
    min_context: int = 5
    k_core: int = 0
    users: int | None = None
    seed: int = 0
    leave_last: int | None = None
    validation_from: str | None = None
    test_from: str | None = None

    def words(self) -> list[str]:
        plain = Choice()
        changed = {key: value for key, value in vars(self).items() if value != getattr(plain, key)}
        return [word for key, value in changed.items() for word in (f"--{key.replace('_', '-')}", str(value))]


def id_order(text: str) -> tuple[bool, int, bytes]:
    number = text.isascii() and text.isdigit()
    return (not number, int(text) if number else 0, text.encode())


def kept_rows(rows: list[Row]) -> list[Row]:
    """The earliest of each (user, item), of the same second the lowest rating; by (time, user, item)."""
    first: dict[tuple[str, str], Row] = {}
    for row in rows:
        there = first.get((row.user, row.item))
        if there is None or (row.timestamp, row.rating) < (there.timestamp, there.rating):
            first[row.user, row.item] = row
    return sorted(first.values(), key=lambda r: (r.timestamp, id_order(r.user), id_order(r.item)))


def core(kept: list[Row], k: int) -> list[int]:
    left = list(range(len(kept)))
    while True:
        users, items = [kept[n].user for n in left], [kept[n].item for n in left]
        dense = [n for n in left if users.count(kept[n].user) >= k and items.count(kept[n].item) >= k]
        if dense == left:
            return left
        left = dense


def midnight(day: str) -> int:
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp())


def split_rows(kept: list[Row], targets: list[int], choice: Choice) -> dict[int, str]:
    """The split of each target; not for a random split, which only has to be kept to."""
    if choice.split == "leave-last-k":
        k = choice.leave_last or 1
        splits = dict.fromkeys(targets, "train")
        for user in {kept[n].user for n in targets}:
            own = [n for n in targets if kept[n].user == user]
            if len(own) >= 2 * k + 1:
                splits |= dict.fromkeys(own[-2 * k : -k], "validation") | dict.fromkeys(own[-k:], "test")
        return splits
    if choice.validation_from and choice.test_from:
        validation, test = midnight(choice.validation_from), midnight(choice.test_from)
        whens = {n: kept[n].timestamp for n in targets}
        return {n: "train" if t < validation else "validation" if t < test else "test" for n, t in whens.items()}
    cuts = [round(len(targets) * share) for share in (choice.train, choice.train + choice.validation)]
    return {n: "train" if i < cuts[0] else "validation" if i < cuts[1] else "test" for i, n in enumerate(targets)}


def may_see(mine: str, other: str | None, split: str) -> bool:
    """Whether a context of the split `mine` may hold a row of the split `other`, None for what is no example."""
    if other is None:
        return True
    if split == "random":
        return other == "train"
    if split == "leave-last-k":
        order = ("train", "validation", "test")
        return order.index(other) <= order.index(mine)
    return True


def expected(kept: list[Row], n: int, splits: dict[int, str], choice: Choice) -> dict[str, Any]:
    """The row of examples.parquet whose target is row `n`."""
    target = kept[n]
    past = [
        (m, row)
        for m, row in enumerate(kept)
        if row.timestamp < target.timestamp
        and (row.user == target.user or row.item == target.item)
        and (choice.split == "time" or may_see(splits[n], splits.get(m), choice.split))
    ]
    by_user = [(m, row) for m, row in past if row.user == target.user]
    of_item = [(m, row) for m, row in past if row.item == target.item]
    shown_user, shown_item = by_user[-choice.history :], of_item[-choice.history :]

    def mean(some_rows: list[tuple[int, Row]]) -> Any:
        if not some_rows:
            return None
        return pytest.approx(math.fsum(row.rating for _, row in some_rows) / len(some_rows), abs=1e-9)

    return {
        "user_id": target.user,
        "item_id": target.item,
        "rating": target.rating,
        "timestamp": target.timestamp,
        "split": splits[n],
        "user_history": [
            {"row": m, "item_id": r.item, "rating": r.rating, "timestamp": r.timestamp} for m, r in shown_user
        ],
        "item_history": [
            {"row": m, "user_id": r.user, "rating": r.rating, "timestamp": r.timestamp} for m, r in shown_item
        ],
        "cold_start": len(by_user) < choice.min_user_history
        or len(of_item) < choice.min_item_history
        or len(shown_user) + len(shown_item) < choice.min_context,
        "user_avg": mean(by_user),
        "item_avg": mean(of_item),
        "user_count": len(by_user),
        "item_count": len(of_item),
    }


def check(
    dataset: Dataset,
    rows: list[Row],
    things: dict[str, Thing],
    choice: Choice | None = None,
    sample: int | None = None,
) -> None:
    """All files of `dataset` are what the slow way makes of the good `rows` and of the items table `things`.

    `sample`: so many examples, at random, are recomputed instead of all.
    """
    choice = choice or Choice()
    kept = kept_rows(rows)
    frame = pl.read_parquet(dataset.path / "interactions.parquet")
    assert frame.columns == ["user_id", "item_id", "rating", "timestamp", "review", "summary"]
    assert frame.select("user_id", "item_id", "rating", "timestamp").rows() == [row[:4] for row in kept]
    texts: dict[Row, set[tuple[str | None, str | None]]] = {}  # several where rows of one second differ in texts alone
    for row in rows:
        texts.setdefault(Row(*row[:4]), set()).add((some(row.review), some(row.summary)))
    for row, stored in zip(kept, frame.select("review", "summary").iter_rows(), strict=True):
        assert stored in texts[Row(*row[:4])]

    things = {row.item: Thing(row.item) for row in kept} | things
    items = pl.read_parquet(dataset.path / "items.parquet")
    assert items.columns == ["item_id", *Thing._fields]
    assert {item: Thing(*rest) for item, *rest in items.iter_rows()} == things
    assert items.height == len(things)

    examples = pl.read_parquet(dataset.path / "examples.parquet")
    assert set(examples.columns) == {"example_id", *expected(kept, 0, {0: "train"}, Choice())}
    found = {(e["user_id"], e["item_id"]): e for e in examples.iter_rows(named=True)}
    assert len(found) == examples["example_id"].n_unique() == examples.height
    assert examples["timestamp"].is_sorted()
    targets = core(kept, choice.k_core)
    if choice.users is not None:
        users = {user for user, _ in found}
        assert len(users) == min(choice.users, len({kept[n].user for n in targets}))
        targets = [n for n in targets if kept[n].user in users]
    assert set(found) == {(kept[n].user, kept[n].item) for n in targets}
    if choice.split == "random":
        splits = {n: found[kept[n].user, kept[n].item]["split"] for n in targets}
    else:
        splits = split_rows(kept, targets, choice)

    if sample is not None:
        targets = random.Random(0).sample(targets, sample)
    ids = [found[kept[n].user, kept[n].item]["example_id"] for n in targets]
    chosen = examples.filter(pl.col("example_id").is_in(ids))
    contexts = dict(zip(chosen["example_id"], dataset.contexts(chosen), strict=True))
    for n, example_id in zip(targets, ids, strict=True):
        example = dict(found[kept[n].user, kept[n].item])
        assert example.pop("example_id") == example_id
        if not set(":%") & set(kept[n].user + kept[n].item):
            assert example_id == f"{kept[n].user}:{kept[n].item}"
        wanted = expected(kept, n, splits, choice)
        assert example == wanted

        context = contexts[example_id]
        assert _thing(context.item) == things[kept[n].item]
        assert (context.user_avg, context.user_count) == (wanted["user_avg"], wanted["user_count"])
        assert (context.item_avg, context.item_count) == (wanted["item_avg"], wanted["item_count"])
        assert [_thing(entry.item) for entry in context.user_history] == [
            things[reference["item_id"]] for reference in wanted["user_history"]
        ]
        entries = (*context.user_history, *context.item_history)
        references = (*wanted["user_history"], *wanted["item_history"])
        for entry, reference in zip(entries, references, strict=True):
            assert entry.rating == reference["rating"]
            assert (entry.review, entry.summary) == frame.row(reference["row"])[4:]


def _thing(item: Any) -> Thing:
    return Thing(item.title, list(item.categories), item.creator, item.price, item.description)


# --- the files, as their publishers write them, and the slow readers --------------------------------------------------


def world(users: list[str], items: list[str], grid: tuple[float, ...], texts: list[str | None], step: int) -> list[Row]:
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
WHOLE = (1.0, 2.0, 3.0, 4.0, 5.0)
HALVES = tuple(n / 2 for n in range(1, 11))
TIDY: list[str | None] = ["Fine.", "NA", "ünï 用户 😀", "semi; colon, comma | bar", "</rate>", "", None]
WILD = [*TIDY, 'She said "no", twice', "two\nlines", "a\u2028b\x85c\x0bd", "tab\there", " \n"]
ENTITIES = [*WILD, "Tom &amp; Jerry", "a &#34;b&#34; &lt;c&gt; it&#39;s"]


def json_lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_bytes("".join(json.dumps(r, ensure_ascii=i % 3 == 0) + "\n" for i, r in enumerate(records)).encode())
    return path


def lines(path: Path, encoding: str = "utf-8") -> list[str]:
    """Lines end at a line feed, and nowhere else."""
    return [line for line in path.read_bytes().decode(encoding).split("\n") if line]


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines(path)]


def present(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if value is not None}


def write_time(seconds: int, form: str) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime(form)


def read_time(text: str, form: str) -> int:
    return int(datetime.strptime(text, form).replace(tzinfo=UTC).timestamp())


Written = tuple[Path, Path | None]
Read = tuple[list[Row], dict[str, Thing]]


@dataclass(frozen=True)
class Format:
    """One published layout. `shown` is what some items must look like, said by hand."""

    source: str
    rows: list[Row]
    write: Callable[[Path, list[Row]], Written]
    read: Callable[[Path, Path | None], Read]
    scale: Scale
    shown: dict[str, Thing]


def _amazon_reviews(path: Path, rows: list[Row]) -> Path:
    return json_lines(
        path,
        [
            present(
                {
                    "overall": row.rating,
                    "vote": RANK,
                    "verified": True,
                    "helpful": [COUNT, COUNT],
                    "reviewTime": "09 1, 2001",
                    "reviewerID": row.user,
                    "asin": row.item,
                    "reviewerName": "Somebody",
                    "style": {"Size:": " 7.0 oz"},
                    "reviewText": row.review,
                    "summary": row.summary,
                    "unixReviewTime": row.timestamp,
                }
            )
            for row in rows
        ],
    )


def _unescape(text: Any) -> str | None:
    return None if text is None else some(html.unescape(str(text)))


def _read_amazon_reviews(path: Path, clean: Callable[[Any], str | None] = _unescape) -> list[Row]:
    return [
        Row(
            r["reviewerID"],
            r["asin"],
            float(r["overall"]),
            int(r["unixReviewTime"]),
            clean(r.get("reviewText")),
            clean(r.get("summary")),
        )
        for r in records(path)
    ]


def write_amazon2018(folder: Path, rows: list[Row]) -> Written:
    first = {
        "category": ["Home &amp; Kitchen", "Mills"],
        "description": ["First.", "Second &amp; last."],
        "title": "Salt &amp; Pepper &#34;Mill&#34;",
        "also_buy": [RANK],
        "brand": "Peugeot &amp; Fils",
        "rank": f"{COUNT} in {RANK}",
        "price": "$12.99",
        "asin": "0439023483",
    }
    more = [
        {"asin": "12", "title": "", "category": [], "brand": "", "price": "", "description": ["", ""], "rank": [RANK]},
        {"asin": "B00A", "title": "Only a title"},
        {"asin": "UNRATED", "title": "Unrated\u2028thing", "category": ["Books"], "price": "$1,200.00"},
    ]
    return _amazon_reviews(folder / "reviews.json", rows), json_lines(folder / "meta.json", [first, *more, first])


def read_amazon2018(reviews: Path, items: Path | None) -> Read:
    things = {
        r["asin"]: Thing(
            _unescape(r.get("title")) or r["asin"],
            [html.unescape(name) for name in r.get("category", [])],
            _unescape(r.get("brand")),
            some(r.get("price")),
            _unescape(" ".join(r.get("description", []))),
        )
        for r in (records(items) if items else [])
    }
    return _read_amazon_reviews(reviews), things


def write_amazon2014(folder: Path, rows: list[Row]) -> Written:
    things: list[dict[str, Any]] = [
        {
            "asin": "0439023483",
            "title": 'It\'s a "Game"',
            "price": 9.5,
            "imUrl": "http://example.org/x.jpg",
            "related": {"also_bought": [RANK], "also_viewed": []},
            "salesRank": {"Books": COUNT},
            "categories": [["Books", "Fiction"], ["Books", "X"], ["X", "Y"]],
            "description": "Two\nlines: 用户 \\ 'quoted'",
            "brand": "Scholastic",
        },
        {"asin": "UNRATED", "categories": [["Books"]], "salesRank": {}},
        {"asin": "B00A", "title": "Plain", "price": 12.99, "brand": "", "description": "", "categories": [[]]},
    ]
    path = folder / "meta.json"
    path.write_text("".join(f"{thing!r}\n" for thing in things), encoding="utf-8")
    return _amazon_reviews(folder / "reviews.json", rows), path


def read_amazon2014(reviews: Path, items: Path | None) -> Read:
    things = {}
    for record in [ast.literal_eval(line) for line in lines(items)] if items else []:
        categories: list[str] = []
        for group in record.get("categories", []):
            categories += [name for name in group if name not in categories]
        things[record["asin"]] = Thing(
            some(record.get("title")) or record["asin"],
            categories,
            some(record.get("brand")),
            some(record.get("price")),
            some(record.get("description")),
        )
    return _read_amazon_reviews(reviews), things


def write_amazon2023(folder: Path, rows: list[Row]) -> Written:
    reviews = [
        {
            "rating": row.rating,
            "title": row.summary,
            "text": row.review,
            "images": [],
            "asin": f"variant of {row.item}",
            "parent_asin": row.item,
            "user_id": row.user,
            "timestamp": row.timestamp * 1000 + 137 * (len(row.item) + int(2 * row.rating)) % 1000,
            "helpful_vote": COUNT,
            "verified_purchase": True,
        }
        for row in rows
    ]
    shared = {"average_rating": AVERAGE, "rating_number": COUNT, "features": [], "details": {"Rank": RANK}}
    things = [
        {"parent_asin": "0439023483", "title": "A game", "main_category": "Books", "categories": ["Books", "Fun"]}
        | {"description": ["One.", "Two."], "price": 12.99, "store": "Scholastic", "bought_together": None},
        {"parent_asin": "12", "title": "A bar", "main_category": "All Beauty", "categories": [], "description": []}
        | {"price": None, "store": None},
        {"parent_asin": "UNRATED", "title": "Nothing known", "main_category": None, "categories": []}
        | {"description": [], "price": "from 14.95", "store": "Shop"},
    ]
    return (
        json_lines(folder / "All_Beauty.jsonl", reviews),
        json_lines(folder / "meta_All_Beauty.jsonl", [shared | thing for thing in things]),
    )


def read_amazon2023(reviews: Path, items: Path | None) -> Read:
    rows = [
        Row(r["user_id"], r["parent_asin"], float(r["rating"]), r["timestamp"] // 1000, r["text"], r["title"])
        for r in records(reviews)
    ]
    things = {
        r["parent_asin"]: Thing(
            r["title"],
            r["categories"] or ([r["main_category"]] if r["main_category"] else []),
            r["store"],
            some(r["price"]),
            some(" ".join(r["description"])),
        )
        for r in (records(items) if items else [])
    }
    return rows, things


def write_yelp(folder: Path, rows: list[Row]) -> Written:
    reviews = [
        {
            "review_id": f"r{n}",
            "user_id": row.user,
            "business_id": row.item,
            "stars": row.rating,
            "useful": COUNT,
            "funny": COUNT,
            "cool": COUNT,
            "text": row.review,
            "date": write_time(row.timestamp, "%Y-%m-%d %H:%M:%S"),
        }
        for n, row in enumerate(rows)
    ]
    things = [
        {"business_id": "12", "name": "Joe's Bar", "categories": "Bars, Food Trucks, Pizza", "attributes": {"A": "B"}},
        {"business_id": "UNRATED", "name": "Café", "categories": None, "hours": None},
    ]
    return (
        json_lines(folder / "yelp_academic_dataset_review.json", reviews),
        json_lines(
            folder / "yelp_academic_dataset_business.json",
            [thing | {"stars": AVERAGE, "review_count": COUNT, "is_open": 1, "city": "X"} for thing in things],
        ),
    )


def read_yelp(reviews: Path, items: Path | None) -> Read:
    form = "%Y-%m-%d %H:%M:%S"
    rows = [
        Row(r["user_id"], r["business_id"], float(r["stars"]), read_time(r["date"], form), r["text"])
        for r in records(reviews)
    ]
    return rows, {
        r["business_id"]: Thing(r["name"], (r["categories"] or "").split(", ") if r["categories"] else [])
        for r in (records(items) if items else [])
    }


def _imdb_record(row: Row) -> dict[str, Any]:
    return {
        "review_id": f"rw{row.timestamp}",
        "reviewer": row.user,
        "movie": row.item,
        "rating": f"{row.rating:g}",
        "review_summary": row.summary,
        "review_date": write_time(row.timestamp, "%d %B %Y").lstrip("0"),
        "spoiler_tag": 0,
        "review_detail": row.review,
        "helpful": [str(COUNT), str(COUNT)],
    }


def write_imdb_json(folder: Path, rows: list[Row]) -> Written:
    return json_lines(folder / "part-01.json", [_imdb_record(row) for row in rows]), None


def write_imdb_csv(folder: Path, rows: list[Row]) -> Written:
    path = folder / "reviews.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(_imdb_record(rows[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows([_imdb_record(row) for row in rows])
    return path, None


def read_imdb(reviews: Path, items: Path | None) -> Read:
    if reviews.suffix == ".csv":
        with reviews.open(encoding="utf-8", newline="") as file:
            found: list[dict[str, Any]] = list(csv.DictReader(file))
    else:
        found = records(reviews)
    form = "%d %B %Y"
    return [
        Row(
            r["reviewer"],
            r["movie"],
            float(r["rating"]),
            read_time(r["review_date"], form),
            r["review_detail"],
            r["review_summary"],
        )
        for r in found
    ], {}


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


def write_100k(folder: Path, rows: list[Row]) -> Written:
    home = folder / "ml-100k"
    home.mkdir()
    films = []
    for item, film in FILMS.items():
        flags = [str(int(genre in (film.categories or ["unknown"]))) for genre in GENRES]
        known = film.categories != []
        released = [film.title, "01-Jan-1995" if known else "", "", "http://example.org" if known else ""]
        films.append("|".join([item, *released, *flags]))
    (home / "u.item").write_bytes(("\n".join(films) + "\n").encode("latin-1"))
    (home / "u.genre").write_text("".join(f"{genre}|{n}\n" for n, genre in enumerate(GENRES)) + "\n")
    (home / "u.data").write_text("".join(f"{r.user}\t{r.item}\t{r.rating:g}\t{r.timestamp}\n" for r in rows))
    (home / "u1.base").write_text("1\t1\t5\t874965758\n")  # other people's splits, and what they say of users: not ours
    (home / "u.user").write_text(f"7|24|M|{RANK}|85711\n")
    (home / "README").write_text("SUMMARY & USAGE LICENSE\n")
    return home, None


def read_100k(reviews: Path, items: Path | None) -> Read:
    rows = []
    for line in lines(reviews / "u.data"):
        user, item, rating, when = line.split("\t")
        rows.append(Row(user, item, float(rating), int(when)))
    things = {}
    for line in lines(reviews / "u.item", "latin-1"):
        item, title, _, _, _, *flags = line.split("|")
        genres = [genre for genre, flag in zip(GENRES, flags, strict=True) if flag == "1" and genre != "unknown"]
        things[item] = Thing(title, genres)
    return rows, things


def write_dat(name: str, encoding: str, folder: Path, rows: list[Row]) -> Written:
    home = folder / name
    home.mkdir()
    films = [f"{item}::{film.title}::{'|'.join(film.categories)}\n" for item, film in FILMS.items() if film.categories]
    (home / "movies.dat").write_bytes("".join(films).encode(encoding))
    ratings = "".join(f"{r.user}::{r.item}::{r.rating:g}::{r.timestamp}\n" for r in rows)
    (home / "ratings.dat").write_text(ratings)
    (home / ("users.dat" if name == "ml-1m" else "tags.dat")).write_text(f"7::M::{RANK}::10\n")
    (home / "README").write_text("SUMMARY\n")
    return home, None


def read_dat(encoding: str, reviews: Path, items: Path | None) -> Read:
    rows = []
    for line in lines(reviews / "ratings.dat"):
        user, item, rating, when = line.split("::")
        rows.append(Row(user, item, float(rating), int(when)))
    films = [line.split("::") for line in lines(reviews / "movies.dat", encoding)]
    return rows, {item: Thing(title, genres.split("|")) for item, title, genres in films}


def write_25m(folder: Path, rows: list[Row]) -> Written:
    home = folder / "ml-25m"
    home.mkdir()
    with (home / "movies.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)  # with \r\n, as published
        writer.writerow(["movieId", "title", "genres"])
        for item, film in FILMS.items():
            writer.writerow([item, film.title, "|".join(film.categories) or "(no genres listed)"])
    ratings = "".join(f"{r.user},{r.item},{r.rating:.1f},{r.timestamp}\r\n" for r in rows)
    (home / "ratings.csv").write_bytes(f"userId,movieId,rating,timestamp\r\n{ratings}".encode())
    (home / "tags.csv").write_text(f'userId,movieId,tag,timestamp\n7,7,"{RANK}\n",1\n')
    (home / "links.csv").write_text("movieId,imdbId,tmdbId\n7,0114709,862\n")
    (home / "README.txt").write_text("Summary\n")
    return home, None


def read_25m(reviews: Path, items: Path | None) -> Read:
    with (reviews / "ratings.csv").open(encoding="utf-8", newline="") as file:
        rows = [Row(u, i, float(r), int(t)) for u, i, r, t in list(csv.reader(file))[1:]]
    with (reviews / "movies.csv").open(encoding="utf-8", newline="") as file:
        films = list(csv.reader(file))[1:]
    none = "(no genres listed)"
    return rows, {i: Thing(title, [] if genres == none else genres.split("|")) for i, title, genres in films}


@dataclass(frozen=True)
class Clock:
    """How a table writes its times."""

    write: Callable[[int], Any]
    read: Callable[[Any], int]


def clock(form: str) -> Clock:
    return Clock(partial(write_time, form=form), partial(read_time, form=form))


MILLISECONDS = Clock(lambda seconds: str(1000 * seconds + 999), lambda text: int(text) // 1000)
BOOKS = {
    "12": Thing("War, and Peace", ["Novels", "War & Peace"], "Tolstoy; Leo", "9.5", 'A "long"\tone'),
    "9999": Thing("Unrated", [], None, "$12"),
    "7": Thing("Crime", ["Novels"], "Dostoevsky", None, "Short."),
}
TIDY_BOOKS = BOOKS | {"12": BOOKS["12"]._replace(description="A long one")}


def write_delimited(
    name: str, mark: str, header: str, items_header: str, join: str, clock: Clock, things: dict[str, Thing],
    folder: Path, rows: list[Row],
) -> Written:  # fmt: skip
    """`header` names user, item, rating, time, review and summary, in that order; the file has them in another."""
    user, item, rating, when, review, summary = header.split()
    order = [when, review, user, "helpful_votes", rating, item, summary]
    path, items = folder / name, folder / f"items-{name}"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, order, delimiter=mark, lineterminator="\n")
        writer.writeheader()
        for r in rows:
            values = {user: r.user, item: r.item, rating: f"{r.rating:g}", when: clock.write(r.timestamp)}
            writer.writerow(values | {review: r.review, summary: r.summary, "helpful_votes": COUNT})
    with items.open("w", encoding="utf-8", newline="") as file:
        writer_ = csv.writer(file, delimiter=mark, lineterminator="\n")
        writer_.writerow([*items_header.split(), "average_rating", "num_ratings"])
        for key, thing in things.items():
            writer_.writerow([key, thing.title, join.join(thing.categories), *thing[2:], AVERAGE, COUNT])
    return path, items


def read_delimited(
    mark: str, header: str, items_header: str, join: str, clock: Clock, reviews: Path, items: Path | None
) -> Read:
    user, item, rating, when, review, summary = header.split()
    with reviews.open(encoding="utf-8", newline="") as file:
        rows = [
            Row(r[user], r[item], float(r[rating]), clock.read(r[when]), r[review], r[summary])
            for r in csv.DictReader(file, delimiter=mark)
        ]
    if not items:
        return rows, {}
    key, title, categories, *rest = items_header.split()
    with items.open(encoding="utf-8", newline="") as file:
        return rows, {
            r[key]: Thing(r[title], [c for c in r[categories].split(join) if c], *(some(r[name]) for name in rest))
            for r in csv.DictReader(file, delimiter=mark)
        }


def delimited(
    name: str, mark: str, header: str, items_header: str, join: str, clock: Clock, rows: list[Row], tidy: bool = False
) -> Format:
    things = TIDY_BOOKS if tidy else BOOKS
    return Format(
        "table",
        rows,
        partial(write_delimited, name, mark, header, items_header, join, clock, things),
        partial(read_delimited, mark, header, items_header, join, clock),
        Scale(1, 5, 1),
        things,
    )


def write_table_json(folder: Path, rows: list[Row]) -> Written:
    """Ids are numbers, categories a list or a text."""
    reviews = [
        {
            "user_id": int(row.user),
            "item_id": int(row.item),
            "rating": row.rating,
            "timestamp": write_time(row.timestamp, "%Y-%m-%dT%H:%M:%SZ"),
            "review": row.review,
            "summary": row.summary,
            "helpful": COUNT,
        }
        for row in rows
    ]
    things = [
        {"item_id": int(key), "average_rating": AVERAGE}
        | {"title": t.title, "categories": t.categories, "brand": t.creator, "price": t.price}
        | {"description": t.description}
        for key, t in BOOKS.items()
    ]
    return json_lines(folder / "table.jsonl", reviews), json_lines(folder / "items.jsonl", things)


def read_table_json(reviews: Path, items: Path | None) -> Read:
    form = "%Y-%m-%dT%H:%M:%SZ"
    rows = [
        Row(
            str(r["user_id"]), str(r["item_id"]), r["rating"], read_time(r["timestamp"], form), r["review"],
            r["summary"],
        )
        for r in records(reviews)
    ]  # fmt: skip
    return rows, {
        str(r["item_id"]): Thing(r["title"], r["categories"], r["brand"], r["price"], r["description"])
        for r in (records(items) if items else [])
    }


def write_table_parquet(folder: Path, rows: list[Row]) -> Written:
    reviews, items = folder / "table.parquet", folder / "items.parquet"
    pl.DataFrame(
        {
            "helpful_votes": [COUNT] * len(rows),
            "user": [int(r.user) for r in rows],
            "asin": [r.item for r in rows],
            "rating": [int(r.rating) for r in rows],
            "time": [datetime.fromtimestamp(r.timestamp, UTC).replace(tzinfo=None) for r in rows],
            "text": [r.review for r in rows],
            "headline": [r.summary for r in rows],
        }
    ).write_parquet(reviews)
    things = BOOKS.values()
    pl.DataFrame(
        {
            "asin": list(BOOKS),
            "title": [t.title for t in things],
            "genres": [t.categories for t in things],
            "author": [t.creator for t in things],
            "price": [None if t.price is None else float(t.price.lstrip("$")) + 0.25 for t in things],
            "description": [t.description for t in things],
            "average_rating": [AVERAGE] * len(BOOKS),
        }
    ).write_parquet(items)
    return reviews, items


def read_table_parquet(reviews: Path, items: Path | None) -> Read:
    rows = [
        Row(str(user), item, float(rating), int(when.replace(tzinfo=UTC).timestamp()), text, headline)
        for _, user, item, rating, when, text, headline in pl.read_parquet(reviews).iter_rows()
    ]
    return rows, {
        item: Thing(title, genres, author, some(price), description)
        for item, title, genres, author, price, description, _ in (pl.read_parquet(items).iter_rows() if items else ())
    }


MILL = Thing(
    'Salt & Pepper "Mill"', ["Home & Kitchen", "Mills"], "Peugeot & Fils", "$12.99", "First. Second & last."
)  # fmt: skip
GAME = Thing(
    "It's a \"Game\"", ["Books", "Fiction", "X", "Y"], "Scholastic", "9.5", "Two\nlines: 用户 \\ 'quoted'"
)  # fmt: skip
CINEMA = ["Titanic: Part 2 (1997)", "12", "After Life (2019– )", "Amélie", "M", "100% Wolf (2020)", "7", "Up", "Heat"]
TEN = tuple(float(n) for n in range(1, 11))
films_in_dat = {item: film for item, film in FILMS.items() if film.categories}

FORMATS = {
    "amazon2018": Format(
        "amazon2018", world(USERS, ITEMS, WHOLE, ENTITIES, DAY), write_amazon2018, read_amazon2018, Scale(1, 5, 1),
        {
            "0439023483": MILL,
            "12": Thing("12"),
            "B00A": Thing("Only a title"),
            "UNRATED": Thing("Unrated\u2028thing", ["Books"], None, "$1,200.00"),
        },
    ),
    "amazon2014": Format(
        "amazon2014", world(USERS, ITEMS, WHOLE, WILD, DAY), write_amazon2014, read_amazon2014, Scale(1, 5, 1),
        {"0439023483": GAME, "UNRATED": Thing("UNRATED", ["Books"]), "B00A": Thing("Plain", price="12.99")},
    ),
    "amazon2023": Format(
        "amazon2023", world(USERS, ITEMS, WHOLE, WILD, 1), write_amazon2023, read_amazon2023, Scale(1, 5, 1),
        {
            "0439023483": Thing("A game", ["Books", "Fun"], "Scholastic", "12.99", "One. Two."),
            "12": Thing("A bar", ["All Beauty"]),
            "UNRATED": Thing("Nothing known", [], "Shop", "from 14.95"),
        },
    ),
    "yelp": Format(
        "yelp", world(USERS, ITEMS, WHOLE, WILD, 5000), write_yelp, read_yelp, Scale(1, 5, 1),
        {"12": Thing("Joe's Bar", ["Bars", "Food Trucks", "Pizza"]), "UNRATED": Thing("Café")},
    ),
    "imdb-json": Format(
        "imdb", world(USERS, CINEMA, TEN, WILD, DAY), write_imdb_json, read_imdb, Scale(1, 10, 1),
        {"Titanic: Part 2 (1997)": Thing("Titanic: Part 2 (1997)")},
    ),
    "imdb-csv": Format(
        "imdb", world(USERS, CINEMA, TEN, WILD, DAY), write_imdb_csv, read_imdb, Scale(1, 10, 1), {"M": Thing("M")}
    ),
    "ml-100k": Format(
        "movielens", world(NUMBERS, NUMBERS, WHOLE, [None], 1), write_100k, read_100k, Scale(1, 5, 1), FILMS
    ),
    "ml-1m": Format(
        "movielens", world(NUMBERS, NUMBERS, WHOLE, [None], 1), partial(write_dat, "ml-1m", "latin-1"),
        partial(read_dat, "latin-1"), Scale(1, 5, 1), films_in_dat,
    ),
    "ml-10m": Format(
        "movielens", world(NUMBERS, NUMBERS, HALVES, [None], 1), partial(write_dat, "ml-10M100K", "utf-8"),
        partial(read_dat, "utf-8"), Scale(0.5, 5, 0.5), films_in_dat,
    ),
    "ml-25m": Format(
        "movielens", world(NUMBERS, NUMBERS, HALVES, [None], 1), write_25m, read_25m, Scale(0.5, 5, 0.5), FILMS
    ),
    "table-comma": delimited(
        "comma.csv", ",", "customer book score date comment summary", "book title genres author price description",
        "|", clock("%Y-%m-%d"), world(USERS, ITEMS, WHOLE, WILD, DAY),
    ),
    "table-semicolon": delimited(
        "semicolon.csv", ";", "user film stars date review headline", "film title categories creator price description",
        ", ", clock("%Y-%m-%d %H:%M:%S"), world(USERS, ITEMS, WHOLE, WILD, 5000),
    ),
    "table-tab": delimited(
        "tab.csv", "\t", "userId item rating timestamp text summary", "item title categories brand price description",
        "|", MILLISECONDS, world(USERS, ITEMS, WHOLE, WILD, 1),
    ),
    "table-tsv": delimited(
        "table.tsv", "\t", "userId productId rating time text summary",
        "productId title categories brand price description",
        "|", Clock(str, int), world(USERS, ITEMS, WHOLE, TIDY, 1), tidy=True,
    ),
    "table-json": Format(
        "table", world(NUMBERS, NUMBERS, WHOLE, WILD, 5000), write_table_json, read_table_json, Scale(1, 5, 1), BOOKS
    ),
    "table-parquet": Format(
        "table", world(NUMBERS, NUMBERS, WHOLE, WILD, 5000), write_table_parquet, read_table_parquet, Scale(1, 5, 1),
        {"12": BOOKS["12"]._replace(price="9.75")},
    ),
}  # fmt: skip

every_format = pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)


# --- running the command ----------------------------------------------------------------------------------------------

Prepare = Callable[..., Dataset]
Refused = Callable[..., str]


def command(source: str, reviews: Path, items: Path | None, out: Path, words: tuple[object, ...]) -> list[str]:
    table = ["--items", str(items)] if items else []
    return [
        "data", "prepare", "--source", source, "--reviews", str(reviews), *table, "--out", str(out), *map(str, words)
    ]  # fmt: skip


@pytest.fixture
def prepare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Prepare:
    """Run `reczero data prepare`, which must succeed, into the folder `out` of the test's own folder."""

    def go(source: str, reviews: Path, items: Path | None = None, *words: object, out: str = "out") -> Dataset:
        code = run(command(source, reviews, items, tmp_path / out, words))
        assert code == 0, capsys.readouterr().err
        return Dataset.open(tmp_path / out)

    return go


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run `reczero data prepare`, which must end with one line, returned, and leave nothing behind."""

    def go(source: str, reviews: Path, items: Path | None = None, *words: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        code = run(command(source, reviews, items, tmp_path / "out", words))
        told = capsys.readouterr().err.strip()
        assert code == 2, told
        assert told.startswith("error:") and "\n" not in told, told
        assert sorted(tmp_path.rglob("*")) == before
        return told

    return go


def table_bytes(dataset: Dataset) -> dict[str, bytes]:
    return {name: (dataset.path / name).read_bytes() for name in PARQUET}


def quarantined(dataset: Dataset) -> dict[int, dict[str, Any]]:
    """What was put aside, by line; for tests where one file alone has bad rows."""
    path = dataset.path / "quarantine.jsonl"
    if not path.exists():
        return {}
    found = records(path)
    assert found, "an empty quarantine.jsonl"
    for entry in found:
        assert set(entry) == {"file", "line", "reason", "text"}
        assert isinstance(entry["text"], str)
        assert entry["reason"].strip() and "\n" not in entry["reason"]
    assert len({(e["file"], e["line"]) for e in found}) == len(found)
    return {entry["line"]: entry for entry in found}


def tells(entry: dict[str, Any], bad: str) -> bool:
    """Whether the text put aside is the bad record as it stood, or the values read from it, as JSON."""
    text = entry["text"]
    try:
        return text.startswith(bad[:12]) or isinstance(json.loads(text), dict)
    except ValueError:
        return False


def pairs(dataset: Dataset) -> list[tuple[str, str]]:
    return pl.read_parquet(dataset.path / "interactions.parquet").select("user_id", "item_id").rows()


def packed(path: Path, kind: str, suffix: str) -> Path:
    """A copy of a file, or zip of a folder, compressed."""
    target = path.parent / f"packed-{kind}" / f"{path.name}{suffix}"
    target.parent.mkdir(exist_ok=True)
    if kind == "gz":
        target.write_bytes(gzip.compress(path.read_bytes()))
        return target
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            archive.write(file, f"{path.name}/{file.name}" if path.is_dir() else file.name)
    return target


# --- the checker itself -----------------------------------------------------------------------------------------------

HAND = [  # in the order of the file; the comments give the rows of interactions.parquet
    Row("C", "k", 4.0, 300),  # dropped: as early as the next one, and higher
    Row("C", "k", 2.0, 300),  # 6
    Row("A", "j", 1.0, 200),  # dropped: later than the next one
    Row("A", "j", 2.0, 150),  # 2
    Row("B", "i", 3.0, 100),  # 1
    Row("A", "i", 5.0, 100),  # 0
    Row("B", "j", 5.0, 300),  # 5
    Row("A", "k", 3.0, 300),  # 4
    Row("C", "i", 4.0, 200),  # 3
]


class Line(NamedTuple):
    split: str
    by_user: list[int]
    of_item: list[int]
    user_avg: float | None
    item_avg: float | None
    user_count: int
    item_count: int
    cold_start: bool


@pytest.mark.parametrize(
    ("choice", "by_hand"),
    [
        (
            Choice(min_context=2),
            [
                Line("train", [], [], None, None, 0, 0, True),
                Line("train", [], [], None, None, 0, 0, True),
                Line("train", [0], [], 5.0, None, 1, 0, True),
                Line("train", [], [0, 1], None, 4.0, 0, 2, True),
                Line("train", [0, 2], [], 3.5, None, 2, 0, True),
                Line("train", [1], [2], 3.0, 2.0, 1, 1, False),
                Line("test", [3], [], 4.0, None, 1, 0, True),
            ],
        ),
        (
            Choice(history=1, min_context=1, min_item_history=0, train=0.5, validation=0.25, test=0.25),
            [
                Line("train", [], [], None, None, 0, 0, True),
                Line("train", [], [], None, None, 0, 0, True),
                Line("train", [0], [], 5.0, None, 1, 0, False),
                Line("train", [], [1], None, 4.0, 0, 2, True),
                Line("validation", [2], [], 3.5, None, 2, 0, False),
                Line("test", [1], [2], 3.0, 2.0, 1, 1, False),
                Line("test", [3], [], 4.0, None, 1, 0, False),
            ],
        ),
        (
            # Only A has three rows, 0, 2 and 4: so row 2 is held out, and B's row 5 (train) must not know of it.
            Choice(split="leave-last-k", leave_last=1, min_context=2),
            [
                Line("train", [], [], None, None, 0, 0, True),
                Line("train", [], [], None, None, 0, 0, True),
                Line("validation", [0], [], 5.0, None, 1, 0, True),
                Line("train", [], [0, 1], None, 4.0, 0, 2, True),
                Line("test", [0, 2], [], 3.5, None, 2, 0, True),
                Line("train", [1], [], 3.0, None, 1, 0, True),
                Line("train", [3], [], 4.0, None, 1, 0, True),
            ],
        ),
    ],
    ids=["time", "short", "leave-last-k"],
)
def test_the_checker_and_the_command_agree_with_numbers_by_hand(
    choice: Choice, by_hand: list[Line], prepare: Prepare, tmp_path: Path
) -> None:
    kept = kept_rows(HAND)
    order = [("A", "i"), ("B", "i"), ("A", "j"), ("C", "i"), ("A", "k"), ("B", "j"), ("C", "k")]
    assert [(r.user, r.item) for r in kept] == order and kept[6].rating == 2 and kept[2].timestamp == 150
    splits = split_rows(kept, list(range(7)), choice)

    def line(example: dict[str, Any]) -> Line:
        histories = {side: [e["row"] for e in example[f"{side}_history"]] for side in ("user", "item")}
        return Line(
            example["split"], histories["user"], histories["item"], example["user_avg"], example["item_avg"],
            example["user_count"], example["item_count"], example["cold_start"],
        )  # fmt: skip

    assert [line(expected(kept, n, splits, choice)) for n in range(7)] == by_hand

    reviews, _ = write_amazon2018(tmp_path, HAND)
    dataset = prepare("amazon2018", reviews, None, *choice.words())
    assert pairs(dataset) == order
    assert [line(example) for example in dataset.examples(None, None).to_dicts()] == by_hand


@every_format
def test_the_slow_readers_read_what_was_written(form: Format, tmp_path: Path) -> None:
    rows, things = form.read(*form.write(tmp_path, form.rows))
    assert [row[:4] for row in rows] == [row[:4] for row in form.rows]
    assert {item: things.get(item, Thing(item)) for item in form.shown} == form.shown
    kept = kept_rows(rows)
    assert len(kept) < len(rows)  # repeats
    assert len({row.timestamp for row in kept}) < len(kept)  # ties
    counts = {user: sum(row.user == user for row in kept) for user in {row.user for row in kept}}
    assert min(counts.values()) <= 2 and max(counts.values()) > 5


# --- every format -----------------------------------------------------------------------------------------------------


@every_format
def test_every_format_is_what_the_slow_checker_says(form: Format, prepare: Prepare, tmp_path: Path) -> None:
    reviews, items = form.write(tmp_path, form.rows)
    dataset = prepare(form.source, reviews, items)
    assert dataset.scale == form.scale
    assert not quarantined(dataset)
    check(dataset, *form.read(reviews, items))
    stored = {item: Thing(*rest) for item, *rest in pl.read_parquet(dataset.path / "items.parquet").iter_rows()}
    assert {item: stored[item] for item in form.shown} == form.shown

    written = "".join(pl.read_parquet(dataset.path / name).write_ndjson() for name in PARQUET)
    written += "".join(p.read_text(encoding="utf-8") for p in dataset.path.iterdir() if p.name not in PARQUET)
    for mark in (str(AVERAGE), str(COUNT), RANK):
        assert mark not in written


@pytest.mark.parametrize("kind", ["gz", "zip"])
@pytest.mark.parametrize("suffixed", [True, False], ids=["suffix", "no suffix"])
@pytest.mark.parametrize("name", ["amazon2018", "amazon2014", "amazon2023", "yelp", "imdb-json", "imdb-csv",
                                  "table-comma", "table-tsv", "table-json"])  # fmt: skip
def test_compressed_files_give_the_same_bytes(
    name: str, kind: str, suffixed: bool, prepare: Prepare, tmp_path: Path
) -> None:
    form = FORMATS[name]
    reviews, items = form.write(tmp_path, form.rows)
    plain = prepare(form.source, reviews, items)
    suffix = f".{kind}" if suffixed else ""
    again = prepare(
        form.source, packed(reviews, kind, suffix), packed(items, kind, suffix) if items else None, out="again"
    )
    assert table_bytes(again) == table_bytes(plain)


@pytest.mark.parametrize("name", [name for name in FORMATS if name.startswith("ml-")])
def test_movielens_is_given_as_folder_archive_or_ratings_file(name: str, prepare: Prepare, tmp_path: Path) -> None:
    form = FORMATS[name]
    home, _ = form.write(tmp_path, form.rows)
    plain = prepare("movielens", home)
    zipped = prepare("movielens", packed(home, "zip", ".zip"), out="zipped")
    assert table_bytes(zipped) == table_bytes(plain)
    ratings = next(home / file for file in ("u.data", "ratings.dat", "ratings.csv") if (home / file).exists())
    films = next(home / file for file in ("u.item", "movies.dat", "movies.csv") if (home / file).exists())
    alone = prepare("movielens", ratings, out="alone")
    assert alone.scale == form.scale
    for table in ("interactions.parquet", "examples.parquet"):
        assert table_bytes(alone)[table] == table_bytes(plain)[table]
    assert table_bytes(prepare("movielens", ratings, films, out="both")) == table_bytes(plain)
    squeezed = prepare("movielens", packed(ratings, "gz", ".gz"), packed(films, "gz", ".gz"), out="squeezed")
    assert table_bytes(squeezed) == table_bytes(plain)


@every_format
def test_rows_in_another_order_give_the_same_bytes(form: Format, prepare: Prepare, tmp_path: Path) -> None:
    datasets = []
    for name, rows in (("one", form.rows), ("two", random.Random(5).sample(form.rows, len(form.rows)))):
        (tmp_path / name).mkdir()
        words = ("--users", 5, "--seed", 3)
        datasets.append(prepare(form.source, *form.write(tmp_path / name, rows), *words, out=f"out-{name}"))
    assert table_bytes(datasets[0]) == table_bytes(datasets[1])


CHOICES = {
    "short histories": Choice(history=2, min_context=3),
    "warm only": Choice(min_user_history=4, min_item_history=3, min_context=8),
    "nothing is cold": Choice(min_user_history=0, min_item_history=0, min_context=0),
    "fractions": Choice(train=0.6, validation=0.15, test=0.25),
    "dates": Choice(validation_from="2014-06-20", test_from="2014-07-04"),
    "leave last": Choice(split="leave-last-k", leave_last=1),
    "leave last 2": Choice(split="leave-last-k", leave_last=2, history=4),
    "leave last 4": Choice(split="leave-last-k", leave_last=4),
    "leave last of users": Choice(split="leave-last-k", leave_last=1, users=6),
    "leave last of a core": Choice(split="leave-last-k", leave_last=2, k_core=4),
    "core": Choice(k_core=4),
    "users": Choice(users=4, seed=7),
    "all users": Choice(users=1000),
    "random": Choice(split="random", seed=11),
    "random thirds": Choice(split="random", train=0.4, validation=0.3, test=0.3, history=3),
}


@pytest.mark.parametrize("name", ["amazon2018", "table-comma"])
@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_every_choice_is_what_the_slow_checker_says(
    choice: Choice, name: str, prepare: Prepare, tmp_path: Path
) -> None:
    form = FORMATS[name]
    reviews, items = form.write(tmp_path, form.rows)
    dataset = prepare(form.source, reviews, items, *choice.words())
    check(dataset, *form.read(reviews, items), choice)
    if choice.users is None:
        assert all(dataset.info["counts"][split] for split in ("train", "validation", "test"))


# --- splits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2])
def test_no_training_context_holds_a_held_out_row(k: int, prepare: Prepare, tmp_path: Path) -> None:
    """Seen from what was written alone, not through the checker."""
    form = FORMATS["amazon2018"]
    dataset = prepare("amazon2018", *form.write(tmp_path, form.rows), "--split", "leave-last-k", "--leave-last", k)
    examples = dataset.examples(None, None).to_dicts()
    split = {(e["user_id"], e["item_id"]): e["split"] for e in examples}
    by_row = [split[pair] for pair in pairs(dataset)]
    unseen = {"train": {"validation", "test"}, "validation": {"test"}, "test": set()}
    hidden = 0
    for example in examples:
        shown = [entry["row"] for side in ("user_history", "item_history") for entry in example[side]]
        assert not unseen[example["split"]] & {by_row[row] for row in shown}
        earlier = [e for e in examples if e["item_id"] == example["item_id"] and e["timestamp"] < example["timestamp"]]
        hidden += len(earlier) - example["item_count"]
    assert hidden > 0  # there was something to keep out
    for user in {e["user_id"] for e in examples}:
        own = [e["split"] for e in examples if e["user_id"] == user]
        assert own.count("test") == own.count("validation") == (k if len(own) > 2 * k else 0)


def test_dates_cut_at_midnight_utc(prepare: Prepare, tmp_path: Path) -> None:
    july, august = midnight("2018-07-01"), midnight("2018-08-01")
    moments = [july - 1, july, july + 1, august - 1, august]
    reviews, _ = write_yelp(tmp_path, [Row("u", f"i{n}", 3.0, moment) for n, moment in enumerate(moments)])
    words = ("--validation-from", "2018-07-01", "--test-from", "2018-08-01")
    examples = prepare("yelp", reviews, None, *words).examples(None, None)
    assert examples["split"].to_list() == ["train", "validation", "validation", "validation", "test"]
    assert examples["timestamp"].to_list() == moments


def test_a_sample_of_users_leaves_their_contexts_whole(prepare: Prepare, tmp_path: Path) -> None:
    form = FORMATS["amazon2018"]
    files = form.write(tmp_path, form.rows)
    whole = prepare("amazon2018", *files)
    examples = whole.examples(None, None)
    samples = set()
    for seed in range(4):
        part = prepare("amazon2018", *files, "--users", 3, "--seed", seed, out=f"seed-{seed}")
        found = part.examples(None, None)
        samples.add(frozenset(found["user_id"]))
        assert found["user_id"].n_unique() == 3
        same = examples.filter(pl.col("user_id").is_in(found["user_id"].unique().to_list()))
        assert found.drop("split").equals(same.drop("split"))
        for name in ("interactions.parquet", "items.parquet"):
            assert table_bytes(part)[name] == table_bytes(whole)[name]
    assert len(samples) > 1
    again = prepare("amazon2018", *files, "--users", 3, "--seed", 0, out="again")
    assert table_bytes(again)["examples.parquet"] == (tmp_path / "seed-0" / "examples.parquet").read_bytes()


def test_a_core_chooses_targets_and_leaves_their_contexts_whole(prepare: Prepare, tmp_path: Path) -> None:
    form = FORMATS["amazon2018"]
    files = form.write(tmp_path, form.rows)
    whole = prepare("amazon2018", *files).examples(None, None)
    cored = prepare("amazon2018", *files, "--k-core", 5, out="cored").examples(None, None)
    assert 0 < cored.height < whole.height
    same = whole.join(cored.select("example_id"), on="example_id", how="semi", maintain_order="left")
    assert cored.drop("split").equals(same.drop("split"))


def test_a_random_split_is_seeded_and_said_to_leak(
    prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    form = FORMATS["amazon2018"]
    files = form.write(tmp_path, form.rows)
    made = {}
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        made[name] = prepare("amazon2018", *files, "--split", "random", "--seed", seed, out=name)
        assert "leak" in capsys.readouterr().err.lower()
    assert table_bytes(made["one"]) == table_bytes(made["same"])
    assert table_bytes(made["one"])["examples.parquet"] != table_bytes(made["other"])["examples.parquet"]
    examples = made["one"].examples(None, None)
    for split, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        assert (examples["split"] == split).sum() == pytest.approx(share * examples.height, abs=1)
    last = examples.filter(pl.col("split") == "train")["timestamp"].max()
    assert examples.filter(pl.col("split") == "test")["timestamp"].min() < last  # not a split by time


def test_a_table_without_times_is_refused_unless_split_at_random(
    prepare: Prepare, refused: Refused, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(3)
    grid = [(f"u{n}", f"i{m}", 1 + (n * m) % 5) for n in range(9) for m in range(8) if (n + m) % 3]
    path = tmp_path / "ratings.csv"
    path.write_text("user,item,rating\n" + "".join(f"{u},{i},{r}\n" for u, i, r in chance.sample(grid, len(grid))))
    assert re.search(r"\btime", refused("table", path))
    refused("table", path, None, "--split", "leave-last-k", "--leave-last", 1)
    choice = Choice(split="random", history=3, min_context=2)
    dataset = prepare("table", path, None, *choice.words())
    assert "leak" in capsys.readouterr().err.lower()

    # Their order in interactions.parquet, which is not that of the file, stands for the time that is not known.
    stored = [Row(*row[:4]) for row in pl.read_parquet(dataset.path / "interactions.parquet").iter_rows()]
    assert sorted(row[:3] for row in stored) == sorted((u, i, float(r)) for u, i, r in grid)
    assert len({row.timestamp for row in stored}) == len(grid) and sorted(pairs(dataset)) != pairs(dataset)
    check(dataset, stored, {}, choice)
    path.write_text("user,item,rating\n" + "".join(f"{u},{i},{r}\n" for u, i, r in grid))
    assert table_bytes(prepare("table", path, None, *choice.words(), out="again")) == table_bytes(dataset)


# --- nothing leaks ----------------------------------------------------------------------------------------------------


def prompts(dataset: Dataset) -> dict[str, list[dict[str, str]]]:
    examples = dataset.examples(None, None)
    template = Template(scale=dataset.scale)
    messages = (template.messages(context) for context in dataset.contexts(examples))
    return dict(zip(examples["example_id"], messages, strict=True))


@pytest.mark.parametrize("how", ["changed", "deleted", "added", "its own"])
def test_nothing_at_or_after_an_examples_time_reaches_its_prompt(how: str, prepare: Prepare, tmp_path: Path) -> None:
    form = FORMATS["amazon2018"]
    kept = kept_rows(form.rows)
    chance = random.Random(how)
    reviews, items = form.write(tmp_path, form.rows)
    before = prompts(prepare("amazon2018", reviews, items, out="before"))
    assert any("changed" in str(m) for m in before.values()) is False
    for turn, target in enumerate(chance.sample(kept[40:], 4)):
        now = target.timestamp

        def other(row: Row, now: int = now) -> Row:
            when = now + chance.choice([0, 0, 1, DAY])
            texts = chance.choice(["changed", "changed too"]), "changed"
            return Row(row.user, chance.choice(ITEMS), chance.choice(WHOLE), when, *texts)

        past = [row for row in form.rows if row.timestamp < now]
        late = [row for row in form.rows if row.timestamp >= now and row[:2] != target[:2]]
        rows = {
            "changed": [*past, target, *(other(row) for row in late)],
            "deleted": [*past, target],
            "added": [
                *form.rows,
                *(other(row) for row in form.rows),
                *(other(target) for _ in range(20)),
                *(target._replace(user=u, rating=1.0, review="changed") for u in [*USERS, "new"] if u != target.user),
            ],
            "its own": [
                row if row[:2] != target[:2] else row._replace(rating=6 - row.rating, review="changed", summary=None)
                for row in form.rows
            ],
        }[how]
        folder = tmp_path / str(turn)
        folder.mkdir()
        after = prompts(prepare("amazon2018", *form.write(folder, rows), out=f"after-{turn}"))
        known = {f"{row.user}:{row.item}" for row in kept if row.timestamp < now}
        known.add(f"{target.user}:{target.item}")
        assert len(known) > 20 and known <= set(after)
        for example_id in known:
            assert after[example_id] == before[example_id]


# --- bad rows ---------------------------------------------------------------------------------------------------------


def amazon_line(**changes: Any) -> bytes:
    """A good line; a key set to ... is left out."""
    record = {"reviewerID": "u", "asin": "i", "overall": 4.0, "unixReviewTime": 1_400_000_000, "reviewText": "fine"}
    return json.dumps({k: v for k, v in (record | changes).items() if v is not ...}, ensure_ascii=False).encode()


BAD_AMAZON = {
    "broken": b'{"reviewerID": "u", "asin": "i", "overall": 4.0,',
    "cut within a text": b'{"reviewerID": "u", "asin": "i", "overall": 4.0, "unixReviewTime": 14, "reviewText": "fi',
    "bad UTF-8": amazon_line().replace(b"fine", b"fi\xff\xfene"),
    "UTF-8 cut short": amazon_line().replace(b"fine", "fi用".encode()[:-1]),
    "rating 9": amazon_line(overall=9),
    "rating 0": amazon_line(overall=0),
    "rating -1": amazon_line(overall=-1),
    "rating a word": amazon_line(overall="good"),
    "rating null": amazon_line(overall=None),
    "rating absent": amazon_line(overall=...),
    "rating true": amazon_line(overall=True),
    "rating NaN": amazon_line(overall=math.nan),
    "rating infinite": amazon_line().replace(b"4.0", b"1e999"),
    "rating a list": amazon_line(overall=[4]),
    "time soon": amazon_line(unixReviewTime="soon"),
    "time null": amazon_line(unixReviewTime=None),
    "time absent": amazon_line(unixReviewTime=...),
    "time beyond all": amazon_line(unixReviewTime=10**30),
    "time NaN": amazon_line(unixReviewTime=math.nan),
    "user absent": amazon_line(reviewerID=...),
    "user null": amazon_line(reviewerID=None),
    "user empty": amazon_line(reviewerID=""),
    "item absent": amazon_line(asin=...),
    "item empty": amazon_line(asin=""),
    "a list": b"[1, 2]",
    "a number": b"17",
    "a text": b'"text"',
    "two records": amazon_line() + b" " + amazon_line(),
    "nested deeply": b"[" * 100_000,
}


@pytest.mark.parametrize("bad", BAD_AMAZON.values(), ids=BAD_AMAZON)
def test_a_bad_json_line_is_put_aside_alone(bad: bytes, prepare: Prepare, tmp_path: Path) -> None:
    path = tmp_path / "reviews.json"
    good = [amazon_line(asin=f"i{n}", summary="one\u2028two\x85three") for n in range(3)]
    path.write_bytes(b"\n".join([good[0], good[1], bad, good[2]]))  # no line feed at the end
    dataset = prepare("amazon2018", path, None, "--max-bad", 0.5)
    assert pairs(dataset) == [("u", "i0"), ("u", "i1"), ("u", "i2")]
    (entry,) = quarantined(dataset).values()
    assert (entry["file"], entry["line"]) == ("reviews.json", 3)
    assert tells(entry, bad[:12].decode())


def test_bad_json_lines_are_told_with_their_lines(prepare: Prepare, tmp_path: Path) -> None:
    good = [amazon_line(asin=f"i{n}") for n in range(9)]
    broken, bytes_, nine, soon, nobody = (
        BAD_AMAZON[name] for name in ("broken", "bad UTF-8", "rating 9", "time soon", "user absent")
    )
    content = [good[0], good[1], broken, good[2], bytes_, nine, soon, good[3], nobody, good[4], good[5]]
    path = tmp_path / "reviews.json"
    path.write_bytes(b"".join(line + b"\n" for line in content))
    dataset = prepare("amazon2018", path, None, "--max-bad", 0.5)
    assert sorted(quarantined(dataset)) == [3, 5, 6, 7, 9]
    assert pairs(dataset) == [("u", f"i{n}") for n in range(6)]
    assert {entry["file"] for entry in quarantined(dataset).values()} == {"reviews.json"}
    for kind in ("gz", "zip"):
        again = prepare("amazon2018", packed(path, kind, f".{kind}"), None, "--max-bad", 0.5, out=kind)
        assert sorted(quarantined(again)) == [3, 5, 6, 7, 9]
        assert table_bytes(again) == table_bytes(dataset)


def test_a_lone_surrogate_does_no_harm(prepare: Prepare, tmp_path: Path) -> None:
    """JSON can say what no UTF-8 file can hold: whatever becomes of that row, it is accounted for."""
    path = tmp_path / "reviews.json"
    bad = amazon_line(asin="i1").replace(b"fine", rb"\ud83d!")
    path.write_bytes(b"\n".join([amazon_line(asin="i0"), bad, amazon_line(asin="i2")]))
    dataset = prepare("amazon2018", path, None, "--max-bad", 0.5)
    assert set(pairs(dataset)) >= {("u", "i0"), ("u", "i2")}
    assert len(pairs(dataset)) + len(quarantined(dataset)) == 3


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("mark", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
def test_bad_csv_rows_are_told_with_the_line_where_they_begin(
    mark: str, end: str, prepare: Prepare, tmp_path: Path
) -> None:
    content = [  # (record, line where it begins if it is bad)
        ("user,item,rating,timestamp,review", 0),  # 1
        ("u1,i1,5,100,fine", 0),  # 2
        ('u2,i1,4,101,"two\nlines, and ""more"""', 0),  # 3, 4
        ("u3,i1", 5),
        ('u4,i1,3,102,"three\n\nlines"', 0),  # 6, 7, 8
        ("u5,i1,9,103,off the scale", 9),
        ("u6,i1,2,soon,no time", 10),
        ("u7,i1,2,,no time", 11),
        (",i1,2,104,no user", 12),
        ("u8,,2,104,no item", 13),
        ("u9,i1,,104,no rating", 14),
        ('u10,i1,2,105,"a\nb",extra', 15),  # 15, 16
        ("u11,i1,2,106,\udcff\udcfe", 17),  # not UTF-8
        ('u12,i1,bad,107,"a\nb"', 18),  # 18, 19
        ("u13,i1,1,108,last", 0),  # 20
        ("u14,i1,nan,109,not a number", 21),
    ]
    assert [line for _, line in content if line] == [
        1 + sum(record.count("\n") + 1 for record, _ in content[:n]) for n, (_, line) in enumerate(content) if line
    ]
    path = tmp_path / "table.csv"
    text = "".join(f"{record}\n" for record, _ in content)
    path.write_bytes(text.replace(",", mark).replace("\n", end).encode("utf-8", "surrogateescape"))
    dataset = prepare("table", path, None, "--max-bad", 0.9, "--scale", "1-5")
    found = quarantined(dataset)
    assert sorted(found) == [line for _, line in content if line]
    for record, line in content:
        if line:
            assert tells(found[line], record.replace(",", mark)[:6])
            assert found[line]["file"] == "table.csv"
    frame = pl.read_parquet(dataset.path / "interactions.parquet")
    assert frame.select("user_id", "rating", "review").rows() == [
        ("u1", 5.0, "fine"),
        ("u2", 4.0, f'two{end}lines{mark} and "more"'),
        ("u4", 3.0, f"three{end}{end}lines"),
        ("u13", 1.0, "last"),
    ]


YELP = '{"review_id": "r", "user_id": "u9", "business_id": "b", "stars": 4, "text": "t", "date": "%s"}'
AMAZON2023 = '{"user_id": "u9", "parent_asin": "b", "rating": 4.0, "timestamp": %s, "title": "t", "text": "t"}'
IMDB = '{"reviewer": "u9", "movie": "b", "rating": "%s", "review_date": "%s", "review_detail": "t"}'


@pytest.mark.parametrize(
    ("name", "file", "bad"),
    [
        ("yelp", None, YELP % "2018-13-40 00:00:00"),
        ("yelp", None, YELP % ""),
        ("amazon2023", None, AMAZON2023 % '"soon"'),
        ("amazon2023", None, AMAZON2023 % "null"),
        ("amazon2014", None, '{"reviewerID": "u9"}'),
        ("imdb-json", None, IMDB % ("11", "25 May 2018")),
        ("imdb-json", None, IMDB % ("Null", "25 May 2018")),
        ("imdb-json", None, IMDB % ("8", "25 Mai 2018")),
        ("imdb-json", None, IMDB % ("8", "31 June 2018")),
        ("ml-100k", "u.data", "1\t2\tgood\t3"),
        ("ml-100k", "u.data", "1\t2\t3"),
        ("ml-1m", "ratings.dat", "1::2::x::5"),
        ("ml-1m", "ratings.dat", "1::2::5"),
        ("ml-10m", "ratings.dat", "1::2::5.5::7"),
        ("ml-10m", "ratings.dat", "1::::5::7"),
        ("ml-25m", "ratings.csv", "1,2,4.0"),
        ("ml-25m", "ratings.csv", "1,2,4.0,never"),
        ("ml-25m", "ratings.csv", "1,2,6.0,5"),
    ],
)
def test_every_source_puts_bad_rows_aside(
    name: str, file: str | None, bad: str, prepare: Prepare, tmp_path: Path
) -> None:
    form = FORMATS[name]
    reviews, items = form.write(tmp_path, form.rows)
    rows, things = form.read(reviews, items)
    path = reviews / file if file else reviews
    content = path.read_bytes().split(b"\n")
    content.insert(7, bad.encode())
    path.write_bytes(b"\n".join(content))
    dataset = prepare(form.source, reviews, items)
    (entry,) = quarantined(dataset).values()
    assert (entry["file"], entry["line"]) == (path.name, 8) and tells(entry, bad)
    check(dataset, rows, things)
    assert dataset.scale == form.scale


@pytest.mark.parametrize(
    "bad",
    [
        "__import__('os').system('touch x')",
        "{'asin': 'B1', 'title': __import__('os').system('touch x')}",
        "{'asin': 'B1', 'title': open('x', 'w')}",
        "[open('x', 'w') for _ in 'a']",
        "f\"{open('x', 'w')}\"",
        "{'asin': 'B1', 'title': 'cut",
        "{'asin': 'B1'} {'asin': 'B2'}",
        "'B1'",
        "{'title': 'no item'}",
        "{'asin': '', 'title': 'no item'}",
        "import os",
        "[" * 5000,
        "-" * 20_000 + "1",
        "{'asin': 'B1', 'price': " + "9" * 5000 + "}",
        "{'asin': 'B1', 'title': 'nul \0 byte'}",
    ],
    ids=lambda text: re.sub(r"\W+", " ", text)[:40],
)
def test_python_literals_are_read_and_never_run(
    bad: str, prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    form = FORMATS["amazon2014"]
    reviews, items = form.write(tmp_path, form.rows)
    read = form.read(reviews, items)
    assert items
    content = items.read_text(encoding="utf-8").split("\n")
    items.write_text("\n".join([content[0], bad, *content[1:]]), encoding="utf-8")
    dataset = prepare("amazon2014", reviews, items, "--max-bad", 0.5)
    assert not (tmp_path / "x").exists()
    (entry,) = quarantined(dataset).values()
    assert (entry["file"], entry["line"]) == ("meta.json", 2) and tells(entry, bad)
    check(dataset, *read)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("amazon2018", b'{"asin": "B1", "title": '),
        ("amazon2018", b'{"title": "no item"}'),
        ("amazon2023", b'{"parent_asin": null, "title": "no item"}'),
        ("yelp", b'{"business_id": "12", "name": "\xff"}'),
        ("table-comma", b"12,too few"),
        ("table-comma", b",no item,,,,,,"),
        ("table-json", b"null"),
    ],
)
def test_bad_rows_of_the_items_are_put_aside_too(name: str, bad: bytes, prepare: Prepare, tmp_path: Path) -> None:
    form = FORMATS[name]
    reviews, items = form.write(tmp_path, form.rows)
    read = form.read(reviews, items)
    assert items
    content = items.read_bytes().split(b"\n")
    items.write_bytes(b"\n".join([content[0], bad, *content[1:]]))
    dataset = prepare(form.source, reviews, items, "--max-bad", 0.5)
    (entry,) = quarantined(dataset).values()
    assert (entry["file"], entry["line"]) == (items.name, 2)
    check(dataset, *read)


@pytest.mark.parametrize(
    ("rows", "bad", "words", "fine"),
    [
        (100, 1, (), True),  # one in a hundred is not more than 0.01
        (99, 1, (), False),
        (300, 3, (), True),
        (300, 4, (), False),
        (100, 1, ("--max-bad", 0), False),
        (100, 0, ("--max-bad", 0), True),
        (10, 5, ("--max-bad", 0.5), True),
        (10, 6, ("--max-bad", 0.5), False),
        (10, 10, ("--max-bad", 1), False),  # nothing is left
    ],
)
@pytest.mark.parametrize("source", ["amazon2018", "table"])
def test_too_many_bad_rows_stop_it(
    source: str, rows: int, bad: int, words: tuple[object, ...], fine: bool,
    prepare: Prepare, refused: Refused, tmp_path: Path,
) -> None:  # fmt: skip
    ratings = [9] * bad + [4] * (rows - bad)
    if source == "amazon2018":
        path = tmp_path / "reviews.json"
        path.write_bytes(b"".join(amazon_line(asin=f"i{n}", overall=r) + b"\n" for n, r in enumerate(ratings)))
    else:
        path = tmp_path / "ratings.csv"
        path.write_text("user,item,rating,time\n" + "".join(f"u,i{n},{r},5\n" for n, r in enumerate(ratings)))
        words = ("--scale", "1-5", *words)
    if fine:
        dataset = prepare(source, path, None, *words)
        assert (len(pairs(dataset)), len(quarantined(dataset))) == (rows - bad, bad)
        assert (dataset.path / "quarantine.jsonl").exists() == (bad > 0)
    else:
        refused(source, path, None, *words)


def test_the_share_of_bad_rows_is_that_of_each_table(refused: Refused, tmp_path: Path) -> None:
    form = FORMATS["amazon2018"]
    reviews, items = form.write(tmp_path, form.rows)
    assert items
    items.write_bytes(items.read_bytes() + b"{broken\n")  # one of six items, though one of 188 rows
    assert "meta.json" in refused("amazon2018", reviews, items)


def test_an_old_quarantine_goes_when_nothing_is_bad_anymore(prepare: Prepare, tmp_path: Path) -> None:
    path = tmp_path / "reviews.json"
    path.write_bytes(amazon_line() + b"\n{broken\n")
    assert quarantined(prepare("amazon2018", path, None, "--max-bad", 0.5))
    path.write_bytes(amazon_line() + b"\n")
    assert not (prepare("amazon2018", path).path / "quarantine.jsonl").exists()


CSV = "user,item,rating,time,review\nu,i0,5,100,é\nu,i1,4,101,b\nu,i2,3,102,c\n"
JSON = "".join(f'{{"user": "u", "item": "i{n}", "rating": {5 - n}, "time": {100 + n}}}\n' for n in range(3))


@pytest.mark.parametrize(
    "content",
    [
        CSV.encode("utf-8-sig"),
        CSV.replace("\n", "\r\n").encode(),
        CSV.rstrip("\n").encode(),
        (CSV + "\n\n").encode(),
        CSV.replace("\nu,i1", "\n\nu,i1").encode(),
        "".join(",".join(f'"{field}"' for field in row.split(",")) + "\n" for row in CSV.split("\n")[:-1]).encode(),
        JSON.encode("utf-8-sig"),
        JSON.replace("\n", "\r\n").encode(),
        JSON.rstrip("\n").encode(),
        JSON.replace("\n", "\n\n").encode(),
    ],
    ids=["csv BOM", "csv CRLF", "csv no end", "csv empty end", "csv empty line", "csv all quoted",
         "json BOM", "json CRLF", "json no end", "json empty lines"],
)  # fmt: skip
def test_marks_and_empty_lines_are_no_bad_rows(content: bytes, prepare: Prepare, tmp_path: Path) -> None:
    path = tmp_path / ("table.jsonl" if content.lstrip(b"\xef\xbb\xbf").startswith(b"{") else "table.csv")
    path.write_bytes(content)
    dataset = prepare("table", path, None, "--scale", "1-5")
    frame = pl.read_parquet(dataset.path / "interactions.parquet")
    assert frame.rows()[0][:4] == ("u", "i0", 5.0, 100) and pairs(dataset) == [("u", f"i{n}") for n in range(3)]
    assert not quarantined(dataset)
    if path.suffix == ".csv":
        assert frame["review"].to_list() == ["é", "b", "c"]


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "utf-16", "gb18030"])
@pytest.mark.parametrize("source", ["table", "amazon2018"])
def test_another_encoding_is_read_when_named(
    encoding: str, source: str, prepare: Prepare, refused: Refused, tmp_path: Path
) -> None:
    path = tmp_path / ("table.csv" if source == "table" else "reviews.json")
    text = CSV if source == "table" else "".join(amazon_line(reviewText=t).decode() + "\n" for t in ["é"])
    path.write_bytes(text.encode(encoding))
    refused(source, path, None)
    frame = pl.read_parquet(prepare(source, path, None, "--encoding", encoding).path / "interactions.parquet")
    assert frame["review"][0] == "é"


# --- tables of one's own ----------------------------------------------------------------------------------------------

NOON = midnight("2018-05-25") + 12 * 3600


@pytest.mark.parametrize(
    ("written", "seconds", "words"),
    [
        (str(NOON), NOON, ()),
        ("100", 100, ()),
        ("-100", -100, ()),
        (f"{NOON}999", NOON, ()),
        ("2018-05-25", NOON - 12 * 3600, ()),
        ("1965-01-01", -5 * 365 * DAY - DAY, ()),
        ("2018-05-25 12:00:00", NOON, ()),
        ("2018-05-25T12:00:00", NOON, ()),
        ("2018-05-25T12:00:00Z", NOON, ()),
        ("2018-05-25T14:00:00+02:00", NOON, ()),
        ("2018-05-25T12:00:00.999Z", NOON, ()),
        ("2018-05-25T12:00:00.999999", NOON, ()),
        ("25.05.2018", NOON - 12 * 3600, ("--time-format", "%d.%m.%Y")),
        ("05/25/2018 12:00", NOON, ("--time-format", "%m/%d/%Y %H:%M")),
        ("25 May 2018 12:00:00", NOON, ("--time-format", "%d %B %Y %H:%M:%S")),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_times_are_read_as_utc(
    kind: str, written: str, seconds: int, words: tuple[str, ...], prepare: Prepare, tmp_path: Path
) -> None:
    path = tmp_path / f"table.{kind}"
    if kind == "csv":
        path.write_text(f"user,item,rating,time\nu,i,5,{written}\nu,j,1,{written}\n")
    else:
        when = int(written) if re.fullmatch(r"-?\d+", written) else written
        json_lines(path, [{"user": "u", "item": item, "rating": 1, "time": when} for item in "ij"])
    dataset = prepare("table", path, None, "--scale", "1-5", *words)
    assert pl.read_parquet(dataset.path / "interactions.parquet")["timestamp"].to_list() == [seconds] * 2


MOMENT = datetime(2018, 5, 25, 12, 0, 0, 999_000)


@pytest.mark.parametrize(
    ("column", "seconds"),
    [
        (pl.Series([NOON]), NOON),
        (pl.Series([NOON * 1000 + 999]), NOON),
        (pl.Series([float(NOON)]), NOON),
        (pl.Series([str(NOON)]), NOON),
        (pl.Series(["2018-05-25T12:00:00Z"]), NOON),
        (pl.Series([MOMENT], dtype=pl.Datetime("ms")), NOON),
        (pl.Series([MOMENT], dtype=pl.Datetime("us")), NOON),
        (pl.Series([MOMENT], dtype=pl.Datetime("ns")), NOON),
        (pl.Series([MOMENT.replace(tzinfo=timezone(timedelta(0)))]).dt.convert_time_zone("Asia/Tokyo"), NOON),
        (pl.Series([date(2018, 5, 25)]), NOON - 12 * 3600),
        (pl.Series([datetime(1969, 12, 31, 23, 59, 59, 500_000)]), -1),
    ],
    ids=["seconds", "milliseconds", "float", "text", "ISO", "ms", "us", "ns", "zone", "date", "before 1970"],
)
def test_times_of_parquet_are_read_as_utc(column: pl.Series, seconds: int, prepare: Prepare, tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pl.DataFrame({"user": ["u"], "item": ["i"], "rating": [4.0], "time": column}).write_parquet(path)
    frame = pl.read_parquet(prepare("table", path, None, "--scale", "1-5").path / "interactions.parquet")
    assert frame.rows() == [("u", "i", 4.0, seconds, None, None)]


@pytest.mark.parametrize(
    "header",
    [
        "userId movieId rating timestamp",
        "user item rating time",
        "customer product stars date",
        "user_id book score date",
        "UserID asin Rating Timestamp",
        "user film score time",
        "customer_id product_id stars timestamp",
        "User Item Stars Date",
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_usual_names_are_guessed(header: str, kind: str, prepare: Prepare, tmp_path: Path) -> None:
    names = header.split()
    frame = pl.DataFrame({name: values for name, values in zip(names, (["u"], ["i"], [4], [100]), strict=True)})
    frame = frame.select(pl.lit("x").alias("note"), *reversed(names))
    path = tmp_path / f"table.{kind}"
    {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[kind](path)
    dataset = prepare("table", path, None, "--scale", "1-5")
    assert pl.read_parquet(dataset.path / "interactions.parquet").rows() == [("u", "i", 4.0, 100, None, None)]


def test_columns_are_settled_by_name_or_number(prepare: Prepare, tmp_path: Path) -> None:
    rows = [("u1", "i1", "5", "100"), ("u2", "i1", "4", "101"), ("u1", "i2", "3", "102")]
    named, bare, items = tmp_path / "named.csv", tmp_path / "bare.csv", tmp_path / "items.csv"
    named.write_text("who,what,how much,when,user\n" + "".join(f"{','.join(row)},decoy\n" for row in rows))
    bare.write_text("".join(f"{t},x,{i},{r},{u}\n" for u, i, r, t in rows))
    items.write_text('code,label,kind\ni1,"One, two",A|B\n')
    one = prepare(
        "table", named, items,
        "--columns", "user=who,item=what,rating=how much,timestamp=when,item_key=code,title=label,categories=kind",
        "--scale", "1-5",
    )  # fmt: skip
    two = prepare(
        "table", bare, None, "--columns", "user=#5,item=#3,rating=#4,timestamp=#1", "--scale", "1-5", out="two"
    )
    assert pl.read_parquet(one.path / "interactions.parquet").rows() == [
        (u, i, float(r), int(t), None, None) for u, i, r, t in rows
    ]
    for name in ("interactions.parquet", "examples.parquet"):
        assert table_bytes(one)[name] == table_bytes(two)[name]
    assert pl.read_parquet(one.path / "items.parquet").rows() == [
        ("i1", "One, two", ["A", "B"], None, None, None),
        ("i2", "i2", [], None, None, None),
    ]


def test_columns_not_settled_are_still_guessed(prepare: Prepare, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("who,movieId,stars,timestamp,text\nu,7,5,100,fine\n")
    dataset = prepare("table", path, None, "--columns", "user=who", "--scale", "1-5")
    assert pl.read_parquet(dataset.path / "interactions.parquet").rows() == [("u", "7", 5.0, 100, "fine", None)]


def test_lines_without_a_header_count_from_one(prepare: Prepare, tmp_path: Path) -> None:
    path = tmp_path / "bare.csv"
    path.write_text("u1,i1,five,100\nu2,i1,4,101\nu3,i1,4\n")
    words = ("--columns", "user=#1,item=#2,rating=#3,timestamp=#4", "--scale", "1-5", "--max-bad", 0.9)
    dataset = prepare("table", path, None, *words)
    assert sorted(quarantined(dataset)) == [1, 3] and pairs(dataset) == [("u2", "i1")]


@pytest.mark.parametrize(
    ("ratings", "words", "scale", "kept"),
    [
        ([1, 2, 3, 4, 5], (), Scale(1, 5, 1), 5),
        (list(HALVES), (), Scale(0.5, 5, 0.5), 10),
        (list(TEN), (), Scale(1, 10, 1), 10),
        ([0, 50, 100], ("--scale", "0-100:5"), Scale(0, 100, 5), 3),
        ([1, 3, 5, 7], ("--scale", "1-5", "--max-bad", 0.5), Scale(1, 5, 1), 3),
        ([0.5, 3.5, 5], ("--scale", "0.5-5:0.5"), Scale(0.5, 5, 0.5), 3),
    ],
)
def test_the_scale_is_guessed_or_said(
    ratings: list[float], words: tuple[object, ...], scale: Scale, kept: int, prepare: Prepare, tmp_path: Path
) -> None:
    path = tmp_path / "table.csv"
    path.write_text("user,item,rating,time\n" + "".join(f"u,i{n},{r},{n}\n" for n, r in enumerate(ratings)))
    dataset = prepare("table", path, None, *words)
    assert dataset.scale == scale and len(pairs(dataset)) == kept


# --- mistakes ---------------------------------------------------------------------------------------------------------


def named_in(told: str, *names: str) -> bool:
    return all(re.search(rf"\b{name}", told) for name in names)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_missing_columns_are_named_together(kind: str, refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / f"t.{kind}"
    frame = pl.DataFrame({"user": ["u"] * 3, "foo": ["i"] * 3, "bar": [5] * 3})
    {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[kind](path)
    told = refused("table", path)
    assert named_in(told, "item", "rating", "time")
    told = refused("table", path, None, "--columns", "item=nada,rating=niente,timestamp=bar")
    assert named_in(told, "nada", "niente")


def test_columns_of_a_source_that_are_not_there_are_named_together(refused: Refused, tmp_path: Path) -> None:
    path = json_lines(tmp_path / "reviews.json", [{"foo": "u", "movie": "i", "review_detail": "t"}] * 5)
    assert named_in(refused("imdb", path), "user", "rating", "time")


@pytest.mark.parametrize(
    ("source", "content", "words"),
    [
        ("nonsense", CSV, ()),
        ("table", "", ()),
        ("table", "user,item,rating,time\n", ()),
        ("amazon2018", "", ()),
        ("table", CSV, ("--columns", "user")),
        ("table", CSV, ("--columns", "usr=user")),
        ("table", CSV, ("--columns", "user=#9,item=#2,rating=#3,timestamp=#4")),
        ("table", CSV, ("--scale", "5-1")),
        ("table", CSV, ("--scale", "many")),
        ("table", CSV, ("--encoding", "utf-99")),
        ("table", CSV, ("--split", "by-colour")),
        ("table", CSV, ("--k-core", 50)),
        ("table", CSV, ("--validation-from", "soon", "--test-from", "later")),
        ("table", CSV, ("--validation-from", "2018-02-01", "--test-from", "2018-01-01")),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    source: str, content: str, words: tuple[object, ...], refused: Refused, tmp_path: Path
) -> None:
    path = tmp_path / "table.csv"
    path.write_text(content, encoding="utf-8")
    refused(source, path, None, *words)


@pytest.mark.parametrize("source", ["amazon2018", "amazon2023", "yelp", "imdb", "movielens", "table"])
def test_files_that_are_not_there_are_told(source: str, refused: Refused, tmp_path: Path) -> None:
    assert "nowhere.json" in refused(source, tmp_path / "nowhere.json")


@pytest.mark.parametrize("kind", ["gz", "zip"])
def test_archives_cut_short_are_told(kind: str, refused: Refused, tmp_path: Path) -> None:
    form = FORMATS["amazon2018"]
    reviews, _ = form.write(tmp_path, form.rows)
    path = packed(reviews, kind, f".{kind}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert path.name in refused("amazon2018", path)


# --- the real thing ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def all_beauty() -> Path:
    for parent in Path(__file__).resolve().parents:
        path = parent / "shared" / "data" / "All_Beauty_5.json.gz"
        if path.is_file():
            return path
    pytest.skip("shared/data/All_Beauty_5.json.gz is in no parent folder")


@pytest.mark.parametrize(
    "choice",
    [
        Choice(),
        Choice(split="leave-last-k", leave_last=1),
        Choice(k_core=5, history=4),
        Choice(split="random", seed=3),
        Choice(users=100, seed=1),
    ],
    ids=["time", "leave-last-k", "core", "random", "users"],
)
def test_real_reviews_are_what_the_slow_checker_says(
    choice: Choice, all_beauty: Path, prepare: Prepare, tmp_path: Path
) -> None:
    plain = tmp_path / "reviews.json"
    plain.write_bytes(gzip.decompress(all_beauty.read_bytes()))
    rows, _ = read_amazon2018(plain, None)
    assert len(rows) == 5269
    dataset = prepare("amazon2018", all_beauty, None, *choice.words())
    check(dataset, rows, {}, choice, sample=300)
    assert dataset.scale == Scale(1, 5, 1) and not quarantined(dataset)
