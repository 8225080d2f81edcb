"""What examples hold, against a slow checker in plain Python, and against tables changed at or after their time."""

import math
import random
import tempfile
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from reczero.data import About, Dataset, PrepareSettings, prepare
from reczero.errors import UserError
from reczero.reasoning import Scale, Template

SCALE = Scale(0.5, 5, 0.5)
IDS = ["1", "2", "10", "010", "1:2", "%3A", "é", "用户", "a b", "\u202ex", "99999999999999999999999"]
FILES = ("interactions.parquet", "items.parquet", "examples.parquet", "dataset.json")


class Row(NamedTuple):
    user_id: str
    item_id: str
    rating: float
    timestamp: int
    review: str | None = None
    summary: str | None = None


def tables_of(ids: list[str]) -> st.SearchStrategy[list[Row]]:
    row = st.builds(
        Row,
        st.sampled_from(ids),
        st.sampled_from(ids),
        st.sampled_from(SCALE.grid()),
        st.integers(-1, 6),  # few seconds, so that ties abound
        st.one_of(
            st.none(), st.just(""), st.just(" \n"), st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
        ),
        st.one_of(st.none(), st.just("</rate>"), st.just("\0")),
    )
    return st.lists(row, min_size=1, max_size=40)


# With few ids, the same user rates the same item again and again, in one second too.
tables = st.one_of(tables_of(IDS), tables_of(IDS[1:3]))
some_settings = st.builds(
    lambda history, **rest: PrepareSettings(history=history, min_context=min(3, 2 * history), **rest),
    history=st.integers(1, 4),
    min_user_history=st.integers(0, 2),
    min_item_history=st.integers(0, 2),
)
# Without shrinking: every try writes folders, and a failure would take minutes to come out.
many = settings(
    max_examples=40,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)


def table(rows: list[Row]) -> pl.DataFrame:
    kinds = {"user_id": pl.String, "item_id": pl.String, "rating": pl.Float64, "timestamp": pl.Int64}
    return pl.DataFrame(rows, schema={**kinds, "review": pl.String, "summary": pl.String}, orient="row")


def catalogue() -> pl.DataFrame:
    return pl.DataFrame({"item_id": IDS, "title": [f"Item {i}" for i in IDS], "categories": [[i] for i in IDS]})


def made(rows: list[Row], out: Path, chosen: PrepareSettings | None = None) -> Dataset:
    return prepare(table(rows), catalogue(), SCALE, out, chosen)


def id_order(text: str) -> tuple[bool, int, bytes]:
    number = text.isascii() and text.isdigit()
    return (not number, int(text) if number else 0, text.encode())


# --- the slow checker -----------------------------------------------------------------------------------------------


def kept_rows(rows: list[Row]) -> list[Row]:
    """The earliest of each (user, item), by (time, user, item); of the same second the lowest rating."""
    first: dict[tuple[str, str], Row] = {}
    for row in rows:
        there = first.get((row.user_id, row.item_id))
        if there is None or (row.timestamp, row.rating) < (there.timestamp, there.rating):
            first[row.user_id, row.item_id] = row
    return sorted(first.values(), key=lambda r: (r.timestamp, id_order(r.user_id), id_order(r.item_id)))


def check(dataset: Dataset, rows: list[Row], chosen: PrepareSettings) -> None:
    """Every example of `dataset` is what plain loops over the input rows say it must be."""
    kept = kept_rows(rows)
    frame = pl.read_parquet(dataset.path / "interactions.parquet")
    assert frame.select("user_id", "item_id", "rating", "timestamp").rows() == [tuple(r[:4]) for r in kept]
    examples = dataset.examples(None, None)
    assert list(zip(examples["user_id"], examples["item_id"], strict=True)) == [(r.user_id, r.item_id) for r in kept]
    assert examples["example_id"].n_unique() == examples.height

    contexts = dataset.contexts(examples)
    for example, context, target in zip(examples.iter_rows(named=True), contexts, kept, strict=True):
        by_user = [(n, r) for n, r in enumerate(kept) if r.user_id == target.user_id and r.timestamp < target.timestamp]
        of_item = [(n, r) for n, r in enumerate(kept) if r.item_id == target.item_id and r.timestamp < target.timestamp]
        shown_user, shown_item = by_user[-chosen.history :], of_item[-chosen.history :]
        assert [tuple(e.values()) for e in example["user_history"]] == [
            (n, r.item_id, r.rating, r.timestamp) for n, r in shown_user
        ]
        assert [tuple(e.values()) for e in example["item_history"]] == [
            (n, r.user_id, r.rating, r.timestamp) for n, r in shown_item
        ]
        for side, past in (("user", by_user), ("item", of_item)):
            assert example[f"{side}_count"] == len(past)
            if past:
                mean = math.fsum(r.rating for _, r in past) / len(past)
                assert example[f"{side}_avg"] == pytest.approx(mean, abs=1e-12)
            else:
                assert example[f"{side}_avg"] is None
        assert example["cold_start"] == (
            len(by_user) < chosen.min_user_history
            or len(of_item) < chosen.min_item_history
            or len(shown_user) + len(shown_item) < chosen.min_context
        )
        assert (context.user_avg, context.user_count) == (example["user_avg"], example["user_count"])
        assert (context.item_avg, context.item_count) == (example["item_avg"], example["item_count"])
        assert context.item.title == f"Item {target.item_id}" and context.item.categories == (target.item_id,)
        assert [(e.item.title, e.rating) for e in context.user_history] == [
            (f"Item {r.item_id}", r.rating) for _, r in shown_user
        ]
        assert [e.rating for e in context.item_history] == [r.rating for _, r in shown_item]
        entries, refs = (*context.user_history, *context.item_history), (*shown_user, *shown_item)
        for entry, (n, _) in zip(entries, refs, strict=True):
            stored = frame.row(n, named=True)
            assert (entry.review, entry.summary) == (stored["review"], stored["summary"])


