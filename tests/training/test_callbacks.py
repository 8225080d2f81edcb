"""Which checkpoint is kept, and when a stage stops."""

from types import SimpleNamespace

import pytest
import torch

from reczero.evaluation.choice import rank
from reczero.training.callbacks import IDLE, Journal, Pace, Watch
from reczero.training.processes import Processes


def validated(parse_rate: float, mae: float, rmse: float = 1.0) -> dict[str, float]:
    return {"mae": mae, "rmse": rmse, "parse_rate": parse_rate, "mode_share": 0.5}


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (validated(1.0, 0.7), validated(1.0, 0.8)),
        (validated(1.0, 0.8, 0.9), validated(1.0, 0.8, 1.0)),
        (validated(0.95, 0.7), validated(1.0, 0.8)),  # usable, both: the error decides
        (validated(0.95, 0.9), validated(0.52, 0.7)),  # failures are scored by the median, and err little
        (validated(0.6, 0.9), validated(0.5, 0.7)),
    ],
)
def test_a_policy_that_fails_often_is_never_preferred_for_its_error(better, worse):
    assert rank(better) < rank(worse)


def test_a_stage_whose_steps_have_no_gradient_any_more_ends_and_stays_over(tmp_path):
    said = []

    def watch() -> Watch:
        journal, processes = Journal(tmp_path / "metrics.jsonl"), Processes(0, 1, torch.device("cpu"))
        return Watch(journal, lambda: validated(1.0, 0.8), lambda *_: None, said.append, Pace(100), processes)

    def train(first: int, norms: list[float]) -> list[bool]:
        callback, stops = watch(), []
        for step, norm in enumerate(norms, first):
            control = SimpleNamespace(should_training_stop=False)
            state = SimpleNamespace(global_step=step, max_steps=99)
            callback.on_log(None, state, control, logs={"loss": 0.0, "grad_norm": norm})
            stops.append(control.should_training_stop)
        return stops

    assert train(1, [0.3, 0.0, 0.0, 0.1, *[0.0] * (IDLE - 1)]) == [False] * (IDLE + 3)
    assert not watch().over()
    assert train(IDLE + 4, [0.0]) == [True]  # a resumed stage counts on
    assert watch().over() and any("validation_mae" in line for line in said)  # the last model is a candidate too


def test_the_best_is_kept_and_a_resumed_stage_knows_it(tmp_path):
    kept = []
    answers = [
        validated(0.5, 0.7),
        validated(0.96, 0.9),
        validated(1.0, 0.8),
        validated(0.8, 0.1),
        validated(1.0, 0.85),
    ]
    processes = Processes(0, 1, torch.device("cpu"))

    def watch(pace: Pace) -> Watch:
        return Watch(
            Journal(tmp_path / "metrics.jsonl"), lambda: answers.pop(0), lambda step, _: kept.append(step),
            lambda line: None, pace, processes,
        )  # fmt: skip

    def train(first: int, last: int, pace: Pace) -> bool:
        callback, control = watch(pace), SimpleNamespace(should_training_stop=False)
        for step in range(first, last + 1):
            state = SimpleNamespace(global_step=step, max_steps=9)
            callback.on_log(None, state, control, logs={"loss": 1.0})
        return control.should_training_stop

    assert not train(1, 3, Pace(validation_steps=1, patience=2))
    assert kept == [1, 2, 3]
    assert train(4, 5, Pace(validation_steps=1, patience=2))  # two validations without a better one
    assert kept == [1, 2, 3]
    answers += [validated(2.0, 0.5), validated(0.5, 1.0)]
    assert not train(6, 7, Pace(validation_steps=1, keep_last=True))
    assert kept == [1, 2, 3, 6, 7]
