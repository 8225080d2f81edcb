"""How to make examples: what a recipe's `data` section and the command line may say, by the same names."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Split = Literal["time", "leave-last-k", "random"]
Count = Annotated[int, Field(ge=0, le=10**9)]
Positive = Annotated[int, Field(ge=1, le=10**9)]


class PrepareSettings(BaseModel):
    """The same names in a recipe's `data` section and on the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    split: Split = Field(
        default="time",
        description="time: cut all rows, in order of time, in three; leave-last-k: test on each user's newest rows; "
        "random: leaks, for tables without times",
    )
    train: float = Field(default=0.8, gt=0, le=1, description="share of the rows, the oldest, to train on")
    validation: float = Field(
        default=0.1, ge=0, lt=1, description="share of the rows after those, to choose a checkpoint on"
    )
    test: float = Field(default=0.1, ge=0, lt=1, description="share of the rows, the newest, to report on")
    validation_from: str | None = Field(
        default=None, description="split time by dates instead of shares: validation begins here (UTC)"
    )
    test_from: str | None = Field(default=None, description="split time by dates: the test period begins here (UTC)")
    leave_last: int = Field(
        default=1,
        ge=1,
        le=10**9,
        description="leave-last-k: rows of each user to test on, and as many before to validate on",
    )
    users: int | None = Field(
        default=None, ge=1, le=10**12, description="targets only of so many users, drawn by the seed"
    )
    k_core: int = Field(
        default=0, ge=0, le=10**9, description="targets only of users and items with this many ratings; 0 is off"
    )
    history: int = Field(
        default=10, ge=1, le=10_000, description="how many of the newest earlier ratings a context shows, on each side"
    )
    min_user_history: Count = Field(default=1, description="fewer earlier ratings by the user make a row a cold start")
    min_item_history: Count = Field(default=1, description="fewer earlier ratings of the item make a row a cold start")
    min_context: Count = Field(
        default=5, description="fewer shown ratings, both sides together, make a row a cold start"
    )
    max_bad: float = Field(
        default=0.01, ge=0, le=1, description="a larger share of rows that can't be used stops the preparation"
    )
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="of the random split and of the sample of users")

    @field_validator("validation_from", "test_from", mode="before")
    @classmethod
    def _date(cls, value: object) -> object:
        """YAML gives dates as dates."""
        if value is None:
            return None
        text = str(value)
        date_seconds(text)
        return text

    @model_validator(mode="after")
    def _possible(self) -> "PrepareSettings":
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6 and self.split != "leave-last-k":
            raise ValueError(f"train, validation and test must sum to 1, not {total:g}")
        if self.min_context > 2 * self.history:
            raise ValueError(f"min_context {self.min_context} is more than two histories of {self.history} can show")
        if (self.validation_from is None) != (self.test_from is None):
            raise ValueError("validation_from and test_from go together: give both")
        if self.validation_from is not None and self.test_from is not None:
            if self.split != "time":
                raise ValueError(f"validation_from and test_from are for split time, not {self.split}")
            if date_seconds(self.validation_from) >= date_seconds(self.test_from):
                raise ValueError("validation_from must be before test_from")
        return self


def date_seconds(text: str) -> int:
    """Unix seconds of an ISO date or date and time (UTC unless it says otherwise). ValueError for anything else."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"not a date: {text!r}; write YYYY-MM-DD, with a time or without") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def when(seconds: int) -> str:
    """Unix seconds as a date and a time, in UTC."""
    return f"{datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds):%Y-%m-%d %H:%M}"
