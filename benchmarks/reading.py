"""What it costs to read answers: CPU time per token event, from raw bytes to a line of records.

    python benchmarks/reading.py

Streams as vLLM sends them, one event a chunk and one read each; `one by one` decodes the JSON of
every event, as is done with streams whose events are not alike. Prints JSON.
"""

from __future__ import annotations

import json
import random
import time
from array import array

import msgspec

from servescope.client import reading
from servescope.client.answer import Asked, record
from servescope.client.wire import Exchange
from servescope.protocols import Ask, Reply, known

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
STREAMS, TIMES = 50, 15


def exchange(protocol: str, tokens: int, seed: int, *, each: bool) -> Exchange:
    """An answer of random words."""
    draw = random.Random(seed)  # noqa: S311 (not for secrets)
    ask = Ask(prompt="x", output_tokens=tokens, usage=True, usage_each=each)
    name = f"chatcmpl-{draw.getrandbits(128):032x}"
    reply = Reply(id=name, model="meta-llama/Llama-3-8B", created=1_795_228_174, input_tokens=30)
    renderer = known()[protocol].renderer(ask, reply)
    parts = [renderer.opening()]
    for n in range(1, tokens + 1):
        word = " " + "".join(draw.choices("etaoinshrdlu", k=draw.randint(1, 7)))
        text = draw.choices([word, "\n", ' "'], [97, 2, 1])[0]
        parts.append(renderer.chunk(text, n, "length" if n == tokens else None))
    parts.append(renderer.closing(tokens))
    raw, reads = bytearray(HEAD), array("q")
    for n, part in enumerate(filter(None, parts)):
        raw += b"%x\r\n%b\r\n" % (len(part), part)
        reads.extend((n * 10_000_000 + draw.randrange(10**6), len(raw)))
    raw += b"0\r\n\r\n"
    reads.extend((reads[-2] + 1000, len(raw)))
    return Exchange(0, "ended", "", 1, 0, 0, 0, 0, reads[-2], reads, bytes(raw))


def us_per_event(protocol: str, tokens: int, *, each: bool = False) -> float:
    """The least of several measurements of many streams."""
    wire, encode = known()[protocol], msgspec.json.Encoder().encode
    exchanges = [exchange(protocol, tokens, seed, each=each) for seed in range(STREAMS)]
    asked = Asked(0, 30, tokens, True, True, "0" * 16, 100, None)
    best = float("inf")
    for _ in range(TIMES):
        begun = time.process_time()
        for one in exchanges:
            encode(record(one, asked, wire, 0))
        best = min(best, time.process_time() - begun)
    return round(best / (STREAMS * tokens) * 1e6, 3)


def main() -> None:
    """Print the figures."""
    found = {
        "us_per_event": us_per_event("openai-chat", 128),
        "us_per_event_of_1024": us_per_event("openai-chat", 1024),
        "us_per_event_of_8": us_per_event("openai-chat", 8),
        "us_per_event_usage_each": us_per_event("openai-chat", 128, each=True),
        "us_per_event_by_protocol": {name: us_per_event(name, 128) for name in sorted(known())},
    }
    reading.LEAST_BYTES = 1 << 60
    found["us_per_event_one_by_one"] = us_per_event("openai-chat", 128)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
