"""Ratings that are weighed, not drawn: the gradient is that of drawn ones, averaged over all that could be drawn."""

import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import torch

from reczero.cli import main
from reczero.errors import UserError
from reczero.reasoning import Context, HistoryEntry, Item, Scale
from reczero.recipes import Recipe
from reczero.recipes.rows import Part
from reczero.training.grpo import group_advantages
from reczero.training.pipeline import require_what_later_stages_need
from reczero.training.reczero import build_trainer
from reczero.training.session import load
from reczero.training.weighed import expected_advantages

CPU = torch.device("cpu")


def test_advantages_are_what_endless_draws_tend_to():
    draw = np.random.default_rng(0)
    rewards, chances = draw.uniform(-1, 1, (2, 5)), draw.dirichlet(np.ones(5), 2)
    reasoning, each = expected_advantages(torch.tensor(rewards), torch.tensor(chances), 2, 1e-6)
    drawn = np.stack([draw.choice(5, 400_000, p=p) for p in chances])
    many = group_advantages(torch.tensor(np.take_along_axis(rewards, drawn, 1)).flatten(), drawn.size, 1e-6)
    for i in range(2):
        given = many.view(2, -1)[i]
        assert given.mean().item() == pytest.approx(reasoning[i].item(), abs=0.01)
        for k in range(5):
            assert given[torch.tensor(drawn[i] == k)].mean().item() == pytest.approx(each[i, k].item(), abs=0.01)


def recipe(folder, **changes) -> Recipe:
    made = {
        "method": "reczero",
        "model": {"name": str(folder), "dtype": "float32", "train_layers": changes.pop("train_layers", None)},
        "rollout": {
            "guided": True, "group_size": 3, "template": {"section_tokens": 4, "history": 1, "opinions": 0},
        },
        "training": {"groups_per_step": 2, "steps": 1, "rating": "expected", "tokens_per_batch": 10_000} | changes,
    }  # fmt: skip
    return Recipe.model_validate(made)


def rows() -> Part:
    contexts = [Context(Item(f"Film {i}"), (HistoryEntry(Item("Heat"), 3.0),), (), 3.5, i) for i in range(2)]
    return Part(pl.DataFrame({"example_id": ["a", "b"], "rating": [2.0, 5.0]}), contexts)


def trainer_of(made: Recipe, folder):
    policy = load(made, Scale(), CPU, learns=True)
    trainer = build_trainer(policy, rows(), made, folder)
    trainer.model.train()
    return policy, trainer


def gradient(trainer, inputs) -> torch.Tensor:
    trainer.model.zero_grad()
    trainer._compute_loss(trainer.model, dict(inputs)).backward()
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


def answers(trainer, count: int = 2) -> dict:
    trainer.current_gradient_accumulation_steps = 1
    return trainer._prepare_inputs([trainer.train_dataset[i] for i in range(count) for _ in range(3)])


@pytest.mark.parametrize("train_layers", [None, 1])
@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "bnpo"])
def test_the_gradient_is_the_mean_over_all_that_could_be_drawn(loss, train_layers, tiny_model_dir, tmp_path):
    policy, trainer = trainer_of(recipe(tiny_model_dir, loss=loss, train_layers=train_layers), tmp_path)
    inputs = answers(trainer)
    got = gradient(trainer, inputs)
    weighed, trainer._weighed = trainer._weighed, None
    assert (weighed.at > 0).all() and torch.allclose(weighed.chances.sum(1), torch.ones(6))
    every = torch.arange(6)
    reasoning = inputs["advantages"].clone()
    reasoning[every, weighed.at] = 0
    want = gradient(trainer, inputs | {"advantages": reasoning})
    for k, numbers in enumerate(policy.ratings.numbers):
        drawn, alone = inputs["completion_ids"].clone(), torch.zeros_like(reasoning)
        drawn[every, weighed.at] = numbers[0]
        alone[every, weighed.at] = weighed.chances[:, k] * weighed.values[:, k]
        want = want + gradient(trainer, inputs | {"completion_ids": drawn, "advantages": alone})
    assert torch.allclose(got, want, atol=1e-6) and got.abs().max() > 1e-4
    # Each rating's advantage is what its reward says, the truth's is the highest.
    assert weighed.values.argmax(1).tolist() == [1, 1, 1, 4, 4, 4]


