"""A policy of ours as the teacher."""

import pytest

from reczero.models import load_policy
from reczero.reasoning import Context, Item, Scale, Template, TemplateSettings, parse
from reczero.rollout import Policy
from reczero.teachers import PolicyTeacher, Task

TASKS = [Task(str(i), Context(Item(f"Film {'x' * i}"))) for i in range(5)]


@pytest.fixture(scope="module")
def policy(tiny_model_dir):
    model, tokenizer = load_policy(tiny_model_dir)
    template = Template(TemplateSettings(instructions="brief", section_tokens=4), Scale())
    return Policy(model, tokenizer, template, True, 32)


def written(teacher, tasks):
    return {task.example_id: attempts for lot in teacher.write(tasks) for task, attempts in lot}


def test_samples_of_each_example_with_their_confidence(policy):
    answers = written(PolicyTeacher(policy, 3, 1.0, seed=0, batch=2), TASKS)
    assert list(answers) == ["0", "1", "2", "3", "4"] and all(len(a) == 3 for a in answers.values())
    for attempts in answers.values():
        assert len({a.text for a in attempts}) > 1
        for attempt in attempts:
            assert parse(attempt.text, policy.template).well_formed and attempt.fault is None
            assert attempt.confidence < 0 and attempt.completion_tokens > 0


def test_the_same_seed_gives_the_same_answers_and_a_resumed_call_too(policy):
    whole = written(PolicyTeacher(policy, 2, 1.0, seed=1, batch=2), TASKS)
    assert written(PolicyTeacher(policy, 2, 1.0, seed=1, batch=2), TASKS[2:]) == {k: whole[k] for k in ("2", "3", "4")}
    assert written(PolicyTeacher(policy, 2, 1.0, seed=2, batch=2), TASKS) != whole


def test_it_can_be_told_the_truth(policy):
    told = [Task(task.example_id, task.context, 4.0) for task in TASKS[:1]]
    teacher = PolicyTeacher(policy, 1, 1.0, seed=0, batch=2)
    plain, shown = (written(teacher, tasks)["0"][0] for tasks in (TASKS[:1], told))
    assert shown.prompt_tokens > plain.prompt_tokens


def test_a_free_answer_that_is_cut_off_is_told(tiny_model_dir):
    model, tokenizer = load_policy(tiny_model_dir)
    free = Policy(model, tokenizer, Template(TemplateSettings(instructions="brief")), False, 5)
    (attempts,) = written(PolicyTeacher(free, 1, 1.0, seed=0, batch=1), TASKS[:1]).values()
    assert attempts[0].fault == "truncated" and attempts[0].completion_tokens == 5
