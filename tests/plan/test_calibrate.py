"""Constants are found again, and what was not measured is predicted."""

import msgspec
import numpy as np
import pytest

import servescope
from servescope.engine import FS, calibration
from servescope.engine.config import EngineConfig, parse
from servescope.engine.cost import LinearCost
from servescope.engine.deployment import deploy, hardware, settle
from servescope.engine.lines import at
from servescope.errors import BadInput
from servescope.plan.calibrate import calibrate, predict
from servescope.plan.error_bars import error_bar
from servescope.plan.least import nearest
from servescope.plan.observed import stages
from servescope.report.plan import calibration as report

TRUE = {"step": 6e-3, "prefill": 150e-6, "sequence": 200e-6, "context": 300e-9, "turnaround": 2e-3}
SIM = "sim:vllm?max_num_seqs=8&" + "&".join(f"{k}={v:.9f}s" for k, v in TRUE.items())
ON_GPU = "sim:vllm?model=llama-2-7b&gpu=a100-sxm-80gb&turnaround=3ms"


def measured(target, load, folder, **options):
    options = {"input_tokens": "uniform:16-512", "output_tokens": "uniform:8-128"} | options
    name = load.replace(":", "-")
    run = servescope.run(target, load=[load], out=str(folder), name=name, requests=200, **options)
    return stages([run])


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """Stages by load."""
    folder = tmp_path_factory.mktemp("runs")
    loads = ("users:1", "users:8", "users:4", "poisson:3")
    return {load: measured(SIM, load, folder, seed=k) for k, load in enumerate(loads)}


@pytest.fixture(scope="module")
def fitted(simulated, tmp_path_factory):
    found = calibrate(EngineConfig(max_num_seqs=8), simulated["users:1"] + simulated["users:8"])
    path = tmp_path_factory.mktemp("fitted") / "server.toml"
    path.write_text(calibration.text(found))
    return found, path


def test_the_constants_of_a_simulated_server_are_found_again(fitted):
    found, _ = fitted
    for name in ("step", "prefill", "sequence", "turnaround"):
        assert found.settings[name] == pytest.approx(TRUE[name], rel=0.05), name
    assert found.settings["max_num_seqs"] == 8
    assert "batch_scaling" not in found.settings  # as many as they have


@pytest.mark.parametrize("load", ["users:4", "poisson:3"])
def test_a_load_that_was_not_measured_is_predicted_within_2_percent(simulated, fitted, load):
    _, path = fitted
    rows = predict(EngineConfig(calibration=str(path)), simulated[load])
    errors = np.abs([row.error for row in rows])
    assert np.median(errors) < 0.005
    assert errors.max() < 0.02


def test_a_batch_that_does_not_cost_as_its_sequences_alone_is_found_and_predicted(tmp_path):
    target = (
        "sim:vllm?max_num_seqs=8&step=1ms&sequence=7ms&prefill=4ms&context=1us&turnaround=1ms"
        "&batch_scaling=2.1,3.6,5,6.1,6.6,6.8,6.9"
    )
    lengths = {"input_tokens": "uniform:16-64", "output_tokens": "uniform:16-48"}
    loads = ("users:1", "users:8", "users:4")
    runs = {
        load: measured(target, load, tmp_path, seed=k, **lengths) for k, load in enumerate(loads)
    }
    found = calibrate(EngineConfig(max_num_seqs=8), runs["users:1"] + runs["users:8"])
    true = LinearCost.of(parse("TARGET", target))
    like = LinearCost.of(msgspec.convert(found.settings, EngineConfig))
    for size in range(1, 9):  # at 100 tokens of context each
        assert at(like.decode(size), 100 * size) == pytest.approx(
            at(true.decode(size), 100 * size), rel=0.03
        )
    worth = found.settings["batch_scaling"].split(",")
    assert f"2 as {float(worth[0]):.3g}, 3 as {float(worth[1]):.3g}, " in report(found)
    path = tmp_path / "server.toml"
    path.write_text(calibration.text(found))
    rows = predict(EngineConfig(calibration=str(path)), runs["users:4"])
    errors = np.abs([row.error for row in rows])
    assert np.median(errors) < 0.01
    assert errors.max() < 0.02


