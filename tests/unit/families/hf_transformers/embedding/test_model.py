"""Embeddings of the family `hf-transformers`, against the plain library, and over HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import httpx
import numpy
import openai
import pytest
import torch
import transformers

from deployments.hf_transformers.config import FAMILY
from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.tiny_transformers.models import make_tiny_encoder
from tests.support.transformers_models import client_of, configuration, loaded
from truthgpt_serve.config import load_model_config
from truthgpt_serve.errors import ConfigError, RequestError
from truthgpt_serve.server.instance import ModelInstance
from truthgpt_serve.server.text_sizes import MAX_CHARACTERS, MAX_WORD

TEXTS = [
    "the cat",
    "A small red dog runs under the large tree",
    "blue",
    "tree tree tree sleeps over nothing in particular 12",
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_encoder(tmp_path_factory.mktemp("encoder"))


def hidden_states(path: Path, text: str) -> torch.Tensor:
    """Returns what the plain library makes of one text, `[tokens, size]`."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModel.from_pretrained(path, dtype=torch.float32)
    inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        hidden: torch.Tensor = model(**inputs).last_hidden_state[0]
    return hidden


def unit(vector: torch.Tensor) -> Any:
    return (vector / vector.norm()).numpy()


def embed(model: Any, texts: list[str], **fields: Any) -> Any:
    answers = model.infer_batch([{"text": text, **fields} for text in texts])
    return numpy.stack([answer["embedding"] for answer in answers])


POOLS: dict[str, Any] = {
    "mean": lambda hidden: hidden.mean(0),
    "cls": lambda hidden: hidden[0],
    "lasttoken": lambda hidden: hidden[-1],
    "max": lambda hidden: hidden.amax(0),
    "mean_sqrt_len": lambda hidden: hidden.sum(0) / len(hidden) ** 0.5,
}


@pytest.mark.parametrize("pooling", POOLS)
def test_pooling_is_what_the_model_says(pooling: str, tmp_path: Path) -> None:
    path = make_tiny_encoder(tmp_path, pooling=pooling, normalize=False)
    with loaded(configuration(path, "embedding")) as model:
        found = embed(model, TEXTS)
    # `do_lower_case` of sentence_bert_config.json makes the texts lower case.
    expected = [POOLS[pooling](hidden_states(path, text.lower())).numpy() for text in TEXTS]
    numpy.testing.assert_allclose(found, expected, atol=2e-5)


