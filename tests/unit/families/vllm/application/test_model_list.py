"""Entries of vLLM's list of models, which hold paths of the machine as vLLM makes them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from deployments.vllm.application.model_list import hide_paths


async def test_no_entry_says_where_files_are() -> None:
    from vllm.entrypoints.openai.models.protocol import BaseModelPath
    from vllm.entrypoints.openai.models.serving import OpenAIModelRegistry

    models = OpenAIModelRegistry(
        SimpleNamespace(max_model_len=8),
        [BaseModelPath(name="story", model_path="/srv/models/story")],
    )
    assert (await models.show_available_models()).data[0].root == "/srv/models/story"
    hide_paths(models)
    assert [card.root for card in (await models.show_available_models()).data] == ["story"]
