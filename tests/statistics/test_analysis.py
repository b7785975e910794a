"""Families of tests, winners, luck, floors, labels: on made-up studies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from lessonplan.evaluation.outcomes import LabelCheck, OrderPicture, Outcome, Record
from lessonplan.statistics import analyse, gains, verdict
from lessonplan.statistics.analysis import floors
from lessonplan.statistics.family import holm
from lessonplan.statistics.labels import difficulty_bands, label_strength, received
from lessonplan.statistics.luck import best_of, gain_covariance


def study(rng, seeds=3, questions=60, effects=None, by_seed=0.02, level=0.6, arms=5, **fields):
    """Right and wrong answers; the seed moves each arm's rate, the question all arms' rates."""
    names = ["random", *(f"arm{i}" for i in range(arms))]
    effects = effects or {}
    ability = rng.normal(0, 0.25, questions)
    scores = {}
    for name in names:
        rate = level + effects.get(name, 0.0) + ability + by_seed * rng.normal(size=(seeds, 1))
        scores[name] = (rng.random((seeds, questions)) < rate).astype(float)
    return Outcome(
        model="m",
        evaluation="e",
        seeds=list(range(seeds)),
        ids=[str(i) for i in range(questions)],
        arms=scores,
        strategies={n: n for n in names},
        sources={n: {} for n in names},
        **fields,
    )


def record(*outcomes, **fields):
    return Record(title="t", outcomes=list(outcomes), **fields)


def test_planted_gain_is_found():
    rng = np.random.default_rng(1)
    outcome = study(rng, seeds=5, questions=400, effects={"arm2": 0.15}, by_seed=0.005)
    found = analyse(record(outcome))
    winners = [g.arm for g in found.results[0].gains if g.winner]
    assert winners == ["arm2"]
    assert found.results[0].best_of_all == "arm2"
    said = verdict(record(outcome), found)
    assert said.kind == "winner"
    assert said.sentences[0].startswith("Arm2 beat the random shuffle by")


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_or_two_seeds_never_call_a_winner(seeds):
    outcome = study(np.random.default_rng(2), seeds=seeds, effects={"arm0": 0.4}, level=0.5)
    found = analyse(record(outcome))
    gain = found.results[0].gains[0]
    assert gain.estimate.p < 1e-3
    assert not any(g.winner or g.loser or g.p_holm is not None for g in found.results[0].gains)
    assert verdict(record(outcome), found).kind == "too few seeds"


def test_copies_of_one_run_are_no_seeds():
    """A trainer that ignores its seed, or one file given three times, is one run."""
    outcome = study(np.random.default_rng(2), seeds=1, effects={"arm0": 0.4}, level=0.5)
    for arm, values in outcome.arms.items():
        outcome.arms[arm] = np.repeat(values, 3, axis=0)
    copied = replace(outcome, seeds=[0, 1, 2])
    found = analyse(record(copied))
    assert found.results[0].gains[0].estimate.p < 1e-3
    assert not any(g.testable or g.winner for g in found.results[0].gains)
    assert not found.results[0].pairs
    said = verdict(record(copied), found)
    assert said.kind == "too few seeds"
    assert "the runs of all seeds are the same" in said.sentences[0]
    assert "random: each of seeds 0, 1, 2 has the same scores" in " ".join(found.results[0].notes)
    # One run apart from its copies makes them seeds again, of which the note still tells.
    copied.arms["arm1"][2] = 1 - copied.arms["arm1"][2]
    found = analyse(record(copied))
    assert found.results[0].gains[0].testable
    assert any("arm1: each of seeds 0, 1 has" in note for note in found.results[0].notes)


def test_an_arm_that_never_differs_is_told():
    outcome = study(np.random.default_rng(2))
    outcome.arms["arm0"] = outcome.arms["random"].copy()
    result = analyse(record(outcome)).results[0]
    assert [note.split(":")[0] for note in result.notes if "Check that" in note] == ["arm0"]
    for arm in outcome.arms:
        outcome.arms[arm] = outcome.arms["random"].copy()
    found = analyse(record(outcome))
    assert found.results[0].smallest is None
    assert "points or more" not in " ".join(verdict(record(outcome), found).sentences)


def test_two_orders_that_are_the_same_tell_no_more_than_one():
    """As curriculum and interleaved curriculum do, where all questions are equally hard."""
    outcome = study(np.random.default_rng(2), arms=3)
    alone = analyse(record(outcome)).results[0]
    outcome.arms["again"] = outcome.arms["arm1"].copy()
    found = analyse(record(outcome)).results[0]
    assert [g.estimate for g in found.gains] == [
        *(g.estimate for g in alone.gains),
        alone.gains[1].estimate,
    ]
    assert [n for n in found.notes if "counts once" in n] == [
        "again: every score is that of arm1. Where two orders are the same, their runs are, too; "
        "what they tell about seeds counts once."
    ]


@pytest.mark.parametrize(("seeds", "known"), [(1, False), (2, False), (3, True)])
def test_luck_of_the_best_takes_in_seeds_or_is_not_told(seeds, known):
    outcome = study(np.random.default_rng(3), seeds=seeds)
    assert (analyse(record(outcome)).results[0].best is not None) == known


def test_an_arm_without_runs_is_not_accused():
    outcome = study(np.random.default_rng(2))
    outcome.arms["arm0"][:] = np.nan
    outcome.arms["arm1"][1] = np.nan
    notes = analyse(record(outcome)).results[0].notes
    assert notes == [
        "arm0: each of seeds 0, 1, 2 is missing.",
        "arm1: seed 1 is missing; the other pairs are used.",
    ]


def test_an_untested_gain_makes_no_headline():
    outcome = study(np.random.default_rng(2), effects={"arm0": 0.3}, level=0.4)
    outcome.arms["arm0"][1:] = np.nan
    found = analyse(record(outcome))
    assert max(found.results[0].gains, key=lambda g: g.estimate.mean).arm == "arm0"
    said = verdict(record(outcome), found)
    assert said.kind == "no difference"
    assert "arm0" not in said.sentences[0].lower()


@pytest.mark.parametrize("seeds", [2, 3])
def test_no_order_above_the_baseline_is_not_called_the_highest_above_it(seeds):
    effects = {f"arm{i}": -0.3 for i in range(5)}
    outcome = study(np.random.default_rng(2), seeds=seeds, questions=300, effects=effects)
    said = verdict(record(outcome), analyse(record(outcome)))
    assert ("no order came out above" in said.sentences[1]) == (seeds == 2)
    if seeds == 3:
        assert said.sentences[0].startswith("No order beat the random shuffle")
        assert "the others are equal" in said.sentences[1]


@pytest.mark.parametrize("size", [1, 2, 15, 300])
def test_holm_is_statsmodels(size):
    rng = np.random.default_rng(size)
    p = np.round(rng.random((4, size)) ** 3, 3)  # with ties
    np.testing.assert_allclose(holm(p), [multipletests(row, method="holm")[1] for row in p])
    assert holm([]).shape == (0,)


def test_holm_runs_over_the_whole_study():
    rng = np.random.default_rng(3)
    outcomes = [study(rng), study(rng), study(rng, seeds=2)]
    found = analyse(record(*outcomes))
    assert found.family == 15
    p = [g.estimate.p if g.testable else 1.0 for r in found.results for g in r.gains]
    expected = np.minimum(
        1, np.maximum.accumulate(np.sort(p) * np.arange(15, 0, -1))[np.argsort(np.argsort(p))]
    )
    np.testing.assert_allclose(holm(p), expected)
    shown = [g.p_holm for r in found.results for g in r.gains]
    assert shown[:10] == pytest.approx(list(expected[:10]))
    assert shown[10:] == [None] * 5


def test_missing_runs_are_dropped_in_pairs():
    outcome = study(np.random.default_rng(4), seeds=5)
    outcome.arms["random"][0] = np.nan
    outcome.arms["arm0"][1] = np.nan
    outcome.arms["arm1"][:] = np.nan
    first, second, third = gains(outcome)[:3]
    expected = (outcome.arms["arm0"] - outcome.arms["random"])[[2, 3, 4]].mean()
    assert first.estimate.mean == pytest.approx(expected)
    assert (first.estimate.seeds, third.estimate.seeds) == (3, 4)
    assert second.estimate is None
    result = analyse(record(outcome)).results[0]
    assert result.best.k == 4
    assert any("arm0" in note and "seed 1" in note for note in result.notes)
    outcome.arms["random"][:] = np.nan
    assert verdict(record(outcome), analyse(record(outcome))).kind == "no runs"


def test_floor_is_chance_or_the_best_letter():
    answers = np.array([0] * 30 + [1] * 20 + [2] * 10)
    fields = {"answers": answers, "n_options": np.full(60, 4)}
    rng = np.random.default_rng(5)
    assert floors(study(rng, **fields)) == (0.25, None)
    assert floors(study(rng, letters_matter=True, **fields)) == (0.25, 0.5)


def test_model_at_the_floor_has_no_winner_and_stays_in_the_family():
    rng = np.random.default_rng(6)
    fields = {"n_options": np.full(200, 4), "untuned": (rng.random(200) < 0.25).astype(float)}
    low = study(
        rng, questions=200, seeds=5, level=0.22, effects={"arm0": 0.5}, by_seed=0.0, **fields
    )
    found = analyse(record(low))
    assert found.results[0].at_floor
    assert (found.results[0].best, found.results[0].smallest, found.results[0].pairs) == (
        None,
        None,
        [],
    )
    assert not any(g.winner or g.testable for g in found.results[0].gains)
    assert found.family == 5
    said = verdict(record(low), found)
    assert said.kind == "floor"
    assert "25.0%" in said.sentences[0]


def test_seeds_that_differ_do_not_make_a_ceiling():
    """85, 90 and 95% right: an interval over three seeds reaches 100%, 100 wrong answers do not."""
    outcome = study(np.random.default_rng(2), questions=1000)
    for arm, values in outcome.arms.items():
        for row, rate in enumerate((0.85, 0.9, 0.95)):
            values[row] = np.arange(1000) < 1000 * rate
        outcome.arms[arm] = np.roll(values, len(arm), axis=1)
    result = analyse(record(outcome)).results[0]
    assert result.scores["random"].high == 1.0
    assert not result.at_ceiling


def test_ceiling():
    outcome = study(np.random.default_rng(7))
    outcome.arms["random"][:] = 1.0
    found = analyse(record(outcome))
    assert found.results[0].at_ceiling
    assert verdict(record(outcome), found).kind == "ceiling"


def test_luck_of_the_best_of_five():
    # Independent arms against one baseline: gains correlate by a half, so the expected maximum of
    # five is 1.163 sd * sqrt(1/2) of the gain's.
    sd = np.sqrt(2 / (8 * 400))
    ratios = []
    for seed in range(8):
        arms = np.random.default_rng(seed).standard_normal((6, 8, 400))
        found = best_of(arms[1:] - arms[0])
        ratios.append(found.luck / (1.163 * sd * np.sqrt(0.5)))
        assert found.low < found.gain < found.high
    # Above 1, because negative variance components count as zero: luck is not talked down.
    assert 1.0 <= np.mean(ratios) <= 1.3
    plain = best_of(arms[1:2] - arms[0])
    assert plain.luck == 0.0
    assert best_of(arms[1:] - arms[0]) == found


def test_corrected_interval_covers_and_is_wider():
    rng = np.random.default_rng(9)
    rejected = []
    for _ in range(60):
        arms = rng.standard_normal((6, 5, 50)) + 0.3 * rng.standard_normal((1, 1, 50))
        found = best_of(arms[1:] - arms[0])
        rejected.append(found.p < 0.05)
    assert np.mean(rejected) <= 0.12


def test_gain_covariance_has_the_variances_on_its_diagonal():
    rng = np.random.default_rng(10)
    values = rng.standard_normal((3, 6, 40)) + 2 * rng.standard_normal((3, 6, 1))
    values += 2 * rng.standard_normal((3, 1, 40))
    covariance = gain_covariance(values)
    assert np.linalg.eigvalsh(covariance).min() > -1e-12
    single = [gain_covariance(values[k : k + 1])[0, 0] for k in range(3)]
    np.testing.assert_allclose(np.diag(covariance), single, rtol=0.2)


def test_meaningless_questions_are_judged_apart():
    apart = np.zeros(60, dtype=bool)
    apart[:10] = True
    outcome = study(np.random.default_rng(11), meaningless=apart, categories=["x", "y"] * 30)
    result = analyse(record(outcome)).results[0]
    assert result.scores["random"].mean == pytest.approx(outcome.arms["random"][:, 10:].mean())
    kinds = {(g.kind, g.questions) for g in result.groups}
    assert kinds == {("category", 25), ("judged apart", 10)}
    assert any("10 of 60" in note for note in result.notes)


def test_groups_split_seen_and_unseen():
    seen = np.arange(60) < 20
    outcome = study(np.random.default_rng(12), answer_seen=seen)
    rows = {(g.group, g.arm): g for g in analyse(record(outcome)).results[0].groups}
    row = rows["seen in training", "arm1"]
    assert row.score == pytest.approx(outcome.arms["arm1"][:, :20].mean())
    assert row.gain.mean == pytest.approx(
        outcome.arms["arm1"][:, :20].mean() - outcome.arms["random"][:, :20].mean()
    )
    assert rows["not seen in training", "random"].gain is None


def test_real_valued_scores_have_no_floor():
    outcome = study(np.random.default_rng(13), metric="log_likelihood", n_options=np.full(60, 4))
    for values in outcome.arms.values():
        values -= 5.0
    result = analyse(record(outcome)).results[0]
    assert result.floor is None
    assert result.scores["random"].low < -4


def check(rho, n=300, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.normal(size=n)
    return LabelCheck("m", "t", "llm", label, rho * label + rng.normal(size=n))


def test_label_strength_is_spearmans_with_bonett_and_wrights_interval():
    made = check(0.4)
    found = label_strength(made)
    rho = stats.spearmanr(made.difficulty, made.loss).statistic
    assert found.rho == pytest.approx(rho)
    half = 1.959964 * np.sqrt((1 + rho**2 / 2) / 297)
    assert np.arctanh(found.high) - np.arctanh(rho) == pytest.approx(half)
    assert found.visible
    assert not label_strength(check(0.0)).visible
    assert not label_strength(check(-0.5)).visible
    assert [label_strength(check(rho)).word for rho in (0.4, 0.0, -0.5)] == [
        "yes",
        "no",
        "the other way",
    ]


def test_label_strength_of_odd_labels():
    constant = LabelCheck("m", "t", "s", np.ones(20), np.arange(20.0))
    assert np.isnan(label_strength(constant).rho)
    assert not label_strength(constant).visible
    perfect = LabelCheck("m", "t", "s", np.arange(20.0), np.arange(20.0))
    assert label_strength(perfect).visible
    holes = LabelCheck("m", "t", "s", np.array([np.nan, *range(20)]), np.arange(21.0))
    assert label_strength(holes).n == 20


def test_learning_rate_received():
    picture = OrderPicture(
        "t",
        "blocked",
        0,
        ["a", "a", "b", ""],
        np.array([0, 1, 0, np.nan]),
        np.array([4.0, 2, 2, 0]),
    )
    rows = {(r.kind, r.group): r for r in received(picture)}
    assert rows["category", "a"].rate == 3.0
    assert rows["category", "a"].relative == 1.5
    assert rows["category", "(no category)"].questions == 1
    assert rows["difficulty", "0"].rate == 3.0
    assert ("difficulty", "nan") not in rows
    bands, names = difficulty_bands(np.linspace(0, 1, 30))
    assert names == ["easiest third", "middle third", "hardest third"]
    assert list(np.bincount(bands)) == [10, 10, 10]


def test_the_words_fit_two_arms_and_keep_an_arms_capitals():
    rng = np.random.default_rng(1)
    two = study(rng, seeds=5, questions=400, effects={"arm0": 0.2}, by_seed=0.005, arms=1)
    analysis = analyse(record(two))
    assert analysis.results[0].best_of_all == "arm0"
    assert verdict(record(two), analysis).sentences[1] == "No other order was compared."
    named = study(rng, seeds=1)
    named.arms["Mine [difficulty=GPT]"] = np.ones_like(named.arms["random"])
    said = verdict(record(named), analyse(record(named)))
    assert "In these runs Mine [difficulty=GPT] came out highest" in said.sentences[1]
