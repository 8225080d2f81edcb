"""Exit codes and one-line errors; `doctor` and `export` through the command line."""

import errno
import json
import os
import subprocess
import sys

import pytest
import typer

from reczero.cli import doctor, main
from reczero.errors import UserError
from reczero.machine import multiplies_bfloat16
from reczero.models import SHIPPED


def commands(app: typer.Typer = main.app, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [(*prefix, command.name or command.callback.__name__) for command in app.registered_commands]
    for group in app.registered_groups:
        found += commands(group.typer_instance, (*prefix, group.name))
    return found


@pytest.fixture
def failing(monkeypatch):
    """Make `reczero doctor` raise what the test says."""

    def fail_with(error: BaseException) -> int:
        def fail():
            raise error

        monkeypatch.setattr(doctor, "examine", fail)
        return main.run(["doctor"])

    return fail_with


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_help_shows_an_example(command, capsys):
    assert main.run([*command, "--help"]) == 0
    assert f"Example: reczero {' '.join(command)}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["no-such"], ["doctor", "--no-such"], ["export", "run"], ["doctor", "extra"], ["data", "prepair"]]
)
def test_a_mistyped_command_is_one_line(arguments, capsys):
    assert main.run(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and "--help`" in said


def test_no_arguments_and_version(capsys):
    assert main.run([]) == 2
    assert main.run(["--version"]) == 0
    assert "reczero " in capsys.readouterr().out


def test_a_users_mistake_is_told_without_a_traceback(failing, capsys):
    assert failing(UserError("this is wrong:\nmend it")) == 2
    assert capsys.readouterr().err == "error: this is wrong:\nmend it\n"


def test_a_full_disk_anywhere_is_one_line(failing, capsys):
    assert failing(OSError(errno.ENOSPC, "No space left on device", "/data/run.json")) == 2
    said = capsys.readouterr().err
    assert "disk is full at /data/run.json" in said and said.count("\n") == 1


def test_ctrl_c(failing):
    assert failing(KeyboardInterrupt()) == 130


def test_a_defect_keeps_its_traceback(failing):
    with pytest.raises(ZeroDivisionError):
        failing(ZeroDivisionError())


def test_doctor(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("RECZERO_HOME", str(tmp_path / "none" / "yet"))
    assert main.run(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["torch"] and facts["machine"]["cores"] > 0 and facts["torch"]["devices"]
    assert facts["torch"]["bfloat16"] is multiplies_bfloat16()
    assert facts["cache"]["models"] == {"smollm2-135m": False} | dict.fromkeys(SHIPPED, True)
    assert not (tmp_path / "none").exists()  # looking makes nothing
    (tmp_path / "none").write_text("")  # now the cache cannot be made
    assert main.run(["doctor"]) == 0
    assert "may not be written" in " ".join(capsys.readouterr().out.split())


def test_doctor_tells_what_is_missing(monkeypatch):
    monkeypatch.setattr(
        doctor.metadata, "requires", lambda name: ["no-such-package>=1", "typer<0.0.1", "none; extra == 'x'"]
    )
    problems = []
    versions = doctor._versions(problems)
    assert versions["no-such-package"] is None and versions["none"] is None
    assert [problem["do"] for problem in problems] == ["pip install 'no-such-package>=1'", "pip install 'typer<0.0.1'"]


def test_export(tiny_model_dir, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(tiny_model_dir)
    assert main.run(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert main.run(["export", str(tmp_path / "nothing"), "--out", str(tmp_path / "out2")]) == 2
    assert "no model yet" in capsys.readouterr().err


def test_the_console_script():
    """As installed: it is on the path beside Python, and answers."""
    script = [sys.executable, "-m", "reczero.cli.main"]
    done = subprocess.run([*script, "no-such"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def test_errors_hold_nothing_that_a_terminal_obeys(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("us\x1b[31mer,\u202eitem\n1,2\n")
    assert main.run(["data", "prepare", "--reviews", str(tmp_path / "a.csv"), "--out", str(tmp_path / "o")]) == 2
    said = capsys.readouterr().err
    assert "us\\x1b[31mer" in said and "\\u202eitem" in said and "\x1b" not in said


@pytest.mark.parametrize("out", ["x" * 300, "/proc/reczero"])
def test_a_place_that_can_not_be_is_told(out, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("user,item,rating,time\nu,i,4,5\n")
    assert main.run(["data", "prepare", "--reviews", "a.csv", "--out", out]) == 2
    assert "choose another" in capsys.readouterr().err


def test_a_terminal_without_blocks_still_shows_statistics(tmp_path):
    (tmp_path / "a.csv").write_text("user,item,rating,time\nu,i,4,5\nu,j,5,6\n")
    here = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "RECZERO_HOME": str(tmp_path / "home")}
    for words in (["prepare", "--reviews", "a.csv", "--out", "o"], ["show", "o"]):
        command = [sys.executable, "-m", "reczero.cli.main", "data", *words]
        done = subprocess.run(command, cwd=tmp_path, env=here, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "2 ratings by 1 users" in done.stdout
