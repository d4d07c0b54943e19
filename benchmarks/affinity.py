"""What affinity gives to replicas with a prefix cache: `python -m benchmarks.affinity`.

Starts vLLM with the shipped story model as one replica, and as two and four. 32 conversations that
share a system prompt are held with each, in two ways: `turns` in step, each as long as the others;
`zipf` with turns drawn by the popularity of the conversations, of which the first has a quarter.
Affinity and least connections take turns, round by round, on the same replicas: all requests go to
`/models/<name>`, and those for least connections have a `content-encoding`, with which HAProxy
looks for no key. Each round has texts of its own, so that none finds what another left.

Reads the hits from vLLM's metrics; a token counts as one query. Writes medians of the rounds to
`benchmarks/results/affinity.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import re
import shutil
import statistics
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.local_cluster import LocalCluster, model_application, router_application
from benchmarks.sides import ENGINE_ENV, ROOT

RESULT = ROOT / "benchmarks" / "results" / "affinity.json"
NUM_CONVERSATIONS = 32
NUM_TURNS = 8
NUM_DRAWN = 512
NUM_CLIENTS = 16
SYSTEM_WORDS, QUESTION_WORDS, ANSWER_WORDS = 150, 50, 20
MAX_TOKENS = 8
SPREAD = {"content-encoding": "identity"}
START_TIMEOUT_S = 600.0
REQUEST_TIMEOUT_S = 120.0
MAX_PAUSE_S = 0.4
"""Longest pause of a client before each request. Without pauses the replica that has just answered
is the one with the fewest connections, and gets the same client's next request by that alone."""
SETTLE_S = 3.0
"""Until the routers have told HAProxy of all replicas."""
WORDS = (
    *(
        "once",
        "upon",
        "time",
        "there",
        "was",
        "little",
        "girl",
        "boy",
        "dog",
        "cat",
        "bird",
        "tree",
    ),
    *("house", "mother", "day", "park", "ball", "play", "happy", "sad", "big", "small", "red"),
    *("blue", "sun", "friend", "went", "saw", "said", "ran", "found", "gave", "took", "made"),
)
_SAMPLE = re.compile(r'^(\S+?)\{[^}]*\breplica="([^"]+)"[^}]*\} (\S+)$', re.MULTILINE)
_SYSTEM_TEMPLATE = (
    "{%- for message in messages if message.role == 'system' %}"
    "{{- '<|user|>' + message.content }}{%- endfor %}"
)


@dataclass(frozen=True, slots=True)
class Round:
    """What one round of one workload came to.

    Attributes:
        hit_rate: Tokens of prompts that a prefix cache had, of all.
        ttft_ms: Mean time to the first token.
        imbalance: Requests of the replica with the most, by the mean of all replicas.
        requests_per_s: Throughput.
    """

    hit_rate: float
    ttft_ms: float
    imbalance: float
    requests_per_s: float


def story_with_system_prompt(folder: Path) -> Path:
    """Copies the story model; its own chat template passes system messages over."""
    copy = folder / "story"
    shutil.copytree(ROOT / "models" / "story", copy)
    template = copy / "chat_template.jinja"
    text = template.read_text().replace("{{- bos_token }}", "{{- bos_token }}" + _SYSTEM_TEMPLATE)
    template.write_text(text)
    return copy


def application(name: str, weights: Path, num_replicas: int) -> dict[str, Any]:
    """Returns the Serve file's entry of the model with some replicas."""
    engine = {
        "max_model_len": 1024, "max_num_seqs": NUM_CLIENTS, "enforce_eager": True,
        "kv_cache_memory_bytes": "256M", "block_size": 32,
    }  # fmt: skip
    model = {
        "model": {"family": "vllm", "name_or_path": str(weights)},
        "model_optim": {"dtype": "float32"},
        "hardware": {"gpus": 0, "cpus": 0.5},
        "serving": {
            "num_replicas": num_replicas, "max_ongoing_requests": NUM_CLIENTS, "engine": engine
        },
    }  # fmt: skip
    return model_application(name, model)


