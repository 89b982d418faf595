"""Prompts that begin alike in groups, as those of assistants with long instructions do."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    import numpy as np

    from servescope.datasets import ItemSource, Setting
    from servescope.rulers import Ruler

MOST = 1_000_000
_PREFIXES_KEPT = 256


class SharedPrefix(msgspec.Struct, frozen=True, tag="shared_prefix"):
    """Each prompt is the prefix of its group and a suffix of its own: what a prefix cache is for.

    `--input-tokens` is the length of the suffix; a prompt has `prefix` tokens more.
    """

    groups: int = 8
    """How many prefixes there are."""
    prefix: int = 1024
    """Tokens of each."""
    zipf: float = 0.0
    """Group number k is drawn as often as 1 / k**zipf says; 0 draws all equally often."""

    def __post_init__(self) -> None:
        for name, value in (("groups", self.groups), ("prefix", self.prefix)):
            if not 1 <= value <= MOST:
                raise ValueError(f"{name}={value}: want 1 to {MOST}")
        if not (math.isfinite(self.zipf) and self.zipf >= 0):
            raise ValueError(f"zipf={self.zipf}: want an exponent from 0 (uniform) up, such as 1.1")

    def items(self, setting: Setting) -> ItemSource:
        """Suffixes of 128 tokens and answers of 64 unless the user said otherwise."""
        # numpy is only needed from here on, and listing the plug-ins must stay quick
        import numpy as np  # noqa: PLC0415

        from servescope.datasets._made import made, shared_prose  # noqa: PLC0415
        from servescope.text import prose_of_exactly  # noqa: PLC0415

        shares = np.cumsum(np.arange(1, self.groups + 1, dtype=np.float64) ** -self.zipf)

        @lru_cache(maxsize=_PREFIXES_KEPT)
        def prefix(group: int) -> str:
            return shared_prose(setting, "prefix", self.prefix, group)

        def write(ruler: Ruler, n: int, rng: np.random.Generator) -> str:
            group = int(np.searchsorted(shares, rng.random() * shares[-1], side="right"))
            return f"{prefix(group)} {prose_of_exactly(ruler, n, rng)}"

        return made(
            setting, write, setting.ruler.least, promise=lambda _, suffix: self.prefix + suffix
        )
