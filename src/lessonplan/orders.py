"""The orders: every strategy is a sort by a short list of keys.

`shuffle` is a random key drawn from the seed; `category` is the rank of the category in a category
order; `block` cuts each category, in the order of the keys to its right, into B equal parts.

| strategy               | sorted by                              |
|------------------------|----------------------------------------|
| random                 | shuffle                                |
| blocked                | category, shuffle                      |
| interleaved            | block(shuffle), category, shuffle      |
| curriculum             | difficulty, shuffle                    |
| blocked_curriculum     | category, difficulty, shuffle          |
| interleaved_curriculum | block(difficulty), category, difficulty, shuffle |
| original               | the row number                         |

The five human-inspired orders are those of Yang et al. (2024), arXiv 2408.07888.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lessonplan.errors import InputError, nearest
from lessonplan.seeds import stream

Indices = NDArray[np.int64]
CategoryOrder = Literal["drawn", "alphabetical", "size", "difficulty"]


@dataclass(frozen=True)
class Strategy:
    """What a strategy sorts by, and the sentence that `lessonplan strategies` prints."""

    summary: str
    uses_category: bool = False
    uses_difficulty: bool = False
    uses_blocks: bool = False


STRATEGIES: dict[str, Strategy] = {
    "random": Strategy("a random shuffle: the baseline"),
    "blocked": Strategy("one category after the other", uses_category=True),
    "interleaved": Strategy(
        "categories in turns, over B rounds", uses_category=True, uses_blocks=True
    ),
    "curriculum": Strategy("from easy to hard", uses_difficulty=True),
    "blocked_curriculum": Strategy(
        "one category after the other, each from easy to hard",
        uses_category=True,
        uses_difficulty=True,
    ),
    "interleaved_curriculum": Strategy(
        "categories in turns, over B rounds that go from easy to hard",
        uses_category=True,
        uses_difficulty=True,
        uses_blocks=True,
    ),
    "original": Strategy("the order of the file"),
}


def order(
    strategy: str,
    n: int | None = None,
    *,
    category: ArrayLike | None = None,
    difficulty: ArrayLike | None = None,
    seed: int = 0,
    blocks: int | Literal["band"] = 3,
    bands: int | Sequence[float] | None = None,
    category_order: CategoryOrder | Sequence[object] = "drawn",
    hardest_first: bool = False,
    epochs: int = 1,
    each: Literal["same", "anew"] = "same",
    repeat: int = 1,
) -> Indices:
    """Return the order in which a strategy shows n questions.

    Args:
        strategy: a key of `STRATEGIES`.
        n: number of questions; may be left out where a label gives it.
        category: ``[n]`` strings or integers.
        difficulty: ``[n]`` finite numbers, the larger the harder.
        seed: under one seed all strategies share the shuffle and the drawn category order.
        blocks: the number B of equal parts that interleaving cuts each category into (3 in the
            paper); with B at least the size of the largest category, questions of all categories
            alternate one by one. ``"band"`` makes the difficulty band the block.
        bands: None sorts by the value of difficulty, ties broken by the shuffle. A number cuts
            difficulty into that many quantile bands, a sequence at those ascending thresholds (a
            value equal to a threshold belongs to the harder band); inside a band questions are
            shuffled.
        category_order: ``"drawn"`` from the seed, ``"alphabetical"``, by ``"size"`` (largest
            first), by mean ``"difficulty"`` (easiest first), or all category values in order.
        hardest_first: turns every sort by difficulty around (anti-curriculum).
        epochs: passes over the data; each n of the indices returned are one pass.
        each: ``"anew"`` redraws the shuffle and the category order for every pass.
        repeat: shows each run of equal leading keys (a category, a block of a category, a band,
            the whole set for random) that many times in a row, first as sorted, then reshuffled.

    Returns:
        int64 ``[epochs * repeat * n]``: row numbers in the order to be shown. With ``repeat=1``
        every n of them are a permutation of ``range(n)``.

    Raises:
        InputError: an unknown strategy or option, a label that the strategy needs and that is
            missing, None or NaN, lengths that differ, or ``repeat`` with a strict curriculum.
    """
    if strategy not in STRATEGIES:
        raise InputError(
            f"There is no strategy {strategy!r}; there are {', '.join(STRATEGIES)}."
            + nearest(strategy, STRATEGIES)
        )
    uses = STRATEGIES[strategy]
    for name, value, least in (("epochs", epochs, 1), ("repeat", repeat, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise InputError(f"{name} must be an integer of at least {least}, not {value!r}.")
    if each not in ("same", "anew"):
        raise InputError(f"each must be 'same' or 'anew', not {each!r}.")
    n = _length(n, category, difficulty)

    by_mean_difficulty = uses.uses_category and category_order == "difficulty"
    hardness = band = None
    if uses.uses_difficulty or blocks == "band" or by_mean_difficulty:
        hardness = _difficulty(strategy, difficulty)
        if bands is not None:
            band = _bands(hardness, bands)
    if blocks == "band":
        if not uses.uses_blocks:
            raise InputError(
                f"blocks='band' is for the interleaved strategies; {strategy} has no blocks."
            )
        if band is None:
            raise InputError("blocks='band' needs bands: a number of bands, or thresholds.")
    elif isinstance(blocks, bool) or not isinstance(blocks, int | np.integer) or blocks < 1:
        raise InputError(f"blocks must be an integer of at least 1 or 'band', not {blocks!r}.")
    if uses.uses_category:
        codes, names = _categories(strategy, category)
    if repeat > 1 and strategy == "curriculum" and bands is None:
        raise InputError(
            "repeat needs runs of equal keys, and a strict curriculum has none; give bands=..., "
            "or repeat=1."
        )

    sort_hardness: NDArray[Any] | None = hardness if band is None else band
    if sort_hardness is not None and hardest_first:
        sort_hardness = -sort_hardness

    def one_pass(epoch: int) -> Indices:
        if strategy == "original":
            return _repeated(np.arange(n), [], repeat, seed, epoch)
        # Stable sorts from the least to the most significant key.
        rows = stream(seed, "shuffle", epoch).permutation(n)
        leading: list[NDArray[np.integer]] = []
        if uses.uses_difficulty and sort_hardness is not None:
            rows = rows[np.argsort(sort_hardness[rows], kind="stable")]
            if band is not None and not uses.uses_category:
                leading = [band]
        if uses.uses_category:
            ranks = _category_ranks(codes, names, category_order, hardness, seed, epoch)
            rows = rows[np.argsort(ranks[rows], kind="stable")]
            leading = [ranks]
            if uses.uses_blocks:
                if blocks == "band":
                    assert sort_hardness is not None
                    part: NDArray[np.integer] = sort_hardness.astype(np.int64)
                else:
                    part = _parts(ranks[rows], rows, len(names), int(blocks))
                rows = rows[np.argsort(part[rows], kind="stable")]
                leading = [part, ranks]
        return _repeated(rows, leading, repeat, seed, epoch)

    passes = [
        one_pass(epoch if each == "anew" else 0) for epoch in range(epochs if each == "anew" else 1)
    ]
    return np.tile(passes[0], epochs) if each == "same" else np.concatenate(passes)


def _length(n: int | None, category: ArrayLike | None, difficulty: ArrayLike | None) -> int:
    lengths = {"n": n}
    lengths |= {
        name: len(np.asarray(label, dtype=object) if isinstance(label, list | tuple) else label)  # type: ignore[arg-type]
        for name, label in (("category", category), ("difficulty", difficulty))
        if label is not None
    }
    given = {name: length for name, length in lengths.items() if length is not None}
    if not given:
        raise InputError("order() needs n, the number of questions, or a label of that length.")
    if len(set(given.values())) > 1:
        found = ", ".join(f"{name} has {length}" for name, length in given.items())
        raise InputError(f"All labels must have one entry a question, but {found}.")
    length = next(iter(given.values()))
    if length < 0:
        raise InputError(f"n must be at least 0, not {length}.")
    return length


def _difficulty(strategy: str, difficulty: ArrayLike | None) -> NDArray[np.float64]:
    if difficulty is None:
        raise InputError(f"The strategy {strategy} needs a difficulty for every question.")
    try:
        values = np.asarray(difficulty, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"difficulty must be numbers: {error}.") from None
    if values.ndim != 1:
        raise InputError(f"difficulty must have one dimension, not shape {values.shape}.")
    missing = ~np.isfinite(values)
    if missing.any():
        raise InputError(
            f"{int(missing.sum())} of {len(values)} questions have no finite difficulty (the first "
            f"is row {int(missing.argmax())}), and {strategy} needs one for each. Label them or "
            "leave them out; they are never dropped silently."
        )
    return values


def _categories(
    strategy: str, category: ArrayLike | None
) -> tuple[NDArray[np.int64], list[object]]:
    """Return the code of each question's category ``[n]``, and the sorted category values."""
    if category is None:
        raise InputError(f"The strategy {strategy} needs a category for every question.")
    import pyarrow as pa  # hashes 10 million strings in a second, where numpy.unique sorts them

    try:
        values = (
            category
            if isinstance(category, pa.Array | pa.ChunkedArray)
            else pa.array(
                np.asarray(category) if not isinstance(category, list | tuple) else category,
                from_pandas=True,
            )
        )
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise InputError(f"category must be all strings or all integers: {error}.") from None
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if pa.types.is_floating(values.type):
        values = values.cast(pa.string())
    missing = values.is_null().to_numpy(zero_copy_only=False)
    encoded = values.dictionary_encode()
    names = encoded.dictionary.to_pylist()
    blank = [i for i, name in enumerate(names) if isinstance(name, str) and not name.strip()]
    codes = np.asarray(encoded.indices.fill_null(-1), dtype=np.int64)
    missing |= np.isin(codes, blank)
    if missing.any():
        raise InputError(
            f"{int(missing.sum())} of {len(values)} questions have no category (the first is row "
            f"{int(missing.argmax())}), and {strategy} needs one for each. Label them or leave "
            "them out; they are never dropped silently."
        )
    by_name = sorted(range(len(names)), key=lambda i: names[i])
    rank = np.empty(len(names), dtype=np.int64)
    rank[by_name] = np.arange(len(names))
    return rank[codes], [names[i] for i in by_name]


