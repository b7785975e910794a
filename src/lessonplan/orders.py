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

__all__ = ["STRATEGIES", "Strategy", "order"]

MOST_SHOWN = 2**33  # entries of an order: 64 GiB
MOST_BANDS = 1_000_000
DOES_NOT_SORT = "does not sort questions by difficulty"

Indices = NDArray[np.int64]
Keys = NDArray[np.integer[Any]]
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


class Unlabelled(InputError):
    """Some questions lack a label that a strategy needs for each.

    Attributes:
        row: the 0-based number of the first of them.
    """

    def __init__(
        self, label: str, missing: NDArray[np.bool_], strategy: str, place: str = ""
    ) -> None:
        self.row = int(missing.argmax())
        self._found = label, missing, strategy
        super().__init__(
            f"{int(missing.sum())} of {len(missing)} questions have no {label} (the first is "
            f"{place or f'row {self.row + 1}'}), and {strategy} needs one for each. Label them or "
            "leave them out; they are never dropped silently."
        )

    def at(self, place: str) -> Unlabelled:
        """Return the same error with another word for the first of the questions."""
        return Unlabelled(*self._found, place)


def labels_used(
    strategy: str,
    *,
    blocks: object = 3,
    category_order: object = "drawn",
) -> list[Literal["category", "difficulty"]]:
    """Return the labels that an order depends on.

    Raises:
        InputError: an unknown strategy.
    """
    if strategy not in STRATEGIES:
        raise InputError(
            f"There is no strategy {strategy!r}; there are {', '.join(STRATEGIES)}."
            + nearest(strategy, STRATEGIES)
        )
    uses = STRATEGIES[strategy]
    by_mean = isinstance(category_order, str) and category_order == "difficulty"
    found: list[Literal["category", "difficulty"]] = []
    if uses.uses_category:
        found.append("category")
    if uses.uses_difficulty or blocks == "band" or (uses.uses_category and by_mean):
        found.append("difficulty")
    return found


