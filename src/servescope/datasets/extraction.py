"""Long documents, long structured answers: dated facts are to be found and put in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    import numpy as np

    from servescope.datasets import ItemSource, Setting
    from servescope.rulers import Ruler

INSTRUCTION = (
    "List every dated fact of this chronicle, sorted by date, as JSON lines: on each line one "
    'object with the keys "date" (YYYY-MM-DD), "person", "deed", "amount" and "place". '
    "Write nothing else."
)
INPUT_TOKENS = 4096
OUTPUT_TOKENS = 1024
TOKENS_A_FACT = 128
"""There is one fact in so many tokens: 4096 hold 32, which are about 1024 tokens of JSON."""
MOST_FACTS = 1000


class Extraction(msgspec.Struct, frozen=True, tag="extraction"):
    """Chronicles of made prose with dated facts in it, which are to be listed as JSON by date."""

    def items(self, setting: Setting) -> ItemSource:
        """Prompts of 4096 tokens and answers of 1024 unless the user said otherwise.

        A prompt has a length to rely on only where the ruler counts any text: with a tokenizer.
        """
        # numpy is only needed from here on, and listing the plug-ins must stay quick
        from servescope.datasets import _facts  # noqa: PLC0415
        from servescope.datasets._made import counted, fitted, made  # noqa: PLC0415
        from servescope.lengths import Fixed  # noqa: PLC0415

        longest = str(_facts.longest(setting.ruler))
        least = setting.ruler.overhead + setting.ruler.estimate(f"{longest}\n\n{INSTRUCTION}")
        fact_tokens = setting.ruler.estimate(f" {longest}")

        def write(ruler: Ruler, n: int, rng: np.random.Generator) -> str:
            more = min(n // TOKENS_A_FACT - 1, (n - least) // fact_tokens, MOST_FACTS - 1)
            facts = _facts.draw(rng, 1 + max(0, more))
            spots = rng.random(len(facts)).tolist()

            def compose(prose: str) -> str:
                return f"{_facts.strewn(prose, facts, spots)}\n\n{INSTRUCTION}"

            return fitted(ruler, n, rng, compose)

        return made(
            setting,
            write,
            least,
            inputs=Fixed(max(least, INPUT_TOKENS)),
            outputs=Fixed(OUTPUT_TOKENS),
            promise=lambda prompt, _: counted(setting.ruler, prompt),
        )
