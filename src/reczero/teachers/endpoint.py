"""A language model behind an OpenAI-compatible endpoint as a teacher: bounded in requests at once, tokens and money."""

import hashlib
import json
import os
import signal
import threading
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import openai
import tenacity

from reczero.errors import UserError
from reczero.files import read_json, whole_lines, write_json, writing
from reczero.reasoning import Template
from reczero.recipes import EndpointRecipe

from .base import Attempt, Task, Teacher, Written, prompt_of

MOST_TOKENS = 10**9  # that a server may say an answer had
LONGEST_TOKEN = 64  # characters: an answer with more for each token that was asked for is cut off
LONGEST_WAIT = 120.0  # seconds between two tries, whatever the server asks for
# Worth another try; 408 is, too.
_PASSING = (openai.RateLimitError, openai.InternalServerError, openai.APIConnectionError, openai.ConflictError)
_FATAL = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)


class Budget:
    """What may be spent, in tokens and money; every request reserves the most that it could take before it starts.

    So the bound is never passed, whatever the answers cost. `ledger` is a file of what was reserved and used, so that
    it holds over calls and kills: a request whose end is not written counts with all that it reserved.
    """

    def __init__(self, settings: EndpointRecipe, ledger: Path):
        self.settings, self.ledger = settings, ledger
        self.spent_tokens, self.spent_cost = 0, 0.0
        self._held_tokens, self._held_cost, self._requests = 0, 0.0, 0
        self._changed = threading.Condition()
        for used in self._read():
            self._add(used)

    def _read(self) -> list[tuple[int, int]]:
        try:
            lines = [json.loads(line) for line in whole_lines(self.ledger)]
            return list({name: (int(prompt), int(completion)) for name, prompt, completion in lines}.values())
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{self.ledger}: damaged ({error}), so what was spent is not known; remove it, or --out."
            ) from error

    def _write(self, request: str, tokens: tuple[int, int]) -> None:
        with writing(self.ledger), open(self.ledger, "a", encoding="utf-8") as file:
            file.write(json.dumps([request, *tokens]) + "\n")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        s = self.settings
        return (prompt_tokens * (s.price_in or 0) + completion_tokens * (s.price_out or 0)) / 1e6

    def reserve(self, most: tuple[int, int]) -> str | None:
        """Waits while requests under way may leave enough. The request's name; None where there is not enough."""
        with self._changed:
            while not self._fits(sum(most), self.cost(*most)):
                if not self._requests:
                    return None
                self._changed.wait()
            request = uuid.uuid4().hex
            self._write(request, most)
            self._held_tokens += sum(most)
            self._held_cost += self.cost(*most)
            self._requests += 1
            return request

    def _fits(self, tokens: int, cost: float) -> bool:
        s = self.settings
        if s.max_cost is not None and self.spent_cost + self._held_cost + cost > s.max_cost:
            return False
        return s.max_total_tokens is None or self.spent_tokens + self._held_tokens + tokens <= s.max_total_tokens

    def settle(self, request: str, most: tuple[int, int], used: tuple[int, int]) -> None:
        """Gives back what was reserved and takes what was used."""
        with self._changed:
            self._held_tokens -= sum(most)
            self._held_cost -= self.cost(*most)
            self._requests -= 1
            self._add(used)
            self._changed.notify_all()
            self._write(request, used)

    def _add(self, used: tuple[int, int]) -> None:
        self.spent_tokens += sum(used)
        self.spent_cost += self.cost(*used)


