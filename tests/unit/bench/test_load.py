from __future__ import annotations

import asyncio
import io
import json
import math
import statistics
from collections.abc import Sequence
from itertools import islice, pairwise, repeat
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as RichConsole

from tests.support.bench_server import KEY, BenchServer, serve_asgi
from truthgpt_serve.bench import load as load_module
from truthgpt_serve.bench.arrivals import arrival_times, read_trace
from truthgpt_serve.bench.client import Client
from truthgpt_serve.bench.compare import compare, ordered_sides
from truthgpt_serve.bench.console import ratio_table
from truthgpt_serve.bench.load import Driver, Load, Run
from truthgpt_serve.bench.metrics import Recorder
from truthgpt_serve.bench.outcome import Outcome, Request
from truthgpt_serve.bench.prompts import RandomPrompts, random_requests, read_dataset
from truthgpt_serve.bench.result import extras
from truthgpt_serve.bench.session import Plan, Session, find_model
from truthgpt_serve.bench.target import BenchError, Target, TargetError, normalize_url

REQUEST = Request("one two", 2, 3)


# -- arrivals and prompts


def test_arrivals_are_a_poisson_process_and_the_same_for_a_seed() -> None:
    times_s = list(islice(arrival_times(50.0, 1.0, None, "7"), 20_000))
    gaps_s = [later - earlier for earlier, later in pairwise(times_s)]
    assert statistics.fmean(gaps_s) == pytest.approx(1 / 50, rel=0.03)
    assert statistics.pstdev(gaps_s) == pytest.approx(1 / 50, rel=0.05), "as exponential gaps have"
    shorter = sum(gap_s < 0.01 for gap_s in gaps_s) / len(gaps_s)
    assert shorter == pytest.approx(0.3935, abs=0.02), "1 - exp(-1/2)"
    assert times_s == list(islice(arrival_times(50.0, 1.0, None, "7"), 20_000))
    assert times_s != list(islice(arrival_times(50.0, 1.0, None, "8"), 20_000))


@pytest.mark.parametrize(("burstiness", "spread"), [(0.25, 2.0), (4.0, 0.5), (float("inf"), 0.0)])
def test_burstiness_spreads_the_gaps_as_a_gamma_distribution(
    burstiness: float, spread: float
) -> None:
    times_s = list(islice(arrival_times(10.0, burstiness, None, "0"), 20_000))
    gaps_s = [later - earlier for earlier, later in pairwise(times_s)]
    mean_s = statistics.fmean(gaps_s)
    assert mean_s == pytest.approx(0.1, rel=0.05)
    assert statistics.pstdev(gaps_s) / mean_s == pytest.approx(spread, rel=0.05, abs=1e-6)


def test_a_number_of_arrivals_ends_when_the_rate_says() -> None:
    times_s = list(arrival_times(4.0, 1.0, 10, "0"))
    assert len(times_s) == 10
    assert times_s[-1] == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("name", "lines", "offsets_s"),
    [
        ("own.jsonl", ['{"offset": 1, "prompt": "hi", "output_tokens": 2}',
                       '{"offset": 3.5, "input_tokens": 4}'], [0, 2.5]),
        ("mooncake.jsonl", ['{"timestamp": 3000, "input_length": 6, "output_length": 2}',
                            '{"timestamp": 1000, "input_length": 6, "output_length": 1}'], [0, 2]),
        ("azure.csv", ["TIMESTAMP,ContextTokens,GeneratedTokens",
                       "2023-11-16 18:17:03.9799600,4808,10",
                       "2023-11-16 18:17:04.4799600,3180,8"], [0, 0.5]),
        ("burst.csv", ["Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
                       "5,ChatGPT,472,18,490,Conversation log",
                       "45,ChatGPT,1087,230,1317,Conversation log"], [0, 40]),
    ],
)  # fmt: skip
def test_traces_of_each_form_are_read(
    tmp_path: Path, name: str, lines: list[str], offsets_s: list[float]
) -> None:
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n")
    found = read_trace(path, RandomPrompts(), speed=1.0, seed="0")
    assert [request.offset_s for request in found] == pytest.approx(offsets_s)
    faster = read_trace(path, RandomPrompts(), speed=4.0, seed="0")
    assert faster[1].offset_s == pytest.approx(offsets_s[1] / 4)
    for request in found:
        assert isinstance(request.prompt, str)
        assert len(request.prompt.split()) == request.input_len


