"""Anything against anything on a data set's held-out rows: the same rows, the same draws, the same rule for failures.

`docs/evaluation.md` has the protocol. What each entry answered stays in `predictions/` of the folder, so that a second
call, or one after a kill, does not ask again.
"""

import hashlib
import json
import platform
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl

from reczero import __version__
from reczero.data import Dataset
from reczero.errors import UserError
from reczero.files import atomic_file, write_json, writing
from reczero.reasoning.scale import Scale

from . import metrics, tuning
from .baselines import FALLBACK, MEDIAN, NAMES, REFITTED, baseline, forms, is_baseline, median_of
from .compare import align, shown_rows, table_of, user_codes, write_comparison
from .features import with_features
from .findings import PROBES, latex, probed
from .predictor import Baseline, CannotRun, Forecast
from .slices import sliced

SLICE_ROUNDS = 2_000  # of the many intervals by slice
COLLABORATIVE = ("biased-mf", "svd++", "item-knn", "user-knn")
EXPECTED = "-expected"
OF = "@"  # in the names of tables that are not an entry's own answers; no name may hold it
FEW_ANSWERS = 0.5  # a smaller share of answers from outside is warned of
PORTION = 512  # rows that a language model is asked before they are written
_NAME = re.compile(r"[\w.+-]{1,100}")
_SLIM = (
    "example_id", "user_id", "item_id", "rating", "timestamp", "cold_start", "user_avg", "item_avg", "user_count",
    "item_count",
)  # fmt: skip
PAIRS = (
    "model", "against", "mae", "mae_low", "mae_high", "p_mae", "p_mae_holm", "rmse", "rmse_low", "rmse_high", "p_rmse",
    "p_rmse_holm", "relative_mae", "effect",
)  # fmt: skip

Say = Callable[[str], None]
Report = Callable[[dict[str, Any]], None]


class Entrant(Protocol):
    """A language model as the comparison asks it: rows in, a table of predictions out (docs/evaluation.md)."""

    key: str  # a hash of all that its answers depend on

    def table(self, examples: pl.DataFrame, progress: Callable[[int], None]) -> pl.DataFrame:
        """example_id, prediction, parsed, distribution and what else it tells, a row for each example, in their
        order."""

    def prompts(self, examples: pl.DataFrame) -> list[str]:
        """What it reads of each row."""

    def sampled(self, examples: pl.DataFrame, answers: int, seed: int, progress: Callable[[int], None]) -> np.ndarray:
        """(rows, answers) ratings of sampled answers, NaN where one is malformed."""

    def probed(self, examples: pl.DataFrame, seed: int, progress: Callable[[int], None]) -> pl.DataFrame:
        """example_id, probe, prediction, distribution: the rows again under each of `PROBES`, in that order."""


@dataclass(frozen=True)
class Plan:
    """What is compared, and how.

    models: name -> a language model, or its runs (seeds), which are pooled. baselines: names of `baselines.NAMES`.
    given: name -> a table with example_id and prediction. rows: only so many test rows, spread evenly over time.
    validation: rows that choose each model's decoding. refit: also fit collaborative baselines anew before each of so
    many stretches of the test period; 0 does not. tune: choose their settings on validation rows, and keep them.
    samples: sampled answers of each model whose mean and median are further decodings. probe: rows of the main table on
    which each model is asked again with what it reads altered.
    """

    models: Mapping[str, Sequence[Entrant]] = field(default_factory=dict)
    baselines: Sequence[str] = ()
    given: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    rows: int | None = None
    min_user_history: int = 5
    min_item_history: int = 5
    validation: int = 500
    refit: int = 0
    tune: bool = False
    samples: int = 0
    probe: int = 0
    rounds: int = metrics.ROUNDS
    seed: int = metrics.SEED
    anonymise: bool = False

    def __post_init__(self) -> None:
        for name in (*self.models, *self.given):
            if not _NAME.fullmatch(name):
                raise UserError(f"name {name!r}: letters, digits and . _ + - only, such as --predictions mine=FILE")
            if is_baseline(name) or is_baseline(f"{name}{MEDIAN}"):
                raise UserError(f"name {name!r}: is a baseline's; choose another, such as --predictions mine=FILE")
        for name in self.models:
            made = re.compile(re.escape(name) + rf"({EXPECTED}|{MEDIAN}|-(mean|median)-of-\d+)")
            if other := next(filter(made.fullmatch, (*self.models, *self.given)), None):
                raise UserError(f"name {other!r}: a decoding of {name} has it; choose another, such as mine=FILE")
        if twice := set(self.models) & set(self.given):
            raise UserError(f"name {min(twice)!r}: stands for two entries; name one of them, such as mine=FILE")
        for name, runs in self.models.items():
            if len({run.key for run in runs}) < len(runs):
                raise UserError(f"--model {name}: the same model stands there twice; pool runs of several seeds")
        if unknown := [name for name in self.baselines if name not in NAMES]:
            raise UserError(f"no baseline {unknown[0]!r}; there are all, averages, {', '.join(NAMES)}")


