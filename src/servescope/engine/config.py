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
UNNAMED = "servescope-sim"
"""The model, where none is named."""

_POLICIES = {"tgi": "tgi-1.0", "lightllm": "lightllm-2023", "llamacpp": "vllm"}
"""Whose scheduler an engine has that is not named like its own."""
_WIRES = {"tgi-1.0": "tgi", "lightllm-2023": "lightllm"}
COSTS = {"step": "8ms", "prefill": "85us", "sequence": "20us", "context": "90ns"}
"""What a step takes where no GPU is named: about an 8B model on an A100."""

_LEAST = {"max_waiting": 1, "max_model_len": 2, "prefill_replicas": 0}
"""The least value of a setting that is a number, where it is not 1."""
_ABOVE_0 = ("step", "turnaround")
"""Times that cannot be nothing: the clock would stand still."""


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of engines alike. Costs are seconds, or texts such as '8ms'.

    What is None follows from the engine, the model and the GPU (`deployment.py`).
    """

    engine: str = "vllm"
    """Whose scheduler it has, and whom it imitates; in any case."""
    model: str = UNNAMED
    """With a GPU, one of the catalogue or a path to a config.json; without, just a name."""
    gpu: str | None = None
    """One of the catalogue: then costs and memory are those of the model on it."""
    tp: int = 1
    """GPUs that share each layer."""
    pp: int = 1
    """Pipeline stages."""
    nodes: int = 1
    """Machines that the GPUs of a replica are spread over."""
    network_bytes_per_s: float = 3e9
    """What all-reduces reach between them: by default NCCL over TCP, 100 Gbit/s Ethernet."""
    replicas: int = 1
    prefill_replicas: int = 0
    """So many more only compute prompts, and hand their KV over to the others (disaggregated)."""
    transfer_bytes_per_s: float = 50e9
    """What the network adapter of each GPU moves of that KV: by default 400 Gbit/s."""
    router: str = "round_robin"
    dtype: str = "auto"
    """Of the weights: fp16, bf16, fp8, int8, int4 (awq, gptq); auto: as the model is stored."""
    kv_dtype: str = "auto"
    """Of the KV cache: fp16 (auto), bf16, fp8, int8."""
    memory_utilization: float | None = None
    """The share of a GPU's memory that the engine may use."""
    calibration: str | None = None
    """A file that `servescope calibrate` wrote: its constants stand for those of the catalogue."""
    step: float | str | None = None
    """Without a GPU, each step costs this."""
    prefill: float | str | None = None
    """And this for each prompt token computed in it."""
    sequence: float | str | None = None
    """And this for each sequence of the batch."""
    context: float | str | None = None
    """And this for each token of context that the batch attends to."""
    batch_scaling: str | None = None
    """Batches of 2 to 8, 12, 16, 24, 32 ... cost as much as so many sequences alone: '2,2.9,3.6'.
    Without it, as many as they have."""
    kv_tokens: int | None = None
    """Tokens that the KV cache holds; of a GPU, what its memory has room for."""
    block_tokens: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_waiting: int | None = None
    """A request that finds so many waiting is turned away; None: the queue has no limit."""
    max_model_len: int | None = None
    """The longest prompt and answer together."""
    prefix_cache: bool | None = None
    turnaround: float | str = "800us"
    """In virtual time the way from a client to the engine and back takes this, half of it each way,
    and half of it again passes before a user or a session goes on: 800 us is what it comes to on
    one machine. Without it, a closed loop would just catch the step that a real one just misses."""

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "engine", self.engine.lower())
        if self.engine not in (known := names()):
            raise ValueError(f"want {one_of(self.engine, known)}, not {self.engine}")
        for name in (*COSTS, "turnaround"):
            if (time := getattr(self, name)) is not None:
                _seconds(name, time)
        _numbers("batch_scaling", self.batch_scaling)
        said = [name for name in (*COSTS, "batch_scaling") if getattr(self, name) is not None]
        if said and self.gpu is not None:
            raise ValueError(f"want no {said[0]} with a gpu: its steps cost what they cost")
        for field in msgspec.structs.fields(self):
            value, least = getattr(self, field.name), _LEAST.get(field.name, 1)
            if type(value) is int and int in _kinds(field.type) and value < least:
                raise ValueError(f"want {field.name} to be {least} or more, not {value}")
        for name in ("transfer_bytes_per_s", "network_bytes_per_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"want {name} above 0, not {getattr(self, name)}")
        share = self.memory_utilization
        if share is not None and not 0 < share <= 1:
            raise ValueError(f"want memory_utilization in (0, 1], not {share}")

    @property
    def wire(self) -> str:
        """Whom it imitates in its answers and in the names of its metrics: one of `ENGINES`."""
        found = _WIRES.get(self.engine, self.engine)
        return found if found in ENGINES else "vllm"

    @property
    def policy(self) -> str:
        """The name of its scheduler; llama.cpp's is today's vLLM's (docs/accuracy.md)."""
        return _POLICIES.get(self.engine, self.engine)

    def cost_s(self, name: str) -> float:
        """One of `COSTS` in seconds."""
        said = getattr(self, name)
        return _seconds(name, COSTS[name] if said is None else said)

    @property
    def scaling(self) -> list[float]:
        """How many sequences alone batches of 2 to 8, 12, 16 ... cost; empty: as they have."""
        return _numbers("batch_scaling", self.batch_scaling)

    @property
    def gpus(self) -> int:
        """GPUs of all replicas, those that only compute prompts among them."""
        return self.tp * self.pp * (self.replicas + self.prefill_replicas)

    @property
    def turnaround_s(self) -> float:
        """Seconds to the engine and back."""
        return _seconds("turnaround", self.turnaround)

    def __str__(self) -> str:
        """As the user would write it: `sim:vllm?step=5ms`, with what is not the default."""
        said = [
            f"{field.name}={quote(_text(field.name, getattr(self, field.name)), safe=':/,')}"
            for field in msgspec.structs.fields(self)
            if field.name != "engine" and getattr(self, field.name) != field.default
        ]
        return SCHEME + "?".join([self.engine, *filter(None, ["&".join(said)])])


def names() -> list[str]:
    """Engines that there are."""
    from servescope.engine.policies import policies  # noqa: PLC0415 (they import this)

    return sorted({*policies(), *_POLICIES})


def parse(field: str, text: str) -> EngineConfig:
    """The engine of `sim:vllm?step=5ms&kv_tokens=8192`, `vllm?...` or `sim:`.

    Raises BadInput naming `field`.
    """
    name, _, query = text.strip().removeprefix(SCHEME).partition("?")
    parts = list(filter(None, query.split("&")))
    kinds = {f.name: f.type for f in msgspec.structs.fields(EngineConfig) if f.name != "engine"}
    settings: dict[str, Any] = {"engine": name} if name else {}
    for part in parts:
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
            asked = {bool: "true or false", int: "a whole number", float: "a number"}
            want = next(word for kind, word in asked.items() if kind in _kinds(kinds[key]))
            raise BadInput(field, part, f"want {key} to be {want}") from None
    try:
        return EngineConfig(**settings)
    except ValueError as error:  # the first setting that it names is the one that is wrong
        by_key = {part.partition("=")[0]: part for part in parts}
        wrong = (by_key[word] for word in str(error).split() if word in by_key)
        raise BadInput(field, next(wrong, name), str(error)) from None


def _seconds(name: str, said: float | str) -> float:
    """Seconds; ValueError where they are none, or 0 where that cannot be."""
    least = ", above 0" if name in _ABOVE_0 else ", or 0"
    want = f"want {name} to be a time such as 8ms or 85us{least}, not {said}"
    try:
        seconds = parse_duration_s(name, said) if isinstance(said, str) else float(said)
    except BadInput:
        raise ValueError(want) from None
    without_unit = isinstance(said, str) and said[-1:].isdigit() and seconds > 0  # 8 ms, or 8 s?
    is_time = 0 < seconds < math.inf or (seconds == 0 and name not in _ABOVE_0)
    if without_unit or not is_time:
        raise ValueError(want)
    return seconds


def _numbers(name: str, said: str | None) -> list[float]:
    try:
        found = [float(one) for one in said.split(",")] if said is not None else []
    except ValueError:
        found = [0.0]
    if not all(0 < one < math.inf for one in found):
        raise ValueError(f"want {name} to be numbers such as 2,3.4,4.9, not {said}")
    return found


def _kinds(kind: Any) -> tuple[Any, ...]:  # noqa: ANN401 (a type, or a union of them)
    return kind.__args__ if isinstance(kind, types.UnionType) else (kind,)


def _text(name: str, value: object) -> str:
    if isinstance(value, float):  # without an exponent
        return f"{Decimal(repr(value)):f}" + "s" * (name in COSTS or name == "turnaround")
    return str(value).lower() if isinstance(value, bool) else str(value)
