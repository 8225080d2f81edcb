"""A data set as of its end: what is known of a user and of items now, for predictions of what comes next."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import polars as pl

from reczero.errors import NotFound
from reczero.reasoning import Context, Fact, Item

from .dataset import EXAMPLES, Dataset
from .standing import PRIOR

_TARGET = {name: EXAMPLES[name] for name in ("user_id", "item_id", "timestamp", "split")}


class Known:
    """Contexts as of the end of `data`: all of its ratings are the past.

    Of the user's own rating of the item in question, if there is one, neither side knows anything.
    """

    def __init__(self, data: Dataset, facts: Sequence[Fact] = ()):
        """facts: those that the template shows."""
        self.data, self.scale, self.facts = data, data.scale, facts

    @cached_property
    def _ratings(self) -> pl.DataFrame:
        """Every rating by (time, user, item), with its row; ids as categories: some 30 bytes a rating."""
        columns = ["user_id", "item_id", "rating", "timestamp"]
        rows = self.data.interactions(columns).with_row_index("row")
        return rows.with_columns(pl.col("user_id", "item_id").cast(pl.Categorical), pl.col("row").cast(pl.Int64))

    @cached_property
    def titles(self) -> pl.DataFrame:
        """item_id, title, and count: how often it was rated; the most often rated first."""
        counts = self._ratings.group_by(pl.col("item_id").cast(pl.String)).agg(count=pl.len())
        items = self.data.items(["item_id", "title"]).join(counts, on="item_id", how="left")
        return items.with_columns(pl.col("count").fill_null(0)).sort(["count", "item_id"], descending=[True, False])

    @cached_property
    def users(self) -> pl.DataFrame:
        """user_id and count, the most active first."""
        counts = self._ratings.group_by(pl.col("user_id").cast(pl.String)).agg(count=pl.len())
        return counts.sort(["count", "user_id"], descending=[True, False])

    @cached_property
    def usual(self) -> float | None:
        """The mean of all ratings, where facts are shown: what averages are damped with."""
        return self.data.standings.usual() if self.facts else None

    def find_users(self, text: str, limit: int) -> list[dict[str, object]]:
        """Users whose id begins with `text`, then those that hold it, the most active first."""
        return _matching(self.users, ["user_id"], text, limit)

    def find_items(self, text: str, limit: int) -> list[dict[str, object]]:
        """Items whose title or id holds `text`, whatever its case."""
        return _matching(self.titles, ["title", "item_id"], text, limit)

    def unknown_users(self, user_ids: Sequence[str]) -> list[str]:
        """Those that the data set does not have."""
        return sorted(set(user_ids) - self._user_ids)

    def unknown_items(self, item_ids: Sequence[str]) -> list[str]:
        """Those that the data set does not have."""
        return sorted(set(item_ids) - self._item_ids)

    @cached_property
    def _user_ids(self) -> set[str]:
        return set(self.users["user_id"])

    @cached_property
    def _item_ids(self) -> set[str]:
        return set(self.titles["item_id"])

    def candidates(self, user_id: str | None, count: int) -> list[str]:
        """The `count` items with the highest average, damped by `PRIOR` ratings of the overall mean, that the user has
        not rated."""
        mean = pl.col("rating").mean().over(pl.lit(0))
        rows = self._ratings.with_columns(mean=mean)
        damped = (pl.col("rating").sum() + PRIOR * pl.col("mean").first()) / (pl.len() + PRIOR)
        ranked = rows.group_by(pl.col("item_id").cast(pl.String)).agg(damped=damped, count=pl.len())
        if user_id is not None:
            ranked = ranked.join(self._of("user_id", [user_id]), on="item_id", how="anti")
        return ranked.sort(["damped", "count", "item_id"], descending=[True, True, False])["item_id"][:count].to_list()

    def contexts(self, pairs: Sequence[tuple[str | None, str]]) -> list[Context]:
        """One for each (user_id, item_id), in their order, with the newest entries of both sides. Without a user, one
        of whom nothing is known. Raises NotFound for ids that the data set does not have."""
        if not pairs:
            return []
        users = sorted({user for user, _ in pairs if user is not None})
        if unknown := self.unknown_users(users):
            raise NotFound(f"no user {unknown[0]!r} in the data set")
        if unknown := self.unknown_items([item for _, item in pairs]):
            raise NotFound(f"no item {unknown[0]!r} in the data set")
        mine = self._of("user_id", users).partition_by("user_id", as_dict=True)
        theirs = self._of("item_id", sorted({item for _, item in pairs})).partition_by("item_id", as_dict=True)
        nothing = self._of("user_id", [])
        rows = []
        for user, item in pairs:
            rated, others = mine.get((user,), nothing), theirs.get((item,), nothing)
            rated, others = (side.filter(~self._is_pair(user, item)) for side in (rated, others))
            of_user, of_item = self._side(rated, "user", "item_id"), self._side(others, "item", "user_id")
            rows.append({"user_id": user, "item_id": item, "timestamp": None, "split": None} | of_user | of_item)
        return self.data.contexts(pl.DataFrame(rows, schema={name: EXAMPLES[name] for name in rows[0]}), self.facts)

    @staticmethod
    def _is_pair(user: str | None, item: str) -> pl.Expr:
        return (pl.col("user_id") == pl.lit(user)).fill_null(False) & (pl.col("item_id") == item)

    def user(self, user_id: str, item: Item | None = None) -> Context:
        """What is known of a user, towards an item that the data set does not have (by default a blank). Raises
        NotFound."""
        if self.unknown_users([user_id]):
            raise NotFound(f"no user {user_id!r} in the data set")
        row = {"item_id": self.titles["item_id"][0]} | self._side(self._of("user_id", [user_id]), "user", "item_id")
        row |= {"item_history": [], "item_avg": None, "item_count": 0}
        (made,) = self.data.contexts(pl.DataFrame([row], schema={name: EXAMPLES[name] for name in row}))
        made = replace(made, item=item or Item(""))
        if not self.facts:
            return made
        target = pl.DataFrame([(user_id, None, None, None)], schema=_TARGET, orient="row")
        target = target.with_columns(categories=pl.Series([list(made.item.categories)], dtype=pl.List(pl.String)))
        (standing,) = self.data.standings.of(target, self.facts)
        return replace(made, standing=standing)

    def _of(self, side: str, ids: Sequence[str]) -> pl.DataFrame:
        rows = self._ratings.filter(pl.col(side).is_in(list(ids)))
        return rows.with_columns(pl.col("user_id", "item_id").cast(pl.String))

    def _side(self, rows: pl.DataFrame, side: str, other: str) -> dict[str, object]:
        newest = rows.tail(self.data.info["settings"]["history"])
        return {
            f"{side}_history": newest.select("row", other, "rating", "timestamp").to_dicts(),
            f"{side}_avg": rows["rating"].mean() if rows.height else None,
            f"{side}_count": rows.height,
        }


def _matching(table: pl.DataFrame, columns: Sequence[str], text: str, limit: int) -> list[dict[str, object]]:
    wanted = text.strip().lower()
    if not wanted:
        return table.head(limit).to_dicts()
    lowered = [pl.col(name).str.to_lowercase() for name in columns]
    begins = pl.any_horizontal([name.str.starts_with(wanted) for name in lowered])
    holds = pl.any_horizontal([name.str.contains(wanted, literal=True) for name in lowered])
    found = table.filter(holds).with_columns(begins=begins).sort("begins", descending=True, maintain_order=True)
    return found.drop("begins").head(limit).to_dicts()
