"""configs/cluster: its files are what Ray, Kubernetes and KubeRay read, and keep clusters closed.

Ray itself reads the files of its launcher: all of on-premise.yaml, and of aws.yaml what needs no answer of
AWS, the published schema and the defaults. Kubernetes' objects and all pods are held against the published
schemas of Kubernetes 1.37, in schemas/. KubeRay's schemas come in no Python package: the models `RayCluster`
and `RayJob` are written by hand after its API reference of version 1.7. They have the fields that the files
use, refuse all others, and hold the rules of KubeRay's operator for names, versions and selectors.

No cluster is started, and no image or machine is looked up.
"""

from __future__ import annotations

import ast
import copy
import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import click
import jsonschema  # type: ignore[import-untyped]  # Ray needs it
import pytest
import ray.autoscaler
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel
from ray.autoscaler.sdk import bootstrap_config, fillout_defaults

from dfvt.cluster.spec import load_spec

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "cluster"
LAUNCHERS = ("on-premise.yaml", "aws.yaml")
MANIFESTS = ("kuberay.yaml", "kuberay-sweep.yaml", "mlflow.yaml")
PROJECT = "/mnt/dfvt"
ENTER_PROJECT = f"cd {PROJECT} && . .venv/bin/activate && "
KUBERNETES_SCHEMA = Path(__file__).parent / "schemas" / "kubernetes-1.37.json"
DEFINITIONS = {
    ("v1", "Service"): "io.k8s.api.core.v1.Service",
    ("v1", "PersistentVolumeClaim"): "io.k8s.api.core.v1.PersistentVolumeClaim",
    ("apps/v1", "Deployment"): "io.k8s.api.apps.v1.Deployment",
    ("apps/v1", "StatefulSet"): "io.k8s.api.apps.v1.StatefulSet",
    ("networking.k8s.io/v1", "NetworkPolicy"): "io.k8s.api.networking.v1.NetworkPolicy",
}
SECRET_NAME = re.compile(r"PASSWORD|TOKEN|SECRET|_KEY$")
SECRET_TEXT = re.compile(
    r"://[^\s/:@]+:(?!\$\()[^\s@]+@"  # user:password@ in an address
    r"|(?i:password|token|secret)\w*[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9+/_-]{8,}"
    r"|-----BEGIN|AKIA[0-9A-Z]{16}"
)

Document = dict[str, Any]


@dataclass
class Files:
    """The folder's files, as text and as the YAML documents in them."""

    texts: dict[str, str]
    documents: dict[str, list[Document]]

    def launchers(self) -> Iterator[Document]:
        for name in LAUNCHERS:
            yield from self.documents[name]

    def objects(self, *kinds: str) -> Iterator[Document]:
        """Kubernetes' objects of some kinds, or all of them."""
        for name in MANIFESTS:
            yield from (one for one in self.documents[name] if not kinds or one["kind"] in kinds)

    def only(self, kind: str) -> Document:
        (found,) = self.objects(kind)
        return found

    def pods(self) -> Iterator[Document]:
        """Every pod's template."""
        yield from (one["spec"]["template"] for one in self.objects("Deployment", "StatefulSet"))
        for cluster in self.objects("RayCluster"):
            yield from (group["template"] for group in groups(cluster))

    def scripts(self) -> Iterator[str]:
        """All that a shell will run."""
        for launcher in self.launchers():
            for key, value in launcher.items():
                if key.endswith("_commands"):
                    yield from value
        for container in self.containers():
            if container.get("command", ["no"])[0] == "bash":
                yield from container["args"]
        yield from (job["spec"]["entrypoint"] for job in self.objects("RayJob"))

    def containers(self) -> Iterator[Document]:
        for pod in self.pods():
            yield from containers(pod)


def groups(cluster: Document) -> list[Document]:
    return [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]


