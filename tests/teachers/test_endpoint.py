"""The teacher behind an endpoint: against a scripted server that fails in every way, and a real one."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from endpoint import transformers_server
from reczero.errors import UserError
from reczero.reasoning import Context, Item, Template
from reczero.recipes import EndpointRecipe
from reczero.teachers import endpoint
from reczero.teachers.base import Attempt, Task
from reczero.teachers.endpoint import EndpointTeacher

TASKS = [Task(str(i), Context(Item(f"Film {i}"))) for i in range(12)]


class Server(ThreadingHTTPServer):
    """Answers chat completions by `script`: (number of the request, body) -> a completion's text, or a callable that
    is given the handler and answers itself."""

    daemon_threads = True

    def __init__(self, script):
        self.script, self.requests, self.lock = script, [], threading.Lock()
        self.under_way = self.most_at_once = 0
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            number = len(self.server.requests)
            self.server.requests.append((body, self.headers.get("authorization")))
            self.server.under_way += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.under_way)
        try:
            reply = self.server.script(number, body)
            if callable(reply):
                reply(self)
            else:
                self.answer(reply)
        finally:
            with self.server.lock:
                self.server.under_way -= 1

    def answer(self, text, finish="stop", usage=(100, 20)):
        made = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}],
        }
        if usage:
            made["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
        self.reply(200, json.dumps(made))

    def reply(self, status, text, kind="application/json", **headers):
        try:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(text.encode())))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(text.encode())
        except (BrokenPipeError, ConnectionResetError):  # the client has given up
            pass

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(script):
        servers.append(Server(script))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(endpoint, "_BACK_OFF", lambda _: 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def teacher(server, folder, **settings):
    made = EndpointRecipe(**{"model": "m", "base_url": server.url, "timeout": 5, **settings})
    return EndpointTeacher(Template(), made, folder / "cache", folder / "spent.jsonl")


def write(made, tasks=TASKS):
    return {task.example_id: attempts for written in made.write(tasks) for task, attempts in written}


def test_every_task_is_answered_with_few_at_once_and_the_key(serve, tmp_path):
    def slow(number, body):
        time.sleep(0.05)
        return body["messages"][-1]["content"][-40:]

    server = serve(slow)
    answers = write(teacher(server, tmp_path, concurrency=3, temperature=0.5, max_tokens=7, extra={"top_k": 4}))
    assert set(answers) == {task.example_id for task in TASKS} and server.most_at_once == 3
    body, key = server.requests[0]
    assert key == "Bearer sk-secret"
    assert (body["model"], body["temperature"], body["max_tokens"], body["top_k"]) == ("m", 0.5, 7, 4)
    bodies = [body["messages"] for body, _ in server.requests]
    assert all(Template().messages(task.context) in bodies for task in TASKS)


def test_a_rerun_pays_nothing_and_another_question_does(serve, tmp_path):
    server = serve(lambda number, body: f"answer {number}")
    first = write(teacher(server, tmp_path))
    assert write(teacher(server, tmp_path)) == first and len(server.requests) == 12
    write(teacher(server, tmp_path, temperature=0.1), TASKS[:1])
    write(teacher(server, tmp_path), [Task("0", TASKS[0].context, told=4.0)])
    assert len(server.requests) == 14
    assert not any("sk-secret" in path.read_text() for path in (tmp_path / "cache").rglob("*.json"))


def test_several_samples_are_several_questions(serve, tmp_path):
    server = serve(lambda number, body: f"answer {body.get('seed', 0)}")
    settings = EndpointRecipe(model="m", base_url=server.url)
    made = EndpointTeacher(Template(), settings, tmp_path / "cache", tmp_path / "spent.jsonl", samples=3)
    answers = write(made, TASKS[:2])
    assert [a.text for a in answers["0"]] == ["answer 0", "answer 1", "answer 2"]


def busy(handler):
    handler.reply(429, '{"error": {"message": "slow down", "type": "rate_limit", "code": null}}')


def broken(handler):
    handler.reply(500, "oops", "text/plain")


def overloaded(handler):
    handler.reply(503, "<html>try later</html>", "text/html")


def cut_off(handler):
    handler.send_response(200)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"id": ')
    handler.close_connection = True


def silent(handler):
    time.sleep(1.0)
    handler.answer("too late")


@pytest.mark.parametrize("failure", [busy, broken, overloaded, cut_off, silent])
def test_what_passes_is_tried_again(serve, tmp_path, failure):
    server = serve(lambda number, body: failure if number in (0, 1) else "good")
    made = teacher(server, tmp_path, timeout=0.5, concurrency=1)
    (attempts,) = write(made, TASKS[:1]).values()
    assert attempts == [Attempt("good", None, 100, 20)] and len(server.requests) == 3
    # What may have been billed counts: a time-out, a broken connection, a gateway that gave up.
    assert made.spent["tokens"] == 120 if failure is busy else made.spent["tokens"] > 120


def test_it_waits_as_long_as_the_server_asks(serve, tmp_path):
    def later(handler):
        handler.reply(429, "{}", retry_after="1")

    server = serve(lambda number, body: later if number == 0 else "good")
    began = time.monotonic()
    write(teacher(server, tmp_path), TASKS[:1])
    assert time.monotonic() - began >= 1


PASSING = [
    lambda h: h.reply(200, "<html>Welcome</html>", "text/html"),
    lambda h: h.reply(200, "{not json"),
    lambda h: h.reply(200, '{"choices": []}'),
    lambda h: h.reply(200, '{"choices": [{}], "usage": {}}'),
    lambda h: h.reply(200, '{"choices": 7}'),
    lambda h: h.reply(200, '{"choices": [{"message": {"content": ["parts"]}}]}'),
    lambda h: h.reply(200, "null"),
]


@pytest.mark.parametrize("reply", PASSING)
def test_what_is_no_answer_is_left_out_and_asked_again(serve, tmp_path, reply):
    bad = Template().messages(TASKS[3].context)
    server = serve(lambda number, body: reply if body["messages"] == bad else "good")
    answers = write(teacher(server, tmp_path, retries=1, concurrency=1))
    assert "3" not in answers and len(answers) == len(TASKS) - 1
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="answers nothing"):  # where there is nothing else, it is said
        write(teacher(serve(lambda number, body: reply), tmp_path / "other", retries=0, concurrency=1))


def test_a_prompt_that_is_refused_while_others_are_answered_is_a_fault_of_its_own(serve, tmp_path):
    bad = Template().messages(TASKS[3].context)
    refuse = lambda h: h.reply(400, '{"error": {"message": "prompt too long"}}')  # noqa: E731
    server = serve(lambda number, body: refuse if body["messages"] == bad else "good")
    answers = write(teacher(server, tmp_path, retries=1, concurrency=1))
    assert answers["3"][0].text is None and "too long" in answers["3"][0].fault


@pytest.mark.parametrize(
    "usage", ['"none"', '{"prompt_tokens": -1000000, "completion_tokens": 1}', '{"prompt_tokens": 1e40}']
)
def test_what_a_server_says_of_tokens_is_bounded(serve, tmp_path, usage):
    body = '{"choices": [{"message": {"content": "\\ud800 hi"}, "finish_reason": "stop"}], "usage": %s}' % usage  # noqa: UP031
    made = teacher(serve(lambda number, asked: lambda h: h.reply(200, body)), tmp_path, concurrency=1)
    answers = write(made)
    assert all(attempts[0].text == "? hi" for attempts in answers.values())  # what UTF-8 has no place for is replaced
    assert all(attempts[0].prompt_tokens > 0 for attempts in answers.values()) and made.spent["tokens"] > 0


def test_what_never_came_is_left_for_the_next_call(serve, tmp_path):
    bad = Template().messages(TASKS[3].context)
    server = serve(lambda number, body: broken if body["messages"] == bad else "good")
    answers = write(teacher(server, tmp_path, retries=1, concurrency=1))
    assert answers.keys() == {task.example_id for task in TASKS} - {"3"}


def test_a_server_that_goes_down_on_the_way_ends_it(serve, tmp_path):
    server = serve(lambda number, body: "good" if number < 4 else broken)
    with pytest.raises(UserError, match="answers nothing"):
        write(teacher(server, tmp_path, retries=0, concurrency=1))
    assert len(server.requests) < 10


def test_odd_usage_counts_as_the_most_it_could_be(serve, tmp_path):
    odd = '{"choices": [{"message": {"content": "good"}, "finish_reason": "stop"}], "usage": {}}'
    server = serve(lambda number, body: lambda h: h.reply(200, odd))
    made = teacher(server, tmp_path, max_tokens=50)
    (attempts,) = write(made, TASKS[:1]).values()
    assert attempts[0].text == "good" and attempts[0].completion_tokens == 50 and made.spent["tokens"] > 300


def test_truncated_and_empty_answers_are_told(serve, tmp_path):
    server = serve(
        lambda n, body: (lambda h: h.answer("cut", finish="length")) if n == 0 else (lambda h: h.answer(None))
    )
    answers = write(teacher(server, tmp_path, concurrency=1), TASKS[:2])
    assert answers["0"] == [Attempt("cut", "ended by length", 100, 20)]
    assert answers["1"][0].text is None


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, '{"error": {"message": "bad key"}}'),
        (404, '{"error": {"message": "no such model"}}'),
        (429, '{"error": {"message": "pay first", "code": "insufficient_quota"}}'),
    ],
)
def test_what_no_task_can_mend_ends_it_at_once(serve, tmp_path, status, body):
    server = serve(lambda number, _: lambda h: h.reply(status, body))
    with pytest.raises(UserError, match="refuses"):
        write(teacher(server, tmp_path, concurrency=1))
    assert len(server.requests) <= 2


def test_a_server_that_is_not_there(serve, tmp_path):
    server = serve(lambda *_: "x")
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="answers nothing"):
        write(teacher(server, tmp_path, retries=1, concurrency=2))


def test_nothing_to_ask_with(monkeypatch, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        EndpointTeacher(Template(), EndpointRecipe(model="m"), tmp_path, tmp_path / "spent.jsonl")


@pytest.mark.parametrize("usage", [(100, 20), None])
def test_the_budget_is_never_passed(serve, tmp_path, usage):
    """Whatever the answers cost, and if the server does not say, the most that they could have cost counts."""
    server = serve(lambda number, body: lambda h: h.answer("good", usage=usage))
    prices = {"price_in": 1.0, "price_out": 10.0, "max_tokens": 200}
    made = teacher(server, tmp_path, max_cost=0.005, concurrency=4, **prices)
    answers = write(made)
    spent = made.spent["cost"]
    assert 0 < len(answers) < 12 and 0 < spent <= 0.005
    assert sum(a.cost for (a,) in answers.values()) == pytest.approx(spent)
    again = teacher(server, tmp_path, max_cost=0.005, concurrency=4, **prices)  # holds over calls; the known is free
    assert len(write(again)) == len(answers) and again.spent["cost"] == pytest.approx(spent)
    more = teacher(server, tmp_path, max_cost=0.0085, concurrency=4, **prices)
    assert len(write(more)) > len(answers) and spent < more.spent["cost"] <= 0.0085
    (tmp_path / "b").mkdir()
    tokens = teacher(server, tmp_path / "b", max_total_tokens=2000, concurrency=4, max_tokens=200)
    assert 0 < len(write(tokens)) < 12 and tokens.spent["tokens"] <= 2000


def test_what_timed_out_counts_as_spent(serve, tmp_path):
    server = serve(lambda number, body: silent)
    made = teacher(server, tmp_path, timeout=0.3, retries=50, concurrency=1, max_total_tokens=6000, max_tokens=1000)
    assert write(made, TASKS[:1]) == {} and len(server.requests) < 6 and made.spent["tokens"] <= 6000


def test_a_request_whose_end_was_not_written_counts_whole(serve, tmp_path):
    """As after a kill in its midst."""
    (tmp_path / "spent.jsonl").write_text('["a", 1000, 900]\n["b", 900, 50]\n["b", 100, 20]\n["c", 7')
    server = serve(lambda number, body: "good")
    made = teacher(server, tmp_path, max_total_tokens=2500, max_tokens=200)
    assert made.spent["tokens"] == 1900 + 120
    assert write(made) == {} and not server.requests


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"max_cost": 1, "price_in": 1}, "price_in and price_out"),
        ({"extra": {"n": 4}}, "extra can't set n"),
        ({"extra": {"max_tokens": 9}}, "extra can't set max_tokens"),
    ],
)
def test_what_would_defeat_the_budget_is_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        EndpointRecipe(model="m", **settings)


@pytest.mark.timeout(280)
def test_a_real_server(tiny_model_dir, tmp_path):
    """transformers' own, in a process of its own: a random model writes no form, but everything else is real."""
    with transformers_server(tiny_model_dir, tmp_path / "server.log") as url:
        settings = {"model": str(tiny_model_dir), "base_url": url, "max_tokens": 8, "concurrency": 2}
        made = EndpointTeacher(Template(), EndpointRecipe(**settings), tmp_path / "cache", tmp_path / "spent.jsonl")
        answers = write(made, TASKS[:3])
        assert set(answers) == {"0", "1", "2"}, (tmp_path / "server.log").read_text()[-3000:]
        for (attempt,) in answers.values():
            assert attempt.text and attempt.fault == "ended by length" and attempt.completion_tokens == 8
            assert attempt.prompt_tokens > 100
    assert (
        write(
            EndpointTeacher(Template(), EndpointRecipe(**settings), tmp_path / "cache", tmp_path / "spent.jsonl"),
            TASKS[:3],
        )
        == answers
    )
