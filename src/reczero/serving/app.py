"""The HTTP side: a FastAPI application over an `Engine`. What each request and answer looks like is in its OpenAPI."""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from fastapi.sse import format_sse_event
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException

from reczero import __version__
from reczero.data import Known
from reczero.errors import BadRequest, NotFound
from reczero.reasoning import Context, Scale

from .answering import Prediction
from .engine import Engine, Full, Job
from .guard import Guard, Metrics, problem
from .messages import (
    PREDICT_EXAMPLES,
    RECOMMEND_EXAMPLES,
    CandidateOut,
    HistoryEntryOut,
    HistoryOut,
    ItemsOut,
    ModelOut,
    PredictIn,
    PredictionOut,
    Problem,
    RecommendIn,
    RecommendOut,
    ScaleOut,
    State,
    UsersOut,
)
from .predictor import Predictor, Recommendation, ranked
from .requests import told
from .strict import strict_json

PAGE = Path(__file__).parent / "page"
HEARTBEAT = 10.0  # seconds without an event after which a stream shows that it lives
MOST_FOUND = 100


class _StrictRequest(Request):
    async def json(self) -> Any:
        try:
            return await run_in_threadpool(strict_json, await self.body())
        except json.JSONDecodeError as error:
            raise HTTPException(400, f"the body is not JSON: {error.msg} at character {error.pos}") from error
        except UnicodeEncodeError as error:
            raise HTTPException(400, "the body holds half of a surrogate pair") from error
        except RecursionError as error:
            raise HTTPException(400, "the body is nested too deeply") from error
        except ValueError as error:
            raise HTTPException(400, f"the body is not JSON: {error}") from error


class _StrictRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Any]:
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return strictly


