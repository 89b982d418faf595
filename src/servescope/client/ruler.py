"""The ruler of a real target: exact lengths from whatever the target offers.

In this order: its own `/tokenize`; a local tokenizer where one is given; else a calibration on the
token counts of a few answers. Where it tells nothing at all, words are guessed, and it is said.
"""

from __future__ import annotations

from dataclasses import replace

from servescope.client.probe import PROBE_TEXT, Dialogue, Endpoint, events_of
from servescope.protocols import Ask, ProtocolFault, WireProtocol
from servescope.rulers import (
    TOKENIZER,
    Ruler,
    load_tokenizer,
    ruler_by_words,
    ruler_from_tokenizer,
    ruler_from_usage,
)


class _Untold(Exception):
    """The server does not count prompts, as it need not."""


def ruler_of(
    dialogue: Dialogue,
    endpoint: Endpoint,
    wire: WireProtocol,
    tokenizer: str | None,
    *,
    stream: bool,
) -> Ruler:
    """How this target counts the tokens of a prompt. Raises BadInput naming `--tokenizer`."""
    found = _find(dialogue, endpoint, wire, tokenizer, stream=stream)
    return replace(found, takes_ids=wire.takes_ids)


def _find(
    dialogue: Dialogue,
    endpoint: Endpoint,
    wire: WireProtocol,
    tokenizer: str | None,
    *,
    stream: bool,
) -> Ruler:
    if endpoint.tokenize:

        def tokenize(text: str) -> list[int]:
            return dialogue.tokenize(endpoint.model, text) or []

        return _with_overhead(
            ruler_from_tokenizer(tokenize, "server /tokenize"), len(tokenize(PROBE_TEXT)), endpoint
        )
    if tokenizer is not None:
        local = load_tokenizer(tokenizer)
        return _with_overhead(
            ruler_from_tokenizer(local, TOKENIZER), len(local(PROBE_TEXT)), endpoint
        )

    def count(text: str) -> int:
        counted = _count_prompt(dialogue, endpoint, wire, text, stream=stream)
        if counted is None:
            raise _Untold
        return counted

    try:
        return ruler_from_usage(count)
    except _Untold:
        return replace(ruler_by_words("guess: the target counts no prompt tokens"), exact=False)


def _with_overhead(ruler: Ruler, probe_tokens: int, endpoint: Endpoint) -> Ruler:
    """What the server adds to a prompt, from its count for the probe's text."""
    counted = endpoint.probe_input_tokens
    if counted is None or not 0 < probe_tokens <= counted:
        return ruler
    return replace(ruler, overhead=counted - probe_tokens)


def _count_prompt(
    dialogue: Dialogue, endpoint: Endpoint, wire: WireProtocol, text: str, *, stream: bool
) -> int | None:
    """Prompt tokens that the server counts for a text, by a generation of one token."""
    ask = Ask(
        prompt=text,
        output_tokens=wire.least_tokens,
        model=endpoint.model,
        stream=stream,
        usage=stream and "usage" in endpoint.fields,
        max_completion_tokens="max_completion_tokens" in endpoint.fields,
    )
    path, headers = wire.path(stream=stream), dialogue.headers_of(wire)
    try:
        status, body = dialogue.ask("POST", path, wire.encode(ask), headers)
        events = events_of(wire, body, stream=stream) if status == 200 else []
    except (OSError, ProtocolFault):
        return None
    counts = [event.input_tokens for event in events if event.input_tokens]
    return counts[-1] if counts else None
