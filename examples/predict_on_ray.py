"""A long `reczero` command by parts on a Ray cluster: predictions of many rows, or the preparation of many.

    python examples/predict_on_ray.py --parts 64 --gpus 1 predict runs/mine data/mine -o predictions.parquet
    python examples/predict_on_ray.py --parts 16 data prepare --reviews reviews.json.gz --out data/mine

After --parts and the other options of this file stands the command as you would type it for one machine. Each part is a
Ray task that runs it with `--part K/N` as a process of its own, so that Ray's environment and the model's may differ;
at the end the parts are put together, and the result is that of one process.

**Kill anything and start it again**: parts that are finished are not made again, a prediction goes on within its part
(256 rows are lost at most), and the result appears whole or not at all. A task whose worker or machine dies is tried
again by itself.

All machines must see the files (model, data, result) and the command by the same paths: a common file system. Without
--address a cluster of this machine's cores is started, and ended with this process; `--address auto` joins the one that
`ray start` made. This file needs Ray alone: pip install ray (tried with 2.60).
"""

import argparse
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing phones home
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a task without GPUs leaves them as they are
import ray


class Failed(Exception):
    """The command's last words, where another try may go well."""


class Refused(Exception):
    """The command's last words, where they tell the user what to mend."""


def run(words: list[str], folder: str, threads: int) -> None:
    """Runs one command in `folder`. Raises Failed or Refused. The command ends when this worker does, however it ends:
    two processes at one part would be in each other's way."""
    libc = ctypes.CDLL(None)  # looked up before the fork, after which little is safe

    def end_with_worker() -> None:
        if sys.platform == "linux":
            libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    done = subprocess.run(
        words, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, preexec_fn=end_with_worker,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
    )  # fmt: skip
    if done.returncode:
        said = (done.stderr.strip() or f"ended with {done.returncode}").splitlines()[-1]
        raise (Refused if done.returncode == 2 else Failed)(said)


def run_all(commands: dict[str, list[str]], options: argparse.Namespace) -> int:
    """Runs the commands of the parts that are left as tasks; returns the exit code."""
    local = {
        "address": "local",
        "include_dashboard": False,
        "object_store_memory": 100 << 20,
        "_temp_dir": options.temp_dir,
    }
    where = {"address": options.address} if options.address else local
    ray.init(**where, log_to_driver=False, logging_level="error")
    task = ray.remote(
        num_cpus=options.cpus, num_gpus=options.gpus, max_retries=options.retries, retry_exceptions=[Failed]
    )(run)
    threads = max(1, int(options.cpus))
    left = {task.remote(words, os.getcwd(), threads): part for part, words in commands.items()}
    failed = 0
    while left:
        (ready,), _ = ray.wait(list(left))
        part = left.pop(ready)
        try:
            ray.get(ready)
            say(f"part {part} is there, {len(left)} to go")
        except Refused as error:
            return told(f"part {part}: {error.cause}", 2)  # the other parts would say the same
        except (Failed, ray.exceptions.RayError) as error:
            failed = told(f"part {part}: {getattr(error, 'cause', error)}", 1)
    return failed


def said_of(words: list[str], *names: str) -> tuple[str | None, list[str]]:
    """The value of an option, and the words without it."""
    for at, word in enumerate(words):
        if word in names and at + 1 < len(words):
            return words[at + 1], words[:at] + words[at + 2 :]
        if word.partition("=")[0] in names and "=" in word:
            return word.partition("=")[2], words[:at] + words[at + 1 :]
    return None, words


def say(text: str) -> None:
    minutes, seconds = divmod(int(time.monotonic() - BEGAN), 60)
    print(f"[{minutes:02d}:{seconds:02d}] {text}", file=sys.stderr, flush=True)


def told(text: str, code: int) -> int:
    print(f"error: {text.removeprefix('error: ')}", file=sys.stderr, flush=True)
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, required=True, help="how many; some for each worker, for they differ")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of a task, 0.5 too; %(default)s")
    parser.add_argument("--cpus", type=float, default=1, help="cores of a task, and its threads; %(default)s")
    parser.add_argument("--retries", type=int, default=3, help="after a failure or a lost worker; %(default)s")
    parser.add_argument("--address", help="of a Ray cluster that runs; auto finds this machine's")
    parser.add_argument("--temp-dir", help="of a cluster that is started here; a short path, for sockets; /tmp/ray")
    parser.add_argument("--reczero", default="reczero", help="the command, such as /nfs/env/bin/reczero")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="predict … | data prepare …")
    options = parser.parse_args()
    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    if options.parts < 1:
        parser.error("--parts: must be 1 or more")
    if not shutil.which(options.reczero):
        parser.error(f"--reczero {options.reczero}: no such command; name its path")
    if any(word.partition("=")[0] in ("--part", "--join") for word in words):
        parser.error("--part and --join are given by this program; leave them out")
    names = [f"{number}/{options.parts}" for number in range(1, options.parts + 1)]
    whole = [options.reczero, *words]

    if words[:2] == ["data", "prepare"]:  # which itself knows the parts that are there
        code = run_all({part: [*whole, "--part", part] for part in names}, options)
        return code or subprocess.run([*whole, "--join", str(options.parts)]).returncode

    out, rest = said_of(whole, "-o", "--out")
    if words[:1] != ["predict"] or not out:
        parser.error("then follows what is done by parts: predict … -o TABLE, or data prepare …")
    if Path(out).suffix.lower() not in (".parquet", ".csv"):
        parser.error(f"-o {out}: the name must end on .parquet or .csv")
    if Path(out).exists():  # done before, or somebody else's: it tells
        return subprocess.run(whole).returncode
    folder = Path(out).with_name(f".{Path(out).name}.ray")
    about = folder / "command.json"
    if about.exists() and json.loads(about.read_text()) != [words, options.parts]:
        return told(f"{folder}: was begun with another command or number of parts; remove it or choose another -o", 2)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "command.new").write_text(json.dumps([words, options.parts]))
    (folder / "command.new").rename(about)
    tables = {part: folder / f"{part.replace('/', '-of-')}.parquet" for part in names}
    todo = {part: [*rest, "--part", part, "-o", str(at)] for part, at in tables.items() if not at.exists()}
    if len(todo) < len(tables):
        say(f"goes on: {len(tables) - len(todo)} of {len(tables)} parts are there")
    code = run_all(todo, options) if todo else 0
    code = code or subprocess.run([options.reczero, "join", *map(str, tables.values()), "-o", out]).returncode
    if not code:
        shutil.rmtree(folder)
    return code


if __name__ == "__main__":
    BEGAN = time.monotonic()
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from here")
        sys.exit(130)
