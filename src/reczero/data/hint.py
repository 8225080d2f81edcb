"""The collaborative hint: what a model of item neighbours, fitted strictly earlier, adds for a user and an item.

Item neighbours on residuals (Sarwar et al. 2001, Item-based collaborative filtering recommendation algorithms, WWW).
Fitted on the first c ratings in order of time:

- leaning of an item: sum of (rating - mean) / (n + PRIOR); of a user: the same of what the item's leaning leaves
- residual = rating - mean - leaning of the item - leaning of the user
- alike(i, j) = cosine of the two items' residuals over the n users who rated both, times n / (n + FEW); at least 0

For a target, over the `NEIGHBOURS` of the user's earlier entries that are most like its item (the older of equals):
hint = sum alike * residual / (sum alike + DAMPING), with the user's leaning as all of those earlier entries give it.

Out of fold by time: c is the newest of the sizes 1, 2, 3, …, each `GROWTH` larger than the last, that the target's past
has reached. So a training row's hint knows neither the row nor anything at its time or later, the same row has the same
hint whichever rows are asked with it, and what comes later does not move it.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

PRIOR = 5.0  # ratings that a leaning is damped by
FEW = 50.0  # common raters that a likeness is damped by
NEIGHBOURS, DAMPING = 30, 1.0
GROWTH = 0.025  # the model is fitted anew when the ratings have grown by so much
CELLS, SLICE = 1_000_000, 2_000_000  # pairs of items, and pairs of ratings, that are in memory at a time


def runs(start: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places start, start + 1, … of each run, one run after the other: (places,) whose run, (places,) place."""
    of = np.repeat(np.arange(len(count)), count)
    return of, np.arange(len(of)) - np.repeat(np.cumsum(count) - count - start, count)


def slices(counts: np.ndarray, most: int) -> list[slice]:
    """Stretches of `counts` that sum to about `most`, or are one long."""
    group = np.cumsum(counts) // most
    ends = [*(np.flatnonzero(np.diff(group)) + 1), len(counts)]
    return [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False) if end > begin]


def fitted_at(before: np.ndarray) -> np.ndarray:
    """(targets,) on how many ratings the model of each is fitted, from how many are before it."""
    sizes = [0]
    while sizes[-1] < before.max(initial=0):
        sizes.append(max(sizes[-1] + 1, int(sizes[-1] * (1 + GROWTH))))
    return np.array(sizes)[np.searchsorted(sizes, before, side="right") - 1]


