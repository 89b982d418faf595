"""A user for Locust that asks for chat completions and times their tokens."""

from __future__ import annotations

import itertools
import json
import time
from argparse import ArgumentParser
from pathlib import Path

import gevent
from locust import FastHttpUser, constant, events, task
from locust.exception import StopUser

rows: list[tuple[float, float, list[float], int]] = []
"""Start, TTFT, gaps and the prompt's tokens of each request."""
begun, ended = itertools.count(1), itertools.count(1)


@events.init_command_line_parser.add_listener
def add_options(parser: ArgumentParser) -> None:
    """What the load is, and where the rows go."""
    for name in ("--requests", "--tokens"):
        parser.add_argument(name, type=int)
    parser.add_argument("--rows")


class Reader(FastHttpUser):
    """Sends the next request when an answer has ended."""

    wait_time = constant(0)

    @task
    def chat(self) -> None:
        """Ask once; the last of all answers ends the run."""
        options = self.environment.parsed_options
        if (number := next(begun)) > options.requests:
            raise StopUser
        message = {"role": "user", "content": f"{number} " + "word " * 31}
        body = {"model": "null", "messages": [message], "max_tokens": options.tokens}
        body |= {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
        try:
            self.read(body)
        finally:
            if next(ended) == options.requests:
                Path(options.rows).write_text(json.dumps(rows))
                gevent.spawn(self.environment.runner.quit)  # it ends the users, this one too

    def read(self, body: dict[str, object]) -> None:
        """Line by line: `iter_lines` waits until it has 1024 bytes, which are several tokens."""
        start_s, times_s, serial = time.perf_counter(), [], 0
        with self.client.post("/v1/chat/completions", json=body, stream=True) as answer:
            while line := answer.stream.readline(b"\n"):
                at_s = time.perf_counter()
                if not line.startswith(b"data: {"):
                    continue
                said = json.loads(line[6:])
                if usage := said.get("usage"):
                    serial = usage["prompt_tokens"]
                if said["choices"] and said["choices"][0]["delta"].get("content"):
                    times_s.append(at_s)
        gaps = [after - before for before, after in itertools.pairwise(times_s)]
        rows.append((start_s, times_s[0] - start_s, gaps, serial))
