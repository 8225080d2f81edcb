"""How `reczero data prepare` scales: made-up reviews in the published Amazon-2018 format, prepared by us and by pandas.

.venv/bin/python benchmarks/data.py run --sizes 0.1 1          # seconds and peak memory, a table
.venv/bin/python benchmarks/data.py make 1 --out /tmp/reviews  # only the files
"""

import argparse
import contextlib
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

CHUNK = 20_000  # rows made, formatted and written at a time
CHECKED = 100_000  # up to so many rows, what pandas and reczero made is compared
GIB = 1 << 30
POOL = 8 << 20  # characters of made-up prose that all texts are cut from
FIRST_DAY, DAYS = datetime(2008, 10, 1, tzinfo=UTC), 3652  # ten years
RATINGS = {1: 0.08, 2: 0.05, 3: 0.08, 4: 0.17, 5: 0.62}
HISTORY = 10

# --- make -----------------------------------------------------------------------------------------------------------


class Prose:
    """Texts that are slices of one long string of words, each already escaped as in JSON.

    Slices begin and end at words, so no escape is ever cut in two.
    """

    # What makes real reviews dearer to read than letters and spaces: quotes, line ends, characters beyond ASCII.
    ODD = ('"great"', "don't", "café", "\n\n", "—", "5/5", "<br />", "C:\\", "👍")

    def __init__(self, rng: np.random.Generator) -> None:
        syllables = np.array([a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "er", "in")])
        parts = rng.choice(syllables, (5_000, 4))
        words = ["".join(row[:length]) for row, length in zip(parts, rng.integers(1, 5, len(parts)), strict=True)]
        words[20:20] = self.ODD
        words[100::9] = [word + "." for word in words[100::9]]
        often = 1 / np.arange(3, len(words) + 3)  # Zipf's law
        drawn = rng.choice(len(words), POOL // 4, p=often / often.sum())
        escaped = [json.dumps(word)[1:-1] for word in words]
        lengths = np.array([len(word) for word in escaped])[drawn]
        self.starts = np.concatenate([[0], np.cumsum(lengths + 1)])
        self.starts = self.starts[: np.searchsorted(self.starts, POOL) + 1]
        self.text = " ".join(escaped[word] for word in drawn[: len(self.starts) - 1].tolist())

    def cut(self, rng: np.random.Generator, lengths: np.ndarray) -> Iterator[str]:
        """One text for each length (characters, rounded up to whole words)."""
        last = int(np.searchsorted(self.starts, self.starts[-1] - lengths.max(initial=0), side="right"))
        begin = self.starts[rng.integers(0, last, len(lengths))]
        end = np.maximum(begin, self.starts[np.searchsorted(self.starts, begin + lengths)] - 1)  # - 1: the space
        text = self.text
        return (text[b:e] for b, e in zip(begin.tolist(), end.tolist(), strict=True))


def _lengths(rng: np.random.Generator, count: int, mean: float, empty: float = 0.0) -> np.ndarray:
    """Lognormal lengths (sigma 1) with this mean, a share of them zero; none above 100 times the mean."""
    lengths = rng.lognormal(math.log(mean / (1 - empty)) - 0.5, 1.0, count)
    return np.where(rng.random(count) < empty, 0, np.clip(lengths, 1, 100 * mean)).astype(np.int64)


def _zipf(rng: np.random.Generator, count: int, size: int, exponent: float) -> np.ndarray:
    """`size` numbers below `count`; r comes about as often as (r + 1) ** -exponent (inverse of the continuous law)."""
    return (count * rng.random(size) ** (1 / (1 - exponent))).astype(np.int64)


def _ids(rng: np.random.Generator, count: int, prefix: str, width: int, base: int = 36) -> np.ndarray:
    """Random ids; two alike are possible, so rare that they only make the number of users or items 'about' right."""
    alphabet = np.frombuffer(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", "S1")
    left = rng.integers(0, base**width, count)
    letters = np.empty((count, width), "S1")
    for place in reversed(range(width)):
        letters[:, place] = alphabet[left % base]
        left //= base
    return np.char.add(prefix, letters.view(f"S{width}").ravel().astype(f"U{width}"))


def make(rows: int, out: Path, text_length: int = 300, seed: int = 0) -> tuple[Path, Path]:
    """Write `out`/reviews.json and `out`/meta.json (JSON lines) with `rows` reviews; same arguments, same bytes.

    About rows / 8 users and rows / 40 items, both heavy-tailed; an eighth of the item ids are all digits, as those of
    books are. Rows come in no order. Times are whole days, as in the published files: there are many ties.
    """
    rng = np.random.default_rng(seed)
    prose = Prose(rng)
    users = _ids(rng, max(1, rows // 8), "A", 12)
    items = _ids(rng, max(1, rows // 40), "B", 9)
    items[::8] = _ids(rng, len(items[::8]), "", 10, base=10)
    out.mkdir(parents=True, exist_ok=True)
    reviews, meta = out / "reviews.json", out / "meta.json"
    _write_blocks(meta, _meta(rng, prose, items))
    _write_blocks(reviews, _reviews(rng, prose, rows, users, items, text_length))
    return reviews, meta


def _write_blocks(path: Path, blocks: Iterator[str]) -> None:
    with path.open("wb", buffering=0) as file:
        for block in blocks:
            file.write(block.encode("ascii"))
        os.fsync(file.fileno())  # or the writing would go on under what is measured next


def _chunks(rows: int) -> Iterator[int]:
    for begin in range(0, rows, CHUNK):
        yield min(CHUNK, rows - begin)


def _reviews(
    rng: np.random.Generator, prose: Prose, rows: int, users: np.ndarray, items: np.ndarray, text_length: int
) -> Iterator[str]:
    dates = [FIRST_DAY + timedelta(days=day) for day in range(DAYS)]
    times = np.array([int(date.timestamp()) for date in dates])
    days = np.array([f"{date:%m} {date.day}, {date:%Y}" for date in dates])
    names = np.array(
        [f"{first} {last}." for first in ("Ana", "Ben", "Chi", "Dev", "Eve", "Kim") for last in "ABCDEFGH"]
    )
    truth = np.array(["false", "true"])
    stars, shares = list(RATINGS), list(RATINGS.values())
    for count in _chunks(rows):
        user, item = _zipf(rng, len(users), count, 0.5), _zipf(rng, len(items), count, 0.6)
        day = (DAYS * np.sqrt(rng.random(count))).astype(np.int64)  # more and more reviews as the years go by
        columns = (
            rng.choice(stars, count, p=shares).tolist(),
            truth[(rng.random(count) < 0.85).astype(np.int64)].tolist(),
            days[day].tolist(),
            users[user].tolist(),
            items[item].tolist(),
            names[user % len(names)].tolist(),
            prose.cut(rng, _lengths(rng, count, text_length, empty=0.03)),
            prose.cut(rng, _lengths(rng, count, 30, empty=0.01)),
            times[day].tolist(),
        )
        # Formatted row by row: quicker than joining bytes in numpy, since a slice of a string is one memcpy.
        yield "".join(
            f'{{"overall": {rating}.0, "verified": {verified}, "reviewTime": "{date}", "reviewerID": "{user_id}", '
            f'"asin": "{item_id}", "reviewerName": "{name}", "reviewText": "{review}", "summary": "{summary}", '
            f'"unixReviewTime": {when}}}\n'
            for rating, verified, date, user_id, item_id, name, review, summary, when in zip(*columns, strict=True)
        )


def _meta(rng: np.random.Generator, prose: Prose, items: np.ndarray) -> Iterator[str]:
    begin = 0
    for count in _chunks(len(items)):
        cents = np.where(rng.random(count) < 0.6, rng.lognormal(7.3, 0.9, count), 0).astype(np.int64).tolist()
        columns = (
            items[begin : begin + count].tolist(),
            prose.cut(rng, _lengths(rng, count, 60)),
            prose.cut(rng, _lengths(rng, count, 10)),
            [f"${price // 100:,}.{price % 100:02}" if price else "" for price in cents],
            (f'"{text}"' if text else "" for text in prose.cut(rng, _lengths(rng, count, 300, empty=0.2))),
            rng.integers(1, 30, count).tolist(),
        )
        begin += count
        yield "".join(
            f'{{"category": ["Books", "Shelf {shelf // 5}", "Shelf {shelf}"], "description": [{description}], '
            f'"title": "{title}", "brand": "{brand}", "price": "{price}", "asin": "{item_id}"}}\n'
            for item_id, title, brand, price, description, shelf in zip(*columns, strict=True)
        )


# --- the same in plain pandas ---------------------------------------------------------------------------------------


def prepare_with_pandas(reviews: Path, out: Path) -> None:
    """The same context as one writes it in pandas: every example with the texts of its histories, in one table.

    In its favour: the items' file is not read, and no file is hashed.
    """
    import pandas as pd

    names = {
        "reviewerID": "user_id", "asin": "item_id", "overall": "rating",
        "unixReviewTime": "timestamp", "reviewText": "review", "summary": "summary",
    }  # fmt: skip
    frame = pd.read_json(reviews, lines=True, engine="pyarrow")  # several times as quick as the default engine
    frame = frame[list(names)].rename(columns=names)
    # All-digit ids of one length sort as text as they do as numbers, and before letters: no key is needed here.
    frame = frame.sort_values(["timestamp", "user_id", "item_id", "rating"])
    frame = frame.drop_duplicates(["user_id", "item_id"], keep="first").reset_index(drop=True)
    train, validation = round(0.8 * len(frame)), round(0.9 * len(frame))
    frame["split"] = ["train"] * train + ["validation"] * (validation - train) + ["test"] * (len(frame) - validation)

    times, ratings = frame["timestamp"].tolist(), frame["rating"].tolist()
    for side, other in (("user", "item_id"), ("item", "user_id")):
        entries = frame[[other, "rating", "timestamp", "review", "summary"]].to_dict("records")
        histories: list[Any] = [None] * len(frame)
        averages, counts = [math.nan] * len(frame), [0] * len(frame)
        for rows in frame.groupby(f"{side}_id", sort=False).indices.values():
            group = rows.tolist()
            earlier, total = 0, 0.0  # how many of the group are strictly earlier, and the sum of their ratings
            for row in group:
                while times[group[earlier]] < times[row]:
                    total += ratings[group[earlier]]
                    earlier += 1
                histories[row] = [entries[past] for past in group[max(0, earlier - HISTORY) : earlier]]
                counts[row] = earlier
                if earlier:
                    averages[row] = total / earlier
        frame[f"{side}_history"] = histories
        frame[f"{side}_avg"] = averages
        frame[f"{side}_count"] = counts
    frame.to_parquet(out, index=False)


def differences(prepared: Path, by_pandas: Path, sample: int = 200, seed: int = 0) -> list[str]:
    """What differs between the two in `sample` random rows (all rows, if fewer): one line each, none if they agree.

    Compared are place, ids, rating, time, split, both histories, averages and counts, and that the `row` of each entry
    of a history is the row of interactions.parquet it says.
    """
    import polars as pl

    ours, theirs = pl.read_parquet(prepared / "examples.parquet"), pl.read_parquet(by_pandas)
    interactions = pl.read_parquet(
        prepared / "interactions.parquet", columns=["user_id", "item_id", "rating", "timestamp"]
    )
    if ours.height != theirs.height:
        return [f"reczero has {ours.height:,} examples, pandas {theirs.height:,}"]
    rows = np.sort(np.random.default_rng(seed).permutation(ours.height)[:sample])
    plain = ["user_id", "item_id", "rating", "timestamp", "split", "user_count", "item_count"]
    found = []
    for row, our, their in zip(rows.tolist(), ours[rows].to_dicts(), theirs[rows].to_dicts(), strict=True):
        faults = [name for name in plain if our[name] != their[name]]
        for side, other in (("user", "item_id"), ("item", "user_id")):
            kept = (other, "rating", "timestamp")
            left, right = ([[entry[name] for name in kept] for entry in one[f"{side}_history"]] for one in (our, their))
            if left != right:
                faults.append(f"{side}_history")
            for entry in our[f"{side}_history"]:
                inside = 0 <= entry["row"] < interactions.height
                referred = interactions.row(entry["row"], named=True) if inside else None
                if referred != {f"{side}_id": our[f"{side}_id"], **{name: entry[name] for name in kept}}:
                    faults.append(f"{side}_history.row")
            ours_avg, theirs_avg = our[f"{side}_avg"], their[f"{side}_avg"]
            if ours_avg is None or theirs_avg is None or math.isnan(theirs_avg):
                same = ours_avg is None and (theirs_avg is None or math.isnan(theirs_avg))
            else:
                same = math.isclose(ours_avg, theirs_avg, rel_tol=1e-12)
            if not same:
                faults.append(f"{side}_avg")
        found += [f"row {row} ({our['user_id']}, {our['item_id']}): {fault}" for fault in dict.fromkeys(faults)]
    return found


# --- measure --------------------------------------------------------------------------------------------------------


def measure(command: list[str], memory: float | None) -> dict[str, Any]:
    """Run `command` and return its wall `seconds`, `peak` (GiB), exit `code` and the last line of its `error` output.

    Called in a process of its own for each run: the kernel keeps one maximum over all children a process ever had.
    ru_maxrss rather than polling, which misses short peaks. It is the largest single process (nothing measured here
    starts others that work), counts pages of files mapped into memory too, and is never less than what this process
    holds when it forks (some 30 MiB).
    """

    def in_child() -> None:
        # Should memory run out, the measured process is to die, not whatever else runs on the machine.
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
        if memory is not None:
            resource.setrlimit(resource.RLIMIT_AS, (int(memory * GIB), int(memory * GIB)))

    with tempfile.TemporaryFile() as errors:
        begin = time.perf_counter()
        code = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=errors, preexec_fn=in_child).returncode
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        errors.seek(0)
        said = errors.read().decode(errors="replace").split("\n")
    error = next((line.strip() for line in reversed(said) if line.strip()), "") if code else ""
    unit = 1 if sys.platform == "darwin" else 1024
    return {"seconds": seconds, "peak": peak * unit / GIB, "code": code, "error": error}


def _measured(what: str, command: list[str], memory: float | None = None) -> dict[str, Any]:
    _say(f"  {what} ...")
    limit = [] if memory is None else ["--memory", str(memory)]
    wrapper = [sys.executable, __file__, "measure", *limit, "--", *command]
    figures: dict[str, Any] = json.loads(subprocess.run(wrapper, check=True, stdout=subprocess.PIPE).stdout)
    died = f", died with code {figures['code']}: {figures['error']}" if figures["code"] else ""
    _say(f"  {what}: {figures['seconds']:.1f} s, {figures['peak']:.2f} GiB{died}")
    return figures


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _machine() -> dict[str, Any]:
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    packages = {name: version(name) for name in ("reczero", "polars", "pyarrow", "pandas", "numpy")}
    memory = psutil.virtual_memory().total / GIB
    return {
        "cores": cores,
        "memory_gib": memory,
        "system": platform.platform(),
        "python": platform.python_version(),
    } | {"packages": packages}


def run(options: argparse.Namespace) -> int:
    """Make, prepare and tell for each size; exit code 1 when reczero died or the two do not agree."""
    machine = _machine()
    print(f"{machine['cores']} cores, {machine['memory_gib']:.1f} GiB, {machine['system']}, Python {machine['python']}")
    print(", ".join(f"{name} {number}" for name, number in machine["packages"].items()))
    print(f"reviews of {options.text_length} characters on average, seed {options.seed}", flush=True)
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    for size in sorted(set(options.sizes)):
        folder = Path(tempfile.mkdtemp(prefix=f"reczero-{size:g}m-", dir=options.work))
        try:
            results.append(_run_size(size, folder, options))
        finally:
            if options.keep:
                _say(f"  kept: {folder}")
            else:
                shutil.rmtree(folder)
    print("\n" + "\n".join([*_table(results), *_growth(results)]))
    if options.json is not None:
        figures = {"machine": machine, "text_length": options.text_length, "seed": options.seed, "sizes": results}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return int(any(one["reczero"]["code"] or one.get("differences") for one in results))


def _run_size(size: float, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    rows = _rows(size)
    _say(f"{rows:,} rows")
    begin = time.perf_counter()
    reviews, meta = make(rows, folder, options.text_length, options.seed)
    megabytes = (reviews.stat().st_size + meta.stat().st_size) / 1e6
    _say(f"  made in {time.perf_counter() - begin:.1f} s: {megabytes:,.0f} MB")
    out, table = folder / "prepared", folder / "pandas.parquet"
    result: dict[str, Any] = {"rows": rows, "input_mb": megabytes}
    result["reczero"] = _measured(
        "reczero",
        [
            *(sys.executable, "-m", "reczero.cli.main", "data", "prepare", "--source", "amazon2018"),
            *("--reviews", str(reviews), "--items", str(meta), "--out", str(out), "--k-core", "0"),
        ],
    )
    if size in options.pandas_sizes:
        command = [sys.executable, __file__, "pandas", str(reviews), str(table)]
        result["pandas"] = _measured("pandas", command, options.pandas_memory)
        if rows <= CHECKED and not result["reczero"]["code"] and not result["pandas"]["code"]:
            result["differences"] = found = differences(out, table, seed=options.seed)
            print(f"{rows:,} rows: pandas and reczero " + ("agree" if not found else f"differ: {'; '.join(found[:5])}"))
    return result


def _table(results: list[dict[str, Any]]) -> list[str]:
    """In Markdown, so that it can go into the docs as it is."""
    lines = [
        "| rows | input MB | reczero s | reczero peak GiB | rows/s | pandas s | pandas peak GiB | pandas / reczero s |",
        "|" + "---:|" * 8,
    ]
    for one in results:
        ours, theirs = one["reczero"], one.get("pandas")
        cells = [f"{one['rows']:,}", f"{one['input_mb']:,.0f}", *_cells(ours)]
        cells.append("" if ours["code"] else f"{one['rows'] / ours['seconds']:,.0f}")
        cells += _cells(theirs)
        alive = theirs if theirs and not theirs["code"] and not ours["code"] else None
        cells.append(f"{alive['seconds'] / ours['seconds']:.1f}" if alive else "")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cells(figures: dict[str, Any] | None) -> list[str]:
    """Seconds and peak; of a process that died, after how long and how much."""
    if figures is None:
        return ["", ""]
    died = "died after " if figures["code"] else ""
    return [f"{died}{figures['seconds']:.1f}", f"{figures['peak']:.2f}"]


def _growth(results: list[dict[str, Any]]) -> list[str]:
    lines = []
    for name in ("reczero", "pandas"):
        alive = [one for one in results if name in one and not one[name]["code"]]
        for before, after in zip(alive, alive[1:], strict=False):
            more, longer = after["rows"] / before["rows"], after[name]["seconds"] / before[name]["seconds"]
            lines.append(f"{name}, {before['rows']:,} to {after['rows']:,}: {more:g}x rows: {longer:.1f}x seconds")
    return lines


# --- the command line -----------------------------------------------------------------------------------------------


def _rows(size: float) -> int:
    return round(size * 1_000_000)


def _size(text: str) -> float:
    size = float(text)
    if not math.isfinite(size) or _rows(size) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of millions of rows")
    return size


def _text_length(text: str) -> int:
    length = int(text)
    if not 1 <= length <= POOL // 200:  # the longest text, 100 times as long, must come out of the pool
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and {POOL // 200}")
    return length


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--text-length", type=_text_length, default=300, metavar="N", help="mean characters; %(default)s"
    )
    shared.add_argument("--seed", type=int, default=0, help="of the made-up data; %(default)s")

    parser = argparse.ArgumentParser(
        description="Measure how `reczero data prepare` scales.",
        epilog="Example: python benchmarks/data.py run --sizes 0.1 1 --json figures.json",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{make,run}")

    of_make = commands.add_parser(
        "make", parents=[shared], help="only write the files",
        epilog="Example: python benchmarks/data.py make 0.1 --out /tmp/reviews",
    )  # fmt: skip
    of_make.add_argument("size", type=_size, help="millions of rows")
    of_make.add_argument("--out", type=Path, required=True, metavar="DIR", help="for reviews.json and meta.json")

    of_run = commands.add_parser(
        "run", parents=[shared], help="make, prepare, measure, for each size",
        epilog="Example: python benchmarks/data.py run --sizes 0.1 1 --pandas-sizes 0.1 --work /tmp/work",
    )  # fmt: skip
    millions: dict[str, Any] = {"type": _size, "nargs": "*", "metavar": "M"}
    of_run.add_argument("--sizes", default=[0.1, 1.0, 10.0], help="millions of rows; 0.1 1 10", **millions)
    of_run.add_argument("--pandas-sizes", default=[0.1, 1.0], help="those of --sizes for pandas too; 0.1 1", **millions)
    of_run.add_argument(
        "--pandas-memory", type=float, metavar="GIB", help="address space that pandas may take; no limit"
    )
    of_run.add_argument(
        "--work", type=Path, metavar="DIR", help="where to put what is made; the system's place for that"
    )
    of_run.add_argument("--keep", action="store_true", help="do not remove what was made")
    of_run.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")

    of_pandas = commands.add_parser("pandas")  # these two are for `run`
    of_pandas.add_argument("reviews", type=Path)
    of_pandas.add_argument("out", type=Path)
    of_measure = commands.add_parser("measure")
    of_measure.add_argument("--memory", type=float)
    of_measure.add_argument("measured", nargs="+")
    return parser


def main() -> int:
    """Return the exit code."""
    options = _parser().parse_args()
    if options.command == "run":
        return run(options)
    if options.command == "pandas":
        prepare_with_pandas(options.reviews, options.out)
    elif options.command == "measure":
        print(json.dumps(measure(options.measured, options.memory)))
    else:
        begin = time.perf_counter()
        rows = _rows(options.size)
        files = make(rows, options.out, options.text_length, options.seed)
        seconds = time.perf_counter() - begin
        size = sum(file.stat().st_size for file in files) / 1e6
        print(f"{rows:,} rows, {size:,.0f} MB in {seconds:.1f} s: {' '.join(map(str, files))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
