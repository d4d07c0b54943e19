from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from tests.support.bench_server import BenchServer, serve_asgi
from truthgpt_serve.bench.arrivals import read_trace
from truthgpt_serve.bench.outcome import Request
from truthgpt_serve.bench.prompts import RandomPrompts, random_requests, read_dataset
from truthgpt_serve.bench.target import BenchError, Target


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


async def test_token_prompts_use_the_servers_own_ids() -> None:
    with serve_asgi(BenchServer()) as url:
        ids = await Target(url, "words").tokenize("a bcd")
    assert ids == [1, 1, 3, 3]
    requests = random_requests(RandomPrompts(sorted(set(ids))), input_len=50, output_len=1)
    prompt = next(requests).prompt
    assert len(prompt) == 50
    assert set(prompt) == {1, 3}
