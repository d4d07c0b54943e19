from __future__ import annotations

import asyncio
import fcntl
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from deployments.vllm.application.generic import create_backend
from deployments.vllm.application.local_request import LocalRequest
from deployments.vllm.arguments import load_arguments, open_arguments, set_elsewhere
from deployments.vllm.config import (
    FAMILY,
    EngineConfig,
    attention_backend,
    check_config,
    default_ongoing_requests,
    gpu_memory_share,
    tensor_parallel_size,
)
from deployments.vllm.hardware import (
    CPU_KV_CACHE_BYTES,
    binds_threads,
    gpu_turn,
    prepare_cpu,
    turn_file,
)
from deployments.vllm.tiny_model import make_tiny_adapter, make_tiny_llama
from truthgpt_serve.config import load_model_config
from truthgpt_serve.errors import RequestError, UnavailableError
from truthgpt_serve.server.infer.routes import Caller


def make_cfg(**changes: Any) -> dict[str, Any]:
    source = {"model": {"name_or_path": "some/model"}, "hardware": {"gpus": 0}, **changes}
    return load_model_config(source).to_cfg()


def faults_of(engine: dict[str, Any]) -> dict[str, str]:
    try:
        EngineConfig.model_validate(engine)
    except ValidationError as error:
        return {".".join(map(str, fault["loc"])): fault["msg"] for fault in error.errors()}
    return {}


def test_list_of_arguments_is_that_of_the_installed_engine(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, root / "scripts/generate_engine_arguments.py", "--check"],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=root,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_configuration_imports_no_engine() -> None:
    code = (
        "import sys, deployments.vllm.config;"
        "print([m for m in ('vllm', 'torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_good_arguments_pass() -> None:
    engine = {
        "max_model_len": "8k",
        "max_num_batched_tokens": 4096,
        "enforce_eager": True,
        "gpu_memory_utilization": 0.5,
        "enable_auto_tool_choice": True,
        "tool_call_parser": "hermes",
        "compilation_config": {"mode": 0},
        "hf_overrides": {"a": 1},
        "speculative_config": {"method": "ngram"},
        "optimization_level": 2,
        "kv_cache_dtype": "fp8",
        "chat_template": None,
        "cudagraph_capture_sizes": [1, 2],
        "allowed_origins": ["*"],
        "middleware": ["my.module.function"],
        "allowed_media_domains": ["images.example.com", "localhost", "127.0.0.1", "[::1]"],
    }
    assert faults_of(engine) == {}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("max_modle_len", 1, "did you mean 'max_model_len'?"),
        ("--enforce-eager", True, "did you mean 'enforce_eager'?"),
        ("zzz", 1, "no argument 'zzz'"),
        ("enforce_eager", "yes", "must be true or false, not 'yes'"),
        ("enforce_eager", 1, "must be true or false, not 1"),
        ("max_num_seqs", True, "must be a whole number, not True"),
        ("max_num_seqs", "8", "must be a whole number, not '8'"),
        ("max_model_len", "8 k", "must be a whole number, or one with a suffix"),
        ("max_model_len", "1.5K", "must be a whole number, or one with a suffix"),
        ("gpu_memory_utilization", "half", "must be a number, not 'half'"),
        ("kv_cache_dtype", "fp7", "must be one of auto, bfloat16"),
        ("chat_template", 3, "must be a string"),
        ("compilation_config", "x", "must be a mapping"),
        ("cudagraph_capture_sizes", 3, "must be a list of whole numbers"),
        ("cudagraph_capture_sizes", [], "must be a list of whole numbers"),
        ("tool_call_parser", "hermess", "did you mean 'hermes'?"),
        ("reasoning_parser", "zzzzzz", "no reasoning_parser 'zzzzzz'"),
        ("enable_auto_tool_choice", True, "needs `tool_call_parser`"),
        ("allowed_media_domains", ["https://a.org"], "'https://a.org' is not a host name"),
        ("allowed_media_domains", ["a.org", "*.b.org"], "'*.b.org' is not a host name"),
        ("allowed_media_domains", ["a.org:80"], "'a.org:80' is not a host name"),
        ("model", "a/b", "set `model.name_or_path`"),
        ("served_model_name", "a", "application's name"),
        ("dtype", "float32", "set `model_optim.dtype`"),
        ("seed", 1, "set the top-level `seed`"),
        ("port", 1, "set `http_options.port`"),
        ("lora_modules", [], "in `serving.adapters`"),
        ("data_parallel_size", 2, "set `serving.num_replicas`"),
        ("ssl_keyfile", "a", "TLS"),
        ("uvicorn_log_level", "info", "logging_config"),
        ("api_key", ["a"], "in front of the service"),
        ("root_path", "/x", "/models/<name>"),
    ],
)
def test_bad_argument_has_one_fault_at_its_key(key: str, value: Any, message: str) -> None:
    faults = faults_of({key: value, "max_logprobs": 5})
    assert list(faults) == [key]
    assert message in faults[key]


def test_all_faults_are_found_together() -> None:
    assert set(faults_of({"port": 1, "max_num_seqs": "a", "nope": 0})) == {
        "port",
        "max_num_seqs",
        "nope",
    }


