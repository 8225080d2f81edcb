"""Atomic writes: whole or not there, and nothing left over."""

import errno
import os
import time
from pathlib import Path

import pytest

from reczero import files
from reczero.errors import UserError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_with(code: int):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code), str(args[0]))

    return fail


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("RECZERO_HOME", str(tmp_path / "here"))
    assert files.cache_dir() == tmp_path / "here"
    monkeypatch.setenv("RECZERO_HOME", "")
    assert files.cache_dir() == Path.home() / ".cache" / "reczero"


def test_sha256_of_a_known_text(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_atomic_file_makes_parents_and_replaces(tmp_path):
    target = tmp_path / "a" / "b.txt"
    for text in ("one", "two"):
        with files.atomic_file(target) as temporary:
            assert temporary.parent == target.parent and temporary.suffix == target.suffix
            temporary.write_text(text)
        assert target.read_text() == text
    assert names(target.parent) == ["b.txt"]


def test_atomic_file_keeps_the_old_one_on_any_failure(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    for failure in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(failure), files.atomic_file(target) as temporary:
            temporary.write_text("half")
            raise failure
    assert target.read_text() == "old" and names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    "code,said", [(errno.ENOSPC, "disk is full"), (errno.EACCES, "no access"), (errno.EROFS, "no access")]
)
@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_atomic_file_tells_of_a_full_disk(monkeypatch, tmp_path, code, said, call):
    monkeypatch.setattr(files.os, call, fail_with(code))
    with pytest.raises(UserError, match=said) as caught, files.atomic_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("text")
    assert names(tmp_path) == [] and ".tmp-" not in str(caught.value) and "\n" not in str(caught.value)


def test_full_disk_as_other_libraries_put_it(tmp_path):
    with pytest.raises(UserError, match="disk is full"), files.atomic_file(tmp_path / "a"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_an_error_of_something_else_stays_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError), files.atomic_file(tmp_path / "a"):
        (tmp_path / "no such input").read_text()


def test_a_file_in_the_way_of_a_folder(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match="in the way"), files.atomic_file(tmp_path / "a" / "b"):
        raise AssertionError("not reached")
    with pytest.raises(UserError, match="is a file"), files.atomic_dir(tmp_path / "a"):
        raise AssertionError("not reached")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="in the way"), files.atomic_file(tmp_path / "folder") as temporary:
        temporary.write_text("text")
    assert names(tmp_path) == ["a", "folder"]


def test_atomic_dir_replaces_whole(tmp_path):
    target = tmp_path / "run"
    for name in ("one", "two"):
        with files.atomic_dir(target) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / name).write_text(name)
        assert names(target / "sub") == [name]
    assert names(tmp_path) == ["run"]


def test_atomic_dir_keeps_the_old_one_on_failure(monkeypatch, tmp_path):
    target = tmp_path / "run"
    with files.atomic_dir(target) as folder:
        (folder / "old").write_text("")
    with pytest.raises(RuntimeError), files.atomic_dir(target) as folder:
        raise RuntimeError
    rename = os.rename

    def full_at_last(source, destination):
        if Path(destination) == target and not str(source).endswith(".old"):
            raise OSError(errno.ENOSPC, "full")
        rename(source, destination)

    monkeypatch.setattr(files.os, "rename", full_at_last)
    with pytest.raises(UserError, match="disk is full"), files.atomic_dir(target) as folder:
        (folder / "new").write_text("")
    assert names(target) == ["old"] and names(tmp_path) == ["run"]


def test_atomic_dir_never_replaces_a_strangers_folder(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    with files.atomic_dir(home, ours="config.json") as folder:  # empty: fine
        (folder / "config.json").write_text("{}")
    with files.atomic_dir(home, ours="config.json") as folder:  # ours: fine
        (folder / "letters").write_text("")
    with pytest.raises(UserError, match="holds other files"), files.atomic_dir(home, ours="config.json"):
        raise AssertionError("not reached")
    assert names(home) == ["letters"]


def test_what_a_kill_left_is_removed_after_a_day(tmp_path):
    old, young = tmp_path / ".tmp-0-a.txt", tmp_path / ".tmp-1-a.txt"
    for left, age in ((old, 2 * 24 * 3600), (young, 60)):
        left.write_text("half")
        os.utime(left, (time.time() - age,) * 2)
    with files.atomic_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    assert names(tmp_path) == [young.name, "a.txt"]


def test_json_round_trip_and_bad_files(tmp_path):
    files.write_json(tmp_path / "a.json", {"b": [1, 2.5, None], "a": "é"})
    assert files.read_json(tmp_path / "a.json") == {"b": [1, 2.5, None], "a": "é"}
    assert (tmp_path / "a.json").read_text(encoding="utf-8").index('"b"') < 5  # keys keep their order
    (tmp_path / "cut.json").write_text('{"a": [1,')
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for name, said in [("cut.json", "not JSON"), ("binary.json", "not JSON"), ("none.json", "missing"), (".", "read")]:
        with pytest.raises(UserError, match=said):
            files.read_json(tmp_path / name)


def test_a_folder_is_held_by_one_at_a_time(tmp_path):
    with files.held(tmp_path), pytest.raises(UserError, match="is writing it"), files.held(tmp_path):
        pass
    with files.held(tmp_path):
        pass
