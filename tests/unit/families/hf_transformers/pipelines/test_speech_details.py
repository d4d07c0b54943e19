"""What Whisper says of each segment, against its own numbers, computed here another way."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
import transformers
from openai.types.audio import TranscriptionVerbose, Translation, TranslationVerbose
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

from tests.support.tiny_transformers.speech import SAMPLING_RATE, WINDOW_S, make_tiny_speech
from tests.support.transformers_models import client_of, configuration, loaded
from tests.unit.families.hf_transformers.pipelines.test_speech import TASK, audio_file, recording
from truthgpt_serve.errors import RequestError, UnsupportedError

DETAILS = {
    "id", "seek", "start", "end", "text", "tokens", "temperature", "avg_logprob",
    "compression_ratio", "no_speech_prob",
}  # fmt: skip
TOLERANCE = 2e-6
"""Of numbers in float32: another order of sums makes 3e-7, another recording 1e-4 and more."""


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_speech(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="module")
def model(speech: Path) -> Any:
    with loaded(configuration(speech, "custom", pipeline_task=TASK)) as model:
        yield model


@pytest.fixture(scope="module")
def plain(speech: Path) -> Any:
    return transformers.pipeline(TASK, str(speech))


class Forced:
    """The model's own numbers for tokens that are given: one forward pass, no generation."""

    def __init__(self, plain: Any, samples: Any, start: list[int], tokens: list[int]) -> None:
        config = plain.model.generation_config
        # Of the whole recording, as its loudest part sets the scale, and then of its first window.
        features = plain.feature_extractor(
            samples, sampling_rate=SAMPLING_RATE, return_tensors="pt", truncation=False
        ).input_features[..., : 100 * WINDOW_S]
        ids = torch.tensor([start + tokens])
        with torch.inference_mode():
            logits = plain.model(input_features=features, decoder_input_ids=ids).logits[0]
        filter_times = WhisperTimeStampLogitsProcessor(config, begin_index=len(start))
        self.logprobs = []
        for at, token in enumerate(tokens):
            place = len(start) + at
            allowed = filter_times(ids[:, :place], logits[place - 1 : place].clone())
            self.logprobs.append(float(torch.log_softmax(allowed[0], dim=-1)[token]))
        place = len(start) + len(tokens)
        allowed = filter_times(ids, logits[place - 1 : place].clone())
        self.end = float(torch.log_softmax(allowed[0], dim=-1)[config.eos_token_id])
        silence = plain.tokenizer.convert_tokens_to_ids("<|nospeech|>")
        self.no_speech = float(logits[0].softmax(dim=-1)[silence])


def start_of(plain: Any, language: str, task: str = "transcribe") -> list[int]:
    names = ["<|startoftranscript|>", f"<|{language}|>", f"<|{task}|>"]
    found: list[int] = plain.tokenizer.convert_tokens_to_ids(names)
    return found


def check_first_window(plain: Any, samples: Any, found: Any, start: list[int]) -> None:
    segments = [item for item in found["segments"] if item["seek"] == 0]
    assert segments
    tokens = [token for item in segments for token in item["tokens"]]
    forced = Forced(plain, samples, start, tokens)
    begin = 0
    for item in segments:
        end = begin + len(item["tokens"])
        total = sum(forced.logprobs[begin:end])
        expected = [total / (end - begin + 1)]
        if end == len(tokens):  # Whisper counts the token that ends the text, if there is one
            expected.append((total + forced.end) / (end - begin + 1))
        assert any(math.isclose(item["avg_logprob"], one, rel_tol=TOLERANCE) for one in expected)
        assert math.isclose(item["no_speech_prob"], forced.no_speech, rel_tol=TOLERANCE)
        begin = end


@pytest.mark.parametrize(("pitch", "language"), [(0, "de"), (1, "fr"), (3, "en")])
def test_the_numbers_are_the_models_own(model: Any, plain: Any, pitch: int, language: str) -> None:
    samples = recording(pitch, 3)
    found = model.infer({"audio": samples, "timestamps": "segment", "language": language})
    check_first_window(plain, samples, found, start_of(plain, language))
    for item in found["segments"]:
        text = item["text"].encode()
        assert item["compression_ratio"] == len(text) / len(zlib.compress(text))
        assert item["temperature"] == 0
        decoded = plain.tokenizer.decode(item["tokens"], skip_special_tokens=True)
        assert decoded.strip() == item["text"]


def test_other_recordings_have_other_numbers(model: Any) -> None:
    found = [
        model.infer({"audio": recording(pitch), "timestamps": "segment"})["segments"]
        for pitch in (0, 3)
    ]
    assert found[0][0]["no_speech_prob"] != found[1][0]["no_speech_prob"]
    numbers = [[item["avg_logprob"] for item in segments] for segments in found]
    assert numbers[0] != numbers[1]


def test_a_batch_has_the_numbers_of_each_alone(model: Any) -> None:
    recordings = [recording(index, 1 + index) for index in range(4)]
    wanted = {"timestamps": ["segment", "word"]}
    alone = [model.infer({"audio": samples, **wanted}) for samples in recordings]
    together = model.infer_batch([{"audio": samples, **wanted} for samples in recordings])
    for one, other in zip(alone, together, strict=True):
        assert one["text"] == other["text"]
        assert one["words"] == other["words"]
        for left, right in zip(one["segments"], other["segments"], strict=True):
            assert left["tokens"] == right["tokens"]
            assert left["seek"] == right["seek"]
            for name in ("avg_logprob", "no_speech_prob", "compression_ratio"):
                assert left[name] == pytest.approx(right[name], rel=TOLERANCE, abs=0), name


