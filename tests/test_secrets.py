"""Keys and passwords stay where they belong, and what a server says cannot drive a terminal."""

import base64
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from servescope import cli
from servescope.serve.answers import USAGE, Piece, answer, event, streamed, whole
from servescope.serve.scripted import head
from tests.support.command import QUICK, Command
from tests.support.served import MODELS, Served

pytestmark = pytest.mark.slow

KEY = "sk-correct-horse-battery-staple"
PASSWORD = "pa55word-of-mine"  # noqa: S105 (of nobody)
PAIR = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
BEFORE_THE_CUT = 457
"""So much is said before the key, which then stands across the place where a reason is cut."""


def echo(request, pad):
    """An error body that says what the server was sent."""
    sent = request.headers.get("authorization", "nothing")
    return json.dumps({"error": {"message": f"{'.' * pad} not allowed: {sent}"}}).encode()


class Echo(Served):
    """A server that echoes the key in the errors that it gives to one request in two."""

    def __init__(self, probe_echoes=False):
        probe = self._refuse if probe_echoes else None
        super().__init__(self._act, tokenize=True, **({"probe": probe} if probe else {}))
        self.command_lines = set()
        self.keys = set()

    async def _act(self, request, peer):
        self.keys.add(request.headers.get("authorization"))
        self.command_lines |= command_lines()
        await (self._refuse if request.number % 2 else streamed(answer()))(request, peer)

    async def _refuse(self, request, peer):
        pad = BEFORE_THE_CUT if request.number % 4 == 1 else 0
        await peer.whole(401, echo(request, pad))


def command_lines():
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.add(path.read_bytes())
        except OSError:
            continue  # it has ended
    return found


def everything_said(command, directory):
    kept = [path.read_bytes() for path in directory.rglob("*") if path.is_file()]
    return [command.out.encode(), command.err.encode(), *kept]


@pytest.mark.parametrize("place", ["SERVESCOPE_API_KEY", "OPENAI_API_KEY", "--api-key-file"])
@pytest.mark.parametrize("form", [("--format", "table"), ("--json",)], ids=["table", "json"])
def test_a_key_reaches_the_server_and_no_file_no_output_and_no_command_line(tmp_path, place, form):
    words, environment = [], {}
    if place.startswith("--"):
        (tmp_path / "key").write_text(f"{KEY}\n")
        words = [place, tmp_path / "key"]
    else:
        environment = {place: KEY}
    with Echo() as server:
        command = Command(
            *("run", server.url, *QUICK, "--requests", 8, *form, *words),
            cwd=tmp_path,
            **environment,
        )
        assert command.wait() == 0, command.err
        assert server.keys == {f"Bearer {KEY}"}
    assert "not allowed: Bearer ***" in command.out
    said = everything_said(command, tmp_path / "runs")
    assert len(said) > 4
    assert not any(KEY[:8].encode() in text for text in [*said, *server.command_lines])


def test_a_key_that_the_server_echoes_before_the_run_is_not_shown(tmp_path):
    with Echo(probe_echoes=True) as server:
        command = Command("run", server.url, *QUICK, cwd=tmp_path, SERVESCOPE_API_KEY=KEY)
        assert command.wait() == 3
    assert "not allowed: Bearer ***" in command.err
    assert KEY not in command.err + command.out


def test_a_key_that_the_server_says_wherever_it_can_is_nowhere_in_the_results(tmp_path):
    models = {"data": [{"id": f"m-{KEY}", "owned_by": "vllm"}]}
    pieces = [Piece(0.01, event({"content": " x"}), content=True)]
    pieces += [Piece(0.02, event({}, f"stop {KEY}")), Piece(0.02, event(None, usage=USAGE))]
    leaky = streamed(pieces, head("Transfer-Encoding: chunked", kind=f"text/event-stream; k={KEY}"))

    async def act(request, peer):
        await leaky(request, peer)

    with Served(act, models=json.dumps(models).encode(), tokenize=True) as server:
        command = Command("run", server.url, *QUICK, "--json", cwd=tmp_path, SERVESCOPE_API_KEY=KEY)
        command.wait()
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b'"completed"' in written or b'"finish_reason":"stop ***"' in written
    assert KEY.encode() not in written
    assert KEY not in command.out + command.err