class Neighbours:
    """Hints from ratings in order of time."""

    def __init__(self, users: np.ndarray, items: np.ndarray, ratings: np.ndarray):
        """(rows,) each. users, items: codes from 0."""
        self.users, self.items, self.ratings = users, items, ratings
        self._counts = [int(codes.max(initial=-1)) + 1 for codes in (users, items)]
        self._last: tuple[int, _Fitted] | None = None

    def hints(self, entries: Sequence[np.ndarray], targets: np.ndarray, before: np.ndarray) -> np.ndarray:
        """(targets,) in points; NaN where no entry is like the target.

        entries: of each target the rows of its user among the first `before`, oldest first. targets: codes of items,
        -1 for one that was never rated. If the pair's own rating is among the entries, nothing rests on it.
        """
        hints = np.full(len(targets), np.nan)
        others, groups = list(entries), defaultdict[tuple[int, int], list[int]](list)
        for n, (rows, size) in enumerate(zip(entries, fitted_at(before), strict=True)):
            own = self.items[rows] == targets[n]
            others[n] = rows[~own]
            if targets[n] >= 0 and len(others[n]):
                left_out = next((int(row) for row in rows[own] if row < size), -1)
                groups[int(size), left_out].append(n)
        for (size, left_out), members in groups.items():
            model = self._fitted(size, left_out)
            columns = np.unique(np.concatenate([self.items[others[n]] for n in members]))
            wanted = np.unique(targets[members])
            width = max(1, CELLS // len(columns))
            for chunk in np.split(wanted, range(width, len(wanted), width)):
                alike = model.alike(chunk, columns)
                for n in members:
                    if chunk[0] <= targets[n] <= chunk[-1]:
                        rated = self.items[others[n]]
                        weights = alike[np.searchsorted(chunk, targets[n]), np.searchsorted(columns, rated)]
                        hints[n] = model.hint(weights, rated, self.ratings[others[n]])
        return hints

    def _fitted(self, size: int, left_out: int) -> "_Fitted":
        """The model of the first `size` ratings, but for the row `left_out` (-1: none); the last one is kept, since
        requests as of the end all need the same."""
        if left_out < 0 and self._last is not None and self._last[0] == size:
            return self._last[1]
        rows = np.arange(size) if left_out < 0 else np.delete(np.arange(size), left_out)
        model = _Fitted(self.users[rows], self.items[rows], self.ratings[rows], *self._counts)
        if left_out < 0:
            self._last = size, model
        return model


class _Fitted:
    def __init__(self, users: np.ndarray, items: np.ndarray, ratings: np.ndarray, user_count: int, item_count: int):
        """users, items, ratings: (rows,). user_count, item_count: how many codes there are."""
        self.users, self.items = users, items
        self.mean = float(ratings.mean()) if len(ratings) else 0.0
        of_item = np.bincount(items, minlength=item_count)
        self.leaning = np.bincount(items, ratings - self.mean, item_count) / (of_item + PRIOR)
        left = ratings - self.mean - self.leaning[items]
        of_user = np.bincount(users, left, user_count) / (np.bincount(users, minlength=user_count) + PRIOR)
        self.residual = left - of_user[users]
        self._user_count, self._item_count = user_count, item_count

    def alike(self, targets: np.ndarray, others: np.ndarray) -> np.ndarray:
        """(targets, others) how alike these items are. Both ascending."""
        row, column = np.full(self._item_count, -1), np.full(self._item_count, -1)
        row[targets], column[others] = np.arange(len(targets)), np.arange(len(others))
        mine = np.flatnonzero(row[self.items] >= 0)
        theirs = np.flatnonzero(column[self.items] >= 0)
        theirs = theirs[np.argsort(self.users[theirs], kind="stable")]
        count = np.bincount(self.users[theirs], minlength=self._user_count)
        start = np.cumsum(count) - count
        cells = len(targets) * len(others)
        common, product, square, other_square = np.zeros((4, cells))
        for part in slices(count[self.users[mine]], SLICE):
            rows = mine[part]
            of, place = runs(start[self.users[rows]], count[self.users[rows]])
            a, b = rows[of], theirs[place]  # two ratings by one user
            cell = row[self.items[a]] * len(others) + column[self.items[b]]
            common += np.bincount(cell, minlength=cells)
            for total, values in (
                (product, self.residual[a] * self.residual[b]),
                (square, self.residual[a] ** 2),
                (other_square, self.residual[b] ** 2),
            ):
                total += np.bincount(cell, values, cells)
        norm = np.sqrt(square * other_square) * (common + FEW)
        alike = np.divide(product * common, norm, out=np.zeros(cells), where=norm > 0)
        # Rounded, so that equals are equals whatever the order in which they were summed.
        return np.maximum(alike, 0).round(9).reshape(len(targets), len(others))

    def hint(self, weights: np.ndarray, items: np.ndarray, ratings: np.ndarray) -> float:
        """weights, items, ratings: (entries,) how alike to the target, which, and how the user rated them."""
        left = ratings - self.mean - self.leaning[items]
        left = left - left.sum() / (len(left) + PRIOR)
        nearest = np.argsort(-weights, kind="stable")[:NEIGHBOURS]
        total = weights[nearest].sum()
        return float(weights[nearest] @ left[nearest] / (total + DAMPING)) if total > 0 else float("nan")
