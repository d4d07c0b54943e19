"""Loads the dense layers that a sentence-transformers model puts behind its pooling."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from deployments.hf_transformers.embedding.layout import find_file, read_json
from deployments.hf_transformers.loading import Source
from truthgpt_serve.errors import bad_setting


def load_dense(source: Source, folder: str) -> torch.nn.Module:
    """Returns a dense layer of a sentence-transformers model.

    Raises:
        ConfigError: Its files are missing or do not fit.
    """
    config = read_json(source, f"{folder}/config.json")
    weights = find_file(source, f"{folder}/model.safetensors")
    if config is None or weights is None:
        message = f"modules.json names {folder}, which lacks config.json or model.safetensors"
        raise bad_setting("model.name_or_path", message)
    name = str(config.get("activation_function", "torch.nn.modules.linear.Identity"))
    activation = getattr(torch.nn, name.rpartition(".")[2], None)
    if not name.startswith("torch.nn.") or activation is None:
        message = f"{folder}/config.json names an activation {name!r}, which torch does not have"
        raise bad_setting("model.name_or_path", message)
    linear = torch.nn.Linear(
        config["in_features"], config["out_features"], config.get("bias", True)
    )
    state = {key.removeprefix("linear."): value for key, value in load_file(weights).items()}
    try:
        linear.load_state_dict(state)
    except RuntimeError as error:
        message = f"the weights of {folder} do not fit its config.json: {error}"
        raise bad_setting("model.name_or_path", message) from error
    return torch.nn.Sequential(linear, activation()).eval()