def check_settings(
    strategy: str,
    *,
    blocks: int | Literal["band"] = 3,
    bands: int | Sequence[float] | None = None,
    category_order: CategoryOrder | Sequence[object] = "drawn",
    hardest_first: bool = False,
) -> None:
    """Refuse settings of `order` that would change nothing in the order of a known strategy.

    Raises:
        InputError: names the setting and says why it has no effect.
    """
    uses = STRATEGIES[strategy]
    by_band = blocks == "band"
    if by_band and bands is None and uses.uses_blocks:
        raise InputError("blocks='band' needs bands: a number of bands, or thresholds.")
    by_difficulty = uses.uses_difficulty or by_band
    drawn = isinstance(category_order, str) and category_order == "drawn"
    for name, given, works, does, flag in (
        ("blocks", blocks != 3, uses.uses_blocks, "has no blocks", "uses_blocks"),
        ("bands", bands is not None, by_difficulty, DOES_NOT_SORT, "uses_difficulty"),
        ("hardest_first", hardest_first, by_difficulty, DOES_NOT_SORT, "uses_difficulty"),
        ("category_order", not drawn, uses.uses_category, "has no categories", "uses_category"),
    ):
        if given and not works:
            others = [name for name, other in STRATEGIES.items() if getattr(other, flag)]
            raise InputError(
                f"{name} has no effect on {strategy}, which {does}. Leave it out, or take one of "
                f"{', '.join(others)}."
            )


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
        hardest_first: turns the sorts of questions by difficulty around (anti-curriculum).
        epochs: passes over the data; each n of the indices returned are one pass.
        each: ``"anew"`` redraws the shuffle and the category order for every pass.
        repeat: shows each run of equal leading keys (a category, a block of a category, a band,
            the whole set for random) that many times in a row, first as sorted, then reshuffled.

    Returns:
        int64 ``[epochs * repeat * n]``: row numbers in the order to be shown. With ``repeat=1``
        every n of them are a permutation of ``range(n)``.

    Raises:
        InputError: an unknown strategy or option, an option that has no effect on the strategy, a
            label that the strategy needs and that is missing, None or NaN, lengths that differ, or
            ``repeat`` with a strict curriculum.
    """
    labels = labels_used(strategy, blocks=blocks, category_order=category_order)
    uses = STRATEGIES[strategy]
    for name, value, least in (("epochs", epochs, 1), ("repeat", repeat, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise InputError(f"{name} must be an integer of at least {least}, not {value!r}.")
    if each not in ("same", "anew"):
        raise InputError(f"each must be 'same' or 'anew', not {each!r}.")
    if each == "anew" and epochs == 1:
        raise InputError(
            "each='anew' has no effect on a single pass. Leave it out, or give epochs of 2 or more."
        )
    n = _length(n, category, difficulty)
    if max(n, 1) * epochs * repeat > MOST_SHOWN:
        raise InputError(
            f"{n} questions times epochs={epochs} times repeat={repeat} make an order of more than "
            f"{MOST_SHOWN:,} entries; lower epochs or repeat."
        )

    if blocks != "band" and (
        isinstance(blocks, bool)
        or not isinstance(blocks, int | np.integer)
        or not 1 <= int(blocks) * max(n, 1) < 2**63  # what `_parts` multiplies
    ):
        raise InputError(
            f"blocks must be an integer of at least 1 (and below 2**63 / n) or 'band', not "
            f"{blocks!r}."
        )
    check_settings(
        strategy,
        blocks=blocks,
        bands=bands,
        category_order=category_order,
        hardest_first=hardest_first,
    )
    hardness = band = None
    if "difficulty" in labels:
        hardness = _difficulty(strategy, difficulty)
        if bands is not None:
            band = _bands(hardness, bands)
    if uses.uses_category:
        codes, names = _categories(strategy, category)
    if repeat > 1 and strategy == "curriculum" and bands is None:
        raise InputError(
            "repeat needs runs of equal keys, and a strict curriculum has none; give bands=..., "
            "or repeat=1."
        )

    if hardness is not None:
        hard = _ascending(hardness) if band is None else band
        if hardest_first:
            hard = ~hard  # the complement turns the order of integers around, signed or not

    def one_pass(epoch: int) -> Indices:
        if strategy == "original":
            return _repeated(np.arange(n), [], repeat, seed, epoch)
        # Stable sorts from the least to the most significant key.
        rows = stream(seed, "shuffle", epoch).permutation(n)
        leading: list[Keys] = []  # in the order of `rows`
        if uses.uses_difficulty:
            rows = _sorted(rows, hard)
            if band is not None:
                leading = [band[rows]]
        if uses.uses_category:
            ranks = _category_ranks(codes, names, category_order, hardness, seed, epoch)
            rows = _sorted(rows, ranks)
            leading = [ranks[rows]]
        if uses.uses_blocks:
            if blocks == "band":
                part = hard[rows]
            else:
                part = _parts(np.bincount(ranks, minlength=len(names)), int(blocks))
            by_part = _sorted(np.arange(n), part)
            rows = rows[by_part]
            leading = [part[by_part], leading[0][by_part]]
        return _repeated(rows, leading, repeat, seed, epoch)

    if each == "same":
        return np.concatenate([one_pass(0)] * epochs)
    return np.concatenate([one_pass(epoch) for epoch in range(epochs)])


def _length(n: int | None, category: ArrayLike | None, difficulty: ArrayLike | None) -> int:
    if n is not None and (isinstance(n, bool) or not isinstance(n, int | np.integer)):
        raise InputError(f"n must be an integer, not {n!r}.")
    lengths = {"n": n}
    for name, label in (("category", category), ("difficulty", difficulty)):
        if label is None:
            continue
        if not hasattr(label, "__len__"):
            raise InputError(f"{name} must have one entry a question, not be {label!r}.")
        lengths[name] = len(label)  # type: ignore[arg-type]
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
        raise InputError(
            f"The strategy {strategy} needs a difficulty for every question: give difficulty=, or "
            "on the command line --column difficulty=... or a table of labels with one (--labels)."
        )
    try:
        values = np.asarray(difficulty, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"difficulty must be numbers: {error}.") from None
    if values.ndim != 1:
        raise InputError(f"difficulty must have one dimension, not shape {values.shape}.")
    missing = ~np.isfinite(values)
    if missing.any():
        raise Unlabelled("finite difficulty", missing, strategy)
    return values


def _categories(strategy: str, category: ArrayLike | None) -> tuple[Keys, list[Any]]:
    """Return the code of each question's category ``[n]``, and the sorted category values."""
    if category is None:
        raise InputError(
            f"The strategy {strategy} needs a category for every question: give category=, or "
            "on the command line --column category=... or a table of labels with one (--labels)."
        )
    import pyarrow as pa  # hashes strings, where numpy.unique would sort all 10 million of them

    try:
        encoded = _arrow(category).dictionary_encode()
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        raise InputError(f"category must be all strings or all integers: {error}.") from None
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks()
    values = encoded.dictionary
    if pa.types.is_floating(values.type):
        values = values.cast(pa.string())
    listed = [*values.to_pylist(), None]  # the last stands for the rows that have no value
    found = encoded.indices.cast(pa.int32()).fill_null(len(values)).to_numpy()
    used = np.bincount(found, minlength=len(listed)) > 0
    blank = np.array([x is None or (isinstance(x, str) and not x.strip()) for x in listed])
    if (used & blank).any():
        raise Unlabelled("category", blank[found], strategy)
    # A dictionary that was given may hold a value twice, and values that no question has: these get
    # no code (the 0 stands unused).
    names = sorted({name for name, is_used in zip(listed, used, strict=True) if is_used})
    code = {name: i for i, name in enumerate(names)}
    codes = np.array([code.get(name, 0) for name in listed], dtype=_narrowest(len(names)))
    return codes[found], names


