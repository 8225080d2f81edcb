"""The folder that `reczero launch verl` writes, as far as it goes without verl (tests/scaleout_env has the rest)."""

import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import get_args

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reczero.cli.main import run
from reczero.errors import UserError
from reczero.evaluation.outside import read_predictions_file
from reczero.reasoning import Scale, Template, TemplateSettings, parse, score
from reczero.recipes import load_recipe, shipped
from reczero.scaleout import Preset, verl
from reczero.scaleout.reward import bundle
from reczero.scaleout.verl import Cluster, Sizes

SIZES = Sizes(rows=2400, prompt_tokens=512, traces=800, trace_tokens=640)


def recipe_file(folder: Path, dataset: Path, policy: Path, **sections) -> Path:
    tree = {
        "method": "recone", "data": {"dataset": str(dataset), "train_examples": 48},
        "model": {"name": str(policy), "dtype": "bfloat16"},
        "rollout": {"group_size": 4, "max_tokens": 96, "template": {"history": 2, "opinions": 1}},
        "teacher": {"kind": "profile", "examples": 16}, "sft": {"traces_per_step": 8},
        "training": {"groups_per_step": 8}, "evaluation": {"validation_examples": 12, "test_examples": 20},
    }  # fmt: skip
    for name, values in sections.items():
        tree[name] = tree[name] | values if isinstance(values, dict) else values
    (folder / "recipe.yaml").write_text(json.dumps(tree), "utf-8")  # JSON is YAML
    return folder / "recipe.yaml"


@pytest.fixture
def launched(tmp_path, table, tiny_model_dir) -> Path:
    out = tmp_path / "launch"
    assert run(["launch", "verl", str(recipe_file(tmp_path, table, tiny_model_dir)), "--out", str(out)]) == 0
    return out


# --- the mapping ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_has_a_mapping(name, tmp_path):
    recipe = load_recipe(name)
    verl.check(recipe, Cluster(8))
    written = verl.written(verl.grpo_overrides(recipe, Cluster(8), SIZES, tmp_path, "org/model"))
    keys = [line.partition("=")[0] for line in written]
    assert len(set(keys)) == len(keys)
    assert not any("\n" in line for line in written)
    assert f"actor_rollout_ref.rollout.n={recipe.rollout.group_size}" in written
    assert f"actor_rollout_ref.actor.optim.lr={recipe.training.learning_rate!r}" in written
    assert not any(key.startswith("custom_reward_function") for key in keys)  # verl ignores the old place in silence
    sft = verl.sft_overrides(recipe, Cluster(8), SIZES, tmp_path, "org/model")
    assert sft["optim.lr"] == recipe.sft.learning_rate  # verl's default would be 1e-3


def test_the_papers_recipe_comes_to_the_papers_steps(tmp_path):
    overrides = verl.grpo_overrides(load_recipe("reczero-7b"), Cluster(8), SIZES, tmp_path, "org/model")
    assert overrides["trainer.total_training_steps"] == 300
    assert overrides["trainer.total_epochs"] == 1
    assert overrides["data.train_batch_size"] == overrides["actor_rollout_ref.actor.ppo_mini_batch_size"] == 8
    assert overrides["actor_rollout_ref.actor.loss_agg_mode"] == "seq-mean-token-mean"
    assert overrides["actor_rollout_ref.actor.use_kl_loss"] is False
    assert overrides["data.max_prompt_length"] == 512 and overrides["data.max_response_length"] == 1024
    assert overrides["actor_rollout_ref.actor.ppo_max_token_len_per_gpu"] == 4096
    assert load_recipe("reczero-7b", ["training.steps=700"]).training.steps == 700
    longer = verl.grpo_overrides(
        load_recipe("reczero-7b", ["training.steps=700"]), Cluster(8), SIZES, tmp_path, "org/model"
    )
    assert longer["trainer.total_training_steps"] == 700 and longer["trainer.total_epochs"] == 3


