"""`reczero launch verl --submit` to a real Ray cluster on this machine, as far as a machine without GPU goes."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs verl's environment: make test-scaleout")
pytest.importorskip("verl", reason="needs verl's environment: make test-scaleout")

RECZERO = Path(os.environ.get("RECZERO_BIN", ".venv/bin/reczero")).absolute()
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster's dashboard. It wants a token, which stands in the environment of all commands."""
    port, home = free_port(), tempfile.mkdtemp(prefix="rz")  # short: Ray's sockets lie in it
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    command = [
        BIN / "ray", "start", "--head", "--block", "--port", str(free_port()), "--dashboard-host", "127.0.0.1",
        "--dashboard-port", str(port), "--num-cpus", "4", "--num-gpus", "0", "--temp-dir", home,
        "--object-store-memory", "100000000",
    ]  # fmt: skip
    with subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL) as process:
        address = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 120
            while (said := ask("list", address)).returncode:
                assert time.monotonic() < deadline and process.poll() is None, said.stderr[-2000:]
                time.sleep(1)
            yield address
        finally:
            for name in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, name)
                time.sleep(5)
    shutil.rmtree(home, ignore_errors=True)


def ask(verb: str, address: str, *more: str) -> subprocess.CompletedProcess:
    command = [BIN / "ray", "job", verb, "--address", address, *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def launch(recipe: Path, out: Path, address: str, path: str) -> subprocess.CompletedProcess:
    command = [RECZERO, "launch", "verl", recipe, "--out", out, "--gpus", "2", "--submit", address]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": path}, timeout=200)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_model_dir) -> Path:
    folder = tmp_path_factory.mktemp("submitted")
    rows = [f"u{i % 8},i{i % 30},{1 + i % 5},{1000 + i}" for i in range(300)]
    (folder / "ratings.csv").write_text("\n".join(["user,item,rating,timestamp", *rows]))
    (folder / "recipe.yaml").write_text(
        f"method: reczero\ndata: {{source: table, reviews: {folder / 'ratings.csv'}, train_examples: 64}}\n"
        f"model: {{name: {tiny_model_dir}}}\nevaluation: {{validation_examples: 8, test_examples: 8}}\n"
    )
    return folder / "recipe.yaml"


def test_a_running_cluster_takes_the_job_and_verl_its_configuration(recipe, tmp_path, cluster):
    done = launch(recipe, tmp_path / "launch", cluster, f"{BIN}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    job = next(word.strip("'") for word in done.stdout.split() if word.startswith("'raysubmit_"))
    deadline, log = time.monotonic() + 200, ""
    while "All configuration checks passed" not in log and time.monotonic() < deadline:
        time.sleep(2)
        log = ask("logs", cluster, job).stdout
    assert "All configuration checks passed" in log, log[-3000:]
    assert ask("stop", cluster, job, "--no-wait").returncode == 0
    assert (tmp_path / "launch" / "outputs" / ".hydra" / "overrides.yaml").is_file()  # and not where the cluster began


def test_mistakes_of_a_submission_are_told(recipe, tmp_path, cluster):
    done = launch(recipe, tmp_path / "launch", "http://127.0.0.1:1", f"{BIN}:{os.environ['PATH']}")
    assert done.returncode == 2 and "the cluster took no job" in done.stderr
    done = launch(recipe, tmp_path / "launch", cluster, "/usr/bin:/bin")
    assert done.returncode == 2 and "no `ray` command here" in done.stderr
