"""Rows that can't be used are put aside, each with its line, a reason and its text as it stands in the file; never more
of them than the user allows."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from published_files import FORMATS, Prepare, Published, Refused, packed
from slow_checker import check, pairs, table_bytes

from reczero.data import Dataset

KEPT = 500  # characters of a bad row
KEYS = {"user": "reviewerID", "item": "asin", "rating": "overall", "time": "unixReviewTime"}


def put_aside(dataset: Dataset, file: str, table: str = "interactions") -> dict[int, dict[str, Any]]:
    """quarantine.jsonl by line; all that is in it must be of this one file, and be counted."""
    found = [json.loads(line) for line in (dataset.path / "quarantine.jsonl").read_bytes().splitlines()]
    for entry in found:
        assert set(entry) == {"file", "line", "reason", "text"} and entry["file"] == file
        assert entry["reason"].strip() and "\n" not in entry["reason"]
    assert len({entry["line"] for entry in found}) == len(found) > 0
    counted = dataset.info["counts"]["quarantined" if table == "interactions" else "items_quarantined"]
    assert counted == Counter(entry["reason"].split(" (")[0] for entry in found)
    return {entry["line"]: entry for entry in found}


def texts(found: dict[int, dict[str, Any]]) -> dict[int, str]:
    return {line: entry["text"] for line, entry in found.items()}


def stands(row: bytes) -> str:
    """What is told of a row: its text, with a sign for what is none."""
    return row.decode("utf-8", "replace")[:KEPT]


# --- JSON lines -------------------------------------------------------------------------------------------------------


def amazon_line(**changes: Any) -> bytes:
    """A good line; a key set to ... is left out."""
    record = {"reviewerID": "u", "asin": "i", "overall": 4.0, "unixReviewTime": 1_400_000_000, "reviewText": "fine"}
    return json.dumps({k: v for k, v in (record | changes).items() if v is not ...}, ensure_ascii=False).encode()


BAD = {
    "broken": b'{"reviewerID": "u", "asin": "i", "overall": 4.0,',
    "cut within a text": b'{"reviewerID": "u", "asin": "i", "overall": 4.0, "unixReviewTime": 14, "reviewText": "fi',
    "bad UTF-8": amazon_line().replace(b"fine", b"fi\xff\xfene"),
    "UTF-8 cut short": amazon_line().replace(b"fine", "fi用".encode()[:-1]),
    **{f"rating {r}": amazon_line(overall=r) for r in (9, 0, -1, "good", None, ..., True, [4])},
    "rating infinite": amazon_line().replace(b"4.0", b"1e999"),
    **{f"time {t}": amazon_line(unixReviewTime=t) for t in ("soon", None, ..., 10**30)},
    **{f"user {u!r}": amazon_line(reviewerID=u) for u in (..., None, "")},
    **{f"item {i!r}": amazon_line(asin=i) for i in (..., "")},
    "NaN as rating": amazon_line(overall=math.nan),
    "NaN as time": amazon_line(unixReviewTime=math.nan),
    "a list": b"[1, 2]",
    "a number": b"17",
    "a text": b'"text"',
    "two records": amazon_line() + b" " + amazon_line(),
    "nested deeply": b"[" * 100_000,
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_json_line_is_put_aside_alone(name: str, prepare: Prepare, tmp_path: Path) -> None:
    path = tmp_path / "reviews.json"
    good = [amazon_line(asin=f"i{n}", summary="one\u2028two\x85three") for n in range(3)]
    path.write_bytes(b"\n".join([good[0], good[1], BAD[name], good[2]]))  # no line feed at the end
    dataset = prepare("amazon2018", path, None, "--max-bad", 0.5)
    assert pairs(dataset) == [("u", "i0"), ("u", "i1"), ("u", "i2")]
    found = put_aside(dataset, "reviews.json")
    assert texts(found) == {3: stands(BAD[name])}
    key = name.split()[0]
    assert key not in KEYS or key in found[3]["reason"] or KEYS[key] in found[3]["reason"]


def test_bad_json_lines_are_told_with_their_lines(prepare: Prepare, tmp_path: Path) -> None:
    content = [line for n, bad in enumerate(BAD.values()) for line in (amazon_line(asin=f"i{n}"), bad)]
    path = tmp_path / "reviews.json"
    path.write_bytes(b"".join(line + b"\r\n" for line in content))
    dataset = prepare("amazon2018", path, None, "--max-bad", 0.5)
    found = put_aside(dataset, "reviews.json")
    assert texts(found) == {2 * n: stands(bad) for n, bad in enumerate(BAD.values(), 1)}
    assert set(pairs(dataset)) == {("u", f"i{n}") for n in range(len(BAD))}
    for kind in ("gz", "zip"):
        again = prepare("amazon2018", packed(path, kind, f".{kind}", tmp_path), None, "--max-bad", 0.5, out=kind)
        assert texts(put_aside(again, f"reviews.json.{kind}")) == texts(found)
        assert table_bytes(again) == table_bytes(dataset)


def test_a_lone_surrogate_does_no_harm(prepare: Prepare, tmp_path: Path) -> None:
    """JSON can say what no UTF-8 file can hold: whatever becomes of that row, it is accounted for."""
    path = tmp_path / "reviews.json"
    bad = amazon_line(asin="i1").replace(b"fine", rb"\ud83d!")
    path.write_bytes(b"\n".join([amazon_line(asin="i0"), bad, amazon_line(asin="i2")]))
    dataset = prepare("amazon2018", path, None, "--max-bad", 0.5)
    assert set(pairs(dataset)) >= {("u", "i0"), ("u", "i2")}
    if len(pairs(dataset)) == 2:
        assert texts(put_aside(dataset, "reviews.json")) == {2: stands(bad)}


# --- separated text, Parquet ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("mark", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
def test_bad_csv_rows_are_told_with_the_line_where_they_begin(
    mark: str, end: str, prepare: Prepare, tmp_path: Path
) -> None:
    content = [  # (record, the line where it begins if it is bad)
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
    records = [record.replace(",", mark).replace("\n", end) for record, _ in content]
    path = tmp_path / "table.csv"
    path.write_bytes("".join(record + end for record in records).encode("utf-8", "surrogateescape"))
    dataset = prepare("table", path, None, "--max-bad", 0.9, "--scale", "1-5")
    assert texts(put_aside(dataset, "table.csv")) == {
        line: stands(record.encode("utf-8", "surrogateescape"))
        for record, (_, line) in zip(records, content, strict=True)
        if line
    }
    frame = pl.read_parquet(dataset.path / "interactions.parquet")
    assert frame.select("user_id", "rating", "review").rows() == [
        ("u1", 5.0, "fine"),
        ("u2", 4.0, f'two{end}lines{mark} and "more"'),
        ("u4", 3.0, f"three{end}{end}lines"),
        ("u13", 1.0, "last"),
    ]


def test_lines_without_a_header_count_from_one(prepare: Prepare, tmp_path: Path) -> None:
    path = tmp_path / "bare.csv"
    path.write_text("u1,i1,five,100\nu2,i1,4,101\nu3,i1,4\n")
    words = ("--columns", "user=#1,item=#2,rating=#3,timestamp=#4", "--scale", "1-5", "--max-bad", 0.9)
    dataset = prepare("table", path, None, *words)
    assert texts(put_aside(dataset, "bare.csv")) == {1: "u1,i1,five,100", 3: "u3,i1,4"}
    assert pairs(dataset) == [("u2", "i1")]


def test_bad_rows_of_parquet_are_told_as_json(prepare: Prepare, tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    columns = {"user": [7, None, 8], "item": ["a", "ä", "c"], "rating": [4.5, 4.0, 9.0], "time": [1, 2, 3]}
    pl.DataFrame(columns | {"junk": ["j"] * 3}).write_parquet(path)
    dataset = prepare("table", path, None, "--max-bad", 0.9, "--scale", "1-5:0.5")
    assert pairs(dataset) == [("7", "a")]
    found = {line: json.loads(text) for line, text in texts(put_aside(dataset, "table.parquet")).items()}
    assert list(found) == [2, 3]
    for line, row in found.items():
        assert list(row.values())[-4:] == [values[line - 1] for values in columns.values()]
        assert "j" not in row.values()


# --- every source -----------------------------------------------------------------------------------------------------

YELP = b'{"review_id": "r", "user_id": "u9", "business_id": "b", "stars": 4, "text": "t", "date": "%s"}'
AMAZON2023 = b'{"user_id": "u9", "parent_asin": "b", "rating": 4.0, "timestamp": %s, "title": "t", "text": "t"}'
IMDB = b'{"reviewer": "u9", "movie": "b", "rating": "%s", "review_date": "%s", "review_detail": "t"}'


@pytest.mark.parametrize(
    ("name", "table", "bad"),
    [
        ("yelp", "interactions", [YELP % b"2018-13-40 00:00:00", YELP % b""]),
        ("amazon2023", "interactions", [AMAZON2023 % b'"soon"', AMAZON2023 % b"null"]),
        ("amazon2014", "interactions", [b'{"reviewerID": "u9"}']),
        ("imdb-json", "interactions", [IMDB % (b"11", b"25 May 2018"), IMDB % (b"Null", b"25 May 2018")]
         + [IMDB % (b"8", b"25 Mai 2018"), IMDB % (b"8", b"31 June 2018")]),
        ("ml-100k", "u.data", [b"1\t2\tgood\t3", b"1\t2\t3"]),
        ("ml-1m", "ratings.dat", [b"1::2::x::5", b"1::2::5"]),
        ("ml-10m", "ratings.dat", [b"1::2::5.5::7", b"1::::5::7"]),
        ("ml-25m", "ratings.csv", [b"1,2,4.0", b"1,2,4.0,never", b"1,2,6.0,5"]),
        ("amazon2018", "items", [b'{"asin": "B1", "title": ', b'{"title": "no item"}']),
        ("amazon2023", "items", [b'{"parent_asin": null, "title": "no item"}']),
        ("yelp", "items", [b'{"business_id": "12", "name": "\xff"}']),
        ("table-comma", "items", [b"12,too few", b",no item,,,,,,"]),
        ("table-json", "items", [b"null"]),
        # Python literals are read and never run.
        ("amazon2014", "items", [
            b"__import__('os').system('touch x')", b"{'asin': 'B1', 'title': __import__('os').system('touch x')}",
            b"{'asin': 'B1', 'title': open('x', 'w')}", b"[open('x', 'w') for _ in 'a']", b"f\"{open('x', 'w')}\"",
            b"{'asin': 'B1', 'title': 'cut", b"{'asin': 'B1'} {'asin': 'B2'}", b"'B1'", b"{'title': 'no item'}",
            b"{'asin': '', 'title': 'no item'}", b"import os", b"[" * 5000, b"-" * 20_000 + b"1",
            b"{'asin': 'B1', 'price': " + b"9" * 5000 + b"}", b"{'asin': 'B1', 'title': 'nul \0 byte'}",
        ]),
    ],
)  # fmt: skip
def test_every_source_puts_bad_rows_aside(
    name: str, table: str, bad: list[bytes], prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    form = FORMATS[name]
    reviews, items = form.write(tmp_path, form.rows)
    read = form.read(reviews, items)
    path = items if table == "items" else reviews if table == "interactions" else reviews / table
    assert path
    first, *rest = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([first, *bad, *rest]))
    dataset = prepare(form.source, reviews, items, "--max-bad", 0.9)
    found = put_aside(dataset, path.name, "items" if table == "items" else "interactions")
    assert texts(found) == {line: stands(row) for line, row in enumerate(bad, 2)}
    check(dataset, *read)
    assert dataset.scale == form.scale and not (tmp_path / "x").exists()


# --- how many ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["amazon2018", "table"])
@pytest.mark.parametrize(
    ("rows", "bad", "most", "fine"),
    [
        (100, 1, None, True), (99, 1, None, False),  # one in a hundred is not more than 0.01
        (300, 3, None, True), (300, 4, None, False), (100, 1, 0, False), (100, 0, 0, True),
        (10, 5, 0.5, True), (10, 6, 0.5, False), (10, 10, 1, False),  # nothing is left
    ],
)  # fmt: skip
def test_too_many_bad_rows_stop_it(
    source: str, rows: int, bad: int, most: float | None, fine: bool,
    prepare: Prepare, refused: Refused, tmp_path: Path,
) -> None:  # fmt: skip
    ratings = [9] * bad + [4] * (rows - bad)
    path = tmp_path / "ratings"
    if source == "amazon2018":
        path.write_bytes(b"".join(amazon_line(asin=f"i{n}", overall=r) + b"\n" for n, r in enumerate(ratings)))
    else:
        path.write_text("user,item,rating,time\n" + "".join(f"u,i{n},{r},5\n" for n, r in enumerate(ratings)))
    words = ["--scale", "1-5", *([] if most is None else ["--max-bad", most])]
    if not fine:
        refused(source, path, None, *words)
        return
    dataset = prepare(source, path, None, *words)
    assert len(pairs(dataset)) == rows - bad
    assert len(put_aside(dataset, "ratings")) == bad if bad else not (dataset.path / "quarantine.jsonl").exists()


def test_the_share_of_bad_rows_is_that_of_each_table(published: Published, refused: Refused, tmp_path: Path) -> None:
    made = published("amazon2018")
    assert made.items
    items = tmp_path / "items.json"
    items.write_bytes(made.items.read_bytes() + b"{broken\n")  # one of six items, though one of 188 rows
    assert "items.json" in refused("amazon2018", made.reviews, items)


def test_an_old_quarantine_goes_when_nothing_is_bad_anymore(prepare: Prepare, tmp_path: Path) -> None:
    path = tmp_path / "reviews.json"
    path.write_bytes(amazon_line() + b"\n{broken\n")
    assert put_aside(prepare("amazon2018", path, None, "--max-bad", 0.5), "reviews.json")
    path.write_bytes(amazon_line() + b"\n")
    assert not (prepare("amazon2018", path).path / "quarantine.jsonl").exists()