def test_what_verl_does_otherwise_is_told():
    told = "\n".join(verl.differences(load_recipe("quickstart")))
    for key in ("rollout.guided", "instructions", "model.train_layers", "model.dtype", "minutes"):
        assert key in told
    assert verl.differences(load_recipe("reczero-7b")) == []
    changes = ["training.advantage_epsilon=1e-4", "training.schedule=linear"]
    told = "\n".join(verl.differences(load_recipe("reczero-7b", changes)))
    assert "1e-6, not 0.0001" in told and "cosine" in told
    told = "\n".join(verl.differences(load_recipe("movielens-recone")))
    assert "sft.belief" in told and "training.rating" in told


def test_what_a_cluster_cant_share_is_told_together():
    with pytest.raises(UserError) as error:
        verl.check(
            load_recipe("recone", ["method=iterate", "sft.traces_per_step=6", "sft.traces_per_batch=2"]), Cluster(7)
        )
    told = str(error.value)
    assert "method iterate" in told and "64 answers" in told and "sft.traces_per_step: 6" in told
    with pytest.raises(UserError, match="does not divide"):
        Cluster(8, 1, 3)
    with pytest.raises(UserError, match="--nodes 0"):
        Cluster(8, 0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"), (True, "true"), (3, "3"), (2e-06, "2e-06"), ("a/b-c_d.e", "a/b-c_d.e"),
        ([1, "x y"], "[1,'x y']"), ("it's", r"'it\'s'"), ("a b", "'a b'"),
        (r"back\'s", r"'back\\\'s'"), ("end \\", "'end \\\\'"),
    ],
)  # fmt: skip
def test_values_are_quoted_as_hydra_reads_them(value, text):
    assert verl.written({"key": value}) == [f"key={text}"]


# --- the reward -------------------------------------------------------------------------------------------------------

TEMPLATE = Template(TemplateSettings(variant="think", history=3), Scale(0.5, 5, 0.5))
REWARD = ModuleType("reward_of_launch")
sys.modules[REWARD.__name__] = REWARD  # dataclasses look themselves up there
exec(compile(bundle(TEMPLATE, "released-code", 3.5), "reward.py", "exec"), REWARD.__dict__)
TAGS = [s for section in TEMPLATE.sections for s in (section.open, section.close)]


@given(
    st.lists(
        st.sampled_from(
            [s for section in TEMPLATE.sections for s in (section.open, section.close)]
            + ["4", "0.5", "9", " ", "text", "\n"]
        )
    ).map("".join)
    | st.text(),
    st.sampled_from([0.5, 3.0, 4.5, 5.0]),
)
def test_the_bundled_reward_is_ours(text, truth):
    answer = parse(text, TEMPLATE)
    found = REWARD.compute_score("data", text, str(truth), {"index": 0})
    assert found["score"] == score(answer, truth, TEMPLATE, "released-code").total
    assert found["abs_err"] == abs((3.5 if answer.rating is None else answer.rating) - truth)
    assert found["parsed"] == float(answer.well_formed)


def test_good_answers_are_among_those_compared():
    text = TEMPLATE.write({"analyze_user": "a", "analyze_item": "b", "match": "c"}, 4.5)
    assert REWARD.compute_score("data", text, "4.5") == {"score": 2.0, "abs_err": 0, "sq_err": 0, "parsed": 1.0}


def test_no_name_stands_twice_in_the_bundle():
    import ast

    names = [node.name for node in ast.parse(bundle(TEMPLATE, "paper", 4)).body if hasattr(node, "name")]
    assert len(names) == len(set(names))


# --- the folder -------------------------------------------------------------------------------------------------------


