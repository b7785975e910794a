"""The map of the questions: like lies near like, coloured by category."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lessonplan.evaluation.outcomes import LabelSource, Record
from lessonplan.report.figures import (
    ARMS,
    MUTED,
    NARROW,
    SETTINGS,
    WIDE,
    literal,
    new_figure,
    shortened,
)
from lessonplan.statistics.labels import UNLABELLED
from lessonplan.statistics.sources import category_codes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FloatArray = NDArray[np.float64]
SHAPES = "o^s"
MOST_CATEGORIES = len(ARMS) * len(SHAPES)
MOST_VECTOR_POINTS = 500
"""More points than this are drawn as an image inside the SVG; text and badges stay vectors."""
BADGE = 0.27
"""Inches across."""


def mapped(record: Record) -> dict[str, LabelSource]:
    """Return the category sources with a place for each question, by their figure's name."""
    found = [s for s in record.label_sources if s.kind == "category" and s.place is not None]
    return {f"map-{number}": source for number, source in enumerate(found, start=1)}


def map_figure(source: LabelSource, width: float = WIDE) -> Figure | None:
    """Draw each question at its place, in the colour and shape of its category.

    Numbers on the map and in the key name the categories, so that no reader depends on colour.
    Beyond 21 categories the smallest are grey and go without a number. None without places, or
    where no question with a place has a category.
    """
    import matplotlib as mpl
    from matplotlib.lines import Line2D

    if source.place is None:
        return None
    place = np.asarray(source.place, dtype=np.float64)
    known = np.isfinite(place).all(axis=1)
    codes, names = category_codes(source.values)
    sizes = np.bincount(codes[known & (codes >= 0)], minlength=len(names))
    if not sizes.sum():
        return None
    order = [int(i) for i in np.argsort(-sizes, kind="stable") if sizes[i]]
    shown, rest = order[:MOST_CATEGORIES], order[MOST_CATEGORIES:]
    grey = known & ((codes < 0) | np.isin(codes, rest))
    raster = bool(known.sum() > MOST_VECTOR_POINTS)
    area = float(np.clip(9000 / known.sum(), 5, 26))
    wide = width > NARROW
    length = 40 if wide else 36
    entries = len(shown) + bool(rest) + bool((codes[known] < 0).any())
    with mpl.rc_context(SETTINGS):
        map_width = width * 0.6 if wide else width
        map_height = max(map_width * 0.85, 0.215 * entries) if wide else map_width * 0.9
        fig = new_figure(width, map_height + (0 if wide else 0.19 * entries + 0.15))
        ax = fig.subplots()
        style: dict[str, Any] = {"linewidths": 0, "rasterized": raster}
        ax.scatter(place[grey, 0], place[grey, 1], s=area * 0.8, c=MUTED, alpha=0.45, **style)
        middles = np.array([_middle(place[known & (codes == c)]) for c in shown])
        looks = _looks(middles)
        # The large ones first, so that they do not bury the small.
        for category, (colour, shape) in zip(shown, looks, strict=True):
            points = place[known & (codes == category)]
            ax.scatter(
                points[:, 0], points[:, 1], s=area, c=colour, marker=shape, alpha=0.8, **style
            )
        _frame(ax, place[known], map_width / map_height)
        _badges(ax, middles, [colour for colour, _ in looks], map_width)
        handles = [
            Line2D([], [], ls="", marker=shape, color=colour, ms=6.5) for colour, shape in looks
        ]
        texts = [
            f"{i}  {_named(names[c], length)} ({sizes[c]:,})" for i, c in enumerate(shown, start=1)
        ]
        if rest:
            handles.append(Line2D([], [], ls="", marker="o", color=MUTED, ms=5))
            texts.append(f"{len(rest)} smaller categories ({sizes[rest].sum():,})")
        if (codes[known] < 0).any():
            handles.append(Line2D([], [], ls="", marker="o", color=MUTED, ms=5))
            texts.append(f"{UNLABELLED} ({int((codes[known] < 0).sum()):,})")
        fig.legend(
            handles,
            texts,
            loc="outside right upper" if wide else "outside lower left",
            fontsize=8.5 if wide else 8,
            labelspacing=0.45 if wide else 0.35,
            handletextpad=0.3,
            borderaxespad=0.2,
        )
    return fig


def _looks(middles: FloatArray) -> list[tuple[str, str]]:
    """Return a colour and shape for each category, equal colours far from each other on the map."""
    held: list[list[FloatArray]] = [[] for _ in ARMS]
    looks = []
    for middle in middles:
        room = [
            min((float(np.hypot(*(middle - other))) for other in own), default=np.inf)
            if len(own) < len(SHAPES)
            else -1.0
            for own in held
        ]
        colour = int(np.argmax(room))
        looks.append((ARMS[colour], SHAPES[len(held[colour])]))
        held[colour].append(middle)
    return looks


def _named(name: str, length: int) -> str:
    return literal(shortened(" ".join(name.split()), length))


def _frame(ax: Axes, place: FloatArray, shape: float) -> None:
    """Show the places with equal scales; the axes of a map mean nothing, so they go."""
    low, high = place.min(axis=0), place.max(axis=0)
    span = np.maximum(high - low, 1e-9) * 1.06
    span = np.maximum(span, [span[1] * shape, span[0] / shape])
    middle = (low + high) / 2
    ax.set_xlim(middle[0] - span[0] / 2, middle[0] + span[0] / 2)
    ax.set_ylim(middle[1] - span[1] / 2, middle[1] + span[1] / 2)
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ax.spines.values():
        side.set_visible(False)


def _middle(points: FloatArray) -> FloatArray:
    """Return the point nearest to the medians: the medians themselves may lie in an empty spot."""
    gap = ((points - np.median(points, axis=0)) ** 2).sum(axis=1)
    return np.asarray(points[int(np.argmin(gap))])


def _badges(ax: Axes, middles: FloatArray, colours: list[str], width: float) -> None:
    """Write the numbers 1, 2, ... near their middles, pushed apart where they would touch."""
    left, right = ax.get_xlim()
    scale = (right - left) / width
    spots = apart(middles / scale, BADGE) * scale
    for number, (spot, middle, colour) in enumerate(zip(spots, middles, colours, strict=True), 1):
        if np.hypot(*(spot - middle)) > 0.5 * BADGE * scale:
            ax.plot(*np.array([middle, spot]).T, color=colour, lw=1.1, zorder=3)
        ax.text(
            spot[0],
            spot[1],
            str(number),
            ha="center",
            va="center",
            fontsize=8,
            fontweight="bold",
            color="#111111",
            zorder=5,
            bbox={"boxstyle": "circle,pad=0.2", "fc": "white", "ec": colour, "lw": 1.6},
        )


def apart(spots: FloatArray, least: float) -> FloatArray:
    """Push points ``[n, 2]`` apart until no two are nearer than a distance, moving them little."""
    moved = np.array(spots, dtype=np.float64)
    n = len(moved)
    # Points that coincide leave in different directions.
    turn = 2.4 * np.arange(n)
    moved += 1e-3 * least * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    for _ in range(500):
        gap = moved[:, None] - moved[None]
        distance = np.sqrt((gap**2).sum(axis=2)) + np.eye(n) * 1e9
        lacking = np.maximum(least * 1.02 - distance, 0.0)
        if not (lacking > least * 0.02).any():
            break
        moved += (gap / distance[..., None] * lacking[..., None] / 2).sum(axis=1)
    return moved
