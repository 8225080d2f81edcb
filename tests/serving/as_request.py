"""A context as a client would ask for it."""

from reczero.reasoning import Context, HistoryEntry, Item, Opinion


def as_request(made: Context) -> dict:
    """What a client would send to have this context."""

    def described(item: Item) -> dict:
        return {"title": item.title, "categories": list(item.categories)} | {
            key: value for key in ("creator", "price", "description") if (value := getattr(item, key)) is not None
        }

    def said(entry: HistoryEntry | Opinion) -> dict:
        return {"rating": entry.rating, "summary": entry.summary, "review": entry.review}

    item = described(made.item) | {"reviews": [said(opinion) for opinion in made.item_history]}
    if made.item_avg is not None:
        item |= {"average": made.item_avg, "count": made.item_count}
    request = {"history": [described(e.item) | said(e) for e in made.user_history], "item": item}
    if made.user_avg is not None:
        request |= {"user_average": made.user_avg, "user_count": made.user_count}
    return request
