"""`truthgpt models`: what is read from the service, and what is shown of it."""

from __future__ import annotations

import json
import subprocess
import sys
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from tests.support.cli_service import (
    Answer,
    Answers,
    envelope,
    environment,
    model_list,
    run_cli,
    serve,
)
from tests.support.terminal import on_terminal
from truthgpt_serve.cli._service.address import Address
from truthgpt_serve.cli._service.client import ServiceClient
from truthgpt_serve.cli._service.models import Model, ModelReader
from truthgpt_serve.cli.models import table_of

PAGE = """\
# HELP truthgpt_replica_requests Requests.
truthgpt_replica_requests{{state="ongoing",replica="a"}} 5
truthgpt_replica_requests{{state="ongoing",replica="b"}} 2
truthgpt_replica_requests{{state="queued",replica="a"}} 1
truthgpt_replica_requests_total{{replica="a"}} 9
truthgpt_replica_memory_bytes{{replica="a"}} 1.5e+09
truthgpt_replica_memory_bytes{{replica="b"}} 1e9
vllm:num_requests_waiting{{engine="0",model_name="a \\"b\\"}}",replica="a"}} 3.0
vllm:num_requests_waiting_by_reason{{reason="capacity",replica="a"}} 3.0
vllm:generation_tokens_total{{replica="a"}} {tokens}
"""


CAN = {
    "context_length": 4096,
    "tools": True,
    "json": True,
    "images": False,
    "new": 5,
    "logprobs": 1,
}


def card(name: str, family: str, **more: Any) -> Answer:
    return Answer({"id": name, "card": {"task": "text-generation", "family": family}, **more})


def answers(tokens: list[int]) -> dict[str, Any]:
    """A service with a model that runs, one that failed and one that waits."""
    models = model_list("bad", "story", "waiting")
    models.body["data"].append({"id": "moral", "parent": "story"})
    models.body["data"].append({"id": "org/Story", "alias_of": "story"})
    waits = "1 replica waits for resources: each needs 40 CPU"
    states = {
        "story": {"status": "RUNNING", "num_running_replicas": 2},
        "bad": {"status": "DEPLOY_FAILED", "num_running_replicas": 0},
        "waiting": {"status": "DEPLOYING", "num_running_replicas": 0, "message": waits},
    }
    return {
        "/v1/models": models,
        "/ready": Answer({"status": "not ready", "models": states}, 503),
        "/v1/models/story": card("story", "vllm", capabilities=CAN),
        "/v1/models/bad": card(
            "bad", "mine", last_error="FileNotFoundError:\n no weights\x1b]0;x\x07"
        ),
        "/v1/models/waiting": card("waiting", "echo", waits_for=waits),
        "/models/story/metrics": lambda _: Answer(
            PAGE.format(tokens=tokens.pop(0)).encode(), content_type="text/plain"
        ),
    }


def test_each_model_has_what_is_known_of_it() -> None:
    clock = iter([0.0, 2.0, 4.0])
    with (
        serve(answers([100, 400, 50])) as service,
        ServiceClient(Address(service.url, "")) as client,
    ):
        reader = ModelReader(client, lambda: next(clock))
        bad, first, waiting = reader.read()
        _, second, _ = reader.read()
        _, restarted, _ = reader.read()
    assert (first.name, first.state, first.family) == ("story", "RUNNING", "vllm")
    assert (first.num_replicas, first.adapters, first.aliases) == (2, ("moral",), ("org/Story",))
    # Of the seven that the replicas have, three wait in the engine.
    assert (first.ongoing, first.queued) == (4, 4)
    assert first.capabilities == {
        "context_length": 4096, "tools": True, "json": True, "images": False,
    }  # fmt: skip
    assert bad.capabilities == {}
    assert first.memory_bytes == 2_500_000_000
    assert (first.rate, first.rate_unit) == (None, "tokens")
    assert second.rate == 150.0
    assert restarted.rate is None
    assert (bad.state, bad.ongoing, bad.memory_bytes, bad.rate) == (
        "DEPLOY_FAILED", None, None, None,
    )  # fmt: skip
    assert bad.last_error == "FileNotFoundError: no weights"  # nothing that a terminal obeys
    assert waiting.waits_for == "1 replica waits for resources: each needs 40 CPU"


