"""What a prepared folder must hold, in plain loops over the rows that were read: the one checker behind the property
tests and the tests of files. It imports no reader, and is as slow and as plain as it can be."""

import math
import random
import re
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import polars as pl
import pytest

from reczero.data import Dataset, PrepareSettings
from reczero.reasoning import Template

PARQUET = ("interactions.parquet", "items.parquet", "examples.parquet")
SPLITS = ("train", "validation", "test")


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
    """Text as it is kept: what is blank is none. To Unicode, unlike Python, \\x1c to \\x1f are no white space."""
    return None if text is None or not re.sub(r"[^\S\x1c-\x1f]", "", str(text)) else str(text)


# --- order, targets, splits -------------------------------------------------------------------------------------------


def id_order(text: str) -> tuple[bool, int, bytes]:
    number = text.isascii() and text.isdigit()
    return (not number, int(text) if number else 0, text.encode())


def kept_rows(rows: Iterable[Row]) -> list[Row]:
    """The earliest of each (user, item), of the same second the lowest rating; by (time, user, item)."""
    first: dict[tuple[str, str], Row] = {}
    for row in rows:
        there = first.get((row.user, row.item))
        if there is None or (row.timestamp, row.rating) < (there.timestamp, there.rating):
            first[row.user, row.item] = row
    return sorted(first.values(), key=lambda r: (r.timestamp, id_order(r.user), id_order(r.item)))


def core(kept: list[Row], k: int) -> list[int]:
    """The rows left when users and items with fewer than `k` of them are removed again and again."""
    left = list(range(len(kept)))
    while True:
        many = Counter((side, kept[n][side]) for n in left for side in (0, 1))
        dense = [n for n in left if all(many[side, kept[n][side]] >= k for side in (0, 1))]
        if dense == left:
            return left
        left = dense


def midnight(day: str) -> int:
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp())


def split_rows(kept: list[Row], targets: list[int], chosen: PrepareSettings) -> dict[int, str]:
    """The split of each target; of a random split only how many of each there are is right."""
    if chosen.split == "leave-last-k":
        k = chosen.leave_last
        splits = dict.fromkeys(targets, "train")
        for user in {kept[n].user for n in targets}:
            own = [n for n in targets if kept[n].user == user]
            if len(own) >= 2 * k + 1:
                splits |= dict.fromkeys(own[-2 * k : -k], "validation") | dict.fromkeys(own[-k:], "test")
        return splits
    if chosen.validation_from and chosen.test_from:
        cuts = [midnight(chosen.validation_from), midnight(chosen.test_from)]
        places = {n: kept[n].timestamp for n in targets}
    else:
        cuts = [round(len(targets) * share) for share in (chosen.train, chosen.train + chosen.validation)]
        places = {n: place for place, n in enumerate(targets)}
    return {n: "train" if at < cuts[0] else "validation" if at < cuts[1] else "test" for n, at in places.items()}


def may_see(mine: str, other: str | None, split: str) -> bool:
    """Whether a context of the split `mine` may hold a row of the split `other`, None for what is no example."""
    if other is None or split == "time":
        return True
    return other == "train" if split == "random" else SPLITS.index(other) <= SPLITS.index(mine)


# --- examples ---------------------------------------------------------------------------------------------------------


def average(rows: list[Row]) -> Any:
    return pytest.approx(math.fsum(row.rating for row in rows) / len(rows), abs=1e-12) if rows else None


def expected(kept: list[Row], n: int, splits: dict[int, str], chosen: PrepareSettings) -> dict[str, Any]:
    """The row of examples.parquet whose target is row `n`, but for its id."""
    target = kept[n]
    past = [m for m, row in enumerate(kept) if row.timestamp < target.timestamp]
    by_user = [m for m in past if kept[m].user == target.user and may_see(splits[n], splits.get(m), chosen.split)]
    of_item = [m for m in past if kept[m].item == target.item and may_see(splits[n], splits.get(m), chosen.split)]
    shown_user, shown_item = by_user[-chosen.history :], of_item[-chosen.history :]

    def reference(m: int, key: str, other: str) -> dict[str, Any]:
        return {"row": m, key: other, "rating": kept[m].rating, "timestamp": kept[m].timestamp}

    return {
        **dict(zip(("user_id", "item_id", "rating", "timestamp"), target, strict=False)),
        "split": splits[n],
        "user_history": [reference(m, "item_id", kept[m].item) for m in shown_user],
        "item_history": [reference(m, "user_id", kept[m].user) for m in shown_item],
        "cold_start": len(by_user) < chosen.min_user_history
        or len(of_item) < chosen.min_item_history
        or len(shown_user) + len(shown_item) < chosen.min_context,
        "user_avg": average([kept[m] for m in by_user]),
        "item_avg": average([kept[m] for m in of_item]),
        "user_count": len(by_user),
        "item_count": len(of_item),
    }


