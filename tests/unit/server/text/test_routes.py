"""What the text routes offer to classes that say by attributes what they can do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest

from tests.support.sample_models import Base, spec_of
from tests.support.servers import serve_asgi
from truthgpt_serve.errors import ContextLengthError
from truthgpt_serve.request_schema import bad_field
from truthgpt_serve.server import create_app
from truthgpt_serve.server.text_sizes import MAX_CHARACTERS


class Letters:
    """A tokenizer of single characters."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [1] * add_special_tokens + [ord(letter) for letter in text]

    def decode(self, tokens: list[int]) -> str:
        return "".join(chr(token) for token in tokens if token > 1)

    def get_vocab(self) -> dict[str, int]:
        return {"<fim_prefix>": 1, "<fim_suffix>": 2, "<fim_middle>": 3}


class Able(Base):
    """Continues the alphabet, and does all that a class may say."""

    accepts_token_ids = True
    gives_logprobs = True
    gives_prompt_logprobs = True
    takes_logit_bias = True
    takes_stop_token_ids = True
    repeats_prompt = False
    tokenizer = Letters()

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.events.append(inputs)
        tokens = inputs.get("token_ids") or [ord(letter) for letter in inputs["text"]]
        step = 1 + inputs.get("seed", 0)
        made = [tokens[-1] + step * (1 + i) for i in range(inputs["max_new_tokens"])]
        found: dict[str, Any] = {"text": "".join(map(chr, made)), "finish_reason": "length"}
        if "logprobs" in inputs:
            found["logprobs"] = [self._entry(token, inputs["logprobs"]) for token in made]
        if "prompt_logprobs" in inputs:
            first, *rest = [self._entry(token, inputs["logprobs"]) for token in tokens]
            found["prompt_logprobs"] = [{"token_id": first["token_id"], "logprob": None}, *rest]
        return found

    def stream(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        whole = self.infer(inputs)
        if "prompt_logprobs" in whole:
            yield {"text": "", "prompt_logprobs": whole["prompt_logprobs"]}
        for at, letter in enumerate(whole["text"]):
            item = {"text": letter}
            yield item | ({"logprobs": [whole["logprobs"][at]]} if "logprobs" in whole else {})

    def _entry(self, token: int, num_top: int) -> dict[str, Any]:
        top = [
            {"token_id": token - i, "logprob": -float(i) or float("-inf")} for i in range(num_top)
        ]
        return {"token_id": token, "logprob": -0.5, "top": top}


class Plain(Base):
    """Says nothing of itself, and has no tokenizer."""

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"text": f"{inputs['text']}!{inputs.get('seed', '')}"}


@contextmanager
def serving(cls: type) -> Iterator[openai.OpenAI]:
    app = create_app(spec_of(cls), {}, name="sample")
    with (
        serve_asgi(app, lifespan="on") as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def able() -> Iterator[openai.OpenAI]:
    with serving(Able) as client:
        yield client


def post(client: openai.OpenAI, path: str, **fields: Any) -> Any:
    url = str(client.base_url).removesuffix("/v1/") + path
    return httpx.post(url, json={"model": "sample", **fields}).json()


def test_a_plain_class_gives_several_answers_to_several_prompts() -> None:
    with serving(Plain) as client:
        answer = client.completions.create(model="sample", prompt=["a", "b"], n=2, seed=7)
        texts = [(choice.index, choice.text) for choice in answer.choices]
        assert texts == [(0, "!7"), (1, "!8"), (2, "!7"), (3, "!8")]
        assert answer.usage is None
        messages: Any = [{"role": "user", "content": "hi"}]
        stream = client.chat.completions.create(model="sample", messages=messages, n=3, stream=True)
        found = ["", "", ""]
        for chunk in stream:
            for choice in chunk.choices:
                found[choice.index] += choice.delta.content or ""
        assert found == ["!"] * 3
        echoed = client.completions.create(model="sample", prompt="a", echo=True)
        assert echoed.choices[0].text == "a!"
        for path, fields in (
            ("/tokenize", {"prompt": "x"}),
            ("/detokenize", {"tokens": [1]}),
            ("/v1/completions", {"prompt": [1, 2]}),
            ("/v1/completions", {"prompt": "x", "logprobs": 0}),
            ("/v1/completions", {"prompt": "x", "suffix": "y"}),
            ("/v1/chat/completions", {"messages": messages, "logit_bias": {"1": 2}}),
        ):
            error = post(client, path, **fields)["error"]
            assert (error["type"], error["code"]) == ("invalid_request_error", "unsupported")


def test_log_probabilities_of_a_completion(able: openai.OpenAI) -> None:
    fields: Any = {"model": "sample", "prompt": "ab", "max_tokens": 2, "logprobs": 2, "echo": True}
    choice = able.completions.create(**fields).choices[0]
    assert choice.text == "abcd"
    assert choice.logprobs is not None
    assert choice.logprobs.model_dump() == {
        "tokens": ["a", "b", "c", "d"],
        "text_offset": [0, 1, 2, 3],
        "token_logprobs": [None, -0.5, -0.5, -0.5],
        "top_logprobs": [None, {"b": -0.5, "a": -1}, {"c": -0.5, "b": -1}, {"d": -0.5, "c": -1}],
    }
    chunks = [chunk.choices[0] for chunk in able.completions.create(**fields, stream=True)]
    assert "".join(chunk.text for chunk in chunks) == "abcd"
    streamed = [chunk.logprobs for chunk in chunks if chunk.logprobs is not None]
    joined = {
        name: [value for one in streamed for value in getattr(one, name)]
        for name in choice.logprobs.model_dump()
    }
    assert joined == choice.logprobs.model_dump()


def test_log_probabilities_of_a_chat(able: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "é"}]
    fields: Any = {"model": "sample", "messages": messages, "max_tokens": 1}
    answer = able.chat.completions.create(**fields, logprobs=True, top_logprobs=1)
    assert answer.choices[0].logprobs is not None
    [token] = answer.choices[0].logprobs.content or []
    assert (token.token, token.logprob, token.bytes) == ("ê", -0.5, list("ê".encode()))
    # JSON has no infinity.
    assert [top.logprob for top in token.top_logprobs] == [-9999]
    without = able.chat.completions.create(**fields)
    assert without.choices[0].logprobs is None


