"""The transcription route for classes as users write them, and the reading of recordings."""

from __future__ import annotations

import io
import sys
import threading
import wave
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy
import openai
import pytest
import soundfile

from tests.support.sample_models import Base, spec_of
from tests.support.servers import serve_asgi
from truthgpt_serve.errors import RequestError, TooLargeError, TruthGPTError, UnsupportedError
from truthgpt_serve.server import create_app
from truthgpt_serve.server.audio import decode
from truthgpt_serve.server.audio.decode import decode_audio


def tone(seconds: float = 1.0, rate: int = 16000) -> Any:
    at = numpy.arange(int(seconds * rate)) / rate
    return (numpy.sin(2 * numpy.pi * 440 * at) / 2).astype("float32")


def wave_file(samples: Any, width: int = 2, rate: int = 16000) -> bytes:
    """Returns a WAV file of integers with `width` bytes; `[samples]` or `[samples, channels]`."""
    shaped = samples if samples.ndim == 2 else samples[:, None]
    scaled = numpy.round(shaped * (2 ** (8 * width - 1) - 1)).astype("<i8")
    if width == 1:
        scaled = scaled + 128
    raw = scaled.astype("<i8").tobytes()
    data = b"".join(raw[at : at + width] for at in range(0, len(raw), 8))
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((shaped.shape[1], width, rate, len(shaped), "NONE", ""))
        file.writeframes(data)
    return buffer.getvalue()


class Listener(Base):
    """Says what it got."""

    operations = ("transcription",)
    sampling_rate = 8000
    max_audio_s = 5

    def infer(self, inputs: dict[str, Any]) -> Any:
        self.events.append(inputs)
        audio = inputs["audio"]
        answer: dict[str, Any] = {"text": f"{audio.dtype} {len(audio)}"}
        if inputs.get("timestamps") == "segment":
            answer["segments"] = [
                {"text": "first --> part\n\nline", "start": 0, "end": 0.5},
                {"text": "second", "start": 3661.0014, "end": 3662},
            ]
        return answer


class Interpreter(Base):
    """Gives words, and segments with what it knows of them; translates."""

    operations = ("transcription", "translation")

    def infer(self, inputs: dict[str, Any]) -> Any:
        self.events.append(inputs)
        times = {"start": 0.0, "end": 1.0}
        segment = {"text": "aaaa aaaa", **times, "avg_logprob": -0.5, "speaker": "x"}
        words = [{"word": "aaaa", **times}]
        return {"text": inputs.get("task", "as it is"), "segments": [segment], "words": words}


class Speaker(Listener):
    """Streams."""

    def stream(self, inputs: dict[str, Any]) -> Iterator[Any]:
        yield from ({"text": text} for text in ("one ", "", "two"))


class Mute(Base):
    operations = ("transcription",)

    def infer(self, inputs: dict[str, Any]) -> Any:
        return {"words": []}


@contextmanager
def serving(cls: type) -> Iterator[openai.OpenAI]:
    app = create_app(spec_of(cls), {"task": "custom"}, name="sample")
    with (
        serve_asgi(app, lifespan="on") as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=20) as client,
    ):
        yield client


def test_a_class_of_ones_own() -> None:
    with serving(Listener) as client:
        create: Any = client.audio.transcriptions.create
        file = ("a.wav", wave_file(tone()))
        answer = create(model="sample", file=file, language="en", prompt="p", temperature=0.5)
        assert answer.text == "float32 8000", "at the class's own rate"
        names = {thread.name for thread in threading.enumerate()}
        assert "recordings_0" in names, "as the refusal of a full queue names it"
        got = Listener.last.events[-1]
        assert {key: got[key] for key in got if key != "audio"} == {
            "sampling_rate": 8000,
            "language": "en",
            "prompt": "p",
            "temperature": 0.5,
        }
        srt = create(model="sample", file=file, response_format="srt")
        assert srt == (
            "1\n00:00:00,000 --> 00:00:00,500\nfirst -> part line\n\n"
            "2\n01:01:01,001 --> 01:01:02,000\nsecond\n\n"
        )
        vtt = create(model="sample", file=file, response_format="vtt")
        assert vtt.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:00.500\nfirst")
        verbose = create(model="sample", file=file, response_format="verbose_json")
        assert [(s.id, s.end) for s in verbose.segments] == [(0, 0.5), (1, 3662)]
        assert Listener.last.events[-1]["detect_language"] is True
        with pytest.raises(openai.BadRequestError, match="this model gives no times of words"):
            create(
                model="sample",
                file=file,
                response_format="verbose_json",
                timestamp_granularities=["word"],
            )
        with pytest.raises(openai.APIStatusError, match="lasts longer than 5 s") as caught:
            create(model="sample", file=("a.wav", wave_file(tone(6))))
        assert caught.value.status_code == 413


