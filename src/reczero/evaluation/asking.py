"""What a comparison asks, and of whom: every entry's answers to a data set's held-out rows.

What each entry answered stays in `predictions/` of the folder, so that a second call, or one after a kill, does not ask
again.
"""

import hashlib
import json
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import polars as pl

from reczero import __version__
from reczero.data import Dataset, spread
from reczero.errors import UserError
from reczero.files import atomic_file, write_json
from reczero.reasoning import Fact, Scale

from . import metrics, tuning
from .baselines import FALLBACK, MEDIAN, NAMES, REFITTED, baseline, forms, is_baseline, median_of
from .compare import align
from .features import with_facts, with_features
from .findings import PROBES, probed
from .predictor import Baseline, CannotRun, Forecast

COLLABORATIVE = ("biased-mf", "svd++", "item-knn", "user-knn")
EXPECTED = "-expected"
OF = "@"  # in the names of tables that are not an entry's own answers; no name may hold it
FEW_ANSWERS = 0.5  # a smaller share of answers from outside is warned of
SLACK = 1e-3  # by which a distribution from outside may miss a sum of 1
PORTION = 512  # rows that a language model is asked before they are written
_NAME = re.compile(r"[\w.+-]{1,100}")
SLIM = (
    "example_id", "user_id", "item_id", "rating", "timestamp", "cold_start", "user_avg", "item_avg", "user_count",
    "item_count",
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

    split: test; or validation, to choose by: then baselines are fitted on the training rows alone, and no other rows
    say how a model is decoded. models: name -> a language model, or its runs (seeds), which are pooled. baselines:
    names of `baselines.NAMES`. given: name -> a table as `read_predictions_file` makes it. only: example ids, where not
    all rows are meant. rows: only so many of them, spread evenly over time.
    validation: rows that choose each model's decoding. refit: also fit collaborative baselines anew before each of so
    many stretches of the test period; 0 does not. tune: choose their settings on validation rows, and keep them.
    samples: sampled answers of each model whose mean and median are further decodings. probe: rows of the main table on
    which each model is asked again with what it reads altered.
    """

    split: Literal["test", "validation"] = "test"
    models: Mapping[str, Sequence[Entrant]] = field(default_factory=dict)
    baselines: Sequence[str] = ()
    given: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    only: pl.Series | None = None
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
        if self.tune and self.split == "validation":
            raise UserError("--tune: chooses on validation rows, so it is for the test split")
        for name in (*self.models, *self.given):
            if not _NAME.fullmatch(name):
                raise UserError(f"name {name!r}: letters, digits and . _ + - only, such as --predictions mine=FILE")
            if is_baseline(name) or is_baseline(f"{name}{MEDIAN}"):
                raise UserError(f"name {name!r}: is a baseline's; choose another, such as --predictions mine=FILE")
        weighed = [name for name, table in self.given.items() if "distribution" in table.columns]
        for name in (*self.models, *weighed):
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
class Entry:
    """One entry's answers to all test rows, main and cold. given: what it is called -> (rows,), or (runs, rows);
    distribution: the same with a last axis, or None."""

    given: dict[str, np.ndarray]
    distribution: np.ndarray | None
    costs: dict[str, float | None]


class Asking:
    """The answers of all that a `Plan` names; `entries` holds them."""

    def __init__(
        self, data: Dataset, out: Path, plan: Plan, say: Say, report: Report, test: pl.DataFrame, main: np.ndarray,
        enough: pl.Expr,
    ):  # fmt: skip
        self.data, self.out, self.plan, self.say, self.report = data, out, plan, say, report
        self.test, self.main, self.enough = test, main, enough
        self.scale: Scale = data.scale
        self.hidden = test.drop("rating")
        self.entries: dict[str, Entry] = {}
        self.settings: tuning.Settings = {}
        self.decoding: dict[str, dict[str, Any]] = {}
        self.probes: dict[str, list[dict[str, Any]]] = {}
        self.warnings: list[str] = []
        self._keys: dict[str, str] = {}  # of given predictions: a hash of them
        self._used: set[str] = set()  # tables of predictions that belong to this comparison
        self.train = data.examples("train", cold_start=None, columns=SLIM)
        self.validation = data.examples("validation", cold_start=None, columns=SLIM)
        if plan.split == "validation":
            self.validation = self.validation.clear()
            self._warn(
                "these are validation rows: what is chosen by them, checkpoints too, does better here than elsewhere"
            )
        if self.train.is_empty():
            raise UserError(f"{data.path}: has no training rows to fit baselines on; prepare it with some")
        self.median = float(np.median(self.before_test["rating"].to_numpy()))

    @property
    def before_test(self) -> pl.DataFrame:
        """All rated examples that lie before the period that is compared on."""
        return pl.concat([self.train, self.validation])

    # --- answers ----------------------------------------------------------------------------------------------------

    def ask_all(self) -> None:
        for name, runs in self.plan.models.items():
            self._ask_model(name, runs)
        for name, table in self.plan.given.items():
            self._take(name, table)
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
        if facts := sorted({fact for kind in kinds.values() for fact in kind.facts}):
            self._add_facts(facts)
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

    def _take(self, name: str, table: pl.DataFrame) -> None:
        """What was predicted elsewhere, and the reasoning for the report where the table tells it."""
        prediction = self._sensible(name, align(self.test, table, name))
        forecast = Forecast(prediction, self._distribution(name, table, np.isfinite(prediction)))
        written = table.select("example_id", *(c for c in ("reasoning", "text") if c in table.columns))

        def make() -> pl.DataFrame:
            own = _as_table(self.test, forecast, name, "given", None)
            return own.join(written, on="example_id", how="left", maintain_order="left")

        numbers = [None if part is None else part.tolist() for part in forecast]
        key = self._keys[name] = _hash(numbers, written.columns, written.rows())
        self._kept(name, key, self.test, make)
        self.entries[name] = Entry(decoded(name, forecast, self.scale), forecast.distribution, _costs(table))

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
            self._warn(
                f"{name}: only {share:.0%} of the {self.plan.split} rows have an answer; all others count as failures"
            )
        return given

    def _distribution(self, name: str, table: pl.DataFrame, answered: np.ndarray) -> np.ndarray | None:
        """What a table from outside tells of each rating's probability, (rows, ratings); None if it tells nothing, NaN
        where a row has no answer or none is told of it. Raises UserError for one that is no distribution."""
        if "distribution" not in table.columns or not table["distribution"].count():
            return None
        found = self.test.select("example_id").join(
            table.select("example_id", "distribution"), on="example_id", how="left", maintain_order="left"
        )
        size = len(self.scale.grid())
        given = np.full((len(answered), size), np.nan)
        for place, (example, row) in enumerate(found.rows()):
            if not answered[place] or row is None:
                continue
            sound = len(row) == size and all(p is not None and 0 <= p <= 1 + SLACK for p in row)
            if not sound or abs(sum(row) - 1) > SLACK:
                raise UserError(
                    f"predictions of {name}: the distribution of {example!r} is not {size} probabilities, one for each "
                    f"rating from {self.scale.min:g} to {self.scale.max:g}, that sum to 1; mend or drop the column"
                )
            given[place] = row
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

    def _add_facts(self, facts: Sequence[Fact]) -> None:
        began = time.perf_counter()
        self.train = with_facts(self.data, self.train, "train", facts)
        self.validation = with_facts(self.data, self.validation, "validation", facts)
        self.test = with_facts(self.data, self.test, self.plan.split, facts)
        self.hidden = self.test.drop("rating")
        self.say(f"facts of all rows: {time.perf_counter() - began:.1f} s")

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
            self.entries[called] = Entry(given, forecast.distribution, _costs(table))

    def _fitted(self, kind: type[Baseline], settings: dict[str, Any]) -> Forecast:
        rows = self.validation.filter(self.enough) if kind.combines else self.before_test
        return kind(**settings).fit(rows if rows.height else self.before_test, self.scale).predict(self.hidden)

    def _refitted(self, kind: type[Baseline], settings: dict[str, Any], steps: int) -> Forecast:
        """Fitted anew before each of `steps` stretches of the test rows, on all that is strictly earlier than it (where
        nothing is: on what lies before the test period)."""
        times = self.test["timestamp"].to_numpy()
        all_test = self.data.examples(self.plan.split, cold_start=None, columns=SLIM)
        every = pl.concat([self.before_test.select(SLIM), all_test])
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
        self.entries[name] = Entry(given, distribution, costs)
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
            progress = self._progress(name, self.plan.split if part == "test" else part, rows.height)

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
        rows = spread(self.test.filter(self.main), self.plan.probe)

        def make() -> pl.DataFrame:
            return model.probed(rows, self.plan.seed, self._progress(name, "probes", rows.height * len(PROBES)))

        table = self._kept(f"{name}{OF}probes", _hash(model.key, self.plan.seed), rows, make, len(PROBES))
        self.probes[name] = probed(rows, table, self.scale, self.median, self.plan.rounds, self.plan.seed)

    def _validation_rows(self) -> pl.DataFrame:
        if not self.plan.validation or self.plan.split == "validation":
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


def decoded(name: str, forecast: Forecast, scale: Scale) -> dict[str, np.ndarray]:
    """A model's number as it wrote it, and the mean and the median of its distribution (for RMSE, for MAE)."""
    given = {name: forecast.prediction}
    if forecast.distribution is not None:
        given[f"{name}{EXPECTED}"] = forecast.distribution @ np.asarray(scale.grid())
        given[f"{name}{MEDIAN}"] = median_of(forecast.distribution, scale)
    return given


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


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
