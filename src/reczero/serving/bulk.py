"""Many rows into a file, portion by portion: a kill costs no more than one, and memory stays flat."""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import polars as pl
import pyarrow.parquet as pq

from reczero import __version__
from reczero.data import Dataset, Split
from reczero.errors import BadRequest, UserError
from reczero.files import atomic_file, held, read_json, sha256, write_error, write_json
from reczero.reasoning import Context
from reczero.rollout.policy import PREDICTIONS

from .answering import Prediction
from .predictor import Predictor
from .requests import PredictRequest, read

PORTION = 256  # rows between two writes
GROUP = 40  # portions in a row group of the result
KEY = b"reczero_key"  # in the result's metadata: what it was made of
SCHEMA = PREDICTIONS | {"expected": pl.Float64(), "fault": pl.String()}
Say = Callable[[str], None]


class Rows(Protocol):
    """What is asked. key: a hash of it; count: how many rows."""

    key: str
    count: int

    def portions(self, skipped: Callable[[int], bool]) -> Iterator[tuple[int, list[tuple[str, float | None, Any]]]]:
        """(number, rows) of each portion that is not skipped; a row is its id, its true rating if known, and its
        context, or the BadRequest that says why it has none."""


@dataclass(frozen=True)
class Part:
    """One of `of` stretches of the rows, of equal length but for one: the parts, in order, are the whole."""

    number: int = 1
    of: int = 1

    @classmethod
    def read(cls, text: str) -> "Part":
        """From "3/16". Raises UserError."""
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of) <= 10**6):
            raise UserError(f"--part {text}: is written NUMBER/OF, such as 1/16 to 16/16")
        return cls(int(number), int(of))

    def stretch(self, count: int) -> tuple[int, int]:
        """The first of `count` rows that belongs to it, and the first after it."""
        return (self.number - 1) * count // self.of, self.number * count // self.of


WHOLE = Part()


class Examples:
    """The examples of a prepared data set, each as of the moment before it."""

    def __init__(self, data: Dataset, split: Split | None, part: Part = WHOLE):
        self.data = data
        places = data.places(split)
        self.places = places[slice(*part.stretch(len(places)))]
        self.count = len(self.places)
        self.key = f"{data.fingerprint} {split} {part}"

    def portions(self, skipped: Callable[[int], bool]) -> Iterator[tuple[int, list[tuple[str, float | None, Any]]]]:
        for number, start in enumerate(range(0, self.count, PORTION)):
            if skipped(number):
                continue
            part = self.data.at(self.places[start : start + PORTION])
            contexts = self.data.contexts(part)
            yield number, list(zip(part["example_id"], part["rating"], contexts, strict=True))