def _category_ranks(
    codes: NDArray[np.int64],
    names: list[object],
    category_order: CategoryOrder | Sequence[object],
    hardness: NDArray[np.float64] | None,
    seed: int,
    epoch: int,
) -> NDArray[np.integer]:
    """Return the rank of each question's category in the category order, ``[n]``."""
    k = len(names)
    if not isinstance(category_order, str):
        listed = list(category_order)
        if sorted(map(str, listed)) != sorted(map(str, names)):
            lacking = [x for x in names if str(x) not in map(str, listed)]
            unknown = [x for x in listed if str(x) not in map(str, names)]
            raise InputError(
                "category_order must list every category once; missing from it are "
                f"{lacking[:5]}, unknown in it are {unknown[:5]}."
            )
        position = {str(name): i for i, name in enumerate(listed)}
        rank = np.array([position[str(name)] for name in names], dtype=np.int64)
    elif category_order == "alphabetical":
        rank = np.arange(k)
    elif category_order == "drawn":
        # Drawn over the sorted names, so that it does not depend on the order of the rows.
        rank = stream(seed, "category order", epoch).permutation(k)
    elif category_order == "size":
        rank = _rank_of(-np.bincount(codes, minlength=k))
    elif category_order == "difficulty":
        assert hardness is not None
        sizes = np.maximum(np.bincount(codes, minlength=k), 1)
        rank = _rank_of(np.bincount(codes, weights=hardness, minlength=k) / sizes)
    else:
        raise InputError(
            f"category_order must be 'drawn', 'alphabetical', 'size', 'difficulty' or all "
            f"categories in order, not {category_order!r}."
        )
    # NumPy sorts 16-bit integers by radix, several times faster than wider ones.
    return rank[codes].astype(np.uint16 if k <= 2**16 else np.int64)


