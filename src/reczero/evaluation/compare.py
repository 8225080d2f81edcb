"""The comparison: every model and every baseline on the same rows, the same draws, the same rule for failures.

What the baselines answered is kept beside the models' answers (`predictions/*.parquet` in the run folder), so that a
finished run can be compared and reported again without the data set.
"""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from reczero.errors import UserError
from reczero.evaluation import metrics
from reczero.evaluation.baselines import FALLBACK, is_baseline, predict_all
from reczero.files import atomic_file, read_json
from reczero.reasoning.scale import Scale

UNTRAINED = "untrained"
MOST_EXAMPLES = 1_000  # that a report shows: each carries its prompt, and more would make a page that no phone opens
_SAME = ("example_id", "user_id", "rating")  # what tells whether two runs were tested on the same rows
COLUMNS = (
    "model", "rows", "mae", "mae_low", "mae_high", "rmse", "rmse_low", "rmse_high", "parse_rate", "mode_share",
    "macro_mae", "macro_rmse", "near", "pairwise", "runs", "run_sd",
)  # fmt: skip


def compare(
    examples: pl.DataFrame,
    train: pl.DataFrame,
    predictions: Mapping[str, pl.DataFrame],
    scale: Scale,
    *,
    rounds: int = metrics.ROUNDS,
    seed: int = metrics.SEED,
) -> pl.DataFrame:
    """Score models and all baselines; one row each with the columns `COLUMNS`, models first.

    examples: example_id, user_id, rating, user_avg, item_avg. train: rating. predictions: name -> example_id,
    prediction (null where there was no answer). Rows that a model lacks count as failures. Raises UserError where the
    tables do not fit.
    """
    _require_rows(examples)
    answers = {name: align(examples, frame, name) for name, frame in predictions.items()}
    answers |= predict_all(train, examples, scale)
    return table_of(examples, answers, fallback_of(answers), rounds, seed)


def finish_comparison(
    run: Path,
    train: pl.DataFrame,
    scale: Scale,
    *,
    rounds: int = metrics.ROUNDS,
    seed: int = metrics.SEED,
) -> pl.DataFrame:
    """The evaluation stage's last step: add the baselines' predictions to a run and write its comparison.csv.

    Reads `test_examples.parquet` and the models' `predictions/NAME.parquet`, all written before; returns the table.
    """
    examples = read_examples(run)
    _require_rows(examples)
    for name, prediction in predict_all(train, examples, scale).items():
        frame = examples.select(
            "example_id",
            pl.Series("prediction", prediction),
            pl.col("rating").cast(pl.Float64),
            parsed=pl.lit(True),
            model=pl.lit(name),
            decoding=pl.lit("baseline"),
        )
        with atomic_file(run / "predictions" / f"{name}.parquet") as path:
            frame.write_parquet(path)
    table = compare_run(run, rounds=rounds, seed=seed)
    write_comparison(table, run / "comparison.csv")
    return table


def compare_run(*runs: Path, rounds: int = metrics.ROUNDS, seed: int = metrics.SEED) -> pl.DataFrame:
    """The comparison of a finished run, computed anew from the predictions in its folder.

    Of several runs on the same rows, such as those of several seeds: each model's errors over its answers in all.
    Raises UserError.
    """
    examples, answers = _pooled(runs)
    return table_of(examples, answers, fallback_of(answers), rounds, seed)


def compare_stages(*runs: Path) -> list[str]:
    """Sentences: the last model of finished runs against what it was before, on test rows and on validation rows.

    Each with the paired interval over users. Of several runs: the mean of their differences, then each. On validation
    rows the checkpoints were chosen, of every stage alike, so what stands of them flatters. Raises UserError.
    """
    examples, answers = _pooled(runs)
    fallback, path = fallback_of(answers), runs[0] / "run.json"
    info = read_json(path) if path.is_file() else {}
    final, *others = own_models(answers, info.get("method")) or [UNTRAINED]
    said = [against(final, x, "test", examples, (answers[final], answers[x]), fallback) for x in others]
    found = [{path.stem: _read(path) for path in (run / "validation").glob("*.parquet")} for run in runs]
    stages = [name for name in info.get("stages", {}) if all(name in tables for tables in found)]
    last = str(info.get("best_stage"))
    if last in stages:
        rows = _same([tables[last] for tables in found], runs)
        given = {name: np.stack([align(rows, tables[name], name) for tables in found]) for name in stages}
        others = [name for name in stages if name != last]
        said += [against(last, x, "validation", rows, (given[last], given[x]), fallback) for x in others]
    return said