class Texts:
    """The conversations of one round: the same for all that have the same seed."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._system = self._words("system", SYSTEM_WORDS)

    def _words(self, place: str, number: int) -> str:
        return " ".join(random.Random(f"{self._seed} {place}").choices(WORDS, k=number))

    def turn(self, conversation: int, turn: int) -> list[dict[str, str]]:
        """Returns the messages of a turn, counted from 0."""
        messages = [{"role": "system", "content": self._system}]
        for at in range(turn + 1):
            question = self._words(f"question {conversation} {at}", QUESTION_WORDS)
            messages.append({"role": "user", "content": question})
            answer = self._words(f"answer {conversation} {at}", ANSWER_WORDS)
            messages.append({"role": "assistant", "content": answer})
        return messages[:-1]


def drawn_turns(seed: str) -> Iterator[tuple[int, int]]:
    """Yields conversations by their popularity, which falls as 1 / rank, with the turn of each."""
    ranks = range(NUM_CONVERSATIONS)
    chosen = random.Random(seed).choices(ranks, [1 / (rank + 1) for rank in ranks], k=NUM_DRAWN)
    seen: Counter[int] = Counter()
    for conversation in chosen:
        yield conversation, seen[conversation] % NUM_TURNS
        seen[conversation] += 1


def turns_of(client: int) -> Iterator[tuple[int, int]]:
    """Yields the turns of a client's conversations, in step."""
    conversations = range(client, NUM_CONVERSATIONS, NUM_CLIENTS)
    return ((one, turn) for turn in range(NUM_TURNS) for one in conversations)


class Client:
    """Sends the turns of one round to one model.

    Args:
        address: The model's address.
        texts: The conversations.
        headers: Further headers.
    """

    def __init__(self, address: str, texts: Texts, headers: dict[str, str]) -> None:
        self._url = f"{address}/v1/chat/completions"
        self._model = address.rpartition("/")[2]
        self._texts = texts
        self._headers = {"content-type": "application/json", **headers}
        self._ttfts_s: list[float] = []

    async def hold(self, workload: str, seed: str) -> list[float]:
        """Sends all requests; returns the time to the first token of each, in seconds."""
        if workload == "zipf":
            lanes = [drawn_turns(seed)] * NUM_CLIENTS
        else:
            lanes = [turns_of(client) for client in range(NUM_CLIENTS)]
        limit = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=limit) as session:
            await asyncio.gather(*(self._work(session, lane) for lane in lanes))
        return self._ttfts_s

    async def _work(self, session: aiohttp.ClientSession, lane: Iterator[tuple[int, int]]) -> None:
        for conversation, turn in lane:
            body = {
                "model": self._model,
                "messages": self._texts.turn(conversation, turn), "max_tokens": MAX_TOKENS,
                "ignore_eos": True, "temperature": 0, "stream": True,
            }  # fmt: skip
            data = json.dumps(body).encode()
            await asyncio.sleep(random.uniform(0, MAX_PAUSE_S))
            began_s = time.perf_counter()
            async with session.post(self._url, data=data, headers=self._headers) as answer:
                if answer.status != 200:
                    raise RuntimeError(f"{answer.status}: {await answer.text()}")
                first = True
                async for line in answer.content:
                    if first and b'"content":"' in line and b'"content":""' not in line:
                        self._ttfts_s.append(time.perf_counter() - began_s)
                        first = False