def containers(pod: Document) -> list[Document]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def everything(node: object) -> Iterator[tuple[str, Any]]:
    """All keys of a document with their values, however deep."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield str(key), value
            yield from everything(value)
    elif isinstance(node, list):
        for value in node:
            yield from everything(value)


@cache
def read_files() -> Files:
    texts = {path.name: path.read_text() for path in sorted(FOLDER.glob("*.yaml"))}
    return Files(texts, {name: list(yaml.safe_load_all(text)) for name, text in texts.items()})


@cache
def kubernetes_validator(definition: str) -> Any:
    schema = json.loads(KUBERNETES_SCHEMA.read_text())
    return jsonschema.Draft202012Validator(schema | {"$ref": f"#/$defs/{definition}"})


def as_kubernetes(definition: str) -> AfterValidator:
    """What a model's field holds must be an object of Kubernetes."""

    def check(value: Document) -> Document:
        for error in kubernetes_validator(definition).iter_errors(value):
            raise ValueError(f"{error.json_path}: {error.message}")
        return value

    return AfterValidator(check)


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class AuthOptions(Model):
    mode: Literal["disabled", "token"] = "token"
    secret_name: str | None = None


class Group(Model):
    ray_start_params: dict[str, str]
    template: Annotated[Document, as_kubernetes("io.k8s.api.core.v1.PodTemplateSpec")]


class HeadGroup(Group):
    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    enable_ingress: bool = False


class WorkerGroup(Group):
    group_name: str
    replicas: int
    min_replicas: int = Field(ge=0)
    max_replicas: int

    @model_validator(mode="after")
    def in_order(self) -> Self:
        assert self.min_replicas <= self.replicas <= self.max_replicas
        return self


class RayClusterSpec(Model):
    ray_version: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    auth_options: AuthOptions
    head_group_spec: HeadGroup
    worker_group_specs: list[WorkerGroup]

    @model_validator(mode="after")
    def tokens_are_known(self) -> Self:
        assert tuple(map(int, self.ray_version.split("."))) >= (2, 52, 0)
        return self


class Metadata(Model):
    name: str = Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=47)
    annotations: dict[str, str] = Field(default_factory=dict)


class RayCluster(Model):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: RayClusterSpec


class RayJobSpec(Model):
    entrypoint: str
    cluster_selector: dict[Literal["ray.io/cluster"], str] = Field(min_length=1)
    submission_mode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode"] = "K8sJobMode"


class RayJob(Model):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: RayJobSpec


# What is checked. Each takes all files, so that those of the tests below may be wrong ones.


def ray_reads_the_launchers(files: Files) -> None:
    schema = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())
    (on_premise,), (aws,) = (files.documents[name] for name in LAUNCHERS)
    bootstrap_config(copy.deepcopy(on_premise), no_config_cache=True)
    jsonschema.validate(aws, schema)
    jsonschema.validate(fillout_defaults(copy.deepcopy(aws)), schema)
    types = aws["available_node_types"]
    assert aws["head_node_type"] in types
    for node_type in types.values():
        assert node_type.get("min_workers", 0) <= node_type.get("max_workers", 0) <= aws["max_workers"]
        assert node_type["node_config"].keys() >= {"InstanceType", "ImageId", "SecurityGroupIds"}


def kubernetes_reads_the_manifests(files: Files) -> None:
    names = set()
    for one in files.objects():
        key = one["apiVersion"], one["kind"]
        assert (*key, one["metadata"]["name"]) not in names
        names.add((*key, one["metadata"]["name"]))
        if key[0] == "ray.io/v1":
            (RayCluster if key[1] == "RayCluster" else RayJob).model_validate(one)
        else:
            assert key in DEFINITIONS, key
            kubernetes_validator(DEFINITIONS[key]).validate(one)


def shells_read_the_scripts(files: Files) -> None:
    for script in files.scripts():
        result = subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr


def every_file_is_of_a_known_kind(files: Files) -> None:
    assert sorted(files.documents) == sorted((*LAUNCHERS, *MANIFESTS))
    for name, text in files.texts.items():
        head = text.split("\n", 6)
        assert 2 <= [line.startswith("#") for line in head].index(False) <= 5
        assert f"configs/cluster/{name}" in "\n".join(head[:5])


def nodes_ask_for_a_token(files: Files) -> None:
    for launcher in files.launchers():
        assert launcher["file_mounts"].get("~/.ray/auth_token") == "~/.ray/auth_token"
        for script in ray_starts(launcher):
            before, _, _ = script.partition("ray start")
            assert re.search(r"export (\S+ )*RAY_AUTH_MODE=token\b", before)
    for cluster in files.objects("RayCluster"):
        assert cluster["spec"]["authOptions"]["mode"] == "token"
        for container in files.containers():
            assert not any(variable["name"].startswith("RAY_AUTH") for variable in container.get("env", []))
    for job in files.objects("RayJob"):
        (cluster,) = files.objects("RayCluster")
        assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    assert "RAY_AUTH_MODE=disabled" not in "".join(files.texts.values())


