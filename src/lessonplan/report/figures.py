"""The figures of results: gains with intervals and learning curves.

Each function returns a Matplotlib figure; `svg` and `png` turn it into bytes that are the same
whenever the figure is. Colours stand in the lists below and are told apart by colour-blind readers.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lessonplan.statistics.analysis import ACCURACY, Result
from lessonplan.statistics.crossed import THESE_RUNS
from lessonplan.statistics.family import Gain
from lessonplan.statistics.verdict import baseline_words, place, signed, spoken, unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, RULE = "#1f2933", "#6b7785", "#d3d9e0"
WINNER, LOSER, NEUTRAL = "#009e73", "#d55e00", "#3b7dd8"
ARMS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#8a6fdf"]
MARKERS = "osD^vPX"
WIDE, NARROW = 9.2, 4.1
"""Inches: for a desk and for a phone. Both stand in the page; the screen's width picks one."""

SETTINGS: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial"],
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 10.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "lessonplan",
}


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches, without a window behind it."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="none")


def literal(text: str) -> str:
    """Keep Matplotlib from reading a dollar sign in somebody's name as mathematics."""
    return text.replace("$", r"\$")


def shortened(text: str, length: int) -> str:
    """Cut text to a length, with an ellipsis."""
    return text if len(text) <= length else text[: length - 1].rstrip(" ,") + "…"


def gains_figure(results: Sequence[Result], width: float = WIDE) -> Figure | None:
    """Draw each arm's gain with its 95% interval, a panel for each result; None without gains."""
    import matplotlib as mpl

    shown = [r for r in results if any(g.estimate is not None for g in r.gains)]
    if not shown:
        return None
    with mpl.rc_context(SETTINGS):
        rows = [len(r.gains) for r in shown]
        several = len(shown) > 1
        extra = 1.15 + (0.3 if several else 0.0)
        fig = new_figure(width, sum(0.36 * n + extra for n in rows))
        axes = fig.subplots(len(shown), 1, height_ratios=[n + 1.5 for n in rows], squeeze=False)
        for ax, result in zip(axes[:, 0], shown, strict=True):
            _forest(ax, result, width, literal(place(result)) if several else "")
    return fig


def _forest(ax: Axes, result: Result, width: float, title: str) -> None:
    metric = result.outcome.metric
    scale = 100 if metric == ACCURACY else 1
    order = sorted(result.gains, key=lambda g: -math.inf if g.estimate is None else g.estimate.mean)
    ends = [0.0]
    for y, gain in enumerate(order):
        if gain.estimate is None:
            ax.annotate(
                "no run to compare",
                (0, y),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                color=MUTED,
                fontsize=9,
            )
            continue
        e = gain.estimate
        colour = _tone(gain)
        low, high = (e.mean, e.mean) if math.isnan(e.low) else (e.low, e.high)
        ends += [low * scale, high * scale]
        style = ":" if e.scope == THESE_RUNS else "-"
        ax.plot(
            [low * scale, high * scale], [y, y], style, color=colour, lw=2.2, solid_capstyle="round"
        )
        ax.plot(
            e.mean * scale,
            y,
            "D" if gain.winner else "o",
            color=colour,
            ms=8.5 if gain.winner else 7.5,
            mfc=colour if gain.testable else "none",
            mew=1.6,
        )
        words = signed(e.mean, metric)
        if width > NARROW and not math.isnan(e.low):
            words += f"   ({signed(e.low, metric)} to {signed(e.high, metric)})"
        ax.text(
            1.02,
            y,
            words,
            transform=ax.get_yaxis_transform(),
            va="center",
            fontsize=9.5 if width > NARROW else 9,
            color=INK,
            fontweight="bold" if gain.winner or gain.loser else "normal",
        )
    names = 44 if width > NARROW else 24
    ax.set_yticks(range(len(order)), [literal(shortened(spoken(g.arm), names)) for g in order])
    ax.tick_params(axis="y", length=0, labelcolor=INK, labelsize=10 if width > NARROW else 9)
    ax.set_ylim(-0.7, len(order) - 0.1)
    ax.axvline(0, color=MUTED, lw=1.2, zorder=0)
    if result.best is not None and result.best.k > 1:
        luck = result.best.luck * scale
        ends.append(luck)
        ax.axvline(luck, color=MUTED, lw=1, ls=(0, (3, 3)), zorder=0)
        ax.annotate(
            f"best of {result.best.k} by luck alone",
            (luck, len(order) - 0.35),
            xytext=(5, 0),
            textcoords="offset points",
            fontsize=8.5,
            color=MUTED,
            va="center",
        )
    margin = 0.06 * (max(ends) - min(ends) or 1.0)
    ax.set_xlim(min(ends) - margin, max(ends) + margin)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x", color=RULE, lw=0.7)
    ax.set_axisbelow(True)
    measured = unit(metric).strip() or literal(metric)
    ax.set_xlabel(f"gain over {literal(shortened(baseline_words(result), 30))} ({measured})")
    if title:
        ax.set_title(shortened(title, 90 if width > NARROW else 40), pad=10)


