"""How long a step takes."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Protocol, Self

from servescope.engine import FS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servescope.engine import Step
    from servescope.engine.config import EngineConfig
    from servescope.engine.lines import Lines


class Cost(Protocol):
    """What steps cost, in whole femtoseconds."""

    def step(self, batch: Step) -> int:
        """A step with prompts in it; those who decode have `batch.context` before it."""
        ...

    def decode(self, decoding: int) -> Lines:
        """A step that only decodes, as lines over the tokens that they have at its end."""
        ...


class LinearCost:
    """Four constants, in femtoseconds, and how the cost of sequences grows with their number.

    Kernels for few sequences, for many and for just as many as a tile holds differ, so that a batch
    need not cost as much as its sequences alone: `scaling` says of batches of `sizes()` how many
    sequences alone they are worth. Between lie straight lines; larger batches cost in proportion to
    the last.
    """

    def __init__(
        self,
        step_s: float,
        prefill_s: float,
        sequence_s: float,
        context_s: float,
        scaling: Sequence[float] = (),
    ) -> None:
        self._step, self._prefill = round(step_s * FS), round(prefill_s * FS)
        self._context = round(context_s * FS)
        self._sizes = [1, *sizes(len(scaling))]
        self._costs = [round(sequence_s * one * FS) for one in (1, *scaling)]

    @classmethod
    def of(cls, config: EngineConfig) -> Self:
        """The constants of an engine."""
        return cls(
            config.cost_s("step"),
            config.cost_s("prefill"),
            config.cost_s("sequence"),
            config.cost_s("context"),
            config.scaling,
        )

    def step(self, batch: Step) -> int:
        """As `Cost` has it."""
        return (
            self._step
            + self._prefill * (batch.prefill_tokens + batch.padding_tokens)
            + self.sequences(batch.sequences)
            + self._context * (batch.prompt_context + batch.context + batch.decoding)
        )

    def decode(self, decoding: int) -> Lines:
        """As `Cost` has it."""
        return ((self._step + self.sequences(decoding), self._context),)

    def sequences(self, count: int) -> int:
        """What so many in one step cost beside the step itself, their context and their prompts."""
        sizes, costs = self._sizes, self._costs
        if count >= sizes[-1]:
            return costs[-1] * count // sizes[-1]
        k = max(bisect_left(sizes, count), 1)
        low, size = costs[k - 1], sizes[k - 1]
        return low + (costs[k] - low) * (count - size) // (sizes[k] - size)


def sizes(count: int) -> list[int]:
    """The first sizes of batch, beside 1, that the cost is known for: 2 to 8, 12, 16, 24, 32 ..."""
    return [k + 2 if k < 6 else (2 + k % 2) << (k - 2) // 2 for k in range(count)]
