"""What the prefetch Job would download, by the program that it runs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.support.k8s_manifests import K8S, ROOT, build, one
from truthgpt_serve.errors import ConfigError


@pytest.fixture(scope="module")
def prefetch() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prefetch", K8S / "base" / "prefetch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def application(name: str, args: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "import_path": "truthgpt_serve.app:model", "args": args}


def test_hub_weights_and_adapters_are_found_once(prefetch: ModuleType) -> None:
    model = {"family": "vllm", "name_or_path": "org/model", "revision": "abc"}
    adapters = [{"name": "a", "path": "org/adapter"}, {"name": "b", "path": "/gone/adapter"}]
    first = application("one", {"model": model, "serving": {"adapters": adapters}})
    found = prefetch.hub_weights({"applications": [first, {**first, "name": "two"}]})
    assert [(item.repository, item.revision) for item in found] == [
        ("org/model", "abc"),
        ("org/adapter", None),
    ]


def test_local_weights_other_applications_and_models_without_weights_are_left_out(
    prefetch: ModuleType, tmp_path: Path
) -> None:
    applications = [
        application("local", {"model": {"family": "vllm", "name_or_path": str(tmp_path)}}),
        application("later", {"model": {"family": "vllm", "name_or_path": "./.models/later"}}),
        application("echo", {"model": {"family": "echo"}}),
        application("far", {"model": {"family": "remote", "name_or_path": "https://a.test/v1"}}),
        {"name": "router", "import_path": "truthgpt_serve.app:router", "args": {}},
        {"name": "other", "import_path": "my.app:build"},
    ]
    assert prefetch.hub_weights({"applications": applications}) == []


def test_a_faulty_model_stops_it(prefetch: ModuleType) -> None:
    with pytest.raises(ConfigError, match="famly"):
        prefetch.hub_weights({"applications": [application("x", {"model": {"famly": "vllm"}})]})


def test_the_shipped_files_can_be_read(
    prefetch: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUTHGPT_CONFIG_DIR", str(ROOT / "configs"))
    serve_file = yaml.safe_load((ROOT / "configs" / "serve.yaml").read_text(encoding="utf-8"))
    assert prefetch.hub_weights(serve_file) == []


def test_the_job_runs_this_program_on_the_serve_file() -> None:
    manifests = build("base")
    spec = one(manifests, "Job")["spec"]["template"]["spec"]
    container = spec["containers"][0]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    sources = {v["name"]: v["configMap"]["name"] for v in spec["volumes"] if "configMap" in v}
    _, program, serve_file = container["command"]
    files = {
        f"{mounts[name]}/{key}": text
        for name, config in sources.items()
        for key, text in one(manifests, "ConfigMap", config)["data"].items()
    }
    assert files[program] == (K8S / "base" / "prefetch.py").read_text(encoding="utf-8")
    assert files[serve_file] == (ROOT / "configs" / "serve.yaml").read_text(encoding="utf-8")
