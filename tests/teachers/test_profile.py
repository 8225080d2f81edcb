"""The rule-based teacher: well-formed on any context, deterministic, and true to what the prompt shows."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reczero.reasoning import (
    Context,
    HistoryEntry,
    Item,
    Opinion,
    Scale,
    Standing,
    Template,
    TemplateSettings,
    parse,
)
from reczero.teachers.profile import ProfileWriter
from reczero.teachers.teach import mentions_rating

BRIEF = TemplateSettings(history=10, opinions=3, fields=("categories", "creator"), section_tokens=60)
HISTORY = tuple(
    HistoryEntry(Item(title, tuple(categories.split())), rating)
    for title, categories, rating in [
        ("Fargo", "Crime Drama", 5.0),
        ("Speed", "Action", 2.0),
        ("Heat", "Action Crime", 3.0),
        ("Big", "Comedy", 4.0),
    ]
)
SCREAM = Context(
    Item("Scream", ("Horror", "Action", "Crime")), HISTORY, (Opinion(2.0), Opinion(3.0)), 3.52, 41, 3.9, 120
)


def test_what_it_writes_and_that_the_truth_turns_it():
    template = Template(BRIEF)
    writer = ProfileWriter(template, center=3.5)
    assert writer.compose(SCREAM) == writer.compose(SCREAM)
    own, told = (parse(writer.compose(SCREAM, truth), template) for truth in (None, 2.0))
    for answer in (own, told):
        user = "Gives 3.52 on average, usual; likes Drama (5) and Crime (4); less Action (2.5)."
        assert answer.texts["analyze_user"] == user
        assert answer.texts["analyze_item"] == "[pos] Crime (4), 3.90 from 120 ratings [neg] Action (2.5), lately 2.5"
    total = "Usual 3.5, user +0.0, item +0.4, taste -0.1: about 3.8"
    fits = f"{total}, and that fits. Taste is divided: Action matters less than Crime."
    less = f"{total}, but much less is due. Taste is divided: Crime matters less than Action."
    assert (own.texts["match"], own.rating, told.texts["match"], told.rating) == (fits, 4, less, 2)


def test_its_estimate_by_hand():
    """The center, its two averages as far as they are to be trusted, and half the mean of Crime's and Action's lean."""
    crime, action = (4 - 3.52) * 2 / 3, (2.5 - 3.52) * 2 / 3
    parts = [0.02 * 41 / 46, 0.4 * 120 / 125, (crime + action) / 2 / 2]
    expected = 3.5 + sum(round(part, 1) for part in parts)
    assert ProfileWriter(Template(BRIEF), 3.5).estimate(SCREAM) == pytest.approx(expected)


@pytest.mark.parametrize("scale", [Scale(), Scale(0.5, 5.0, 0.5), Scale(0.0, 100.0, 1.0), Scale(0.0, 1.0, 0.05)])
@given(st.data())
def test_its_sum_is_true_as_it_stands(scale, data):
    inside = st.floats(scale.min, scale.max)
    history = tuple(HistoryEntry(e.item, data.draw(st.sampled_from(scale.grid()))) for e in HISTORY)
    context = Context(SCREAM.item, history, (), data.draw(inside), data.draw(st.integers(1, 50)), data.draw(inside), 9)
    template = Template(BRIEF, scale)
    text = parse(ProfileWriter(template, data.draw(inside)).compose(context), template).texts["match"]
    usual, *parts = map(float, re.findall(r"[+-]?\d+\.\d+", text.split(":")[0]))
    said = float(re.search(r": about (\d+\.\d+),", text)[1])
    assert len(parts) == 3 and said == pytest.approx(min(max(usual + sum(parts), scale.min), scale.max), abs=1e-9)


ratings = st.integers(1, 5).map(float)
names = st.text(max_size=12)
items = st.builds(Item, names, st.lists(names, max_size=3).map(tuple), st.none() | names)
contexts = st.builds(
    Context,
    items,
    st.lists(st.builds(HistoryEntry, items, ratings), max_size=4).map(tuple),
    st.lists(st.builds(Opinion, ratings), max_size=4).map(tuple),
    st.none() | st.floats(1, 5),
    st.integers(0, 900),
    st.none() | st.floats(1, 5),
    st.integers(0, 900),
)


@given(contexts, st.none() | ratings, st.sampled_from(["think", "single", "direct"]), st.sampled_from([4, 24, 200]))
def test_well_formed_on_any_context(context, truth, variant, tokens):
    settings = TemplateSettings(variant=variant, history=3, opinions=2, fields=("categories",), section_tokens=tokens)
    template = Template(settings, Scale())
    answer = parse(ProfileWriter(template, 3.5).compose(context, truth), template)
    assert answer.well_formed, answer.fault
    assert truth is None or answer.rating == truth
    assert not any(map(mentions_rating, answer.texts.values())) or any(
        map(mentions_rating, template.shown_labels(context.item))
    )
    if variant == "think":  # nothing that the prompt hides
        assert not context.item.creator or "creator" not in answer.texts["analyze_item"]


@given(contexts)
def test_every_number_is_in_the_prompt_or_follows_from_it(context):
    """Averages and counts as the prompt writes them; tastes are means of the shown ratings."""
    template = Template(BRIEF)
    answer = parse(ProfileWriter(template, 3.5).compose(context), template)
    prompt = template.messages(context)[1]["content"]
    for number in re.findall(r"\d+\.\d\d(?!\d)", answer.texts["analyze_user"].split(";")[0]):
        assert number in prompt
    for label, mean in re.findall(r"(Drama|Action|Crime) \((\d(?:\.\d)?)\)", " ".join(answer.texts.values())):
        given_ = [e.rating for e in context.user_history if label in template.shown_labels(e.item)]
        assert abs(sum(given_) / len(given_) - float(mean)) <= 0.05


# --- with facts in the prompt -----------------------------------------------------------------------------------------

numbers = st.none() | st.floats(-4, 4)
FACTS = st.lists(st.sampled_from(["spread", "affinity", "hint", "sum"]), min_size=1, unique=True).map(tuple)


def test_it_adds_up_the_facts():
    standing = Standing(3.874, -0.216, 1.1, 0.304)
    context = replace(SCREAM, standing=standing)
    for facts, match, rating in [
        (("affinity", "hint", "sum"), "Item 3.87, such items -0.22, rated alike +0.30: about 3.95.", 4),
        (("spread", "affinity"), "Item 3.87, such items -0.22: about 3.65.", 4),
        (("spread",), "Item 3.87: about 3.87.", 4),
    ]:
        template = Template(replace(BRIEF, facts=facts))
        answer = parse(ProfileWriter(template, 3.5).compose(context), template)
        assert (answer.texts["match"].split(" Taste")[0], answer.rating) == (match, rating)
        assert "3.87 from 120 ratings" in answer.texts["analyze_item"]
        assert (" on average, spread 1.1, " in answer.texts["analyze_user"]) == ("spread" in facts)
    nothing = parse(ProfileWriter(template, 3.5).compose(replace(SCREAM, standing=Standing())), template)
    assert nothing.texts["match"].startswith("Usual 3.50: about 3.50.")


@pytest.mark.parametrize("scale", [Scale(), Scale(0.0, 1.0, 0.05), Scale(0.0, 100.0, 1.0)])
@given(st.data())
def test_each_number_of_its_sum_is_one_of_the_prompt_and_the_sum_is_true(scale, data):
    drawn = [data.draw(numbers) for _ in range(3)]
    mean = data.draw(st.floats(scale.min, scale.max))
    context = replace(SCREAM, user_history=(), standing=Standing(mean, *drawn))
    template = Template(replace(BRIEF, facts=data.draw(FACTS)), scale)
    writer = ProfileWriter(template, (scale.min + scale.max) / 2)
    answer = parse(writer.compose(context), template)
    said, total = re.fullmatch(r"Item (.*): about (\d+\.\d+)\..*", answer.texts["match"]).groups()
    prompt = template.messages(context)[1]["content"]
    parts = re.findall(r"[+-]?\d+\.\d+", said)
    for number in parts:
        assert f" {number}" in prompt
    inside = min(max(sum(map(float, parts)), scale.min), scale.max)
    assert float(total) == pytest.approx(inside, abs=1e-9)
    assert f"Together: {total}, about {Scale.text(answer.rating)}" in prompt or "sum" not in template.settings.facts