def test_blocks_of_a_mooncake_trace_share_prefixes(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    rows = [([1, 2], 1000), ([1, 3], 1000), ([4], 300)]
    path.write_text(
        "\n".join(
            json.dumps({"timestamp": 0, "input_length": length, "hash_ids": ids})
            for ids, length in rows
        )
    )
    first, second, third = (
        str(request.prompt).split()
        for request in read_trace(path, RandomPrompts(), speed=1, seed="0")
    )
    assert (len(first), len(second), len(third)) == (1000, 1000, 300)
    assert first[:512] == second[:512]
    assert first[512:] != second[512:]


@pytest.mark.parametrize(
    "line",
    ["{}", "[1]", "{", '{"offset": "x", "prompt": "a"}', '{"offset": 1}',
     '{"offset": 1, "input_tokens": "many"}'],
)  # fmt: skip
def test_a_bad_trace_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"offset": 1, "prompt": "a"}\n' + line + "\n")
    with pytest.raises(BenchError, match=r"trace\.jsonl"):
        read_trace(path, RandomPrompts(), speed=1, seed="0")


def test_random_requests_have_their_lengths_and_are_the_same_for_a_seed() -> None:
    def make(lengths_seed: str, text_seed: str) -> list[Request]:
        endless = random_requests(
            RandomPrompts(), input_len=20, output_len=10, range_ratio=0.5,
            lengths_seed=lengths_seed, text_seed=text_seed,
        )  # fmt: skip
        return list(islice(endless, 200))

    requests = make("1", "a")
    assert requests == make("1", "a")
    others = make("1", "b")
    assert [each.input_len for each in requests] == [each.input_len for each in others]
    assert all(ours.prompt != theirs.prompt for ours, theirs in zip(requests, others, strict=True))
    assert {each.input_len for each in requests} == set(range(10, 31))
    assert all(len(str(each.prompt).split()) == each.input_len for each in requests)
    assert all(5 <= (each.output_len or 0) <= 15 for each in requests)


def test_datasets_are_read_in_each_form(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    messages = [{"role": "user", "content": "who?"}]
    path.write_text(
        json.dumps({"prompt": "a b", "output_tokens": 5}) + "\n\n"
        + json.dumps({"messages": messages}) + "\n"
    )  # fmt: skip
    first, second = read_dataset(path, None, chat=True)
    assert first == Request("a b", 2, 5)
    assert second.prompt == messages
    assert read_dataset(path, 9, chat=False)[1] == Request("who?", 1, 9)
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "hi you"},
             {"from": "gpt", "value": "x y z"}]  # fmt: skip
    path.write_text(json.dumps([{"id": "1", "conversations": turns}]))
    assert read_dataset(path, None, chat=True) == [Request("hi you", 2, 3)]
    path.write_text('{"text": "a"}')
    with pytest.raises(BenchError, match=r"data\.jsonl:1.*`prompt`"):
        read_dataset(path, None, chat=True)


# -- requests


async def send(model: str, endpoint: str = "chat", **options: Any) -> tuple[Outcome, BenchServer]:
    server = BenchServer()
    with serve_asgi(server) as url:
        target = Target(url, model, KEY)
        async with Client(target, endpoint, **({"timeout_s": 20} | options)) as client:
            return await client.send(REQUEST), server


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
async def test_a_streamed_answer_is_measured(endpoint: str) -> None:
    outcome, server = await send("words", endpoint, fields={"temperature": 0}, keep_text=True)
    assert outcome.ok
    assert (outcome.text, outcome.output_tokens, outcome.input_tokens) == ("w w w ", 3, 5)
    assert 0 < outcome.ttft_s <= outcome.latency_s
    assert outcome.latency_s == pytest.approx(outcome.ttft_s + sum(outcome.itls_s))
    body = server.bodies[0]
    limit = "max_completion_tokens" if endpoint == "chat" else "max_tokens"
    assert (body[limit], body["temperature"]) == (3, 0)
    assert body["stream_options"] == {"include_usage": True}
    assert server.keys == [f"Bearer {KEY}"]


@pytest.mark.parametrize(("endpoint", "tokens"), [("embeddings", 7), ("images", 2)])
async def test_an_answer_without_a_stream_is_measured(endpoint: str, tokens: int) -> None:
    outcome, server = await send("words", endpoint)
    assert outcome.ok
    assert outcome.latency_s > 0
    assert outcome.input_tokens == tokens
    assert "stream" not in server.bodies[0]


@pytest.mark.parametrize(
    ("model", "kind"),
    [("busy", "http 429"), ("broken", "broken stream"), ("erring", "error event")],
)
async def test_each_failure_is_of_its_kind(model: str, kind: str) -> None:
    outcome, _ = await send(model)
    assert outcome.error == kind
    assert KEY not in outcome.detail, "a server that repeats the key must not get it printed"