def create_app(
    predictor: Predictor, engine: Engine, *, key: str | None = None, time_limit: float = 120.0, local: bool = True
) -> FastAPI:
    """key: what clients must send as `Authorization: Bearer`. time_limit: seconds for a request, its waiting included.
    local: answer only requests that name this machine as their host, so that no page from elsewhere can ask by way of a
    user's browser."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await run_in_threadpool(engine.stop)

    app = FastAPI(
        title="reczero", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        summary="Ratings with their reasons.",
        responses={400: {"model": Problem}, 413: {"model": Problem}, 422: {"model": Problem}},
    )  # fmt: skip
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(BadRequest, _bad_request)
    app.add_exception_handler(StarletteHTTPException, _http_error)
    server = _Server(predictor, engine, time_limit)
    app.add_middleware(Guard, metrics=server.metrics, key=key, local=local)
    locked = [Depends(HTTPBearer(auto_error=False))] if key else []  # for the OpenAPI; the guard does it
    denied: dict[int | str, dict[str, Any]] = {401: {"model": Problem}} if key else {}
    asking = APIRouter(route_class=_StrictRoute, dependencies=locked, responses=denied, tags=["predictions"])
    refused: dict[int | str, dict[str, Any]] = {
        404: {"model": Problem, "description": "no such user or item"},
        429: {"model": Problem, "description": "the queue is full; Retry-After says when to come again"},
        502: {"model": Problem, "description": "the model failed"},
        504: {"model": Problem, "description": "not answered within the time limit"},
    }

    @asking.post(
        "/v1/predict", response_model=PredictionOut, responses=_streamed(refused, "section", "prediction", "error")
    )
    async def predict(request: Request, asked: PredictIn) -> Any:
        """What would this user give this item, and why? With `stream`, the events are `section` ({name, text}), and in
        the end `prediction` or `error`."""
        context = await run_in_threadpool(predictor.context, asked)
        if asked.stream:
            return server.stream([context], None, asked)
        (prediction,) = await server.answer(request, [context], together=False)
        return server.shown(prediction)

    @asking.post(
        "/v1/recommend",
        response_model=RecommendOut,
        responses=_streamed(refused, "candidate", "recommendations", "error"),
    )
    async def recommend(request: Request, asked: RecommendIn) -> Any:
        """Which candidates would this user like best, and why? With `stream`, the events are `candidate` as each is
        answered, in any order, and in the end `recommendations` or `error`."""
        named, contexts = await run_in_threadpool(predictor.candidates, asked)
        if asked.stream:
            return server.stream(contexts, named, asked)
        return server.list_of(named, await server.answer(request, contexts, together=True), asked.k)

    looking = APIRouter(dependencies=locked, responses=denied, tags=["what there is"])

    @looking.get("/v1/model")
    async def model() -> ModelOut:
        """What is served."""
        template, data = predictor.answering.template, predictor.known
        return ModelOut(
            model=predictor.answering.name,
            scale=ScaleOut(**predictor.scale.to_dict()),
            sections=[section.name for section in template.thinking],
            history=template.settings.history,
            data=data.data.name if data else None,
            version=__version__,
        )

    none: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "no data set, or no such user"}}
    text, limit = Query(max_length=200), Query(ge=1, le=MOST_FOUND)

    @looking.get("/v1/users", responses=none)
    def users(q: Annotated[str, text] = "", limit: Annotated[int, limit] = 20) -> UsersOut:
        """Users of the data set whose id holds `q`, the most active first."""
        return UsersOut.model_validate({"users": _data(predictor).find_users(q, limit)})

    @looking.get("/v1/items", responses=none)
    def items(q: Annotated[str, text] = "", limit: Annotated[int, limit] = 20) -> ItemsOut:
        """Items of the data set whose title or id holds `q`, the most often rated first."""
        return ItemsOut.model_validate({"items": _data(predictor).find_items(q, limit)})

    @looking.get("/v1/users/{user_id:path}", responses=none)
    def history(user_id: str) -> HistoryOut:
        """The newest ratings of a user of the data set."""
        known = _data(predictor).user(user_id)
        shown = [
            HistoryEntryOut(title=entry.item.title, rating=entry.rating, categories=list(entry.item.categories))
            for entry in known.user_history
        ]
        return HistoryOut(user_id=user_id, average=known.user_avg, count=known.user_count, history=shown)

    @looking.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(server.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/healthz", tags=["state"])
    @app.head("/healthz", include_in_schema=False)
    async def healthz() -> State:
        """That the process answers."""
        return State(status="ok")

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", tags=["state"], responses={503: {"model": Problem, "description": "not now"}})
    async def readyz() -> State:
        """That predictions are being made."""
        if not engine.alive:
            raise HTTPException(503, "not ready")
        return State(status="ready")

    app.include_router(asking)
    app.include_router(looking)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    _describe(app, predictor.scale)
    return app


def _streamed(refused: dict[int | str, dict[str, Any]], *events: str) -> dict[int | str, dict[str, Any]]:
    """The answers of an operation that can stream, as OpenAPI 3.2 describes server-sent events."""
    data = {"type": "string", "contentMediaType": "application/json"}
    event = {
        "type": "object",
        "required": ["event", "data"],
        "properties": {"event": {"enum": list(events)}, "data": data},
    }
    return {200: {"content": {"text/event-stream": {"itemSchema": event}}}, **refused}


def _describe(app: FastAPI, scale: Scale) -> None:
    """Examples in the OpenAPI, on the schemas where clients' tools look for them, and the bounds of ratings."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        schema = make()
        schemas = schema["components"]["schemas"]
        for name, examples in (("PredictIn", PREDICT_EXAMPLES), ("RecommendIn", RECOMMEND_EXAMPLES)):
            schemas[name]["examples"] = examples
            for asked in (name, "Rated", "Review", "Asked"):
                for field in ("rating", "average", "user_average"):
                    given = schemas[asked]["properties"].get(field, {})
                    for kind in given.get("anyOf", [given]):
                        if kind.get("type") == "number":
                            kind |= {"minimum": scale.min, "maximum": scale.max}
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _data(predictor: Predictor) -> Known:
    if predictor.known is None:
        raise NotFound("there is no data set here")
    return predictor.known


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if found and found[0]["loc"] == ("body",) and found[0]["type"] != "value_error":
        return problem(422, "the body must be a JSON object, sent with Content-Type: application/json")
    return problem(422, told(found))


async def _bad_request(_: Request, error: Exception) -> JSONResponse:
    return problem(404 if isinstance(error, NotFound) else 422, str(error))


async def _http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StarletteHTTPException)
    return problem(error.status_code, str(error.detail), error.headers)


