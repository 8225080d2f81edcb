"""A tiny guided model, and real server processes of it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from reczero.data import Dataset
from reczero.recipes import RolloutRecipe
from reczero.rollout.opening import write_about
from reczero.serving import Predictor

GUIDED = {"guided": True, "template": {"instructions": "brief", "section_tokens": 6}}


@pytest.fixture(scope="session")
def guided_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny random model, which writes the form because its reczero.json says that it is guided."""
    folder = tmp_path_factory.mktemp("guided") / "tiny"
    shutil.copytree(tiny_model_dir, folder)
    write_about(folder, RolloutRecipe.model_validate(GUIDED), None)
    return folder


@dataclass(frozen=True)
class Served:
    url: str
    process: subprocess.Popen
    said: list[str] = field(default_factory=list)  # its log


@contextmanager
def _serving(*arguments: str, key: str | None = None) -> Iterator[Served]:
    command = [sys.executable, "-m", "reczero.cli.main", "serve", *arguments, "--port", "0"]
    environment = {name: value for name, value in os.environ.items() if name != "RECZERO_API_KEY"}
    environment["OMP_NUM_THREADS"] = "1"  # the tests have the other cores
    if key:
        environment["RECZERO_API_KEY"] = key
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if found := re.search(r"serving .* at (http://\S+)", line):
                break
        else:
            pytest.fail(f"the server did not start: {said}")
        served = Served(found[1].rstrip("/"), process)
        drain = threading.Thread(target=lambda: served.said.extend(process.stderr))  # or the server would wait for it
        drain.start()
        try:
            yield served
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
            drain.join()


@pytest.fixture(scope="session")
def serving() -> Callable[..., AbstractContextManager[Served]]:
    """Starts `reczero serve` with these arguments at a port that is free; SIGTERM ends it."""
    return _serving


@pytest.fixture(scope="session")
def served(guided_dir: Path, table: Path) -> Iterator[Served]:
    """A server of the tiny model and the table, for the whole session."""
    with _serving(str(guided_dir), "--data", str(table)) as server:
        yield server


@pytest.fixture(scope="session")
def predictor(guided_dir: Path, table: Path) -> Predictor:
    return Predictor.from_pretrained(guided_dir, table)


@pytest.fixture(scope="session")
def data(table: Path) -> Dataset:
    return Dataset.open(table)
