"""What a prompt is made of: one user's past, one item, and what others said of it. Plain data, no files."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """What is known of an item whoever looks at it. Never an average or a count over all time: those leak."""

    title: str
    categories: tuple[str, ...] = ()
    creator: str | None = None
    price: str | None = None
    description: str | None = None


@dataclass(frozen=True)
class HistoryEntry:
    """One earlier rating by the user."""

    item: Item
    rating: float
    summary: str | None = None
    review: str | None = None


@dataclass(frozen=True)
class Opinion:
    """One earlier rating of the target item by somebody else."""

    rating: float
    summary: str | None = None
    review: str | None = None


@dataclass(frozen=True)
class Standing:
    """Where user and item stand, in numbers that a template may show as facts; None where one does not exist.

    How each is worked out, as of the same moment as the context, is written in `reczero.data.standing`.
    """

    item_mean: float | None = None  # the item's average, damped
    affinity: float | None = None  # how much more this user gives to items like this one than others do
    spread: float | None = None  # standard deviation of the user's ratings
    hint: float | None = None  # what a collaborative model adds to item_mean and affinity


@dataclass(frozen=True)
class Context:
    """Everything a prediction may rest on, as of the moment before the target interaction.

    `user_history` and `item_history` are oldest first and hold only the newest entries; the averages and counts are
    over everything strictly earlier. An average is None where there is nothing earlier. `standing` is None where no
    facts were asked for.
    """

    item: Item
    user_history: tuple[HistoryEntry, ...] = ()
    item_history: tuple[Opinion, ...] = ()
    user_avg: float | None = None
    user_count: int = 0
    item_avg: float | None = None
    item_count: int = 0
    standing: Standing | None = None
