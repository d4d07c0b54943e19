"""What the prefetch Job would download, by the program that it runs."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import yaml

from tests.support.k8s_manifests import K8S, ROOT, build, one
from truthgpt_serve.config.model import ModelConfig
from truthgpt_serve.registry import MODEL_REGISTRY


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
    found, failed = prefetch.hub_weights({"applications": [first, {**first, "name": "two"}]})
    assert failed == []
    assert [(item.repository, item.revision) for item in found] == [
        ("org/model", "abc"),
        ("org/adapter", None),
    ]


def names(prefetch: ModuleType, family: str, engine: dict[str, Any], **model: Any) -> Any:
    args = {
        "model": {"family": family, "name_or_path": "org/m", **model},
        "serving": {"engine": engine},
    }
    found, failed = prefetch.hub_weights({"applications": [application("one", args)]})
    assert failed == []
    return {item.repository: item for item in found}


def test_what_an_engine_loads_beside_the_model_is_found(prefetch: ModuleType) -> None:
    engine = {
        "tokenizer": "org/tokenizer",
        "tokenizer_revision": "v1",
        "hf_config_path": "org/config",
        "generation_config": "org/generation",
        "speculative_config": {"model": "org/draft", "revision": "v2", "num_speculative_tokens": 2},
        "default_mm_loras": {"audio": "org/speech"},
    }
    found = names(prefetch, "vllm", engine)
    assert {name.removeprefix("org/"): item.revision for name, item in found.items()} == {
        "m": None,
        "tokenizer": "v1",
        "config": None,
        "generation": None,
        "draft": "v2",
        "speech": None,
    }
    assert [name for name, item in found.items() if not item.weights] == [
        "org/tokenizer",
        "org/config",
        "org/generation",
    ]
    parts = {"vae": "org/vae", "controlnet": "org/control", "variant": "fp16"}
    words = {"textual_inversion": ["org/toy", "./toy.safetensors", "org/cat"]}
    found = names(prefetch, "hf-diffusers", {**parts, **words}, adapter=["org/a", "org/b"])
    wanted = ["org/m", "org/a", "org/b", "org/vae", "org/control", "org/toy", "org/cat"]
    assert list(found) == wanted
    assert found["org/m"].variant == "fp16"


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ({"speculative_config": {"method": "ngram", "model": "ngram"}}, []),
        ({"speculative_config": '{"method": "eagle3", "model": "org/e"}'}, ["org/e"]),
        ({"spec_method": "draft_model", "spec_model": "org/draft"}, ["org/draft"]),
        ({"spec_method": "custom_class", "spec_model": "my.Drafter"}, []),
        ({"generation_config": "vllm"}, []),
        ({"tokenizer": None}, []),
    ],
)
def test_drafts_that_are_no_model_are_left_out(
    prefetch: ModuleType, engine: dict[str, Any], expected: list[str]
) -> None:
    assert list(names(prefetch, "vllm", engine)) == ["org/m", *expected]


ENGINE = "serving.engine"
NOT_SERVED = {"data.dataset", "data.eval_dataset", "training.prior.images", "training.reward_model"}
"""What only `truthgpt train` reads, which no Pod does."""
NO_NAME = {
    "data": "fields, captions and subsets of a data set",
    "training": "prompts and words",
    "hardware": "",
    "run_name": "",
    "model.family": "",
    "model.revision": "read with name_or_path",
    "model_optim": "names of layers and methods",
    f"{ENGINE}.tokenizer_revision": "read with tokenizer",
    f"{ENGINE}.variant": "part of file names",
    f"{ENGINE}.pipeline": "a class",
    f"{ENGINE}.gguf_file": "a local file",
    f"{ENGINE}.row_caps_file": "a local file, written",
    f"{ENGINE}.file": "within name_or_path",
    f"{ENGINE}.schedulers": "classes",
    f"{ENGINE}.embedding_prompt": "",
    f"{ENGINE}.provider_options": "",
}
"""Texts that name no model, by their beginning."""
VLLM_NO_NAME = {
    "chat_template": "a local file or a text",
    "code_revision": "of code, which an image has",
    "cohere_format": "",
    "download_dir": "a folder, where HF_HOME should be",
    "hf_overrides": "keys and values",
    "lora_target_modules": "names of layers",
    "max_model_len": "a number",
    "mm_encoder_fp8_scale_path": "a local file",
    "model_class_overrides": "classes",
    "model_impl": "",
    "model_loader_extra_config": "settings of the loader",
    "reasoning_parser_plugin": "a local file",
    "tokenizer_mode": "",
    "tokenizer_revision": "read with tokenizer",
}
VLLM_NAMES = re.compile(r"model|draft|tokenizer|lora|adapter|repo")
VLLM_HELP = re.compile(r"hugging ?face|name or path|\bpath|hub\b|model paths", re.I)


def is_free(node: dict[str, Any]) -> bool:
    """Tells whether a schema takes texts that are not of a list or a form."""
    forms = [node, *node.get("anyOf", [])]
    return any(
        "string" in str(each.get("type")) and not {"enum", "const", "pattern"} & each.keys()
        for each in forms
    )


def text_keys(schema: dict[str, Any], node: Any = None, path: str = "") -> Iterator[str]:
    """Yields the dotted paths at which a schema takes a free text."""
    node = schema if node is None else node
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    if is_free(node):
        yield path
    for each in node.get("anyOf", []):
        if not is_free(each):
            yield from text_keys(schema, each, path)
    for name, each in node.get("properties", {}).items():
        yield from text_keys(schema, each, f"{path}.{name}".lstrip("."))
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            yield from text_keys(schema, node[key], f"{path}.*")


def vllm_keys(schema: dict[str, Any]) -> Iterator[str]:
    """Yields the engine's arguments whose description speaks of models, of some 300."""
    for name, node in schema["properties"].items():
        kinds = str(node.get("type"))
        hinted = VLLM_NAMES.search(name) or VLLM_HELP.search(node["description"])
        is_text = any(kind in kinds for kind in ("string", "object", "array"))
        if hinted and is_text and "enum" not in node and name not in VLLM_NO_NAME:
            yield f"{name}.*" if kinds == "object" else name


