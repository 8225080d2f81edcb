"""Opening prepared folders, choosing examples, and the figures of the real MovieLens-100K."""

import json
from pathlib import Path

import polars as pl
import pytest

from reczero.data import Dataset, PrepareSettings, prepare, spread
from reczero.errors import UserError
from reczero.reasoning import Opinion, Scale, Template, TemplateSettings


@pytest.fixture
def small(tmp_path: Path) -> Dataset:
    """40 ratings by 4 users of 10 items, one each second, every one with a review and a summary."""
    interactions = pl.DataFrame(
        {
            "user_id": [f"u{n % 4}" for n in range(40)],
            "item_id": [f"i{n // 4}" for n in range(40)],
            "rating": [float(1 + n % 5) for n in range(40)],
            "timestamp": list(range(40)),
            "review": [f"review {n}" for n in range(40)],
            "summary": [f"summary {n}" for n in range(40)],
        }
    )
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(10)], "title": [f"Title {n}" for n in range(10)]})
    return prepare(interactions, items, Scale(), tmp_path / "small", PrepareSettings(history=3, min_context=3))


def test_examples_by_split_and_by_cold_start(small: Dataset) -> None:
    assert [small.examples(split, None).height for split in ("train", "validation", "test")] == [32, 4, 4]
    whole, warm, cold = (small.examples("train", cold_start=which) for which in (None, False, True))
    assert warm.height + cold.height == whole.height and cold.height > 0
    assert not warm["cold_start"].any() and cold["cold_start"].all()
    with pytest.raises(ValueError, match="none of"):
        small.examples("dev")  # type: ignore[arg-type]


def test_contexts_join_texts_but_never_the_targets_own(small: Dataset) -> None:
    (context,) = small.contexts(small.example("u3:i5"))  # row 23
    assert [(e.item.title, e.review) for e in context.user_history] == [
        ("Title 2", "review 11"), ("Title 3", "review 15"), ("Title 4", "review 19")
    ]  # fmt: skip
    assert context.item_history[0] == Opinion(1.0, "summary 20", "review 20")
    assert "review 23" not in str(context)
    assert (context.user_count, context.item_count) == (5, 3)


def test_contexts_follow_the_order_of_the_examples(small: Dataset) -> None:
    examples = small.examples(None, None)
    assert small.contexts(examples.reverse()) == small.contexts(examples)[::-1]
    assert small.contexts(examples.head(0)) == []


def test_statistics(small: Dataset) -> None:
    found = small.statistics()
    assert found["density"] == 1.0 and found["ratings"] == {float(r): 8 for r in range(1, 6)}
    assert found["splits"]["test"]["first"] == 36 and found["splits"]["test"]["last"] == 39
    assert found["splits"]["test"]["shown"] == 4.5  # 3 by the user, and 0, 1, 2, 3 of the item


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 39, 40, 100])
def test_spread_takes_distinct_rows_evenly(small: Dataset, n: int) -> None:
    examples = small.examples(None, None)
    chosen = spread(examples.sample(fraction=1, shuffle=True, seed=1), n)
    assert chosen.height == min(n, 40) == chosen["example_id"].n_unique()
    assert chosen.equals(spread(examples, n))
    assert chosen["timestamp"].is_sorted()
    if n > 1:
        gaps = chosen["timestamp"].diff().drop_nulls()
        assert int(gaps.max()) - int(gaps.min()) <= 1  # type: ignore[arg-type]


def test_unknown_example_is_told_how_ids_look(small: Dataset) -> None:
    with pytest.raises(UserError, match="no example '99'; ids are USER:ITEM, such as 'u0:i0'"):
        small.example("99")


def test_fingerprint_is_of_the_files(small: Dataset, tmp_path: Path) -> None:
    assert Dataset.open(small.path).fingerprint == small.fingerprint
    path = small.path / "items.parquet"
    pl.read_parquet(path).with_columns(title=pl.lit("other")).write_parquet(path)
    with pytest.raises(UserError, match="changed after they were prepared"):
        _ = Dataset.open(small.path).fingerprint


def test_what_is_not_a_prepared_folder_is_refused(small: Dataset, tmp_path: Path) -> None:
    def refused(says: str, path: Path = small.path) -> None:
        with pytest.raises(UserError, match=says) as caught:
            Dataset.open(path)
        assert "\n" not in str(caught.value)

    refused("no such folder", tmp_path / "nowhere")
    refused("holds no dataset.json", tmp_path)
    info = small.path / "dataset.json"
    text = info.read_text()
    info.write_text(text[: len(text) // 2])
    refused("not JSON")
    info.write_text("[]")
    refused("not ours")
    info.write_text(json.dumps(json.loads(text) | {"format": 99}))
    refused("format 99")
    info.write_text(json.dumps({"format": 2, "name": "x", "scale": {"min": 5, "max": 1}}))
    refused("dataset.json")
    info.write_text(text)

    examples = small.path / "examples.parquet"
    whole = examples.read_bytes()
    examples.write_bytes(whole[:-50])
    refused("examples.parquet: cannot be read")
    examples.write_bytes((small.path / "items.parquet").read_bytes())
    refused("other columns")
    examples.unlink()
    refused("examples.parquet: is missing")


@pytest.mark.network
def test_real_ml_100k(ml_100k: Dataset) -> None:
    """Published and measured figures: 943 users, 1,682 films, and the as-of baseline on the rows with enough past."""
    counts = ml_100k.info["counts"]
    assert (counts["users"], counts["items"], counts["interactions"]) == (943, 1682, 100_000)
    assert (counts["train"], counts["validation"], counts["test"]) == (80_000, 10_000, 10_000)
    test = ml_100k.examples("test")
    assert test.height == 9_368
    mean = ml_100k.examples("train", None)["rating"].mean()
    guess = (pl.col("user_avg") + pl.col("item_avg") - mean).clip(1, 5)
    assert test.select((guess - pl.col("rating")).abs().mean()).item() == pytest.approx(0.805, abs=5e-4)
    assert test.select(((guess - pl.col("rating")) ** 2).mean().sqrt()).item() == pytest.approx(1.019, abs=5e-4)
    assert len(ml_100k.contexts(test)) == 9_368


@pytest.mark.network
def test_real_figures_of_the_facts(ml_100k: Dataset) -> None:
    """On the validation rows with enough past, as docs/log.md tells: the sum, and the sum as the prompt rounds it."""
    rows = ml_100k.examples("validation")
    contexts = ml_100k.contexts(rows, ("affinity", "hint", "sum"))
    expected = {("affinity", "sum"): (0.9389, 0.7070), ("affinity", "hint", "sum"): (0.9241, 0.6949)}
    for facts, (rmse, mae) in expected.items():
        template = Template(TemplateSettings(facts=facts))
        sums = pl.Series([template.total(context) for context in contexts], dtype=pl.Float64)
        about = pl.Series([template.scale.nearest(total) for total in sums])
        assert ((sums - rows["rating"]) ** 2).mean() ** 0.5 == pytest.approx(rmse, abs=5e-4)  # type: ignore[operator]
        assert (about - rows["rating"]).abs().mean() == pytest.approx(mae, abs=5e-4)