def test_what_a_class_says_of_its_segments_passes() -> None:
    with serving(Interpreter) as client:
        create: Any = client.audio.transcriptions.create
        answer = create(
            model="sample",
            file=("a.wav", wave_file(tone())),
            response_format="verbose_json",
            temperature=0.25,
            timestamp_granularities=["segment", "word"],
        )
        assert Interpreter.last.events[-1]["timestamps"] == ["segment", "word"]
        (segment,) = answer.model_dump(exclude_unset=True)["segments"]
        assert segment == {
            "id": 0,
            "seek": 0,
            "text": "aaaa aaaa",
            "start": 0.0,
            "end": 1.0,
            "avg_logprob": -0.5,
            "speaker": "x",
            "temperature": 0.25,
            "compression_ratio": 9 / len(zlib.compress(b"aaaa aaaa")),
        }
        assert answer.words[0].word == "aaaa"


def test_a_class_that_gives_one_kind_of_times_is_not_taken_for_both() -> None:
    with serving(Listener) as client:
        create: Any = client.audio.transcriptions.create
        with pytest.raises(openai.BadRequestError, match="gives no times of segments"):
            create(
                model="sample",
                file=("a.wav", wave_file(tone())),
                response_format="verbose_json",
                timestamp_granularities=["segment", "word"],
            )


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the client's own
def test_translations() -> None:
    file = ("a.wav", wave_file(tone()))
    with serving(Interpreter) as client:
        translate: Any = client.audio.translations.create
        answer = translate(model="sample", file=file)
        assert answer.model_dump() == {"text": "translate"}
        assert Interpreter.last.events[-1]["task"] == "translate"
        assert translate(model="sample", file=file, response_format="text") == "translate\n"
        verbose = translate(model="sample", file=file, response_format="verbose_json")
        assert (verbose.language, verbose.duration, verbose.text) == ("english", 1, "translate")
    with serving(Listener) as client:
        translate = client.audio.translations.create
        with pytest.raises(openai.BadRequestError, match="does not translate recordings"):
            translate(model="sample", file=file)


def test_streams_with_and_without_a_method_for_them() -> None:
    file = ("a.wav", wave_file(tone()))
    for cls, deltas in ((Speaker, ["one ", "two"]), (Listener, ["float32 8000"])):
        with serving(cls) as client:
            create: Any = client.audio.transcriptions.create
            events = list(create(model="sample", file=file, stream=True))
            assert [event.delta for event in events[:-1]] == deltas
            assert events[-1].text == "".join(deltas)


def test_a_part_with_the_type_of_a_medium_is_a_file_without_a_name() -> None:
    with serving(Listener) as client:
        for kind in ("audio/wav", "application/octet-stream"):
            answer = httpx.post(
                f"{client.base_url}audio/transcriptions",
                data={"model": "sample"},
                files={"file": (None, wave_file(tone()), kind)},
            )
            assert answer.json()["text"] == "float32 8000"
        answer = httpx.post(
            f"{client.base_url}audio/transcriptions",
            files={"model": (None, "sample"), "file": (None, wave_file(tone()), "text/plain")},
        )
        assert answer.json()["error"]["message"] == "`file` must be a file, not text"


def test_a_class_that_breaks_the_contract_is_named() -> None:
    with serving(Mute) as client:
        files = {"file": ("a.wav", wave_file(tone()))}
        answer = httpx.post(
            f"{client.base_url}audio/transcriptions", data={"model": "sample"}, files=files
        )
        assert answer.status_code == 500
        message = answer.json()["error"]["message"]
        assert message == "Mute.infer returned a dict without a 'text' of type str"


