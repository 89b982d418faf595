"""One seed, many independent streams of random numbers.

Each stream is named by what it is for and by an index, so that item 7 is the same whoever asks for
it, in whatever order, in whichever process.
"""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, purpose: str, index: int = 0) -> np.random.Generator:
    """The stream of (seed, purpose, index); `seed` and `index` are integers from 0 up."""
    words = [seed, zlib.crc32(purpose.encode()), index]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))