def dashboards_stay_inside(files: Files) -> None:
    for launcher in files.launchers():
        assert ray_options(launcher["head_start_ray_commands"][-1])["--dashboard-host"] == "127.0.0.1"
    head = files.only("RayCluster")["spec"]["headGroupSpec"]
    assert head["serviceType"] == "ClusterIP" and head["enableIngress"] is False
    for one in files.objects():
        assert one["kind"] not in ("Ingress", "Gateway", "HTTPRoute", "Route")
        if one["kind"] == "Service":
            assert one["spec"]["type"] == "ClusterIP"
        for key, value in everything(one):
            assert key not in ("hostPort", "hostNetwork", "nodePort", "externalIPs", "loadBalancerIP")
            assert value not in ("LoadBalancer", "NodePort", "ExternalName")


def no_secret_has_a_value(files: Files) -> None:
    for text in files.texts.values():
        assert not SECRET_TEXT.search(text)
    for container in files.containers():
        for variable in container.get("env", []):
            if SECRET_NAME.search(variable["name"]):
                assert variable.keys() == {"name", "valueFrom"} and "secretKeyRef" in variable["valueFrom"]
            else:
                assert not SECRET_TEXT.search(variable["value"])
    assert not list(files.objects("Secret"))


def ray_starts_with_what_it_needs(files: Files) -> None:
    known = ray_start_options()
    for launcher in files.launchers():
        head, worker = ray_starts(launcher)
        assert head in launcher["head_start_ray_commands"] and worker in launcher["worker_start_ray_commands"]
        assert head.startswith(ENTER_PROJECT) and worker.startswith(ENTER_PROJECT)
        options, joining = ray_options(head), ray_options(worker)
        assert {*options, *joining} <= known
        assert options.keys() >= {"--head", "--disable-usage-stats"}
        assert options["--dashboard-port"] == "8265"
        assert options["--autoscaling-config"] == "~/ray_bootstrap_config.yaml"
        assert joining == {"--address": f"$RAY_HEAD_IP:{options['--port']}"}
    for group in groups(files.only("RayCluster")):
        (container,) = group["template"]["spec"]["containers"]
        lines = container["args"][0].splitlines()
        assert " && ".join(lines[:2]) + " && " == ENTER_PROJECT
        assert lines[-1] == 'eval "$KUBERAY_GEN_RAY_START_CMD"'
        assert {f"--{option}" for option in group["rayStartParams"]} <= known
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
    assert files.only("RayCluster")["metadata"]["annotations"]["ray.io/overwrite-container-cmd"] == "true"


def what_is_named_exists(files: Files) -> None:
    text = "\n".join(files.texts.values())
    for path in set(re.findall(r"configs/[\w./-]+\.yaml", text)):
        assert (ROOT / path).is_file(), path
    for job in files.objects("RayJob"):
        python, option, module, spec = shlex.split(job["spec"]["entrypoint"])
        assert (python, option, module) == ("python", "-m", "pipelines.sweep")
        assert (ROOT / spec).is_file() and load_spec(ROOT / spec).name == job["metadata"]["name"]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for scripts in (
        *(launcher["head_setup_commands"] for launcher in files.launchers()),
        (container["args"][0] for container in files.containers() if container["name"] == "make-setup"),
    ):
        made = re.findall(r"make -C (\S+) (\S+)", "\n".join(scripts))
        assert made == [(PROJECT, "setup")] and {target for _, target in made} <= targets
    for module in set(re.findall(r"python -m ([\w.]+)", text)):
        assert find_spec(module) is not None or (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE))
    assert files.only("RayCluster")["spec"]["rayVersion"] == pins["ray"]
    for container in files.containers():
        name, _, tag = container["image"].partition(":")
        if name != "postgres":
            package = name.rpartition("/")[2]
            assert re.fullmatch(rf"v?{re.escape(pins[package])}(-[\w-]+)?", tag), container["image"]


