"""Learning efficiency and forgetting: by hand, by slow references, with planted effects."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessonplan.evaluation.outcomes import Curve, Outcome
from lessonplan.report.figures import curve_points
from lessonplan.statistics import mean_interval
from lessonplan.statistics.efficiency import (
    area,
    efficiencies,
    questions_to_reach,
    resampled_means,
)
from lessonplan.statistics.forgetting import BINS, forgetting, questions_since

SEEN = np.array([0, 20, 60, 100])


def outcome(curves, **fields):
    arms = {arm: values[:, -1] for arm, values in curves.items()}
    seeds, questions = next(iter(arms.values())).shape
    base = Outcome(
        model="m",
        evaluation="e",
        seeds=list(range(seeds)),
        ids=[str(i) for i in range(questions)],
        arms=arms,
        strategies={arm: arm for arm in arms},
        sources={arm: {} for arm in arms},
        curves={a: Curve(SEEN, v, np.arange(questions)) for a, v in curves.items()},
    )
    return replace(base, **fields)


def drawn(seed=0, seeds=4, questions=50, lift=0.0):
    rng = np.random.default_rng(seed)
    rate = np.array([0.2, 0.35, 0.5, 0.6])[None, :, None]
    return (rng.random((seeds, 4, questions)) < rate + lift).astype(float)


def test_the_area_of_a_constant_curve_is_its_level():
    levels = np.random.default_rng(0).random((3, 1, 7))
    found = area(SEEN.astype(float), np.repeat(levels, 4, axis=1))
    np.testing.assert_allclose(found, levels[:, 0])


def test_the_area_is_numpys():
    values = np.random.default_rng(1).random((3, 4, 7))
    expected = np.trapezoid(values, SEEN, axis=1) / 100
    np.testing.assert_allclose(area(SEEN.astype(float), values), expected)


def test_questions_to_reach_by_hand():
    seen = np.array([0.0, 10, 20, 40])
    curve = np.array([[0.2, 0.4, 0.3, 0.8]])

    def reach(level):
        return questions_to_reach(seen, curve, np.array([level]))[0]

    assert [reach(x) for x in (0.1, 0.2, 0.3, 0.4)] == pytest.approx([0, 0, 5, 10])
    assert reach(0.55) == pytest.approx(30)
    assert reach(0.8) == pytest.approx(40)
    assert reach(0.81) == math.inf


@settings(max_examples=50)
@given(st.lists(st.integers(0, 5), min_size=4, max_size=4), st.integers(0, 6))
def test_questions_to_reach_is_a_fine_walk_along_the_curve(heights, level):
    seen, curve = SEEN.astype(float), np.array(heights, dtype=float)
    walk = np.linspace(0, 100, 10_001)
    there = np.interp(walk, seen, curve) >= level - 1e-9
    expected = walk[there.argmax()] if there.any() else math.inf
    found = questions_to_reach(seen, curve[None], np.array([float(level)]))[0]
    assert found == pytest.approx(expected, abs=0.02)


def test_efficiency_is_that_of_the_mean_curve():
    curves = {"random": drawn(0), "fast": drawn(1, lift=0.15)}
    base, fast = efficiencies(outcome(curves))
    gaps = np.trapezoid(curves["fast"] - curves["random"], SEEN, axis=1) / 100
    expected = mean_interval(gaps)
    for found, own in ((fast.gain.mean, expected.mean), (fast.gain.low, expected.low)):
        assert found == pytest.approx(own)
    assert base.gain is None
    means = curves["fast"].mean(axis=(0, 2))
    level = curves["random"][:, -1].mean()
    walk = np.linspace(0, 100, 100_001)
    expected = walk[(np.interp(walk, SEEN, means) >= level).argmax()]
    assert fast.reached == pytest.approx(expected, abs=0.01)
    assert fast.low <= fast.reached <= fast.high
    assert base.reached <= base.end == 100
    assert base.share == 1.0


def test_reach_intervals_are_those_of_a_slow_bootstrap():
    curves = {"random": drawn(0, seeds=5), "fast": drawn(1, seeds=5, lift=0.1)}
    fast = efficiencies(outcome(curves))[1]
    rng = np.random.default_rng(9)
    found = []
    for _ in range(1500):
        seeds, questions = rng.integers(5, size=5), rng.integers(50, size=50)
        own, base = (
            curves[a][seeds][:, :, questions].mean(axis=(0, 2)) for a in ("fast", "random")
        )
        found.append(questions_to_reach(SEEN.astype(float), own[None], base[-1:])[0])
    low, high = np.quantile(found, [0.025, 0.975], method="inverted_cdf")
    assert fast.low == pytest.approx(low, abs=5)
    assert fast.high == high or fast.high == pytest.approx(high, abs=5)
    assert fast.share == pytest.approx(np.isfinite(found).mean(), abs=0.03)


def test_permuting_questions_and_seeds_changes_nothing():
    curves = {"random": drawn(0), "fast": drawn(1, lift=0.1)}
    questions, seeds = np.random.default_rng(2).permutation(50), [2, 0, 3, 1]
    again = {arm: values[seeds][:, :, questions] for arm, values in curves.items()}
    for one, two in zip(efficiencies(outcome(curves)), efficiencies(outcome(again)), strict=True):
        assert one.area.mean == pytest.approx(two.area.mean)
        assert one.area.se == pytest.approx(two.area.se)
        assert one.reached == pytest.approx(two.reached)


def test_what_never_gets_there_and_what_is_missing():
    curves = {"random": drawn(0, lift=0.3), "slow": drawn(1, lift=-0.2), "none": drawn(2) * np.nan}
    curves["slow"][1] = np.nan
    base, slow = efficiencies(outcome(curves))
    assert (slow.reached, slow.high) == (math.inf, math.inf)
    assert slow.share < 0.05
    assert (slow.area.seeds, base.area.seeds) == (3, 4)
    unknown = {arm: values.copy() for arm, values in curves.items()}
    for values in unknown.values():
        values[:, 0] = np.nan  # the untuned model was not scored
    later = efficiencies(outcome(unknown))[0]
    expected = np.trapezoid(curves["random"][:, 1:].mean(axis=(0, 2)), SEEN[1:]) / 80
    assert later.area.mean == pytest.approx(expected)
    assert efficiencies(replace(outcome(curves), curves={})) == []


def test_questions_that_do_not_count_are_left_out():
    curves = {"random": drawn(0), "fast": drawn(1)}
    apart = np.arange(50) < 10
    found = efficiencies(outcome(curves, meaningless=apart))[1]
    kept = efficiencies(outcome({arm: v[:, :, 10:] for arm, v in curves.items()}))[1]
    assert found.area == kept.area
    seen, means = curve_points(outcome(curves, meaningless=apart), "fast")
    np.testing.assert_array_equal(seen, SEEN)
    np.testing.assert_allclose(means, curves["fast"][:, :, 10:].mean(axis=(0, 2)))


def test_resampled_means_have_the_mean_of_the_curves():
    values = np.stack([drawn(0), drawn(1)])
    means = np.concatenate(list(resampled_means(values, 500)), axis=1)
    assert means.shape == (2, 500, 4)
    np.testing.assert_allclose(means.mean(axis=1), values.mean(axis=(1, 3)), atol=0.02)


@settings(max_examples=40)
@given(st.lists(st.integers(-1, 3), min_size=1, max_size=20), st.integers(1, 20))
def test_questions_since_is_a_plain_search(order, seen):
    found = questions_since(np.array([order]), seen, 4)[0]
    shown = order[:seen]
    for category in range(4):
        expected = shown[::-1].index(category) if category in shown else math.inf
        if math.isfinite(expected) and seen > len(shown):
            expected += seen - len(shown)
        assert found[category] == expected


N, K = 200, 8


def taught(loss, seeds=5, per_category=15, seed=0):
    """Blocked runs that answer worse by `loss` on categories last seen over a quarter ago."""
    rng = np.random.default_rng(seed)
    category = np.repeat(np.arange(K), per_category)
    shown = {
        "random": np.array(
            [rng.permutation(np.repeat(np.arange(K), N // K)) for _ in range(seeds)]
        ),
        "blocked": np.array([np.repeat(rng.permutation(K), N // K) for _ in range(seeds)]),
    }
    seen = np.array([0, N // 2, N])
    curves, arms = {}, {}
    for arm, orders in shown.items():
        values = np.zeros((seeds, 3, len(category)))
        for point, count in enumerate(seen):
            since = questions_since(orders, count, K)[:, category] if count else np.inf
            rate = np.where(since >= N / 4, 0.7 - loss, 0.7)
            values[:, point] = rng.random((seeds, len(category))) < rate
        curves[arm] = Curve(seen, values, np.arange(len(category)))
        arms[arm] = values[:, -1]
    return Outcome(
        model="m",
        evaluation="e",
        seeds=list(range(seeds)),
        ids=[str(i) for i in range(len(category))],
        arms=arms,
        strategies={arm: arm for arm in arms},
        sources={arm: {} for arm in arms},
        categories=[f"c{k}" for k in category],
        curves=curves,
        shown=shown,
        taught=[f"c{k}" for k in range(K)],
    )


def test_planted_forgetting_is_found_and_none_where_there_is_none():
    base, blocked = forgetting(taught(0.3))
    drop, low, high = blocked.drop
    assert low < 0.3 < high
    assert low > 0.1
    assert drop == pytest.approx(blocked.recalls[0].gain - blocked.recalls[2].gain)
    assert all(math.isnan(r.gain) for r in base.recalls)
    inside = [forgetting(taught(0.0, seed=s))[1].drop for s in range(20)]
    assert sum(low < 0 < high for _, low, high in inside) >= 16


def test_recalls_are_the_means_of_their_answers():
    made = taught(0.2)
    _, blocked = forgetting(made)
    held = {name: [] for name in BINS}
    gaps = {name: [] for name in BINS}
    for point, count in ((1, N // 2), (2, N)):
        for row in range(5):
            order = list(made.shown["blocked"][row][:count])
            for q, name in enumerate(made.categories):
                k = made.taught.index(name)
                since = order[::-1].index(k) if k in order else math.inf
                which = 3 if since == math.inf else 0 if since < 10 else 1 if since < 50 else 2
                value = made.curves["blocked"].values[row, point, q]
                held[BINS[which]].append(value)
                gaps[BINS[which]].append(value - made.curves["random"].values[row, point, q])
    for recall in blocked.recalls:
        assert recall.answers == len(held[recall.bin])
        assert recall.score == pytest.approx(np.mean(held[recall.bin]))
        assert recall.gain == pytest.approx(np.mean(gaps[recall.bin]))
    assert [r.since for r in blocked.recalls] == [0, 10, 50, None]


def test_the_end_alone_is_enough_and_unknown_categories_do_not_count():
    made = taught(0.3)
    ended = forgetting(replace(made, curves={}))[1]
    assert sum(r.answers for r in ended.recalls) == 5 * 120
    strange = replace(made, curves={}, categories=["elsewhere"] * 15 + made.categories[15:])
    assert sum(r.answers for r in forgetting(strange)[1].recalls) == 5 * 105
    assert forgetting(replace(made, categories=None)) == []
    assert forgetting(replace(made, shown={})) == []
    assert forgetting(replace(made, categories=["elsewhere"] * 120)) == []
    few = replace(made, shown={a: np.minimum(v, 3) for a, v in made.shown.items()})
    assert all(math.isnan(r.low) for r in forgetting(few)[1].recalls)
