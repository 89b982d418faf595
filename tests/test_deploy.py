"""What `deploy/` has: manifests that a cluster takes, commands that we take, an image with both."""

import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import jsonschema
import kubernetes_validate
import msgspec
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from servescope.cli import cli
from servescope.serve.answers import answer, streamed
from tests.support.command import Command
from tests.support.served import Served

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
KUBERNETES = kubernetes_validate.latest_version()
DOCUMENTS = {
    f"{path.stem}-{document['kind']}": document
    for path in sorted(DEPLOY.glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
}
JOB, RAY_JOB = DOCUMENTS["job-Job"], DOCUMENTS["rayjob-RayJob"]


def pods(document):
    """The pods, or templates of them, that a manifest has, by where they stand in it."""
    spec = document["spec"]
    if document["kind"] == "Pod":
        return {"": document}
    if document["kind"] == "Job":
        return {"template": spec["template"]}
    if document["kind"] == "RayJob":
        cluster = spec["rayClusterSpec"]
        groups = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
        head = cluster["headGroupSpec"]["template"]
        return {"submitter": spec["submitterPodTemplate"], "head": head, **groups}
    return {}


PODS = {
    f"{name} {where}": pod
    for name, document in DOCUMENTS.items()
    for where, pod in pods(document).items()
}
CONTAINERS = {
    f"{name} {container['name']}": container
    for name, pod in PODS.items()
    for container in pod["spec"]["containers"]
}


# --- the schemas ----------------------------------------------------------------------------------


class Api(msgspec.Struct, forbid_unknown_fields=True, rename="camel", kw_only=True):
    """A type of KubeRay's `ray.io/v1`, with the fields that a manifest of ours may have."""


class SubmitterConfig(Api):
    backoff_limit: int


class HeadGroupSpec(Api):
    ray_start_params: dict[str, str]
    template: dict[str, Any]


class WorkerGroupSpec(Api):
    group_name: str
    replicas: int
    min_replicas: int
    max_replicas: int
    ray_start_params: dict[str, str]
    template: dict[str, Any]


class RayClusterSpec(Api):
    ray_version: str
    head_group_spec: HeadGroupSpec
    worker_group_specs: list[WorkerGroupSpec]


class RayJobSpec(Api):
    entrypoint: str
    submission_mode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    backoff_limit: int
    submitter_config: SubmitterConfig
    active_deadline_seconds: int
    shutdown_after_job_finishes: bool
    ttl_seconds_after_finished: int
    submitter_pod_template: dict[str, Any]
    ray_cluster_spec: RayClusterSpec


class Metadata(Api):
    name: str


class RayJob(Api):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: RayJobSpec


def check(document):
    """Against Kubernetes' own schemas, and KubeRay's types; a field unknown to them is refused."""
    if document["kind"] != "RayJob":
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return
    msgspec.convert(document, RayJob)
    for pod in pods(document).values():
        template = {"apiVersion": "v1", "kind": "PodTemplate", "template": pod}
        kubernetes_validate.validate(template, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_manifest_is_one_that_its_api_takes(name):
    check(DOCUMENTS[name])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_field_that_its_api_does_not_know_is_refused(name):
    wrong = copy.deepcopy(DOCUMENTS[name])
    wrong["spec"]["ttlSeconds"] = 60
    with pytest.raises((kubernetes_validate.ValidationError, msgspec.ValidationError)):
        check(wrong)
    for where in pods(DOCUMENTS[name]):
        wrong = copy.deepcopy(DOCUMENTS[name])
        pods(wrong)[where]["spec"]["containers"][0]["imagePolicy"] = "Always"
        with pytest.raises(kubernetes_validate.ValidationError):
            check(wrong)


@pytest.mark.skipif(
    "SERVESCOPE_RAYJOB_CRD" not in os.environ,
    reason="wants a file from `kubectl get crd rayjobs.ray.io -o yaml` in SERVESCOPE_RAYJOB_CRD",
)
def test_the_ray_job_is_one_that_an_installed_operator_takes():
    crd = yaml.safe_load(Path(os.environ["SERVESCOPE_RAYJOB_CRD"]).read_text())
    (version,) = [one for one in crd["spec"]["versions"] if one["name"] == "v1"]
    schema = closed(version["schema"]["openAPIV3Schema"])
    del schema["properties"]["metadata"]  # any object's
    schema["additionalProperties"] = {}
    jsonschema.Draft202012Validator(schema).validate(RAY_JOB)
    wrong = copy.deepcopy(RAY_JOB)
    wrong["spec"]["ttlSeconds"] = 60
    with pytest.raises(jsonschema.ValidationError, match="ttlSeconds"):
        jsonschema.Draft202012Validator(schema).validate(wrong)


def closed(schema):
    """An OpenAPI schema as a JSON schema that refuses what it does not name."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found = {key: closed(value) for key, value in schema.items() if key != "properties"}
    if isinstance(schema.get("properties"), dict):
        found["properties"] = {name: closed(one) for name, one in schema["properties"].items()}
        found.setdefault("additionalProperties", False)
    return found


# --- what they may and get ------------------------------------------------------------------------


@pytest.mark.parametrize("name", PODS)
def test_a_pod_has_no_privileges(name):
    spec = PODS[name]["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not spec["automountServiceAccountToken"]
    for container in spec["containers"]:
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("name", [name for name in CONTAINERS if "reader" not in name])
def test_a_container_that_measures_gets_what_it_asks_for_and_no_less(name):
    resources = CONTAINERS[name]["resources"]
    assert resources["requests"] == resources["limits"]


def test_a_load_node_leaves_a_core_of_its_own_to_ray():
    (group,) = RAY_JOB["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    cores = int(container["resources"]["limits"]["cpu"])
    assert int(group["rayStartParams"]["num-cpus"]) == cores - 1


def test_the_key_comes_from_a_secret_to_the_process_that_wants_it_alone():
    having = {
        name: variable["valueFrom"].keys()
        for name, container in CONTAINERS.items()
        for variable in container.get("env", [])
        if variable["name"] == "SERVESCOPE_API_KEY"
    }
    assert having == {
        "job-Job template servescope": {"secretKeyRef"},
        "rayjob-RayJob head head": {"secretKeyRef"},
    }


# --- what they run --------------------------------------------------------------------------------


def words(document):
    """What the manifest gives to `servescope`, an option and its value each a word."""
    if document is RAY_JOB:
        name, *given = document["spec"]["entrypoint"].split()
        assert name == "servescope"
        assert re.fullmatch(r"[\w ./:-]+", document["spec"]["entrypoint"])  # a shell reads it
    else:
        (container,) = pods(document)["template"]["spec"]["containers"]
        given = container["args"]
    return [word for part in given for word in part.split("=", part.startswith("--"))]


def changed(given, **options):
    """These words with other values of some options."""
    given = list(given)
    for name, value in options.items():
        given[given.index(f"--{name}") + 1] = str(value)
    return given


@pytest.mark.parametrize("document", [JOB, RAY_JOB], ids=["job", "rayjob"])
def test_the_command_is_one_that_we_take_and_its_results_land_on_the_volume(document):
    command, *given = words(document)
    with cli.commands[command].make_context(command, list(given)) as context:
        out = Path(context.params["out"])
    owner = pods(document)["head" if document is RAY_JOB else "template"]["spec"]
    (container,) = owner["containers"]
    (mount,) = [one for one in container["volumeMounts"] if one["mountPath"] == str(out)]
    (volume,) = [one for one in owner["volumes"] if one["name"] == mount["name"]]
    claim = volume["persistentVolumeClaim"]["claimName"]
    assert claim == DOCUMENTS["results-PersistentVolumeClaim"]["metadata"]["name"]


def test_the_ray_job_runs_on_the_cluster_that_it_starts():
    given = words(RAY_JOB)
    assert given[given.index("--cluster") + 1] == "auto"


@pytest.mark.slow
@pytest.mark.parametrize("document", [JOB, RAY_JOB], ids=["job", "rayjob"])
def test_the_command_measures_the_server_that_it_is_given(tmp_path, document):
    given = words(document)
    if "--cluster" in given:  # the same load from this machine
        where = given.index("--cluster")
        del given[where : where + 2]
    (target,) = [k for k, word in enumerate(given) if word.startswith("http://")]
    with Served(streamed(answer()), tokenize=True) as server:
        given[target] = server.url
        command = Command(*changed(given, duration="0.5s", out=tmp_path), cwd=tmp_path)
        assert command.wait() == 0, command.err
        assert server.requests
    assert (next(tmp_path.iterdir()) / "summary.json").exists()


# --- the image ------------------------------------------------------------------------------------


def instructions(keyword):
    text = re.sub(r"\\\n", "", (DEPLOY / "Dockerfile").read_text())
    return [line.split()[1:] for line in text.splitlines() if line.startswith(f"{keyword} ")]


def test_all_containers_run_the_image_whose_ray_is_the_one_that_is_declared():
    (image,) = {container["image"] for container in CONTAINERS.values()}
    assert f"-t {image} ." in (DEPLOY / "Dockerfile").read_text()
    version = RAY_JOB["spec"]["rayClusterSpec"]["rayVersion"]
    assert f'"ray[default]=={version}"' in (DEPLOY / "Dockerfile").read_text()


@pytest.mark.slow
def test_the_image_has_all_that_installing_wants_and_the_extra_takes_its_ray(tmp_path):
    for *sources, _ in instructions("COPY"):
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / source)
            else:
                shutil.copy(ROOT / source, tmp_path)
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert list((tmp_path / "dist").glob("servescope-*.whl"))


def test_the_image_has_a_python_and_a_ray_that_the_package_takes():
    project = msgspec.toml.decode((ROOT / "pyproject.toml").read_bytes())["project"]
    ((base,),) = instructions("FROM")
    python = base.partition(":")[2].partition("-")[0]
    assert f"{python}.0" in SpecifierSet(project["requires-python"])
    (ray,) = [
        wanted
        for wanted in map(Requirement, project["optional-dependencies"]["ray"])
        if wanted.name == "ray"
    ]
    assert RAY_JOB["spec"]["rayClusterSpec"]["rayVersion"] in ray.specifier