def test_every_key_that_may_name_a_model_is_known(prefetch: ModuleType) -> None:
    taken = {key.path for key in prefetch.KEYS}
    found = {path for path in text_keys(ModelConfig.model_json_schema()) if path}
    for family, spec in MODEL_REGISTRY.items():
        if spec.engine_config is not None and family != "remote":  # which loads nothing
            schema = spec.engine_config.model_json_schema()
            keys = vllm_keys(schema) if family == "vllm" else text_keys(schema)
            found |= {f"{ENGINE}.{key}" for key in keys}
    found = {"model.adapter.*" if path == "model.adapter" else path for path in found}
    unknown = {key for key in found - taken - NOT_SERVED if not key.startswith(tuple(NO_NAME))}
    assert unknown == set(), "each belongs into KEYS of prefetch.py, or into a table here"
    assert taken - found == {f"{ENGINE}.speculative_config.model"}, "of a mapping without a schema"


TEXT_FILES = [
    "README.md",
    "config.json",
    "consolidated.safetensors",
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "onnx/model.onnx",
    "original/consolidated.00.pth",
    "pytorch_model.bin",
    "tokenizer.json",
    "tf_model.h5",
]
PIPELINE_FILES = [
    "all-in-one.safetensors",
    "model_index.json",
    "text_encoder/model.safetensors",
    "unet/config.json",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.fp16.safetensors",
]


