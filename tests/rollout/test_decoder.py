"""Decoding with a shared prompt against transformers' own generation, and its distribution against the model's."""

import pytest
import torch
from scipy import stats

from reczero.errors import UserError
from reczero.models import load_policy
from reczero.reasoning import Context, Item, Opinion, Scale, Template, TemplateSettings
from reczero.rollout import Policy
from reczero.rollout.decoder import decode
from reczero.rollout.head import widen


@pytest.fixture(scope="module")
def policy(tiny_model_dir):
    model, tokenizer = load_policy(tiny_model_dir)
    template = Template(TemplateSettings(section_tokens=6, instructions="brief"))
    return Policy(model, tokenizer, template, guided=True, max_tokens=12)


def prompts(policy, count=4):
    contexts = [Context(Item("Fargo " * (1 + 3 * i)), (), tuple([Opinion(4.0)] * i), 3.5, 9) for i in range(count)]
    return [policy.encode(policy.template.messages(context)) for context in contexts]


def test_greedy_equals_transformers_generate(policy):
    ids = prompts(policy)
    got = decode(policy.model, ids, 2, end=-1, max_tokens=20)
    for prompt, answers in zip(ids, got, strict=True):
        want = policy.model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=None)
        assert [a.tokens for a in answers] == [want[0, len(prompt) :].tolist()] * 2


def test_an_answer_ends_at_the_end_token(policy):
    ids = prompts(policy, 1)
    free = decode(policy.model, ids, end=-1, max_tokens=20)[0][0]
    end = free.tokens[4]
    short = decode(policy.model, ids, end=end, max_tokens=20)[0][0]
    assert short.tokens == free.tokens[: free.tokens.index(end) + 1] and short.finished and not free.finished


def log_probs_of(policy, prompt, completion):
    """Plain forward over prompt and answer: (tokens,) log-probabilities under guidance, 0 where forced."""
    with torch.no_grad():
        logits = policy.model(torch.tensor([prompt + completion.tokens])).logits[0, len(prompt) - 1 : -1]
    places, allowed = policy.guide.replay(completion.tokens)
    out = torch.zeros(len(completion.tokens))
    for place, mask in zip(places, widen(allowed, logits.shape[1], logits.device), strict=True):
        scores = logits[place].masked_fill(~mask, float("-inf"))
        out[place] = scores.log_softmax(-1)[completion.tokens[place]]
    return places, out


def test_guided_answers_always_parse_and_carry_their_log_probabilities(policy):
    ids = prompts(policy)
    for seed in range(5):
        for prompt, answers in zip(ids, policy.answer(ids, 4, temperature=1.0, seed=seed), strict=True):
            for completion in answers:
                _, answer = policy.read(completion)
                assert answer.rating in policy.template.scale.grid(), answer.fault
                assert set(answer.texts) == {"analyze_user", "analyze_item", "match"}
                places, want = log_probs_of(policy, prompt, completion)
                assert places == [i for i, chosen in enumerate(completion.chosen) if chosen]
                assert torch.allclose(torch.tensor(completion.log_probs), want, atol=1e-4)
                assert completion.finished and len(completion.tokens) <= policy.longest


@pytest.mark.parametrize("variant", ["think", "single", "direct"])
@pytest.mark.parametrize("scale", [Scale(), Scale(1, 10, 1), Scale(0.5, 5, 0.5)])
def test_every_variant_and_scale_parses(policy, variant, scale):
    template = Template(TemplateSettings(variant=variant, section_tokens=3, instructions="brief"), scale)
    other = Policy(policy.model, policy.tokenizer, template, True, 10)
    seen = set()
    for (completion,) in other.answer(prompts(other) * 8, temperature=1.5, seed=0):
        _, answer = other.read(completion)
        assert answer.rating in scale.grid(), answer.fault
        seen.add(answer.rating)
    assert len(seen) > 2  # a random model rates at random


