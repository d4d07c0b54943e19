"""`truthgpt validate` compares a Serve file with the environment that Ray starts with."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.support.configs import make_service
from truthgpt_serve.cli import main

HARD_STOP = "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"
HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"

SERVE = """
http_options: {{host: {host}, port: 8000}}
applications:
  - name: one
    route_prefix: /models/one
    import_path: truthgpt_serve.app:model
    args: {{model: {{family: echo}}, serving: {{max_request_s: {model_s}}}}}
  - name: far
    route_prefix: /models/far
    import_path: truthgpt_serve.app:model
    runtime_env: {{py_modules: ["s3://bucket/models.zip"]}}
    args: {{model: {{family: custom, import: only_in_the_zip}}, serving: {{max_request_s: 5}}}}
  - name: router
    route_prefix: /
    import_path: truthgpt_serve.app:router
    args: {{request_timeout_s: {router_s}}}
"""


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_service(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("TRUTHGPT_CONFIG_DIR", HARD_STOP, HAPROXY):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def write_ray_env(service: Path, hard_stop: str = "660", haproxy: str = "1") -> None:
    text = f"# why\n{HAPROXY}={haproxy}\n{HARD_STOP}={hard_stop}\n"
    (service / "configs" / "ray.env").write_text(text, encoding="utf-8")


def faults_of(
    service: Path, *, host: str = "127.0.0.1", model_s: float = 600, router_s: float = 600
) -> list[str]:
    text = SERVE.format(host=host, model_s=model_s, router_s=router_s)
    (service / "serve.yaml").write_text(text, encoding="utf-8")
    result = CliRunner().invoke(main, ["validate", "serve.yaml"], catch_exceptions=False)
    lines = result.stderr.splitlines()
    return [line.removeprefix("fault: ") for line in lines if line.startswith("fault: ")]


def test_requests_may_not_outlast_the_hard_stop(service: Path) -> None:
    write_ray_env(service)
    assert faults_of(service) == []
    assert faults_of(service, model_s=650, router_s=650) == []
    reason = (
        f"is too long for {HARD_STOP}=660 in configs/ray.env: when any application changes, "
        "HAProxy cuts what runs longer"
    )
    assert faults_of(service, model_s=650.5, router_s=900) == [
        f"serve.yaml:7: applications[0].args.serving.max_request_s: 650.5 {reason} "
        f"(set {HARD_STOP}=661 before Ray starts, or lower this)",
        f"serve.yaml:16: applications[2].args.request_timeout_s: 900 {reason} "
        f"(set {HARD_STOP}=910 before Ray starts, or lower this)",
    ]


def test_the_environment_wins_over_the_file(service: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_ray_env(service)
    monkeypatch.setenv(HARD_STOP, "910")
    assert faults_of(service, model_s=900) == []
    monkeypatch.setenv(HARD_STOP, "30")
    faults = faults_of(service, model_s=21, router_s=20)
    assert len(faults) == 1
    assert f"21 is too long for {HARD_STOP}=30 in the environment" in faults[0]


def test_rays_default_counts_where_nothing_is_set(
    service: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HAPROXY, "1")
    assert faults_of(service, model_s=110, router_s=110) == []
    faults = faults_of(service, model_s=110, router_s=111)
    assert len(faults) == 1
    assert f"111 is too long for {HARD_STOP}=120 by Ray's default" in faults[0]


def test_without_haproxy_nothing_is_cut_and_any_host_works(
    service: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUTHGPT_KEYS_FILE", "none")
    assert faults_of(service, model_s=900, host="192.0.2.1") == []
    write_ray_env(service, haproxy="0")
    assert faults_of(service, model_s=900, host="192.0.2.1") == []


def test_a_models_own_file_is_compared_too(service: Path) -> None:
    write_ray_env(service)
    (service / "slow.yaml").write_text("model: {family: echo}\nserving: {max_request_s: 700}\n")
    result = CliRunner().invoke(main, ["validate", "slow.yaml"])
    assert result.exit_code == 2
    assert "slow.yaml:2: serving.max_request_s: 700 is too long" in result.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "'::'"])
def test_hosts_that_haproxy_reaches(
    service: Path, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUTHGPT_KEYS_FILE", "none")
    write_ray_env(service)
    assert faults_of(service, host=host) == []


@pytest.mark.parametrize("host", ["192.0.2.1", "127.0.0.2", "::1", "serving.example"])
def test_another_host_is_refused_with_haproxy(
    service: Path, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUTHGPT_KEYS_FILE", "none")
    write_ray_env(service)
    assert faults_of(service, host=f"'{host}'") == [
        f"serve.yaml:2: http_options.host: {host!r} is out of reach for HAProxy, which uses "
        "127.0.0.1 on its node (write 127.0.0.1 for this machine only, or 0.0.0.0 for all "
        "interfaces and a firewall)"
    ]
