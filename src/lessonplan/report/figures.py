"""The figures of results: gains with intervals and learning curves.

Each function returns a Matplotlib figure; `svg` and `png` turn it into bytes that are the same
whenever the figure is. Colours stand in the lists below and are told apart by colour-blind readers.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lessonplan.evaluation.outcomes import Outcome
from lessonplan.statistics.crossed import THESE_RUNS
from lessonplan.statistics.efficiency import counted_values
from lessonplan.statistics.family import Gain
from lessonplan.statistics.result import ACCURACY, Result
from lessonplan.statistics.verdict import baseline_words, signed, spoken, unit

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


def arm_label(arm: str, length: int) -> str:
    """Return an arm's name for a figure, cut so that its label sources can still be read.

    ``"curriculum [difficulty=llm]"`` becomes ``"curriculum [llm]"`` where it is too long.
    """
    text = spoken(arm)
    name, bracket, sources = text.partition(" [")
    if len(text) <= length or not bracket:
        return shortened(text, length)
    sources = re.sub(r"\w+=", "", " [" + sources)
    return shortened(name, max(length - len(sources), 8)) + sources


def gains_figure(results: Sequence[Result], width: float = WIDE) -> Figure | None:
    """Draw each arm's gain with its 95% interval, a panel for each result; None without gains.

    Several results with the same arms stand side by side on a desk and share the arms' rows.
    The mark of gain i of result n has the id ``gain-<n>-<i>``, n counted over all results.
    """
    import matplotlib as mpl

    shown = [n for n, r in enumerate(results) if any(g.estimate is not None for g in r.gains)]
    if not shown:
        return None
    several = len(shown) > 1
    alike = [([g.arm for g in results[n].gains], results[n].outcome.metric) for n in shown]
    columns = min(len(shown), 3) if width > NARROW and alike.count(alike[0]) == len(alike) else 1
    in_order = [_by_mean([results[i] for i in shown] if columns > 1 else [r]) for r in results]
    n_rows = -(-len(shown) // columns)
    rows = [len(results[n].gains) for n in shown[::columns]]
    panel = width / columns
    row, extra = (0.33, 1.05) if columns == 1 else (0.27, 0.65)
    with mpl.rc_context(SETTINGS):
        height = sum(row * n + extra + (0.3 if several else 0.0) for n in rows)
        fig = new_figure(width, height)
        fig.set_layout_engine("constrained", h_pad=0.1 if several and columns == 1 else 0.04)
        axes = fig.subplots(
            n_rows,
            columns,
            height_ratios=[n + 1.5 for n in rows],
            squeeze=False,
            sharex=columns > 1,
        )
        for ax in axes.flat[len(shown) :]:
            ax.set_visible(False)
        for spot, (ax, n) in enumerate(zip(axes.flat, shown, strict=False)):
            title = literal(shortened(results[n].outcome.place, int(10 * panel))) if several else ""
            _forest(ax, results[n], n, in_order[n], panel, title)
            if spot % columns:
                ax.set_yticklabels([])
            if columns > 1:
                ax.set_title(title, fontsize=9, pad=6)
                ax.set_xlabel("")
                ax.tick_params(axis="x", labelbottom=spot + columns >= len(shown))
        if columns > 1:
            fig.supxlabel(_gain_axis(results[shown[0]]), fontsize=10, color=MUTED)
    return fig


def _by_mean(results: Sequence[Result]) -> list[int]:
    """Return the numbers of the gains from the smallest mean to the largest."""

    def mean(number: int) -> float:
        found = [e.mean for r in results if (e := r.gains[number].estimate) is not None]
        return sum(found) / len(found) if found else -math.inf

    return sorted(range(len(results[0].gains)), key=mean)


def _forest(
    ax: Axes, result: Result, number: int, order: Sequence[int], width: float, title: str
) -> None:
    metric = result.outcome.metric
    scale = 100 if metric == ACCURACY else 1
    for y, which in enumerate(order):
        gain = result.gains[which]
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
            gid=f"gain-{number}-{which}",
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
    arms = [result.gains[which].arm for which in order]
    ax.set_yticks(range(len(arms)), [literal(arm_label(arm, names)) for arm in arms])
    ax.tick_params(axis="y", length=0, labelcolor=INK, labelsize=10 if width > NARROW else 9)
    ax.set_ylim(-0.7, len(order) - 0.1)
    ax.axvline(0, color=MUTED, lw=1.2, zorder=0)
    if result.best is not None and result.best.k > 1:
        luck = result.best.luck * scale
        ax.axvline(luck, color=MUTED, lw=1, ls=(0, (3, 3)), zorder=0)
        ax.annotate(
            f"best of {result.best.k} by luck" + (" alone" if width > NARROW else ""),
            (luck, len(order) - 0.35),
            xytext=(5, 0),
            textcoords="offset points",
            fontsize=8.5 if width >= NARROW else 7.5,
            color=MUTED,
            va="center",
        )
    ax.margins(x=0.06)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x", color=RULE, lw=0.7)
    ax.set_axisbelow(True)
    ax.set_xlabel(_gain_axis(result))
    if title:
        ax.set_title(title, pad=10)


def _gain_axis(result: Result) -> str:
    metric = result.outcome.metric
    measured = unit(metric).strip() or literal(metric)
    return f"gain over {literal(shortened(baseline_words(result), 30))} ({measured})"


def _tone(gain: Gain) -> str:
    if gain.winner:
        return WINNER
    if gain.loser:
        return LOSER
    return NEUTRAL if gain.testable else MUTED


def curves_figure(
    results: Sequence[Result], width: float = WIDE, *, legend: bool = True
) -> Figure | None:
    """Draw the mean score against questions seen, a panel for each result that has checkpoints.

    The curve of arm i of result n, counted over those drawn, has the id ``curve-<n>-<i>``.
    """
    import matplotlib as mpl

    shown = [r for r in results if r.outcome.curves]
    if not shown:
        return None
    with mpl.rc_context(SETTINGS):
        columns = 2 if width > NARROW and len(shown) > 1 else 1
        n_rows = -(-len(shown) // columns)
        keys = 0.28 * math.ceil(len(shown[0].outcome.arms) / (3 if width > NARROW else 2))
        height = 3.9 if width > NARROW else 3.3
        fig = new_figure(width, height * n_rows + (keys if legend else 0.0))
        grid = fig.subplots(n_rows, columns, squeeze=False)
        for ax in grid.flat[len(shown) :]:
            ax.set_visible(False)
        handles: dict[str, Any] = {}
        for number, (ax, result) in enumerate(zip(grid.flat, shown, strict=False)):
            for arm, line in _curve_lines(ax, result, number).items():
                handles.setdefault(arm, line)
            if len(shown) > 1:
                ax.set_title(literal(shortened(result.outcome.place, 44)))
        if not legend:
            return fig
        fig.legend(
            list(handles.values()),
            [literal(arm_label(arm, 40)) for arm in handles],
            loc="outside upper left",
            ncols=3 if width > NARROW else 2,
            fontsize=9.5 if width > NARROW else 8.5,
            handlelength=2.4,
            columnspacing=1.6,
        )
    return fig


def curve_points(outcome: Outcome, arm: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the questions seen and the mean score at each checkpoint that any run reached."""
    curve = outcome.curves.get(arm)
    if curve is None:
        return np.empty(0, dtype=np.int64), np.empty(0)
    values = counted_values(outcome, curve)
    present = ~np.isnan(values).all(axis=(0, 2))
    return curve.seen[present], np.nanmean(values[:, present], axis=(0, 2))


