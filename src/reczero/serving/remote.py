"""A model behind an OpenAI-compatible endpoint (vLLM and others) that answers our prompts: free, greedy."""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import openai

from reczero.errors import UserError
from reczero.reasoning import Context, Scale, Template, parse

from .answering import Prediction, Progress, nobody

KEY = "OPENAI_API_KEY"
CONCURRENCY = 32
TOP = 20  # of the most probable tokens that are asked for: the most that servers give
DECODING = "greedy, endpoint"


class Remote:
    """The key comes from the environment (`OPENAI_API_KEY`), if the server wants one.

    The distribution is read off the log-probabilities of the token after the rating's tag, where the server gives them
    and every rating is told by one token.
    """

    def __init__(
        self, url: str, template: Template, max_tokens: int, model: str | None = None, *,
        concurrency: int = CONCURRENCY, timeout: float = 120.0,
    ):  # fmt: skip
        self.template, self.max_tokens, self.concurrency = template, max_tokens, concurrency
        try:
            self.client = openai.OpenAI(
                base_url=url, api_key=os.environ.get(KEY) or "none", timeout=timeout, max_retries=4
            )
        except Exception as error:  # of the URL library of the client, whichever that is
            raise UserError(f"endpoint {url!r} is no address ({error}); write it as http://host:port/v1") from error
        self.url = str(self.client.base_url)
        self.name = model or self._first_model()
        self.key = f"{self.url} {self.name}"
        texts = [Scale.text(value) for value in template.scale.grid()]
        self._numbers = texts if not any(a != b and b.startswith(a) for a in texts for b in texts) else None
        self._weighs = self._numbers is not None

    def _first_model(self) -> str:
        with _told(self.url):
            models = list(self.client.models.list())
        if not models:
            raise UserError(f"endpoint {self.url}: serves no model")
        return models[0].id

    def check(self, context: Context) -> None:
        """The endpoint says itself what is too long."""

    def answer(
        self, contexts: Sequence[Context], *, together: bool = False, batch_size: int = 32, progress: Progress = nobody
    ) -> list[Prediction]:
        """Many requests at once; the endpoint batches them, and keeps common beginnings if it can."""
        found = []
        with ThreadPoolExecutor(self.concurrency) as pool:
            for prediction in pool.map(self.ask, contexts):
                found.append(prediction)
                progress(1)
        return found

    def ask(self, context: Context, seen: Callable[[str], None] | None = None, stop: Event | None = None) -> Prediction:
        """One answer. seen: told the text so far as it grows; stop: set it to give up. Raises UserError."""
        text, weighed = "", None
        finish: str | None = None
        tokens = 0
        with _told(self.url):
            for chunk in self._stream(context):
                if stop is not None and stop.is_set():
                    break
                if not chunk.choices:
                    continue
                choice = chunk.choices[0]
                entries = (choice.logprobs and choice.logprobs.content) or []
                weighed = weighed or self._weighed(text, entries)
                text += choice.delta.content or ""
                tokens += len(entries) or bool(choice.delta.content)
                finish = choice.finish_reason or finish
                if seen and choice.delta.content:
                    seen(text)
        return Prediction.of(text, parse(text, self.template), self.template.scale, weighed, tokens, DECODING)

    def _stream(self, context: Context):
        how: dict[str, Any] = {
            "model": self.name, "messages": self.template.messages(context), "temperature": 0.0,
            "max_tokens": self.max_tokens, "stream": True,
        }  # fmt: skip
        if self._weighs:
            try:
                return self.client.chat.completions.create(**how, logprobs=True, top_logprobs=TOP)
            except (openai.BadRequestError, openai.UnprocessableEntityError):
                self._weighs = False  # the server does not give them; if the request is bad otherwise, it says so again
        return self.client.chat.completions.create(**how)

    def _weighed(self, before: str, entries: Sequence[Any]) -> list[float] | None:
        """The probabilities of the ratings, if one of these tokens is the one after the rating's tag."""
        for entry in entries:
            if self._numbers and before.rstrip().endswith(self.template.rate.open) and entry.token.strip():
                chances = [0.0] * len(self._numbers)
                for token in entry.top_logprobs or []:
                    if token.token.strip() in self._numbers:
                        chances[self._numbers.index(token.token.strip())] += math.exp(token.logprob)
                total = sum(chances)
                return [chance / total for chance in chances] if total > 0 else None
            before += entry.token
        return None


class _told:
    """What the client raises, as one line."""

    def __init__(self, url: str):
        self.url = url

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, openai.APITimeoutError):
            raise UserError(f"endpoint {self.url}: no answer in time") from error
        if isinstance(error, openai.APIConnectionError):
            raise UserError(f"endpoint {self.url}: cannot be reached") from error
        if isinstance(error, openai.APIStatusError):
            said = " ".join(str(error.message).split())[:200]
            raise UserError(f"endpoint {self.url}: refuses ({error.status_code}: {said})") from error
        if isinstance(error, openai.OpenAIError):
            raise UserError(f"endpoint {self.url}: answers in no known form ({type(error).__name__})") from error