@pytest.mark.parametrize(("sequences", "alone"), [(1, 1), (2, 2), (8, 3.6), (9, 3.9), (11, 4.5)])
def test_between_two_sizes_of_batch_lies_a_line(sequences, alone):
    scaling = "2,2.6,3,3.2,3.4,3.5,3.6,4.8"  # of 2 to 8, and 12
    text = f"sim:vllm?step=1ms&sequence=10ms&context=0&batch_scaling={scaling}"
    config = parse("TARGET", text)
    assert at(LinearCost.of(config).decode(sequences), 0) == pytest.approx(
        (1e-3 + alone * 10e-3) * FS
    )


def test_batches_beyond_the_last_size_cost_in_proportion_to_it():
    config = parse("TARGET", "sim:vllm?step=1ms&sequence=10ms&context=0&batch_scaling=2,2.6,3")
    assert at(LinearCost.of(config).decode(12), 0) == pytest.approx((1e-3 + 9 * 10e-3) * FS)


@pytest.mark.parametrize("text", ["2,fast", "2,0", "2,,3", "inf"])
def test_a_batch_scaling_that_is_no_list_of_numbers_is_refused(text):
    with pytest.raises(BadInput, match="want batch_scaling to be numbers such as"):
        parse("TARGET", f"sim:vllm?batch_scaling={text}")


def test_the_settings_of_a_batch_are_said_as_they_are_read():
    said = "sim:vllm?step=1ms&batch_scaling=2,2.6,3"
    assert str(parse("TARGET", said)) == said


def test_constants_that_a_run_cannot_tell_apart_are_said_to_be_uncertain(simulated):
    found = calibrate(EngineConfig(), simulated["users:1"])
    assert found.uncertainty["prefill"] < 0.1
    assert found.uncertainty["sequence"] > 0.5  # one user: no telling it from the step


def test_the_file_is_read_again_and_a_simulated_target_takes_it(fitted):
    found, path = fitted
    again = calibration.read(str(path))
    assert again.settings == found.settings
    assert again.residual == found.residual
    settled = settle(parse("TARGET", f"sim:vllm?calibration={path}&max_num_seqs=4"))
    assert settled.step == found.settings["step"]
    assert settled.max_num_seqs == 4  # what the user says counts for more
    assert error_bar(settled, "throughput").like == "calibrated"
    run = servescope.run(f"sim:vllm?calibration={path}", requests=10, out=str(path.parent))
    assert run.manifest.kind == "simulated"


def test_kernels_of_a_gpu_are_fitted_too(tmp_path):
    config = parse("TARGET", ON_GPU)
    gpu, overheads = hardware(config)
    changed = calibration.Calibration(
        settings={"engine": "vllm", "model": "llama-2-7b", "gpu": "a100-sxm-80gb"},
        constants={
            "hbm": 0.8 * gpu.efficiency.hbm,
            "decode_attention": 0.8 * gpu.efficiency.decode_attention,
            "compute": 0.9 * gpu.efficiency.compute,
            "prefill_attention": 0.9 * gpu.efficiency.prefill_attention,
            "step_s": 1.3 * overheads.step_s,
        },
    )
    true = tmp_path / "true.toml"
    true.write_text(calibration.text(changed))
    target = f"{ON_GPU}&calibration={true}"
    assert error_bar(parse("TARGET", target), "latency").like == "calibrated"
    assert error_bar(parse("TARGET", f"{target}&dtype=int4"), "latency").like == "narrow"
    seen = [
        stage
        for k, load in enumerate(("users:1", "users:16"))
        for stage in measured(target, load, tmp_path, seed=k)
    ]
    found = calibrate(config, seen)
    assert found.constants["hbm"] == pytest.approx(changed.constants["hbm"], rel=0.05)
    assert found.constants["compute"] == pytest.approx(changed.constants["compute"], rel=0.1)
    path = tmp_path / "fitted.toml"
    path.write_text(calibration.text(found))
    called = f"sim:VLLM?calibration={path}&gpu=A100&model=meta-llama/Llama-2-7b-hf"
    assert error_bar(parse("TARGET", called), "latency").like == "calibrated"
    other = measured(target, "users:6", tmp_path, seed=9)
    rows = predict(parse("TARGET", f"sim:vllm?calibration={path}"), other)
    errors = np.abs([row.error for row in rows])
    assert np.median(errors) < 0.01
    assert errors.max() < 0.03


