"""Where a user and an item stand the moment before a rating: the few numbers that a prompt may show as facts.

All are worked out from ratings that are strictly earlier, that contexts of the target's split may hold (`visible`), and
that are not the target's own. With `usual` the mean of all of them:

- item_mean: (sum of the item's ratings + PRIOR * usual) / (their number + PRIOR)
- affinity: how much more the user gives to items like it than others do. Over all of the user's entries, the mean of
  rating - others' mean of that item (damped like item_mean, by ratings before the *target*), weighed by likeness and
  newness, w = (ANY + Jaccard index of the two items' categories) * (OLD + exp(-entries since / MEMORY)), and drawn to
  zero: sum w * (rating - others) / (sum w + DAMPING)
- spread: standard deviation of the user's ratings
- hint: what item neighbours add to that (`hint.py`)

The constants were chosen on validation rows of MovieLens-100K, where all near them did alike (docs/log.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import polars as pl

from reczero.reasoning import Fact, Standing

from .hint import Neighbours, runs, slices
from .settings import PrepareSettings
from .splits import NONE, SPLITS, visible

if TYPE_CHECKING:
    from .dataset import Dataset

PRIOR = 5.0  # ratings of the usual that a mean is damped by
DAMPING = 2.0  # weight of the zero that an affinity is drawn to
ANY, OLD, MEMORY = 0.1, 0.3, 10.0
SLICE = 500_000  # earlier entries, of all targets together, that are in memory at a time


def damped(total: np.ndarray | float, count: np.ndarray | int, usual: np.ndarray | float) -> np.ndarray:
    """The mean of `count` ratings that sum to `total`, drawn to the usual as by `PRIOR` more."""
    return np.asarray((total + PRIOR * usual) / (count + PRIOR))


def affinity(residual: np.ndarray, alike: np.ndarray, since: np.ndarray, of: np.ndarray, targets: int) -> np.ndarray:
    """(targets,) affinity of each, 0 where there are no entries.

    Of each entry: residual, its rating less others' damped mean; alike, the Jaccard index; since, how many entries of
    the user are not older, itself included; of, to which target it belongs, a number below `targets`.
    """
    weight = (ANY + alike) * (OLD + np.exp(-since / MEMORY))
    return np.bincount(of, weight * residual, targets) / (np.bincount(of, weight, targets) + DAMPING)


class ByKey:
    """The rows of each user, or of each item: where they stand in `order`, and what they sum to."""

    def __init__(self, keys: np.ndarray, ratings: np.ndarray):
        """keys, ratings: (rows,), by time. A row's number stands for its time."""
        self.order = np.argsort(keys, kind="stable")
        key = keys[self.order].astype(np.int64)
        self._size = len(keys) + 1
        self._marks = key * self._size + self.order
        # Summed within the key: a running sum over all rows would let other keys into the last bits.
        running = pl.DataFrame({"key": key, "rating": ratings[self.order]})
        sums = running.select(pl.col("rating").cum_sum().over("key")).to_series().to_numpy()
        self._sums = np.concatenate([sums, [0.0]])  # read, and not used, where there is no past

    def past(self, keys: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each key (-1: none), its rows among the first `before`: they are order[start : start + count], oldest
        first, and their ratings sum to total. Returns start, count, total."""
        low = keys.astype(np.int64) * self._size
        start, end = (np.searchsorted(self._marks, marks) for marks in (low, low + before))
        return start, end - start, np.where(end > start, self._sums[end - 1], 0.0)


class Earlier:
    """Ratings in order of time. What is strictly earlier than a moment are the first `before(moment)` of them."""

    def __init__(self, users: np.ndarray, items: np.ndarray, ratings: np.ndarray, times: np.ndarray):
        """(rows,) each. users, items: codes from 0."""
        self.users, self.items, self.ratings, self._times = users, items, ratings, times
        self.by_user, self.by_item = ByKey(users, ratings), ByKey(items, ratings)
        self.neighbours = Neighbours(users, items, ratings)
        self._running = np.concatenate([[0.0], np.cumsum(ratings)])

    def before(self, moments: pl.Series) -> np.ndarray:
        """(moments,) how many rows are strictly earlier; all of them where it is null, the end."""
        found = np.searchsorted(self._times, moments.fill_null(0).to_numpy())
        return np.where(moments.is_null().to_numpy(), len(self._times), found)

    def total(self, before: np.ndarray) -> np.ndarray:
        """The sum of the first `before` ratings."""
        return self._running[before]


@dataclass(frozen=True)
class Sets:
    """Sets of labels, as codes: set n is flat[start[n] : start[n] + count[n]]."""

    flat: np.ndarray
    start: np.ndarray
    count: np.ndarray

    @classmethod
    def of(cls, lists: pl.Series, codes: pl.DataFrame) -> Self:
        """lists: (sets,) of strings. codes: label, code; a label that is not there gets the next number."""
        lists = lists.list.unique(maintain_order=True)
        count = lists.list.len().fill_null(0).cast(pl.Int64).to_numpy()
        flat = lists.drop_nulls().explode(empty_as_null=False).cast(pl.String)
        found = flat.to_frame("label").join(codes, on="label", how="left", maintain_order="left")["code"]
        return cls(found.fill_null(codes.height).cast(pl.Int64).to_numpy(), np.cumsum(count) - count, count)

    def take(self, sets: np.ndarray) -> "Sets":
        return Sets(self.flat, self.start[sets], self.count[sets])


def jaccard(sets: Sets, others: Sets, of: np.ndarray) -> np.ndarray:
    """(sets,) Jaccard index of each of `sets` and others[of]; 0 if both are empty."""
    base = max(sets.flat.max(initial=0), others.flat.max(initial=0)) + 1
    owner, place = runs(others.start, others.count)
    theirs = np.append(np.sort(owner * base + others.flat[place]), -1)  # -1: beyond the last, equal to none
    which, place = runs(sets.start, sets.count)
    label = of[which] * base + sets.flat[place]
    shared = theirs[np.searchsorted(theirs[:-1], label)] == label
    common = np.bincount(which[shared], minlength=len(of))
    return common / np.maximum(sets.count + others.count[of] - common, 1)


class Standings:
    """Works out the standing of targets: of a data set's rows, and of others as of its end."""

    def __init__(self, data: "Dataset"):
        """Reads ids, ratings, times and categories; some 100 bytes a rating stay in memory."""
        rows = data.interactions(("user_id", "item_id", "rating", "timestamp"))
        about = data.items(("item_id", "categories"))
        self._user_codes, self._item_codes = _numbered(rows["user_id"].unique().sort()), _numbered(about["item_id"])
        names = about["categories"].explode().drop_nulls().unique().sort()
        self._label_codes = _numbered(names).rename({"name": "label"})
        nothing = pl.Series([[]], dtype=pl.List(pl.String))  # at the end, so that it is the set of item -1
        self._labels = Sets.of(pl.concat([about["categories"], nothing]), self._label_codes)
        self._users, self._items = _codes(rows["user_id"], self._user_codes), _codes(rows["item_id"], self._item_codes)
        self._ratings, self._times = rows["rating"].to_numpy(), rows["timestamp"].to_numpy()
        self._data, self._settings = data, PrepareSettings(**data.info["settings"])
        self._views: dict[str | None, Earlier] = {}

    def usual(self) -> float:
        """The mean of all ratings."""
        return float(self._ratings.mean())

    def of(self, targets: pl.DataFrame, facts: Sequence[Fact]) -> list[Standing]:
        """The standing of each row of `targets`. The hint only if it is among `facts`.

        user_id, item_id: null, or one without ratings, is nobody and nothing. timestamp: null is the end. split: by its
        rule of what contexts may hold; null is all. categories, if it is a column: of the item, instead of item_id's.
        """
        users, items = _codes(targets["user_id"], self._user_codes), _codes(targets["item_id"], self._item_codes)
        if "categories" in targets.columns:
            labels = Sets.of(targets["categories"], self._label_codes)
        else:
            labels = self._labels.take(items)
        numbers = np.full((4, targets.height), np.nan)
        for split in targets["split"].unique().to_list():
            inside = np.flatnonzero(targets["split"].eq_missing(pl.Series([split], dtype=pl.String)).to_numpy())
            view = self._view(split)
            before = view.before(targets["timestamp"][inside])
            start, count, _ = view.by_user.past(users[inside], before)
            for part in slices(count, SLICE):
                rows = inside[part]
                numbers[:3, rows] = self._numbers(view, users[rows], items[rows], before[part], labels.take(rows))
            if "hint" in facts:
                entries = [view.by_user.order[a : a + n] for a, n in zip(start, count, strict=True)]
                numbers[3, inside] = view.neighbours.hints(entries, items[inside], before)
        return [Standing(*(None if np.isnan(x) else float(x) for x in row)) for row in numbers.T]

    def _numbers(
        self, view: Earlier, users: np.ndarray, items: np.ndarray, before: np.ndarray, labels: Sets
    ) -> np.ndarray:
        """(3, targets) item_mean, affinity and spread; NaN where there is none. labels: of the targets' items."""
        n = len(users)
        start, count, _ = view.by_user.past(users, before)
        of, place = runs(start, count)
        entry = view.by_user.order[place]
        own = view.items[entry] == items[of]  # as of the end, the user may have rated the item: nobody knows of that
        own_sum, own_count = np.bincount(of[own], view.ratings[entry[own]], n), np.bincount(of[own], minlength=n)
        of, entry = of[~own], entry[~own]
        given, entries = view.ratings[entry], np.bincount(of, minlength=n)
        with np.errstate(divide="ignore", invalid="ignore"):  # NaN: there is none
            usual = (view.total(before) - own_sum) / (before - own_count)
            _, count, total = view.by_item.past(items, before)
            item_mean = damped(total - own_sum, count - own_count, usual)
            _, count, total = view.by_item.past(view.items[entry], before[of])
            residual = given - damped(total - given, count - 1, usual[of])
            alike = jaccard(self._labels.take(view.items[entry]), labels, of)
            since = np.cumsum(entries)[of] - np.arange(len(of))
            leaning = affinity(residual, alike, since, of, n)
            mean = np.bincount(of, given, n) / entries
            spread = np.sqrt(np.bincount(of, (given - mean[of]) ** 2, n) / entries)
        return np.stack([item_mean, np.where(entries > 0, leaning, np.nan), np.where(entries > 1, spread, np.nan)])

    def _view(self, split: str | None) -> Earlier:
        """The ratings that contexts of a split may hold; all, where there is no split."""
        if self._settings.split == "time":  # all of them, as `visible` says
            split = None
        if split not in self._views:
            every = np.ones(len(self._ratings), bool)
            shown = every if split is None else visible(self._splits(), SPLITS.index(split), self._settings)
            columns = (self._users, self._items, self._ratings, self._times)
            self._views[split] = Earlier(*(column[shown] for column in columns))
        return self._views[split]

    def _splits(self) -> np.ndarray:
        """(rows,) int8: the split of every row, NONE for those that are not examples."""
        found = self._data.examples(cold_start=None, columns=["user_id", "item_id", "split"])
        size = self._item_codes.height
        pairs = _codes(found["user_id"], self._user_codes) * size + _codes(found["item_id"], self._item_codes)
        order = np.argsort(self._users * size + self._items)
        at = order[np.searchsorted(self._users * size + self._items, pairs, sorter=order)]
        split = np.full(len(self._ratings), NONE, np.int8)
        split[at] = found["split"].replace_strict({name: n for n, name in enumerate(SPLITS)}).to_numpy()
        return split


def _numbered(names: pl.Series) -> pl.DataFrame:
    return names.to_frame("name").with_columns(code=pl.int_range(pl.len(), dtype=pl.Int64))


def _codes(ids: pl.Series, numbered: pl.DataFrame) -> np.ndarray:
    """(ids,) int64, -1 for what has no number."""
    wanted = ids.cast(pl.String).to_frame("name")
    return wanted.join(numbered, on="name", how="left", maintain_order="left")["code"].fill_null(-1).to_numpy()
