"""JSON from strangers, read strictly."""

import json
import math
from typing import Any


def strict_json(body: bytes) -> Any:
    """JSON as the standard has it: no NaN, no key twice, no number beyond a double, no half of a surrogate pair.
    Raises ValueError or RecursionError."""

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(found)
        if len(made) < len(found):
            raise ValueError("a key stands twice in one object")
        return made

    def number(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError("a number is too large")
        return value

    def whole(text: str) -> int:
        if len(text) > 19:
            raise ValueError("a number is too large")
        return int(text)

    def constant(text: str) -> None:
        raise ValueError(f"{text} is no JSON")

    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8") from error
    found = json.loads(
        text, object_pairs_hook=pairs, parse_float=number, parse_int=whole, parse_constant=constant
    )  # fmt: skip
    json.dumps(found, ensure_ascii=False).encode()  # half of a surrogate pair can't be
    return found
