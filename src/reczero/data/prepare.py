"""From raw files to a prepared folder: read and check, order, split, context, write. All of it or nothing.

Texts never stay in memory: they are staged on disk while the rows are read, and written in order of time at the end.
"""

import hashlib
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from reczero import __version__
from reczero.errors import UserError, unknown
from reczero.files import atomic_dir, cache_dir, sha256, write_json
from reczero.reasoning import Scale

from .context import contexts, write_examples
from .dataset import FILES, FORMAT, QUARANTINE, Dataset
from .origin import About, Origin, locate
from .parts import Parts, remove_parts, write_part
from .raw import Part, Quarantine, RawFile, Report, silent
from .settings import PrepareSettings, when
from .sources import PUBLISHED, SOURCES, Given, Raw
from .splits import SPLITS, choose_targets, split_rows
from .store import check_agreement, in_order, stage_interactions, stage_items, write_interactions, write_items
from .tables import Clock, ScaleRule

STAGED = ".staged"
LEAKS = "split random leaks: an example's context may hold what happened after it; take another split for any claim"


def prepare_source(
    origin: Origin | str, out: Path, settings: PrepareSettings | None = None, report: Report = silent
) -> Dataset:
    """Find or fetch the files of `origin` (a name alone is a data set's), and prepare them in folder `out`.

    A folder that already holds exactly this (same files read, same settings, same version of reczero) is used as it is.
    Raises UserError.
    """
    settings = settings or PrepareSettings()
    source, given, about, there = _found(origin, out, settings, report)
    return there or prepare_raw(SOURCES[source].read(given, report), out, settings, about, report)


def prepare_part(
    origin: Origin | str, out: Path, part: Part, settings: PrepareSettings | None = None, report: Report = silent
) -> Path:
    """Read and check the share `part` of what `prepare_source` would read, and leave it beside `out`, all or nothing,
    for `join_parts`. Returns where; `out` where the whole data set is there already, and a part that is there is not
    made again. Raises UserError.
    """
    settings = settings or PrepareSettings()
    source, given, about, there = _found(origin, out, settings, report)
    if there:
        return out
    raw = SOURCES[source].read(given, report)
    _check_timed(raw, settings)
    return write_part(raw, out, part, _provenance(about, settings))


def join_parts(
    origin: Origin | str, out: Path, of: int, settings: PrepareSettings | None = None, report: Report = silent
) -> Dataset:
    """As `prepare_source`, byte for byte, from the `of` parts that `prepare_part` left; they are removed. Raises
    UserError for parts that are missing, damaged, or made of other files or with other settings.
    """
    settings = settings or PrepareSettings()
    source, given, about, there = _found(origin, out, settings, report)
    if not there:
        parts = Parts.find(out, of, _provenance(about, settings))
        there = prepare_raw(SOURCES[source].read(given, report), out, settings, about, report, parts)
    remove_parts(out, of)
    return there


def _found(
    origin: Origin | str, out: Path, settings: PrepareSettings, report: Report
) -> tuple[str, Given, About, Dataset | None]:
    """What `locate` finds, and the data set in `out` where it is exactly this."""
    origin = Origin(dataset=origin) if isinstance(origin, str) else origin
    _check_replaceable(out)
    source, given, about = locate(origin, report)
    if (out / "dataset.json").is_file():
        try:
            there = Dataset.open(out)
            if _provenance(about, settings).items() <= there.info.items() and there.is_intact():
                return source, given, about, there
        except UserError:
            pass  # damaged or of an older format: made anew
    return source, given, about, None


def cached(origin: Origin, settings: PrepareSettings) -> Path:
    """The folder of the cache that belongs to these files and settings, whether it is there or not."""
    mark = hashlib.sha256(f"{origin} {settings.model_dump_json()}".encode()).hexdigest()[:8]
    name = origin.source or Path(origin.dataset or "table").name
    return cache_dir() / "prepared" / f"{name}-{mark}"


def prepare_cached(origin: Origin, settings: PrepareSettings, report: Report = silent) -> Dataset:
    """As `prepare_source`, in a folder of the cache that belongs to these files and settings: prepared once."""
    return prepare_source(origin, cached(origin, settings), settings, report)