@dataclass
class _Entry:
    """One entry's answers to all test rows, main and cold. given: what it is called -> (rows,), or (runs, rows);
    distribution: the same with a last axis, or None."""

    given: dict[str, np.ndarray]
    distribution: np.ndarray | None
    costs: dict[str, float | None]


def study(data: Dataset, out: Path, plan: Plan, say: Say, report: Report, command: str | None = None) -> dict[str, Any]:
    """Compare, and write the folder `out`: comparison.csv, .json and .tex, cold_start.csv, pairs.csv, slices.csv,
    test_examples.parquet, predictions/. Returns what comparison.json holds. Raises UserError."""
    test = data.examples("test", cold_start=None, columns=_SLIM, limit=plan.rows)
    enough = (pl.col("user_count") >= plan.min_user_history) & (pl.col("item_count") >= plan.min_item_history)
    enough &= ~pl.col("cold_start")
    main = test.select(enough).to_series().to_numpy()
    if not main.any():
        if test.is_empty():
            raise UserError(f"{data.path}: has no test rows; prepare it with a larger test share")
        limits = f"{plan.min_user_history} earlier ratings of its user and {plan.min_item_history} of its item"
        raise UserError(
            f"{data.path}: none of {test.height:,} test rows has {limits}, and enough context by the data set's own "
            "rule; lower --min-user-history and --min-item-history, or prepare it with a lower min_context"
        )
    _check_folder(out)
    say(f"data: {data.name}, {main.sum():,} test rows with enough context, {(~main).sum():,} cold starts")
    work = _Study(data, out, plan, say, report, test, main, enough)
    work.ask_all()
    return work.write(command)


