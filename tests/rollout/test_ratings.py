"""How probable each rating is: against a plain forward pass over every rating written out; and answers that are
begun."""

import numpy as np
import pytest
import torch

from reczero.models import load_policy
from reczero.reasoning import Context, Item, Opinion, Scale, Template, TemplateSettings
from reczero.rollout import Policy


def make_policy(tiny_model_dir, scale: Scale, guided: bool = True, variant: str = "think") -> Policy:
    model, tokenizer = load_policy(tiny_model_dir)
    template = Template(TemplateSettings(variant=variant, section_tokens=6, instructions="brief"), scale)
    return Policy(model, tokenizer, template, guided=guided, max_tokens=60)


def prompts(policy: Policy, count: int = 5) -> list[list[int]]:
    contexts = [Context(Item("Fargo " * (1 + 2 * i)), (), tuple([Opinion(4.0)] * i), 3.5, 9) for i in range(count)]
    return [policy.encode(policy.template.messages(context)) for context in contexts]


def slowly(policy: Policy, prompt: list[int], begun: list[int]) -> np.ndarray:
    """The tokens of every rating under the model, renormalised at each branch among the ratings that are still
    possible."""
    close = policy.template.rate.close
    texts = [Scale.text(value) + close for value in policy.template.scale.grid()]
    numbers = [policy.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    chances = []
    for number in numbers:
        chance = 1.0
        for place, token in enumerate(number):
            others = {n[place] for n in numbers if n[:place] == number[:place] and len(n) > place}
            if len(others) > 1:
                with torch.no_grad():
                    logits = policy.model(torch.tensor([[*prompt, *begun, *number[:place]]])).logits[0, -1]
                chance *= float(logits[token].exp() / sum(logits[other].exp() for other in others))
        chances.append(chance)
    return np.array(chances)


@pytest.mark.parametrize("scale", [Scale(), Scale(1, 10, 1), Scale(0.5, 5, 0.5)])
@pytest.mark.parametrize("variant", ["think", "direct"])
def test_as_a_forward_pass_over_each_rating(tiny_model_dir, scale, variant):
    policy = make_policy(tiny_model_dir, scale, variant=variant)
    ids = prompts(policy)
    plain, weighed = policy.answer(ids, 2), policy.answer(ids, 2, weigh=True)
    for prompt, before, after in zip(ids, plain, weighed, strict=True):
        for unweighed, completion in zip(before, after, strict=True):
            assert completion.tokens == unweighed.tokens and unweighed.ratings is None  # weighing changes no answer
            begun = next(
                completion.tokens[:k]
                for k in range(len(completion.tokens), 0, -1)
                if policy.ratings.due(completion.tokens[:k])
            )
            np.testing.assert_allclose(completion.ratings, slowly(policy, prompt, begun), rtol=2e-4)
            assert sum(completion.ratings) == pytest.approx(1)


def test_the_guided_number_is_the_most_probable_one_where_ratings_are_one_token(tiny_model_dir):
    policy = make_policy(tiny_model_dir, Scale())
    for (completion,) in policy.answer(prompts(policy), weigh=True):
        assert policy.read(completion)[1].rating == 1 + int(np.argmax(completion.ratings))


def test_an_answer_without_a_place_for_a_rating_has_none(tiny_model_dir):
    policy = make_policy(tiny_model_dir, Scale(), guided=False)
    assert all(completion.ratings is None for (completion,) in policy.answer(prompts(policy), weigh=True))


@pytest.mark.parametrize("guided", [True, False])
def test_a_free_or_guided_answer_goes_on_from_what_is_begun(tiny_model_dir, guided):
    policy = make_policy(tiny_model_dir, Scale(), guided)
    ids = prompts(policy)
    whole = [answers[0] for answers in make_policy(tiny_model_dir, Scale(), True).answer(ids, weigh=True)]
    begun = [next(c.tokens[:k] for k in range(len(c.tokens)) if policy.ratings.due(c.tokens[:k])) for c in whole]
    again = [answers[0] for answers in policy.answer(ids, weigh=True, begun=begun)]
    for first, start, second in zip(whole, begun, again, strict=True):
        assert second.tokens[: len(start)] == start and not any(second.chosen[: len(start)])
        np.testing.assert_allclose(second.ratings, first.ratings, rtol=1e-4)
        if guided:
            assert second.tokens == first.tokens
    with pytest.raises(RuntimeError, match="do not fit the grammar"):
        make_policy(tiny_model_dir, Scale(), True).answer(ids[:1], begun=[[5, 6, 7]])


def test_sampled_answers_are_as_many_as_asked_and_the_same_for_a_seed(tiny_model_dir):
    policy = make_policy(tiny_model_dir, Scale())
    contexts = [Context(Item(f"Film {i}")) for i in range(5)]
    first = policy.sample(contexts, 4, 1.0, seed=3, batch_size=8)
    assert first.shape == (5, 4) and set(np.unique(first)) <= {1.0, 2, 3, 4, 5}
    np.testing.assert_array_equal(first, policy.sample(contexts, 4, 1.0, seed=3, batch_size=8))
    assert not np.array_equal(first, policy.sample(contexts, 4, 1.0, seed=4, batch_size=8))
    free = make_policy(tiny_model_dir, Scale(), guided=False)
    assert np.isnan(free.sample(contexts, 2, 1.0, seed=0)).all()