def test_parser_of_a_plugin_is_not_looked_up() -> None:
    engine = {"tool_call_parser": "mine", "tool_parser_plugin": "mine.py"}
    assert faults_of(engine) == {}


def test_schema_lists_what_may_be_given() -> None:
    properties = EngineConfig.model_json_schema()["properties"]
    assert set(properties) == set(open_arguments())
    assert properties["max_num_seqs"]["type"] == "integer"
    assert "model" not in properties
    assert all(set_elsewhere(name) or name in properties for name in load_arguments())


@pytest.mark.parametrize(
    ("gpus", "share"), [(0, None), (1, None), (2, None), ("auto", None), (0.4, 0.38), (0.25, 0.23)]
)
def test_fraction_of_a_gpu_less_the_margin(gpus: Any, share: float | None) -> None:
    assert gpu_memory_share(make_cfg(hardware={"gpus": gpus})) == share


@pytest.mark.parametrize(
    ("gpus", "engine", "path"),
    [
        (0.4, {"gpu_memory_utilization": 0.9}, "serving.engine.gpu_memory_utilization"),
        (0.4, {"gpu_memory_utilization": 0.39}, "serving.engine.gpu_memory_utilization"),
        (0.4, {"gpu_memory_utilization": 0.38}, None),
        (1, {"gpu_memory_utilization": 0.95}, None),
        (0.01, {}, "hardware.gpus"),
        (2, {"tensor_parallel_size": 4}, "serving.engine.tensor_parallel_size"),
        (0.5, {"tensor_parallel_size": 2}, "serving.engine.tensor_parallel_size"),
        (4, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, None),
        (4, {"pipeline_parallel_size": 2}, None),
        (3, {"pipeline_parallel_size": 2}, "serving.engine.pipeline_parallel_size"),
        (0, {"tensor_parallel_size": 2}, None),
        (0, {"max_loras": 2}, "serving.engine.max_loras"),
    ],
)
def test_sections_are_checked_together(gpus: Any, engine: dict[str, Any], path: str | None) -> None:
    faults = check_config(make_cfg(hardware={"gpus": gpus}, serving={"engine": engine}))
    assert [fault[0] for fault in faults] == ([path] if path else [])


@pytest.mark.parametrize(
    ("optim", "path", "fix"),
    [
        ({"quantization": "fp9"}, "model_optim.quantization", "did you mean 'fp8'?"),
        ({"attention": "xformers"}, "model_optim.attention", "known: "),
        ({"quantization": "fp8", "attention": "flashinfer"}, None, ""),
        ({"attention": "flash_attn"}, None, ""),
    ],
)
def test_names_that_the_engine_must_know(optim: dict[str, Any], path: str | None, fix: str) -> None:
    faults = check_config(make_cfg(model_optim=optim))
    assert [fault[0] for fault in faults] == ([path] if path else [])
    assert all(fix in fault[2] for fault in faults)


def test_attention_names() -> None:
    assert attention_backend(make_cfg()) is None
    assert attention_backend(make_cfg(model_optim={"attention": "flash"})) == "FLASH_ATTN"


def test_whole_gpus_become_tensor_parallelism() -> None:
    assert tensor_parallel_size(make_cfg(hardware={"gpus": 4})) == 4
    engine = {"pipeline_parallel_size": 2}
    cfg = make_cfg(hardware={"gpus": 4}, serving={"engine": engine})
    assert tensor_parallel_size(cfg) == 2
    assert tensor_parallel_size(make_cfg(hardware={"gpus": 0.5})) == 1


@pytest.mark.parametrize(
    ("hardware_section", "engine", "number"),
    [
        ({"gpus": 0}, {}, 128),
        ({"gpus": 0}, {"max_num_seqs": 7}, 7),
        ({"gpus": 0}, {"performance_mode": "throughput"}, 256),
        ({"gpus": 0}, {"max_num_batched_tokens": 64}, 64),
        ({"gpus": 0}, {"tensor_parallel_size": 2}, 256),
        ({"gpus": 1}, {}, 1024),
        ({"gpus": 0.5, "accelerator_type": "H100"}, {}, 1024),
        ({"gpus": 1, "accelerator_type": "A100"}, {}, 256),
        ({"gpus": 1, "accelerator_type": "L4"}, {}, 256),
        ({"gpus": "auto", "device": "cpu"}, {}, 128),
    ],
)
def test_default_ongoing_requests(
    hardware_section: dict[str, Any], engine: dict[str, Any], number: int
) -> None:
    cfg = make_cfg(hardware=hardware_section, serving={"engine": engine})
    assert default_ongoing_requests(cfg) == number


def test_auto_gpus_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = make_cfg(hardware={"gpus": "auto"})
    for value, number in (("cpu", 128), ("gpu", 1024)):
        monkeypatch.setenv("TRUTHGPT_ACCELERATOR", value)
        assert default_ongoing_requests(cfg) == number


def test_family_is_found_by_its_entry_point() -> None:
    from truthgpt_serve.registry import MODEL_REGISTRY

    assert MODEL_REGISTRY["vllm"] is FAMILY