@many
@given(tables, some_settings, st.randoms(use_true_random=False))
def test_context_is_what_a_slow_checker_says_whatever_the_order(
    rows: list[Row], chosen: PrepareSettings, chance: random.Random
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        dataset = made(rows, Path(folder) / "one", chosen)
        check(dataset, rows, chosen)
        shuffled = chance.sample(rows, len(rows))
        again = made(shuffled, Path(folder) / "two", chosen)
        for name in FILES:
            assert (dataset.path / name).read_bytes() == (again.path / name).read_bytes()


@many
@given(tables, tables, st.data())
def test_nothing_at_or_after_an_examples_time_reaches_its_prompt(
    rows: list[Row], others: list[Row], data: st.DataObject
) -> None:
    kept = kept_rows(rows)
    target = data.draw(st.sampled_from(kept))
    past = [r for r in rows if r.timestamp < target.timestamp]
    future = [r._replace(timestamp=r.timestamp + target.timestamp + 1) for r in others]  # at its time, or later
    with tempfile.TemporaryDirectory() as folder:
        chosen = PrepareSettings(history=3, min_context=0)
        one, two = (
            made(table, Path(folder) / name, chosen)
            for name, table in (
                ("one", rows),
                ("two", [*past, target._replace(review="changed", summary="mine"), *future]),
            )
        )
        before, after = (
            Template(scale=SCALE).messages(d.contexts(examples)[0])
            for d in (one, two)
            for examples in [
                d.examples(None, None).filter(
                    pl.col("user_id").eq(target.user_id) & pl.col("item_id").eq(target.item_id)
                )
            ]
        )
        assert before == after


@many
@given(tables, st.integers(1, 4))
def test_k_core_chooses_targets_only(rows: list[Row], k: int) -> None:
    left = kept = kept_rows(rows)
    while True:
        users, items = [r.user_id for r in left], [r.item_id for r in left]
        dense = [r for r in left if users.count(r.user_id) >= k and items.count(r.item_id) >= k]
        if dense == left:
            break
        left = dense
    with tempfile.TemporaryDirectory() as folder:
        if not left:
            with pytest.raises(UserError, match=f"k_core {k} leaves no rows"):
                made(rows, Path(folder) / "out", PrepareSettings(k_core=k))
            assert not list(Path(folder).iterdir())
            return
        cored = made(rows, Path(folder) / "cored", PrepareSettings(k_core=k)).examples(None, None)
        whole = made(rows, Path(folder) / "whole").examples(None, None)
        assert cored.select("user_id", "item_id").rows() == [(r.user_id, r.item_id) for r in left]
        assert whole.height == len(kept)
        # The contexts rest on all rows: those of the chosen targets are what they are without a k-core.
        same = whole.join(cored.select("example_id"), on="example_id", how="semi").drop("split")
        assert cored.drop("split").equals(same)


# --- order, splits, counts --------------------------------------------------------------------------------------------


def test_splits_cut_the_time_ordered_rows_by_fractions(tmp_path: Path) -> None:
    rows = [Row(str(n % 7), str(n), 3.0, n // 3) for n in range(103)]
    dataset = made(rows, tmp_path / "out", PrepareSettings(train=0.7, validation=0.2, test=0.1))
    examples = dataset.examples(None, None)
    assert examples["split"].to_list() == ["train"] * 72 + ["validation"] * 21 + ["test"] * 10
    assert [dataset.info["counts"][s] for s in ("train", "validation", "test")] == [72, 21, 10]
    assert examples["timestamp"].is_sorted()


def test_numeric_ids_are_compared_as_numbers(tmp_path: Path) -> None:
    rows = [Row(u, i, 3.0, 5) for u in ("10", "9", "b", "09") for i in ("100", "20", "a")]
    examples = made(rows, tmp_path / "out").examples(None, None)
    expected = [(u, i) for u in ("09", "9", "10", "b") for i in ("20", "100", "a")]
    assert examples.select("user_id", "item_id").rows() == expected


def test_example_ids_of_different_pairs_differ(tmp_path: Path) -> None:
    rows = [Row("a", "b:c", 3.0, 1), Row("a:b", "c", 3.0, 1), Row("a%3Ab", "c", 3.0, 1)]
    assert made(rows, tmp_path / "out").examples(None, None)["example_id"].n_unique() == 3


def test_dataset_json_says_what_was_made_of_what(tmp_path: Path) -> None:
    rows = [Row("1", "1", 3.0, 1, "good"), Row("1", "1", 4.0, 2), Row("1", "no title", 4.0, 3)]
    dataset = prepare(table(rows), catalogue(), SCALE, tmp_path / "out", about=About("mine", inputs={"a.csv": "00"}))
    assert dataset.info["scale"] == {"min": 0.5, "max": 5, "step": 0.5} and dataset.scale == SCALE
    assert dataset.info["settings"] == PrepareSettings().model_dump()
    assert dataset.info["inputs"] == {"a.csv": "00"} and dataset.name == "mine"
    counts = dataset.info["counts"]
    assert (counts["interactions"], counts["repeats_dropped"], counts["texts"]) == (2, 1, 1)
    assert counts["items_without_title"] == 1
    assert dataset.contexts(dataset.example("1:no title"))[0].item.title == "no title"
    assert dataset.is_intact()


def test_of_two_rows_for_an_item_the_same_one_is_kept_in_any_order(tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": ["1", "1", "1"], "title": ["", "B", "A"], "price": [1, 2, 3]})
    for n, order in enumerate(([0, 1, 2], [2, 1, 0])):
        prepare(table([Row("u", "1", 3.0, 1)]), items[order], SCALE, tmp_path / str(n))
        stored = pl.read_parquet(tmp_path / str(n) / "items.parquet")
        assert stored.select("title", "price").rows() == [("A", "3")]


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (table([]), "no rows"),
        (table([Row("u", "i", 3.0, 1)]).drop("item_id", "timestamp"), "no column item_id, timestamp"),
        (table([Row("u", "i", 3.0, 1), Row("u", "j", 6.0, 1)]), r"1 of 2 .* off the scale 0.5-5: 1 \(first: row 2"),
        (table([Row("u", "i", math.nan, 1)]), "rating is not a number"),
        (table([Row("", "i", 3.0, 1)]), "no user"),
        (table([Row("u", "", 3.0, 1)]), "no item"),
        (table([Row("u", "i", 3.0, 1)]).with_columns(timestamp=None), "no time"),
        (table([Row("u", "i", 3.0, 1)]).with_columns(timestamp=pl.lit("noon")), "time can't be read"),
    ],
)
def test_bad_tables_are_refused_in_one_line(frame: pl.DataFrame, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says) as caught:
        prepare(frame, catalogue(), SCALE, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_items_without_the_needed_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="items: no column title"):
        prepare(table([Row("u", "i", 3.0, 1)]), pl.DataFrame({"item_id": ["i"]}), SCALE, tmp_path / "out")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"train": 0.9}, "must sum to 1, not 1.1"),
        ({"history": 2}, "more than two histories of 2"),
        ({"kcore": 5}, "Extra inputs"),
        ({"split": "latest"}, "'time'"),
        ({"history": 0}, "greater than or equal to 1"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, float], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        PrepareSettings.model_validate(values)


def test_only_a_folder_of_ours_is_replaced(tmp_path: Path) -> None:
    rows = [Row("u", "i", 3.0, 1)]
    dataset = made(rows, tmp_path / "out")
    made(rows, tmp_path / "out", PrepareSettings(history=5))  # ours: replaced
    note = dataset.path / "note.txt"
    note.write_text("keep me")
    with pytest.raises(UserError, match="note.txt"):
        made(rows, tmp_path / "out")
    assert note.read_text() == "keep me"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        made(rows, tmp_path / "file")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "items.parquet").write_text("")
    with pytest.raises(UserError, match="holds other files"):
        made(rows, tmp_path / "mine")
