"""Item response theory: how hard questions are, from who answered which of them right.

The chance that a respondent of ability t gets a question right is sigmoid(a (t - b)), with the
question's difficulty b and discrimination a. Abilities are normal in the population of respondents
and integrated out, and the rest is marginal maximum likelihood by EM over a fixed grid (Bock &
Aitkin 1981, Psychometrika 46:443), made Bayes modal by a weak prior (Mislevy 1986, Psychometrika
51:177), since a question that everybody gets right has no finite estimate without one.

Three choices make it quick and stable on wide tables. Questions are written by discrimination and
intercept, sigmoid(a t - c), where the numbers right and the expected abilities of those who were
right are all that the answers enter by. Mean and spread of ability are free while fitting, as in
PX-EM (Liu, Rubin & Wu 1998, Biometrika 85:755); with both held at 0 and 1, EM would take thousands
of iterations to shift many questions together. And questions with equal columns are fitted once, so
that they come out equal to the last bit and are ties in an order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lessonplan.errors import InputError

Floats = NDArray[np.float64]

MIN_RESPONDENTS = 10
# Standard deviations of the priors: of log a, around the mean of all questions (BILOG has the same
# 0.5), and of c, in logits around the questions' typical level. Thirty answers outweigh the
# prior of c more than twentyfold.
LOG_DISCRIMINATION_SD = 0.5
INTERCEPT_SD = 2.0
# Respondents who differ no more than chance would let the spread of ability go to 0 and b to
# infinity.
SMALLEST_SPREAD = 0.05
GRID_END = 5.0  # standard deviations of ability


@dataclass(frozen=True)
class ItemResponse:
    """Fitted questions, on the scale where ability has mean 0 and standard deviation 1.

    Attributes:
        difficulty: b, the ability at which the chance to be right is one half, float64[n]; NaN for
            a question without any answer. Large either way where the discrimination is small.
        discrimination: a, float64[n], above 0; one value throughout in the 1PL; NaN as above.
        log_posterior: what is maximised (log likelihood plus log prior, up to a constant) at the
            start of each iteration, float64[iterations]. It never falls.
        iterations: EM iterations done.
        converged: whether the last of them changed nothing by more than the tolerance.
    """

    difficulty: Floats
    discrimination: Floats
    log_posterior: Floats
    iterations: int
    converged: bool

    @property
    def chance_wrong(self) -> Floats:
        """Chance that a respondent of average ability is wrong, sigmoid(a b), float64[n]."""
        from scipy.special import expit

        chance: Floats = expit(self.discrimination * self.difficulty)
        return chance


def fit_irt(
    right: NDArray[np.float64],
    model: Literal["1pl", "2pl"] = "2pl",
    *,
    points: int | None = None,
    tolerance: float = 1e-4,
    max_iterations: int = 500,
) -> ItemResponse:
    """Fit the one- or two-parameter logistic model.

    The 1PL is Rasch's model with the common discrimination estimated and the spread of ability at
    1, which is the same as a discrimination of 1 with the spread estimated: fixing both would
    claim to know how much respondents differ. Where no answer is missing, its order is the order
    of the share right, because the number right says all there is to know of b.

    In the 2PL a discrimination cannot be negative. A question that weak respondents get right more
    often than strong ones (a wrong key is the usual reason) is pressed towards 0.

    Missing answers are left out of the likelihood: that a respondent gave none must not depend on
    what the answer would have been.

    Args:
        right: respondents by questions, float64[r, n]: 1 right, 0 wrong, NaN missing.
        model: "1pl" or "2pl".
        points: grid points from -5 to 5 standard deviations of ability. By default 61 to 301, so
            many that their distance is below the uncertainty of one respondent's ability, which
            is small where there are many questions.
        tolerance: the largest change of a discrimination, or of a logit at average ability, that
            counts as none.
        max_iterations: EM iterations after which to stop in any case.

    Raises:
        InputError: an array of another shape or with other values; an unknown model; fewer than 10
            respondents with an answer.
    """
    from scipy.special import logsumexp

    right, has_answer = _checked(right, model)
    people, asked = has_answer.any(axis=1), has_answer.any(axis=0)
    if people.sum() < MIN_RESPONDENTS:
        raise InputError(
            f"Item response theory needs {MIN_RESPONDENTS} respondents or more to tell hard "
            f"questions from weak respondents; there are {people.sum()} with answers. Use the "
            f"share of wrong answers."
        )
    used = right[np.ix_(people, asked)]
    patterns, back, copies = np.unique(
        np.where(np.isnan(used), 2, used).astype(np.int8),
        axis=1,
        return_inverse=True,
        return_counts=True,
    )
    correct = (patterns == 1).astype(np.float64)
    complete = bool((patterns < 2).all())
    answered = None if complete else (patterns < 2).astype(np.float64)
    times = copies.astype(np.float64)
    r, n = patterns.shape
    n_right = correct.sum(axis=0)
    n_answers = np.full(n, float(r)) if answered is None else answered.sum(axis=0)

    nodes = np.linspace(-GRID_END, GRID_END, points or _points(int(times.sum())))
    log_weight = -(nodes**2) / 2
    log_weight -= logsumexp(log_weight)

    log_a = np.zeros(n)
    c = np.log((n_answers - n_right + 0.5) / (n_right + 0.5))
    mean, spread = 0.0, 1.0
    trace: list[float] = []
    before = np.concatenate([np.exp(log_a), c])
    converged = False
    while not converged and len(trace) < max_iterations:
        # E step: the posterior of each respondent's ability over the grid.
        theta = mean + spread * nodes
        a = np.exp(log_a)
        cost = times[:, None] * _softplus(a[:, None] * theta - c[:, None])
        joint = (correct @ (times * a))[:, None] * theta + log_weight
        joint -= cost.sum(axis=0) if answered is None else answered @ cost
        likelihood = logsumexp(joint, axis=1)
        prior = (log_a / LOG_DISCRIMINATION_SD) ** 2 + (c / INTERCEPT_SD) ** 2
        trace.append(float(likelihood.sum() - times @ (n_right * c + prior / 2)))
        posterior = np.exp(joint - likelihood[:, None])

        # M step: of the questions, then of mean and spread of ability.
        at_node = posterior.sum(axis=0)
        n_at_node = at_node if answered is None else answered.T @ posterior
        ability_of_right = correct.T @ (posterior @ theta)
        log_a, c = _climb(log_a, c, theta, n_at_node, n_right, ability_of_right, model == "2pl")
        mean = float(at_node @ theta) / r
        spread = max(float(np.sqrt(at_node @ (theta - mean) ** 2 / r)), SMALLEST_SPREAD)

        # The likelihood is the same for all abilities shifted and stretched together with the
        # questions. Of these equals, take the one that the prior likes best.
        stretch = np.exp(-(times @ log_a) / times.sum())
        log_a = log_a + np.log(stretch)
        mean, spread = mean / stretch, spread / stretch
        a = np.exp(log_a)
        shift = -(times @ (a * c)) / (times @ a**2)
        c, mean = c + a * shift, mean + shift

        now = np.concatenate([a * spread, c - a * mean])
        converged = bool(np.abs(now - before).max() < tolerance)
        before = now

    a = np.exp(log_a)
    difficulty, discrimination = np.full((2, right.shape[1]), np.nan)
    difficulty[asked] = ((c / a - mean) / spread)[back.reshape(-1)]
    discrimination[asked] = (a * spread)[back.reshape(-1)]
    return ItemResponse(difficulty, discrimination, np.array(trace), len(trace), converged)


def _checked(right: NDArray[np.float64], model: str) -> tuple[Floats, NDArray[np.bool_]]:
    if model not in ("1pl", "2pl"):
        raise InputError(f"The model is '1pl' or '2pl', not {model!r}.")
    right = np.asarray(right, dtype=np.float64)
    if right.ndim != 2:
        raise InputError(
            f"Answers have to be a table of respondents by questions, not of shape {right.shape}."
        )
    has_answer = ~np.isnan(right)
    odd = np.argwhere(has_answer & (right != 0) & (right != 1))
    if len(odd):
        respondent, question = odd[0]
        raise InputError(
            f"Respondent {respondent}, question {question} (from 0): expected 1 (right), 0 (wrong) "
            f"or NaN (missing), found {right[respondent, question]:g}."
        )
    return right, has_answer


def _points(questions: int) -> int:
    """Return a number of grid points fine enough for the posterior of one ability.

    On an equally spaced grid the integral of a normal density is exact to about 1e-5 for steps of
    1.25 standard deviations. A question of discrimination 1 informs on ability by at most 1/4.
    """
    step = 1.25 / np.sqrt(1 + questions / 4)
    return int(np.clip(np.ceil(2 * GRID_END / step) + 1, 61, 301))


def _softplus(x: Floats) -> Floats:
    """Return log(1 + exp(x)) without overflow."""
    result: Floats = np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
    return result


def _climb(
    log_a: Floats,
    c: Floats,
    theta: Floats,
    n_at_node: Floats,
    n_right: Floats,
    ability_of_right: Floats,
    with_slopes: bool,
) -> tuple[Floats, Floats]:
    """Take steps of Fisher scoring up each question's expected log posterior.

    A step that does not rise is halved, so that each is one up or none, which is all that EM needs.

    Args:
        log_a, c: where to start, float64[n].
        theta: abilities of the grid, float64[q].
        n_at_node: expected number of respondents at each ability, float64[q], or where answers are
            missing float64[n, q].
        n_right: number of right answers, float64[n].
        ability_of_right: sum of the expected abilities of those who were right, float64[n].
        with_slopes: whether log_a is fitted too (2PL).
    """
    from scipy.special import expit

    tau, sigma = LOG_DISCRIMINATION_SD**-2, INTERCEPT_SD**-2

    def height(log_a: Floats, c: Floats, rows: NDArray[np.intp]) -> Floats:
        a = np.exp(log_a)
        people = n_at_node if n_at_node.ndim == 1 else n_at_node[rows]
        value = -n_right[rows] * c - sigma * c**2 / 2
        if with_slopes:
            value += a * ability_of_right[rows] - tau * log_a**2 / 2
        value -= (people * _softplus(a[:, None] * theta - c[:, None])).sum(axis=1)
        return value

    everything = np.arange(len(c))
    level = height(log_a, c, everything)
    for _ in range(2):
        a = np.exp(log_a)
        p = expit(a[:, None] * theta - c[:, None])
        expected = n_at_node * p
        # Row sums, not products with a vector: BLAS may round equal rows differently, and
        # questions with the same number right have to be ties in the 1PL.
        weight = expected * (1 - p)
        slope_c = expected.sum(axis=1) - n_right - sigma * c
        info_c = weight.sum(axis=1) + sigma
        if with_slopes:
            slope_a = a * (ability_of_right - expected @ theta) - tau * log_a
            info_a = a**2 * (weight @ theta**2) + tau
            info_ac = -a * (weight @ theta)
            determinant = info_a * info_c - info_ac**2
            step_a = (info_c * slope_a - info_ac * slope_c) / determinant
            step_c = (info_a * slope_c - info_ac * slope_a) / determinant
        else:
            step_a, step_c = np.zeros_like(c), slope_c / info_c
        log_a, c = log_a.copy(), c.copy()
        rows = everything
        for _ in range(12):
            tried = height(log_a[rows] + step_a[rows], c[rows] + step_c[rows], rows)
            up = tried >= level[rows]
            done = rows[up]
            log_a[done] += step_a[done]
            c[done] += step_c[done]
            level[done] = tried[up]
            rows = rows[~up]
            if not len(rows):
                break
            step_a[rows] /= 2
            step_c[rows] /= 2
    return log_a, c