def _rank_of(keys: NDArray[Any]) -> NDArray[np.int64]:
    rank = np.empty(len(keys), dtype=np.int64)
    rank[np.argsort(keys, kind="stable")] = np.arange(len(keys))
    return rank


def _bands(hardness: NDArray[np.float64], bands: int | Sequence[float]) -> NDArray[np.int64]:
    """Return the band of each question, int64 ``[n]``, 0 the easiest."""
    if isinstance(bands, int | np.integer) and not isinstance(bands, bool):
        if bands < 1:
            raise InputError(f"bands must be at least 1, not {bands}.")
        if len(hardness) == 0:
            return np.zeros(0, dtype=np.int64)
        thresholds = np.quantile(hardness, np.arange(1, bands) / bands)
    else:
        try:
            thresholds = np.asarray(bands, dtype=np.float64)
        except (TypeError, ValueError):
            thresholds = np.array([np.nan])
        if (
            thresholds.ndim != 1
            or not (np.diff(thresholds) > 0).all()
            or np.isnan(thresholds).any()
        ):
            raise InputError(f"bands must be a number or ascending thresholds, not {bands!r}.")
    return np.searchsorted(thresholds, hardness, side="right").astype(np.int64)


def _parts(
    sorted_ranks: NDArray[np.integer], rows: Indices, k: int, blocks: int
) -> NDArray[np.integer]:
    """Return each question's block, ``[n]`` by row number.

    block = floor(rank within category * B / size of category), so that small categories are spread
    over all blocks. `sorted_ranks` are the category ranks of `rows`, which are sorted by them.
    """
    sizes = np.bincount(sorted_ranks, minlength=k)
    starts = np.cumsum(sizes) - sizes
    within = np.arange(len(rows)) - np.repeat(starts, sizes)
    part: NDArray[Any] = np.empty(len(rows), dtype=np.uint16 if blocks <= 2**16 else np.int64)
    part[rows] = within * blocks // np.repeat(sizes, sizes)
    return part


def _repeated(
    rows: Indices, leading: list[NDArray[np.integer]], repeat: int, seed: int, epoch: int
) -> Indices:
    """Show each run of equal leading keys `repeat` times in a row, reshuffled after the first."""
    if repeat == 1 or len(rows) == 0:
        return rows
    n = len(rows)
    change = np.zeros(n, dtype=bool)
    for key in leading:
        change[1:] |= key[rows[1:]] != key[rows[:-1]]
    run = np.cumsum(change)
    sizes = np.bincount(run)
    starts = np.cumsum(sizes) - sizes
    shown = np.empty(n * repeat, dtype=np.int64)
    for copy in range(repeat):
        again = rows
        if copy > 0:
            mixed = stream(seed, "repeat", epoch, copy).permutation(n)
            again = rows[mixed[np.argsort(run[mixed], kind="stable")]]
        # Copy c of a run of length L that starts at s stands from repeat*s + c*L on.
        place = np.arange(n) + np.repeat(starts * (repeat - 1) + copy * sizes, sizes)
        shown[place] = again
    return shown
