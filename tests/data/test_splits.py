"""Splits, k-cores, samples of users and dates through the command line: what the slow checker says, and no leaks."""

import gzip
import re
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest
from published_files import Prepare, Published, Refused, amazon2018, yelp
from slow_checker import (
    Row,
    check,
    check_held_out,
    expected,
    kept_rows,
    midnight,
    pairs,
    placed,
    split_rows,
    table_bytes,
)

from reczero.data import PrepareSettings as Choice
from reczero.reasoning import Scale


def words(choice: Choice) -> list[str]:
    """The choice as it is said on the command line."""
    changed = choice.model_dump(exclude_defaults=True)
    return [word for key, value in changed.items() for word in (f"--{key.replace('_', '-')}", str(value))]


def test_the_defaults_are_these() -> None:
    """By hand, since the checker takes them from the settings."""
    assert Choice().model_dump() == {
        "split": "time", "train": 0.8, "validation": 0.1, "test": 0.1, "validation_from": None, "test_from": None,
        "leave_last": 1, "users": None, "k_core": 0, "history": 10, "min_user_history": 1, "min_item_history": 1,
        "min_context": 5, "max_bad": 0.01, "seed": 0,
    }  # fmt: skip


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


FIRST = Line("train", [], [], None, None, 0, 0, True)
OF_ITEM = FIRST._replace(of_item=[0, 1], item_avg=4.0, item_count=2)


@pytest.mark.parametrize(
    ("choice", "by_hand"),
    [
        (
            Choice(min_context=2),
            [FIRST, FIRST,
             Line("train", [0], [], 5.0, None, 1, 0, True),
             OF_ITEM,
             Line("train", [0, 2], [], 3.5, None, 2, 0, True),
             Line("train", [1], [2], 3.0, 2.0, 1, 1, False),
             Line("test", [3], [], 4.0, None, 1, 0, True)],
        ),
        (
            Choice(history=1, min_context=1, min_item_history=0, train=0.5, validation=0.25, test=0.25),
            [FIRST, FIRST,
             Line("train", [0], [], 5.0, None, 1, 0, False),
             OF_ITEM._replace(of_item=[1]),
             Line("validation", [2], [], 3.5, None, 2, 0, False),
             Line("test", [1], [2], 3.0, 2.0, 1, 1, False),
             Line("test", [3], [], 4.0, None, 1, 0, False)],
        ),
        (
            # Only A has three rows, 0, 2 and 4: so row 2 is held out, and B's row 5 (train) must not know of it.
            Choice(split="leave-last-k", leave_last=1, min_context=2),
            [FIRST, FIRST,
             Line("validation", [0], [], 5.0, None, 1, 0, True),
             OF_ITEM,
             Line("test", [0, 2], [], 3.5, None, 2, 0, True),
             Line("train", [1], [], 3.0, None, 1, 0, True),
             Line("train", [3], [], 4.0, None, 1, 0, True)],
        ),
    ],
    ids=["time", "short", "leave-last-k"],
)  # fmt: skip
def test_the_checker_and_the_command_agree_with_numbers_by_hand(
    choice: Choice, by_hand: list[Line], prepare: Prepare, tmp_path: Path
) -> None:
    kept = kept_rows(HAND)
    order = [("A", "i"), ("B", "i"), ("A", "j"), ("C", "i"), ("A", "k"), ("B", "j"), ("C", "k")]
    assert [row[:2] for row in kept] == order and kept[6].rating == 2 and kept[2].timestamp == 150
    splits = split_rows(kept, list(range(7)), choice)

    def line(example: dict[str, Any]) -> Line:
        histories = ([entry["row"] for entry in example[f"{side}_history"]] for side in ("user", "item"))
        return Line(example["split"], *histories, *(example[name] for name in Line._fields[3:]))

    assert [line(expected(kept, n, splits, choice)) for n in range(7)] == by_hand
    reviews, _ = amazon2018.write(tmp_path, HAND)
    dataset = prepare("amazon2018", reviews, None, *words(choice))
    assert pairs(dataset) == order
    assert [line(example) for example in dataset.examples(None, None).to_dicts()] == by_hand


