"""`truthgpt deploy`: what it refuses, and what it says; the real service is in `tests/serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from tests.support.cli_service import Answer, serve
from truthgpt_serve.cli import main

SERVE = "configs/serve.yaml"
PATH = "/api/serve/applications/"
ECHO: dict[str, Any] = {"model": {"family": "echo"}}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    configs = tmp_path / "configs"
    configs.mkdir()
    applications = [
        {
            "name": name,
            "route_prefix": f"/models/{name}",
            "import_path": "deployments:build_model",
            "args": ECHO,
        }
        for name in ("a", "b")
    ]
    (configs / "serve.yaml").write_text(yaml.safe_dump({"applications": applications}))
    (configs / "model.yaml").write_text(yaml.safe_dump({"run_name": "a", **ECHO}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str, **environ: str | None) -> Result:
    none = {"RAY_DASHBOARD_ADDRESS": None, "RAY_AUTH_TOKEN": None}
    return CliRunner().invoke(main, ["deploy", *arguments], env={**none, **environ})


def test_without_a_service() -> None:
    done = call(SERVE)
    assert done.exit_code == 1
    assert "no service runs here; start it: make serve CONFIG=configs/serve.yaml" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("configs/model.yaml",), "configs/model.yaml is a model's file: name a Serve file"),
        (("no.yaml",), "no.yaml: no such file"),
        ((SERVE, "--reload", "c"), "configs/serve.yaml has no application 'c': a, b"),
        ((SERVE, "--timeout", "nan"), "nan"),
        ((), "Missing argument 'FILE'"),
    ],
)
def test_what_cannot_be_is_not_applied(arguments: tuple[str, ...], message: str) -> None:
    with serve({PATH: Answer({"applications": {}})}) as ray:
        done = call(*arguments, RAY_DASHBOARD_ADDRESS=ray.url)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "PUT" not in [request.method for request in ray.requests]


def test_each_is_waited_for_and_what_does_not_run_is_told() -> None:
    states = iter([{}, {"a": "RUNNING", "b": "DEPLOYING"}, {"a": "RUNNING", "b": "DEPLOY_FAILED"}])

    def answer(request: Any) -> Answer:
        if request.method == "PUT":
            return Answer({})
        found = {name: {"status": status, "message": "no room"} for name, status in
                 next(states).items()}  # fmt: skip
        return Answer({"applications": found})

    with serve({PATH: answer}) as ray:
        done = call(SERVE, RAY_DASHBOARD_ADDRESS=ray.url)
    assert done.exit_code == 1
    assert done.stdout.splitlines() == [
        "a is new",
        "b is new",
        "applied configs/serve.yaml; waiting for a, b",
        "a runs",
    ]
    assert done.stderr == "b does not start (no room); `truthgpt why b` says more\n"


def test_what_this_machine_has_no_room_for_is_told_first(folder: Path) -> None:
    path = folder / "configs" / "serve.yaml"
    config = yaml.safe_load(path.read_text())
    own = {"import_path": "truthgpt_serve.app:model", "args": {**ECHO, "hardware": {"cpus": 4000}}}
    config["applications"][0].update(own)
    path.write_text(yaml.safe_dump(config))
    found = {"a": {"status": "DEPLOYING"}, "b": {"status": "RUNNING"}}
    with serve({PATH: Answer({"applications": found})}) as ray:
        done = call(SERVE, "--timeout", "1.5", RAY_DASHBOARD_ADDRESS=ray.url)
    assert done.exit_code == 1
    assert done.stdout.startswith("note: this machine alone is too small: ")


def test_what_still_starts_in_the_end() -> None:
    found = {"a": {"status": "RUNNING"}, "b": {"status": "DEPLOYING"}}
    with serve({PATH: Answer({"applications": found})}) as ray:
        done = call(SERVE, "--timeout", "1.5", RAY_DASHBOARD_ADDRESS=ray.url)
    assert done.exit_code == 1
    assert done.stderr == ("b is still starting: `truthgpt why b` says what it waits for\n")


def test_what_counts_from_the_next_start_on_only_is_told(folder: Path) -> None:
    path = folder / "configs" / "serve.yaml"
    options = {"host": "0.0.0.0", "port": 8000, "root_path": "/x", "request_timeout_s": 7}
    more = {"proxy_location": "HeadOnly", "http_options": {**options, "ssl_keyfile": None}}
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **more}))
    http = {"host": "127.0.0.1", "port": 8000, "root_path": "", "request_timeout_s": None}
    details = {
        "applications": {name: {"status": "RUNNING"} for name in ("a", "b")},
        "proxy_location": "EveryNode",
        "http_options": {**http, "ssl_keyfile": None},
    }
    with serve({PATH: Answer(details)}) as ray:
        done = call(SERVE, RAY_DASHBOARD_ADDRESS=ray.url)
    assert done.exit_code == 0, done.output
    assert [line for line in done.stdout.splitlines() if "stays" in line] == [
        "http_options.host stays 127.0.0.1 until the service is started again",
        "http_options.request_timeout_s stays unset until the service is started again",
        "http_options.root_path stays unset until the service is started again",
        "proxy_location stays EveryNode until the service is started again",
    ]


def test_applications_of_others_are_applied_as_they_are(folder: Path) -> None:
    entry = {"import_path": "my.module:app", "args": {"config": {"a": 1}}, "route_prefix": "/own"}
    path = folder / "configs" / "others.yaml"
    path.write_text(yaml.safe_dump({"applications": [entry]}))
    with serve({PATH: Answer({"applications": {"default": {"status": "RUNNING"}}})}) as ray:
        done = call(str(path), RAY_DASHBOARD_ADDRESS=ray.url)
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith("default runs\n")
    (put,) = [request for request in ray.requests if request.method == "PUT"]
    assert put.body == {"applications": [entry]}
