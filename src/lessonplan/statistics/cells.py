"""A grid from bare accuracies: a table as papers print it, without the questions behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lessonplan.errors import InputError, nearest
from lessonplan.evaluation.outcomes import place_of
from lessonplan.statistics.crossed import Estimate
from lessonplan.statistics.grid import (
    CELL,
    EVALUATION,
    MEAN,
    MODEL,
    Best,
    Column,
    Contrast,
    Grid,
    Setting,
    contrast_of,
    corrected,
    setting_pairs,
)
from lessonplan.statistics.result import ACCURACY
from lessonplan.statistics.table import (
    OTHER_NAME,
    Where,
    column_names,
    read_table,
    require,
    text_column,
)

BINOMIAL = "binomial sampling"
SPREAD = "spread over columns"
COLUMNS = "columns"
NAN = float("nan")

Place = tuple[str, str]
"""Model and evaluation set; one is "" where the accuracy is a mean over all of that kind."""


def grid(
    table: Any,
    *,
    models: Sequence[str] = (),
    evaluations: Sequence[str] = (),
    baseline: str = "random",
    questions: Mapping[str, int] | None = None,
    chance: Mapping[str, float] | None = None,
    runs: int | None = None,
    columns: Mapping[str, str] | None = None,
) -> Grid:
    """Arrange accuracies by strategy, model and evaluation set, with what can be said about them.

    The table is long, with columns ``strategy``, ``accuracy``, ``model``, ``evaluation`` and
    ``labels`` (the source of the labels; optional), or wide: ``strategy``, ``labels`` and a column
    for each name in `models` and `evaluations`. A row with a model and no evaluation set is the
    model's mean over the sets, and the other way round; a table holds cells or such means, not
    both. Values above 1 are taken as per cent. Rows of a strategy that agree under all labels are
    one arm, which was not run twice.

    With cells, a mean has the paired t interval over what was averaged; the mean over the columns
    of a kind has that over the columns, as in the paper. Nothing here knows of seeds or questions,
    so nothing is called a winner.

    Two answers to what luck alone gives the best of K orders, whose noise is taken as independent
    (K = 5: 1.16 standard deviations):

    * "binomial sampling", where the sets' sizes and the number of runs are known: each run answers
      each question by itself, at the baseline's accuracy p, with variance ``p (1 - p) / (n runs)``.
      Questions differ, which lowers this variance between orders scored on the same ones; runs
      differ as a whole, which raises it.
    * "spread over columns": what is left when each strategy and each column of a kind has its own
      mean. Where strategies truly do better here and worse there, that counts as noise, too.

    Args:
        table: path of a CSV, JSONL or Parquet file, a PyArrow table, a pandas DataFrame, or a
            mapping of columns.
        questions: evaluation set -> its number of questions.
        chance: evaluation set -> accuracy of guessing, 0 to 1. A model whose baseline cannot be
            told from it (95%, over the questions where their number is known) is at the floor.
        runs: runs that each accuracy is the mean of.
        columns: our column -> the table's, where it has another name, such as
            ``{"strategy": "order"}``.

    Raises:
        InputError: a missing column or accuracy, one given twice, no baseline or nothing else, an
            unknown set, a chance or a number of runs that cannot be.
    """
    rows, where = _read(table, models, evaluations, columns or {})
    sets = {evaluation for _, evaluation in rows if evaluation}
    for name in [*(questions or {}), *(chance or {})]:
        if name not in sets:
            raise InputError(f"{where}: there is no evaluation set {name!r} in it.")
    for name, guess in (chance or {}).items():
        if not 0 <= guess <= 1:
            raise InputError(f"chance of {name!r} is {guess:g}, expected a share from 0 to 1.")
    if runs is not None and runs < 1:
        raise InputError(f"runs is {runs}, expected 1 or more.")
    whole = [bool(model and evaluation) for model, evaluation in rows]
    if any(whole) and not all(whole):
        raise InputError(f"{where}: it holds cells and means of them; leave the means out.")
    settings, scores = _arms(rows, baseline, where)
    cells = _Cells(scores, settings, baseline, dict(questions or {}), dict(chance or {}), runs)
    made: list[Column] = []
    means: dict[str, Column] = {}
    for by in (MODEL, EVALUATION, CELL):
        own, mean = cells.columns(by)
        if mean is not None:
            *own, means[by] = corrected([*own, mean])
        made += own
    return Grid(ACCURACY, baseline, settings, made, means, cells.notes())


@dataclass(frozen=True)
class _Cells:
    """Accuracies by place and arm, and what is known beside them."""

    scores: dict[Place, dict[str, float]]
    settings: list[Setting]
    baseline: str
    questions: dict[str, int]
    chance: dict[str, float]
    runs: int | None

    def columns(self, by: str) -> tuple[list[Column], Column | None]:
        """Return the columns of a kind and their mean; a single one only where it is everything."""
        parts: dict[str, list[Place]] = {}
        for model, evaluation in self.scores:
            both = place_of(model, evaluation) if model and evaluation else ""
            name = {MODEL: model, EVALUATION: evaluation, CELL: both}[by]
            if name:
                parts.setdefault(name, []).append((model, evaluation))
        axes = [len({place[axis] for place in self.scores}) for axis in (0, 1)]
        if len(self.scores) == 1:
            shown = by == (MODEL if next(iter(self.scores))[0] else EVALUATION)
        else:
            shown = len(parts) > 1 and not (by == CELL and 1 in axes)
        if not shown:
            return [], None
        used = {n: [p for p in own if not self.at_floor(p)] for n, own in parts.items()}
        kept = [own for own in used.values() if own]
        spread = self.spread([self.row(own) for own in kept])

        def column(name: str, places: list[Place], over: Sequence[dict[str, float]]) -> Column:
            blocked = "" if used.get(name, kept) else "floor"
            shrunk = math.sqrt(len(over)) if name == MEAN else 1.0
            return Column(
                by=by,
                name=name,
                scores=_mean_row(over),
                gains={
                    arm: _estimate([row[arm] - row[self.baseline] for row in over])
                    for arm in over[0]
                    if arm != self.baseline
                },
                best=[
                    _best(s, _mean_row(over), self.baseline, self.noise(places), spread[i] / shrunk)
                    for i, s in enumerate(self.settings)
                ],
                contrasts=_contrasts(self.settings, over),
                blocked=blocked,
            )

        columns = [
            column(name, used[name] or own, [self.scores[p] for p in used[name] or own])
            for name, own in parts.items()
        ]
        if by == CELL or len(kept) < 2:
            return columns, None
        everything = [place for own in kept for place in own]
        return columns, column(MEAN, everything, [self.row(own) for own in kept])

    def row(self, places: Sequence[Place]) -> dict[str, float]:
        """Return each arm's mean accuracy over places."""
        return _mean_row([self.scores[place] for place in places])

    def sets_behind(self, place: Place) -> list[str]:
        """Return the evaluation sets that an accuracy is the mean of."""
        return [place[1]] if place[1] else list(dict.fromkeys(e for _, e in self.scores if e))

    def variance(self, place: Place) -> float:
        """Return the binomial variance of one run's accuracy; NaN where a size is unknown."""
        sets = self.sets_behind(place)
        if not sets or not all(name in self.questions for name in sets):
            return NAN
        p = self.scores[place][self.baseline]
        return p * (1 - p) * sum(1 / self.questions[name] for name in sets) / len(sets) ** 2

    def guessing(self, place: Place) -> float:
        """Return the accuracy of guessing; NaN where it is unknown."""
        known = [self.chance.get(name, NAN) for name in self.sets_behind(place)]
        return float(np.mean(known)) if known else NAN

    def at_floor(self, place: Place) -> bool:
        """Whether the baseline cannot be told from guessing, on questions like these."""
        variance = self.variance(place)
        margin = 0.0 if math.isnan(variance) else 1.96 * math.sqrt(variance)
        return self.scores[place][self.baseline] - margin <= self.guessing(place)

    def noise(self, places: Sequence[Place]) -> float:
        """Return the binomial standard deviation of an arm's mean over places; NaN if unknown."""
        models = len({m for m, _ in self.scores if m}) or 1
        found = [self.variance(p) / (1 if p[0] else models) for p in places]
        return math.sqrt(sum(found) / (self.runs or NAN)) / len(places)

    def spread(self, rows: Sequence[dict[str, float]]) -> list[float]:
        """Return, for each setting, the residual standard deviation of arms by columns."""
        found = []
        for setting in self.settings:
            arms = [self.baseline, *setting.arms.values()]
            x = np.array([[row[arm] for row in rows] for arm in arms])
            df = (x.shape[0] - 1) * (x.shape[1] - 1)
            if df < 1:
                found.append(NAN)
                continue
            rest = x - x.mean(axis=0) - x.mean(axis=1, keepdims=True) + x.mean()
            found.append(math.sqrt((rest**2).sum() / df))
        return found

    def notes(self) -> list[str]:
        """Say which models are at the floor, and in which means they are nevertheless."""
        said = []
        low = [place for place in self.scores if self.at_floor(place)]
        for place in low:
            name = place_of(*place)
            sets = "" if place[1] else ", averaged over the evaluation sets,"
            said.append(
                f"{name} is at the floor: the baseline{sets} has "
                f"{self.scores[place][self.baseline]:.1%}, where guessing has "
                f"{self.guessing(place):.1%}. It is in no average and no count of winners."
            )
        models = [m for m, e in low if not e]
        if models and any(not m for m, _ in self.scores):
            said.append(
                "The means over models were given ready-made and cannot be had without "
                f"{', '.join(models)}."
            )
        return said


