"""Means over seeds and questions, against textbook oracles and simulation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.anova import anova_lm

from lessonplan.statistics.crossed import (
    bootstrap_interval,
    mean_interval,
    mean_squares,
    mean_variance,
    pooled_squares,
    smallest_visible,
)


def draw(rng, seeds, questions, by_seed=0.0, by_question=0.5, rest=1.0, mean=0.0, studies=()):
    shape = (*studies, seeds, questions)
    return (
        mean
        + by_seed * rng.standard_normal((*studies, seeds, 1))
        + by_question * rng.standard_normal((*studies, 1, questions))
        + rest * rng.standard_normal(shape)
    )


def test_mean_squares_agree_with_anova():
    values = draw(np.random.default_rng(1), 4, 7, by_seed=0.8)
    table = pd.DataFrame(
        [(s, q, values[s, q]) for s in range(4) for q in range(7)], columns=["s", "q", "y"]
    )
    anova = anova_lm(smf.ols("y ~ C(s) + C(q)", data=table).fit())
    expected = (anova["sum_sq"] / anova["df"]).to_numpy()
    np.testing.assert_allclose(mean_squares(values), expected, rtol=1e-10)


def test_one_seed_is_the_t_test_over_questions():
    values = draw(np.random.default_rng(2), 1, 40, mean=0.3)
    found = mean_interval(values)
    oracle = stats.ttest_1samp(values[0], 0.0)
    assert found.p == pytest.approx(oracle.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(oracle.confidence_interval(0.95)))
    assert found.scope == "these runs"
    assert found.df == 39


def test_two_seeds_speak_of_these_runs():
    values = draw(np.random.default_rng(3), 2, 40, mean=0.3)
    found = mean_interval(values)
    assert found.scope == "these runs"
    assert found.p == pytest.approx(stats.ttest_1samp(values.mean(axis=0), 0.0).pvalue)


def test_without_a_question_effect_it_is_close_to_the_t_test_over_seeds():
    # Question means that are all alike but for noise far below what the seeds differ by.
    values = draw(np.random.default_rng(4), 6, 30, by_seed=2.0, by_question=0.0, rest=0.01)
    found = mean_interval(values)
    oracle = stats.ttest_1samp(values.mean(axis=1), 0.0)
    assert found.se == pytest.approx(values.mean(axis=1).std(ddof=1) / np.sqrt(6), rel=1e-3)
    assert found.df == pytest.approx(5, rel=1e-3)
    assert found.p == pytest.approx(oracle.pvalue, rel=1e-2)
    assert found.scope == "seeds and questions"


def test_without_a_seed_effect_it_is_close_to_the_t_test_over_questions():
    values = draw(np.random.default_rng(5), 5, 60, by_seed=0.0, by_question=3.0, rest=0.1)
    found = mean_interval(values - values.mean(axis=1, keepdims=True) + 0.4)
    assert found.df > 50
    oracle = stats.ttest_1samp((values - values.mean(axis=1, keepdims=True)).mean(axis=0), -0.4)
    assert found.p == pytest.approx(oracle.pvalue, rel=0.02)


def test_a_single_question_is_the_t_test_over_seeds():
    values = draw(np.random.default_rng(6), 5, 1, mean=1.0)
    found = mean_interval(values)
    assert found.p == pytest.approx(stats.ttest_1samp(values[:, 0], 0.0).pvalue)
    assert found.scope == "seeds, this question"


def test_a_single_run_of_a_single_question_has_no_interval():
    found = mean_interval(np.array([[1.0]]))
    assert found.mean == 1.0
    assert np.isnan(found.low)
    assert np.isnan(found.p)


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_equal_values_have_an_interval_of_no_width(seeds):
    nothing = mean_interval(np.zeros((seeds, 20)))
    assert (nothing.mean, nothing.low, nothing.high, nothing.p) == (0.0, 0.0, 0.0, 1.0)
    something = mean_interval(np.full((seeds, 20), 0.1))
    assert something.low == something.high == pytest.approx(0.1)
    assert something.p == pytest.approx(2.0**-19)


def test_missing_runs_are_left_out_and_partial_ones_refused():
    values = draw(np.random.default_rng(7), 4, 20)
    gap = np.insert(values, 2, np.nan, axis=0)
    assert mean_interval(gap) == mean_interval(values)
    gap[2, 3] = 1.0
    with pytest.raises(ValueError, match="19 of 20"):
        mean_interval(gap)
    with pytest.raises(ValueError, match="no run"):
        mean_interval(np.full((3, 4), np.nan))
    with pytest.raises(ValueError, match="shape"):
        mean_interval(np.zeros(3))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    seeds=st.integers(1, 6),
    questions=st.integers(2, 12),
    shift=st.floats(-10, 10),
)
def test_shift_moves_the_interval_and_permutation_does_not(seed, seeds, questions, shift):
    rng = np.random.default_rng(seed)
    values = draw(rng, seeds, questions, by_seed=rng.random())
    base = mean_interval(values)
    moved = mean_interval(values + shift)
    assert moved.mean - base.mean == pytest.approx(shift, abs=1e-9)
    assert moved.low - base.low == pytest.approx(shift, abs=1e-6)
    assert moved.high - base.high == pytest.approx(shift, abs=1e-6)
    mixed = mean_interval(values[rng.permutation(seeds)][:, rng.permutation(questions)])
    assert mixed.low == pytest.approx(base.low, abs=1e-9)
    assert mixed.p == pytest.approx(base.p, abs=1e-9)
    mirrored = mean_interval(-values)
    assert (mirrored.low, mirrored.high) == pytest.approx((-base.high, -base.low), abs=1e-9)


def long_form(arms):
    """One row a value, runs that are missing left out."""
    cells = [(*at, arms[at]) for at in np.ndindex(arms.shape) if not np.isnan(arms[at])]
    return pd.DataFrame(cells, columns=["a", "s", "q", "y"])


@pytest.mark.parametrize("missing", [[], [(0, 1), (2, 3)]])
def test_pooled_squares_agree_with_anova(missing):
    rng = np.random.default_rng(10)
    arms = rng.standard_normal((3, 4, 5)) + rng.standard_normal((3, 4, 1))
    for arm, seed in missing:
        arms[arm, seed] = np.nan
    found = pooled_squares(arms)
    # Over the run's means, arm and seed leave the interaction; question by question, the rest, too.
    runs = long_form(arms.mean(axis=2, keepdims=True))
    of_seeds = smf.ols("y ~ C(a) + C(s)", data=runs).fit()
    assert found.df == of_seeds.df_resid == 6 - len(missing)
    assert found.seed == pytest.approx(5 * of_seeds.ssr / of_seeds.df_resid)
    table = long_form(arms)
    saturated = smf.ols("y ~ (C(a) + C(s)) * C(q)", data=table).fit()
    rest = saturated.ssr - 5 * of_seeds.ssr
    assert found.rest == pytest.approx(rest / (found.df * 4))
    if not missing:
        anova = anova_lm(smf.ols("y ~ (C(a) + C(s) + C(q)) ** 2", data=table).fit())
        expected = anova["sum_sq"] / anova["df"]
        assert found.seed == pytest.approx(expected["C(a):C(s)"])
        assert found.rest == pytest.approx(expected["Residual"])


def test_arms_that_are_copies_count_once():
    rng = np.random.default_rng(14)
    arms = rng.standard_normal((2, 3, 4, 30)) + rng.standard_normal((2, 3, 4, 1))
    arms[:, 1, 2] = np.nan
    twice = pooled_squares(arms[:, [0, 1, 2, 1, 0, 2]])
    once = pooled_squares(arms)
    assert twice.df == once.df == 5
    np.testing.assert_allclose(twice.seed, once.seed)
    np.testing.assert_allclose(twice.rest, once.rest)
    one = pooled_squares(arms[0, [0, 0]])
    assert one is None


def test_of_two_arms_the_pooled_square_is_their_own():
    rng = np.random.default_rng(11)
    arms = rng.standard_normal((2, 5, 30)) + rng.standard_normal((2, 5, 1))
    gain = arms[1] - arms[0]
    found = pooled_squares(arms)
    assert 2 * found.seed == pytest.approx(float(mean_squares(gain)[0]))
    assert mean_interval(gain, pooled=found) == mean_interval(gain)
    assert pooled_squares(np.where(np.arange(5)[:, None] > 0, np.nan, arms)) is None


def test_pooling_narrows_and_a_plainly_wider_arm_stands_alone():
    rng = np.random.default_rng(12)
    widths, alone = [], []
    for _ in range(40):
        arms = rng.standard_normal((6, 3, 50)) + 0.3 * rng.standard_normal((6, 3, 1))
        own, pooled = (
            mean_interval(arms[1] - arms[0], pooled=p) for p in (None, pooled_squares(arms))
        )
        widths.append((pooled.high - pooled.low) / (own.high - own.low))
        arms[1] += 5 * np.array([[-1.0], [0.0], [1.0]])
        wild = mean_interval(arms[1] - arms[0], pooled=pooled_squares(arms))
        alone.append(wild.se / mean_interval(arms[1] - arms[0]).se)
    assert np.median(widths) < 0.7
    assert alone == pytest.approx(np.ones(40))


def test_components_agree_with_restricted_maximum_likelihood():
    """Balanced and positive, the components of mean squares are those of REML."""
    values = draw(np.random.default_rng(13), 6, 15, by_seed=0.7, by_question=0.8)
    table = pd.DataFrame(
        [(s, q, values[s, q], 1) for s in range(6) for q in range(15)], columns=["s", "q", "y", "g"]
    )
    fit = smf.mixedlm(
        "y ~ 1", table, groups="g", vc_formula={"s": "0 + C(s)", "q": "0 + C(q)"}
    ).fit()
    seed, question, rest = mean_squares(values)
    components = dict(zip(fit.model.exog_vc.names, fit.vcomp, strict=True))
    assert components["s"] == pytest.approx((seed - rest) / 15, rel=1e-3)
    assert components["q"] == pytest.approx((question - rest) / 6, rel=1e-3)
    assert fit.scale == pytest.approx(rest, rel=1e-3)
    # Where all are positive and nothing is pooled, the standard error is the mixed model's.
    assert mean_interval(values).se == pytest.approx(fit.bse.iloc[0], rel=1e-3)


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("by_seed", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("by_question", [0.3, 1.0])
def test_intervals_of_a_single_arm_cover(seeds, by_seed, by_question):
    rng = np.random.default_rng([seeds, int(by_seed * 100), int(by_question * 10)])
    studies, questions = 2000, 60
    values = draw(rng, seeds, questions, by_seed, by_question, studies=(studies,))
    variance, df = mean_variance(*mean_squares(values), seeds, questions)
    half = stats.t.ppf(0.975, df) * np.sqrt(variance)
    covered = (np.abs(values.mean(axis=(1, 2))) <= half).mean()
    # 2,000 studies: a standard error of 0.5 points, three of them allowed beyond 94.4 to 97.2%.
    assert 0.93 <= covered <= 0.987


def test_runs_with_equal_scores_do_not_make_a_certainty():
    """Three seeds with as many right answers each: no width by luck, were there no lower bound."""
    values = np.array([np.roll(np.arange(100) < 40, shift) for shift in (0, 31, 67)], dtype=float)
    found = mean_interval(values - 0.38)
    assert found.se > 0.1 * np.sqrt(values.var(axis=1).mean() / 300)
    assert found.p > 0.01


def test_bootstrap_is_a_cross_check():
    values = draw(np.random.default_rng(8), 8, 150, by_seed=0.3, mean=0.2)
    found = mean_interval(values)
    low, high = bootstrap_interval(values, draws=2000)
    assert (high - low) == pytest.approx(found.high - found.low, rel=0.35)
    assert low < found.mean < high
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(np.vstack([values, np.full((1, 150), np.nan)])) == bootstrap_interval(
        values
    )


def test_smallest_visible_has_the_power_it_says():
    rng = np.random.default_rng(9)
    for df in (2.0, 5.0, 100.0):
        effect = smallest_visible(0.7, df, alpha=0.01)
        t = (effect + 0.7 * rng.standard_normal(200_000)) / (
            0.7 * np.sqrt(rng.chisquare(df, 200_000) / df)
        )
        assert (2 * stats.t.sf(np.abs(t), df) < 0.01).mean() == pytest.approx(0.8, abs=0.005)
    assert np.isnan(smallest_visible(0.0, 3.0, 0.05))
