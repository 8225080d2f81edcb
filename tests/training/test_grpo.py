"""GRPO on a tiny random model: exact against the plain path, learns, resumes as if nothing had happened."""

import errno

import numpy as np
import polars as pl
import pytest
import torch

from reczero.errors import UserError
from reczero.models import load_policy
from reczero.reasoning import Context, HistoryEntry, Item, Scale, Template
from reczero.recipes import Recipe
from reczero.recipes.rows import Part, epochs_order, stratified_order
from reczero.rollout import Policy
from reczero.rollout.head import widen
from reczero.training.callbacks import Journal
from reczero.training.grpo import group_advantages
from reczero.training.reczero import build_trainer
from reczero.training.run import Run


def recipe(guided=True, steps=4, **training):
    template = {"variant": "think", "section_tokens": 3, "instructions": "brief", "history": 2, "opinions": 0}
    training = {"learning_rate": 3e-3, "steps": steps, "groups_per_step": 4, "save_steps": 2, **training}
    return Recipe.model_validate(
        {
            "method": "reczero",
            "model": {"dtype": "float32"},
            "rollout": {"guided": guided, "max_tokens": 16, "group_size": 4, "template": template},
            "training": training,
        }
    )


def rows(count=16, rating=4.0):
    """Prompts of unequal length."""
    contexts = [
        Context(Item(f"Film {i}"), (HistoryEntry(Item("A" * i), 3.0),) * (i % 3), (), 3.5, i % 3) for i in range(count)
    ]
    frame = pl.DataFrame({"example_id": [str(i) for i in range(count)], "rating": [rating] * count})
    return Part(frame, contexts)


def trainer_for(model_dir, made, folder, part=None, model=None):
    loaded, tokenizer = load_policy(model or model_dir)
    template = Template(made.rollout.template, Scale())
    policy = Policy(loaded, tokenizer, template, made.rollout.guided, made.rollout.max_tokens)
    return build_trainer(policy, part or rows(), made, folder)


def test_advantages_by_hand():
    got = group_advantages(torch.tensor([1.0, 2.0, 3.0, 5.0, 5.0, 5.0]), 3, 1e-6)
    assert torch.allclose(got, torch.tensor([-1.0, 0, 1, 0, 0, 0]), atol=1e-5)


