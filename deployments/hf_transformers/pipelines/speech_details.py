"""Whisper's details of each segment: tokens, probabilities and the times of words.

Transformers' pipeline gives texts and times only, so its model is called here as the pipeline calls
it. Definitions are those of Whisper's own program (https://github.com/openai/whisper,
`decoding.py` and `transcribe.py`), of one segment where that program shares one number among all
segments of a window.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import LogitsProcessor

NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")
"""The token that a model puts after `<|startoftranscript|>` where it hears no speech: of newer and
of older models."""


@dataclass(slots=True)
class _Window:
    """What was seen while one window of each recording of a batch was written down.

    A beginning of a text is known by a hash of its recording's place among those that are heard and
    of its tokens: beams change their rows at every step.

    Attributes:
        seeks: Where it begins, in frames of 10 ms, for each recording of the batch.
        heard: The recordings that are not at their end, in the order of the rows.
        no_speech: Probability of no speech, for each row.
        logprobs: Log probability of the last token of each beginning.
        before: The rows of the last step's beginnings, and log probabilities of what may follow.
    """

    seeks: list[int]
    heard: list[int]
    no_speech: list[float] = field(default_factory=list)
    logprobs: dict[int, float] = field(default_factory=dict)
    before: tuple[dict[int, int], torch.Tensor] | None = None

    def place_of(self, row: int, num_rows: int) -> int:
        """Returns the place of a row's recording: each has as many rows as there are beams."""
        return row * len(self.heard) // num_rows

    def logprob(self, place: int, tokens: torch.Tensor) -> float:
        """Returns the log probability of the last token, behind the others; NaN if not seen."""
        known = self.logprobs.get(_key(place, tokens))
        if known is not None:
            return known
        rows, logprobs = self.before or ({}, None)
        row = rows.get(_key(place, tokens[:-1]))
        return math.nan if row is None or logprobs is None else float(logprobs[row, tokens[-1]])


class _Recorder(LogitsProcessor):
    """Sees each step behind Whisper's own filters and before the temperature, and changes nothing.

    Holds one step's numbers: those of all would be gigabytes for half an hour.

    Args:
        start_id: The token that begins a transcript.
        end_id: The token that ends it.
        no_speech_id: The token for no speech, or None.
    """

    def __init__(self, start_id: int, end_id: int, no_speech_id: int | None) -> None:
        self._start_id = start_id
        self._end_id = end_id
        self._end = torch.tensor([end_id])
        self._no_speech_id = no_speech_id
        self._progress: list[tuple[int, int]] = []
        self._logits: torch.Tensor | None = None
        self.windows: list[_Window] = []

    def note_progress(self, progress: torch.Tensor) -> None:
        """Takes where each recording of the batch is: Whisper's `monitor_progress`."""
        self._progress = [(int(frame), int(end)) for frame, end in progress.tolist()]

    def note_forward(self, module: Any, inputs: Any, outputs: Any) -> None:
        """Takes the model's own numbers of a step: a forward hook."""
        self._logits = getattr(outputs, "logits", None)

    def set_begin_index(self, begin_index: int) -> None:
        """Begins another window: Whisper calls it for each."""
        heard = [place for place, (frame, end) in enumerate(self._progress) if frame < end]
        self.windows.append(_Window([frame for frame, _ in self._progress], heard))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        window = self.windows[-1]
        ids = input_ids.cpu()
        places = [window.place_of(row, len(ids)) for row in range(len(ids))]
        if window.before is None:
            window.no_speech = self._no_speech(ids)
        else:
            rows, logprobs = window.before
            for place, row in zip(places, ids, strict=True):
                parent = rows.get(_key(place, row[:-1]))
                if parent is not None:
                    window.logprobs[_key(place, row)] = float(logprobs[parent, row[-1]])
        logprobs = torch.log_softmax(scores.float(), dim=-1)
        # A beam that ends is put aside and not seen again.
        ends = logprobs[:, self._end_id].tolist()
        rows = {}
        for index, (place, row, end) in enumerate(zip(places, ids, ends, strict=True)):
            rows[_key(place, row)] = index
            window.logprobs[_key(place, torch.cat((row, self._end)))] = end
        window.before = rows, logprobs
        return scores

    def _no_speech(self, ids: torch.Tensor) -> list[float]:
        logits = self._logits
        if self._no_speech_id is None or logits is None or logits.shape[:2] != ids.shape:
            return []
        places = (ids[0] == self._start_id).nonzero()
        if not len(places):
            return []
        chances = logits[:, int(places[-1])].float().softmax(dim=-1)
        return [float(chance) for chance in chances[:, self._no_speech_id]]


def _key(place: int, tokens: torch.Tensor) -> int:
    return hash((place, tokens.numpy().tobytes()))


