"""Every published format through the command line, against a slow checker that reads the same files in its own way.

Nothing here imports a reader: files are written as their publishers write them, `reczero data prepare` runs over them,
and what it wrote is compared with what json, csv, ast, datetime and plain loops make of the same bytes.
"""

import random
import re
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest
from published_files import AVERAGE, COUNT, FORMATS, RANK, Prepare, Published, Refused, json_lines, packed
from slow_checker import PARQUET, Thing, check, kept_rows, midnight, pairs, table_bytes

from reczero.data import Dataset
from reczero.reasoning import Scale


def stored(dataset: Dataset) -> list[tuple[object, ...]]:
    return pl.read_parquet(dataset.path / "interactions.parquet").rows()


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_what_the_slow_checker_says(name: str, published: Published) -> None:
    form, reviews, items, dataset = published(name)
    # The slow readers first: they give back what was written, and it is worth reading.
    rows, things = form.read(reviews, items)
    assert [row[:4] for row in rows] == [row[:4] for row in form.rows]
    assert {item: things.get(item, Thing(item)) for item in form.shown} == form.shown
    kept = kept_rows(rows)
    assert len({row.timestamp for row in kept}) < len(kept) < len(rows)  # ties, and repeats
    counts = [sum(row.user == user for row in kept) for user in {row.user for row in kept}]
    assert min(counts) <= 2 and max(counts) > 5

    check(dataset, rows, things)
    assert dataset.scale == form.scale
    assert not (dataset.path / "quarantine.jsonl").exists()
    found = {item: Thing(*rest) for item, *rest in pl.read_parquet(dataset.path / "items.parquet").iter_rows()}
    assert {item: found[item] for item in form.shown} == form.shown
    written = "".join(pl.read_parquet(dataset.path / table).write_ndjson() for table in PARQUET)
    written += "".join(p.read_text(encoding="utf-8") for p in dataset.path.iterdir() if p.name not in PARQUET)
    for mark in (str(AVERAGE), str(COUNT), RANK):
        assert mark not in written


@pytest.mark.parametrize("name", ["amazon2018", "amazon2014", "ml-25m", "table-semicolon", "table-parquet"])
def test_rows_in_another_order_give_the_same_bytes(
    name: str, published: Published, prepare: Prepare, tmp_path: Path
) -> None:
    form, _, _, dataset = published(name)
    files = form.write(tmp_path, random.Random(5).sample(form.rows, len(form.rows)))
    assert table_bytes(prepare(form.source, *files)) == table_bytes(dataset)


# --- containers and encodings -----------------------------------------------------------------------------------------

SINGLE = [name for name in FORMATS if not name.startswith("ml-") and name != "table-parquet"]


@pytest.mark.parametrize("name", SINGLE)
def test_compressed_files_give_the_same_bytes(
    name: str, published: Published, prepare: Prepare, tmp_path: Path
) -> None:
    """Known by their content: not all say so in their names. Formats take turns, since readers see what is unpacked."""
    form, reviews, items, dataset = published(name)
    turn = SINGLE.index(name)
    first, second = ("gz", "zip") if turn % 2 else ("zip", "gz")
    reviews = packed(reviews, first, f".{first}" if turn % 4 < 2 else "", tmp_path)
    items = items and packed(items, second, f".{second}" if turn % 4 >= 2 else "", tmp_path)
    assert table_bytes(prepare(form.source, reviews, items)) == table_bytes(dataset)


