"""Deployments side by side as text: what `servescope plan --compare` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from servescope.plan.fleet import MOST_REPLICAS
from servescope.plan.size import BUSY
from servescope.report.plan import duration, heading, table
from servescope.units import three_digits

if TYPE_CHECKING:
    from servescope.plan.answers import Comparison, Side


def comparison(found: Comparison) -> str:
    """Deployments side by side."""
    slo = f", SLO {','.join(found.slo)}" if found.slo else ""
    lines = list(heading(f"{found.setting}, side by side{slo}"))
    head = ["", "tp", "GPUs", "KV tokens", f"x {found.context_tokens} tokens", "alone: TPOT"]
    busy = any(side.front_end > BUSY for side in found.sides)
    head += ["full: output tok/s", "", *["front end busy"] * busy]
    head += [f"{'within SLO' if slo else 'full'}: requests/s a GPU", "$/1M tokens"]
    head += [f"GPUs for {found.traffic}", "$/h"] if found.traffic else []
    rows = [tuple(head)]
    for side in found.sides:
        row: tuple[str, ...] = (side.label, side.why_not)
        if not side.why_not:
            row = _side(side, busy=busy) + (_traffic(side) if found.traffic else ())
        rows.append(row)
    lines += table(rows)
    if busy:
        lines.append(
            f"Where the front end is busy to more than {BUSY:.0%}, the API server's process limits "
            "it, and neither GPU nor size does."
        )
    return "\n".join(lines)


def _side(side: Side, *, busy: bool) -> tuple[str, ...]:
    dollars = side.per_million_tokens
    return (
        side.label,
        f"{side.tp}",
        f"{side.gpus}",
        "-" if side.kv_tokens is None else f"{side.kv_tokens:,}",
        "-" if side.sequences is None else f"{side.sequences}",
        duration(side.alone_tpot_s or 0.0),
        f"{side.output_tokens_per_s:,.0f} +-{side.error.p90 if side.error else 0:.0%}",
        f"x {side.ratio:.2f}" if side.ratio else "",
        *[f"{side.front_end:.0%}"] * busy,
        f"{three_digits(side.per_gpu or 0.0)}/s",
        f"{dollars:.3g}" if dollars else "-",
    )


def _traffic(side: Side) -> tuple[str, ...]:
    if side.fleet is None:
        return (f"> {MOST_REPLICAS * (side.gpus or 1)}" if side.per_gpu else "none are enough", "-")
    price = side.price_per_gpu_hour
    return (f"{side.fleet.gpus}", "-" if price is None else f"{price * side.fleet.gpus:.2f}")
