"""Many rows into a file, portion by portion: a kill costs no more than one, and memory stays flat."""

import csv
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TextIO

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from reczero import __version__
from reczero.data import WHOLE, Dataset, Part, Split
from reczero.errors import BadRequest, UserError
from reczero.files import atomic_file, held, read_json, separator_of, sha256, write_error, write_json
from reczero.reasoning import Context, Fact
from reczero.rollout.policy import PREDICTIONS

from .answering import Prediction
from .predictor import Predictor
from .requests import PredictRequest, read
from .strict import strict_json

PORTION = 256  # rows between two writes
GROUP = 40  # portions in a row group of the result
KEY = b"reczero_key"  # in the result's metadata: what it was made of
PART = b"reczero_part"  # and of what it is a part: the key of the whole, its number, how many there are
SCHEMA = PREDICTIONS | {"expected": pl.Float64(), "fault": pl.String()}
Say = Callable[[str], None]


class Rows(Protocol):
    """What is asked: the share `part` of what `key` is a hash of. count: how many rows the share has."""

    key: str
    part: Part
    count: int

    def portions(self, skipped: Callable[[int], bool]) -> Iterator[tuple[int, list[tuple[str, float | None, Any]]]]:
        """(number, rows) of each portion that is not skipped; a row is its id, its true rating if known, and its
        context, or the BadRequest that says why it has none."""


class Examples:
    """The examples of a prepared data set, each as of the moment before it."""

    def __init__(self, data: Dataset, split: Split | None, part: Part = WHOLE, facts: Sequence[Fact] = ()):
        """facts: those that the template of the model shows."""
        self.data, self.part, self.facts = data, part, facts
        places = data.places(split)
        self.places = places[slice(*part.stretch(len(places)))]
        self.count = len(self.places)
        self.key = f"{data.fingerprint} {split}"

    def portions(self, skipped: Callable[[int], bool]) -> Iterator[tuple[int, list[tuple[str, float | None, Any]]]]:
        for number, start in enumerate(range(0, self.count, PORTION)):
            if skipped(number):
                continue
            part = self.data.at(self.places[start : start + PORTION])
            contexts = self.data.contexts(part, self.facts)
            yield number, list(zip(part["example_id"], part["rating"], contexts, strict=True))


class Requests:
    """A file of requests: JSON lines as `POST /v1/predict` takes them (and an `id`, if they have one), or a CSV or
    Parquet with user_id and item_id."""

    def __init__(self, path: Path, predictor: Predictor, part: Part = WHOLE):
        self.path, self.predictor, self.part = path, predictor, part
        if not path.is_file():
            raise UserError(f"{path}: {'a folder that is no prepared data set' if path.is_dir() else 'no such file'}")
        kinds = {".jsonl": self._lines, ".ndjson": self._lines, ".csv": self._csv, ".parquet": self._parquet}
        if path.suffix.lower() not in kinds:
            raise UserError(f"{path}: the name ends on none of {', '.join(kinds)}")
        self._read = kinds[path.suffix.lower()]
        if self._read != self._lines and predictor.known is None:
            raise UserError(f"{path}: user_id and item_id are of a data set; name it: --data")
        total = sum(1 for _ in self._read())
        if not total:
            raise UserError(f"{path}: holds no rows")
        self._stretch = part.stretch(total)
        self.count = self._stretch[1] - self._stretch[0]
        known = predictor.known
        self.key = f"{sha256(path)} {known.data.fingerprint if known else ''}"

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
        with self._text() as file:
            for number, line in enumerate(line for line in file if not line.isspace()):
                try:
                    request = strict_json(line.encode())
                except UnicodeEncodeError:
                    yield str(number), BadRequest("holds half of a surrogate pair")
                except (ValueError, RecursionError) as error:
                    yield str(number), BadRequest(f"is no JSON ({error})")
                else:
                    yield _named(number, request)

    def _csv(self) -> Iterator[tuple[str, Any]]:
        with self._text() as file:
            separator = separator_of(file.readline())
            file.seek(0)
            table = csv.DictReader(file, delimiter=separator, skipinitialspace=True, strict=True)
            self._check_columns(table.fieldnames or [])
            for row in table:
                yield _pair(row["user_id"], row["item_id"])

    def _parquet(self) -> Iterator[tuple[str, Any]]:
        try:
            with pq.ParquetFile(self.path) as file:
                self._check_columns(file.schema_arrow.names)
                for name in ("user_id", "item_id"):
                    kind = file.schema_arrow.field(name).type
                    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                        raise UserError(f"{self.path}: column {name!r} holds {kind}, and ids are text or whole numbers")
                for batch in file.iter_batches(PORTION, columns=["user_id", "item_id"]):
                    for row in batch.to_pylist():
                        yield _pair(row["user_id"], row["item_id"])
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}: cannot be read ({str(error).splitlines()[0]})") from error

    def _check_columns(self, names: Sequence[str]) -> None:
        for name in ("user_id", "item_id"):
            if list(names).count(name) != 1:
                found, what = ", ".join(map(repr, names)) or "none", "two columns" if name in names else "no column"
                raise UserError(f"{self.path}: {what} {name!r}; there are {found}")

    @contextmanager
    def _text(self) -> Iterator[TextIO]:
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                yield file
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: is not UTF-8 text; save it as UTF-8") from error
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror})") from error
        except csv.Error as error:
            raise UserError(f"{self.path}: is no CSV ({error})") from error


