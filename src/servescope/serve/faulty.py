"""Servers that meet a fault now and then, and know which request it was.

    with serve("stall") as server:
        ...  # have a client load server.url, then compare with server.requests

They answer OpenAI chat completions, always with a stream.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence
from typing import Any, Self

from servescope.errors import BadInput
from servescope.plugins import one_of
from servescope.serve.answers import FIRST_S, answer, streamed
from servescope.serve.faults import FAULTS, Fault
from servescope.serve.scripted import Peer, Request, ScriptedServer, healthy

ONE_IN = 4


class FaultyServer(ScriptedServer):
    """A server of one fault: one request in four meets it, or all do, probes too."""

    def __init__(self, fault: Fault, *, port: int = 0) -> None:
        probe = self._act if fault.all else healthy(0, 0)
        more: dict[str, Any] = {} if fault.models is None else {"models": fault.models}
        super().__init__(self._act, probe=probe, tokenize=True, port=port, **more)
        self.fault, self.every = fault, 1 if fault.all else ONE_IN

    def meets(self, number: int) -> bool:
        """Whether this request meets the fault."""
        return number % self.every == self.every - 1

    def unharmed(self) -> list[Request]:
        """The requests that must complete whatever the fault is."""
        return [request for request in self.requests if not self.meets(request.number)]

    def answered(self) -> list[Request]:
        """Those whose times must be in the figures."""
        return self.requests if self.fault.answered else self.unharmed()

    def true_ttft_s(self) -> float:
        """Mean time to first token over the answers that must be in the figures, in seconds."""
        waited = [r.first_content_ns - r.at_ns for r in self.answered() if r.first_content_ns]
        return sum(waited) / len(waited) / 1e9

    async def _act(self, request: Request, peer: Peer) -> None:
        script = self.fault.script if self.meets(request.number) else streamed(answer())
        await script(request, peer)


class VanishingServer(FaultyServer):
    """A server that is gone for a while at a certain request: every connection is reset."""

    def __init__(self, fault: Fault, *, port: int = 0) -> None:
        super().__init__(fault, port=port)
        self.back_ns = 0
        self._done: list[Request] = []
        self._open: list[Peer] = []

    def meets(self, number: int) -> bool:
        """At which request it goes."""
        return number == self.fault.away_at

    def unharmed(self) -> list[Request]:
        """The requests that it answered to the end."""
        return self._done

    async def _act(self, request: Request, peer: Peer) -> None:
        if self.meets(request.number):
            self._away = asyncio.create_task(self._vanish())
        await streamed(answer())(request, peer)
        self._done.append(request)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.append(Peer(reader, writer))
        await super()._connection(reader, writer)

    async def _vanish(self) -> None:
        await asyncio.sleep(FIRST_S)
        self.listener.close()
        for peer in self._open:
            if not peer.writer.is_closing():
                peer.reset()
        await asyncio.sleep(self.fault.away_s)
        await self.listen()
        self.back_ns = time.monotonic_ns()


class AbsentServer(FaultyServer):
    """A port that is taken and on which nobody listens: connections are refused."""

    def __enter__(self) -> Self:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", self.port))
        self.port = self._socket.getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def named(names: Sequence[str], field: str = "FAULT") -> list[str]:
    """These rows of the table, or all where none is named. Raises BadInput for others."""
    for name in names:
        if name not in FAULTS:
            raise BadInput(field, name, f"want {one_of(name, FAULTS)}")
    return list(names or FAULTS)


def serve(fault: Fault | str, *, port: int = 0) -> FaultyServer:
    """The server of a fault, or of a row of the table by its name. Raises BadInput."""
    if isinstance(fault, str):
        fault = FAULTS[named([fault], "--serve")[0]]
    if fault.refuses:
        return AbsentServer(fault, port=port)
    return (VanishingServer if fault.away_s else FaultyServer)(fault, port=port)
