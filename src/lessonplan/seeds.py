"""Independent, named random streams drawn from one seed.

What makes two runs *paired* is that they draw from the same streams: under one seed every strategy
gets the same shuffle, category order, initial adapter and dropout.
"""

from __future__ import annotations

import zlib

import numpy as np


def stream(seed: int, name: str, *index: int) -> np.random.Generator:
    """Return the generator of one named stream.

    Streams with different names or indices are statistically independent
    (`numpy.random.SeedSequence`, spawn keys), so drawing more from one never shifts another.

    Args:
        seed: any integer >= 0.
        name: what the numbers are for, such as ``"shuffle"``.
        index: further integers >= 0, such as the epoch.
    """
    key = (zlib.crc32(name.encode()), *index)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


def stream_seed(seed: int, name: str, *index: int) -> int:
    """Return a 63-bit integer from a named stream, to seed a library that takes integers."""
    return int(stream(seed, name, *index).integers(2**63))
