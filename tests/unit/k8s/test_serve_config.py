"""The Serve file in the manifests is that of configs/, and right by Ray and by the product."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from tests.support.k8s_manifests import (
    K8S,
    OVERLAYS,
    REMOVE,
    ROOT,
    SHIPPED,
    build,
    one,
    ray_container,
    require_kustomize,
    run_kustomize,
    spoiled,
    write_overlay,
)
from truthgpt_serve.config import Source
from truthgpt_serve.validate import validate_file
from truthgpt_serve.validate.serve_file import check_serve_schema

CONFIGS = ROOT / "configs"
LOCAL_HOST = "host: 127.0.0.1"
CLUSTER_HOST = "host: 0.0.0.0"
AUTOSCALED = {
    "name": "ModelReplica",
    "autoscaling_config": {"min_replicas": 0, "max_replicas": 4, "target_ongoing_requests": 8},
    "ray_actor_options": {
        "num_cpus": 1,
        "num_gpus": 1,
        "label_selector": {"truthgpt.io/gpu": "l4"},
    },
}
"""What k8s/README.md shows for a model on one kind of GPU that scales from zero."""


def serve_config(overlay: str) -> str:
    text: str = one(build(overlay), "RayService")["spec"]["serveConfigV2"]
    return text


def faults_in(data: dict[str, Any]) -> str:
    """Returns the faults by Ray's schema, its unknown keys, and its autoscaling settings."""
    return "\n".join(map(str, check_serve_schema(data, Source("serveConfigV2"))))


@pytest.mark.parametrize("overlay", SHIPPED)
def test_the_serve_file_is_that_of_configs_but_for_the_host(overlay: str) -> None:
    ours = (CONFIGS / "serve.yaml").read_text(encoding="utf-8")
    assert ours.count(LOCAL_HOST) == 1
    assert serve_config(overlay) == ours.replace(LOCAL_HOST, CLUSTER_HOST)
    kept, deployed = yaml.safe_load(ours), yaml.safe_load(serve_config(overlay))
    assert deployed["http_options"].pop("host") == "0.0.0.0"
    assert kept["http_options"].pop("host") == "127.0.0.1"
    assert deployed == kept


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("host: 127.0.0.1", "host: 127.0.0.1 # twice: host: 127.0.0.1"),
        ("  - name: echo", "  # host: 127.0.0.1\n  - name: echo"),
        ("host: 127.0.0.1", "host: localhost"),
    ],
)
def test_a_serve_file_that_cannot_be_injected_does_not_pass(
    old: str, new: str, tmp_path: Path
) -> None:
    require_kustomize()
    shutil.copytree(CONFIGS, tmp_path / "configs")
    shutil.copytree(K8S, tmp_path / "k8s")
    changed = (CONFIGS / "serve.yaml").read_text(encoding="utf-8").replace(old, new, 1)
    (tmp_path / "configs" / "serve.yaml").write_text(changed, encoding="utf-8")
    done = run_kustomize(tmp_path / "k8s" / "base")
    if done.returncode == 0:
        manifests = [m for m in yaml.safe_load_all(done.stdout) if m["kind"] == "RayService"]
        found = manifests[0]["spec"]["serveConfigV2"]
        assert changed.replace(LOCAL_HOST, CLUSTER_HOST, 1) != found
    else:
        assert "out of bounds" in done.stderr


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_takes_the_serve_file(overlay: str) -> None:
    data = yaml.safe_load(serve_config(overlay))
    ServeDeploySchema.model_validate(data)
    assert faults_in(data) == ""


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("http_option", {}, "http_option"),
        ("http_options.prot", 1, "prot"),
        ("proxy_location", "Everywhere", "proxy_location"),
        ("applications.0.import_path", REMOVE, "import_path"),
        ("applications.0.route_prefixes", "/", "route_prefixes"),
        ("applications.1.name", "story", "story"),
        ("applications.0.deployments.0.num_replica", 2, "num_replica"),
        ("applications.0.deployments.0.ray_actor_options.num_gpu", 1, "num_gpu"),
        ("applications.0.deployments.0.ray_actor_options.label_selector.a", "-", "label"),
        ("applications.0.deployments.0.autoscaling_config.max_replica", 9, "max_replica"),
        ("applications.0.deployments.0.autoscaling_config.max_replicas", -1, "max_replicas"),
        ("applications.0.deployments.0.autoscaling_config.min_replicas", 5, "autoscaling_config"),
        ("applications.0.deployments.0.max_queued_requests", 0, "max_queued_requests"),
    ],
)
def test_mistakes_in_the_serve_file_are_found(path: str, value: Any, expected: str) -> None:
    data = yaml.safe_load(serve_config("base"))
    data["applications"][0]["deployments"] = [AUTOSCALED]
    assert faults_in(data) == ""
    wrong = spoiled(data, path, value)
    found = faults_in(wrong)
    if not found:  # Ray looks at the applications together only in the whole schema
        with pytest.raises(ValueError, match=expected):
            ServeDeploySchema.model_validate(wrong)
    else:
        assert expected in found