class Requests:
    """A file of requests: JSON lines as `POST /v1/predict` takes them (and an `id`, if they have one), or a CSV or
    Parquet with user_id and item_id."""

    def __init__(self, path: Path, predictor: Predictor, part: Part = WHOLE):
        self.path, self.predictor = path, predictor
        if not path.is_file():
            raise UserError(f"{path}: {'a folder that is no prepared data set' if path.is_dir() else 'no such file'}")
        kinds = {".jsonl": self._lines, ".ndjson": self._lines, ".csv": self._csv, ".parquet": self._parquet}
        if path.suffix.lower() not in kinds:
            raise UserError(f"{path}: the name ends on none of {', '.join(kinds)}")
        self._read = kinds[path.suffix.lower()]
        if self._read != self._lines and predictor.known is None:
            raise UserError(f"{path}: user_id and item_id are of a data set; name it: --data")
        self._stretch = part.stretch(sum(1 for _ in self._read()))
        self.count = self._stretch[1] - self._stretch[0]
        if not self.count:
            raise UserError(f"{path}: holds no rows")
        known = predictor.known
        self.key = f"{sha256(path)} {known.data.fingerprint if known else ''} {part}"

    def portions(self, skipped: Callable[[int], bool]) -> Iterator[tuple[int, list[tuple[str, float | None, Any]]]]:
        rows = islice(self._read(), *self._stretch)
        number = 0
        while part := list(islice(rows, PORTION)):
            if not skipped(number):
                names = [name for name, _ in part]
                yield (
                    number,
                    list(zip(names, [None] * len(part), self._contexts([request for _, request in part]), strict=True)),
                )
            number += 1

    def _contexts(self, requests: list[Any]) -> list[Context | BadRequest]:
        """Pairs of ids together, for then the data set is looked through once."""
        known, found = self.predictor.known, list[Context | BadRequest]()
        pairs: dict[int, tuple[str, str]] = {}
        for place, request in enumerate(requests):
            try:
                if isinstance(request, BadRequest):
                    raise request
                asked = read(PredictRequest, request)
                user, item = asked.user_id, asked.item_id
                if known and user and item and not known.unknown_users([user]) and not known.unknown_items([item]):
                    pairs[place] = user, item
                    found.append(BadRequest())  # replaced below
                else:
                    found.append(self.predictor.context(asked))
            except BadRequest as error:
                found.append(error)
        if known:
            for place, context in zip(pairs, known.contexts(list(pairs.values())), strict=True):
                found[place] = context
        return found

    def _lines(self) -> Iterator[tuple[str, Any]]:
        with self._opened() as file:
            for number, line in enumerate(line for line in file if not line.isspace()):
                try:
                    request = json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield str(number), BadRequest(f"is no JSON ({error})")
                    continue
                if not isinstance(request, dict):
                    yield str(number), BadRequest("is no JSON object")
                    continue
                name = request.pop("id", None)
                if name is None and "user_id" in request and "item_id" in request:
                    name = f"{request['user_id']}:{request['item_id']}"
                text = str(number if name is None else name)
                yield text.encode("utf-8", "replace").decode(), request  # half a surrogate pair fits no table

    def _csv(self) -> Iterator[tuple[str, Any]]:
        with self._opened() as file:
            table = csv.DictReader(file)
            self._check_columns(table.fieldnames or [])
            for row in table:
                yield _pair(row["user_id"], row["item_id"])

    def _parquet(self) -> Iterator[tuple[str, Any]]:
        try:
            with pq.ParquetFile(self.path) as file:
                self._check_columns(file.schema_arrow.names)
                for batch in file.iter_batches(PORTION, columns=["user_id", "item_id"]):
                    for row in batch.to_pylist():
                        yield _pair(row["user_id"], row["item_id"])
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}: cannot be read ({str(error).splitlines()[0]})") from error

    def _check_columns(self, names: Any) -> None:
        if missing := [name for name in ("user_id", "item_id") if name not in names]:
            raise UserError(f"{self.path}: no column {missing[0]!r}; there are {', '.join(names) or 'none'}")

    def _opened(self):
        return _Text(self.path)


def _pair(user: Any, item: Any) -> tuple[str, Any]:
    if user is None or item is None:
        return f"{user}:{item}", BadRequest("user_id or item_id is missing")
    return f"{user}:{item}", {"user_id": str(user), "item_id": str(item)}


