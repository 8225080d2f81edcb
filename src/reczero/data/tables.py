"""From raw columns to typed ones: ids, ratings on their scale, times in Unix seconds, texts. Bad rows are put aside."""

import html
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from reczero.errors import UserError
from reczero.reasoning import Scale

from .raw import RawFile

INTERACTIONS: dict[str, pl.DataType] = {
    "user_id": pl.String(),
    "item_id": pl.String(),
    "rating": pl.Float64(),
    "timestamp": pl.Int64(),
    "review": pl.String(),
    "summary": pl.String(),
}
ITEMS: dict[str, pl.DataType] = {
    "item_id": pl.String(),
    "title": pl.String(),
    "categories": pl.List(pl.String()),
    "creator": pl.String(),
    "price": pl.String(),
    "description": pl.String(),
}

# Unix seconds of the years 1 to 9999: what a date can show.
_FIRST, _LAST = -62_135_596_800, 253_402_300_799
_OLDEST_DATE = -2_208_988_800  # 1900: before it stand years of two digits, misread
_UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_DATES = (
    "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M", "%Y-%m-%d", "%Y/%m/%d", "%Y/%m/%d %H:%M:%S", "%d %B %Y", "%d %b %Y",
    "%B %d, %Y", "%b %d, %Y", "%m %d, %Y",
)  # fmt: skip


# --- the scale -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScaleRule:
    """What is known of a rating scale before its ratings are read: all, its ends, or which ones are likely."""

    low: float = -math.inf
    high: float = math.inf
    step: float | None = None
    # The ends of scales in use, the narrower first; which of them is meant shows when all ratings are read.
    likely: tuple[tuple[float, float], ...] = (
        (1, 5), (0.5, 5), (0, 5), (1, 7), (1, 10), (0.5, 10), (0, 10), (-1, 1), (-10, 10), (1, 100), (0, 100)
    )  # fmt: skip

    @classmethod
    def of(cls, scale: Scale) -> "ScaleRule":
        return cls(scale.min, scale.max, scale.step, ())

    @classmethod
    def parse(cls, text: str) -> "ScaleRule":
        """`MIN-MAX` or `MIN-MAX:STEP`, such as 1-5 or 0.5-5:0.5. UserError for anything else."""
        number = r"-?[0-9]+(?:\.[0-9]+)?"
        match = re.fullmatch(rf"\s*({number})-({number})(?::({number}))?\s*", str(text))
        if match:
            low, high, step = (None if part is None else float(part) for part in match.groups())
            try:
                Scale(low, high, min(1.0, high - low) if step is None else step)  # type: ignore[arg-type, operator]
                return cls(low, high, step, ())  # type: ignore[arg-type]
            except ValueError:
                pass
        raise UserError(f"scale {text!r}: not a rating scale; write MIN-MAX or MIN-MAX:STEP, such as 1-5 or 0.5-5:0.5.")

    @property
    def settled(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high) and not self.likely

    def settle(self, ratings: pl.Series) -> Scale:
        """The scale of these ratings (all within `low` and `high`). UserError where no likely one holds them."""
        low, high = self.low, self.high
        found = ratings.unique().to_numpy()
        if not self.settled:
            fitting = [ends for ends in self.likely if ends[0] <= found.min() and found.max() <= ends[1]]
            if not fitting:
                raise UserError(
                    f"ratings run from {found.min():g} to {found.max():g}, which is no usual scale; "
                    "name it with --scale MIN-MAX[:STEP]."
                )
            low, high = fitting[0]
        if self.step is not None:
            return Scale(low, high, self.step)
        for step in (1.0, 0.5, 0.25, 0.2, 0.1, 0.05):
            places = (found - low) / step
            if step <= high - low and (abs(places - places.round()) < 1e-6).all():
                return Scale(low, high, step)
        return Scale(low, high, min(0.01, high - low))


# --- times -----------------------------------------------------------------------------------------------------------


