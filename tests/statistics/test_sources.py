"""Label sources compared: agreement, leaks and gains against independent computations."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import adjusted_mutual_info_score, mutual_info_score

from lessonplan.evaluation.outcomes import LabelSource, Outcome, Record
from lessonplan.statistics import analyse, mean_interval, verdict
from lessonplan.statistics.crossed import pooled_squares
from lessonplan.statistics.labels import rank_correlation
from lessonplan.statistics.sources import (
    agreements,
    category_codes,
    correct_sources,
    cross_table,
    difficulty_bins,
    leak,
    mutual_information,
    overlaps,
    shuffled_information,
    source_gains,
    strategy_of,
)
from lessonplan.statistics.verdict import source_sentence


def labels(kind, source, values, answers=None, training="t"):
    n = len(values)
    answers = np.arange(n) % 4 if answers is None else np.asarray(answers)
    return LabelSource(training, kind, source, "made up", values, answers)


def two_difficulties(seed=0, n=400, rho=0.4):
    rng = np.random.default_rng(seed)
    first = rng.normal(size=n)
    return first, rho * first + np.sqrt(1 - rho**2) * rng.normal(size=n)


def test_difficulties_agree_as_spearman_and_a_bootstrap_say():
    first, second = two_difficulties()
    first[:7], second[5:9] = np.nan, np.nan
    (found,) = agreements([labels("difficulty", "a", first), labels("difficulty", "b", second)])
    x, y = first[9:], second[9:]
    assert found.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.questions == 391
    rng = np.random.default_rng(1)
    drawn = []
    for _ in range(600):
        rows = rng.integers(391, size=391)
        drawn.append(stats.spearmanr(x[rows], y[rows]).statistic)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.03)
    assert found.high == pytest.approx(high, abs=0.03)


def test_rank_correlation_of_odd_labels():
    assert rank_correlation(np.ones(9), np.arange(9.0))[3] == 9
    assert np.isnan(rank_correlation(np.ones(9), np.arange(9.0))[0])
    assert np.isnan(rank_correlation(np.arange(3.0), np.arange(3.0))[0])
    assert rank_correlation(np.arange(9.0), -np.arange(9.0))[:3] == pytest.approx((-1, -1, -1))


def test_categories_agree_as_sklearn_says():
    rng = np.random.default_rng(2)
    first = rng.integers(6, size=500)
    second = np.where(rng.random(500) < 0.6, first, rng.integers(9, size=500))
    names = [f"c{i}" for i in second]
    names[3], names[4] = None, ""
    pair = [labels("category", "a", [str(i) for i in first]), labels("category", "b", names)]
    (found,) = agreements(pair)
    kept = [i for i in range(500) if names[i]]
    expected = adjusted_mutual_info_score(first[kept], second[kept])
    assert found.value == pytest.approx(expected)
    assert (found.questions, found.levels) == (498, (6, 9))
    one, two = first[kept], second[kept]
    dealt = [adjusted_mutual_info_score(one, rng.permutation(two)) for _ in range(300)]
    assert found.luck == pytest.approx(np.mean(dealt), abs=0.003)
    assert found.luck_high == pytest.approx(np.quantile(dealt, 0.95), abs=0.005)
    assert agreements(pair) == [found]


def test_unrelated_categories_do_not_agree():
    rng = np.random.default_rng(3)
    above = 0
    for _ in range(40):
        pair = [labels("category", s, [str(i) for i in rng.integers(5, size=200)]) for s in "ab"]
        (found,) = agreements(pair)
        assert abs(found.value) < 0.05
        above += found.value > found.luck_high
    assert above <= 6
    same = [labels("category", s, ["x", "y"] * 50) for s in "ab"]
    assert agreements(same)[0].value == pytest.approx(1.0)


def test_agreement_of_odd_categories():
    constant = labels("category", "a", ["x"] * 20)
    each = labels("category", "b", [str(i) for i in range(20)])
    halves = labels("category", "c", ["x", "y"] * 10)
    none = labels("category", "d", [None] * 20)
    assert all(np.isnan(a.value) for a in agreements([constant, each, halves, none]))
    other = replace(halves, training="another")
    assert agreements([halves, other]) == []
    with pytest.raises(ValueError, match="20 labels from 'c', 3 from 'e'"):
        agreements([halves, labels("category", "e", ["x", "y", "z"])])


def test_overlaps_count():
    human = labels("category", "human", ["a", "a", "b", "b", "c", None, "a", "d"])
    cluster = labels("category", "cluster", ["1", "1", "1", "1", "1", "1", "2", None])
    first, second = overlaps([human, cluster])
    assert (first.source, first.category, first.questions) == ("cluster", "1", 5)
    assert first.top == (("a", 2), ("b", 2), ("c", 1))
    assert second.top == (("a", 1),)


@pytest.mark.parametrize("shape", [(2, 2), (10, 4), (30, 20)])
def test_mutual_information_is_sklearns_in_bits(shape):
    rng = np.random.default_rng(shape)
    tables = []
    for _ in range(5):
        first = rng.integers(shape[0], size=400)
        second = (first + rng.integers(shape[1], size=400)) // 2
        table = cross_table(first, second)
        assert table.sum() == 400
        expected = mutual_info_score(first, second) / np.log(2)
        assert float(mutual_information(table)) == pytest.approx(expected, abs=1e-12)
        tables.append(table)
    assert float(mutual_information(np.full((3, 3), 7))) == pytest.approx(0.0, abs=1e-12)


def test_shuffled_tables_are_those_of_shuffled_labels():
    rng = np.random.default_rng(5)
    first, second = rng.integers(7, size=150), rng.choice(4, 150, p=[0.5, 0.3, 0.1, 0.1])
    found = shuffled_information(cross_table(first, second), rng, draws=4000)
    slow = [mutual_info_score(first, rng.permutation(second)) / np.log(2) for _ in range(1500)]
    assert len(found) == 4000
    assert stats.ks_2samp(found, slow).pvalue > 0.01
    wide = cross_table(rng.integers(1200, size=3000), rng.integers(1200, size=3000))
    assert len(shuffled_information(wide, rng, draws=5)) == 5


def test_difficulty_bins():
    few = np.array([0.0, 0.5, 0.5, 1.0])
    assert list(difficulty_bins(few)) == [0, 1, 1, 2]
    many = np.random.default_rng(6).random(1000)
    assert list(np.bincount(difficulty_bins(many))) == [100] * 10
    tied = np.r_[np.zeros(900), np.arange(1, 101)]
    assert len(np.unique(difficulty_bins(tied))) == 2
    assert list(category_codes(["b", None, "a", float("nan"), ""])[0]) == [1, -1, 0, -1, -1]


def test_p_is_uniform_where_nothing_leaks():
    rng = np.random.default_rng(7)
    found = [
        leak(labels("difficulty", "x", rng.random(200), rng.integers(4, size=200))).p
        for _ in range(200)
    ]
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert np.mean(np.array(found) < 0.01) <= 0.03


def test_a_model_that_always_says_a_leaks():
    rng = np.random.default_rng(8)
    answers = rng.integers(5, size=300)
    difficulty = 0.9 * (answers != 0) + 0.1 * rng.random(300)
    found = leak(labels("difficulty", "llm", difficulty, answers))
    assert found.p == 1 / 2000
    assert found.found
    assert found.bits > 5 * found.luck
    assert found.bits <= found.position_bits == pytest.approx(np.log2(5), abs=0.02)
    assert leak(labels("difficulty", "llm", difficulty, answers)) == found
    rare = leak(labels("difficulty", "weak", difficulty + 4 * rng.random(300), answers))
    assert rare.bits < found.bits


def test_leak_of_odd_labels():
    constant = leak(labels("difficulty", "x", np.ones(40)))
    assert (constant.bits, constant.p, constant.bins) == (0.0, 1.0, 1)
    assert leak(labels("difficulty", "x", np.arange(40.0), np.zeros(40, dtype=int))).p == 1.0
    empty = leak(labels("difficulty", "x", np.full(40, np.nan)))
    assert (empty.questions, empty.p, empty.found) == (0, 1.0, False)
    holes = leak(labels("difficulty", "x", np.r_[np.nan, np.arange(39.0)]))
    assert holes.questions == 39
    with pytest.raises(ValueError, match="4 labels for 3 answers"):
        leak(labels("difficulty", "x", np.arange(4.0), [0, 1, 2]))


def test_ten_thousand_questions_take_a_moment():
    rng = np.random.default_rng(9)
    many = [
        labels("difficulty", "x", rng.random(10_000), rng.integers(5, size=10_000)),
        labels("category", "a", [str(i) for i in rng.integers(20, size=10_000)]),
        labels("category", "b", [str(i) for i in rng.integers(20, size=10_000)]),
    ]
    start = time.monotonic()
    leak(many[0])
    agreements(many)
    assert time.monotonic() - start < 8


ARMS = {
    "random": {},
    "blocked [category=human]": {"category": "human"},
    "blocked [category=cluster]": {"category": "cluster"},
    "curriculum [difficulty=human]": {"difficulty": "human"},
    "curriculum [difficulty=llm]": {"difficulty": "llm"},
    "curriculum (bands=3) [difficulty=human]": {"difficulty": "human"},
    "curriculum (bands=3) [difficulty=llm]": {"difficulty": "llm"},
}
for d in ("human", "llm"):
    for c in ("human", "cluster"):
        name = f"blocked_curriculum [difficulty={d}, category={c}]"
        ARMS[name] = {"difficulty": d, "category": c}


def study(seed=0, seeds=3, questions=80, lift=0.0, arms=ARMS, **fields):
    rng = np.random.default_rng(seed)
    rate = 0.55 + rng.normal(0, 0.2, questions)
    scores = {
        arm: (
            rng.random((seeds, questions)) < rate + lift * (needs.get("difficulty") == "llm")
        ).astype(float)
        for arm, needs in arms.items()
    }
    return Outcome(
        model="m",
        evaluation="e",
        seeds=list(range(seeds)),
        ids=[str(i) for i in range(questions)],
        arms=scores,
        strategies={arm: arm.split(" ")[0] for arm in arms},
        sources={arm: dict(needs) for arm, needs in arms.items()},
        **fields,
    )


def test_strategies_keep_their_settings():
    outcome = study()
    assert strategy_of(outcome, "curriculum (bands=3) [difficulty=llm]") == "curriculum (bands=3)"
    assert strategy_of(outcome, "random") == "random"
    both = "blocked_curriculum [difficulty=llm, category=human]"
    assert strategy_of(outcome, both) == "blocked_curriculum"
    odd = study(arms={"random": {}, "my [own] [category=a]": {"category": "a", "difficulty": "b"}})
    assert strategy_of(odd, "my [own] [category=a]") == "my [own]"
    plain = study(arms={"random": {}, "my [own]": {"category": "a"}})
    assert strategy_of(plain, "my [own]") == "my [own]"


def test_gains_are_paired_differences():
    outcome = study()
    found = source_gains(outcome)
    assert [(g.kind, g.source, g.other, g.pooled) for g in found].count(
        ("difficulty", "llm", "human", True)
    ) == 1
    lines = {(g.kind, g.strategies, g.fixed): g for g in found}
    assert len(lines) == len(found) == 5 + 4
    line = lines["difficulty", ("curriculum (bands=3)",), ""]
    total = score = 0.0
    for s in range(3):
        for q in range(80):
            a = outcome.arms["curriculum (bands=3) [difficulty=llm]"][s, q]
            b = outcome.arms["curriculum (bands=3) [difficulty=human]"][s, q]
            total += (a - b) / 240
            score += a / 240
    assert line.estimate.mean == pytest.approx(total)
    assert line.score == pytest.approx(score)
    assert line.score - line.other_score == pytest.approx(total)


def test_the_pooled_line_weighs_strategies_alike():
    outcome = study(seeds=4)
    a = outcome.arms
    both = "blocked_curriculum [difficulty={}, category={}]"
    parts = [
        a["curriculum [difficulty=llm]"] - a["curriculum [difficulty=human]"],
        a["curriculum (bands=3) [difficulty=llm]"] - a["curriculum (bands=3) [difficulty=human]"],
        sum(
            (a[both.format("llm", c)] - a[both.format("human", c)]) / 2
            for c in ("human", "cluster")
        ),
    ]
    # Squared weights of the arms: two strategies with one difference each, one with two halves.
    weight = (2 + 2 + 4 * 0.5**2) / 9
    every = pooled_squares(np.stack(list(a.values())))
    expected = mean_interval(sum(parts) / 3, pooled=every, weight=weight)
    pooled = next(g for g in source_gains(outcome) if g.pooled and g.kind == "difficulty")
    assert pooled.estimate.mean == pytest.approx(expected.mean)
    assert pooled.estimate.p == pytest.approx(expected.p)
    assert (pooled.averaged, len(pooled.strategies)) == (4, 3)
    assert "Averaged over the 3 strategies" in source_sentence(pooled)


def test_missing_runs_leave_their_seed_out():
    outcome = study(seeds=4)
    outcome.arms["curriculum [difficulty=llm]"][1] = np.nan
    outcome.arms["curriculum (bands=3) [difficulty=human]"][:] = np.nan
    found = [g for g in source_gains(outcome) if g.kind == "difficulty"]
    assert {g.strategies[0] for g in found if not g.pooled} == {"curriculum", "blocked_curriculum"}
    seeds = {g.strategies: g.estimate.seeds for g in found}
    assert seeds["curriculum",] == 3
    assert seeds["blocked_curriculum",] == 4
    pooled = next(g for g in found if g.pooled)
    assert (pooled.averaged, pooled.estimate.seeds) == (3, 3)
    for values in outcome.arms.values():
        values[:] = np.nan
    assert source_gains(outcome) == []


def test_a_single_difference_is_the_pooled_one_and_three_sources_make_three_pairs():
    arms = {"random": {}} | {
        f"curriculum [difficulty={s}]": {"difficulty": s} for s in ("human", "llm", "untuned")
    }
    found = source_gains(study(arms=arms))
    assert [(g.source, g.other) for g in found] == [
        ("llm", "human"), ("untuned", "human"), ("untuned", "llm"),
    ]  # fmt: skip
    assert all(g.pooled and g.averaged == 1 for g in found)
    assert source_gains(study(arms={"random": {}, "curriculum": {"difficulty": "given"}})) == []


def test_holm_runs_over_pooled_and_single_lines_apart():
    found = correct_sources(source_gains(study(1, seeds=5)))
    pooled = sorted((g for g in found if g.pooled), key=lambda g: g.estimate.p)
    first, second = (g.estimate.p for g in pooled)
    expected = [min(1, 2 * first), min(1, max(2 * first, second))]
    assert [g.p_holm for g in pooled] == pytest.approx(expected)
    single = [g for g in found if not g.pooled]
    least = min(single, key=lambda g: g.estimate.p)
    assert least.p_holm == pytest.approx(min(1, 7 * least.estimate.p))


def test_a_planted_difference_is_found_and_told():
    outcome = study(2, seeds=5, questions=400, lift=0.12)
    record = Record(title="t", outcomes=[outcome])
    found = analyse(record)
    pooled = [g for g in found.source_gains if g.pooled]
    assert [(g.kind, g.found) for g in pooled] == [("difficulty", True), ("category", False)]
    caveats = [c for c in verdict(record, found).caveats if "labels come from" in c]
    assert len(caveats) == 1
    assert "difficulty “llm” beat “human” by" in caveats[0]
    assert "beyond luck" in source_sentence(pooled[0])
    assert "no difference that luck cannot explain" in source_sentence(pooled[1])
    nothing = Record(title="t", outcomes=[study(3)])
    assert not [c for c in verdict(nothing, analyse(nothing)).caveats if "labels" in c]


def test_floor_and_few_seeds_claim_nothing():
    low = study(4, seeds=5, lift=0.5, n_options=np.full(80, 2))
    low.arms["random"][:] = (np.random.default_rng(0).random((5, 80)) < 0.3).astype(float)
    found = analyse(Record(title="t", outcomes=[low]))
    assert {g.blocked for g in found.source_gains} == {"floor"}
    assert all(g.p_holm is None for g in found.source_gains)
    assert "nothing is claimed: scores at the floor" in source_sentence(found.source_gains[0])
    few = analyse(Record(title="t", outcomes=[study(5, seeds=2, lift=0.5)]))
    assert all(g.p_holm is None for g in few.source_gains)
    said = source_sentence(next(g for g in few.source_gains if g.pooled))
    assert "in these runs alone: 2 seeds, where 3 seeds are needed" in said


def test_a_bare_table_compares_no_sources():
    found = analyse(Record(title="t", outcomes=[study(arms={"random": {}, "mine": {}})]))
    assert (found.agreements, found.overlaps, found.leaks, found.source_gains) == ([], [], [], [])
