"""What an application is told of keys, and when it must not start."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from truthgpt_serve.access.gate import Gate
from truthgpt_serve.access.key_edit import add_key
from truthgpt_serve.access.settings import (
    Access,
    Auth,
    check_listening,
    check_same,
    find_auth,
    is_loopback,
)
from truthgpt_serve.config.auth import AuthSection
from truthgpt_serve.errors import ConfigError
from truthgpt_serve.usage.batch import Batch
from truthgpt_serve.usage.counted import Usage
from truthgpt_serve.usage.recorder import UsageRecorder


def section(value: Any) -> AuthSection:
    return AuthSection.model_validate(value)


def test_nothing_none_and_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUTHGPT_CONFIG_DIR", str(tmp_path))
    add_key(tmp_path / "keys.yaml", {"name": "a"})
    file = str(tmp_path / "keys.yaml")
    assert find_auth(None, "x", {}) is None
    assert find_auth(section("none"), "x", {"TRUTHGPT_KEYS_FILE": file}) == Auth(None)
    assert find_auth(section({"keys_file": "keys.yaml"}), "x", {}) == Auth(file)
    public = {"keys_file": file, "public_routes": ["/metrics", "/docs"]}
    assert find_auth(section(public), "x", {}) == Auth(file, ("/docs", "/metrics"))
    assert find_auth(None, "x", {"TRUTHGPT_KEYS_FILE": file}) == Auth(file)
    assert find_auth(None, "x", {"TRUTHGPT_KEYS_FILE": " none "}) == Auth(None)
    with pytest.raises(ConfigError, match=r"x: .*no.yaml: no such file.*truthgpt keys add NAME"):
        find_auth(section({"keys_file": "no.yaml"}), "x", {})
    with pytest.raises(ConfigError, match=r"TRUTHGPT_KEYS_FILE: .*no such file"):
        find_auth(None, "x", {"TRUTHGPT_KEYS_FILE": "no.yaml"})


def test_where_usage_is_kept(tmp_path: Path) -> None:
    add_key(tmp_path / "keys.yaml", {"name": "a"})
    file = str(tmp_path / "keys.yaml")
    environ = {"TRUTHGPT_USAGE_FILE": "/data/usage.sqlite"}
    assert find_auth(section({"keys_file": file}), "x", environ) == Auth(
        file, usage_file="/data/usage.sqlite", keep_days=400
    )
    own = section({"keys_file": file, "usage": {"file": "usage.sqlite", "keep_days": 30}})
    for given in ({}, environ):
        assert find_auth(own, "x", given) == Auth(
            file, usage_file=str(tmp_path / "usage.sqlite"), keep_days=30
        )


def test_where_limits_are_counted_by_the_environment(tmp_path: Path) -> None:
    (tmp_path / "keys.yaml").write_text("{}")
    keys = section({"keys_file": str(tmp_path / "keys.yaml")})
    address = "redis://:secret@host/1"  # a variable may hold a password, a Serve file may not
    found = find_auth(keys, "x", {"TRUTHGPT_QUOTA_STORE": f" {address} "})
    assert found is not None
    assert found.quota_store == address
    with pytest.raises(ConfigError, match="TRUTHGPT_QUOTA_STORE: is neither memory nor"):
        find_auth(keys, "x", {"TRUTHGPT_QUOTA_STORE": "http://host"})
    with pytest.raises(ConfigError, match="TRUTHGPT_QUOTA_STORE: is no address") as caught:
        find_auth(keys, "x", {"TRUTHGPT_QUOTA_STORE": "redis://:pass/word@host"})
    assert "pass/" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        (None, True),
        ("127.0.0.1", True),
        ("127.5.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("192.0.2.1", False),
        ("models.example.com", False),
    ],
)
def test_where_a_service_must_ask_for_keys(host: str | None, is_local: bool) -> None:
    assert is_loopback(host) is is_local
    assert bool(check_listening(None, host, "x")) is not is_local
    assert check_listening(Auth(None), host, "x") == []
    assert check_listening(Auth("keys.yaml"), host, "x") == []


def test_an_application_that_forgets_its_keys() -> None:
    guarded = {"name": "router", "args": {"auth": {"keys_file": "keys.yaml"}}}
    others: list[dict[str, Any]] = [{"name": "ui"}, {"name": "m", "args": {"auth": "none"}}]
    for auth in (None, Auth(None)):
        assert check_same(auth, others, "x") == []
        (fault,) = check_same(auth, [*others, guarded], "x")
        assert "'router' does" in fault.message
    assert check_same(Auth("keys.yaml"), [*others, guarded], "x") == []


def test_gates_are_there_with_keys_only(tmp_path: Path) -> None:
    app = object()
    for auth in (None, Auth(None)):
        access = Access(auth, ())
        assert access.guard(app) is app
        assert access.internal_headers() == []
        access.close()
    add_key(tmp_path / "keys.yaml", {"name": "a"})
    access = Access(Auth(str(tmp_path / "keys.yaml"), ("/metrics", "/docs")), (), ("m",))
    gate = access.guard(app)
    assert isinstance(gate, Gate)
    assert gate._open == {"/health", "/metrics"}  # a model's pages are not the router's
    assert access.internal_headers()
    access.close()
    with pytest.raises(ConfigError):
        Access(Auth(str(tmp_path / "none.yaml")), ())


def test_a_model_shows_whether_its_keys_and_their_usage_are_well(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    add_key(file, {"name": "a"})
    recorder = UsageRecorder(find_no_room, period_s=0.01)
    access = Access(Auth(str(file)), (), ("m",), lambda *_: recorder)
    try:
        assert states(access) == {"truthgpt_keys_current": 1, "truthgpt_usage_kept": 1}
        file.write_text("keys: [")
        recorder.add("a", "m", Usage(), False)
        deadline = time.monotonic() + 60
        while any(states(access).values()):
            assert time.monotonic() < deadline, states(access)
            time.sleep(0.05)
    finally:
        access.close()


def find_no_room(batch: Batch) -> None:
    raise OSError("no room")


def states(access: Access) -> dict[str, float]:
    lines = [line.split() for line in access.metrics_page().splitlines() if line[:1] != "#"]
    return {name: float(value) for name, value in lines}
