"""OpenAI's answers to recordings as bytes: JSON, text, SubRip and WebVTT, and a stream's events.

Shapes: `Transcription`, `TranscriptionVerbose`, `Translation`, `TranslationVerbose` and
`transcript.text.*` of OpenAI's API reference.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

from truthgpt_serve.http.json_body import encode_json
from truthgpt_serve.http.sse import DONE_EVENT, format_event

TEXT_TYPE = "text/plain; charset=utf-8"
TYPES = {"text": TEXT_TYPE, "srt": TEXT_TYPE, "vtt": "text/vtt; charset=utf-8"}
JSON_TYPE = "application/json"


def encode_transcription(
    form: str, found: Mapping[str, Any], *, task: str = "transcribe"
) -> tuple[bytes, str]:
    """Returns the body of an answer and its content type.

    Args:
        form: One of `audio_requests.FORMATS`.
        found: `text`, `duration` in seconds; `segments`, `words` and `language` where known.
        task: `transcribe`, or `translate` for a text in English.
    """
    text = str(found["text"])
    if form == "text":
        return f"{text}\n".encode(), TYPES["text"]
    if form == "srt":
        return _subtitles(found["segments"], ",", numbered=True).encode(), TYPES["srt"]
    if form == "vtt":
        body = "WEBVTT\n\n" + _subtitles(found["segments"], ".", numbered=False)
        return body.encode(), TYPES["vtt"]
    translated = task == "translate"
    # OpenAI counts the seconds of transcriptions only.
    seconds = round(float(found["duration"]))
    usage = {} if translated else {"usage": {"type": "duration", "seconds": seconds}}
    if form == "json":
        return encode_json({"text": text, **usage}), JSON_TYPE
    verbose: dict[str, Any] = {
        "task": task,
        "language": "english" if translated else found.get("language", ""),
        "duration": found["duration"],
        "text": text,
    }
    if "segments" in found:
        verbose["segments"] = [
            {"id": index, "seek": 0, **segment} for index, segment in enumerate(found["segments"])
        ]
    if "words" in found:
        verbose["words"] = found["words"]
    return encode_json({**verbose, **usage}), JSON_TYPE


def compression_ratio(text: str) -> float:
    """Returns how many times smaller a text becomes, as Whisper defines it."""
    data = text.encode("utf-8", "replace")
    return len(data) / len(zlib.compress(data))


def _subtitles(segments: list[Mapping[str, Any]], comma: str, *, numbered: bool) -> str:
    blocks = []
    for number, segment in enumerate(segments, 1):
        start, end = (_clock(segment[name], comma) for name in ("start", "end"))
        head = f"{number}\n" if numbered else ""
        # An empty line, or an arrow, inside the text would end the block.
        text = " ".join(str(segment["text"]).split()).replace("-->", "->")
        blocks.append(f"{head}{start} --> {end}\n{text}\n\n")
    return "".join(blocks)


def _clock(seconds: float, comma: str) -> str:
    thousandths = round(float(seconds) * 1000)
    minutes, thousandths = divmod(thousandths, 60000)
    hours, minutes = divmod(minutes, 60)
    whole, thousandths = divmod(thousandths, 1000)
    return f"{hours:02d}:{minutes:02d}:{whole:02d}{comma}{thousandths:03d}"


def encode_delta(text: str) -> bytes:
    """Returns the event of a piece of text."""
    return _event({"type": "transcript.text.delta", "delta": text})


def encode_done(text: str) -> bytes:
    """Returns the last event of a stream."""
    return _event({"type": "transcript.text.done", "text": text}) + DONE_EVENT


def _event(value: Mapping[str, Any]) -> bytes:
    return format_event(encode_json(value))
