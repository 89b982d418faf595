"""What a simulated server answers: the pages of the engine that it imitates, and generations.

A POST goes to the first protocol of its path that can read it, that of the imitated engine before
the others: several engines share a path, and one port speaks them all.
"""

from __future__ import annotations

import hmac
import re
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from itertools import count

import msgspec

from servescope.engine import Step, Work
from servescope.engine.config import BUSY, EngineConfig
from servescope.engine.deployment import Deployment, deploy
from servescope.engine.tokenizer import prompt_tokens, voice, voice_ids
from servescope.errors import BadInput
from servescope.protocols import Ask, ProtocolFault, Renderer, Reply, WireProtocol, known
from servescope.serve import pages
from servescope.serve.exposition import State, bounds
from servescope.serve.http import JSON, SSE, Connection, Request
from servescope.serve.metrics import Tally
from servescope.serve.realtime import RealTime, RealTimeFrontEnd

_PORT = re.compile(r":[0-9]*$")
_TEXT = b"text/plain; version=0.0.4; charset=utf-8"
_TOO_LONG = {
    "sglang": "The input ({prompt} tokens) and the output ({output} tokens) are longer than the "
    "model's context length ({longest} tokens).",
    "tgi": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= {longest}. "
    "Given: {prompt} `inputs` tokens and {output} `max_new_tokens`",
    "lightllm": "the input prompt token len {prompt} + max_new_tokens {output} > {longest}",
    "llamacpp": "request ({total} tokens) exceeds the available context size ({longest} tokens), "
    "try increasing it",
}
"""Whose words are not those of the engine itself, which speaks like vLLM."""


