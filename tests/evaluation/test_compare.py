"""The comparison: its columns are a promise, and no failure may help a model."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from reczero.errors import UserError
from reczero.evaluation.compare import compare, compare_run, print_comparison, read_predictions
from reczero.reasoning.scale import Scale

COLUMNS = "model,rows,mae,mae_low,mae_high,rmse,rmse_low,rmse_high,parse_rate,mode_share"
SCALE = Scale(1.0, 5.0, 1.0)


@pytest.fixture(scope="module")
def perfect(examples: pl.DataFrame) -> pl.DataFrame:
    return examples.select("example_id", prediction="rating")


def row(table: pl.DataFrame, name: str) -> dict:
    return table.row(by_predicate=pl.col("model") == name, named=True)


def test_a_model_that_fails_is_worse_not_better(examples: pl.DataFrame, train: pl.DataFrame, perfect: pl.DataFrame):
    half = perfect.with_columns(pl.when(pl.int_range(200) % 2 == 0).then("prediction"))
    missing = perfect.filter(pl.int_range(200) % 2 == 0)
    table = compare(examples, train, {"good": perfect, "half": half, "missing": missing}, SCALE)
    assert row(table, "good")["mae"] == 0
    assert row(table, "half")["mae"] > 0.2
    assert row(table, "half") | {"model": ""} == row(table, "missing") | {
        "model": ""
    }  # null or absent: the same failure
    assert row(table, "missing")["rows"] == 200 and row(table, "missing")["parse_rate"] == 0.5
    nothing = compare(examples, train, {"none": perfect.clear()}, SCALE)
    median = row(nothing, "global-median")
    assert row(nothing, "none")["mae"] == median["mae"] and row(nothing, "none")["parse_rate"] == 0


def test_unparsed_counts_as_a_failure_even_with_a_number(
    examples: pl.DataFrame, train: pl.DataFrame, perfect: pl.DataFrame
):
    table = compare(examples, train, {"m": perfect.with_columns(parsed=pl.lit(False))}, SCALE)
    assert row(table, "m")["parse_rate"] == 0


def test_row_order_of_predictions_does_not_matter(examples: pl.DataFrame, train: pl.DataFrame, perfect: pl.DataFrame):
    table = compare(examples, train, {"m": perfect.sample(fraction=1, shuffle=True, seed=0)}, SCALE)
    assert row(table, "m")["mae"] == 0


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda good: pl.concat([good, good.head(1)]), "twice"),
        (lambda good: good.drop("prediction"), "no column 'prediction'"),
        (lambda good: good.with_columns(example_id="other-" + pl.col("example_id")), "not one example_id"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(
    examples: pl.DataFrame, train: pl.DataFrame, perfect: pl.DataFrame, spoil: Callable, says: str
):
    with pytest.raises(UserError, match=says):
        compare(examples, train, {"m": spoil(perfect)}, SCALE)


def test_no_rows_is_a_users_mistake(examples: pl.DataFrame, train: pl.DataFrame):
    with pytest.raises(UserError, match="no rows"):
        compare(examples.clear(), train, {}, SCALE)


def test_one_user_leaves_the_intervals_empty(examples: pl.DataFrame, train: pl.DataFrame):
    table = compare(examples.with_columns(user_id=pl.lit("u")), train, {}, SCALE)
    assert table["mae_low"].null_count() == table.height and table["mae"].null_count() == 0


def test_a_run_is_compared_and_recomputed_alike(
    make_run: Callable[..., Path], examples: pl.DataFrame, train: pl.DataFrame
):
    run = make_run()
    written = (run / "comparison.csv").read_text()
    lines = written.splitlines()
    assert lines[0] == COLUMNS
    assert [line.split(",")[0] for line in lines[1:3]] == ["untrained", "reczero"]
    assert {line.split(",")[0] for line in lines[3:]} >= {"global-mean", "global-mean-rounded", "global-median"}
    assert compare_run(run).write_csv(float_precision=6) == written
    assert row(compare_run(run), "reczero")["parse_rate"] == pytest.approx(197 / 200)
    # The same figures as straight from the tables.
    ours = {name: read_predictions(run)[name] for name in ("untrained", "reczero")}
    direct = compare(examples, train, ours, SCALE)
    assert direct.sort("model").equals(compare_run(run).sort("model"))


def test_folders_that_are_no_finished_runs(tmp_path: Path, make_run: Callable[..., Path]):
    with pytest.raises(UserError, match="test_examples.parquet"):
        compare_run(tmp_path)
    run = make_run(finish=False)
    with pytest.raises(UserError, match=r"global-median\.parquet is missing"):
        compare_run(run)
    (run / "predictions" / "reczero.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        compare_run(run)


def test_the_table_on_the_terminal_ranks_by_error(
    examples: pl.DataFrame, train: pl.DataFrame, perfect: pl.DataFrame, capsys: pytest.CaptureFixture[str]
):
    print_comparison(compare(examples, train, {"reczero": perfect}, SCALE))
    shown = capsys.readouterr().out
    assert shown.index("reczero") < shown.index("additive") < shown.index("global-median")
    assert "0.000 0.000–0.000" in shown and "100.0%" in shown