LEAVE_LAST = {
    "leave last": Choice(split="leave-last-k"),
    "leave last 2": Choice(split="leave-last-k", leave_last=2, history=4),
    "leave last 4": Choice(split="leave-last-k", leave_last=4),
    "leave last of users": Choice(split="leave-last-k", users=6),
    "leave last of a core": Choice(split="leave-last-k", leave_last=2, k_core=4),
}
CHOICES = LEAVE_LAST | {
    "short histories": Choice(history=2, min_context=3),
    "warm only": Choice(min_user_history=4, min_item_history=3, min_context=8),
    "nothing is cold": Choice(min_user_history=0, min_item_history=0, min_context=0),
    "fractions": Choice(train=0.6, validation=0.15, test=0.25),
    "dates": Choice(validation_from="2014-06-20", test_from="2014-07-04"),
    "core": Choice(k_core=4),
    "users": Choice(users=4, seed=7),
    "all users": Choice(users=1000),
    "random": Choice(split="random", seed=11),
    "random thirds": Choice(split="random", train=0.4, validation=0.3, test=0.3, history=3),
}


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_is_what_the_slow_checker_says(name: str, published: Published, prepare: Prepare) -> None:
    choice = CHOICES[name]
    form, reviews, items, _ = published("amazon2018")
    dataset = prepare(form.source, reviews, items, *words(choice))
    check(dataset, *form.read(reviews, items), choice)
    if choice.users is None:
        assert all(dataset.info["counts"][split] for split in ("train", "validation", "test"))
    if name in LEAVE_LAST:
        assert check_held_out(dataset) > 0  # there was something to keep out


@pytest.fixture(scope="module")
def all_beauty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    """The published file, and its rows read slowly."""
    for parent in Path(__file__).resolve().parents:
        path = parent / "shared" / "data" / "All_Beauty_5.json.gz"
        if path.is_file():
            plain = tmp_path_factory.mktemp("beauty") / "reviews.json"
            plain.write_bytes(gzip.decompress(path.read_bytes()))
            return path, amazon2018.read(plain, None)[0]
    pytest.skip("shared/data/All_Beauty_5.json.gz is in no parent folder")


@pytest.mark.parametrize(
    "choice",
    [Choice(), LEAVE_LAST["leave last"], Choice(k_core=5, history=4), Choice(split="random", seed=3), Choice(users=99)],
    ids=["time", "leave-last-k", "core", "random", "users"],
)
def test_real_reviews_are_what_the_slow_checker_says(
    choice: Choice, all_beauty: tuple[Path, list[Row]], prepare: Prepare
) -> None:
    path, rows = all_beauty
    assert len(rows) == 5269
    dataset = prepare("amazon2018", path, None, *words(choice))
    check(dataset, rows, {}, choice, sample=300)
    assert dataset.scale == Scale(1, 5, 1) and not (dataset.path / "quarantine.jsonl").exists()


def test_dates_cut_at_midnight_utc(prepare: Prepare, tmp_path: Path) -> None:
    july, august = midnight("2018-07-01"), midnight("2018-08-01")
    moments = [july - 1, july, july + 1, august - 1, august]
    reviews, _ = yelp.write(tmp_path, [Row("u", f"i{n}", 3.0, moment) for n, moment in enumerate(moments)])
    dates = ("--validation-from", "2018-07-01", "--test-from", "2018-08-01")
    examples = prepare("yelp", reviews, None, *dates).examples(None, None)
    assert examples["split"].to_list() == ["train", "validation", "validation", "validation", "test"]
    assert examples["timestamp"].to_list() == moments


@pytest.mark.parametrize("drawn", [("--users", 3), ("--split", "random")], ids=["users", "random"])
def test_what_is_drawn_is_seeded_and_leaves_all_rows_in_place(
    drawn: tuple[object, ...], published: Published, prepare: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    form, *files, whole = published("amazon2018")
    made = []
    for name, seed in (("one", 1), ("same", 1), ("other", 2), ("another", 3)):
        dataset = prepare(form.source, *files, *drawn, "--seed", seed, out=name)
        assert ("leak" in capsys.readouterr().err.lower()) == (drawn[0] == "--split")
        made.append(table_bytes(dataset))
        assert made[-1] | {"examples.parquet": b""} == table_bytes(whole) | {"examples.parquet": b""}
    assert made[0] == made[1] and not made[1] == made[2] == made[3]
    if drawn[0] == "--split":
        assert made[1] != made[2]
        times = {split: dataset.examples(split, None)["timestamp"] for split in ("train", "test")}
        assert times["test"].min() < times["train"].max()  # not a split by time


def test_a_table_without_times_is_refused_unless_split_at_random(
    prepare: Prepare, refused: Refused, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [Row(f"u{n}", f"i{m}", 1.0 + (n * m) % 5, 0) for n in range(9) for m in range(8) if (n + m) % 3]
    path = tmp_path / "ratings.csv"
    path.write_text("user,item,rating\n" + "".join(f"{row.user},{row.item},{row.rating}\n" for row in rows))
    assert re.search(r"\btime", refused("table", path))
    refused("table", path, None, "--split", "leave-last-k", "--leave-last", 1)
    choice = Choice(split="random", history=3, min_context=2)
    dataset = prepare("table", path, None, *words(choice))
    assert "leak" in capsys.readouterr().err.lower()
    frame = pl.read_parquet(dataset.path / "interactions.parquet")
    assert not any(frame[name].is_sorted() for name in ("user_id", "item_id", "rating"))  # an order that means nothing
    check(dataset, placed(dataset, rows), {}, choice)
