"""OpenAI's transcription requests, read and checked field by field.

Knows nothing of models, files or servers. Names and limits are those of OpenAI's API reference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from truthgpt_serve.errors import UnsupportedError
from truthgpt_serve.http.json_body import bad_field, parse_model, shown
from truthgpt_serve.http.multipart import Part

FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
TIMED = ("srt", "verbose_json", "vtt")
GRANULARITIES = ("segment", "word")
MAX_LANGUAGE_CHARS = 64
LISTS = ("timestamp_granularities", "include")


@dataclass(slots=True)
class AudioRequest:
    """A request for a transcription, checked.

    Attributes:
        model: The model name of the request.
        file: The recording's file.
        inputs: What the class gets beside the recording.
        format: One of `FORMATS`.
        stream: Whether the answer comes as server-sent events.
        task: `transcribe`, or `translate` for English text.
    """

    model: str
    file: bytes
    inputs: dict[str, Any] = field(default_factory=dict)
    format: str = "json"
    stream: bool = False
    task: str = "transcribe"


def parse_audio(parts: list[Part], task: str) -> AudioRequest:
    """Checks a form of `POST /v1/audio/transcriptions` or `POST /v1/audio/translations`.

    Args:
        parts: The form.
        task: `transcribe` or `translate`.

    Raises:
        RequestError: A field is missing or wrong; `param` names it.
        UnsupportedError: A field asks for what the generic application does not have.
    """
    values, file = _read(parts)
    request = AudioRequest(parse_model(values), file, task=task)
    request.format = str(_choice(values, "response_format", FORMATS) or "json")
    request.stream = _boolean(values, "stream")
    _refuse(request, values)
    request.inputs = _inputs(request, values)
    return request


def _refuse(request: AudioRequest, values: dict[str, Any]) -> None:
    if values.get("include"):
        raise UnsupportedError("`include`: this model has no log probabilities", param="include")
    if request.stream and request.format not in ("json", "text"):
        message = f"`response_format` {request.format} cannot be streamed; use json or text"
        raise UnsupportedError(message, param="response_format")
    if request.stream and request.task == "translate":
        raise UnsupportedError("`stream`: a translation comes whole; leave it out", param="stream")


def _inputs(request: AudioRequest, values: dict[str, Any]) -> dict[str, Any]:
    inputs: dict[str, Any] = {"task": "translate"} if request.task == "translate" else {}
    for name, limit in (("language", MAX_LANGUAGE_CHARS), ("prompt", None)):
        text = values.get(name)
        if text and limit is not None and len(text) > limit:
            raise bad_field(name, f"has {len(text)} characters; it may have {limit}")
        if text:
            inputs[name] = text
    temperature = _temperature(values.get("temperature"))
    if temperature:
        inputs["temperature"] = temperature
    kinds = _granularities(values, request.format)
    if kinds:
        inputs["timestamps"] = kinds
    if request.format == "verbose_json":
        inputs["detect_language"] = True
    return inputs


def _read(parts: list[Part]) -> tuple[dict[str, Any], bytes]:
    values: dict[str, Any] = {}
    file: bytes | None = None
    for part in parts:
        name = part.name.removesuffix("[]")
        if name == "file":
            if file is not None:
                raise bad_field("file", "is given more than once")
            if not part.is_file:
                raise bad_field("file", "must be a file, not text")
            file = part.data
        elif name in LISTS:
            values.setdefault(name, []).append(part.text())
        elif name in values:
            raise bad_field(name, "is given more than once")
        else:
            values[name] = part.text()
    if file is None:
        raise bad_field("file", "is required")
    return values, file


def _choice(values: dict[str, Any], name: str, choices: tuple[str, ...]) -> str | None:
    value = values.get(name)
    if value is None:
        return None
    if value not in choices:
        raise bad_field(name, f"must be one of {', '.join(choices)}, not {shown(value)}")
    return str(value)


def _boolean(values: dict[str, Any], name: str) -> bool:
    value = str(values.get(name, "false")).lower()
    if value not in ("true", "false", "1", "0"):
        raise bad_field(name, f"must be true or false, not {shown(value)}")
    return value in ("true", "1")


def _temperature(text: str | None) -> float:
    if text is None:
        return 0.0
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise bad_field("temperature", f"must be a number from 0 to 1, not {shown(text)}")
    return value


def _granularities(values: dict[str, Any], form: str) -> str | list[str] | None:
    """Returns which times are wanted of the model; a list where there are several kinds."""
    kinds = values.get("timestamp_granularities") or []
    for kind in kinds:
        if kind not in GRANULARITIES:
            message = f"must be of {' and '.join(GRANULARITIES)}, not {shown(kind)}"
            raise bad_field("timestamp_granularities", message)
    if kinds and form != "verbose_json":
        message = "needs `response_format` verbose_json"
        raise bad_field("timestamp_granularities", message)
    if len(set(kinds)) > 1:
        return list(GRANULARITIES)
    return kinds[0] if kinds else "segment" if form in TIMED else None
