"""The report's pictures as inline SVG by matplotlib.

SVG instead of an embedded JavaScript library: tens of kilobytes instead of five megabytes, sharp on paper, no scripts.
The inks below are written as CSS variables, so that the pictures follow the page from light to dark.
"""

import html
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reczero.reasoning.scale import Scale

INK, MUTED, LINE, ACCENT, SECOND = "#1b1f24", "#5c6672", "#d9dee4", "#0a6c8e", "#b8601a"
_VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", ACCENT: "--accent", SECOND: "--second"}
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may hold dollar signs
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": False,
}
_MOST_LEVELS = 11
NO_ANSWER = "none"


def step_curve(name: str, steps: Sequence[float], values: Sequence[float], spread: Sequence[float | None]) -> str:
    """A figure (`name`: reward, loss) of each step, its spread as a band, and a running mean to see the trend."""
    x, y = np.asarray(steps, float), np.asarray(values, float)
    band = np.asarray([np.nan if s is None else s for s in spread], float)
    window = max(1, min(25, len(x) // 6))

    def draw(axes: Axes) -> None:
        if np.isfinite(band).any():
            axes.fill_between(x, y - band, y + band, color=ACCENT, alpha=0.12, linewidth=0, label="spread in a group")
        axes.plot(x, y, color=ACCENT, linewidth=1, alpha=0.45, marker="o", markersize=2, label="step")
        if window > 1:
            trend = np.asarray([np.nanmean(y[max(0, i - window + 1) : i + 1]) for i in range(len(y))])
            axes.plot(x, trend, color=ACCENT, linewidth=2.2, label=f"mean of {window} steps")
        _steps_axis(axes)
        axes.set_ylabel(name)
        axes.legend(loc="lower right" if y[-1] > y[0] else "upper right")

    return _svg(name, f"{name.capitalize()} over {len(x)} training steps", draw)


def validation_curve(steps: Sequence[float], errors: Sequence[float], best: float) -> str:
    """MAE on the validation rows, the chosen step marked."""
    x, y = np.asarray(steps, float), np.asarray(errors, float)
    at = int(np.argmin(np.abs(x - best)))

    def draw(axes: Axes) -> None:
        axes.plot(x, y, color=ACCENT, linewidth=1.8, marker="o", markersize=4)
        axes.plot(
            [x[at]], [y[at]], "o", markersize=11, markerfacecolor="none", markeredgecolor=SECOND, markeredgewidth=2
        )
        right = x[at] > (x[0] + x[-1]) / 2
        axes.annotate(
            f"kept: step {x[at]:g}, MAE {y[at]:.3f}",
            (x[at], y[at]),
            xytext=(10 if right else -10, -12),  # below: a minimum has its lines above
            textcoords="offset points",
            ha="right" if right else "left",
            va="top",
            color=SECOND,
        )
        axes.margins(y=0.25)
        _steps_axis(axes)
        axes.set_ylabel("validation MAE")

    return _svg("validation", f"Validation MAE, best {y[at]:.3f} at step {x[at]:g}", draw)


def heat_map(name: str, truth: np.ndarray, prediction: np.ndarray, levels: np.ndarray, trained: bool) -> str:
    """Counts of (true, predicted), shaded by the share within the true rating; failures have a row of their own."""
    count = len(levels)
    failed = ~np.isfinite(prediction)
    offset = int(failed.any())  # the row "no answer" lies below the ratings
    cells = np.zeros((count + offset, count))
    rows = np.where(failed, 0, nearest(np.where(failed, levels[0], prediction), levels) + offset)
    np.add.at(cells, (rows, nearest(truth, levels)), 1)
    shares = cells / np.maximum(cells.sum(axis=0), 1)
    labels = [Scale.text(float(level), 1) for level in levels]

    def draw(axes: Axes) -> None:
        axes.grid(False)
        for (row, column), share in np.ndenumerate(shares):
            ink = ACCENT if trained else SECOND
            axes.add_patch(
                matplotlib.patches.Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, color=LINE, alpha=0.35, lw=0)
            )
            if cells[row, column]:
                box = matplotlib.patches.Rectangle(
                    (column - 0.48, row - 0.48), 0.96, 0.96, color=ink, alpha=0.08 + 0.6 * share, linewidth=0
                )
                axes.add_patch(box)
                axes.text(
                    column, row, f"{cells[row, column]:.0f}", ha="center", va="center", fontsize=11 if count < 8 else 9
                )
        for level in range(count):  # the diagonal: right on
            frame = matplotlib.patches.Rectangle(
                (level - 0.48, level + offset - 0.48), 0.96, 0.96, fill=False, edgecolor=INK, linewidth=0.9
            )
            axes.add_patch(frame)
        axes.set_xlim(-0.55, count - 0.45)
        axes.set_ylim(-0.55, count + offset - 0.45)
        axes.set_xticks(range(count), labels)
        axes.set_yticks(range(count + offset), ([NO_ANSWER] if offset else []) + labels)
        axes.tick_params(length=0)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        axes.set_xlabel("true rating")
        axes.set_ylabel("predicted")

    return _svg(f"heat-{name}", f"Predicted against true ratings of {name}", draw, height=4.4)


def histogram(truth: np.ndarray, predictions: dict[str, np.ndarray], levels: np.ndarray) -> str:
    """Share of the rows at each rating: the truth beside each model, with failures in a bin of their own."""
    series = {"truth": truth} | predictions
    failures = any((~np.isfinite(values)).any() for values in series.values())
    bins = len(levels) + int(failures)
    inks = [MUTED, SECOND, ACCENT] if len(series) == 3 else [MUTED, ACCENT, SECOND, INK, "#b9770e"]
    width = 0.84 / len(series)

    def draw(axes: Axes) -> None:
        for i, (label, values) in enumerate(series.items()):
            failed = ~np.isfinite(values)
            where = np.where(failed, len(levels), nearest(np.where(failed, levels[0], values), levels))
            shares = np.bincount(where, minlength=bins) / max(1, len(values))
            x = np.arange(bins) + (i - (len(series) - 1) / 2) * width
            axes.bar(x, 100 * shares[:bins], width * 0.92, color=inks[i % len(inks)], label=_short(label, 28))
        axes.set_xticks(range(bins), [Scale.text(float(v), 1) for v in levels] + ([NO_ANSWER] if failures else []))
        axes.tick_params(axis="x", length=0)
        axes.grid(axis="x", visible=False)
        axes.set_xlabel("rating")
        axes.set_ylabel("% of rows")
        lines = 1 if len(series) <= 4 else 2
        axes.legend(
            loc="lower center",
            ncols=-(-len(series) // lines),
            bbox_to_anchor=(0.5, 1.0),
            columnspacing=1.2,
            handlelength=1,
        )

    return _svg("histogram", "How often each rating is given and predicted", draw)


def by_group(kind: str, groups: Sequence[str], series: Mapping[str, Sequence[Sequence[float | None]]]) -> str:
    """MAE of each group, from the top down, with its interval. series: model -> (MAE, low, high) of each group."""
    inks = [ACCENT, SECOND, INK, MUTED]
    labels = [_short(group, 24).replace(" to ", " to\n") for group in groups]  # from one date to another
    step = 0.7 / len(series)

    def draw(axes: Axes) -> None:
        for i, (name, figures) in enumerate(series.items()):
            mae, low, high = np.array(figures, float).T
            y = np.arange(len(groups)) + (i - (len(series) - 1) / 2) * step
            ink, mark = inks[i % len(inks)], "osD^v"[i % 5]
            axes.hlines(y, low, high, color=ink, linewidth=1.6, alpha=0.55)
            axes.plot(mae, y, mark, color=ink, markersize=5.5, label=_short(name, 28))
        axes.set_yticks(range(len(groups)), labels)
        axes.set_ylim(len(groups) - 0.45, -0.55)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("MAE")
        axes.figure.legend(loc="outside upper left", ncols=2, handlelength=1, columnspacing=1.2)

    height = 0.9 + 0.22 * ((len(series) + 1) // 2) + len(groups) * (0.14 + 0.13 * len(series))
    return _svg(f"group-{kind}", f"MAE by {html.escape(kind)}", draw, height)


def reliability(name: str, forecast: Sequence[float], observed: Sequence[float], count: Sequence[float]) -> str:
    """How often came true what was forecast with a probability; the larger a dot, the more forecasts it stands for."""
    shares = np.asarray(count, float) / max(1.0, float(np.sum(count)))

    def draw(axes: Axes) -> None:
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=1, linestyle=(0, (4, 4)))
        x, y = 100 * np.asarray(forecast, float), 100 * np.asarray(observed, float)
        axes.plot(x, y, color=ACCENT, linewidth=1.4, alpha=0.6)
        axes.scatter(x, y, 16 + 340 * shares, color=ACCENT, linewidths=0, zorder=3)
        axes.set_xlim(-3, 103)
        axes.set_ylim(-3, 103)
        axes.set_xlabel("forecast, %")
        axes.set_ylabel("came true, %")

    return _svg(f"reliability-{name}", f"Reliability of the probabilities of {html.escape(name)}", draw, height=3.6)


def rating_levels(values: np.ndarray, scale: Scale | None) -> np.ndarray:
    """Ascending ratings to draw at: the scale's grid, or at most eleven equal steps where that is too fine."""
    known = values[np.isfinite(values)]
    if scale is None:
        low, high = (float(known.min()), float(known.max())) if len(known) else (1.0, 5.0)
        low, high = np.floor(low), max(np.ceil(high), np.floor(low) + 1)
        halves = bool(np.any(np.mod(known, 1)))
        scale = Scale(float(low), float(high), 0.5 if halves and high - low <= 5 else 1.0)
    grid = np.asarray(scale.grid())
    return grid if len(grid) <= _MOST_LEVELS else np.linspace(scale.min, scale.max, _MOST_LEVELS)


def nearest(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """(rows,) index of the level that each value lies in; halves upwards."""
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, values, side="right")


def _short(text: str, most: int) -> str:
    """On one line; what is left out stands in the table beside the picture."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return plain if len(plain) <= most else f"{plain[: most - 1]}\u2026"


def _steps_axis(axes: Axes) -> None:
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, steps=[1, 2, 5, 10]))


def _svg(key: str, label: str, draw: Any, height: float = 3.2) -> str:
    """Draw on a fresh figure; `key` keeps the ids of several pictures in one page apart."""
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": key}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's own fonts write the text
        figure = Figure(figsize=(5.4, height), layout="constrained")
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # generic names, the same in every picture
    for ink, variable in _VARIABLES.items():
        svg = svg.replace(ink, f"var({variable})")
    opening = re.sub(r' (width|height|xmlns:xlink|xmlns|version)="[^"]*"', "", svg[: svg.index(">")])
    return f'{opening} role="img" aria-label="{label}"{svg[svg.index(">") :]}'