class App:
    """One server: an engine in real time and everything that is asked of it."""

    def __init__(self, config: EngineConfig, *, hosts: frozenset[str], token: str | None) -> None:
        """`hosts`: the names it may be asked by, none for any; `token`: the key it wants."""
        if config.replicas > 1 or config.prefill_replicas:
            want = "want one replica: start several servers, and give a run all their URLs"
            raise BadInput("SIM", config, want)
        self.config = deployment = deploy(config)
        self.tally = Tally(bounds(deployment))
        self._front = RealTimeFrontEnd(deployment.front_end)
        self.realtime = RealTime(deployment.engine(), self._front, self._begin, self._step)
        self._state = State(deployment, self.realtime, self.tally)
        self._hosts, self._token = hosts, token
        self._pages = pages.routes(config.wire)
        self._wires = _wires(config.wire)
        self._paths = {path for _, path in self._pages} | set(self._wires)
        self.numbers = count()
        """Of generations: what the model says depends on it."""
        voice_ids(0, 1)  # made once, and not while the first client waits
        self._unscheduled: deque[_Generation] = deque()
        """Those in the engine's queue, first come, first served."""

    @property
    def answers_at(self) -> list[str]:
        """The paths of generations."""
        return list(self._wires)

    def respond(self, request: Request, connection: Connection) -> None:
        """Answer a request, now or as the engine goes on."""
        if (refusal := request.refused or self._forbidden(request)) is not None:
            self._fail(connection, *refusal)
        elif page := self._pages.get((_GETS.get(request.method, request.method), request.path)):
            self._show(page, request, connection)
        elif request.method == "POST" and request.path in self._wires:
            self._generate(request, connection)
        elif request.path in self._paths:
            self._fail(connection, 405, "Method Not Allowed")
        else:
            missing = "File Not Found" if self.config.wire == "llamacpp" else "Not Found"
            self._fail(connection, 404, missing)

    def _forbidden(self, request: Request) -> tuple[int, str] | None:
        """Why a request is none of ours: a name that leads a browser here, or no token."""
        if self._hosts:
            host = request.headers.get(b"host", b"").decode("latin-1").lower()
            if _PORT.sub("", host) not in self._hosts:
                return 421, f"this server is not {host}"
        if self._token is not None:
            said = request.headers.get(b"authorization", b"")
            if not hmac.compare_digest(said, b"Bearer " + self._token.encode()):
                return 401, "want the server's token: Authorization: Bearer TOKEN"
        return None

    def _fail(self, connection: Connection, status: int, message: str) -> None:
        more = [b"www-authenticate: Bearer"] if status == 401 else []
        connection.whole(status, pages.error(self.config.wire, status, message), JSON, *more)

    def _show(self, page: pages.Page, request: Request, connection: Connection) -> None:
        try:
            found = page(self._state, request.body)
        except ProtocolFault as fault:
            self._fail(connection, 400, str(fault))
            return
        if isinstance(found, bytes):
            connection.whole(200, found, _TEXT)
        else:
            connection.whole(200, msgspec.json.encode(found))

    # --- generations ------------------------------------------------------------------------------

    def _generate(self, request: Request, connection: Connection) -> None:
        wires = self._wires[request.path]
        refusals: list[ProtocolFault] = []
        for wire in wires:
            try:
                ask = wire.parse(request.body, request.path)
            except ProtocolFault as fault:
                refusals.append(fault)
                continue
            self._submit(_Generation(self, connection, wire, ask))
            return
        self._refuse(wires[0], connection, wires[0].refused_with, str(refusals[0]))

    def _submit(self, generation: _Generation) -> None:
        wire, ask, connection = generation.wire, generation.ask, generation.connection
        config = self.config
        if config.wire == "vllm" and ask.model not in ("", config.model):
            message = f"The model `{ask.model}` does not exist. Valid aliases: {config.model}."
            self._refuse(wire, connection, 404, message)
            return
        connection.gone = generation.leave
        self._front.take_in(generation.arrived_ns, partial(self._taken_in, generation))

    def _taken_in(self, generation: _Generation, now_ns: int) -> None:
        """The front end has done with a request: it comes to the engine."""
        if generation.left:
            return
        wire, connection, work = generation.wire, generation.connection, generation.work
        try:
            taken = self.realtime.submit(work, now_ns)
        except ValueError as error:
            message = _too_long(work, self.config) or str(error)
            self._refuse(wire, connection, wire.refused_with, message)
            return
        if not taken:
            self._turn_away(generation)
            return
        generation.queued_ns = now_ns
        self._unscheduled.append(generation)
        if generation.ask.stream:
            connection.begin(_kind(wire))

    def _refuse(
        self, wire: WireProtocol, connection: Connection, status: int, message: str
    ) -> None:
        self.tally.refused += 1
        connection.whole(status, wire.render_error(status, message))

    def _turn_away(self, generation: _Generation) -> None:
        self.tally.turned_away += 1
        wire, connection = generation.wire, generation.connection
        message = BUSY.get(self.config.wire)
        if message is not None and generation.ask.stream:
            connection.begin(_kind(wire))
            connection.end(generation.new_renderer().error(wire.busy_with, message))
        else:
            words = message or "the queue is full"
            connection.whole(wire.busy_with, wire.render_error(wire.busy_with, words))

    def _begin(self, begin_ns: int) -> None:
        """A step begins: some have waited until now."""
        waiting = self._unscheduled
        while waiting and (waiting[0].work.scheduled or waiting[0].left):
            waiting.popleft().scheduled_ns = begin_ns

    def _step(self, step: Step, end_ns: int) -> None:
        """A step is over: everybody in it gets a token, when the front end lets it go."""
        self.tally.step(step)
        others = []
        for work in step.made:
            generation: _Generation = work.owner
            if generation.first_ns or generation.left:
                others.append(generation)
            else:
                generation.first_ns = end_ns
                self._front.open(end_ns, partial(generation.token, end_ns))
        self._front.out(end_ns, partial(_tokens, others, end_ns))
        self._front.charge(end_ns, sum(work.output_tokens for work in step.finished))


def _tokens(generations: Sequence[_Generation], made_ns: int, out_ns: int) -> None:
    for generation in generations:
        generation.token(made_ns, out_ns)


_GETS = {"HEAD": "GET"}
"""Methods that are answered like another; who asks for the head gets no body."""


