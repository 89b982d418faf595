"""How many tokens a second `servescope serve` streams, and how much of a core that takes.

    python benchmarks/serve.py [STREAMS] [TOKENS]

Each stream is one chat completion, read by this process as plain bytes. The engine's steps cost
next to nothing, so that the server is what limits. Prints tokens per second of wall time, and per
second of the server's CPU.
"""

from __future__ import annotations

import selectors
import socket
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from servescope.engine.config import parse
from servescope.serve import Server

SIM = "sim:vllm?step=1us&prefill=0&sequence=0&context=0&max_num_seqs=4096&kv_tokens=8000000"
SIM += "&max_num_batched_tokens=65536"


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def request(tokens: int, number: int) -> bytes:
    """One streamed chat completion."""
    message = {"role": "user", "content": f"number {number}"}
    body = msgspec.json.encode({"messages": [message], "max_tokens": tokens, "stream": True})
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
    return f"{head}{len(body)}\r\n\r\n".encode() + body


def read_all(port: int, streams: int, tokens: int) -> float:
    """Ask and read all streams to their ends; returns the seconds that took."""
    selector = selectors.DefaultSelector()
    sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(streams)]
    begun_s = time.monotonic()
    for number, sock in enumerate(sockets):
        sock.sendall(request(tokens, number))
        selector.register(sock, selectors.EVENT_READ)
    left, buffer = streams, bytearray(1 << 18)
    while left:
        for key, _ in selector.select():
            size = key.fileobj.recv_into(buffer)  # type: ignore[union-attr]
            if not size or buffer[:size].endswith(b"0\r\n\r\n"):
                selector.unregister(key.fileobj)
                left -= 1
    return time.monotonic() - begun_s


def main(streams: int = 64, tokens: int = 5000) -> None:
    """Measure and print."""
    with Server(parse("SIM", SIM)) as server:
        before = cpu_s(server.process.pid)
        took_s = read_all(urlsplit(server.url).port or 0, streams, tokens)
        used_s = cpu_s(server.process.pid) - before
    total = streams * tokens
    print(
        f"{streams} streams of {tokens} tokens: {total / took_s:,.0f} tokens/s, "
        f"{total / used_s:,.0f} tokens per CPU second ({used_s:.2f} s of {took_s:.2f} s)"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
