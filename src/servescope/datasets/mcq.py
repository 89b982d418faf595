"""Short questions with four answers to choose from: much prefill, hardly any decode."""

from __future__ import annotations

import string
from pathlib import PurePath
from typing import TYPE_CHECKING

import msgspec

from servescope.datasets._read import (
    Entry,
    Passes,
    csv_header,
    csv_rows,
    decode_json,
    in_order,
    json_lines,
    read_text,
    refuse_input_tokens,
)
from servescope.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np

    from servescope.datasets import ItemSource, Setting
    from servescope.rulers import Ruler

INPUT_TOKENS = 100
OUTPUT_TOKENS = 8
"""Room for a letter and a few words, and enough tokens to tell what a token takes."""
LETTERS = tuple(string.ascii_uppercase)

_MMLU = ("question", "A", "B", "C", "D", "answer")
"""The columns of MMLU's own files, which have no header."""


class MCQ(msgspec.Struct, frozen=True, tag="mcq"):
    """Multiple-choice questions, answered with a letter: made, or of a file such as MMLU's."""

    path: str | None = None
    """JSON lines or CSV with `question` and `options`, `choices` or A, B, C, D; made without."""
    shuffle: bool = True
    """Ask those of a file in an order drawn from the seed, each once before any comes again."""
    unique: bool = True
    """Number prompts that come again, so that a prefix cache cannot flatter the figures."""

    def items(self, setting: Setting) -> ItemSource:
        """Prompts of 100 tokens and answers of 8 unless the user said otherwise.

        A made prompt has a length to rely on only where the ruler counts any text: with a
        tokenizer. Raises BadInput naming `--data` with the first line that cannot be read.
        """
        if self.path is None:
            return _made(setting)
        refuse_input_tokens(setting, "mcq:FILE")
        output_tokens = OUTPUT_TOKENS if setting.output_tokens is None else None
        return Passes(
            in_order(list(_questions(self.path)), setting.seed, shuffle=self.shuffle),
            lambda text: ((Entry(prompt=text, output_tokens=output_tokens, pinned=True),), ""),
            setting,
            unique=self.unique,
            nothing=BadInput("--data", self.path, "want a file with at least one question"),
        )


def asked(question: str, options: Iterable[str]) -> str:
    """The prompt for a question."""
    lines = (f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    return "\n".join([question, *lines, "Answer with the letter only."])


def _made(setting: Setting) -> ItemSource:
    # numpy is only needed from here on, and listing the plug-ins must stay quick
    from servescope.datasets import _facts  # noqa: PLC0415
    from servescope.datasets._made import counted, fitted, made  # noqa: PLC0415
    from servescope.lengths import Fixed  # noqa: PLC0415

    def compose(prose: str, fact: _facts.Fact, spot: float, places: Iterable[str]) -> str:
        text = _facts.strewn(prose, [fact], [spot])
        return asked(f"{text}\nWhere was {fact.person} on {fact.written_day}?", places)

    def write(ruler: Ruler, n: int, rng: np.random.Generator) -> str:
        (fact,), spot = _facts.draw(rng, 1), rng.random()
        others = [place for place in rng.permutation(_facts.PLACES).tolist() if place != fact.place]
        places = rng.permutation([fact.place, *others[:3]]).tolist()
        return fitted(ruler, n, rng, lambda prose: compose(prose, fact, spot, places))

    ruler = setting.ruler
    fact = _facts.longest(ruler)
    least = ruler.overhead + ruler.estimate(compose("", fact, 0, [fact.place] * 4))
    return made(
        setting,
        write,
        least,
        inputs=Fixed(max(least, INPUT_TOKENS)),
        outputs=Fixed(OUTPUT_TOKENS),
        promise=lambda prompt, _: counted(ruler, prompt),
    )


def _questions(path: str) -> Iterator[str]:
    text, suffix = read_text(path), PurePath(path).suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        found = json_lines(path, text)
    elif suffix == ".csv":
        header = csv_header(path, text)
        bare = len(header) == len(_MMLU) and header[-1] in LETTERS
        found = csv_rows(path, text, _MMLU if bare else None)
    else:
        raise BadInput("--data", path, "want .jsonl (one JSON object a line) or .csv")
    return (_question(record, place) for record, place in found)


def _question(record: dict[str, object], place: str) -> str:
    question = record.get("question")
    if not isinstance(question, str) or not question.strip():
        raise BadInput("--data", place, "want a question: a text that is not empty")
    options = _options(record, place)
    if not 2 <= len(options) <= len(LETTERS):
        want = "want options or choices, a list of 2 to 26 texts, or the columns A, B, C, D"
        raise BadInput("--data", place, want)
    return asked(question, options)


def _options(record: dict[str, object], place: str) -> list[str]:
    listed = record.get("options") or record.get("choices")
    if isinstance(listed, str):  # a cell of a CSV file
        listed = decode_json(listed, place)
    if not isinstance(listed, list):
        listed = [record[letter] for letter in LETTERS if record.get(letter) not in (None, "")]
    return [str(option) for option in listed if isinstance(option, str | int | float)]