@pytest.mark.parametrize("count", [4, 40, 43])
def test_stratified_batches_hold_one_row_of_each_stratum_and_all_rows_once(count):
    ratings = np.random.default_rng(1).integers(1, 6, count).astype(float)
    order = stratified_order(ratings, 4, seed=0)
    assert sorted(order) == list(range(count))
    batches = ratings[order][: count // 4 * 4].reshape(-1, 4)
    low_to_high = np.sort(batches, axis=1)
    # Sorted strata: whatever two batches are compared, no row of a lower stratum exceeds one of a higher stratum.
    assert (low_to_high.max(0)[:-1] <= low_to_high.min(0)[1:]).all()
    assert not np.array_equal(order, stratified_order(ratings, 4, seed=1))


def test_epochs_follow_each_other_in_new_orders():
    ratings = np.random.default_rng(1).integers(1, 6, 43).astype(float)
    order = epochs_order(ratings, 2, 4, seed=0)
    assert len(order) == 40 + 43 and len(set(order[:40])) == 40 and sorted(order[40:]) == list(range(43))
    assert np.array_equal(order[:40], stratified_order(ratings, 4, seed=0)[:40])
    assert not np.array_equal(order[:40], order[40:80])
    assert len(epochs_order(ratings, 0.5, 1, seed=0)) == 22


def test_a_stratified_recipe_trains_on_the_batches_in_that_order(tiny_model_dir, tmp_path):
    part = rows(16)
    part = Part(part.examples.with_columns(rating=pl.Series([1.0, 2, 4, 5] * 4)), part.contexts)
    trainer = trainer_for(tiny_model_dir, recipe(stratify=True, steps=3), tmp_path, part)
    trainer.train()
    steps = sorted((tmp_path / "completions" / "grpo").glob("*.parquet"))
    assert len(steps) == 3
    for path in steps:
        assert sorted(pl.read_parquet(path)["rating"].unique()) == [1, 2, 4, 5]


def plain_log_probs(trainer, input_ids, attention_mask, width):
    """Every row on its own through the model's own attention: (B, width), 0 where forced or padded."""
    policy, out = trainer.policy, torch.zeros(len(input_ids), width)
    for i, (ids, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
        real = ids[mask.bool()]
        answer = int(mask[-width:].sum())
        logits = trainer.model(real[None]).logits[0, -answer - 1 : -1] / trainer.temperature
        places, allowed = range(answer), None
        if policy.guide:
            places, allowed = policy.guide.replay(real[-answer:].tolist())
        for j, place in enumerate(places):
            scores = logits[place]
            if allowed is not None:
                scores = scores.masked_fill(~widen(allowed[j : j + 1], len(scores), scores.device)[0], float("-inf"))
            out[i, place] = scores.log_softmax(-1)[real[len(real) - answer + place]]
    return out


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_shared_prefix_log_probs_and_gradients_equal_the_plain_path(tiny_model_dir, tmp_path, guided, lora):
    made = recipe(guided)
    if lora:
        made = Recipe.model_validate(made.model_dump() | {"model": {"dtype": "float32", "lora": lora}})
    trainer = trainer_for(tiny_model_dir, made, tmp_path)
    trainer.model.train()
    batch = trainer._generate_and_score_completions([trainer.train_dataset[i // 4] for i in range(16)])
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    width = batch["completion_ids"].shape[1]
    weights = torch.randn(16, width) * batch["completion_mask"] * batch["tool_mask"]

    def gradients(log_probs):
        trainer.model.zero_grad()
        (log_probs * weights).sum().backward()
        return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])

    fast = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, width, compute_entropy=True)[0]
    fast_gradients = gradients(fast)
    plain = plain_log_probs(trainer, ids, mask, width)
    shown = batch["completion_mask"] * batch["tool_mask"]
    assert torch.allclose(fast * shown, plain * shown, atol=1e-5)
    assert torch.allclose(batch["sampling_per_token_logps"] * shown, plain * shown, atol=1e-4)
    assert torch.allclose(fast_gradients, gradients(plain), atol=1e-5)
    assert fast_gradients.norm() > 0


def test_groups_stay_whole_and_advantages_use_the_recipes_epsilon(tiny_model_dir, tmp_path):
    trainer = trainer_for(tiny_model_dir, recipe(advantage_epsilon=0.5), tmp_path)
    trainer.model.train()
    inputs = trainer._prepare_inputs([trainer.train_dataset[i // 4] for i in range(16)])
    for group in inputs["prompt_ids"].split(4):
        assert (group == group[0]).all()
    assert torch.allclose(inputs["advantages"], group_advantages(trainer._rewards, 4, 0.5))


def test_micro_batches_hold_whole_groups_with_a_gradient_and_bounded_tokens(tiny_model_dir, tmp_path):
    trainer = trainer_for(tiny_model_dir, recipe(), tmp_path)
    trainer.model.train()
    inputs = trainer._prepare_inputs([trainer.train_dataset[i // 4] for i in range(16)])
    inputs["advantages"] = torch.tensor([1.0, -1, 0, 0] + [0.0] * 4 + [2.0, 0, 0, 0] + [1.0, 1, -1, -1])
    sizes = [
        int(inputs["prompt_mask"][g * 4].sum() + inputs["completion_mask"][g * 4 : g * 4 + 4].sum()) for g in range(4)
    ]
    for most, want in (
        (10**6, [[0, 2, 3]]),
        (sizes[0] + sizes[2], [[0, 2], [3]]),
        (1, [[0], [2], [3]]),
    ):
        trainer.tokens_per_batch = most
        cut = trainer._micro_batches(inputs)
        assert [rows.tolist() for rows in cut] == [[4 * g + i for g in part for i in range(4)] for part in want]
    assert trainer.take_skipped_groups() == 3


def test_a_group_with_equal_rewards_costs_nothing_and_changes_nothing(tiny_model_dir, tmp_path):
    trainer = trainer_for(tiny_model_dir, recipe(guided=False, steps=1), tmp_path)  # random free answers: all malformed
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    calls = []
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: calls.append(1)
    trainer.train()
    assert trainer.take_skipped_groups() == 4 and trainer.take_skipped_groups() == 0 and not calls
    assert all(torch.equal(before[name], p) for name, p in trainer.model.named_parameters())


def test_reward_rises_on_a_toy_task(tiny_model_dir, tmp_path):
    """Every rating is 4: a policy that learns comes to say so."""
    made = recipe(steps=25, learning_rate=1e-2)
    trainer = trainer_for(tiny_model_dir, made, tmp_path)
    trainer.train()
    rewards = [line["reward"] for line in trainer.state.log_history if "reward" in line]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.1


class Killed(Exception):
    pass


@pytest.mark.parametrize("guided", [True, False])
def test_resume_equals_an_uninterrupted_run(tiny_model_dir, tmp_path, guided):
    made = recipe(guided, steps=4, schedule="linear", stratify=guided)
    whole = trainer_for(tiny_model_dir, made, tmp_path / "whole")
    whole.train()

    first = trainer_for(tiny_model_dir, made, tmp_path / "cut")
    step = first.training_step

    def dies_in_step_4(*args):
        if first.state.global_step == 3:
            raise Killed
        return step(*args)

    first.training_step = dies_in_step_4
    with pytest.raises(Killed):
        first.train()
    second = trainer_for(tiny_model_dir, made, tmp_path / "cut")
    second.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoints" / "grpo" / "checkpoint-2"))

    def losses(trainer):
        return {line["step"]: (line["loss"], line["reward"], line["grad_norm"])
                for line in trainer.state.log_history if "reward" in line}  # fmt: skip

    assert losses(whole) == losses(second)
    assert [path.name for path in (tmp_path / "whole" / "checkpoints" / "grpo").iterdir()] == ["checkpoint-4"]
    for one, other in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tiny_model_dir, tmp_path):
    trainer = trainer_for(tiny_model_dir, recipe(steps=4), tmp_path)
    save = trainer._save_rng_state

    def dies(folder):
        if trainer.state.global_step == 4:
            raise Killed
        save(folder)

    trainer._save_rng_state = dies
    with pytest.raises(Killed):
        trainer.train()
    assert [path.name for path in (tmp_path / "checkpoints" / "grpo").iterdir()] == ["checkpoint-2"]


def test_journal_forgets_what_lies_after_a_checkpoint_of_its_stage_and_a_line_cut_off(tmp_path):
    other, journal = Journal(tmp_path / "metrics.jsonl", "sft"), Journal(tmp_path / "metrics.jsonl")
    other.write(step=7)
    for step in range(4):
        journal.write(step=step)
    with open(journal.path, "a") as file:
        file.write('{"step": 9')
    journal.forget_after(2)
    assert [line["step"] for line in journal.read()] == [0, 1, 2] and other.read() == [{"stage": "sft", "step": 7}]


def test_a_full_disk_leaves_no_folder_of_a_new_run_and_no_harm_to_an_old_one(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    made, old = recipe(), tmp_path / "old"
    Run.open(old, made, resume=False).begin(made)
    kept = (old / "recipe.yaml").read_bytes()
    monkeypatch.setattr("reczero.files._sync", full)
    for folder, resume in ((tmp_path / "new", False), (old, True)):
        with pytest.raises(UserError, match="disk is full"):
            Run.open(folder, made, resume).begin(made)
    assert not (tmp_path / "new").exists() and (old / "recipe.yaml").read_bytes() == kept
    with pytest.raises(UserError, match="is a file"):
        Run.open(old / "recipe.yaml", made, resume=False)
