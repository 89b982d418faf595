"""What a simulated engine is like: its policy's settings, its costs and whom it imitates."""

from __future__ import annotations

import math
import types
from decimal import Decimal
from typing import Any
from urllib.parse import quote, unquote

import msgspec

from servescope.errors import BadInput
from servescope.plugins import one_of
from servescope.units import parse_duration_s

ENGINES = ("vllm", "sglang", "tgi", "lightllm", "llamacpp")
"""Engines that a server can imitate in its answers and in the names of its metrics."""

BUSY = {
    "vllm": "The engine is currently busy and cannot accept new requests. Please try again later or"
    " on a different instance.",
    "sglang": "The request queue is full.",
    "tgi": "Model is overloaded",
}
"""What those engines say that turn requests away; to a stream, they say it after a 200."""

SCHEME = "sim:"

_LEAST = {"max_waiting": 1, "context_tokens": 2}
"""The least value of a setting that is a number, where it is not 1."""


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one engine. Costs are seconds, or texts such as '8ms'."""

    engine: str = "vllm"
    """Whom it imitates."""
    model: str = "servescope-sim"
    step: float | str = "8ms"
    """Each step costs this."""
    prefill: float | str = "85us"
    """And this for each prompt token computed in it."""
    sequence: float | str = "20us"
    """And this for each sequence of the batch."""
    context: float | str = "90ns"
    """And this for each token of context that the batch attends to."""
    kv_tokens: int = 262144
    block_tokens: int = 16
    max_sequences: int = 256
    max_batched_tokens: int = 8192
    max_waiting: int | None = None
    """A request that finds so many waiting is turned away; None: the queue has no limit."""
    context_tokens: int = 32768
    """The longest prompt and answer together."""
    prefix_cache: bool = True
    turnaround: float | str = "500us"
    """In virtual time the way from a client to the engine and back takes this, half of it each way.
    Without it, a closed loop would just catch the step that a real one just misses."""

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ValueError(f"want {one_of(self.engine, ENGINES)}, not {self.engine}")
        for name in ("step", "turnaround"):
            if not _seconds(name, getattr(self, name)):
                raise ValueError(f"want {name} above 0, such as {name}=500us")
        for name in ("prefill", "sequence", "context"):
            _seconds(name, getattr(self, name))
        for field in msgspec.structs.fields(self):
            value, least = getattr(self, field.name), _LEAST.get(field.name, 1)
            if type(value) is int and int in _kinds(field.type) and value < least:
                raise ValueError(f"want {field.name} to be {least} or more, not {value}")
        if self.kv_tokens < self.block_tokens:
            raise ValueError(f"want kv_tokens to hold a block of {self.block_tokens} tokens")
        if self.max_batched_tokens < self.max_sequences:
            want = f"want max_batched_tokens to be at least max_sequences ({self.max_sequences})"
            raise ValueError(f"{want}: a step makes one token for each sequence")

    @property
    def step_s(self) -> float:
        """Seconds of a step before anything is in it."""
        return _seconds("step", self.step)

    @property
    def prefill_s(self) -> float:
        """Seconds a prompt token computed."""
        return _seconds("prefill", self.prefill)

    @property
    def sequence_s(self) -> float:
        """Seconds a sequence in the batch."""
        return _seconds("sequence", self.sequence)

    @property
    def context_s(self) -> float:
        """Seconds a token of context attended to."""
        return _seconds("context", self.context)

    @property
    def turnaround_s(self) -> float:
        """Seconds to the engine and back."""
        return _seconds("turnaround", self.turnaround)

    @property
    def kv_blocks(self) -> int:
        """Blocks of the KV cache."""
        return self.kv_tokens // self.block_tokens

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and answer that can ever be served."""
        return min(self.context_tokens, self.kv_blocks * self.block_tokens)

    def __str__(self) -> str:
        """As the user would write it: `sim:vllm?step=5ms`, with what is not the default."""
        said = [
            f"{field.name}={quote(_text(getattr(self, field.name)), safe=':/')}"
            for field in msgspec.structs.fields(self)
            if field.name != "engine" and getattr(self, field.name) != field.default
        ]
        return SCHEME + "?".join([self.engine, *filter(None, ["&".join(said)])])


def parse(field: str, text: str) -> EngineConfig:
    """The engine of `sim:vllm?step=5ms&kv_tokens=8192`, `vllm?...` or `sim:`.

    Raises BadInput naming `field`.
    """
    name, _, query = text.strip().removeprefix(SCHEME).partition("?")
    kinds = {f.name: f.type for f in msgspec.structs.fields(EngineConfig) if f.name != "engine"}
    settings: dict[str, Any] = {"engine": name} if name else {}
    for part in query.split("&") if query else []:
        key, equals, value = part.partition("=")
        if key not in kinds:
            raise BadInput(field, part, f"want {one_of(key, kinds)}")
        if not equals or not value:
            raise BadInput(field, part, f"want a value: {key}=...")
        if key in settings:
            raise BadInput(field, text, f"want {key} only once")
        try:
            settings[key] = msgspec.convert(unquote(value), kinds[key], strict=False)
        except msgspec.ValidationError:
            want = "true or false" if bool in _kinds(kinds[key]) else "a whole number"
            raise BadInput(field, part, f"want {key} to be {want}") from None
    try:
        return EngineConfig(**settings)
    except ValueError as error:
        raise BadInput(field, text, str(error)) from None


def _seconds(name: str, said: float | str) -> float:
    want = f"want {name} to be a time such as 8ms, 85us or 0, not {said}"
    try:
        seconds = parse_duration_s(name, said) if isinstance(said, str) else float(said)
    except BadInput:
        raise ValueError(want) from None
    without_unit = isinstance(said, str) and said[-1:].isdigit() and seconds > 0  # 8 ms, or 8 s?
    if without_unit or not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(want)
    return seconds


def _kinds(kind: Any) -> tuple[Any, ...]:  # noqa: ANN401 (a type, or a union of them)
    return kind.__args__ if isinstance(kind, types.UnionType) else (kind,)


def _text(value: object) -> str:
    if isinstance(value, float):  # without an exponent
        return f"{Decimal(repr(value)):f}s"
    return str(value).lower() if isinstance(value, bool) else str(value)
