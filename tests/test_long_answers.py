"""Answers too long to be kept in the load process: nothing is lost, its memory does not grow."""

import threading
from pathlib import Path

import pytest

from servescope.conduct import conduct
from servescope.experiment import Trial
from servescope.serve.null import NullServer
from servescope.serve.scripted import LAST_CHUNK, chunk, head
from tests.support.served import Served, healthy

TOKENS = 6000
WORD = b'data: {"choices":[{"index":0,"delta":{"content":"' + b"x" * 100 + b'"}}]}\n\n'
LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def measure(url, tmp_path, **options):
    options = {"data": "dummy", "output_tokens": str(TOKENS), "load": ["users:2"], **options}
    run = conduct(Trial(target=url, out=str(tmp_path / "runs"), requests=4, **options))
    return list(run.records())


class Peaks(threading.Thread):
    """The largest resident size of any load process of ours while the with statement lasts."""

    def __enter__(self):
        self.bytes, self._over = 0, threading.Event()
        self.start()
        return self

    def run(self):
        while not self._over.wait(0.02):
            for status in Path("/proc").glob("[0-9]*/status"):
                try:
                    if b"servescope.client.drive" in (status.parent / "cmdline").read_bytes():
                        fields = dict(line.split(":") for line in status.read_text().splitlines())
                        self.bytes = max(self.bytes, int(fields["VmHWM"].split()[0]) << 10)
                except (OSError, KeyError):  # it has just ended
                    continue

    def __exit__(self, *_):
        self._over.set()
        self.join()


def test_every_token_of_a_long_answer_has_its_time(tmp_path):
    with NullServer(ttft_s=0.01, itl_s=0.0002) as server:
        records = measure(server.url, tmp_path)
        truth = server.end()
    assert len(records) == 4
    for record in records:
        assert (record.outcome, record.output_tokens) == ("completed", TOKENS)
        assert len(record.chunk_ns) == TOKENS
        assert min(record.chunk_ns[1:]) >= 0
    first, last = (min(min(one.sent_ns) for one in truth), truth[-1].sent_ns[-1])
    spans = [sum(record.chunk_ns) for record in records]
    assert max(spans) - min(r.chunk_ns[0] for r in records) <= (last - first) * 1.05


@pytest.mark.parametrize("finishes", [True, False])
def test_the_memory_of_the_load_process_does_not_grow_with_its_answers(tmp_path, finishes):
    """Each of eight answers is 5 MB; one that stalls after them is found out as any other."""

    async def script(request, peer):
        await peer.send(head())
        for _ in range(500):
            await peer.send(b"".join([chunk(WORD)] * 60))
        if finishes:
            await peer.send(chunk(LAST) + LAST_CHUNK)
        else:
            await peer.reader.read()

    sizes = {}
    for name, act in (("short", healthy(0, 0)), ("long", script)):
        with Served(act, probe=healthy(0, 0)) as server, Peaks() as peaks:
            records = measure(
                server.url,
                tmp_path / name,
                load=["users:4"],
                output_tokens="30000",
                timeout_between_tokens="1s",
            )
        sizes[name] = peaks.bytes
    for record in records:
        assert record.outcome == ("completed" if finishes else "failed:stalled")
        assert len(record.chunk_ns) == 30_000
    assert sizes["long"] - sizes["short"] < 10 << 20
