"""From raw columns to typed ones: ids, ratings on their scale, times in Unix seconds, texts. Bad rows are put aside."""

import html
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
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
_SIZES = {"s": 0.0, "ms": 1e11, "us": 1e14, "ns": 1e17}  # numbers at least so large are of this unit, or a finer one
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
        (1, 5), (0.5, 5), (0, 1), (0, 5), (1, 7), (1, 10), (0.5, 10), (0, 10), (-1, 1), (-2, 2), (-5, 5), (-10, 10),
        (1, 100), (0, 100)
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
                scale = Scale(low, high, min(1.0, high - low) if step is None else step)  # type: ignore[arg-type, operator]
                if step is None or scale.grid()[-1] == high:
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


def check_time_format(asked: str | None) -> None:
    """UserError for what is neither a unit nor a format that a date can be written and read by."""
    if asked is None or asked in _UNITS:
        return
    moment = pl.Series([datetime(2001, 12, 31, 10, 20, 30)])
    try:
        read = moment.dt.strftime(asked).str.to_datetime(asked, strict=False)
    except pl.exceptions.PolarsError:
        read = pl.Series([None])
    if "%" not in asked or read.null_count():
        raise UserError(f"time format {asked!r}: write s, ms, us, ns, or a strftime format such as %d/%m/%Y %H:%M.")


