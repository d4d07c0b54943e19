"""`GET /v1/usage` over HTTP: a real file of keys in front, a real store behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]  # it has none

from tests.support.servers import serve_asgi
from truthgpt_serve.access.identity import Identity
from truthgpt_serve.access.key_edit import add_key
from truthgpt_serve.access.settings import Access, Auth
from truthgpt_serve.cluster.state import ServeState
from truthgpt_serve.config import RouterConfig
from truthgpt_serve.errors import OverloadedError
from truthgpt_serve.router.app import RouterApp
from truthgpt_serve.router.openapi import openapi_document
from truthgpt_serve.router.usage import MAX_WAITING, UsageRoute, read_query
from truthgpt_serve.usage.batch import COUNTS, Batch, Row, UsageQuery
from truthgpt_serve.usage.collector import CollectorError
from truthgpt_serve.usage.store import UsageStore

HOUR = 500_000
"""2027-01-15T08:00Z"""
DAY_S = HOUR // 24 * 86400
ONCE: Any = (1, 0, 10, 4, 20, 1, 2.5, 0.1)
NOW_S = HOUR * 3600 + 100.0
RANGE = {"start": "2027-01-01", "end": "2027-02-01"}


class Service:
    """A router with keys.

    Attributes:
        url: Its address.
        keys: The keys by name.
        store: What was used.
        problem: Why the store cannot be asked now.
    """

    def __init__(self, folder: Path) -> None:
        self.url = ""
        file = folder / "keys.yaml"
        self.keys = {
            "admin": add_key(file, {"name": "admin", "admin": True, "models": ["other"]}),
            "team": add_key(file, {"name": "team"}),
        }
        self.access = Access(Auth(str(file)), ())
        self.store = UsageStore(folder / "usage.sqlite", clock=lambda: NOW_S)
        self.problem = ""

    def fetch(self, query: UsageQuery) -> list[list[Any]]:
        if self.problem:
            raise CollectorError(self.problem)
        return self.store.query(query)

    @contextmanager
    def running(self) -> Iterator[None]:
        router = RouterApp(RouterConfig(), ServeState, ("127.0.0.1", 9), fetch_usage=self.fetch)
        with serve_asgi(self.access.guard(router)) as self.url:
            yield
        self.access.close()
        self.store.close()

    def get(self, key: str = "admin", **query: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.keys.get(key, key)}"}
        return httpx.get(f"{self.url}/v1/usage", params=query, headers=headers)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    with service.running():
        yield service


def faults_of(answer: Any) -> list[str]:
    """Returns what is wrong with an answer by the OpenAPI document."""
    document = openapi_document()
    responses = document["paths"]["/v1/usage"]["get"]["responses"]
    schema = responses["200"]["content"]["application/json"]["schema"]
    whole = {**schema, "components": document["components"]}  # where its references lead
    return [error.message for error in Draft202012Validator(whole).iter_errors(answer)]


def row(hour: int = HOUR, key: str = "a", model: str = "m") -> Row:
    return (hour, key, model, *ONCE)


def test_usage_by_groups(service: Service) -> None:
    service.store.add(
        Batch("s", 1, [row(), row(key="b"), row(HOUR - 24), row(HOUR - 24, model="n")])
    )
    everything = service.get(**RANGE).json()
    one = dict(zip(COUNTS, ONCE, strict=True))
    assert everything == {
        "object": "list",
        "start": DAY_S - 14 * 86400,
        "end": DAY_S + 17 * 86400,
        "group_by": [],
        "data": [{"object": "usage", **{name: 4 * count for name, count in one.items()}}],
        "has_more": False,
    }
    by = service.get(group_by="day,model", **RANGE).json()
    for answer in (everything, by):
        assert faults_of(answer) == []
    assert [(each["day"], each["model"], each["requests"]) for each in by["data"]] == [
        ("2027-01-14", "m", 1),
        ("2027-01-14", "n", 1),
        ("2027-01-15", "m", 2),
    ]
    twice = httpx.QueryParams([("group_by", "key"), ("group_by", "day"), *RANGE.items()])
    named = service.get(**{"group_by": "key", **RANGE}).json()["data"]
    assert [(each["key"], each["requests"]) for each in named] == [("a", 3), ("b", 1)]
    headers = {"x-api-key": service.keys["admin"]}
    listed = httpx.get(f"{service.url}/v1/usage", params=twice, headers=headers).json()
    assert listed["group_by"] == ["key", "day"]
    part = service.get(group_by="key", limit=1, **RANGE).json()
    assert (len(part["data"]), part["has_more"]) == (1, True)
    hour = service.get(start=HOUR * 3600 + 5, end="2027-01-15T08:00:30Z").json()
    assert (hour["start"], hour["end"]) == (HOUR * 3600, HOUR * 3600 + 3600)
    assert hour["data"][0]["requests"] == 2


def test_who_may_read_it(service: Service) -> None:
    assert service.get("wrong").status_code == 401
    refused = service.get("team")
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "insufficient_permissions"
    assert "truthgpt keys add NAME --admin" in refused.json()["error"]["message"]
    with (
        openai.OpenAI(
            api_key=service.keys["team"], base_url=f"{service.url}/v1", max_retries=0
        ) as client,
        pytest.raises(openai.PermissionDeniedError),
    ):
        client.get("/usage", cast_to=object)
    headers = {"x-api-key": service.keys["admin"]}
    assert httpx.post(f"{service.url}/v1/usage", headers=headers).status_code == 405
    head = httpx.head(f"{service.url}/v1/usage", headers=headers)
    assert (head.status_code, head.content) == (200, b"")


def test_a_service_without_keys_says_so() -> None:
    with serve_asgi(RouterApp(RouterConfig(), ServeState, ("127.0.0.1", 9))) as url:
        answer = httpx.get(f"{url}/v1/usage")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert "this service asks for none" in answer.json()["error"]["message"]


def test_a_store_that_cannot_be_read(service: Service) -> None:
    service.problem = "the disk is gone"
    answer = service.get()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "usage_unavailable")
    assert "the disk is gone" in answer.json()["error"]["message"]
    assert answer.headers["retry-after"]
    service.problem = ""
    assert service.get().json()["data"][0]["requests"] == 0


@pytest.mark.parametrize(
    ("query", "param", "words"),
    [
        ("start=tomorrow", "start", "'tomorrow' is no moment: write it like 2027-01-31"),
        ("start=20270131", "start", "is no moment"),
        ("end=99999999999999999999", "end", "is no moment"),
        ("end=-5", "end", "is no moment"),
        ("end=0001-01-01", "end", "must not be before 1970, as '0001-01-01' is"),
        ("start=2027-01-31T00:00:00+02:00", "start", "written %2B"),
        ("start=2027-01-02&end=2027-01-02", "start", "must be before `end`"),
        ("start=2999-01-01", "start", "must be before `end`"),
        ("group_by=team", "group_by", "must be of day, key, model, not 'team'"),
        ("group_by=key,", "group_by", "must be of day, key, model, not ''"),
        ("group_by=key,day,key", "group_by", "names a group twice"),
        ("limit=0", "limit", "must be a whole number from 1 to 10000, not '0'"),
        ("limit=10001", "limit", "from 1 to 10000"),
        ("limit=1e3", "limit", "from 1 to 10000"),
        ("begin=2027-01-01", "begin", "unknown parameter 'begin'"),
        ("start=2027-01-01&start=2027-01-02", "start", "is given twice"),
        ("&".join(f"group_by={at}" for at in range(40)), None, "at most 16 parameters"),
        ("start=\udcff", None, "is no list"),
    ],
)
def test_wrong_parameters(service: Service, query: str, param: str | None, words: str) -> None:
    headers = {"x-api-key": service.keys["admin"]}
    if query.isascii():
        answer = httpx.get(f"{service.url}/v1/usage?{query}", headers=headers)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param
        assert words in answer.json()["error"]["message"]
    else:
        with pytest.raises(Exception, match=words):
            read_query(query.encode("utf-8", "surrogateescape"), NOW_S)


def test_what_is_asked_for_by_default() -> None:
    now_hour = HOUR + 1
    for query in (b"", b"group_by="):
        assert read_query(query, NOW_S) == UsageQuery(now_hour - 721, now_hour, (), 1000)
    assert read_query(b"start=0001-01-01", NOW_S).start_hour == 0


async def test_those_who_ask_at_once_are_bounded() -> None:
    go = threading.Event()

    def fetch(query: UsageQuery) -> list[list[Any]]:
        go.wait(20)
        return [[0] * len(COUNTS)]

    async def send(message: Any) -> None:
        pass

    route = UsageRoute(fetch)
    admin = Identity("admin", admin=True)
    asking = [asyncio.create_task(route.answer(admin, b"", send)) for _ in range(MAX_WAITING)]
    await asyncio.sleep(0)
    asking[0].cancel()  # who leaves does not make room while the work goes on
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError):
        await route.answer(admin, b"", send)
    go.set()
    await asyncio.gather(*asking[1:])
    await route.answer(admin, b"", send)
