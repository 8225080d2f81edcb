"""The stages of RecOne and of self-iteration, with a tiny model: each learns, is done once, and resumes."""

import json
import shutil
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import torch
from peft import PeftModel

from reczero.cli import main
from reczero.data import Dataset, PrepareSettings, prepare
from reczero.errors import UserError
from reczero.models import load_policy
from reczero.reasoning import Context, HistoryEntry, Item, Scale, Template, TemplateSettings, parse
from reczero.recipes import Recipe, load_recipe
from reczero.recipes.rows import prepared
from reczero.rollout import Policy
from reczero.teachers.traces import contexts_of, teach_rows
from reczero.training.session import Session
from reczero.training.sft import build_sft_trainer, epochs_order, tokens_of


@pytest.fixture
def recipe(table, tiny_model_dir, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"""
method: recone
data: {{dataset: "{table}", train_examples: 40}}
model: {{name: "{tiny_model_dir}", dtype: float32}}
rollout: {{guided: true, group_size: 4, template: {{instructions: brief, history: 1, opinions: 0, section_tokens: 3}}}}
teacher: {{examples: 24}}
sft: {{learning_rate: 1.0e-3, traces_per_step: 4, traces_per_batch: 2, steps: 5, validation_steps: 2, save_steps: 2}}
training: {{learning_rate: 1.0e-3, groups_per_step: 2, steps: 4, save_steps: 2}}
evaluation: {{validation_examples: 6, validation_steps: 2, test_examples: 12}}
"""
    )
    return path


def lines(run, stage):
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keys = ("step", "loss", "reward", "grad_norm", "validation_mae")
    return [{key: line[key] for key in keys if key in line} for line in read if line["stage"] == stage]


def info(run):
    return json.loads((run / "run.json").read_text())


def test_recone_from_a_table_to_a_report(recipe, tmp_path, capsys, monkeypatch):
    run, asked, predictions = tmp_path / "run", [], Session.predictions
    monkeypatch.setattr(Session, "predictions", lambda *a: asked.append(a[3]) or predictions(*a))
    assert main.run(["train", str(recipe), "--out", str(run)]) == 0
    said = capsys.readouterr()
    assert "kept at once" in said.err and "sft step 5 of 5" in said.err and "grpo step 4 of 4" in said.err
    models = pl.read_csv(run / "comparison.csv")["model"].to_list()
    assert models[0] == "untrained" and {"sft", "recone"} <= set(models)
    traces = pl.read_parquet(run / "traces" / "teach" / "traces.parquet")
    assert traces.height == 24 and traces["kept"].sum() > 12
    assert set(traces["first_verdict"]) == {"ends on the truth", "wrong rating"}
    # Reinforcement starts from what SFT left: its first validation is SFT's best, and not made again.
    assert asked.count("grpo") == sum("validation_mae" in line for line in lines(run, "grpo")) - 1
    stages = info(run)["stages"]
    assert lines(run, "grpo")[0] == {"step": 0, "validation_mae": stages["sft"]["best_validation"]["mae"]}
    assert stages["grpo"]["best_validation"]["mae"] <= stages["sft"]["best_validation"]["mae"]
    assert info(run)["best_stage"] == "grpo" and set(pl.read_parquet(run / "completions.parquet")["stage"]) == {"grpo"}
    ours, theirs = (load_policy(run / name)[0].state_dict() for name in ("model", "models/grpo"))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert not list((run / "checkpoints" / "sft").glob("checkpoint-*"))
    page = (run / "report.html").read_text()
    assert (
        "Validation error, sft" in page
        and "Validation error, grpo" in page
        and "recone against sft on 12 test rows" in page
        and "Loss, sft" in page
    )
    assert (
        set(pl.read_parquet(run / "validation" / "sft.parquet")["user_id"])
        and "grpo against sft on 6 validation rows" in said.out
    )


