"""Reads an answer. Never raises, on any string."""

import re
from dataclasses import dataclass, field

from .template import Template

_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,8})(\.[0-9]{1,18})?")


@dataclass(frozen=True)
class Answer:
    """`rating` is a number on the scale exactly when the answer is well-formed, else None with the reason in `fault`.

    `texts` has the stripped text of every section that could be read, by section name, without the rating.
    """

    rating: float | None
    texts: dict[str, str] = field(default_factory=dict)
    fault: str | None = None

    @property
    def well_formed(self) -> bool:
        return self.rating is not None


def parse(text: str, template: Template) -> Answer:
    """Well-formed: every tag pair of the template exactly once, in order, none empty, and a plain number on the scale.

    Text outside the tags is ignored, as in the code derived from the authors' release; decimals off the grid are fine.
    """
    texts: dict[str, str] = {}
    fault = None
    end = 0
    for section in template.sections:
        start, stop = text.find(section.open), text.find(section.close)
        if text.count(section.open) != 1 or text.count(section.close) != 1:
            fault = fault or f"{section.open} … {section.close} must stand exactly once"
            continue
        if start < end or stop < start:
            fault = fault or f"{section.open} … {section.close} is out of order"
            continue
        end = stop + len(section.close)
        texts[section.name] = text[start + len(section.open) : stop].strip()
        if not texts[section.name]:
            fault = fault or f"{section.open} is empty"
    number = texts.pop(template.rate.name, None)
    if fault or number is None:
        return Answer(None, texts, fault)
    if not _NUMBER.fullmatch(number) or not template.scale.contains(float(number)):
        return Answer(None, texts, f"{template.rate.open} must hold a plain number on the scale")
    return Answer(float(number), texts)