class EndpointTeacher(Teacher):
    """The key comes from the environment, the address too (`OPENAI_BASE_URL`) unless the recipe names one.

    Every answer is kept in `cache` under a hash of its request and address, so the same question is never paid twice.
    ledger: the file of what was spent (see `Budget`).
    """

    def __init__(self, template: Template, settings: EndpointRecipe, cache: Path, ledger: Path, samples: int = 1):
        self.template, self.settings, self.cache, self.samples = template, settings, cache, samples
        self.name = f"endpoint {settings.model}"
        self.budget = Budget(settings, ledger)
        self._stop = threading.Event()
        self._failures, self._answered = 0, False
        address = settings.base_url or os.environ.get("OPENAI_BASE_URL")
        key = os.environ.get(settings.key_from)
        if not address and not key:
            raise UserError(f"teacher.endpoint: set base_url, or {settings.key_from} in the environment.")
        if key and not (key.isascii() and key.isprintable()):
            raise UserError(f"teacher.endpoint: the key in {settings.key_from} holds characters that no key has.")
        # Retried here and not by the client, so that every try is counted.
        try:
            self._client = openai.OpenAI(
                base_url=address, api_key=key or "none", timeout=settings.timeout, max_retries=0
            )
        except Exception as error:  # of the URL library of the client, whichever that is
            raise UserError(f"teacher.endpoint.base_url: {address!r} is no address ({error}).") from error
        self._address = str(self._client.base_url)
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_passes),
            stop=tenacity.stop_after_attempt(settings.retries + 1) | tenacity.stop_when_event_set(self._stop),
            wait=_wait,
            sleep=tenacity.sleep_using_event(self._stop),
            reraise=True,
        )

    @property
    def spent(self) -> dict[str, float]:
        return {"tokens": self.budget.spent_tokens, "cost": self.budget.spent_cost}

    def write(self, tasks: Sequence[Task]) -> Iterator[Written]:
        if threading.current_thread() is threading.main_thread():
            signal.siginterrupt(signal.SIGINT, True)  # Polars makes waiting deaf to Ctrl-C
        pool = ThreadPoolExecutor(self.settings.concurrency)
        try:
            asked = {pool.submit(self._attempts, task): task for task in tasks}
            for future in as_completed(asked):
                if attempts := future.result():
                    yield [(asked[future], attempts)]
        finally:  # what is under way is paid for: it is waited for and kept
            self._stop.set()
            pool.shutdown(cancel_futures=True)
            self._stop.clear()

    def _attempts(self, task: Task) -> list[Attempt]:
        """One attempt for each sample; none where the budget does not allow them all, or no answer comes."""
        attempts: list[Attempt] = []
        for sample in range(self.samples):
            attempt = None if self._stop.is_set() else self._attempt(prompt_of(self.template, task), sample)
            if attempt is None:
                return []
            attempts.append(attempt)
        return attempts

    def _attempt(self, messages: list[dict[str, str]], sample: int) -> Attempt | None:
        s = self.settings
        request: dict[str, Any] = {"model": s.model, "messages": messages, "extra_body": s.extra}
        if s.temperature is not None:
            request["temperature"] = s.temperature
        if "max_completion_tokens" not in s.extra:
            request["max_tokens"] = s.max_tokens
        if sample:
            request["seed"] = sample  # else a server may give the same answer again
        mark = hashlib.sha256(json.dumps([self._address, request], sort_keys=True).encode()).hexdigest()
        kept = self.cache / mark[:2] / f"{mark}.json"
        if kept.is_file() and (answer := _whole(kept)):
            return self._made(answer)
        # No text has more tokens than bytes; a few more mark where messages begin and end.
        most = (
            sum(len(m["content"].encode()) + 16 for m in messages) + len(json.dumps(s.extra)),
            s.extra.get("max_completion_tokens", s.max_tokens),
        )
        try:
            answer = self._retrying(self._try, request, most)
        except (openai.APIError, ValueError, TypeError) as error:
            if isinstance(error, _FATAL) or getattr(error, "code", None) == "insufficient_quota":
                raise UserError(f"teacher.endpoint: {self._address} refuses: {_told(error)}") from error
            if isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError) and self._answered:
                return Attempt(None, _told(error))  # of this prompt, say too long a one: others were answered
            self._failures += 1  # since the last answer
            if self._failures >= max(3, s.concurrency):
                raise UserError(f"teacher.endpoint: {self._address} answers nothing: {_told(error)}") from error
            return None  # another call may have more luck
        if answer is None:
            return None
        self._failures, self._answered = 0, True
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, answer)
        return self._made(answer)

    def _try(self, request: dict[str, Any], most: tuple[int, int]) -> dict[str, Any] | None:
        """One request: its text, why it ended, and its tokens; None if the budget has no room for it."""
        if self._stop.is_set() or (name := self.budget.reserve(most)) is None:
            return None
        used = most  # what a broken answer may have cost
        try:
            made = self._client.chat.completions.create(**request)
            choices = getattr(made, "choices", None)
            choice = choices[0] if isinstance(choices, list) and choices else None
            text = getattr(getattr(choice, "message", None), "content", 0)
            if not isinstance(text, str | None):
                raise NoAnswer("no chat completion in the answer")
            usage = getattr(made, "usage", None)
            prompt, completion = getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None)
            if isinstance(prompt, int) and isinstance(completion, int) and 0 <= min(prompt, completion) < MOST_TOKENS:
                used = (min(prompt, MOST_TOKENS), min(completion, MOST_TOKENS))
            if text is not None:
                text = text.encode("utf-8", "replace").decode()[: most[1] * LONGEST_TOKEN]  # lone surrogates, no end
            finish = str(getattr(choice, "finish_reason", None) or "stop")
            return {"text": text, "finish": finish, "prompt_tokens": used[0], "completion_tokens": used[1]}
        except openai.APIStatusError as error:
            if error.status_code < 500:  # a gateway may give up on an answer that is billed all the same
                used = (0, 0)
            raise
        except openai.APIConnectionError as error:
            if type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout"):  # it was never asked
                used = (0, 0)
            raise
        finally:
            self.budget.settle(name, most, used)

    def _made(self, answer: dict[str, Any]) -> Attempt:
        tokens = (answer["prompt_tokens"], answer["completion_tokens"])
        fault = None if answer["finish"] in ("stop", None) else f"ended by {answer['finish']}"
        return Attempt(answer["text"] or None, fault, *tokens, self.budget.cost(*tokens))


class NoAnswer(ValueError):
    """What came back is no chat completion: a page of a gateway, say."""


def _whole(path: Path) -> dict[str, Any] | None:
    """A kept answer; None for one that is damaged, which is asked again."""
    try:
        answer = read_json(path)
    except UserError:
        return None
    keys = {"text", "finish", "prompt_tokens", "completion_tokens"}
    return answer if isinstance(answer, dict) and keys <= answer.keys() else None


def _passes(error: BaseException) -> bool:
    """Whether another try may help."""
    if isinstance(error, _PASSING) or getattr(error, "status_code", None) == 408:
        return getattr(error, "code", None) != "insufficient_quota"
    return False


def _wait(state: tenacity.RetryCallState) -> float:
    """Seconds until the next try: what the server asks for, else at random up to a bound that doubles each time."""
    error = state.outcome.exception() if state.outcome else None
    response = getattr(error, "response", None)
    try:
        asked = float(response.headers["retry-after"]) if response is not None else 0.0
    except (KeyError, ValueError):  # none, or a date
        asked = 0.0
    return min(max(asked, _BACK_OFF(state)), LONGEST_WAIT)


_BACK_OFF = tenacity.wait_random_exponential(multiplier=1, max=60)


def _told(error: Exception) -> str:
    """An error in one short line."""
    return " ".join(str(getattr(error, "message", None) or error or type(error).__name__).split())[:200]
