"""What is sent over HTTP: the bodies of requests and answers, as the OpenAPI shows them."""

from pydantic import BaseModel, Field

from .requests import PredictRequest, RecommendRequest


class ScaleOut(BaseModel):
    min: float
    max: float
    step: float


class PredictionOut(BaseModel):
    rating: float | None = Field(description="the number that was written; null where the answer is malformed")
    parsed: bool
    reasoning: dict[str, str] = Field(description="the sections, such as analyze_user, analyze_item, match")
    distribution: list[float] | None = Field(description="how probable each rating of the scale is, ascending")
    expected: float | None = Field(description="the distribution's mean")
    scale: ScaleOut
    tokens: int = Field(description="of the answer")
    model: str
    fault: str | None = Field(description="what is malformed")


class CandidateOut(BaseModel):
    id: str | None
    title: str
    score: float | None = Field(description="what they are ranked by: the distribution's mean, else the number")
    prediction: PredictionOut


class RecommendOut(BaseModel):
    recommendations: list[CandidateOut] = Field(description="the best first")
    considered: int = Field(description="candidates")


class ModelOut(BaseModel):
    model: str
    scale: ScaleOut
    sections: list[str] = Field(description="of the reasoning, in order")
    history: int = Field(description="how many of the newest ratings a prompt shows")
    data: str | None = Field(description="the prepared data set whose users and items can be named by id")
    version: str


class UserOut(BaseModel):
    user_id: str
    count: int = Field(description="ratings")


class UsersOut(BaseModel):
    users: list[UserOut]


class ItemOut(BaseModel):
    item_id: str
    title: str
    count: int


class ItemsOut(BaseModel):
    items: list[ItemOut]


class HistoryEntryOut(BaseModel):
    title: str
    rating: float
    categories: list[str] = []


class HistoryOut(BaseModel):
    user_id: str
    average: float | None
    count: int
    history: list[HistoryEntryOut] = Field(description="the newest, oldest first")


class State(BaseModel):
    status: str


class Problem(BaseModel):
    detail: str


class PredictIn(PredictRequest):
    stream: bool = Field(False, description="send the sections as they are written, as server-sent events")


class RecommendIn(RecommendRequest):
    stream: bool = Field(False, description="send the candidates as they are answered, as server-sent events")


_HISTORY = [{"title": "Alien (1979)", "rating": 5}, {"title": "Speed (1994)", "rating": 2, "review": "All noise."}]
PREDICT_EXAMPLES = [
    {
        "history": _HISTORY,
        "item": {"title": "Aliens (1986)", "categories": ["Action", "Sci-Fi"], "average": 4.1, "count": 284},
    },
    {"history": [], "item": {"title": "Fargo (1996)"}},
]
RECOMMEND_EXAMPLES = [
    {"history": _HISTORY, "candidates": [{"title": "Aliens (1986)"}, {"id": "f", "title": "Fargo (1996)"}], "k": 1}
]