def test_vectors_are_normalized_where_the_model_says(encoder: Path) -> None:
    with loaded(configuration(encoder, "embedding")) as model:
        found = embed(model, TEXTS)
        assert model._engine.max_tokens == 48, "max_seq_length of sentence_bert_config.json"
    expected = [unit(hidden_states(encoder, text.lower()).mean(0)) for text in TEXTS]
    numpy.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_dense_layer_follows_the_pooling(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    path = make_tiny_encoder(tmp_path, dense=12)
    with loaded(configuration(path, "embedding")) as model:
        found = embed(model, TEXTS)
    weights = load_file(path / "2_Dense" / "model.safetensors")
    for text, vector in zip(TEXTS, found, strict=True):
        pooled = hidden_states(path, text.lower()).mean(0)
        dense = torch.tanh(weights["linear.weight"] @ pooled + weights["linear.bias"])
        numpy.testing.assert_allclose(vector, unit(dense), atol=1e-5)


def test_settings_come_before_the_files(encoder: Path) -> None:
    cfg = configuration(
        encoder, "embedding", pooling="cls", normalize=False, embedding_prompt="the small "
    )
    with loaded(cfg) as model:
        found = embed(model, ["cat"])[0]
    expected = hidden_states(encoder, "the small cat")[0].numpy()
    numpy.testing.assert_allclose(found, expected, atol=2e-5)


def test_models_without_files_have_stated_defaults(tmp_path: Path, encoder: Path) -> None:
    plain = tmp_path / "plain"
    transformers.AutoModel.from_pretrained(encoder).save_pretrained(plain)
    transformers.AutoTokenizer.from_pretrained(encoder).save_pretrained(plain)
    with loaded(configuration(plain, "embedding")) as model:
        found = embed(model, ["the cat"])[0]
    numpy.testing.assert_allclose(found, unit(hidden_states(plain, "the cat").mean(0)), atol=2e-6)
    llama = make_tiny_llama(tmp_path / "llama")
    with loaded(configuration(llama, "embedding")) as model:
        found = embed(model, ["some words", "a", "many more words than these"])[0]
    numpy.testing.assert_allclose(found, unit(hidden_states(llama, "some words")[-1]), atol=2e-6)


def test_a_default_prompt_of_the_model_is_used(tmp_path: Path) -> None:
    path = make_tiny_encoder(tmp_path)
    prompts = {"prompts": {"query": "small "}, "default_prompt_name": "query"}
    (path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    with loaded(configuration(path, "embedding")) as model:
        found = embed(model, ["cat"])[0]
    numpy.testing.assert_allclose(found, unit(hidden_states(path, "small cat").mean(0)), atol=2e-6)


def test_an_unknown_module_or_pooling_is_refused(tmp_path: Path) -> None:
    path = make_tiny_encoder(tmp_path)
    pooling = path / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode": "attention"}))
    with pytest.raises(ConfigError, match=r"names \['attention'\] .set serving.engine.pooling"):
        loaded(configuration(path, "embedding")).__enter__()
    pooling.write_text(json.dumps({"pooling_mode": "cls"}))
    with loaded(configuration(path, "embedding")) as model:
        assert model._engine._layout.pooling == ("cls",)
    rows = [{"path": "", "type": "sentence_transformers.models.CLIPModel"}]
    (path / "modules.json").write_text(json.dumps(rows))
    with pytest.raises(ConfigError, match="CLIPModel, which this family lacks"):
        loaded(configuration(path, "embedding")).__enter__()


def test_many_texts_of_all_lengths_are_those_of_one_at_a_time(encoder: Path) -> None:
    words = ["the", "a", "small", "large", "red", "blue", "cat", "dog", "runs", "sleeps"]
    texts = [" ".join(words[i % 7 : i % 7 + 1 + i % 3] * (1 + i % 11)) for i in range(100)]
    with loaded(configuration(encoder, "embedding", max_batch_tokens=128)) as model:
        together = embed(model, texts)
        alone = [embed(model, [text])[0] for text in texts]
    numpy.testing.assert_allclose(together, alone, atol=3e-6)
    assert len({vector.tobytes() for vector in together.round(4)}) > 50


def test_dimensions_cut_and_scale_again(encoder: Path) -> None:
    with loaded(configuration(encoder, "embedding")) as model:
        whole, cut = embed(model, ["the cat"])[0], embed(model, ["the cat"], dimensions=8)[0]
        numpy.testing.assert_allclose(cut, whole[:8] / numpy.linalg.norm(whole[:8]), atol=1e-6)
        with pytest.raises(RequestError, match="`dimensions` must be a whole number from 1 to 32"):
            model.infer({"text": "x", "dimensions": 33})


def test_a_long_text_is_refused_or_cut_on_request(encoder: Path) -> None:
    long = "cat " * 100
    with loaded(configuration(encoder, "embedding")) as model:
        with pytest.raises(RequestError, match=r"is 48 tokens.*you requested 102") as caught:
            model.infer({"text": long})
        assert caught.value.code == "context_length_exceeded"
        cut = model.infer({"text": long, "truncate_prompt_tokens": -1})
        assert cut["num_tokens"] == 48
        expected = model.infer({"text": "cat " * 46})["embedding"]
        numpy.testing.assert_allclose(cut["embedding"], expected, atol=2e-6)
        assert model.infer({"text": long, "truncate_prompt_tokens": 10})["num_tokens"] == 10
        # One bad text does not spoil a batch.
        good, bad = model.infer_batch([{"text": "cat"}, {"text": long}])
        assert good["num_tokens"] == 3
        assert isinstance(bad, RequestError)


def test_of_a_text_far_too_long_the_beginning_alone_is_read(encoder: Path) -> None:
    texts: list[dict[str, Any]] = [
        {"text": "cat"},
        {"text": "cat " * 100_000},
        {"token_ids": [2, 3]},
        {"text": 5},
    ]
    with loaded(configuration(encoder, "embedding")) as model:
        good, bad, ids, none = model.infer_batch(texts)
        assert (good["num_tokens"], ids["num_tokens"]) == (3, 2)
        assert "its beginning alone" in bad.message
        assert (bad.code, bad.param) == ("context_length_exceeded", "input")
        assert isinstance(none, RequestError)
        long = {**texts[1], "truncate_prompt_tokens": -1}
        assert model.infer(long)["num_tokens"] == 48


def test_a_text_that_takes_long_to_tokenize_is_refused(encoder: Path) -> None:
    word, text = "x" * (MAX_WORD + 1), "x" * (MAX_CHARACTERS + 1)
    with loaded(configuration(encoder, "embedding")) as model:
        with pytest.raises(RequestError, match="has 1048577 characters") as caught:
            model.infer({"text": word})
        assert caught.value.param == "input"
        with pytest.raises(RequestError, match="is set for texts of 4194305") as caught:
            model.infer({"text": text, "truncate_prompt_tokens": 5})
        assert caught.value.param == "truncate_prompt_tokens"


def test_over_http_with_the_openai_client(encoder: Path) -> None:
    with client_of(configuration(encoder, "embedding")) as client:
        expected = [unit(hidden_states(encoder, text.lower()).mean(0)) for text in TEXTS]
        floats = client.embeddings.create(model="tiny", input=TEXTS, encoding_format="float")
        packed = client.embeddings.create(model="tiny", input=TEXTS)
        assert [item.index for item in floats.data] == [0, 1, 2, 3]
        for answer in (floats, packed):
            vectors = [item.embedding for item in answer.data]
            numpy.testing.assert_allclose(vectors, expected, atol=2e-6)
            assert (answer.object, answer.model, answer.data[0].object) == (
                "list",
                "tiny",
                "embedding",
            )
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(encoder)
        num_tokens = sum(len(tokenizer.encode(text.lower())) for text in TEXTS)
        assert packed.usage.prompt_tokens == packed.usage.total_tokens == num_tokens

        one = client.embeddings.create(model="tiny", input="the cat", dimensions=4)
        assert len(one.data[0].embedding) == 4
        ids = tokenizer.encode("the cat")
        by_ids = client.embeddings.create(model="tiny", input=ids)
        numpy.testing.assert_allclose(by_ids.data[0].embedding, expected[0], atol=2e-6)
        both = client.embeddings.create(model="tiny", input=[ids, ids[:3]])
        assert (len(both.data), both.usage.prompt_tokens) == (2, len(ids) + 3)

        with pytest.raises(openai.BadRequestError, match="context length is 48 tokens") as caught:
            client.embeddings.create(model="tiny", input=["fine", "cat " * 100])
        assert caught.value.code == "context_length_exceeded"
        cut = client.embeddings.create(
            model="tiny", input="cat " * 100, extra_body={"truncate_prompt_tokens": -1}
        )
        assert cut.usage.prompt_tokens == 48
        for wrong in ("", [], [""], [1, -5], [[1], 2], {"a": 1}, [10**9]):
            with pytest.raises(openai.BadRequestError):
                client.embeddings.create(model="tiny", input=wrong)  # type: ignore[arg-type]  # wrong on purpose
        with pytest.raises(openai.BadRequestError, match="which has no text routes"):
            client.completions.create(model="tiny", prompt="x")
        raw = httpx.post(
            f"{client.base_url}embeddings",
            json={"model": "tiny", "input": "the cat", "encoding_format": "base64"},
        ).json()
        values = numpy.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), "<f4")
        numpy.testing.assert_allclose(values, expected[0], atol=2e-6)


async def test_256_requests_at_the_batcher_share_few_calls(encoder: Path) -> None:
    cfg = configuration(encoder, "embedding")
    instance = ModelInstance(FAMILY, load_model_config(cfg), name="tiny")
    await instance.start()
    try:
        calls: list[int] = []
        original = instance.model._engine.infer_batch

        def counted(batch: list[Any]) -> Any:
            calls.append(len(batch))
            return original(batch)

        instance.model._engine.infer_batch = counted
        texts = [TEXTS[index % 4] + f" {index}" for index in range(256)]
        answers = await asyncio.gather(*(instance.infer({"text": text}) for text in texts))
        assert sum(calls) == 256
        assert len(calls) <= 4
        direct = original([{"text": text} for text in texts])
        for answer, expected in zip(answers, direct, strict=True):
            numpy.testing.assert_allclose(answer["embedding"], expected["embedding"], atol=3e-6)
    finally:
        await instance.close()