def expected_largest(k: int) -> float:
    """Return the mean of the largest of k independent standard normal values (k = 5: 1.163)."""
    from scipy.integrate import quad
    from scipy.stats import norm

    return float(quad(lambda x: x * k * norm.pdf(x) * norm.cdf(x) ** (k - 1), -12, 12)[0])


def _best(
    setting: Setting, row: dict[str, float], baseline: str, binomial: float, spread: float
) -> Best:
    strategy, arm = max(setting.arms.items(), key=lambda pair: row[pair[1]])
    gain, k = row[arm] - row[baseline], len(setting.arms)
    if gain <= 0:
        strategy = arm = baseline
    noise = {BINOMIAL: binomial, SPREAD: spread}
    largest = expected_largest(k) if k > 1 else 0.0
    luck = {name: largest * sd for name, sd in noise.items() if not math.isnan(sd)}
    return Best(setting.name, strategy, arm, k, gain, luck)


def _contrasts(settings: Sequence[Setting], rows: Sequence[dict[str, float]]) -> list[Contrast]:
    found = []
    for kind, setting, other, strategies in setting_pairs(settings):
        gaps = [
            float(np.mean([row[setting.arms[s]] - row[other.arms[s]] for s in strategies]))
            for row in rows
        ]
        found.append(contrast_of(kind, setting, other, strategies, _estimate(gaps)))
    return found


