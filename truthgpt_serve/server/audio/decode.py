"""Recordings to samples: reads files, mixes channels, changes the rate.

Needs the packages of the extra `audio`: soundfile, and soxr for another rate. They, and numpy, are
imported when the first recording comes. They are not among the base's dependencies: a service that
takes no recordings needs neither libsndfile nor numpy, and the router never does.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

from truthgpt_serve.errors import RequestError, TooLargeError, UnsupportedError

BLOCK = 65536
"""Samples of each channel that are decoded at once."""
MAX_CHANNELS = 16
MAX_SAMPLES = 2**30
"""Most samples of all channels: 40 minutes of two at 192 kHz. Decoding that many takes some 7 s,
and a file of 3 MB can hold more."""
MIN_RATE = 1000
MAX_RATE = 384000
FIELD = "file"
DEFAULT_RATE = 16000
"""Samples a second for a class without `sampling_rate`."""
DEFAULT_MAX_S = 1800.0
"""Longest recording in seconds for a class without `max_audio_s`."""


def bounds_of(model: Any) -> tuple[int, float]:
    """Returns the samples a second that a model takes, and its longest recording in seconds."""
    rate = int(getattr(model, "sampling_rate", DEFAULT_RATE))
    return rate, float(getattr(model, "max_audio_s", DEFAULT_MAX_S))


def decode_audio(data: bytes, rate: int, max_s: float) -> Any:
    """Returns a recording as float32 `[samples]` at `rate`, its channels mixed.

    It is decoded piece by piece, so that the memory is that of the samples that are returned,
    whatever the file's own rate and channels.

    Args:
        data: A whole file: WAV, FLAC, OGG or MP3.
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
    if soundfile is None:
        raise UnsupportedError(
            "this server lacks the package soundfile (extra `audio`), which reads recordings",
            param=FIELD,
        )
    samples = _read(soundfile, data, rate, max_s)
    if not len(samples):
        raise RequestError("`file` has no samples", param=FIELD)
    return samples


def _find(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):  # OSError: the package without its library
        return None


def _check(rate: int, channels: int) -> None:
    if not MIN_RATE <= rate <= MAX_RATE or not 1 <= channels <= MAX_CHANNELS:
        raise RequestError(
            f"`file` has {channels} channels of {rate} samples a second; allowed are 1 to "
            f"{MAX_CHANNELS} of {MIN_RATE} to {MAX_RATE}",
            param=FIELD,
        )


def _read(soundfile: ModuleType, data: bytes, rate: int, max_s: float) -> Any:
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check(file.samplerate, file.channels)
            read = partial(file.read, BLOCK, dtype="float32", always_2d=True)
            return _gather(read, file.samplerate, rate, max_s)
    except soundfile.LibsndfileError as error:
        raise RequestError(
            f"`file` cannot be read: {error.error_string} Send WAV, FLAC, OGG or MP3.", param=FIELD
        ) from error


def _gather(read: Callable[[], Any], found: int, rate: int, max_s: float) -> Any:
    """Returns what `read` gives, `[samples, channels]` until nothing, mixed and at `rate`.

    The limit is checked by what is decoded: what a header says of the length may be wrong, also on
    purpose, since a small file can decode into very many samples.
    """
    numpy = importlib.import_module("numpy")
    resample = _resampler(found, rate)
    pieces = []
    num_read = num_samples = 0
    while True:
        block = read()
        num_read += len(block)
        num_samples += block.size
        if num_read > max_s * found:
            raise TooLargeError(
                f"`file` lasts longer than {max_s:g} s, the most this model takes",
                param=FIELD,
                code="audio_too_long",
            )
        if num_samples > MAX_SAMPLES:
            raise TooLargeError(
                f"`file` has more than {MAX_SAMPLES} samples in all its channels; send fewer "
                "channels, or fewer samples a second",
                param=FIELD,
                code="audio_too_long",
            )
        mono = block.mean(axis=1, dtype="float32")
        pieces.append(resample(mono, not len(block)))
        if not len(block):
            return numpy.concatenate(pieces)


def _resampler(found: int, rate: int) -> Callable[[Any, bool], Any]:
    """Returns a function of a piece of samples, and of whether it is the last, to another rate."""
    if found == rate:
        return lambda samples, _last: samples
    soxr = _find("soxr")
    if soxr is None:
        raise UnsupportedError(
            f"`file` has {found} samples a second and this model takes {rate}; this server lacks "
            f"the package soxr (extra `audio`), which changes the rate: send {rate}",
            param=FIELD,
        )
    stream = soxr.ResampleStream(found, rate, 1, dtype="float32")
    return lambda samples, last: stream.resample_chunk(samples, last=last)
