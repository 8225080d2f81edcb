"""Which traces are kept: the paper's rule, case by case, and what a second call asks for."""

import json

import polars as pl
import pytest

from reczero.errors import UserError
from reczero.reasoning import Context, HistoryEntry, Item, Scale, Template, TemplateSettings, parse
from reczero.recipes import TeacherRecipe
from reczero.teachers.base import Attempt, Teacher, prompt_of
from reczero.teachers.teach import GOOD, judge, kept_text, mentions_rating, teach

TEMPLATE = Template()


def answer(rating="4", user="Likes films.", item="[pos] witty [neg] long", match="It fits."):
    return (
        f"<analyze user>{user}</analyze user>\n<analyze item>{item}</analyze item>\n<match>{match}</match>\n"
        f"<rate>{rating}</rate>"
    )


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (answer(), GOOD),
        (answer("4.0"), GOOD),
        ("Certainly! " + answer() + "\nI hope this helps.", GOOD),
        (answer("3"), "wrong rating"),
        (answer("4.5"), "wrong rating"),
        (answer("6"), "malformed"),
        (answer("four"), "malformed"),
        (answer("4 stars"), "malformed"),
        (answer(match=""), "malformed"),
        (answer() + answer(), "malformed"),  # it stutters
        (answer()[:-7], "malformed"),  # it ends in a tag
        (answer()[:60], "malformed"),
        ("<html><body>502 Bad Gateway</body></html>", "malformed"),
        ("", "malformed"),
        (None, "no answer"),
    ],
)
def test_the_verdict_on_an_answer(text, verdict, told):
    assert judge(Attempt(text, None if text else "time-out"), 4.0, TEMPLATE, told=told).verdict.startswith(verdict)


@pytest.mark.parametrize(
    "phrase",
    [
        "Since the true rating is 4, it must fit.",
        "The actual rating was high.",
        "As I was told, the user liked it.",
        "The user gave it a 4.",
        "The user rated this 4 stars.",
        "They actually rated it well.",
        "The rating that was provided is 4.",
        "In hindsight a good match.",
        "The ground truth says so.",
        "You told me the score.",
    ],
)
def test_what_gives_away_that_it_was_told(phrase):
    assert mentions_rating(phrase)
    text = answer(match=phrase)
    assert judge(Attempt(text), 4.0, TEMPLATE, told=True).verdict == "mentions that it was told"
    assert judge(Attempt(text), 4.0, TEMPLATE).verdict == GOOD  # who was not told is only guessing


@pytest.mark.parametrize(
    "phrase",
    [
        "The user rated Alien 5 and Heat 2.",
        "Gives 3.6 on average; likes Drama (4.5).",
        "The average rating of 4.1 is above usual.",
        "Rated highly by others, the item is a true classic.",
        "The user gave similar films high ratings.",
    ],
)
def test_what_does_not(phrase):
    assert not mentions_rating(phrase)


def test_the_tolerance_is_inclusive_and_what_is_kept_has_the_truth():
    template = Template(scale=Scale(0, 10, 0.1))
    near = judge(Attempt(answer("7.3")), 7.0, template, tolerance=0.3)
    assert near.verdict == GOOD and judge(Attempt(answer("7.31")), 7.0, template, 0.3).verdict == "wrong rating"
    assert kept_text(near.answer, 7.0, template).endswith("<rate>7</rate>")


def test_a_kept_text_is_one_that_guided_decoding_could_write():
    told = parse("Sure!\n" + answer(match="a > b,\n\nso <b>yes</b>\t<|im_end|>") + "bye", TEMPLATE)
    text = kept_text(told, 4.0, TEMPLATE)
    assert text == answer(match="a › b, so ‹b›yes‹/b› ‹|im_end|›")
    assert parse(text, TEMPLATE).rating == 4.0


class Scripted(Teacher):
    """Answers as it is told to: `first` and `told` by example; fails as a kill would after `calls` tasks."""

    name = "scripted"

    def __init__(self, first, told=None, calls=10**6):
        self.first, self.told, self.calls, self.asked = first, told or {}, calls, []

    def write(self, tasks):
        for task in tasks:
            if self.calls == 0:
                raise KeyboardInterrupt
            self.calls -= 1
            self.asked.append((task.example_id, task.told))
            given = (self.first if task.told is None else self.told).get(task.example_id)
            if given is not None:
                yield [(task, [Attempt(text, None, 10, 5, 0.5, c) for c, text in enumerate(given)])]


def run(teacher, folder, truths, fingerprint="x", **settings):
    examples = pl.DataFrame({"example_id": [str(i) for i in range(len(truths))], "rating": truths})
    contexts = [Context(Item(f"Film {i}")) for i in range(len(truths))]
    made = TeacherRecipe(**settings)
    return teach(teacher, TEMPLATE, examples, contexts, made, fingerprint, folder, lambda _: None)


