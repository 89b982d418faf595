"""A simulated server from its first to its last moment: bind, listen, end when told to."""

from __future__ import annotations

import asyncio
import errno
import gc
import ipaddress
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from servescope.client.machine import raise_open_files
from servescope.engine.config import EngineConfig
from servescope.errors import BadInput
from servescope.serve.app import App
from servescope.serve.http import Connection

BACKLOG = 4096
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]", ""})
"""What a request to a loopback address may call it; a browser always names the host it means."""


def run(
    config: EngineConfig,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    token: str | None = None,
    ready: Callable[[str, list[str]], None],
    until_closed: int | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, or until the file descriptor `until_closed` is at its end.

    `ready` gets the URL and the paths of generations once clients can connect. Raises BadInput
    where it cannot listen, or would without a `token` on an address that others can reach.
    """
    hosts = names(host, token)
    raise_open_files()
    with bound(host, port) as listener:
        url = f"http://{url_host(host)}:{listener.getsockname()[1]}"

        async def serve() -> None:
            app = App(config, hosts=hosts, token=token)
            ended = _ending(until_closed)
            loop = asyncio.get_running_loop()
            server = await loop.create_server(
                lambda: Connection(app.respond), sock=listener, backlog=BACKLOG
            )
            gc.collect()
            gc.freeze()  # what is there by now stays, so no later collection need look at it
            ready(url, app.answers_at)
            await ended.wait()
            server.close()

        asyncio.run(serve())


def names(host: str, token: str | None) -> frozenset[str]:
    """What requests to a server on `host` may call it; empty: anything.

    Raises BadInput where others can reach it and it has no token.
    """
    if _is_loopback(host):
        return LOOPBACK_NAMES | {url_host(host).lower()}
    if token is None:
        raise BadInput("--host", host, "others can reach it: want a token too, by --token-file")
    return frozenset()


def token_from(path: Path | None) -> str | None:
    """The token in a file, else in the environment, else none. Raises BadInput."""
    if path is None:
        return os.environ.get("SERVESCOPE_SERVE_TOKEN") or None
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput("--token-file", path, f"cannot be read: {error}") from None
    if not token:
        raise BadInput("--token-file", path, "want a token in it")
    return token


def _ending(until_closed: int | None) -> asyncio.Event:
    """Set when the server is told to end."""
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    if until_closed is not None:
        loop.add_reader(until_closed, ended.set)
    return ended


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises BadInput where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise BadInput("--port", port, "it is in use; want another, or 0 for any") from None
        if error.errno == errno.EACCES:
            raise BadInput("--port", port, "want one that needs no root: 1024 or above") from None
        why = str(error.strerror).partition(" (while")[0]
        raise BadInput("--host", host, f"cannot listen there: {why}") from None


def url_host(host: str) -> str:
    """As it stands in a URL."""
    return f"[{host}]" if ":" in host else host


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
