"""What is asked: histories and items as plain data, checked once for Python, files and HTTP alike.

Text may be anything: it is neutralised where a prompt is made (`reczero.reasoning.neutralise`). The limits keep one
request from taking what belongs to the others.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from reczero.data.standing import affinity, damped
from reczero.errors import BadRequest
from reczero.reasoning import Context, HistoryEntry, Item, Opinion, Scale, Standing

MOST_HISTORY = 1_000
MOST_CANDIDATES = 200
MOST_REVIEWS = 200
MOST_CATEGORIES = 50

Short = Annotated[str, StringConstraints(max_length=1_000)]
Title = Annotated[str, StringConstraints(max_length=1_000, min_length=1)]
Long = Annotated[str, StringConstraints(max_length=20_000)]
Id = Annotated[str, StringConstraints(max_length=1_000, min_length=1)]
Rating = Annotated[float, Field(ge=-1e6, le=1e6, description="on the server's scale")]
Points = Annotated[float, Field(ge=-1e6, le=1e6, description="more or less, on the server's scale")]
Spread = Annotated[float, Field(ge=0, le=1e6)]
Count = Annotated[int, Field(ge=0, le=10**12)]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class _Described(_Asked):
    title: Title
    categories: Annotated[list[Short], Field(max_length=MOST_CATEGORIES)] = []
    creator: Short | None = Field(None, description="author, artist, brand, director")
    price: Short | None = None
    description: Long | None = None

    def item(self) -> Item:
        return Item(self.title, tuple(self.categories), self.creator, self.price, self.description)


class Rated(_Described):
    """An item that the user has rated."""

    rating: Rating
    average: Rating | None = Field(None, description="mean of its ratings by others; for models that are shown facts")
    count: Count | None = Field(None, description="how many others rated it; for models that are shown facts")
    summary: Short | None = Field(None, description="the review's headline")
    review: Long | None = None


class Review(_Asked):
    """What somebody else said of the item."""

    rating: Rating
    summary: Short | None = None
    review: Long | None = None


class Asked(_Described):
    """The item that is asked about."""

    id: Id | None = Field(None, description="yours; it stands in the answer")
    average: Rating | None = Field(None, description="mean of its ratings; by default that of `reviews`")
    count: Count | None = Field(None, description="how many ratings it has; by default as many as `reviews`")
    reviews: Annotated[list[Review], Field(max_length=MOST_REVIEWS)] = Field([], description="of others, oldest first")
    hint: Points | None = Field(None, description="a collaborative model's; for models that are shown it")


class _OfUser(_Asked):
    history: Annotated[list[Rated], Field(max_length=MOST_HISTORY)] | None = Field(
        None, description="what the user rated, oldest first; may be empty"
    )
    user_id: Id | None = Field(None, description="a user of the prepared data set, instead of a history")
    user_average: Rating | None = Field(None, description="mean of all the user's ratings; by default the history's")
    user_count: Count | None = Field(None, description="how many ratings the user gave; by default the history's")
    user_spread: Spread | None = Field(
        None, description="standard deviation of the user's ratings; by default the history's, where it is the whole"
    )
    usual: Rating | None = Field(
        None, description="mean of all ratings by anyone; by default the data set's, or that of the model's training"
    )

    @model_validator(mode="after")
    def _one_user(self) -> Self:
        if (self.history is None) == (self.user_id is None):
            raise ValueError("give either history (may be empty) or user_id")
        told = (self.user_average, self.user_count, self.user_spread)
        if self.user_id is not None and any(number is not None for number in told):
            raise ValueError("user_average, user_count and user_spread go with history; those of user_id are known")
        return self


class PredictRequest(_OfUser):
    """What would this user give this item?"""

    item: Asked | None = None
    item_id: Id | None = Field(None, description="an item of the prepared data set, instead of `item`")

    @model_validator(mode="after")
    def _one_item(self) -> Self:
        if (self.item is None) == (self.item_id is None):
            raise ValueError("give either item or item_id")
        return self


class RecommendRequest(_OfUser):
    """Which of these items would this user like best?"""

    candidates: Annotated[list[Asked], Field(min_length=1, max_length=MOST_CANDIDATES)] | None = None
    candidate_ids: Annotated[list[Id], Field(min_length=1, max_length=MOST_CANDIDATES)] | None = Field(
        None, description="items of the prepared data set; without any, well rated ones that are new to the user"
    )
    k: Annotated[int, Field(ge=1, le=MOST_CANDIDATES)] = 10

    @model_validator(mode="after")
    def _one_list(self) -> Self:
        if self.candidates is not None and self.candidate_ids is not None:
            raise ValueError("give either candidates or candidate_ids")
        if len(set(self.candidate_ids or ())) < len(self.candidate_ids or ()):
            raise ValueError("candidate_ids: the same item stands there twice")
        return self


Request = TypeVar("Request", bound=_OfUser)


def read(kind: type[Request], asked: Mapping[str, Any]) -> Request:
    """A request of plain data (tuples stand for lists). Raises BadRequest that says which part is wrong."""
    if not isinstance(asked, Mapping):
        raise BadRequest(f"a request is a dict, not a {type(asked).__name__}")
    try:
        return kind.model_validate(_lists(asked))
    except ValidationError as error:
        raise BadRequest(told(error.errors(include_url=False, include_context=False, include_input=False))) from error


def _lists(found: Any) -> Any:
    if isinstance(found, Mapping):
        return {key: _lists(value) for key, value in found.items()}
    return [_lists(value) for value in found] if isinstance(found, list | tuple) else found


def told(errors: Any) -> str:
    """pydantic's findings in one line: the first three, each with its place."""
    lines = []
    for error in errors[:3]:
        place = ".".join(str(part) for part in error["loc"] if part != "body")
        message = error["msg"].removeprefix("Value error, ")
        lines.append(f"{place}: {message}" if place else message)
    more = f"; and {len(errors) - 3} more" if len(errors) > 3 else ""
    return "; ".join(lines) + more


