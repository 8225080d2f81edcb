"""The reasoning template: prompt, grammar, parser, reward. Pure Python, so that any worker can load it."""

from .context import Context, HistoryEntry, Item, Opinion, Standing
from .neutralise import neutralise
from .parser import Answer, parse
from .reward import Reward, RewardName, score, score_text
from .scale import Scale
from .template import Fact, Section, Template, TemplateSettings

__all__ = [
    "Answer",
    "Context",
    "Fact",
    "HistoryEntry",
    "Item",
    "Opinion",
    "Reward",
    "RewardName",
    "Scale",
    "Section",
    "Standing",
    "Template",
    "TemplateSettings",
    "neutralise",
    "parse",
    "score",
    "score_text",
]