def test_a_fit_that_no_such_gpu_can_have_is_doubted_wherever_it_is_told(tmp_path):
    seen = [
        stage
        for k, load in enumerate(("users:1", "users:16"))
        for stage in measured(ON_GPU.replace("a100-sxm-80gb", "h200"), load, tmp_path, seed=k)
    ]
    found = calibrate(parse("TARGET", ON_GPU), seen)
    assert found.constants["hbm"] > 1
    why = "times the datasheet's peak, which none reaches: was it this GPU, this model"
    assert why in found.doubts
    path = tmp_path / "server.toml"
    path.write_text(calibration.text(found))
    assert why in path.read_text().splitlines()[1]
    config = parse("TARGET", f"sim:vllm?calibration={path}")
    planned = error_bar(config, "throughput")
    assert planned.like == "dense"
    assert why in planned.source
    apart = msgspec.structs.replace(found, uncertainty={"hbm": 0.5, "compute": 0.5})
    assert not apart.doubts  # these runs do not tell


def test_a_fit_that_is_far_from_its_own_runs_has_error_bars_as_wide(fitted, tmp_path):
    found, path = fitted
    assert not found.doubts
    usual = error_bar(EngineConfig(calibration=str(path)), "latency")
    far = [msgspec.structs.replace(one, predicted_s=one.measured_s * 0.7) for one in found.residual]
    poor = msgspec.structs.replace(found, residual=far)
    other = tmp_path / "poor.toml"
    other.write_text(calibration.text(poor))
    wide = error_bar(EngineConfig(calibration=str(other)), "latency")
    assert usual.p90 < wide.p90 == pytest.approx(1 / 0.7 - 1)
    assert "one in ten is 43% off or more" in wide.source


NO_TIME = """
settings = {}
[[residual]]
load = "users:1"
metric = "ttft_s"
statistic = "mean"
measured_s = 0.0
predicted_s = 1.0
"""


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("nonsense", "servescope calibrate"),
        ("schema = 1\n[settings]\nengin = 'vllm'\n", "engin"),
        ("schema = 2\n[settings]\nengine = 'vllm'\n", "want schema 1"),
        (NO_TIME, "measured_s"),
    ],
)
def test_a_file_that_is_none_is_refused_in_one_line(tmp_path, text, want):
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(BadInput, match=want):
        deploy(EngineConfig(calibration=str(path)))


def test_a_calibration_of_another_engine_is_refused(fitted):
    _, path = fitted
    with pytest.raises(BadInput, match="want engine vllm, to which it was fitted"):
        deploy(EngineConfig(engine="sglang", calibration=str(path)))


def test_the_nearest_factors_of_a_product_are_found():
    true = np.array([0.3, 2.0, 5.0])
    work = np.random.default_rng(0).uniform(1, 9, (40, 3))
    found = nearest(lambda factors: np.log(work @ factors) - np.log(work @ true), 3)
    assert found.factors == pytest.approx(true, rel=1e-3)


@pytest.mark.parametrize("load", ["users:16", "poisson:20"])
def test_an_uncalibrated_gpu_is_predicted_with_its_front_end(tmp_path, load):
    target = "sim:vllm?model=llama-3.1-8b&gpu=h100-sxm-80gb"
    rows = predict(parse("TARGET", target), measured(target, load, tmp_path))
    assert max(abs(row.error) for row in rows) < 0.01
