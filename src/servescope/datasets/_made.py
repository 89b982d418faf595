"""Items whose prompts are made, not read: the part that these data sets have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from servescope.datasets import Item, Single
from servescope.errors import BadInput
from servescope.lengths import Fixed, Lengths, at
from servescope.seeds import generator
from servescope.text import prose_of_exactly

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from servescope.datasets import ItemSource, Setting
    from servescope.rulers import Ruler

    Prompt = str | tuple[int, ...]
    Write = Callable[[Ruler, int, np.random.Generator], Prompt]

DEFAULT_INPUT = Fixed(128)
DEFAULT_OUTPUT = Fixed(64)

_ID_RANGE = (1000, 4000)
"""Where ids are unknown: beyond special tokens and single bytes, within any vocabulary."""

_TRIES = 16


def made(
    setting: Setting,
    write: Write,
    least: int,
    *,
    inputs: Lengths = DEFAULT_INPUT,
    outputs: Lengths = DEFAULT_OUTPUT,
    promise: Callable[[Prompt, int], int | None] = lambda _prompt, drawn: drawn,
) -> ItemSource:
    """Items whose prompts `write` makes to the length drawn, which is `least` tokens or more.

    `promise` says, from a prompt and the length drawn for it, how many tokens the server will
    count. Raises BadInput as `drawn` does.
    """
    input_tokens, output_tokens = drawn(setting, least, inputs=inputs, outputs=outputs)

    def item(i: int) -> Item:
        tokens = input_tokens(i)
        prompt = write(setting.ruler, tokens, generator(setting.seed, "prompt", i))
        return Item(
            prompt=prompt,
            input_tokens=promise(prompt, tokens),
            output_tokens=output_tokens(i),
            pinned=True,
        )

    return Single(item)


def drawn(
    setting: Setting,
    least: int,
    *,
    inputs: Lengths = DEFAULT_INPUT,
    outputs: Lengths = DEFAULT_OUTPUT,
) -> tuple[Callable[[int], int], Callable[[int], int]]:
    """Input and output length of each item: as the user says, else `inputs` and `outputs`.

    What a law draws below `least` is moved up to it. Raises BadInput naming `--input-tokens` when
    all that was asked for is below it.
    """
    wanted, answer = setting.input_tokens or inputs, setting.output_tokens or outputs
    if (wanted.largest() or least) < least:
        want = f"want at least {least}: so long is the shortest prompt with what the target adds"
        raise BadInput("--input-tokens", wanted, want)
    return (
        lambda i: max(least, at(wanted, setting.seed, "input", i)),
        lambda i: at(answer, setting.seed, "output", i),
    )


def shared_prose(setting: Setting, name: str, tokens: int, index: int = 0) -> str:
    """Prose of exactly `tokens` tokens for several prompts: the text of (`name`, `index`).

    Raises BadInput naming `--data` when no words have that length.
    """
    rng = generator(setting.seed, name, index)
    try:
        return prose_of_exactly(setting.ruler, setting.ruler.overhead + tokens, rng)
    except BadInput:
        want = "want another number of tokens: no words of this vocabulary have this one"
        raise BadInput("--data", f"{name}={tokens}", want) from None


def fitted(ruler: Ruler, n: int, rng: np.random.Generator, compose: Callable[[str], str]) -> str:
    """What `compose` makes of a prose, of such a length that all is a prompt of `n` tokens.

    `compose` adds what the ruler knows no costs of. So the length is exact where the ruler can
    count any text, and about right where it can not; `counted` tells which.
    """
    seed = int(rng.integers(2**63))
    size = n - ruler.overhead - ruler.estimate(compose(""))
    for attempt in range(_TRIES):  # another prose each time: where it ends may cost a token more
        prompt = compose(_prose(ruler, size, generator(seed, "prose", attempt)))
        missing = 0 if ruler.count is None else n - ruler.overhead - ruler.count(prompt)
        if missing == 0:
            break
        size += missing
    return prompt


def counted(ruler: Ruler, prompt: Prompt) -> int | None:
    """Tokens of a prompt of text as the server will count it; None when only it could."""
    if ruler.count is None or not isinstance(prompt, str):
        return None
    return ruler.overhead + ruler.count(prompt)


def _prose(ruler: Ruler, size: int, rng: np.random.Generator) -> str:
    """Prose of `size` tokens, or of the next length below it that words can have."""
    for tokens in range(size, ruler.least - ruler.overhead - 1, -1):
        try:
            return prose_of_exactly(ruler, ruler.overhead + tokens, rng)
        except BadInput:
            continue
    return ""


def ids_of_exactly(ruler: Ruler, n: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Random token ids that make a prompt of `n` tokens."""
    size = n - ruler.ids_overhead
    if len(ruler.known_ids) == 0:
        return tuple(rng.integers(*_ID_RANGE, size=size).tolist())
    return tuple(rng.choice(ruler.known_ids, size).tolist())