def test_the_same_seed_gives_the_same_answers_and_another_seed_others(policy):
    ids = prompts(policy)
    one, two, three = (
        [c.tokens for row in policy.answer(ids, 3, temperature=1.0, seed=s) for c in row] for s in (1, 1, 2)
    )
    assert one == two != three
    assert len({tuple(tokens) for tokens in one[:3]}) == 3  # answers to one prompt differ


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampling_has_the_models_distribution(policy, temperature):
    """Chi-square on the first free token of 4,000 answers to one prompt."""
    ids = prompts(policy, 1)
    generator = torch.Generator().manual_seed(0)
    drawn = decode(policy.model, ids, 4000, end=-1, max_tokens=1, temperature=temperature, generator=generator)[0]
    with torch.no_grad():
        want = (policy.model(torch.tensor(ids)).logits[0, -1] / temperature).softmax(-1).numpy() * 4000
    seen = torch.bincount(torch.tensor([c.tokens[0] for c in drawn]), minlength=len(want)).numpy()
    common = want >= 5
    observed, expected = list(seen[common]), list(want[common])
    if not common.all():  # rare tokens together, so that no cell is too small for the test
        observed.append(seen[~common].sum())
        expected.append(want[~common].sum())
    assert stats.chisquare(observed, expected, sum_check=False).pvalue > 1e-3


def test_guided_ratings_have_the_renormalised_distribution(policy):
    template = Template(TemplateSettings(variant="direct", instructions="brief"))
    direct = Policy(policy.model, policy.tokenizer, template, True, 10)
    (prompt,) = prompts(direct, 1)
    answers = direct.answer([prompt], 3000, temperature=1.0, seed=3)[0]
    places, allowed = direct.guide.replay(answers[0].tokens)
    with torch.no_grad():
        before = torch.tensor([prompt + answers[0].tokens[: places[0]]])
        logits = direct.model(before).logits[0, -1]
        logits = logits.masked_fill(~widen(allowed, len(logits), logits.device)[0], float("-inf"))
    want = logits.softmax(-1)
    seen = torch.bincount(torch.tensor([c.tokens[places[0]] for c in answers]), minlength=len(want))
    support = want > 0
    assert not seen[~support].any()
    assert (
        stats.chisquare(seen[support].numpy(), (want[support] * 3000).numpy().astype("float64"), sum_check=False).pvalue
        > 1e-3
    )


def test_a_failed_call_leaves_the_model_as_it_was(policy):
    before = policy.model.config._attn_implementation
    with pytest.raises(Exception):  # noqa: B017 - whatever is raised on the way
        decode(policy.model, [[10**9]], end=-1, max_tokens=2)
    assert policy.model.config._attn_implementation == before


def tiny(policy, kind, **settings):
    """The same tokenizer with a tiny random model of another architecture."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=len(policy.tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=4, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=policy.tokenizer.pad_token_id, **settings,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("qwen2", {}),
        ("qwen3", {}),
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 8}),
        ("gemma3_text", WINDOWS),
    ],
)
def test_other_architectures_and_windows_decode_as_transformers_does(policy, kind, settings):
    model, ids = tiny(policy, kind, **settings), prompts(policy)
    for prompt, (got,) in zip(ids, decode(model, ids, end=-1, max_tokens=12), strict=True):
        want = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None)
        assert got.tokens == want[0, len(prompt) :].tolist()


def test_a_model_that_cannot_share_a_prompt_decodes_free_by_transformers_and_refuses_guidance(policy):
    model = tiny(policy, "gemma2", attn_logit_softcapping=20.0)
    free = Policy(model, policy.tokenizer, policy.template, guided=False, max_tokens=8)
    ids = prompts(free)
    for prompt, (got,) in zip(ids, free.answer(ids), strict=True):
        want = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, len(prompt) :].tolist()
        assert got.tokens == want[: len(got.tokens)]
    sampled = free.answer(ids, 3, temperature=1.0, seed=0)
    assert [len(row) for row in sampled] == [3] * len(ids)
    with pytest.raises(UserError, match="gemma2"):
        Policy(model, policy.tokenizer, policy.template, guided=True, max_tokens=8)