def test_the_folder_is_complete(launched, table, tiny_model_dir):
    names = {path.name for path in launched.iterdir()}
    assert names == {
        "train.parquet", "validation.parquet", "test.parquet", "sft.parquet", "overrides.txt", "sft_overrides.txt",
        "reward.py", "merge.py", "run.sh", "evaluate.sh", "submit.sh", "slurm.sh", "environment.sh", "README.md",
        "recipe.yaml", "reczero.json", "launch.json", "base",
    }  # fmt: skip
    rows = pl.read_parquet(launched / "validation.parquet").to_dicts()
    assert len(rows) == 12
    assert set(rows[0]) == {"data_source", "prompt", "ability", "reward_model", "extra_info"}
    assert [message["role"] for message in rows[0]["prompt"]] == ["system", "user"]
    assert [row["extra_info"]["index"] for row in rows] == list(range(12))
    traces = pl.read_parquet(launched / "sft.parquet")["messages"].to_list()
    assert all(messages[-1]["role"] == "assistant" and "<rate>" in messages[-1]["content"] for messages in traces)
    assert "</rate>" not in traces[0][1]["content"]  # the titles of this data set try
    readme = (launched / "README.md").read_text()
    assert "Not exercised without a GPU" in readme and "sft.patience" in readme
    assert (launched / "base" / "config.json").read_text() == (tiny_model_dir / "config.json").read_text()
    for script in launched.glob("*.sh"):
        subprocess.run(["bash", "-n", script], check=True)


def test_the_best_checkpoint_is_of_whole_validations(launched, capsys):
    worker = importlib.import_module("reczero.scaleout.worker")
    validation, checkpoints = launched / "validation", launched / "checkpoints" / "grpo"
    validation.mkdir()

    def dump(step: int, errors: list[float], parsed: float = 1.0) -> None:
        lines = [{"abs_err": e, "sq_err": e * e, "parsed": parsed} for e in errors]
        (validation / f"{step}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (checkpoints / f"global_step_{step}" / "actor").mkdir(parents=True)

    dump(2, [1.0, 2.0])
    dump(4, [0.0])  # one row of two
    dump(6, [0.5, 0.5], parsed=0.0)
    dump(8, [1.0, 1.0])
    (validation / "10.jsonl").write_text('{"abs_err": 0.')
    assert worker.main([str(validation), str(checkpoints)]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(checkpoints / "global_step_8")
    assert "10.jsonl: damaged, left out" in said.err and "1.500  1.581       100.0%     2" in said.err
    assert worker.main([str(validation), str(launched)]) == 2


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["training.epochs=0.01"], "fewer than training.groups_per_step"),
        (["teacher.examples=4"], "fewer than sft.traces_per_step"),
        (["rollout.max_tokens=100000"], "that the model can read"),
        (["training.epochs=900000"], "training.epochs: 900000 make"),
    ],
)
def test_runs_that_could_not_begin_are_refused(changes, told, tmp_path, table, tiny_model_dir, capsys):
    recipe = recipe_file(tmp_path, table, tiny_model_dir)
    assert run(["launch", "verl", str(recipe), *changes, "--out", str(tmp_path / "launch")]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "launch").exists()


@pytest.mark.parametrize("extra", ["nonsense", "=x", "a b=c", "a=x\ny", "trainer.default_local_dir=/scratch"])
def test_verls_keys_that_could_not_count_are_refused(extra):
    with pytest.raises(UserError, match="--verl"):
        verl.check_extra([extra])


@pytest.mark.parametrize("name", ["back\\slash", "two\nlines", "${oc.env:HOME}", "x" * 300])
def test_paths_that_verl_cant_read_are_refused(name, tmp_path, table, tiny_model_dir, capsys):
    recipe = recipe_file(tmp_path, table, tiny_model_dir)
    assert run(["launch", "verl", str(recipe), "--out", str(tmp_path / name)]) == 2
    assert "choose" in capsys.readouterr().err and not list(tmp_path.glob("*/overrides.txt"))


