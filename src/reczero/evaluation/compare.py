"""The comparison: every model and every baseline on the same rows, the same draws, the same rule for failures.

What the baselines answered is kept beside the models' answers (`predictions/*.parquet` in the run folder), so that a
finished run can be compared and reported again without the data set.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from reczero.errors import UserError
from reczero.evaluation import metrics
from reczero.evaluation.baselines import FALLBACK, is_baseline, predict_all
from reczero.files import atomic_file
from reczero.reasoning.scale import Scale

COLUMNS = ("model", "rows", "mae", "mae_low", "mae_high", "rmse", "rmse_low", "rmse_high", "parse_rate", "mode_share")


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
    return _table(examples, answers | predict_all(train, examples, scale), rounds, seed)


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


def compare_run(run: Path, *, rounds: int = metrics.ROUNDS, seed: int = metrics.SEED) -> pl.DataFrame:
    """The comparison of a finished run, computed anew from the predictions in its folder. Raises UserError."""
    examples = read_examples(run)
    _require_rows(examples)
    answers = {name: align(examples, frame, name) for name, frame in read_predictions(run).items()}
    if FALLBACK not in answers:
        raise UserError(
            f"{run}: predictions/{FALLBACK}.parquet is missing, so failures cannot be scored: finish the run"
        )
    return _table(examples, answers, rounds, seed)


def _table(examples: pl.DataFrame, answers: Mapping[str, np.ndarray], rounds: int, seed: int) -> pl.DataFrame:
    truth, users = examples["rating"].cast(pl.Float64).to_numpy(), user_codes(examples)
    scores = metrics.score(truth, answers, users, fallback_of(answers), rounds, seed)
    rows = [
        (name, s.rows)
        + (s.mae.value, s.mae.low, s.mae.high)
        + (s.rmse.value, s.rmse.low, s.rmse.high)
        + (s.parse_rate, s.mode_share)
        for name, s in scores.items()
    ]
    schema = {c: pl.String if c == "model" else pl.Int64 if c == "rows" else pl.Float64 for c in COLUMNS}
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
    return float(answers[FALLBACK][0])


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


def write_comparison(table: pl.DataFrame, path: Path) -> None:
    """Write comparison.csv, six decimals, an empty field where there is no interval."""
    with atomic_file(path) as temporary:
        table.write_csv(temporary, float_precision=6)


def print_comparison(table: pl.DataFrame) -> None:
    """The table on the terminal, best MAE first, our own models in bold."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    rows = table["rows"][0] if table.height else 0
    title = f"{rows} held-out rows, 95 % intervals over users; mode: share of the commonest prediction"
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("model", no_wrap=True)
    for heading in ("MAE", "RMSE", "parsed", "mode"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in table.sort("mae", maintain_order=True).iter_rows(named=True):
        shown.add_row(
            row["model"],
            _with_interval(row["mae"], row["mae_low"], row["mae_high"]),
            _with_interval(row["rmse"], row["rmse_low"], row["rmse_high"]),
            f"{row['parse_rate']:.1%}",
            f"{row['mode_share']:.1%}",
            style=None if is_baseline(row["model"]) else "bold cyan",
        )
    Console().print(shown)


def _with_interval(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} {low:.3f}–{high:.3f}"


def _order(name: str) -> tuple[bool, bool, str]:
    return is_baseline(name), name != "untrained", name


def _require_rows(examples: pl.DataFrame) -> None:
    if examples.is_empty():
        raise UserError("no rows to compare on: the test split is empty; prepare the data with a larger test share")


def _read(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file; run the evaluation again") from error
