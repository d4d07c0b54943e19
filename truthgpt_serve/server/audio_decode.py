"""Recordings to samples: reads files, mixes channels, changes the rate; knows no requests.

FLAC, OGG and MP3 need the package soundfile, another rate needs soxr: the extra `audio`. Both, and
numpy, are imported when the first recording comes.
"""

from __future__ import annotations

import importlib
import io
import wave
from types import ModuleType
from typing import Any

from truthgpt_serve.errors import RequestError, TooLargeError, UnsupportedError

MAX_CHANNELS = 16
MIN_RATE = 1000
MAX_RATE = 384000
FIELD = "file"


def decode_audio(data: bytes, rate: int, max_s: float) -> Any:
    """Returns a recording as float32 `[samples]` at `rate`, its channels mixed.

    Args:
        data: A whole file: WAV; with soundfile also FLAC, OGG and MP3.
        rate: Samples a second that are wanted.
        max_s: Longest recording in seconds.

    Raises:
        RequestError: The file is damaged, empty or of an unknown format.
        TooLargeError: The recording is too long.
        UnsupportedError: A package is missing that this file needs.
    """
    if not data:
        raise RequestError("`file` is empty", param=FIELD)
    soundfile = _find("soundfile")
    if soundfile is not None:
        samples, found = _read(soundfile, data, max_s)
    elif data[:4] == b"RIFF":
        samples, found = _read_wave(data, max_s)
    else:
        raise UnsupportedError(
            "`file` is no WAV file, and this server lacks the package soundfile (extra `audio`), "
            "which reads others; send WAV",
            param=FIELD,
        )
    if not len(samples):
        raise RequestError("`file` has no samples", param=FIELD)
    samples = samples.mean(axis=1, dtype="float32")
    return samples if found == rate else _resample(samples, found, rate)


def _find(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):  # OSError: the package without its library
        return None


def _check(num_samples: int, rate: int, channels: int, max_s: float) -> None:
    if not MIN_RATE <= rate <= MAX_RATE or not 1 <= channels <= MAX_CHANNELS:
        raise RequestError(
            f"`file` has {channels} channels of {rate} samples a second; allowed are 1 to "
            f"{MAX_CHANNELS} of {MIN_RATE} to {MAX_RATE}",
            param=FIELD,
        )
    if num_samples > max_s * rate:
        raise TooLargeError(
            f"`file` lasts longer than {max_s:g} s, the most this model takes",
            param=FIELD,
            code="audio_too_long",
        )


def _read(soundfile: ModuleType, data: bytes, max_s: float) -> tuple[Any, int]:
    """Returns float32 `[samples, channels]` and the rate; no more than `max_s` is decoded."""
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, channels = int(file.samplerate), int(file.channels)
            # What a header says of the length may be wrong, also on purpose: a small file can
            # decode into very many samples.
            _check(0, rate, channels, max_s)
            samples = file.read(int(max_s * rate) + 1, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise RequestError(
            f"`file` cannot be read: {error.error_string} Send WAV, FLAC, OGG or MP3.", param=FIELD
        ) from error
    _check(len(samples), rate, channels, max_s)
    return samples, rate


def _read_wave(data: bytes, max_s: float) -> tuple[Any, int]:
    """Does the same with Python's own reader, for integer WAV files."""
    numpy = importlib.import_module("numpy")
    try:
        with wave.open(io.BytesIO(data)) as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            _check(file.getnframes(), rate, channels, max_s)
            raw = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise RequestError(f"`file` cannot be read as WAV: {error}", param=FIELD) from error
    raw = raw[: len(raw) // (width * channels) * width * channels]
    if width == 1:  # the only width without a sign
        samples = numpy.frombuffer(raw, "u1").astype("float32") / 128 - 1
    elif width == 3:
        padded = numpy.zeros((len(raw) // 3, 4), "u1")
        padded[:, 1:] = numpy.frombuffer(raw, "u1").reshape(-1, 3)
        samples = padded.view("<i4").astype("float32") / 2**31
    else:
        samples = numpy.frombuffer(raw, f"<i{width}").astype("float32") / 2 ** (8 * width - 1)
    return samples.reshape(-1, channels), rate


def _resample(samples: Any, found: int, rate: int) -> Any:
    soxr = _find("soxr")
    if soxr is None:
        raise UnsupportedError(
            f"`file` has {found} samples a second and this model takes {rate}; this server lacks "
            f"the package soxr (extra `audio`), which changes the rate: send {rate}",
            param=FIELD,
        )
    return soxr.resample(samples, found, rate).astype("float32")
