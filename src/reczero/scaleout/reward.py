"""The reward function for verl as one file that needs nothing installed: our template, parser and reward, bundled."""

import ast
from importlib.resources import files

from reczero import __version__
from reczero.reasoning import RewardName, Template

# What the file is made of, in the order of its parts' imports.
_MODULES = (
    "reasoning/scale.py", "reasoning/context.py", "reasoning/neutralise.py", "reasoning/template.py",
    "reasoning/parser.py", "reasoning/reward.py", "evaluation/choice.py", "scaleout/worker.py",
)  # fmt: skip

_HEAD = '''"""Rewards of answers for verl; and the best checkpoint: `python reward.py VALIDATION CHECKPOINTS`.

Written by reczero {version} from its own modules; change the recipe and launch again rather than this file.
"""
'''

_TAIL = '''
# --- this launch -------------------------------------------------------------------------------------------------

SCORER = Scorer(
    Template(
        {settings!r},
        {scale!r},
    ),
    reward={reward!r},
    fallback={fallback!r},
)


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):
    """verl's reward function: score, abs_err, sq_err and parsed of an answer. Safe in threads; never raises."""
    return SCORER.score(solution_str, ground_truth)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
'''


def bundle(template: Template, reward: RewardName, fallback: float) -> str:
    """The text of `reward.py`. fallback: the rating that stands for malformed answers in the errors."""
    parts = [_HEAD.format(version=__version__)]
    parts += [_without_own_imports(name) for name in _MODULES]
    parts.append(
        _TAIL.format(settings=template.settings, scale=template.scale, reward=reward, fallback=float(fallback))
    )
    return "\n".join(parts)


def _without_own_imports(name: str) -> str:
    """A module's source, its docstring as a comment, without the imports from this package."""
    lines = (files("reczero") / name).read_text("utf-8").splitlines()
    tree = ast.parse("\n".join(lines))
    for node in reversed(tree.body):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "reczero"):
            lines[node.lineno - 1 : node.end_lineno] = []
    docstring = ast.get_docstring(tree) or ""
    lines[: tree.body[0].end_lineno] = [f"# {line}".rstrip() for line in docstring.splitlines()]
    return "\n".join([f"\n# --- {name} ---", *lines])
