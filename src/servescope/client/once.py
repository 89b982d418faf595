"""One plain request on a connection of its own, outside any measurement.

Answers are read by the rules of the load itself, so that what can be measured can also be asked.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Mapping

from servescope.client.address import Address, connect, tunnel_to
from servescope.client.proxy import Tunnel, handshake
from servescope.protocols import ProtocolFault
from servescope.protocols.http1 import BodyReader, Head, parse_head

MAX_BYTES = 4 << 20
_NO_ANSWER = "the connection was closed without an answer"


def exchange(
    address: Address,
    context: ssl.SSLContext | None,
    *,
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes = b"",
    timeout_s: float,
    whole: int = 0,
) -> tuple[int, bytes]:
    """Status and body of the answer, or as much of the body as comes in time.

    Raises OSError, also for what is no HTTP answer, and for a body that does not come `whole`
    where so many bytes of it are wanted at most.
    """
    until_s = time.monotonic() + timeout_s
    lines = [address.request_line(method, path), f"Host: {address.netloc}"]
    sent = {**headers, **address.hop_headers}
    lines += [f"{name}: {value}" for name, value in sent.items()]
    lines += [f"Content-Length: {len(body)}"] if body or method == "POST" else []
    tunnel = tunnel_to(address)
    with connect(address, timeout_s) as plain:
        sock = plain
        if tunnel is not None:
            _pass(sock, tunnel, until_s)
        if context is not None:
            sock = context.wrap_socket(plain, server_hostname=address.host)
        with sock:
            sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
            try:
                return _receive(sock, until_s, whole)
            except ProtocolFault as fault:
                raise ConnectionError(str(fault)) from None


def _pass(sock: socket.socket, tunnel: Tunnel, until_s: float) -> None:
    """Go through a proxy."""
    talk = handshake(tunnel)
    try:
        said = next(talk)
        while True:
            sock.settimeout(max(0.001, until_s - time.monotonic()))
            sock.sendall(said)
            said = talk.send(sock.recv(65536))
    except StopIteration:
        return


def _receive(sock: socket.socket, until_s: float, whole: int) -> tuple[int, bytes]:
    """An answer must end even if its server does not."""
    head: Head | None = None
    reader: BodyReader | None = None
    raw, content = b"", bytearray()
    while reader is None or not (reader.ended or len(content) > (whole or MAX_BYTES)):
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            break
        sock.settimeout(left_s)
        try:
            data = sock.recv(65536)
        except TimeoutError:
            break
        if not data:
            if reader is not None:
                reader.close()
            break
        if reader is None:
            raw += data
            head = parse_head(raw)
            if head is None:
                continue
            data, reader = raw[head.size :], BodyReader(head)
        content += reader.feed(data)
    if len(content) > whole > 0:
        raise ConnectionError(f"the answer is larger than {whole >> 20} MiB")
    if head is not None and reader is not None and (reader.whole or not whole):
        return head.status, bytes(content)
    if time.monotonic() >= until_s:
        raise TimeoutError("timed out")
    raise ConnectionError(_NO_ANSWER if head is None else "the answer ended early")