async def test_a_silent_server_is_a_timeout_and_an_absent_one_no_connection() -> None:
    outcome, _ = await send("silent", timeout_s=0.3)
    assert outcome.error == "timeout"
    async with Client(Target("http://127.0.0.1:9", "x"), "chat", timeout_s=5) as client:
        assert (await client.send(REQUEST)).error == "no connection"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("http://a:1/v1/", "http://a:1"), ("https://a/x/v1", "https://a/x"), ("http://a", "http://a")],
)
def test_addresses_are_taken_with_and_without_v1(given: str, wanted: str) -> None:
    assert normalize_url(given) == wanted


@pytest.mark.parametrize("url", ["a:1", "ftp://a", "http://", "http://u:p@a", "http://a:x", "//a"])
def test_bad_addresses_are_refused_without_their_password(url: str) -> None:
    with pytest.raises(BenchError) as caught:
        normalize_url(url)
    assert ":p@" not in caught.value.message


# -- loads


async def drive(
    server: BenchServer, load: Load, times_s: Sequence[float] | None = None, model: str = "words"
) -> tuple[Recorder, Run]:
    recorder = Recorder()
    with serve_asgi(server) as url:
        async with Client(Target(url, model), "chat", timeout_s=20) as client:
            driver = Driver(client, recorder, load, asyncio.Event())
            run = await driver.run(repeat(REQUEST), times_s)
    return recorder, run


async def test_a_closed_loop_keeps_its_concurrency() -> None:
    server = BenchServer(delay_s=0.01)
    recorder, run = await drive(server, Load(concurrency=4, num_requests=13))
    assert (recorder.completed, server.most_at_once) == (13, 4)
    assert run.duration_s > 0.01 * 3 * 13 / 4, "each answer takes three delays"
    assert run.num_interrupted == 0


async def test_an_open_loop_sends_at_the_given_times() -> None:
    server = BenchServer(delay_s=0.05)
    recorder, run = await drive(server, Load(num_requests=6), [0, 0, 0, 0.3, 0.3, 0.6])
    assert recorder.completed == 6
    assert server.most_at_once >= 2, "requests do not wait for each other"
    assert run.duration_s > 0.6
    assert run.lag.count == 6


async def test_a_bound_makes_an_open_loop_queue_in_the_client() -> None:
    server = BenchServer(delay_s=0.02)
    recorder, _ = await drive(server, Load(concurrency=1, num_requests=4), [0, 0, 0, 0])
    assert (recorder.completed, server.most_at_once) == (4, 1)
    assert recorder.series["queue"].ordered()[-1] > 0.06


async def test_a_duration_ends_both_loops() -> None:
    recorder, run = await drive(BenchServer(delay_s=0.01), Load(concurrency=2, duration_s=0.3))
    assert recorder.completed >= 2
    assert 0.3 <= run.duration_s < 10
    recorder, _ = await drive(BenchServer(), Load(rate=10, duration_s=0.35), [0, 0.1, 0.2, 0.3, 9])
    assert recorder.completed == 4


async def test_requests_beyond_the_bound_are_failures_not_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(load_module, "MAX_OUTSTANDING", 2)
    recorder, _ = await drive(BenchServer(delay_s=0.2), Load(num_requests=5), [0] * 5)
    assert (recorder.completed, recorder.errors["not sent"]) == (2, 3)


async def test_a_stop_gives_up_what_runs_and_keeps_what_was_done() -> None:
    stop, recorder = asyncio.Event(), Recorder()
    with serve_asgi(BenchServer(delay_s=0.01)) as url:
        async with Client(Target(url, "words"), "chat", timeout_s=20) as client:

            def after_five() -> None:
                if recorder.completed == 5:
                    stop.set()

            driver = Driver(client, recorder, Load(concurrency=3), stop, after_five)
            run = await driver.run(repeat(REQUEST))
    assert 5 <= recorder.completed <= 8
    assert 1 <= run.num_interrupted <= 3
    assert recorder.failed == 0


# -- sessions


async def test_the_first_model_that_answers_is_taken() -> None:
    with serve_asgi(BenchServer()) as url:
        found = await find_model(Target(url), "chat", timeout_s=20, fields={})
        assert found.model == "words"
        with pytest.raises(TargetError, match="busy: http 429") as caught:
            await find_model(Target(url, "busy", KEY), "chat", timeout_s=20, fields={})
    assert KEY not in caught.value.message