def against(
    name: str, opponent: str, part: str, examples: pl.DataFrame, pair: tuple[np.ndarray, np.ndarray], fallback: float
) -> str:
    """How much less, or more, a model errs than another on the same rows of a split, in a sentence.

    pair: the answers of both, each (rows,) or (runs, rows).
    """
    truth = examples["rating"].cast(pl.Float64).to_numpy()
    difference = metrics.paired_difference(truth, *pair, user_codes(examples), fallback)
    change, relative = difference.mae, difference.relative_mae
    where = f"{name} against {opponent} on {len(truth)} {part} rows: MAE {_signed(change.value)}"
    if math.isnan(change.low):
        return f"{where} (too few users for an interval)"
    said = f"{where} (95 % interval {_signed(change.low)} to {_signed(change.high)})"
    if change.low <= 0 <= change.high:
        said += ", no clear difference"
    else:
        low, high = sorted((abs(relative.low), abs(relative.high)))
        less = "lower" if change.value < 0 else "higher"
        said += f", {abs(relative.value):.1%} {less} ({low:.1%} to {high:.1%})"
    if pair[0].ndim == 2 and len(pair[0]) > 1:
        errors = [[metrics.mae(truth, metrics.answered(given, fallback)) for given in model] for model in pair]
        said += "; by run " + ", ".join(_signed(a - b) for a, b in zip(*errors, strict=True))
    return said


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\u2212")


def own_models(names: Iterable[str], method: str | None) -> list[str]:
    """The models of a run that are no baselines: that of its method, what its stages made before, the untrained one."""
    return sorted(
        (name for name in names if not is_baseline(name)), key=lambda name: (name == UNTRAINED, name != method)
    )


def _pooled(runs: Sequence[Path]) -> tuple[pl.DataFrame, dict[str, np.ndarray]]:
    """The test rows of the runs, and what the models answered that all of them have: name -> (runs, rows)."""
    examples = _same([read_examples(run) for run in runs], runs)
    _require_rows(examples)
    frames = [read_predictions(run) for run in runs]
    for run, found in zip(runs, frames, strict=True):
        if FALLBACK not in found:
            raise UserError(
                f"{run}: predictions/{FALLBACK}.parquet is missing, so failures cannot be scored: finish the run"
            )
    shared = [name for name in frames[0] if all(name in found for found in frames)]
    return examples, {name: np.stack([align(examples, found[name], name) for found in frames]) for name in shared}


def _same(tables: Sequence[pl.DataFrame], runs: Sequence[Path]) -> pl.DataFrame:
    """The first of the runs' tables, once all are found to have its rows."""
    for run, table in zip(runs, tables, strict=True):
        if not table.select(_SAME).equals(tables[0].select(_SAME)):
            raise UserError(f"{run}: its rows are not those of {runs[0]}; compare runs of the same data and settings")
    return tables[0]


def table_of(
    examples: pl.DataFrame, answers: Mapping[str, np.ndarray], fallback: float, rounds: int, seed: int
) -> pl.DataFrame:
    """One row for each model, with the columns `COLUMNS`. Shapes and meaning as in `metrics.score`."""
    truth, users = examples["rating"].cast(pl.Float64).to_numpy(), user_codes(examples)
    scores = metrics.score(truth, answers, users, fallback, rounds, seed) if answers else {}
    rows = [
        (name, s.rows)
        + (s.mae.value, s.mae.low, s.mae.high)
        + (s.rmse.value, s.rmse.low, s.rmse.high)
        + (s.parse_rate, s.mode_share)
        + (s.macro_mae.value, s.macro_rmse.value, s.near.value, s.pairwise.value, s.runs, s.run_sd)
        for name, s in scores.items()
    ]
    whole = {"rows": pl.Int64, "runs": pl.Int64, "model": pl.String}
    schema = {c: whole.get(c, pl.Float64) for c in COLUMNS}
    return pl.DataFrame(rows, schema=schema, orient="row").fill_nan(None)


