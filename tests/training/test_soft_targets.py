"""SFT whose target at the rating is a distribution: the loss is the cross entropy with it, place by place."""

import json

import numpy as np
import polars as pl
import pytest
import torch

from reczero.cli import main
from reczero.errors import UserError
from reczero.models import load_policy
from reczero.reasoning import Context, Item, Scale, Template, TemplateSettings
from reczero.recipes import Recipe
from reczero.rollout import Policy
from reczero.training.sft import PackedSFTTrainer, build_sft_trainer, soft_targets, tokens_of

SETTINGS = TemplateSettings(instructions="brief", history=0, opinions=0, section_tokens=6)
HALVES = Scale(0.5, 5.0, 0.5)


def policy_on(folder, scale=HALVES) -> Policy:
    model, tokenizer = load_policy(folder)
    return Policy(model, tokenizer, Template(SETTINGS, scale), guided=False, max_tokens=60)


def material(policy: Policy, count: int = 4) -> tuple[list[Context], list[str], np.ndarray]:
    grid = policy.template.scale.grid()
    contexts = [Context(Item(f"Film {i}"), (), (), 3.5, i) for i in range(count)]
    sections = {"analyze_user": "warm", "analyze_item": "[pos] long", "match": "so-so"}
    texts = [policy.template.write(sections, grid[(3 * i + 1) % len(grid)]) for i in range(count)]
    return contexts, texts, np.random.default_rng(0).dirichlet(np.ones(len(grid)), count)


def trainer(policy, folder, chances, **sft):
    contexts, texts, _ = material(policy)
    wanted = {"traces_per_step": 4, "traces_per_batch": 4, "steps": 1, "epochs": 1} | sft
    made = {"method": "sft", "model": {"dtype": "float32"}, "sft": wanted}
    return build_sft_trainer(policy, contexts, texts, Recipe.model_validate(made), folder, chances)


def loss_of(made, per: int = 4) -> float:
    """Of the whole step, in batches of `per`."""
    batch = [made.train_dataset[i] for i in range(4)]
    count = sum(sum(label != -100 for label in row["labels"]) for row in batch)
    parts = [made.data_collator(batch[i : i + per]) for i in range(0, 4, per)]
    return sum(made.compute_loss(made.model, part, num_items_in_batch=torch.tensor(count)).item() for part in parts)


