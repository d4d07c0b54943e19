"""What the engine tells while it works: steps, places in the queue, partial images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from deployments.hf_diffusers.stepping import (
    Event,
    JobOptions,
    PartialImage,
    Progress,
)
from tests.support.images_engine import (
    TOLERANCE,
    WAIT_S,
    create_inputs,
    engine_of,
)
from tests.support.tiny_images import KINDS, create_pipeline


@pytest.mark.parametrize("kind", KINDS)
def test_progress_and_partial_images(kind: str) -> None:
    ours = create_pipeline(kind)
    image = Image.effect_noise((32, 32), 60).convert("RGB")
    more = {"image": image} if "controlnet" in kind else {}
    events: list[Event] = []
    with engine_of(ours) as engine:
        inputs = create_inputs(1, kind=kind, steps=6, **more)
        job = engine.submit("p", inputs, JobOptions(partial_images=2, on_event=events.append))
        final = job.result(WAIT_S).images[0]
    steps = [event.step for event in events if isinstance(event, Progress)]
    assert steps == sorted(steps)
    assert steps[-1] == job.progress.step == job.progress.num_steps
    partial = [event for event in events if isinstance(event, PartialImage)]
    assert [event.index for event in partial] == [0, 1]
    for event in partial:
        assert event.image.shape == final.shape
        assert event.image.dtype == torch.float32
        assert 0 <= float(event.image.min()) <= float(event.image.max()) <= 1
    assert not torch.equal(partial[0].image, partial[1].image)


def test_the_partial_image_after_the_last_step_would_be_the_final_one() -> None:
    ours = create_pipeline("flux")
    decoded: list[Any] = []
    with engine_of(ours) as engine:
        inputs = create_inputs(1, kind="flux", steps=4, output_type="latent")
        latents = engine.submit("p", inputs).result(WAIT_S).images
        image = engine.submit("p", {**inputs, "output_type": "pt"}).result(WAIT_S).images[0]
    from deployments.hf_diffusers.stepping.pipelines.previews import find_preview

    preview = find_preview(ours)
    assert preview is not None
    with torch.no_grad():
        decoded.append(preview(ours, latents, (32, 32)))
    assert float((decoded[0] - image).abs().max()) <= TOLERANCE


def test_places_in_the_queue_are_told() -> None:
    ours = create_pipeline("sd")
    places: list[int] = []

    def note(event: Event) -> None:
        if isinstance(event, Progress):
            places.append(event.queue_position)

    with engine_of(ours, max_ongoing=1) as engine:
        for seed in range(3):
            engine.submit("p", create_inputs(seed, steps=3))
        last = engine.submit("p", create_inputs(9, steps=9), JobOptions(on_event=note))
        last.result(WAIT_S)
    waited = [place for place in places if place > 0]
    assert waited == sorted(waited, reverse=True)
    assert waited[-1] == 1
    assert places[-1] == 0


def test_a_listener_that_raises_does_not_harm_its_job() -> None:
    def fail(event: Event) -> None:
        raise RuntimeError("the listener is broken")

    with engine_of(create_pipeline("sd")) as engine:
        job = engine.submit("p", create_inputs(1), JobOptions(on_event=fail))
        assert job.result(WAIT_S).images.shape == (1, 3, 32, 32)
