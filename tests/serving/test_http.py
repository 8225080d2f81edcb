"""The HTTP side: in this process for what is asked, as a process of its own for how it starts and stops."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reczero.serving import Predictor, guard
from reczero.serving.app import create_app
from reczero.serving.engine import LocalEngine
from reczero.serving.strict import strict_json

HISTORY = [{"title": "Alien", "rating": 5}, {"title": "Speed", "rating": 2, "review": "Loud"}]
ASKED = {"history": HISTORY, "item": {"title": "Aliens", "average": 4.1, "count": 200}}


def client_of(app, **how):
    return TestClient(app, base_url="http://localhost", **how)


def app_of(guided_dir, table, queue=64, **how):
    predictor = Predictor.from_pretrained(guided_dir, table)
    return create_app(predictor, LocalEngine(predictor.answering, queue, 8), **how)


@pytest.fixture(scope="module")
def client(guided_dir, table):
    with client_of(app_of(guided_dir, table)) as made:
        yield made


def events(text):
    return [
        (re.search("^event: (.*)$", part, re.M)[1], json.loads(re.search("^data: (.*)$", part, re.M)[1]))
        for part in text.strip().split("\n\n")
        if not part.startswith(":")
    ]


def test_http_python_and_bulk_say_the_same(client, predictor, tmp_path):
    requests = [ASKED, {"user_id": "u1", "item_id": "i3"}, {"history": [], "item": {"title": "</rate><rate>5</rate>"}}]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(one) + "\n" for one in requests))
    from reczero.serving.bulk import Requests, predict_file

    rows = Requests(tmp_path / "asked.jsonl", predictor)
    predict_file(predictor, rows, tmp_path / "found.parquet", 8, print, print)
    import polars as pl

    table = pl.read_parquet(tmp_path / "found.parquet")
    for request, row in zip(requests, table.iter_rows(named=True), strict=True):
        answer = client.post("/v1/predict", json=request)
        assert answer.status_code == 200
        said, given = answer.json(), predictor.predict(**request)
        assert said["rating"] == given.rating == row["prediction"]
        assert said["reasoning"] == given.reasoning == {k: v for k, v in row["reasoning"].items() if v is not None}
        assert said["distribution"] == pytest.approx(given.distribution, abs=1e-4)
        assert row["distribution"] == pytest.approx(given.distribution, abs=1e-4)
        assert said["parsed"] and said["scale"] == {"min": 1, "max": 5, "step": 1} and said["fault"] is None


def test_streams(client):
    whole = client.post("/v1/predict", json=ASKED).json()
    answer = client.post("/v1/predict", json=ASKED | {"stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *sections, (kind, last) = events(answer.text)
    assert kind == "prediction" and last == whole | {"distribution": pytest.approx(whole["distribution"], abs=1e-4)} | {
        "expected": pytest.approx(whole["expected"], abs=1e-4)
    }
    assert [(name, said["name"]) for name, said in sections] == [
        ("section", name) for name in ("analyze_user", "analyze_item", "match")
    ]


def test_recommendations_whole_and_streamed(client, predictor):
    asked = {"history": HISTORY, "candidates": [{"id": f"f{n}", "title": f"Film {n}"} for n in range(6)], "k": 2}
    whole = client.post("/v1/recommend", json=asked).json()
    assert whole["considered"] == 6 and len(whole["recommendations"]) == 2
    want = predictor.recommend(HISTORY, asked["candidates"], k=2)
    assert [one["id"] for one in whole["recommendations"]] == [one.id for one in want]
    *each, (kind, last) = events(client.post("/v1/recommend", json=asked | {"stream": True}).text)
    assert kind == "recommendations" and [one["id"] for one in last["recommendations"]] == [one.id for one in want]
    assert sorted(said["place"] for _, said in each) == list(range(6)) and {name for name, _ in each} == {"candidate"}
    known = client.post("/v1/recommend", json={"user_id": "u1", "candidate_ids": ["i1", "i2"]}).json()
    assert {one["id"] for one in known["recommendations"]} == {"i1", "i2"}
    chosen = client.post("/v1/recommend", json={"history": HISTORY, "k": 3}).json()
    assert chosen["considered"] == 40 and len(chosen["recommendations"]) == 3
    nothing_new = client.post("/v1/recommend", json={"user_id": "u1"}).json()  # has rated every item
    assert nothing_new == {"recommendations": [], "considered": 0}
    assert events(client.post("/v1/recommend", json={"user_id": "u1", "stream": True}).text) == [
        ("recommendations", nothing_new)
    ]


def test_what_there_is(client):
    assert client.get("/v1/model").json()["sections"] == ["analyze_user", "analyze_item", "match"]
    assert client.get("/v1/users", params={"q": "u3"}).json() == {"users": [{"user_id": "u3", "count": 40}]}
    assert len(client.get("/v1/items", params={"limit": 3}).json()["items"]) == 3
    history = client.get("/v1/users/u3").json()
    assert history["count"] == 40 and len(history["history"]) == 10
    assert client.get("/v1/users/nobody").status_code == 404
    assert client.get("/v1/items", params={"limit": 1000}).status_code == 422
    assert client.get("/healthz").json() == {"status": "ok"} and client.get("/readyz").json() == {"status": "ready"}
    schema = client.get("/openapi.json").json()
    assert schema["components"]["schemas"]["PredictIn"]["examples"]
    for example in schema["components"]["schemas"]["PredictIn"]["examples"]:
        assert client.post("/v1/predict", json=example).status_code == 200
    assert 'reczero_requests_total{method="POST",route="/v1/predict"' in client.get("/metrics").text
    assert client.head("/").status_code == 200
    page = client.get("/")
    assert client.head("/healthz").status_code == 200
    assert page.status_code == 200 and "default-src 'self'" in page.headers["content-security-policy"]


def test_who_has_no_data_set_says_so(guided_dir):
    predictor = Predictor.from_pretrained(guided_dir)
    with client_of(create_app(predictor, LocalEngine(predictor.answering))) as client:
        assert client.get("/v1/model").json()["data"] is None and client.get("/v1/users").status_code == 404
        answer = client.post("/v1/predict", json={"user_id": "1", "item_id": "2"})
        assert answer.status_code == 422 and "no data set" in answer.json()["detail"]
        assert client.post("/v1/recommend", json={"history": HISTORY}).status_code == 422


def test_a_key_is_wanted_where_there_is_one(guided_dir, table):
    with client_of(app_of(guided_dir, table, key="k" * 20, local=False)) as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {'k' * 20}"}):
            for answer in (
                client.post("/v1/predict", json=ASKED, headers=headers),
                client.get("/metrics", headers=headers),
            ):
                assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
                assert "k" * 20 not in answer.text
        broken = client.post("/v1/predict", content=b"{", headers={"content-type": "application/json"})
        assert broken.status_code == client.get("/nothing").status_code == 401  # the key is looked at first
        headers = {"Authorization": f"Bearer {'k' * 20}"}
        assert client.post("/v1/predict", json=ASKED, headers=headers).status_code == 200
        assert client.get("/healthz").status_code == client.get("/").status_code == 200


def test_a_page_from_elsewhere_can_not_ask_by_way_of_the_users_browser(client):
    for host in (
        "evil.example", "evil.example:8000", "127.0.0.1.evil.example", "testserver", "evil@localhost", "localhost:abc",
        "[", "",
    ):  # fmt: skip
        assert client.post("/v1/predict", json=ASKED, headers={"host": host}).status_code == 400
    for host in ("localhost", "127.0.0.1:8000", "127.0.0.2", "[::1]:8000"):
        assert client.get("/healthz", headers={"host": host}).status_code == 200
    answer = client.options(
        "/v1/predict", headers={"origin": "https://evil.example", "access-control-request-method": "POST"}
    )
    assert answer.status_code == 405 and "access-control-allow-origin" not in answer.headers
    plain = client.post("/v1/predict", content=json.dumps(ASKED), headers={"content-type": "text/plain"})
    assert plain.status_code == 422 and "application/json" in plain.json()["detail"]


DEEP = "[" * 100_000
HOSTILE = [
    (b"", "must be a JSON object"),
    (b"{", "not JSON"),
    (b"null", "must be a JSON object"),
    (b"[]", "must be a JSON object"),
    (b'"text"', "must be a JSON object"),
    (DEEP.encode(), "nested too deeply"),
    (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, "nested too deeply"),
    (b'{"history": [], "history": [], "item": {"title": "a"}}', "twice"),
    (b'{"history": [], "item": {"title": "a", "title": "b"}}', "twice"),
    (b'{"history": [], "item": {"title": "a", "average": NaN}}', "NaN"),
    (b'{"history": [], "item": {"title": "a", "average": -Infinity}}', "Infinity"),
    (b'{"history": [], "item": {"title": "a", "average": 1e999}}', "too large"),
    (b'{"history": [], "item": {"title": "a", "count": ' + b"9" * 5_000 + b"}}", "too large"),
    (b'{"history": [], "item": {"title": "a", "count": 1e300}}', "item.count"),
    (b'{"history": [], "item": {"title": "\\ud800"}}', "surrogate"),
    (b'{"history": [], "item": {"title": "a"}, "\\udfff": 1}', "surrogate"),
    (b'{"history": [], "item": {"title": "\xff"}}', "UTF-8"),
    (json.dumps(ASKED).encode("utf-16"), "UTF-8"),
    (b'{"history": {"0": 1}, "item": {"title": "a"}}', "history"),
    (b'{"history": [], "item": {"title": ["a"]}}', "item.title"),
    (b'{"history": [], "item": {"title": 5}}', "item.title"),
    (b'{"history": [], "item": {"title": "a"}, "stream": "yes"}', "stream"),
    (b'{"user_id": "nobody", "item_id": "i1"}', "no user"),
    (b'{"user_id": "u1\\u0000", "item_id": "i1"}', "no user"),
    (b'{"history": [], "item": {"title": "' + b"x" * 10_000_000 + b'"}}', "larger than"),
    (
        b'{"history": [' + b'{"title": "a", "rating": 3},' * 1_500 + b'{"title": "a", "rating": 3}], "item_id": "i1"}',
        "1000",
    ),
]


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/recommend"])
@pytest.mark.parametrize(("body", "says"), HOSTILE, ids=[str(n) for n in range(len(HOSTILE))])
def test_hostile_bodies_are_refused_in_words(client, path, body, says):
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500, answer.text
    detail = answer.json()["detail"]
    assert len(detail) < 500 and not re.search(r"Traceback|/site-packages|reczero/|File \"", detail)
    if path == "/v1/predict":
        assert says in detail


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.binary().map(repr),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    ["history", "item", "title", "rating", "user_id", "item_id", "candidates", "k", "reviews"]
                )
                | st.text(),
                inner,
                max_size=5,
            )
        ),
        max_leaves=20,
    )
)
def test_any_json_gets_an_answer_that_is_no_defect(client, body):
    text = json.dumps(body)
    answer = client.post("/v1/predict", content=text.encode(), headers={"content-type": "application/json"})
    assert answer.status_code < 500 and isinstance(answer.json(), dict)


@given(st.text() | st.binary())
def test_strict_json_raises_nothing_else(text):
    with contextlib.suppress(ValueError, RecursionError):
        strict_json(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))


def test_a_queue_that_is_full_says_when_to_come_again(guided_dir, table):
    predictor = Predictor.from_pretrained(guided_dir, table)
    engine = LocalEngine(predictor.answering, queue=1, batch_size=1)
    go, begun, read = threading.Event(), threading.Event(), predictor.answering.read

    def long_under_way(completion):
        begun.set()
        assert go.wait(30)
        return read(completion)

    predictor.answering.read = long_under_way
    with client_of(create_app(predictor, engine)) as client:
        answers = []
        waiting = [
            threading.Thread(target=lambda: answers.append(client.post("/v1/predict", json=ASKED))) for _ in range(2)
        ]
        waiting[0].start()
        assert begun.wait(30)
        waiting[1].start()
        deadline = time.monotonic() + 30
        while engine.waiting < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        for body in (ASKED, ASKED | {"stream": True}):
            full = client.post("/v1/predict", json=body)
            assert full.status_code == 429 and int(full.headers["retry-after"]) >= 1, full.text
        go.set()
        for thread in waiting:
            thread.join()
        assert [answer.status_code for answer in answers] == [200, 200]


def test_the_time_limit(guided_dir, table):
    predictor = Predictor.from_pretrained(guided_dir, table)
    go, read = threading.Event(), predictor.answering.read
    predictor.answering.read = lambda completion: go.wait(30) and read(completion)
    with client_of(create_app(predictor, LocalEngine(predictor.answering), time_limit=0.5)) as client:
        assert client.post("/v1/predict", json=ASKED).status_code == 504
        ((kind, said),) = events(client.post("/v1/predict", json=ASKED | {"stream": True}).text)
        assert kind == "error" and "within 0.5 seconds" in said["detail"]
        go.set()
        while client.get("/metrics").text.count("reczero_queue_length 0.0") != 1:
            time.sleep(0.05)
        assert client.get("/readyz").status_code == 200


def test_a_body_has_one_deadline_however_it_drips(guided_dir, table, monkeypatch):
    monkeypatch.setattr(guard, "READ_SECONDS", 0.5)
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/predict", "query_string": b"", "headers": headers}
    sent = []

    async def receive():
        await asyncio.sleep(0.1)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def send(message):
        sent.append(message)

    began = time.monotonic()
    asyncio.run(app_of(guided_dir, table)(scope, receive, send))
    assert sent[0]["status"] == 408 and 0.4 < time.monotonic() - began < 5


def test_a_defect_shows_nothing_but_that_it_happened(guided_dir, table, caplog):
    predictor = Predictor.from_pretrained(guided_dir, table)
    with client_of(create_app(predictor, LocalEngine(predictor.answering)), raise_server_exceptions=False) as client:
        predictor.answering.read = lambda completion: 1 / 0
        answer = client.post("/v1/predict", json=ASKED)
        assert answer.status_code == 502 and answer.json() == {"detail": "the model failed; try again"}
        ((kind, said),) = [
            e for e in events(client.post("/v1/predict", json=ASKED | {"stream": True}).text) if e[0] == "error"
        ]
        assert said == {"detail": "the model failed; try again"}
        predictor.context = lambda asked: Path("/no/such/place").read_text()
        answer = client.post("/v1/predict", json=ASKED)
        assert answer.status_code == 500 and answer.json() == {"detail": "an internal error"}
    assert "/no/such/place" not in caplog.text and "Traceback" not in caplog.text


# --- a process of its own ---------------------------------------------------------------------------------------------


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def test_what_is_accepted_is_answered_before_it_stops(serving, guided_dir, table, predictor):
    want = predictor.predict(**ASKED).rating
    answers, started = [], threading.Barrier(13)
    with serving(str(guided_dir), "--data", str(table), "--batch-size", "2") as server:

        def ask():
            started.wait()
            answers.append(post(server.url + "/v1/predict", ASKED)["rating"])

        def accepted():
            with urllib.request.urlopen(server.url + "/metrics") as answer:
                lines = [line.split() for line in answer.read().decode().splitlines() if line[0] != "#"]
            state = {name: float(value) for name, value in lines}
            names = ("queue_length", "predictions_under_way", "predictions")
            return sum(state[f"reczero_{name}"] for name in names)

        clients = [threading.Thread(target=ask) for _ in range(12)]
        for thread in clients:
            thread.start()
        started.wait()
        deadline = time.monotonic() + 30
        while accepted() < 12 and time.monotonic() < deadline:
            pass
        server.process.send_signal(signal.SIGTERM)
        for thread in clients:
            thread.join(60)
        assert answers == [want] * 12
        assert server.process.wait(30) == 0
        with pytest.raises(urllib.error.URLError):
            post(server.url + "/v1/predict", ASKED)
    assert "Traceback" not in "".join(server.said) and "POST /v1/predict 200" in "".join(server.said)


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "reczero.cli.main", "serve", *arguments], capture_output=True, text=True,
        env={k: v for k, v in os.environ.items() if k != "RECZERO_API_KEY"} | environment, timeout=120,
    )  # fmt: skip


def test_mistakes_at_the_start_are_told(guided_dir):
    open_ = run(str(guided_dir), "--host", "0.0.0.0", "--port", "0")
    assert open_.returncode == 2 and "RECZERO_API_KEY" in open_.stderr
    short = run(str(guided_dir), "--port", "0", RECZERO_API_KEY="short")
    assert short.returncode == 2 and "at least 16" in short.stderr and "short" not in short.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = run(str(guided_dir), "--port", str(taken.getsockname()[1]))
    assert busy.returncode == 2 and "choose another --port" in busy.stderr
    assert run("no/such/model").returncode == 2
