"""From raw files to a prepared folder: read and check, order, split, context, write. All of it or nothing.

Texts never stay in memory: they are staged on disk while the rows are read, and written in order of time at the end.
"""

import difflib
import hashlib
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from reczero import __version__
from reczero.errors import UserError
from reczero.fetch import download
from reczero.files import atomic_dir, cache_dir, sha256, write_json
from reczero.reasoning import Scale

from .context import Ratings, contexts, write_examples
from .dataset import FILES, FORMAT, QUARANTINE, Dataset
from .raw import Quarantine, RawFile, Report, silent
from .settings import PrepareSettings
from .sources import PUBLISHED, SOURCES, Given, Raw
from .splits import NONE, SPLITS, choose_targets, split_rows
from .staging import Staging
from .tables import INTERACTIONS, ITEMS, Checker, Clock, ScaleRule, check_items

ROWS = 20_000  # rows in a Parquet row group with texts: what is read at a time when a prompt is made
STAGED = ".staged"
LEAKS = "split random leaks: an example's context may hold what happened after it; take another split for any claim"


@dataclass(frozen=True)
class Origin:
    """Which data set, or which files, and how to read them; the keys of a recipe's `data` section and of `data prepare`.

    `dataset`: a name of `reczero data list`, fetched unless it is there; or `source` and the files. `reviews` and
    `items` are paths or URLs, and stand in the place of the data set's own files. `columns`: ours -> theirs.
    """

    dataset: str | None = None
    source: str | None = None
    reviews: str | None = None
    items: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    scale: str | None = None
    encoding: str = "utf-8"
    time_format: str | None = None


@dataclass(frozen=True)
class About:
    """Where the rows came from, for dataset.json."""

    name: str = "table"
    source: str = ""
    licence: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)  # name of a file that was read -> SHA-256
    asked: Mapping[str, Any] = field(default_factory=dict)


def prepare_source(
    origin: Origin | str, out: Path, settings: PrepareSettings | None = None, report: Report = silent
) -> Dataset:
    """Find or fetch the files of `origin` (a name alone is a data set's), and prepare them in folder `out`.

    A folder that already holds exactly this (same files read, same settings, same version of reczero) is used as it is.
    Raises UserError.
    """
    settings = settings or PrepareSettings()
    origin = Origin(dataset=origin) if isinstance(origin, str) else origin
    _check_replaceable(out)
    source, given, about = _locate(origin, report)
    made = _provenance(about, settings)
    if (out / "dataset.json").is_file():
        try:
            there = Dataset.open(out)
            if made.items() <= there.info.items() and there.is_intact():
                return there
        except UserError:
            pass  # damaged or of an older format: made anew below
    return prepare_raw(SOURCES[source].read(given, report), out, settings, about, report)


def prepare(
    interactions: pl.DataFrame,
    items: pl.DataFrame,
    scale: Scale,
    out: Path,
    settings: PrepareSettings | None = None,
    about: About | None = None,
) -> Dataset:
    """`prepare_raw` of tables in memory: user_id, item_id, rating, timestamp, and review and summary where there are.

    `items` needs item_id and title, and may have the other columns of `ITEMS`. Raises UserError.
    """
    for what, frame, needed in (
        ("interactions", interactions, ("user_id", "item_id", "rating", "timestamp")),
        ("items", items, ("item_id", "title")),
    ):
        if missing := [name for name in needed if name not in frame.columns]:
            raise UserError(f"{what}: no column {', '.join(missing)}; there are {', '.join(frame.columns) or 'none'}.")
    quarantine = Quarantine()
    files = RawFile(Path(), "interactions", quarantine), RawFile(Path(), "items", quarantine)
    numbered = (frame.with_columns(line=pl.int_range(1, pl.len() + 1)) for frame in (interactions, items))
    raw = Raw([next(numbered)], [next(numbered)], ScaleRule.of(scale), Clock(), {}, True, False, *files)
    return prepare_raw(raw, out, settings or PrepareSettings(), about or About())


