"""Servers that meet a fault now and then, and know which request it was."""

from __future__ import annotations

import asyncio
import time

from tests.support.faults import FIRST_S, Fault, Line, answer, streamed
from tests.support.served import Peer, Request, Served, healthy


class FaultyServed(Served):
    """A server of one fault: one measured request in four meets it, or all do, probes too."""

    def __init__(self, fault: Fault, **options: object) -> None:
        probe = self._act if fault.all else healthy(0, 0)
        super().__init__(self._act, probe=probe, tokenize=True, **options)
        self.fault, self.every = fault, 1 if fault.all else 4
        self.first_ns: dict[int, int] = {}
        """When the first content of each measured answer left."""

    def meets(self, number: int) -> bool:
        return number % self.every == self.every - 1

    async def _act(self, request: Request, peer: Peer) -> None:
        act = self.fault.act if self.meets(request.number) else streamed(answer())
        first_ns = {} if request.probe else self.first_ns
        await act(Line(request, peer, first_ns))

    def true_ttft_s(self) -> float:
        """Mean over the answers that should be in the figures."""
        good = {"completed", "truncated"} & set(self.fault.outcomes)
        numbers = [n for n in self.first_ns if good or not self.meets(n)]
        waited = [self.first_ns[n] - self.requests[n].at_ns for n in numbers]
        return sum(waited) / len(waited) / 1e9


class VanishingServed(Served):
    """A server that is gone for a while at a certain request: every connection is reset."""

    def __init__(self, at_request: int, away_s: float) -> None:
        super().__init__(self._act, tokenize=True)
        self.at_request, self.away_s = at_request, away_s
        self.answered = 0
        self.back_ns = 0
        self._open: list[Peer] = []

    async def _act(self, request: Request, peer: Peer) -> None:
        if request.number == self.at_request:
            self._away = asyncio.create_task(self._vanish())
        await streamed(answer())(Line(request, peer, {}))
        self.answered += 1

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        self.port = 0
        await self._listen()
        self._ready.set()
        await self._stop.wait()
        self._listener.close()

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._connection, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.append(Peer(reader, writer))
        await super()._connection(reader, writer)

    async def _vanish(self) -> None:
        await asyncio.sleep(FIRST_S)
        self._listener.close()
        for peer in self._open:
            if not peer.writer.is_closing():
                peer.reset()
        await asyncio.sleep(self.away_s)
        await self._listen()
        self.back_ns = time.monotonic_ns()