def test_an_earlier_launch_is_replaced_but_never_results(launched, tmp_path, capsys):
    again = ["launch", "verl", str(tmp_path / "recipe.yaml"), "training.seed=5", "--out", str(launched)]
    (launched / "left.txt").touch()
    assert run(again) == 0
    assert not (launched / "left.txt").exists() and "data.seed=5" in (launched / "overrides.txt").read_text()
    (launched / "checkpoints").mkdir()
    assert run(again) == 2
    assert "holds a run's checkpoints/" in capsys.readouterr().err
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    assert run([*again[:-1], str(other)]) == 2
    assert (other / "thesis.txt").read_text() == "mine"


def test_a_dry_run_shows_it_all_and_writes_nothing(tmp_path, table, tiny_model_dir, capsys):
    recipe = recipe_file(tmp_path, table, tiny_model_dir)
    out = tmp_path / "launch"
    assert run(["launch", "verl", str(recipe), "--out", str(out), "--dry-run", "--gpus", "4", "--nodes", "2"]) == 0
    told = capsys.readouterr().out
    assert "trainer.nnodes=2" in told and "optim.lr=1e-05" in told and "main_ppo" in told and "48 rows" in told
    assert not out.exists()


def test_verls_own_keys_are_passed_on(tmp_path, table, tiny_model_dir, capsys):
    recipe = recipe_file(tmp_path, table, tiny_model_dir)
    out = tmp_path / "launch"
    extra = ["--verl", "actor_rollout_ref.actor.strategy=fsdp2", "--verl", "trainer.save_freq=50"]
    assert run(["launch", "verl", str(recipe), "--out", str(out), *extra]) == 0
    lines = (out / "overrides.txt").read_text().splitlines()
    assert lines[-2:] == extra[1::2]  # after ours: the last counts


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"teacher": {"kind": "endpoint", "endpoint": {"model": "big"}}}, "have it write first"),
        ({"method": "iterate"}, "method iterate"),
        ({"model": {"name": "nobody/nothing"}}, "--prompt-tokens"),
    ],
)
def test_what_cant_be_launched_is_told(sections, told, tmp_path, table, tiny_model_dir, capsys):
    recipe = recipe_file(tmp_path, table, tiny_model_dir, **sections)
    assert run(["launch", "verl", str(recipe), "--out", str(tmp_path / "launch")]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "launch").exists()


def test_a_model_of_the_hub_is_named_and_its_prompts_taken_as_given(tmp_path, table, tiny_model_dir):
    recipe = recipe_file(tmp_path, table, tiny_model_dir, model={"name": "nobody/nothing"})
    assert run(["launch", "verl", str(recipe), "--out", str(tmp_path / "launch"), "--prompt-tokens", "6144"]) == 0
    lines = (tmp_path / "launch" / "sft_overrides.txt").read_text().splitlines()
    assert "model.path=nobody/nothing" in lines and "data.max_length=6240" in lines
    assert "data.filter_overlong_prompts=true" in (tmp_path / "launch" / "overrides.txt").read_text()
    assert "prompts of more than 6,144 tokens are left out" in (tmp_path / "launch" / "README.md").read_text()
    assert not (tmp_path / "launch" / "base").exists()


