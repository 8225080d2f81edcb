"""A preparation by parts is that of a single run, byte for byte: whatever the files, and whoever was killed."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import polars as pl
import pyarrow.parquet as pq
import pytest
from published_files import FORMATS, Published, packed

from reczero.cli import main
from reczero.data import raw, staging
from reczero.data.raw import Quarantine

Run = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "BATCH", 7)


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """`reczero data prepare` into `tmp_path`/NAME: its exit code, and what it says."""

    def go(out: str, source: str, reviews: Path, items: Path | None, *words: object) -> tuple[int, str]:
        capsys.readouterr()
        words = ("--reviews", reviews, *(("--items", items) if items else ()), "--out", tmp_path / out, *words)
        code = main.run(["data", "prepare", "--source", source, *map(str, words)])
        said = capsys.readouterr()
        return code, said.out + said.err

    return go


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same_by_parts(run: Run, home: Path, of: int, *asked: object) -> str:
    """Prepares as a whole and by parts, the last part first, and compares; returns what the join said."""
    code, whole = run("whole", *asked)
    assert code == 0, whole
    for number in range(of, 0, -1):
        code, said = run("parted", *asked, "--part", f"{number}/{of}")
        assert code == 0 and f"part {number}/{of} is there" in said, said
    assert not (home / "parted").exists()
    code, said = run("parted", *asked, "--join", of)
    assert code == 0, said
    assert content(home / "parted") == content(home / "whole")
    assert said.replace("parted", "whole") == whole
    assert sorted(path.name for path in home.iterdir() if path.is_dir() and path.name != "packed-gz") == [
        "parted",
        "whole",
    ]
    shutil.rmtree(home / "parted")
    return said


@pytest.mark.parametrize("name", FORMATS)
def test_the_parts_make_what_a_single_run_makes(name: str, published: Published, run: Run, tmp_path: Path) -> None:
    made = published(name)
    same_by_parts(run, tmp_path, 3, made.form.source, made.reviews, made.items, "--max-bad", 0.5)


@pytest.mark.parametrize("of", [1, 2, 40])
def test_any_number_of_parts_of_a_packed_file(of: int, published: Published, run: Run, tmp_path: Path) -> None:
    """40 are more than there are batches: most are empty."""
    made = published("amazon2018")
    gz = packed(made.reviews, "gz", ".gz", tmp_path)
    same_by_parts(run, tmp_path, of, "amazon2018", gz, made.items, "--split", "leave-last-k", "--k-core", 2)


def table(path: Path, rows: list[str], header: str = "user,item,rating,timestamp,review") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", "utf-8", "surrogateescape")
    return path


def good_rows(count: int) -> list[str]:
    draw = Random(0)
    return [
        f'u{draw.randrange(9)},i{draw.randrange(12)},{draw.randint(1, 5)},{1_500_000_000 + n // 3},"no, {n % 4}\nyes"'
        for n in range(count)
    ]


def test_guesses_that_rest_on_all_rows_are_made_at_the_join(run: Run, tmp_path: Path) -> None:
    """One half star, in one part, makes the scale one of halves; repeats lie in different parts; no times."""
    rows = good_rows(300)
    rows[250] = "u1,new,0.5,1600000000,"
    said = same_by_parts(run, tmp_path, 4, "table", table(tmp_path / "t.csv", rows), None)
    assert "scale: 0.5-5 by 0.5" in said and "repeats:" in said
    untimed = [",".join(row.split(",")[:3]) for row in rows]
    path = table(tmp_path / "untimed.csv", untimed, "user,item,rating")
    same_by_parts(run, tmp_path, 4, "table", path, None, "--split", "random")


@pytest.mark.parametrize(
    ("first", "then", "found", "aside"),
    [
        ("1500000000000", "1400000000", "Unix milliseconds", 53),  # seconds among milliseconds, in whichever part
        ("garbage", "1500000000000", "Unix milliseconds", 7),
        ("", "2017-07-14", "dates", 7),
        ("2017-07-14", "1500000000", "dates", 53),
    ],
)
def test_what_times_are_is_settled_by_the_first_rows_for_all_parts(
    first: str, then: str, found: str, aside: int, run: Run, tmp_path: Path
) -> None:
    rows = [f"u{n % 5},i{n % 8},{1 + n % 5},{first if n < 7 else then},x" for n in range(60)]
    said = same_by_parts(run, tmp_path, 3, "table", table(tmp_path / "t.csv", rows), None, "--max-bad", 1)
    assert f"times: {found}" in said and f"put aside: {aside} rows" in said


def test_row_groups_rest_on_the_length_of_all_texts(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "GROUP_BYTES", 50_000)
    rows = [f"u{n},i{n},3,{1_500_000_000 + n},{'long ' * 100 if n // 7 % 3 == 2 else 'short'}" for n in range(900)]
    same_by_parts(run, tmp_path, 3, "table", table(tmp_path / "t.csv", rows), None)
    assert pq.ParquetFile(tmp_path / "whole" / "interactions.parquet").num_row_groups == 4


def bad_rows() -> list[str]:
    rows = good_rows(200)
    for n, bad in enumerate([
        "u1,i1", "u1,i1,99,1500000000,x", "u1,i1,3,soon,x", ",i1,3,1500000000,x", 'u1,i1,3,"1500000000,x',
        "u1,i1,3,1500000000,\udcff", "u1,i1,three,1500000000," + "long " * 99 + '"\n\n"', "u1,,3,1500000000,x",
    ]):  # fmt: skip
        rows[20 * n + 3 : 20 * n + 3] = [bad, bad]
    return rows


@pytest.mark.parametrize("of", [2, 5])
def test_bad_rows_come_in_the_order_of_a_single_run(of: int, run: Run, tmp_path: Path) -> None:
    path, items = table(tmp_path / "t.csv", bad_rows()), tmp_path / "items.jsonl"
    lines = [json.dumps({"item_id": f"i{n % 12}", "title": f"Film {n % 12}"}) for n in range(50)]
    items.write_text("\n".join(line if n % 9 else "broken" for n, line in enumerate(lines)))
    said = same_by_parts(run, tmp_path, of, "table", path, items, "--max-bad", 0.5, "--scale", "1-5")
    kept = [json.loads(line) for line in (tmp_path / "whole" / "quarantine.jsonl").read_text().splitlines()]
    assert len({row["reason"].split(" (")[0] for row in kept}) == 9 and "rows of the items" in said


def test_the_share_of_bad_rows_is_that_of_all(run: Run, tmp_path: Path) -> None:
    """Five of 205 stand in one part: too many there, and few of all. Where all are too many, the join says so."""
    asked = ("table", table(tmp_path / "t.csv", good_rows(200) + ["u,i,x,1,"] * 5), None)
    same_by_parts(run, tmp_path, 29, *asked, "--max-bad", 0.03)
    code, whole = run("bad", *asked)
    assert code == 2 and "5 of 205 rows can't be used" in whole
    for number in (1, 2):
        assert run("bad", *asked, "--part", f"{number}/2")[0] == 0
    assert run("bad", *asked, "--join", 2) == (2, whole)
    assert not (tmp_path / "bad").exists()


def test_a_text_that_is_cut_at_a_line_feed_stays_as_it_was(tmp_path: Path) -> None:
    one, joined = Quarantine(), Quarantine()
    one.add("items", "f", 3, "bad", "x" * 499 + "\n\n more")
    one.save(tmp_path / "a")
    joined.take("items", [tmp_path / "a", tmp_path / "none"])
    joined.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(published: Published, tmp_path: Path) -> Iterator[tuple[str, Path, Path]]:
    """A format's files, which may be changed."""
    made = published("table-comma")
    assert made.items
    yield "table", *(Path(shutil.copy(path, tmp_path)) for path in (made.reviews, made.items))


