"""A teacher without a model: writes the sections from statistics of what the prompt shows.

Deterministic. Every number in its text can be worked out from the prompt (and the usual rating, a constant): it counts
only the history entries, fields and averages that the template shows, and its sums are true as they stand.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from reczero.evaluation.belief import Belief
from reczero.reasoning import Context, Scale, Template

from .base import Attempt, Task, Teacher, Written

_WORDS = re.compile(r"\d|\w+|[^\w\s]")


@dataclass(frozen=True)
class _Taste:
    """How the user rated a category or creator in the shown history."""

    name: str
    mean: float
    count: int
    lean: float  # mean − the user's average, shrunk: n / (n + 1) of it

    def __str__(self) -> str:
        return f"{self.name} ({Scale.text(self.mean, 1)})"


class ProfileWriter(Teacher):
    """`center`: the mean of the training ratings; what user and item deviate from."""

    name = "profile"

    def __init__(self, template: Template, center: float):
        self.template, self.center = template, center
        self._belief: Belief | None = None

    def learn(self, contexts: Sequence[Context], ratings: np.ndarray) -> None:
        """From now on say how probable each rating is, by what its estimates were worth in these training rows."""
        self._belief = Belief.fit(*self._grounds(contexts), ratings, self.template.scale)

    def _grounds(self, contexts: Sequence[Context]) -> tuple[list[float], list[float | None]]:
        """What a belief rests on: estimates, and how widely the users' ratings spread, as far as the prompt tells."""
        spreads = [float(said) if (said := self.template.spread(c)) else None for c in contexts]
        return [self.estimate(context) for context in contexts], spreads

    def write(self, tasks: Sequence[Task]) -> Iterator[Written]:
        contexts = [task.context for task in tasks]
        beliefs = self._belief.of(*self._grounds(contexts)).tolist() if self._belief and tasks else [None] * len(tasks)
        for task, belief in zip(tasks, beliefs, strict=True):
            yield [(task, [Attempt(self.compose(task.context, task.told), belief=belief)])]

    def compose(self, context: Context, truth: float | None = None) -> str:
        """An answer in the template's form.

        It rates by its own estimate, on the scale's grid; or `truth`, and then the same facts are weighed towards it.
        """
        rating = truth if truth is not None else self.template.scale.nearest(self.estimate(context))
        texts = {
            "analyze_user": self._user(context),
            "analyze_item": self._item(context),
            "match": self._match(context, rating),
        }
        return self.template.write(texts | {"think": " ".join(texts.values())}, rating)

    def estimate(self, context: Context) -> float:
        """The usual rating and what user, item and taste add to it, kept within the scale; where the template shows
        facts, their sum."""
        if self._factual:
            total = self.template.total(context)
            return self.center if total is None else total
        total = self._rounded(self.center) + sum(self._parts(context).values())
        return min(max(total, self.template.scale.min), self.template.scale.max)

    def _parts(self, context: Context) -> dict[str, float]:
        """What speaks for more or less than the usual rating, in points, as the text says it.

        user, item: how far their averages lie from the center, drawn towards it like by five more ratings. taste: half
        the mean of what the shown history says of the item's categories and creator.
        """
        means = {"user": (context.user_avg, context.user_count), "item": (context.item_avg, context.item_count)}
        parts = {who: (mean - self.center) * n / (n + 5) for who, (mean, n) in means.items() if mean is not None}
        if leans := [taste.lean for taste in self._touching(context)]:
            parts["taste"] = sum(leans) / len(leans) / 2
        return {who: self._rounded(part) for who, part in parts.items()}

    @property
    def _factual(self) -> bool:
        return bool(self.template.settings.facts)

    @property
    def _places(self) -> int:
        """Decimals of what is said in points: one, or more on a scale narrower than two points; of facts as shown."""
        if self._factual:
            return self.template.places
        return max(1, 2 - math.ceil(math.log10(self.template.scale.width)))

    def _rounded(self, points: float) -> float:
        return round(points, self._places) + 0.0  # no negative zero

    # --- statistics -----------------------------------------------------------------------------------------------

    def _tastes(self, context: Context) -> list[_Taste]:
        """Of every category and creator in the shown history, the strongest first."""
        ratings: dict[str, list[float]] = defaultdict(list)
        for entry in self.template.shown_history(context):
            for name in self.template.shown_labels(entry.item):
                ratings[name].append(entry.rating)
        usual = context.user_avg if context.user_avg is not None else self.center
        tastes = []
        for name, given in ratings.items():
            mean, n = sum(given) / len(given), len(given)
            tastes.append(_Taste(name, mean, n, (mean - usual) * n / (n + 1)))
        return sorted(tastes, key=lambda taste: (-abs(taste.lean), taste.name))

    def _touching(self, context: Context) -> list[_Taste]:
        """Those that the item has too."""
        here = set(self.template.shown_labels(context.item))
        return [taste for taste in self._tastes(context) if taste.name in here]

    @property
    def _star(self) -> float:
        """One star of five."""
        return self.template.scale.width / 4

    @property
    def _notable(self) -> float:
        """From this on a deviation is worth a word: a sixteenth of the scale, a quarter star of five."""
        return self.template.scale.width / 16

    # --- sections, the weightiest clause first --------------------------------------------------------------------

    def _user(self, context: Context) -> str:
        if context.user_avg is None:
            return "No ratings by this user yet."
        mood = self._compared(context.user_avg, "generous", "usual", "strict")
        spread = f", spread {spread}" if (spread := self.template.spread(context)) else ""
        clauses = [f"Gives {self._average(context.user_avg)} on average{spread}, {mood}"]
        tastes = self._tastes(context)
        liked = [str(taste) for taste in tastes if taste.lean >= self._notable][:2]
        disliked = [str(taste) for taste in tastes if taste.lean <= -self._notable][:2]
        clauses += [f"likes {' and '.join(liked)}"] if liked else []
        clauses += [f"less {' and '.join(disliked)}"] if disliked else []
        return self._fitting(clauses, "; ")

    def _item(self, context: Context) -> str:
        """What speaks for it and against it: its categories and creator by the user's taste, then what others say."""
        good = [str(taste) for taste in self._touching(context) if taste.lean >= self._notable][:2]
        bad = [str(taste) for taste in self._touching(context) if taste.lean <= -self._notable][:2]
        average = self.template.item_average(context)
        if average is None:
            bad.append("nobody has rated it yet")
        else:
            rated = f"{self._average(average)} from {context.item_count} ratings"
            (good if average >= self.center else bad).append(rated)
            latest = [opinion.rating for opinion in self.template.shown_opinions(context)]
            recent = sum(latest) / len(latest) if len(latest) > 1 else average
            if abs(recent - average) >= self._notable:
                (good if recent > average else bad).append(f"lately {Scale.text(recent, 1)}")
        return f"[pos] {', '.join(good) or 'little'} [neg] {', '.join(bad) or 'little'}"

    def _match(self, context: Context, rating: float) -> str:
        """The sum, the verdict, then the taste that speaks for and against it, what weighs more last."""
        estimate = self.estimate(context)
        total = self._sum(context)
        touching = self._touching(context)
        good = [taste.name for taste in touching if taste.lean >= self._notable][:2]
        bad = [taste.name for taste in touching if taste.lean <= -self._notable][:2]
        if good and bad:
            weaker, stronger = (bad, good) if rating >= estimate else (good, bad)
            facts = f"Taste is divided: {_all(weaker, 'matter')} less than {' and '.join(stronger)}"
        elif good or bad:
            facts = f"{_all(good or bad, 'speak')} {'for' if good else 'against'} it"
        else:
            facts = "" if self._factual else "Taste says little"
        fits = self._factual and abs(rating - estimate) <= 0.5 * self._star  # goes without saying, for less to write
        verdict = "" if fits else f", {self._verdict(rating - estimate)}"
        return self._fitting([f"{total}: about {self._said(estimate)}{verdict}", *([facts] if facts else [])], ". ")

    def _sum(self, context: Context) -> str:
        """What the estimate adds up: of facts, where they are shown, as the prompt says them."""
        if self._factual:
            parts = self.template.parts(context)
            whole = f"Item {self._said(parts.pop('item'))}" if "item" in parts else f"Usual {self._said(self.center)}"
        else:
            parts, whole = self._parts(context), f"Usual {self._said(self.center)}"
        words = {"affinity": "such items", "hint": "rated alike"}
        return ", ".join([whole, *(f"{words.get(name, name)} {self._said(parts[name], '+')}" for name in parts)])

    def _fitting(self, clauses: list[str], joint: str) -> str:
        """As many clauses as fit into a section (a token is a digit, a mark or a word), at least the first."""
        kept = clauses[0]
        for clause in clauses[1:]:
            if len(_WORDS.findall(f"{kept}{joint}{clause}.")) > self.template.settings.section_tokens:
                break
            kept += f"{joint}{clause}"
        return f"{kept}."

    def _average(self, value: float) -> str:
        """As the prompt writes it."""
        return f"{value:.{self.template.places}f}"

    def _said(self, points: float, sign: str = "") -> str:
        return f"{self._rounded(points):{sign}.{self._places}f}"

    def _verdict(self, distance: float) -> str:
        size = "" if abs(distance) < 1.5 * self._star else "much "
        if abs(distance) <= 0.5 * self._star:
            return "and that fits"
        return f"but {size}more is due" if distance > 0 else f"but {size}less is due"

    def _compared(self, value: float, above: str, same: str, below: str) -> str:
        if abs(value - self.center) < self._notable:
            return same
        return above if value > self.center else below


def _all(names: list[str], verb: str) -> str:
    """Subject and verb."""
    return f"{' and '.join(names)} {verb}" if len(names) > 1 else f"{names[0]} {verb}s"
