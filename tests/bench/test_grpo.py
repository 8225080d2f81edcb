"""The measuring itself: what it counts, and that a tiny run of it fills in every figure."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from reczero.bench.grpo import Shape, _arithmetic, _prompts
from reczero.cli import main
from reczero.models import load_policy


def test_limits_of_the_issue_by_hand():
    assert Shape().limit == pytest.approx(8 * 520 / (400 + 960))
    assert Shape(prompt=1200).limit == pytest.approx(4.89, abs=0.01)


def test_arithmetic_is_what_torch_counts(tiny_model_dir):
    """A single row of P + R tokens, the head on R of them; torch counts every pair of tokens, seen or not."""
    model, _ = load_policy(tiny_model_dir)
    shape = Shape(prompt=24, answer=8, group_size=1, groups=1)
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(32)[None], logits_to_keep=8).logits.sum().backward()
    counted = _arithmetic(model)
    pairs = 32 * 32 - 32 * 33 / 2  # seen by torch's count only
    assert counter.get_total_flops() == pytest.approx(counted.update(shape) + 3 * counted.pair * pairs, rel=0.03)


def test_prompts_have_the_length_asked_for_and_differ(tiny_model_dir):
    _, tokenizer = load_policy(tiny_model_dir)
    rows = _prompts(tokenizer, Shape(prompt=130, groups=2), steps=3, warm_up=64)["prompt"]
    lengths = [len(tokenizer.apply_chat_template(m, add_generation_prompt=True, return_dict=False)) for m in rows]
    assert lengths == [64, 64, 130, 130, 130, 130]
    assert len({m[0]["content"] for m in rows}) == 6


def test_bench_grpo_measures_both_and_writes_every_figure(tiny_model_dir, tmp_path, capsys):
    file = tmp_path / "new" / "grpo.json"
    arguments = ["bench", "grpo", "--model", str(tiny_model_dir), "-P", "96", "-R", "12", "-G", "4", "--groups", "2"]
    assert main.run([*arguments, "--repeats", "2", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    for name in ("step_ratio", "update_ratio", "rollout_ratio", "update_peak_share", "memory_ratio"):
        assert 0 < result[name]["min"] <= result[name]["median"] <= result[name]["max"]
    for who in ("stock", "ours"):
        seconds = result[who]["seconds"]
        assert seconds["step"]["median"] > seconds["rollout"]["median"] > 0
        assert result[who]["step_tokens_per_second"] == pytest.approx(96 / seconds["step"]["median"])
    assert "stock / ours" in capsys.readouterr().out


def test_a_model_that_is_not_there_is_told(capsys):
    assert main.run(["bench", "grpo", "--model", "./no/such"]) == 2
    assert "no such" in capsys.readouterr().err


def test_a_sweep_measures_its_points_and_draws_them(tiny_model_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("reczero.cli.bench.SWEEP", ((96, 4, True), (96, 2, False)))
    arguments = ["bench", "grpo", "--sweep", "--model", str(tiny_model_dir), "-R", "12", "--groups", "2"]
    files = [tmp_path / "sweep.json", tmp_path / "new" / "sweep.svg"]
    assert main.run([*arguments, "--json", str(files[0]), "--plot", str(files[1])]) == 0
    points = json.loads(files[0].read_text())["sweep"]
    assert [(p["shape"]["group_size"], "step_ratio" in p) for p in points] == [(4, True), (2, False)]
    assert "<svg" in files[1].read_text() and "2/2 prompt 96" in capsys.readouterr().out
