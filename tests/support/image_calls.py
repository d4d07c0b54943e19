"""Calls of the modules of image pipelines, and what it means that they may share a forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from deployments.hf_diffusers.stepping.calls.schemas import CallSchema, find_schema
from deployments.hf_diffusers.stepping.calls.tensor_hash import Digests
from deployments.hf_diffusers.tiny_models.text_encoders import WIDTH

Call = Mapping[str, Any]
TOLERANCE = 2e-6

GENERATOR = torch.Generator().manual_seed(0)


def noise(*shape: int) -> Any:
    return torch.randn(*shape, generator=GENERATOR)


def steps(*values: float) -> Any:
    return torch.tensor(values)


def schema_of(module: nn.Module, method: str = "forward") -> CallSchema:
    schema = find_schema(module, method)
    assert schema is not None
    return schema


def flatten(output: Any) -> list[Any]:
    if isinstance(output, torch.Tensor):
        return [output]
    if output is None:
        return []
    items = output.values() if isinstance(output, dict) else output
    return [tensor for item in items for tensor in flatten(item)]


def check_batch(module: nn.Module, calls: Sequence[Call], method: str = "forward") -> None:
    """Runs the calls in one forward and alone: they share a key, and give the same."""
    with torch.no_grad():
        _check_batch(module, calls, method)


def _check_batch(module: nn.Module, calls: Sequence[Call], method: str) -> None:
    schema, digests = schema_of(module, method), Digests()
    assert len({schema.key(call, digests) for call in calls}) == 1
    rows = [schema.num_rows(call) for call in calls]
    run = getattr(module, method)
    parts = schema.split(run(**schema.merge(calls, rows)), rows)
    for call, part in zip(calls, parts, strict=True):
        alone = run(**call)
        assert type(part) is type(alone)
        pairs = list(zip(flatten(part), flatten(alone), strict=True))
        assert pairs
        for got, expected in pairs:
            # Of a sum near zero the rounding is that of its terms: as large as its neighbors are.
            atol = TOLERANCE * max(1.0, expected.abs().max().item())
            torch.testing.assert_close(got, expected, atol=atol, rtol=TOLERANCE)


def unet_call(rows: int, timestep: Any, **more: Any) -> dict[str, Any]:
    call = {
        "sample": noise(rows, 4, 16, 16),
        "timestep": timestep,
        "encoder_hidden_states": noise(rows, 7, WIDTH),
        "return_dict": False,
    }
    return call | more


def xl_conditions(rows: int) -> dict[str, Any]:
    sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]]).repeat(rows, 1)
    return {"text_embeds": noise(rows, WIDTH), "time_ids": sizes}


def flux_call(rows: int, **more: Any) -> dict[str, Any]:
    call = {
        "hidden_states": noise(rows, 16, 16),
        "encoder_hidden_states": noise(rows, 5, WIDTH),
        "pooled_projections": noise(rows, WIDTH),
        "timestep": torch.rand(rows, generator=GENERATOR),
        "guidance": torch.full([1], 3.5 + rows),
        "img_ids": torch.arange(48.0).reshape(16, 3),
        "txt_ids": torch.zeros(5, 3),
        "return_dict": False,
    }
    return call | more


def flux2_call(rows: int, first: int = 0) -> dict[str, Any]:
    ids = torch.stack([torch.arange(64).reshape(16, 4) + first + row for row in range(rows)])
    return {
        "hidden_states": noise(rows, 16, 16),
        "encoder_hidden_states": noise(rows, 5, 2 * WIDTH),
        "timestep": torch.rand(rows, generator=GENERATOR),
        "guidance": torch.full([rows], 4.0),
        "img_ids": ids,
        "txt_ids": torch.zeros(rows, 5, 4),
        "return_dict": False,
    }


def qwen_call(rows: int, length: int, mask: Any = None) -> dict[str, Any]:
    return {
        "hidden_states": noise(rows, 16, 16),
        "encoder_hidden_states": noise(rows, length, WIDTH),
        "encoder_hidden_states_mask": mask,
        "timestep": torch.rand(rows, generator=GENERATOR),
        "img_shapes": [[(1, 4, 4)]] * rows,
        "return_dict": False,
    }


def z_image_call(*lengths: int) -> dict[str, Any]:
    return {
        "x": [noise(4, 1, 16, 16) for _ in lengths],
        "t": torch.rand(len(lengths), generator=GENERATOR),
        "cap_feats": [noise(length, WIDTH) for length in lengths],
        "return_dict": False,
    }
