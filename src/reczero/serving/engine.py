"""Requests of many clients, answered together: a bounded queue, and one thread that decodes.

Predictions join those under way between two tokens and leave when they are done, so nobody waits for the slowest. The
candidates of one user are a group of their own, one group at a time beside the predictions.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from reczero.reasoning import Context, parse
from reczero.rollout.decoder import Completion, Decoding, Inference, inference

from .answering import TOGETHER, Local, Prediction
from .remote import Remote

log = logging.getLogger("reczero.serving")
PREFILL = 2_048  # tokens of new prompts between two steps, so that those under way need not wait long


class Full(Exception):
    """The queue has no place. seconds: when it may have one."""

    def __init__(self, seconds: int):
        super().__init__("the queue is full")
        self.seconds = seconds


@dataclass(eq=False)
class Job:
    """What one client waits for. tell: called in the engine's thread with each event, which must not block:

    ("section", place, name, text) as sections are closed, where `streams`; ("prediction", place, Prediction) for each
    context; ("failed",) in the end, where they can't be made. The contexts are such as `Answering.check` passes.
    """

    contexts: Sequence[Context]
    tell: Callable[[tuple[Any, ...]], None]
    streams: bool = False
    together: bool = False
    gone: threading.Event = field(default_factory=threading.Event)  # set by who no longer waits
    began: float = field(default_factory=time.monotonic)
    left: int = 0  # predictions to come
    _told: dict[int, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.left = len(self.contexts)

    def sections(self, place: int, texts: dict[str, str]) -> None:
        """Tells of the sections that are new."""
        told = self._told.setdefault(place, set())
        for name, text in texts.items():
            if name not in told:
                told.add(name)
                self.tell(("section", place, name, text))

    def done(self, place: int, prediction: Prediction) -> None:
        if self.streams:
            self.sections(place, prediction.reasoning)
        self.left -= 1
        self.tell(("prediction", place, prediction))


class Engine:
    """queue: jobs that may wait; batch_size: predictions that are decoded together."""

    def __init__(self, queue: int = 64, batch_size: int = 32):
        self.queue, self.batch_size = queue, batch_size
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self.under_way = 0  # predictions that are being written
        self._took: deque[float] = deque(maxlen=64)  # seconds of the latest jobs
        self.predictions = self.tokens = 0
        self._thread = threading.Thread(target=self._run, name="reczero-engine", daemon=True)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        return not self._stopping and self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        raise NotImplementedError

    def _wait(self, busy: bool = False) -> bool:
        """Waits until there is something to do; False where it is time to stop. busy: there is, without a job."""
        with self._changed:
            while not (busy or self._waiting or self._stopping):
                self._changed.wait()
            return not self._stopping

    def submit(self, job: Job) -> None:
        """Raises Full."""
        with self._changed:
            if len(self._waiting) >= self.queue:
                self._waiting = deque(other for other in self._waiting if not other.gone.is_set())
            if len(self._waiting) >= self.queue or self._stopping:
                raise Full(self._patience())
            self._waiting.append(job)
            self._changed.notify()

    def _patience(self) -> int:
        """Seconds until a place is free, from how long the latest took: at least 1, at most 60."""
        typical = sorted(self._took)[len(self._took) // 2] if self._took else 1.0
        return min(60, max(1, math.ceil(typical)))

    def stop(self) -> None:
        """Ends what is left, and waits for the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    def _finished(self, job: Job, prediction: Prediction) -> None:
        self.predictions += 1
        self.tokens += prediction.details["tokens"]
        if not job.left:
            self._took.append(time.monotonic() - job.began)


def engine_of(answering: Any, queue: int, batch_size: int) -> Engine:
    """The engine for who answers."""
    if isinstance(answering, Remote):
        return RemoteEngine(answering, queue)
    return LocalEngine(answering, queue, batch_size)


class RemoteEngine(Engine):
    """As many threads as the endpoint is asked at once; it does the batching."""

    def __init__(self, remote: Remote, queue: int = 64):
        super().__init__(queue)
        self.remote = remote
        self._pool = ThreadPoolExecutor(remote.concurrency, "reczero-endpoint")

    def _run(self) -> None:
        places = threading.Semaphore(self.remote.concurrency)
        while self._wait():
            places.acquire()  # the job stays in the queue until somebody has time for it
            with self._changed:
                job = self._waiting.popleft() if self._waiting else None
            if job is None or job.gone.is_set():
                places.release()
                continue
            for place, context in enumerate(job.contexts):
                if place:
                    places.acquire()
                self.under_way += 1
                self._pool.submit(self._ask, job, place, context).add_done_callback(lambda _: self._free(places))
        self._pool.shutdown(cancel_futures=True)

    def _free(self, places: threading.Semaphore) -> None:
        with self._changed:
            self.under_way -= 1
        places.release()

    def _ask(self, job: Job, place: int, context: Context) -> None:
        if job.gone.is_set():
            return
        template = self.remote.template

        def seen(text: str) -> None:
            job.sections(place, parse(text, template).texts)

        try:
            prediction = self.remote.ask(context, seen if job.streams else None, job.gone)
            if not job.gone.is_set():
                with self._changed:
                    job.done(place, prediction)
                    self._finished(job, prediction)
        except Exception as error:
            log.error("the endpoint failed: %s", type(error.__cause__ or error).__name__)
            if not job.gone.is_set():
                job.gone.set()
                job.tell(("failed",))


