"""Speech recognition of the family `hf-transformers`, against the plain library, and over HTTP."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path
from typing import Any

import httpx
import numpy
import openai
import pytest
import soundfile
import transformers

from deployments.hf_transformers.pipelines.inputs import Inputs
from tests.support.tiny_transformers.speech import SAMPLING_RATE, WINDOW_S, make_tiny_speech
from tests.support.transformers_models import client_of, configuration, loaded
from truthgpt_serve.cancellation import Call, CallCancelledError
from truthgpt_serve.errors import RequestError, UnsupportedError

TASK = "automatic-speech-recognition"


def recording(pitch: int, seconds: float = 2.0) -> Any:
    """Returns a tone that wavers, float32 `[samples]`."""
    at = numpy.arange(int(seconds * SAMPLING_RATE)) / SAMPLING_RATE
    tone = numpy.sin(2 * numpy.pi * 150 * 2**pitch * at * (1 + 0.1 * numpy.sin(3 * at)))
    return (tone / 2).astype(numpy.float32)


def audio_file(samples: Any, form: str = "WAV", rate: int = SAMPLING_RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=form)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_speech(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="module")
def plain(speech: Path) -> Any:
    return transformers.pipeline(TASK, str(speech))


@pytest.fixture(scope="module")
def model(speech: Path) -> Any:
    with loaded(configuration(speech, "custom", pipeline_task=TASK)) as model:
        yield model


def run_plain(plain: Any, samples: Any, **options: Any) -> Any:
    return plain({"raw": samples, "sampling_rate": SAMPLING_RATE}, **options)


def test_a_batch_gives_what_each_recording_gives_alone(model: Any, plain: Any) -> None:
    recordings = [recording(index, 1 + index) for index in range(5)]
    found = model.infer_batch([{"audio": samples} for samples in recordings])
    expected = [run_plain(plain, samples)["text"].strip() for samples in recordings]
    assert [answer["text"] for answer in found] == expected
    assert len(set(expected)) > 1, "the model hears a difference"
    assert [answer["duration"] for answer in found] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("dtype", "middle", "most"),
    [("uint8", 128, 127), ("uint16", 32768, 32767), ("int16", 0, 32767)],
)
def test_whole_numbers_are_heard_as_the_same_sound(dtype: str, middle: int, most: int) -> None:
    samples = recording(1)
    whole = (middle + numpy.rint(samples * most)).astype(dtype)
    heard = Inputs.model_validate({"audio": whole}).audio
    assert heard is not None
    numpy.testing.assert_allclose(heard, samples, atol=1.5 / most)


def test_languages_and_prompts_reach_the_model(model: Any, plain: Any) -> None:
    samples = recording(1)
    found = model.infer({"audio": samples, "language": "de"})
    kwargs = {"language": "de", "task": "transcribe"}
    assert found["text"] == run_plain(plain, samples, generate_kwargs=kwargs)["text"].strip()
    assert found["language"] == "german"
    prompt_ids = plain.tokenizer.get_prompt_ids("names", return_tensors="pt")
    expected = run_plain(plain, samples, generate_kwargs={"prompt_ids": prompt_ids})
    prompted = model.infer({"audio": samples, "prompt": "names"})
    assert prompted["text"] == expected["text"].strip()
    cut = model.infer({"audio": samples, "prompt": "long " * 200})
    assert cut == model.infer({"audio": samples, "prompt": "long " * 300}), "its end counts"
    with pytest.raises(RequestError, match="`language` is 'xx'; this model supports de, en, fr"):
        model.infer({"audio": samples, "language": "xx"})


def test_a_very_long_prompt_is_read_from_its_end(model: Any) -> None:
    samples = recording(1)
    began = time.perf_counter()
    cut = model.infer({"audio": samples, "prompt": "long " * 200_000})
    assert time.perf_counter() - began < 10, "reading all of it took half a minute"
    assert cut == model.infer({"audio": samples, "prompt": "long " * 300})


def test_the_smallest_temperature_takes_no_infinite_scores(model: Any) -> None:
    found = model.infer({"audio": recording(1), "temperature": 1e-300})
    assert found == model.infer({"audio": recording(1), "temperature": 0.01})


def test_a_temperature_is_repeatable(model: Any) -> None:
    samples = recording(1)
    first, again = (model.infer({"audio": samples, "temperature": 0.9}) for _ in range(2))
    assert first["text"] == again["text"]
    assert first["text"] != model.infer({"audio": samples})["text"]


def test_times_lie_inside_the_recording(model: Any, plain: Any) -> None:
    samples = recording(2)
    found = model.infer({"audio": samples, "timestamps": "segment", "detect_language": True})
    chunks = run_plain(plain, samples, return_timestamps=True)["chunks"]
    first = [item["text"] for item in found["segments"] if item["seek"] == 0]
    assert first == [chunk["text"].strip() for chunk in chunks[: len(first)]]
    for item in found["segments"]:
        assert 0 <= item["start"] <= item["end"] <= 2
    assert found["language"] in ("english", "german", "french")
    words = model.infer({"audio": samples, "timestamps": "word"})["words"]
    assert all(set(word) == {"word", "start", "end"} for word in words)


def test_a_recording_longer_than_the_window_is_heard_to_its_end(model: Any, plain: Any) -> None:
    samples = recording(3, 2 * WINDOW_S + 1)
    found = model.infer({"audio": samples})
    assert found["text"] == run_plain(plain, samples, return_timestamps=True)["text"].strip()
    assert found["segments"][-1]["end"] > WINDOW_S
    short, long = model.infer_batch([{"audio": recording(1)}, {"audio": samples}])
    assert long["text"] == found["text"]
    assert short["text"] == model.infer({"audio": recording(1)})["text"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "`audio` is required"),
        ({"audio": numpy.zeros((2, 2), "float32")}, "`audio` must be an array of one dimension"),
        ({"audio": numpy.zeros(0, "float32")}, "`audio` has no samples"),
        ({"audio": numpy.full(9, numpy.nan, "float32")}, "samples that are not finite"),
        ({"audio": numpy.zeros(9, "float32"), "sampling_rate": 8000}, "must be 16000"),
        ({"audio": numpy.zeros(9, "float32"), "speed": 2}, "unknown field `speed`"),
        (
            {"audio": numpy.zeros(9, "float32"), "temperature": 2},
            "`temperature` must be at most 1, not 2",
        ),
        ({"audio": numpy.zeros(16000 * 1801, "int16")}, "`audio` is longer than 1800 s"),
    ],
)
def test_a_wrong_input_is_refused(model: Any, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        model.infer(inputs)
    assert str(caught.value.param).startswith("inputs.")


def test_a_ctc_model_gives_words_but_no_segments(tmp_path: Path) -> None:
    import json

    vocabulary = {"<pad>": 0, "<unk>": 1, "|": 2, **{c: i for i, c in enumerate("abcdef", 3)}}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), pad_token="<pad>")
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(tmp_path)
    config = transformers.Wav2Vec2Config(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        conv_dim=(16, 16),
        conv_kernel=(10, 3),
        conv_stride=(5, 2),
        num_feat_extract_layers=2,
        feat_extract_norm="layer",
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        pad_token_id=0,
    )
    transformers.Wav2Vec2ForCTC(config).save_pretrained(tmp_path)
    plain: Any = transformers.pipeline(TASK, str(tmp_path))
    recordings = [recording(index, 0.2 + 0.1 * index) for index in range(3)]
    with loaded(configuration(tmp_path, "custom", pipeline_task=TASK)) as model:
        found = model.infer_batch([{"audio": samples} for samples in recordings])
        expected = [run_plain(plain, samples)["text"].strip() for samples in recordings]
        assert [answer["text"] for answer in found] == expected
        assert model.infer({"audio": recordings[0], "timestamps": "word"})["words"]
        with pytest.raises(UnsupportedError, match="no times of 'segment'; it gives word"):
            model.infer({"audio": recordings[0], "timestamps": "segment"})
        with pytest.raises(UnsupportedError, match="does not take `language`"):
            model.infer({"audio": recordings[0], "language": "en"})


def test_over_http_with_the_openai_client(speech: Path, plain: Any) -> None:
    samples = recording(2)
    expected = run_plain(plain, samples)["text"].strip()
    timed = run_plain(plain, samples, return_timestamps=True)
    with client_of(configuration(speech, "custom", pipeline_task=TASK)) as client:
        create: Any = client.audio.transcriptions.create
        file = ("speech.wav", audio_file(samples))
        answer = create(model="tiny", file=file)
        assert (answer.text, answer.usage.seconds) == (expected, 2)
        assert create(model="tiny", file=file, response_format="text") == expected + "\n"

        verbose = create(model="tiny", file=file, response_format="verbose_json")
        assert verbose.duration == 2
        assert verbose.language in ("english", "german", "french")
        assert [s.id for s in verbose.segments] == list(range(len(timed["chunks"])))
        assert verbose.text == timed["text"].strip()
        words = create(
            model="tiny",
            file=file,
            response_format="verbose_json",
            timestamp_granularities=["word"],
        )
        assert words.words

        srt = create(model="tiny", file=file, response_format="srt")
        assert re.match(r"1\n00:00:\d\d,\d{3} --> 00:00:\d\d,\d{3}\n", srt)
        vtt = create(model="tiny", file=file, response_format="vtt")
        assert re.match(r"WEBVTT\n\n00:00:\d\d\.\d{3} --> 00:00:\d\d\.\d{3}\n", vtt)

        events = list(create(model="tiny", file=file, stream=True))
        assert [event.type for event in events] == [
            "transcript.text.delta",
            "transcript.text.done",
        ]
        assert events[-1].text == expected

        german = create(model="tiny", file=file, language="de", prompt="x", temperature=0)
        assert german.text

        with pytest.raises(openai.BadRequestError, match="this model supports de, en, fr"):
            create(model="tiny", file=file, language="xx")
        with pytest.raises(openai.BadRequestError, match="which has no text routes"):
            client.completions.create(model="tiny", prompt="x")


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG"])
def test_files_of_other_formats_and_rates(form: str, speech: Path, plain: Any) -> None:
    samples = recording(2)
    stereo = numpy.stack([samples, samples], axis=1)
    with client_of(configuration(speech, "custom", pipeline_task=TASK)) as client:
        create: Any = client.audio.transcriptions.create
        answer = create(model="tiny", file=(f"speech.{form}", audio_file(stereo, form)))
        if form != "OGG":  # which loses some of the sound
            assert answer.text == run_plain(plain, samples)["text"].strip()
        other = create(model="tiny", file=("x", audio_file(samples, form, rate=24000)))
        assert other.usage.seconds == round(2 * SAMPLING_RATE / 24000)


def test_bad_forms_are_refused(speech: Path) -> None:
    cfg = configuration(speech, "custom", pipeline_task=TASK, max_audio_s=3)
    with client_of(cfg) as client:
        url = f"{client.base_url}audio/transcriptions"
        good = ("speech.wav", audio_file(recording(1)))

        def post(fields: dict[str, Any], file: Any = good) -> tuple[int, str]:
            files = {"file": file} if file is not None else {"none": ("", b"text")}
            answer = httpx.post(url, data={"model": "tiny", **fields}, files=files)
            return answer.status_code, answer.json()["error"]["message"]

        assert post({}, None)[1] == "`file` is required"
        assert post({}, ("x.wav", b""))[1] == "`file` is empty"
        status, message = post({}, ("x.wav", b"RIFF not a recording"))
        assert (status, "`file` cannot be read" in message) == (400, True)
        status, message = post({}, ("x.wav", audio_file(recording(1, 4))))
        assert (status, message) == (413, "`file` lasts longer than 3 s, the most this model takes")
        assert post({"model": "other"})[0] == 404
        for fields, part in (
            ({"response_format": "xml"}, "`response_format` must be one of json, text, srt"),
            ({"temperature": "2"}, "`temperature` must be at most 1, not 2.0"),
            ({"temperature": "warm"}, "`temperature` must be a number, not 'warm'"),
            ({"stream": "maybe"}, "`stream` must be true or false"),
            ({"stream": "true", "response_format": "srt"}, "cannot be streamed"),
            ({"timestamp_granularities[]": "word"}, "needs `response_format` verbose_json"),
            (
                {"timestamp_granularities[]": "syllable", "response_format": "verbose_json"},
                "`timestamp_granularities` must be a list of segment or word",
            ),
            ({"include[]": "logprobs"}, "has no log probabilities"),
        ):
            status, message = post(fields)
            assert status == 400
            assert part in message
        answer = httpx.post(url, json={"model": "tiny"})
        assert answer.status_code == 400
        assert "this route takes a form" in answer.json()["error"]["message"]


def test_a_cancelled_call_ends_within_a_token(model: Any) -> None:
    call = Call()
    steps: list[int] = []
    decoder = model._engine.pipeline.model.model.decoder

    def count(*_: Any) -> None:
        steps.append(1)
        if len(steps) == stop_at:
            call.cancel()

    stop_at = 0
    long = recording(1, 3 * WINDOW_S)
    hook = decoder.register_forward_hook(count)
    try:
        model.infer({"audio": long})
        whole = len(steps)
        assert whole > 10
        steps.clear()
        stop_at = 3
        with pytest.raises(CallCancelledError):
            call.run(lambda: model.infer({"audio": long}))
    finally:
        hook.remove()
    assert len(steps) == 3
    assert model.infer({"audio": recording(1)})["text"]
