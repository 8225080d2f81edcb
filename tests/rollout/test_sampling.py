"""What is drawn, and how often: `_sample` exactly, the decoder by chi-square against plain forward passes."""

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM

from reczero.rollout import decoder
from reczero.rollout.decoder import FEW, _choose, _first_above, _sample, decode

NEVER = float("-inf")
JUST_BELOW_1 = float(np.nextafter(1.0, 0.0))


def tiny(vocabulary):
    """A random model whose next token is far from certain and far from uniform."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=vocabulary, initializer_range=0.35, **sizes)
    return LlamaForCausalLM(config).eval()


def scores_of(vocabulary, dtype, pattern):
    torch.manual_seed(vocabulary)
    scores = torch.randn(vocabulary, dtype=dtype) * 3
    if pattern == "every other" and vocabulary > 1:
        scores[torch.arange(vocabulary) % 2 == 1] = NEVER
    elif pattern == "ends" and vocabulary > 4:
        cut = vocabulary // 3
        scores[:cut] = scores[-cut:] = NEVER
    elif pattern == "one":
        scores[torch.arange(vocabulary) != vocabulary // 2] = NEVER
    return scores


def draws(monkeypatch, values):
    values = torch.tensor(values, dtype=torch.float64)[:, None]
    monkeypatch.setattr(decoder.torch, "rand", lambda *_, **__: values)
    return len(values)


SIZES = pytest.mark.parametrize("vocabulary", [1, 2, 3, 7, 16, 37, 100, 101, 1023])
TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
PATTERNS = pytest.mark.parametrize("pattern", ["none", "every other", "ends", "one"])


@SIZES
@TYPES
@PATTERNS
@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_evenly_spaced_draws_give_every_token_its_share(monkeypatch, vocabulary, dtype, pattern, temperature):
    scores = scores_of(vocabulary, dtype, pattern)
    n = draws(monkeypatch, (np.arange(20000) + 0.5) / 20000)
    tokens, log_probs = _sample(scores.expand(n, -1).clone(), temperature, None)
    want = (scores.double() / temperature).log_softmax(-1)
    seen = torch.bincount(tokens, minlength=vocabulary)
    assert not seen[scores == NEVER].any()
    assert ((seen - want.exp() * n).abs() <= 1.5).all()
    assert log_probs.dtype == dtype
    assert torch.allclose(log_probs.double(), want[tokens], rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)


@SIZES
@TYPES
@PATTERNS
def test_the_most_extreme_draws_give_the_first_and_the_last_token_that_can_come(
    monkeypatch, vocabulary, dtype, pattern
):
    scores = scores_of(vocabulary, dtype, pattern)
    possible = (scores > NEVER).nonzero()[:, 0]
    n = draws(monkeypatch, [0.0, JUST_BELOW_1])
    tokens, log_probs = _sample(scores.expand(n, -1).clone(), 1.0, None)
    assert tokens.tolist() == [possible[0], possible[-1]] and log_probs.isfinite().all()


def test_a_draw_that_rounding_lifts_to_the_sum_gives_the_last_that_adds_something():
    cumulated = torch.tensor([[0.0, 1.0, 1.0, 3.0, 3.0]], dtype=torch.float64)
    draws = [0.0, 0.5, 1.0, 2.9, 3.0, 3.1]
    assert [int(_first_above(cumulated, torch.tensor([[d]], dtype=torch.float64))) for d in draws] == [1, 1, 3, 3, 3, 3]


@TYPES
def test_what_has_underflowed_is_never_drawn(monkeypatch, dtype):
    scores = torch.full((50,), -2000.0, dtype=dtype)
    scores[[11, 30]] = 0.0
    n = draws(monkeypatch, [0.0, 0.3, 0.7, JUST_BELOW_1])
    tokens, log_probs = _sample(scores.expand(n, -1).clone(), 1.0, None)
    assert tokens.tolist() == [11, 11, 30, 30]
    assert torch.allclose(log_probs.exp(), torch.tensor(0.5, dtype=dtype))


@SIZES
@TYPES
@PATTERNS
def test_greedy_takes_the_best_and_its_log_probability(vocabulary, dtype, pattern):
    scores = scores_of(vocabulary, dtype, pattern)
    tokens, log_probs = _sample(scores[None].clone(), 0.0, None)
    assert tokens.item() == scores.argmax()
    assert torch.allclose(log_probs, scores.log_softmax(-1).max(), rtol=0, atol=1e-5)


def pvalue(seen: np.ndarray, chances: np.ndarray) -> float:
    """Chi-square; rare cells together, so that none is too small for the test."""
    want = chances * seen.sum()
    assert not seen[chances == 0].any()
    common = want >= 5
    observed, expected = [*seen[common]], [*want[common]]
    if want[~common].sum() > 0:
        observed.append(seen[~common].sum())
        expected.append(want[~common].sum())
    return float(stats.chisquare(observed, expected, sum_check=False).pvalue)


def next_chances(model, rows, temperature=1.0, allowed=None):
    """Plain forward over rows of equal length: (rows, V), float64."""
    with torch.no_grad():
        logits = model(torch.tensor(rows)).logits[:, -1].double() / temperature
    if allowed is not None:
        logits = logits.masked_fill(~torch.tensor(allowed), NEVER)
    return logits.softmax(-1).numpy()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_free_pairs_of_tokens_have_the_models_distribution(temperature):
    """The first token, and the second given the first: 144 pairs."""
    model, prompt, v = tiny(12), [3, 1, 4, 1, 5], 12
    generator = torch.Generator().manual_seed(1)
    drawn = decode(model, [prompt], 20000, end=-1, max_tokens=2, temperature=temperature, generator=generator)[0]
    first, second = np.array([c.tokens for c in drawn]).T
    one = next_chances(model, [prompt], temperature)[0]
    two = next_chances(model, [[*prompt, t] for t in range(v)], temperature)
    assert pvalue(np.bincount(first * v + second, minlength=v * v), (one[:, None] * two).ravel()) > 1e-3
    want = np.log([[one[a], two[a, b]] for a, b in zip(first, second, strict=True)])
    assert np.allclose([c.log_probs for c in drawn], want, atol=1e-4)


class Sets:
    """A guide that allows one set of tokens after another."""

    def __init__(self, *sets):
        self.sets = sets

    def follow(self):
        return SetsPath(self.sets)


class SetsPath:
    def __init__(self, sets):
        self.sets, self.at = sets, 0

    @property
    def done(self):
        return self.at == len(self.sets)

    def forced(self):
        return []

    def allowed(self):
        return np.packbits(self.sets[self.at], bitorder="little")

    def take(self, tokens):
        assert all(self.sets[self.at][t] for t in tokens)
        self.at += len(tokens)


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_guided_tokens_have_the_renormalised_distribution(temperature):
    """The second and third given the others: among few tokens, many, few."""
    model, prompt, v, n = tiny(601), [3, 1, 4], 601, 12000
    draw = np.random.default_rng(0)
    sets = [np.isin(np.arange(v), draw.choice(v, size, replace=False)) for size in (2, FEW + 60, 9)]
    sets[1][-1] = True
    generator = torch.Generator().manual_seed(2)
    drawn = decode(
        model, [prompt], n, end=0, max_tokens=9, guide=Sets(*sets), temperature=temperature, generator=generator
    )[0]
    assert all(c.finished and c.chosen == [True] * 3 + [False] and c.tokens[-1] == 0 for c in drawn)
    tokens = np.array([c.tokens[:3] for c in drawn])
    chances = next_chances(model, [prompt], temperature, sets[0])[0]
    assert pvalue(np.bincount(tokens[:, 0], minlength=v), chances) > 1e-3
    first = np.bincount(tokens[:, 0]).argmax()
    after_first = tokens[tokens[:, 0] == first]
    chances = next_chances(model, [[*prompt, first]], temperature, sets[1])[0]
    assert pvalue(np.bincount(after_first[:, 1], minlength=v), chances) > 1e-3
    second = np.bincount(after_first[:, 1]).argmax()
    last = after_first[after_first[:, 1] == second][:, 2]
    chances = next_chances(model, [[*prompt, first, second]], temperature, sets[2])[0]
    assert len(last) > 100 and pvalue(np.bincount(last, minlength=v), chances) > 1e-3


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_few_and_many_allowed_tokens_side_by_side(bias, temperature):
    """Every row's tokens come from its own set, with the log-probability they have in it."""
    torch.manual_seed(0)
    v, n = 1000, 60
    head, hidden = torch.nn.Linear(8, v, bias=bias), torch.randn(n, 8) * 2
    draw = np.random.default_rng(0)
    counts = np.resize([1, 2, FEW, FEW + 1, v - 1, v], n)
    allowed = np.stack([np.isin(np.arange(v), draw.choice(v, count, replace=False)) for count in counts])
    bits = np.packbits(allowed, axis=1, bitorder="little")
    with torch.no_grad():
        tokens, log_probs = _choose(head, head.forward, hidden, bits, temperature, None)
        want = head(hidden).masked_fill(~torch.tensor(allowed), NEVER).log_softmax(-1)
    assert torch.allclose(want[torch.arange(n), tokens], torch.tensor(log_probs), atol=1e-4)
    if temperature == 0:
        assert tokens == want.argmax(-1).tolist()
