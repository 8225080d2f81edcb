"""`examples/predict_on_ray.py` on a real local Ray cluster: killed, started again, and as one process in the end.

Runs where Ray is, which is not where reczero is: RECZERO_BIN names the command (`make test-scaleout` sees to both).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Ray is in an environment of its own: make test-scaleout")
import pyarrow.parquet as pq  # it comes with Ray's environment

RECZERO = os.environ.get("RECZERO_BIN") or shutil.which("reczero")
EXAMPLE = Path(__file__).parents[2] / "examples" / "predict_on_ray.py"
PARTS = 3
ROWS = 2_400  # a part has four portions
pytestmark = [
    pytest.mark.skipif(not RECZERO, reason="RECZERO_BIN names no reczero command"),
    pytest.mark.timeout(900),  # each start of the command imports torch
]


def reczero(*words: object) -> None:
    done = subprocess.run([str(RECZERO), *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def on_ray() -> Iterator[Callable[..., list[str]]]:
    """The command line of the example, with a cluster of two cores in a folder that is short enough for sockets."""
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")

    def words(*command: object, parts: int = PARTS) -> list[str]:
        options = ["--parts", str(parts), "--temp-dir", folder, "--reczero", str(RECZERO)]
        return [sys.executable, str(EXAMPLE), *options, *map(str, command)]

    yield words
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guided") / "tiny"
    shutil.copytree(tiny_model_dir, folder)
    rollout = {"guided": True, "template": {"instructions": "brief", "section_tokens": 6}}
    (folder / "reczero.json").write_text(json.dumps({"rollout": rollout, "scale": None}))
    return folder


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("asked") / "asked.jsonl"
    rows = ({"id": f"r{n}", "history": [], "item": {"title": f"Film {n}"}} for n in range(ROWS))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parents() -> dict[int, tuple[int, str]]:
    """process -> its parent and its command line."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            found[int(folder.name)] = parent, (folder / "cmdline").read_text().replace("\0", " ")
        except (OSError, ValueError):
            pass  # it has ended
    return found


def until(what: Callable[[], object], driver: "subprocess.Popen[str]", seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert driver.poll() is None and time.monotonic() < deadline, driver.communicate()[1]
        time.sleep(0.01)


def same_tables(one: Path, other: Path) -> None:
    """But for what is computed in batches of other company, which differs in the last bits."""
    near = ("distribution", "expected")
    ours, theirs = pq.read_table(one), pq.read_table(other)
    assert ours.drop_columns(near).equals(theirs.drop_columns(near)) and ours.num_rows == ROWS
    assert ours["expected"].to_pylist() == pytest.approx(theirs["expected"].to_pylist(), abs=1e-4)


def test_a_prediction_that_loses_a_worker_and_its_driver_is_that_of_one_process(
    on_ray: Callable[..., list[str]], model: Path, asked: Path, tmp_path: Path
) -> None:
    out, folder = tmp_path / "out.parquet", tmp_path / ".out.parquet.ray"
    call = on_ray("predict", model, asked, "-o", out)

    def ours() -> dict[int, tuple[int, str]]:
        return {pid: found for pid, found in parents().items() if str(tmp_path) in found[1] and " --part " in found[1]}

    def portions() -> list[Path]:
        """Of parts that are not finished."""
        found = folder.glob(".*.parquet.parts/0*.parquet")
        return [path for path in found if not (folder / path.parent.name[1:].removesuffix(".parts")).exists()]

    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True) as driver:
        until(lambda: len(portions()) >= 2, driver)
        # A worker, with its part in the middle: its command ends with it, and Ray tries the part again.
        victim, (worker, _) = next(iter(ours().items()))
        assert "ray::" in parents()[worker][1]
        os.kill(worker, signal.SIGKILL)
        until(lambda: victim not in parents(), driver, 10)
        # Then the driver, when a part is finished and another is in the middle.
        until(lambda: list(folder.glob("*-of-*.parquet")) and portions(), driver)
        driver.kill()
        driver.wait()
    assert not out.exists()
    deadline = time.monotonic() + 60  # the cluster ends with its driver, and the commands with the cluster
    while left := ours():
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    done = {path: path.stat().st_mtime_ns for path in (*folder.glob("*-of-*.parquet"), *portions())}
    assert len(done) >= 2

    # What is there is only read: a portion that was done again would be a new file.
    seen: dict[Path, int] = {}
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True) as driver:
        while driver.poll() is None:
            for path in done:
                if path.exists():
                    seen[path] = path.stat().st_mtime_ns
            time.sleep(0.01)
        said = driver.communicate()[1]
    assert driver.returncode == 0, said
    assert "goes on: " in said and seen == done
    assert not folder.exists() and out.exists()

    reczero("predict", model, asked, "-o", tmp_path / "whole.parquet")
    same_tables(out, tmp_path / "whole.parquet")
    before = out.stat().st_mtime_ns
    again = subprocess.run(call, capture_output=True, text=True)
    assert again.returncode == 0 and "is there already" in again.stderr and out.stat().st_mtime_ns == before