def test_windows_of_a_long_recording(model: Any, plain: Any) -> None:
    seconds = 2 * WINDOW_S + 1
    samples = recording(3, seconds)
    found = model.infer({"audio": samples, "timestamps": "segment", "language": "en"})
    seeks = [item["seek"] for item in found["segments"]]
    assert seeks == sorted(seeks)
    assert seeks[0] == 0
    assert len(set(seeks)) >= 3
    assert seeks[-1] <= 100 * seconds
    check_first_window(plain, samples, found, start_of(plain, "en"))
    assert len({item["no_speech_prob"] for item in found["segments"]}) == len(set(seeks))


def test_a_prompt_and_a_temperature(model: Any) -> None:
    inputs = {"audio": recording(1), "timestamps": "segment", "temperature": 0.6, "prompt": "names"}
    found, again = model.infer(inputs), model.infer(inputs)
    assert found == again
    assert {item["temperature"] for item in found["segments"]} == {0.6}
    for item in found["segments"]:
        assert item["avg_logprob"] < 0
        assert 0 < item["no_speech_prob"] < 1


def test_words_and_segments_together_are_those_of_each(model: Any) -> None:
    samples = recording(2)
    both = model.infer({"audio": samples, "timestamps": ["segment", "word"]})
    words = model.infer({"audio": samples, "timestamps": "word"})
    segments = model.infer({"audio": samples, "timestamps": "segment"})
    assert both["segments"] == segments["segments"]
    assert both["words"] == words["words"]
    assert both["words"]


def test_a_translation_is_another_task(model: Any, plain: Any) -> None:
    samples = recording(0, 3)
    inputs = {"audio": samples, "timestamps": "segment", "language": "de"}
    found = model.infer({**inputs, "task": "translate"})
    assert found["text"] != model.infer(inputs)["text"]
    check_first_window(plain, samples, found, start_of(plain, "de", "translate"))
    kwargs = {"language": "de", "task": "translate"}
    expected = plain({"raw": samples, "sampling_rate": SAMPLING_RATE}, generate_kwargs=kwargs)
    plainly = model.infer({"audio": samples, "language": "de", "task": "translate"})
    assert plainly["text"] == expected["text"].strip()
    with pytest.raises(RequestError, match="must be transcribe or translate"):
        model.infer({"audio": samples, "task": "sing"})


def test_a_model_of_one_language_does_not_translate(speech: Path, tmp_path: Path) -> None:
    model: Any = transformers.WhisperForConditionalGeneration.from_pretrained(speech)
    config = model.generation_config
    del config.lang_to_id, config.task_to_id
    config.is_multilingual = False
    model.save_pretrained(tmp_path)
    transformers.WhisperTokenizer.from_pretrained(speech).save_pretrained(tmp_path)
    transformers.WhisperFeatureExtractor.from_pretrained(speech).save_pretrained(tmp_path)
    with loaded(configuration(tmp_path, "custom", pipeline_task=TASK)) as english:
        assert english.operations == ("transcription",)
        found = english.infer({"audio": recording(1), "timestamps": "segment"})
        assert all(0 < item["no_speech_prob"] < 1 for item in found["segments"])
        with pytest.raises(UnsupportedError, match="does not translate"):
            english.infer({"audio": recording(1), "task": "translate"})


@contextmanager
def asking(speech: Path) -> Iterator[openai.OpenAI]:
    with client_of(configuration(speech, "custom", pipeline_task=TASK)) as client:
        yield client


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_over_http(speech: Path) -> None:
    file = ("speech.wav", audio_file(recording(2)))
    with asking(speech) as client:
        create: Any = client.audio.transcriptions.create
        answer = create(
            model="tiny",
            file=file,
            response_format="verbose_json",
            timestamp_granularities=["word", "segment"],
        )
        verbose = TranscriptionVerbose.model_validate(answer.model_dump(), strict=True)
        assert verbose.segments
        assert verbose.words
        assert {name for item in verbose.segments for name in item.model_fields_set} == DETAILS
        assert [item.id for item in verbose.segments] == list(range(len(verbose.segments)))

        translate: Any = client.audio.translations.create
        plain = translate(model="tiny", file=file, prompt="names", temperature=0)
        assert Translation.model_validate(plain.model_dump(), strict=True).text
        whole = translate(model="tiny", file=file, response_format="verbose_json")
        translated = TranslationVerbose.model_validate(whole.model_dump(), strict=True)
        assert translated.language == "english"
        assert translated.duration == 2
        assert translated.segments
        assert {name for item in translated.segments for name in item.model_fields_set} == DETAILS
        assert whole.model_dump()["task"] == "translate"
        assert translate(model="tiny", file=file, response_format="text").strip()
        assert translate(model="tiny", file=file, response_format="srt").startswith("1\n00:00:")
        assert translate(model="tiny", file=file, response_format="vtt").startswith("WEBVTT\n\n")
        with pytest.raises(openai.BadRequestError, match="comes whole"):
            translate(model="tiny", file=file, extra_body={"stream": "true"})
