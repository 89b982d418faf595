"""What comes of a load on a target, from a whole run or from a load process alone."""

import socket

from servescope.client.feed import Settings
from servescope.client.workers import Workers
from servescope.conduct import conduct
from servescope.experiment import Trial

SECOND = 1_000_000_000


def measure(target, tmp_path, **options):
    """A short run; its manifest, its records, and whether the kernel took its times."""
    options = {"load": ["users:2"], "requests": 6, "data": "dummy", "output_tokens": "5"} | options
    run = conduct(Trial(target=target, out=str(tmp_path / "runs"), **options))
    clocks = {sample.value for sample in run.samples() if sample.name == "kernel_clock"}
    return run.manifest, list(run.records()), clocks


def outcomes(records):
    return [record.outcome for record in records]


def settings_for(**changes):
    """What a load process is told of a target; no request is rendered from it here."""
    known = {
        "family": int(socket.AF_INET),
        "address": ("127.0.0.1", 0),
        "server_name": "localhost",
        "tls": False,
        "verify": True,
        "ca_file": None,
        "head": "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: ",
        "protocol": "openai-chat",
        "stream": True,
        "connect_ns": 10 * SECOND,
        "first_token_ns": 10 * SECOND,
        "between_tokens_ns": 10 * SECOND,
        "total_ns": 10 * SECOND,
        "max_bytes": 1 << 20,
    }
    return Settings(**(known | changes))


def drive(settings, requests, tmp_path):
    """What becomes of them in a load process, without a probe before."""
    team = Workers([settings], 1, tmp_path)
    try:
        team.begin(lambda process: iter(requests), lambda: 0)
        return [exchange for _, exchange in team.exchanges() if exchange is not None]
    finally:
        team.close()