class _Text:
    """A text file, with what is no UTF-8 told in one line."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self):
        try:
            self._file = self.path.open(encoding="utf-8-sig", newline="")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror})") from error
        return self._file

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._file.close()
        if isinstance(error, UnicodeDecodeError):
            raise UserError(f"{self.path}: is not UTF-8 text; save it as UTF-8") from error
        if isinstance(error, csv.Error):
            raise UserError(f"{self.path}: is no CSV ({error})") from error


def predict_file(
    predictor: Predictor, rows: Rows, out: Path, batch_size: int, say: Say, report: Callable[[dict[str, Any]], None]
) -> dict[str, int]:
    """Predictions of all rows (columns `SCHEMA`) to `out`, a .parquet or .csv, whole or not at all.

    What is done lies beside it until then, so that the same call after a kill goes on. Returns how many rows there are,
    and how many could not be asked or were malformed. Raises UserError.
    """
    if out.suffix not in (".parquet", ".csv"):
        raise UserError(f"-o {out}: the name must end on .parquet or .csv")
    text = json.dumps([__version__, predictor.answering.key, repr(predictor.answering.template), rows.key])
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    if out.exists():
        if out.suffix == ".parquet" and _key_of(out) == key:
            say(f"{out}: is there already, of the same model and rows")
            return _counts(pl.scan_parquet(out))
        raise UserError(f"-o {out}: exists and is of another model or other rows; remove it or choose another name")
    parts = out.with_name(f".{out.name}.parts")
    try:
        parts.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(error, parts) or error from error
    with held(parts):
        about = parts / "about.json"
        if about.exists() and read_json(about) != {"key": key}:
            raise UserError(f"{parts}: was begun with another model or other rows; remove it or choose another -o")
        write_json(about, {"key": key})
        done = {int(path.stem) for path in parts.glob("[0-9]*.parquet")}
        answered = min(rows.count, len(done) * PORTION)
        if done:
            say(f"goes on: about {answered:,} of {rows.count:,} rows are done")
        for number, part in rows.portions(lambda number: number in done):
            before = answered

            def moved(count: int, before: int = before) -> None:
                nonlocal answered
                answered += count
                report({"what": "rows", "predicted": min(answered, before + PORTION), "of": rows.count})

            table = _table(predictor, part, batch_size, moved)
            with atomic_file(parts / f"{number:09d}.parquet") as path:
                table.write_parquet(path)
            answered = before + len(part)
        _join(parts, out, key)
    for path in parts.iterdir():
        path.unlink()
    parts.rmdir()
    return _counts(pl.scan_parquet(out) if out.suffix == ".parquet" else pl.scan_csv(out))


def _table(
    predictor: Predictor, rows: list[tuple[str, float | None, Any]], batch_size: int, moved: Callable[[int], None]
) -> pl.DataFrame:
    asked: list[int] = []
    for place, (_, _, context) in enumerate(rows):
        if not isinstance(context, BadRequest):
            try:
                predictor.answering.check(context)
                asked.append(place)
            except BadRequest as error:
                rows[place] = (*rows[place][:2], error)
    found = predictor.answering.answer([rows[i][2] for i in asked], batch_size=batch_size, progress=moved)
    given: dict[int, Prediction] = dict(zip(asked, found, strict=True))
    sections = [field.name for field in SCHEMA["reasoning"].fields]  # type: ignore[attr-defined]
    lines = []
    for place, (name, rating, context) in enumerate(rows):
        line: dict[str, Any] = {"example_id": name, "rating": rating, "model": predictor.answering.name}
        if place in given:
            one = given[place]
            line |= {
                "prediction": one.rating, "parsed": one.parsed, "distribution": one.distribution,
                "expected": one.expected, "reasoning": {key: one.reasoning.get(key) for key in sections},
            } | one.details  # fmt: skip
        else:
            line |= {"parsed": False, "fault": str(context)}
        lines.append(line)
    return pl.DataFrame(lines, schema=SCHEMA)


def _join(parts: Path, out: Path, key: str) -> None:
    paths = sorted(parts.glob("[0-9]*.parquet"))
    with atomic_file(out) as path:
        if out.suffix == ".csv":
            flat = pl.scan_parquet(paths).drop("distribution").unnest("reasoning")
            flat.sink_csv(path)
            return
        schema = pq.read_schema(paths[0])
        schema = schema.with_metadata({**(schema.metadata or {}), KEY: key.encode()})
        with pq.ParquetWriter(path, schema) as writer:
            for start in range(0, len(paths), GROUP):
                whole = pl.concat([pl.read_parquet(part) for part in paths[start : start + GROUP]])
                writer.write_table(whole.to_arrow().cast(schema))


def _key_of(path: Path) -> str | None:
    try:
        return (pq.read_schema(path).metadata or {}).get(KEY, b"").decode()
    except (OSError, ValueError):
        return None


def _counts(table: pl.LazyFrame) -> dict[str, int]:
    asked = pl.col("text").is_not_null()
    counts = table.select(
        rows=pl.len(), failed=(~asked).sum(), malformed=(asked & ~pl.col("parsed")).sum(),
        first=pl.col("fault").filter(~asked).first(),
    )  # fmt: skip
    return counts.collect().row(0, named=True)
