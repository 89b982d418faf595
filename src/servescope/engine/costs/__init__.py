"""What a step of a real model on real GPUs costs: time (`roofline`) and memory (`capacity`)."""

from functools import lru_cache

from servescope.engine.costs.capacity import kv_tokens
from servescope.engine.costs.links import Links, Network
from servescope.engine.costs.roofline import Parts, Roofline

roofline_of = lru_cache(maxsize=64)(Roofline)
"""One for all that are alike: what it has worked out for a number of tokens, it knows for all."""

__all__ = ["Links", "Network", "Parts", "Roofline", "kv_tokens", "roofline_of"]
