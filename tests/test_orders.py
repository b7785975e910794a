"""The orders: each sentence of the table of strategies, as a property."""

from __future__ import annotations

import itertools
import math
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
    # Sums of a few powers of two: their mean is exact, in whatever order they are added.
    value = st.sampled_from([-3.5, -0.0, 0.0, 0.25, 0.375, 1024.0])
    difficulty = draw(st.lists(value, min_size=n, max_size=n))
    return category, np.array(difficulty)


def reference(
    strategy,
    category,
    difficulty,
    *,
    seed,
    blocks=3,
    bands=None,
    category_order="drawn",
    hardest_first=False,
    epoch=0,
):
    """The table of strategies in plain Python: sort tuples of keys."""
    uses = STRATEGIES[strategy]
    rows = range(len(category))
    shuffle = dict(zip(stream(seed, "shuffle", epoch).permutation(len(rows)), rows, strict=True))
    members = {name: [i for i in rows if category[i] == name] for name in sorted(set(category))}
    names = list(members)
    drawn = stream(seed, "category order", epoch).permutation(len(names))
    of_name = {
        "drawn": lambda name: int(drawn[names.index(name)]),
        "alphabetical": names.index,
        "size": lambda name: (-len(members[name]), name),
        "difficulty": lambda name: (
            sum(float(difficulty[i]) for i in members[name]) / len(members[name]),
            name,
        ),
    }
    if not isinstance(category_order, str):
        of_name["listed"], category_order = list(category_order).index, "listed"

    if isinstance(bands, int):
        bands = np.quantile(difficulty, np.arange(1, bands) / bands) if len(rows) else []
        harder = [float(x) for x in difficulty if x > min(difficulty)]
        bands = [b if b > min(difficulty) else min(harder, default=math.inf) for b in bands]
    hard = [float(x) if bands is None else sum(x >= b for b in bands) for x in difficulty]
    if hardest_first:
        hard = [-x for x in hard]

    def inner(i):
        return (hard[i], shuffle[i]) if uses.uses_difficulty else (shuffle[i],)

    block = dict(enumerate(hard))
    if blocks != "band":
        for of_category in members.values():
            for rank, i in enumerate(sorted(of_category, key=inner)):
                block[i] = rank * blocks // len(of_category)

    def key(i):
        turn = (of_name[category_order](category[i]),) if uses.uses_category else ()
        return ((block[i],) if uses.uses_blocks else ()) + turn + inner(i)

    return sorted(rows, key=key)


OPTIONS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 5),
        "blocks": st.sampled_from([1, 2, 3, 7, 300, 70_000, "band"]),
        "bands": st.sampled_from([None, 1, 3, [0.375], [-1.0, 0.25, 0.9]]),
        "category_order": st.sampled_from(
            ["drawn", "alphabetical", "size", "difficulty", "listed"]
        ),
        "hardest_first": st.booleans(),
    }
)


@settings(max_examples=300)
@given(labelled(), st.sampled_from(PAPER), OPTIONS)
def test_every_strategy_is_the_sort_that_its_table_says(labels, strategy, options):
    category, difficulty = labels
    if options["category_order"] == "listed":
        options["category_order"] = sorted(set(category), key="dbcae".index)
    uses = STRATEGIES[strategy]
    if not uses.uses_blocks or (options["blocks"] == "band" and options["bands"] is None):
        options["blocks"] = 3
    if not uses.uses_category:
        options["category_order"] = "drawn"
    if not uses.uses_difficulty and options["blocks"] != "band":
        options |= {"bands": None, "hardest_first": False}
    found = order(strategy, category=category, difficulty=difficulty, **options)
    assert found.dtype == np.int64
    assert found.tolist() == reference(strategy, category, difficulty, **options)


@given(labelled(), st.sampled_from(PAPER), st.integers(2, 3))
def test_every_pass_drawn_anew_is_the_sort_of_its_epoch(labels, strategy, epochs):
    category, difficulty = labels
    found = order(
        strategy, category=category, difficulty=difficulty, epochs=epochs, each="anew", seed=2
    )
    for epoch, one_pass in enumerate(found.reshape(epochs, len(category))):
        expected = reference(strategy, category, difficulty, seed=2, epoch=epoch)
        assert one_pass.tolist() == expected