class _Study:
    def __init__(
        self, data: Dataset, out: Path, plan: Plan, say: Say, report: Report, test: pl.DataFrame, main: np.ndarray,
        enough: pl.Expr,
    ):  # fmt: skip
        self.data, self.out, self.plan, self.say, self.report = data, out, plan, say, report
        self.test, self.main, self.enough = test, main, enough
        self.scale: Scale = data.scale
        self.hidden = test.drop("rating")
        self.entries: dict[str, _Entry] = {}
        self.settings: tuning.Settings = {}
        self.decoding: dict[str, dict[str, Any]] = {}
        self.probes: dict[str, list[dict[str, Any]]] = {}
        self.warnings: list[str] = []
        self._keys: dict[str, str] = {}  # of given predictions: a hash of them
        self._used: set[str] = set()  # tables of predictions that belong to this comparison
        self.train = data.examples("train", cold_start=None, columns=_SLIM)
        self.validation = data.examples("validation", cold_start=None, columns=_SLIM)
        if self.train.is_empty():
            raise UserError(f"{data.path}: has no training rows to fit baselines on; prepare it with some")
        self.median = float(np.median(self.before_test["rating"].to_numpy()))

    @property
    def before_test(self) -> pl.DataFrame:
        """All rated examples that lie before the test period."""
        return pl.concat([self.train, self.validation])

    # --- answers ----------------------------------------------------------------------------------------------------

    def ask_all(self) -> None:
        for name, runs in self.plan.models.items():
            self._ask_model(name, runs)
        for name, table in self.plan.given.items():
            forecast = Forecast(self._sensible(name, align(self.test, table, name)))
            key = self._keys[name] = _hash(forecast.prediction.tolist())
            self._kept(name, key, self.test, partial(_as_table, self.test, forecast, name, "given", None))
            self.entries[name] = _Entry({name: forecast.prediction}, None, _costs(table))
        names = list(dict.fromkeys([*self.plan.baselines, FALLBACK]))
        kinds = {}
        for name in names:
            try:
                kinds[name] = baseline(name)
            except CannotRun as error:
                if self.plan.baselines == tuple(NAMES):  # of "all" those that can run here
                    self._warn(f"left out: {error}")
                else:
                    raise
        stored = tuning.stored(self.data)
        if any(kind.features for kind in kinds.values()):
            self._add_features()
        if any("review" in kind.columns for kind in kinds.values()):
            texts = self.data.interactions(("user_id", "item_id", "review"))
            self.train, self.validation, self.test = (
                rows.join(texts, on=["user_id", "item_id"], how="left", maintain_order="left")
                for rows in (self.train, self.validation, self.test)
            )
            self.hidden = self.test.drop("rating", "review")  # a row's own review tells its rating
        for name, kind in kinds.items():
            if kind.grid and self.plan.tune and self.validation.height:
                stored[name] = self._tune(kind)
            self.settings[name] = stored.get(name, {})
            self._ask_baseline(name, kind)

    def _sensible(self, name: str, given: np.ndarray) -> np.ndarray:
        """Numbers from outside, (rows,): what is further from the scale than it is wide is no answer. Warns of
        failures."""
        low, high = self.scale.min - self.scale.width, self.scale.max + self.scale.width
        absurd = np.isfinite(given) & ((given < low) | (given > high))
        if absurd.any():
            many = f"{absurd.sum():,} predictions are far off the scale, such as {given[absurd][0]:g}"
            self._warn(f"{name}: {many}; they count as failures")
        given = np.where(absurd, np.nan, given)
        if (share := metrics.parse_rate(given)) < FEW_ANSWERS:
            self._warn(f"{name}: only {share:.0%} of the test rows have an answer; all others count as failures")
        return given

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        self.say(f"warning: {text}")

    def _add_features(self) -> None:
        began = time.perf_counter()
        self.train, self.validation, self.test = (
            with_features(self.data, rows) for rows in (self.train, self.validation, self.test)
        )
        self.hidden = self.test.drop("rating")
        self.say(f"as-of numbers of all rows: {time.perf_counter() - began:.1f} s")

    def _tune(self, kind: type[Baseline]) -> dict[str, Any]:
        rows = self.validation.filter(self.enough)
        count = len(list(tuning.candidates(kind)))
        done = 0

        def progress(settings: dict[str, Any], mae: float, rmse: float) -> None:
            nonlocal done
            done += 1
            self.say(f"{kind.name} {settings}: validation MAE {mae:.4f}, RMSE {rmse:.4f} ({done} of {count})")

        chosen = tuning.tune(kind, self.train, rows if rows.height else self.validation, self.scale, progress)
        tuning.keep(self.data, {kind.name: chosen})
        return chosen

    def _ask_baseline(self, name: str, kind: type[Baseline]) -> None:
        settings = self.settings[name]
        learned = self.validation.filter(self.enough)["example_id"].to_list() if kind.combines else None

        def made(refit: int) -> Callable[[], pl.DataFrame]:
            def make() -> pl.DataFrame:
                began = time.perf_counter()
                forecast = self._refitted(kind, settings, refit) if refit else self._fitted(kind, settings)
                seconds = time.perf_counter() - began
                called = f"{name}{REFITTED if refit else ''}"
                self.say(f"{called}: {seconds:.1f} s")
                return _as_table(self.test, forecast, called, "baseline", seconds / max(1, self.test.height))

            return make

        for refit in (0, self.plan.refit) if self.plan.refit and name in COLLABORATIVE else (0,):
            called = f"{name}{REFITTED if refit else ''}"
            key = _hash(name, settings, refit, __version__, learned)
            try:
                table = self._kept(called, key, self.test, made(refit))
            except CannotRun as error:
                self._warn(str(error))
                continue
            forecast = _forecast(table, self.scale)
            given = forms(called, forecast, self.scale)
            self.entries[called] = _Entry(given, forecast.distribution, _costs(table))

    def _fitted(self, kind: type[Baseline], settings: dict[str, Any]) -> Forecast:
        rows = self.validation.filter(self.enough) if kind.combines else self.before_test
        return kind(**settings).fit(rows if rows.height else self.before_test, self.scale).predict(self.hidden)

    def _refitted(self, kind: type[Baseline], settings: dict[str, Any], steps: int) -> Forecast:
        """Fitted anew before each of `steps` stretches of the test rows, on all that is strictly earlier than it (where
        nothing is: on what lies before the test period)."""
        times = self.test["timestamp"].to_numpy()
        all_test = self.data.examples("test", cold_start=None, columns=_SLIM)
        every = pl.concat([self.before_test.select(_SLIM), all_test])
        given = np.full(len(times), np.nan)
        cuts = np.unique(np.sort(times)[(np.arange(steps) * len(times)) // steps])
        for number, low in enumerate(cuts):
            high = cuts[number + 1] if number + 1 < len(cuts) else np.inf
            inside = (times >= low) & (times < high)
            known = every.filter(pl.col("timestamp") < int(low))
            model = kind(**settings).fit(known if known.height else every[: self.before_test.height], self.scale)
            given[inside] = model.predict(self.hidden.filter(inside)).prediction
            self.report({"what": f"refit {kind.name}", "predicted": number + 1, "of": len(cuts)})
        return Forecast(given)

    def _ask_model(self, name: str, runs: Sequence[Entrant]) -> None:
        """The greedy number, what can be read off the distribution, and sampled answers; validation rows say which to
        take."""
        given, distribution, costs = self._asked(name, runs, self.test, "test")
        self.entries[name] = _Entry(given, distribution, costs)
        rows = self._validation_rows()
        if len(given) > 1 and rows.height:
            ways, _, _ = self._asked(name, runs, rows, "validation")
            truth = rows["rating"].cast(pl.Float64).to_numpy()
            scored = {way: metrics.answered(x, self.median) for way, x in ways.items()}
            errors = {way: {"mae": metrics.mae(truth, x), "rmse": metrics.rmse(truth, x)} for way, x in scored.items()}
            best = {figure: min(errors, key=lambda way: errors[way][figure]) for figure in ("mae", "rmse")}
            self.decoding[name] = {"rows": rows.height, "validation": errors, "best": best}
        if self.plan.probe:
            self._probe(name, runs[0])

    def _asked(
        self, name: str, runs: Sequence[Entrant], rows: pl.DataFrame, part: str
    ) -> tuple[dict[str, np.ndarray], np.ndarray | None, dict[str, float | None]]:
        """Way of decoding -> (runs, rows); the distributions (runs, rows, ratings), None if no run has any; the
        costs."""
        ways, distributions, tables = [], [], []
        for number, model in enumerate(runs, 1):
            called = name if number == 1 else f"{name}{OF}run{number}"
            tables.append(self._answers(called, model, rows, part))
            forecast = _forecast(tables[-1], self.scale)
            nothing = np.full((rows.height, len(self.scale.grid())), np.nan)
            distributions.append(nothing if forecast.distribution is None else forecast.distribution)
            found = decoded(name, Forecast(forecast.prediction, distributions[-1]), self.scale)
            ways.append(found | self._samples(name, called, model, rows, part))
        given = {way: np.stack([found[way] for found in ways]) for way in ways[0]}
        distribution = np.stack(distributions)
        if np.isnan(distribution).all():
            del given[f"{name}{EXPECTED}"], given[f"{name}{MEDIAN}"]
        return given, None if np.isnan(distribution).all() else distribution, _costs(pl.concat(tables, how="diagonal"))

    def _progress(self, name: str, what: str, rows: int) -> Callable[[int], None]:
        self.say(f"{name}: {what}, {rows:,} rows")
        return lambda done: self.report({"what": f"{name}, {what}", "predicted": done, "of": rows})

    def _answers(self, name: str, model: Entrant, rows: pl.DataFrame, part: str) -> pl.DataFrame:
        """Greedy answers, portion by portion, so that a kill costs no more than one."""
        called = name if part == "test" else f"{name}{OF}{part}"

        def make() -> pl.DataFrame:
            progress = self._progress(name, part, rows.height)

            def portion(start: int) -> pl.DataFrame:
                part = rows[start : start + PORTION]
                ask = partial(model.table, part, lambda done: progress(start + done))
                return self._kept(f"{called}{OF}{start}", model.key, part, ask)

            return pl.concat([portion(start) for start in range(0, rows.height, PORTION)])

        table = self._kept(called, model.key, rows, make)
        for start in range(0, rows.height, PORTION):
            (self.out / "predictions" / f"{called}{OF}{start}.parquet").unlink(missing_ok=True)
        return table

    def _samples(self, name: str, called: str, model: Entrant, rows: pl.DataFrame, part: str) -> dict[str, np.ndarray]:
        """Mean and median of sampled answers -> (rows,)"""
        if not (count := self.plan.samples):
            return {}

        def make() -> pl.DataFrame:
            progress = self._progress(called, f"{count} samples, {part}", rows.height)
            drawn = model.sampled(rows, count, self.plan.seed, progress)
            return rows.select("example_id", samples=pl.Series(drawn.tolist(), dtype=pl.List(pl.Float64)))

        table = self._kept(f"{called}{OF}samples{count}{OF}{part}", _hash(model.key, self.plan.seed), rows, make)
        drawn = np.array(table["samples"].to_list(), float)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a row without any answer: NaN, a failure
            mean, median = np.nanmean(drawn, 1), np.nanmedian(drawn, 1)
        return {f"{name}-mean-of-{count}": mean, f"{name}-median-of-{count}": median}

    def _probe(self, name: str, model: Entrant) -> None:
        rows = self.data.examples("test", where=self.enough, limit=self.plan.probe)

        def make() -> pl.DataFrame:
            return model.probed(rows, self.plan.seed, self._progress(name, "probes", rows.height * len(PROBES)))

        table = self._kept(f"{name}{OF}probes", _hash(model.key, self.plan.seed), rows, make, len(PROBES))
        self.probes[name] = probed(rows, table, self.scale, self.median, self.plan.rounds, self.plan.seed)

    def _validation_rows(self) -> pl.DataFrame:
        if not self.plan.validation:
            return self.validation.clear()
        return self.data.examples("validation", where=self.enough, limit=self.plan.validation)

    def _kept(
        self, name: str, key: str, rows: pl.DataFrame, make: Callable[[], pl.DataFrame], times: int = 1
    ) -> pl.DataFrame:
        """The table in `predictions/` of what was asked about `rows`, `times` lines each, made unless it is there from
        the same inputs. Its lines are in the order of the rows, which is what counts: its ids may be aliases."""
        self._used.add(name)
        alias = self.plan.seed if self.plan.anonymise else None
        key = _hash(key, self.data.fingerprint, rows["example_id"].to_list(), alias)
        path = self.out / "predictions" / f"{name}.parquet"
        if self._read_keys().get(name) == key and path.is_file():
            try:
                kept = pl.read_parquet(path)
                if kept.height == times * rows.height:
                    return kept
            except (pl.exceptions.PolarsError, OSError):
                pass  # damaged: asked again
        table = make()
        self._write(table, f"predictions/{name}.parquet")
        write_json(self.out / "predictions" / "keys.json", self._read_keys() | {name: key})
        return table

    def _read_keys(self) -> dict[str, str]:
        """What each table was made from; nothing where the file is missing or damaged, and all is asked again."""
        try:
            keys = json.loads((self.out / "predictions" / "keys.json").read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return keys if isinstance(keys, dict) else {}

    def _drop_others(self) -> None:
        """Tables of earlier comparisons in this folder: they may tell whom this one was asked to leave unnamed."""
        for path in (self.out / "predictions").glob("*.parquet"):
            if path.stem not in self._used:
                path.unlink()

    def _write(self, table: pl.DataFrame, name: str) -> None:
        """A table of examples; where it was asked for, numbers in place of user ids."""
        if self.plan.anonymise:
            table = table.with_columns(pl.col("example_id").replace_strict(self._aliases))
            if "user_id" in table.columns:
                table = table.with_columns(user_id=pl.col("example_id").str.extract("^([^:]*):"))
        with atomic_file(self.out / name) as file:
            table.write_parquet(file)

    @cached_property
    def _aliases(self) -> dict[str, str]:
        """example_id -> the same with a number for its user, in an order drawn by the seed."""
        rows = self.data.examples(cold_start=None, columns=["example_id", "user_id", "item_id", "split"])
        rows = rows.filter(pl.col("split") != "train")
        users = rows["user_id"].unique().sort()
        numbers = np.random.default_rng(self.plan.seed).permutation(len(users))
        names = {user: f"user-{number}" for user, number in zip(users, numbers, strict=True)}
        ids = zip(*rows.select("example_id", "user_id", "item_id"), strict=True)
        return {example: f"{names[user]}:{item}" for example, user, item in ids}

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
        # Of each model its number, and what validation chose: the fewer the pairs, the less must be corrected for.
        chosen = {way for decoding in self.decoding.values() for way in decoding["best"].values()}
        tested = [name for name in ours if name in (*plan.models, *plan.given) or name in chosen]
        pairs = self._pairs(main, {n: x for n, x in inside.items() if n not in ours or n in tested}, tested)
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
        rows = main.select(_SLIM).join(lists, on="item_id", how="left", maintain_order="left")
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


def decoded(name: str, forecast: Forecast, scale: Scale) -> dict[str, np.ndarray]:
    """A model's number as it wrote it, and the mean and the median of its distribution (for RMSE, for MAE)."""
    given = {name: forecast.prediction}
    if forecast.distribution is not None:
        given[f"{name}{EXPECTED}"] = forecast.distribution @ np.asarray(scale.grid())
        given[f"{name}{MEDIAN}"] = median_of(forecast.distribution, scale)
    return given


def with_fallback(distribution: np.ndarray, fallback: float, scale: Scale) -> np.ndarray:
    """(rows, ratings) with certainty of the fallback where there is no distribution."""
    grid = np.asarray(scale.grid())
    certain = (np.abs(grid - fallback) == np.abs(grid - fallback).min()).astype(float)
    return np.where(np.isnan(distribution).any(1, keepdims=True), certain / certain.sum(), distribution)


def asdict_plan(plan: Plan) -> dict[str, Any]:
    """The settings of a comparison as JSON holds them."""
    names = (
        "rows", "min_user_history", "min_item_history", "validation", "refit", "tune", "samples", "probe", "rounds",
        "seed", "anonymise",
    )  # fmt: skip
    return {
        "models": {name: [run.key for run in runs] for name, runs in plan.models.items()},
        "baselines": list(plan.baselines),
    } | {name: getattr(plan, name) for name in names}


def _calibration(entry: _Entry, rows: pl.DataFrame, inside: np.ndarray, scale: Scale) -> dict[str, Any]:
    assert entry.distribution is not None
    known = entry.distribution[..., inside, :].reshape(-1, len(scale.grid()))
    some = ~np.isnan(known).any(1)
    truth = np.resize(rows["rating"].cast(pl.Float64).to_numpy(), len(known))  # once for each run
    curve = metrics.calibration(truth[some], known[some], scale.grid())
    return {"forecast": curve.forecast.tolist(), "observed": curve.observed.tolist(), "count": curve.count.tolist()}


def _as_table(rows: pl.DataFrame, forecast: Forecast, name: str, decoding: str, seconds: float | None) -> pl.DataFrame:
    distribution = forecast.distribution
    return rows.select(
        "example_id",
        pl.Series("prediction", forecast.prediction, pl.Float64).fill_nan(None),
        pl.col("rating").cast(pl.Float64),
        parsed=pl.Series(np.isfinite(forecast.prediction)),
        distribution=pl.Series(
            [None] * rows.height if distribution is None else distribution.tolist(), dtype=pl.List(pl.Float64)
        ),
        seconds=pl.lit(seconds, pl.Float64),
        model=pl.lit(name),
        decoding=pl.lit(decoding),
    )


def _forecast(table: pl.DataFrame, scale: Scale) -> Forecast:
    """A table of predictions as arrays; NaN where there is no answer, or no distribution."""
    given = table["prediction"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    given = np.where(table["parsed"].to_numpy(), given, np.nan)
    if "distribution" not in table.columns or not table["distribution"].count():
        return Forecast(given)
    nothing = [float("nan")] * len(scale.grid())
    distribution = np.array([row or nothing for row in table["distribution"].to_list()], float)
    return Forecast(given, np.where(np.isfinite(given)[:, None], distribution, np.nan))


def _costs(table: pl.DataFrame) -> dict[str, float | None]:
    """Tokens and seconds of a prediction, where a table tells them."""
    return {
        name: table[name].cast(pl.Float64).mean() if name in table.columns and table.height else None  # type: ignore[misc]
        for name in ("tokens", "seconds")
    }


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; choose another name")
    ours = (out / "comparison.json").exists() or (out / "predictions" / "keys.json").exists()
    if out.is_dir() and any(out.iterdir()) and not ours:
        raise UserError(f"--out {out}: is not empty and no comparison; choose another name")


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _versions() -> dict[str, str]:
    found = {"reczero": __version__, "python": platform.python_version()}
    for name in ("numpy", "polars", "scikit-learn", "scikit-surprise", "torch", "transformers"):
        try:
            found[name] = version(name)
        except ImportError:
            continue
    return found