def _arrow(values: ArrayLike) -> Any:
    """Return a column as an Arrow array, by way of Python objects only if it consists of them."""
    import pyarrow as pa

    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    dtype = getattr(values, "dtype", None)
    if hasattr(values, "__arrow_c_stream__") and dtype != np.dtype(object):
        return pa.chunked_array(values)  # a pandas or Polars series
    if not isinstance(values, list | tuple):
        values = np.asarray(values)
        if values.dtype != object:
            return pa.array(values, from_pandas=True)
    kind = pa.infer_type(values, from_pandas=True)
    # Straight to codes, which takes half the time and memory of copying all strings first.
    encoded = pa.dictionary(pa.int32(), kind) if pa.types.is_string(kind) else None
    return pa.array(values, type=encoded, from_pandas=True)


def _category_ranks(
    codes: Keys,
    names: list[Any],
    category_order: CategoryOrder | Sequence[object],
    hardness: NDArray[np.float64] | None,
    seed: int,
    epoch: int,
) -> Keys:
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
    return rank.astype(_narrowest(k))[codes]


def _rank_of(keys: NDArray[Any]) -> NDArray[np.int64]:
    rank = np.empty(len(keys), dtype=np.int64)
    rank[np.argsort(keys, kind="stable")] = np.arange(len(keys))
    return rank


