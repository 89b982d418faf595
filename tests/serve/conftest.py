"""Simulated servers, each started once for the tests of this folder."""

from __future__ import annotations

import contextlib

import pytest

from servescope.engine.config import parse
from servescope.serve import Server
from tests.serve.client import Client

QUICK = "step=1ms&prefill=0&sequence=0&context=0&model=tiny"


@pytest.fixture(scope="session")
def client():
    """A client of the quick server that imitates an engine; each is started when first wanted."""
    with contextlib.ExitStack() as stack:
        urls: dict[str, str] = {}

        def of(engine: str = "vllm") -> Client:
            if engine not in urls:
                config = parse("SIM", f"sim:{engine}?{QUICK}")
                urls[engine] = stack.enter_context(Server(config)).url
            return Client(urls[engine])

        yield of


@pytest.fixture
def served():
    """A client of a server of one's own: `served("sim:vllm?max_waiting=1")`."""
    with contextlib.ExitStack() as stack:
        yield lambda sim: Client(stack.enter_context(Server(parse("SIM", sim))).url)