def check(
    dataset: Dataset,
    rows: list[Row],
    things: dict[str, Thing],
    chosen: PrepareSettings | None = None,
    sample: int | None = None,
) -> None:
    """All files of `dataset` are what the slow way makes of the good `rows` and of the items table `things`.

    `sample`: so many examples, at random, are recomputed instead of all.
    """
    chosen = chosen or PrepareSettings()
    kept = kept_rows(rows)
    frame = pl.read_parquet(dataset.path / "interactions.parquet")
    assert frame.columns == ["user_id", "item_id", "rating", "timestamp", "review", "summary"]
    stored = frame.rows()
    assert [row[:4] for row in stored] == [row[:4] for row in kept]
    # Rows that differ in their texts alone are repeats of which any may be kept.
    assert set(stored) <= {(*row[:4], some(row.review), some(row.summary)) for row in rows}

    things = {row.item: Thing(row.item) for row in kept} | things
    items = pl.read_parquet(dataset.path / "items.parquet")
    assert items.columns == ["item_id", *Thing._fields] and items.height == len(things)
    assert {item: Thing(*rest) for item, *rest in items.iter_rows()} == things

    examples = pl.read_parquet(dataset.path / "examples.parquet")
    targets = core(kept, chosen.k_core)
    if chosen.users is not None:  # who is drawn is open, but all that is theirs comes along
        drawn = set(examples["user_id"])
        assert len(drawn) == min(chosen.users, len({kept[n].user for n in targets}))
        targets = [n for n in targets if kept[n].user in drawn]
    assert examples.select("user_id", "item_id").rows() == [kept[n][:2] for n in targets]
    assert examples["example_id"].n_unique() == examples.height
    splits = split_rows(kept, targets, chosen)
    if chosen.split == "random":
        found = dict(zip(targets, examples["split"], strict=True))
        assert Counter(found.values()) == Counter(splits.values())
        splits = found

    places = range(len(targets)) if sample is None else sorted(random.Random(0).sample(range(len(targets)), sample))
    part = examples[list(places)]
    for place, example, context in zip(places, part.iter_rows(named=True), dataset.contexts(part), strict=True):
        target = kept[targets[place]]
        example_id = example.pop("example_id")
        assert example_id == f"{target.user}:{target.item}" or set(":%") & set(target.user + target.item)
        wanted = expected(kept, targets[place], splits, chosen)
        assert example == wanted

        assert _thing(context.item) == things[target.item]
        assert (context.user_avg, context.user_count) == (wanted["user_avg"], wanted["user_count"])
        assert (context.item_avg, context.item_count) == (wanted["item_avg"], wanted["item_count"])
        seen = [_thing(entry.item) for entry in context.user_history]
        assert seen == [things[reference["item_id"]] for reference in wanted["user_history"]]
        entries = (*context.user_history, *context.item_history)
        references = (*wanted["user_history"], *wanted["item_history"])
        for entry, reference in zip(entries, references, strict=True):
            _, _, rating, _, *texts = stored[reference["row"]]
            assert [entry.rating, entry.review, entry.summary] == [rating, *texts]


def _thing(item: Any) -> Thing:
    return Thing(item.title, list(item.categories), item.creator, item.price, item.description)


def check_held_out(dataset: Dataset) -> int:
    """No history, average or count rests on a row of a later split. Seen from the written files alone, so that it holds
    whatever the checker above believes. Returns how many earlier rows were kept out."""
    examples = dataset.examples(None, None).to_dicts()
    rows = [Row(*row) for row in pl.read_parquet(dataset.path / "interactions.parquet").iter_rows()]
    split = {(e["user_id"], e["item_id"]): SPLITS.index(e["split"]) for e in examples}
    hidden = 0
    for example in examples:
        mine = SPLITS.index(example["split"])
        for side in ("user", "item"):
            of_key = [row for row in rows if getattr(row, side) == example[f"{side}_id"]]
            past = [row for row in of_key if row.timestamp < example["timestamp"]]
            known = [row for row in past if split.get(row[:2], -1) <= mine]
            assert {rows[entry["row"]] for entry in example[f"{side}_history"]} <= set(known)
            assert (example[f"{side}_count"], example[f"{side}_avg"]) == (len(known), average(known))
            hidden += len(past) - len(known)
    return hidden


# --- what was written -------------------------------------------------------------------------------------------------


def table_bytes(dataset: Dataset) -> dict[str, bytes]:
    return {name: (dataset.path / name).read_bytes() for name in PARQUET}


def pairs(dataset: Dataset) -> list[tuple[str, str]]:
    return pl.read_parquet(dataset.path / "interactions.parquet").select("user_id", "item_id").rows()


def placed(dataset: Dataset, rows: list[Row]) -> list[Row]:
    """Rows without times, each with its place in interactions.parquet, which stands for the time."""
    places = {pair: place for place, pair in enumerate(pairs(dataset))}
    assert set(places) == {row[:2] for row in rows}
    return [row._replace(timestamp=places[row[:2]]) for row in rows]


def prompts(dataset: Dataset, examples: pl.DataFrame | None = None) -> dict[str, list[dict[str, str]]]:
    examples = dataset.examples(None, None) if examples is None else examples
    template = Template(scale=dataset.scale)
    messages = (template.messages(context) for context in dataset.contexts(examples))
    return dict(zip(examples["example_id"], messages, strict=True))
