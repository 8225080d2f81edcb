"""Which rows become examples, to which split each belongs, and which rows an example's context may hold."""

import hashlib

import numpy as np
import polars as pl

from reczero.errors import UserError

from .settings import PrepareSettings, date_seconds

SPLITS = ("train", "validation", "test")
NONE, TRAIN, VALIDATION, TEST = -1, 0, 1, 2  # NONE: a row that is not an example, though it may be in contexts


def choose_targets(users: np.ndarray, items: np.ndarray, user_ids: pl.Series, settings: PrepareSettings) -> np.ndarray:
    """Row numbers, ascending, of the rows that become examples. Everything else stays available to contexts."""
    rows = _k_core(users, items, settings.k_core)
    if settings.users is None:
        return rows
    there = np.unique(users[rows])
    # Drawn by a hash of seed and id: who is drawn does not depend on who else there is, but for how many.
    draw = [_draw(settings.seed, user) for user in user_ids.gather(there)]
    drawn = there[np.argsort(np.array(draw, np.uint64), kind="stable")][: settings.users]
    return rows[np.isin(users[rows], drawn)]


def _draw(seed: int, user: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{user}".encode(), digest_size=8).digest())


def _k_core(users: np.ndarray, items: np.ndarray, k: int) -> np.ndarray:
    """Rows (ascending) left when users and items with fewer than `k` of them are removed again and again."""
    rows = np.arange(len(users))
    while k > 1:
        enough = (np.bincount(users[rows])[users[rows]] >= k) & (np.bincount(items[rows])[items[rows]] >= k)
        if enough.all():
            break
        rows = rows[enough]
        if not len(rows):
            raise UserError(
                f"k_core {k} leaves no rows: no users and items are that densely rated; choose a lower one."
            )
    return rows


def split_rows(
    targets: np.ndarray, users: np.ndarray, times: np.ndarray, settings: PrepareSettings, timed: bool
) -> np.ndarray:
    """(rows,) int8: the split of every row, NONE for those that are not targets. Rows come by (time, user, item)."""
    split = np.full(len(users), NONE, np.int8)
    if settings.split == "leave-last-k":
        split[targets] = _leave_last(users[targets], settings.leave_last)
    elif settings.validation_from is not None and settings.test_from is not None:
        at = np.array([date_seconds(settings.validation_from), date_seconds(settings.test_from)])
        split[targets] = np.searchsorted(at, times[targets], side="right")
    else:
        # A table without times is in a random order already.
        shuffled = settings.split == "random" and timed
        ordered = np.random.default_rng(settings.seed).permutation(targets) if shuffled else targets
        cuts = [round(len(targets) * share) for share in (settings.train, settings.train + settings.validation)]
        split[ordered] = np.repeat(np.array([TRAIN, VALIDATION, TEST], np.int8), np.diff([0, *cuts, len(targets)]))
    return split


def _leave_last(users: np.ndarray, k: int) -> np.ndarray:
    """Of each user's rows the last `k` are test and the `k` before them validation; whoever has no more trains only."""
    order = np.argsort(users, kind="stable")
    key = users[order]
    first = np.searchsorted(key, key, side="left")
    end = np.searchsorted(key, key, side="right")
    left = end - 1 - np.arange(len(key))  # how many of the user's rows come after
    enough = end - first > 2 * k
    split = np.empty(len(users), np.int8)
    split[order] = np.where(enough & (left < k), TEST, np.where(enough & (left < 2 * k), VALIDATION, TRAIN))
    return split


def visible(split: np.ndarray, to: int, settings: PrepareSettings) -> np.ndarray:
    """(rows,) bool: which rows the contexts of split `to` may hold, if they are earlier too.

    A split by time needs no rule: what is strictly earlier was known. With leave-last-k a held-out row may be earlier
    than another user's training row, so no context holds rows of a later split. A random split shows training rows.
    """
    if settings.split == "time":
        return np.ones(len(split), bool)
    return split <= (to if settings.split == "leave-last-k" else TRAIN)
