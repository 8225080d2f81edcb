"""How probable the profile writer finds each rating: learned from training rows, honest about what it has not seen."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from reczero.evaluation.belief import Belief
from reczero.reasoning import Context, Item, Scale, Standing, Template, TemplateSettings
from reczero.teachers.base import Task
from reczero.teachers.profile import ProfileWriter
from reczero.teachers.traces import read_traces

FACTS = TemplateSettings(instructions="brief", history=0, opinions=0, facts=("spread", "affinity", "sum"))


def drawn(rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Estimates, spreads, and ratings that are the estimate and a normal error as wide as the spread, on 1 to 5."""
    draw = np.random.default_rng(0)
    estimates, spreads = draw.uniform(1.5, 4.5, rows), draw.uniform(0.4, 1.4, rows)
    return estimates, spreads, np.clip(np.round(draw.normal(estimates, spreads)), 1, 5)


def test_it_finds_what_the_ratings_were_drawn_from():
    estimates, spreads, ratings = drawn(30_000)
    belief = Belief.fit(estimates, spreads, ratings, Scale())
    grid = np.arange(1, 6)
    low, high = belief.of([2.0, 4.0], [0.8, 0.8])
    narrow, wide = belief.of([3.0, 3.0], [0.4, 1.4])
    assert low @ grid == pytest.approx(2.05, abs=0.1) and high @ grid == pytest.approx(3.95, abs=0.1)
    assert narrow[2] > 0.55 > 0.4 > wide[2]
    assert np.allclose(belief.of(estimates[:50], spreads[:50]).sum(1), 1)


def test_a_rating_never_seen_is_improbable_and_not_impossible():
    belief = Belief.fit(
        [1.0, 2.0, 3.0, 4.0], [1.0, None, 1.0, 1.0], np.array([2.0, 2.0, 4.0, 4.0]), Scale(0.0, 5.0, 0.5)
    )
    (found,) = belief.of([2.0], [None])
    assert len(found) == 11 and found.sum() == pytest.approx(1) and 0 < found[9] < 1e-4 < found[4]


def test_ratings_that_are_all_alike():
    belief = Belief.fit([1.0, 2.0], [1.0, 1.0], np.array([3.0, 3.0]), Scale())
    assert belief.of([4.0], [None])[0, 2] > 0.999 and belief.of([], []).shape == (0, 5)


def test_the_writer_says_what_it_believes_by_what_the_prompt_shows():
    estimates, spreads, ratings = drawn(2000)
    rows = zip(estimates, spreads, strict=True)
    contexts = [Context(Item("Heat"), (), (), 3.5, 9, 3.5, 9, standing=Standing(t, 0.0, s)) for t, s in rows]
    template = Template(FACTS)
    writer = ProfileWriter(template, 3.5)
    ((_, (attempt,)),) = next(writer.write([Task("a", contexts[0])]))
    assert attempt.belief is None
    writer.learn(contexts, ratings)
    tasks = [Task(str(i), context) for i, context in enumerate(contexts[:40])]
    said = [attempt.belief for written in writer.write(tasks) for _, (attempt,) in written]
    shown = [template.total(context) for context in contexts[:40]]
    assert np.corrcoef(np.array(said) @ np.arange(1, 6), shown)[0, 1] > 0.95
    # Two users whom the prompt shows alike are believed alike: the spread is shown with one decimal.
    one, other = (replace(contexts[0], standing=Standing(3.0, 0.0, spread)) for spread in (0.81, 0.84))
    beliefs = [
        attempt.belief for written in writer.write([Task("a", one), Task("b", other)]) for _, (attempt,) in written
    ]
    assert beliefs[0] == beliefs[1]
    assert list(ProfileWriter(template, 3.5).write([])) == []


def test_traces_from_before_beliefs_are_read(tmp_path):
    from reczero.teachers.teach import TRACES

    old = {name: kind for name, kind in TRACES.items() if name != "belief"}
    pl.DataFrame(schema=old).write_parquet(tmp_path / "traces.parquet")
    assert read_traces(tmp_path).schema["belief"] == pl.List(pl.Float64)
