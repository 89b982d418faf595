"""A share of a stage: the requests of some of its load processes, and the records they become.

Nothing here knows who writes the records down, so a share lives beside the run's directory or on a
node of a cluster: there, too, requests are rendered and answers read where the load process is.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from servescope.client import answer, wire
from servescope.client.feed import Settings
from servescope.client.secret import without
from servescope.client.wire import Exchange
from servescope.deal import Deal, Dealt
from servescope.prepare import Kit, encode
from servescope.protocols import plain_text
from servescope.tally import Tally


class Part(NamedTuple):
    """What a stage is to its load processes."""

    stage: int
    """Its number in the records."""
    first: int
    """The index of its first request over the run."""
    processes: int
    targets: list[Settings]
    """Of the processes that go to each target, before they are dealt out among these."""


class Batch:
    """Requests that came back: lines of requests.jsonl, and what they come to."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.requests = array("q")
        """Their indices over the run."""
        self.tally = Tally()
        self.size = 0
        """Bytes."""


class Share:
    """What some load processes of a stage do."""

    def __init__(self, kit: Kit, deal: Deal, part: Part, origin_ns: int) -> None:
        """Times of records count from `origin_ns` of the load processes' own clock."""
        self.part, self.origin_ns = part, origin_ns
        self._kit, self._deal = kit, deal
        self.batch = Batch()
        """What came back since it was taken last."""
        self._asked: dict[int, answer.Asked] = {}
        self._line = msgspec.json.Encoder().encode

    def requests(self, process: int) -> Iterator[wire.Request]:
        """What one load process is to send; called by its feeding thread."""
        for dealt in self._deal.requests(process, self.part.processes):
            yield self._request(dealt)

    def _request(self, dealt: Dealt) -> wire.Request:
        index, kit = self.part.first + dealt.k, self._kit
        item, turn = kit.items(dealt.item), dealt.turn
        prompt = item.prompt_bytes
        self._asked[index] = answer.Asked(
            stage=self.part.stage,
            input_tokens=item.input_tokens,
            output_tokens=item.output_tokens,
            pinned=item.pinned,
            stream=kit.plan.trial.stream,
            prompt_sha256=hashlib.sha256(prompt).hexdigest()[:16],
            prompt_bytes=len(prompt),
            prompt=prompt.decode() if kit.plan.trial.keep_text else None,
            session=None if turn is None else turn.session,
            turn=0 if turn is None else turn.number,
            echoed=len(plain_text(item.prompt)) if kit.wire.echoes_prompt else 0,
        )
        return wire.Request(
            number=index,
            due_ns=dealt.due_ns,
            limit=answer.overrun_limit(item.output_tokens),
            body=encode(kit, item),
            session=-1 if turn is None else turn.session,
            turn=0 if turn is None else turn.number,
            last=0 if turn is None else turn.last,
            think_ns=-1 if item.think_s is None else round(item.think_s * 1e9),
        )

    def add(self, exchange: Exchange, process: int) -> None:
        """Read an answer that came back."""
        kit, batch = self._kit, self.batch
        asked = self._asked.pop(exchange.request)
        record = answer.record(exchange, asked, kit.wire, self.origin_ns, kit.count)
        record.target = process % len(self.part.targets)
        if kit.secrets:
            record = without(kit.secrets, record)
        batch.tally.note(record)
        batch.requests.append(exchange.request)
        batch.lines.append(self._line(record))
        batch.size += len(batch.lines[-1])

    def take(self) -> Batch:
        """What came back since the last call."""
        batch, self.batch = self.batch, Batch()
        return batch
