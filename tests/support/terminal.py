"""A command in a pseudo-terminal, and what a person would see there."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

from tests.support.command import PATIENCE_S, until

_CODES = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


class Screen:
    """What codes that move the cursor up, and erase, make of a screen with room above it.

    Fails on any other code: what is not known here may do harm in a terminal, too.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.lines, self._row, self._column = [""], 0, 0

    def write(self, text: str) -> None:
        """Obey."""
        at = 0
        while at < len(text):
            found = _CODES.match(text, at)
            assert found, f"cannot be understood: {text[at : at + 40]!r}"
            at = found.end()
            private, number, code, end, plain = found.groups()
            if plain:
                self._put(plain)
            elif end == "\r":
                self._column = 0
            elif end:
                self._row, self._column = self._row + 1, 0
                if self._row == len(self.lines):
                    self.lines.append("")
            elif code == "A":
                self._row -= int(number)
                assert self._row >= 0, "above what was written"
            elif code in "KJ":
                assert not number
                self.lines[self._row] = self.lines[self._row][: self._column]
                if code == "J":
                    del self.lines[self._row + 1 :]
            else:
                assert code == "m" or (private and number == "2026"), found[0]

    def _put(self, text: str) -> None:
        room = self.columns - self._column
        line = self.lines[self._row].ljust(self._column)
        self.lines[self._row] = (
            line[: self._column] + text[:room] + line[self._column + len(text) :]
        )
        self._column += min(room, len(text))
        if len(text) > room:
            self.write("\n")
            self._put(text[room:])


class Terminal:
    """`servescope` with these words; its standard error is a terminal of this size."""

    def __init__(
        self, *words: object, cwd: Path, columns: int = 100, lines: int = 30, **environment: str
    ) -> None:
        self._end, theirs = pty.openpty()
        self.columns = columns
        self._set_size(columns, lines)
        known = {name: text for name, text in os.environ.items() if name != "NO_COLOR"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "servescope", *map(str, words)],
            cwd=cwd,
            env=known | {"TERM": "xterm-256color", "PYTHONUTF8": "1"} | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
        )
        os.close(theirs)
        self.written = ""
        """All that came out of it, codes and all."""
        self.out = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        data = b""
        while True:
            try:
                data += os.read(self._end, 1 << 16)
            except OSError:  # the other end is closed
                return
            self.written = data.decode(errors="ignore").replace("\r\n", "\n")

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._end, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int) -> int:
        """Become another size; returns how much had been written before."""
        before = len(self.written)
        self._set_size(columns, lines)
        return before

    @property
    def frames(self) -> list[str]:
        """What was drawn at once, each without its codes."""
        drawn = [one.partition("\x1b[?2026l")[0] for one in self.written.split("\x1b[?2026h")[1:]]
        return [re.sub(r"\r|\x1b\[[\d;]*[A-Za-z]", "", one) for one in drawn]

    def shows(self, words: str) -> str:
        """Wait for a frame with these words; returns it."""
        try:
            return until(lambda: next((f for f in self.frames if words in f), None), words)
        except AssertionError:
            self.process.kill()
            raise

    def wait(self) -> int:
        """Its exit status, with all that it wrote."""
        try:
            self.out, _ = self.process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._reader.join(PATIENCE_S)
        os.close(self._end)
        return self.process.returncode

    def left(self) -> list[str]:
        """The lines that stand there in the end, of a terminal that kept its size."""
        screen = Screen(self.columns)
        screen.write(self.written)
        return [line.rstrip() for line in screen.lines if line.strip()]
