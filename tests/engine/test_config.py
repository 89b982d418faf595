import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servescope.engine.config import EngineConfig, names, parse
from servescope.engine.deployment import deploy
from servescope.errors import BadInput

TIMES = st.sampled_from(["1us", "0.5ms", "8ms", 0.25, "2s"])


@pytest.mark.parametrize("text", ["sim:", "vllm", "sim:vllm", "sim:vllm?", " sim:vllm "])
def test_an_engine_that_is_only_named_has_the_defaults(text):
    assert parse("TARGET", text) == EngineConfig()


def test_settings_stand_after_a_question_mark():
    config = parse(
        "TARGET", "sim:sglang?step=5ms&kv_tokens=8192&prefix_cache=false&model=a%2Fb%26c"
    )
    assert config == EngineConfig(
        engine="sglang", step="5ms", kv_tokens=8192, prefix_cache=False, model="a/b&c"
    )
    assert config.cost_s("step") == 0.005
    assert deploy(config).kv_tokens == deploy(config).longest == 8192


@pytest.mark.parametrize("text", ["sim:vLLM-0.1", "VLLM-0.1?", "sim:Vllm-0.1?&step=8ms"])
def test_engines_are_named_in_any_case(text):
    assert parse("TARGET", text).engine == EngineConfig(engine="VLLM-0.1").engine == "vllm-0.1"


@given(
    st.builds(
        EngineConfig,
        engine=st.sampled_from(names()),
        model=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
        step=TIMES,
        turnaround=TIMES,
        max_num_seqs=st.integers(1, 100),
        max_waiting=st.none() | st.integers(1, 9),
        prefix_cache=st.booleans(),
    )
)
def test_an_engine_is_written_as_it_is_read(config):
    again = parse("TARGET", str(config))
    assert again.cost_s("step") == config.cost_s("step")
    assert again.turnaround_s == config.turnaround_s
    texts = {"step": "1s", "turnaround": "1s"}
    plain = msgspec.structs.replace(config, **texts)
    assert msgspec.structs.replace(again, **texts) == plain
    assert str(again) == str(config)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("sim:vlm?tp=2", "TARGET: 'vlm': want one of "),
        ("sim:vlm", "did you mean vllm?"),
        ("sim:vllm?stp=5ms", "did you mean step?"),
        ("sim:vllm?engine=tgi", "want one of model, gpu"),
        ("sim:vllm?step", "want a value: step=..."),
        ("sim:vllm?step=5ms&step=6ms", "want step only once"),
        ("sim:vllm?step=soon", "want step to be a time such as 8ms"),
        ("sim:vllm?step=8", "want step to be a time such as 8ms"),
        ("sim:vllm?step=0", "'step=0': want step to be a time such as 8ms or 85us, above 0"),
        ("sim:vllm?turnaround=-1s", "8ms or 85us, above 0, not -1s"),
        ("sim:vllm?context=-1s", "8ms or 85us, or 0, not -1s"),
        ("sim:vllm?context=nan", "want context to be a time"),
        ("sim:vllm?kv_tokens=many", "want kv_tokens to be a whole number"),
        ("sim:vllm?gpu=a40&step=5ms", "TARGET: 'step=5ms': want no step with a gpu"),
        (
            "sim:vllm?gpu=a40&memory_utilization=1.5&tp=2",
            "TARGET: 'memory_utilization=1.5': want memory_utilization in (0, 1], not 1.5",
        ),
        ("sim:vllm?memory_utilization=most", "want memory_utilization to be a number"),
        ("sim:vllm?block_tokens=0", "want block_tokens to be 1 or more"),
        ("sim:vllm?max_waiting=0", "want max_waiting to be 1 or more"),
        ("sim:vllm?prefix_cache=perhaps", "want prefix_cache to be true or false"),
    ],
)
def test_a_wrong_setting_is_named_with_what_would_be_right(text, want):
    with pytest.raises(BadInput) as refused:
        parse("TARGET", text)
    assert refused.value.field == "TARGET"
    assert want in str(refused.value)
