"""Items whose prompts are made, not read: the part that `dummy` and `emulated` have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from servescope.datasets import Item, Single
from servescope.errors import BadInput
from servescope.lengths import Exponential, Fixed, Lengths, Normal, at
from servescope.seeds import generator

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from servescope.datasets import ItemSource, Setting
    from servescope.text import Ruler

    Write = Callable[[Ruler, int, np.random.Generator], str | tuple[int, ...]]

DEFAULT_INPUT = Fixed(128)
DEFAULT_OUTPUT = Fixed(64)

_ID_RANGE = (1000, 4000)
"""Where ids are unknown: beyond special tokens and single bytes, within any vocabulary."""


def made(setting: Setting, write: Write, least: int) -> ItemSource:
    """Items whose prompts `write` makes to the length drawn, which is `least` tokens or more.

    Raises BadInput naming `--input-tokens` when lengths below `least` were asked for by name; the
    tail of a law that merely reaches below it is moved up to it.
    """
    inputs, outputs = setting.input_tokens or DEFAULT_INPUT, setting.output_tokens or DEFAULT_OUTPUT
    if inputs.smallest() < least and not _open_below(inputs):
        want = f"want at least {least}: so long is a prompt of one word with what the target adds"
        raise BadInput("--input-tokens", inputs, want)

    def item(i: int) -> Item:
        tokens = max(least, at(inputs, setting.seed, "input", i))
        return Item(
            prompt=write(setting.ruler, tokens, generator(setting.seed, "prompt", i)),
            input_tokens=tokens,
            output_tokens=at(outputs, setting.seed, "output", i),
            pinned=True,
        )

    return Single(item)


def ids_of_exactly(ruler: Ruler, n: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Random token ids that make a prompt of `n` tokens."""
    size = n - ruler.ids_overhead
    if len(ruler.known_ids) == 0:
        return tuple(rng.integers(*_ID_RANGE, size=size).tolist())
    return tuple(rng.choice(ruler.known_ids, size).tolist())


def _open_below(lengths: Lengths) -> bool:
    """Whether nobody said how short the shortest is."""
    return isinstance(lengths, Exponential) or (isinstance(lengths, Normal) and not lengths.min)