def compression_ratio(text: str) -> float:
    """Returns how many times smaller a text becomes: above 2.4 it repeats itself."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def transcribe(
    pipeline: Any, recordings: Sequence[Any], generate: Mapping[str, Any], *, words: bool
) -> list[dict[str, Any]]:
    """Writes recordings down.

    Args:
        pipeline: Transformers' pipeline around a Whisper model.
        recordings: float32 `[samples]` each; one, or several that are no longer than the window.
        generate: Arguments of the model's `generate`.
        words: Whether the times of words are wanted, too.

    Returns:
        For each `text`, `segments`, `language` (a code, or None) and, where wanted, `words`, with
        the pipeline's own `timestamp` for a time.
    """
    recorder, outputs = _generate(pipeline, recordings, generate, words=words)
    batch = [_windows_of(segments) for segments in outputs["segments"]]
    temperature = float(generate.get("temperature") or 0)
    answers = []
    for place, windows in enumerate(batch):
        segments = []
        for number, found in enumerate(windows):
            seen = recorder.windows[number]
            row = seen.heard.index(place)
            known: dict[str, Any] = {"seek": seen.seeks[place], "temperature": temperature}
            if seen.no_speech:
                num_beams = len(seen.no_speech) // len(seen.heard)
                known["no_speech_prob"] = seen.no_speech[row * num_beams]
            segments += [{**_describe(pipeline, segment, seen, row), **known} for segment in found]
        answers.append(_answer(pipeline, windows, segments, words=words))
    return answers


def _generate(
    pipeline: Any, recordings: Sequence[Any], generate: Mapping[str, Any], *, words: bool
) -> tuple[_Recorder, Any]:
    model, tokenizer = pipeline.model, pipeline.tokenizer
    rate = pipeline.feature_extractor.sampling_rate
    features = [
        next(iter(pipeline.preprocess({"raw": samples, "sampling_rate": rate})))
        for samples in recordings
    ]
    vocabulary = tokenizer.get_vocab()
    no_speech = next((vocabulary[name] for name in NO_SPEECH if name in vocabulary), None)
    config = pipeline.generation_config
    recorder = _Recorder(config.decoder_start_token_id, _end_id(config), no_speech)
    hook = model.register_forward_hook(recorder.note_forward)
    try:
        outputs = model.generate(
            **{
                name: torch.cat([item[name] for item in features]).to(model.device)
                for name in ("input_features", "attention_mask")
            },
            **generate,
            generation_config=config,
            logits_processor=[recorder],
            monitor_progress=recorder.note_progress,
            return_timestamps=True,
            return_segments=True,
            **({"return_token_timestamps": True} if words else {}),
        )
    finally:
        hook.remove()
    return recorder, outputs


def _windows_of(segments: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Returns the segments of each window: those of one have the same result."""
    windows: list[list[Mapping[str, Any]]] = []
    for segment in segments:
        if windows and windows[-1][0]["result"] is segment["result"]:
            windows[-1].append(segment)
        else:
            windows.append([segment])
    return windows


def _describe(
    pipeline: Any, segment: Mapping[str, Any], seen: _Window, place: int
) -> dict[str, Any]:
    tokens = segment["tokens"].tolist()
    text = str(pipeline.tokenizer.decode(tokens, skip_special_tokens=True)).strip()
    sequence = _sequence(segment).cpu()
    start, end = segment["idxs"]
    if end < len(sequence) and int(sequence[end]) == _end_id(pipeline.generation_config):
        end += 1  # that the text ends here counts as well
    total = sum(seen.logprob(place, sequence[: at + 1]) for at in range(start, end))
    details = {
        "text": text,
        "timestamp": (float(segment["start"]), float(segment["end"])),
        "tokens": tokens,
        "compression_ratio": compression_ratio(text),
    }
    if not math.isnan(total):
        details["avg_logprob"] = total / (len(tokens) + 1)
    return details


def _end_id(config: Any) -> int:
    found = config.eos_token_id
    return int(found[0] if isinstance(found, list) else found)


def _sequence(segment: Mapping[str, Any]) -> torch.Tensor:
    result = segment["result"]
    sequence: torch.Tensor = result["sequences"] if isinstance(result, Mapping) else result
    return sequence


def _answer(
    pipeline: Any,
    windows: Sequence[Sequence[Mapping[str, Any]]],
    segments: list[dict[str, Any]],
    *,
    words: bool,
) -> dict[str, Any]:
    found = [segment for window in windows for segment in window]
    languages = getattr(pipeline.generation_config, "lang_to_id", None) or {}
    names = {index: name.strip("<|>") for name, index in languages.items()}
    answer: dict[str, Any] = {"text": "", "segments": segments, "language": None}
    if not found:
        return {**answer, "words": []} if words else answer
    first = _sequence(found[0]).tolist()
    answer["language"] = next((names[token] for token in first if token in names), None)
    tokens = torch.cat([segment["tokens"] for segment in found]).cpu()
    output = {"tokens": tokens[None]}
    if words:
        times = torch.cat([segment["token_timestamps"] for segment in found]).cpu()
        output["token_timestamps"] = times[None]
    read = pipeline.postprocess([output], return_timestamps="word" if words else True)
    answer["text"] = str(read["text"]).strip()
    if words:
        answer["words"] = read["chunks"]
    return answer
