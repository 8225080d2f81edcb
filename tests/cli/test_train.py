"""`reczero train` from a table to a report, with a tiny model; killed and resumed; and what a user may get wrong."""

import json
import os
import subprocess
import sys
import time

import polars as pl
import psutil
import pytest

from reczero.cli import main
from reczero.recipes import load_recipe, shipped


@pytest.fixture
def recipe(table, tiny_model_dir, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"""
method: reczero
data: {{dataset: "{table}", train_examples: 40}}
model: {{name: "{tiny_model_dir}", dtype: float32}}
rollout: {{guided: true, group_size: 4, template: {{instructions: brief, history: 1, opinions: 0, section_tokens: 3}}}}
training: {{learning_rate: 1.0e-3, groups_per_step: 2, steps: 6, save_steps: 2}}
evaluation: {{validation_examples: 6, validation_steps: 3, test_examples: 12}}
"""
    )
    return path


def test_a_recipe_may_name_raw_files(recipe, table, tmp_path, monkeypatch, capsys):
    """The same run from a CSV as from the folder prepared of it; a folder prepared otherwise is told."""
    monkeypatch.setenv("RECZERO_HOME", str(tmp_path / "home"))
    pl.read_parquet(table / "interactions.parquet").drop("review", "summary").write_csv(tmp_path / "ratings.csv")
    pl.read_parquet(table / "items.parquet").select("item_id", "title").write_csv(tmp_path / "films.csv")
    files = f"source: table, reviews: {tmp_path / 'ratings.csv'}, items: {tmp_path / 'films.csv'}, scale: 1-5"
    settings = "train: 0.6, validation: 0.2, test: 0.2, min_context: 1"
    text = recipe.read_text()
    recipe.write_text(text.replace(f'dataset: "{table}"', f"{files}, {settings}"))
    assert main.run(["train", str(recipe), "--out", str(tmp_path / "raw")]) == 0
    recipe.write_text(text.replace("train_examples", "min_context: 2, train_examples"))
    capsys.readouterr()
    assert main.run(["train", str(recipe), "--out", str(tmp_path / "folder")]) == 0
    assert "data.min_context: the recipe says 2" in capsys.readouterr().err
    raw, folder = (pl.read_parquet(tmp_path / run / "predictions" / "reczero.parquet") for run in ("raw", "folder"))
    assert raw.equals(folder)


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keys = ("step", "loss", "reward", "grad_norm", "validation_mae")
    return [{key: line[key] for key in keys if key in line} for line in lines]


