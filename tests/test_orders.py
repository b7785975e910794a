"""The orders: each sentence of the table of strategies, as a property."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessonplan.errors import InputError
from lessonplan.orders import STRATEGIES, order
from lessonplan.seeds import stream

PAPER = [s for s in STRATEGIES if s != "original"]
CATEGORY = [s for s in PAPER if STRATEGIES[s].uses_category]
DIFFICULTY = [s for s in PAPER if STRATEGIES[s].uses_difficulty]


@st.composite
def labelled(draw, least=0):
    n = draw(st.integers(least, 60))
    category = draw(st.lists(st.sampled_from("abcde"), min_size=n, max_size=n))
    difficulty = draw(st.lists(st.sampled_from([0.0, 0.25, 0.3, 0.5, 1.0]), min_size=n, max_size=n))
    return category, np.array(difficulty)


def reference(strategy, category, difficulty, seed, blocks):
    """The table of strategies in plain Python: sort tuples of keys."""
    n = len(category)
    shuffle = [0] * n
    for rank, row in enumerate(stream(seed, "shuffle", 0).permutation(n)):
        shuffle[row] = rank
    names = sorted(set(category))
    drawn = stream(seed, "category order", 0).permutation(len(names))
    rank_of = {name: int(drawn[i]) for i, name in enumerate(names)}
    inner = {
        "random": lambda i: (shuffle[i],),
        "blocked": lambda i: (shuffle[i],),
        "interleaved": lambda i: (shuffle[i],),
        "curriculum": lambda i: (difficulty[i], shuffle[i]),
        "blocked_curriculum": lambda i: (difficulty[i], shuffle[i]),
        "interleaved_curriculum": lambda i: (difficulty[i], shuffle[i]),
    }[strategy]
    if strategy in ("random", "curriculum"):
        return sorted(range(n), key=inner)
    if strategy in ("blocked", "blocked_curriculum"):
        return sorted(range(n), key=lambda i: (rank_of[category[i]], *inner(i)))
    block = {}
    for name in names:
        members = sorted((i for i in range(n) if category[i] == name), key=inner)
        for rank, i in enumerate(members):
            block[i] = rank * blocks // len(members)
    return sorted(range(n), key=lambda i: (block[i], rank_of[category[i]], *inner(i)))


@given(labelled(), st.sampled_from(PAPER), st.integers(0, 5), st.integers(1, 80))
def test_every_strategy_is_the_sort_that_its_table_says(labels, strategy, seed, blocks):
    category, difficulty = labels
    found = order(strategy, category=category, difficulty=difficulty, seed=seed, blocks=blocks)
    assert found.dtype == np.int64
    assert found.tolist() == reference(strategy, category, difficulty, seed, blocks)


@given(labelled(), st.sampled_from(PAPER), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_shows_every_question_exactly_so_often(labels, strategy, epochs, repeat, anew):
    category, difficulty = labels
    found = order(
        strategy,
        category=category,
        difficulty=difficulty,
        bands=3,
        epochs=epochs,
        each="anew" if anew else "same",
        repeat=repeat,
    )
    n = len(category)
    assert len(found) == n * epochs * repeat
    for one_pass in found.reshape(epochs, n * repeat):
        assert (np.bincount(one_pass, minlength=n) == repeat).all()


@given(labelled(least=1), st.integers(0, 3))
def test_blocked_shows_each_category_in_one_stretch(labels, seed):
    category, difficulty = labels
    for strategy in ("blocked", "blocked_curriculum"):
        shown = [category[i] for i in order(strategy, category=category, difficulty=difficulty)]
        assert len(list(itertools.groupby(shown))) == len(set(category))


@given(labelled(least=1), st.integers(0, 3))
def test_curriculum_never_gets_easier(labels, seed):
    category, difficulty = labels
    assert (np.diff(difficulty[order("curriculum", difficulty=difficulty, seed=seed)]) >= 0).all()
    hard = order("curriculum", difficulty=difficulty, seed=seed, hardest_first=True)
    assert (np.diff(difficulty[hard]) <= 0).all()
    shown = order("blocked_curriculum", category=category, difficulty=difficulty, seed=seed)
    for name in set(category):
        mine = [difficulty[i] for i in shown if category[i] == name]
        assert mine == sorted(mine)


@given(labelled(least=1), st.integers(1, 4), st.integers(0, 3))
def test_interleaving_shows_the_categories_in_the_same_turns_in_every_block(labels, blocks, seed):
    category, _ = labels
    shown = order("interleaved", category=category, seed=seed, blocks=blocks)
    blocked = order("blocked", category=category, seed=seed)
    turn = list(dict.fromkeys(category[i] for i in blocked))
    sizes = {name: category.count(name) for name in turn}
    expected = []
    for block in range(blocks):
        for name in turn:
            of_block = sum(r * blocks // sizes[name] == block for r in range(sizes[name]))
            expected += [name] * of_block
    assert [category[i] for i in shown] == expected
    # Within a category, interleaving keeps the order that blocking has.
    for name in turn:
        assert [i for i in shown if category[i] == name] == [
            i for i in blocked if category[i] == name
        ]


@given(labelled(least=1))
def test_more_blocks_than_questions_alternate_one_by_one(labels):
    category, _ = labels
    shown = [category[i] for i in order("interleaved", category=category, blocks=1000)]
    sizes = sorted((category.count(name) for name in set(category)), reverse=True)
    if len(set(sizes)) == 1:  # equal sizes: no category twice in a row, unless it is the only one
        assert len(sizes) == 1 or all(a != b for a, b in itertools.pairwise(shown))


def test_small_categories_are_spread_out():
    category = ["big"] * 9 + ["small"] * 3
    shown = [category[i] for i in order("interleaved", category=category, blocks=3)]
    for block in range(3):
        assert sorted(shown[4 * block : 4 * block + 4]) == ["big", "big", "big", "small"]


@given(labelled(least=1), st.integers(0, 3))
def test_band_as_block_is_the_published_banded_interleaved_curriculum(labels, seed):
    category, difficulty = labels
    thresholds = [0.3, 0.6]
    shown = order(
        "interleaved_curriculum",
        category=category,
        difficulty=difficulty,
        bands=thresholds,
        blocks="band",
        seed=seed,
    )
    band = np.searchsorted(thresholds, difficulty, side="right")
    blocked = order("blocked", category=category, seed=seed).tolist()
    expected = sorted(range(len(category)), key=lambda i: (band[i], blocked.index(i)))
    assert shown.tolist() == expected


def test_a_value_at_a_threshold_belongs_to_the_harder_band():
    # LEK: easy if more than 94 % of people are right, hard if at most 85 %.
    difficulty = np.array([0.05, 0.06, 0.149, 0.15])
    shown = order("curriculum", difficulty=difficulty, bands=[0.06, 0.15], seed=3)
    assert shown[0] == 0
    assert shown[3] == 3
    assert set(shown[1:3]) == {1, 2}


@given(labelled(least=1), st.integers(0, 3))
def test_banded_curriculum_shuffles_inside_a_band(labels, seed):
    _, difficulty = labels
    shown = order("curriculum", difficulty=difficulty, bands=1, seed=seed)
    assert shown.tolist() == order("random", len(difficulty), seed=seed).tolist()


@pytest.mark.parametrize("strategy", PAPER)
def test_seeds_differ_and_repeat(strategy):
    category, difficulty = list("abcd") * 20, np.tile([0.1, 0.9], 40)
    shown = [
        order(strategy, category=category, difficulty=difficulty, seed=seed).tolist()
        for seed in (0, 0, 1)
    ]
    assert shown[0] == shown[1] != shown[2]


@pytest.mark.parametrize("strategy", CATEGORY)
def test_the_category_order_is_drawn_by_seed_and_not_by_row(strategy):
    rng = np.random.default_rng(0)
    category = np.array(list("abcdef"))[rng.integers(6, size=200)]

    def turns(names, seed):
        difficulty = np.zeros(len(names))
        shown = order(strategy, category=names, difficulty=difficulty, seed=seed, blocks=1)
        return list(dict.fromkeys(names[shown]))

    assert turns(category, 0) == turns(category[::-1], 0)
    assert len({tuple(turns(category, seed)) for seed in range(8)}) > 1


def test_category_orders():
    category = ["b", "b", "b", "a", "c", "c"]
    difficulty = [0.1, 0.1, 0.4, 0.9, 0.5, 0.6]

    def turns(category_order):
        shown = order(
            "blocked", category=category, difficulty=difficulty, category_order=category_order
        )
        return "".join(dict.fromkeys(category[i] for i in shown))

    assert turns("alphabetical") == "abc"
    assert turns("size") == "bca"
    assert turns("difficulty") == "bca"
    assert turns(["c", "a", "b"]) == "cab"
    shown = order("blocked", category=[1, 2, 2], category_order=["2", "1"])
    assert shown.tolist()[-1] == 0
    with pytest.raises(InputError, match="every category once"):
        turns(["c", "a"])
    with pytest.raises(InputError, match="'drawn', 'alphabetical'"):
        turns("alphabetic")


def test_all_strategies_share_the_shuffle_of_a_seed():
    shown = [order(s, 50, category=["x"] * 50, difficulty=[1.0] * 50, seed=4) for s in PAPER]
    for other in shown[1:]:
        assert other.tolist() == shown[0].tolist()


def test_epochs_anew_redraw_and_same_repeat():
    category = list("abc") * 10
    same = order("blocked", category=category, epochs=3).reshape(3, -1)
    assert (same == same[0]).all()
    anew = order("blocked", category=category, epochs=3, each="anew").reshape(3, -1)
    assert anew[0].tolist() == same[0].tolist()
    assert anew[1].tolist() != anew[0].tolist()
    turns = {tuple(dict.fromkeys(category[i] for i in one)) for one in anew}
    assert len(turns) > 1  # the category order is drawn anew, too


def test_repetition_shows_each_run_again_reshuffled():
    category = list("abab") * 5
    once = order("blocked", category=category, seed=1)
    twice = order("blocked", category=category, seed=1, repeat=2)
    assert twice[:10].tolist() == once[:10].tolist()  # first as sorted
    assert sorted(twice[10:20]) == sorted(once[:10])  # then the same ones
    assert twice[10:20].tolist() != once[:10].tolist()  # reshuffled
    whole = order("random", 6, seed=1, repeat=3).reshape(3, 6)
    assert all(sorted(part) == list(range(6)) for part in whole)
    blocks = order("interleaved", category=category, seed=1, repeat=2, blocks=2)
    assert [category[i] for i in blocks[:10]] == [category[once[0]]] * 10
    with pytest.raises(InputError, match="strict curriculum has none"):
        order("curriculum", difficulty=[0.1, 0.2], repeat=2)


@pytest.mark.parametrize("strategy", PAPER)
@pytest.mark.parametrize("n", [0, 1])
def test_no_questions_and_one_question(strategy, n):
    shown = order(strategy, category=["a"] * n, difficulty=[0.5] * n, bands=3, repeat=2)
    assert shown.tolist() == [0] * (2 * n)


def test_one_category_and_all_ties_are_the_random_shuffle():
    random = order("random", 30, seed=2).tolist()
    assert order("blocked", category=["x"] * 30, seed=2).tolist() == random
    assert order("curriculum", difficulty=[0.5] * 30, seed=2).tolist() == random
    assert order("interleaved", category=["x"] * 30, seed=2).tolist() == random


def test_original_is_the_order_of_the_file():
    assert order("original", 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("strategy", DIFFICULTY)
def test_a_missing_difficulty_is_an_error_that_says_where(strategy):
    with pytest.raises(InputError, match=r"1 of 3 questions have no finite difficulty.*row 1"):
        order(strategy, category=["a"] * 3, difficulty=[0.1, float("nan"), 0.2])
    with pytest.raises(ValueError, match="needs a difficulty"):
        order(strategy, 3, category=["a"] * 3)


@pytest.mark.parametrize("missing", [None, float("nan"), "", " "])
def test_a_missing_category_is_an_error_that_says_where(missing):
    with pytest.raises(InputError, match=r"1 of 3 questions have no category.*row 2"):
        order("blocked", category=np.array(["a", "b", missing], dtype=object))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "interleave"}, "Did you mean 'interleaved'"),
        ({"n": 4}, "n has 4, category has 3"),
        ({"blocks": 0}, "blocks must be an integer of at least 1"),
        ({"blocks": "band"}, "needs bands"),
        ({"seed": -1}, "seed must be"),
        ({"epochs": 0}, "epochs must be"),
        ({"repeat": True}, "repeat must be"),
        ({"each": "new"}, "each must be"),
        ({"strategy": "curriculum", "bands": [0.6, 0.3]}, "ascending"),
        ({"strategy": "curriculum", "difficulty": ["x", 1, 2]}, "must be numbers"),
    ],
)
def test_bad_arguments(arguments, message):
    given = {"strategy": "interleaved", "category": ["a", "b", "a"], "difficulty": [0.1, 0.2, 0.3]}
    with pytest.raises(InputError, match=message):
        order(**given | arguments)


def test_labels_may_be_integers_arrays_or_arrow():
    import pyarrow as pa

    expected = order("blocked", category=[3, 1, 3, 2]).tolist()
    assert order("blocked", category=np.array([3, 1, 3, 2])).tolist() == expected
    assert order("blocked", category=pa.array([3, 1, 3, 2])).tolist() == expected
    assert order("blocked", category=np.array(["c", "a", "c", "b"])).tolist() == expected
    assert (
        order("blocked", category=pa.chunked_array([["c", "a"], ["c", "b"]])).tolist() == expected
    )


def test_golden_permutations():
    """Published orders must not change under users' feet: these are version 0.1's."""
    labels = {"category": list("aabbccabca"), "difficulty": [5, 3, 1, 4, 2, 6, 7, 9, 8, 0]}
    found = {s: order(s, **labels, seed=7).tolist() for s in PAPER}
    assert found == GOLDEN


GOLDEN = {
    "random": [7, 9, 6, 8, 2, 3, 0, 1, 4, 5],
    "blocked": [7, 2, 3, 8, 4, 5, 9, 6, 0, 1],
    "interleaved": [7, 8, 9, 6, 2, 4, 0, 3, 5, 1],
    "curriculum": [9, 2, 4, 1, 3, 0, 5, 6, 8, 7],
    "blocked_curriculum": [2, 3, 7, 4, 5, 8, 9, 1, 0, 6],
    "interleaved_curriculum": [2, 4, 9, 1, 3, 5, 0, 7, 8, 6],
}


def test_importing_and_ordering_loads_no_torch():
    code = (
        "import sys, lessonplan, lessonplan.cli; lessonplan.order('blocked', category=['a', 'b']);"
        "heavy = {'torch', 'transformers', 'datasets', 'matplotlib', 'scipy'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@settings(max_examples=20)
@given(st.integers(2, 40), st.integers(0, 3))
def test_quantile_bands_split_distinct_values_evenly(n, seed):
    difficulty = np.random.default_rng(seed).permutation(n).astype(float)
    shown = order("curriculum", difficulty=difficulty, bands=2, seed=seed)
    assert set(difficulty[shown[: n // 2]]) == set(range(n // 2))
