"""`reczero data`: what a user types and sees."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from reczero.cli.data import app
from reczero.data import PUBLISHED, PrepareSettings
from reczero.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small copy of ml-100k in the publisher's layout: 6 users rate 10 films, one a second."""
    monkeypatch.setenv("RECZERO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setitem(PUBLISHED, "ml-100k", dataclasses.replace(PUBLISHED["ml-100k"], rows=60))
    folder = tmp_path / "ml-100k"
    folder.mkdir()
    flags = "|".join(["0", "1", *["0"] * 17])
    (folder / "u.item").write_text("".join(f"{n}|Film {n} (1995)|||link|{flags}\n" for n in range(10)))
    (folder / "u.data").write_text("".join(f"{n % 6}\t{n // 6}\t{1 + n % 5}\t{n}\n" for n in range(60)))
    return folder


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(*words: object) -> str:
    result = run(*words)
    assert isinstance(result.exception, UserError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


def test_list_shows_every_source() -> None:
    result = run("list")
    assert result.exit_code == 0 and "ml-100k" in result.output and "GroupLens" in result.output


def test_fetch_prepare_show(folder: Path, tmp_path: Path) -> None:
    assert run("fetch", "ml-100k", "--archive", folder).exit_code == 0
    assert (tmp_path / "home" / "data" / "ml-100k" / "u.data").is_file()
    out = tmp_path / "out"
    result = run("prepare", "ml-100k", "--out", out, "--history", 3, "--min-context", 4, "--train", 0.5, "--test", 0.4)
    assert result.exit_code == 0 and "6 users, 10 items" in result.output and "30 train" in result.output

    shown = run("show", out)
    assert shown.exit_code == 0, shown.output
    for expected in ("60 ratings by 6 users of 10 items, density 100.00%", "1970-01-01 00:00", "20.0%", "train"):
        assert expected in shown.output

    prompt = run("show", out, "--example", "3:9").output
    assert "rated 3 at 1970-01-01 00:00:57" in prompt and "--- system ---" in prompt
    assert "Film 9 (1995)" in prompt and "Film 8 (1995)" in prompt and "Film 5 (1995)" not in prompt


def test_prepare_writes_to_data_by_default(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("prepare", "ml-100k", "--archive", folder).exit_code == 0
    assert (tmp_path / "data" / "ml-100k" / "dataset.json").is_file()


def test_mistakes_are_one_line_and_leave_nothing(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "did you mean ml-100k" in refused("prepare", "ml100k", "--out", out)
    assert "no such file" in refused("prepare", "ml-100k", "--out", out, "--archive", tmp_path / "nothing.zip")
    said = refused("prepare", "ml-100k", "--out", out, "--history", 0, "--split", "latest")
    assert "--split" in said and "--history" in said and "(given: latest)" in said
    assert "must sum to 1" in refused("prepare", "ml-100k", "--out", out, "--train", 0.9)
    assert "k_core 50" in refused("prepare", "ml-100k", "--out", out, "--archive", folder, "--k-core", 50)
    assert not out.exists()
    assert "not a prepared data set" in refused("show", tmp_path)
    assert "no such folder" in refused("show", out)
    assert run("prepare", "ml-100k", "--out", out, "--reviews", folder).exit_code == 0
    assert "no example '1-2'" in refused("show", out, "--example", "1-2")


def test_help_states_the_true_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = {line.split()[1]: line for line in run("prepare", "--help").output.splitlines() if "--" in line}
    for name, field in PrepareSettings.model_fields.items():
        assert f"[default: ({field.default})]" in shown["--" + name.replace("_", "-")]


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, reczero.cli.data; sys.exit(any(m in sys.modules for m in ('polars', 'pydantic', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
