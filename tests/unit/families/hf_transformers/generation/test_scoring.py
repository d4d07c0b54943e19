"""Log probabilities, token ids and several answers of the family `hf-transformers`, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
import transformers

from deployments.hf_transformers.generation.scoring import PromptScorer
from tests.support.tiny_transformers.models import make_tiny_seq2seq, make_tiny_state_space
from tests.support.transformers_models import client_of, configuration

STORY = Path(__file__).parents[5] / "models" / "story"
TEXT = "Once upon a time there was a little girl named Mia who had a red boat"
PROMPTS = (TEXT, "Tom found", "The rain fell on the old house. Then")
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=["continuous", "padded"])
def client(request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    with client_of(configuration(STORY, batching=request.param), name="story") as client:
        yield client


@pytest.fixture(scope="module")
def plain() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(STORY, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(STORY)


def scores_of(plain: Any, tokens: list[int]) -> torch.Tensor:
    """Returns the log probabilities behind each token, `[tokens, vocabulary]`."""
    with torch.inference_mode():
        scores: torch.Tensor = plain(torch.tensor([tokens])).logits[0].log_softmax(-1)
    return scores


def http(client: openai.OpenAI) -> httpx.Client:
    return httpx.Client(base_url=str(client.base_url).removesuffix("/v1/"), timeout=60)


def test_a_prompts_log_probabilities_are_those_of_a_plain_forward(
    client: openai.OpenAI, plain: Any, tokenizer: Any
) -> None:
    def ask(prompt: Any) -> Any:
        return client.completions.create(
            model="story", prompt=prompt, max_tokens=1, temperature=0, echo=True, logprobs=2
        )

    prompts: list[Any] = [*PROMPTS, *(tokenizer.encode(prompt) for prompt in PROMPTS)]
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(ask, prompts))
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        found = answer.choices[0].logprobs
        scores = scores_of(plain, ids)
        ids = [*ids, int(scores[-1].argmax())]
        expected = [float(scores[at, token]) for at, token in enumerate(ids[1:])]
        assert found.tokens == [tokenizer.decode([token]) for token in ids]
        assert found.token_logprobs[0] is None
        assert found.top_logprobs[0] is None
        assert found.token_logprobs[1:] == pytest.approx(expected, abs=TOLERANCE)
        for at, top in enumerate(found.top_logprobs[1:]):
            best = scores[at].topk(2)
            assert sorted(top.values(), reverse=True)[:2] == pytest.approx(
                best.values.tolist(), abs=TOLERANCE
            )
            assert len(top) in (2, 3)
        text = prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
        assert answer.choices[0].text.startswith(text)
        assert answer.usage.completion_tokens == 1


def test_an_answers_log_probabilities_are_those_of_a_plain_forward(
    client: openai.OpenAI, plain: Any, tokenizer: Any
) -> None:
    messages: Any = [{"role": "user", "content": "Tell me a story about Mia and a red boat."}]
    fields: dict[str, Any] = {"model": "story", "messages": messages, "max_tokens": 20}
    fields |= {"temperature": 0.9, "seed": 5, "logprobs": True, "top_logprobs": 3}
    answer = client.chat.completions.create(**fields, extra_body={"repetition_penalty": 1.2})
    content = answer.choices[0].logprobs.content
    assert content is not None
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    text = answer.choices[0].message.content
    assert text is not None
    assert len(content) == 20
    assert "".join(one.token for one in content).startswith(text[:10])
    tokens = list(prompt)
    for one in content:
        scores = scores_of(plain, tokens)[-1]
        matching = [t for t in range(len(scores)) if tokenizer.decode([t]) == one.token]
        token = min(matching, key=lambda t: abs(float(scores[t]) - one.logprob))
        assert one.logprob == pytest.approx(float(scores[token]), abs=TOLERANCE)
        best = scores.topk(3)
        assert [top.logprob for top in one.top_logprobs] == pytest.approx(
            best.values.tolist(), abs=TOLERANCE
        )
        assert [top.token for top in one.top_logprobs] == [
            tokenizer.decode([t]) for t in best.indices.tolist()
        ]
        assert bytes(one.bytes or []).decode() == one.token
        tokens.append(token)
    stream = client.chat.completions.create(
        **fields, stream=True, extra_body={"repetition_penalty": 1.2}
    )
    chunks = [chunk.choices[0] for chunk in stream]
    streamed = [one for chunk in chunks if chunk.logprobs for one in chunk.logprobs.content or []]
    assert streamed == content
    assert "".join(chunk.delta.content or "" for chunk in chunks) == text


def test_several_answers_to_several_prompts(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "story", "max_tokens": 12, "temperature": 1, "seed": 3}
    answer = client.completions.create(prompt=list(PROMPTS), n=3, **fields)
    assert [choice.index for choice in answer.choices] == list(range(9))
    texts = [choice.text for choice in answer.choices]
    assert len(set(texts)) == 9
    alone = client.completions.create(prompt=PROMPTS[1], **fields)
    assert alone.choices[0].text == texts[3]
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 9 * 12
    singles = [client.completions.create(prompt=prompt, **fields) for prompt in PROMPTS]
    prompts = sum(single.usage.prompt_tokens for single in singles if single.usage)
    assert answer.usage.prompt_tokens == prompts
    stream = client.completions.create(
        prompt=list(PROMPTS), n=3, stream=True, stream_options={"include_usage": True}, **fields
    )
    found = [""] * 9
    reasons = set()
    last = None
    for chunk in stream:
        for choice in chunk.choices:
            found[choice.index] += choice.text
            if choice.finish_reason:
                reasons.add((choice.index, choice.finish_reason))
        last = chunk
    assert found == texts
    assert {index for index, _ in reasons} == set(range(9))
    assert last is not None
    assert last.usage == answer.usage


def test_the_prompt_alone(client: openai.OpenAI, tokenizer: Any) -> None:
    answer = client.completions.create(
        model="story", prompt=TEXT, max_tokens=0, echo=True, logprobs=0
    )
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason) == (TEXT, "length")
    assert choice.logprobs is not None
    assert len(choice.logprobs.tokens or []) == len(tokenizer.encode(TEXT))
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0
    stream = client.completions.create(
        model="story", prompt=TEXT, max_tokens=4, echo=True, stream=True, temperature=0
    )
    whole = client.completions.create(model="story", prompt=TEXT, max_tokens=4, temperature=0)
    assert "".join(c.choices[0].text for c in stream) == TEXT + whole.choices[0].text


def test_logit_bias_bans_and_forces(client: openai.OpenAI, tokenizer: Any) -> None:
    fields: dict[str, Any] = {"model": "story", "prompt": TEXT, "max_tokens": 3, "temperature": 0}
    likeliest = client.completions.create(logprobs=0, **fields).choices[0].logprobs
    assert likeliest is not None
    first = likeliest.tokens[0]
    ids = {i for i in range(len(tokenizer)) if tokenizer.decode([i]) == first}
    banned = client.completions.create(logit_bias={str(i): -100 for i in ids}, logprobs=0, **fields)
    assert banned.choices[0].logprobs is not None
    assert banned.choices[0].logprobs.tokens[0] != first
    token = tokenizer.encode("boat", add_special_tokens=False)[0]
    forced = client.completions.create(logit_bias={str(token): 100}, **fields)
    assert forced.choices[0].text == tokenizer.decode([token] * 3)
    with pytest.raises(openai.BadRequestError, match=r"vocabulary has 2048 tokens") as caught:
        client.completions.create(logit_bias={"5000": 1}, **fields)
    assert caught.value.param == "logit_bias"


def test_stop_token_ids_end_an_answer(client: openai.OpenAI, tokenizer: Any) -> None:
    fields: dict[str, Any] = {"model": "story", "prompt": TEXT, "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(logprobs=0, **fields).choices[0].logprobs
    assert whole is not None
    tokens = [token for token in whole.tokens or []]
    at = next(at for at in range(2, 8) if tokens[at] not in tokens[:at])
    ids = [i for i in range(len(tokenizer)) if tokenizer.decode([i]) == tokens[at]]
    for more in ({}, {"ignore_eos": True}, {"stop": ["qqq"]}):
        extra = {"stop_token_ids": ids, **more}
        ended = client.completions.create(extra_body=extra, **fields).choices[0]
        assert (ended.text, ended.finish_reason) == ("".join(tokens[:at]), "stop")
    late = client.completions.create(
        extra_body={"stop_token_ids": ids, "min_tokens": at + 1}, **fields
    ).choices[0]
    assert len(tokenizer.encode(late.text, add_special_tokens=False)) > at
    with pytest.raises(openai.BadRequestError, match=r"vocabulary has 2048 tokens") as caught:
        client.completions.create(extra_body={"stop_token_ids": [5000]}, **fields)
    assert caught.value.param == "stop_token_ids"


def test_tokens_of_texts_and_chats(client: openai.OpenAI, tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "hi"}]
    with http(client) as plain_http:

        def post(path: str, **fields: Any) -> Any:
            return plain_http.post(path, json={"model": "story", **fields}).json()

        ids = tokenizer.encode(TEXT)
        answer = post("/tokenize", prompt=TEXT, return_token_strs=True)
        assert (answer["tokens"], answer["count"]) == (ids, len(ids))
        assert answer["max_model_len"] == 1024
        assert answer["token_strs"] == [tokenizer.decode([token]) for token in ids]
        chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert post("/tokenize", messages=messages)["tokens"] == chat
        assert post("/detokenize", tokens=ids)["prompt"] == tokenizer.decode(ids)
        assert post("/tokenize")["error"]["param"] == "prompt"
        assert post("/detokenize", tokens=["x"])["error"]["param"] == "tokens"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [1, 5000]}, "prompt"),
        ({"prompt": [[1], []]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": "x", "logprobs": 21}, "logprobs"),
        ({"prompt": "x", "n": 33}, "n"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "best_of": 2}, "best_of"),
        ({"prompt": "x", "logit_bias": {"a": 1}}, "logit_bias"),
        ({"prompt": "x", "logit_bias": {"1": 101}}, "logit_bias"),
        ({"prompt": "x", "logit_bias": {"1": "1"}}, "logit_bias"),
    ],
)
def test_what_is_refused(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with http(client) as plain_http:
        answer = plain_http.post("/v1/completions", json={"model": "story", **fields})
    assert answer.status_code == 400, answer.text
    assert json.loads(answer.text)["error"]["param"] == param


@pytest.mark.parametrize("make", [make_tiny_seq2seq, make_tiny_state_space])
def test_a_model_without_a_cache_of_keys_says_so(make: Any, tmp_path: Path) -> None:
    path = make(tmp_path / "model")
    with client_of(configuration(path)) as client:
        fields: dict[str, Any] = {"model": "tiny", "prompt": "hello", "max_tokens": 3}
        answer = client.completions.create(logprobs=1, extra_body={"ignore_eos": True}, **fields)
        assert answer.choices[0].logprobs is not None
        assert len(answer.choices[0].logprobs.token_logprobs or []) == 3
        with pytest.raises(openai.BadRequestError, match="gives_prompt_logprobs"):
            client.completions.create(logprobs=1, echo=True, **fields)


def test_a_long_prompt_takes_several_passes(plain: Any, tokenizer: Any) -> None:
    ids = (tokenizer.encode(TEXT) * 20)[:200]
    scorer = PromptScorer(plain, 2048)
    scorer._num_tokens = 64
    found = [score.logprob for score in scorer.score(ids, 0)]
    scores = scores_of(plain, ids)
    expected = [float(scores[at, token]) for at, token in enumerate(ids[1:])]
    assert found[0] is None
    assert found[1:] == pytest.approx(expected, abs=TOLERANCE)