def _bands(hardness: NDArray[np.float64], bands: int | Sequence[float]) -> Keys:
    """Return the band of each question, ``[n]``, 0 the easiest."""
    if isinstance(bands, int | np.integer) and not isinstance(bands, bool):
        if not 1 <= bands <= MOST_BANDS:
            raise InputError(f"bands must be from 1 to {MOST_BANDS:,}, not {bands}.")
        if len(hardness) == 0:
            return np.zeros(0, dtype=np.uint8)
        thresholds = np.quantile(hardness, np.arange(1, bands) / bands)
        # Where many questions are the easiest, a threshold at their level would part nothing.
        idle = thresholds == hardness.min()
        if idle.any():
            thresholds[idle] = np.min(hardness, initial=np.inf, where=hardness > hardness.min())
    else:
        try:
            thresholds = np.asarray(bands, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            thresholds = np.array([np.nan])
        if (
            thresholds.ndim != 1
            or not (np.diff(thresholds) > 0).all()
            or np.isnan(thresholds).any()
        ):
            raise InputError(f"bands must be a number or ascending thresholds, not {bands!r}.")
    found = np.searchsorted(thresholds, hardness, side="right")
    return found.astype(_narrowest(len(thresholds) + 1))


def _parts(sizes: NDArray[np.integer], blocks: int) -> Keys:
    """Return the block of each question, ``[n]``, where the questions are sorted by category.

    block = floor(rank within category * B / size of category), so that small categories are spread
    over all blocks.
    """
    part = np.arange(sizes.sum())
    part -= np.repeat(np.cumsum(sizes) - sizes, sizes)  # now the rank within the category
    part *= blocks
    part //= np.repeat(sizes, sizes)
    return part.astype(_narrowest(blocks))


def _repeated(rows: Indices, leading: list[Keys], repeat: int, seed: int, epoch: int) -> Indices:
    """Show each run of equal leading keys `repeat` times in a row, reshuffled after the first."""
    if repeat == 1 or len(rows) == 0:
        return rows
    n = len(rows)
    change = np.zeros(n, dtype=bool)
    for key in leading:
        change[1:] |= key[1:] != key[:-1]
    run = np.cumsum(change)
    sizes = np.bincount(run)
    starts = np.cumsum(sizes) - sizes
    shown = np.empty(n * repeat, dtype=np.int64)
    for copy in range(repeat):
        again = rows
        if copy > 0:
            mixed = stream(seed, "repeat", epoch, copy).permutation(n)
            again = rows[_sorted(mixed, run)]
        # Copy c of a run of length L that starts at s stands from repeat*s + c*L on.
        place = np.arange(n) + np.repeat(starts * (repeat - 1) + copy * sizes, sizes)
        shown[place] = again
    return shown


def _narrowest(k: int) -> np.dtype[Any]:
    """Return the narrowest integers for ``range(k)``: the fastest to sort and to move."""
    return np.min_scalar_type(max(k - 1, 0))


def _ascending(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return integers in the order of the finite numbers, equal where those are equal.

    The bits of IEEE 754 numbers, read as integers, ascend for positive numbers and descend for
    negative ones, whose bits below the sign are therefore turned around.
    """
    bits = (values + 0.0).view(np.int64)  # -0.0 + 0.0 is 0.0: one zero, not two
    bits ^= (bits >> 63) & np.int64(2**63 - 1)
    return bits


def _sorted(rows: Indices, keys: Keys) -> Indices:
    """Return a permutation of the rows, stably sorted by the keys, ``[n]`` by row number.

    NumPy sorts up to 16 bits by radix. Wider integers it sorts with vector instructions, but as
    values only: their stable argsort is a merge sort, several times slower. So of wide keys the
    leading bits, joined with the position in one 64-bit integer, are sorted: equal ones stay in
    order, and the positions are left. For 10 million rows those are 40 bits, which tell nearly all
    numbers apart; where they do not, the bits that follow are sorted among those rows alone.
    """
    if keys.itemsize <= 2 or len(keys) == 0:
        return rows[np.argsort(keys[rows], kind="stable")]
    keys = keys.astype(np.int64, copy=False)
    digits = (keys - keys.min()).view(np.uint64)  # may overflow int64, not uint64
    return rows[_argsorted(digits[rows])]


def _argsorted(digits: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the stable argsort of wide integers, ``[n]``."""
    position_bits = (len(digits) - 1).bit_length()
    following = max(0, int(digits.max()).bit_length() + position_bits - 64)
    joined = digits >> following
    joined <<= position_bits
    joined |= np.arange(len(digits), dtype=np.uint64)
    joined.sort()
    places = (joined & ((1 << position_bits) - 1)).view(np.int64)
    if following == 0:
        return places
    # Neighbours that are the same so far may stand the other way round by the bits that follow.
    joined >>= position_bits
    alike = np.zeros(len(joined) + 1, dtype=bool)  # with the one before
    np.equal(joined[1:], joined[:-1], out=alike[1:-1])
    spots = np.flatnonzero(alike[1:] | alike[:-1])
    again, apart = places[spots], ~alike[spots]
    rest = digits[again] & np.uint64((1 << following) - 1)
    if ((rest[1:] < rest[:-1]) & ~apart[1:]).any():
        rest |= np.cumsum(apart).astype(np.uint64) << following
        places[spots] = again[_argsorted(rest)]
    return places
