"""`truthgpt usage`: a table for users, the service's own answer for programs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.cli_service import Answer, envelope, run_cli, serve

COUNTS = {
    "requests": 1200,
    "errors": 3,
    "prompt_tokens": 40_000,
    "cached_tokens": 0,
    "completion_tokens": 9000,
    "images": 0,
    "megapixel_steps": 0.0,
    "audio_s": 0.0,
}


def found(*rows: dict[str, Any], group_by: tuple[str, ...] = ("key",), **more: Any) -> Answer:
    data = [{"object": "usage", **COUNTS, **row} for row in rows]
    head = {"object": "list", "start": 1_799_971_200, "end": 1_800_000_000, "has_more": False}
    return Answer({**head, "group_by": list(group_by), "data": data, **more})


def test_a_table_with_the_sum() -> None:
    rows: list[dict[str, Any]] = [{"key": "team-a"}, {"key": "[red]b", "requests": 1, "images": 4}]
    with serve({"/v1/usage": found(*rows)}) as service:
        done = run_cli("usage", env=service.env(TRUTHGPT_API_KEY="tgpt-x"))
        (request,) = service.requests
    assert done.returncode == 0, done.stderr
    assert request.headers["authorization"] == "Bearer tgpt-x"
    title, head, *lines = [line.split() for line in done.stdout.splitlines()]
    assert title == ["2027-01-15", "00:00", "to", "2027-01-15", "08:00", "UTC"]
    assert head == [
        "KEY",
        "REQUESTS",
        "ERRORS",
        "PROMPT",
        "TOKENS",
        "CACHED",
        "GENERATED",
        "IMAGES",
    ]
    assert lines == [
        ["team-a", "1,200", "3", "40,000", "0", "9,000", "0"],
        ["[red]b", "1", "3", "40,000", "0", "9,000", "4"],
        ["all", "1,201", "6", "80,000", "0", "18,000", "4"],
    ]


def test_what_is_asked_for() -> None:
    asked = []

    def answer(request: Any) -> Answer:
        asked.append(request)
        return found({"day": "2027-01-15", "key": "a"}, group_by=("day", "key"), has_more=True)

    options = ["--start", "2027-01-01", "--end", "2027-02-01T00:00:00+01:00"]
    with serve({"/v1/usage": answer}) as service:
        table = run_cli("usage", *options, "--group-by", "day,key", env=service.env())
        shown = run_cli("usage", *options, "--json", env=service.env())
    assert table.stdout.splitlines()[-1].split()[:3] == ["2027-01-15", "a", "1,200"]
    assert "there are more rows" in table.stderr
    assert json.loads(shown.stdout)["data"][0]["key"] == "a"


@pytest.mark.parametrize("body", [[], {"data": 5}, {"group_by": [], "data": [1]}])
def test_another_server(body: Any) -> None:
    with serve({"/v1/usage": Answer(body)}) as service:
        done = run_cli("usage", env=service.env())
    assert done.returncode == 1
    assert "/v1/usage does not list usage" in done.stderr


def test_refusals_say_what_to_do() -> None:
    refusal = Answer(envelope("the key 'a' may not read it", "insufficient_permissions"), 403)
    with serve({"/v1/usage": refusal}) as service:
        done = run_cli("usage", env=service.env(TRUTHGPT_API_KEY="tgpt-x"))
    assert done.returncode == 1
    assert "the key 'a' may not read it: check TRUTHGPT_API_KEY" in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--start", "foo"], "'--start': 'foo' is no moment"),
        (["--end", "2027-13-01"], "'--end': '2027-13-01' is no moment"),
        (["--group-by", "day,foo"], "'--group-by': 'foo' is none of day, key, model"),
    ],
)
def test_wrong_options_are_told_without_a_service(options: list[str], said: str) -> None:
    done = run_cli("usage", *options, env={"TRUTHGPT_URL": "http://127.0.0.1:9"})
    assert done.returncode == 2
    assert said in done.stderr