def context(item: Asked, user: _OfUser, scale: Scale) -> Context:
    """What a prompt is made of, but for its standing. Raises BadRequest for numbers off the scale."""
    history, reviews = user.history or [], item.reviews
    numbers: list[tuple[str, float | None]] = [(f"history.{i}.rating", entry.rating) for i, entry in enumerate(history)]
    numbers += [(f"item.reviews.{i}.rating", review.rating) for i, review in enumerate(reviews)]
    numbers += [(f"history.{i}.average", entry.average) for i, entry in enumerate(history)]
    numbers += [("item.average", item.average), ("user_average", user.user_average), ("usual", user.usual)]
    for place, number in numbers:
        if number is not None and not scale.contains(number):
            low, high = Scale.text(scale.min), Scale.text(scale.max)
            raise BadRequest(f"{place}: {Scale.text(number)} is not on the scale from {low} to {high}")
    user_avg, user_count = _standing([entry.rating for entry in history], user.user_average, user.user_count, "user_")
    item_avg, item_count = _standing([review.rating for review in reviews], item.average, item.count, "item.")
    return Context(
        item.item(),
        tuple(HistoryEntry(entry.item(), entry.rating, entry.summary, entry.review) for entry in history),
        tuple(Opinion(review.rating, review.summary, review.review) for review in reviews),
        user_avg, user_count, item_avg, item_count,
    )  # fmt: skip


def standing(item: Asked, user: _OfUser, usual: float | None) -> Standing:
    """What can be worked out of what is told, by the formulas of `reczero.data.standing`; what can't does not exist.

    usual: the mean of all ratings, if the request tells no other. An item of which nothing is told counts as one that
    nobody else rated. A number of half of what it should rest on would be
    worse than none: an average without its count can't be damped, and the newest part of a history has neither the
    spread nor the affinity of the whole.
    """
    history = user.history or []
    usual = user.usual if user.usual is not None else usual
    count = len(item.reviews) if item.average is None and item.count is None else item.count
    average = item.average
    if average is None and item.reviews:
        average = sum(review.rating for review in item.reviews) / len(item.reviews)
    whole = user.user_count == len(history) or (user.user_count is None and user.user_average is None)
    spread, leaning = user.user_spread, None
    ratings = np.array([entry.rating for entry in history])
    if spread is None and whole and len(history) > 1:
        spread = float(ratings.std())
    counts = [0 if entry.average is None and entry.count is None else entry.count for entry in history]
    means = [_damped(entry.average, count, usual) for entry, count in zip(history, counts, strict=True)]
    others = [mean for mean in means if mean is not None]
    if whole and history and len(others) == len(history):
        here, sets = set(item.categories), [set(entry.categories) for entry in history]
        alike = np.array([len(here & there) / max(len(here | there), 1) for there in sets])
        since = np.arange(len(history), 0, -1)
        leaning = float(affinity(ratings - np.array(others), alike, since, np.zeros(len(history), int), 1)[0])
    return Standing(_damped(average, count, usual), leaning, spread, item.hint)


def _damped(average: float | None, count: int | None, usual: float | None) -> float | None:
    if usual is None or count is None or (average is None and count):
        return None
    return float(damped((average or 0.0) * count, count, usual))


def _standing(ratings: list[float], average: float | None, count: int | None, of: str) -> tuple[float | None, int]:
    """Average and count as given, else of the ratings that are shown."""
    if count is not None and count < len(ratings):
        raise BadRequest(f"{of}count: {count} is less than the {len(ratings)} ratings that are given")
    if average is None:
        if count is not None and count > len(ratings):
            raise BadRequest(f"{of}average is missing: {of}count is more than the ratings that are given")
        return (sum(ratings) / len(ratings) if ratings else None), len(ratings)
    if count == 0:
        raise BadRequest(f"{of}average: there is none of {of}count 0")
    return average, count if count is not None else max(1, len(ratings))
