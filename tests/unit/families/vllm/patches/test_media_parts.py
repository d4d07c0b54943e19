"""Parts of messages bring in no media but the request's own, or those of its key."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from vllm.exceptions import VLLMValidationError
from vllm.renderers.chat_utils import (
    AsyncMultiModalContentParser,
    AsyncMultiModalItemTracker,
    MultiModalContentParser,
    MultiModalItemTracker,
    parse_chat_messages,
    parse_chat_messages_async,
)

from deployments.vllm.patches.media_parts import mend_media_parts
from truthgpt_serve.usage.counted import Usage, counting


@pytest.fixture(autouse=True)
def mended(monkeypatch: pytest.MonkeyPatch) -> None:
    for parser in (MultiModalContentParser, AsyncMultiModalContentParser):
        monkeypatch.setattr(parser, "parse_image_pil", parser.__dict__["parse_image_pil"])
    for tracker in (MultiModalItemTracker, AsyncMultiModalItemTracker):
        monkeypatch.setattr(tracker, "resolve_items", tracker.__dict__["resolve_items"])
    mend_media_parts()


def read(part: dict[str, Any], *, waits: bool) -> Any:
    """Has vLLM read a message of one part for a model that takes images."""
    processor = SimpleNamespace(
        info=SimpleNamespace(
            validate_num_items=lambda *_: None, supported_mm_limits={"image": None}
        )
    )
    model: Any = SimpleNamespace(
        is_multimodal_model=True,
        multimodal_config=None,
        enable_prompt_embeds=False,
        hf_config=SimpleNamespace(),
        allowed_local_media_path="",
        allowed_media_domains=None,
    )
    model_cls = SimpleNamespace(get_placeholder_str=lambda *_: "<image>")
    messages: Any = [{"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}]
    with pytest.MonkeyPatch.context() as patch:
        for tracker in (MultiModalItemTracker, AsyncMultiModalItemTracker):
            patch.setattr(tracker, "mm_processor", processor, raising=False)
            patch.setattr(tracker, "model_cls", model_cls, raising=False)
        if waits:
            return parse_chat_messages(messages, model, "string")[1:]
        return asyncio.run(parse_chat_messages_async(messages, model, "string"))[1:]


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("kind", [{"type": "image_pil"}, {}, {"type": "image_pil", "uuid": "a"}])
@pytest.mark.parametrize("how", [str, lambda path: [str(path)], lambda path: {"media": str(path)}])
def test_a_text_is_no_image(tmp_path: Path, kind: dict[str, Any], how: Any, *, waits: bool) -> None:
    path = tmp_path / "image.png"
    Image.new("RGB", (8, 6)).save(path)
    with pytest.raises(VLLMValidationError, match="send the image as `image_url`"):
        read({**kind, "image_pil": how(path)}, waits=waits)


@pytest.mark.parametrize("waits", [True, False])
def test_an_image_in_memory_is_one(*, waits: bool) -> None:
    image = Image.new("RGB", (8, 6))
    media, _ = read({"type": "image_pil", "image_pil": image}, waits=waits)
    assert media["image"] == [image]


@pytest.mark.parametrize("waits", [True, False])
def test_a_name_is_one_of_its_key(*, waits: bool) -> None:
    names = []
    ask = partial(read, {"type": "image_url", "image_url": None, "uuid": "a"}, waits=waits)
    for usage in (Usage(key="one"), Usage(key="two"), Usage()):
        with counting(usage):
            names.append(ask()[1]["image"][0])
    names.append(ask()[1]["image"][0])
    assert names == ["one\0a", "two\0a", "a", "a"]
    with counting(Usage(key="one")):
        image = {"image_pil": Image.new("RGB", (8, 6)), "type": "image_pil"}
        assert read(image, waits=waits)[1] == {"image": [None]}


@pytest.mark.parametrize("waits", [True, False])
def test_an_empty_address_is_named(*, waits: bool) -> None:
    with pytest.raises(VLLMValidationError, match="`image_url`: is empty") as caught:
        read({"type": "image_url", "image_url": {"url": ""}}, waits=waits)
    assert caught.value.parameter == "image_url"