def test_a_moved_folder_runs_from_where_it_is(launched, tmp_path):
    """run.sh with an interpreter that writes down how it was called: quoting, order, both stages."""
    moved = tmp_path / "it's moved; here"
    shutil.move(launched, moved)
    log = tmp_path / "calls.jsonl"
    shim = tmp_path / "python"
    shim.write_text(
        f"#!{sys.executable}\nimport json, sys\nfrom pathlib import Path\n"
        f"open({str(log)!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
        f"here = Path({str(moved)!r})\n"
        "if 'verl.trainer.sft_trainer' in sys.argv:\n"
        "    (here / 'checkpoints' / 'sft').mkdir(parents=True)\n"
        "    (here / 'checkpoints' / 'sft' / 'latest_checkpointed_iteration.txt').write_text('6')\n"
        "if 'merge.py' in sys.argv[1]:\n    Path(sys.argv[3]).mkdir(parents=True)\n"
    )
    shim.chmod(0o755)
    for _ in range(2):  # the second time the cold start is there
        command = ["bash", moved / "run.sh", "trainer.logger=[console]"]
        subprocess.run(command, check=True, env=os.environ | {"PYTHON": str(shim)}, cwd="/")
    calls = [json.loads(line) for line in log.read_text().splitlines()]
    kinds = ["check", "sft", "merge", "grpo", "check", "grpo"]
    assert len(calls) == len(kinds)
    sft, merge, grpo = calls[1], calls[2], calls[3]
    quoted = str(moved).replace("'", r"\'")
    assert "verl.trainer.sft_trainer" in sft and f"model.path='{quoted}/base'" in sft
    assert merge[1:] == [f"{moved}/checkpoints/sft/global_step_6", f"{moved}/models/sft"]
    assert grpo == calls[5] and grpo[:2] == ["-m", "verl.trainer.main_ppo"]
    last = {line.partition("=")[0]: line.partition("=")[2] for line in grpo[2:]}
    assert last["data.train_files"] == f"'{quoted}/train.parquet'"
    assert last["reward.custom_reward_function.path"] == f"'{quoted}/reward.py'"
    assert last["actor_rollout_ref.model.path"] == f"'{quoted}/models/sft'"
    assert last["trainer.logger"] == "[console]"


def test_evaluation_takes_the_best_and_never_an_old_model(launched, tmp_path):
    log, best = tmp_path / "calls.jsonl", tmp_path / "best"
    shim = tmp_path / "python"
    shim.write_text(
        f"#!{sys.executable}\nimport json, os, sys\nfrom pathlib import Path\n"
        f"open({str(log)!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
        f"if sys.argv[1].endswith('reward.py'):\n    print(sys.argv[3] + '/' + open({str(best)!r}).read())\n"
        "if sys.argv[1].endswith('merge.py'):\n    Path(sys.argv[3]).mkdir()\n"
        f"    of = os.path.relpath(sys.argv[2], {str(launched)!r})\n"
        "    (Path(sys.argv[3]) / 'checkpoint.txt').write_text(of + '\\n')\n"
    )
    shim.chmod(0o755)

    def evaluate() -> subprocess.CompletedProcess:
        environment = os.environ | {"PYTHON": str(shim)}
        return subprocess.run(
            ["bash", launched / "evaluate.sh"], env=environment, cwd="/", capture_output=True, text=True
        )

    best.write_text("global_step_4")
    assert evaluate().returncode == 0 and evaluate().returncode == 0
    calls = [json.loads(line) for line in log.read_text().splitlines()]
    merges = [call for call in calls if call[0].endswith("merge.py")]
    assert [call[1:] for call in merges] == [[f"{launched}/checkpoints/grpo/global_step_4/actor", f"{launched}/model"]]
    last = calls[-1]
    assert "trainer.val_only=true" in last and f"data.val_files='{launched}/test.parquet'" in last
    assert f"actor_rollout_ref.model.path='{launched}/model'" in last
    best.write_text("global_step_8")
    refused = evaluate()
    assert refused.returncode == 2 and "model/ is of checkpoints/grpo/global_step_4/actor" in refused.stderr


# --- answers that verl left -------------------------------------------------------------------------------------------