@dataclass
class Clock:
    """Turns a column of times into Unix seconds. What kind of times they are is settled by the first batch with any.

    `asked`: s, ms, us or ns since 1970, a strftime format, or None to find out. `found` says what it was, in words.
    """

    asked: str | None = None
    found: str | None = None
    _unit: str | None = field(default=None, init=False)
    _dated: bool = field(default=False, init=False)

    @property
    def settled(self) -> bool:
        """Whether it is known by now what kind of times they are."""
        return self._dated or self._unit is not None

    def seconds(self, times: pl.Series) -> pl.Series:
        """Int64 seconds, rounded down; null where there is no time or it can't be read. Dates are in UTC."""
        if times.dtype in (pl.Date, pl.Datetime):
            self.found, self._dated = "dates", True
            return times.cast(pl.Datetime("us")).dt.epoch("s")
        if not times.dtype.is_numeric() and times.dtype != pl.String:
            times = pl.Series(times.name, [None if t is None else str(t) for t in times.to_list()], pl.String)
        if times.dtype == pl.String:
            times = times.str.strip_chars()
            times = times.set(times == "", None)
        if self.asked is not None and self.asked not in _UNITS:
            self.found, self._dated = f"dates as {self.asked}", True
            return self._dates(times.cast(pl.String), (self.asked,))
        numbers = times.cast(pl.Float64, strict=False)
        likely = not self._dated and 2 * numbers.count() >= times.count()  # some of them may be garbled
        if self.asked or self._unit or likely:
            return self._numbers(times, numbers)
        self.found = self.found or "dates"
        read = self._dates(times.cast(pl.String), _DATES)
        self._dated = self._dated or read.count() > 0
        return read

    def _numbers(self, times: pl.Series, numbers: pl.Series) -> pl.Series:
        finite = numbers.filter(numbers.is_finite())
        if self._unit is None and len(finite):
            self._unit = self.asked or _unit(finite)
            named = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
            self.found = f"Unix {named[self._unit]}" if self._unit in named else "dates as %Y%m%d"
        if self._unit == "%Y%m%d":
            return self._dates(numbers.cast(pl.Int64, strict=False).cast(pl.String), ("%Y%m%d",))
        per_second = _UNITS[self._unit or "s"]
        # Whole numbers exactly; others by way of floats.
        whole = times.cast(pl.Int64, strict=False) if not times.dtype.is_float() else _none(times)
        floats = numbers.set(~numbers.is_between(_FIRST * per_second, _LAST * per_second), None)
        if not self.asked:  # a few seconds among milliseconds would all lie in January 1970
            sizes = [*_SIZES.values(), math.inf]
            least = sizes.index(_SIZES[self._unit or "s"])
            floats = floats.set(~floats.abs().is_between(sizes[least], sizes[least + 1], closed="left"), None)
        seconds = (whole // per_second).fill_null((floats / per_second).floor().cast(pl.Int64))
        seconds = seconds.set(floats.is_null(), None)
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


def _unit(numbers: pl.Series) -> str:
    """The unit in which these numbers are of our time; days written as one number (20180707) are known too."""
    size = numbers.abs().median()
    assert isinstance(size, float)
    days = (numbers.is_between(19000101, 21001231) & (numbers % 100).is_between(1, 31)).all()
    if days and (numbers // 100 % 100).is_between(1, 12).all():
        return "%Y%m%d"
    return next(unit for unit in reversed(_SIZES) if size >= _SIZES[unit])


# --- interactions -----------------------------------------------------------------------------------------------------


def text_of(value: Any) -> str | None:
    """A value as text: whole floats without their .0, lists joined by spaces; None for what is not there or no text."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float):
        whole = value.is_integer() and abs(value) < 2**53
        return None if math.isnan(value) else str(int(value)) if whole else str(value)
    if isinstance(value, (list, tuple)):
        return " ".join(text for text in _leaves(value) if text.strip())
    return None if isinstance(value, dict) else str(value)


def _leaves(value: Any) -> Iterator[str]:
    """The texts in a list of any depth, in order, with whatever commas they have."""
    left = [value]
    while left:  # not by recursion: a hostile list may be deeper than the stack
        one = left.pop()
        if isinstance(one, (list, tuple)):
            left.extend(reversed(one))
        else:
            yield text_of(one) or ""


def _given(raw: pl.DataFrame, name: str) -> pl.Series:
    """A column as it was read; blank text, and a column that is not there, is nothing."""
    if name not in raw.columns:
        return pl.Series(name, [None], pl.String).new_from_index(0, raw.height)
    column = raw[name]
    return column.set(column.str.strip_chars() == "", None) if column.dtype == pl.String else column


def _texts(raw: pl.DataFrame, name: str, unescape: bool = False) -> pl.Series:
    """A column as text. unescape: reads `&amp;` and its like."""
    column = _given(raw, name)
    if column.dtype.is_integer() or column.dtype in (pl.Categorical, pl.Enum):
        column = column.cast(pl.String)
    elif column.dtype != pl.String:
        texts = pl.Series(name, [text_of(value) for value in column.to_list()], pl.String)
        column = texts.set(texts.str.strip_chars() == "", None)
    if unescape and column.str.contains("&", literal=True).any():
        column = pl.Series(name, [text and html.unescape(text) for text in column.to_list()], pl.String)
    return column


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
        """The good rows, with the columns of `INTERACTIONS`; none of a batch that only had to settle the clock."""
        rating, time = _given(raw, "rating"), _given(raw, "timestamp")
        no_time = pl.Series("timestamp", [0]).new_from_index(0, raw.height)
        frame = pl.DataFrame(
            [
                *(_texts(raw, name).str.strip_chars() for name in ("user_id", "item_id")),
                _numbers(rating),
                self.clock.seconds(time) if self.timed else no_time,
                *(_texts(raw, name, self.unescape) for name in ("review", "summary")),
            ]
        )
        faults = {
            "no user": pl.col("user_id").is_null(),
            "no item": pl.col("item_id").is_null(),
            "no rating": pl.lit(rating.is_null()),
            "rating is not a number": pl.col("rating").is_null(),
            f"rating off the scale {self.scale.low:g}-{self.scale.high:g}": ~pl.col("rating").is_between(
                self.scale.low, self.scale.high
            ),
            "no time": pl.lit(time.is_null() & self.timed),
            "time can't be read": pl.col("timestamp").is_null(),
        }
        reason = frame.select(pl.coalesce(pl.when(fault).then(pl.lit(name)) for name, fault in faults.items()))
        good = _without_bad(frame, reason.to_series(), raw, self.file)
        return good if self.file.ours else good.clear()


# The column whose value is worth a look.
_SHOWN = {"rating is not a number": "rating", "rating": "rating", "time can't be read": "timestamp"}


def _without_bad(frame: pl.DataFrame, reason: pl.Series, raw: pl.DataFrame, file: RawFile) -> pl.DataFrame:
    """The rows without a `reason` against them; the others go to the quarantine."""
    for at in reason.is_not_null().arg_true():
        file.bad_row(raw, at, reason[at], _SHOWN.get(reason[at].split(" off")[0]))
    return frame.filter(reason.is_null())


def _numbers(column: pl.Series) -> pl.Series:
    """Finite floats; null for all else."""
    if column.dtype == pl.Object:
        column = pl.Series(column.name, [None if v is None else str(v) for v in column.to_list()], pl.String)
    if column.dtype == pl.String:
        column = column.str.strip_chars().str.replace(r"^(-?[0-9]+),([0-9]+)$", "$1.$2")  # a decimal comma
    elif not column.dtype.is_numeric():
        return pl.Series(column.name, [None], pl.Float64).new_from_index(0, len(column))
    numbers = column.cast(pl.Float64, strict=False)
    return numbers.set(~numbers.is_finite(), None)


# --- items ------------------------------------------------------------------------------------------------------------


def labels(value: Any) -> list[str]:
    """Categories: a list of any depth, flattened, or one text cut at | or at commas; each once, in order."""
    if isinstance(value, str):
        value = value.split("|" if "|" in value else ",")
    return list(dict.fromkeys(label for label in map(str.strip, _leaves(value)) if label))


def check_items(raw: pl.DataFrame, file: RawFile, unescape: bool = False) -> pl.DataFrame:
    """Typed rows of the item table, with the columns of `ITEMS`; rows without an id are put aside."""
    columns = {name: _texts(raw, name, unescape) for name in ITEMS if name != "categories"}
    columns["item_id"] = columns["item_id"].str.strip_chars()
    lists = [labels(value) for value in _given(raw, "categories").to_list()]
    if unescape:
        lists = [[html.unescape(label) for label in one] for one in lists]
    columns["categories"] = pl.Series("categories", lists, ITEMS["categories"])
    frame = pl.DataFrame([columns[name] for name in ITEMS])
    reason = frame.select(pl.when(pl.col("item_id").is_null()).then(pl.lit("no item")))
    return _without_bad(frame, reason.to_series(), raw, file)


def named(columns: Mapping[str, str]) -> str:
    """A mapping of columns, as a person reads it and as `--columns` takes it."""
    return ", ".join(f"{ours}={theirs}" for ours, theirs in columns.items())
