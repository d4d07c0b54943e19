"""What a running service listens on, and what a stranger gets there: from outside, and from within.

The service runs as `make serve` runs it, in a network namespace with a second address.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from benchmarks.local_cluster import model_application
from deployments.vllm.tiny_model import make_tiny_llama
from tests.serve.intrusion import HOST, Scene, in_namespace, scene
from tests.serve.shell import ROOT, echo_config
from tests.serve.two_nodes import can_make_networks
from tests.support.tiny_images import create_pipeline
from truthgpt_serve.cluster.private_files import TOKEN_FILE
from truthgpt_serve.cluster.processes import find_run
from truthgpt_serve.validate.applications import MODEL_IMPORT, ROUTER_IMPORT

FAIL_S = 90
PORTS_PAGE = ROOT / "docs" / "ports.md"
PURPOSES = {
    "the service": r"/haproxy ",
    "Ray's cluster state (GCS)": r"/gcs_server ",
    "Ray's node manager (raylet)": r"/raylet ",
    "Ray's dashboard": r"dashboard",
    "Ray's node agents": r"ray::(DashboardAgent|RuntimeEnvAgent)|dashboard_agent|runtime_env",
    "Ray's forked processes": r"multiprocessing\.",
    "the process of `serve run`": r"serve_run\.py",
    "Ray Serve's controller": r"ray::ServeController",
    "Ray Serve's proxies": r"ray::(ProxyActor|HAProxyManager)",
    "replicas": r"ray::ServeReplica",
    "files for the whole cluster": r"ray::\w*File",
    "Ray's idle workers": r"ray::IDLE",
    "vLLM's engine": r"VLLM::",
}

pytestmark = pytest.mark.skipif(
    not can_make_networks(), reason="needs root and Debian's iproute2 to make network namespaces"
)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A service with a language model and an image model, open to the network."""
    folder = tmp_path_factory.mktemp("opened")
    create_pipeline("sdxl").save_pretrained(folder / "image")
    config = echo_config()
    hardware = {"cpus": 0.5, "gpus": 0}
    engine = {"enforce_eager": True, "max_model_len": 128, "kv_cache_memory_bytes": "16M"}
    language = {
        "model": {"name_or_path": str(make_tiny_llama(folder / "llama"))},
        "hardware": hardware,
        "model_optim": {"dtype": "float32"},
        "serving": {"engine": engine},
    }
    image = {
        "task": "image-generation",
        "model": {"name_or_path": str(folder / "image")},
        "hardware": hardware,
        "serving": {"engine": {"max_pixels": 128 * 128}},
    }
    # With its threads bound to cores the model runs in a process more, which meets the engine's.
    # Sockets of an engine without that process: adapted_engine/test_vllm_starts.py.
    bound = model_application("bound", language)
    bound["runtime_env"] = {"env_vars": {"VLLM_CPU_OMP_THREADS_BIND": "0"}}
    config["applications"] += [bound, model_application("painter", image)]
    for application in config["applications"]:
        if application["import_path"] in (MODEL_IMPORT, ROUTER_IMPORT):
            application.setdefault("args", {})["auth"] = "none"
    with scene(folder, 78, config, "0.0.0.0") as found:
        yield found


def test_only_the_service_listens_beyond_loopback(opened: Scene) -> None:
    beyond = [each for each in opened.listeners() if not each.is_local]
    assert [(each.kind, each.port) for each in beyond] == [("tcp", opened.shell.port)], beyond


def test_each_socket_has_a_known_purpose(opened: Scene) -> None:
    page = PORTS_PAGE.read_text()
    listeners = opened.listeners()
    assert len(listeners) > 10
    for each in listeners:
        purposes = [name for name, title in PURPOSES.items() if re.search(title, each.title)]
        assert purposes, f"docs/ports.md does not say what this is for: {each}"
        assert purposes[0] in page, f"{PORTS_PAGE.name} does not explain {purposes[0]!r}: {each}"


