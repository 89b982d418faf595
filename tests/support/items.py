"""A data set's items as the tests ask for them."""

from dataclasses import replace

from servescope import datasets
from servescope.datasets import ItemSource, Setting
from servescope.lengths import parse
from servescope.rulers import Ruler, ruler_by_words

RULER = replace(ruler_by_words(), takes_ids=True)


def source(
    text: str,
    *,
    seed: int = 0,
    ruler: Ruler = RULER,
    inputs: str | None = None,
    outputs: str | None = None,
) -> ItemSource:
    """The items of `--data text`, of lengths as `--input-tokens` and `--output-tokens` say."""
    setting = Setting(
        seed=seed,
        ruler=ruler,
        input_tokens=parse("--input-tokens", inputs) if inputs else None,
        output_tokens=parse("--output-tokens", outputs) if outputs else None,
    )
    return datasets.parse("--data", text).items(setting)
