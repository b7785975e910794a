"""The figures of learning along a run: questions to a level, and gain by time since last seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from lessonplan.evaluation.outcomes import place_of
from lessonplan.report.figures import (
    ARMS,
    INK,
    MARKERS,
    MUTED,
    NARROW,
    NEUTRAL,
    RULE,
    SETTINGS,
    WIDE,
    arm_label,
    literal,
    new_figure,
    shortened,
)
from lessonplan.report.progress_tables import reached_words
from lessonplan.statistics.efficiency import Efficiency
from lessonplan.statistics.forgetting import BINS, Forgetting
from lessonplan.statistics.result import ACCURACY
from lessonplan.statistics.verdict import unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line = TypeVar("Line", Efficiency, Forgetting)


def efficiency_figure(found: Sequence[Efficiency], width: float = WIDE) -> Figure | None:
    """Draw the questions that each order needs to what the baseline has at its end."""
    rows = [len(part) for part in _panels(found)]
    heights = [0.36 * n + 1.35 for n in rows]
    return _drawn(_panels(found), heights, width, _reached)


def forgetting_figure(found: Sequence[Forgetting], width: float = WIDE) -> Figure | None:
    """Draw each order's gain by how long ago a category was last seen."""
    shown = [f for f in found if not all(math.isnan(r.low) for r in f.recalls)]
    panels = _panels(shown)
    columns = 3 if width > NARROW else 2
    heights = [
        (3.6 if width > NARROW else 3.2) + 0.25 * math.ceil(len(p) / columns) for p in panels
    ]
    return _drawn(panels, heights, width, _recalls)


def _panels(found: Sequence[Line]) -> list[list[Line]]:
    panels: dict[tuple[str, str], list[Line]] = {}
    for line in found:
        panels.setdefault((line.model, line.evaluation), []).append(line)
    return list(panels.values())


def _drawn(
    panels: list[list[Line]],
    heights: list[float],
    width: float,
    draw: Callable[[Axes, list[Line], bool], None],
) -> Figure | None:
    import matplotlib as mpl

    if not panels:
        return None
    with mpl.rc_context(SETTINGS):
        fig = new_figure(width, sum(heights))
        axes = fig.subplots(len(panels), 1, height_ratios=heights, squeeze=False)
        for ax, part in zip(axes[:, 0], panels, strict=True):
            draw(ax, part, width > NARROW)
            if len(panels) > 1:
                name = place_of(part[0].model, part[0].evaluation)
                ax.set_title(literal(shortened(name, 90 if width > NARROW else 40)), pad=10)
    return fig


def _reached(ax: Axes, part: list[Efficiency], wide: bool) -> None:
    end = max(e.end for e in part)
    order = sorted(part, key=lambda e: -e.reached)
    for y, e in enumerate(order):
        low, high = (min(x, end * 1.04) for x in (e.low, e.high))
        ax.plot([low, high], [y, y], color=NEUTRAL, lw=2.2, solid_capstyle="round")
        if math.isinf(e.high):
            ax.plot(end * 1.04, y, ">", color=NEUTRAL, ms=6)
        if math.isfinite(e.reached):
            ax.plot(e.reached, y, "o", color=NEUTRAL, ms=7.5)
        ax.text(
            1.02,
            y,
            reached_words(e.reached),
            transform=ax.get_yaxis_transform(),
            va="center",
            fontsize=9.5 if wide else 9,
            color=INK,
        )
    names = 44 if wide else 24
    ax.set_yticks(range(len(order)), [literal(arm_label(e.arm, names)) for e in order])
    ax.tick_params(axis="y", length=0, labelcolor=INK, labelsize=10 if wide else 9)
    ax.set_ylim(-0.7, len(order) - 0.3)
    ax.set_xlim(0, end * 1.06)
    ax.axvline(end, color=MUTED, lw=1, ls=(0, (3, 3)), zorder=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x", color=RULE, lw=0.7)
    ax.set_axisbelow(True)
    ax.set_xlabel("questions seen until the baseline's final score")


def _recalls(ax: Axes, part: list[Forgetting], wide: bool) -> None:
    scale = 100 if part[0].metric == ACCURACY else 1
    for number, f in enumerate(part):
        x, y, below, above = [], [], [], []
        for i, r in enumerate(f.recalls):
            if not math.isnan(r.low):
                x.append(i + (number - (len(part) - 1) / 2) * 0.6 / len(part))
                y.append(r.gain * scale)
                below.append(max(0.0, r.gain - r.low) * scale)
                above.append(max(0.0, r.high - r.gain) * scale)
        name = literal(arm_label(f.arm, 40 if wide else 24))
        colour, marker = ARMS[number % len(ARMS)], MARKERS[number % len(MARKERS)]
        ends = [below, above]
        ax.errorbar(x, y, ends, fmt=marker, color=colour, ms=5.5, lw=1.5, label=name)
    ax.axhline(0, color=MUTED, lw=1.2, zorder=0)
    for edge in range(len(BINS) - 1):
        ax.axvline(edge + 0.5, color=RULE, lw=0.7, zorder=0)
    labels = BINS if wide else ["\n".join(b.rsplit(" ", 1)) for b in BINS]
    ax.set_xticks(range(len(BINS)), labels)
    ax.tick_params(axis="x", length=0, labelcolor=INK)
    ax.set_xlim(-0.5, len(BINS) - 0.5)
    ax.grid(axis="y", color=RULE, lw=0.7)
    ax.set_axisbelow(True)
    ax.set_ylabel(f"gain ({unit(part[0].metric).strip() or literal(part[0].metric)})")
    ax.set_xlabel("the question's category was")
    ax.legend(
        loc="lower left", bbox_to_anchor=(0, 1.06), ncols=3 if wide else 2,
        fontsize=9 if wide else 8, handletextpad=0.4, columnspacing=1.2,
    )  # fmt: skip
