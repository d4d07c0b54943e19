"""A request that fails is answered in the same way whichever way it came to its model."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest

from benchmarks.local_cluster import LocalCluster
from tests.serve.two_engines.conftest import VllmService
from tests.serve.two_engines.small_models import BRIEF_S, MAX_BODY
from tests.serve.ways import MODEL, REQUEST_ID, ROUTER, WAYS, Answer, Request, send, without

pytestmark = pytest.mark.timeout(600)
CHAT, TEXT, INFER = "/v1/chat/completions", "/v1/completions", "/v1/infer"
STALL_S = 25.0
PAGE = "http://localhost:3000"
FORM = ("content-type", "multipart/form-data; boundary=b")
USER = [{"role": "user", "content": "Hi"}]


class Case(NamedTuple):
    """A request and what it must come to on each way.

    Attributes:
        request: The request.
        status: The status.
        code: The error's code, where it has one.
        says: What its message, or the answer, must say.
        differs: What is not compared, on which ways, and why; see `FORGET`.
    """

    request: Request
    status: int
    code: str | None = None
    says: str = ""
    differs: str = ""


def text(model: str, **fields: Any) -> Request:
    return Request(model, {"model": model, "prompt": "a b c", "max_tokens": 3, **fields})


def own(what: str, **others: Any) -> Request:
    return Request("own", {"model": "own", "prompt": what}, **others)


def form(model: str | None, *, twice: bool = False) -> bytes:
    parts = [] if model is None else [("model", model)]
    parts += parts if twice else []
    head = '--b\r\ncontent-disposition: form-data; name="{}"\r\n\r\n{}\r\n'
    return (
        "".join(head.format(*part) for part in [*parts, ("prompt", "x")]) + "--b--\r\n"
    ).encode()


def forget_message(found: dict[str, Any]) -> dict[str, Any]:
    error = found["body"]["error"]
    return {**found, "body": {**found["body"], "error": {**error, "message": ""}}}


def forget_who(answer: dict[str, Any]) -> dict[str, Any]:
    """Leaves out the message, and the headers of the HTTP server that answers."""
    headers = {name: value for name, value in answer["headers"].items() if name != "server"}
    return {**forget_message(answer), "headers": headers, "num_dates": 0}


def forget_pieces(answer: dict[str, Any]) -> dict[str, Any]:
    """Leaves out what came before the last event."""
    return {**answer, "body": answer["body"][-1:]}


FORGET: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    # The router knows which models there are, and lists them; a replica knows its own names.
    "names": forget_message,
    # The router reads a body as long as its own `request_timeout_s` allows, a replica as long as
    # `serving.max_request_s` does.
    "time": forget_message,
    # The router counts the requests that it has at all replicas, a replica those that it has. On
    # the direct way HAProxy answers, which writes neither `date` nor `server`.
    "number": forget_who,
    # How much of a stream is there when its time is over is another number each time.
    "pieces": forget_pieces,
}


def of_model(model: str, path: str, body: dict[str, Any]) -> dict[str, Case]:
    """Returns the cases around the field `model`, which hold for every family."""
    raw = f'{{"model": "{model}", "prompt": "a", "model": "{model}"}}'.encode()
    late = f'{{"model": "{model}", "prompt": "{"x" * 40_000}", "model": "other"}}'.encode()
    escaped = f'{{"model": "{model}", "\\u006dodel": "other"}}'.encode()

    def case(body: Any, *others: Any, **more: Any) -> Case:
        return Case(Request(model, body, path=path), *others, **more)

    return {
        f"{model}: no model": case(body, 400, None, "the request has no `model`"),
        f"{model}: null": case({**body, "model": None}, 400, None, "(found `null`)"),
        f"{model}: empty": case({**body, "model": ""}, 400, None, "`model` is empty"),
        f"{model}: number": case({**body, "model": 7}, 400, None, "(found `int`)"),
        f"{model}: list": case({**body, "model": [model]}, 400, None, "(found `array`)"),
        f"{model}: long": case({**body, "model": "x" * 600}, 400, None, "is longer than 512"),
        f"{model}: twice": case(raw, 400, None, "`model` is given twice"),
        f"{model}: escaped": case(escaped, 400, None, "`model` is given twice"),
        f"{model}: late": case(late, 400, None, "`model` is given twice"),
        f"{model}: unknown": case(
            {**body, "model": "nosuch"}, 404, "model_not_found", "does not exist", "names"
        ),
        f"{model}: no body": case(b"", 400, None, "is not valid JSON"),
        f"{model}: half": case(b'{"model": "' + model.encode(), 400, None, "is not valid JSON"),
        f"{model}: array": case([1], 400, None, "must be a JSON object"),
        f"{model}: no UTF-8": case(b'{"model": "\xff"}', 400, None, "is not valid JSON"),
        f"{model}: large": case(
            {**body, "model": model, "user": "x" * (MAX_BODY + 1)}, 413, "request_too_large",
            f"larger than {MAX_BODY} bytes",
        ),
        f"{model}: large, in chunks": Case(
            Request(
                model, {**body, "model": model, "user": "x" * (MAX_BODY + 1)}, path=path,
                chunked=True,
            ),
            413, "request_too_large", f"larger than {MAX_BODY} bytes",
        ),
        f"{model}: compression": Case(
            Request(model, b"x", path=path, headers=(("content-encoding", "br"),)),
            415, "unsupported_content_encoding", "'br'",
        ),
        f"{model}: damaged gzip": Case(
            Request(model, b"\x1f\x8b\x08", path=path, headers=(("content-encoding", "gzip"),)),
            400, None, "it is cut off",
        ),
        f"{model}: unknown in gzip": Case(
            Request(
                model, gzip.compress(b'{"model": "nosuch"}'), path=path,
                headers=(("content-encoding", "gzip"),),
            ),
            404, "model_not_found", "does not exist", "names",
        ),
        f"{model}: GET": Case(
            Request(model, method="GET", path=path), 405, "method_not_allowed", "takes POST"
        ),
        f"{model}: PUT": Case(
            Request(model, {"model": model}, "PUT", path), 405, "method_not_allowed", "not PUT"
        ),
        f"{model}: OPTIONS": Case(
            Request(model, method="OPTIONS", path=path), 405, "method_not_allowed", "not OPTIONS"
        ),
        f"{model}: HEAD": Case(Request(model, method="HEAD", path=path), 405),
        f"{model}: no such page": Case(
            Request(model, method="GET", path="/v1/nosuch"), 404, "not_found", "there is no"
        ),
        f"{model}: no such route": Case(
            Request(model, {"model": model, "prompt": "not found"}, path="/v1/nosuch"), 404,
            "not_found", "there is no",
        ),
        f"{model}: not its task": Case(
            Request(model, {"model": model, "prompt": "not found"}, path="/v1/rerank"), 400,
            "unsupported", "cannot answer",
        ),
        f"{model}: another's card": Case(
            Request(model, method="GET", path="/v1/models/nosuch"), 404, "model_not_found",
            "does not exist", "names",
        ),
        f"{model}: POST to a page": Case(
            Request(model, {"model": model}, path="/v1/models"), 405, "method_not_allowed",
            "takes GET",
        ),
        f"{model}: form twice": Case(
            Request(model, form(model, twice=True), path=path, headers=(FORM,)),
            400, None, "`model` is given twice",
        ),
        f"{model}: form without": Case(
            Request(model, form(None), path=path, headers=(FORM,)),
            400, None, "the request has no `model`",
        ),
        f"{model}: Anthropic": Case(
            Request(model, {**body, "model": None}, path="/v1/messages"), 400, None, "null"
        ),
        f"{model}: page": Case(
            Request(model, {**body, "model": 7}, path=path, headers=(("origin", PAGE),)),
            400, None, "(found `int`)",
        ),
        f"{model}: preflight": Case(
            Request(
                model, method="OPTIONS", path=path,
                headers=(("origin", PAGE), ("access-control-request-method", "POST")),
            ),
            204,
        ),
    }  # fmt: skip


CASES: dict[str, Case] = {
    **of_model("echo", TEXT, {"prompt": "a"}),
    **of_model("shouting", INFER, {"inputs": {"text": "a"}}),
    **of_model("own", TEXT, {"prompt": "detail"}),
    **of_model("brief", CHAT, {"messages": USER}),
    # -- the same answer where nothing fails
    "echo answers": Case(text("echo"), 200),
    "echo streams": Case(text("echo", stream=True), 200),
    "gzip": Case(
        Request(
            "echo", gzip.compress(b'{"model": "echo", "prompt": "a", "max_tokens": 2}'),
            headers=(("content-encoding", "gzip"),),
        ),
        200,
    ),
    # -- request ids
    "no request id": Case(text("echo", n=0), 400, None, "`n`"),
    "a wild request id": Case(
        Request("echo", {"model": "echo"}, headers=(("x-request-id", "a b"),)), 400
    ),
    "two request ids": Case(
        Request("echo", {"model": "echo"}, headers=(("x-request-id", "a"), ("x-request-id", "b"))),
        400,
    ),
    # -- classes
    "a class refuses": Case(
        Request("shouting", {"model": "shouting", "inputs": {"text": "a", "seed": 1}}, path=INFER),
        400, "unsupported", "`seed` is not for those who shout",
    ),
    "a class raises": Case(
        Request("shouting", {"model": "shouting", "inputs": {"fail": True}}, path=INFER),
        500, None, f"failed; its log has the cause under request id {REQUEST_ID}",
    ),
    "a class raises in a stream": Case(
        text("breaking", stream=True, max_tokens=9), 200, None, "failed; its log has the cause"
    ),
    # -- time
    "a class is slow": Case(
        text("hasty", max_tokens=1000), 504, "timeout", f"did not finish within {BRIEF_S:g} s"
    ),
    "a class's stream is slow": Case(
        text("hasty", max_tokens=1000, stream=True), 200, "timeout",
        f"did not finish within {BRIEF_S:g} s", "pieces",
    ),
    "an application hangs": Case(
        own("hangs"), 504, "timeout", f"did not finish within {BRIEF_S:g} s"
    ),
    "an application's stream hangs": Case(
        own("stream hangs"), 200, "timeout", f"did not finish within {BRIEF_S:g} s"
    ),
    "vLLM is slow": Case(
        Request(
            "brief",
            {"model": "brief", "messages": USER, "max_tokens": 4000, "ignore_eos": True, "n": 4},
            path=CHAT,
        ),
        504, "timeout", f"did not finish within {BRIEF_S:g} s",
    ),
    "a client's own limit": Case(
        Request(
            "shouting", {"model": "shouting", "inputs": {"text": "a", "sleep_s": 3}}, path=INFER,
            headers=(("x-request-timeout-seconds", "1"),),
        ),
        408, "request_timeout", "did not finish within 1 s, the limit of its header",
    ),
    "a client's own limit in a stream": Case(
        Request(
            "hasty", {"model": "hasty", "prompt": "a b c", "max_tokens": 1000, "stream": True},
            headers=(("x-request-timeout-seconds", "1"),),
        ),
        200, "request_timeout", "did not finish within 1 s, the limit of its header", "pieces",
    ),
    "a body stops": Case(
        Request("echo", {"model": "echo", "prompt": "x" * 100_000}, length=140_000),
        408, "request_timeout", f"no data of the request body arrived for {STALL_S:g} s",
    ),
    "an application's body stops": Case(
        Request("slow-own", {"model": "slow-own", "prompt": "x" * 100_000}, length=140_000),
        408, "request_timeout", f"no data of the request body arrived for {STALL_S:g} s",
    ),
    "a body is slower than the limit": Case(
        Request("hasty", {"model": "hasty", "prompt": "x" * 100_000}, length=140_000),
        408, "request_timeout", "the request body", "time",
    ),
    # -- an application of a user's own
    "detail": Case(own("detail"), 422, None, "too dark"),
    "number for a code": Case(own("number for a code"), 400, None, "no"),
    "plain text": Case(own("text"), 503, "model_unavailable", "warming up"),
    "a page": Case(own("page"), 502, "upstream_error"),
    "full": Case(own("full"), 429, "overloaded", "too many"),
    "not allowed": Case(own("not allowed"), 400, "unsupported", "cannot answer"),
    "not found": Case(own("not found"), 400, "unsupported", "cannot answer"),
    "not implemented": Case(own("not implemented"), 400, "unsupported", "no beams"),
    "headers": Case(own("headers"), 200),
    "raises": Case(own("raises"), 500, None, f"under request id {REQUEST_ID}"),
    "returns": Case(own("returns"), 500, None, f"under request id {REQUEST_ID}"),
    "stream raises": Case(own("stream raises"), 200, None, f"under request id {REQUEST_ID}"),
    "stream returns": Case(own("stream returns"), 200, None, f"under request id {REQUEST_ID}"),
    "half an event": Case(own("half an event"), 200, None, f"under request id {REQUEST_ID}"),
    "half a body": Case(own("half a body"), 200),
    # -- vLLM
    "vLLM refuses a field": Case(
        Request("brief", {"model": "brief", "messages": USER, "top_p": 2}, path=CHAT), 400
    ),
    "vLLM refuses a stream": Case(
        Request(
            "brief", {"model": "brief", "messages": USER, "top_p": 2, "stream": True}, path=CHAT
        ),
        400,
    ),
    "vLLM's limit": Case(
        Request(
            "brief", {"model": "brief", "messages": [{"role": "user", "content": "hi " * 9000}]},
            path=CHAT,
        ),
        400, "context_length_exceeded",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def cluster(service: VllmService) -> LocalCluster:
    return service.cluster


def ask(cluster: LocalCluster, request: Request) -> list[Answer]:
    """Sends a request down all ways at the same time."""
    with ThreadPoolExecutor(len(WAYS)) as pool:
        return list(pool.map(lambda way: send(cluster.url, way, request), WAYS))


@pytest.mark.parametrize("name", CASES)
def test_a_request_has_one_answer_on_every_way(cluster: LocalCluster, name: str) -> None:
    case = CASES[name]
    answers = ask(cluster, case.request)
    for way, answer in zip(WAYS, answers, strict=True):
        place = f"{way.name}: {answer}"
        assert answer.status == case.status, place
        assert answer.error.get("code") == case.code, place
        assert case.says in str(answer.error.get("message", "")), place
        assert answer.num_dates <= 1, place  # HAProxy's own answers have none
        assert len(answer.headers.get("server", [])) <= 1, place
        assert len(answer.headers.get("x-request-id", [])) <= 1, place
    forget = FORGET.get(case.differs)
    first, *others = [without(answer, forget) for answer in answers]
    assert others == [first] * len(others)


def test_a_body_takes_no_longer_than_a_request_may(cluster: LocalCluster) -> None:
    answer = send(cluster.url, MODEL, CASES["a body is slower than the limit"].request)
    assert answer.error["message"] == f"the request body did not arrive within {BRIEF_S:g} s"
    assert answer.seconds < BRIEF_S + 5


def test_the_request_id_that_a_client_sends_comes_back(cluster: LocalCluster) -> None:
    for answer in ask(cluster, text("echo")):
        assert answer.headers["x-request-id"] == [REQUEST_ID]


def test_a_full_queue_is_refused_in_the_same_words(cluster: LocalCluster) -> None:
    """On either way: what fills the queue is a request more than it holds, on any way."""
    body = {"model": "narrow", "inputs": {"text": "a", "sleep_s": 5}}
    request = Request("narrow", body, path=INFER)
    threads = [threading.Thread(target=send, args=(cluster.url, MODEL, request)) for _ in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(0.5)
    answers = ask(cluster, request)
    for thread in threads:
        thread.join()
    for answer in answers:
        assert answer.status == 429
        assert answer.error["code"] == "overloaded"
        assert answer.error["message"].startswith("The queue of model 'narrow' is full: ")
        (seconds,) = answer.headers.pop("retry-after")  # by then another request may have ended
        assert 1 <= int(seconds) <= 10
    first, *others = [without(answer, FORGET["number"]) for answer in answers]
    assert others == [first] * len(others)


def test_the_ways_are_compared_with_the_router() -> None:
    assert WAYS[0] is ROUTER
