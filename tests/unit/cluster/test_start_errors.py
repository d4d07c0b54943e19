"""Causes of failed starts: first in what Ray keeps, found there again, short, without secrets."""

from __future__ import annotations

import traceback

import pytest

from truthgpt_serve.cluster.start_errors import (
    MAX_CAUSE,
    StartError,
    cause_first,
    read_cause,
    to_cause,
)
from truthgpt_serve.cluster.state import parse_details
from truthgpt_serve.errors import ConfigError, Fault

RAY_HEAD = (
    "The deployment failed to start 3 times in a row. See controller logs for details. Error:\n"
    "\x1b[36mray::ServeReplica:x:ModelReplica.initialize_and_get_metadata()\x1b[39m (pid=1)\n"
    '  File "/x/concurrent/futures/_base.py", line 456, in result\n'
    "    return self.__get_result()\nRuntimeError: "
)


def message_of(error: BaseException) -> str:
    """Returns what Ray Serve keeps of an exception that a replica raises while it starts."""
    try:
        with cause_first("x"):
            raise error
    except StartError:
        return RAY_HEAD + traceback.format_exc()


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ValueError("the weights\n  are of another kind"), "ValueError: the weights; are of"),
        (FileNotFoundError(2, "No such file", "/no/such"), "FileNotFoundError: [Errno 2] No such"),
        (ModuleNotFoundError("No module named 'x'"), "ModuleNotFoundError: No module named 'x'"),
        (KeyError(), "KeyError"),
        (ConfigError([Fault("serving.engine", "is wrong", "leave it out")]), "serving.engine: is"),
    ],
)
def test_the_cause_is_the_first_line_and_is_found_again(error: Exception, cause: str) -> None:
    message = message_of(error)
    assert message.removeprefix(RAY_HEAD).startswith(
        "truthgpt_serve.cluster.start_errors.Cause: " + cause
    )
    found = read_cause(message)
    assert found is not None
    assert found.startswith(cause)


def test_an_exit_is_named_with_its_code() -> None:
    wrapped = RuntimeError("the model raised SystemExit")
    wrapped.__cause__ = SystemExit(4)
    assert "sys.exit(4)" in str(to_cause(wrapped))


def test_causes_are_short_and_hold_no_secrets() -> None:
    assert len(str(to_cause(ValueError("x" * 10_000)))) == MAX_CAUSE
    secrets = [
        "hf_abcdefghijklmnop",
        "sk-proj-abcdefghijkl",
        "https://me:password@host/x",
        "Authorization: Bearer abc.def",
        "http://host/x?token=abcdef&y=1",
    ]
    for secret in secrets:
        text = str(to_cause(OSError(f"cannot fetch with {secret} now")))
        assert "***" in text
        assert not any(word in text for word in ("abcdef", "password@", "abc.def")), text
        assert text.endswith("now")


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("", None),
        ("Waiting for 1 replica", None),
        ("Traceback\n  File x\nImportError: no y\n", "ImportError: no y"),
        ("ray.exceptions.ActorDiedError: The actor died\n class_name: x", "process ended"),
        ("A replica's health check failed. This deployment", "A replica's health check failed"),
    ],
)
def test_other_messages(message: str, cause: str | None) -> None:
    found = read_cause(message)
    assert (found is None) == (cause is None)
    assert cause is None or (found is not None and cause in found)


@pytest.mark.parametrize("status", ["DEPLOY_FAILED", "DEPLOYING", "UNHEALTHY", "RUNNING"])
def test_the_state_of_an_application_has_the_deployments_cause(status: str) -> None:
    details = {
        "status": status,
        "message": "Failed to update the deployments ['ModelReplica'].",
        "deployments": {
            "ModelReplica": {"message": message_of(ValueError("no weights")), "replicas": []}
        },
    }
    state = parse_details({"applications": {"x": details}}).applications["x"]
    assert state.last_error == (None if status == "RUNNING" else "ValueError: no weights")
