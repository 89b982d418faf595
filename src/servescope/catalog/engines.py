"""What an engine's software adds to the GPU's work."""

from __future__ import annotations

import msgspec


class Overheads(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Constants of one engine. A step's host time is `step_s + sequence_s` for each sequence."""

    layer_s: float = 0.0
    """Launching a layer's kernels: a step takes at least this for each. 0 where graphs do it."""
    step_s: float = 0.0
    sequence_s: float = 0.0
    tp_step_s: float = 0.0
    """Added to `step_s` with tensor parallelism: software, such as Ray; no datasheet has it."""
    tp_sequence_s: float = 0.0
    """Added to `sequence_s` with tensor parallelism."""
    hidden: float = 0.0
    """The share of the shorter of host and device time that goes on beside the longer, 0 to 1."""
    decode_attention: float = 1.0
    """How much longer decode attention takes than with the kernels the GPU's efficiency is of."""
    one_shot: bool = True
    """Whether small all-reduces are one kernel over NVLink, captured in graphs, not NCCL's ring."""
    request_s: float = 0.0
    """The front end's time for each request: a server before the engine, not a part of steps."""
    token_s: float = 0.0
    """The front end's time for each output token."""
    source: str = ""