def _mean_row(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {arm: float(np.mean([row[arm] for row in rows])) for arm in rows[0]}


def _estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of a few columns with its t interval, NaN for a single one."""
    from scipy.special import stdtr, stdtrit

    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return Estimate(mean, NAN, NAN, NAN, NAN, NAN, "")
    se = float(np.std(values, ddof=1)) / math.sqrt(n)
    half = float(stdtrit(n - 1, 0.975)) * se
    p = 2 * float(stdtr(n - 1, -abs(mean) / se)) if se > 0 else NAN
    return Estimate(mean, mean - half, mean + half, p, n - 1.0, se, COLUMNS)


def _read(
    table: Any, models: Sequence[str], evaluations: Sequence[str], given: Mapping[str, str]
) -> tuple[dict[Place, dict[tuple[str, str], float]], Where]:
    """Return place -> (strategy, labels) -> accuracy between 0 and 1."""
    columns, where = read_table(table)
    wide = [*models, *evaluations]
    long = ("accuracy", "model", "evaluation")
    names = column_names(("strategy", "labels", *(() if wide else long)), given, columns, where)
    require(columns, names["strategy"], where, hint=OTHER_NAME.format("strategy"))
    if not wide and names["accuracy"] not in columns:
        raise InputError(
            f"{where}: no column 'accuracy'; the columns are {', '.join(columns)}."
            f"{OTHER_NAME.format('accuracy')} Where models or sets have a column each, name them: "
            "models (--models), evaluations (--evaluations)."
        )
    for name in wide:
        require(columns, name, where)
    strategies = text_column(columns[names["strategy"]], names["strategy"], where)
    blank = [""] * len(strategies)
    labels, model, evaluation = (
        [
            "" if value is None or value != value else str(value)
            for value in columns.get(names.get(key, ""), blank)
        ]
        for key in ("labels", "model", "evaluation")
    )
    entries = [
        (place, (strategies[row], labels[row]), columns[name][row], row, name)
        for name in wide or [names["accuracy"]]
        for row in range(len(strategies))
        for place in [
            (name, "") if name in models else ("", name) if wide else (model[row], evaluation[row])
        ]
    ]
    found: dict[Place, dict[tuple[str, str], float]] = {}
    for place, key, value, row, name in entries:
        if place == ("", ""):
            raise InputError(
                f"{where.row(row)}: neither model nor evaluation is named. Add a column of "
                "one of these names, or name columns of accuracies by --models or --evaluations."
            )
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = NAN
        if not 0 <= number <= 100:
            raise InputError(
                f"{where.row(row)}: {name} is {value!r}, expected an accuracy, 0 to 1 or in "
                "per cent."
            )
        if key in found.setdefault(place, {}):
            raise InputError(
                f"{where.row(row)}: {' '.join(k for k in key if k)} stands there twice for "
                f"{place_of(*place)}."
            )
        found[place][key] = number
    scale = 100 if any(v > 1 for rows in found.values() for v in rows.values()) else 1
    return {p: {k: v / scale for k, v in rows.items()} for p, rows in found.items()}, where


def _arms(
    rows: dict[Place, dict[tuple[str, str], float]], baseline: str, where: Where
) -> tuple[list[Setting], dict[Place, dict[str, float]]]:
    """Return the label settings and place -> arm -> accuracy; equal rows are one arm."""
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))
    for place, row in rows.items():
        lacking = [" ".join(part for part in key if part) for key in keys if key not in row]
        if lacking:
            name = place_of(*place)
            raise InputError(f"{where}: {name} has no accuracy of {', '.join(lacking)}.")
    labels = list(dict.fromkeys(label for _, label in keys if label))
    several = len(labels) > 1
    names: dict[tuple[str, str], str] = {}
    for strategy, label in keys:
        own = [key for key in keys if key[0] == strategy]
        same = all(len({row[key] for key in own}) == 1 for row in rows.values())
        once = not (several and label) or (same and len(own) == len(labels))
        names[strategy, label] = strategy if once else f"{strategy} [labels={label}]"
    if baseline not in names.values():
        differs = any(strategy == baseline for strategy, _ in keys)
        raise InputError(
            f"{where}: the baseline {baseline!r} differs between labels; gains need one."
            if differs
            else f"{where}: no strategy is named {baseline!r}. Name the baseline."
            + nearest(baseline, {strategy for strategy, _ in keys})
        )
    if len(set(names.values())) == 1:
        raise InputError(f"{where}: {baseline!r} is the only strategy; nothing to compare.")
    settings = []
    for label in labels if several else [""]:
        own = [key for key in keys if not several or key[1] in (label, "")]
        arms = {key[0]: names[key] for key in own if key[0] != baseline}
        settings.append(Setting({"labels": label} if label else {}, arms))
    return settings, {
        place: {names[key]: value for key, value in row.items()} for place, row in rows.items()
    }