def dumped(launched: Path, name: str, step: int, answer) -> dict[str, str]:
    """`STEP.jsonl` of answers to NAME.parquet in verl's form, by a tokenizer that loses spaces; example -> answer."""
    rows = pl.read_parquet(launched / f"{name}.parquet").to_dicts()
    (launched / name).mkdir(exist_ok=True)
    given, lines = {}, []
    for i, row in enumerate(rows):
        system, user = (message["content"] for message in row["prompt"])
        text = answer(i, row)
        given[row["extra_info"]["example_id"]] = text
        shown = f"system\n{system}\nuser\n{user}\nassistant\n".replace(" ,", ",").replace("\n\n", "\n")
        lines.append(
            {"input": shown, "output": text, "gts": row["reward_model"]["ground_truth"], "score": 0.0, "step": step}
        )
    (launched / name / f"{step}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in reversed(lines)))
    return given


WELL = "<analyze user>a</analyze user><analyze item>b</analyze item><match>c</match><rate>{}</rate>"


def test_dumps_are_read_by_their_prompts(launched):
    dumped(launched, "test", 0, lambda i, row: WELL.format(1))
    given = dumped(launched, "test", 30, lambda i, row: WELL.format(1 + i % 5) if i % 4 else "<rate>4</rate>")
    (launched / "test" / "notes.jsonl").write_text("not a dump")
    whole = (launched / "test" / "30.jsonl").read_text()
    (launched / "test" / "40.jsonl").write_text("".join(whole.splitlines(keepends=True)[:3]))  # cut off: not taken
    table = read_predictions_file(launched / "test")
    assert table.height == 20
    found = dict(table.select("example_id", "prediction").iter_rows())
    template = Template(TemplateSettings(history=2, opinions=1))
    assert found == {example: parse(text, template).rating for example, text in given.items()}
    assert sum(rating is None for rating in found.values()) == 5


def test_rows_without_an_answer_are_failures_and_no_others_are_compared(launched, table, tmp_path, capsys):
    dumped(launched, "test", 3, lambda i, row: WELL.format(3))
    path = launched / "test" / "3.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:15]))
    found = read_predictions_file(launched / "test")
    assert found.height == 20 and found["prediction"].null_count() == 5
    words = [
        "compare",
        str(table),
        "--predictions",
        f"verl={launched / 'test'}",
        "--baseline",
        "averages",
        "--refit",
        "0",
    ]
    limits = ["--rounds", "100", "--min-user-history", "0", "--min-item-history", "0", "--out", str(tmp_path / "c")]
    assert run([*words, *limits]) == 0
    assert "only the 20 test rows that the launch asked" in capsys.readouterr().err
    compared = pl.read_csv(tmp_path / "c" / "comparison.csv").filter(pl.col("model") == "verl")
    assert compared["parse_rate"].item() == 0.75
    about = json.loads((launched / "launch.json").read_text())
    (launched / "launch.json").write_text(json.dumps(about | {"fingerprint": "0" * 64}))
    assert run([*words, *limits]) == 2
    assert "the launch was of other data" in capsys.readouterr().err


def test_equal_prompts_are_told_apart_by_their_ratings(launched):
    rows = pl.read_parquet(launched / "test.parquet").to_dicts()
    twin = rows[0] | {"reward_model": {"style": "rule", "ground_truth": "2.5"}}
    twin["extra_info"] = rows[0]["extra_info"] | {"example_id": "twin"}
    pl.DataFrame([*rows, twin]).write_parquet(launched / "test.parquet")
    dumped(launched, "test", 3, lambda i, row: WELL.format(2 if row["extra_info"]["example_id"] == "twin" else 4))
    found = dict(read_predictions_file(launched / "test").select("example_id", "prediction").iter_rows())
    assert found["twin"] == 2 and found[rows[0]["extra_info"]["example_id"]] == 4


FAULTS = [
    "empty",
    "no table",
    "other launch",
    "twice",
    "damaged",
    "no about",
    "other about",
    "other truth",
    "validation",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_dumps_that_cant_be_read_are_told(launched, fault):
    dumped(launched, "test", 3, lambda i, row: WELL.format(3))
    path = launched / "test" / "3.jsonl"
    match fault:
        case "empty":
            path.rename(launched / "test" / "last.jsonl")
            told = "holds no STEP.jsonl"
        case "no table":
            (launched / "test.parquet").unlink()
            told = "does not lie beside it"
        case "other launch":
            path.write_text(path.read_text().replace("Film", "Book"))
            told = "20 of 20 answers are to prompts"
        case "twice":
            path.write_text(path.read_text() * 2)
            told = "20 of 40 answers"
        case "damaged":
            path.write_text(path.read_text()[:-20])
            told = "3.jsonl, line 20"
        case "other truth":
            path.write_text(path.read_text().replace('"gts": "', '"gts": "9'))
            told = "20 of 20 answers are to prompts"
        case "validation":
            dumped(launched, "validation", 3, lambda i, row: WELL.format(3))
            (launched / "test").rename(launched / "before")
            (launched / "validation").rename(launched / "test")
            (launched / "validation.parquet").rename(launched / "test.parquet")
            told = "holds answers to validation rows"
        case "no about":
            (launched / "reczero.json").unlink()
            told = "reczero.json does not lie"
        case "other about":
            (launched / "reczero.json").write_text("[]")
            told = "is not as `reczero launch` writes it"
    with pytest.raises(UserError, match=told):
        read_predictions_file(launched / "test")


# --- accelerate -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", get_args(Preset))
def test_accelerate_takes_its_presets(preset, capsys):
    """accelerate's own parser and its configuration classes read them."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    assert run(["launch", "accelerate", "reczero-7b", "--gpus", "4", "--preset", preset, "--dry-run"]) == 0
    words = shlex.split(capsys.readouterr().out)
    start = words.index("accelerate.commands.launch") + 1
    parsed = launch_command_parser().parse_args(words[start:])
    assert parsed.num_processes == 4 and parsed.training_script == "reczero.cli.main"
    assert parsed.training_script_args == ["train", "reczero-7b", "--out", "runs/reczero-7b"]
    config = load_config_from_file(parsed.config_file)
    kinds = {"ddp": "MULTI_GPU", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED", "fsdp": "FSDP"}
    assert config.distributed_type == kinds[preset]
    if preset.startswith("zero"):
        assert config.deepspeed_config["zero_stage"] == int(preset[-1])


def test_what_accelerate_cant_start_is_told(capsys):
    assert run(["launch", "accelerate", "recone", "--gpus", "3", "--preset", "fsdp"]) == 2
    told = capsys.readouterr().err
    assert "rollout.engine=vllm" in told and "groups_per_step: 8" in told and "sft.traces_per_step: 8" in told


@pytest.mark.parametrize(
    ("name", "command", "told"),
    [
        ("deepspeed", ["launch", "accelerate", "quickstart", "--gpus", "2"], "pip install deepspeed"),
        (
            "vllm",
            ["train", "quickstart", "rollout.guided=false", "rollout.engine=vllm"],
            "rollout.engine=shared-prefix",
        ),
    ],
)
def test_what_has_to_be_installed_is_told(name, command, told, tmp_path, capsys):
    if find_spec(name):
        pytest.skip(f"{name} is installed here")
    assert run([*command, "--out", str(tmp_path / "run")]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_two_cpu_processes_by_one_command(tmp_path, table, tiny_model_dir):
    recipe = recipe_file(
        tmp_path, table, tiny_model_dir, method="reczero", model={"dtype": "float32"},
        rollout={"guided": True, "template": {"instructions": "brief", "history": 1, "section_tokens": 3}},
        training={"steps": 2, "groups_per_step": 2}, evaluation={"validation_examples": 4, "test_examples": 4},
    )  # fmt: skip
    command = [sys.executable, "-m", "reczero.cli.main", "launch", "accelerate", str(recipe), "--gpus", "2", "--cpu"]
    done = subprocess.run(
        [*command, "--out", tmp_path / "run"], capture_output=True, text=True, timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 processes, 1 groups a step in each" in done.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"]