def open_data(name: Path | str) -> Dataset:
    """A prepared folder, or a data set by its name (`reczero data list`), prepared once in the cache. Raises
    UserError."""
    if isinstance(name, Path) or Path(name).exists() or "/" in name:
        return Dataset.open(name)
    if name not in {**PUBLISHED, **SOURCES}:
        raise unknown("prepared folder, run or data set", name, PUBLISHED)
    return prepare_cached(Origin(dataset=name), PrepareSettings())


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
    raw = Raw([next(numbered)], [next(numbered)], *files, ScaleRule.of(scale), Clock("s"), {})
    return prepare_raw(raw, out, settings or PrepareSettings(), about or About())


def prepare_raw(
    raw: Raw, out: Path, settings: PrepareSettings, about: About, report: Report = silent, parts: "Parts | None" = None
) -> Dataset:
    """Write interactions.parquet, items.parquet, examples.parquet, dataset.json and, where there were bad rows,
    quarantine.jsonl to `out`, all or nothing.

    The same rows in another order give the same bytes. Of repeated ratings of an item by a user the earliest is kept.
    Which rows become examples, and their split, is settled by `settings`; contexts rest on all rows that were earlier.
    The rows are those of `parts`, if there are any, and are read otherwise. Raises UserError for too many bad rows, no
    rows left, or an `out` that holds something else.
    """
    _check_replaceable(out)
    _check_timed(raw, settings)
    quarantine = raw.reviews.quarantine
    with atomic_dir(out, ours="dataset.json") as folder:
        (folder / STAGED).mkdir()
        stage = (parts.interactions, parts.items) if parts else (stage_interactions, stage_items)
        rows, texts = stage[0](raw, folder / STAGED)
        read = rows.height
        quarantine.check("interactions", read, settings.max_bad)
        if not read:
            raise UserError(f"{raw.reviews.name or 'interactions'}: the table has no rows.")
        scale = raw.scale.settle(rows["rating"])
        ratings, kept = in_order(rows, raw.timed, settings.seed)
        with_text = int(rows["text"].gather(kept).is_not_null().sum())
        del rows
        told = partial(report, "writing interactions")
        write_interactions(folder / "interactions.parquet", ratings, kept, read, texts if with_text else None, told)

        listed, staged = stage[1](raw, folder / STAGED)
        quarantine.check("items", listed.height, settings.max_bad)
        if not raw.items_vary:
            check_agreement(listed)
        bare = write_items(folder / "items.parquet", listed, staged, ratings.item_ids)

        targets = choose_targets(ratings.users, ratings.items, ratings.user_ids, settings)
        split = split_rows(targets, ratings.users, ratings.timestamp, settings, raw.timed)
        examples = contexts(ratings, split, settings)
        write_examples(folder / "examples.parquet", ratings, examples, settings, partial(report, "writing examples"))
        shutil.rmtree(folder / STAGED)
        quarantine.save(folder / QUARANTINE)
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
            inside = examples.split == number
            counts |= {name: int(inside.sum()), f"{name}_cold_start": int(cold[inside].sum())}
        times = "none: rows stand in a shuffled order, which counts as their time"
        if raw.timed:
            times = f"{raw.clock.found}, {' to '.join(when(t) for t in ratings.timestamp[[0, -1]].tolist())}"
        found = raw.found | {"times": times}
        info = _provenance(about, settings) | {"scale": scale.to_dict(), "found": found, "timed": raw.timed}
        info |= {"counts": counts, "files": {file: sha256(folder / file) for file in FILES}}
        write_json(folder / "dataset.json", info)
    return Dataset.open(out)


def _check_timed(raw: Raw, settings: PrepareSettings) -> None:
    if not raw.timed and settings.split != "random":
        raise UserError(
            f"{raw.reviews.name or 'interactions'}: no column for the time, so what was known before a rating can't be "
            "told. Name it: --columns timestamp=… ; or take --split random, which leaks."
        )


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
