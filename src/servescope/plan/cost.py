"""What a million tokens cost."""

from __future__ import annotations

import msgspec

from servescope.plan.error_bars import ErrorBar


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """US dollars, or whatever the price is in. GPUs are paid by the hour, used or not."""

    price_per_gpu_hour: float
    gpus: int
    per_hour: float
    per_million_tokens: float | None
    """Of prompts and answers together."""
    per_million_output_tokens: float | None
    """If all of it is put down to the answers."""
    at: str
    """The load that it is for."""
    error: ErrorBar | None = None


def cost(
    price_per_gpu_hour: float,
    gpus: int,
    input_tokens_per_s: float,
    output_tokens_per_s: float,
    *,
    at: str,
    error: ErrorBar | None = None,
) -> Cost:
    """The price of so many GPUs, over what they serve."""
    per_hour = price_per_gpu_hour * gpus

    def million(tokens_per_s: float) -> float | None:
        return per_hour / (tokens_per_s * 3600 / 1e6) if tokens_per_s else None

    return Cost(
        price_per_gpu_hour=price_per_gpu_hour,
        gpus=gpus,
        per_hour=per_hour,
        per_million_tokens=million(input_tokens_per_s + output_tokens_per_s),
        per_million_output_tokens=million(output_tokens_per_s),
        at=at,
        error=error,
    )
