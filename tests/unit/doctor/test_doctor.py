"""`truthgpt doctor` on this machine: the command, and the probes of machine and service."""

from __future__ import annotations

import http.server
import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from truthgpt_serve.cli import main
from truthgpt_serve.doctor import diagnosis
from truthgpt_serve.doctor.machine import probe_hardware, probe_python
from truthgpt_serve.doctor.packages import probe_base, probe_versions
from truthgpt_serve.doctor.service import (
    cache_folder,
    probe_disk,
    probe_haproxy,
    probe_hub,
    probe_port,
    probe_ray_settings,
)

ECHO = "model: {family: echo}\nhardware: {cpus: 0.1, gpus: 0}\n"
TENSOR = "task: tensor\nmodel: {{name_or_path: {path}}}\nhardware: {{gpus: 0}}\n{more}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "echo.yaml").write_text(ECHO)
    (tmp_path / "bad.yaml").write_text(ECHO.replace("0.1", "4000"))
    return tmp_path


def doctor(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["doctor", *arguments])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# -- the command


def test_a_file_that_can_be_served_gives_0(folder: Path) -> None:
    result = doctor("echo.yaml")
    assert result.exit_code == 0, result.output
    assert "  yes  echo.yaml: text-generation by echo" in result.stdout.replace("yes ", "yes  ")
    assert "fault" not in result.stderr


def test_what_a_file_needs_and_is_not_here_gives_2_with_the_faults(folder: Path) -> None:
    result = doctor("echo.yaml", "bad.yaml")
    assert result.exit_code == 2
    [fault] = [line for line in result.stderr.splitlines() if line.startswith("fault: ")]
    assert fault.startswith("fault: bad.yaml: bad.yaml:2: hardware.cpus: 4000 is more than")
    absent = doctor("absent.yaml")
    assert absent.exit_code == 2
    assert "no such file" in absent.stderr


def test_programs_get_json(folder: Path) -> None:
    result = doctor("bad.yaml", "--json")
    assert result.exit_code == 2
    found = json.loads(result.stdout)
    assert found["works"] is False
    assert len(found["faults"]) == 1
    groups = {group["title"]: group for group in found["groups"]}
    assert [*groups][:4] == ["base", "machine", "packages", "service"]
    for group in found["groups"]:
        for probe in group["probes"]:
            assert probe.keys() == {"name", "works", "detail", "fix"}
    assert groups["bad.yaml"]["needed"] is True
    assert groups["packages"]["needed"] is False


def test_a_file_is_no_reason_to_try_everything(folder: Path) -> None:
    result = doctor("echo.yaml")
    assert "family " not in result.stdout
    assert "trying Python, hardware" in result.stderr
    assert "trying the family" not in result.stderr  # echo has nothing to try


def test_without_files_only_the_base_can_be_at_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "MODEL_REGISTRY", {})  # their own tests are beside this
    monkeypatch.setenv("PATH", "")
    found = diagnosis.diagnose()
    assert found.faults == []
    assert any(not probe.works for group in found.groups for probe in group.probes)


def test_a_model_asks_its_family(folder: Path) -> None:
    from deployments.onnx.tiny_model import make_tiny_vision

    path = make_tiny_vision(folder / "m.onnx")
    (folder / "good.yaml").write_text(TENSOR.format(path=path, more=""))
    result = doctor("good.yaml")
    assert result.exit_code == 0, result.output
    assert "a session ran on cpu" in result.stdout
    assert "trying the family onnxruntime: good.yaml" in result.stderr
    assert "tried the family onnxruntime in " in result.stderr
    assert f"{path} is here" in result.stdout


def test_a_model_that_is_nowhere_is_a_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(folder / "hub"))
    text = "task: embedding\nmodel: {family: hf-transformers, name_or_path: org/model}\n"
    (folder / "hub.yaml").write_text(f"{text}hardware: {{gpus: 0}}\n")
    result = doctor("hub.yaml")
    assert result.exit_code == 2
    assert "org/model is neither here nor in the cache" in result.stderr
    snapshot = folder / "hub" / "hub" / "models--org--model" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    result = doctor("hub.yaml")
    assert result.exit_code == 0, result.output
    assert "org/model is in the cache" in result.stdout