async def test_two_addresses_are_measured_in_turns_and_compared() -> None:
    order: list[int] = []
    ours, theirs = BenchServer(), BenchServer()
    plan = Plan(
        endpoint="chat",
        loads=[Load(concurrency=2, num_requests=4)],
        make_requests=lambda lengths_seed, text_seed: repeat(Request(text_seed, 1, 3)),
        num_pairs=3,
    )
    with serve_asgi(ours) as first, serve_asgi(theirs) as second:
        session = Session(
            plan,
            [Target(first, "words"), Target(second, "words")],
            asyncio.Event(),
            on_begin=lambda side, load, pair: order.append(side),
        )
        results = await session.run()
    assert order == [0, 1, 1, 0, 0, 1]
    sent = [{body["messages"][0]["content"] for body in server.bodies} for server in (ours, theirs)]
    assert not sent[0] & sent[1], "the second side must not find the first one's prompts cached"
    ratios = {ratio.figure: ratio for ratio in compare(results)}
    means = {
        (extras(result)["side"], extras(result)["pair"]): result["mean_e2el_ms"]
        for result in results
    }
    wanted = sorted(means[0, pair] / means[1, pair] for pair in range(3))
    found = ratios["mean_e2el_ms"]
    assert [found.low, found.ratio, found.high] == pytest.approx(wanted)
    assert {result["completed"] for result in results} == {4}
    assert {extras(result)["load"] for result in results} == {"2 at once"}


def test_ratios_are_medians_over_pairs() -> None:
    def result(side: int, pair: int, value: float) -> dict[str, Any]:
        return {"mean_ttft_ms": value,
                "truthgpt_bench": {"load": "x", "side": side, "pair": pair}}  # fmt: skip

    values = [(2.0, 1.0), (9.0, 3.0), (10.0, 1.0)]
    results = [
        result(side, pair, value)
        for pair, pair_values in enumerate(values)
        for side, value in enumerate(pair_values)
    ]
    results.append(result(0, 3, 5.0))  # its pair was interrupted
    results += [{**result(side, 4, 1.0), "request_goodput": (None, 3.0)[side]} for side in (0, 1)]
    results[-1]["mean_ttft_ms"] = None
    (ratio,) = compare(results)
    assert (ratio.ratio, ratio.low, ratio.high, ratio.num_pairs) == (3.0, 2.0, 10.0, 3)
    assert (ratio.value, ratio.against) == (9.0, 1.0)
    assert [ordered_sides(pair, 2) for pair in range(3)] == [[0, 1], [1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("rates", "ratio", "low", "high", "pairs"),
    [
        ([(0.0, 4.0), (8.0, 4.0), (4.0, 4.0)], 1.0, 0.0, 2.0, "3"),
        ([(0.0, 4.0)] * 3, 0.0, 0.0, 0.0, "3"),
        ([(4.0, 0.0), (4.0, 4.0), (4.0, 0.0)], math.inf, 1.0, math.inf, "3"),
        ([(0.0, 0.0), (4.0, 4.0), (4.0, 2.0)], 1.5, 1.0, 2.0, "2 of 3"),
    ],
)
def test_a_side_that_failed_is_compared_too(
    rates: list[tuple[float, float]], ratio: float, low: float, high: float, pairs: str
) -> None:
    """Its throughput is 0, which must not leave the pairs in which it did well alone."""
    results: list[dict[str, Any]] = [
        {
            "request_throughput": rate,
            "mean_ttft_ms": 7.0 if rate else 0.0,
            "truthgpt_bench": {"load": "x", "side": side, "pair": pair},
        }
        for pair, both in enumerate(rates)
        for side, rate in enumerate(both)
    ]
    found = {entry.figure: entry for entry in compare(results)}
    rate = found["request_throughput"]
    assert (rate.ratio, rate.low, rate.high, rate.pairs) == (ratio, low, high, pairs)
    shown = json.dumps([entry.to_json() for entry in found.values()], allow_nan=False)
    assert ("null" in shown) is (high == math.inf)
    num_whole = sum(all(both) for both in rates)
    assert ("mean_ttft_ms" in found) is (num_whole > 0)
    if num_whole:
        assert found["mean_ttft_ms"].pairs == f"{num_whole} of 3"
        out = io.StringIO()
        RichConsole(file=out, width=200).print(ratio_table(list(found.values())))
        assert f"{num_whole} of 3" in out.getvalue()


async def test_token_prompts_use_the_servers_own_ids() -> None:
    with serve_asgi(BenchServer()) as url:
        ids = await Target(url, "words").tokenize("a bcd")
    assert ids == [1, 1, 3, 3]
    requests = random_requests(RandomPrompts(sorted(set(ids))), input_len=50, output_len=1)
    prompt = next(requests).prompt
    assert len(prompt) == 50
    assert set(prompt) == {1, 3}
