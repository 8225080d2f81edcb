"""Raw files as their publishers ship them, read once, in batches, every row with the line that it stands on.

Plain, .gz and .zip files (known by their first bytes, not by their names) of JSON lines, separated text or Parquet.
What can't be read goes to the `Quarantine` with its line and the reason; nothing is dropped in silence.
"""

import ast
import codecs
import csv
import gzip
import heapq
import io
import json
import tempfile
import zipfile
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import msgspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from reczero.errors import UserError

BATCH = 20_000  # rows in memory at a time while reading
BATCH_SIZE = 32 << 20  # characters
SIMPLE = frozenset({"user_id", "item_id", "rating", "timestamp", "review", "summary"})  # never lists
csv.field_size_limit(1 << 20)  # a longer field is most likely a quote that was never closed
SNIPPET = 500  # characters of a bad row that the quarantine keeps

Report = Callable[[str, int, int], None]  # what is being done, how far it is, of how much


def silent(what: str, done: int, total: int) -> None:
    """A `Report` that tells nobody."""


_HINTS = {  # by a part of the reason
    "time can't be read": "Say how times are written: --time-format, such as %d/%m/%Y.",
    "text": "Name its encoding: --encoding, such as cp1252.",
    "off the scale": "Name the scale: --scale MIN-MAX.",
}


@dataclass(frozen=True)
class Part:
    """One of `of` shares of the work, from 1: the parts together are the whole."""

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
        """The first of `count` rows that belongs to it, and the first after it: shares of one stretch each, in order,
        of equal length but for one."""
        return (self.number - 1) * count // self.of, self.number * count // self.of

    def has(self, batch: int) -> bool:
        """Whether batch `batch`, from 0, belongs to it: shares in turn, for which nothing needs to be counted first."""
        return batch % self.of == self.number - 1


WHOLE = Part()


class Quarantine:
    """Rows that could not be used: counted by reason, and kept as JSON lines for `quarantine.jsonl`.

    Rows of the two tables, `interactions` and `items`, are counted apart.
    """

    def __init__(self) -> None:
        self._kept = tempfile.SpooledTemporaryFile(max_size=1 << 20)  # noqa: SIM115  lives as long as this does
        self._reasons: dict[str, Counter[str]] = {}
        self._first: dict[tuple[str, str], str] = {}

    def add(self, table: str, file: str, line: int, reason: str, text: Any) -> None:
        """`reason` is counted up to its first bracket, which may hold details of the one row."""
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        elif not isinstance(text, str):
            text = json.dumps(text, ensure_ascii=False, default=str)
        self._put(table, {"file": file, "line": line, "reason": reason, "text": text.rstrip("\r\n")[:SNIPPET]})

    def _put(self, table: str, row: dict[str, Any]) -> None:
        kind, _, detail = row["reason"].partition(" (")
        self._reasons.setdefault(table, Counter())[kind] += 1
        first = f"{row['file']}, line {row['line']}" if row["file"] else f"row {row['line']}"
        self._first.setdefault((table, kind), f"{first}: {detail.removesuffix(')')}" if detail else first)
        self._kept.write(json.dumps(row).encode() + b"\n")

    def take(self, table: str, files: Sequence[Path]) -> None:
        """Adds what the parts of one table put aside, each `save`d to its file, in the order of a single reading."""
        with ExitStack() as stack:
            parts = [map(json.loads, stack.enter_context(file.open("rb"))) for file in files if file.exists()]
            # Each batch stands in one part, and all lines of a batch come before all lines of the next.
            for row in heapq.merge(*parts, key=lambda row: row["line"]):
                self._put(table, row)

    def counts(self, table: str) -> dict[str, int]:
        """reason -> rows, the most frequent first."""
        return dict(self._reasons.get(table, Counter()).most_common())

    def told(self, table: str) -> str:
        """The counts in words, each with where it happened first."""
        found = self.counts(table).items()
        return "; ".join(f"{reason}: {n:,} (first: {self._first[table, reason]})" for reason, n in found)

    def check(self, table: str, good: int, most: float) -> None:
        """UserError where more than the share `most` of a table's rows are bad."""
        bad = sum(self.counts(table).values())
        if bad > most * (good + bad):
            reasons = self.counts(table)
            hints = [hint for sign, hint in _HINTS.items() if any(sign in reason for reason in reasons)]
            raise UserError(
                f"{table}: {bad:,} of {good + bad:,} rows can't be used, more than max_bad {most:g} allows. "
                f"{self.told(table)}. {' '.join(hints)}{' ' if hints else ''}"
                + ("Or mend the file, or allow more with --max-bad." if good else "Is it the right file?")
            )

    def save(self, path: Path) -> None:
        """Writes what there is, if there is anything."""
        if self._reasons:
            self._kept.seek(0)
            with path.open("wb") as file:
                while chunk := self._kept.read(1 << 20):
                    file.write(chunk)


