"""Predictions into a file: as the comparison's, whatever interrupts them."""

import json
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from reczero.cli import main
from reczero.errors import UserError
from reczero.rollout.language_model import LanguageModel
from reczero.serving import bulk
from reczero.serving.bulk import Examples, Requests, predict_file


@pytest.fixture(autouse=True)
def small_portions(monkeypatch):
    monkeypatch.setattr(bulk, "PORTION", 7)
    monkeypatch.setattr(bulk, "GROUP", 3)


def quiet(*_):
    pass


def test_a_data_sets_rows_are_predicted_as_the_comparison_predicts_them(predictor, data, guided_dir, tmp_path):
    reports = []
    found = predict_file(predictor, Examples(data, "test"), tmp_path / "out.parquet", 4, quiet, reports.append)
    table = pl.read_parquet(tmp_path / "out.parquet")
    want = LanguageModel.open(str(guided_dir), data).table(data.examples("test", cold_start=None))
    assert table["example_id"].to_list() == want["example_id"].to_list() and table.height == found["rows"] == 80
    for name in ("prediction", "rating", "reasoning", "text", "tokens", "parsed"):
        assert table[name].to_list() == want[name].to_list()
    assert table["expected"].null_count() == 0 and found["malformed"] == found["failed"] == 0
    assert reports[-1]["predicted"] == reports[-1]["of"] == 80
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]
    everything = predict_file(predictor, Examples(data, None), tmp_path / "all.parquet", 64, quiet, quiet)
    assert everything["rows"] == data.examples(cold_start=None).height