def test_user_and_password_of_a_url_reach_the_server_and_are_shown_nowhere(tmp_path):
    with Echo() as server:
        target = server.url.replace("://", f"://me:{PASSWORD}@")
        command = Command("run", target, *QUICK, "--requests", 8, cwd=tmp_path)
        assert command.wait() == 0, command.err
        assert server.keys == {f"Basic {PAIR}"}
    said = everything_said(command, tmp_path / "runs")
    for secret in (PASSWORD, PAIR[:8]):
        assert not any(secret.encode() in text for text in said)


@pytest.mark.parametrize("url", ["http://me:{}@127.0.0.1:1", "http://me:{}@[bad", "me:{}@h:99999"])
def test_a_password_is_in_no_message_about_a_bad_target(url, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["servescope", "run", url.format(PASSWORD)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code in (2, 3)
    out, err = capfd.readouterr()
    assert PASSWORD not in out + err
    assert err.count("\n") == 1


@pytest.mark.parametrize("key", ["two\nlines-of-a-key", "clé-qui-n-est-pas-ascii"])
def test_a_key_that_cannot_be_sent_is_refused_without_being_shown(key, monkeypatch, capfd):
    monkeypatch.setenv("SERVESCOPE_API_KEY", key)
    monkeypatch.setattr(sys, "argv", ["servescope", "run", "http://127.0.0.1:1"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    out, err = capfd.readouterr()
    assert "SERVESCOPE_API_KEY" in err
    assert key[:4] not in out + err


# --- terminals ------------------------------------------------------------------------------------

EVIL = "\x1b[2Jgone\x07\r\x9b31m\u202e[bold]x"
SHOWN = ("\\x1b[2Jgone", "\\x07", "\\x9b31m", "\\u202e", "[bold]x")


def on_a_terminal(*words, cwd):
    """All that the command writes where both its outputs are a terminal."""
    main, side = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "servescope", *map(str, words)], cwd=cwd, stdout=side, stderr=side
    ) as process:
        os.close(side)
        pieces = []
        while piece := _read(main):
            pieces.append(piece)
    os.close(main)
    return b"".join(pieces).decode(), process.returncode


def _read(fd):
    try:
        return os.read(fd, 65536)
    except OSError:  # nobody has the other side open
        return b""


def test_escape_sequences_in_an_error_body_and_a_model_name_are_shown_escaped(tmp_path):
    model = json.dumps({"data": [{"id": f"m{EVIL}"}]}).encode()
    body = json.dumps({"error": {"message": EVIL}}).encode()
    with Served(whole(500, body), tokenize=True, models=model) as server:
        text, status = on_a_terminal("run", server.url, *QUICK, "--requests", 4, cwd=tmp_path)
    assert status == 3
    assert all(text.count(shown) >= 2 for shown in SHOWN)  # as model and as reason
    assert not any(raw in text for raw in ("\x1b[2J", "\x07", "\x9b", "\u202e"))


def test_escape_sequences_in_what_a_probe_is_told_do_not_reach_the_terminal(tmp_path):
    body = json.dumps({"error": {"message": EVIL}}).encode()
    refusing = whole(500, body)
    with Served(refusing, probe=refusing, models=MODELS) as server:
        text, status = on_a_terminal("run", server.url, *QUICK, cwd=tmp_path)
    assert status == 3
    assert "gone" in text
    assert not any(raw in text for raw in ("\x1b", "\x07", "\x9b", "\u202e"))


def test_a_key_in_the_query_of_a_url_is_not_repeated(tmp_path):
    command = Command("run", f"http://127.0.0.1:1/?api_key={KEY}", cwd=tmp_path)
    assert command.wait() == 2
    assert KEY not in command.out + command.err
