"""A preparation by parts: each worker reads and checks a share of the raw rows, and one joins what they left.

What depends on all rows (the scale, repeats, ids that don't meet, the share of bad rows, order, splits, contexts) is
left to the join, which goes on as if it had read all rows itself. Parts lie beside the folder that is to be made:

    .NAME.parts/3-of-16/staged/   rows, texts, listed, items (Parquet), *.bad (JSON lines), part.json
"""

import hashlib
import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from reczero.errors import UserError
from reczero.files import atomic_dir, held, read_json, sha256, write_json, writing

from .raw import Part, Quarantine
from .sources import Raw
from .staging import Staging
from .store import TEXTS, THINGS, stage_interactions, stage_items

ROWS, LISTED = "rows", "listed"  # of the interactions and of the items: what stays in memory
BAD = {"interactions": "interactions.bad", "items": "items.bad"}
SEAL = "part.json"


def _folder(out: Path, part: Part) -> Path:
    real = Path(os.path.realpath(out))
    return real.with_name(f".{real.name}.parts") / f"{part.number}-of-{part.of}"


def _key(made: dict[str, Any]) -> str:
    """Of the files, how they are read, and the versions: hashes of texts are those of one version of polars."""
    return hashlib.sha256(json.dumps([made, pl.__version__], sort_keys=True).encode()).hexdigest()


def write_part(raw: Raw, out: Path, part: Part, made: dict[str, Any]) -> Path:
    """Reads the part's batches and leaves them typed beside `out`; returns the folder. A finished part stays as it is.

    made: what all parts have in common. Raises UserError where another process is at it, or the part was made of
    something else.
    """
    folder = _folder(out, part)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with held(folder):
        if (folder / "staged" / SEAL).is_file():
            _check_key(folder, read_json(folder / "staged" / SEAL), made)
            return folder
        for left in folder.iterdir():  # by one that was killed
            shutil.rmtree(left)
        raw.reviews.part = raw.item_file.part = part
        # Of the kind of times, the first rows tell: those every part looks at.
        raw.reviews.settled = lambda: raw.clock.settled or not raw.timed
        raw.item_file.quarantine = Quarantine()
        with atomic_dir(folder / "staged") as new:
            rows, texts = stage_interactions(raw, new)
            listed, items = stage_items(raw, new)
            rows.write_parquet(new / ROWS, compression="lz4")
            listed.write_parquet(new / LISTED, compression="lz4")
            for file in (raw.reviews, raw.item_file):
                file.quarantine.save(new / BAD[file.table])
            sizes = {TEXTS: (texts.rows, texts.bytes), THINGS: (items.rows, items.bytes)}
            files = {path.name: sha256(path) for path in sorted(new.iterdir())}
            write_json(new / SEAL, {"key": _key(made), "times": raw.clock.found, "sizes": sizes, "files": files})
    return folder


def _check_key(folder: Path, seal: dict[str, Any], made: dict[str, Any]) -> None:
    if seal.get("key") != _key(made):
        raise UserError(
            f"{folder}: was made of other files, with other options or by another version; remove it, or choose "
            "another --out."
        )


def _sealed(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / "staged" / SEAL)
    except UserError as error:
        raise UserError(f"{folder}: is damaged; remove it, and make that part again.") from error


def remove_parts(out: Path, of: int) -> None:
    """Removes the `of` parts beside `out`, and their folder if nothing else is in it."""
    parent = _folder(out, Part()).parent
    for folder in parent.glob(f"*-of-{of}"):
        shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        parent.rmdir()


@dataclass(frozen=True)
class Parts:
    """All parts of one preparation, finished: they give what reading all rows gives, in the order of the parts."""

    folders: list[Path]
    seals: list[dict[str, Any]]

    @classmethod
    def find(cls, out: Path, of: int, made: dict[str, Any]) -> "Parts":
        """Those beside `out`. Raises UserError, naming them, for parts that are missing, damaged, or of another
        making."""
        whole = [_folder(out, Part(number, of)) for number in range(1, of + 1)]
        folders = [folder / "staged" for folder in whole]
        missing = [number for number, folder in enumerate(folders, 1) if not (folder / SEAL).is_file()]
        if missing:
            named = ", ".join(f"{number}/{of}" for number in missing[:20])
            more = f" and {len(missing) - 20:,} more" if len(missing) > 20 else ""
            raise UserError(f"{out}: of its {of:,} parts {named}{more} are missing; make them with --part first.")
        seals = [_sealed(folder) for folder in whole]
        for folder, seal in zip(whole, seals, strict=True):
            _check_key(folder, seal, made)
            if any(not _is(folder / "staged" / name, hashed) for name, hashed in seal["files"].items()):
                raise UserError(f"{folder}: is damaged; remove it, and make that part again.")
        return cls(folders, seals)

    def interactions(self, raw: Raw, scratch: Path) -> tuple[pl.DataFrame, Staging]:
        """As `stage_interactions`."""
        raw.clock.found = next((seal["times"] for seal in self.seals if seal["times"]), None)
        return self._table(raw.reviews.quarantine, "interactions", ROWS, TEXTS, scratch)

    def items(self, raw: Raw, scratch: Path) -> tuple[pl.DataFrame, Staging]:
        """As `stage_items`."""
        return self._table(raw.item_file.quarantine, "items", LISTED, THINGS, scratch)

    def _table(
        self, quarantine: Quarantine, table: str, slim: str, staged: str, scratch: Path
    ) -> tuple[pl.DataFrame, Staging]:
        quarantine.take(table, [folder / BAD[table] for folder in self.folders])
        rows, size = (sum(seal["sizes"][staged][at] for seal in self.seals) for at in (0, 1))
        files = [folder / staged for folder in self.folders]
        return pl.concat([pl.read_parquet(folder / slim) for folder in self.folders]), Staging.joined(
            files, scratch / staged, rows, size
        )


def _is(path: Path, hashed: str) -> bool:
    try:
        return sha256(path) == hashed
    except OSError:
        return False
