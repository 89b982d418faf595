"""Locust, with the user of `locust_user.py`."""

from __future__ import annotations

import json
from pathlib import Path

from peers.peer import HERE, Load, Peer, Row


def arguments(load: Load, scratch: Path) -> list[str]:
    """All users at once."""
    words = ["--locustfile", str(HERE / "locust_user.py"), "--headless", "--host", load.url]
    words += ["--users", str(load.streams), "--spawn-rate", str(load.streams)]
    words += ["--requests", str(load.requests), "--tokens", str(load.tokens)]
    return [*words, "--rows", str(scratch / "said.json"), "--only-summary"]


def read(scratch: Path) -> list[Row]:
    """What the user wrote."""
    return [Row(*one) for one in json.loads((scratch / "said.json").read_text())]


PEER = Peer(
    name="Locust",
    distribution="locust",
    program="peers/locust/bin/locust",
    clock="monotonic",
    poisson=False,
    arguments=arguments,
    read=read,
)
