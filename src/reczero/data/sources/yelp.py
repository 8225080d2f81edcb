"""The Yelp Open Dataset. A business's stars and review count are over all time and are not read."""

from typing import ClassVar

from .base import Fixed


class Yelp(Fixed):
    name = "yelp"
    title = "Yelp Open Dataset"
    reviews = "yelp_academic_dataset_review.json: JSON lines user_id, business_id, stars, date, text"
    items = "yelp_academic_dataset_business.json"
    scale = "1-5:1"
    time_format = None  # dates as text
    review_columns: ClassVar[dict[str, str]] = {
        "user_id": "user_id", "item_id": "business_id", "rating": "stars", "timestamp": "date", "review": "text",
    }  # fmt: skip
    item_columns: ClassVar[dict[str, str]] = {
        "item_id": "business_id", "title": "name", "categories": "categories",
    }  # fmt: skip
