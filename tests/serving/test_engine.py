"""The queue and the thread that decodes: what is accepted is answered, as it would be alone."""

import threading
import time

import pytest

from reczero.serving import Predictor
from reczero.serving.engine import Full, Job, LocalEngine
from reczero.serving.requests import PredictRequest, read


@pytest.fixture
def local(guided_dir):
    """A model of its own: while an engine runs, its model does nothing else."""
    return Predictor.from_pretrained(guided_dir).answering


@pytest.fixture
def engine(local):
    made = LocalEngine(local, queue=100, batch_size=4)
    made.start()
    yield made
    made.stop()


def contexts(predictor, count):
    return [
        predictor.context(
            read(
                PredictRequest,
                {"history": [{"title": f"F{n}", "rating": 1 + n % 5}] * (n % 4), "item": {"title": f"I{n}"}},
            )
        )
        for n in range(count)
    ]


class Client:
    """Waits for a job's events."""

    def __init__(self, contexts, **how):
        self.events, self.ended = [], threading.Event()
        self.job = Job(contexts, self.tell, **how)

    def tell(self, event):
        self.events.append(event)
        if event[0] in ("failed", "refused") or sum(e[0] == "prediction" for e in self.events) == len(
            self.job.contexts
        ):
            self.ended.set()

    def predictions(self):
        assert self.ended.wait(60), self.events
        found = {place: prediction for kind, place, prediction in (e for e in self.events if e[0] == "prediction")}
        return [found[place] for place in range(len(self.job.contexts))]


def test_everyone_gets_what_they_get_alone_whenever_they_come(engine, predictor):
    """More than a batch, in a trickle, a group of candidates in between."""
    asked = contexts(predictor, 21)
    clients = []
    for n, context in enumerate(asked):
        clients.append(Client([context], streams=n % 2 == 0))
        engine.submit(clients[-1].job)
        if n == 5:
            group = Client(asked[:15], together=True)
            engine.submit(group.job)
        time.sleep(0.01 * (n % 3))
    want = predictor.answering.answer(asked)
    for client, alone in zip(clients, want, strict=True):
        (given,) = client.predictions()
        assert (given.rating, given.reasoning) == (alone.rating, alone.reasoning)
        assert given.distribution == pytest.approx(alone.distribution, abs=1e-4)
    assert [one.reasoning for one in group.predictions()] == [one.reasoning for one in want[:15]]
    assert engine.predictions == 21 + 15 and engine.waiting == engine.under_way == 0


def test_sections_come_one_by_one_before_the_rating(engine, predictor):
    client = Client(contexts(predictor, 1), streams=True)
    engine.submit(client.job)
    (prediction,) = client.predictions()
    kinds = [event[0] for event in client.events]
    assert kinds == ["section"] * 3 + ["prediction"]
    assert {name: text for _, _, name, text in client.events[:3]} == prediction.reasoning


def test_who_leaves_frees_the_place(local, predictor):
    """Those who wait and those who are being answered."""
    engine = LocalEngine(local, queue=3, batch_size=1)
    asked = contexts(predictor, 12)
    waiting = [Client([context]) for context in asked[:3]]
    for client in waiting:
        engine.submit(client.job)
    with pytest.raises(Full) as full:
        engine.submit(Client([asked[3]]).job)
    assert 1 <= full.value.seconds <= 60
    waiting[0].job.gone.set()
    late = Client([asked[4]])
    engine.submit(late.job)
    engine.start()
    try:
        assert late.predictions() and waiting[1].predictions() and not waiting[0].events
        gone = Client([asked[5]], streams=True)
        engine.submit(gone.job)
        gone.job.gone.set()
        after = Client([asked[6]])
        engine.submit(after.job)
        assert after.predictions() and not any(event[0] == "prediction" for event in gone.events)
    finally:
        engine.stop()
    assert not engine.alive


def test_a_defect_fails_those_under_way_and_no_others(engine, local, predictor, monkeypatch):
    asked = contexts(predictor, 2)
    read_ = local.read
    monkeypatch.setattr(local, "read", lambda completion: 1 / 0)
    broken = Client([asked[0]])
    engine.submit(broken.job)
    assert broken.ended.wait(30) and broken.events == [("failed",)]
    monkeypatch.setattr(local, "read", read_)
    encode = local.encode
    monkeypatch.setattr(local, "encode", lambda context: [10**6])  # no such token: the prompt can't be computed
    broken = Client([asked[0]])
    engine.submit(broken.job)
    assert broken.ended.wait(30) and broken.events == [("failed",)]
    monkeypatch.setattr(local, "encode", encode)
    fine = Client([asked[1]])
    engine.submit(fine.job)
    assert fine.predictions() and engine.alive


def test_a_model_that_cannot_share_prompts_is_served_too(guided_dir, local, predictor):
    from reczero.rollout.opening import open_policy
    from reczero.serving.answering import Local

    policy = open_policy(str(guided_dir))
    policy.guided, policy.max_tokens = False, 8
    plain = Local(policy, "plain")
    plain.shares = False
    engine = LocalEngine(plain, batch_size=2)
    engine.start()
    try:
        clients = [Client([context]) for context in contexts(predictor, 3)]
        group = Client(contexts(predictor, 3), together=True)
        for client in (*clients, group):
            engine.submit(client.job)
        assert all(client.predictions()[0].details["fault"] for client in clients)
        assert len(group.predictions()) == 3
    finally:
        engine.stop()
