"""Files that are either whole or not there: atomic writes, hashes, JSON, and the one folder for what is cached."""

import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from reczero.errors import UserError

_FULL_TEXTS = ("No space left on device", "os error 28", "inline_container.cc")  # the last is torch's
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_IN_THE_WAY = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
_IMPOSSIBLE = {errno.ENOENT, errno.EINVAL}
_DAY = 24 * 3600.0


def cache_dir() -> Path:
    """The folder for everything fetched or converted once: `$RECZERO_HOME`, else `~/.cache/reczero`. Not created."""
    return Path(os.environ.get("RECZERO_HOME") or "~/.cache/reczero").expanduser().absolute()


def sha256(path: Path | str) -> str:
    """The SHA-256 of a file's bytes, in lower-case hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_error(error: BaseException, path: Path | str | None = None) -> UserError | None:
    """What to tell the user if `error` says that a disk is full or a place is out of reach; None for all else.

    path: what was being written. Polars, safetensors and torch raise exceptions of their own for a full disk, known
    only by their text.
    """
    code = error.errno if isinstance(error, OSError) else None
    named = getattr(error, "filename", None)
    if path is not None and (named is None or ".tmp-" in str(named)):
        named = path
    if code in _FULL or any(sign in str(error) for sign in _FULL_TEXTS):
        return UserError(f"the disk is full{f' at {named}' if named else ''}: free some space or choose another folder")
    if code in _FORBIDDEN and named:
        return UserError(f"no access to {named} ({os.strerror(code)}): mend its rights or choose another folder")
    inside = bool(named and path) and (Path(named) == Path(path) or Path(named) in Path(path).parents)  # type: ignore[arg-type]
    if named and (code == errno.ENAMETOOLONG or (code in _IMPOSSIBLE and inside)):
        return UserError(f"{str(named)[:200]} cannot be made ({os.strerror(code)}): choose another name")
    if code in _IN_THE_WAY and path is not None:
        return UserError(f"{named} cannot be made ({os.strerror(code)}): something is in the way, choose another name")
    return None


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Around code that writes `path` (or into it): a full disk or a forbidden place raises UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if told := write_error(error, path):
            raise told from error
        raise


def _temporary(path: Path) -> Path:
    """A free name beside `path` with the same suffix; what a killed process left there over a day ago is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".tmp-*-{glob.escape(path.name)}"):
        with suppress(FileNotFoundError):  # another process was quicker
            if time.time() - left.lstat().st_mtime > _DAY:
                _remove(left)
    return path.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{path.name}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary sibling to write; it becomes `path` when the block ends well and vanishes when it does not.

    A reader, or a run after a kill, finds the old file or the new one and nothing in between. Raises UserError when the
    disk is full or the place may not be written.
    """
    path = Path(path)
    with writing(path):
        temporary = _temporary(path)
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            _remove(temporary)


@contextmanager
def atomic_dir(path: Path | str, ours: str | None = None) -> Iterator[Path]:
    """Yield an empty temporary sibling folder; it becomes `path` when the block ends well, replacing a folder there.

    ours: the name of a file that a folder of ours holds. A folder without it that is not empty is somebody else's and
    is never replaced: pass it wherever the user chose the path. Raises UserError for that, and as `atomic_file` does.
    """
    path = Path(os.path.realpath(path))  # through a link to a folder, the folder itself
    with writing(path):
        if ours and path.is_dir() and not (path / ours).exists() and any(path.iterdir()):
            raise UserError(f"{path} exists and holds other files (no {ours}): choose a new or an empty folder")
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file: choose another name for the folder")
        temporary = _temporary(path)
        temporary.mkdir()
        try:
            yield temporary
            for inside in (*temporary.rglob("*"), temporary):
                if not inside.is_symlink():
                    _sync(inside)
            _swap(temporary, path)
            _sync(path.parent)
        finally:
            if temporary.exists():
                shutil.rmtree(temporary)


def _swap(new: Path, path: Path) -> None:
    """Rename the folder `new` to `path` and remove what was there. No portable call swaps two folders: a kill between
    the two renames leaves the old one under a name that ends on `.old`."""
    if not path.exists():
        os.rename(new, path)
        return
    old = path.with_name(f"{new.name}.old")
    os.rename(path, old)
    try:
        os.rename(new, path)
    except OSError:
        os.rename(old, path)
        raise
    shutil.rmtree(old)


def link_or_copy(source: str, target: str) -> None:
    """The file under another name: the same bytes on the disk where that can be."""
    try:
        os.link(source, target)
    except OSError:  # another disk, or none that has links
        shutil.copy2(source, target)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """While inside, no other process may hold the folder; it must exist. Raises UserError where one does.

    The system lets go of it when the process ends, however it ends.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder}: another process is writing it; wait for it, or choose another --out") from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)


def separator_of(header: str) -> str:
    """What separates the columns of a text table with this first line."""
    return max(",;\t", key=header.count)


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that is appended to; one that a kill cut off is removed, so that the next begins anew."""
    if not path.exists():
        return []
    lines = path.read_text("utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        with atomic_file(path) as new:
            new.write_text("".join(whole), "utf-8")
    return whole


def write_json(path: Path | str, obj: Any) -> None:
    """Write `obj` atomically as indented UTF-8 JSON, keys in their own order, so that equal input gives equal bytes."""
    text = json.dumps(obj, indent=2, ensure_ascii=False) + "\n"
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path | str) -> Any:
    """The content of a JSON file. Raises UserError when it is missing, unreadable or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: check the path") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): it may be cut off or of another format") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path and its rights") from error