SCALES = {
    "digits": Scale(),
    "halves": HALVES,
    "tens": Scale(1.0, 10.0),
    "nought to ten": Scale(0.0, 10.0),
}  # 10 ends as 0


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_the_loss_is_the_cross_entropy_with_the_targets(scale, tiny_model_dir, tmp_path):
    policy = policy_on(tiny_model_dir, scale)
    contexts, texts, chances = material(policy)
    want, tokens = 0.0, 0
    with torch.no_grad():
        for context, text, row in zip(contexts, texts, chances, strict=True):
            prompt, answer = tokens_of(policy, context, text)
            log_probs = policy.model(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
            said = text.split("<rate>")[1]
            start = len(answer) - 1 - len(policy.tokenizer.encode(said, add_special_tokens=False))
            grid = [Scale.text(x) + "</rate>" for x in scale.grid()]
            for k, token in enumerate(answer):
                here = log_probs[len(prompt) + k - 1]
                before = policy.tokenizer.decode(answer[start:k]) if k > start else ""
                going_on = [
                    i for i, word in enumerate(grid) if k >= start and k < len(answer) - 1 and word.startswith(before)
                ]
                if len({policy.ratings.numbers[i][k - start] for i in going_on}) > 1:
                    total = sum(row[i] for i in going_on)
                    want -= 3 * sum(
                        row[i] / total * here[policy.ratings.numbers[i][k - start]].item() for i in going_on
                    )
                else:
                    want -= here[token].item()
            tokens += len(answer)
    made = trainer(policy, tmp_path, chances, rating_weight=3.0)
    assert loss_of(made) == pytest.approx(want / tokens, rel=1e-5)
    assert loss_of(made, per=1) == pytest.approx(want / tokens, rel=1e-5)


@pytest.mark.parametrize("soft", [False, True])
def test_plain_texts_and_certain_targets_have_trls_own_loss(soft, tiny_model_dir, tmp_path):
    grid = HALVES.grid()
    certain = np.eye(len(grid))[[(3 * i + 1) % len(grid) for i in range(4)]]
    plain = trainer(policy_on(tiny_model_dir), tmp_path, None)
    ours = trainer(policy_on(tiny_model_dir), tmp_path, certain) if soft else plain
    plain.model.train()
    losses, slopes = [], []
    for made, compute in ((ours, ours.compute_loss), (plain, super(PackedSFTTrainer, plain).compute_loss)):
        batch = made.data_collator([made.train_dataset[i] for i in range(4)])
        made.model.zero_grad()
        loss = compute(made.model, batch, num_items_in_batch=(batch["labels"] != -100).sum())
        loss.backward()
        losses.append(loss.item())
        slopes.append({name: weight.grad.clone() for name, weight in made.model.named_parameters()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, slope in slopes[0].items():
        assert torch.allclose(slope, slopes[1][name], rtol=1e-4, atol=1e-6), name


def test_learning_ends_on_the_teachers_distribution(tiny_model_dir, tmp_path):
    policy = policy_on(tiny_model_dir, Scale())
    target = np.array([0.05, 0.15, 0.4, 0.3, 0.1])
    made = trainer(
        policy, tmp_path, np.tile(target, (4, 1)), epochs=200, steps=200, learning_rate=3e-3, rating_weight=20.0
    )
    made.train()
    contexts, texts, _ = material(policy)
    prompt, answer = tokens_of(policy, contexts[1], texts[1].split("<rate>")[0] + "<rate>")
    with torch.no_grad():
        logits = policy.model(torch.tensor([prompt + answer[:-1]])).logits[0, -1]
    digits = [numbers[0] for numbers in policy.ratings.numbers]
    assert logits.softmax(-1)[digits].tolist() == pytest.approx(target.tolist(), abs=0.05)
    lines = [line for line in made.state.log_history if "rating_loss" in line]
    assert len(lines) == 200 and lines[-1]["rating_loss"] == pytest.approx(-(target * np.log(target)).sum(), abs=0.05)


def test_an_answer_that_ends_on_no_rating_is_told(tiny_model_dir):
    policy = policy_on(tiny_model_dir, Scale())
    for rating in ("7", "3.5"):  # which ends as 5 does
        prompt, answer = tokens_of(policy, material(policy)[0][0], f"<rate>{rating}</rate>")
        with pytest.raises(UserError, match="none of the scale's"):
            soft_targets(prompt, answer, policy.ratings, [0.2] * 5)


def test_a_recipe_learns_from_the_writers_belief(table, tiny_model_dir, tmp_path, capsys):
    run = tmp_path / "run"
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"""
method: sft
data: {{dataset: "{table}", train_examples: 40}}
model: {{name: "{tiny_model_dir}", dtype: float32}}
rollout:
  guided: true
  template: {{instructions: brief, history: 0, opinions: 0, section_tokens: 6, facts: [spread, affinity, sum]}}
teacher: {{examples: 24, retell: false, tolerance: 4}}
sft: {{belief: 0.75, rating_weight: 10, traces_per_step: 4, traces_per_batch: 4, steps: 3, validation_steps: 3}}
evaluation: {{validation_examples: 6, test_examples: 6}}
"""
    )
    assert main.run(["train", str(path), "--out", str(run)]) == 0
    traces = pl.read_parquet(run / "traces" / "teach" / "traces.parquet").filter("kept")
    assert (traces["belief"].list.len() == 5).all() and traces["belief"].list.sum().to_list() == pytest.approx(
        [1] * len(traces)
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(line["rating_loss"] > 0 for line in lines if "loss" in line)
    # A teacher without beliefs can't be asked for them.
    other = tmp_path / "other"
    assert main.run(["train", str(path), "sft.belief=0", "--out", str(other)]) == 0
    plain = ["train", str(path), f"teacher.traces={other / 'traces' / 'teach'}", "--out", str(tmp_path / "third")]
    capsys.readouterr()
    assert main.run(plain) == 2 and "the traces hold no beliefs" in capsys.readouterr().err
