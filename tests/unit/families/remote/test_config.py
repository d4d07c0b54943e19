"""What the family `remote` refuses in a file, word by word, and what it says about keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from deployments.remote.address import Addresses
from deployments.remote.config import FAMILY, RemoteSettings
from deployments.remote.deployment import RemoteModel
from tests.support.remote_servers import KEY, remote_cfg
from truthgpt_serve import MODEL_REGISTRY, build_model
from truthgpt_serve.cli import main
from truthgpt_serve.config import load_model_config
from truthgpt_serve.errors import ConfigError
from truthgpt_serve.hardware.plan import request_limits

ROOT = Path(__file__).parents[4]
URL = "https://host.test/v1"
EXAMPLE = "write it as a client library takes it, such as https://host/v1"
TAKE_OUT = "take it out; the name of an environment variable belongs to serving.engine.api_key_env"
NOT_A_VARIABLE = (
    "serving.engine.api_key_env: must be the name of an environment variable, in capital letters, "
    "digits and underscores, not the key itself (write a name such as OPENAI_API_KEY, and set the "
    "variable to the key)"
)


def validate(text: str, folder: Path) -> list[str]:
    path = folder / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    result = CliRunner().invoke(main, ["validate", str(path)], catch_exceptions=False)
    assert KEY not in result.output
    assert (result.exit_code == 0) is not ("fault: " in result.stderr)
    return [
        line.removeprefix(f"fault: {path}:").partition(": ")[2]
        for line in result.stderr.splitlines()
        if line.startswith("fault: ")
    ]


def written(url: Any = URL, engine: dict[str, Any] | None = None, **more: Any) -> str:
    model = {"family": "remote", "name_or_path": url}
    serving = {**more.pop("serving", {}), "engine": engine or {}}
    return yaml.safe_dump({"model": model, "serving": serving, **more}, sort_keys=False)


def test_the_family_is_found_and_good_files_are_good(tmp_path: Path) -> None:
    assert MODEL_REGISTRY["remote"] is FAMILY
    assert FAMILY.load_class().__name__ == RemoteModel.__name__
    for task in FAMILY.tasks:
        assert validate(written(task=task, hardware={"gpus": 0}), tmp_path) == []
    engine = {
        "model": "org/name:free",
        "api_key_env": "VENDOR_2_KEY",
        "api_key_header": "X-Api-Key",
        "headers": {"OpenAI-Organization": "org-1", "anthropic-version": "2023-06-01"},
        "paths": ["/v1/messages"],
        "health_path": None,
        "ca_file": "ca.pem",
        "max_connections": 512,
    }
    serving = {"max_ongoing_requests": 512}
    assert validate(written(engine=engine, serving=serving), tmp_path) == []
    assert RemoteSettings.model_validate(engine).api_key_header == "x-api-key"


def test_the_example_is_good() -> None:
    path = ROOT / "configs" / "models" / "remote.yaml"
    result = CliRunner().invoke(main, ["validate", str(path)], catch_exceptions=False)
    assert (result.exit_code, result.stderr) == (0, "")


def test_every_setting_is_explained() -> None:
    fields = RemoteSettings.model_fields
    assert [name for name in fields if not fields[name].description] == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (None, f"is required by family 'remote': the base URL of the other server ({EXAMPLE})"),
        ("ftp://host/v1", f"must be an http or https URL, not 'ftp://host/v1' ({EXAMPLE})"),
        ("host:8000/v1", f"must be an http or https URL, not 'host:8000/v1' ({EXAMPLE})"),
        ("https:///v1", f"must be an http or https URL, not 'https:///v1' ({EXAMPLE})"),
        ("http://host:99999/v1", f"is not a URL: Port out of range 0-65535 ({EXAMPLE})"),
        ("http://host/a b", f"is not a URL that can be asked: 'http://host/a b' ({EXAMPLE})"),
        (f"https://me:{KEY}@host/v1", f"holds a user name or a password ({TAKE_OUT})"),
        (
            f"https://host/v1?key={KEY}",
            f"has a query or a fragment: routes are appended to a base URL ({TAKE_OUT})",
        ),
        ("http://host/a/../v1", "has a `.` or `..` in its path '/a/../v1' (write the path out)"),
        (
            "https://host/v1/chat/completions",
            "ends with the route /chat/completions, which requests bring (end it with /v1)",
        ),
    ],
)
def test_a_bad_address(url: str | None, message: str, tmp_path: Path) -> None:
    assert validate(written(url), tmp_path) == [f"model.name_or_path: {message}"]


@pytest.mark.parametrize(
    "value",
    [KEY, "AKIA2E0A8F3B244C9986", "hf_aBcDeFgHiJkLmN", f"Bearer {KEY}", "", 12345678, [KEY]],
    ids=["openai", "capitals", "small-letters", "bearer", "empty", "number", "list"],
)
def test_a_key_in_the_place_of_its_variable_is_not_shown(value: Any, tmp_path: Path) -> None:
    assert validate(written(engine={"api_key_env": value}), tmp_path) == [NOT_A_VARIABLE]
    with pytest.raises(ConfigError) as caught:
        build_model("remote", remote_cfg(URL, api_key_env=value))
    assert caught.value.message == f"configuration: {NOT_A_VARIABLE}"


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (
            {"headers": {"Authorization": f"Bearer {KEY}"}},
            "headers: 'Authorization' carries a credential, which belongs into an environment "
            "variable (use api_key_env and api_key_header)",
        ),
        (
            {"headers": {"Connection": "close"}},
            "headers: 'Connection' is written by the relay itself",
        ),
        ({"headers": {"a b": "1"}}, "headers: 'a b' is not the name of a header"),
        ({"headers": {"a": f"1\n{KEY}"}}, "headers: 'a' has a value that no header can have"),
        (
            {"headers": {"a": 1}},
            "headers: 'a' must be text with a text as its value (put both in quotes)",
        ),
        ({"headers": [KEY]}, "headers: must be a mapping of header names to texts"),
        (
            {"api_key_header": "a b"},
            "api_key_header: 'a b' is not a header that can carry a key (write authorization)",
        ),
        (
            {"api_key": KEY},
            "api_key: unknown field `api_key` of family 'remote' "
            "(did you mean serving.engine.api_key_env?)",
        ),
        ({"model": ""}, "model: must not be empty"),
        (
            {"health_path": "models"},
            "health_path: must be a path that begins with a slash, not 'models'",
        ),
        (
            {"paths": ["/v1/../admin"]},
            "paths[0]: must be a path that begins with a slash, not '/v1/../admin'",
        ),
        ({"connect_timeout_s": 0}, "connect_timeout_s: must be at least 0.001, not 0"),
        ({"max_connections": 1.5}, "max_connections: must be a whole number, not 1.5"),
        ({"verify_tls": "no way"}, "verify_tls: must be true or false, not 'no way'"),
        (
            {"ca_file": "ca.pem", "verify_tls": False},
            "ca_file: has no effect with verify_tls: false (remove one of them)",
        ),
        ({"infer_with": "chats"}, "infer_with: must be one of chat, completion, not 'chats'"
                                  " (did you mean chat?)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_bad_setting(engine: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert validate(written(engine=engine), tmp_path) == [f"serving.engine.{message}"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            written("http://host/v1", {"ca_file": "ca.pem"}),
            "serving.engine.ca_file: has no effect with an http URL (write https, or remove it)",
        ),
        (
            written("http://host/v1", {"verify_tls": False}),
            "serving.engine.verify_tls: has no effect with an http URL (write https, or remove it)",
        ),
        (
            written(serving={"max_ongoing_requests": 300}),
            "serving.max_ongoing_requests: 300 is more than serving.engine.max_connections, which "
            "is 256 (lower it, or raise max_connections)",
        ),
        (
            written(hardware={"gpus": 1}),
            "hardware.gpus: 1 would be reserved for nothing: the remote server computes (write 0)",
        ),
        (
            written(task="tensor"),
            "task: family 'remote' cannot do 'tensor' "
            "(it can do text-generation, embedding, image-generation, custom)",
        ),
        (
            written(serving={"adapters": [{"name": "style", "path": "org/style"}]}),
            "serving.adapters: family 'remote' has no LoRA adapters "
            "(remove them, or use another family)",
        ),
    ],
)
def test_faults_between_sections(text: str, message: str, tmp_path: Path) -> None:
    assert validate(text, tmp_path) == [message]


def test_the_limits_follow_the_connections() -> None:
    assert request_limits(load_model_config(remote_cfg(URL)), FAMILY) == (64, 128)
    assert request_limits(load_model_config(remote_cfg(URL, max_connections=8)), FAMILY) == (8, 16)


@pytest.mark.parametrize(
    ("base", "path", "url"),
    [
        ("https://host/v1/", "/v1/chat/completions", "https://host/v1/chat/completions"),
        ("https://host/v1", "/tokenize", "https://host/tokenize"),
        ("https://host/v1", "/v1x", "https://host/v1x"),
        ("https://host/v1beta/openai", "/v1/models", "https://host/v1beta/openai/models"),
        ("https://host", "/v1/a%2Fb?x=1", "https://host/a%2Fb?x=1"),
    ],
)
def test_where_a_path_leads(base: str, path: str, url: str) -> None:
    path, _, query = path.partition("?")
    assert Addresses(base).of(path, query) == url
