"""Sentences of an exact length: what is asked when the user does not say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from servescope.datasets import ItemSource, Setting


class Emulated(msgspec.Struct, frozen=True, tag="emulated"):
    """English-looking sentences that make prompts of exactly the length wanted, no two alike."""

    def items(self, setting: Setting) -> ItemSource:
        """Prompts of 128 tokens and answers of 64 unless the user said otherwise."""
        # numpy is only needed from here on, and listing the plug-ins must stay quick
        from servescope.datasets._made import made  # noqa: PLC0415
        from servescope.text import prose_of_exactly  # noqa: PLC0415

        return made(setting, prose_of_exactly, setting.ruler.least)
