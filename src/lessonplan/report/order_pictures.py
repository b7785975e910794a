"""The figure of the orders: what the model saw when, by category and difficulty."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lessonplan.evaluation.outcomes import OrderPicture
from lessonplan.report.figures import (
    INK,
    NARROW,
    RULE,
    SETTINGS,
    WIDE,
    arm_label,
    literal,
    new_figure,
    shortened,
)
from lessonplan.statistics.labels import UNLABELLED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FloatArray = NDArray[np.float64]
EASY_TO_HARD = ["#3d7dd6", "#9a6fb0", "#e0762f"]


def orders_figure(pictures: Sequence[OrderPicture], width: float = WIDE) -> Figure | None:
    """Draw what the model saw when, a panel for each arm of one training set.

    A row is a category, a tick a question at its position, its colour the difficulty from blue
    (easy) to orange (hard); below stands the mean difficulty along the way. None where the
    pictures carry no labels at all.
    """
    import matplotlib as mpl

    shown = [p for p in pictures if p.categories is not None or p.difficulty is not None]
    if not shown:
        return None
    names = category_rows(shown)
    has_difficulty = any(p.difficulty is not None for p in shown)
    with mpl.rc_context(SETTINGS):
        columns = 2 if width > NARROW and len(shown) > 1 else 1
        n_rows = -(-len(shown) // columns)
        upper = min(0.10 * len(names) + 0.25, 2.4) if names else 0.0
        lower = 0.62 if has_difficulty else 0.0
        fig = new_figure(width, n_rows * (upper + lower + 0.7) + 0.75)
        ratios = [r for r in (upper, lower) if r]
        grid = fig.subplots(
            n_rows * len(ratios), columns, squeeze=False, sharex=True, height_ratios=ratios * n_rows
        )
        for number in range(n_rows * columns):
            row, column = divmod(number, columns)
            pair = list(grid[row * len(ratios) : (row + 1) * len(ratios), column])
            if number >= len(shown):
                for ax in pair:
                    ax.set_visible(False)
                continue
            first = literal(arm_label(shown[number].arm, 44))
            pair[0].set_title(first, pad=5 if row == 0 else 12)
            if names:
                _raster(pair.pop(0), shown[number], names, labelled=column == 0 and width > NARROW)
            if has_difficulty:
                _difficulty_trace(pair[0], shown[number])
        for ax in grid[-1, :]:
            ax.set_xlabel("position in the training order")
        if has_difficulty:
            _key(fig)
    return fig


def category_rows(pictures: Sequence[OrderPicture]) -> list[str]:
    """Return the categories in the order in which the most blocked picture shows them.

    That is the picture in which the category changes least often; there the rows fall in a
    staircase. At most 40 rows are drawn, the largest categories.
    """
    labelled = [[c or UNLABELLED for c in p.categories] for p in pictures if p.categories]
    if not labelled:
        return []
    changes = [sum(a != b for a, b in pairwise(c)) for c in labelled]
    blocked = labelled[int(np.argmin(changes))]
    rows = list(dict.fromkeys(blocked))
    if len(rows) > 40:
        largest = sorted(rows, key=lambda name: -blocked.count(name))[:40]
        rows = [name for name in rows if name in set(largest)]
    return rows


def _ramp(difficulty: FloatArray) -> FloatArray:
    """Return red, green, blue for each value from 0 to 1, ``[..., 3]``."""
    stops = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in EASY_TO_HARD])
    at = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(difficulty, at, stops[:, i]) for i in range(3)], axis=-1)


def _raster(ax: Axes, picture: OrderPicture, names: list[str], labelled: bool) -> None:
    labels = [c or UNLABELLED for c in picture.categories or []]
    n = len(labels)
    # Above 1,200 positions several share a column: the colour is their mean difficulty and the
    # strength their number.
    width = min(max(n, 1), 1200)
    row_of = {name: i for i, name in enumerate(names)}
    count = np.zeros((len(names), width))
    total = np.zeros((len(names), width))
    difficulty = _unit(picture.difficulty) if picture.difficulty is not None else np.full(n, 0.5)
    for position, label in enumerate(labels):
        if label in row_of:
            cell = row_of[label], position * width // n
            count[cell] += 1
            total[cell] += difficulty[position] if np.isfinite(difficulty[position]) else 0.5
    image = np.zeros((len(names), width, 4))
    mean = np.divide(total, count, out=np.full_like(total, 0.5), where=count > 0)
    image[..., :3] = _ramp(mean)
    image[..., 3] = np.clip(count / max(1.0, n / width), 0, 1)
    ax.imshow(
        np.repeat(image, 4, axis=0) * _gaps(len(names)),
        aspect="auto",
        interpolation="nearest",
        extent=(0, max(n, 1), len(names) - 0.5, -0.5),
    )
    step = max(1, len(names) // 20)
    ticks = range(0, len(names), step)
    ax.set_yticks(ticks, [literal(shortened(names[i], 30)) for i in ticks] if labelled else [])
    ax.tick_params(axis="y", length=0, labelsize=7.5)
    ax.tick_params(axis="x", length=0)
    ax.spines["bottom"].set_visible(False)


def _gaps(rows: int) -> FloatArray:
    """Return a mask that leaves a hair's breadth between the rows of a raster."""
    mask = np.ones((rows * 4, 1, 4))
    mask[::4, :, 3] = 0.0
    return mask


def _unit(difficulty: FloatArray) -> FloatArray:
    """Stretch difficulties to 0..1, so that the colours are used whatever the label's range."""
    if not np.isfinite(difficulty).any():
        return np.full(len(difficulty), 0.5)
    low, high = np.nanmin(difficulty), np.nanmax(difficulty)
    return (difficulty - low) / (high - low) if high > low else np.full(len(difficulty), 0.5)


def _difficulty_trace(ax: Axes, picture: OrderPicture) -> None:
    n = len(picture.learning_rate)
    ax.set_ylim(-0.05, 1.05)
    ax.set_yticks([0, 1], ["easy", "hard"], fontsize=7.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", color=RULE, lw=0.7)
    if picture.difficulty is None or not np.isfinite(picture.difficulty).any():
        return
    values = _unit(picture.difficulty)
    window = max(1, n // 40)
    known = np.isfinite(values).astype(float)
    kernel = np.ones(window)
    weight = np.convolve(known, kernel, "same")
    smooth = np.divide(
        np.convolve(np.nan_to_num(values), kernel, "same"),
        weight,
        out=np.full(n, np.nan),
        where=weight > 0,
    )
    if n > 1200:
        keep = np.linspace(0, n - 1, 1200).astype(int)
        ax.plot(keep, smooth[keep], color=INK, lw=1.1)
    else:
        ax.plot(np.arange(n), smooth, color=INK, lw=1.1)


def _key(fig: Figure) -> None:
    from matplotlib.patches import Patch

    shades = _ramp(np.array([0.0, 0.5, 1.0]))
    handles = [Patch(color=tuple(c)) for c in shades]
    fig.legend(
        handles,
        ["easy", "middle", "hard"],
        loc="outside upper left",
        ncols=3,
        fontsize=9,
        handlelength=1.2,
        handleheight=0.9,
        title="Colour: difficulty",
        title_fontsize=9,
        alignment="left",
    )