def test_it_goes_on_where_it_was_killed(guided_dir, table, data, predictor, tmp_path):
    """Killed without warning; what was done is not done again, and the table is the same."""
    asked = [{"id": f"r{n}", "history": [], "item": {"title": f"Film {n}"}} for n in range(1_500)]
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in asked))
    command = [sys.executable, "-m", "reczero.cli.main", "predict", str(guided_dir), str(file), "-o"]
    parts = tmp_path / ".killed.parquet.parts"
    with subprocess.Popen([*command, str(tmp_path / "killed.parquet")], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline and len(list(parts.glob("0*.parquet"))) < 2:
            time.sleep(0.005)
        process.kill()
    done = {path.name: path.stat().st_mtime_ns for path in parts.glob("0*.parquet")}
    assert 2 <= len(done) < 6 and not (tmp_path / "killed.parquet").exists()
    again = subprocess.run([*command, str(tmp_path / "killed.parquet")], capture_output=True, text=True, check=True)
    assert f"goes on: about {256 * len(done):,} of 1,500 rows are done" in again.stderr
    subprocess.run([*command, str(tmp_path / "whole.parquet")], capture_output=True, check=True)
    killed, whole = (pl.read_parquet(tmp_path / f"{name}.parquet") for name in ("killed", "whole"))
    assert killed.equals(whole) and killed["example_id"].to_list() == [one["id"] for one in asked]


def test_what_was_begun_with_another_model_or_other_rows_is_not_mixed_in(predictor, data, tmp_path):
    out = tmp_path / "out.parquet"

    class Stopped(Exception):
        pass

    def stop(_):
        raise Stopped

    with pytest.raises(Stopped):
        predict_file(predictor, Examples(data, "test"), out, 4, quiet, stop)
    with pytest.raises(UserError, match="was begun with another model or other rows"):
        predict_file(predictor, Examples(data, "train"), out, 4, quiet, quiet)
    predict_file(predictor, Examples(data, "test"), out, 4, quiet, quiet)
    said = []
    predict_file(predictor, Examples(data, "test"), out, 4, said.append, stop)
    assert "is there already" in said[0]
    with pytest.raises(UserError, match="exists, and not of this model and these rows"):
        predict_file(predictor, Examples(data, "train"), out, 4, quiet, quiet)


def test_rows_that_can_not_be_asked_stay_and_say_why(predictor, tmp_path, capsys):
    lines = [
        '{"id": "good", "history": [{"title": "A", "rating": 5}], "item": {"title": "B"}}',
        '{"user_id": "u1", "item_id": "i2"}',
        '{"user_id": "nobody", "item_id": "i2"}',
        "",
        '{"history": [{"title": "A", "rating": 50}], "item": {"title": "B"}}',
        "nonsense",
        "[]",
        '{"history": []}',
        '{"id": [1], "history": [], "item": {"title": "B"}}',
        '{"history": [], "history": [], "item": {"title": "B"}}',
    ]
    (tmp_path / "asked.jsonl").write_text("\n".join(lines))
    found = predict_file(
        predictor, Requests(tmp_path / "asked.jsonl", predictor), tmp_path / "o.parquet", 4, quiet, quiet
    )
    table = pl.read_parquet(tmp_path / "o.parquet")
    assert table["example_id"].to_list() == ["good", "u1:i2", "nobody:i2", "3", "4", "5", "6", "7", "8"]
    assert table["parsed"].to_list() == [True, True] + [False] * 7
    said = table["fault"].to_list()
    told = ["no user", "not on the scale", "no JSON", "no JSON object", "give either", "id: must be", "stands twice"]
    for fault, part in zip(said[2:], told, strict=True):
        assert part in fault
    assert (found["rows"], found["failed"], found["malformed"], found["first"]) == (9, 7, 0, said[2])


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_pairs_of_ids(predictor, guided_dir, table, tmp_path, kind, capsys):
    pairs = pl.DataFrame(
        {"user_id": [f"u{n % 10}" for n in range(20)], "item_id": [f"i{n}" for n in range(20)], "x": 1}
    )
    pairs.write_csv(tmp_path / "pairs.csv"), pairs.write_parquet(tmp_path / "pairs.parquet")
    command = ["predict", str(guided_dir), str(tmp_path / f"pairs.{kind}"), "--data", str(table)]
    assert main.run([*command, "-o", str(tmp_path / "out.csv")]) == 0
    assert "20 rows, 0 malformed answers" in capsys.readouterr().out
    found = pl.read_csv(tmp_path / "out.csv")
    assert found["example_id"].to_list() == [f"u{n % 10}:i{n}" for n in range(20)]
    want = predictor.predict_many([{"user_id": user, "item_id": item} for user, item, _ in pairs.iter_rows()])
    assert found["prediction"].to_list() == [one.rating for one in want]
    assert found["analyze_user"].to_list() == [one.reasoning["analyze_user"] for one in want]


@pytest.mark.parametrize(
    ("name", "content", "options", "says"),
    [
        ("a.csv", "user_id,item\n1,2\n", True, "no column 'item_id'"),
        ("a.csv", "user_id,item_id\n1,2\n", False, "name it: --data"),
        ("a.csv", "", True, "no column"),
        ("a.csv", "user_id,item_id,user_id\n1,2,3\n", True, "two columns 'user_id'"),
        ("a.csv", 'user_id,item_id\n"1,2\n3,4\n', True, "is no CSV"),
        ("a.jsonl", "", True, "holds no rows"),
        ("a.jsonl", b"\xff\xfe{", True, "is not UTF-8"),
        ("a.parquet", "PAR1", True, "cannot be read"),
        ("a.txt", "x", True, "ends on none of"),
    ],
)
def test_files_that_hold_no_requests(guided_dir, table, tmp_path, name, content, options, says, capsys):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    more = ["--data", str(table)] if options else []
    assert main.run(["predict", str(guided_dir), str(path), "-o", str(tmp_path / "o.parquet"), *more]) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "o.parquet").exists()


def test_the_parts_are_the_whole(predictor, data, guided_dir, table, tmp_path, capsys):
    (tmp_path / "asked.jsonl").write_text(
        "".join(f'{{"user_id": "u{n % 10}", "item_id": "i{n}"}}\n' for n in range(31))
    )
    for name, what in (("examples", str(table)), ("requests", str(tmp_path / "asked.jsonl"))):
        command = ["predict", str(guided_dir), what, *([] if name == "examples" else ["--data", str(table)])]
        files = [tmp_path / f"{name}-{k}.parquet" for k in (1, 2, 3)]
        for k, file in enumerate(files, 1):
            assert main.run([*command, "--part", f"{k}/3", "-o", str(file)]) == 0
        assert main.run([*command, "-o", str(tmp_path / f"{name}.parquet")]) == 0
        union, whole = pl.concat(pl.read_parquet(file) for file in files), pl.read_parquet(tmp_path / f"{name}.parquet")
        near = ["distribution", "expected"]  # computed in batches of other company
        assert union.drop(near).equals(whole.drop(near)) and union.height > 30
        assert union["expected"].to_list() == pytest.approx(whole["expected"].to_list(), abs=1e-4)
        for suffix in ("parquet", "csv"):  # in whatever order they are named
            out = tmp_path / f"{name}-joined.{suffix}"
            assert main.run(["join", *map(str, reversed(files)), "-o", str(out)]) == 0
            assert f"{union.height} rows, 0 malformed answers" in capsys.readouterr().out
            before = out.read_bytes()
            assert (
                main.run([*command, "-o", str(out)]) == 0 and main.run(["join", *map(str, files), "-o", str(out)]) == 0
            )
            assert capsys.readouterr().err.count("is there already") == 2 and out.read_bytes() == before
        joined = pl.read_parquet(tmp_path / f"{name}-joined.parquet")
        assert joined.equals(union) and pl.read_csv(out)["example_id"].equals(union["example_id"])
    for wrong in ("0/3", "4/3", "1", "a/b", "-1/3"):
        assert main.run([*command, "--part", wrong, "-o", str(tmp_path / "o.csv")]) == 2
        assert "is written NUMBER/OF" in capsys.readouterr().err


