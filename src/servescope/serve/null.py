"""The null server: answers that cost next to nothing, at times that it remembers.

A process of its own (`python -m servescope.serve.null TTFT_NS ITL_NS`) that speaks just enough of
OpenAI's chat completions to be measured, and measures a client by it. Token k of an answer is due
TTFT + k x ITL after the kernel received the request, so that nothing drifts; each token is one
send, the last one with finish reason, usage and the end in it. When its input ends it writes what
it did to its output, and is gone.

The truth of a request is the kernel's own stamp of it; that of a token is the clock read just
before its send. On loopback the receiver's segment is stamped inside that send: a time read right
is a few microseconds after the truth, never before it.
"""

from __future__ import annotations

import gc
import os
import re
import select
import socket
import struct
import subprocess
import sys
import time
from array import array
from collections import deque
from typing import NamedTuple, Self

from servescope.client.clock import SO_TIMESTAMPNS, Offset, Timer, steady_process
from servescope.client.machine import raise_open_files
from servescope.errors import ServescopeError

_AT_ONCE = 32
"""Tokens sent before the sockets are looked at again."""
_EARLY_NS = 50_000
"""A token may leave so much before it is due, so that one waking serves several streams: what is
true is when it left."""
_REFRESH_NS = 100_000_000
_PATIENCE_S = 30.0
_STAMP = struct.Struct("qq")
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_TOKENS = re.compile(rb'"max_(?:completion_)?tokens": ?(\d+)')
_SERVED = struct.Struct("<qqq")
"""Of a request: when it was received, its body's length, its tokens; the body and the times follow.
"""

# --- what it says ---------------------------------------------------------------------------------

_CHUNK = (
    b'data: {"id":"chatcmpl-null","object":"chat.completion.chunk","created":0,"model":"null",'
    b'"choices":[%b]%b}\n\n'
)
_DELTA = b'{"index":0,"delta":{%b},"finish_reason":%b}'
_STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
_PLAIN = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
_MODELS = b'{"object":"list","data":[{"id":"null","object":"model","owned_by":"servescope"}]}'


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_BEGIN = _STREAM + _framed(_CHUNK % (_DELTA % (b'"role":"assistant","content":""', b"null"), b""))
_TOKEN = _framed(_CHUNK % (_DELTA % (b'"content":" and"', b"null"), b""))
_LAST = _framed(_CHUNK % (_DELTA % (b'"content":" and"', b'"length"'), b""))
_DONE = _framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def _end(input_tokens: int, tokens: int) -> bytes:
    """The last token and all that follows it."""
    counts = (input_tokens, tokens, input_tokens + tokens)
    usage = b',"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}' % counts
    return _LAST + _framed(_CHUNK % (b"", usage)) + _DONE


# --- the process ----------------------------------------------------------------------------------


