"""Every page of an engine but its answers: what it says of itself, and its switches.

An engine has here only the routes that the real one has, with the fields that clients look at.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from servescope import __version__
from servescope.datasets import Message
from servescope.engine.tokenizer import prompt_tokens, tokenize
from servescope.protocols import ProtocolFault
from servescope.serve.exposition import State, metrics

VERSIONS = {
    "vllm": "0.32.0",
    "sglang": "0.5.23",
    "tgi": "3.3.6",
    "llamacpp": "b0",
}
"""Whose answers are imitated; ours is appended, so that nobody takes one for the other."""

Page = Callable[[State, bytes], Any]
"""From the body of a request to JSON, or to bytes as they are. Raises ProtocolFault."""
Route = tuple[str, str]


class _Text(msgspec.Struct):
    """A text as one engine or another names it."""

    prompt: str | None = None
    content: str | None = None
    text: str | None = None
    inputs: str | None = None
    messages: list[Message] | None = None


_TEXT = msgspec.json.Decoder(_Text)
_STARTED = int(time.time())


def error(engine: str, status: int, message: str) -> bytes:
    """An error that is no answer's, in the engine's own form."""
    if engine == "llamacpp":
        kind = "not_found_error" if status == 404 else "invalid_request_error"
        return msgspec.json.encode({"error": {"message": message, "type": kind, "code": status}})
    return msgspec.json.encode({"detail": message})


def _version(state: State) -> str:
    return f"{VERSIONS[state.config.wire]}+servescope.{__version__}"


def _ids(body: bytes) -> tuple[int, ...]:
    try:
        said = _TEXT.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise ProtocolFault("http_4xx", str(fault)) from None
    if said.messages is not None:
        return prompt_tokens(tuple(said.messages))
    texts = (said.prompt, said.content, said.text, said.inputs)
    text = next((text for text in texts if text is not None), None)
    if text is None:
        raise ProtocolFault("http_4xx", "want a text, or messages")
    return tuple(tokenize(text))


def _health(state: State, _body: bytes) -> object:
    if state.config.wire == "llamacpp":
        return {"status": "ok"}
    return {"message": "Ok"} if state.config.wire == "lightllm" else b""


def _models(state: State, _body: bytes) -> object:
    config = state.config
    entry = {
        "id": config.model,
        "object": "model",
        "created": _STARTED,
        "owned_by": config.model if config.wire == "tgi" else config.wire,
        "root": config.model,
        "parent": None,
        "max_model_len": config.longest,
    }
    if config.wire == "llamacpp":
        entry["meta"] = {"n_ctx": config.longest}
    return {"object": "list", "data": [entry]}


def _tokenize(state: State, body: bytes) -> object:
    ids = _ids(body)
    return {"count": len(ids), "max_model_len": state.config.longest, "tokens": ids}


def _flush(state: State, _body: bytes) -> bytes:
    state.realtime.engine.flush_cache()
    return b"" if state.config.wire == "vllm" else b"Cache flushed.\n"


def _info(state: State, _body: bytes) -> object:
    config = state.config
    return {
        "model_id": config.model,
        "max_concurrent_requests": config.max_num_seqs + (config.max_waiting or 0),
        "max_input_tokens": config.longest - 1,
        "max_total_tokens": config.longest,
        "version": _version(state),
    }


def _model_info(state: State, _body: bytes) -> dict[str, Any]:
    model = state.config.model
    return {"model_path": model, "served_model_name": model, "is_generation": True}


def _server_info(state: State, body: bytes) -> object:
    config = state.config
    return {
        **_model_info(state, body),
        "context_length": config.longest,
        "max_total_num_tokens": state.pool_tokens,
        "max_running_requests": config.max_num_seqs,
        "max_queued_requests": config.max_waiting,
        "page_size": config.block_tokens,
        "disable_radix_cache": not config.prefix_cache,
        "version": _version(state),
    }


def _loads(state: State, _body: bytes) -> object:
    load = {
        "dp_rank": 0,
        "num_running_reqs": state.running,
        "num_waiting_reqs": state.waiting,
        "num_used_tokens": round(state.kv_tokens),
        "max_total_num_tokens": state.pool_tokens,
        "token_usage": state.kv_used_ratio,
    }
    return {"version": _version(state), "loads": [load]}


def _props(state: State, _body: bytes) -> object:
    config = state.config
    return {
        "default_generation_settings": {"n_ctx": config.longest},
        "total_slots": config.max_num_seqs,
        "model_alias": config.model,
        "build_info": _version(state),
        "endpoint_metrics": True,
    }


def _token_load(state: State, _body: bytes) -> object:
    names = ("current_load", "logical_max_load", "dynamic_max_load")
    return dict.fromkeys(names, state.kv_used_ratio)


_EVERY: dict[Route, Page] = {
    ("GET", "/health"): _health,
    ("GET", "/v1/models"): _models,
    ("GET", "/metrics"): lambda state, _: metrics(state),
}
_OWN: dict[str, dict[Route, Page]] = {
    "vllm": {
        ("GET", "/version"): lambda state, _: {"version": _version(state)},
        ("GET", "/ping"): lambda *_: b"",
        ("GET", "/load"): lambda state, _: {"server_load": state.running + state.waiting},
        ("POST", "/tokenize"): _tokenize,
        ("POST", "/reset_prefix_cache"): _flush,
    },
    "sglang": {
        ("GET", "/health_generate"): lambda *_: b"",
        ("GET", "/model_info"): _model_info,
        ("GET", "/get_model_info"): _model_info,
        ("GET", "/server_info"): _server_info,
        ("GET", "/get_server_info"): _server_info,
        ("GET", "/v1/loads"): _loads,
        ("POST", "/tokenize"): _tokenize,
        ("GET", "/flush_cache"): _flush,
        ("POST", "/flush_cache"): _flush,
    },
    "tgi": {
        ("GET", "/info"): _info,
    },
    "lightllm": {
        ("GET", "/healthz"): _health,
        ("GET", "/liveness"): _health,
        ("GET", "/readiness"): _health,
        ("GET", "/get_model_name"): lambda state, _: {"model_name": state.config.model},
        ("GET", "/token_load"): _token_load,
        ("POST", "/tokens"): lambda _, body: {"ntokens": len(_ids(body))},
    },
    "llamacpp": {
        ("GET", "/props"): _props,
        ("POST", "/tokenize"): _tokenize,
    },
}


def routes(engine: str) -> dict[Route, Page]:
    """The pages of an engine, by method and path."""
    return _EVERY | _OWN[engine]