@pytest.mark.parametrize("name", [name for name in FORMATS if name.startswith("ml-")])
def test_movielens_is_given_as_folder_archive_or_ratings_file(
    name: str, published: Published, prepare: Prepare, tmp_path: Path
) -> None:
    form, home, _, plain = published(name)
    zipped = prepare("movielens", packed(home, "zip", ".zip", tmp_path), out="zipped")
    assert table_bytes(zipped) == table_bytes(plain)
    ratings = next(home / file for file in ("u.data", "ratings.dat", "ratings.csv") if (home / file).exists())
    films = next(home / file for file in ("u.item", "movies.dat", "movies.csv") if (home / file).exists())
    alone = prepare("movielens", ratings, out="alone")
    assert alone.scale == form.scale
    for table in ("interactions.parquet", "examples.parquet"):
        assert table_bytes(alone)[table] == table_bytes(plain)[table]
    both = [packed(file, "gz", ".gz", tmp_path) for file in (ratings, films)]
    assert table_bytes(prepare("movielens", *both, out="both")) == table_bytes(plain)


@pytest.mark.parametrize("kind", ["gz", "zip"])
def test_archives_cut_short_are_told(kind: str, published: Published, refused: Refused, tmp_path: Path) -> None:
    path = packed(published("amazon2018").reviews, kind, f".{kind}", tmp_path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert path.name in refused("amazon2018", path)


CSV = "user,item,rating,time,review\nu,i0,5,100,é\nu,i1,4,101,b\nu,i2,3,102,c\n"
QUOTED = "".join(",".join(f'"{field}"' for field in row.split(",")) + "\n" for row in CSV.split("\n")[:-1])
KEYS = '{"reviewerID": "u", "asin": "i%d", "overall": %d, "unixReviewTime": %d, "reviewText": "%s"}\n'
JSON = "".join(KEYS % (n, 5 - n, 100 + n, text) for n, text in enumerate("ébc"))


@pytest.mark.parametrize(
    ("file", "content", "encoding"),
    [
        ("BOM.csv", CSV, "utf-8-sig"), ("CRLF.csv", CSV.replace("\n", "\r\n"), "utf-8"),
        ("no end.csv", CSV.rstrip("\n"), "utf-8"), ("empty end.csv", CSV + "\n\n", "utf-8"),
        ("empty line.csv", CSV.replace("\nu,i1", "\n\nu,i1"), "utf-8"), ("all quoted.csv", QUOTED, "utf-8"),
        ("BOM.jsonl", JSON, "utf-8-sig"), ("CRLF.jsonl", JSON.replace("\n", "\r\n"), "utf-8"),
        ("no end.jsonl", JSON.rstrip("\n"), "utf-8"), ("empty lines.jsonl", JSON.replace("\n", "\n\n\n"), "utf-8"),
        *((f"{name}.csv", CSV, name) for name in ("cp1252", "latin-1", "utf-16", "gb18030")),
        *((f"{name}.jsonl", JSON, name) for name in ("cp1252", "latin-1", "utf-16", "gb18030")),
    ],
    ids=lambda value: value if "." in value and len(value) < 30 else "",
)  # fmt: skip
def test_marks_empty_lines_and_named_encodings_are_read(
    file: str, content: str, encoding: str, prepare: Prepare, refused: Refused, tmp_path: Path
) -> None:
    path = tmp_path / file
    path.write_bytes(content.encode(encoding))
    source, words = "table", ["--scale", "1-5"]
    if not encoding.startswith("utf-8"):
        source = "amazon2018" if path.suffix == ".jsonl" else "table"
        refused(source, path, None, *words)
        words += ["--encoding", encoding]
    dataset = prepare(source, path, None, *words)
    assert stored(dataset) == [("u", f"i{n}", 5.0 - n, 100 + n, text, None) for n, text in enumerate("ébc")]
    assert not (dataset.path / "quarantine.jsonl").exists()


# --- tables of one's own ----------------------------------------------------------------------------------------------


def write_frame(frame: pl.DataFrame, path: Path) -> None:
    writers = {".csv": frame.write_csv, ".jsonl": frame.write_ndjson, ".parquet": frame.write_parquet}
    writers[path.suffix](path)


NOON = midnight("2018-05-25") + 12 * 3600
MOMENT, ISO = datetime(2018, 5, 25, 12, 0, 0, 999_000), "2018-05-25T12:00:00Z"


@pytest.mark.parametrize(
    ("written", "seconds", "form"),
    [
        (NOON, NOON, None), (100, 100, None), (-100, -100, None), (1000 * NOON + 999, NOON, None),
        (NOON + 0.9, NOON, None),
        ("2018-05-25", NOON - 12 * 3600, None), ("1965-01-01", -1826 * 86_400, None),
        ("2018-05-25 12:00:00", NOON, None), ("2018-05-25T12:00:00", NOON, None), ("2018-05-25T12:00:00Z", NOON, None),
        ("2018-05-25T14:00:00+02:00", NOON, None), ("2018-05-25T12:00:00.999Z", NOON, None),
        ("2018-05-25T12:00:00.999999", NOON, None), ("25.05.2018", NOON - 12 * 3600, "%d.%m.%Y"),
        ("05/25/2018 12:00", NOON, "%m/%d/%Y %H:%M"), ("25 May 2018 12:00:00", NOON, "%d %B %Y %H:%M:%S"),
    ],
)  # fmt: skip
def test_times_are_read_as_utc(
    written: float | str, seconds: int, form: str | None, prepare: Prepare, tmp_path: Path
) -> None:
    for kind in ("csv", "jsonl") if not isinstance(written, str) or "+" in written else ("csv",):
        path = tmp_path / f"table.{kind}"
        write_frame(pl.DataFrame({"user": "u", "item": ["i", "j"], "rating": 1, "time": written}), path)
        words = ["--time-format", form] if form else []
        dataset = prepare("table", path, None, "--scale", "1-5", *words, out=kind)
        assert [row[3] for row in stored(dataset)] == [seconds] * 2


@pytest.mark.parametrize(
    ("column", "seconds"),
    [
        *((pl.Series([value]), NOON) for value in (NOON, NOON * 1000 + 999, float(NOON), str(NOON), ISO)),
        *((pl.Series([MOMENT], dtype=pl.Datetime(unit)), NOON) for unit in ("ms", "us", "ns")),
        (pl.Series([MOMENT.replace(tzinfo=UTC)]).dt.convert_time_zone("Asia/Tokyo"), NOON),
        (pl.Series([date(2018, 5, 25)]), NOON - 12 * 3600),
        (pl.Series([datetime(1969, 12, 31, 23, 59, 59, 500_000)]), -1),
    ],
    ids=["seconds", "milliseconds", "float", "text", "ISO", "ms", "us", "ns", "zone", "date", "before 1970"],
)
def test_times_of_parquet_are_read_as_utc(column: pl.Series, seconds: int, prepare: Prepare, tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pl.DataFrame({"user": ["u"], "item": ["i"], "rating": [4.0], "time": column}).write_parquet(path)
    assert stored(prepare("table", path, None, "--scale", "1-5")) == [("u", "i", 4.0, seconds, None, None)]


@pytest.mark.parametrize(
    ("kind", "header"),
    [
        ("csv", "userId movieId rating timestamp"), ("jsonl", "user item rating time"),
        ("parquet", "customer product stars date"), ("csv", "user_id book score date"),
        ("jsonl", "UserID asin Rating Timestamp"), ("parquet", "user film score time"),
        ("csv", "customer_id product_id stars timestamp"), ("csv", "User Item Stars Date"),
    ],
)  # fmt: skip
def test_usual_names_are_guessed(kind: str, header: str, prepare: Prepare, tmp_path: Path) -> None:
    names = header.split()
    frame = pl.DataFrame({name: [value] for name, value in zip(names, ("u", "i", 4, 100), strict=True)})
    path = tmp_path / f"table.{kind}"
    write_frame(frame.select(pl.lit("x").alias("note"), *reversed(names)), path)
    assert stored(prepare("table", path, None, "--scale", "1-5")) == [("u", "i", 4.0, 100, None, None)]


def test_columns_are_settled_by_name_or_number_and_else_guessed(prepare: Prepare, tmp_path: Path) -> None:
    rows = [("u1", "i1", "5", "100"), ("u2", "i1", "4", "101"), ("u1", "i2", "3", "102")]
    named, bare, half, items = (tmp_path / f"{name}.csv" for name in ("named", "bare", "half", "items"))
    named.write_text("who,what,how much,when,user\n" + "".join(f"{','.join(row)},decoy\n" for row in rows))
    bare.write_text("".join(f"{t},x,{i},{r},{u}\n" for u, i, r, t in rows))
    half.write_text("who,movieId,stars,timestamp,text\n" + "".join(f"{','.join(row)},fine\n" for row in rows))
    items.write_text('code,label,kind\ni1,"One, two",A|B\n')
    columns = "user=who,item=what,rating=how much,timestamp=when,item_key=code,title=label,categories=kind"
    one = prepare("table", named, items, "--columns", columns, "--scale", "1-5")
    columns = "user=#5,item=#3,rating=#4,timestamp=#1"
    two = prepare("table", bare, None, "--columns", columns, "--scale", "1-5", out="two")
    assert stored(one) == [(u, i, float(r), int(t), None, None) for u, i, r, t in rows]
    for name in ("interactions.parquet", "examples.parquet"):
        assert table_bytes(one)[name] == table_bytes(two)[name]
    assert pl.read_parquet(one.path / "items.parquet").rows() == [
        ("i1", "One, two", ["A", "B"], None, None, None),
        ("i2", "i2", [], None, None, None),
    ]
    three = prepare("table", half, None, "--columns", "user=who", "--scale", "1-5", out="three")
    assert stored(three) == [(u, i, float(r), int(t), "fine", None) for u, i, r, t in rows]


@pytest.mark.parametrize(
    ("ratings", "words", "scale", "kept"),
    [
        ([1, 2, 3, 4, 5], (), Scale(1, 5, 1), 5),
        ([n / 2 for n in range(1, 11)], (), Scale(0.5, 5, 0.5), 10),
        (list(range(1, 11)), (), Scale(1, 10, 1), 10),
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
    write_frame(pl.DataFrame({"user": ["u"] * 3, "foo": ["i"] * 3, "bar": [5] * 3}), path)
    assert named_in(refused("table", path), "item", "rating", "time")
    told = refused("table", path, None, "--columns", "item=nada,rating=niente,timestamp=bar")
    assert named_in(told, "nada", "niente")
    path = json_lines(tmp_path / "reviews.json", [{"foo": "u", "movie": "i", "review_detail": "t"}] * 5)
    assert named_in(refused("imdb", path), "user", "rating", "time")


@pytest.mark.parametrize(
    ("source", "content", "words"),
    [
        ("nonsense", CSV, ()), ("table", "", ()), ("table", "user,item,rating,time\n", ()), ("amazon2018", "", ()),
        ("table", CSV, ("--columns", "user")), ("table", CSV, ("--columns", "usr=user")),
        ("table", CSV, ("--columns", "user=#9,item=#2,rating=#3,timestamp=#4")),
        ("table", CSV, ("--scale", "5-1")), ("table", CSV, ("--scale", "many")),
        ("table", CSV, ("--encoding", "utf-99")), ("table", CSV, ("--split", "by-colour")),
        ("table", CSV, ("--k-core", 50)), ("table", CSV, ("--validation-from", "soon", "--test-from", "later")),
        ("table", CSV, ("--validation-from", "2018-02-01", "--test-from", "2018-01-01")),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_leave_nothing(
    source: str, content: str, words: tuple[object, ...], refused: Refused, tmp_path: Path
) -> None:
    path = tmp_path / "table.csv"
    path.write_text(content, encoding="utf-8")
    refused(source, path, None, *words)


@pytest.mark.parametrize("source", ["amazon2018", "amazon2023", "yelp", "imdb", "movielens", "table"])
def test_files_that_are_not_there_are_told(source: str, refused: Refused, tmp_path: Path) -> None:
    assert "nowhere.json" in refused(source, tmp_path / "nowhere.json")
