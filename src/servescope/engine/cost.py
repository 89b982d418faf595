"""How long a step takes: linear in what is in it."""

from __future__ import annotations

from typing import NamedTuple, Self

from servescope.engine.config import EngineConfig


class LinearCost(NamedTuple):
    """Four constants, in seconds."""

    step_s: float
    prefill_s: float
    sequence_s: float
    context_s: float

    @classmethod
    def of(cls, config: EngineConfig) -> Self:
        """The constants of an engine."""
        return cls(config.step_s, config.prefill_s, config.sequence_s, config.context_s)

    def duration_s(self, prefill_tokens: int, sequences: int, context_tokens: int) -> float:
        """Seconds of a step that computes so many prompt tokens, for so many sequences.

        `context_tokens` are those in the KV cache at the end of the step, of all its sequences.
        """
        return (
            self.step_s
            + self.prefill_s * prefill_tokens
            + self.sequence_s * sequences
            + self.context_s * context_tokens
        )