def mounted(folder: Path, overlay: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lays out what a Pod sees, from the ConfigMaps that it mounts; returns the Serve file."""
    manifests = build(overlay)
    head = one(manifests, "RayService")["spec"]["rayClusterConfig"]["headGroupSpec"]
    mount = next(m for m in ray_container(head)["volumeMounts"] if m["name"] == "models")
    volume = next(v for v in head["template"]["spec"]["volumes"] if v["name"] == "models")
    config_dir = folder / "configs"
    models = config_dir / Path(mount["mountPath"]).name
    models.mkdir(parents=True)
    for name, text in one(manifests, "ConfigMap", volume["configMap"]["name"])["data"].items():
        (models / name).write_text(text, encoding="utf-8")
    serve_file = folder / "serveConfigV2.yaml"
    keys = folder / "keys"  # of the Secret, as secrets.example.yaml has it
    keys.mkdir()
    (keys / "keys.yaml").write_text("keys: []\n", encoding="utf-8")
    text = serve_config(overlay).replace("/opt/truthgpt/keys", str(keys))
    serve_file.write_text(text, encoding="utf-8")
    (folder / "models").symlink_to(ROOT / "models")  # in the image (k8s/Dockerfile)
    environment = next(
        m["data"]
        for m in manifests
        if m["kind"] == "ConfigMap" and m["metadata"]["name"].startswith("truthgpt-env-")
    )
    monkeypatch.setenv("TRUTHGPT_KEYS_FILE", environment["TRUTHGPT_KEYS_FILE"])
    monkeypatch.setenv("TRUTHGPT_CONFIG_DIR", str(config_dir))
    monkeypatch.chdir(folder)
    return serve_file


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_model_is_right_with_what_a_pod_has(
    overlay: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_file = mounted(tmp_path, overlay, monkeypatch)
    report = validate_file(serve_file)
    assert report.faults == []
    applications = yaml.safe_load(serve_file.read_text(encoding="utf-8"))["applications"]
    assert len(report.checked) == len(applications)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("configs/models/story.yaml", "max_num_seqs", "max_num_seq"),
        ("configs/models/echo.yaml", "family: echo", "family: ecco"),
        ("configs/models/shapes.yaml", "_path: ./models/shapes", "_path: ./models/none"),
        ("configs/models/story.yaml", "path: ./models/story-moral", "path: ./models/none"),
        ("serveConfigV2.yaml", "models/echo.yaml", "models/gone.yaml"),
        ("serveConfigV2.yaml", "route_prefix: /models/echo", "route_prefix: /echo"),
    ],
)
def test_mistakes_in_models_are_found(
    file: str, old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_file = mounted(tmp_path, "base", monkeypatch)
    path = tmp_path / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    assert validate_file(serve_file).faults != []


def test_pods_ask_for_the_keys_of_a_secret(tmp_path: Path) -> None:
    lines = ["configMapGenerator:", "  - name: truthgpt-env", "    behavior: merge"]
    lines += ["    literals: [TRUTHGPT_KEYS_FILE=/opt/truthgpt/keys/keys.yaml]"]
    folder = write_overlay(tmp_path, ("components/gpu-l4",), "\n".join(lines))
    manifests = list(yaml.safe_load_all(run_kustomize(folder).stdout))
    values = [m["data"] for m in manifests if "TRUTHGPT_KEYS_FILE" in (m.get("data") or {})]
    assert [value["TRUTHGPT_KEYS_FILE"] for value in values] == ["/opt/truthgpt/keys/keys.yaml"]
    cluster = one(manifests, "RayService")["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert len(groups) == 3
    for group in groups:
        mounts = {m["name"]: m for m in ray_container(group)["volumeMounts"]}
        assert mounts["keys"]["mountPath"] == "/opt/truthgpt/keys"
        assert "subPath" not in mounts["keys"]  # such a mount sees no change
        volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
        assert volumes["keys"]["secret"] == {"secretName": "truthgpt-keys", "optional": True}


def test_every_model_of_the_serve_file_is_mounted() -> None:
    # The other files of configs/models change nothing until the Serve file names them.
    listed = yaml.safe_load((CONFIGS / "kustomization.yaml").read_text(encoding="utf-8"))
    generators = {entry["name"]: entry for entry in listed["configMapGenerator"]}
    files = set(generators["truthgpt-models"]["files"])
    served = yaml.safe_load((CONFIGS / "serve.yaml").read_text(encoding="utf-8"))
    args = [application["args"] for application in served["applications"]]
    named = {entry["config"] for entry in args if "config" in entry}
    assert named
    assert named <= files


def test_the_environment_is_that_of_configs() -> None:
    manifests = build("base")
    data = next(
        m["data"]
        for m in manifests
        if m["kind"] == "ConfigMap" and m["metadata"]["name"].startswith("truthgpt-ray-env-")
    )
    # As a shell reads the file, which is how it is read everywhere else.
    command = f"set -a; . {CONFIGS / 'ray.env'}; env"
    done = subprocess.run(
        ["env", "-i", "bash", "-c", command], capture_output=True, text=True, timeout=30
    )
    shell = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert data
    assert data.items() <= shell.items()


def test_images_of_a_registry_reach_every_container(tmp_path: Path) -> None:
    names = ("head", "cpu", "cuda")
    lines = ["images:"]
    for name in names:
        lines += [f"  - name: truthgpt-serve-{name}", f"    newName: registry.test/{name}"]
    folder = write_overlay(tmp_path, ("components/gpu-l4",), "\n".join(lines))
    text = run_kustomize(folder).stdout
    assert {f"image: registry.test/{name}:0.1.0" for name in names} <= {
        line.strip() for line in text.splitlines()
    }
    assert "image: truthgpt-serve" not in text