def the_project_is_in_one_shared_folder(files: Files) -> None:
    for launcher in files.launchers():
        assert sum(f"mountpoint -q {PROJECT} ||" in one for one in launcher["initialization_commands"]) == 1
        assert any(f"test -d {PROJECT}/.git || git clone " in one for one in launcher["head_setup_commands"])
    cluster = files.only("RayCluster")
    claims = {one["metadata"]["name"]: one for one in files.objects("PersistentVolumeClaim")}
    for group in groups(cluster):
        pod = group["template"]["spec"]
        shared = {one["name"]: one for one in pod["volumes"]}
        claim = claims[shared["project"]["persistentVolumeClaim"]["claimName"]]
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
        assert shared["shared-memory"]["emptyDir"]["medium"] == "Memory"
        for container in containers(group["template"]):
            mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
            assert PROJECT.startswith(mounts["project"] + "/")
            assert container in pod["initContainers"] or mounts["shared-memory"] == "/dev/shm"
    for group in cluster["spec"]["workerGroupSpecs"]:
        for container in containers(group["template"]):
            assert int(container["resources"]["limits"]["nvidia.com/gpu"]) >= 1


def the_manifests_fit_together(files: Files) -> None:
    claims = {one["metadata"]["name"] for one in files.objects("PersistentVolumeClaim")}
    labels = [pod["metadata"]["labels"] for pod in files.pods() if "metadata" in pod]
    for one in files.objects("Deployment", "StatefulSet"):
        spec = one["spec"]
        assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
        assert all(
            container.keys() >= {"readinessProbe", "livenessProbe", "resources"}
            for container in spec["template"]["spec"]["containers"]
        )
    for service in files.objects("Service"):
        assert service["spec"]["selector"] in labels
    for policy in files.objects("NetworkPolicy"):
        assert policy["spec"]["podSelector"]["matchLabels"] in labels
    for stateful, pod in [
        *((one["spec"], one["spec"]["template"]) for one in files.objects("StatefulSet")),
        *(({}, one["spec"]["template"]) for one in files.objects("Deployment")),
        *(({}, group["template"]) for group in groups(files.only("RayCluster"))),
    ]:
        volumes = {one["metadata"]["name"] for one in stateful.get("volumeClaimTemplates", [])}
        for volume in pod["spec"].get("volumes", []):
            volumes.add(volume["name"])
            assert volume.get("persistentVolumeClaim", {}).get("claimName") in (None, *claims)
        for container in containers(pod):
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    for key, value in everything(list(files.objects())):
        if key == "secretKeyRef":
            made = f"kubectl create secret generic {value['name']} --from-literal={value['key']}="
            assert made in files.texts["mlflow.yaml"]
    (mlflow,) = (one for one in files.objects("Service") if one["metadata"]["name"] == "mlflow")
    address = f"mlflow:{mlflow['spec']['ports'][0]['port']}"
    (server,) = (one for one in files.containers() if one["name"] == "mlflow")
    assert f"--port={mlflow['spec']['ports'][0]['port']}" in server["args"]
    assert any(one.startswith(f"--allowed-hosts={address},") for one in server["args"])
    for group in groups(files.only("RayCluster")):
        environment = {one["name"]: one["value"] for one in group["template"]["spec"]["containers"][0]["env"]}
        assert environment["MLFLOW_TRACKING_URI"] == f"http://{address}"


def ray_starts(launcher: Document) -> list[str]:
    """The commands that start Ray, the head's and the workers'."""
    scripts = launcher["head_start_ray_commands"] + launcher["worker_start_ray_commands"]
    return [script for script in scripts if "ray start" in script]


@cache
def ray_start_options() -> set[str]:
    """All options that the installed `ray start` has; read, since importing it takes Ray Serve along."""
    module = ast.parse((Path(ray.__file__).parent / "scripts" / "scripts.py").read_text())
    (start,) = (one for one in module.body if isinstance(one, ast.FunctionDef) and one.name == "start")
    constants = (
        one for part in start.decorator_list for one in ast.walk(part) if isinstance(one, ast.Constant)
    )
    return {one.value for one in constants if isinstance(one.value, str) and one.value.startswith("--")}


