"""What the tests of planning ask about."""

import msgspec

from servescope import lengths
from servescope.engine.config import EngineConfig
from servescope.goodput import parse_slo
from servescope.plan.workload import Workload

LLAMA = EngineConfig(model="llama-2-13b", gpu="a800-sxm-80gb")
SMALL = EngineConfig(kv_tokens=20_000, max_num_seqs=32, prefix_cache=False)


def workload(inputs="256", outputs="64", seed=0):
    return Workload(lengths.parse("in", inputs), lengths.parse("out", outputs), seed)


def bounds(text):
    return parse_slo("--slo", text).bounds


def with_(config, **settings):
    return msgspec.structs.replace(config, **settings)