def test_token_ids_bias_and_the_prompt_alone(able: openai.OpenAI) -> None:
    fields: Any = {"model": "sample", "max_tokens": 1}
    answer = able.completions.create(**fields, prompt=[[97, 98], [99]], logit_bias={"5": -1})
    assert [choice.text for choice in answer.choices] == ["c", "d"]
    assert Able.last.events[-1]["logit_bias"] == {5: -1.0}
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3
    none = able.completions.create(model="sample", prompt=[97, 98], max_tokens=0, echo=True)
    assert (none.choices[0].text, none.choices[0].finish_reason) == ("ab", "length")
    assert none.usage is not None
    assert none.usage.completion_tokens == 0


class Sized(Able):
    """Knows few tokens, and refuses inputs by their names."""

    vocab_size = 128

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if inputs.get("text") == "long":
            raise ContextLengthError(3, 4, param="text")
        if inputs.get("token_ids") == [1, 1]:
            raise bad_field("token_ids", "are the same")
        if inputs["max_new_tokens"] > 999:
            raise bad_field("max_new_tokens", "is above 999")
        return super().infer(inputs)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [128]}, "prompt"),
        ({"prompt": [[1], [2, 2**31 - 1]]}, "prompt"),
        ({"prompt": "a", "logit_bias": {"128": 1}}, "logit_bias"),
        ({"prompt": "long"}, "prompt"),
        ({"prompt": "long", "stream": True}, "prompt"),
        ({"prompt": ["a", "long"]}, "prompt"),
        ({"prompt": [1, 1]}, "prompt"),
        ({"prompt": "a", "max_tokens": 1000}, "max_tokens"),
        ({"prompt": "a", "max_completion_tokens": 1000}, "max_completion_tokens"),
    ],
)
def test_a_refusal_names_what_the_client_sent(fields: Any, param: str) -> None:
    with serving(Sized) as client:
        error = post(client, "/v1/completions", **fields)["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert not any(f"`{name}`" in error["message"] for name in ("token_ids", "max_new_tokens"))


def test_tokens_that_end_an_answer(able: openai.OpenAI) -> None:
    body = {"prompt": "a", "max_tokens": 1}
    post(able, "/v1/completions", **body, stop_token_ids=[5, 7])
    assert Able.last.events[-1]["stop_token_ids"] == [5, 7]
    nothing: Any
    for nothing in (None, []):
        assert "error" not in post(able, "/v1/completions", **body, stop_token_ids=nothing)
        assert "stop_token_ids" not in Able.last.events[-1]
    wrong: Any
    for wrong in ("5", 5, [-1], ["5"], [5.0], [True], {"5": 1}, [2**31]):
        error = post(able, "/v1/completions", **body, stop_token_ids=wrong)["error"]
        assert error["param"] == "stop_token_ids"
    with serving(Plain) as client:
        error = post(client, "/v1/completions", **body, stop_token_ids=[5])["error"]
        assert (error["param"], error["code"]) == ("stop_token_ids", "unsupported")


@pytest.mark.parametrize(
    ("name", "harmless", "wanted"),
    [
        ("allowed_token_ids", (None, []), [1]),
        ("bad_words", (None, []), ["x"]),
        ("include_stop_str_in_output", (None, False), True),
        ("use_beam_search", (None, False), True),
        ("return_token_ids", (None, False), True),
        ("truncate_prompt_tokens", (None,), 5),
        ("prompt_logprobs", (None,), 0),
        ("skip_special_tokens", (None, True), False),
    ],
)
def test_what_only_an_engine_honors_is_not_passed_over(
    able: openai.OpenAI, name: str, harmless: Any, wanted: Any
) -> None:
    body = {"prompt": "a", "max_tokens": 1}
    for value in harmless:
        assert "error" not in post(able, "/v1/completions", **body, **{name: value})
    error = post(able, "/v1/completions", **body, **{name: wanted})["error"]
    assert (error["param"], error["code"]) == (name, "unsupported")


def test_a_temperature_is_one_that_logits_can_be_divided_by(able: openai.OpenAI) -> None:
    for given, taken in ((1e-320, 0.01), (0.005, 0.01), (0.02, 0.02), (0, 0), (-0.0, 0)):
        able.completions.create(model="sample", prompt="a", max_tokens=1, temperature=given)
        assert Able.last.events[-1]["temperature"] == taken


def test_the_card_says_what_the_class_can_do(able: openai.OpenAI) -> None:
    card: Any = able.models.retrieve("sample")
    assert card.capabilities == {
        "context_length": None,
        "tools": False,
        "json": False,
        "logprobs": True,
        "prompt_logprobs": True,
        "token_ids": True,
        "logit_bias": True,
        "images": False,
        "reasoning": False,
    }


def test_a_suffix_is_put_behind_the_tokens_of_the_model(able: openai.OpenAI) -> None:
    able.completions.create(model="sample", prompt="ab", suffix="z", max_tokens=1)
    assert Able.last.events[-1]["text"] == "<fim_prefix>ab<fim_suffix>z<fim_middle>"


def test_tokens(able: openai.OpenAI) -> None:
    answer = post(able, "/tokenize", prompt="ab", return_token_strs=True)
    assert (answer["tokens"], answer["token_strs"]) == ([1, 97, 98], ["", "a", "b"])
    assert post(able, "/tokenize", prompt="ab", add_special_tokens=False)["count"] == 2
    chat = post(able, "/tokenize", messages=[{"role": "user", "content": "x"}])
    assert post(able, "/detokenize", tokens=chat["tokens"])["prompt"] == "user: x"
    assert post(able, "/detokenize", tokens=[]) == {"prompt": ""}
    wrong: Any
    for wrong in ([-1], [2**31], [1, True], [1.0], [[1]], ["1"], {}, "1", None):
        error = post(able, "/detokenize", tokens=wrong)["error"]
        assert error["param"] == "tokens"
        assert "must be a list of token ids" in error["message"] or wrong is None


def test_a_text_too_long_to_tokenize_at_once(able: openai.OpenAI) -> None:
    error = post(able, "/tokenize", prompt="x" * (MAX_CHARACTERS + 1))["error"]
    assert error["param"] == "prompt"
    assert str(MAX_CHARACTERS) in error["message"]


class Words(Plain):
    class tokenizer:
        @staticmethod
        def encode(text: str) -> list[str]:
            return text.split()


def test_a_tokenizer_of_words_has_no_token_ids() -> None:
    with serving(Words) as client:
        error = post(client, "/tokenize", prompt="a b")["error"]
        assert (error["code"], error["param"]) == ("unsupported", "model")


class Broken(Able):
    def _entry(self, token: int, num_top: int) -> Any:
        return (token, -1.0)


def test_log_probabilities_of_another_form_are_the_classs_fault() -> None:
    with serving(Broken) as client, pytest.raises(openai.InternalServerError, match="`logprob`"):
        client.completions.create(model="sample", prompt="a", logprobs=0, max_tokens=1)


def test_one_answer_that_fails_fails_the_request(able: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError):
        able.completions.create(model="sample", prompt=["a", "\U0010ffff"], max_tokens=1)