def test_from_a_table_to_a_report_and_again(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    assert main.run(["train", str(recipe), "--out", str(run)]) == 0
    said = capsys.readouterr()
    assert f"report: {run / 'report.html'}" in said.out and "untrained" in said.out and "step 6 of 6" in said.err

    comparison = pl.read_csv(run / "comparison.csv")
    header = "model,rows,mae,mae_low,mae_high,rmse,rmse_low,rmse_high,parse_rate,mode_share"
    assert (run / "comparison.csv").read_text().splitlines()[0].startswith(f"{header},")
    assert {"untrained", "reczero", "global-mean", "global-median", "user-average", "item-average", "additive"} <= set(
        comparison["model"]
    )
    assert (comparison["rows"] == 12).all()
    assert comparison.filter(pl.col("model") == "reczero")["parse_rate"].item() == 1.0

    info = json.loads((run / "run.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validated = {x["step"]: (x["validation_mae"], x["validation_rmse"]) for x in lines if "validation_mae" in x}
    assert set(validated) == {3, 6} and info["best_step"] == min(validated, key=lambda s: (validated[s], s))
    samples = pl.read_parquet(run / "completions.parquet")
    assert samples.height == 6 * 2 * 4 and samples["prediction"].null_count() == 0
    prompts = pl.read_parquet(run / "test_examples.parquet")["prompt"]
    assert prompts.str.contains("‹/rate› Film", literal=True).all()
    assert not prompts.str.contains("</rate>", literal=True).any()

    assert main.run(["train", str(recipe), "--out", str(run)]) == 2
    assert "--resume" in capsys.readouterr().err
    before = (run / "report.html").stat().st_mtime_ns
    assert main.run(["train", str(recipe), "--out", str(run), "--resume"]) == 0
    assert "reusing it" in capsys.readouterr().err and (run / "report.html").stat().st_mtime_ns == before
    assert main.run(["train", str(recipe), "training.seed=9", "--out", str(run), "--resume"]) == 2
    assert "another recipe" in capsys.readouterr().err

    assert main.run(["export", str(run), "--out", str(tmp_path / "model")]) == 0
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tmp_path / "model")


def test_lora_trains_is_kept_and_exported_merged(recipe, tmp_path, capsys):
    run = tmp_path / "lora"
    assert main.run(["train", str(recipe), "model.lora.rank=2", "training.steps=3", "--out", str(run)]) == 0
    assert (run / "model" / "adapter_config.json").is_file()
    assert main.run(["export", str(run), "--out", str(tmp_path / "merged")]) == 0
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_killed_at_any_moment_it_resumes_as_if_nothing_had_happened(recipe, tmp_path, kill_when):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = [sys.executable, "-m", "reczero.cli.main", "train", str(recipe), "--out"]
    subprocess.run([*command, str(whole)], check=True, capture_output=True)
    for step in (1, 3, 5):  # before the first checkpoint, after one, and again
        kill_when([*command, str(cut), "--resume"], cut, f'"step": {step},')
    subprocess.run([*command, str(cut), "--resume"], check=True, capture_output=True)
    assert losses(cut) == losses(whole)
    for name in ("comparison.csv", "predictions/reczero.parquet", "completions.parquet"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize("name", list(shipped()))
def test_every_shipped_recipe_dry_runs(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.run(["train", name, "--dry-run"]) == 0
    said = capsys.readouterr().out
    method = load_recipe(name).method
    assert f"method      {method}: " in said and not list(tmp_path.iterdir())
    assert ("steps of" in said) == (method != "sft") and ("traces a step" in said) == (method != "reczero")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model.name=nowhere/no-such-model"], "nowhere/no-such-model"),
        (["model.name=./no/such/folder"], "no such folder"),
        (["data.dataset=ml-100m"], "ml-100k"),
        (["training.lr=1", "modle=2"], "2 mistakes"),
        (["evaluation.min_user_history=1000"], "min_*_history"),
        (["training.tokens_per_batch=0"], "training.tokens_per_batch"),
        (["data.train_examples=1"], "fewer than training.groups_per_step, 2"),
    ],
)
def test_mistakes_are_told_and_leave_nothing_behind(recipe, tmp_path, capsys, overrides, told):
    run = tmp_path / "run"
    assert main.run(["train", str(recipe), *overrides, "--out", str(run)]) == 2
    said = capsys.readouterr().err
    assert "error: " in said and told in said and "Traceback" not in said
    assert not run.exists()


def test_an_output_that_is_something_else_is_refused(recipe, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main.run(["train", str(recipe), "--out", str(tmp_path / "file")]) == 2
    assert main.run(["train", str(recipe), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("choose another --out") == 2
    assert (tmp_path / "file").read_text() == "mine"


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node=2"],
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2"],  # its way for CPUs wants MPI
}


def launch(launcher, *arguments):
    """`reczero` in two processes."""
    command = [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "reczero.cli.main", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes)


def finish(process, seconds=200):
    try:
        return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        kill(process)
        raise AssertionError(f"they wait for each other\n{process.communicate()}") from None


def kill(process):
    """A launcher and its workers, which are in sessions of their own."""
    for one in (*psutil.Process(process.pid).children(recursive=True), process):
        one.kill()


def test_two_processes_share_the_work_and_one_writes(recipe, tmp_path, capsys):
    """Started by torchrun, and by accelerate; the latter killed on the way."""
    alone, two, cut = tmp_path / "alone", tmp_path / "two", tmp_path / "cut"
    assert main.run(["train", str(recipe), "--out", str(alone)]) == 0
    capsys.readouterr()
    process = launch("torchrun", "train", recipe, "--out", two)
    out, err = finish(process)
    assert process.returncode == 0, err
    assert out.count("report: ") == 1 and err.count("step 6 of 6") == 1 and "2 processes, 1 groups a step" in err
    assert {path.relative_to(two) for path in two.rglob("*.parquet")} == {
        path.relative_to(alone) for path in alone.rglob("*.parquet")
    }
    for name in ("predictions/untrained.parquet", "test_examples.parquet"):
        assert pl.read_parquet(two / name).equals(pl.read_parquet(alone / name)), name
    samples, by_one = (pl.read_parquet(run / "completions.parquet") for run in (two, alone))
    assert (
        samples.select("step", "example_id")
        .sort("step", "example_id")
        .equals(by_one.select("step", "example_id").sort("step", "example_id"))
    )  # the same prompts in every step
    steps = [line["step"] for line in losses(two) if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6] and json.loads((two / "run.json").read_text())["finished"]

    process = launch("accelerate", "train", recipe, "--out", cut)
    while process.poll() is None and not (
        (cut / "metrics.jsonl").exists() and '"step": 3,' in (cut / "metrics.jsonl").read_text()
    ):
        time.sleep(0.01)
    kill(process)
    process.communicate()
    process = launch("accelerate", "train", recipe, "--out", cut, "--resume")
    _, err = finish(process)
    assert process.returncode == 0 and "from checkpoint-2" in err, err
    assert losses(cut) == losses(two)
    assert pl.read_parquet(cut / "predictions/reczero.parquet").equals(
        pl.read_parquet(two / "predictions/reczero.parquet")
    )


def test_processes_that_cannot_share_the_groups_are_refused(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert main.run(["train", str(recipe), "--out", str(tmp_path / "run")]) == 2
    assert "2 is not a multiple of 3 processes" in capsys.readouterr().err and not (tmp_path / "run").exists()
