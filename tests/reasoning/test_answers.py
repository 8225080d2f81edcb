"""Parser and reward: truth tables by hand, and arbitrary text."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reczero.reasoning import Scale, Template, TemplateSettings, parse, score_text

THINK = Template()
GOOD = "<analyze user>u</analyze user>\n<analyze item>i</analyze item>\n<match>m</match>\n<rate>4</rate>"
TAGS = [tag for section in THINK.sections for tag in (section.open, section.close)]
VARIANTS = ["think", "single", "direct"]
SCALES = [Scale(), Scale(1, 10, 1), Scale(0.5, 5, 0.5), Scale(-10, 10, 0.25)]


def template(variant="think", scale=None, **settings):
    return Template(TemplateSettings(variant=variant, **settings), scale or Scale())


def test_reads_a_well_formed_answer():
    answer = parse(GOOD, THINK)
    assert answer.rating == 4 and answer.well_formed and answer.fault is None
    assert answer.texts == {"analyze_user": "u", "analyze_item": "i", "match": "m"}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "exactly once"),
        (GOOD.replace("<rate>4</rate>", ""), "exactly once"),
        (GOOD + "<rate>4</rate>", "exactly once"),
        (GOOD.replace("</match>", ""), "exactly once"),
        (GOOD.replace("<match>m</match>\n", "") + "<match>m</match>", "out of order"),
        (GOOD.replace("<match>m</match>", "</match>m<match>"), "out of order"),
        ("<analyze user><analyze item>i</analyze item></analyze user><match>m</match><rate>4</rate>", "out of order"),
        (GOOD.replace(">u<", "> \n\t<"), "is empty"),
        (GOOD.replace("<rate>4", "<rate>"), "is empty"),
        *((GOOD.replace(">4<", f">{n}<"), "plain number") for n in
          ["four", "4/5", "nan", "inf", "6", "0", "-4", "4 5", "1e0", "04", "4.", ".5", "٤", "4,5", "9" * 10_000]),
    ],
)  # fmt: skip
def test_malformed_answers_have_no_rating_and_say_why(text, fault):
    answer = parse(text, THINK)
    assert answer.rating is None and fault in answer.fault
    assert score_text(text, 4, THINK).total == -0.5


def test_decimals_and_text_outside_the_tags_are_accepted():
    assert parse("Sure! " + GOOD.replace(">4<", "> 3.75 <") + " Bye.", THINK).rating == 3.75


@pytest.mark.parametrize(
    ("name", "rating", "truth", "scale", "total"),
    [
        ("paper", 4, 4, Scale(), 1.5),
        ("paper", 1, 5, Scale(), 0.5),
        ("paper", 3, 4, Scale(), 1.25),
        ("paper", 10, 1, Scale(1, 10, 1), 0.5),
        ("released-code", 4, 4, Scale(), 2.0),
        ("released-code", 1, 5, Scale(), 0.0),
        ("released-code", 3, 4, Scale(), 1.5),
        ("exact-match", 4, 4, Scale(), 1.5),
        ("exact-match", 3, 4, Scale(), 0.5),
        ("paper", None, 4, Scale(), -0.5),
        ("released-code", None, 4, Scale(), -1.0),
        ("exact-match", None, 4, Scale(), -0.5),
    ],
)
def test_rewards_by_hand(name, rating, truth, scale, total):
    made = template(scale=scale)
    text = "nothing" if rating is None else made.write({"analyze_user": "u", "analyze_item": "i", "match": "m"}, rating)
    reward = score_text(text, truth, made, name)
    assert reward.total == pytest.approx(total) and reward.total == pytest.approx(reward.form + reward.answer)
    assert reward.abs_error == (None if rating is None else abs(rating - truth))


pieces = st.lists(
    st.one_of(st.sampled_from([*TAGS, "<think>", "</think>", "4", "3.5", "\0", "\n", "Assistant:"]), st.text())
)


@given(pieces.map("".join), st.sampled_from(VARIANTS), st.sampled_from(SCALES), st.data())
def test_never_raises_and_never_rewards_what_is_malformed(text, variant, scale, data):
    made = template(variant, scale)
    answer = parse(text, made)
    truth = data.draw(st.sampled_from(scale.grid()))
    rewards = {name: score_text(text, truth, made, name) for name in ("paper", "released-code", "exact-match")}
    if answer.rating is None:
        assert answer.fault and all(r.total < 0 and r.abs_error is None for r in rewards.values())
    else:
        assert scale.min <= answer.rating <= scale.max
        ends = [text.index(s.open) for s in made.sections]
        assert ends == sorted(ends) and all(text.count(s.open) == text.count(s.close) == 1 for s in made.sections)
        assert all(math.isfinite(r.total) and r.form > 0 for r in rewards.values())


inside = st.text(st.characters(exclude_characters="<>", exclude_categories=["C"]), min_size=1).filter(
    lambda t: t.strip()
)


@given(st.sampled_from(VARIANTS), st.sampled_from(SCALES), st.data())
def test_what_the_template_writes_the_parser_reads(variant, scale, data):
    made = template(variant, scale)
    texts = {section.name: data.draw(inside) for section in made.thinking}
    rating = data.draw(st.sampled_from(scale.grid()))
    answer = parse(made.write(texts, rating), made)
    assert answer.rating == pytest.approx(rating)
    assert answer.texts == {name: text.strip() for name, text in texts.items()}


def test_grids():
    assert Scale().grid() == (1, 2, 3, 4, 5)
    assert Scale(0.5, 5, 0.5).grid()[:3] == (0.5, 1, 1.5) and len(Scale(1, 10, 1).grid()) == 10
    assert Scale(0, 1, 0.1).grid()[3] == 0.3
    with pytest.raises(ValueError):
        Scale(5, 1, 1)