def prepare_raw(raw: Raw, out: Path, settings: PrepareSettings, about: About, report: Report = silent) -> Dataset:
    """Write interactions.parquet, items.parquet, examples.parquet, dataset.json and, where there were bad rows,
    quarantine.jsonl to `out`, all or nothing.

    The same rows in another order give the same bytes. Of repeated ratings of an item by a user the earliest is kept.
    Which rows become examples, and their split, is settled by `settings`; contexts rest on all rows that were earlier.
    Raises UserError for too many bad rows, no rows left, or an `out` that holds something else.
    """
    _check_replaceable(out)
    if not raw.timed and settings.split != "random":
        raise UserError(
            f"{raw.reviews.name or 'interactions'}: no column for the time, so what was known before a rating can't be told. "
            "Name it: --columns timestamp=… ; or take --split random, which leaks."
        )
    quarantine = raw.reviews.quarantine
    with atomic_dir(out, ours="dataset.json") as folder:
        (folder / STAGED).mkdir()
        texts = Staging(folder / STAGED / "texts", {name: INTERACTIONS[name] for name in ("review", "summary")})
        check = Checker(raw.scale, raw.reviews, raw.clock, raw.timed, raw.unescape)
        rows, read = _read(raw.interactions, check, texts)
        quarantine.check("interactions", read, settings.max_bad)
        if not read:
            raise UserError(f"{raw.reviews.name or 'interactions'}: the table has no rows.")
        scale = raw.scale.settle(rows["rating"])
        ratings, kept = _ordered(rows, raw.timed, settings.seed)
        with_text = int(rows["text"].gather(kept).is_not_null().sum())
        del rows
        report("writing interactions", 0, len(ratings))
        _write_interactions(folder / "interactions.parquet", ratings, kept, read, texts if with_text else None, report)

        staged = Staging(folder / STAGED / "items", ITEMS)
        listed = _stage_items(raw, staged)
        quarantine.check("items", listed.height, settings.max_bad)
        bare = _write_items(folder / "items.parquet", listed, staged, ratings.item_ids)

        targets = choose_targets(ratings.users, ratings.items, ratings.user_ids, settings)
        split = split_rows(targets, ratings.users, ratings.timestamp, settings, raw.timed)
        examples = contexts(ratings, split, settings)
        write_examples(
            folder / "examples.parquet", ratings, examples, settings, lambda n, of: report("writing examples", n, of)
        )
        cold = examples.cold_start(settings)
        counts: dict[str, Any] = {
            "users": len(ratings.user_ids),
            "items": len(ratings.item_ids),
            "interactions": len(ratings),
            "repeats_dropped": read - len(ratings),
            "texts": with_text,
            "items_without_title": bare,
            "quarantined": quarantine.counts("interactions"),
            "items_quarantined": quarantine.counts("items"),
            "examples": len(targets),
        }
        for number, name in enumerate(SPLITS):
            counts[name] = int((split == number).sum())
            counts[f"{name}_cold_start"] = int(cold[examples.split == number].sum())
        shutil.rmtree(folder / STAGED)
        quarantine.save(folder / QUARANTINE)
        found = dict(raw.found)
        if raw.timed:
            found["times"] = raw.clock.found or "none"
        else:
            found["times"] = "none: rows stand in a shuffled order, which counts as their time"
        info = _provenance(about, settings) | {"scale": scale.to_dict(), "found": found, "timed": raw.timed}
        info |= {"counts": counts, "files": {file: sha256(folder / file) for file in FILES}}
        write_json(folder / "dataset.json", info)
    return Dataset.open(out)


# --- what to read ----------------------------------------------------------------------------------------------------


