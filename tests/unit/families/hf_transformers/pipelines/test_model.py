"""Pipeline tasks of the family `hf-transformers`, against transformers' own pipelines."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import httpx
import numpy
import pytest
import transformers
from PIL import Image

from tests.support.tiny_transformers.models import (
    LABELS,
    make_tiny_classifier,
    make_tiny_vision,
)
from tests.support.transformers_models import client_of, configuration, loaded
from truthgpt_serve.errors import ConfigError, RequestError


def create_image(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = numpy.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=numpy.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_vision(tmp_path_factory.mktemp("vision"))


def assert_alike(found: Any, expected: Any) -> None:
    assert [item["label"] for item in found] == [item["label"] for item in expected]
    scores = [numpy.array([item["score"] for item in answer]) for answer in (found, expected)]
    numpy.testing.assert_allclose(scores[0], scores[1], atol=1e-6)


def test_text_classification(classifier: Path) -> None:
    plain: Any = transformers.pipeline("text-classification", str(classifier))
    texts = ["the cat", "a small dog runs under the large red tree", "blue blue"] * 5
    cfg = configuration(classifier, "custom", pipeline_task="text-classification")
    with loaded(cfg) as model:
        found = model.infer_batch([{"text": text, "top_k": 4} for text in texts])
        for text, answer in zip(texts, found, strict=True):
            assert_alike(answer, plain(text, top_k=4))
        assert_alike(model.infer({"text": texts[1]}), plain(texts[1]))
        mixed = model.infer_batch([{"text": "the cat"}, {"text": "the cat", "top_k": 2}, {}])
        assert len(mixed[1]) == 2
        assert isinstance(mixed[2], RequestError)
        assert mixed[2].message == "`text` is required"
        (long,) = model.infer_batch([{"text": "cat " * 500}])
        assert isinstance(long, RequestError)
        assert long.code == "context_length_exceeded"
        assert "maximum context length is" in long.message
        (long,) = model.infer_batch([{"text": "cat " * 100_000}])
        assert isinstance(long, RequestError)
        assert "its beginning alone" in long.message
        assert model.batch_key({"text": "a"}) == model.batch_key({"text": "b"})
        assert model.batch_key({"text": "a"}) != model.batch_key({"text": "a", "top_k": 2})


def test_image_classification(vision: Path) -> None:
    plain: Any = transformers.pipeline("image-classification", str(vision))
    cfg = configuration(vision, "custom", pipeline_task="image-classification")
    images = [create_image(index, (20 + 7 * index, 64)) for index in range(6)]
    with loaded(cfg) as model:
        found = model.infer_batch([{"image": image} for image in images])
    for image, answer in zip(images, found, strict=True):
        assert_alike(answer, plain(image))
    assert len({answer[0]["score"] for answer in found}) == 6


def test_classification_over_http(vision: Path, classifier: Path) -> None:
    plain: Any = transformers.pipeline("image-classification", str(vision))
    buffer = io.BytesIO()
    create_image(3).save(buffer, "PNG")
    image = {"b64_json": base64.b64encode(buffer.getvalue()).decode(), "format": "png"}
    cfg = configuration(vision, "custom", pipeline_task="image-classification")
    with client_of(cfg) as client:
        url = f"{client.base_url}infer"
        body = {"model": "tiny", "inputs": {"image": image, "top_k": 2}}
        answer = httpx.post(url, json=body).json()
        assert_alike(answer["outputs"], plain(create_image(3), top_k=2))
        for inputs, message in (
            ({"image": "x"}, "`image` must be an image, as {b64_json, format}"),
            ({"image": image, "top_k": 0}, "`top_k` must be at least 1, not 0"),
            (
                {"image": image, "treshold": 1},
                "unknown field `treshold`; the fields are image, top_k, ",
            ),
        ):
            refused = httpx.post(url, json={"model": "tiny", "inputs": inputs})
            assert refused.status_code == 400
            assert refused.json()["error"]["message"].startswith(message)


@pytest.mark.parametrize(
    ("task", "inputs"),
    [
        ("fill-mask", {"text": "the [MASK] runs", "top_k": 3}),
        ("token-classification", {"text": "the cat runs"}),
        ("zero-shot-classification", {"text": "the cat", "candidate_labels": ["red", "blue"]}),
        ("image-feature-extraction", None),
    ],
)
def test_other_tasks(
    task: str, inputs: Any, classifier: Path, vision: Path, tmp_path: Path
) -> None:
    path = tmp_path
    if task == "image-feature-extraction":
        path, inputs = vision, {"image": create_image(1)}
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(classifier)
        config = transformers.BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=48,
            id2label={0: "contradiction", 1: "neutral", 2: "entailment"},
            label2id={"contradiction": 0, "neutral": 1, "entailment": 2},
        )
        kinds: Any = {
            "fill-mask": transformers.BertForMaskedLM,
            "token-classification": transformers.BertForTokenClassification,
            "zero-shot-classification": transformers.BertForSequenceClassification,
        }
        kinds[task](config).save_pretrained(path)
        tokenizer.save_pretrained(path)
    plain: Any = transformers.pipeline(task, str(path))
    value, *rest = inputs.values()
    names = list(inputs)[1:]
    with loaded(configuration(path, "custom", pipeline_task=task)) as model:
        found = model.infer(inputs)
    expected = plain(value, **dict(zip(names, rest, strict=True)))
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found["labels"] == expected["labels"]
    elif task == "image-feature-extraction":
        numpy.testing.assert_allclose(found, expected, atol=1e-5)
    else:
        keys = [key for key in expected[0] if key != "score"]
        assert [[item[key] for key in keys] for item in found] == [
            [item[key] for key in keys] for item in expected
        ]


def test_a_text_without_a_mask_is_the_clients_fault(classifier: Path, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(classifier)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=4
    )
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with (
        loaded(configuration(tmp_path, "custom", pipeline_task="fill-mask")) as model,
        pytest.raises(RequestError, match=r"refuses the inputs: No mask_token \(\[MASK\]\)"),
    ):
        model.infer({"text": "the cat runs"})


def test_weights_of_another_kind_are_refused(classifier: Path) -> None:
    cfg = configuration(classifier, "custom", pipeline_task="image-classification")
    with pytest.raises(ConfigError, match="cannot be loaded for image-classification"):
        loaded(cfg).__enter__()


def test_labels_are_those_of_the_model(classifier: Path) -> None:
    cfg = configuration(classifier, "custom", pipeline_task="text-classification")
    with loaded(cfg) as model:
        answer = model.infer({"text": "cat", "top_k": 4})
    assert {item["label"] for item in answer} == set(LABELS)
