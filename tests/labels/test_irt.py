"""Item response theory, against planted values, girth, and a plain optimiser."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lessonplan.errors import InputError
from lessonplan.labels.irt import INTERCEPT_SD, LOG_DISCRIMINATION_SD, fit_irt

Floats = NDArray[np.float64]


def simulate(
    respondents: int, n: int, *, seed: int, spread: float, missing: float = 0.0
) -> tuple[Floats, Floats, Floats]:
    """Return answers, a and b; `spread` is the standard deviation of log a."""
    rng = np.random.default_rng(seed)
    ability = rng.normal(size=(respondents, 1))
    b = rng.normal(0.3, 1, size=n)
    a = 1.2 * np.exp(spread * rng.normal(size=n))
    right = (rng.random((respondents, n)) < 1 / (1 + np.exp(-a * (ability - b)))).astype(float)
    right[rng.random(right.shape) < missing] = np.nan
    return right, a, b


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("model", ["1pl", "2pl"])
def test_planted_values_come_back(model: str, missing: float) -> None:
    right, a, b = simulate(1000, 100, seed=1, spread=0.3 if model == "2pl" else 0, missing=missing)
    fit = fit_irt(right, model)
    assert fit.converged
    assert np.corrcoef(fit.difficulty, b)[0, 1] > 0.98
    # Up to what the sampled abilities happen to have for mean (0 +- 0.03) and spread.
    assert np.abs(fit.difficulty - b).mean() < 0.15
    if model == "2pl":
        assert np.corrcoef(fit.discrimination, a)[0, 1] > 0.9
    else:
        assert np.ptp(fit.discrimination) == 0
        assert abs(fit.discrimination[0] - 1.2) < 0.1
    wrong = 1 / (1 + np.exp(-a * b))
    assert np.abs(fit.chance_wrong - wrong).mean() < 0.04


def test_missing_answers_of_the_weak_do_not_mislead() -> None:
    """Each half of the questions goes to one half of the people; the share right is confounded."""
    rng = np.random.default_rng(4)
    ability = np.sort(rng.normal(size=800))
    b = rng.normal(size=60)
    right = (rng.random((800, 60)) < 1 / (1 + np.exp(-1.3 * (ability[:, None] - b)))).astype(float)
    right[:400, :20] = np.nan  # the strong get the first questions, the weak the last
    right[400:, 40:] = np.nan
    share = np.nanmean(right, axis=0)
    fit = fit_irt(right, "1pl")
    assert np.corrcoef(fit.difficulty, b)[0, 1] > 0.97
    assert np.corrcoef(-share, b)[0, 1] < 0.9


@pytest.mark.parametrize("model", ["1pl", "2pl"])
def test_agrees_with_girth(model: str) -> None:
    girth = pytest.importorskip("girth")
    right, _, _ = simulate(500, 30, seed=3, spread=0.3 if model == "2pl" else 0)
    theirs = (girth.onepl_mml if model == "1pl" else girth.twopl_mml)(right.T.astype(int))
    ours = fit_irt(right, model)  # girth's respondents have N(0, 1) as well, and no priors
    assert np.corrcoef(ours.difficulty, theirs["Difficulty"])[0, 1] > 0.995
    assert np.abs(ours.difficulty - theirs["Difficulty"]).mean() < 0.03
    assert np.abs(ours.discrimination - theirs["Discrimination"]).mean() < 0.05


@pytest.mark.parametrize("model", ["1pl", "2pl"])
def test_is_the_maximum_that_a_plain_optimiser_finds(model: str) -> None:
    """The same posterior by Gauss-Hermite quadrature and BFGS, written out question by question."""
    from scipy.optimize import minimize

    right, _, _ = simulate(60, 6, seed=5, spread=0.3, missing=0.15)
    right[:, 0] = 1
    node, weight = np.polynomial.hermite_e.hermegauss(51)
    weight = weight / weight.sum()

    def unpack(x: Floats) -> tuple[Floats, Floats, float, float]:
        log_a = x[6:12] if model == "2pl" else np.zeros(6)
        return log_a, x[:6], x[-2], np.exp(x[-1])

    def loss(x: Floats) -> float:
        log_a, c, mean, spread = unpack(x)
        ability = mean + spread * node
        total = 0.0
        for answers in right:
            product = weight.copy()
            for i, answer in enumerate(answers):
                p = 1 / (1 + np.exp(c[i] - np.exp(log_a[i]) * ability))
                product = product * (p if answer == 1 else 1 - p if answer == 0 else 1)
            total += np.log(product.sum())
        prior = ((log_a / LOG_DISCRIMINATION_SD) ** 2 + (c / INTERCEPT_SD) ** 2).sum() / 2
        return prior - total

    found = minimize(loss, np.zeros(14 if model == "2pl" else 8), options={"gtol": 1e-5})
    log_a, c, mean, spread = unpack(found.x)
    fit = fit_irt(right, model, tolerance=1e-6, max_iterations=3000)
    assert fit.converged
    assert fit.log_posterior[-1] == pytest.approx(-found.fun, abs=1e-4)
    np.testing.assert_allclose(fit.discrimination, np.exp(log_a) * spread, atol=2e-3)
    np.testing.assert_allclose(fit.difficulty, (c / np.exp(log_a) - mean) / spread, atol=1e-2)


tables = st.tuples(
    st.integers(10, 25),
    st.integers(1, 8),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.3, 0.8]),
    st.floats(0.02, 0.98),
)


@settings(max_examples=25)
@given(tables, st.sampled_from(["1pl", "2pl"]))
def test_the_posterior_never_falls_and_all_is_finite(
    table: tuple[int, int, int, float, float], model: str
) -> None:
    r, n, seed, missing, rate = table
    rng = np.random.default_rng(seed)
    right = (rng.random((r, n)) < rate).astype(float)  # no ability at all in it
    right[rng.random((r, n)) < missing] = np.nan
    right[:, 0] = seed % 2
    fit = fit_irt(right, model, max_iterations=60)
    assert len(fit.log_posterior) == fit.iterations
    assert (np.diff(fit.log_posterior) > -1e-7).all()
    asked = ~np.isnan(right).all(axis=0)
    assert np.isfinite(fit.difficulty).tolist() == asked.tolist()
    assert (fit.discrimination[asked] > 0).all()


@settings(max_examples=20)
@given(st.integers(10, 60), st.integers(2, 60), st.integers(0, 2**32 - 1))
def test_1pl_order_is_the_order_of_the_number_right(r: int, n: int, seed: int) -> None:
    """The number right is sufficient (Rasch), so equal numbers are exact ties."""
    rng = np.random.default_rng(seed)
    right = (rng.random((r, n)) < rng.random(n)).astype(float)
    wrong = r - right.sum(axis=0)
    fit = fit_irt(right, "1pl", max_iterations=40)
    for values in (fit.difficulty, fit.chance_wrong):
        np.testing.assert_array_equal(
            np.unique(values, return_inverse=True)[1], np.unique(wrong, return_inverse=True)[1]
        )


@pytest.mark.parametrize("model", ["1pl", "2pl"])
def test_order_of_rows_and_columns_does_not_matter(model: str) -> None:
    right, _, _ = simulate(50, 30, seed=7, spread=0.3, missing=0.1)
    rng = np.random.default_rng(0)
    rows, columns = rng.permutation(50), rng.permutation(30)
    one, other = fit_irt(right, model), fit_irt(right[np.ix_(rows, columns)], model)
    np.testing.assert_allclose(one.difficulty[columns], other.difficulty, atol=1e-6)


@pytest.mark.parametrize("model", ["1pl", "2pl"])
def test_right_and_wrong_exchanged_mirror_the_scale(model: str) -> None:
    right, _, _ = simulate(80, 20, seed=8, spread=0.3, missing=0.1)
    one = fit_irt(right, model, tolerance=1e-6)
    other = fit_irt(1 - right, model, tolerance=1e-6)
    np.testing.assert_allclose(one.difficulty, -other.difficulty, atol=1e-3)
    np.testing.assert_allclose(one.discrimination, other.discrimination, atol=1e-3)


@pytest.mark.parametrize("model", ["1pl", "2pl"])
def test_scale_is_that_of_the_respondents(model: str) -> None:
    """Abilities stretched and shifted change a and b, and leave the mean and spread at 0 and 1."""
    rng = np.random.default_rng(9)
    ability, level = rng.normal(size=(2000, 1)), rng.normal(size=30)
    chance = 1 / (1 + np.exp(-(0.7 + 1.8 * ability - level)))
    fit = fit_irt((rng.random(chance.shape) < chance).astype(float), model)
    np.testing.assert_allclose(fit.discrimination.mean(), 1.8, atol=0.15)
    np.testing.assert_allclose(fit.difficulty, (level - 0.7) / 1.8, atol=0.2)


@pytest.mark.parametrize("model", ["1pl", "2pl"])
def test_equal_columns_are_exact_ties(model: str) -> None:
    right, _, _ = simulate(20, 40, seed=10, spread=0.3, missing=0.1)
    right = np.concatenate([right, right[:, ::-1]], axis=1)
    fit = fit_irt(right, model)
    np.testing.assert_array_equal(fit.difficulty[:40], fit.difficulty[:39:-1])
    np.testing.assert_array_equal(fit.chance_wrong[:40], fit.chance_wrong[:39:-1])


@pytest.mark.parametrize("model", ["1pl", "2pl"])
def test_all_right_all_wrong_and_never_asked(model: str) -> None:
    right, _, _ = simulate(100, 20, seed=11, spread=0.3)
    right[:, 0], right[:, 1], right[:, 2] = 1, 0, np.nan
    fit = fit_irt(right, model)
    assert np.nanargmin(fit.chance_wrong) == 0
    assert np.nanargmax(fit.chance_wrong) == 1
    assert 0 < fit.chance_wrong[0] < 0.02
    assert 0.98 < fit.chance_wrong[1] < 1
    assert np.flatnonzero(np.isnan(fit.difficulty)).tolist() == [2]
    without = fit_irt(np.delete(right, 2, axis=1), model)
    np.testing.assert_array_equal(np.delete(fit.difficulty, 2), without.difficulty)


def test_a_wrong_key_presses_discrimination_towards_zero() -> None:
    right, _, _ = simulate(300, 30, seed=12, spread=0.2)
    right[:, 0] = 1 - right[:, 1]
    fit = fit_irt(right)
    assert 0 < fit.discrimination[0] < 0.2 < fit.discrimination[1:].min()
    assert fit.chance_wrong[0] == pytest.approx(1 - right[:, 0].mean(), abs=0.03)


@pytest.mark.parametrize("model", ["1pl", "2pl"])
def test_respondents_who_do_not_differ(model: str) -> None:
    right = np.tile(np.arange(30) % 3 == 0, (20, 1)).astype(float)
    fit = fit_irt(right, model)
    assert np.isfinite(fit.difficulty).all()
    assert (fit.chance_wrong[::3] < 0.1).all()
    assert (np.delete(fit.chance_wrong, np.s_[::3]) > 0.9).all()


def test_ten_respondents_with_answers_are_needed() -> None:
    right, _, _ = simulate(10, 20, seed=13, spread=0)
    assert np.isfinite(fit_irt(right).difficulty).all()
    right[4] = np.nan
    with pytest.raises(InputError, match=r"needs 10 respondents.*there are 9 with answers"):
        fit_irt(right)
    with pytest.raises(InputError, match="there are 0 with answers"):
        fit_irt(np.full((20, 3), np.nan))


def test_what_is_no_table_of_answers() -> None:
    with pytest.raises(InputError, match=r"respondents by questions, not of shape \(3,\)"):
        fit_irt(np.zeros(3))
    right = np.zeros((12, 3))
    right[2, 1] = 0.5
    with pytest.raises(InputError, match=r"Respondent 2, question 1 .*found 0\.5"):
        fit_irt(right)
    with pytest.raises(InputError, match="'1pl' or '2pl', not '3pl'"):
        fit_irt(np.zeros((12, 3)), "3pl")


def test_stopping_early_is_told() -> None:
    right, _, _ = simulate(50, 10, seed=14, spread=0.3)
    fit = fit_irt(right, max_iterations=2)
    assert (fit.iterations, fit.converged, len(fit.log_posterior)) == (2, False, 2)


def test_more_grid_points_change_nothing() -> None:
    right, _, _ = simulate(60, 400, seed=15, spread=0.3)
    one, fine = fit_irt(right), fit_irt(right, points=601)
    np.testing.assert_allclose(one.difficulty, fine.difficulty, atol=1e-3)


def test_a_thousand_respondents_and_five_thousand_questions() -> None:
    right, _, b = simulate(1000, 5000, seed=16, spread=0.3)
    start = time.perf_counter()
    fit = fit_irt(right)
    assert time.perf_counter() - start < 60  # about a second on two quiet cores
    assert fit.converged
    assert np.corrcoef(fit.difficulty, b)[0, 1] > 0.98


def test_importing_labels_loads_no_scipy() -> None:
    code = "import lessonplan.labels.irt, sys; print('scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