def _locate(origin: Origin, report: Report) -> tuple[str, Given, About]:
    """The source, its files on this machine, and where they came from. Raises UserError."""
    name = origin.source or origin.dataset
    published = PUBLISHED.get(origin.dataset or "")
    if name is None or (origin.source is None and published is None and name not in SOURCES):
        known = {**PUBLISHED, **SOURCES}
        near = difflib.get_close_matches(str(name).lower(), known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are: {', '.join(known)}."
        raise UserError(f"no data set or source is called {name!r}; {hint} `reczero data list` shows them all.")
    source = origin.source or (published.source if published else name)
    if source not in SOURCES:
        near = difflib.get_close_matches(source.lower(), SOURCES, n=3, cutoff=0.4)
        raise UserError(
            f"no source is called {source!r}; "
            + (f"did you mean {' or '.join(near)}?" if near else f"known are: {', '.join(SOURCES)}.")
        )
    if origin.reviews is None:
        if published is None or origin.source is not None:
            raise UserError(
                f"source {source}: name its files with --reviews (and --items). It takes {SOURCES[source].reviews}."
            )
        given = published.fetch(cache_dir())
    else:
        given = Given(_local(origin.reviews))
    if origin.items is not None or origin.reviews is not None:
        given = Given(given.reviews, _local(origin.items) if origin.items else None)
    given = Given(given.reviews, given.items, origin.columns, origin.scale, origin.encoding, origin.time_format)
    _check_encoding(origin.encoding)
    known_as = published.name if published else given.reviews.name.split(".")[0] if source == "table" else source
    home, licence = (published.home, published.licence) if published else ("", "")
    asked = {
        "source": source, "columns": dict(origin.columns), "scale": origin.scale, "encoding": origin.encoding,
        "time_format": origin.time_format,
    }  # fmt: skip
    return source, given, About(known_as, home, licence, _hashes(given, report), asked)


def _check_encoding(name: str) -> None:
    try:
        "".encode(name)
    except LookupError:
        raise UserError(
            f"encoding {name!r}: is none; write utf-8, latin-1, cp1252 or another name of Python's."
        ) from None


def _local(place: str) -> Path:
    """A path as it is; a URL fetched to the cache, once."""
    if not place.startswith(("http://", "https://")):
        path = Path(place).expanduser()
        if not path.exists():
            raise UserError(f"{path}: no such file; check the path.")
        return path
    name = place.split("?")[0].rstrip("/").rsplit("/", 1)[-1] or "download"
    path = cache_dir() / "downloads" / hashlib.sha256(place.encode()).hexdigest()[:12] / name
    return path if path.is_file() else download(place, path, None)


def _hashes(given: Given, report: Report) -> dict[str, str]:
    """Base name -> SHA-256 of every file that is read."""
    found: dict[str, str] = {}
    for path in (given.reviews, given.items):
        if path is None:
            continue
        for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else (path,):
            report(f"checking {file.name}", 0, 1)
            found[file.name] = sha256(file)
    return found


def _provenance(about: About, settings: PrepareSettings) -> dict[str, Any]:
    """The part of dataset.json that is known before the work. No clock in it: the same input gives the same bytes."""
    return {
        "format": FORMAT, "name": about.name, "source": about.source, "licence": about.licence,
        "asked": dict(about.asked), "settings": settings.model_dump(), "inputs": dict(about.inputs),
        "created_by": f"reczero {__version__}",
    }  # fmt: skip


def _check_replaceable(out: Path) -> None:
    """Only a folder that we made, and nothing else in it, may be replaced."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out}: is a file; choose another --out.")
    names = {path.name for path in out.iterdir()}
    foreign = sorted(names - {*FILES, QUARANTINE, "dataset.json"})
    if foreign or (names and "dataset.json" not in names):
        raise UserError(f"{out}: holds other files ({', '.join(sorted(foreign or names)[:3])}); choose another --out.")


# --- interactions ----------------------------------------------------------------------------------------------------


def _read(batches: Iterable[pl.DataFrame], check: Checker, texts: Staging) -> tuple[pl.DataFrame, int]:
    """The rows without their texts, in the order of reading: ids, rating, timestamp, and `text`, a hash of review and
    summary (null where there are none); and how many they are. The texts are staged."""
    slim = []
    for batch in batches:
        good = check(batch)
        texts.add(good)
        some = pl.any_horizontal(pl.col("review", "summary").is_not_null())
        slim.append(
            good.select(
                "user_id",
                "item_id",
                "rating",
                "timestamp",
                text=pl.when(some).then(pl.struct("review", "summary").hash()),
            )
        )
    texts.close()
    if not slim:
        kinds = {name: INTERACTIONS[name] for name in ("user_id", "item_id", "rating", "timestamp")}
        return pl.DataFrame(schema=kinds | {"text": pl.UInt64()}), 0
    rows = pl.concat(slim)
    return rows, rows.height


def _ranked(ids: pl.Series) -> tuple[pl.Series, np.ndarray]:
    """The distinct ids in order, and each row's place among them (int32): numbers by value, before all other ids, which
    come by their bytes.

    The order of two ids never depends on which other ids there are: an id that turns up later must not reorder ties in
    what was shown before.
    """
    distinct = ids.unique().to_frame().sort(*_id_order(pl.col(ids.name)))
    codes = ids.to_frame().join(
        distinct.with_columns(pl.int_range(pl.len(), dtype=pl.Int32).alias("code")),
        on=ids.name,
        how="left",
        maintain_order="left",
    )
    return distinct.to_series(), codes["code"].to_numpy()


def _id_order(column: pl.Expr) -> list[pl.Expr]:
    number = column.str.contains(r"^[0-9]+$")
    digits = column.str.strip_chars_start("0")
    return [~number, pl.when(number).then(digits.str.len_bytes()), pl.when(number).then(digits), column]


def _ordered(rows: pl.DataFrame, timed: bool, seed: int) -> tuple[Ratings, np.ndarray]:
    """Rows by (time, user, item) without repeats, and which of the rows read each of them is.

    Repeats of one second and rating are told apart by a hash of their texts, so that input order never matters. Rows
    without times are shuffled, and their places stand for the time.
    """
    user_ids, users = _ranked(rows["user_id"])
    item_ids, items = _ranked(rows["item_id"])
    slim = rows.select(
        "timestamp", "rating", "text", user=pl.Series(users), item=pl.Series(items), at=pl.int_range(pl.len())
    )
    slim = slim.sort("timestamp", "user", "item", "rating", "text")
    slim = slim.unique(["user", "item"], keep="first", maintain_order=True)
    if not timed:
        slim = slim[np.random.default_rng(seed).permutation(slim.height)]
        slim = slim.with_columns(timestamp=pl.int_range(pl.len()))
    columns = (slim[name].to_numpy() for name in ("user", "item", "rating", "timestamp"))
    return Ratings(user_ids, item_ids, *columns), slim["at"].to_numpy()


def _write_interactions(
    path: Path, ratings: Ratings, kept: np.ndarray, read: int, texts: Staging | None, report: Report
) -> None:
    """interactions.parquet. `kept`: which of the `read` rows each is; `texts` is None where there are none at all."""
    position = np.full(read, -1, np.int64)
    position[kept] = np.arange(len(kept))
    user_ids, item_ids = ratings.user_ids.to_arrow(), ratings.item_ids.to_arrow()
    nothing = pl.DataFrame(schema={name: INTERACTIONS[name] for name in ("review", "summary")})
    empty = nothing.to_arrow(compat_level=pl.CompatLevel.oldest()).schema
    if texts is None:
        parts = (
            pa.table([pa.nulls(min(ROWS, len(kept) - begin), kind) for kind in empty.types], schema=empty)
            for begin in range(0, len(kept), ROWS)
        )
    else:
        parts = texts.ordered(position, ROWS)
    writer: pq.ParquetWriter | None = None
    begin = 0
    try:
        for part in parts:
            inside = slice(begin, begin + part.num_rows)
            begin += part.num_rows
            table = pa.table(
                {
                    "user_id": user_ids.take(pa.array(ratings.users[inside])),
                    "item_id": item_ids.take(pa.array(ratings.items[inside])),
                    "rating": pa.array(ratings.rating[inside]),
                    "timestamp": pa.array(ratings.timestamp[inside]),
                    "review": part["review"],
                    "summary": part["summary"],
                }
            )
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table, row_group_size=ROWS)
            report("writing interactions", begin, len(kept))
    finally:
        if writer is not None:
            writer.close()


# --- items -----------------------------------------------------------------------------------------------------------


def _stage_items(raw: Raw, staged: Staging) -> pl.DataFrame:
    """item_id, title and a hash of all else of every row of the item table, in the order of reading; the rows staged."""
    slim = [pl.DataFrame(schema={"item_id": pl.String, "title": pl.String, "rest": pl.UInt64})]
    for batch in raw.items:
        good = check_items(batch, raw.item_file, raw.unescape)
        staged.add(good)
        rest = pl.struct(pl.col("categories").list.join("\0"), "creator", "price", "description").hash()
        slim.append(good.select("item_id", "title", rest=rest))
    staged.close()
    return pl.concat(slim)


def _write_items(path: Path, listed: pl.DataFrame, staged: Staging, rated: pl.Series) -> int:
    """items.parquet: one row an item, by id, the unrated ones too. Returns how many rated ones had no title: those are
    called by their id."""
    # Of two rows for one item, the same one whatever the order they came in; one with a title if there is any.
    best = (
        listed.with_row_index("at")
        .sort("item_id", "title", "rest", nulls_last=True)
        .unique("item_id", keep="first", maintain_order=True)
    )
    unlisted = rated.filter(~rated.is_in(best["item_id"].implode()))
    bare = len(unlisted) + best.filter(pl.col("title").is_null(), pl.col("item_id").is_in(rated.implode())).height
    columns = pl.concat([best.select("item_id", "at"), unlisted.alias("item_id").to_frame()], how="diagonal")
    columns = columns.sort(*_id_order(pl.col("item_id")))

    position = np.full(listed.height, -1, np.int64)
    known = columns["at"].is_not_null()
    position[columns["at"].drop_nulls().to_numpy()] = np.flatnonzero(known.to_numpy())
    schema = pl.DataFrame(schema=ITEMS).to_arrow(compat_level=pl.CompatLevel.oldest()).schema
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        # The listed ones come in their order; between them stand those of which nothing is known.
        listed_rows = staged.ordered(position, ROWS) if known.any() else iter(())
        waiting = pl.DataFrame(schema=ITEMS)
        for begin in range(0, columns.height, ROWS):
            part = columns[begin : begin + ROWS]
            here = int(part["at"].is_not_null().sum())
            while waiting.height < here:
                waiting = pl.concat([waiting, pl.DataFrame(pl.from_arrow(next(listed_rows))).cast(ITEMS)])
            rows = part.select("item_id").join(waiting[:here], on="item_id", how="left", maintain_order="left")
            waiting = waiting[here:]
            rows = rows.with_columns(pl.col("title").fill_null(pl.col("item_id")), pl.col("categories").fill_null([]))
            writer.write_table(rows.select(*ITEMS).to_arrow(compat_level=pl.CompatLevel.oldest()).cast(schema))
    return bare


__all__ = ["LEAKS", "NONE", "About", "Origin", "prepare", "prepare_raw", "prepare_source"]