@dataclass(eq=False)
class _Lane:
    """Answers under way, each with the job and the place in it that it belongs to."""

    run: Decoding
    answers: dict[int, tuple[Job, int, Completion]] = field(default_factory=dict)

    def add(self, places: Sequence[tuple[Job, int]], prompts: Sequence[Sequence[int]], together: bool = False) -> None:
        made = self.run.add(prompts, together=together)
        for (job, place), completion in zip(places, made, strict=True):
            self.answers[id(completion)] = (job, place, completion)


class LocalEngine(Engine):
    """Decodes with a model in this process."""

    def __init__(self, local: Local, queue: int = 64, batch_size: int = 32):
        super().__init__(queue, batch_size)
        self.local = local

    def _run(self) -> None:
        if self.local.shares:
            self._run_shared()
        else:
            self._run_plain()

    def _run_shared(self) -> None:
        with inference(self.local.policy.model) as ready:
            singles, group = self._lane(ready, pooled=True), self._lane(ready)
            later: list[tuple[Job, int]] = []  # candidates of the group's job whose turn is yet to come
            while self._wait(busy=bool(singles.answers or group.answers or later)):
                try:
                    self._join(singles)
                    later = self._join_group(group, later)
                    for lane in (singles, group):
                        self._advance(lane)
                except Exception as error:  # memory, most likely: those under way can't go on, the next ones can
                    log.error("decoding failed: %s", type(error).__name__)
                    jobs = {id(job): job for lane in (singles, group) for job, _, _ in lane.answers.values()}
                    jobs |= {id(job): job for job, _ in later}
                    for job in jobs.values():
                        job.tell(("failed",))
                    singles, group, later = self._lane(ready, pooled=True), self._lane(ready), []
                self.under_way = len(singles.answers) + len(group.answers)

    def _lane(self, ready: Inference, pooled: bool = False) -> _Lane:
        return _Lane(self.local.policy.decoding(ready, pooled))

    def _take(self, together: bool, room: int) -> list[Job]:
        """The next jobs of one kind that somebody still waits for, at most `room`."""
        taken: list[Job] = []
        with self._changed:
            for job in list(self._waiting):
                if job.gone.is_set():
                    self._waiting.remove(job)
                elif job.together == together and len(taken) < room:
                    self._waiting.remove(job)
                    taken.append(job)
        return taken

    def _join(self, lane: _Lane) -> None:
        tokens = 0
        places: list[tuple[Job, int]] = []
        room = self.batch_size - len(lane.answers)
        while tokens < PREFILL and len(places) < room and (taken := self._take(False, 1)):
            places.append((taken[0], 0))
            tokens += len(self.local.encode(taken[0].contexts[0]))
        if places:
            self._add(lane, places)

    def _add(self, lane: _Lane, places: Sequence[tuple[Job, int]], together: bool = False) -> None:
        try:
            lane.add(places, [self.local.encode(job.contexts[place]) for job, place in places], together)
        except Exception:
            for job, _ in places:
                job.tell(("failed",))
            raise

    def _join_group(self, lane: _Lane, later: list[tuple[Job, int]]) -> list[tuple[Job, int]]:
        if lane.answers:
            return later
        if not later:
            later = [(job, place) for job in self._take(True, 1) for place in range(len(job.contexts))]
        later = [(job, place) for job, place in later if not job.gone.is_set()]
        if later:
            self._add(lane, later[:TOGETHER], together=True)
        return later[TOGETHER:]

    def _advance(self, lane: _Lane) -> None:
        for key, (job, _, completion) in list(lane.answers.items()):
            if job.gone.is_set():
                lane.run.leave(completion)
                del lane.answers[key]
        if not lane.answers:
            return
        lane.run.step()
        running = {id(row.completion) for row in lane.run.active}
        for key, (job, place, completion) in list(lane.answers.items()):
            if key not in running:
                prediction = self.local.read(completion)
                del lane.answers[key]
                job.done(place, prediction)
                self._finished(job, prediction)
            elif job.streams:
                job.sections(place, self.local.policy.read(completion)[1].texts)

    def _run_plain(self) -> None:
        """For models that can't share a prompt: a batch at a time, by transformers' `generate`."""
        while self._wait():
            jobs = self._take(True, 1) or self._take(False, self.batch_size)
            places = [(job, place) for job in jobs for place in range(len(job.contexts))]
            self.under_way = len(places)
            try:
                contexts = [job.contexts[place] for job, place in places]
                found = self.local.answer(contexts, batch_size=self.batch_size)
                for (job, place), prediction in zip(places, found, strict=True):
                    job.done(place, prediction)
                    self._finished(job, prediction)
            except Exception as error:
                log.error("decoding failed: %s", type(error).__name__)
                for job in jobs:
                    job.tell(("failed",))
            self.under_way = 0