def test_both_attempts_their_verdicts_and_costs_are_written(tmp_path):
    first = {
        "0": [answer("4")],
        "1": [answer("2")],
        "2": [answer("2")],
        "3": ["nonsense"],
        "4": [answer("4", user="A.")],
        "5": [answer("4")],
    }
    told = {
        "1": [answer("5", match="It fits well.")],
        "2": [answer("5", match="The true rating is 5.")],
        "3": [answer("1")],
    }
    table = run(teacher := Scripted(first, told), tmp_path, [4.0, 5.0, 5.0, 4.0, 4.0, 4.0, 3.0])
    assert table["verdict"].to_list() == [
        "kept at once",
        "kept when told",
        "mentions that it was told",
        "wrong rating",
        "kept at once",
        "duplicate",
        "no answer yet",
    ]
    assert teacher.asked[-3:] == [("1", 5.0), ("2", 5.0), ("3", 4.0)]
    assert table["kept"].to_list() == [True, True, False, False, True, False, False]
    assert table["text"].is_not_null().to_list() == table["kept"].to_list()
    assert table["first_rating"].to_list() == [4, 2, 2, None, 4, 4, None]
    assert table["told_text"][1] == told["1"][0] and table["told_rating"][3] == 1
    assert table["cost"].to_list() == [0.5, 1, 1, 1, 0.5, 0.5, 0] and table["completion_tokens"][1] == 10
    assert pl.read_parquet(tmp_path / "traces.parquet").equals(table)
    counts = json.loads((tmp_path / "teach.json").read_text())["counts"]
    assert counts["kept at once"] == 2 and counts["no answer yet"] == 1 and sum(counts.values()) == 7


def test_not_told_where_the_recipe_says_so(tmp_path):
    table = run(teacher := Scripted({"0": [answer("2")]}), tmp_path, [4.0], retell=False)
    assert table["verdict"].item() == "wrong rating" and teacher.asked == [("0", None)]


def test_a_killed_call_goes_on_and_asks_nothing_twice(tmp_path):
    truths = [4.0] * 6
    first = {str(i): [answer("4" if i % 2 else "1", user=f"User {i}.")] for i in range(6)}
    told = {str(i): [answer("4", user=f"User {i}, told.")] for i in range(6)}
    whole = run(Scripted(first, told), tmp_path / "whole", truths)
    asked = []
    for calls in (2, 5, 10):
        teacher = Scripted(first, told, calls)
        try:
            table = run(teacher, tmp_path / "cut", truths)
        except KeyboardInterrupt:
            with open(tmp_path / "cut" / "attempts.jsonl", "a") as file:
                file.write('[["9", null, [{"te')  # a line that the kill cut off
        asked += teacher.asked
    assert table.equals(whole) and len(asked) == len(set(asked)) == 9
    run(again := Scripted({}, {}), tmp_path / "cut", truths)
    assert not again.asked


def test_what_was_left_out_is_asked_later(tmp_path):
    run(Scripted({"0": [answer()]}), tmp_path, [4.0, 4.0])
    table = run(teacher := Scripted({"1": [answer(user="B.")]}), tmp_path, [4.0, 4.0])
    assert teacher.asked == [("1", None)] and table["kept"].all()


def test_traces_made_otherwise_are_not_mixed(tmp_path):
    run(Scripted({"0": [answer()]}), tmp_path, [4.0])
    with pytest.raises(UserError, match="choose another --out"):
        run(Scripted({}), tmp_path, [4.0], fingerprint="y")


def test_of_several_good_answers_the_first_the_surest_or_the_most_unlike(tmp_path):
    samples = {
        "0": [answer(user="Likes long films.")],
        "1": [answer("1"), answer(user="Likes long films!"), answer(user="Odd words.")],
    }
    texts = {
        keep: run(Scripted(samples), tmp_path / keep, [4.0, 4.0], keep=keep)["text"][1]
        for keep in ("first", "confident", "diverse")
    }
    assert "long films!" in texts["first"] and "Odd" in texts["confident"] and "Odd" in texts["diverse"]
    table = pl.read_parquet(tmp_path / "first" / "traces.parquet")
    assert table["samples"].to_list() == [1, 3] and table["correct"].to_list() == [1, 2]


def test_balanced_over_ratings(tmp_path):
    truths = [1.0, 4.0, 4.0, 5.0, 5.0, 5.0]
    first = {str(i): [answer(f"{r:.0f}", user=f"User {i}.")] for i, r in enumerate(truths)}
    table = run(Scripted(first), tmp_path, truths, balance=True)
    assert table.filter("kept")["rating"].to_list() == [1.0, 4.0, 5.0]
    assert table["verdict"].to_list().count("surplus of its rating") == 3


def test_ratings_without_reasoning_are_no_duplicates(tmp_path):
    examples = pl.DataFrame({"example_id": ["0", "1"], "rating": [4.0, 4.0]})
    template = Template(TemplateSettings(variant="direct"))
    teacher = Scripted({"0": ["<rate>4</rate>"], "1": ["<rate>4</rate>"]})
    contexts = [Context(Item("A")), Context(Item("B"))]
    table = teach(teacher, template, examples, contexts, TeacherRecipe(), "x", tmp_path, lambda _: None)
    assert table["kept"].all()


def test_the_prompt_is_that_of_training_and_the_truth_is_only_added():
    from reczero.teachers.base import Task

    context = Context(Item("Alien"), (HistoryEntry(Item("Heat"), 5.0),), (), 5.0, 1)
    plain, told = prompt_of(TEMPLATE, Task("0", context)), prompt_of(TEMPLATE, Task("0", context, 3.5))
    assert plain == TEMPLATE.messages(context)
    assert told[:-1] == plain[:-1] and told[-1]["content"].startswith(plain[-1]["content"])
    assert "true rating is 3.5" in told[-1]["content"]