def _named(number: int, request: Any) -> tuple[str, Any]:
    """A line's id (its own, else of its user and item, else its number from 0), and what it asks."""
    if not isinstance(request, dict):
        return str(number), BadRequest("is no JSON object")
    name = request.pop("id", None)
    if not isinstance(name, str | int | None) or isinstance(name, bool):
        return str(number), BadRequest("id: must be text or a whole number")
    user, item = request.get("user_id"), request.get("item_id")
    if name is None and isinstance(user, str) and isinstance(item, str):
        name = f"{user}:{item}"
    return str(number if name is None else name), request


def _pair(user: Any, item: Any) -> tuple[str, Any]:
    if user is None or item is None:
        return f"{user}:{item}", BadRequest("user_id or item_id is missing")
    return f"{user}:{item}", {"user_id": str(user), "item_id": str(item)}


def predict_file(
    predictor: Predictor, rows: Rows, out: Path, batch_size: int, say: Say, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Predictions of all rows (columns `SCHEMA`) to `out`, a .parquet or .csv, whole or not at all.

    What is done lies beside it until then, so that the same call after a kill goes on. Returns how many rows there are,
    and how many could not be asked or were malformed. Raises UserError.
    """
    check_out(out)
    key, whole = (_key(predictor, rows.key, part) for part in (rows.part, WHOLE))
    parts = out.with_name(f".{out.name}.parts")
    if out.exists():
        if _key_of(out) != key:
            raise UserError(f"-o {out}: exists, and not of this model and these rows; remove it or choose another name")
        say(f"{out}: is there already, of the same model and rows")
        shutil.rmtree(parts, ignore_errors=True)  # a kill may have come before they were removed
        return _counts(out)
    try:
        parts.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(error, parts) or error from error
    with held(parts):
        about = parts / "about.json"
        if about.exists() and read_json(about) != {"key": key}:
            raise UserError(f"{parts}: was begun with another model or other rows; remove it or choose another -o")
        write_json(about, {"key": key})
        done = _done(parts)
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
        of = None if rows.part == WHOLE else (whole, rows.part.number, rows.part.of)
        _write(sorted(parts.glob("[0-9]*.parquet")), out, key, of)
    shutil.rmtree(parts)
    return _counts(out)


def join_tables(tables: Sequence[Path], out: Path, say: Say) -> dict[str, Any]:
    """The tables of all parts of one prediction, in whatever order, as the one that `predict_file` writes without
    parts. Returns what that does. Raises UserError for tables that are not all the parts of one whole."""
    check_out(out)
    found: dict[int, Path] = {}
    first: tuple[str, int] | None = None
    for table in tables:
        try:
            whole, number, of = json.loads((pq.read_schema(table).metadata or {})[PART])
        except FileNotFoundError:
            raise UserError(f"{table}: no such file") from None
        except (OSError, ValueError, KeyError):
            raise UserError(f"{table}: is no Parquet that `reczero predict --part` wrote") from None
        first = first or (whole, of)
        if (whole, of) != first:
            raise UserError(f"{table}: is no part of what {tables[0]} is: another model, other rows, or cut otherwise")
        if number in found:
            raise UserError(f"{table}: is part {number}/{of}, and so is {found[number]}")
        found[number] = table
    if first is None:
        raise UserError("name the tables of the parts")
    key, of = first
    if missing := [f"{number}/{of}" for number in range(1, of + 1) if number not in found]:
        more = f" and {len(missing) - 20:,} more" if len(missing) > 20 else ""
        raise UserError(f"{out}: parts {', '.join(missing[:20])}{more} are missing; make them with --part first")
    if not out.exists():
        _write([found[number] for number in sorted(found)], out, key, None)
    elif _key_of(out) != key:
        raise UserError(f"-o {out}: exists, and not of these parts; remove it or choose another name")
    else:
        say(f"{out}: is there already, of the same model and rows")
    return _counts(out)


def _key(predictor: Predictor, rows: str, part: Part) -> str:
    text = json.dumps([__version__, predictor.answering.key, repr(predictor.answering.template), f"{rows} {part}"])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_out(out: Path) -> None:
    """Raises UserError for a name that no table can have."""
    if out.suffix.lower() not in (".parquet", ".csv"):
        raise UserError(f"-o {out}: the name must end on .parquet or .csv")
    if out.is_dir():
        raise UserError(f"-o {out}: is a folder; choose another name")


def _done(parts: Path) -> set[int]:
    """The portions that are whole; a damaged one is removed, and predicted again."""
    done = set()
    for path in parts.glob("[0-9]*.parquet"):
        try:
            pl.read_parquet(path, columns=["example_id"])
            done.add(int(path.stem))
        except (pl.exceptions.PolarsError, OSError):
            path.unlink()
    return done


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


def _write(paths: Sequence[Path], out: Path, key: str, part: tuple[str, int, int] | None) -> None:
    """One table of those in `paths`, one after the other."""
    with atomic_file(out) as path:
        if out.suffix.lower() == ".csv":
            rows = pl.scan_parquet(list(paths)) if paths else pl.LazyFrame(schema=SCHEMA)
            flat = rows.drop("distribution").unnest("reasoning")
            flat.with_columns(key=pl.lit(key)).sink_csv(path)
            return
        about = {KEY: key.encode()} | ({PART: json.dumps(part).encode()} if part else {})
        schema = pl.DataFrame(schema=SCHEMA).to_arrow(compat_level=pl.CompatLevel.oldest()).schema.with_metadata(about)
        with pq.ParquetWriter(path, schema) as writer:
            for group in _row_groups(paths):
                writer.write_table(group.to_arrow().cast(schema))


def _row_groups(paths: Sequence[Path]) -> Iterator[pl.DataFrame]:
    """Their rows, a row group's at a time."""
    held: list[pl.DataFrame] = []
    for path in paths:
        with pq.ParquetFile(path) as file:
            for number in range(file.num_row_groups):
                held.append(pl.DataFrame(pl.from_arrow(file.read_row_group(number))))
                if sum(rows.height for rows in held) >= GROUP * PORTION:
                    yield pl.concat(held)
                    held = []
    if held:
        yield pl.concat(held)


def _key_of(out: Path) -> str | None:
    """What a finished table was made of: in the Parquet's metadata, in a column of the CSV."""
    try:
        if out.suffix.lower() == ".csv":
            return pl.read_csv(out, columns=["key"], n_rows=1, infer_schema=False).item()
        return (pq.read_schema(out).metadata or {}).get(KEY, b"").decode()
    except (OSError, ValueError, pl.exceptions.PolarsError):
        return None


def _counts(out: Path) -> dict[str, Any]:
    table = pl.scan_csv(out, infer_schema=False) if out.suffix.lower() == ".csv" else pl.scan_parquet(out)
    asked, parsed = pl.col("text").is_not_null(), pl.col("parsed").cast(pl.String) == "true"
    counts = table.select(
        rows=pl.len(), failed=(~asked).sum(), malformed=(asked & ~parsed).sum(),
        first=pl.col("fault").filter(~asked).first(),
    )  # fmt: skip
    return counts.collect().row(0, named=True)
