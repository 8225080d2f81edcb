"""The real small model on 200 real prompts of the quickstart recipe: token for token what transformers generates."""

import pytest
import torch

from reczero.recipes import load_recipe
from reczero.recipes.rows import prepared, select
from reczero.rollout.decoder import decode
from reczero.training.session import load

TOKENS, BATCH = 16, 40
TIE = 1e-4  # logits that are nearer may come in either order: their last bits depend on the shapes of the products


@pytest.fixture(scope="module")
def real():
    recipe = load_recipe("quickstart", ["evaluation.test_examples=200", "rollout.guided=false"])
    data = prepared(recipe)
    policy, contexts = load(recipe, data.scale, torch.device("cpu")), select(recipe, data)["test"].contexts
    return policy, [policy.encode(policy.template.messages(context)) for context in contexts]


def generated(policy, prompts: list[list[int]]) -> list[list[int]]:
    """By transformers, all in one batch padded on the left."""
    batch = policy.tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    made = policy.model.generate(**batch, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None)
    return made[:, batch["input_ids"].shape[1] :].tolist()


@torch.no_grad()
def gap(policy, tokens: list[int]) -> float:
    """How far the two best logits of what comes after `tokens` are apart, on the plain path."""
    best = policy.model(torch.tensor([tokens]), logits_to_keep=1).logits[0, -1].topk(2).values
    return float(best[0] - best[1])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_greedy_decoding_of_200_real_prompts_equals_transformers_generate(real):
    policy, prompts = real
    assert len(prompts) == 200 and len({len(prompt) for prompt in prompts}) > 20
    different = 0
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        per = 1 + start // BATCH % 2  # one answer to each, or two
        rows = zip(
            batch, decode(policy.model, batch, per, end=-1, max_tokens=TOKENS), generated(policy, batch), strict=True
        )
        for prompt, answers, want in rows:
            for tokens in (answer.tokens for answer in answers):
                assert len(tokens) == TOKENS
                if tokens != want:
                    first = next(i for i in range(TOKENS) if tokens[i] != want[i])
                    assert gap(policy, prompt + want[:first]) < TIE
                    different += 1
    assert different < 5