def ray_options(script: str) -> dict[str, str]:
    """The options of `ray start` at the end of a command."""
    arguments = shlex.split(script.partition("ray start")[2])
    pairs = (argument.partition("=") for argument in arguments)
    return {option: value for option, _, value in pairs}


CHECKS: tuple[Callable[[Files], None], ...] = (
    ray_reads_the_launchers,
    kubernetes_reads_the_manifests,
    shells_read_the_scripts,
    every_file_is_of_a_known_kind,
    nodes_ask_for_a_token,
    dashboards_stay_inside,
    no_secret_has_a_value,
    ray_starts_with_what_it_needs,
    what_is_named_exists,
    the_project_is_in_one_shared_folder,
    the_manifests_fit_together,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_files(check: Callable[[Files], None]) -> None:
    check(read_files())


GONE = object()
HEAD = ("kuberay.yaml", 1, "spec", "headGroupSpec")
HEAD_CONTAINER = (*HEAD, "template", "spec", "containers", 0)
WORKERS = ("kuberay.yaml", 1, "spec", "workerGroupSpecs", 0)
SERVER = ("mlflow.yaml", 4, "spec", "template", "spec", "containers", 0)


def replaced(old: str, new: str) -> Callable[[str], str]:
    def replace(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return replace


MISTAKES: list[tuple[Callable[[Files], None], tuple[str | int, ...], Any]] = [
    (ray_reads_the_launchers, ("on-premise.yaml", 0, "workers"), 2),
    (ray_reads_the_launchers, ("on-premise.yaml", 0, "provider", "head_ip"), GONE),
    (ray_reads_the_launchers, ("aws.yaml", 0, "idle_timeout_minutes"), "soon"),
    (ray_reads_the_launchers, ("aws.yaml", 0, "available_node_types", "worker", "min_worker"), 1),
    (ray_reads_the_launchers, ("aws.yaml", 0, "available_node_types", "worker", "max_workers"), 5),
    (kubernetes_reads_the_manifests, ("mlflow.yaml", 0, "kind"), "Servise"),
    (kubernetes_reads_the_manifests, ("mlflow.yaml", 4, "spec", "replica"), 1),
    (kubernetes_reads_the_manifests, (*SERVER, "readinessProbe", "httpGet", "prot"), 5000),
    (kubernetes_reads_the_manifests, (*SERVER, "ports", 0, "containerPort"), "5000"),
    (kubernetes_reads_the_manifests, (*HEAD_CONTAINER, "volumeMount"), []),
    (kubernetes_reads_the_manifests, (*HEAD, "rayStartParams", "num-cpus"), 0),
    (kubernetes_reads_the_manifests, (*HEAD, "autoscaling"), True),
    (kubernetes_reads_the_manifests, (*WORKERS, "replicas"), 9),
    (kubernetes_reads_the_manifests, ("kuberay.yaml", 1, "spec", "rayVersion"), "2.51.0"),
    (kubernetes_reads_the_manifests, ("kuberay.yaml", 1, "spec", "authOptions", "mode"), "tokens"),
    (kubernetes_reads_the_manifests, ("kuberay-sweep.yaml", 0, "spec", "clusterSelector"), {"name": "dfvt"}),
    (shells_read_the_scripts, ("aws.yaml", 0, "setup_commands", 0), "test -d ( || true"),
    (nodes_ask_for_a_token, ("aws.yaml", 0, "file_mounts"), {"a": "b"}),
    (
        nodes_ask_for_a_token,
        ("on-premise.yaml", 0, "worker_start_ray_commands", 1),
        replaced("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled"),
    ),
    (nodes_ask_for_a_token, ("kuberay.yaml", 1, "spec", "authOptions", "mode"), "disabled"),
    (nodes_ask_for_a_token, (*HEAD_CONTAINER, "env", 0, "name"), "RAY_AUTH_MODE"),
    (nodes_ask_for_a_token, ("kuberay-sweep.yaml", 0, "spec", "clusterSelector", "ray.io/cluster"), "other"),
    (
        dashboards_stay_inside,
        ("aws.yaml", 0, "head_start_ray_commands", 2),
        replaced("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"),
    ),
    (dashboards_stay_inside, (*HEAD, "serviceType"), "LoadBalancer"),
    (dashboards_stay_inside, (*HEAD, "enableIngress"), True),
    (dashboards_stay_inside, (*HEAD_CONTAINER, "ports", 1, "hostPort"), 8265),
    (dashboards_stay_inside, ("mlflow.yaml", 3, "spec", "type"), "NodePort"),
    (no_secret_has_a_value, (*SERVER, "env", 0), {"name": "POSTGRES_PASSWORD", "value": "x"}),
    (
        no_secret_has_a_value,
        (*SERVER, "env", 1, "value"),
        "postgresql://mlflow:hunter2@mlflow-postgres/mlflow",
    ),
    (
        ray_starts_with_what_it_needs,
        ("aws.yaml", 0, "worker_start_ray_commands", 1),
        replaced("$RAY_HEAD_IP:6379", "$RAY_HEAD_IP"),
    ),
    (
        ray_starts_with_what_it_needs,
        ("on-premise.yaml", 0, "head_start_ray_commands", 2),
        replaced("--port=6379", "--ports=6379"),
    ),
    (ray_starts_with_what_it_needs, (*HEAD, "rayStartParams", "dashboard_host"), "0.0.0.0"),
    (ray_starts_with_what_it_needs, (*HEAD_CONTAINER, "args", 0), replaced(". .venv/bin/activate\n", "")),
    (
        what_is_named_exists,
        ("kuberay-sweep.yaml", 0, "spec", "entrypoint"),
        replaced("variants_by_seeds", "variants_by_seed"),
    ),
    (what_is_named_exists, ("aws.yaml", 0, "head_setup_commands", 2), replaced("setup", "set-up")),
    (what_is_named_exists, (*HEAD_CONTAINER, "image"), "rayproject/ray:2.59.0-py312-cu130"),
    (what_is_named_exists, (*SERVER, "image"), "ghcr.io/mlflow/mlflow:latest"),
    (the_project_is_in_one_shared_folder, ("kuberay.yaml", 0, "spec", "accessModes", 0), "ReadWriteOnce"),
    (the_project_is_in_one_shared_folder, (*HEAD_CONTAINER, "volumeMounts", 1, "mountPath"), "/shm"),
    (the_project_is_in_one_shared_folder, ("aws.yaml", 0, "initialization_commands"), []),
    (the_manifests_fit_together, ("mlflow.yaml", 3, "spec", "selector", "app"), "mlfow"),
    (the_manifests_fit_together, (*SERVER, "env", 0, "valueFrom", "secretKeyRef", "key"), "pass"),
    (the_manifests_fit_together, (*SERVER, "volumeMounts", 0, "name"), "artefacts"),
    (the_manifests_fit_together, (*SERVER, "livenessProbe"), GONE),
    (the_manifests_fit_together, (*HEAD_CONTAINER, "env", 0, "value"), "http://mlflow:5001"),
]


@pytest.mark.parametrize(
    ("check", "place", "value"),
    MISTAKES,
    ids=[f"{check.__name__}-{'.'.join(map(str, place))}" for check, place, _ in MISTAKES],
)
def test_a_mistake_is_found(check: Callable[[Files], None], place: tuple[str | int, ...], value: Any) -> None:
    # Aliases make one object of several places in YAML, which JSON takes apart again.
    files = Files(read_files().texts, json.loads(json.dumps(read_files().documents)))
    node: Any = files.documents
    for step in place[:-1]:
        node = node[step]
    if value is GONE:
        del node[place[-1]]
    else:
        node[place[-1]] = value(node[place[-1]]) if callable(value) else value
    with pytest.raises((AssertionError, ValidationError, jsonschema.ValidationError, click.ClickException)):
        check(files)


@pytest.mark.parametrize(
    "line",
    [
        "MLFLOW_TRACKING_URI: http://me:hunter2@mlflow.example.org",
        "export RAY_AUTH_TOKEN=0123456789abcdef",
        'password: "correct-horse"',
        "aws_key: AKIAABCDEFGHIJKLMNOP",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
    ],
)
def test_a_secret_in_a_file_is_found(line: str) -> None:
    texts = read_files().texts | {"aws.yaml": f"{read_files().texts['aws.yaml']}# {line}\n"}
    with pytest.raises(AssertionError):
        no_secret_has_a_value(Files(texts, read_files().documents))