def curve_looks(outcome: Outcome) -> dict[str, dict[str, Any]]:
    """Return how each arm's curve is drawn, as Matplotlib's settings of a line."""
    looks: dict[str, dict[str, Any]] = {}
    others = [arm for arm in outcome.arms if arm != outcome.baseline and arm in outcome.curves]
    for number, arm in enumerate(others):
        looks[arm] = {
            "color": ARMS[number % len(ARMS)],
            "lw": 1.8,
            "ls": ["-", "--", ":"][number // len(ARMS) % 3],
            "marker": MARKERS[number % len(ARMS)],
            "ms": 5,
        }
    baseline = {"color": INK, "lw": 2.4, "ls": (0, (4, 2)), "marker": "o", "ms": 5, "zorder": 3}
    return looks | {outcome.baseline: baseline}


def _curve_lines(ax: Axes, result: Result, number: int) -> dict[str, Any]:
    outcome = result.outcome
    scale = 100 if outcome.metric == ACCURACY else 1
    looks = curve_looks(outcome)
    lines = {}
    for which, arm in enumerate(outcome.arms):
        seen, means = curve_points(outcome, arm)
        if len(seen):
            gid = f"curve-{number}-{which}"
            lines[arm] = ax.plot(seen, means * scale, gid=gid, **looks[arm])[0]
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
