"""Speech recognition: recordings in, texts with times out, on transformers' pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from deployments.hf_transformers.pipelines.inputs import Recording
from deployments.hf_transformers.pipelines.model import PipelineEngine
from deployments.hf_transformers.pipelines.speech_details import transcribe
from truthgpt_serve.errors import RequestError, UnsupportedError
from truthgpt_serve.request_schema import (
    RequestModel,
    Wanted,
    bad_field,
    read_request,
    refuse_unknown,
)

WHISPER = "seq2seq_whisper"
MAX_PROMPT_SHARE = 0.5
"""Part of the decoder's length that a prompt may take, as in Whisper itself."""
MAX_TOKEN_CHARS = 32
"""Characters of a token of a prompt; longer tokens are rare."""
MIN_TEMPERATURE = 0.01
"""As vLLM's: what is divided by much less is no number any more."""


class SpeechInputs(RequestModel):
    """The inputs of one request."""

    audio: Recording
    sampling_rate: float | None = None
    language: str | None = None
    prompt: str | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    timestamps: str | list[str] | None = None
    detect_language: bool | None = None
    task: Annotated[
        Literal["transcribe", "translate"] | None, Wanted("transcribe or translate")
    ] = None


class SpeechEngine(PipelineEngine):
    """Recognizes speech; see `PipelineEngine`."""

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        self._seed = int(cfg["seed"])
        super().__init__(cfg)
        self.sampling_rate = int(self.pipeline.feature_extractor.sampling_rate)

    @property
    def _is_whisper(self) -> bool:
        return bool(self.pipeline.type == WHISPER)

    @property
    def timestamps(self) -> tuple[str, ...]:
        """The kinds of times that the model can give."""
        if not self._is_whisper:
            return ("word",) if self.pipeline.type.startswith("ctc") else ()
        aligned = getattr(self.pipeline.model.generation_config, "alignment_heads", None)
        return ("segment", "word") if aligned else ("segment",)

    def _is_long(self, samples: Any) -> bool:
        """Returns whether a recording is longer than Whisper's window."""
        return self._is_whisper and len(samples) > self.pipeline.feature_extractor.n_samples

    def batch_key(self, inputs: Mapping[str, Any]) -> str:
        """Returns what inputs must have in common to share a batch."""
        samples = inputs.get("audio")
        long = getattr(samples, "ndim", 0) == 1 and self._is_long(samples)
        return f"{super().batch_key(inputs)} {long}"

    def check(self, inputs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Returns the samples of one request and the pipeline's parameters. Raises RequestError."""
        try:
            return self._read(inputs)
        except RequestError as error:
            error.param = f"inputs.{error.param}"
            raise

    def _read(self, inputs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        refuse_unknown(inputs, SpeechInputs.model_fields)
        request = read_request(SpeechInputs, inputs)
        samples, rate = request.audio, request.sampling_rate or self.sampling_rate
        if rate != self.sampling_rate:
            raise bad_field("sampling_rate", f"must be {self.sampling_rate}, what the model hears")
        limit_s = self.settings.max_audio_s
        if len(samples) > limit_s * rate:
            raise bad_field("audio", f"is longer than {limit_s:g} s, the most this model takes")
        parameters: dict[str, Any] = {}
        wanted = self._wanted_times(request.timestamps)
        if "segment" in wanted:
            parameters["details"] = wanted
        elif wanted:
            parameters["return_timestamps"] = "word"
        elif self._is_long(samples):
            parameters["return_timestamps"] = True  # which finds its way through a long recording
        generate = self._generate_parameters(request)
        if generate:
            parameters["generate_kwargs"] = generate
        if request.detect_language and self._speaks_many() and "language" not in generate:
            parameters["return_language"] = True
        return samples, parameters

    def _wanted_times(self, wanted: str | list[str] | None) -> tuple[str, ...]:
        """Returns the kinds of times that a request wants: one, or a list of several."""
        kinds = [] if wanted is None else wanted if isinstance(wanted, list) else [wanted]
        for kind in kinds:
            if kind not in self.timestamps:
                known = ", ".join(self.timestamps) or "none"
                raise UnsupportedError(
                    f"this model gives no times of {kind!r:.40}; it gives {known}",
                    param="timestamps",
                )
        return tuple(sorted(set(kinds)))

    @property
    def translates(self) -> bool:
        """Whether the model can write in English what it hears in another language."""
        generation = getattr(self.pipeline.model, "generation_config", None)
        tasks = getattr(generation, "task_to_id", None) or {}
        return self._speaks_many() and "translate" in tasks

    def _task(self, task: str | None) -> dict[str, Any]:
        if task != "translate":
            return {}
        if not self.translates:
            raise UnsupportedError("this model does not translate", param="task")
        return {"task": "translate"}

    def _speaks_many(self) -> bool:
        generation = getattr(self.pipeline.model, "generation_config", None)
        return self._is_whisper and bool(getattr(generation, "lang_to_id", None))

    def _generate_parameters(self, request: SpeechInputs) -> dict[str, Any]:
        language, prompt = request.language, request.prompt
        if not self._is_whisper:
            self._task(request.task)
            for name, value in (("language", language), ("prompt", prompt)):
                if value:
                    raise UnsupportedError(f"this model does not take `{name}`", param=name)
            return {}
        found: dict[str, Any] = {}
        if language:
            found |= self._language(language)
        found |= self._task(request.task)
        if request.temperature:
            found["temperature"] = max(request.temperature, MIN_TEMPERATURE)
        if prompt:
            found["prompt_ids"] = self._prompt(prompt)
        return found

    def _language(self, language: str) -> dict[str, Any]:
        if not self._speaks_many():
            if language == "en":
                return {}
            raise UnsupportedError("this model supports one language only", param="language")
        names = self.pipeline.model.generation_config.lang_to_id
        if f"<|{language}|>" not in names:
            known = ", ".join(sorted(name.strip("<|>") for name in names))
            raise bad_field("language", f"is {language!r:.40}; this model supports {known}")
        return {"language": language, "task": "transcribe"}

    def _prompt(self, prompt: str) -> list[int]:
        keep = int(MAX_PROMPT_SHARE * self.pipeline.model.config.max_target_positions) - 1
        try:
            end = prompt[-keep * MAX_TOKEN_CHARS :]  # reading a megabyte would take a minute
            ids = self.pipeline.tokenizer.get_prompt_ids(end).tolist()
        except ValueError as error:
            raise bad_field("prompt", f"cannot be used: {error}") from error
        return [ids[0], *ids[1:][-keep:]]  # the end of a long prompt counts, as in Whisper

    def run(self, values: list[Any], parameters: Mapping[str, Any]) -> list[Any]:
        """Recognizes recordings, together where the model hears them in windows of one length."""
        options = dict(parameters)
        generate = dict(options.pop("generate_kwargs", {}))
        if "prompt_ids" in generate:
            generate["prompt_ids"] = torch.tensor(
                generate["prompt_ids"], device=self.pipeline.model.device
            )
        if generate:
            options["generate_kwargs"] = generate
        # Others fill recordings up to the longest, and write what they hear there.
        # What is asked of the pipeline's language holds for one recording.
        together = self._is_whisper and ("details" in options or "return_language" not in options)
        if together and not any(self._is_long(samples) for samples in values):
            groups = [list(range(len(values)))]
        else:
            groups = [[place] for place in range(len(values))]
        answers: list[Any] = [None] * len(values)
        for group in groups:
            recordings = [values[place] for place in group]
            for place, output in zip(group, self._recognize(recordings, options), strict=True):
                seconds = len(values[place]) / self.sampling_rate
                answers[place] = self._answer(output, options, seconds)
        return answers

    def _recognize(self, recordings: list[Any], options: Mapping[str, Any]) -> list[Any]:
        rate = self.sampling_rate
        with torch.inference_mode(), torch.random.fork_rng(enabled="generate_kwargs" in options):
            torch.manual_seed(self._seed)  # only a temperature draws random numbers
            if kinds := options.get("details"):
                generate = options.get("generate_kwargs", {})
                return transcribe(self.pipeline, recordings, generate, words="word" in kinds)
            inputs = [{"raw": samples, "sampling_rate": rate} for samples in recordings]
            return list(self.pipeline(inputs, batch_size=len(inputs), **options))

    def _answer(
        self, output: Mapping[str, Any], options: Mapping[str, Any], seconds: float
    ) -> dict[str, Any]:
        """Returns the contract's shape of one recognized recording."""
        answer: dict[str, Any] = {"text": str(output["text"]).strip(), "duration": seconds}
        chunks = output.get("chunks") or []
        language = options.get("generate_kwargs", {}).get("language") or output.get("language")
        if language is None and chunks:
            language = chunks[0].get("language")
        if language is not None:
            answer["language"] = LANGUAGES.get(language, language)
        wanted = options.get("return_timestamps")
        if kinds := options.get("details"):
            answer["segments"] = [_timed(item, "text", seconds) for item in output["segments"]]
            if "word" in kinds:
                answer["words"] = [_timed(word, "word", seconds) for word in output["words"]]
        elif wanted == "word":
            answer["words"] = [_timed(chunk, "word", seconds) for chunk in chunks]
        elif wanted:
            answer["segments"] = [_timed(chunk, "text", seconds) for chunk in chunks]
        return answer


def _timed(chunk: Mapping[str, Any], name: str, seconds: float) -> dict[str, Any]:
    """Returns a piece with its times: none behind the end of the recording, none left open."""
    start, end = chunk["timestamp"]
    start = 0.0 if start is None else min(float(start), seconds)
    end = seconds if end is None else min(float(end), seconds)
    rest = {key: chunk[key] for key in chunk.keys() - {"text", "timestamp", "language"}}
    return {name: str(chunk["text"]).strip(), "start": start, "end": max(start, end), **rest}