def align(examples: pl.DataFrame, predictions: pl.DataFrame, name: str) -> np.ndarray:
    """(rows,) predictions in the order of the examples; NaN where a row is missing, null or not parsed."""
    for column in ("example_id", "prediction"):
        if column not in predictions.columns:
            raise UserError(f"predictions of {name}: no column {column!r}; it takes example_id and prediction")
    if predictions["example_id"].is_duplicated().any():
        twice = predictions.filter(pl.col("example_id").is_duplicated())["example_id"][0]
        raise UserError(f"predictions of {name}: example_id {twice!r} stands there twice; keep one row each")
    value = pl.col("prediction").cast(pl.Float64)
    if "parsed" in predictions.columns:
        value = pl.when(pl.col("parsed")).then(value)
    given = predictions.select(pl.col("example_id").cast(pl.String), value.alias("prediction"))
    known = examples.select(pl.col("example_id").cast(pl.String))
    if given.height and given.join(known, on="example_id", how="semi").is_empty():
        raise UserError(f"predictions of {name}: not one example_id is among the {known.height} rows to compare on")
    joined = known.join(given, on="example_id", how="left", maintain_order="left")
    values = joined["prediction"].fill_null(float("nan")).to_numpy()
    return np.where(np.isfinite(values), values, np.nan)


def user_codes(examples: pl.DataFrame) -> np.ndarray:
    """(rows,) small integers, one a user: cheaper to group by than strings."""
    return examples["user_id"].rank("dense").to_numpy()


def fallback_of(answers: Mapping[str, np.ndarray]) -> float:
    """The rating by which failures are scored: the median of the training ratings."""
    return float(answers[FALLBACK].flat[0])


def read_examples(run: Path) -> pl.DataFrame:
    """The test rows of a run. Raises UserError when it was not evaluated."""
    path = run / "test_examples.parquet"
    if not path.is_file():
        raise UserError(f"{run}: no test_examples.parquet: not the folder of an evaluated run (such as runs/demo)")
    return _read(path)


def read_predictions(run: Path) -> dict[str, pl.DataFrame]:
    """name -> predictions of a run: the untrained policy, the trained ones, the baselines."""
    frames = {path.stem: _read(path) for path in (run / "predictions").glob("*.parquet")}
    return {name: frames[name] for name in sorted(frames, key=_order)}


def shown_rows(count: int) -> np.ndarray:
    """The rows that a report shows, spread evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_EXAMPLES)).round().astype(int))


def write_comparison(table: pl.DataFrame, path: Path) -> None:
    """Write comparison.csv, six decimals, an empty field where there is no interval."""
    with atomic_file(path) as temporary:
        table.write_csv(temporary, float_precision=6)


def print_comparison(table: pl.DataFrame, stages: Sequence[str] = (), runs: int = 1) -> None:
    """The table on the terminal, best MAE first, our own models in bold; then the sentences of `compare_stages`."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    rows = table["rows"][0] if table.height else 0
    title = f"{rows} held-out rows, 95 % intervals over users; mode: share of the commonest prediction"
    if runs > 1:
        title += f"; {runs} runs pooled"
    console = Console() if sys.stdout.isatty() else Console(width=120)
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("model", no_wrap=True)
    for heading in ("MAE", "RMSE", "parsed", "mode"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in table.sort("mae", maintain_order=True).iter_rows(named=True):
        shown.add_row(
            row["model"],
            _with_interval(row["mae"], row["mae_low"], row["mae_high"]),
            _with_interval(row["rmse"], row["rmse_low"], row["rmse_high"])
            if console.width >= 90
            else f"{row['rmse']:.3f}",
            f"{row['parse_rate']:.1%}",
            f"{row['mode_share']:.1%}",
            style=None if is_baseline(row["model"]) else "bold cyan",
        )
    console.print(shown)
    for sentence in stages:
        console.print(f"{sentence}.", highlight=False, markup=False, soft_wrap=True)


def _with_interval(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} {low:.3f}–{high:.3f}"


def _order(name: str) -> tuple[bool, bool, str]:
    return is_baseline(name), name != UNTRAINED, name


def _require_rows(examples: pl.DataFrame) -> None:
    if examples.is_empty():
        raise UserError("no rows to compare on: the test split is empty; prepare the data with a larger test share")


def _read(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file; run the evaluation again") from error
