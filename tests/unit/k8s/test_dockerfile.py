"""k8s/Dockerfile is linted, not built: there is no Docker where the tests run."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest

from tests.support.k8s_dockerfile import (
    ENGINES,
    dockerfile_faults,
    installed_in,
    read_stages,
)
from tests.support.k8s_manifests import K8S, ROOT, build, environment, groups, one, ray_container

TARGETS = ("head", "cpu", "cuda")
TEXT = (K8S / "Dockerfile").read_text(encoding="utf-8")


def test_the_dockerfile_has_no_faults() -> None:
    assert dockerfile_faults(TEXT, ROOT, TARGETS) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("python:3.11.14-slim-bookworm", "python:3-slim", "not pinned"),
        ("python:3.11.14-slim-bookworm", "python", "not pinned"),
        ("python:3.11.14-slim-bookworm", "python:latest", "python:latest is not pinned"),
        ("python:3.11.14-slim-bookworm", "python@sha256:1234", "not pinned"),
        ("python:3.11.14-slim-bookworm", "registry.test:5000/python", "not pinned"),
        ("BASE=python:3.11.14-slim-bookworm", "BASE", "has no default"),
        ("ARG BASE=", "ARG BASIS=", "has no default"),
        ("${BASE} AS", "python:3.11 AS", "python:3.11 is not pinned"),
        ("AS cuda", "AS gpu", "no stage cuda"),
        ("USER 1000:1000", "", "runs as root"),
        ("USER 1000:1000", "USER root", "runs as root"),
        ("USER 1000:1000", "USER 0:0", "runs as 0:0"),
        (" procps wget", " procps", "wget is missing"),
        ("ca-certificates grep", "ca-certificates", "grep is missing"),
        ("recommends bash", "recommends", "bash is missing"),
        ("COPY deployments", "COPY deploiments", "deploiments does not exist"),
        ("COPY constraints-cpu.txt", "COPY constraints.txt", "constraints.txt does not exist"),
        ("--from=packages-cuda", "--from=packages-gpu", "no stage packages-gpu"),
        ("from=product,", "from=wheel,", "no stage wheel"),
        ("-c constraints-cpu.txt -r", "-r", "pip without constraints"),
        ("-c /opt/truthgpt/shared.txt", "", "pip without constraints"),
        ("k8s/requirements.py ./", "k8s/requirements.py deployments ./", "the product in it"),
        ("--no-cache-dir /wheels/*.whl", "torch", "the product is missing"),
        ("g++ libc6-dev", "gcc libc6-dev", "g++ is missing"),
        ("    && rm -rf /var/lib/apt/lists/* \\\n", "", "apt's lists"),
        ('CMD ["bash"]', "CMD bash", "CMD is not a list"),
        ("WORKDIR /src", "WORKDIRS /src", "no instruction"),
    ],
)
def test_mistakes_are_found(old: str, new: str, expected: str) -> None:
    assert old in TEXT
    assert expected in "\n".join(dockerfile_faults(TEXT.replace(old, new), ROOT, TARGETS))


@pytest.mark.parametrize(
    "image", ["python", "python:3.11.14-slim-bookworm", "r.test:5000/a/python"]
)
def test_the_base_can_be_fixed_by_its_digest(image: str) -> None:
    base = f"{image}@sha256:{'0a' * 32}"
    text = re.sub(r"^ARG BASE=.*$", f"ARG BASE={base}", TEXT, flags=re.M)
    assert dockerfile_faults(text, ROOT, TARGETS) == []
    stages = read_stages(text)
    outside = {stage.base for stage in stages.values()} - {*stages}
    assert outside == {base}  # one argument fixes all that is not built here


def test_the_head_has_no_engine_and_the_others_have() -> None:
    stages = read_stages(TEXT)
    assert [word for word in ENGINES if word in installed_in("head", stages)] == []
    assert "requirements.py cpu images" in installed_in("cpu", stages)
    assert "requirements.py gpu images" in installed_in("cuda", stages)


def test_extras_exist_and_the_python_is_supported() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = {
        name for text in re.findall(r"requirements\.py ([a-z ]+) >", TEXT) for name in text.split()
    }
    assert {"cpu", "gpu", "images"} <= extras <= set(project["optional-dependencies"])
    python = re.findall(r"python:(\d+\.\d+)", TEXT)
    assert f"Programming Language :: Python :: {python[0]}" in project["classifiers"]
    images = {group["image"] for group in map(ray_container, ray_groups())}
    assert {image.rpartition(":")[2] for image in images} == {project["version"]}


def test_requirements_are_those_of_the_project() -> None:
    script = K8S / "requirements.py"
    done = subprocess.run(
        [sys.executable, str(script), "gpu", "images"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"]
    lines = done.stdout.splitlines()
    assert set(lines) == {*project["dependencies"], *extras["gpu"], *extras["images"]}
    assert len(set(lines)) == len(lines)


def ray_groups() -> list[dict[str, object]]:
    return [group for _, group in groups(one(build("overlays/nvidia"), "RayService"))]


def test_manifests_and_images_agree_on_folders() -> None:
    manifests = build("overlays/nvidia")
    stages = read_stages(TEXT)
    variables = environment(manifests, ray_container(ray_groups()[0]))
    assert variables["TRUTHGPT_CONFIG_DIR"] == "/opt/truthgpt/configs"
    assert variables["RAY_SERVE_HAPROXY_BINARY_PATH"] == "/opt/truthgpt/venv/bin/truthgpt-haproxy"
    for target in TARGETS:
        copies = "\n".join(stages[target].all("COPY"))
        assert " /opt/truthgpt/venv /opt/truthgpt/venv" in copies
        # A model's ./models/<name> is looked up beside the configurations' folder.
        assert "models /opt/truthgpt/models" in stages[target].all("COPY")
        assert set(stages[target].all("USER")) == {"1000:1000"}
    for group in ray_groups():
        context = group["template"]["spec"]["securityContext"]  # type: ignore[index] # parsed YAML
        assert (context["runAsUser"], context["runAsGroup"]) == (1000, 1000)


def test_the_context_is_what_is_copied() -> None:
    ignored = (K8S / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = {
        word
        for stage in read_stages(TEXT).values()
        for copy in stage.all("COPY")
        if "--from" not in copy
        for word in copy.split()[:-1]
    }
    assert copied == kept
