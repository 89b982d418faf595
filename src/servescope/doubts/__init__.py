"""Reasons not to believe a figure: a closed list, each with its number and with advice.

A doubt is about the measurement (`generator.py`) or about what the figures can mean (`target.py`),
not about whether the server is fast. None is ever suppressed; so none may cry wolf: each check says
when it cannot tell, and is silent then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from servescope.doubts import target
from servescope.doubts.facts import KINDS, Doubt, StageFacts
from servescope.doubts.generator import client_limited, clock, generator, merged_reads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from servescope.records import Columns, Sample

__all__ = ["KINDS", "Doubt", "StageFacts", "doubts"]


def doubts(
    stage: StageFacts, columns: Columns, figures: Mapping[str, Any], samples: Sequence[Sample]
) -> list[Doubt]:
    """Every doubt about one stage, in the order of `KINDS`.

    `columns` holds every request of the stage, `figures` what `metrics.figures` made of them.
    Of `samples` those of the stage's load processes (source `loop`) and of the alignment of several
    nodes' clocks (source `clock`) are read.
    """
    ours = generator(columns, samples)
    found = (
        client_limited(stage, columns, figures, ours),
        *clock(stage, columns, ours),
        merged_reads(figures, ours),
        target.not_stationary(stage, columns),
        target.too_few(figures),
        target.errors(stage, columns),
        target.output_lengths_missed(columns),
        target.input_lengths_missed(columns),
        target.chunked(columns) if stage.streamed else None,
        target.counted_locally(columns),
        target.not_offered(stage, columns),
    )
    return sorted(filter(None, found), key=lambda doubt: KINDS.index(doubt.kind))
