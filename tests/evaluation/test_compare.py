"""The comparison: its columns are a promise, and no failure may help a model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from reczero.cli import main
from reczero.errors import UserError
from reczero.evaluation.compare import compare, compare_run, compare_stages, print_comparison, read_predictions
from reczero.reasoning.scale import Scale

COLUMNS = "model,rows,mae,mae_low,mae_high,rmse,rmse_low,rmse_high,parse_rate,mode_share,"  # a promise; more may follow
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
    assert lines[0].startswith(COLUMNS)
    assert [line.split(",")[0] for line in lines[1:3]] == ["untrained", "reczero"]
    assert {line.split(",")[0] for line in lines[3:]} >= {"global-mean", "global-mean-rounded", "global-median"}
    assert compare_run(run).write_csv(float_precision=6) == written
    assert row(compare_run(run), "reczero")["parse_rate"] == pytest.approx(197 / 200)
    # The same figures as straight from the tables.
    ours = {name: read_predictions(run)[name] for name in ("untrained", "reczero")}
    direct = compare(examples, train, ours, SCALE)
    assert direct.sort("model").equals(compare_run(run).sort("model"))


def test_runs_of_several_seeds_are_pooled(
    make_run: Callable[..., Path], tmp_path: Path, examples: pl.DataFrame, capsys: pytest.CaptureFixture[str]
):
    first = make_run()
    second = tmp_path / "second"
    shutil.copytree(first, second)
    guess = pl.read_parquet(second / "predictions" / "reczero.parquet")
    guess.with_columns(prediction="rating", parsed=True).write_parquet(second / "predictions" / "reczero.parquet")
    one, both = (row(compare_run(*runs), "reczero") for runs in ((first,), (first, second)))
    assert both["mae"] == pytest.approx(one["mae"] / 2)
    assert both["rmse"] == pytest.approx(one["rmse"] / 2**0.5)
    assert both["parse_rate"] == pytest.approx((1 + one["parse_rate"]) / 2)
    untrained = row(compare_run(first), "untrained")["mae"]
    sentence = compare_stages(first, second)[0].replace("\u2212", "-")
    assert sentence.startswith(
        f"reczero against untrained on 200 test rows: MAE {(one['mae'] / 2 - untrained):+.3f} (95 % interval "
    )
    assert sentence.endswith(f"; by run {one['mae'] - untrained:+.3f}, {-untrained:+.3f}")
    assert main.run(["compare", str(first), str(second)]) == 0
    shown = capsys.readouterr().out
    assert "2 runs pooled" in shown and "reczero against untrained" in shown
    examples.head(199).write_parquet(second / "test_examples.parquet")
    with pytest.raises(UserError, match="its rows are not those of"):
        compare_run(first, second)


def test_what_a_stage_added_is_told_on_test_and_validation_rows(make_run: Callable[..., Path], examples: pl.DataFrame):
    run = make_run()
    shutil.copy(run / "predictions" / "untrained.parquet", run / "predictions" / "sft.parquet")
    info = json.loads((run / "run.json").read_text())
    stages = {"teach": {}, "sft": {"best_step": 1}, "grpo": {"best_step": 0}}
    (run / "run.json").write_text(json.dumps(info | {"stages": stages, "best_stage": "grpo"}))
    rows = examples.head(50).select("example_id", "user_id", "rating", parsed=True)
    (run / "validation").mkdir()
    rows.with_columns(prediction=pl.col("rating") + 1).write_parquet(run / "validation" / "sft.parquet")
    rows.with_columns(prediction=pl.col("rating") + 0.5).write_parquet(run / "validation" / "grpo.parquet")
    said = compare_stages(run)
    assert [x.split(":")[0] for x in said] == [
        "reczero against sft on 200 test rows",
        "reczero against untrained on 200 test rows",
        "grpo against sft on 50 validation rows",
    ]
    change = "MAE \u22120.500 (95 % interval \u22120.500 to \u22120.500), 50.0% lower (50.0% to 50.0%)"
    assert said[2].endswith(change)


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


def test_runs_take_no_options_of_a_data_set_and_stand_once(
    make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
):
    run = str(make_run())
    assert main.run(["compare", run, "--baseline", "all"]) == 2
    assert "these options are for a data set" in capsys.readouterr().err
    assert main.run(["compare", run, run]) == 2
    assert "stands there twice" in capsys.readouterr().err
    assert main.run(["compare", run, "ml-100k"]) == 2
    assert "ml-100k: not the folder of a finished run" in capsys.readouterr().err
