"""The sampler by itself, against transformers' own processors."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import transformers
import xgrammar

from deployments.hf_transformers.generation import binding
from deployments.hf_transformers.generation.binding import start_follower
from deployments.hf_transformers.generation.job import TextCall, TextJob
from deployments.hf_transformers.generation.sampling import Row, choose_tokens
from truthgpt_serve.channel import Channel
from truthgpt_serve.server.text.sampling import Sampling

SIZE = 40
NUM_DRAWS = 4000


def row(sampling: Sampling, tokens: list[int] | None = None) -> Row:
    return Row(sampling, [1, 2, 3], frozenset({5}), list(tokens or []))


def draws(logits: torch.Tensor, **fields: Any) -> torch.Tensor:
    """Returns how often each token is drawn from the logits `[vocabulary]`."""
    rows: list[Row | None] = [row(Sampling(seed=seed, **fields)) for seed in range(NUM_DRAWS)]
    tokens = choose_tokens(logits.expand(NUM_DRAWS, -1), rows)
    return torch.bincount(tokens, minlength=len(logits)) / NUM_DRAWS


@pytest.mark.parametrize(
    ("fields", "warpers"),
    [
        ({"temperature": 1.0}, []),
        ({"temperature": 0.5}, [transformers.TemperatureLogitsWarper(0.5)]),
        ({"temperature": 1.0, "top_k": 5}, [transformers.TopKLogitsWarper(5)]),
        ({"temperature": 1.0, "top_p": 0.6}, [transformers.TopPLogitsWarper(0.6)]),
        ({"temperature": 1.0, "min_p": 0.2}, [transformers.MinPLogitsWarper(0.2)]),
        (
            {"temperature": 1.5, "top_k": 9, "top_p": 0.8},
            [
                transformers.TemperatureLogitsWarper(1.5),
                transformers.TopKLogitsWarper(9),
                transformers.TopPLogitsWarper(0.8),
            ],
        ),
    ],
)
def test_draws_follow_the_distribution_of_transformers(
    fields: dict[str, Any], warpers: list[Any]
) -> None:
    logits = torch.randn(SIZE, generator=torch.Generator().manual_seed(3)) * 2
    scores = logits.unsqueeze(0)
    for warper in warpers:
        scores = warper(None, scores)
    expected = scores.softmax(dim=-1)[0]
    found = draws(logits, **fields)
    assert set(found.nonzero().flatten().tolist()) <= set(expected.nonzero().flatten().tolist())
    assert (found - expected).abs().max() < 0.03


def test_greedy_rows_and_drawn_rows_share_a_batch() -> None:
    logits = torch.randn(4, SIZE, generator=torch.Generator().manual_seed(1))
    rows: list[Row | None] = [
        row(Sampling()),
        row(Sampling(temperature=1.0, seed=9)),
        None,
        row(Sampling(repetition_penalty=1.3)),
    ]
    tokens = choose_tokens(logits, rows)
    assert tokens[0] == logits[0].argmax()
    assert tokens[2] == logits[2].argmax()
    alone = choose_tokens(logits[1:2], [row(Sampling(temperature=1.0, seed=9))])
    assert tokens[1] == alone[0]
    penalty = transformers.RepetitionPenaltyLogitsProcessor(1.3)
    expected = penalty(torch.tensor([[1, 2, 3]]), logits[3:4].clone())
    assert tokens[3] == expected.argmax()
    assert [r.tokens for r in rows if r is not None] == [[int(tokens[i])] for i in (0, 1, 3)]


def test_presence_and_frequency_penalties() -> None:
    logits = torch.zeros(1, SIZE)
    logits[0, 7], logits[0, 8] = 3.0, 2.5
    made = [7, 7, 9]
    presence = choose_tokens(logits, [row(Sampling(presence_penalty=0.6), made)])
    assert presence.tolist() == [8], "3 - 0.6 is less than 2.5"
    frequency = choose_tokens(logits, [row(Sampling(frequency_penalty=0.2), made)])
    assert frequency.tolist() == [7], "3 - 2 * 0.2 is more than 2.5"
    frequency = choose_tokens(logits, [row(Sampling(frequency_penalty=0.3), made)])
    assert frequency.tolist() == [8]


def test_no_end_before_the_least_number_of_tokens() -> None:
    logits = torch.zeros(1, SIZE)
    logits[0, 5] = 9.0
    assert choose_tokens(logits, [row(Sampling(min_tokens=2), [1])]).tolist() != [5]
    assert choose_tokens(logits, [row(Sampling(min_tokens=2), [1, 1])]).tolist() == [5]


async def test_a_stop_string_across_tokens_is_found() -> None:
    words = ["one ", "tw", "o th", "ree ", "four"]
    call = TextCall([], 5, Sampling(), stops=("two three",))
    job = TextJob(call, "x", lambda ids: "".join(words[i] for i in ids), Channel())
    for token in range(5):
        job.take(token)
    assert await job.next() == "one "
    assert await job.next() is None
    assert (job.reason, job.num_tokens) == ("stop", 4)
    assert job.stop == "two three"
    ending = TextCall([], 3, Sampling(), stops=("three!",))
    short = TextJob(ending, "y", job._detokenizer._decode, Channel())
    for token in range(3):
        short.take(token)
    assert await short.next() == "one two th"
    assert short.reason == "length"


def test_a_row_whose_grammar_becomes_slow_stops_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [bytes([code]) for code in range(256)]
    info = xgrammar.TokenizerInfo(
        [*words, b"</s>"], vocab_type=xgrammar.VocabType.RAW, stop_token_ids=[256]
    )
    compiler = xgrammar.GrammarCompiler(info, max_threads=1)
    slow, quick, free = row(Sampling()), row(Sampling()), row(Sampling())
    slow.follower = start_follower(compiler.compile_grammar('root ::= "a" | root root'))
    quick.follower = start_follower(compiler.compile_regex("a*"))
    assert slow.follower is not None
    assert quick.follower is not None
    logits = torch.zeros(3, 257)
    logits[:, ord("b")] = 1
    monkeypatch.setattr(binding, "SLOW_STEP_S", 0.002)
    for _ in range(2000):
        choose_tokens(logits, [slow, quick, free])
        if slow.follower.problem is not None:
            break
    assert "takes 0.0" in (slow.follower.problem or "")
    assert binding.MAX_SLOW_STEPS < len(slow.tokens) < 2000
    assert set(slow.tokens) <= {ord("a"), 256}
    number = len(slow.tokens)
    started = time.thread_time()
    for _ in range(20):
        choose_tokens(logits, [slow, quick, free])
    assert time.thread_time() - started < 20 * 0.02, "it takes no more time"
    assert quick.follower.problem is None
    assert set(quick.tokens) <= {ord("a"), 256}
    assert set(free.tokens) == {ord("b")}
    assert len(quick.tokens) == len(free.tokens) == number + 20
