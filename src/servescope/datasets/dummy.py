"""Random words or token ids of an exact length."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from servescope.errors import BadInput

if TYPE_CHECKING:
    from servescope.datasets import ItemSource, Setting


class Dummy(msgspec.Struct, frozen=True, tag="dummy"):
    """Random words that make prompts of exactly the length wanted, no two alike."""

    ids: bool = False
    """Send token ids instead of words; the protocol must take them."""

    def items(self, setting: Setting) -> ItemSource:
        """Prompts of 128 tokens and answers of 64 unless the user said otherwise."""
        # numpy is only needed from here on, and listing the plug-ins must stay quick
        from servescope.datasets._made import ids_of_exactly, made  # noqa: PLC0415
        from servescope.text import words_of_exactly  # noqa: PLC0415

        ruler = setting.ruler
        if not self.ids:
            return made(setting, words_of_exactly, ruler.least)
        if not ruler.takes_ids:
            want = "want ids=false: this protocol takes no token ids as a prompt"
            raise BadInput("--data", "dummy:ids=true", want)
        return made(setting, ids_of_exactly, ruler.ids_overhead + 1)