def test_more_parts_than_rows(guided_dir, tmp_path, capsys):
    """The share of some is empty, and they take their place."""
    (tmp_path / "asked.jsonl").write_text('{"history": [], "item": {"title": "A"}}\n' * 2)
    command = ["predict", str(guided_dir), str(tmp_path / "asked.jsonl")]
    files = [str(tmp_path / f"{k}.parquet") for k in (1, 2, 3)]
    for k, file in enumerate(files, 1):
        assert main.run([*command, "--part", f"{k}/3", "-o", file]) == 0
    assert sorted(pl.read_parquet(file).height for file in files) == [0, 1, 1]
    assert main.run(["join", *files, "-o", str(tmp_path / "all.parquet")]) == 0
    assert pl.read_parquet(tmp_path / "all.parquet")["example_id"].to_list() == ["0", "1"]
    for k, file in enumerate(files, 1):
        assert main.run([*command, "--part", f"{k}/3", "-o", file[:-7] + "csv"]) == 0


def test_tables_that_are_no_whole_are_not_joined(guided_dir, table, tmp_path, capsys):
    def part(of, name, split="test"):
        words = ["predict", str(guided_dir), str(table), "--split", split, "--part", of, "-o", str(tmp_path / name)]
        assert main.run(words) == 0
        return str(tmp_path / name)

    a, b, again, other = (
        part("1/3", "a.parquet"),
        part("2/3", "b.parquet"),
        part("2/3", "c.parquet"),
        part("1/2", "d.parquet"),
    )
    validation, csv = part("3/3", "e.parquet", "validation"), part("3/3", "f.csv")
    whole = str(tmp_path / "whole.parquet")
    assert main.run(["predict", str(guided_dir), str(table), "-o", whole]) == 0
    (tmp_path / "there.csv").write_text("x\n1\n")
    capsys.readouterr()
    for tables, out, says in (
        ([a, b], "o.parquet", "parts 3/3 are missing; make them with --part"),
        ([a, b, again], "o.parquet", "c.parquet: is part 2/3, and so is"),
        ([a, b, validation], "o.parquet", "e.parquet: is no part of what"),
        ([other, b], "o.parquet", "b.parquet: is no part of what"),
        ([csv, b], "o.parquet", "f.csv: is no Parquet that `reczero predict --part` wrote"),
        ([whole], "o.parquet", "whole.parquet: is no Parquet that"),
        ([a, "none.parquet"], "o.parquet", "none.parquet: no such file"),
        ([a, b], "o.txt", "must end on"),
        ([a, b, part("3/3", "g.parquet")], "there.csv", "exists, and not of these parts"),
    ):
        assert main.run(["join", *tables, "-o", str(tmp_path / out)]) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "o.parquet").exists()


def test_mistakes_of_the_command_are_told(guided_dir, table, tmp_path, capsys):
    (folder := tmp_path / "folder.csv").mkdir()
    (hopeless := tmp_path / "hopeless.jsonl").write_text('{"title": "A", "rating": 5}\n')
    for command, says in (
        (["predict", str(guided_dir), str(table), "-o", str(tmp_path / "o.txt")], "must end on .parquet or .csv"),
        (["predict", str(guided_dir), str(tmp_path), "-o", str(tmp_path / "o.csv")], "no prepared data set"),
        (["predict", str(guided_dir), "missing.csv", "-o", str(tmp_path / "o.csv")], "no such file"),
        (["predict", str(guided_dir), str(table), "--data", str(table), "-o", "o.csv"], "goes with a file"),
        (["recommend", str(guided_dir), "--data", str(table)], "give either --user"),
        (["recommend", str(guided_dir), "--data", str(table), "--user", "nobody"], "no user 'nobody'"),
        (["recommend", str(guided_dir), "--user", "u1"], "name it: --data"),
        (["predict", str(guided_dir), "missing.csv", "--split", "train", "-o", "o.csv"], "is for a data set"),
        (["predict", str(guided_dir), str(table), "-o", str(folder)], "is a folder"),
        (["predict", str(guided_dir), str(hopeless), "-o", str(tmp_path / "o.csv")], "not one row could be asked"),
    ):
        assert main.run(command) == 2
        assert says in capsys.readouterr().err


