"""Prompts from a file of the user's own: text, JSON lines or CSV."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

import msgspec

from servescope.datasets import Message
from servescope.datasets._read import (
    Entry,
    Passes,
    csv_header,
    csv_rows,
    in_order,
    json_lines,
    read_text,
)
from servescope.datasets._read import refuse_input_tokens as refuse
from servescope.errors import BadInput
from servescope.plugins import one_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from servescope.datasets import ItemSource, Setting

PROMPT_KEYS = ("prompt", "text", "question", "instruction", "input")


class File(msgspec.Struct, frozen=True, tag="file"):
    """Prompts from a file: one a line (.txt), JSON lines (.jsonl), or a column (.csv)."""

    path: str
    column: str | None = None
    """Column or key of the prompt; by default the first of prompt, text, question, instruction,
    input that is there."""
    shuffle: bool = True
    """Ask in an order drawn from the seed, each prompt once before any comes again."""
    unique: bool = True
    """Number prompts that come again, so that a prefix cache cannot flatter the figures."""

    def items(self, setting: Setting) -> ItemSource:
        """Answers as long as the file says, else as the user says, else at most 256 tokens.

        Raises BadInput naming `--data` with the first line that cannot be read.
        """
        refuse(setting, "file")
        entries = in_order(list(self._entries()), setting.seed, shuffle=self.shuffle)
        nothing = BadInput("--data", self.path, "want a file with at least one prompt")
        return Passes(
            entries, lambda entry: ((entry,), ""), setting, unique=self.unique, nothing=nothing
        )

    def _entries(self) -> Iterator[Entry]:
        text, suffix = read_text(self.path), PurePath(self.path).suffix.lower()
        if suffix in (".jsonl", ".ndjson"):
            return (self._entry(*found) for found in json_lines(self.path, text))
        if suffix == ".csv":
            self._key(csv_header(self.path, text), self.path)
            return (self._entry(*found) for found in csv_rows(self.path, text))
        if suffix == ".json":
            want = "want .jsonl (one JSON object a line), .csv or .txt, or --data sharegpt:FILE"
            raise BadInput("--data", self.path, want)
        return (Entry(prompt=line) for line in text.split("\n") if line.strip())

    def _entry(self, record: dict[str, object], place: str) -> Entry:
        if "messages" in record and self.column is None:
            prompt: str | tuple[Message, ...] = _messages(record["messages"], place)
        else:
            prompt = _text(record, self._key(record, place), place)
        exact, most = (_length(record, key, place) for key in ("output_tokens", "max_tokens"))
        return Entry(prompt=prompt, output_tokens=exact or most, pinned=exact is not None)

    def _key(self, keys: Iterable[str], place: str) -> str:
        known = list(keys)
        for key in [self.column] if self.column else PROMPT_KEYS:
            if key in known:
                return key
        if self.column:
            raise BadInput("--data", place, f"no {self.column}: want {one_of(self.column, known)}")
        want = f"want one of {', '.join(PROMPT_KEYS)}; there is {', '.join(known) or 'nothing'}"
        raise BadInput("--data", place, want)


def _text(record: dict[str, object], key: str, place: str) -> str:
    text = record[key]
    if not isinstance(text, str) or not text.strip():
        raise BadInput("--data", place, f"want {key} to be a text that is not empty")
    return text


def _messages(value: object, place: str) -> tuple[Message, ...]:
    try:
        messages = msgspec.convert(value, tuple[Message, ...])
    except msgspec.ValidationError as error:
        raise BadInput("--data", place, f"want messages of role and content: {error}") from None
    if not messages:
        raise BadInput("--data", place, "want at least one message")
    return messages


def _length(record: dict[str, object], key: str, place: str) -> int | None:
    value = record.get(key)
    if isinstance(value, str):  # a cell of a CSV file
        value = int(value) if value.strip().isdecimal() else value.strip() or None
    if value is None or (isinstance(value, int) and value >= 1 and value is not True):
        return value
    raise BadInput("--data", place, f"want {key} to be a whole number from 1 up, not {value!r}")
