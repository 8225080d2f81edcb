"""Fetching for real: pip on a folder of wheels made here, and a web server on this machine."""

import hashlib
import http.server
import threading
import zipfile
from pathlib import Path

import pytest

from reczero import fetch, files
from reczero.errors import UserError

CONTENT = bytes(range(256)) * 400
MEMBER = "tinydata/folder/values.bin"
GOOD = {MEMBER: hashlib.sha256(CONTENT).hexdigest()}


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder that pip takes wheels from, and nothing else; it holds tinydata 1.0."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tinydata-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(MEMBER, CONTENT)
        wheel.writestr("tinydata-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinydata\nVersion: 1.0\n")
        wheel.writestr("tinydata-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tinydata-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def left_over(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []


def test_packaged_file_is_fetched_once(index, tmp_path, capsys):
    cache = tmp_path / "cache"
    assert fetch.packaged_file("tinydata", "1.0", GOOD, cache / "tiny") == cache / "tiny"
    assert (cache / "tiny" / "values.bin").read_bytes() == CONTENT
    assert left_over(cache) == ["tiny", "tiny/values.bin"]
    assert "tinydata 1.0" in capsys.readouterr().err
    next(index.glob("*.whl")).unlink()
    fetch.packaged_file("tinydata", "1.0", GOOD, cache / "tiny")
    assert capsys.readouterr().err == ""


def test_a_damaged_copy_is_fetched_anew_and_its_neighbours_stay(index, tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "values.bin").write_bytes(CONTENT[:-1])
    (tmp_path / "tiny" / "notes").write_text("mine")
    fetch.packaged_file("tinydata", "1.0", GOOD, tmp_path / "tiny")
    assert (tmp_path / "tiny" / "values.bin").read_bytes() == CONTENT
    assert left_over(tmp_path / "tiny") == ["notes", "values.bin"]


@pytest.mark.parametrize(
    "package,version,members,said",
    [
        ("tinydata", "1.0", {MEMBER: "0" * 64}, "SHA-256 differs"),
        ("tinydata", "1.0", {**GOOD, "tinydata/other.bin": "0" * 64}, "has no tinydata/other.bin"),
        ("tinydata", "2.0", GOOD, "tinydata==2.0 cannot be fetched"),
        ("no-such-package-here", "1.0", GOOD, "No matching distribution"),
    ],
)
def test_what_cannot_be_had_leaves_nothing(index, tmp_path, package, version, members, said):
    with pytest.raises(UserError, match=said) as caught:
        fetch.packaged_file(package, version, members, tmp_path / "cache" / "tiny")
    assert left_over(tmp_path / "cache") == [] and "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_truncated_wheel_leaves_nothing(index, tmp_path, keep):
    wheel = next(index.glob("*.whl"))
    wheel.write_bytes(wheel.read_bytes()[: int(wheel.stat().st_size * keep)])
    with pytest.raises(UserError, match="tinydata") as caught:
        fetch.packaged_file("tinydata", "1.0", GOOD, tmp_path / "cache" / "tiny")
    assert left_over(tmp_path / "cache") == [] and "\n" not in str(caught.value)


def test_a_full_disk_leaves_nothing(index, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetch.shutil, "copyfileobj", full)
    with pytest.raises(UserError, match="disk is full"):
        fetch.packaged_file("tinydata", "1.0", GOOD, tmp_path / "cache" / "tiny")
    assert left_over(tmp_path / "cache") == []


def test_no_network_is_said_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    with pytest.raises(UserError, match="no network"):
        fetch.packaged_file("tinydata", "1.0", GOOD, tmp_path / "cache" / "tiny")
    assert left_over(tmp_path / "cache") == []


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/none":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT) + (100 if self.path == "/cut" else 0)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_download(server, tmp_path):
    path = fetch.download(f"{server}/file", tmp_path / "a" / "file.bin", GOOD[MEMBER])
    assert files.sha256(path) == GOOD[MEMBER] and left_over(tmp_path) == ["a", "a/file.bin"]


@pytest.mark.parametrize(
    "where,digest,said",
    [("/none", None, "404"), ("/cut", None, "cut off|cannot be fetched"), ("/file", "0" * 64, "SHA-256 differs")],
)
def test_a_failed_download_leaves_nothing(server, tmp_path, where, digest, said):
    with pytest.raises(UserError, match=said):
        fetch.download(server + where, tmp_path / "file.bin", digest)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/file", "no address", "file:///no/such/file"])
def test_an_address_out_of_reach(tmp_path, url):
    with pytest.raises(UserError, match="cannot be fetched"):
        fetch.download(url, tmp_path / "file.bin")
    assert left_over(tmp_path) == []