def test_missing_parts_are_named(asked: tuple[str, Path, Path], run: Run, tmp_path: Path) -> None:
    assert run("out", *asked, "--part", "2/4")[0] == 0
    code, said = run("out", *asked, "--join", 4)
    assert code == 2 and said.count("\n") == 1
    assert "of its 4 parts 1/4, 3/4, 4/4 are missing; make them with --part" in said
    assert "parts 1/2, 2/2 are missing" in run("out", *asked, "--join", 2)[1]
    assert "1/1000" in run("out", *asked, "--join", 1000)[1] and not (tmp_path / "out").exists()


def test_parts_of_other_files_or_options_are_refused(asked: tuple[str, Path, Path], run: Run, tmp_path: Path) -> None:
    for number in (1, 2):
        assert run("out", *asked, "--part", f"{number}/2")[0] == 0
    for words in (["--history", 5], ["--scale", "1-5"], ["--time-format", "%Y-%m-%d"]):
        for ask in (["--join", 2], ["--part", "1/2"]):
            code, said = run("out", *asked, *words, *ask)
            assert code == 2 and "was made of other files, with other options" in said and "1-of-2" in said
    kept = asked[2].read_bytes()
    asked[2].write_bytes(kept + b"\n")
    assert "was made of other files" in run("out", *asked, "--join", 2)[1]
    asked[2].write_bytes(kept)
    assert run("out", *asked, "--join", 2)[0] == 0


