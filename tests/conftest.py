"""Settings of all tests and what they share; machines are noisy: slowness alone is no failure."""

import os
import signal
import sys
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings

from servescope import cli

settings.register_profile("noisy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("noisy")

for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[name]  # this machine's proxy has no part in what runs on loopback

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each process would compile us anew

for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
    # What `nohup` and `&` had us ignore, commands that are tested would ignore, too; what is caught
    # and ignored here is obeyed by them.
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)


def pytest_collection_modifyitems(items):
    """What waits begins first, so that in the end nothing waits for it."""
    items.sort(key=lambda item: item.get_closest_marker("waits") is None)


@pytest.fixture(autouse=True)
def _environment():
    """A command that runs in this process may change its environment, for itself alone."""
    with patch.dict(os.environ):
        yield


@pytest.fixture
def command(monkeypatch, capfd, tmp_path):
    """Runs the command in this process, in a directory of its own; status, output and errors."""
    monkeypatch.chdir(tmp_path)

    def invoke(*words):
        monkeypatch.setattr(sys, "argv", ["servescope", *map(str, words)])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code or 0
        return (status, *capfd.readouterr())

    return invoke


@pytest.fixture
def save(tmp_path):
    """Writes a file and says where it is."""

    def write(name: str, content: str | bytes) -> str:
        data = content.encode() if isinstance(content, str) else content
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    return write
