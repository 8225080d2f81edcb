"""Ratings with their reasons, from Python: a model by its name, histories and items as plain dicts.

predictor = Predictor.from_pretrained("runs/mine")
predictor.predict(history=[{"title": "Alien (1979)", "rating": 5}], item={"title": "Aliens (1986)"})
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch

from reczero.data import Dataset, Known, open_data
from reczero.errors import BadRequest
from reczero.reasoning import Context, Scale, Template
from reczero.rollout.language_model import key_of
from reczero.rollout.opening import find, open_policy

from .answering import Answering, Local, Prediction, Progress, nobody
from .remote import CONCURRENCY, Remote
from .requests import Asked, PredictRequest, RecommendRequest, context, read, standing

POOL = 50  # candidates that are chosen where none are given


@dataclass(frozen=True)
class Recommendation:
    """One of the candidates, with what the user would give it. id: of the data set, or as the candidate gave it."""

    id: str | None
    title: str
    prediction: Prediction


class Predictor:
    """A model that answers, and the prepared data set, if any, whose users and items can be named by id."""

    def __init__(self, answering: Answering, data: Dataset | None = None, usual: float | None = None):
        """usual: the mean of all ratings where there is no data set: of those that the model was trained among."""
        self.answering, self._usual = answering, usual
        self.known = Known(data, answering.template.settings.facts) if data is not None else None
        self.scale: Scale = answering.template.scale

    @classmethod
    def from_pretrained(
        cls, name: str | Path, data: Dataset | Path | str | None = None, device: torch.device | None = None
    ) -> Self:
        """name: a run, a model folder, a hub name or a packaged model. data: a prepared data set: opened, its folder,
        or a name such as ml-100k.

        The ratings' scale is the data set's, else the one the model was trained for, else 1 to 5. Raises UserError.
        """
        opened = _opened(data)
        policy = open_policy(str(name), opened.scale if opened else None, device)
        return cls(Local(policy, Path(name).name, key_of(str(name), policy)), opened, find(str(name)).usual)

    @classmethod
    def from_endpoint(
        cls, url: str, prompted_as: str | Path | None = None, model: str | None = None,
        data: Dataset | Path | str | None = None, concurrency: int = CONCURRENCY,
    ) -> Self:  # fmt: skip
        """A model behind an OpenAI-compatible endpoint. prompted_as: the run or the exported folder that it was made
        from: how it is prompted is read there; its weights are not. model: its name at the endpoint, by default the
        first. Answers are free, whether or not training was guided. Raises UserError."""
        opened = _opened(data)
        found = find(str(prompted_as)) if prompted_as is not None else None
        rollout = found.rollout if found else find("").rollout
        scale = (opened.scale if opened else None) or (found.scale if found else None) or Scale()
        template = Template(rollout.template, scale)
        answering = Remote(url, template, rollout.max_tokens, model, concurrency=concurrency)
        return cls(answering, opened, found.usual if found else None)

    def predict(self, **asked: Any) -> Prediction:
        """One rating: `history` (may be empty) or `user_id`, and `item` or `item_id`, as in `PredictRequest`.

        Raises UserError.
        """
        return self.predict_many([asked])[0]

    def predict_many(
        self, asked: Sequence[Mapping[str, Any]], batch_size: int = 32, progress: Progress = nobody
    ) -> list[Prediction]:
        """A prediction for each request, in their order. Raises UserError that names the first wrong one."""
        contexts = []
        for number, one in enumerate(asked):
            try:
                contexts.append(self.context(read(PredictRequest, one)))
            except BadRequest as error:
                raise type(error)(f"request {number}: {error}" if len(asked) > 1 else str(error)) from error
        return self.answering.answer(contexts, batch_size=batch_size, progress=progress)

    def recommend(
        self,
        history: Sequence[Mapping[str, Any]] | None = None,
        candidates: Sequence[Mapping[str, Any]] | None = None,
        k: int = 10,
        *,
        progress: Progress = nobody,
        **asked: Any,
    ) -> list[Recommendation]:
        """The `k` candidates that the user would rate highest, by the distribution's mean, the best first.

        As in `RecommendRequest`: `user_id` may stand for the history, `candidate_ids` for the candidates. The user's
        part of the prompt is computed once for all. Raises UserError.
        """
        request = read(RecommendRequest, {"history": history, "candidates": candidates, "k": k} | asked)
        named, contexts = self.candidates(request)
        predictions = self.answering.answer(contexts, together=True, progress=progress)
        return ranked(named, predictions, request.k)

    # --- from requests to contexts ----------------------------------------------------------------------------------

    def context(self, request: PredictRequest) -> Context:
        """What the model reads. Raises BadRequest."""
        if request.item_id is not None:
            (found,) = self._known("item_id").contexts([(request.user_id, request.item_id)])
            made = self._of_id(found, request)
        else:
            assert request.item is not None
            made = self._of_item(request.item, request)
        self.answering.check(made)
        return made

    def candidates(self, request: RecommendRequest) -> tuple[list[tuple[str | None, str]], list[Context]]:
        """(id, title) of each candidate, and the context of each. Raises BadRequest."""
        if request.candidates is not None:
            contexts = [self._of_item(item, request) for item in request.candidates]
            named = [(item.id, item.title) for item in request.candidates]
        else:
            ids = request.candidate_ids
            known = self._known("candidate_ids" if ids else "candidates are missing, and")
            ids = ids or known.candidates(request.user_id, POOL)
            contexts = [self._of_id(one, request) for one in known.contexts([(request.user_id, name) for name in ids])]
            named = [(name, one.item.title) for name, one in zip(ids, contexts, strict=True)]
        for made in contexts:
            self.answering.check(made)
        return named, contexts

    def _known(self, what: str) -> Known:
        if self.known is None:
            raise BadRequest(f"{what}: there is no data set here; give titles, or start with --data")
        return self.known

    def _of_item(self, item: Asked, request: PredictRequest | RecommendRequest) -> Context:
        made = self._told(item, request)
        if request.user_id is None:
            return made
        return _with_user(made, self._known("user_id").user(request.user_id, made.item))

    def _of_id(self, made: Context, request: PredictRequest | RecommendRequest) -> Context:
        """The data set's context of an item, with the request's history where that is given."""
        if request.history is None:
            return made
        return _with_user(made, self._told(Asked(title="-", categories=list(made.item.categories)), request))

    def _told(self, item: Asked, request: PredictRequest | RecommendRequest) -> Context:
        """The context of what a request tells, with a standing where the template shows facts."""
        made = context(item, request, self.scale)
        if not self.answering.template.settings.facts:
            return made
        return replace(made, standing=standing(item, request, self.known.usual if self.known else self._usual))


def ranked(named: Sequence[tuple[str | None, str]], predictions: Sequence[Prediction], k: int) -> list[Recommendation]:
    """The best `k`; those with equal scores stay in their order."""
    found = [Recommendation(*name, prediction) for name, prediction in zip(named, predictions, strict=True)]
    return sorted(found, key=lambda one: -one.prediction.score)[:k]


def _with_user(made: Context, user: Context) -> Context:
    """`made` with all that depends on the user taken from `user`. A hint is of a pair of ids, or told by the client."""
    given = replace(made, user_history=user.user_history, user_avg=user.user_avg, user_count=user.user_count)
    if made.standing is None or user.standing is None:
        return given
    personal = replace(made.standing, affinity=user.standing.affinity, spread=user.standing.spread)
    return replace(given, standing=personal)


def _opened(data: Dataset | Path | str | None) -> Dataset | None:
    return open_data(data) if isinstance(data, str | Path) else data