def test_another_address_reaches_the_service_alone(opened: Scene) -> None:
    address = opened.network.address(HOST)
    reached, ran = opened.intrude(address=address, sockets=[])
    assert reached["ports"] == [opened.shell.port]
    assert not ran


def test_another_user_of_the_machine_runs_nothing(opened: Scene) -> None:
    private = opened.private
    token = opened.shell.folder / TOKEN_FILE
    files = [token, private, private / "haproxy", private / "ray", private / "tmp"]
    reached, ran = opened.intrude(
        *in_namespace(opened.network), files=[str(path) for path in files]
    )
    assert opened.shell.port in reached["ports"]
    assert reached["files"] == []
    assert reached["sockets"] == []
    answers = reached["jobs"].values()
    assert [401, 401] in answers, "the dashboard was not found"
    # An exporter of metrics answers on any path, but takes nothing.
    assert {posted for _, posted in answers} <= {0, 401, 403, 404, 405, 501}, answers
    assert not ran


def test_the_token_is_nowhere_but_in_its_file(opened: Scene) -> None:
    token = (opened.shell.folder / TOKEN_FILE).read_bytes()
    assert len(token) == 64
    commands = [Path(f"/proc/{each.pid}/cmdline") for each in find_run(opened.shell.run_id)]
    files = [path for path in opened.private.rglob("*") if path.is_file()]
    files += [path for path in opened.shell.folder.iterdir() if path.is_file()]
    found = [path for path in (*commands, *files) if token in read(path)]
    assert found == [opened.shell.folder / TOKEN_FILE]


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # gone meanwhile
        return b""


def test_nothing_is_kept_under_names_that_others_can_foresee(opened: Scene) -> None:
    kept = set()
    for process in find_run(opened.shell.run_id):
        for entry in Path(f"/proc/{process.pid}/fd").iterdir():
            target = Path(os.readlink(entry))
            if target.is_relative_to("/tmp") and target.exists():
                kept.add(target)
    kept |= {Path(each.address) for each in opened.listeners() if each.address.startswith("/tmp")}
    own = (opened.private, opened.shell.folder, ROOT)
    assert kept
    assert [path for path in kept if not any(map(path.is_relative_to, own))] == []


def test_applications_that_do_not_say_who_may_use_them_do_not_start(opened: Scene) -> None:
    config = yaml.safe_load((opened.shell.folder / "serve.yaml").read_text())
    echo, router = echo_config()["applications"]
    names = ("unsaid", "unsaid-router")
    for name, application in zip(names, (echo, router), strict=True):
        config["applications"] += [{**application, "name": name, "route_prefix": f"/{name}"}]
    new = opened.folder / "new.json"
    new.write_text(json.dumps(config))
    ask_serve(opened, "-X", "PUT", "-H", "content-type: application/json", "-d", f"@{new}")
    deadline = time.monotonic() + FAIL_S
    failed: dict[str, str] = {}
    while len(failed) < len(names):
        assert time.monotonic() < deadline, failed
        time.sleep(0.2)
        found = json.loads(ask_serve(opened))["applications"]
        failed = {
            name: found[name]["message"]
            for name in names
            if found.get(name, {}).get("status") == "DEPLOY_FAILED"
        }
    for message in failed.values():
        assert "nothing says who may use it" in message
    # Those that say `auth: none` go on.
    others = {name: found[name]["status"] for name in found if name not in names}
    assert others == dict.fromkeys(others, "RUNNING")
    assert "router" in others


def ask_serve(scene: Scene, *words: str) -> str:
    """Sends a request to what `serve deploy` talks to, with curl, beside the service."""
    address = re.search(
        r"View the dashboard at .*?(http://[\d.:]+)", scene.shell.output.read_text()
    )
    assert address is not None
    token = (scene.shell.folder / TOKEN_FILE).read_text()
    url = f"{address.group(1)}/api/serve/applications/"
    command = ["curl", "-fsS", "-H", f"authorization: Bearer {token}", *words, url]
    return subprocess.run(
        [*scene.network.prefix(HOST), *command],
        capture_output=True,
        text=True,
        timeout=FAIL_S,
        check=True,
    ).stdout
