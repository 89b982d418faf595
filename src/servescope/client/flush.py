"""Emptying an engine's prefix cache, where it has a way."""

from __future__ import annotations

from collections.abc import Sequence

from servescope.client.probe import Dialogue

WAYS = {"vllm": ("/reset_prefix_cache",), "sglang": ("/flush_cache",)}
"""vLLM has it only in its development mode (VLLM_SERVER_DEV_MODE=1)."""

MOST_S = 5.0
"""A call beside the measurement must not hold it up."""


def flush_cache(dialogues: Sequence[Dialogue], engine: str | None) -> str | None:
    """Empty the cache of every target; how it was done, None where it could not be of them all."""
    found = [_flush(dialogue, engine) for dialogue in dialogues]
    return None if None in found else found[0]


def _flush(dialogue: Dialogue, engine: str | None) -> str | None:
    for path in WAYS.get(engine or "", tuple(way for ways in WAYS.values() for way in ways)):
        try:
            status, _ = dialogue.ask("POST", path, timeout_s=MOST_S)
        except OSError:
            continue
        if status == 200:
            return f"POST {path}"
    return None