def test_recommend(guided_dir, table, predictor, tmp_path, capsys):
    (tmp_path / "ids.txt").write_text("i1\ni2\n\ni2\ni7\n")
    command = [
        "recommend",
        str(guided_dir),
        "--data",
        str(table),
        "--user",
        "u1",
        "--candidates",
        str(tmp_path / "ids.txt"),
    ]
    assert main.run([*command, "-k", "2", "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    want = predictor.recommend(user_id="u1", candidate_ids=["i1", "i2", "i7"], k=2)
    assert [one["id"] for one in found] == [one.id for one in want]
    assert main.run([*command, "--reasons"]) == 0
    said = capsys.readouterr().out
    assert all(one.title[:6] in said for one in want) and "expected" in said
    (tmp_path / "history.jsonl").write_text('{"title": "A", "rating": 5}\n')
    (tmp_path / "new.jsonl").write_text('{"title": "B", "id": "b"}\n{"title": "\\u001b[31mC"}\n')
    command = ["recommend", str(guided_dir), "--history", str(tmp_path / "history.jsonl")]
    assert main.run([*command, "--candidates", str(tmp_path / "new.jsonl")]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_a_full_disk_is_told(predictor, data, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", str(tmp_path / "x"))

    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    with pytest.raises(UserError, match="the disk is full"):
        predict_file(predictor, Examples(data, "test"), Path(tmp_path / "o.parquet"), 4, quiet, quiet)


def test_half_a_surrogate_pair_in_an_id_costs_no_other_row(predictor, tmp_path):
    lines = ['{"history": [], "item": {"title": "A"}, "id": "\\ud800"}', '{"user_id": "\\ud800", "item_id": "i1"}']
    (tmp_path / "asked.jsonl").write_text("\n".join([*lines, '{"user_id": "u1", "item_id": "i1"}']))
    rows = Requests(tmp_path / "asked.jsonl", predictor)
    predict_file(predictor, rows, tmp_path / "o.parquet", 4, quiet, quiet)
    table = pl.read_parquet(tmp_path / "o.parquet")
    assert table["parsed"].to_list() == [False, False, True]
    assert table["fault"].to_list() == ["holds half of a surrogate pair"] * 2 + [None]


def test_a_damaged_portion_is_predicted_again(predictor, data, tmp_path):
    out = tmp_path / "out.parquet"

    def stop(report):
        if report["predicted"] > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_file(predictor, Examples(data, "test"), out, 4, quiet, stop)
    first, *_ = sorted((tmp_path / ".out.parquet.parts").glob("0*.parquet"))
    first.write_bytes(first.read_bytes()[:100])
    predict_file(predictor, Examples(data, "test"), out, 4, quiet, quiet)
    predict_file(predictor, Examples(data, "test"), tmp_path / "whole.parquet", 4, quiet, quiet)
    assert pl.read_parquet(out).equals(pl.read_parquet(tmp_path / "whole.parquet"))


@pytest.mark.parametrize("suffix", [".csv", ".CSV", ".parquet"])
def test_a_finished_table_is_left_alone(predictor, data, tmp_path, suffix):
    """Also where a kill came before what lay beside it was removed."""
    out, said = tmp_path / f"out{suffix}", []
    first = predict_file(predictor, Examples(data, "test"), out, 4, quiet, quiet)
    (tmp_path / f".out{suffix}.parts").mkdir()
    before = out.read_bytes()
    again = predict_file(predictor, Examples(data, "test"), out, 4, said.append, quiet)
    assert again == first and "is there already" in said[0] and out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    with pytest.raises(UserError, match="not of this model and these rows"):
        predict_file(predictor, Examples(data, "train"), out, 4, quiet, quiet)
