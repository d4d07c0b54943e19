"""The `data` section: what `truthgpt train` learns from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from truthgpt_serve.config.base import (
    Count,
    NonNegativeCount,
    Ratio,
    Refusal,
    Section,
    Text,
    refuse,
)

DataNames = Annotated[list[Text], Field(min_length=1, max_length=1000)]


class DataSection(Section):
    """The data set of `truthgpt train`; serving ignores it."""

    dataset: Text | DataNames | None = None
    """Hub name of the data set, or a local file, folder or pattern such as `data/part-*.jsonl.gz`,
    or a list of these, read in its order. Files are `.txt` (an example a line), `.jsonl`,
    `.ndjson`, `.json` (a list, or an object a line), `.csv`, `.tsv` or `.parquet`; behind all but
    the last `.gz` or `.zst`; or images with captions. Of a folder, files that are named like
    validation or test data are left out. A relative path is looked up like
    `model.name_or_path`."""

    subset: Text | None = None
    """Configuration of the data set, where it has several."""

    eval_dataset: Text | DataNames | None = None
    """Data to evaluate on, named like `dataset`; of a folder or of the hub the validation split,
    else the test split, where there are any. Null evaluates on `eval_share` of `dataset`."""

    eval_share: Annotated[Ratio, Field(lt=1)] = 0.0
    """Share of `dataset`, from 0 to below 1, that is kept from training to evaluate on; 0 does not
    evaluate. More measures better and leaves less to learn from."""

    on_bad_row: Literal["stop", "skip"] = "stop"
    """What happens at a row that cannot be used: `stop` ends with its file and line, `skip` counts
    it and goes on."""

    num_loader_workers: NonNegativeCount = 0
    """Processes that read ahead for each training worker; 0 reads in the worker itself. More hides
    slow reading and takes memory."""

    format: Literal[
        "auto",
        "text",
        "messages",
        "sharegpt",
        "alpaca",
        "prompt-completion",
        "preference",
        "unpaired-preference",
        "prompt-only",
        "pairs",
        "labeled",
    ] = "auto"
    """How the examples of text data are written. `auto` recognizes it by the columns, and the plan
    says as what; another one asks for its columns."""

    text_field: Text | None = None
    """Column with the training text, or with a list of chat messages. Null takes the usual name of
    the format, such as `text` or `messages`."""

    prompt_field: Text | None = None
    """Column with the prompt, where it is apart from what is to be learned: `sft` then learns only
    `completion_field`. A text, or a list of chat messages. Null takes the usual names."""

    completion_field: Text | None = None
    """Column with the text that follows the prompt. Null takes the usual names."""

    chosen_field: Text | None = None
    """Column with the better answer of a pair. Null takes `chosen` and other usual names."""

    rejected_field: Text | None = None
    """Column with the worse answer of a pair. Null takes `rejected` and other usual names."""

    label_field: Text | None = None
    """Column with what is said of an example: whether an answer is good, a class, or a score.
    Null takes `label` and other usual names."""

    pack: bool = False
    """Join texts to rows of exactly `max_seq_len` tokens, so that none are wasted on padding. Only
    for `sft` without `prompt_field`."""

    max_seq_len: Count = 1024
    """Tokens to which an example is cut. More sees longer texts and takes more memory."""

    image_field: Text = "image"
    """Column with the image."""

    caption_field: Text = "text"
    """Column with the image's caption."""

    resolution: Annotated[int, Field(ge=8, multiple_of=8)] = 512
    """Edge of the training images in pixels, a multiple of 8. More shows finer detail and takes
    quadratically more memory."""

    caption: Text | Annotated[list[Text], Field(min_length=1)] | None = None
    """Caption of every image, in place of those of the data: `a photo of sks dog`, for a folder of
    images of one thing. Of a list one is drawn each time."""

    conditioning_field: Text = "conditioning_image"
    """Column with the image that a ControlNet follows, of the same size as the image."""

    crop: Literal["center", "random"] = "center"
    """Where images of another shape are cut. `random` draws the place anew each time; latents are
    then encoded anew too, which takes longer."""

    random_flip: bool = False
    """Mirror every second image, left to right. Not for images with writing, or whose captions say
    left and right."""

    aspect_ratio_buckets: bool = False
    """Cut each image to the nearest of several shapes of about the area of `resolution` squared,
    instead of to a square. Each batch is of one shape."""

    bucket_step: Annotated[int, Field(ge=8, multiple_of=8)] = 64
    """Edges of `aspect_ratio_buckets` are multiples of it, in pixels. More makes fewer buckets and
    cuts more off."""

    max_aspect_ratio: Annotated[float, Field(ge=1, le=16)] = 2.0
    """Longer edge to shorter edge of `aspect_ratio_buckets`, at most. More keeps long images
    whole."""

    min_edge: Count | None = None
    """Shorter edge that an image must have, in pixels; a smaller one is a bad row. Null enlarges
    small images."""

    @model_validator(mode="after")
    def _check_fields(self) -> DataSection:
        found = []
        if self.completion_field is not None and self.prompt_field is None:
            message = "is given without prompt_field"
            found.append(Refusal("completion_field", message, "name both", ("prompt_field",)))
        if self.prompt_field is not None and self.format in ("text", "messages", "sharegpt"):
            message = f"{self.format} contradicts prompt_field"
            found.append(Refusal("format", message, "remove one of them", ("prompt_field",)))
        if self.pack and self.prompt_field is not None:
            message = "true contradicts prompt_field"
            found.append(Refusal("pack", message, "remove one of them", ("prompt_field",)))
        if self.eval_dataset is not None and self.eval_share > 0:
            message = "is given together with eval_dataset"
            found.append(Refusal("eval_share", message, "remove one of them", ("eval_dataset",)))
        if self.aspect_ratio_buckets and self.resolution % self.bucket_step:
            message = f"{self.bucket_step} does not divide resolution, {self.resolution}"
            fix = "write 8, or a larger multiple of 8 that divides it"
            found.append(Refusal("bucket_step", message, fix, ("resolution",)))
        if found:
            raise refuse(found)
        return self
