"""Whether a Serve file says who may use the service, in every application alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from truthgpt_serve.access.key_edit import add_key
from truthgpt_serve.validate import validate_file

KEYS = {"keys_file": "keys.yaml"}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUTHGPT_CONFIG_DIR", str(tmp_path))
    monkeypatch.delenv("TRUTHGPT_KEYS_FILE", raising=False)
    add_key(tmp_path / "keys.yaml", {"name": "a"})


def faults(folder: Path, host: str | None, *auths: Any) -> list[str]:
    """Returns the faults of a file with a router and models that say these things."""
    said = [{} if auth is None else {"auth": auth} for auth in auths]
    small = {"model": {"family": "echo"}}
    data: dict[str, Any] = {
        "applications": [
            {
                "name": f"m{number}",
                "route_prefix": f"/models/m{number}",
                "import_path": "truthgpt_serve.app:model",
                "args": {**small, **args},
            }
            for number, args in enumerate(said[1:])
        ]
    }
    router = {"name": "router", "import_path": "truthgpt_serve.app:router", "args": said[0]}
    data["applications"].append({**router, "route_prefix": "/"})
    if host is not None:
        data["http_options"] = {"host": host}
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(data))
    return [str(fault) for fault in validate_file(path).faults]


@pytest.mark.parametrize("host", [None, "127.0.0.1", "localhost"])
def test_this_machine_alone(tmp_path: Path, host: str | None) -> None:
    for auth in (None, "none", KEYS):
        assert faults(tmp_path, host, auth, auth, auth) == []


def test_every_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for auth in ("none", KEYS):
        assert faults(tmp_path, "0.0.0.0", auth, auth) == []
    (fault,) = faults(tmp_path, "0.0.0.0", None, None)
    assert "http_options.host: '0.0.0.0' opens the service to others" in fault
    for value in ("none", "keys.yaml"):
        monkeypatch.setenv("TRUTHGPT_KEYS_FILE", value)
        assert faults(tmp_path, "0.0.0.0", None, None) == []
    monkeypatch.setenv("TRUTHGPT_KEYS_FILE", "other.yaml")
    (fault,) = faults(tmp_path, "0.0.0.0", None, None)
    assert "TRUTHGPT_KEYS_FILE" in fault


@pytest.mark.parametrize(
    ("auths", "place"),
    [
        ((KEYS, KEYS, None), "applications[1].args.auth"),
        ((KEYS, None, KEYS), "applications[0].args.auth"),
        ((None, KEYS, KEYS), "applications[2].args.auth"),
        ((KEYS, "none", KEYS), "args.auth: is not the same as"),
        ((KEYS, KEYS, {**KEYS, "public_routes": ["/metrics"]}), "args.auth: is not the same as"),
    ],
)
def test_applications_that_differ(tmp_path: Path, auths: tuple[Any, ...], place: str) -> None:
    for host in (None, "0.0.0.0"):
        found = faults(tmp_path, host, *auths)
        assert found
        assert all("is not the same as" in fault for fault in found)
        assert any(place in fault for fault in found)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    missing = {"keys_file": "none.yaml"}
    found = faults(tmp_path, None, missing, missing)
    assert all("no such file" in fault for fault in found)
    assert len(found) == 2
    (tmp_path / "keys.yaml").write_text("keys: [{name: a}]")
    assert "keys[0].sha256: is required" in faults(tmp_path, None, KEYS, KEYS)[0]


def test_one_section_for_all_by_an_anchor(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(
        """
http_options: {host: 0.0.0.0}
applications:
- name: m
  route_prefix: /models/m
  import_path: truthgpt_serve.app:model
  args: {model: {family: echo}, auth: &auth {keys_file: keys.yaml}}
- name: router
  route_prefix: /
  import_path: truthgpt_serve.app:router
  args: {auth: *auth}
"""
    )
    assert validate_file(path).faults == []