@pytest.mark.parametrize(
    ("files", "options", "expected"),
    [
        (
            TEXT_FILES,
            {"family": "vllm"},
            [
                "README.md",
                "config.json",
                "model-00001-of-00002.safetensors",
                "model.safetensors.index.json",
                "tokenizer.json",
            ],
        ),
        (
            TEXT_FILES,
            {"family": "vllm", "mistral": True},
            [
                "README.md",
                "config.json",
                "consolidated.safetensors",
                "model.safetensors.index.json",
                "tokenizer.json",
            ],
        ),
        (
            TEXT_FILES,
            {"weights": False},
            ["README.md", "config.json", "model.safetensors.index.json", "tokenizer.json"],
        ),
        (["config.json", "pytorch_model.bin"], {}, ["config.json", "pytorch_model.bin"]),
        (["config.json", "onnx/model.onnx"], {"family": "onnxruntime"}, None),
        (
            PIPELINE_FILES,
            {},
            [
                "model_index.json",
                "text_encoder/model.safetensors",
                "unet/config.json",
                "unet/diffusion_pytorch_model.safetensors",
                "vae/diffusion_pytorch_model.fp16.safetensors",
            ],
        ),
        (
            PIPELINE_FILES,
            {"variant": "fp16"},
            [
                "model_index.json",
                "text_encoder/model.safetensors",
                "unet/config.json",
                "unet/diffusion_pytorch_model.fp16.safetensors",
                "vae/diffusion_pytorch_model.fp16.safetensors",
            ],
        ),
    ],
)
def test_only_files_that_are_loaded_are_taken(
    prefetch: ModuleType, files: list[str], options: dict[str, Any], expected: list[str] | None
) -> None:
    wanted = prefetch.Weights("org/m", **options)
    assert prefetch.loaded_files(files, wanted) == (files if expected is None else expected)


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for one repository, `org/good`; all others are not there."""

    COMMIT = "1" * 40
    FILES: ClassVar[dict[str, bytes]] = {
        "config.json": b"{}",
        "model.safetensors": b"safe",
        "pytorch_model.bin": b"pickle",
    }

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        file = path.removeprefix(f"/org/good/resolve/{self.COMMIT}/")
        if path.startswith("/api/models/org/good/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": "2" * 40}
                for name, data in self.FILES.items()
            ]
            self.answer(200, json.dumps(tree).encode(), "application/json")
        elif path.startswith("/api/models/org/good"):
            files = [{"rfilename": name} for name in self.FILES]
            body = json.dumps({"id": "org/good", "sha": self.COMMIT, "siblings": files}).encode()
            self.answer(200, body, "application/json")
        elif file in self.FILES:
            self.answer(200, self.FILES[file], "application/octet-stream")
        else:
            self.answer(404, b"", "text/plain")

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.COMMIT)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Says nothing."""


def test_one_failure_does_not_stop_the_rest(tmp_path: Path) -> None:
    models = [
        application(name, {"model": {"family": "vllm", "name_or_path": f"org/{name}"}})
        for name in ("gone", "good")
    ]
    models.insert(0, application("faulty", {"model": {"famly": "vllm"}}))
    serve_file = tmp_path / "serve.yaml"
    serve_file.write_text(yaml.safe_dump({"applications": models}), encoding="utf-8")
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            done = subprocess.run(
                [sys.executable, str(K8S / "base" / "prefetch.py"), str(serve_file)],
                env={
                    **{k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"},
                    "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
                    "HF_HOME": str(tmp_path / "hub"),
                },
                capture_output=True,
                text=True,
                timeout=120,
            )
        finally:
            server.shutdown()
            thread.join(timeout=30)
    assert done.returncode == 1
    assert "2 failed" in done.stderr
    assert "faulty: " in done.stderr
    assert "org/gone: RepositoryNotFoundError" in done.stderr
    [folder] = (tmp_path / "hub").glob("hub/models--org--good/snapshots/*")
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == b"safe"


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
    assert prefetch.hub_weights({"applications": applications}) == ([], [])


def test_the_shipped_files_can_be_read(
    prefetch: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUTHGPT_CONFIG_DIR", str(ROOT / "configs"))
    serve_file = yaml.safe_load((ROOT / "configs" / "serve.yaml").read_text(encoding="utf-8"))
    assert prefetch.hub_weights(serve_file) == ([], [])


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