def test_a_preparation_on_ray_is_that_of_one_process(on_ray: Callable[..., list[str]], tmp_path: Path) -> None:
    rows = [f"u{n % 97},i{n % 89},{1 + n % 5},{1_500_000_000 + n}" for n in range(60_000)]
    (tmp_path / "t.csv").write_text("\n".join(["user,item,rating,timestamp", *rows, "broken"]))
    words = "data", "prepare", "--reviews", tmp_path / "t.csv", "--out"
    done = subprocess.run(on_ray(*words, tmp_path / "out", parts=2), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reczero(*words, tmp_path / "whole")
    ours, theirs = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("out", "whole"))
    assert ours == theirs and len(ours) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "t.csv", "whole"]


def test_a_command_ends_with_its_worker_even_where_no_ray_is_left_to_end_it() -> None:
    code = f"import sys; sys.path.insert(0, {str(EXAMPLE.parent)!r}); from predict_on_ray import run; "
    code += "run(['sleep', '123.456'], '/', 1)"

    def sleeping() -> list[int]:
        return [pid for pid, (_, command) in parents().items() if command == "sleep 123.456 "]

    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as worker:
        until(sleeping, worker)
        worker.kill()
    deadline = time.monotonic() + 10
    while left := sleeping():
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


def test_what_fails_is_tried_again_with_the_cores_of_a_task(tmp_path: Path) -> None:
    """A command that fails in each part's first try, and writes its threads in the second."""
    command = tmp_path / "reczero"
    command.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = join ]; then shift; cat "$1" "$2" > "$4"; exit; fi\n'
        'table="$5"\n'
        'if [ ! -e "$table.tried" ]; then touch "$table.tried"; echo "out of luck" >&2; exit 1; fi\n'
        'echo "$3 $OMP_NUM_THREADS" > "$table"\n'  # predict --part 1/2 -o TABLE
    )
    command.chmod(0o755)
    temporary = tempfile.mkdtemp(prefix="r", dir="/tmp")
    options = ["--parts", "2", "--cpus", "2", "--temp-dir", temporary, "--reczero", str(command)]
    for retries, code in (("0", 1), ("1", 0)):
        for left in tmp_path.glob(".out.parquet.ray/*"):
            left.unlink()
        words = [*options, "--retries", retries, "predict", "-o", str(tmp_path / "out.parquet")]
        done = subprocess.run([sys.executable, str(EXAMPLE), *words], capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert done.stderr.count("out of luck") == (2 if code else 0)
    assert (tmp_path / "out.parquet").read_text() == "1/2 2\n2/2 2\n"
    shutil.rmtree(temporary)


def test_mistakes_are_told_once_and_not_tried_again(
    on_ray: Callable[..., list[str]], model: Path, asked: Path, tmp_path: Path
) -> None:
    for words, says in (
        (["predict", model, tmp_path / "none.csv", "-o", tmp_path / "o.parquet"], "no such file"),
        (["predict", model, asked], "then follows what is done by parts"),
        (["predict", model, asked, "-o", "o.csv", "--part", "1/2"], "are given by this program"),
    ):
        done = subprocess.run(on_ray(*words, parts=2), capture_output=True, text=True)
        assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr, done.stderr
    folder = tmp_path / ".p.parquet.ray"
    folder.mkdir()
    (folder / "command.json").write_text("[]")
    call = on_ray("predict", model, asked, "-o", tmp_path / "p.parquet")
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 2 and "was begun with another command" in done.stderr
