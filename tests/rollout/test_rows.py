"""What the decoder computes and keeps: every prompt once, every token once, and nothing of answers that have ended."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from reczero.rollout.decoder import Decoding, common_beginning, decode, inference
from reczero.rollout.frozen import States
from reczero.rollout.shared_prefix import Step

SIZES = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "head_dim": 8}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}


@pytest.fixture(scope="module", params=["llama", "mistral"])
def model(request):
    """Random, with answers that don't soon repeat themselves; one of the two has a window."""
    torch.manual_seed(0)
    if request.param == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=11)).eval()


def prompts(count, beginning=0, shortest=3, longest=200, seed=0):
    """Of very different lengths; all begin with the same `beginning` tokens, and then differ at once."""
    draw = np.random.default_rng(seed)
    lengths = [shortest, longest, *draw.integers(shortest, longest + 1, count - 2)]
    common = draw.integers(1, 50, beginning).tolist()
    return [
        [*common, i % 2, *draw.integers(1, 50, length - 1 - beginning).tolist()] for i, length in enumerate(lengths)
    ]


class Watched:
    """What the model is fed in each call of `decode`, and the size of the memory in each step."""

    def __init__(self, model, monkeypatch):
        self.fed: list[int] = []
        self.memory: list[tuple[int, int, int]] = []  # prompts, rows, tokens of the longest prompt
        attend = Step.attend

        def spy(step, layer, *args):
            out = attend(step, layer, *args)
            if layer == 0:
                prompt, own = step.memory.prompt[0][0], step.memory.own[0][0]
                self.memory.append((len(prompt), len(own), prompt.shape[2]))
            return out

        monkeypatch.setattr(Step, "attend", spy)
        self.hook = model.model.layers[0].register_forward_pre_hook(
            lambda _, args, kwargs: self.fed.append((args[0] if args else kwargs["hidden_states"]).shape[1]),
            with_kwargs=True,
        )


@pytest.fixture
def watched(model, monkeypatch):
    made = Watched(model, monkeypatch)
    yield made
    made.hook.remove()


def an_end(model, ids, tokens):
    """A token that ends the greedy answers at many different places."""
    free = [answers[0].tokens for answers in decode(model, ids, end=-1, max_tokens=tokens)]
    places = {t: {answer.index(t) for answer in free if t in answer} for t in range(50)}
    end = max(places, key=lambda t: len(places[t]))
    assert len(places[end]) > 5
    return end


def sampled(model, ids, per, end, states=None):
    generator = torch.Generator().manual_seed(0)
    how = {"end": end, "max_tokens": 60, "temperature": 1.0, "generator": generator, "states": states}
    return decode(model, ids, per, **how)


def a_common_token(model, ids):
    """Ends sampled answers, most of them soon."""
    drawn = [token for answers in sampled(model, ids, 3, -1) for answer in answers for token in answer.tokens]
    return int(np.bincount(drawn).argmax())


@pytest.mark.parametrize("per", [1, 2, 5])
@pytest.mark.parametrize("beginning", [0, 2])
def test_greedy_answers_are_those_of_each_prompt_alone_whenever_others_end(model, per, beginning):
    ids = prompts(24, beginning)
    end = an_end(model, ids, 30)
    together = decode(model, ids, per, end=end, max_tokens=30)
    assert len({len(answers[0].tokens) for answers in together}) > 5
    for prompt, answers in zip(ids, together, strict=True):
        how = {"attention_mask": torch.ones(1, len(prompt), dtype=torch.long), "do_sample": False, "pad_token_id": 0}
        want = model.generate(torch.tensor([prompt]), max_new_tokens=30, eos_token_id=end, **how)
        (alone,) = decode(model, [prompt], end=end, max_tokens=30)[0]
        assert alone.tokens == want[0, len(prompt) :].tolist()
        for answer in answers:
            assert (answer.tokens, answer.finished) == (alone.tokens, alone.finished)
            assert answer.log_probs == pytest.approx(alone.log_probs, abs=1e-4)


@pytest.mark.parametrize("per", [1, 3, 5])
def test_sampled_answers_of_a_group_end_apart_and_keep_their_log_probabilities(model, per):
    """Plain forward over each prompt and answer: whoever left before, what is left is computed from the right keys."""
    ids, states = prompts(12), States(2)
    groups = sampled(model, ids, per, a_common_token(model, ids), states)
    assert len({len(answer.tokens) for answers in groups for answer in answers}) > 5
    for g, (prompt, answers) in enumerate(zip(ids, groups, strict=True)):
        for a, answer in enumerate(answers):
            with torch.no_grad():
                out = model(torch.tensor([prompt + answer.tokens]), output_hidden_states=True)
            want = out.logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            want = want.gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
            assert torch.allclose(torch.tensor(answer.log_probs), want, atol=1e-4)
            entered = out.hidden_states[2][0]  # what `States` keeps for the update
            assert torch.allclose(states.prompts[g], entered[: len(prompt)], atol=1e-4)
            fed = len(answer.tokens) - 1
            if fed:
                kept = states.answer(g * per + a, fed)
                assert torch.allclose(kept, entered[len(prompt) : len(prompt) + fed], atol=1e-4)


