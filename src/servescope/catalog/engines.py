"""What an engine's software adds to the GPU's work."""

from __future__ import annotations

from typing import Literal

import msgspec


class Overheads(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Constants of one engine. A step's host time is `step_s + sequence_s` for each sequence."""

    layer_s: float = 0.0
    """Launching a layer's kernels: a step takes at least this for each. 0 where graphs do it."""
    step_s: float = 0.0
    sequence_s: float = 0.0
    prompt_s: float = 0.0
    """Added for each prompt in the step: reading it and opening its answer, where the front end is
    the engine's own process and neither goes on while the other works."""
    tp_step_s: float = 0.0
    """Added to `step_s` with tensor parallelism: software, such as Ray; no datasheet has it."""
    tp_sequence_s: float = 0.0
    """Added to `sequence_s` with tensor parallelism."""
    hidden: float = 0.0
    """The share of the shorter of host and device time that goes on beside the longer, 0 to 1."""
    decode_attention: float = 1.0
    """How much longer decode attention takes than with the kernels the GPU's efficiency is of."""
    one_kernel: bool = False
    """Whether one launch of the attention kernel serves a step's prompts and decodes: on some GPUs
    it then computes a decode's one query as a tile of many."""
    one_shot: bool = True
    """Whether small all-reduces are one kernel over NVLink, captured in graphs, not NCCL's ring."""
    request_s: float = 0.0
    """The front end's time for each request, where it is a process of its own and no part of steps:
    half of it to take the request in, half to open its answer."""
    token_s: float = 0.0
    """The front end's time for each output token."""
    memory_utilization: float = 0.9
    """The share of a GPU's memory that it uses where it is not told another."""
    memory_of: Literal["all", "static", "rest"] = "all"
    """What that is a share of, and for: of all, for all (vLLM); of all, for weights and KV cache
    (SGLang); of what weights and activations leave, for the KV cache (TensorRT-LLM)."""
    source: str = ""
