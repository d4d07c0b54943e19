"""Bytes that are no text in UTF-8 are named, whatever command they are given to."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from tests.support.cli_service import environment, serve
from truthgpt_serve.cli._service.address import Address
from truthgpt_serve.cli._service.client import ServiceClient, model_path
from truthgpt_serve.cli._service.utf8 import check_text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\udcff", "it is not text in UTF-8: the byte 0xff at its beginning"),
        ("ab\udc80", "it is not text in UTF-8: the byte 0x80 behind 'ab'"),
        ("ab\ud800", "it is not text in UTF-8: half of a surrogate pair behind 'ab'"),
        ("x" * 99 + "\udcff", f"it is not text in UTF-8: the byte 0xff behind {'x' * 20!r}"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(click.UsageError) as raised:
        check_text(text, "it")
    assert raised.value.message == message


def test_letters_that_the_locale_has_no_codes_for_are_not_called_damaged() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "truthgpt_serve.cli", "chat", "m", "--prompt", "é"],
        capture_output=True,
        timeout=60,
        env=environment({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    )
    assert done.returncode == 2
    assert done.stderr.endswith(
        b"--prompt has letters that this shell's locale has no codes for: set LC_ALL=C.UTF-8\n"
    )


def test_text_passes() -> None:
    check_text("äß→😀\0", "it")


def test_requests_and_paths() -> None:
    with serve({}) as service, ServiceClient(Address(service.url, "")) as client:
        with pytest.raises(click.UsageError, match=r"the request is not text .* 0xe9"):
            client.post("/v1/x", {"model": "m", "input": "caf\udce9"})
        with pytest.raises(click.UsageError, match="the model's name is not text in UTF-8"):
            client.get(model_path("caf\udce9"))
    assert service.requests == []


@pytest.mark.parametrize(
    ("arguments", "given", "what"),
    [
        ([b"--text", b"a\xff"], b"", b"--text"),
        ([b"--inputs", b"-"], b'{"text": "\xff"}', b"--inputs -"),
    ],
)
def test_infer(arguments: list[bytes], given: bytes, what: bytes) -> None:
    command = [sys.executable.encode(), b"-m", b"truthgpt_serve.cli", b"infer"]
    done = subprocess.run(
        [*command, b"configs/models/echo.yaml", *arguments],
        input=given,
        capture_output=True,
        timeout=60,
        env=environment({"LC_ALL": "C.UTF-8"}),
    )
    assert done.returncode == 2
    assert what + b" is not text in UTF-8: the byte 0xff" in done.stderr
