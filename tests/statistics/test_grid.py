"""The grid of a study and of bare accuracies: against the paper's figures, pandas and SciPy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lessonplan.errors import InputError
from lessonplan.evaluation.outcomes import Outcome, Record
from lessonplan.report.grid_section import grid_sentences
from lessonplan.report.grid_tables import grid_tables
from lessonplan.statistics import analyse, grid, mean_interval
from lessonplan.statistics.cells import BINOMIAL, SPREAD, expected_largest
from lessonplan.statistics.family import difference
from lessonplan.statistics.grid import (
    CELL,
    EVALUATION,
    MODEL,
    RUNS,
    average_best,
    count_wins,
    joined,
)

MODELS = ["tinyllama_1.1b", "llama2_7b", "llama2_13b", "mistral_7b"]
SETS = ["lek", "medmcqa", "medqa"]
FACTS = {
    "questions": {"lek": 874, "medmcqa": 4183, "medqa": 1273},
    "chance": {"lek": 0.2, "medmcqa": 0.25, "medqa": 0.2},
    "runs": 5,
}
OWN_COPY = Path(__file__).parents[2] / "docs" / "method" / "yang2024.csv"


@pytest.fixture(scope="module", params=["published", "own copy"])
def paper(request):
    if request.param == "own copy":
        return grid(OWN_COPY, models=MODELS, evaluations=SETS, **FACTS)
    file = request.getfixturevalue("shared_data") / "paper_table1.csv"
    return grid(file, models=MODELS, evaluations=SETS, **FACTS)


def points(columns, setting):
    return [round(100 * b.gain, 2) for c in columns for b in c.best if b.setting == setting]


def test_the_papers_gains(paper):
    by_set, by_model = (paper.of(by, blocked=True) for by in (EVALUATION, MODEL))
    assert points(by_set, "labels=llm") == [0.81, 1.81, 0.59]
    assert points(by_model, "labels=llm") == [1.44, 0.50, 0.45, 1.35]
    # The abstract prints 1.02 for the first; its own table gives 1.07.
    assert round(100 * average_best(by_set, "labels=llm").gain, 2) == 1.07
    assert 100 * average_best(by_model, "labels=llm").gain == pytest.approx(0.935)
    best = paper.means[EVALUATION]
    assert round(100 * best.scores["interleaved_curriculum [labels=llm]"], 2) == 38.25
    assert round(100 * best.scores["random"], 2) == 37.41


def test_the_papers_winners_and_rows_that_were_not_run_twice(paper):
    every = [c for by in (MODEL, EVALUATION) for c in paper.of(by, blocked=True)]
    won = {w.strategy: (w.wins, w.different) for w in count_wins(every)}
    assert won == {
        "curriculum": (5, 5),
        "interleaved": (4, 3),
        "interleaved_curriculum": (3, 3),
        "blocked_curriculum": (2, 2),
    }
    arms = set(every[0].scores)
    assert {"random", "blocked", "interleaved"} < arms
    assert len(arms) == 9
    assert [sorted(s.arms.values())[:2] for s in paper.settings] == [
        ["blocked", "blocked_curriculum [labels=human]"],
        ["blocked", "blocked_curriculum [labels=llm]"],
    ]


def test_the_papers_floor(paper):
    assert [c.name for c in paper.of(MODEL, blocked=True) if c.blocked] == ["tinyllama_1.1b"]
    assert "20.4%, where guessing has 21.7%" in paper.notes[0]
    assert "cannot be had without tinyllama_1.1b" in paper.notes[1]
    average = average_best(paper.of(MODEL), "labels=llm")
    assert (average.columns, round(100 * average.gain, 2)) == (3, 0.77)
    assert paper.means[MODEL].scores["random"] == pytest.approx(np.mean([0.3871, 0.4257, 0.4797]))


def test_the_papers_luck(paper):
    (lek,) = (c for c in paper.of(EVALUATION) if c.name == "lek")
    rng = np.random.default_rng(0)
    # Four models, five runs each, 874 questions each answered alone: the best of five orders.
    right = rng.binomial(874 * 5 * 4, 0.4355, size=(40_000, 6)) / (874 * 5 * 4)
    drawn = (right[:, 1:].max(axis=1) - right[:, 0]).mean()
    assert lek.best[0].luck[BINOMIAL] == pytest.approx(drawn, rel=0.02)
    table = pd.read_csv(OWN_COPY)
    part = table[table["labels"].isna() | (table["labels"] == "llm")][SETS].to_numpy() / 100
    rows, columns = np.indices(part.shape)
    design = np.column_stack(
        [*(rows.ravel() == i for i in range(6)), *(columns.ravel() == j for j in (1, 2))]
    )
    _, rest, *_ = np.linalg.lstsq(design.astype(float), part.ravel(), rcond=None)
    llm = next(b for b in lek.best if b.setting == "labels=llm")
    assert llm.luck[SPREAD] == pytest.approx(expected_largest(5) * np.sqrt(rest[0] / 10))


def test_the_papers_t_tests(paper):
    table = pd.read_csv(OWN_COPY).set_index(["strategy", "labels"])[SETS] / 100
    for arm in ("curriculum", "interleaved_curriculum"):
        key = (arm, "llm")
        expected = stats.ttest_rel(table.loc[key], table.loc[("random", np.nan)].squeeze())
        interval = expected.confidence_interval()
        found = paper.means[EVALUATION].gains[f"{arm} [labels=llm]"]
        assert found.p == pytest.approx(expected.pvalue)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    (contrast,) = paper.means[EVALUATION].contrasts
    assert (contrast.source, contrast.other) == ("llm", "human")
    uses = ["curriculum", "blocked_curriculum", "interleaved_curriculum"]
    gap = (
        table.loc[[(s, "llm") for s in uses]].mean()
        - table.loc[[(s, "human") for s in uses]].mean()
    )
    assert contrast.estimate.mean == pytest.approx(gap.mean())
    assert contrast.estimate.p == pytest.approx(stats.ttest_1samp(gap, 0).pvalue)


def test_the_own_copy_is_the_published_table(shared_data):
    theirs = pd.read_csv(shared_data / "paper_table1.csv")
    own = pd.read_csv(OWN_COPY)
    for _, row in theirs.iterrows():
        same = own[
            (own.strategy == row.strategy) & (own.labels.isna() | (own.labels == row.labels))
        ]
        assert (same[MODELS + SETS].to_numpy() == row[MODELS + SETS].to_numpy(float)).all()
    assert len(own) == 9


@pytest.mark.parametrize("k", [2, 5, 8])
def test_expected_largest(k):
    drawn = np.random.default_rng(k).standard_normal((200_000, k)).max(axis=1)
    assert expected_largest(k) == pytest.approx(drawn.mean(), abs=0.01)


def long_table(seed=0, models="abc", sets="xyz", strategies=("random", "s", "t")):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        [(m, e, s, rng.uniform(0.4, 0.6)) for m in models for e in sets for s in strategies],
        columns=["model", "evaluation", "strategy", "accuracy"],
    )


@pytest.mark.parametrize("named", ["both", "model", "evaluation"])
def test_a_single_column_has_its_best_order_beside_luck(named):
    table = long_table(models="a", sets="x", strategies=("random", "s", "t", "u"))
    if named != "both":
        table = table.drop(columns={"model": "evaluation", "evaluation": "model"}[named])
    facts = {} if named == "model" else {"questions": {"x": 400}, "runs": 2}
    found = grid(table, **facts)
    (column,) = found.columns
    assert not found.means
    scores = table.set_index("strategy")["accuracy"]
    (best,) = column.best
    gain = scores.drop("random").max() - scores["random"]
    assert best.gain == pytest.approx(gain)
    luck = {}
    if facts:
        p = scores["random"]
        luck = {BINOMIAL: pytest.approx(expected_largest(3) * np.sqrt(p * (1 - p) / 400 / 2))}
    assert best.luck == luck
    (sentence,) = grid_sentences(found)
    assert f"The best of 3 orders gains {100 * gain:+.2f}".replace("-", "−") in sentence
    assert [t.name for t in grid_tables(found)][-1] == "grid_best"


def test_cells_are_averaged_as_pandas_does():
    table = long_table()
    found = grid(table)
    for by in (MODEL, EVALUATION):
        means = table.groupby([by, "strategy"])["accuracy"].mean()
        for column in found.of(by):
            for arm, score in column.scores.items():
                assert score == pytest.approx(means[column.name, arm])
    wide = table.pivot_table(index=["model", "evaluation"], columns="strategy", values="accuracy")
    (column,) = (c for c in found.of(MODEL) if c.name == "b")
    expected = stats.ttest_rel(wide.loc["b"]["s"], wide.loc["b"]["random"])
    assert column.gains["s"].p == pytest.approx(expected.pvalue)
    assert len(found.of(CELL)) == 9
    assert {c.by for c in found.columns} == {MODEL, EVALUATION, CELL}
    assert found.means[MODEL].scores == pytest.approx(found.means[EVALUATION].scores)
    per_cent = table.assign(accuracy=table["accuracy"] * 100)
    again = grid(per_cent.sample(frac=1, random_state=0))
    assert {c.name for c in again.columns} == {c.name for c in found.columns}
    scores = {c.name: c.scores for c in again.columns}
    assert all(scores[c.name] == pytest.approx(c.scores) for c in found.columns)


def test_columns_by_other_names():
    theirs = {"strategy": "order", "accuracy": "score", "model": "network", "evaluation": "set"}
    found = grid(long_table().rename(columns=theirs), columns=theirs)
    expected = grid(long_table())
    assert [c.scores for c in found.columns] == [c.scores for c in expected.columns]
    wide = pd.DataFrame({"order": ["random", "s"], "a": [0.4, 0.5], "b": [0.5, 0.7]})
    with pytest.raises(InputError, match="'accuracy' is no column that is read here; those are st"):
        grid(wide, models=["a", "b"], columns={"strategy": "order", "accuracy": "a"})
    (a, *_) = grid(wide, models=["a", "b"], columns={"strategy": "order"}).columns
    assert a.scores == {"random": 0.4, "s": 0.5}


def test_cells_at_the_floor_leave_the_averages():
    table = long_table(sets="xy")
    table.loc[(table.model == "a") & (table.evaluation == "x"), "accuracy"] = 0.25
    table.loc[table.model == "b", "accuracy"] = 0.2
    found = grid(table, chance={"x": 0.25, "y": 0.25})
    columns = {c.name: c for c in found.columns}
    assert columns["b"].blocked == "floor"
    only_y = table[(table.model == "a") & (table.evaluation == "y")].set_index("strategy")
    assert columns["a"].scores["s"] == pytest.approx(only_y.loc["s", "accuracy"])
    assert {c.name for c in found.columns if c.blocked} == {"b", "a on x", "b on x", "b on y"}
    assert len(found.notes) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="accuracy"), "no column 'accuracy'"),
        (lambda t: t.assign(accuracy="much"), "row 1: accuracy is 'much'"),
        (lambda t: t.assign(accuracy=-1), "expected an accuracy"),
        (lambda t: t[:-1], "c on z has no accuracy of t"),
        (lambda t: pd.concat([t, t[:1]]), "stands there twice"),
        (lambda t: t.assign(model="", evaluation=""), "neither model nor evaluation"),
        (lambda t: t.replace("random", "rnd"), "no strategy is named 'random'"),
        (lambda t: pd.concat([t, t[:3].assign(model="")]), "cells and means"),
        (lambda t: t[:0], "no rows"),
        (lambda t: t[t["strategy"] == "random"], "the only strategy"),
    ],
)
def test_bad_tables(change, message):
    with pytest.raises(InputError, match=message):
        grid(change(long_table()))


def test_facts_must_fit_the_table():
    with pytest.raises(InputError, match="no evaluation set 'w'"):
        grid(long_table(), chance={"w": 0.2})
    labelled = pd.concat([long_table(s).assign(labels=str(s)) for s in (0, 1)])
    with pytest.raises(InputError, match="differs between labels"):
        grid(labelled)
    with pytest.raises(InputError, match="chance of 'x' is 20"):
        grid(long_table(), chance={"x": 20})
    with pytest.raises(InputError, match="runs is 0"):
        grid(long_table(), runs=0)


def outcome(model, evaluation, lift=0.0, seed=0, seeds=4, questions=60, level=0.55, luck=0.0):
    rng = np.random.default_rng([seed, len(model), sum(map(ord, model + evaluation))])
    names = {
        "random": {},
        "blocked": {"category": "c"},
        "curriculum [difficulty=h]": {"difficulty": "h"},
        "curriculum [difficulty=l]": {"difficulty": "l"},
    }
    rate = np.clip(level + rng.normal(0, 0.15, questions), 0.02, 0.98)
    shift = {
        arm: luck * rng.normal(size=(seeds, 1)) + (lift if arm == "blocked" else 0) for arm in names
    }
    return Outcome(
        model=model,
        evaluation=evaluation,
        seeds=list(range(seeds)),
        ids=[f"{evaluation}{i}" for i in range(questions)],
        arms={a: (rng.random((seeds, questions)) < rate + shift[a]).astype(float) for a in names},
        strategies={a: a.split(" ")[0] for a in names},
        sources=names,
        n_options=np.full(questions, 4),
    )


def study(**fields):
    return [
        outcome(m, e, questions=q, **fields) for m in ("m", "n") for e, q in (("x", 50), ("y", 90))
    ]


def test_a_studys_columns_are_means_of_means():
    outcomes = study(lift=0.1)
    found = analyse(Record(title="t", outcomes=outcomes)).grid
    rows = [(o.model, o.evaluation, arm, v.mean()) for o in outcomes for arm, v in o.arms.items()]
    table = pd.DataFrame(rows, columns=["model", "evaluation", "arm", "score"])
    for by in (MODEL, EVALUATION):
        means = table.groupby([by, "arm"])["score"].mean()
        for column in found.of(by):
            for arm, score in column.scores.items():
                assert score == pytest.approx(means[column.name, arm])
            for arm, gain in column.gains.items():
                expected = means[column.name, arm] - means[column.name, "random"]
                assert gain.mean == pytest.approx(expected)
                assert gain.low < gain.mean < gain.high
    whole = table.groupby("arm")["score"].mean()
    assert found.means[MODEL].gains["blocked"].mean == pytest.approx(
        whole["blocked"] - whole["random"]
    )
    assert [s.name for s in found.settings] == ["difficulty=h", "difficulty=l"]
    assert all(s.arms["blocked"] == "blocked" for s in found.settings)
    assert len(found.of(CELL)) == 4
    (contrast,) = found.means[MODEL].contrasts
    assert (contrast.source, contrast.other, contrast.strategies) == ("l", "h", ("curriculum",))
    gap = whole["curriculum [difficulty=l]"] - whole["curriculum [difficulty=h]"]
    assert contrast.estimate.mean == pytest.approx(gap)
    best = found.of(MODEL)[0].best[0]
    assert (best.strategy, best.k, set(best.luck)) == ("blocked", 2, {RUNS})
    assert best.luck[RUNS] > 0


def test_a_cell_has_the_interval_of_its_result():
    analysis = analyse(Record(title="t", outcomes=study()))
    for column, result in zip(analysis.grid.of(CELL), analysis.results, strict=True):
        assert column.name == f"{result.outcome.model} on {result.outcome.evaluation}"
        for gain in result.gains:
            assert column.gains[gain.arm].low == pytest.approx(gain.estimate.low)
            assert column.gains[gain.arm].p == pytest.approx(gain.estimate.p)


def test_a_model_at_the_floor_is_left_out():
    outcomes = [*study(), *(outcome("low", e, level=0.25) for e in "xy")]
    outcomes[-2] = replace(outcomes[-2], ids=outcomes[0].ids[:50] + [f"z{i}" for i in range(10)])
    found = analyse(Record(title="t", outcomes=outcomes)).grid
    assert [c.name for c in found.of(MODEL, blocked=True) if c.blocked] == ["low"]
    assert sum("low on" in note for note in found.notes) == 2
    two = analyse(Record(title="t", outcomes=outcomes[:4])).grid
    assert found.means[MODEL].scores == pytest.approx(two.means[MODEL].scores)
    assert count_wins(found.of(EVALUATION)) == count_wins(two.of(EVALUATION))


def test_a_mean_over_columns_is_that_of_the_columns_that_stand_there():
    outcomes = study()
    outcomes[0] = outcome("m", "x", questions=50, level=0.25)  # at the floor
    found = analyse(Record(title="t", outcomes=outcomes)).grid
    for by in (MODEL, EVALUATION):
        columns = found.of(by)
        for arm in ("random", "blocked"):
            scores = [c.scores[arm] for c in columns]
            assert found.means[by].scores[arm] == pytest.approx(np.mean(scores))
        gains = [c.gains["blocked"].mean for c in columns]
        assert found.means[by].gains["blocked"].mean == pytest.approx(np.mean(gains))
    assert found.means[MODEL].scores != pytest.approx(found.means[EVALUATION].scores)


def test_sets_that_number_their_questions_alike_stay_apart():
    outcomes = [outcome("m", e) for e in ("x", "y")]
    apart = analyse(Record(title="t", outcomes=outcomes)).grid
    alike = [replace(o, ids=[str(i) for i in range(60)]) for o in outcomes]
    found = analyse(Record(title="t", outcomes=alike)).grid
    assert found.means == apart.means


def test_a_single_result_has_no_grid():
    assert analyse(Record(title="t", outcomes=[outcome("m", "x")])).grid is None
    assert analyse(Record(title="t", outcomes=[outcome("m", "x"), outcome("m", "x")])).grid is None
    sets = analyse(Record(title="t", outcomes=[outcome("m", "x"), outcome("m", "y")])).grid
    assert {c.by for c in sets.columns} == {EVALUATION}


def test_missing_runs_and_seeds():
    outcomes = study()
    outcomes[0].arms["blocked"][1] = np.nan
    outcomes[3] = replace(outcomes[3], seeds=[0, 1, 3, 7])
    found = analyse(Record(title="t", outcomes=outcomes)).grid
    assert found.of(MODEL)[0].gains["blocked"].seeds == 3
    assert found.means[MODEL].gains["blocked"].seeds == 2
    values = [
        difference(o, "blocked", "random")[[list(o.seeds).index(s) for s in (0, 3)]].mean()
        for o in outcomes
    ]
    assert found.means[MODEL].gains["blocked"].mean == pytest.approx(np.mean(values))
    assert "blocked" not in found.means[MODEL].p_holm


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.lists(st.integers(2, 30), min_size=1, max_size=4))
def test_joined_keeps_the_mean_of_every_seed(seed, sizes):
    rng = np.random.default_rng(seed)
    parts = [
        (range(3), [f"{i}-{q}" for q in range(n)], rng.normal(size=(3, n)))
        for i, n in enumerate(sizes)
    ]
    whole = joined(parts)
    expected = np.mean([values.mean(axis=1) for *_, values in parts], axis=0)
    np.testing.assert_allclose(whole.mean(axis=1), expected, atol=1e-12)
    shuffled = [(s, ids, values) for s, ids, values in parts[::-1]]
    again = mean_interval(joined(shuffled))
    assert (again.mean, again.se) == pytest.approx(
        (mean_interval(whole).mean, mean_interval(whole).se)
    )


def test_models_on_the_same_questions_are_averaged_question_by_question():
    rng = np.random.default_rng(0)
    ids = [str(i) for i in range(40)]
    first, second = rng.normal(size=(2, 5, 40))
    whole = joined([(range(5), ids, first), (range(5), ids, second)])
    np.testing.assert_allclose(whole, (first + second) / 2)
    alone = joined([(range(5), ids, first)])
    np.testing.assert_allclose(alone, first)


def test_intervals_over_sets_cover():
    """Seeds are shared over the sets of a model; sets differ in size, level and noise."""
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(400):
        run = rng.normal(0, 0.03, (5, 1))
        parts = [
            (range(5), [f"{size}-{q}" for q in range(size)],
             middle + run + rng.normal(0, 0.02, (5, 1)) + rng.normal(0, spread, (1, size))
             + rng.normal(0, 0.4, (5, size)))
            for size, middle, spread in ((60, 0.3, 0.3), (400, -0.1, 0.1))
        ]  # fmt: skip
        e = mean_interval(joined(parts))
        covered += e.low < 0.1 < e.high
    assert covered / 400 > 0.92
