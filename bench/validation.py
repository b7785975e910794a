"""Do intervals, winners and power hold? Simulated studies, through the functions of the package.

    python -m bench.validation                  # a minute or two; --quick: seconds

Prints Markdown tables. Whole studies are drawn at once: arrays with a leading axis of studies.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, stdtr, stdtrit

from lessonplan.evaluation.outcomes import Outcome, Record
from lessonplan.statistics import analyse
from lessonplan.statistics.crossed import mean_squares, mean_variance, pooled_squares
from lessonplan.statistics.family import ALPHA, holm
from lessonplan.statistics.power import Components, power, smallest_gain

FloatArray = NDArray[np.float64]
PART = 100  # studies in memory at a time


@dataclass(frozen=True)
class Cell:
    """How studies are drawn; the spreads are standard deviations.

    Attributes:
        kind: "gaussian" values, or "logistic": 0 or 1, with the effects in logits.
        level: of the baseline, in logits for "logistic".
        seed, question: effects that all arms share.
        arm_seed, arm_question: effects of an arm's own.
        gain: of the second arm, added to its values or logits.
        uneven: how many times as wide the second arm spreads over seeds.
        missing: every arm but the baseline lacks one seed, each another.
    """

    kind: str
    seeds: int
    questions: int = 200
    arms: int = 6
    level: float = 0.0
    seed: float = 0.3
    question: float = 1.5
    arm_seed: float = 0.0
    arm_question: float = 0.0
    gain: float = 0.0
    uneven: float = 1.0
    missing: bool = False


class Findings(NamedTuple):
    """Of one cell, over its studies.

    Attributes:
        winners: in how many studies an arm is called better that is not.
        covered: share of all intervals of null gains that hold 0, and its standard error.
        planted: share of studies in which the second arm is called a winner.
        second: coverage of the second arm's interval; of its expected gain where one is planted.
    """

    winners: float
    covered: float
    covered_error: float
    planted: float
    second: float


def draw(cell: Cell, studies: int, rng: np.random.Generator) -> FloatArray:
    """Return the values of whole studies, float64 ``[studies, A, S, Q]``."""
    shape = (studies, cell.arms, cell.seeds, cell.questions)

    def effect(spread: float, *axes: int) -> FloatArray:
        size = [n if i in axes else 1 for i, n in enumerate(shape)]
        return np.float32(spread) * rng.standard_normal(size, dtype=np.float32)

    wide = np.ones((cell.arms, 1, 1), dtype=np.float32)
    wide[1] = cell.uneven
    values = np.float32(cell.level) + effect(cell.seed, 0, 2) + effect(cell.question, 0, 3)
    values = values + effect(cell.arm_seed, 0, 1, 2) * wide + effect(cell.arm_question, 0, 1, 3)
    values[:, 1] += cell.gain
    if cell.kind == "logistic":
        values = (rng.random(shape, dtype=np.float32) < expit(values)).astype(np.float64)
    else:
        values = values.astype(np.float64) + rng.standard_normal(shape)
    if cell.missing:
        for arm in range(1, cell.arms):
            values[:, arm, arm % cell.seeds] = np.nan
    return values


def analysed(values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return gain, half width of the 95% interval, p and Holm's p, each ``[studies, A - 1]``.

    What `analyse` does with one study, along a leading axis; a test holds it to that.
    """
    pooled = pooled_squares(values)
    columns = []
    for arm in range(1, values.shape[1]):
        both = ~np.isnan(values[0, (0, arm), :, 0]).any(axis=0)
        gain = values[:, arm, both] - values[:, 0, both]
        columns.append(
            (gain.mean(axis=(1, 2)), *mean_variance(*mean_squares(gain), *gain.shape[1:], pooled))
        )
    gain, variance, df = (np.stack(part, axis=1) for part in zip(*columns, strict=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        p = 2 * stdtr(df, -np.abs(gain) / np.sqrt(variance))
    p = np.where(variance > 0, p, 1.0)
    return gain, np.nan_to_num(stdtrit(df, 0.975)) * np.sqrt(variance), p, holm(p)


def simulate(cell: Cell, studies: int, seed: int, family: int = 0) -> Findings:
    """Draw and analyse the studies of a cell.

    Args:
        family: further hypotheses in the same family, of p = 1, such as those of other models.
    """
    rng = np.random.default_rng([seed, cell.seeds, cell.questions, cell.arms])
    found = []
    for start in range(0, studies, PART):
        gain, half, _, corrected = analysed(draw(cell, min(PART, studies - start), rng))
        found.append((gain, half, corrected))
    gain, half, corrected = (np.concatenate(parts) for parts in zip(*found, strict=True))
    called = (corrected < ALPHA) & (gain > 0)
    null = np.ones(gain.shape[1], dtype=bool)
    truth = 0.0
    if cell.gain:
        null[0] = False
        truth = cell.gain if cell.kind == "gaussian" else float(gain[:, 0].mean())
    held = np.abs(gain[:, null]) <= half[:, null]
    return Findings(
        winners=float(called[:, null].any(axis=1).mean()),
        covered=float(held.mean()),
        # The gains of a study share their baseline: studies are what is independent.
        covered_error=float(held.mean(axis=1).std(ddof=1) / np.sqrt(studies)),
        planted=float(called[:, 0].mean()),
        second=float((np.abs(gain[:, 0] - truth) <= half[:, 0]).mean()),
    )


def grid(quick: bool = False) -> Iterator[tuple[str, Cell]]:
    """Yield the cells in which every arm is a random shuffle."""
    for seeds in (3, 5) if quick else (3, 5, 10):
        for arm_seed, arm_question in ((0.0, 0.0), (0.1, 0.0), (0.0, 0.7), (0.1, 0.7), (0.4, 0.7)):
            spreads = {"arm_seed": arm_seed, "arm_question": arm_question}
            yield "Gaussian", Cell("gaussian", seeds, **spreads)
            yield "0/1, 50% right", Cell("logistic", seeds, **spreads)
            yield "0/1, 20% right", Cell("logistic", seeds, level=-1.9, **spreads)


SIDE = [
    ("two arms", Cell("logistic", 3, arms=2, arm_seed=0.2, arm_question=0.5)),
    ("two arms, ten seeds", Cell("logistic", 10, arms=2, arm_seed=0.2, arm_question=0.5)),
    ("two arms, nothing varies", Cell("logistic", 3, arms=2)),
    ("20 questions", Cell("logistic", 3, questions=20, arm_seed=0.2, arm_question=0.5)),
    ("1,000 questions", Cell("logistic", 3, questions=1000, arm_seed=0.2, arm_question=0.5)),
    ("3% right", Cell("logistic", 3, level=-4.5, arm_seed=0.2, arm_question=0.5)),
    (
        "a run missing in each arm",
        Cell("logistic", 4, arm_seed=0.2, arm_question=0.5, missing=True),
    ),
    ("one arm spreads twice as wide", Cell("logistic", 3, arm_seed=0.2, uneven=2.0)),
    ("one arm spreads three times as wide", Cell("logistic", 3, arm_seed=0.2, uneven=3.0)),
    ("the same, ten seeds", Cell("logistic", 10, arm_seed=0.2, uneven=3.0)),
]


def planned(cell: Cell, target: float) -> tuple[Cell, float]:
    """Return a Gaussian cell with a gain that the planner sees with this power, and the power."""
    found = true_components(cell)
    level = ALPHA / (cell.arms - 1)
    gain = smallest_gain(
        found, cell.seeds, cell.questions, arms=cell.arms, level=level, power=target
    )
    said = power(found, gain, cell.seeds, cell.questions, arms=cell.arms, level=level)
    return replace(cell, gain=gain), said


def true_components(cell: Cell) -> Components:
    """Return the components of a gain; for 0/1 values from 200 studies of 10 seeds."""
    if cell.kind == "gaussian":
        return Components(2 * cell.arm_seed**2, 2 * cell.arm_question**2, 2.0, 2 * cell.arm_seed**2)
    values = draw(replace(cell, seeds=10, arms=2), 200, np.random.default_rng(1))
    gain = values[:, 1] - values[:, 0]
    seed, question, rest = (float(m.mean()) for m in mean_squares(gain))
    of_seeds = max(0.0, seed - rest) / cell.questions
    return Components(of_seeds, max(0.0, question - rest) / 10, rest, of_seeds)


def logit_gain(cell: Cell, gain: float) -> float:
    """Return the shift in logits that raises the mean of 0/1 values by a gain."""
    from scipy.optimize import brentq

    rng = np.random.default_rng(2)
    spread = np.sqrt(cell.seed**2 + cell.question**2 + cell.arm_seed**2 + cell.arm_question**2)
    logits = cell.level + spread * rng.standard_normal(400_000)
    return float(brentq(lambda x: float((expit(logits + x) - expit(logits)).mean()) - gain, 0, 20))


def error(share: float, studies: int) -> float:
    """Return the standard error of a share of independent studies."""
    return float(np.sqrt(max(share * (1 - share), 1 / studies**2) / studies))


def seconds_of_a_large_study() -> float:
    """Return the time to analyse 4 models x 3 sets x 6 arms x 5 seeds of 5,000 questions."""
    cell = Cell("logistic", 5, questions=5000, arm_seed=0.1, arm_question=0.3)
    names = ["random", "blocked", "interleaved", "curriculum", "blocked_curriculum", "other"]
    outcomes = []
    for number in range(12):
        (values,) = draw(cell, 1, np.random.default_rng(number))
        outcomes.append(
            Outcome(
                model=f"model {number // 3}",
                evaluation=f"set {number % 3}",
                seeds=list(range(5)),
                ids=[str(i) for i in range(5000)],
                arms=dict(zip(names, values, strict=True)),
                strategies={name: name for name in names},
                sources={name: {} for name in names},
            )
        )
    started = time.perf_counter()
    analyse(Record(title="large", outcomes=outcomes))
    return time.perf_counter() - started


def percent(share: float, spread: float) -> str:
    return f"{share:.1%} ± {spread:.1%}"


def null_table(studies: int, seed: int, quick: bool) -> list[str]:
    """Return the table of the grid: rows by kind and seeds, each over five settings of spread."""
    groups: dict[tuple[str, int], list[Findings]] = {}
    for name, cell in grid(quick):
        groups.setdefault((name, cell.seeds), []).append(simulate(cell, studies, seed))
    lines = ["| values | seeds | a false winner | worst cell | interval covers | cells |"]
    lines.append("|:--|--:|--:|--:|--:|:-:|")
    everything = [f for found in groups.values() for f in found]
    rows = [*groups.items(), (("**all**", 0), everything)]
    for (name, seeds), found in rows:
        winners = [f.winners for f in found]
        covered = [f.covered for f in found]
        called = float(np.mean(winners))
        spread = float(np.sqrt(sum(f.covered_error**2 for f in found)) / len(found))
        lines.append(
            f"| {name} | {seeds or ''} | {percent(called, error(called, studies * len(found)))} | "
            f"{percent(max(winners), error(max(winners), studies))} | "
            f"{percent(float(np.mean(covered)), spread)} | "
            f"{min(covered):.1%} to {max(covered):.1%} |"
        )
    return lines


def side_table(studies: int, seed: int) -> list[str]:
    """Return the table of settings off the grid."""
    lines = ["| setting | seeds | a false winner | interval covers | that of the second arm |"]
    lines.append("|:--|--:|--:|--:|--:|")
    for name, cell in SIDE:
        f = simulate(cell, studies, seed)
        lines.append(
            f"| {name} | {cell.seeds} | {percent(f.winners, error(f.winners, studies))} | "
            f"{percent(f.covered, f.covered_error)} | "
            f"{percent(f.second, error(f.second, studies))} |"
        )
    return lines


def power_table(studies: int, seed: int) -> list[str]:
    """Return the table of planned and simulated power."""
    lines = ["| values | seeds | questions | gain | planned | found | interval covers |"]
    lines.append("|:--|--:|--:|--:|--:|--:|--:|")
    for seeds in (3, 5, 10):
        for kind in ("gaussian", "logistic"):
            cell = Cell(kind, seeds, questions=500, arm_seed=0.1, arm_question=0.5)
            with_gain, said = planned(cell, 0.8)
            shown = f"{with_gain.gain:.3f}"
            if kind == "logistic":
                shown = f"{with_gain.gain * 100:.1f} points"
                with_gain = replace(cell, gain=logit_gain(cell, with_gain.gain))
            f = simulate(with_gain, studies, seed)
            lines.append(
                f"| {'Gaussian' if kind == 'gaussian' else '0/1'} | {seeds} | {cell.questions} | "
                f"{shown} | {said:.1%} | {percent(f.planted, error(f.planted, studies))} | "
                f"{percent(f.second, error(f.second, studies))} |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--studies", type=int, default=1000, help="simulated studies a cell")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation")
    parser.add_argument("--quick", action="store_true", help="200 studies on a smaller grid")
    options = parser.parse_args()
    studies = 200 if options.quick else options.studies
    print(f"{studies:,} studies a cell, seed {options.seed}, ± one standard error.\n")
    print("Every arm a random shuffle, six arms, 200 questions:\n")
    print("\n".join(null_table(studies, options.seed, options.quick)), "\n", sep="\n", flush=True)
    print("Off the grid:\n")
    print("\n".join(side_table(studies, options.seed)), "\n", sep="\n", flush=True)
    print(f"One arm of six with a true gain, {4 * studies:,} studies a line:\n")
    print("\n".join(power_table(4 * studies, options.seed)), "\n", sep="\n", flush=True)
    seconds = seconds_of_a_large_study()
    print(f"360 runs of 5,000 questions analysed in {seconds:.0f} s.")


if __name__ == "__main__":
    main()