def test_cpu_threads_follow_cpus_and_bind_no_core() -> None:
    environ = {"OMP_NUM_THREADS": "9"}
    cfg = make_cfg(hardware={"gpus": 0, "cpus": 3})
    assert prepare_cpu(cfg, environ) == CPU_KV_CACHE_BYTES
    assert environ == {"OMP_NUM_THREADS": "3", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    assert not binds_threads(environ)


def test_cpu_settings_from_outside_are_kept() -> None:
    environ = {"VLLM_CPU_OMP_THREADS_BIND": "0-3", "VLLM_CPU_KVCACHE_SPACE": "2"}
    assert prepare_cpu(make_cfg(), environ) is None
    assert environ == {"VLLM_CPU_OMP_THREADS_BIND": "0-3", "VLLM_CPU_KVCACHE_SPACE": "2"}
    assert binds_threads(environ)


@pytest.mark.parametrize(("eager", "expected"), [(True, "1"), (False, None)])
def test_an_eager_engine_compiles_nothing_for_a_request(eager: bool, expected: str | None) -> None:
    environ: dict[str, str] = {}
    prepare_cpu(make_cfg(serving={"engine": {"enforce_eager": eager}}), environ)
    assert environ.get("TORCH_COMPILE_DISABLE") == expected


def test_kv_cache_of_the_model_wins_over_the_environment() -> None:
    environ = {"VLLM_CPU_KVCACHE_SPACE": "2"}
    engine = {"kv_cache_memory_bytes": "64M"}
    assert prepare_cpu(make_cfg(serving={"engine": engine}), environ) is None
    assert "VLLM_CPU_KVCACHE_SPACE" not in environ


async def test_replicas_of_one_gpu_take_turns(tmp_path: Path) -> None:
    cfg = make_cfg(hardware={"gpus": 0.5})
    events: list[str] = []

    async def start(name: str) -> None:
        async with gpu_turn(cfg, timeout_s=10, folder=tmp_path):
            events.append(f"{name} begins")
            await asyncio.sleep(0.05)
            events.append(f"{name} ends")

    await asyncio.gather(start("a"), start("b"))
    assert [event.split()[1] for event in events] == ["begins", "ends", "begins", "ends"]


async def test_turn_that_does_not_come_is_an_error(tmp_path: Path) -> None:
    shared, whole = make_cfg(hardware={"gpus": 0.5}), make_cfg(hardware={"gpus": 1})
    with turn_file(tmp_path).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UnavailableError, match=r"were still starting after 0\.1 s"):
            async with gpu_turn(shared, timeout_s=0.1, folder=tmp_path):
                pass
        async with gpu_turn(whole, timeout_s=0.1, folder=tmp_path):
            pass


def test_tiny_model_is_the_same_every_time(tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        folder = make_tiny_llama(tmp_path / name)
        contents.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert contents[0] == contents[1]
    config = json.loads(contents[0]["config.json"])
    assert config["max_position_embeddings"] >= 2048
    times = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    make_tiny_llama(tmp_path / "b")
    assert times == {file: file.stat().st_mtime_ns for file in folder.iterdir()}


def test_tiny_adapters_differ_by_seed(tmp_path: Path) -> None:
    weights = [
        (make_tiny_adapter(tmp_path / str(seed), seed=seed) / "adapter_model.safetensors")
        for seed in (1, 2)
    ]
    assert weights[0].read_bytes() != weights[1].read_bytes()


def test_tiny_model_does_not_overwrite_a_strangers_folder(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(FileExistsError, match="name another folder"):
        make_tiny_llama(tmp_path)
    assert (tmp_path / "note").read_text() == "mine"


async def answer_in_pieces(scope: Any, receive: Any, send: Any) -> None:
    body = json.loads((await receive())["body"])
    await send({"type": "http.response.start", "status": 200, "headers": []})
    # A cut in the middle of an event, and of a character.
    text = "".join(
        f"data: {json.dumps({'choices': [{'text': part, 'finish_reason': None}]})}\n\n"
        for part in (body["prompt"], "é", "end")
    )
    data = f"{text}data: [DONE]\n\n".encode()
    for start in range(0, len(data), 7):
        piece = data[start : start + 7]
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body"})


async def test_stream_is_put_together_from_any_pieces() -> None:
    backend = create_backend(answer_in_pieces, "m", ("generate",))
    deltas = [delta["text"] async for delta in backend.stream({"text": "start"}, Caller("id"))]
    assert deltas == ["start", "é", "end"]


async def test_text_is_required() -> None:
    with pytest.raises(RequestError, match=r"inputs\.text"):
        await create_backend(answer_in_pieces, "m", ("generate",)).infer({}, Caller("id"))


async def test_leaving_a_local_request_is_a_disconnect() -> None:
    ended = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
        finally:
            ended.set()

    async with LocalRequest(app, "/", {}, "id") as request:
        assert await request.status() == 200
    await asyncio.wait_for(ended.wait(), 1)


async def test_local_request_raises_what_the_application_raises() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    async with LocalRequest(app, "/", {}, "id") as request:
        with pytest.raises(ZeroDivisionError):
            await request.status()
