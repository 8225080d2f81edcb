"""Amazon reviews in the three editions of McAuley's group: 2014, 2018, 2023.

The item tables hold more than we take: sales ranks, "also bought" lists, star averages and review counts are computed
over all time, and would leak the future.
"""

from typing import ClassVar

import polars as pl

from .base import Fixed

_REVIEWS = {
    "user_id": "reviewerID", "item_id": "asin", "rating": "overall", "timestamp": "unixReviewTime",
    "review": "reviewText", "summary": "summary",
}  # fmt: skip


class _Amazon(Fixed):
    scale = "1-5:1"
    unescape = True  # &amp; and &#34; in titles and texts


class Amazon2014(_Amazon):
    name = "amazon2014"
    title = "Amazon reviews, edition of 2014"
    reviews = "reviews_*.json[.gz]: JSON lines reviewerID, asin, overall, unixReviewTime, reviewText, summary"
    items = "meta_*.json[.gz]: a Python literal a line (read, never evaluated)"
    review_columns = _REVIEWS
    item_columns: ClassVar[dict[str, str]] = {
        "item_id": "asin", "title": "title", "categories": "categories", "creator": "brand", "price": "price",
        "description": "description",
    }  # fmt: skip
    literal = True


class Amazon2018(_Amazon):
    name = "amazon2018"
    title = "Amazon reviews, edition of 2018"
    reviews = "CATEGORY[_5].json[.gz]: JSON lines reviewerID, asin, overall, unixReviewTime, reviewText, summary"
    items = "meta_*.json[.gz]: JSON lines"
    review_columns = _REVIEWS
    item_columns: ClassVar[dict[str, str]] = {**Amazon2014.item_columns, "categories": "category"}


class Amazon2023(_Amazon):
    name = "amazon2023"
    title = "Amazon reviews, edition of 2023"
    reviews = "CATEGORY.jsonl[.gz]: JSON lines user_id, parent_asin, rating, timestamp (milliseconds), title, text"
    items = "meta_*.jsonl[.gz]: JSON lines"
    time_format = "ms"
    review_columns: ClassVar[dict[str, str]] = {
        "user_id": "user_id", "item_id": "parent_asin", "rating": "rating", "timestamp": "timestamp",
        "review": "text", "summary": "title",
    }  # fmt: skip
    item_columns: ClassVar[dict[str, str]] = {
        "item_id": "parent_asin", "title": "title", "categories": "categories", "main_category": "main_category",
        "creator": "store", "price": "price", "description": "description",
    }  # fmt: skip

    def item_batch(self, raw: pl.DataFrame) -> pl.DataFrame:
        """Many items have no categories but a main one."""
        both = zip(raw["categories"].to_list(), raw["main_category"].to_list(), strict=True)
        return raw.with_columns(pl.Series("categories", [many or main for many, main in both], pl.Object))