@given(labelled(), st.sampled_from(PAPER), st.integers(2, 3), st.sampled_from([2, "band"]))
def test_each_run_is_repeated_reshuffled(labels, strategy, repeat, blocks):
    category, difficulty = labels
    uses, n = STRATEGIES[strategy], len(category)
    options = {"seed": 1, "blocks": blocks if uses.uses_blocks else 3}
    cuts = [0.0, 0.3]
    if uses.uses_difficulty or options["blocks"] == "band":
        options["bands"] = cuts
    once = reference(strategy, category, difficulty, **options)
    band = np.searchsorted(cuts, difficulty, side="right")
    block = {i: int(band[i]) for i in once}
    if options["blocks"] != "band":
        for name in set(category):
            mine = [i for i in once if category[i] == name]
            block |= {i: rank * options["blocks"] // len(mine) for rank, i in enumerate(mine)}

    def run(i):
        leading = [block[i]] if uses.uses_blocks else []
        leading += [category[i]] if uses.uses_category else []
        return leading or ([band[i]] if uses.uses_difficulty else [])

    mixed = [stream(1, "repeat", 0, copy).permutation(n).tolist() for copy in range(1, repeat)]
    expected = []
    for _, of_run in itertools.groupby(range(n), key=lambda place: run(once[place])):
        places = list(of_run)
        expected += [once[place] for place in places]
        for again in mixed:
            expected += [once[place] for place in sorted(places, key=again.index)]
    found = order(
        strategy, category=category, difficulty=difficulty, repeat=repeat, **options
    ).tolist()
    assert found == expected


def numpy_reference(strategy, category, difficulty, seed, blocks=3):
    """The same table by `numpy.lexsort`, for sizes that plain Python is too slow for."""
    uses, n = STRATEGIES[strategy], len(category)
    shuffle = np.argsort(stream(seed, "shuffle", 0).permutation(n))
    names, code = np.unique(category, return_inverse=True)
    rank = stream(seed, "category order", 0).permutation(len(names))[code]
    inner = (shuffle, difficulty) if uses.uses_difficulty else (shuffle,)
    if not uses.uses_category:
        return np.lexsort(inner)
    by_category = np.lexsort((*inner, rank))
    if not uses.uses_blocks:
        return by_category
    sizes = np.bincount(rank)
    block = np.empty(n, dtype=np.int64)
    start = 0
    for size in sizes:
        block[by_category[start : start + size]] = np.arange(size) * blocks // size
        start += size
    return np.lexsort((*inner, rank, block))


@pytest.mark.parametrize(
    ("strategy", "blocks"),
    [(s, 3) for s in PAPER]
    + [(s, blocks) for s in PAPER if STRATEGIES[s].uses_blocks for blocks in (256, 257, 65_537)],
)
@pytest.mark.parametrize("categories", [1, 20, 256, 257, 65_536, 65_537])
def test_integers_of_every_width_sort_alike(strategy, blocks, categories):
    # 8 and 16 bits hold categories and blocks up to 256 and 65,536; every category occurs.
    n = 70_000
    rng = np.random.default_rng(categories)
    category = rng.permutation(np.arange(n) % categories)
    difficulty = np.where(rng.random(n) < 0.5, rng.normal(size=n), rng.integers(-2, 3, size=n))
    found = order(strategy, category=category, difficulty=difficulty, seed=3, blocks=blocks)
    expected = numpy_reference(strategy, category, difficulty, 3, blocks)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("hardest_first", [False, True])
@pytest.mark.parametrize(
    "values",
    [
        [0.0, -0.0, 5e-324, -5e-324, 1.0, -1.0],
        [np.finfo(float).max, np.finfo(float).min, np.finfo(float).tiny, 0.0],
        1 + np.arange(100) * np.finfo(float).eps,  # differ in the last bits alone
        np.concatenate([-np.geomspace(1e-300, 1e300, 99), np.geomspace(1e-300, 1e300, 99)]),
        [7.0],
    ],
)
def test_difficulties_sort_as_numbers_whatever_their_bits(values, hardest_first):
    difficulty = np.random.default_rng(0).choice(values, size=5000)
    shuffle = order("random", 5000, seed=1)
    keys = -difficulty if hardest_first else difficulty
    found = order("curriculum", difficulty=difficulty, seed=1, hardest_first=hardest_first)
    assert np.array_equal(found, shuffle[np.argsort(keys[shuffle], kind="stable")])


@pytest.mark.parametrize("n", [2, 3, 1_000, 70_000])
@pytest.mark.parametrize("steps", [1, 2, 40, 2**30])
@pytest.mark.parametrize("whole", [1, 7, 10**6])
def test_difficulties_that_differ_in_their_last_bits_alone_are_told_apart(n, steps, whole):
    """A sort by the leading bits leaves these in the order of the shuffle."""
    rng = np.random.default_rng(steps)
    near = (1.0 + rng.integers(whole, size=n)).view(np.int64) + rng.integers(steps, size=n)
    difficulty = near.view(np.float64)
    difficulty[0] = -difficulty[0]  # so that the bits span all widths
    shuffle = order("random", n, seed=1)
    expected = shuffle[np.argsort(difficulty[shuffle], kind="stable")]
    np.testing.assert_array_equal(order("curriculum", difficulty=difficulty, seed=1), expected)


@given(labelled(), st.sampled_from(PAPER), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_shows_every_question_exactly_so_often(labels, strategy, epochs, repeat, anew):
    category, difficulty = labels
    found = order(
        strategy,
        category=category,
        difficulty=difficulty,
        bands=3 if STRATEGIES[strategy].uses_difficulty else None,
        epochs=epochs,
        each="anew" if anew and epochs > 1 else "same",
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


@pytest.mark.parametrize("bands", [2, 3])
@pytest.mark.parametrize("easy", [4, 6, 9])
def test_bands_part_what_is_hard_from_many_that_are_easy(easy, bands):
    """As where one respondent was right on most questions: half of them or more are a 0."""
    difficulty = np.repeat([0.0, 1.0], [easy, 10 - easy])
    shown = order("curriculum", difficulty=difficulty, bands=bands, seed=1)
    assert (np.diff(difficulty[shown]) >= 0).all()
    # The mirror image.
    shown = order("curriculum", difficulty=1 - difficulty, bands=bands, seed=1)
    assert (np.diff(1 - difficulty[shown]) >= 0).all()


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
    settings = {"blocks": 1} if STRATEGIES[strategy].uses_blocks else {}

    def turns(names, seed):
        difficulty = np.zeros(len(names))
        shown = order(strategy, category=names, difficulty=difficulty, seed=seed, **settings)
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
    settings = {"bands": 3} if strategy in DIFFICULTY else {}
    shown = order(strategy, category=["a"] * n, difficulty=[0.5] * n, repeat=2, **settings)
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
    with pytest.raises(InputError, match=r"1 of 3 questions have no finite difficulty.*row 2\)"):
        order(strategy, category=["a"] * 3, difficulty=[0.1, float("nan"), 0.2])
    with pytest.raises(ValueError, match="needs a difficulty"):
        order(strategy, 3, category=["a"] * 3)


@pytest.mark.parametrize("missing", [None, float("nan"), "", " "])
def test_a_missing_category_is_an_error_that_says_where(missing):
    with pytest.raises(InputError, match=r"1 of 3 questions have no category.*row 3\)"):
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
        ({"each": "anew"}, "each='anew' has no effect on a single pass"),
        ({"bands": 2}, "bands has no effect on interleaved, which does not sort"),
        ({"hardest_first": True}, "hardest_first has no effect on interleaved"),
        ({"strategy": "curriculum", "blocks": 2}, "blocks has no effect on curriculum.*take one"),
        ({"strategy": "blocked", "blocks": "band"}, "blocks has no effect on blocked"),
        ({"strategy": "random", "category_order": "size"}, "category_order has no effect on rand"),
        ({"strategy": "curriculum", "category_order": ["a", "b"]}, "category_order has no effect"),
        (
            {"strategy": "blocked", "category_order": "difficulty", "hardest_first": True},
            "hardest_first has no effect on blocked",
        ),
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


def test_a_category_that_is_encoded_already_is_the_same_as_its_strings():
    import pandas as pd
    import pyarrow as pa

    category = list("cacbba")
    expected = order("blocked", category=category, seed=1).tolist()
    unused = pd.Series(pd.Categorical(category, categories=list("zcbya")))
    twice = pa.DictionaryArray.from_arrays(
        pa.array([0, 1, 2, 3, 3, 1], pa.int8()), pa.array(["c", "a", "c", "b"])
    )
    chunks = pa.chunked_array([pa.array(list("ca")), pa.array(list("cbba"))])
    columns = [unused, unused.array, twice, chunks, chunks.dictionary_encode()]
    columns += [pd.Series(category), pd.Series(category, dtype=object), pa.array(category)]
    for column in columns:
        assert order("blocked", category=column, seed=1).tolist() == expected


def test_a_missing_category_is_an_error_in_every_kind_of_column():
    import pandas as pd
    import pyarrow as pa

    columns = [
        pd.Series(["a", "b", None]),
        pd.Series(pd.Categorical(["a", "b", None])),
        pd.Series([1.0, 2.0, np.nan]),
        pd.Series([1, 2, None], dtype="Int64"),
        pa.array(["a", "b", None]),
        pa.DictionaryArray.from_arrays([0, 0, 1], pa.array(["a", None])),
        pa.chunked_array([["a"], ["b", " "]]),
    ]
    for column in columns:
        with pytest.raises(InputError, match=r"1 of 3 questions have no category.*row 3\)"):
            order("blocked", category=column)
    with pytest.raises(InputError, match="all strings or all integers"):
        order("blocked", category=pd.DataFrame({"a": [1, 2]}))
    with pytest.raises(InputError, match="all strings or all integers"):
        order("blocked", category=["a", 1])


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
