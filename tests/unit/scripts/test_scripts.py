"""What `make` runs decides by the environment and the files, before it starts anything."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts import install, serve
from truthgpt_serve.cluster.ports import free_port
from truthgpt_serve.cluster.processes import find_run
from truthgpt_serve.cluster.service.run_file import RunFile

ROOT = Path(__file__).resolve().parents[3]


def write_serve_file(folder: Path, text: str) -> Path:
    path = folder / "serve.yaml"
    path.write_text(text)
    return path


def test_names_in_a_serve_file(tmp_path: Path) -> None:
    kinds = {"story": "model", "mine": "model", "ui": "playground", "router": "router"}
    lines = [
        f"- {{name: {name}, import_path: 'truthgpt_serve.app:{kind}'}}"
        for name, kind in kinds.items()
    ]
    path = write_serve_file(tmp_path, "\n".join(["applications:", *lines]))
    assert serve.read_names(path) == (["story", "mine"], True)
    path = write_serve_file(tmp_path, "\n".join(["applications:", *lines[:2]]))
    assert serve.read_names(path) == (["story", "mine"], False)
    for text in ("applications: 3", "[", "applications: [{name: x}]"):
        assert serve.read_names(write_serve_file(tmp_path, text)) == ([], False)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http_options: {host: 0.0.0.0, port: 9000}", ("0.0.0.0", 9000)),
        ("http_options: {port: 9000}", ("127.0.0.1", 9000)),
        ("applications: []", ("127.0.0.1", 8000)),
        ("", ("127.0.0.1", 8000)),
    ],
)
def test_address_of_a_serve_file(tmp_path: Path, text: str, address: tuple[str, int]) -> None:
    assert serve.read_address(write_serve_file(tmp_path, text)) == address


def test_the_users_environment_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S", "7")
    monkeypatch.setenv("TRUTHGPT_RUN_ID", "of-another-run")
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY", raising=False)
    environment = serve.create_environment("mine", tmp_path)
    assert environment["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"] == "7"
    assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert environment["TRUTHGPT_RUN_ID"] == "mine"
    assert Path(environment["TRUTHGPT_CONFIG_DIR"]) == ROOT / "configs"


def test_one_service_for_each_run_folder(tmp_path: Path) -> None:
    first = RunFile(tmp_path / "run").lock()
    assert first is not None
    with first:
        assert RunFile(tmp_path / "run").lock() is None
    second = RunFile(tmp_path / "run").lock()
    assert second is not None
    second.close()


def run_serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "serve.py"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )


def test_stop_without_a_service_does_nothing(tmp_path: Path) -> None:
    done = run_serve("stop", "--run-dir", str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "[serve] nothing is running\n")


@pytest.mark.long("starts services and ends them")
def test_stop_ends_what_still_prepares(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    (tmp_path / "slow_to_import.py").write_text(
        f"import pathlib, time\n\npathlib.Path({str(begun)!r}).touch()\ntime.sleep(50)\n"
    )
    text = (
        f"http_options: {{port: {free_port()}}}\napplications:\n- name: m\n"
        "  route_prefix: /models/m\n  import_path: truthgpt_serve.app:model\n"
        "  args: {model: {family: x, import: slow_to_import}}\n"
    )
    path = write_serve_file(tmp_path, text)
    run_file = RunFile(tmp_path / "run")
    program = [sys.executable, str(ROOT / "scripts" / "serve.py")]
    places = ["--config", str(path), "--run-dir", str(run_file.path.parent)]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
    }
    with subprocess.Popen(
        [*program, "start", *places], env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as starting:
        try:
            deadline = time.monotonic() + 30
            while (state := run_file.read()) is None or not begun.exists():
                assert starting.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            done = run_serve("stop", *places)
            output, _ = starting.communicate(timeout=10)
        finally:
            starting.kill()
    assert done.returncode == 0
    assert f"stopping process {starting.pid} and all beneath it" in done.stdout
    assert starting.returncode == 0
    assert output.endswith("[serve] stopped\n")
    assert "starting" not in output
    assert run_file.read() is None
    assert find_run(state["run_id"]) == []


@pytest.mark.long("starts services and ends them")
def test_a_wrong_file_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in serve.PROXY_PORTS:
        monkeypatch.setenv(name, str(free_port()))
    path = write_serve_file(tmp_path, f"http_options: {{port: {free_port()}}}\nnonsense: 1")
    done = run_serve("start", "--config", str(path), "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 2
    assert f"fault: {path}:2: nonsense: " in done.stdout
    assert "starting" not in done.stdout
    assert done.stderr == ""
    assert RunFile(tmp_path / "run").read() is None


@pytest.mark.parametrize("variable", [None, *serve.PROXY_PORTS])
def test_a_taken_port_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if variable is not None:
            monkeypatch.setenv(variable, str(port))
        own = free_port() if variable else port
        path = write_serve_file(tmp_path, f"http_options: {{port: {own}}}")
        done = run_serve("start", "--config", str(path), "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 1
    place = variable or f"http_options.port in {path}"
    assert f"port {port} is taken by another program: end it, or change {place}\n" in done.stdout


@pytest.mark.parametrize("value", ["cpu", "gpu"])
def test_accelerator_by_variable(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TRUTHGPT_ACCELERATOR", value)
    assert install.detect_accelerator() == value


def test_accelerator_by_a_wrong_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUTHGPT_ACCELERATOR", "tpu")
    with pytest.raises(SystemExit, match="'tpu': write cpu or gpu"):
        install.detect_accelerator()


@pytest.mark.parametrize(("answer", "found"), [("GPU 0: some", "gpu"), ("No devices", "cpu")])
def test_accelerator_by_nvidia_smi(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str, found: str
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{answer}'\n")
    program.chmod(0o755)
    monkeypatch.delenv("TRUTHGPT_ACCELERATOR", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert install.detect_accelerator() == found


def test_no_nvidia_smi_means_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TRUTHGPT_ACCELERATOR", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert install.detect_accelerator() == "cpu"


def test_a_complete_environment_needs_no_package() -> None:
    extra = "gpu" if install.detect_accelerator() == "gpu" else "cpu"
    assert install.is_complete(f"{extra},dev,images")
    assert not install.is_complete("gpu" if extra == "cpu" else "cpu")


def test_the_stamp_changes_with_what_is_asked_for() -> None:
    stamps = {install.stamp_for(extras) for extras in ("cpu,dev", "cpu", "gpu,dev")}
    assert len(stamps) == 3
    assert install.stamp_for("cpu") in stamps
