"""A recipe in bfloat16 learns at the paper's rate: its weights are float32, its products bfloat16."""

from pathlib import Path

import polars as pl
import pytest
import torch

from reczero.models import load_policy
from reczero.reasoning import Context, HistoryEntry, Item, Scale
from reczero.recipes import Recipe
from reczero.recipes.rows import Part
from reczero.rollout.head import token_log_probs
from reczero.training import pipeline
from reczero.training.reczero import build_trainer
from reczero.training.session import load
from reczero.training.sft import build_sft_trainer

CPU = torch.device("cpu")


def recipe(folder: Path, **model) -> Recipe:
    return Recipe.model_validate(
        {
            "method": "reczero",
            "model": {"name": str(folder), "dtype": "bfloat16"} | model,
            "rollout": {
                "guided": True,
                "group_size": 4,
                "template": {"section_tokens": 6, "history": 1, "opinions": 0},
            },
            "training": {"groups_per_step": 2, "steps": 2, "learning_rate": 2e-6, "schedule": "constant"},
            "sft": {
                "traces_per_step": 2,
                "traces_per_batch": 2,
                "steps": 2,
                "learning_rate": 2e-6,
                "schedule": "constant",
            },
        }
    )


def rows() -> Part:
    contexts = [Context(Item(f"Film {i}"), (HistoryEntry(Item("Heat"), 3.0),), (), 3.5, i) for i in range(8)]
    ratings = [float(1 + i % 5) for i in range(8)]
    return Part(pl.DataFrame({"example_id": [str(i) for i in range(8)], "rating": ratings}), contexts)


def share_moved(before: dict, after: dict) -> float:
    moved = torch.cat([(after[name] != weight).flatten() for name, weight in before.items() if "layers" in name])
    return moved.float().mean().item()


@pytest.mark.parametrize("stage", ["grpo", "sft"])
def test_a_step_of_the_papers_size_is_not_lost(stage, tiny_model_dir, tmp_path):
    made = recipe(tiny_model_dir)
    policy = load(made, Scale(), CPU, learns=True)
    assert {weight.dtype for weight in policy.model.parameters()} == {torch.float32}
    before = {name: weight.detach().clone() for name, weight in policy.model.named_parameters()}
    part = rows()
    if stage == "grpo":
        trainer = build_trainer(policy, part, made, tmp_path)
    else:
        sections = dict.fromkeys(("analyze_user", "analyze_item", "match"), "Well.")
        texts = [policy.template.write(sections, rating) for rating in part.examples["rating"]]
        trainer = build_sft_trainer(policy, part.contexts, texts, made, tmp_path)
    assert trainer.args.bf16 and not trainer.args.fp16
    trainer.train()
    after = {name: weight.detach() for name, weight in policy.model.named_parameters()}
    assert share_moved(before, after) > 0.9
    lost = {name: weight.bfloat16() for name, weight in before.items()}  # what a bfloat16 copy would show of it
    assert share_moved(lost, {name: weight.bfloat16() for name, weight in after.items()}) < 0.2


def test_products_are_the_recipes(tiny_model_dir):
    """Answers of the policy that learns are those of the same weights in bfloat16 up to bfloat16's rounding."""
    made = recipe(tiny_model_dir)
    policy = load(made, Scale(), CPU, learns=True)
    seen = set()
    layer = policy.model.get_decoder().layers[0].mlp.up_proj
    layer.register_forward_hook(lambda _, __, out: seen.add(out.dtype))
    prompts = [policy.encode(policy.template.messages(context)) for context in rows().contexts]
    drawn = policy.answer(prompts, 2, temperature=1.0, seed=0)
    assert seen == {torch.bfloat16}
    exact, _ = load_policy(tiny_model_dir)
    for prompt, answers in zip(prompts, drawn, strict=True):
        for answer in answers:
            places = [i for i, chosen in enumerate(answer.chosen) if chosen]
            with torch.no_grad():
                hidden = exact.model(torch.tensor([prompt + answer.tokens])).last_hidden_state[0]
            _, allowed = policy.guide.replay(answer.tokens)
            before = torch.tensor([len(prompt) + i - 1 for i in places])
            targets = torch.tensor([answer.tokens[i] for i in places])
            expected, _ = token_log_probs(exact.lm_head, hidden[before], targets, allowed, 1.0)
            given = torch.tensor([answer.log_probs[i] for i in places])
            torch.testing.assert_close(given, expected, atol=0.05, rtol=0.02)


def test_an_adapter_learns_in_float32_on_a_bfloat16_model(tiny_model_dir, tmp_path):
    made = recipe(tiny_model_dir, lora={"rank": 4, "alpha": 8})
    policy = load(made, Scale(), CPU, learns=True)
    trainer = build_trainer(policy, rows(), made, tmp_path)
    dtypes = {weight.requires_grad: weight.dtype for weight in trainer.model.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}


def test_a_policy_that_only_answers_is_loaded_as_the_recipe_says(tiny_model_dir):
    policy = load(recipe(tiny_model_dir), Scale(), CPU)
    assert {weight.dtype for weight in policy.model.parameters()} == {torch.bfloat16} and policy.products is None


@pytest.mark.parametrize(("dtype", "fast"), [("bfloat16", False), ("bfloat16", True), ("float32", False)])
def test_a_processor_that_is_slow_at_bfloat16_is_told(dtype, fast, table, tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "multiplies_bfloat16", lambda: fast)
    monkeypatch.setattr(pipeline, "_all_stages", lambda session: None)
    told = recipe(tiny_model_dir, dtype=dtype).model_dump() | {"data": {"dataset": str(table), "train_examples": 40}}
    made = Recipe.model_validate(told)
    said: list[str] = []
    pipeline.train(made, tmp_path / "run", resume=False, say=said.append, report=lambda line: None)
    assert any("model.dtype=float32" in line for line in said) == (dtype == "bfloat16" and not fast)