class _Server:
    """From requests to jobs and back."""

    def __init__(self, predictor: Predictor, engine: Engine, time_limit: float):
        self.predictor, self.engine, self.time_limit = predictor, engine, time_limit
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry, engine)

    def shown(self, prediction: Prediction) -> PredictionOut:
        return PredictionOut(
            rating=prediction.rating, parsed=prediction.parsed, reasoning=prediction.reasoning,
            distribution=prediction.distribution, expected=prediction.expected,
            scale=ScaleOut(**self.predictor.scale.to_dict()), tokens=prediction.details["tokens"],
            model=self.predictor.answering.name, fault=prediction.details["fault"],
        )  # fmt: skip

    def list_of(
        self, named: Sequence[tuple[str | None, str]], predictions: Sequence[Prediction], k: int
    ) -> RecommendOut:
        best = [self._candidate(one) for one in ranked(named, predictions, k)]
        return RecommendOut(recommendations=best, considered=len(named))

    def _candidate(self, one: Recommendation) -> CandidateOut:
        score = one.prediction.score
        prediction = self.shown(one.prediction)
        return CandidateOut(
            id=one.id, title=one.title, score=score if math.isfinite(score) else None, prediction=prediction
        )

    def _submit(self, contexts: Sequence[Context], together: bool, streams: bool) -> tuple[Job, asyncio.Queue]:
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()

        def tell(event: tuple[Any, ...]) -> None:
            try:
                loop.call_soon_threadsafe(events.put_nowait, event)
            except RuntimeError:  # the loop has ended: nobody waits any more
                job.gone.set()

        job = Job(contexts, tell, streams=streams, together=together)
        try:
            self.engine.submit(job)
        except Full as full:
            raise HTTPException(429, "too many requests are waiting", {"Retry-After": str(full.seconds)}) from full
        return job, events

    async def answer(self, request: Request, contexts: Sequence[Context], together: bool) -> list[Prediction]:
        """The predictions, in the order of the contexts; given up when the client leaves or the time is over."""
        job, events = self._submit(contexts, together, streams=False)
        found: dict[int, Prediction] = {}
        watching = asyncio.create_task(_watch(request, events))
        try:
            async with asyncio.timeout(self.time_limit):
                while len(found) < len(contexts):
                    kind, *said = await events.get()
                    if kind != "prediction":
                        raise _failure(kind)
                    found[said[0]] = said[1]
        except TimeoutError as error:
            raise HTTPException(504, f"not answered within {self.time_limit:g} seconds") from error
        finally:
            job.gone.set()
            watching.cancel()
        return [found[place] for place in range(len(contexts))]

    def stream(
        self, contexts: Sequence[Context], named: Sequence[tuple[str | None, str]] | None, asked: Any
    ) -> StreamingResponse:
        """named: of candidates, whose list stands in the end."""
        job, events = self._submit(contexts, named is not None, streams=named is None)
        body = self._events(job, events, named, getattr(asked, "k", 1))
        return StreamingResponse(body, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    async def _events(
        self, job: Job, events: asyncio.Queue, named: Sequence[tuple[str | None, str]] | None, k: int
    ) -> AsyncIterator[bytes]:
        found: dict[int, Prediction] = {}
        ends = time.monotonic() + self.time_limit
        try:
            while len(found) < len(job.contexts):
                wait = min(HEARTBEAT, ends - time.monotonic())
                if wait <= 0:
                    yield _event("error", {"detail": f"not answered within {self.time_limit:g} seconds"})
                    return
                try:
                    kind, *said = await asyncio.wait_for(events.get(), wait)
                except TimeoutError:
                    yield format_sse_event(comment="waiting")
                    continue
                if kind == "section":
                    yield _event("section", {"name": said[1], "text": said[2]})
                elif kind == "prediction":
                    place, prediction = said
                    found[place] = prediction
                    if named is not None:
                        one = self._candidate(Recommendation(named[place][0], named[place][1], prediction))
                        yield _event("candidate", one.model_dump() | {"place": place})
                    else:
                        yield _event("prediction", self.shown(prediction).model_dump())
                else:
                    yield _event("error", {"detail": _failure(kind).detail})
                    return
            if named is not None:
                ordered = [found[place] for place in range(len(named))]
                yield _event("recommendations", self.list_of(named, ordered, k).model_dump())
        finally:
            job.gone.set()


def _event(name: str, data: Any) -> bytes:
    return format_sse_event(event=name, data_str=json.dumps(data, ensure_ascii=False, allow_nan=False))


def _failure(kind: str) -> HTTPException:
    return (
        HTTPException(499, "the client left") if kind == "left" else HTTPException(502, "the model failed; try again")
    )


async def _watch(request: Request, events: asyncio.Queue) -> None:
    """Puts ("left",) when the client does not wait any more."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    await events.put(("left",))