def test_a_damaged_part_is_found(asked: tuple[str, Path, Path], run: Run, tmp_path: Path) -> None:
    for number in (1, 2):
        assert run("out", *asked, "--part", f"{number}/2")[0] == 0
    part = tmp_path / ".out.parts" / "2-of-2"
    with (part / "staged" / "texts").open("r+b") as file:
        file.seek(40)
        file.write(b"?")
    code, said = run("out", *asked, "--join", 2)
    assert code == 2 and f"{part}: is damaged; remove it" in said
    shutil.rmtree(part)
    assert run("out", *asked, "--part", "2/2")[0] == 0 and run("out", *asked, "--join", 2)[0] == 0


def test_mistakes_are_told(asked: tuple[str, Path, Path], run: Run, tmp_path: Path) -> None:
    for words, says in (
        (["--part", "0/3"], "is written NUMBER/OF"),
        (["--part", "4/3"], "is written NUMBER/OF"),
        (["--part", "1/2", "--join", 2], "give one of them"),
        (["--join", 0], "--join"),
    ):
        code, said = run("out", *asked, *words)
        assert code == 2 and says in said
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    code, said = run("out", *asked, "--part", "1/2")
    assert code == 2 and "holds other files" in said
    untimed = table(tmp_path / "untimed.csv", ["u,i,3"], "user,item,rating")
    assert "no column for the time" in run("new", "table", untimed, None, "--part", "1/2")[1]


# --- what is there is not done again, and a kill costs a part ---------------------------------------------------------


def test_what_is_there_is_not_made_again(asked: tuple[str, Path, Path], run: Run, tmp_path: Path) -> None:
    for number in (1, 2):
        assert run("out", *asked, "--part", f"{number}/2")[0] == 0
    seals = list(tmp_path.glob(".out.parts/*/staged/part.json"))
    before = [path.stat().st_mtime_ns for path in seals]
    assert run("out", *asked, "--part", "1/2")[0] == 0
    assert len(before) == 2 and [path.stat().st_mtime_ns for path in seals] == before
    assert run("out", *asked, "--join", 2)[0] == 0
    made = (tmp_path / "out" / "dataset.json").stat().st_mtime_ns
    code, said = run("out", *asked, "--part", "1/2")  # a late worker
    assert code == 0 and "is there already" in said and not (tmp_path / ".out.parts").exists()
    assert run("out", *asked, "--join", 2)[0] == 0
    assert (tmp_path / "out" / "dataset.json").stat().st_mtime_ns == made


@pytest.mark.parametrize("step", ["part", "join"])
def test_a_kill_at_any_moment_costs_no_more_than_the_step(step: str, run: Run, tmp_path: Path) -> None:
    rows = [(f"u{n % 997}", f"i{n % 1009}", 1 + n % 5, 1_500_000_000 + n, "wonderful " * 60) for n in range(60_000)]
    path = tmp_path / "t.parquet"
    pl.DataFrame(rows, ["user", "item", "rating", "timestamp", "review"], orient="row").write_parquet(path)
    out = tmp_path / "killed"
    words = ["--source", "table", "--reviews", str(path), "--out", str(out)]
    call = [sys.executable, "-m", "reczero.cli.main", "data", "prepare", *words]
    if step == "join":
        for number in (1, 2):
            subprocess.run([*call, "--part", f"{number}/2"], check=True, capture_output=True)
    option, sign = {
        "part": (["--part", "1/2"], ".killed.parts/1-of-2/.tmp-*/texts"),
        "join": (["--join", "2"], ".tmp-*-killed/interactions.parquet"),
    }[step]
    with subprocess.Popen([*call, *option], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline and not list(tmp_path.glob(sign)):
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -9 and list(tmp_path.glob(sign)) and not out.exists()
    for again in (["--part", "1/2"], ["--part", "2/2"], ["--join", "2"]):
        subprocess.run([*call, *again], check=True, capture_output=True)
        assert not list(tmp_path.glob(".killed.parts/*/.tmp-*"))  # what the kill left is swept up
    subprocess.run([*call[:-1], str(tmp_path / "whole")], check=True, capture_output=True)
    assert content(out) == content(tmp_path / "whole")
    assert not (tmp_path / ".killed.parts").exists()
