"""The commands `plan` and `calibrate`: predictions without a server, and what makes them exact."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from servescope.errors import BadInput

if TYPE_CHECKING:
    from servescope.engine.config import EngineConfig
    from servescope.plan.answers import Question

_SETTINGS = ("model", "gpu", "dtype", "kv_dtype", "memory_utilization", "calibration")


@click.command()
@click.option("--model", metavar="NAME", help="One of --list, or a path to a config.json.")
@click.option("--gpu", metavar="NAME", help="One of --list; part of a name will do.")
@click.option(
    "--engine",
    default="vllm",
    show_default=True,
    metavar="NAME",
    help="One of --list, with settings if need be: 'vllm?max_num_seqs=64&pp=2'.",
)
@click.option(
    "--tp",
    metavar="N,...",
    help="Tensor-parallel sizes to choose from.  [default: 1, 2, 4 and 8, as the model allows]",
)
@click.option(
    "--input-tokens",
    default="512",
    show_default=True,
    metavar="LENGTH",
    help="512, uniform:1-512, lognormal:mean=256,std=200, pairs:FILE, ... as of `run`.",
)
@click.option("--output-tokens", metavar="LENGTH", help="Likewise.  [default: 128]")
@click.option("--rate", type=float, metavar="R", help="Traffic in requests/s: how many GPUs?")
@click.option("--users", type=int, metavar="N", help="Traffic of so many users at once.")
@click.option(
    "--slo",
    multiple=True,
    metavar="BOUNDS",
    help="ttft_p99<2s,tpot_p95<50ms: the highest rate within it is searched.",
)
@click.option(
    "--context",
    type=click.IntRange(1),
    default=2048,
    show_default=True,
    metavar="N",
    help="Tokens of the sequences that memory is counted in.",
)
@click.option(
    "--memory-utilization",
    metavar="SHARE",
    help="Of a GPU's memory.  [default: the engine's, most 0.9]",
)
@click.option("--dtype", metavar="FORMAT", help="Of the weights: fp16, bf16, fp8, int8, int4.")
@click.option("--kv-dtype", metavar="FORMAT", help="Of the KV cache: fp16, fp8.")
@click.option("--price", type=float, metavar="USD", help="Of a GPU and hour.  [default: a list's]")
@click.option("--calibration", metavar="FILE", help="What `servescope calibrate` wrote.")
@click.option(
    "--compare",
    "compared",
    multiple=True,
    metavar="SETTING=A,B",
    help="Lay values of a setting side by side instead: gpu=a100-sxm-80gb,l40s, engine=..., ...",
)
@click.option(
    "--validate", is_flag=True, help="Predictions beside published measurements: how far off?"
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N")
@click.option("--json", "as_json", is_flag=True, help="The answers as JSON, nothing else.")
@click.option("--list", "listed", is_flag=True, help="All engines, GPUs, models and settings.")
def plan(
    *,
    compared: tuple[str, ...],
    as_json: bool,
    listed: bool,
    validate: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Predict what a model would do on GPUs, without either.

    Does it fit, which tensor-parallel size, how many requests/s within an SLO, how many GPUs for a
    traffic, at what cost, and what limits it. Every answer has its error.
    """
    from servescope.plan.answers import answer, compare  # noqa: PLC0415 (--help need not wait)
    from servescope.report import plan as text  # noqa: PLC0415
    from servescope.report.plan_sides import comparison  # noqa: PLC0415

    for only, name in (("--list", "listed"), ("--validate", "validate")):
        _alone(only, name)
    if listed:
        _list(as_json=as_json)
        return
    if validate:
        _validate(as_json=as_json)
        return
    question = _question(compared=compared, **options)
    sides = [compare(question, "--compare", said) for said in compared]
    answers = None if sides else answer(question)
    if as_json:
        import msgspec  # noqa: PLC0415

        found = msgspec.to_builtins(answers if answers is not None else {"comparisons": sides})
        click.echo(json.dumps(found, indent=1))
        return
    for side in sides:
        click.echo(comparison(side).lstrip("\n"))
    if answers is not None:
        click.echo(text.plan(answers))


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--engine", metavar="NAME", help="With settings: 'llamacpp?max_num_seqs=4'.")
@click.option("--model", metavar="NAME", help="With --gpu: one of `plan --list`.")
@click.option("--gpu", metavar="NAME", help="Fit the constants of its kernels; without, of steps.")
@click.option("--tp", metavar="N", help="Its tensor-parallel size.  [default: 1]")
@click.option("--dtype", metavar="FORMAT", help="Of the weights.")
@click.option("--kv-dtype", metavar="FORMAT", help="Of the KV cache.")
@click.option("--memory-utilization", metavar="SHARE", help="Of a GPU's memory.")
@click.option("-o", "--output", required=True, metavar="FILE", help="The file to write (TOML).")
@click.option("--json", "as_json", is_flag=True, help="The calibration as JSON, nothing else.")
def calibrate(runs: tuple[str, ...], output: str, *, as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Fit the simulator's few constants to runs that were measured on a server.

    Give the limits of its scheduler: --engine 'vllm?max_num_seqs=64&kv_tokens=41408'. Runs at two
    loads or more, one of them a single user, tell the constants apart. The file is taken by
    `sim:vllm?calibration=FILE` and `plan --calibration FILE`.
    """
    from servescope.engine import calibration as kept  # noqa: PLC0415
    from servescope.plan.calibrate import calibrate as fit  # noqa: PLC0415
    from servescope.plan.observed import stages  # noqa: PLC0415
    from servescope.report import plan as text  # noqa: PLC0415
    from servescope.store import Run  # noqa: PLC0415

    opened = [Run(Path(run)) for run in runs]
    if options["engine"] is None:
        told = str(opened[0].manifest.endpoint.get("engine") or "vllm")
        options["engine"] = told.removeprefix("simulated ")
    if options["gpu"] is not None and options["model"] is None:
        raise BadInput("--model", "", "want --model with --gpu")
    config = _config(**options)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    found = fit(config, stages(opened), fitted_utc=now, runs=[str(run.path) for run in opened])
    try:
        Path(output).write_text(kept.text(found), "utf-8")
    except OSError as error:
        raise BadInput("--output", output, f"cannot be written ({error.strerror})") from None
    if as_json:
        import msgspec  # noqa: PLC0415

        click.echo(json.dumps(msgspec.to_builtins(found), indent=1))
        return
    click.echo(text.calibration(found))
    click.echo(f"\nwritten to {output}: sim:{config.engine}?calibration={output}")


def _alone(only: str, name: str) -> None:
    """Refuse options that would be ignored beside one that is for itself."""
    context = click.get_current_context()
    for one in context.command.params:
        ignored = one.name not in (name, "as_json") and context.params[name]
        if ignored and context.get_parameter_source(one.name or "") is ParameterSource.COMMANDLINE:
            want = f"want it without {only}, which heeds no other option but --json"
            raise BadInput(one.opts[0], context.params[one.name or ""], want)


def _question(*, compared: tuple[str, ...], **options: Any) -> Question:  # noqa: ANN401
    from servescope import lengths  # noqa: PLC0415
    from servescope.goodput import parse_slo  # noqa: PLC0415
    from servescope.plan.answers import Question  # noqa: PLC0415
    from servescope.plan.fleet import MOST_USERS, Traffic  # noqa: PLC0415
    from servescope.plan.workload import Workload  # noqa: PLC0415

    for name in ("model", "gpu"):
        if options[name] is None and options["calibration"] is None:
            # What is compared need not be named twice.
            values = [said.partition("=")[2] for said in compared if said.startswith(f"{name}=")]
            if not values:
                raise BadInput(f"--{name}", "", f"want --{name} (servescope plan --list has all)")
            options[name] = values[0].partition(",")[0]
    rate, users, price = options["rate"], options["users"], options["price"]
    for name, value in (("rate", rate), ("users", users), ("price", price)):
        if value is not None and not 0 < value < float("inf"):
            raise BadInput(f"--{name}", value, "want a number above 0")
    if users is not None and users > MOST_USERS:
        raise BadInput(
            "--users", users, f"want {MOST_USERS} at most: simulating more takes minutes"
        )
    if rate is not None and users is not None:
        raise BadInput("--users", users, "want either --rate or --users")
    inputs = lengths.parse("--input-tokens", options["input_tokens"])
    said = options["output_tokens"]
    inputs_, outputs = lengths.joint(
        inputs, None if said is None else lengths.parse("--output-tokens", said)
    )
    sizes = _sizes(options.pop("tp"))
    outputs = outputs or lengths.parse("--output-tokens", "128")
    config = _config(tp=None, **options)
    if sizes and config.tp > 1 and config.calibration is None:
        raise BadInput("--tp", sizes[0], f"want it once: --engine says tp={config.tp}")
    return Question(
        config=config,
        workload=Workload(inputs_ or inputs, outputs, options["seed"]),
        sizes=sizes,
        bounds=parse_slo("--slo", ",".join(options["slo"])).bounds if options["slo"] else (),
        traffic=None if rate is None and users is None else Traffic(rate=rate, users=users),
        context_tokens=options["context"],
        price_per_gpu_hour=price,
    )


def _sizes(text: str | None) -> tuple[int, ...]:
    parts = [] if text is None else text.split(",")
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise BadInput("--tp", text, "want sizes such as 1,2,4")
    return tuple(sorted({int(part) for part in parts}))


def _config(engine: str, tp: str | None, **options: Any) -> EngineConfig:  # noqa: ANN401
    """The settings of options, and of those behind the engine's name."""
    from urllib.parse import quote  # noqa: PLC0415

    from servescope import catalog  # noqa: PLC0415
    from servescope.engine.config import parse  # noqa: PLC0415
    from servescope.engine.deployment import calibrated  # noqa: PLC0415

    said = {name: options[name] for name in _SETTINGS if options.get(name) is not None}
    if tp is not None:
        said["tp"] = tp
    if "gpu" in said:
        said["gpu"] = catalog.gpu(said["gpu"]).name
    query = "&".join(f"{name}={quote(value, safe=':/')}" for name, value in said.items())
    if "calibration" in said and "?" not in engine and engine == "vllm":
        from servescope.engine.calibration import read  # noqa: PLC0415

        engine = read(said["calibration"]).settings.get("engine", engine)
    joined = engine + ("&" if "?" in engine else "?") * bool(query) + query
    return calibrated(parse("--engine", joined))


def _validate(*, as_json: bool) -> None:
    """What `make validate` prints; files are left alone."""
    from servescope.validation import run, table  # noqa: PLC0415

    cells = run()
    click.echo(json.dumps(table.as_json(cells), indent=1) if as_json else table.text(cells))


def _list(*, as_json: bool) -> None:
    import msgspec  # noqa: PLC0415

    from servescope import catalog  # noqa: PLC0415
    from servescope.engine.config import EngineConfig, names  # noqa: PLC0415

    settings = {
        field.name: field.default
        for field in msgspec.structs.fields(EngineConfig)
        if field.name != "engine"
    }
    found = {"engines": names(), "gpus": [*catalog.names()["gpus"]]}
    found["models"] = [*catalog.names()["models"]]
    if as_json:
        click.echo(json.dumps({**found, "settings": settings}, indent=1))
        return
    for kind, each in found.items():
        click.echo(f"{kind}: {' '.join(each)}\n")
    click.echo("settings of sim: targets, and their defaults (none: as engine, model and GPU say):")
    for name, default in settings.items():
        click.echo(f"  {name}={'none' if default is None else default}")