@dataclass
class Clock:
    """Turns a column of times into Unix seconds. What kind of times they are is settled by the first ones read.

    `asked`: s, ms, us or ns since 1970, a strftime format, or None to find out. `found` says what it was, in words.
    """

    asked: str | None = None
    found: str | None = None
    _unit: str | None = field(default=None, init=False)

    def seconds(self, times: pl.Series) -> pl.Series:
        """Int64 seconds, rounded down; null where there is no time or it can't be read. Dates are in UTC."""
        if times.dtype.is_temporal():
            self.found = "dates"
            return (
                times.cast(pl.Datetime("us")).dt.epoch("s").alias(times.name)
                if times.dtype != pl.Time
                else _none(times)
            )
        if times.dtype == pl.Object:
            times = pl.Series(times.name, [None if t is None else str(t) for t in times.to_list()], pl.String)
        if times.dtype == pl.String:
            times = times.str.strip_chars()
            times = times.set(times == "", None)
        if self.asked is not None and self.asked not in _UNITS:
            self.found = f"dates as {self.asked}"
            return self._dates(times.cast(pl.String), (self.asked,))
        numbers = times.cast(pl.Float64, strict=False) if not times.dtype.is_numeric() else times.cast(pl.Float64)
        if self._unit or 2 * numbers.count() >= times.count():  # some of them may be garbled
            return self._numbers(times, numbers)
        self.found = self.found or "dates"
        return self._dates(times, _DATES)

    def _numbers(self, times: pl.Series, numbers: pl.Series) -> pl.Series:
        finite = numbers.filter(numbers.is_finite())
        if self._unit is None and len(finite):
            self._unit = self.asked or _magnitude(finite)
            named = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
            self.found = f"Unix {named[self._unit]}" if self._unit in named else "dates as %Y%m%d"
        if self._unit == "%Y%m%d":
            return self._dates(numbers.cast(pl.Int64, strict=False).cast(pl.String), ("%Y%m%d",))
        per_second = _UNITS[self._unit or "s"]
        # Whole numbers exactly; others by way of floats.
        whole = times.cast(pl.Int64, strict=False) if not times.dtype.is_float() else _none(times)
        floats = numbers.set(~numbers.is_between(_FIRST * per_second, _LAST * per_second), None)
        seconds = (whole // per_second).fill_null((floats / per_second).floor().cast(pl.Int64))
        return seconds.set(~seconds.is_between(_FIRST, _LAST), None)

    @staticmethod
    def _dates(times: pl.Series, formats: tuple[str, ...]) -> pl.Series:
        """The first format that fits each; later ones are tried only on what is left."""
        read = _none(times)
        for form in formats:
            if read.null_count() == times.null_count():
                break
            left = pl.when(pl.Series(read).is_null()).then(pl.Series(times))
            column = pl.select(left.alias(times.name)).to_series()
            found = column.str.to_datetime(form, time_unit="us", strict=False)
            read = read.fill_null(found.dt.epoch("s"))
        return read.set(read < _OLDEST_DATE, None)


def _none(like: pl.Series) -> pl.Series:
    return pl.Series(like.name, [None], pl.Int64).new_from_index(0, len(like))


def _magnitude(numbers: pl.Series) -> str:
    """The unit in which these numbers are of our time; days written as one number (20180707) are known too."""
    size = numbers.abs().median()
    assert isinstance(size, float)
    days = (numbers.is_between(19000101, 21001231) & (numbers % 100).is_between(1, 31)).all()
    if days and (numbers // 100 % 100).is_between(1, 12).all():
        return "%Y%m%d"
    return "s" if size < 1e11 else "ms" if size < 1e14 else "us" if size < 1e17 else "ns"


# --- interactions -----------------------------------------------------------------------------------------------------


def text_of(value: Any) -> str | None:
    """A value as text: whole floats without their .0, lists joined by spaces; None for what is not there."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float):
        return (
            None if math.isnan(value) else str(int(value)) if value.is_integer() and abs(value) < 2**53 else str(value)
        )
    if isinstance(value, (list, tuple, pl.Series)):
        return " ".join(part for part in map(text_of, value) if part and part.strip())
    return str(value)


def _texts(column: pl.Series) -> pl.Series:
    if column.dtype == pl.String:
        return column
    if column.dtype.is_integer() or column.dtype in (pl.Categorical, pl.Enum):
        return column.cast(pl.String)
    return pl.Series(column.name, [text_of(value) for value in column.to_list()], pl.String)


def _blank_to_null(column: pl.Series) -> pl.Series:
    return column.set(column.str.strip_chars() == "", None)


def _unescaped(column: pl.Series) -> pl.Series:
    """`&amp;` and its like, read."""
    if not column.str.contains("&", literal=True).any():
        return column
    return pl.Series(column.name, [v and html.unescape(v) for v in column.to_list()], pl.String)


def _surrogates_apart(frame: pl.DataFrame) -> pl.DataFrame:
    return frame


@dataclass
class Checker:
    """Types batches of raw interactions, and puts rows aside that lack or garble what is needed.

    timed: False where the table has no times at all; all rows then have the time 0.
    """

    scale: ScaleRule
    file: RawFile
    clock: Clock = field(default_factory=Clock)
    timed: bool = True
    unescape: bool = False

    def __call__(self, raw: pl.DataFrame) -> pl.DataFrame:
        """The good rows, with the columns of `INTERACTIONS`."""
        n = raw.height

        def given(name: str) -> pl.Series:
            return raw[name] if name in raw.columns else pl.Series(name, [None], pl.String).new_from_index(0, n)

        def told(name: str) -> pl.Series:
            """As given; blank text is nothing."""
            column = given(name)
            return _blank_to_null(column) if column.dtype == pl.String else column

        texts = ("user_id", "item_id", "review", "summary")
        columns = {name: _blank_to_null(_texts(given(name))) for name in texts}
        if self.unescape:
            columns |= {name: _unescaped(columns[name]) for name in ("review", "summary")}
        columns["rating"] = _numbers(told("rating"))
        columns["timestamp"] = (
            self.clock.seconds(told("timestamp")) if self.timed else pl.Series("timestamp", [0]).new_from_index(0, n)
        )
        frame = pl.DataFrame([columns[name] for name in INTERACTIONS])
        present = {name: told(name).is_not_null() for name in ("rating", "timestamp")}
        scale = f"{self.scale.low:g}-{self.scale.high:g}"
        reason = frame.select(
            pl.when(pl.col("user_id").is_null())
            .then(pl.lit("no user"))
            .when(pl.col("item_id").is_null())
            .then(pl.lit("no item"))
            .when(pl.col("rating").is_null())
            .then(pl.when(present["rating"]).then(pl.lit("rating is not a number")).otherwise(pl.lit("no rating")))
            .when(~pl.col("rating").is_between(self.scale.low, self.scale.high))
            .then(pl.lit(f"rating off the scale {scale}"))
            .when(pl.col("timestamp").is_null())
            .then(pl.when(present["timestamp"]).then(pl.lit("time can't be read")).otherwise(pl.lit("no time")))
        ).to_series()
        bad = reason.is_not_null()
        if bad.any():
            for at in bad.arg_true().to_list():
                self.file.bad_row(raw, at, reason[at])
            frame = frame.filter(~bad)
        return frame


def _numbers(column: pl.Series) -> pl.Series:
    """Finite floats; null for all else."""
    if column.dtype == pl.Object:
        column = pl.Series(column.name, [None if v is None else str(v) for v in column.to_list()], pl.String)
    if column.dtype == pl.String:
        column = column.str.strip_chars()
    if column.dtype == pl.Boolean or column.dtype.is_temporal() or column.dtype.is_nested():
        return pl.Series(column.name, [None], pl.Float64).new_from_index(0, len(column))
    numbers = column.cast(pl.Float64, strict=False)
    return numbers.set(~numbers.is_finite(), None)


# --- items --------------------------------------------------------------------------------------------------------


def labels(value: Any) -> list[str]:
    """Categories: a list of any depth, flattened, or one text cut at | or at commas; each once, in order."""
    if isinstance(value, (list, tuple, pl.Series)):
        parts = [part for inner in value for part in labels_of_one(inner)]
    elif isinstance(value, str):
        parts = value.split("|") if "|" in value else value.split(",")
    else:
        parts = [text_of(value) or ""]
    return list(dict.fromkeys(part for part in (html.unescape(p).strip() for p in parts) if part))


def labels_of_one(value: Any) -> list[str]:
    """An entry of a list of categories: itself a list, or one label with whatever commas it has."""
    return labels(value) if isinstance(value, (list, tuple)) else [text_of(value) or ""]


def check_items(raw: pl.DataFrame, file: RawFile, unescape: bool = False) -> pl.DataFrame:
    """Typed rows of the item table, with the columns of `ITEMS`; rows without an id are put aside."""
    n = raw.height

    def given(name: str) -> pl.Series:
        return raw[name] if name in raw.columns else pl.Series(name, [None], pl.String).new_from_index(0, n)

    columns = {name: _blank_to_null(_texts(given(name))) for name in ITEMS if name != "categories"}
    if unescape:
        columns |= {name: _unescaped(columns[name]) for name in ("title", "creator", "price", "description")}
    columns["categories"] = pl.Series(
        "categories", [labels(v) for v in given("categories").to_list()], ITEMS["categories"]
    )
    frame = pl.DataFrame([columns[name] for name in ITEMS])
    bad = frame["item_id"].is_null()
    if bad.any():
        for at in bad.arg_true().to_list():
            file.bad_row(raw, at, "no item")
        frame = frame.filter(~bad)
    return frame


def named(columns: Mapping[str, str]) -> str:
    """A mapping of columns, as a person reads it and as `--columns` takes it."""
    return ", ".join(f"{ours}={theirs}" for ours, theirs in columns.items())