def counters(address: str) -> dict[str, Counter[str]]:
    """Returns hits, queries and requests of each replica until now."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=REQUEST_TIMEOUT_S) as answer:
        page = answer.read().decode()
    names = {
        "vllm:prefix_cache_hits_total": "hits",
        "vllm:prefix_cache_queries_total": "queries",
        "vllm:request_success_total": "requests",
    }
    found: dict[str, Counter[str]] = {name: Counter() for name in names.values()}
    for name, replica, value in _SAMPLE.findall(page):
        if name in names:
            found[names[name]][replica] += int(float(value))
    return found


def measure(address: str, workload: str, seed: str, headers: dict[str, str]) -> Round:
    """Holds the conversations of one round with a model."""
    before = counters(address)
    client = Client(address, Texts(seed), headers)
    began_s = time.perf_counter()
    ttfts_s = asyncio.run(client.hold(workload, seed))
    taken_s = time.perf_counter() - began_s
    after = counters(address)
    grown = {
        name: [after[name][replica] - before[name][replica] for replica in after["requests"]]
        for name in after
    }
    requests = grown["requests"]
    return Round(
        sum(grown["hits"]) / sum(grown["queries"]),
        1000 * statistics.mean(ttfts_s),
        max(requests) / statistics.mean(requests),
        len(ttfts_s) / taken_s,
    )


def median(rounds: Sequence[Round]) -> dict[str, Any]:
    """Returns the medians of the rounds, and all values."""
    columns = {name: [asdict(one)[name] for one in rounds] for name in Round.__slots__}
    return {
        name: {"median": round(statistics.median(values), 3), "all": [round(v, 3) for v in values]}
        for name, values in columns.items()
    }


def compare(url: str, num_replicas: int, num_rounds: int) -> dict[str, Any]:
    """Measures one number of replicas with each workload."""
    arms: dict[str, tuple[str, dict[str, str]]] = {
        "one replica": ("one", {}),
        "affinity": ("many", {}),
        "least connections": ("many", SPREAD),
    }
    result: dict[str, Any] = {}
    for workload in ("turns", "zipf"):
        rounds: dict[str, list[Round]] = {arm: [] for arm in arms}
        for number in range(num_rounds):
            order = list(arms) if number % 2 == 0 else [*reversed(arms)]
            for arm in order:
                name, headers = arms[arm]
                seed = f"{num_replicas} {workload} {number} {arm}"
                found = measure(f"{url}/models/{name}", workload, seed, headers)
                print(f"{num_replicas} {workload} {arm}: {found}", flush=True)
                rounds[arm].append(found)
        result[workload] = {arm: median(values) for arm, values in rounds.items()}
    return result


def wait_for_metrics(address: str, deadline: float) -> None:
    """Waits until HAProxy has a replica: a model may run a moment before."""
    while True:
        try:
            counters(address)
        except urllib.error.HTTPError as error:
            if error.code != 503 or time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return


def wait_for_replicas(address: str, num_replicas: int) -> None:
    """Waits until the metrics have all replicas, and each has answered once."""
    deadline = time.monotonic() + START_TIMEOUT_S
    wait_for_metrics(address, deadline)
    for number in itertools.count():
        measure(address, "turns", f"warm {number}", SPREAD)
        if len(counters(address)["requests"]) == num_replicas:
            break
        if time.monotonic() > deadline:
            raise SystemExit(f"{address} has not {num_replicas} replicas")
    time.sleep(SETTLE_S)


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        weights = story_with_system_prompt(Path(folder))
        with LocalCluster(ROOT / "configs" / "ray.env", env=ENGINE_ENV) as cluster:
            for num_replicas in options.replicas:
                cluster.deploy(
                    [
                        application("one", weights, 1),
                        application("many", weights, num_replicas),
                        router_application(cluster.port, num_replicas=1),
                    ]
                )
                cluster.wait_until_ready(timeout_s=START_TIMEOUT_S)
                wait_for_replicas(f"{cluster.url}/models/one", 1)
                wait_for_replicas(f"{cluster.url}/models/many", num_replicas)
                results[str(num_replicas)] = compare(cluster.url, num_replicas, options.rounds)
    what = {
        "conversations": NUM_CONVERSATIONS, "turns": NUM_TURNS, "drawn": NUM_DRAWN,
        "clients": NUM_CLIENTS, "max_pause_s": MAX_PAUSE_S, "rounds": options.rounds,
        "cores": os.cpu_count(),
    }  # fmt: skip
    RESULT.write_text(json.dumps({"what": what, "replicas": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
