"""Image routes as clients see them: Ray, HAProxy, two nodes, the router and users' own classes."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image, ImageChops

from benchmarks.local_cluster import (
    START_TIMEOUT_S,
    LocalCluster,
    model_application,
    router_application,
)
from tests.openapi_run.plan import fetch_models
from tests.openapi_run.run import run
from tests.support.cli_service import environment, run_program
from tests.support.terminal import on_terminal
from truthgpt_serve.cluster.ports import free_port
from truthgpt_serve.cluster.private_files import LOOPBACK_ONLY
from truthgpt_serve.cluster.processes import find_run

HERE = Path(__file__).parent
RAY_ENV = HERE.parents[1] / "configs" / "ray.env"
PROMPT = "a red square"
SEED = 7
EXPIRY_S = 20.0
WAIT_S = 120.0


@dataclass(frozen=True)
class Images:
    """The running service: its cluster, the second node's address, clients, users' modules."""

    cluster: LocalCluster
    second_url: str
    openai: openai.OpenAI
    http: httpx.Client
    applications: list[dict[str, Any]]
    modules: Path


# To Ray 127.0.0.1 is the machine's other address, where this cluster does not listen.
JOIN = """
import ray._private.services
ray._private.services.resolve_ip_for_localhost = lambda host: host
from truthgpt_serve.cluster.service import ray_limits
ray_limits.main()
"""


def start_second_node(cluster: LocalCluster) -> str:
    """Has another node join the cluster, as on another machine; returns its proxy's address."""
    folder, port = cluster.folder / "second", free_port()
    folder.mkdir()
    address = f"127.0.0.1:{cluster.ray_port}"
    ports = {
        "RAY_SERVE_WORKER_PROXY_HTTP_PORT": port,
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": free_port(),
    }
    env = {
        **cluster.env,
        **dict.fromkeys(LOOPBACK_ONLY, "1"),  # else it may not join a cluster
        **{name: str(value) for name, value in ports.items()},
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
    }
    command = [
        sys.executable, "-P", "-c", JOIN, "start",
        "--address", address, "--node-ip-address", "127.0.0.1",
        "--num-cpus", "4", "--object-store-memory", str(100 * 2**20),
        "--dashboard-agent-listen-port", str(free_port()),
        "--metrics-export-port", str(free_port()),
    ]  # fmt: skip
    done = subprocess.run(
        command,
        env=env,
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    modules = tmp_path_factory.mktemp("modules")
    shutil.copy(HERE / "user_image_models.py", modules / "own_image_models.py")
    small: dict[str, Any] = {"cpus": 0.1, "gpus": 0}

    def model(name: str, family: str, expiry_s: float = 3600, **serving: Any) -> dict[str, Any]:
        return model_application(
            name,
            {
                "task": "image-generation",
                "model": {"family": family, "import": "own_image_models"},
                "hardware": small,
                "serving": {"images": {"url_expiry_s": expiry_s}, **serving},
            },
        )

    with LocalCluster(RAY_ENV, env={"PYTHONPATH": str(modules)}) as cluster:
        second_url = start_second_node(cluster)
        applications = [
            model("painter", "painter"),
            model("fading", "painter", EXPIRY_S),
            model("studio", "studio", num_replicas=2),
            model_application("echo", {"model": {"family": "echo"}, "hardware": small}),
            router_application(cluster.port),
        ]
        cluster.deploy(applications)
        cluster.wait_until_ready(timeout_s=START_TIMEOUT_S)
        wait_until(lambda: all(map(is_ready, (cluster.url, second_url))), START_TIMEOUT_S)
        with (
            openai.OpenAI(
                base_url=f"{cluster.url}/v1", api_key="k", max_retries=0, timeout=WAIT_S
            ) as client,
            httpx.Client(base_url=cluster.url, timeout=WAIT_S) as http,
        ):
            yield Images(cluster, second_url, client, http, applications, modules)


def is_ready(url: str) -> bool:
    """Whether a node's proxy knows every application: a new one learns of them one by one."""
    paths = (
        "/ready",
        *(f"/models/{name}/health" for name in ("painter", "fading", "studio", "echo")),
    )
    try:
        return all(
            httpx.get(url + path, timeout=30).status_code == 200 for path in paths for _ in range(4)
        )
    except httpx.TransportError:
        return False


def wait_until(condition: Callable[[], object], limit_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never became true"
        time.sleep(0.1)


def opened(data: str | bytes | None) -> Image.Image:
    assert data is not None
    image = Image.open(io.BytesIO(base64.b64decode(data) if isinstance(data, str) else data))
    image.load()
    return image


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def make_url(images: Images, model: str = "studio", **fields: Any) -> str:
    answer = images.openai.images.generate(
        model=model, prompt=PROMPT, response_format="url", **fields
    )
    assert answer.data is not None
    return answer.data[0].url or ""


def test_generations(images: Images) -> None:
    answer = images.openai.images.generate(
        model="painter", prompt=PROMPT, n=4, size="64x48", extra_body={"seed": 7, "steps": 5}
    )
    assert answer.data is not None
    pixels = [opened(item.b64_json).getpixel((30, 30)) for item in answer.data]
    assert pixels == [(7 + index, 5, 0) for index in range(4)]
    assert answer.size == "64x48"


def test_an_edit_with_a_mask(images: Images) -> None:
    image = Image.new("RGB", (40, 30), (0, 0, 255))
    mask = Image.new("RGBA", (40, 30), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 20, 30))
    answer = images.openai.images.edit(
        model="studio", image=png(image), mask=png(mask), prompt=PROMPT
    )
    assert answer.data is not None
    result = opened(answer.data[0].b64_json)
    assert (result.getpixel((5, 5)), result.getpixel((35, 5))) == ((255, 0, 0), (0, 0, 255))
    assert answer.usage is not None
    assert answer.usage.total_tokens == 8


def test_a_stream(images: Images) -> None:
    stream = images.openai.images.generate(
        model="studio",
        prompt=PROMPT,
        n=2,
        stream=True,
        partial_images=2,
        extra_body={"progress": True, "steps": 6},
    )
    events: list[dict[str, Any]] = [event.to_dict() for event in stream]
    for index in range(2):
        own = [event for event in events if event["index"] == index]
        kinds = [event["type"].rpartition(".")[2] for event in own]
        assert (kinds.count("partial_image"), kinds.count("completed")) == (2, 1)
        assert [event["step"] for event in own if "step" in event] == [1, 2, 3, 4, 5, 6]
        assert kinds[-1] == "completed"


def test_the_command_line_draws(images: Images, tmp_path: Path) -> None:
    command = ["image", "studio", PROMPT, "--n", "2", "--steps", "5", "--out", "x.png", "--json"]
    done = run_program(*command, env={"TRUTHGPT_URL": images.cluster.url}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files = {entry["file"] for entry in json.loads(done.stdout)["images"]}
    assert files == {"x-0.png", "x-1.png"}
    for file in files:
        Image.open(tmp_path / file).load()
    env = environment({"TRUTHGPT_URL": images.cluster.url})
    program = [sys.executable, "-m", "truthgpt_serve.cli"]
    before = num_closed(images)
    with on_terminal(*program, "image", "studio", "slow", env=env, cwd=tmp_path) as shown:
        shown.wait_for("step")
        shown.type("\x03")
        assert shown.end() == 130
    wait_until(lambda: num_closed(images) == before + 1)


def num_closed(images: Images) -> int:
    """Returns how many streams have ended before their model was done."""
    return len(list(images.modules.glob("closed-*")))


def test_a_client_that_leaves_ends_the_stream(images: Images) -> None:
    before = num_closed(images)
    body = {"model": "studio", "prompt": "slow", "stream": True, "partial_images": 1}
    with images.http.stream("POST", "/v1/images/generations", json=body) as answer:
        assert answer.status_code == 200
        next(answer.iter_bytes())
        assert num_closed(images) == before
    wait_until(lambda: num_closed(images) == before + 1)  # of itself it would run for 200 s


def test_large_forms_with_the_model_last(images: Images) -> None:
    size = (2600, 2600)
    image = Image.frombytes("RGB", size, os.urandom(3 * size[0] * size[1]))
    files: list[tuple[str, Any]] = [
        ("image", ("a.png", png(image))),
        ("prompt", (None, PROMPT)),
        ("model", (None, "studio")),
    ]
    answer = images.http.post("/v1/images/edits", files=files)
    assert answer.status_code == 200, answer.text[:300]
    result = opened(answer.json()["data"][0]["b64_json"])
    assert ImageChops.difference(result, image).getbbox() is None


def test_url_results_are_there_on_every_node(images: Images) -> None:
    url = make_url(images, output_format="webp", size="64x48")
    assert url.startswith(f"{images.cluster.url}/v1/files/images/")
    path = url.removeprefix(images.cluster.url)
    for base in (images.cluster.url, images.second_url):
        for _ in range(6):  # each router has its turn
            found = httpx.get(base + path, timeout=WAIT_S)
            assert (found.status_code, found.headers["content-type"]) == (200, "image/webp")
            assert found.headers["cache-control"].startswith("private, max-age=")
            assert opened(found.content).size == (64, 48)

    with openai.OpenAI(base_url=f"{images.second_url}/v1", api_key="k") as second:
        answer = second.images.generate(model="studio", prompt=PROMPT, response_format="url")
    assert answer.data is not None
    other = answer.data[0].url or ""
    assert other.startswith(f"{images.second_url}/v1/files/images/")
    assert images.http.get(other.removeprefix(images.second_url)).status_code == 200


def test_without_the_router_the_address_names_the_model(images: Images) -> None:
    body = {"model": "studio", "prompt": PROMPT, "response_format": "url"}
    answer = images.http.post("/models/studio/v1/images/generations", json=body)
    url = answer.json()["data"][0]["url"]
    assert url.startswith(f"{images.cluster.url}/models/studio/v1/files/images/")
    assert opened(images.http.get(url).content).size == (32, 24)
    assert images.http.get(url.replace("/models/studio", "")).status_code == 200


def test_url_results_expire(images: Images) -> None:
    start = time.monotonic()
    url = make_url(images, "fading")
    assert images.http.get(url).status_code == 200
    wait_until(lambda: images.http.get(url).status_code == 410, EXPIRY_S + 60)
    assert time.monotonic() - start > EXPIRY_S - 1  # it counts from when the file was made
    assert images.http.get(url).json()["error"]["code"] == "file_expired"


def test_url_results_outlive_the_replica_and_the_model(images: Images) -> None:
    url = make_url(images, "painter")
    [pid] = images.cluster.replica_pids("painter")
    os.kill(pid, signal.SIGKILL)
    assert images.http.get(url).status_code == 200
    images.cluster.deploy([entry for entry in images.applications if entry["name"] != "painter"])
    wait_until(lambda: "painter" not in images.cluster.statuses())
    # Routers list it for another second; who lists the models next would ask for its card.
    wait_until(lambda: '"painter"' not in images.http.get("/v1/models").text)
    assert opened(images.http.get(url).content).size == (32, 24)


def test_the_store_is_made_anew_when_its_process_dies(images: Images) -> None:
    url = make_url(images)
    [keeper] = [
        process
        for process in find_run(images.cluster.run_id)
        if "ray::FileKeeper" in process.command
    ]
    os.kill(keeper.pid, signal.SIGKILL)
    wait_until(lambda: images.http.get(url).status_code == 404)
    assert images.http.get(url).json()["error"]["code"] == "file_not_found"
    assert images.http.get(make_url(images)).status_code == 200


def test_models_of_other_tasks_have_no_image_routes(images: Images) -> None:
    body = {"model": "echo", "prompt": PROMPT}
    for route in ("generations", "edits", "variations"):
        answer = images.http.post(f"/v1/images/{route}", json=body)
        assert (answer.status_code, answer.json()["error"]) == (
            400,
            {
                "message": "the model 'echo' has task text-generation, which has no image routes",
                "type": "invalid_request_error",
                "param": "model",
                "code": "unsupported",
            },
        )
    answer = images.http.post("/v1/completions", json={"model": "studio", "prompt": PROMPT})
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (r"/v1/images/.*|/v1/files/.*", ["studio"]),
        (r"/v1/((chat/)?completions|infer)|/(docs|health|metrics|openapi.json|ready)?", ["echo"]),
    ],
)
def test_answers_are_as_documented(
    images: Images, tmp_path: Path, paths: str, names: list[str]
) -> None:
    models = [model for model in fetch_models(images.cluster.url) if model.name in names]
    outcome = run(
        images.cluster.url,
        tmp_path,
        seed=SEED,
        max_examples=20,
        paths=paths,
        more_checks=["negative_data_rejection"],
        models=models,
        timeout_s=300,
    )
    assert outcome.passed, outcome.text
    unanswered = {label for label, found in outcome.statuses.items() if not found[200]}
    assert unanswered <= {"GET /v1/files/images/{id}", "GET /"}, outcome.table()


def test_the_pages_list_the_routes(images: Images) -> None:
    paths = images.http.get("/openapi.json").json()["paths"]
    assert {"/v1/images/generations", "/v1/images/edits", "/v1/images/variations"} <= paths.keys()
    assert "/v1/images/edits" in images.http.get("/docs").text
