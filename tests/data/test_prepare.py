"""What examples hold, against the slow checker, and against tables changed where an example must not look."""

import math
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from published_files import json_lines
from pydantic import ValidationError
from slow_checker import (
    SPLITS,
    Row,
    Thing,
    check,
    check_held_out,
    kept_rows,
    pairs,
    placed,
    prompts,
    split_rows,
    table_bytes,
)

from reczero.data import About, Dataset, Origin, PrepareSettings, prepare, prepare_source
from reczero.errors import UserError
from reczero.reasoning import Scale

SCALE = Scale(0.5, 5, 0.5)
IDS = ["1", "2", "10", "010", "1:2", "%3A", "é", "用户", "a b", "\u202ex", "99999999999999999999999"]
ITEMS = {item: Thing(f"Item {item}", [item]) for item in IDS}


def tables_of(users: Sequence[str], items: Sequence[str], least: int = 1) -> st.SearchStrategy[list[Row]]:
    row = st.builds(
        Row,
        st.sampled_from(users),
        st.sampled_from(items),
        st.sampled_from(SCALE.grid()),
        st.integers(-1, 6),  # few seconds, so that ties abound
        st.one_of(
            st.none(), st.just(""), st.just(" \n"), st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
        ),
        st.one_of(st.none(), st.just("</rate>"), st.just("\0")),
    )
    return st.lists(row, min_size=least, max_size=40)


# With few ids, the same user rates the same item again and again, in one second too. Long tables have rows to hold out.
crowded, long_tables = tables_of(IDS[1:3], IDS[1:3], least=10), tables_of(IDS[1:4], IDS, least=15)
tables = st.one_of(tables_of(IDS, IDS), crowded, long_tables)


def some_settings(split: str, **rest: st.SearchStrategy[int | None]) -> st.SearchStrategy[PrepareSettings]:
    return st.builds(
        lambda history, **rest: PrepareSettings(split=split, history=history, min_context=min(3, 2 * history), **rest),
        history=st.integers(1, 4),
        min_user_history=st.integers(0, 2),
        min_item_history=st.integers(0, 2),
        **rest,
    )


def tries(number: int) -> settings:
    """Without shrinking: every try writes folders, and a failure would take minutes to come out."""
    return settings(
        max_examples=number,
        deadline=None,
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
    )


def table(rows: list[Row]) -> pl.DataFrame:
    kinds = {"user_id": pl.String, "item_id": pl.String, "rating": pl.Float64, "timestamp": pl.Int64}
    return pl.DataFrame(rows, schema={**kinds, "review": pl.String, "summary": pl.String}, orient="row")


def catalogue(things: dict[str, Thing] = ITEMS) -> pl.DataFrame:
    titles, labels = [thing.title for thing in things.values()], [thing.categories for thing in things.values()]
    columns = {"item_id": list(things), "title": titles, "categories": labels}
    return pl.DataFrame(columns, schema={"item_id": pl.String, "title": pl.String, "categories": pl.List(pl.String)})


def made(
    rows: list[Row], out: Path, chosen: PrepareSettings | None = None, things: dict[str, Thing] = ITEMS
) -> Dataset:
    return prepare(table(rows), catalogue(things), SCALE, out, chosen)