def test_answers_of_a_whole_copy_are_those_of_the_model(recipe, tmp_path, monkeypatch):
    """As where weights lie in shards: each validation asks a copy that was written, and the best is kept of it."""
    plain, copied = tmp_path / "plain", tmp_path / "copied"
    assert main.run(["train", str(recipe), "--out", str(plain)]) == 0
    monkeypatch.setattr("reczero.training.session.is_sharded", lambda accelerator: True)
    assert main.run(["train", str(recipe), "--out", str(copied)]) == 0
    for stage in ("sft", "grpo"):
        assert lines(copied, stage) == lines(plain, stage)
        ours, theirs = (load_policy(run / "models" / stage)[0].state_dict() for run in (copied, plain))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    for name in ("predictions/recone.parquet", "validation/grpo.parquet"):
        assert pl.read_parquet(copied / name).equals(pl.read_parquet(plain / name)), name
    assert not list((copied / "models").glob("*.whole"))
    monkeypatch.setattr("reczero.training.grpo.is_sharded", lambda accelerator: True)
    assert main.run(["train", str(recipe), "--out", str(tmp_path / "own")]) == 2  # our own rollouts want whole weights


def test_killed_at_any_moment_recone_resumes_as_if_nothing_had_happened(recipe, tmp_path, kill_when):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = [sys.executable, "-m", "reczero.cli.main", "train", str(recipe), "--out"]
    subprocess.run([*command, str(whole)], check=True, capture_output=True)
    for stage, step in (("sft", 1), ("sft", 3), ("grpo", 1), ("grpo", 3)):
        kill_when([*command, str(cut), "--resume"], cut, f'"stage": "{stage}", "step": {step},')
    subprocess.run([*command, str(cut), "--resume"], check=True, capture_output=True)
    for stage in ("sft", "grpo"):
        assert lines(cut, stage) == lines(whole, stage)
    for name in ("comparison.csv", "predictions/sft.parquet", "predictions/recone.parquet", "completions.parquet"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_stage_done_with_the_same_inputs_is_not_done_again(recipe, tmp_path, capsys):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    assert main.run(["train", str(recipe), "--out", str(first)]) == 0
    capsys.readouterr()
    changed = [str(recipe), "training.learning_rate=1e-4", "rollout.group_size=2", "--reuse", str(first)]
    assert main.run(["train", *changed, "--out", str(second)]) == 0
    said = capsys.readouterr().err
    assert "teach: taken from" in said and "sft: taken from" in said and "grpo: taken from" not in said
    assert "sft step" not in said and lines(second, "sft") == lines(first, "sft")
    for name in ("predictions/untrained.parquet", "predictions/sft.parquet"):
        assert pl.read_parquet(second / name).equals(pl.read_parquet(first / name))
    assert main.run(["train", str(recipe), "sft.learning_rate=1e-4", "--reuse", str(first), "--out", str(third)]) == 0
    said = capsys.readouterr().err
    assert "teach: taken from" in said and "sft: taken from" not in said and "grpo: taken from" not in said
    assert main.run(["train", str(recipe), "--reuse", str(tmp_path), "--out", str(tmp_path / "x")]) == 2
    assert "is not a run" in capsys.readouterr().err


def test_sft_alone_and_on_ratings_without_reasoning_are_a_line_each(recipe, tmp_path):
    run = tmp_path / "run"
    assert main.run(["train", str(recipe), "method=sft", "--out", str(run)]) == 0
    assert "sft" in pl.read_csv(run / "comparison.csv")["model"].to_list() and not (run / "models" / "grpo").exists()
    direct = tmp_path / "direct"
    assert main.run(["train", str(recipe), "method=sft", "rollout.template.variant=direct", "--out", str(direct)]) == 0
    texts = pl.read_parquet(direct / "traces" / "teach" / "traces.parquet").filter("kept")["text"]
    assert len(texts) == 24 and texts.str.contains(r"^<rate>[1-5]</rate>$").all()


def test_the_last_step_is_kept_where_the_recipe_says_so(recipe, tmp_path, capsys):
    still = ["training.learning_rate=1e-12"]  # nothing is gained, so validation keeps step 0
    assert main.run(["train", str(recipe), *still, "--out", str(tmp_path / "best")]) == 0
    assert info(tmp_path / "best")["best_step"] == 0
    last = [*still, "training.keep=last"]
    assert (
        main.run(["train", str(recipe), *last, "--reuse", str(tmp_path / "best"), "--out", str(tmp_path / "last")]) == 0
    )
    assert info(tmp_path / "last")["best_step"] == 4
    capsys.readouterr()
    assert main.run(["train", str(recipe), *last, "--dry-run"]) == 0
    assert "the last step is kept" in capsys.readouterr().out


def test_lora_goes_on_learning_after_the_cold_start(recipe, tiny_model_dir, tmp_path, capsys, monkeypatch):
    run, asks_a_hub, save = tmp_path / "lora", [], PeftModel.save_pretrained
    monkeypatch.setattr(
        PeftModel,
        "save_pretrained",
        lambda *a, **k: asks_a_hub.append(k.get("save_embedding_layers", "auto") == "auto") or save(*a, **k),
    )
    assert main.run(["train", str(recipe), "model.lora.rank=2", "--out", str(run)]) == 0
    assert asks_a_hub and not any(asks_a_hub)
    from safetensors.torch import load_file

    sft, grpo = (load_file(run / "models" / name / "adapter_model.safetensors") for name in ("sft", "grpo"))
    assert sft.keys() == grpo.keys() and any(
        key.endswith("lora_B.weight") and value.any() for key, value in sft.items()
    )
    base = json.loads((run / "model" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str(tiny_model_dir)

    above = tmp_path / "above"  # another adapter on top of it would be kept without it
    for key in ("model.lora.rank=2", "training.kl=0.1"):
        assert main.run(["train", str(recipe), f"model.name={run}/model", key, "--out", str(above)]) == 2
        assert "is an adapter" in capsys.readouterr().err and not above.exists()


def test_adapters_on_the_upper_blocks_alone(recipe, tmp_path):
    run = tmp_path / "lora"
    assert main.run(["train", str(recipe), "model.lora.rank=2", "model.train_layers=1", "--out", str(run)]) == 0
    from safetensors.torch import load_file

    names = load_file(run / "model" / "adapter_model.safetensors").keys()
    assert {name.split("layers.")[1].split(".")[0] for name in names} == {"1"}  # of the blocks 0 and 1
    assert {name.split(".")[-3] for name in names} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip


def test_iterate_teaches_itself_and_keeps_a_round_that_is_better(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    overrides = ["method=iterate", "iterate.rounds=2", "iterate.samples=4", "training.steps=2", "sft.steps=2"]
    assert main.run(["train", str(recipe), *overrides, "--out", str(run)]) == 0
    rounds = info(run)["rounds"]
    stages = info(run)["stages"]
    assert rounds[0]["round"] == 0 and len(rounds) >= 2
    for line in rounds[1:]:
        assert line["gain"] == pytest.approx(rounds[line["round"] - 1]["validation_mae"] - line["validation_mae"])
        assert line["kept"] == (line["gain"] > 0)
    assert all(line["kept"] for line in rounds[:-1])  # the first that is not ends it
    best = next(line for line in reversed(rounds) if line["kept"])["round"]
    assert info(run)["best_stage"] == (f"grpo-{best}" if best else "grpo")
    assert info(run)["best_validation"] == stages[info(run)["best_stage"]]["best_validation"]
    assert {"untrained", "sft", "recone", "iterate"} <= set(pl.read_csv(run / "comparison.csv")["model"])
    first, own = (pl.read_parquet(run / "traces" / name / "traces.parquet") for name in ("teach", "teach-1"))
    assert not set(first["example_id"]) & set(own["example_id"]) and (own["samples"] == 4).all()
    assert own["told_verdict"].null_count() == own.height and "round 1: validation MAE" in capsys.readouterr().err


def trainer_for(model_dir, texts, folder, **sft):
    settings = TemplateSettings(instructions="brief", history=2, opinions=0, section_tokens=8)
    model, tokenizer = load_policy(model_dir)
    policy = Policy(model, tokenizer, Template(settings, Scale()), False, 64)
    contexts = [
        Context(Item("A" * (1 + 3 * i)), (HistoryEntry(Item("B"), 4.0),), (), 4.0, 1) for i in range(len(texts))
    ]
    sft = {"learning_rate": 1e-2, "traces_per_step": 4, "traces_per_batch": 2, "epochs": 1, **sft}
    made = Recipe.model_validate({"method": "sft", "model": {"dtype": "float32"}, "sft": sft})
    return build_sft_trainer(policy, contexts, texts, made, folder), policy, contexts


TEXTS = [
    f"<analyze user>Likes {'films ' * i}.</analyze user>\n<analyze item>Good</analyze item>\n<match>Fits.</match>\n"
    "<rate>4</rate>"
    for i in range(4)
]


def test_the_loss_is_that_of_the_answers_tokens_by_hand(tiny_model_dir, tmp_path):
    trainer, policy, contexts = trainer_for(tiny_model_dir, TEXTS, tmp_path)
    total, count = 0.0, 0
    for context, text in zip(contexts, TEXTS, strict=True):
        prompt, answer = tokens_of(policy, context, text)
        assert prompt == policy.encode(policy.template.messages(context))  # as in rollouts
        assert policy.tokenizer.decode(answer) == text + policy.tokenizer.eos_token
        with torch.no_grad():
            logits = policy.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        total -= logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum().item()
        count += len(answer)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(total / count, rel=1e-4)


def test_it_learns_to_write_the_form_freely(tiny_model_dir, tmp_path):
    trainer, policy, contexts = trainer_for(tiny_model_dir, TEXTS[:1] * 8, tmp_path, epochs=60, schedule="constant")
    trainer.train()
    policy.model.eval()
    ((completion,),) = policy.answer([policy.encode(policy.template.messages(contexts[0]))])
    assert completion.finished and parse(policy.read(completion)[0], policy.template).rating == 4


def test_the_order_of_all_epochs_is_known_beforehand():
    lengths = np.random.default_rng(0).integers(10, 90, 21)
    order = epochs_order(lengths, 2.5, 4, seed=3)
    assert len(order) == 52 and np.array_equal(order, epochs_order(lengths, 2.5, 4, seed=3))
    for start in range(0, 52, 4):
        assert (np.diff(lengths[order[start : start + 4]]) >= 0).all()
    assert set(order[:20]) <= set(range(21)) and np.bincount(order, minlength=21).min() >= 2


def test_no_trace_can_hold_a_special_token(tiny_model_dir):
    model, tokenizer = load_policy(tiny_model_dir)
    policy = Policy(model, tokenizer, Template(TemplateSettings(instructions="brief")), False, 64)
    _, answer = tokens_of(policy, Context(Item("A")), "before <|im_end|> after")
    assert answer.count(tokenizer.eos_token_id) == 1 and answer[-1] == tokenizer.eos_token_id


def test_the_rows_that_teachers_write_about_are_training_rows_of_this_data(recipe):
    made = load_recipe(recipe, ["method=iterate", "iterate.rounds=2"])
    data = prepared(made)
    parts = [teach_rows(made, data)]
    parts.append(teach_rows(made, data, without=parts[0]["example_id"]))
    ids = [set(part["example_id"]) for part in parts]
    assert all((part["split"] == "train").all() for part in parts) and not ids[0] & ids[1]
    again = contexts_of(data, parts[1].sample(fraction=1, shuffle=True, seed=1))
    assert set(again.examples["example_id"]) == ids[1] and len(again.contexts) == len(ids[1])
    held_out = data.examples("test", limit=2)
    with pytest.raises(UserError, match="no training row"):
        contexts_of(data, held_out)


def test_traces_may_be_written_before_and_are_looked_at(recipe, tmp_path, capsys):
    folder = tmp_path / "traces"
    assert main.run(["teach", str(recipe), "--out", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "kept at once" in said and "24" in said and "reczero traces" in said
    assert main.run(["traces", str(folder), "-n", "2"]) == 0
    assert capsys.readouterr().out.count(", true rating") == 2
    assert main.run(["traces", str(folder), "--verdict", "kept when told", "-n", "1"]) == 0
    first = pl.read_parquet(folder / "traces.parquet").filter(pl.col("verdict") == "kept when told")["example_id"][0]
    assert first in capsys.readouterr().out
    assert main.run(["traces", str(folder), "--example", first]) == 0
    assert "answer when told the rating" in capsys.readouterr().out
    run = tmp_path / "run"
    assert main.run(["train", str(recipe), f"teacher.traces={folder}", "method=sft", "--out", str(run)]) == 0
    assert not (run / "traces").exists() and (run / "models" / "sft").is_dir()

    for arguments, told in [
        (["traces", str(tmp_path / "none")], "holds no traces"),
        (["traces", str(folder), "--example", "x"], "no trace of example"),
        (["traces", str(folder), "--verdict", "x"], "no verdict begins"),
        (["teach", str(recipe), "rollout.template.history=0", "--out", str(folder)], "choose another --out"),
        (["train", str(recipe), f"teacher.traces={tmp_path}", "--out", str(tmp_path / "y")], "holds no traces.parquet"),
        (["teach", str(recipe), "teacher.kind=endpoint"], "endpoint.model"),
        (["teach", str(recipe), "teacher.samples=2"], "samples must be 1"),
        (["train", str(recipe), "sft.traces_per_step=5"], "multiple of traces_per_batch"),
    ]:
        assert main.run(arguments) == 2
        assert told in capsys.readouterr().err


def test_a_policy_teaches_by_the_command_line(recipe, tiny_model_dir, tmp_path, capsys):
    arguments = ["teach", str(recipe), "teacher.kind=policy", "teacher.samples=4", "teacher.retell=false"]
    assert main.run([*arguments, "--out", str(tmp_path / "traces")]) == 0
    table = pl.read_parquet(tmp_path / "traces" / "traces.parquet")
    assert (table["samples"] == 4).all() and table["kept"].any() and "tokens" in capsys.readouterr().out


def test_a_run_goes_on_only_with_the_data_it_began_with(recipe, table, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(table, data)
    command = ["train", str(recipe), f"data.dataset={data}", "method=sft", "--out", str(tmp_path / "run")]
    assert main.run(command) == 0
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(run | {"finished": False}))
    other = Dataset.open(data)
    rows = other.interactions(("user_id", "item_id", "rating", "timestamp")).with_columns(rating=6 - pl.col("rating"))
    settings = PrepareSettings(train=0.6, validation=0.2, test=0.2, min_context=1)
    prepare(rows, other.items(("item_id", "title")), Scale(), data, settings)
    capsys.readouterr()
    assert main.run([*command, "--resume"]) == 2
    assert "was begun on other data" in capsys.readouterr().err


def test_traces_of_other_data_are_not_trained_on(recipe, table, tmp_path, capsys):
    assert main.run(["teach", str(recipe), "--out", str(tmp_path / "traces")]) == 0
    path = tmp_path / "traces" / "traces.parquet"
    good = pl.read_parquet(path)
    for spoilt, says in (
        (good.with_columns(rating=6 - pl.col("rating")), "have another rating than"),
        (pl.concat([good, good]), "has two kept traces"),
        (good.with_columns(text=pl.lit(None, pl.String)), "a kept trace has no text"),
        (good.with_columns(kept=pl.lit("yes")), "column kept is of another kind"),
    ):
        spoilt.write_parquet(path)
        command = ["train", str(recipe), "method=sft", f"teacher.traces={tmp_path / 'traces'}"]
        assert main.run([*command, "--out", str(tmp_path / f"run {says}")]) == 2
        assert says in capsys.readouterr().err


def test_a_round_with_nothing_new_to_learn_from_ends_the_iteration(recipe, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["train", str(recipe), "method=iterate", "iterate.samples=1", "teacher.examples=1000", "--out", str(out)]
    assert main.run([*command, "sft.steps=1", "training.steps=1"]) == 0
    assert (
        "round 1: data set table: no train rows with enough context are left. So it ends here."
        in capsys.readouterr().err
    )
    assert (out / "report.html").is_file() and info(out)["best_stage"] == "grpo"


def test_a_stage_is_reused_only_of_the_same_weights(recipe, tiny_model_dir, tmp_path, capsys):
    import torch
    from safetensors.torch import load_file, save_file

    model = tmp_path / "model"
    shutil.copytree(tiny_model_dir, model)
    command = ["train", str(recipe), "method=sft", f"model.name={model}", "sft.steps=1", "--out"]
    assert main.run([*command, str(tmp_path / "first")]) == 0
    weights = {
        name: weight + 0.1 * torch.ones_like(weight) for name, weight in load_file(model / "model.safetensors").items()
    }
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    capsys.readouterr()
    assert main.run([*command, str(tmp_path / "second"), "--reuse", str(tmp_path / "first")]) == 0
    assert "sft: taken from" not in capsys.readouterr().err


def test_fine_scales_keep_their_ratings():
    scale = Scale(0, 1, 0.125)
    template = Template(TemplateSettings(), scale)
    texts = dict.fromkeys(("analyze_user", "analyze_item", "match"), "words")
    for rating in scale.grid():
        assert parse(template.write(texts, rating), template).rating == rating
