"""What a step of a real model on real GPUs costs: time (`roofline`) and memory (`capacity`)."""

from servescope.engine.costs.capacity import kv_tokens
from servescope.engine.costs.links import Links, Network
from servescope.engine.costs.roofline import Parts, Roofline

__all__ = ["Links", "Network", "Parts", "Roofline", "kv_tokens"]
