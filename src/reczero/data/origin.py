"""Which files a data set is read from: named by the user, lying in the cache, or fetched."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reczero.errors import UserError, unknown
from reczero.fetch import download
from reczero.files import cache_dir, sha256

from .raw import Report
from .sources import PUBLISHED, SOURCES, Given
from .tables import check_time_format


@dataclass(frozen=True)
class Origin:
    """Which data set, or which files, and how to read them; a recipe's `data` section has the same keys.

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


def locate(origin: Origin, report: Report) -> tuple[str, Given, About]:
    """The name of the source, its files on this machine, and where they came from. Raises UserError."""
    published = PUBLISHED.get(origin.dataset or "")
    source = origin.source or (published.source if published else origin.dataset)
    if source not in SOURCES:
        if origin.dataset and (Path(origin.dataset) / "dataset.json").is_file():
            raise UserError(f"{origin.dataset}: is prepared already; `reczero data show {origin.dataset}` shows it.")
        if origin.source:
            raise unknown("source", source, SOURCES)
        raise unknown("data set or source", source, {**PUBLISHED, **SOURCES})
    try:
        "a".encode(origin.encoding, "surrogateescape")
    except (LookupError, UnicodeError):
        raise UserError(f"encoding {origin.encoding!r}: is none; write utf-8, latin-1 or cp1252, say.") from None
    check_time_format(origin.time_format)

    if origin.reviews is not None:
        reviews, items = _local(origin.reviews), _local(origin.items) if origin.items else None
    elif published is not None:
        there = published.fetch(cache_dir())
        reviews, items = there.reviews, _local(origin.items) if origin.items else there.items
    else:
        raise UserError(f"source {source}: name its files with --reviews. It takes {SOURCES[source].reviews}.")
    if published is not None:
        published.check(reviews)
    for path in (reviews, items):
        if path and path.is_dir() and (source != "movielens" or path is items):
            raise UserError(f"{path}: is a folder; name the file.")
    given = Given(reviews, items, origin.columns, origin.scale, origin.encoding, origin.time_format)
    asked = {key: value for key, value in vars(origin).items() if key not in ("dataset", "reviews", "items")}
    name = published.name if published else reviews.name.split(".")[0] if source == "table" else source
    home, licence = (published.home, published.licence) if published else ("", "")
    inputs = _hashes(SOURCES[source].files(given), report)
    return source, given, About(name, home, licence, inputs, asked | {"source": source})


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


def _hashes(files: Iterable[Path], report: Report) -> dict[str, str]:
    """Base name -> SHA-256."""
    found: dict[str, str] = {}
    for file in files:
        report(f"checking {file.name}", 0, 1)
        found[file.name] = sha256(file)
    return found