class Layout(NamedTuple):
    """How a text file is separated. `::` is what MovieLens 1M and 10M use."""

    separator: str = ","
    header: bool = True
    quoted: bool = True


@dataclass
class RawFile:
    """One raw file. `member`: the names that it may have in a .zip with several files; `table`: which one it holds.

    `part`: only its batches are made, and only their bad rows put aside; all are until `settled`.
    """

    path: Path
    table: Literal["interactions", "items"] = "interactions"
    quarantine: Quarantine = field(default_factory=Quarantine)
    report: Report = silent
    member: tuple[str, ...] = ()
    encoding: str = "utf-8"
    part: Part = WHOLE
    settled: Callable[[], bool] = field(default=lambda: True)
    ours: bool = field(default=True, init=False)  # the batch that was read last
    _tell: Callable[[], int] = field(default=lambda: 0, init=False)
    _text_of: Callable[[int], Any] | None = field(default=None, init=False)

    @property
    def name(self) -> str:
        """Of the file that holds the lines, which may lie in an archive."""
        return self.member[0] if self.member and self.path.suffix == ".zip" else self.path.name

    def bad(self, line: int, reason: str, text: Any) -> None:
        """Puts a row aside, if it is of our part."""
        if self.ours:
            self.quarantine.add(self.table, self.name, line, reason, text)

    def bad_row(self, batch: pl.DataFrame, at: int, reason: str, column: str | None = None) -> None:
        """Puts aside the row `at` of the batch that was read last, as it stands in the file. column: what is wrong."""
        if column is not None:
            reason += f" ({str(batch[column][at])[:40]!r})"
        self.bad(batch["line"][at], reason, self._text_of(at) if self._text_of else batch.row(at, named=True))

    def wanted(self, batch: int) -> bool:
        """Whether to make batch `batch` (from 0), which is read now."""
        self.ours = self.part.has(batch)
        return self.ours or not self.settled()

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """The content, unpacked, from its beginning. UserError for what is missing or damaged."""
        try:
            with self.path.open("rb") as file, _unpacked(file, self) as content:
                self._tell = file.tell
                yield content
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError) as error:
            if isinstance(error, FileNotFoundError):
                raise UserError(f"{self.path}: no such file; check the path.") from error
            raise UserError(f"{self.path}: cannot be read ({error}): cut short or damaged; get it again.") from error

    def progress(self) -> None:
        """Reports how many of its bytes are read."""
        self.report(f"reading {self.name}", self._tell(), self.path.stat().st_size)

    def beginning(self, size: int = 1 << 16) -> bytes:
        """The first bytes of the content, without a byte order mark."""
        with self.opened() as content:
            return content.read(size).removeprefix(b"\xef\xbb\xbf")

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """(number from 1, line) of every line that is not blank."""
        with self.opened() as content:
            lines: Iterable[bytes] = content
            if not self.is_utf8:  # what is not of the encoding comes out as bytes that are not UTF-8 either
                text = io.TextIOWrapper(content, self.encoding, "surrogateescape", newline="\n")
                lines = (line.encode("utf-8", "surrogateescape") for line in text)
            for number, line in enumerate(lines, 1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if not line.isspace():
                    yield number, line

    @property
    def is_utf8(self) -> bool:
        return codecs.lookup(self.encoding).name == "utf-8"

    def first_line(self) -> str:
        text = self.beginning().decode(self.encoding, "replace").removeprefix("\ufeff")
        return text.split("\n")[0]

    def kind(self) -> Literal["json", "text", "parquet"]:
        """By what stands in it. UserError for what we do not read."""
        start = self.beginning()
        if start[:4] == b"PAR1":
            return "parquet"
        if start[:2] in (b"\xff\xfe", b"\xfe\xff") and not self.encoding.lower().startswith("utf-16"):
            raise UserError(f"{self.path}: is UTF-16 text; say so with --encoding utf-16.")
        text = start.decode(self.encoding, "replace").lstrip("\ufeff \t\r\n")
        if text[:1] == "[":
            raise UserError(
                f"{self.path}: a JSON array, and JSON lines are expected, one object a line; "
                f"convert it first: jq -c '.[]' {self.name} > {self.path.stem}.jsonl"
            )
        if not text:
            raise UserError(f"{self.path}: is empty.")
        if start[257:262] == b"ustar":
            raise UserError(f"{self.path}: is a tar archive; unpack it and name a file of it.")
        if "\0" in text[:1000] and "\n" not in text[:1000]:
            raise UserError(f"{self.path}: is not text, Parquet, .gz or .zip; which file is meant?")
        if text.split("\n")[0].strip() == "{":
            raise UserError(
                f"{self.path}: JSON over several lines, and JSON lines are expected, one object a line; "
                f"convert it first: jq -c . {self.name} > {self.path.stem}.jsonl"
            )
        lines = [line.lstrip() for line in text.split("\n")[:20] if line.strip()]  # the first may be a broken one
        return "json" if 2 * sum(line[:1] == "{" for line in lines) >= len(lines) else "text"


@contextmanager
def _unpacked(file: BinaryIO, raw: RawFile) -> Iterator[BinaryIO]:
    start = file.read(4)
    file.seek(0)
    if start[:2] == b"\x1f\x8b":
        with gzip.open(file, "rb") as content:
            yield content  # type: ignore[misc]
    elif start == b"PK\x03\x04":
        with zipfile.ZipFile(file) as archive, archive.open(_member(archive, raw)) as content:
            yield content  # type: ignore[misc]
    else:
        yield file


def _member(archive: zipfile.ZipFile, raw: RawFile) -> str:
    """The one file in a .zip that is meant. UserError where that is not clear."""
    names = [info.filename for info in archive.infolist() if not info.is_dir() and "__MACOSX" not in info.filename]
    for wanted in raw.member:
        found = [name for name in names if Path(name).name == wanted]
        if found:
            names = found
            break
    if "[Content_Types].xml" in names:
        raise UserError(f"{raw.path}: is a workbook (Excel, say); save the table as CSV.")
    if any(info.flag_bits & 1 for info in archive.infolist()):
        raise UserError(f"{raw.path}: is locked with a password; unpack it first.")
    if len(names) != 1:
        there = ", ".join(names[:5]) or "nothing"
        raise UserError(f"{raw.path}: holds {there}; which file is meant is not clear: unpack it and name one.")
    return names[0]


# --- columns and rows ------------------------------------------------------------------------------------------------


def listed(names: Sequence[str]) -> str:
    """Names in a message; not all where there are very many."""
    return ", ".join(names[:40]) + (f" and {len(names) - 40:,} more" if len(names) > 40 else "")


def column_names(file: RawFile, layout: Layout | None = None) -> list[str]:
    """The columns of a table: a header, the keys of the first JSON lines, or `#1`, `#2`, … where there is no header."""
    kind = file.kind()
    if kind == "parquet":
        return list(_parquet(file).schema_arrow.names)
    if kind == "json":
        return _json_keys(file)
    layout = layout or guess_layout(file)
    for _, row in _text_rows(file, layout, None):
        if isinstance(row, _Bad):
            continue
        return [name.strip() for name in row] if layout.header else [f"#{n}" for n in range(1, len(row) + 1)]
    raise UserError(f"{file.path}: is empty.")


def guess_layout(file: RawFile, header: bool = True) -> Layout:
    """The separator that stands most often in the first line."""
    first = file.first_line()
    if first.count("::") > 1:
        return Layout("::", header, quoted=False)
    return Layout(max(",\t;|", key=first.count), header)


def read_columns(
    file: RawFile, columns: Mapping[str, str], layout: Layout | None = None, literal: bool = False
) -> Iterator[pl.DataFrame]:
    """Batches with `line` and the columns asked for (our name -> the file's), as they stand there, not yet typed.

    Text columns come as String, JSON and Parquet ones as they are. Optional columns that a text or Parquet file lacks
    are left out. literal: lines that are not JSON may be Python literals (never evaluated), as Amazon's of 2014.
    """
    kind = file.kind()
    if kind == "parquet":
        yield from _parquet_batches(file, columns)
    elif kind == "json":
        yield from _json_batches(file, columns, literal)
    else:
        yield from _text_batches(file, columns, layout or guess_layout(file))


def _frame(lines: Sequence[int], values: Mapping[str, list[Any]]) -> pl.DataFrame:
    columns = [pl.Series("line", lines, pl.Int64)]
    for name, column in values.items():
        if name not in SIMPLE:  # may be lists, of any depth
            columns.append(pl.Series(name, column, pl.Object))
            continue
        try:
            columns.append(pl.Series(name, column, strict=True))
        except (TypeError, OverflowError, pl.exceptions.PolarsError):  # numbers and texts in one column
            columns.append(pl.Series(name, [None if v is None else str(v) for v in column], pl.String))
    return pl.DataFrame(columns)


def _batches(
    file: RawFile, rows: Iterable[tuple[int, int, Any]], make: Callable[[list[int], list[Any]], pl.DataFrame]
) -> Iterator[pl.DataFrame]:
    """Frames of at most `BATCH` rows and about `BATCH_SIZE` characters, out of (line, its length, row).

    Bad rows are counted like others, and found when a frame is made: where a batch ends shows without decoding it.
    """
    lines: list[int] = []
    batch: list[Any] = []
    number = count = size = 0
    wanted = file.wanted(number)
    for line, length, row in rows:
        if wanted:
            lines.append(line)
            batch.append(row)
        count += 1
        size += length
        if count == BATCH or size > BATCH_SIZE:
            file.progress()
            if wanted:
                yield make(lines, batch)
            lines, batch, count, size = [], [], 0, 0
            number += 1
            wanted = file.wanted(number)
    if batch:
        yield make(lines, batch)


# --- JSON lines ------------------------------------------------------------------------------------------------------


def _json_keys(file: RawFile) -> list[str]:
    """The keys of the first hundred lines, in the order they turn up."""
    keys: dict[str, None] = {}
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    for seen, (_, line) in enumerate(file.lines()):
        try:
            keys |= dict.fromkeys(decode(line))
        except (ValueError, RecursionError):
            keys |= dict.fromkeys(_literal(line) or ())
        if seen == 100:
            break
    return list(keys)


def _json_batches(file: RawFile, columns: Mapping[str, str], literal: bool) -> Iterator[pl.DataFrame]:
    # Decoded into a struct of just these keys: all else in a line is skipped without being made.
    fields = [
        (name, str | int | float | None if name in SIMPLE else Any, msgspec.field(name=key, default=None))
        for name, key in columns.items()
    ]
    row_type = msgspec.defstruct("Row", fields, gc=False)
    decode = msgspec.json.Decoder(row_type).decode

    def make(lines: list[int], batch: list[bytes]) -> pl.DataFrame:
        numbers, rows, texts = [], [], []
        for number, line in zip(lines, batch, strict=True):
            try:
                row = decode(line)
            except (ValueError, RecursionError) as error:
                found = _literal(line) if literal else None
                if found is not None:
                    row = row_type(**{name: found.get(key) for name, key in columns.items()})
                elif isinstance(error, msgspec.ValidationError):
                    file.bad(number, f"wrong kind of value ({error})", line)
                    continue
                elif isinstance(error, UnicodeDecodeError):
                    file.bad(number, f"not UTF-8 text ({error.reason})", line)
                    continue
                else:
                    file.bad(number, f"not JSON ({error})", line)
                    continue
            numbers.append(number)
            rows.append(row)
            texts.append(line)
        file._text_of = texts.__getitem__
        return _frame(numbers, {name: [getattr(row, name) for row in rows] for name in columns})

    yield from _batches(file, ((number, len(line), line) for number, line in file.lines()), make)


def _literal(line: bytes) -> dict[str, Any] | None:
    """A line that is a Python dict of literals, read without evaluating anything; None for all else."""
    try:
        found = ast.literal_eval(line.decode("utf-8").strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


# --- separated text -----------------------------------------------------------------------------------------------


class _Lines:
    """The lines of a text, numbered; those of a record that does not parse can be read again, but for its first."""

    def __init__(self, text: Iterable[str]) -> None:
        self._text, self._again = iter(text), deque[str]()
        self.number = 0
        self.record: list[str] = []

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._text)
        self.number += 1
        self.record.append(line)
        return line

    def put_back(self) -> None:
        self._again.extendleft(reversed(self.record[1:]))
        self.number -= len(self.record) - 1


class _Bad(NamedTuple):
    """A record that is none."""

    reason: str
    text: str


def _text_rows(file: RawFile, layout: Layout, expected: int | None) -> Iterator[tuple[int, list[str] | _Bad]]:
    """(line it begins on, fields) of every record, the header among them. `expected` fields, or it is a bad row."""
    with file.opened() as content:
        # Bytes that are not of the encoding become lone surrogates, which are found when a column is made.
        wrapped = io.TextIOWrapper(content, file.encoding, "surrogateescape", newline="")
        lines = _Lines(wrapped)
        if layout.quoted:
            records: Iterator[list[str]] = csv.reader(lines, delimiter=layout.separator, strict=True)
        else:
            records = (line.rstrip("\r\n").split(layout.separator) for line in lines)
        while True:
            lines.record = []
            try:
                row = next(records)
            except StopIteration:
                break
            except UnicodeError as error:  # UTF-16 cut in the middle: there is no next line to go on with
                raise UserError(f"{file.path}: not {file.encoding} text ({error}).") from error
            except csv.Error as error:
                # A quote that is never closed would swallow what follows: only the record's first line is bad.
                first, begins = lines.record[0], lines.number - len(lines.record) + 1
                lines.put_back()
                row = first.rstrip("\r\n").split(layout.separator)
                if not (layout.separator == "\t" and len(row) == expected):  # tab-separated text is often unquoted
                    yield begins, _Bad(f"quotes that do not close ({error})", first)
                    continue
                yield begins, row
                continue
            begins = lines.number - len(lines.record) + 1
            if begins == 1 and row:
                row[0] = row[0].removeprefix("\ufeff")
            if not row or (len(row) == 1 and not row[0].strip()):
                continue
            if expected is not None and len(row) != expected:
                reason = f"wrong number of fields ({len(row)} where {expected} are expected)"
                yield begins, _Bad(reason, "".join(lines.record))
                continue
            yield begins, row


def _text_batches(file: RawFile, columns: Mapping[str, str], layout: Layout) -> Iterator[pl.DataFrame]:
    names = column_names(file, layout)
    places = {name: names.index(key) for name, key in columns.items() if key in names}

    def rows() -> Iterator[tuple[int, int, list[str] | _Bad]]:
        header = layout.header
        for line, row in _text_rows(file, layout, len(names)):
            if header and not isinstance(row, _Bad):
                header = False
                continue
            yield line, sum(map(len, row)), row

    def make(lines: list[int], batch: list[list[str] | _Bad]) -> pl.DataFrame:
        good: list[tuple[int, list[str]]] = []
        for line, row in zip(lines, batch, strict=True):
            if isinstance(row, _Bad):
                file.bad(line, *row)
            else:
                good.append((line, row))
        return frame([line for line, _ in good], [row for _, row in good])

    def frame(lines: list[int], batch: list[list[str]]) -> pl.DataFrame:
        file._text_of = lambda at: _joined(batch[at], layout)
        try:
            values = {name: pl.Series(name, [row[at] for row in batch], pl.String) for name, at in places.items()}
        except UnicodeEncodeError:
            whole = [not any(_not_text(value) for value in row) for row in batch]
            for line, row, good in zip(lines, batch, whole, strict=True):
                if not good:
                    text = _joined(row, layout).encode("utf-8", "surrogateescape")
                    file.bad(line, f"not {file.encoding.upper()} text (bytes of another encoding)", text)
            kept = [(line, row) for line, row, good in zip(lines, batch, whole, strict=True) if good]
            return frame([line for line, _ in kept], [row for _, row in kept])
        return pl.DataFrame([pl.Series("line", lines, pl.Int64), *values.values()])

    yield from _batches(file, rows(), make)


def _joined(row: list[str], layout: Layout) -> str:
    """The fields as one line again, quoted where that is needed."""
    if not layout.quoted:
        return layout.separator.join(row)
    written = io.StringIO()
    csv.writer(written, delimiter=layout.separator).writerow(row)
    return written.getvalue().removesuffix("\r\n")


def _not_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return True
    return False


# --- Parquet ------------------------------------------------------------------------------------------------------


def _parquet(file: RawFile) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file.path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file.path}: not a whole Parquet file ({error}); get it again.") from error


def _parquet_batches(file: RawFile, columns: Mapping[str, str]) -> Iterator[pl.DataFrame]:
    """`line` is the number of the row, from 1."""
    opened = _parquet(file)
    there = {name: key for name, key in columns.items() if key in opened.schema_arrow.names}
    seen, total = 0, opened.metadata.num_rows
    size = sum(opened.metadata.row_group(n).total_byte_size for n in range(opened.num_row_groups))
    rows = max(100, min(BATCH, BATCH_SIZE * total // max(size, 1)))
    try:
        for number, batch in enumerate(opened.iter_batches(rows, columns=list(there.values()))):
            seen += batch.num_rows
            file.report(f"reading {file.name}", seen, total)
            if not file.wanted(number):
                continue
            frame = pl.DataFrame(pl.from_arrow(batch))
            lines = pl.Series("line", range(seen - frame.height + 1, seen + 1), pl.Int64)
            yield pl.DataFrame([lines, *(frame[key].alias(name) for name, key in there.items())])
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file.path}: damaged after row {seen:,} ({error}); get it again.") from error