def check_in_any_order(
    rows: list[Row], chosen: PrepareSettings, things: dict[str, Thing], chance: random.Random
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        dataset = made(rows, Path(folder) / "one", chosen, things)
        check(dataset, rows, things, chosen)
        if chosen.split == "leave-last-k":
            check_held_out(dataset)
        again = made(chance.sample(rows, len(rows)), Path(folder) / "two", chosen, things)
        assert table_bytes(again) == table_bytes(dataset)


# --- against the slow checker -----------------------------------------------------------------------------------------

chances = st.randoms(use_true_random=False)
some_users = st.one_of(st.none(), st.integers(1, 3))
seeds = st.integers(0, 9)
catalogues = st.sampled_from([ITEMS, {}])


@tries(30)
@given(tables, some_settings("time", users=some_users, seed=seeds), catalogues, chances)
def test_context_is_what_a_slow_checker_says_whatever_the_order(
    rows: list[Row], chosen: PrepareSettings, things: dict[str, Thing], chance: random.Random
) -> None:
    check_in_any_order(rows, chosen, things, chance)


@tries(20)
@given(
    st.one_of(tables, long_tables),
    some_settings("leave-last-k", leave_last=st.integers(1, 3), users=some_users),
    catalogues,
    chances,
)
def test_leave_last_k_is_what_a_slow_checker_says_and_knows_nothing_held_out(
    rows: list[Row], chosen: PrepareSettings, things: dict[str, Thing], chance: random.Random
) -> None:
    check_in_any_order(rows, chosen, things, chance)


@tries(15)
@given(tables, some_settings("random", users=some_users, seed=seeds), catalogues, chances)
def test_a_random_split_is_what_a_slow_checker_says(
    rows: list[Row], chosen: PrepareSettings, things: dict[str, Thing], chance: random.Random
) -> None:
    check_in_any_order(rows, chosen, things, chance)


@tries(15)
@given(tables, some_settings("random", users=some_users, seed=seeds), chances)
def test_a_table_without_times_is_what_a_slow_checker_says(
    rows: list[Row], chosen: PrepareSettings, chance: random.Random
) -> None:
    def untimed(rows: list[Row], name: str) -> Dataset:
        records = [row._asdict() for row in rows]
        path = json_lines(Path(folder) / "table.jsonl", [{k: r[k] for k in r if k != "timestamp"} for r in records])
        origin = Origin(source="table", reviews=str(path), scale="0.5-5:0.5")
        return prepare_source(origin, Path(folder) / name, chosen)

    with tempfile.TemporaryDirectory() as folder:
        dataset = untimed(rows, "one")
        check(dataset, placed(dataset, rows), {}, chosen)
        assert table_bytes(untimed(chance.sample(rows, len(rows)), "two")) == table_bytes(dataset)


@tries(30)
@given(tables, st.integers(1, 4))
def test_k_core_chooses_targets_only(rows: list[Row], k: int) -> None:
    kept = kept_rows(rows)
    left = kept
    while True:  # not by the checker's own way
        users, items = [row.user for row in left], [row.item for row in left]
        dense = [row for row in left if users.count(row.user) >= k and items.count(row.item) >= k]
        if dense == left:
            break
        left = dense
    with tempfile.TemporaryDirectory() as folder:
        if not left:
            with pytest.raises(UserError, match=f"k_core {k} leaves no rows"):
                made(rows, Path(folder) / "out", PrepareSettings(k_core=k))
            assert not list(Path(folder).iterdir())
            return
        cored = made(rows, Path(folder) / "cored", PrepareSettings(k_core=k), {})
        assert pairs(cored) == [row[:2] for row in kept]
        assert cored.examples(None, None).select("user_id", "item_id").rows() == [row[:2] for row in left]
        check(cored, rows, {}, PrepareSettings(k_core=k))  # contexts rest on all rows


# --- against changed tables -------------------------------------------------------------------------------------------


@tries(30)
@given(tables, tables, st.data())
def test_nothing_at_or_after_an_examples_time_reaches_its_prompt(
    rows: list[Row], others: list[Row], data: st.DataObject
) -> None:
    target = data.draw(st.sampled_from(kept_rows(rows)))
    past = [row for row in rows if row.timestamp < target.timestamp]
    future = [row._replace(timestamp=row.timestamp + target.timestamp + 1) for row in others]  # at its time, or later
    changed = [*past, target._replace(review="changed", summary="mine"), *future]
    its_own = (pl.col("user_id") == target.user) & (pl.col("item_id") == target.item)
    with tempfile.TemporaryDirectory() as folder:
        chosen = PrepareSettings(history=3, min_context=0)
        before, after = (
            prompts(dataset, dataset.examples(None, None, where=its_own | (pl.col("timestamp") < target.timestamp)))
            for name, table in (("one", rows), ("two", changed))
            for dataset in [made(table, Path(folder) / name, chosen, {})]
        )
        assert before == after and len(before) == 1 + len(kept_rows(past))


@pytest.mark.parametrize("split", ["leave-last-k", "random"])
@tries(15)
@given(rows=long_tables, k=st.integers(1, 2), data=st.data())
def test_held_out_rows_reach_no_prompt_of_an_earlier_split(
    split: str, rows: list[Row], k: int, data: st.DataObject
) -> None:
    """Whatever they are rated and whatever is written of them. A random split shows training rows alone, to all."""
    chosen = PrepareSettings(split=split, leave_last=k, history=3, min_context=0)
    seen = SPLITS[: data.draw(st.integers(1, 2))] if split == "leave-last-k" else SPLITS[:1]
    kept = kept_rows(rows)
    assume(set(split_rows(kept, list(range(len(kept))), chosen).values()) - set(seen))
    with tempfile.TemporaryDirectory() as folder:
        one = made(rows, Path(folder) / "one", chosen, {})
        hidden = set(one.examples(None, None, where=~pl.col("split").is_in(seen)).select("user_id", "item_id").rows())
        changes = st.builds(dict, rating=st.sampled_from(SCALE.grid()), review=st.just("changed"), summary=st.none())
        changed = [row._replace(**data.draw(changes)) if row[:2] in hidden else row for row in rows]
        two = made(changed, Path(folder) / "two", chosen, {})
        readers = pl.lit(True) if split == "random" else pl.col("split").is_in(seen)
        before, after = (dataset.examples(None, None, where=readers) for dataset in (one, two))
        assert hidden and before.drop("rating").equals(after.drop("rating"))  # histories, averages, counts
        assert prompts(one, before) == prompts(two, after)


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