# -- the machine


def test_the_machine_is_described() -> None:
    assert probe_python().works
    assert sys.executable in probe_python().detail
    found = {probe.name: probe for probe in probe_hardware()}
    assert found["CPU"].works
    assert "GiB" in found["memory"].detail


def test_gpus_come_from_the_drivers_own_program(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '580.1, NVIDIA H100, 81559 MiB, 80000 MiB, 9.0'\n")
    program.chmod(0o755)
    environ = {"PATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": "0"}
    found = {probe.name: probe for probe in probe_hardware(environ)}
    assert found["GPU 0"].works
    assert "NVIDIA H100, 81559 MiB" in found["GPU 0"].detail
    assert "compute capability 9.0, driver 580.1" in found["GPU 0"].detail
    program.write_text("#!/bin/sh\necho 'Driver/library version mismatch'; exit 18\n")
    found = {probe.name: probe for probe in probe_hardware(environ)}
    assert not found["GPU"].works
    assert "Driver/library version mismatch" in found["GPU"].detail
    assert not any(p.works for p in probe_hardware({"PATH": ""}) if p.name == "GPU")


def test_versions_are_compared_with_the_projects_own_pins() -> None:
    assert probe_base().works, probe_base().detail
    found = {probe.name: probe for probe in probe_versions()}
    assert {*found} == {"ray", "torch", "vllm", "transformers", "diffusers", "onnxruntime"}
    assert found["ray"].works
    assert "pinned ==2.60.0" in found["ray"].detail


# -- the service


def test_haproxy_is_started_by_the_services_own_program() -> None:
    found = probe_haproxy()
    assert found.works, found.detail
    assert "HAProxy version" in found.detail


def test_rays_settings_are_those_of_this_shell(folder: Path) -> None:
    assert "there is no" in probe_ray_settings({}).detail
    (folder / "configs").mkdir()
    (folder / "configs" / "ray.env").write_text("A=1\nB=2\n")
    missing = probe_ray_settings({"A": "1"})
    assert (missing.works, missing.detail.split()[:3]) == (False, ["1", "of", "2"])
    assert probe_ray_settings({"A": "1", "B": "2"}).works
    own = probe_ray_settings({"A": "1", "B": "3"})
    assert own.works
    assert "B=3" in own.detail


@contextmanager
def listening(status: int, body: bytes) -> Iterator[int]:
    """A program on a port of its own that answers everything the same."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *arguments: Any) -> None:
            """Says nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join(10)


def test_a_port_is_free_or_taken_by_this_service_or_by_another() -> None:
    assert probe_port(free_port()).detail == "free"
    with listening(200, b'{"status": "ok"}') as port:
        assert probe_port(port).works
    for body in (b"[]", b"hello"):
        with listening(200, body) as port:
            found = probe_port(port)
        assert not found.works
        assert "http_options.port" in found.fix


def test_the_hub_is_asked_unless_it_is_switched_off() -> None:
    switched_off = probe_hub({"HF_HUB_OFFLINE": "1"})
    assert (switched_off.works, "switched off" in switched_off.detail) == (False, True)
    for status in (200, 403):
        with listening(status, b"") as port:
            found = probe_hub({"HF_ENDPOINT": f"http://127.0.0.1:{port}"})
        assert found.works
        assert f"({status})" in found.detail
    absent = probe_hub({"HF_ENDPOINT": f"http://127.0.0.1:{free_port()}"})
    assert not absent.works
    assert "HF_ENDPOINT" in absent.fix


def test_the_cache_is_where_the_hub_keeps_it(tmp_path: Path) -> None:
    assert cache_folder({"HF_HUB_CACHE": "/a"}) == Path("/a")
    assert cache_folder({"HF_HOME": "/a"}) == Path("/a/hub")
    assert cache_folder({"XDG_CACHE_HOME": "/a"}) == Path("/a/huggingface/hub")
    found = probe_disk({"HF_HOME": str(tmp_path / "not" / "yet")})
    assert f"free at {tmp_path}/not/yet/hub" in found.detail