class _Connection:
    __slots__ = ("incoming", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.incoming = sock, bytearray()


class _Answer:
    """One request and what was sent for it."""

    __slots__ = ("body", "due_ns", "end", "left", "received_ns", "send", "sent")

    def __init__(self, sock: socket.socket, body: bytes, received_ns: int, due_ns: int) -> None:
        found = _TOKENS.search(body)
        self.left = max(1, int(found[1])) if found else 16
        self.end = _end(body.count(b" ") + 1, self.left)  # a word counts as a token
        self.body, self.received_ns, self.due_ns = body, received_ns, due_ns
        self.send = sock.send
        self.sent = array("q")


class _Loop:
    def __init__(self, ttft_ns: int, itl_ns: int) -> None:
        self.ttft_ns, self.itl_ns = ttft_ns, itl_ns
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.listener.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)  # those accepted inherit it
        self.listener.setblocking(False)
        self.epoll, self.timer, self.offset = select.epoll(), Timer(), Offset()
        self.connections: dict[int, _Connection] = {}
        self.answers: list[_Answer] = []
        # All streams have one pace: both queues are in the order of due times by themselves.
        self.first: deque[_Answer] = deque()
        self.later: deque[_Answer] = deque()
        self._buffer = bytearray(64 << 10)
        self._buffers, self._view = [self._buffer], memoryview(self._buffer)

    def run(self, until_closed: int) -> None:
        """Serve until a descriptor is at its end."""
        for fd in (self.listener.fileno(), self.timer.fd, until_closed):
            self.epoll.register(fd, select.EPOLLIN)
        refresh_ns = 0
        while True:
            wait_s = self._send_due()
            for fd, _ in self.epoll.poll(wait_s):
                connection = self.connections.get(fd)
                if connection is not None:
                    self._read(connection)
                elif fd == self.listener.fileno():
                    self._accept()
                elif fd == until_closed:
                    return
            now = time.monotonic_ns()
            if now > refresh_ns:
                self.offset.refresh()
                refresh_ns = now + _REFRESH_NS

    def _send_due(self) -> int:
        """Send what is due; how long to wait for sockets then: 0 not at all, -1 for the timer."""
        first, later, clock, itl_ns = self.first, self.later, time.monotonic_ns, self.itl_ns
        for _ in range(_AT_ONCE):
            queue = first if first and not (later and later[0].due_ns < first[0].due_ns) else later
            if not queue:
                self.timer.clear()
                return -1
            answer, now = queue[0], clock()
            if now < answer.due_ns - _EARLY_NS:
                self.timer.set(answer.due_ns)
                return -1
            queue.popleft()
            answer.left -= 1
            answer.sent.append(now)
            try:
                answer.send(_TOKEN if answer.left else answer.end)
            except OSError:  # the client has gone, or reads nothing for a whole socket buffer
                continue
            if answer.left:
                answer.due_ns += itl_ns
                later.append(answer)
        return 0

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:  # no more, or no descriptors left
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections[sock.fileno()] = _Connection(sock)
            self.epoll.register(sock.fileno(), select.EPOLLIN)

    def _read(self, connection: _Connection) -> None:
        try:
            size, ancillary, _, _ = connection.sock.recvmsg_into(self._buffers, 64)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size:
            del self.connections[connection.sock.fileno()]
            connection.sock.close()
            return
        received_ns = time.monotonic_ns()
        if ancillary:
            seconds, ns = _STAMP.unpack(ancillary[0][2])
            received_ns = seconds * 1_000_000_000 + ns + self.offset.ns
        connection.incoming += self._view[:size]
        self._respond(connection, received_ns)

    def _respond(self, connection: _Connection, received_ns: int) -> None:
        incoming = connection.incoming
        begins = incoming.find(b"\r\n\r\n") + 4
        if begins < 4:
            return
        head = bytes(incoming[:begins])
        found = _LENGTH.search(head)
        ends = begins + (int(found[1]) if found else 0)
        if len(incoming) < ends:
            return
        body = bytes(incoming[begins:ends])
        del incoming[:ends]
        if head.startswith(b"POST /v1/chat/completions "):
            due_ns = received_ns + self.ttft_ns
            answer = _Answer(connection.sock, body, received_ns, due_ns)
            self.answers.append(answer)
            self.first.append(answer)
            said = _BEGIN
        elif head.startswith(b"GET /v1/models "):
            said = _PLAIN % (b"200 OK", len(_MODELS), _MODELS)
        else:
            said = _PLAIN % (b"404 Not Found", 2, b"{}")
        try:
            connection.sock.send(said)
        except OSError:  # gone: the next read says so
            return


def main(ttft_ns: str, itl_ns: str) -> None:
    """Serve on loopback, the port first on standard output; the truth when standard input ends."""
    steady_process()
    raise_open_files()
    loop = _Loop(int(ttft_ns), int(itl_ns))
    out = sys.stdout.buffer
    out.write(b"%d\n" % loop.listener.getsockname()[1])
    out.flush()
    gc.freeze()
    gc.disable()
    loop.run(sys.stdin.fileno())
    for answer in loop.answers:
        out.write(_SERVED.pack(answer.received_ns, len(answer.body), len(answer.sent)))
        out.write(answer.body)
        out.write(answer.sent.tobytes())
    out.flush()


# --- its other end --------------------------------------------------------------------------------


class Served(NamedTuple):
    """One request as the server had it; times are CLOCK_MONOTONIC nanoseconds."""

    received_ns: int
    """The kernel's stamp."""
    body: bytes
    sent_ns: array[int]
    """Just before the send of each token."""


class NullServer:
    """A null server in a process of its own while the with statement lasts."""

    url: str
    """Where it answers."""

    def __init__(self, *, ttft_s: float, itl_s: float) -> None:
        self._pace = (str(round(ttft_s * 1e9)), str(round(itl_s * 1e9)))

    def __enter__(self) -> Self:
        """Start it; it answers from here on. Raises ServescopeError where it cannot."""
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "servescope.serve.null", *self._pace],
            stdin=subprocess.PIPE,  # it ends when this pipe does, however we end
            stdout=subprocess.PIPE,
            start_new_session=True,  # ctrl-C is for us
        )
        assert self.process.stdout is not None  # noqa: S101 (for the type checker)
        port = self.process.stdout.readline().decode().strip()
        if not port:
            self.__exit__()
            raise ServescopeError("the null server did not start; it has said why")
        self.url = f"http://127.0.0.1:{port}"
        return self

    def pin(self, core: int) -> None:
        """Keep it on one core."""
        os.sched_setaffinity(self.process.pid, {core})

    def end(self) -> list[Served]:
        """End it; returns what it did. Raises ServescopeError where it died before."""
        said, _ = self.process.communicate(timeout=_PATIENCE_S)
        if self.process.returncode:
            raise ServescopeError(f"the null server died (status {self.process.returncode})")
        at, served = 0, []
        while at < len(said):
            received_ns, length, tokens = _SERVED.unpack_from(said, at)
            at += _SERVED.size
            body, at = said[at : at + length], at + length
            sent_ns = array("q", said[at : at + 8 * tokens])
            at += 8 * tokens
            served.append(Served(received_ns, body, sent_ns))
        return served

    def __exit__(self, *_: object) -> None:
        """End it, whatever it did."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


if __name__ == "__main__":
    main(*sys.argv[1:])
