"""Names of models that a shell completes."""

from __future__ import annotations

from tests.support.cli_service import (
    Answer,
    envelope,
    model_list,
    run_cli,
    serve,
)
from truthgpt_serve.cluster.ports import free_port

KEY = "sk-secret-of-a-test"


def completed(words: str, **env: str) -> list[str]:
    """Returns what a shell would offer for the last of some words."""
    number = str(len(words.split(" ")) - 1)
    ask = {"_TRUTHGPT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": number}
    done = run_cli(env={**ask, **env})
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_a_shell_completes_the_names_of_models() -> None:
    with serve({"/v1/models": model_list("echo", "shapes", "story")}) as service:
        env = service.env(TRUTHGPT_API_KEY=KEY)
        for command in ("chat", "image", "logs", "why"):
            assert completed(f"truthgpt {command} s", **env) == ["shapes", "story"], command
        assert completed("truthgpt val", **env) == ["validate"]
        assert "--system" in completed("truthgpt chat --s", **env)
    assert service.requests[0].headers["authorization"] == f"Bearer {KEY}"


def test_a_shell_waits_for_no_service() -> None:
    slow = Answer(pieces=[b" "] * 100, pause_s=0.1)
    for answer in (slow, Answer(envelope("no key"), 401), Answer(b"<html>"), Answer([1])):
        with serve({"/v1/models": answer}) as service:
            assert completed("truthgpt why s", **service.env()) == []
    assert completed("truthgpt why s", TRUTHGPT_URL=f"http://127.0.0.1:{free_port()}") == []
    assert completed("truthgpt why s", TRUTHGPT_URL="nonsense") == []