class _Generation:
    """One answer on its way."""

    __slots__ = (
        "app",
        "arrived_ns",
        "ask",
        "connection",
        "first_ns",
        "last_ns",
        "left",
        "made",
        "number",
        "opened_ns",
        "queued_ns",
        "renderer",
        "scheduled_ns",
        "texts",
        "voice",
        "wire",
        "work",
    )

    def __init__(self, app: App, connection: Connection, wire: WireProtocol, ask: Ask) -> None:
        self.app, self.connection, self.wire, self.ask = app, connection, wire, ask
        self.arrived_ns = time.monotonic_ns()
        self.number = number = next(app.numbers)
        self.work = Work(
            prompt_tokens(ask.prompt),
            ask.output_tokens,
            owner=self,
            answer=voice_ids(number, min(ask.output_tokens, app.config.longest)),
        )
        self.voice = voice(number)
        self.texts: list[str] = []
        self.renderer: Renderer | None = None
        self.left = False
        self.made = 0
        """Tokens that were delivered: the engine is a step ahead."""
        self.queued_ns = self.scheduled_ns = self.first_ns = self.last_ns = 0
        """When it came to the engine, was scheduled, and had its first and last token made."""
        self.opened_ns = 0
        """When the first token went out."""

    def reply(self) -> Reply:
        """What a protocol needs to know, now that the prompt has been seen."""
        return Reply(
            id=f"sim-{self.number:08x}",
            model=self.ask.model or self.app.config.model,
            created=int(time.time()),
            input_tokens=len(self.work.prompt),
            cached_tokens=self.work.cached_tokens,
        )

    def new_renderer(self) -> Renderer:
        """For a stream."""
        return self.wire.renderer(self.ask, self.reply())

    def leave(self) -> None:
        """The client has gone: its blocks are free again."""
        self.left = True
        self.app.tally.aborted += 1
        self.app.realtime.engine.cancel(self.work)

    def token(self, made_ns: int, out_ns: int) -> None:
        """One more token, which was made then, goes out."""
        if self.left:
            return
        self.made = made = self.made + 1
        if made == 1:
            self._first(out_ns)
        else:
            self.app.tally.itl.add((made_ns - self.last_ns) / 1e9)
        self.last_ns = made_ns
        text = next(self.voice)
        if made == self.work.output_tokens:
            self._finish(text, out_ns)
        elif self.renderer is not None:
            self.connection.write(self.renderer.chunk(text, made, None))
        else:
            self.texts.append(text)

    def _first(self, out_ns: int) -> None:
        tally, work = self.app.tally, self.work
        self.opened_ns = out_ns
        self.scheduled_ns = max(self.scheduled_ns, self.queued_ns)
        tally.prompt_tokens += len(work.prompt)
        tally.cached_tokens += work.cached_tokens
        tally.queue.add((self.scheduled_ns - self.queued_ns) / 1e9)
        if self.ask.stream:
            self.renderer = self.new_renderer()
            if opening := self.renderer.opening():
                self.connection.write(opening)

    def _finish(self, text: str, out_ns: int) -> None:
        tokens, connection = self.work.output_tokens, self.connection
        self._count(out_ns)
        if self.renderer is not None:
            last = self.renderer.chunk(text, tokens, "length")
            connection.end(last, self.renderer.closing(tokens))
        else:
            whole = "".join([*self.texts, text])
            body = self.wire.render_whole(self.ask, self.reply(), whole, tokens, "length")
            connection.whole(200, body)

    def _count(self, out_ns: int) -> None:
        tally, work = self.app.tally, self.work
        requests = tally.streamed if self.ask.stream else tally.whole
        requests.ttft.add((self.opened_ns - self.arrived_ns) / 1e9)
        requests.e2e.add((out_ns - self.arrived_ns) / 1e9)
        if work.output_tokens > 1:
            decode_ns = self.last_ns - self.first_ns
            requests.tpot.add(decode_ns / (work.output_tokens - 1) / 1e9)
        requests.prompt.add(len(work.prompt))
        requests.cached.add(work.cached_tokens)
        requests.output.add(work.output_tokens)
        tally.prefill.add((self.first_ns - self.scheduled_ns) / 1e9)
        tally.decode.add((self.last_ns - self.first_ns) / 1e9)
        tally.preemptions.add(work.preemptions)


def _too_long(work: Work, config: Deployment) -> str | None:
    """The imitated engine's words for what exceeds its context, where they are not the engine's."""
    prompt, output = len(work.prompt), work.output_tokens
    if prompt + output <= config.longest or config.wire not in _TOO_LONG:
        return None
    return _TOO_LONG[config.wire].format(
        prompt=prompt, output=output, total=prompt + output, longest=config.longest
    )


def _kind(wire: WireProtocol) -> bytes:
    return JSON if wire.streams_json else SSE


def _wires(engine: str) -> dict[str, list[WireProtocol]]:
    """Who speaks at each path, the imitated engine first."""
    found: dict[str, list[WireProtocol]] = {}
    for name, wire in known().items():
        for path in {wire.path(stream=True): None, wire.path(stream=False): None}:
            there = found.setdefault(path, [])
            there.insert(0 if name == engine else len(there), wire)
    return found
