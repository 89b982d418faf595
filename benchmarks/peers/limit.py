"""The limit: a client in C that keeps the kernel's times and does nothing else."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from truth import compiled

from peers.peer import Load, Peer, Row, Skipped


def arguments(load: Load, scratch: Path) -> list[str]:
    """Streams alone; it has no timer."""
    if load.streams is None:
        raise Skipped("it has no open loop")
    words = [urlsplit(load.url).port, load.streams, load.requests, load.tokens, scratch / "said"]
    return list(map(str, words))


def read(scratch: Path) -> list[Row]:
    """Its log."""
    said, rows, at = np.fromfile(scratch / "said", np.int64), [], 0
    while at < len(said):
        serial, sent, count = said[at : at + 3].tolist()
        times = said[at + 3 : at + 3 + count]
        rows.append(
            Row(sent / 1e9, (times[0] - sent) / 1e9, (np.diff(times) / 1e9).tolist(), serial)
        )
        at += 3 + count
    return rows


PEER = Peer(
    name="C, epoll",
    distribution="",
    program=str(compiled("limit")),
    clock="monotonic",
    poisson=False,
    arguments=arguments,
    read=read,
)