def test_programs_get_json_and_users_a_table() -> None:
    with serve(answers([100, 400, 500, 600])) as service:
        done = run_cli("models", "--json", env=service.env())
        table = run_cli("models", env=service.env())
    assert done.returncode == 0, done.stderr
    found = {model["name"]: model for model in json.loads(done.stdout)["models"]}
    assert found["story"]["rate"] > 0
    assert found["story"]["adapters"] == ["moral"]
    assert found["bad"]["rate"] is None
    head, *rows = [line.split() for line in table.stdout.splitlines()]
    assert head[:5] == ["MODEL", "FAMILY", "STATE", "REPLICAS", "ONGOING"]
    assert rows[0][:8] == ["bad", "mine", "DEPLOY_FAILED", "0", "-", "-", "-", "-"]
    assert rows[1][:5] == ["story", "vllm", "RUNNING", "2", "4"]
    assert "tokens/s 2.3 GiB 4096 tokens, tools, JSON adapters: moral; also: org/Story" in " ".join(
        rows[1]
    )
    assert "truthgpt why MODEL" in table.stdout


@pytest.mark.parametrize(
    ("width", "shown", "gone"),
    [
        (160, ["FAMILY", "MEMORY", "CAN", "NOTE"], []),
        (80, ["STATE", "ONGOING", "NOTE"], ["CAN", "MEMORY"]),
        (40, ["STATE"], ["FAMILY", "SPEED", "QUEUED"]),
        (10, ["STATE"], ["NOTE"]),
    ],
)
def test_a_narrow_terminal_shows_names_and_states_first(
    width: int, shown: list[str], gone: list[str]
) -> None:
    found = [
        Model("story", "RUNNING", family="vllm", num_replicas=2, adapters=("moral",)),
        Model("a-model-of-many-letters-and-more-of-them", "DEPLOY_FAILED", memory_bytes=5 << 30),
    ]
    output = StringIO()
    Console(width=max(width, 40), file=output).print(table_of(found, width))
    text = output.getvalue()
    head = text.splitlines()[0].split()
    assert "MODEL" in head
    assert "STATE" in head
    assert "RUNNING" in text
    assert "story" in text
    assert set(shown) <= set(head)
    assert not set(gone) & set(head)
    assert "…" not in text
    assert all(len(line) <= max(width, 40) for line in text.splitlines())


def test_a_service_that_goes_away_does_not_end_the_watch() -> None:
    served: Answers = {**answers([100, 200, 300, 400]), "/ready": ready()}
    command = [sys.executable, "-m", "truthgpt_serve.cli", "models", "--watch", "--interval", "0.5"]
    with serve(served) as service, on_terminal(*command, env=environment(service.env())) as shown:
        shown.wait_for("story")
        shown.wait_for("restarting; this is what was known before")
        shown.type("\x03")
        assert shown.end() == 0


def test_a_watch_in_a_pipe_gives_each_table_as_it_comes_and_ends_with_its_reader() -> None:
    command = f"{sys.executable} -m truthgpt_serve.cli models --watch --interval 0.5"
    with serve(answers([*range(100, 9000, 100)])) as service:
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", f"{command} | grep -m 2 FAMILY"],
            env=environment(service.env()),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.count("FAMILY") == 2


def ready() -> Any:
    states = {"story": {"status": "RUNNING", "num_running_replicas": 1}}
    first = iter([Answer({"models": states}), Answer({"models": states})])
    gone = Answer(envelope("the service is restarting"), 503)
    return lambda _: next(first, gone)


def test_another_server_has_only_names() -> None:
    with serve({"/v1/models": model_list("llama")}) as service:
        done = run_cli("models", env=service.env())
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split() == ["llama", *"--------"]


@pytest.mark.parametrize("body", [[], {"data": 5}, {"object": "list"}])
def test_what_lists_no_models_is_told(body: Any) -> None:
    with serve({"/v1/models": Answer(body)}) as service:
        done = run_cli("models", env=service.env())
    assert done.returncode == 1
    assert "/v1/models does not list models" in done.stderr
    assert len(done.stderr.splitlines()) == 1
