"""How long a step takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

from servescope.engine import FS

if TYPE_CHECKING:
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
    """Four constants, in femtoseconds."""

    def __init__(
        self, step_s: float, prefill_s: float, sequence_s: float, context_s: float
    ) -> None:
        self._step, self._prefill = round(step_s * FS), round(prefill_s * FS)
        self._sequence, self._context = round(sequence_s * FS), round(context_s * FS)

    @classmethod
    def of(cls, config: EngineConfig) -> Self:
        """The constants of an engine."""
        return cls(*(config.cost_s(name) for name in ("step", "prefill", "sequence", "context")))

    def step(self, batch: Step) -> int:
        """As `Cost` has it."""
        return (
            self._step
            + self._prefill * (batch.prefill_tokens + batch.padding_tokens)
            + self._sequence * batch.sequences
            + self._context * (batch.prompt_context + batch.context + batch.decoding)
        )

    def decode(self, decoding: int) -> Lines:
        """As `Cost` has it."""
        return ((self._step + self._sequence * decoding, self._context),)
