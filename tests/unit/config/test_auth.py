from __future__ import annotations

from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it has no types
import pytest

from truthgpt_serve.config import load_model_auth, load_router_args
from truthgpt_serve.errors import ConfigError
from truthgpt_serve.validate.reference import router_schema


@pytest.mark.parametrize(
    ("auth", "keys_file"),
    [("none", None), ({"keys_file": "a.yaml"}, "a.yaml"), ({"keys_file": "${FILE}"}, "b.yaml")],
)
def test_forms(auth: Any, keys_file: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FILE", "b.yaml")
    for found in (
        load_model_auth({"auth": auth}, place="args"),
        load_router_args({"auth": auth}, place="args").auth,
    ):
        assert found is not None
        assert found.keys_file == keys_file
    jsonschema.validate({"auth": auth}, router_schema())


def test_nothing_said() -> None:
    assert load_model_auth({}, place="args") is None
    assert load_router_args({}, place="args").auth is None


@pytest.mark.parametrize(
    ("auth", "fault"),
    [
        ("all", "args: auth: must be a mapping of keys to values, not 'all'"),
        (False, "args: auth: must be a mapping of keys to values, not false"),
        ({}, "args: auth.keys_file: is required"),
        ({"keys_file": 3}, "args: auth.keys_file: must be a string, not 3 (put it in quotes)"),
        ({"keys_file": None}, "args: auth.keys_file: is empty (name the file"),
        ({"keys_file": ""}, "args: auth.keys_file: must not be empty"),
        (
            {"keys_file": "k", "usage": {"file": ""}},
            "args: auth.usage.file: must not be empty",
        ),
        (
            {"keys_file": "k", "usage": {"keep_days": 0}},
            "args: auth.usage.keep_days: must be at least 1, not 0",
        ),
        (
            {"keys_file": "k", "quota_store": ""},
            "args: auth.quota_store: must not be empty",
        ),
        (
            {"keys_file": "k", "public_routes": ["/v1"]},
            "args: auth.public_routes[0]: must be one of",
        ),
    ],
)
def test_faults(auth: Any, fault: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_model_auth({"auth": auth}, place="args")
    assert [str(one)[: len(fault)] for one in raised.value.faults] == [fault]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"auth": auth}, router_schema())


def test_where_limits_are_counted() -> None:
    for given in (
        "memory",
        "redis://host:6379/0",
        "rediss://user@host",
        "unix:///run/redis.sock",
    ):
        auth = load_model_auth({"auth": {"keys_file": "k", "quota_store": given}}, place="args")
        assert auth is not None
        assert auth.quota_store == given
    with pytest.raises(ConfigError) as raised:
        load_model_auth(
            {"auth": {"keys_file": "k", "quota_store": "http://:secret@host"}}, place="args"
        )
    (fault,) = raised.value.faults
    assert str(fault).startswith(
        "args: auth.quota_store: is neither memory nor an address of Redis (write memory, or"
    )
    assert "secret" not in str(fault)


@pytest.mark.parametrize(
    ("written", "refused"),
    [
        ("redis://:secret@host", True),
        ("rediss://user:secret@host:6379/0", True),
        ("redis://:secret@${REDIS_HOST}", True),
        ("unix:///run/redis.sock?password=secret", True),
        ("unix://:secret@/run/redis.sock", True),
        ("redis://[:secret@host", True),
        ("${REDIS_URL}", False),
        ("redis://user:${REDIS_PASSWORD}@host", False),
        ("redis://:${REDIS_PASSWORD:-}@host/1", False),
        ("unix:///run/redis.sock?password=${REDIS_PASSWORD}", False),
    ],
)
def test_a_password_comes_by_a_variable(
    monkeypatch: pytest.MonkeyPatch, written: str, refused: bool
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:secret@host")
    monkeypatch.setenv("REDIS_PASSWORD", "secret")
    monkeypatch.setenv("REDIS_HOST", "host")
    args = {"auth": {"keys_file": "k", "quota_store": written}}
    if not refused:
        auth = load_model_auth(args, place="args")
        assert auth is not None
        assert "secret" in auth.quota_store
        return
    with pytest.raises(ConfigError) as raised:
        load_model_auth(args, place="args")
    (fault,) = raised.value.faults
    assert str(fault) == (
        "args: auth.quota_store: has its password written out, and Ray keeps a Serve file in its "
        "log (write ${REDIS_URL}, and set that variable where the service starts)"
    )
