"""A model behind an endpoint: a scripted one that streams and fails as servers do, and transformers' own."""

import json
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fastapi.testclient import TestClient

from endpoint import transformers_server
from reczero.errors import UserError
from reczero.serving import Predictor
from reczero.serving.app import create_app
from reczero.serving.bulk import Requests, predict_file
from reczero.serving.engine import RemoteEngine
from reczero.serving.requests import PredictRequest, read

TEXT = (
    "<analyze user>likes films</analyze user>\n<analyze item>[pos] good</analyze item>\n"
    "<match>well</match>\n<rate>4</rate>"
)
HISTORY = [{"title": "Alien", "rating": 5}]
ASKED = {"history": HISTORY, "item": {"title": "Aliens"}}
CHANCES = {"4": 0.6, "5": 0.2, " 3": 0.1, "x": 0.05}


class Server(ThreadingHTTPServer):
    """script: the request's body -> what is written, or a status to fail with."""

    daemon_threads = True

    def __init__(self):
        self.script, self.bodies, self.logprobs, self.delay = lambda body: TEXT, [], True, 0.0
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        self.send(200, {"object": "list", "data": [{"id": "big", "object": "model", "created": 0, "owned_by": "me"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        if body.get("logprobs") and not self.server.logprobs:
            self.send(400, {"error": {"message": "logprobs is not supported"}})
            return
        text = self.server.script(body)
        if isinstance(text, int):
            self.send(text, {"error": {"message": "no"}})
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        # "4" is a token of its own, as are the tags' ends.
        tokens = text.replace("<rate>", "|<rate>|").replace("</rate>", "|</rate>").replace("</", "|</").split("|")
        for number, token in enumerate(token for token in tokens if token):
            time.sleep(self.server.delay)
            top = CHANCES if token == "4" else {token: 1.0}
            entries = [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in top.items()]
            logprobs = {"content": [{"token": token, "logprob": 0.0, "bytes": None, "top_logprobs": entries}]}
            delta = {"content": token} | ({"role": "assistant"} if not number else {})
            choice = {"index": 0, "delta": delta, "finish_reason": None}
            self.chunk([choice | ({"logprobs": logprobs} if body.get("logprobs") else {})])
        self.chunk([{"index": 0, "delta": {}, "finish_reason": "stop"}])
        self.wfile.write(b"data: [DONE]\n\n")

    def chunk(self, choices):
        made = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "big", "choices": choices}
        self.wfile.write(f"data: {json.dumps(made)}\n\n".encode())
        self.wfile.flush()

    def send(self, status, body):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    made = Server()
    yield made
    made.shutdown()


def test_the_same_kind_of_result(server, guided_dir, table):
    predictor = Predictor.from_endpoint(server.url, guided_dir, data=table)
    given = predictor.predict(**ASKED)
    assert given.rating == 4 and given.reasoning["match"] == "well" and given.parsed
    assert given.distribution == pytest.approx([0, 0, 0.1 / 0.9, 0.6 / 0.9, 0.2 / 0.9])
    assert given.expected == pytest.approx(sum((k + 1) * p for k, p in enumerate(given.distribution)))
    (body,) = server.bodies
    local = Predictor.from_pretrained(guided_dir, table)
    context = local.context(read(PredictRequest, ASKED))
    assert body["messages"] == local.answering.template.messages(context)  # prompted as it was trained
    assert body["model"] == "big" and body["temperature"] == 0
    found = predictor.recommend(user_id="u1", candidate_ids=["i1", "i2", "i3"], k=2)
    assert [one.id for one in found] == ["i1", "i2"] and len(server.bodies) == 4


def test_servers_without_log_probabilities_and_malformed_answers(server):
    server.logprobs = False
    predictor = Predictor.from_endpoint(server.url, model="mine")
    given = predictor.predict(**ASKED)
    assert (given.rating, given.distribution, given.expected, given.score) == (4, None, None, 4)
    server.script = lambda body: "I would say five."
    given = predictor.predict(**ASKED)
    assert not given.parsed and given.rating is None and given.details["fault"] and given.score == -math.inf
    assert [body["model"] for body in server.bodies] == ["mine"] * 3  # asked for them once


def test_what_fails_is_told(server, monkeypatch):
    predictor = Predictor.from_endpoint(server.url)
    tries = []
    server.script = lambda body: tries.append(1) or (503 if len(tries) < 3 else TEXT)
    assert predictor.predict(**ASKED).parsed and len(tries) == 3
    server.script = lambda body: 404
    with pytest.raises(UserError, match=r"refuses \(404"):
        predictor.predict(**ASKED)
    with pytest.raises(UserError, match="cannot be reached"):
        Predictor.from_endpoint("http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match="is no address"):
        Predictor.from_endpoint("http://x:y/v1")


def test_served_and_in_bulk(server, guided_dir, table, tmp_path):
    predictor = Predictor.from_endpoint(server.url, guided_dir, data=table, concurrency=3)
    engine = RemoteEngine(predictor.answering, queue=2)
    with TestClient(create_app(predictor, engine, time_limit=30), base_url="http://localhost") as client:
        assert client.post("/v1/predict", json=ASKED).json()["rating"] == 4
        server.delay = 0.05
        text = client.post("/v1/predict", json=ASKED | {"stream": True}).text
        assert [line[7:] for line in text.splitlines() if line.startswith("event")] == ["section"] * 3 + ["prediction"]
        asked = {"user_id": "u1", "candidate_ids": ["i1", "i2", "i3", "i4", "i5"], "k": 5}
        assert client.post("/v1/recommend", json=asked).json()["considered"] == 5
        server.script = lambda body: 404
        answer = client.post("/v1/predict", json=ASKED)
        assert answer.status_code == 502 and server.url not in answer.text
        server.script = lambda body: TEXT
        statuses: list[int] = []
        clients = [
            threading.Thread(target=lambda: statuses.append(client.post("/v1/predict", json=ASKED).status_code))
            for _ in range(12)
        ]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
        assert set(statuses) == {200, 429} and statuses.count(200) >= 5
        assert client.get("/readyz").status_code == 200
    server.delay = 0
    (tmp_path / "asked.jsonl").write_text((json.dumps(ASKED) + "\n") * 5)
    rows = Requests(tmp_path / "asked.jsonl", predictor)
    found = predict_file(predictor, rows, tmp_path / "out.parquet", 2, print, print)
    assert found == {"rows": 5, "failed": 0, "malformed": 0, "first": None}


@pytest.mark.timeout(240)
def test_transformers_own_server(tiny_model_dir, tmp_path):
    """A random model writes no form, but everything else is real."""
    with transformers_server(tiny_model_dir, tmp_path / "server.log") as url:
        predictor = Predictor.from_endpoint(url, model=str(tiny_model_dir))
        predictor.answering.max_tokens = 8
        given = predictor.predict(**ASKED)
    assert given.details["text"] and not given.parsed and 1 <= given.details["tokens"] <= 8
