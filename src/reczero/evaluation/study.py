"""Anything against anything on a data set's held-out rows: the same rows, the same draws, the same rule for failures.

`docs/evaluation.md` has the protocol.
"""

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from reczero import __version__
from reczero.data import Dataset
from reczero.errors import UserError
from reczero.files import atomic_file, write_json, writing
from reczero.reasoning.scale import Scale

from . import metrics
from .asking import SLIM, Asking, Entry, Plan, Report, Say
from .baselines import FALLBACK
from .compare import shown_rows, table_of, user_codes, write_comparison
from .findings import latex
from .slices import sliced

SLICE_ROUNDS = 2_000  # of the many intervals by slice
PAIRS = (
    "model", "against", "mae", "mae_low", "mae_high", "p_mae", "p_mae_holm", "rmse", "rmse_low", "rmse_high", "p_rmse",
    "p_rmse_holm", "relative_mae", "effect",
)  # fmt: skip


def study(data: Dataset, out: Path, plan: Plan, say: Say, report: Report, command: str | None = None) -> dict[str, Any]:
    """Compare, and write the folder `out`: comparison.csv, .json and .tex, cold_start.csv, pairs.csv, slices.csv,
    test_examples.parquet, predictions/. Returns what comparison.json holds. Raises UserError."""
    only = None if plan.only is None else pl.col("example_id").is_in(plan.only.implode())
    test = data.examples(plan.split, cold_start=None, columns=SLIM, where=only, limit=plan.rows)
    enough = (pl.col("user_count") >= plan.min_user_history) & (pl.col("item_count") >= plan.min_item_history)
    enough &= ~pl.col("cold_start")
    main = test.select(enough).to_series().to_numpy()
    if not main.any():
        if test.is_empty():
            raise UserError(f"{data.path}: has no {plan.split} rows; prepare it with a larger {plan.split} share")
        limits = f"{plan.min_user_history} earlier ratings of its user and {plan.min_item_history} of its item"
        raise UserError(
            f"{data.path}: none of {test.height:,} {plan.split} rows has {limits}, and enough context by the data "
            "set's own rule; lower --min-user-history and --min-item-history, or prepare it with a lower min_context"
        )
    _check_folder(out)
    say(f"data: {data.name}, {main.sum():,} {plan.split} rows with enough context, {(~main).sum():,} cold starts")
    work = _Study(data, out, plan, say, report, test, main, enough)
    work.ask_all()
    return work.write(command)