@pytest.mark.parametrize("per", [1, 4])
def test_answers_that_have_ended_cost_nothing_more(model, watched, per):
    ids = prompts(16)
    end = a_common_token(model, ids)
    watched.fed.clear()
    watched.memory.clear()
    groups = sampled(model, ids, per, end)
    lengths = np.array([[len(answer.tokens) for answer in answers] for answers in groups])
    assert lengths.min() < 5 and lengths.max() > 20
    # Step t feeds token t of every answer that has one after it.
    steps = range(1, lengths.max())
    assert watched.fed[1:] == [int((lengths > t).sum()) for t in steps]
    for t, (held, rows, longest) in zip(steps, watched.memory, strict=True):
        active = (lengths > t).sum(1)
        needed = int((active > 0).sum()) * int(active.max())
        assert needed <= rows <= held * per and 3 * rows < 4 * needed  # at most a third more than there must be
        assert longest >= max(len(prompt) for prompt, n in zip(ids, active, strict=True) if n)
    sizes = [rows for _, rows, _ in watched.memory]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] <= lengths.size // 4


def test_the_longest_prompt_leaves_the_memory_with_its_answers(model, watched):
    ids = prompts(2, shortest=5, longest=150)
    short, long = (decode(model, [prompt], end=-1, max_tokens=12)[0][0].tokens for prompt in ids)
    end = next(t for t in long[1:8] if t not in [*short, long[0]])  # only the long one's answer ends with it
    watched.memory.clear()
    decode(model, ids, 3, end=end, max_tokens=12)
    assert watched.memory[0] == (2, 6, 150) and watched.memory[-1] == (1, 3, 5)


@pytest.mark.parametrize("per", [1, 5])
@pytest.mark.parametrize("beginning", [0, 1, 3])
def test_a_prompt_is_computed_once_for_all_its_answers_and_what_all_begin_with_once(model, watched, per, beginning):
    ids = prompts(9, beginning, shortest=5)
    assert common_beginning(ids) == beginning
    decode(model, ids, per, end=-1, max_tokens=1)
    assert watched.fed == [beginning + sum(len(prompt) - beginning for prompt in ids)]


@pytest.mark.parametrize(
    ("ids", "want"),
    [
        ([[1, 2, 3]], 0),
        ([[1, 2, 3], [1, 2, 3]], 2),
        ([[1, 2, 3], [1, 2]], 1),
        ([[1], [1, 2]], 0),
        ([[1, 2, 3, 4], [1, 2, 4], [1, 2, 3, 5]], 2),
        ([[1, 2], [3, 2]], 0),
        ([[9, 1, 5], [9, 10, 1], [9, 2]], 1),
    ],
)
def test_what_prompts_begin_with(ids, want):
    assert common_beginning(ids) == want


def alone(model, prompt, end, tokens):
    (answers,) = decode(model, [prompt], end=end, max_tokens=tokens)
    return answers[0].tokens


def test_prompts_that_come_while_others_are_answered_get_what_they_get_alone(model):
    """They take places that are free, or new ones, of longer prompts and shorter ones; some leave before their end."""
    ids = prompts(24, longest=80)
    end = an_end(model, ids, 40)
    draw = np.random.default_rng(1)
    waiting, found, left = list(range(24)), {}, {}
    with inference(model) as ready:
        run = Decoding(ready, end=end, max_tokens=40, pooled=True)
        while waiting or run.active:
            if len(waiting) == 12 and run.active:  # once, all end before the next come
                run.step()
                continue
            if waiting and draw.random() < 0.3:
                count = min(int(draw.integers(1, 6)), len(waiting) - 12 if len(waiting) > 12 else 24)
                now, waiting = waiting[:count], waiting[count:]
                found.update(zip(now, run.add([ids[i] for i in now]), strict=True))
            if run.active and draw.random() < 0.02:
                gone = run.active[draw.integers(len(run.active))].completion
                left[id(gone)] = list(gone.tokens)
                run.leave(gone)
            run.step()
    assert left and len(found) == 24
    for i, completion in found.items():
        want = alone(model, ids[i], end, 40)
        assert completion.tokens == (want if id(completion) not in left else want[: len(left[id(completion)])])


@pytest.mark.parametrize("beginning", [0, 5])
@pytest.mark.parametrize("count", [1, 2])
def test_together_where_nothing_is_shared_or_there_is_one_prompt(model, count, beginning):
    ids = prompts(2, beginning, beginning + 3, 30)[:count]
    got = decode(model, ids, end=-1, max_tokens=9, together=True)
    assert [answers[0].tokens for answers in got] == [alone(model, prompt, -1, 9) for prompt in ids]


@pytest.mark.parametrize("beginning", [1, 60, 150])
@pytest.mark.parametrize("answers", [1, 3])
def test_prompts_answered_together_get_what_they_get_alone(model, watched, beginning, answers):
    """What they all begin with is one prompt in the memory, computed once."""
    ids = prompts(12, beginning, beginning + 3, 250)
    end = an_end(model, ids, 40)
    watched.fed.clear(), watched.memory.clear()
    got = decode(model, ids, answers, end=end, max_tokens=40, together=True)
    assert watched.fed[0] == beginning and watched.memory[0][:2] == (1, 12 * answers)
    for prompt, given in zip(ids, got, strict=True):
        assert [completion.tokens for completion in given] == [alone(model, prompt, end, 40)] * answers
