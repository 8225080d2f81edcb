"""What the OpenAPI says is what is done: schemathesis asks whatever it allows, and much that it does not."""

import socket
import threading

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from reczero.serving import Predictor
from reczero.serving.app import create_app
from reczero.serving.engine import LocalEngine

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance, unsupported_method,
]  # fmt: skip
OPERATIONS = [
    "POST /v1/predict", "POST /v1/recommend", "GET /v1/model", "GET /v1/users", "GET /v1/items",
    "GET /v1/users/{user_id}", "GET /metrics", "GET /healthz", "GET /readyz",
]  # fmt: skip
NEVER_WRONG = OPERATIONS[2:3] + OPERATIONS[5:]  # take nothing, or any text


@pytest.fixture(scope="module")
def operations(guided_dir, table):
    """Of a real server, in a thread."""
    predictor = Predictor.from_pretrained(guided_dir, table)
    app = create_app(predictor, LocalEngine(predictor.answering))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        api = schemathesis.openapi.from_url(f"http://127.0.0.1:{listening.getsockname()[1]}/openapi.json")
        yield {operation.label: operation for result in api.get_all_operations() for operation in [result.ok()]}
        server.should_exit = True
        thread.join()


def test_all_are_tried(operations):
    assert set(operations) == set(OPERATIONS)


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("name", OPERATIONS)
def test_no_answer_is_a_defect_or_undocumented(operations, name, mode):
    if mode == GenerationMode.NEGATIVE and name in NEVER_WRONG:
        mode = GenerationMode.POSITIVE

    @settings(max_examples=100, suppress_health_check=list(HealthCheck), phases=[Phase.generate], database=None)
    @given(case=operations[name].as_strategy(generation_mode=mode))
    def ask(case):
        case.call_and_validate(checks=CHECKS)

    ask()