class _Study(Asking):
    """What came of all answers."""

    # --- what came of it --------------------------------------------------------------------------------------------

    def write(self, command: str | None) -> dict[str, Any]:
        plan = self.plan
        answers = {name: given for entry in self.entries.values() for name, given in entry.given.items()}
        ours = [name for key in (*plan.models, *plan.given) for name in self.entries[key].given]
        table, cold = self._table(answers, self.main), self._table(answers, ~self.main)
        main = self.test.filter(self.main)
        inside = {name: given[..., self.main] for name, given in answers.items()}
        self._check_leaks(main, inside, ours)
        self.say(f"{plan.rounds:,} draws of users for every interval")
        # Of each model its number, and what validation chose: the fewer the pairs, the less must be corrected for. What
        # comes from outside has no validation rows to choose by.
        chosen = {way for decoding in self.decoding.values() for way in decoding["best"].values()}
        chosen |= {way for name in plan.given for way in self.entries[name].given}
        if plan.split == "validation":
            chosen = set(ours)  # here one chooses
        tested = [name for name in ours if name in plan.models or name in chosen]
        pairs = self._pairs(main, {n: x for n, x in inside.items() if n not in ours or n in tested}, tested)
        if (least := 2 * pairs.height / (plan.rounds + 1)) > 0.05:  # the smallest p that Holm's correction can leave
            self._warn(
                f"{plan.rounds:,} draws are too few for {pairs.height} pairs: no corrected p can fall below "
                f"{min(1.0, least):.2g}; raise --rounds"
            )
        lists = self.data.items(("item_id", "categories"))
        shown = main.with_columns(shown=pl.min_horizontal("user_count", self.data.info["settings"]["history"]))
        cut = sliced(shown, inside, self.median, lists, min(plan.rounds, SLICE_ROUNDS), plan.seed)
        reliability = {
            name: _calibration(entry, main, self.main, self.scale)
            for name, entry in self.entries.items()
            if entry.distribution is not None
        }
        result = {
            "data": {"name": self.data.name, "fingerprint": self.data.fingerprint},
            "scale": self.scale.to_dict(),
            "rows": {"main": int(self.main.sum()), "cold_start": int((~self.main).sum())},
            "command": command,
            "settings": asdict_plan(plan) | {"predictions": self._keys},
            "fallback": self.median,
            "baseline_settings": {name: s for name, s in self.settings.items() if s},
            "decoding": self.decoding,
            "warnings": self.warnings,
            "comparison": table.to_dicts(),
            "cold_start": cold.to_dicts(),
            "pairs": pairs.to_dicts(),
            "slices": cut.to_dicts(),
            "calibration": reliability,
            "probes": self.probes,
            "versions": _versions(),
        }  # fmt: skip
        with writing(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        write_comparison(table, self.out / "comparison.csv")
        for name, part in (("cold_start", cold), ("pairs", pairs), ("slices", cut)):
            write_comparison(part, self.out / f"{name}.csv")
        self._write_examples(main, lists)
        if plan.anonymise:
            self._drop_others()
        write_json(self.out / "comparison.json", result)
        with atomic_file(self.out / "comparison.tex") as file:
            file.write_text(latex(table), "utf-8")
        return result

    def _write_examples(self, main: pl.DataFrame, lists: pl.DataFrame) -> None:
        """test_examples.parquet: what the report shows of the main table's rows; a prompt of those that it shows."""
        titles = self.data.items(("item_id", "title"))
        rows = main.select(SLIM).join(lists, on="item_id", how="left", maintain_order="left")
        rows = rows.join(titles, on="item_id", how="left", maintain_order="left")
        prompts: dict[str, str] = {}
        if self.plan.models:
            shown = rows[shown_rows(rows.height).tolist()]
            texts = next(iter(self.plan.models.values()))[0].prompts(shown)
            prompts = dict(zip(shown["example_id"], texts, strict=True))
        prompt = rows["example_id"].replace_strict(prompts, default=None, return_dtype=pl.String)
        self._write(rows.with_columns(prompt=prompt), "test_examples.parquet")

    def _table(self, answers: Mapping[str, np.ndarray], inside: np.ndarray) -> pl.DataFrame:
        rows = self.test.filter(inside)
        if rows.is_empty():
            return table_of(rows, {}, self.median, 0, 0)
        part = {name: given[..., inside] for name, given in answers.items()}
        table = table_of(rows, part, self.median, self.plan.rounds, self.plan.seed)
        truth, grid = rows["rating"].cast(pl.Float64).to_numpy(), self.scale.grid()
        further: dict[str, list[float | None]] = {"rps": [], "calibration_error": [], "tokens": [], "seconds": []}
        by_name = {name: entry for entry in self.entries.values() for name in entry.given}
        for name in table["model"]:
            entry = by_name[name]
            sampled = re.search(r"-of-\d+$", name)  # of other answers than the one that was weighed and timed
            distribution = None if sampled else entry.distribution
            if distribution is None:
                further["rps"].append(None)
                further["calibration_error"].append(None)
            else:
                known = with_fallback(distribution[..., inside, :].reshape(-1, len(grid)), self.median, self.scale)
                true = np.resize(truth, len(known))  # once for each run
                further["rps"].append(float(metrics.ranked_probability_score(true, known, grid).mean()))
                further["calibration_error"].append(metrics.calibration(true, known, grid).error)
            for cost, value in entry.costs.items():
                further[cost].append(None if sampled else value)
        return table.with_columns(**{name: pl.Series(values, dtype=pl.Float64) for name, values in further.items()})

    def _pairs(self, rows: pl.DataFrame, answers: Mapping[str, np.ndarray], ours: Sequence[str]) -> pl.DataFrame:
        """Each of ours against every baseline and against each other; without any, the rounded sum of averages."""
        others = [name for name in answers if name not in ours]
        pairs = [(a, b) for i, a in enumerate(ours) for b in (*ours[i + 1 :], *others)]
        if not ours:
            stands = [name for name in ("additive-rounded", "additive", FALLBACK) if name in others][0]
            pairs = [(stands, b) for b in others if b != stands]
        truth = rows["rating"].cast(pl.Float64).to_numpy()
        found = metrics.paired_differences(
            truth, answers, pairs, user_codes(rows), self.median, self.plan.rounds, self.plan.seed
        )
        corrected = [metrics.holm([getattr(d, p) for d in found]) for p in ("p_mae", "p_rmse")]
        lines = [
            (a, b, *asdict(d.mae).values(), d.p_mae, by_mae, *asdict(d.rmse).values(), d.p_rmse, by_rmse)
            + (d.relative_mae.value, d.effect)
            for (a, b), d, by_mae, by_rmse in zip(pairs, found, *corrected, strict=True)
        ]
        kinds = [pl.String] * 2 + [pl.Float64] * (len(PAIRS) - 2)
        return pl.DataFrame(lines, schema=dict(zip(PAIRS, kinds, strict=True)), orient="row").fill_nan(None)

    def _check_leaks(self, rows: pl.DataFrame, answers: Mapping[str, np.ndarray], ours: Sequence[str]) -> None:
        """Warns of answers that are too good for anyone who did not see the truth."""
        truth = rows["rating"].cast(pl.Float64).to_numpy()
        errors = {n: metrics.mae(truth, metrics.answered(x, self.median)) for n, x in answers.items() if n not in ours}
        best = min(errors, key=lambda name: errors[name])
        for name in ours:
            answered = np.isfinite(answers[name])
            given, true = answers[name][answered], np.broadcast_to(truth, answered.shape)[answered]
            if not len(given):
                continue
            error, right = metrics.mae(true, given), float((np.abs(given - true) < self.scale.step / 2).mean())
            if error < errors[best] / 2 or right > 0.9:
                self._warn(
                    f"{name}: may have seen the truth: its answers' MAE is {error:.3f}, {right:.0%} of them fall on "
                    f"the true rating; the best baseline ({best}) has {errors[best]:.3f}"
                )


def with_fallback(distribution: np.ndarray, fallback: float, scale: Scale) -> np.ndarray:
    """(rows, ratings) with certainty of the fallback where there is no distribution."""
    grid = np.asarray(scale.grid())
    certain = (np.abs(grid - fallback) == np.abs(grid - fallback).min()).astype(float)
    return np.where(np.isnan(distribution).any(1, keepdims=True), certain / certain.sum(), distribution)


def asdict_plan(plan: Plan) -> dict[str, Any]:
    """The settings of a comparison as JSON holds them."""
    names = (
        "split", "rows", "min_user_history", "min_item_history", "validation", "refit", "tune", "samples", "probe",
        "rounds", "seed", "anonymise",
    )  # fmt: skip
    return {
        "models": {name: [run.key for run in runs] for name, runs in plan.models.items()},
        "baselines": list(plan.baselines),
    } | {name: getattr(plan, name) for name in names}


def _calibration(entry: Entry, rows: pl.DataFrame, inside: np.ndarray, scale: Scale) -> dict[str, Any]:
    assert entry.distribution is not None
    known = entry.distribution[..., inside, :].reshape(-1, len(scale.grid()))
    some = ~np.isnan(known).any(1)
    truth = np.resize(rows["rating"].cast(pl.Float64).to_numpy(), len(known))  # once for each run
    curve = metrics.calibration(truth[some], known[some], scale.grid())
    return {"forecast": curve.forecast.tolist(), "observed": curve.observed.tolist(), "count": curve.count.tolist()}


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; choose another name")
    ours = (out / "comparison.json").exists() or (out / "predictions" / "keys.json").exists()
    if out.is_dir() and any(out.iterdir()) and not ours:
        raise UserError(f"--out {out}: is not empty and no comparison; choose another name")


def _versions() -> dict[str, str]:
    found = {"reczero": __version__, "python": platform.python_version()}
    for name in ("numpy", "polars", "scikit-learn", "scikit-surprise", "torch", "transformers"):
        try:
            found[name] = version(name)
        except ImportError:
            continue
    return found