def test_micro_batches_change_nothing(tiny_model_dir, tmp_path):
    _, trainer = trainer_of(recipe(tiny_model_dir), tmp_path)
    inputs = answers(trainer)
    whole = gradient(trainer, inputs)
    trainer.tokens_per_batch = 1
    assert torch.allclose(gradient(trainer, inputs), whole, atol=1e-6)


def test_a_kl_term_weighs_nothing_while_the_policy_is_its_reference_and_holds_it_back_after(tiny_model_dir, tmp_path):
    free, held = (trainer_of(recipe(tiny_model_dir, kl=kl), tmp_path)[1] for kl in (0.0, 5.0))
    inputs = [answers(one) for one in (free, held)]
    assert torch.equal(inputs[0]["completion_ids"], inputs[1]["completion_ids"])
    first = [gradient(one, given) for one, given in zip((free, held), inputs, strict=True)]
    assert torch.allclose(*first, atol=1e-6)
    assert held._metrics["train"]["rating_kl"] == [pytest.approx(0, abs=1e-6)]
    # Elsewhere the gradient differs by that of the exact divergence at the ratings, and of TRL's of the reasoning.
    with torch.no_grad():
        for one in (free, held):
            torch.manual_seed(0)
            for weight in one.model.parameters():
                weight += 0.05 * torch.randn_like(weight)
    moved = [gradient(one, given) for one, given in zip((free, held), inputs, strict=True)]
    divergence = held._metrics["train"]["rating_kl"][-1]
    assert divergence > 1e-4 and (moved[1] - moved[0]).norm() > 0.01
    step = 1e-3 * (moved[1] - moved[0]) / (moved[1] - moved[0]).norm()
    with torch.no_grad():
        at = 0
        for weight in held.model.parameters():
            weight -= step[at : at + weight.numel()].view_as(weight)
            at += weight.numel()
    gradient(held, inputs[1])
    assert held._metrics["train"]["rating_kl"][-1] < divergence


def test_scales_whose_ratings_begin_alike_are_refused(tiny_model_dir, tmp_path):
    made = recipe(tiny_model_dir)
    policy = load(made, Scale(0.5, 5.0, 0.5), CPU, learns=True)
    with pytest.raises(UserError, match="differ in their first token"):
        build_trainer(policy, rows(), made, tmp_path)
    with pytest.raises(UserError, match="differ in their first token"):  # before a cold start is paid for, too
        require_what_later_stages_need(made, policy)
    with pytest.raises(ValueError, match="temperature 1"):
        Recipe.model_validate(
            {"method": "reczero", "training": {"rating": "expected"}, "rollout": {"temperature": 0.5}}
        )


def test_recone_with_adapters_and_kl_resumes_and_keeps_one_adapter(table, tiny_model_dir, tmp_path, kill_when):
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"""
method: recone
data: {{dataset: "{table}", train_examples: 40}}
model: {{name: "{tiny_model_dir}", dtype: float32, train_layers: 1, lora: {{rank: 2}}}}
rollout: {{guided: true, group_size: 2, template: {{instructions: brief, history: 1, opinions: 0, section_tokens: 3}}}}
teacher: {{examples: 24}}
sft: {{learning_rate: 1.0e-3, traces_per_step: 4, traces_per_batch: 4, steps: 2, validation_steps: 2}}
training: {{learning_rate: 1.0e-2, groups_per_step: 2, steps: 4, save_steps: 2, rating: expected, kl: 0.5}}
evaluation: {{validation_examples: 6, validation_steps: 4, test_examples: 6}}
"""
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main.run(["train", str(path), "--out", str(whole)]) == 0
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    divergence = [line["rating_kl"] for line in lines if "rating_kl" in line]
    assert len(divergence) == 4 and abs(divergence[0]) < 1e-6 < divergence[-1]
    for folder in (*(whole / "models").iterdir(), whole / "model"):
        assert not (folder / "ref").exists() and (folder / "adapter_model.safetensors").is_file()
    command = [sys.executable, "-m", "reczero.cli.main", "train", str(path), "--out", str(cut), "--resume"]
    kill_when(command, cut, '"stage": "grpo", "step": 3,')
    said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    assert "grpo: from checkpoint-2" in said
    again = [json.loads(line) for line in (cut / "metrics.jsonl").read_text().splitlines()]
    for ours, theirs in zip(lines, again, strict=True):
        for key in ("loss", "rating_kl", "validation_mae"):
            assert ours.get(key) == pytest.approx(theirs.get(key), abs=1e-6)