def test_other_classes_do_not_transcribe() -> None:
    with serving(Parrot) as client:
        create: Any = client.audio.transcriptions.create
        with pytest.raises(openai.BadRequestError, match="does not transcribe recordings"):
            create(model="sample", file=("a.wav", wave_file(tone())))


class Parrot(Base):
    def infer(self, inputs: dict[str, Any]) -> Any:
        return inputs


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_wave_files_of_all_widths(width: int) -> None:
    samples = tone()
    found = decode_audio(wave_file(samples, width), 16000, 10)
    assert found.dtype == numpy.float32
    numpy.testing.assert_allclose(found, samples, atol=2.0 ** (2 - 8 * width) + 1e-6)
    stereo = numpy.stack([samples, -samples], axis=1)
    mixed = decode_audio(wave_file(stereo, width), 16000, 10)
    numpy.testing.assert_allclose(mixed, 0, atol=2.0 ** (2 - 8 * width) + 1e-6)


def test_another_rate_is_changed_well() -> None:
    found = decode_audio(wave_file(tone(1, 44100), rate=44100), 16000, 10)
    assert abs(len(found) - 16000) <= 1
    numpy.testing.assert_allclose(found[1000:15000], tone()[1000:15000], atol=2e-3)


def refusal(data: bytes) -> TruthGPTError:
    with pytest.raises(TruthGPTError) as caught:
        decode_audio(data, 16000, 2)
    return caught.value


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("soxr", "soundfile"):
        monkeypatch.setitem(sys.modules, package, None)
        error = refusal(wave_file(tone(1, 8000), rate=8000))
        assert isinstance(error, UnsupportedError)
        assert f"lacks the package {package} (extra `audio`)" in error.message


def test_damaged_and_long_recordings_are_refused() -> None:
    assert isinstance(refusal(b"RIFF nonsense"), RequestError)
    assert isinstance(refusal(wave_file(tone(3))), TooLargeError)


@pytest.mark.parametrize("form", ["FLAC", "OGG", "WAV"])
def test_a_small_file_does_not_become_many_samples(form: str) -> None:
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", 16000, 1, format=form) as file:
        for _ in range(600):  # its encoder of OGG crashes over one long array
            file.write(numpy.zeros(16000, "float32"))
    assert isinstance(refusal(buffer.getvalue()), TooLargeError)
    with pytest.raises(RequestError):
        decode_audio(buffer.getvalue()[:10], 16000, 2)


def test_the_channels_of_a_recording_have_a_limit_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decode, "MAX_SAMPLES", 100_000)
    for channels, fits in ((2, True), (8, False)):
        buffer = io.BytesIO()
        with soundfile.SoundFile(buffer, "w", 16000, channels, format="FLAC") as file:
            file.write(numpy.zeros((30_000, channels), "float32"))
        if fits:
            assert len(decode_audio(buffer.getvalue(), 16000, 2)) == 30_000
            continue
        error = refusal(buffer.getvalue())
        assert (error.status, error.code) == (413, "audio_too_long")
        assert "more than 100000 samples in all its channels" in error.message


@pytest.mark.parametrize("rate", [500, 500000])
def test_absurd_rates_are_refused(rate: int) -> None:
    assert "samples a second; allowed are" in refusal(wave_file(tone(0.5), rate=rate)).message


def test_empty_recordings_are_refused() -> None:
    assert refusal(b"").message == "`file` is empty"
    assert refusal(wave_file(tone(0))).message == "`file` has no samples"


class Strict(Base):
    """Refuses inputs, as a family or a user's class does."""

    operations = ("transcription",)

    def infer(self, inputs: dict[str, Any]) -> Any:
        name = "audio" if "language" not in inputs else "language"
        place = name if "prompt" in inputs else f"inputs.{name}"
        raise RequestError(f"`{name}` is wrong", param=place)


@pytest.mark.parametrize("more", [{}, {"prompt": "p"}])
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_of_the_class_names_the_forms_field(more: dict[str, str], *, stream: bool) -> None:
    with serving(Strict) as client:
        create: Any = client.audio.transcriptions.create
        for fields, name in (({}, "file"), ({"language": "en"}, "language")):
            file = ("a.wav", wave_file(tone()))
            with pytest.raises(openai.BadRequestError, match=f"`{name}` is wrong") as caught:
                create(model="sample", file=file, stream=stream, **more, **fields)
            assert caught.value.param == name