def _tone(gain: Gain) -> str:
    if gain.winner:
        return WINNER
    if gain.loser:
        return LOSER
    return NEUTRAL if gain.testable else MUTED


def curves_figure(results: Sequence[Result], width: float = WIDE) -> Figure | None:
    """Draw the mean score against questions seen, a panel for each result that has checkpoints."""
    import matplotlib as mpl

    shown = [r for r in results if r.outcome.curves]
    if not shown:
        return None
    with mpl.rc_context(SETTINGS):
        columns = 2 if width > NARROW and len(shown) > 1 else 1
        n_rows = -(-len(shown) // columns)
        legend = 0.28 * math.ceil(len(shown[0].outcome.arms) / (3 if width > NARROW else 2))
        height = 3.9 if width > NARROW else 3.3
        fig = new_figure(width, height * n_rows + legend)
        grid = fig.subplots(n_rows, columns, squeeze=False)
        for ax in grid.flat[len(shown) :]:
            ax.set_visible(False)
        handles: dict[str, Any] = {}
        for ax, result in zip(grid.flat, shown, strict=False):
            for arm, line in _curve_lines(ax, result).items():
                handles.setdefault(arm, line)
            if len(shown) > 1:
                ax.set_title(literal(shortened(place(result), 44)))
        fig.legend(
            list(handles.values()),
            [literal(shortened(spoken(arm), 40)) for arm in handles],
            loc="outside upper left",
            ncols=3 if width > NARROW else 2,
            fontsize=9.5 if width > NARROW else 8.5,
            handlelength=2.4,
            columnspacing=1.6,
        )
    return fig


def _curve_lines(ax: Axes, result: Result) -> dict[str, Any]:
    outcome = result.outcome
    scale = 100 if outcome.metric == ACCURACY else 1
    lines = {}
    others = 0
    for arm in outcome.arms:
        curve = outcome.curves.get(arm)
        if curve is None:
            continue
        present = ~np.isnan(curve.values).all(axis=(0, 2))
        if not present.any():
            continue
        means = np.nanmean(curve.values[:, present], axis=(0, 2)) * scale
        if arm == outcome.baseline:
            look: dict[str, Any] = {
                "color": INK,
                "lw": 2.4,
                "ls": (0, (4, 2)),
                "marker": "o",
                "ms": 5,
                "zorder": 3,
            }
        else:
            number = others % len(ARMS)
            look = {
                "color": ARMS[number],
                "lw": 1.8,
                "ls": ["-", "--", ":"][others // len(ARMS) % 3],
                "marker": MARKERS[number],
                "ms": 5,
            }
            others += 1
        lines[arm] = ax.plot(curve.seen[present], means, **look)[0]
    if result.floor is not None:
        ax.axhline(result.floor * 100, color=MUTED, lw=1, ls=":")
        ax.text(
            0.995,
            result.floor * 100,
            "floor",
            transform=ax.get_yaxis_transform(),
            ha="right",
            va="bottom",
            fontsize=8.5,
            color=MUTED,
        )
    ax.grid(axis="y", color=RULE, lw=0.7)
    ax.set_xlabel("training questions seen")
    ax.set_ylabel("accuracy (%)" if outcome.metric == ACCURACY else literal(outcome.metric))
    return lines


def svg(figure: Figure, *, background: str = "none") -> str:
    """Return the figure as SVG text, without dates."""
    import matplotlib as mpl

    out = io.StringIO()
    with mpl.rc_context(SETTINGS):
        figure.savefig(
            out,
            format="svg",
            facecolor=background,
            dpi=220,
            metadata={"Date": None, "Creator": None},
        )
    return out.getvalue()


def png(figure: Figure) -> bytes:
    """Return the figure as PNG on white, 200 dots an inch."""
    import matplotlib as mpl

    out = io.BytesIO()
    with mpl.rc_context(SETTINGS):
        figure.savefig(out, format="png", facecolor="white", dpi=200, metadata={"Software": None})
    return out.getvalue()
