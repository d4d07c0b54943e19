"""Which argument of which module has which role, read from the `forward` of each in diffusers 0.42.

A module or an argument that is not here runs alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from deployments.hf_diffusers.stepping.calls.argument_roles import (
    ArgumentRole,
    Entries,
    Exactly,
    Ignore,
    Items,
    Row,
    RowList,
    RowListEqual,
    Shared,
    Timestep,
    Value,
)


@dataclass(frozen=True)
class Padded:
    """Two arguments that belong together: rows of differing length, and the mask of what counts.

    `states`: (rows, length, ...); `mask`: (rows, length), true where a position counts, or None
    when all do. Shorter rows are padded with zeros to the longest and masked. Lengths in one
    multiple of `length_bucket` share a forward, so that a short prompt does not pay for a long one.
    """

    states: str
    mask: str
    length_bucket: int = 256


@dataclass(frozen=True)
class ModuleSpec:
    """The roles of one method's arguments."""

    primary: str
    """The argument that says how many rows a call has, and on which device: a tensor or a list."""
    roles: Mapping[str, ArgumentRole]
    is_denoiser: bool = False
    padded: Padded | None = None
    row_lists: bool = False
    """The output is a list with a tensor per row, not a tensor with a dimension of rows."""


ROW = Row()
VALUE = Value()
STEP = Timestep()
# These modules turn their timesteps to float32 before anything else reads them
# (diffusers.models.embeddings.get_timestep_embedding), so doing it earlier changes no bit, and
# requests whose schedulers count in integers share a forward with those that count in floats.
FLOAT_STEP = Timestep(dtype=torch.float32)
BLOCKS = Items(ROW)
# Read as `ids[0]` when they have three dimensions: one set for the whole batch.
IDS = Shared(batched_ndim=3)


def _spec(primary: str, roles: Mapping[str, ArgumentRole], is_denoiser: bool = False) -> ModuleSpec:
    return ModuleSpec(
        primary=primary,
        roles=MappingProxyType({"return_dict": VALUE, **roles}),
        is_denoiser=is_denoiser,
    )


# An IP-Adapter's `image_embeds` is a list, not a row tensor, so such a call runs alone.
_UNET_CONDITIONS = Entries(
    (("text_embeds", ROW), ("time_ids", ROW), ("image_embeds", ROW), ("hint", ROW))
)

_UNET: dict[str, ArgumentRole] = {
    "sample": ROW,
    "timestep": FLOAT_STEP,
    "encoder_hidden_states": ROW,
    "class_labels": ROW,
    "timestep_cond": ROW,
    "attention_mask": ROW,
    "cross_attention_kwargs": VALUE,
    "added_cond_kwargs": _UNET_CONDITIONS,
}

_UNET_2D = _spec(
    "sample",
    dict(
        _UNET,
        encoder_attention_mask=ROW,
        down_block_additional_residuals=BLOCKS,
        mid_block_additional_residual=ROW,
        down_intrablock_additional_residuals=BLOCKS,
    ),
    is_denoiser=True,
)

_CONTROLNET = _spec(
    "sample", dict(_UNET, controlnet_cond=ROW, conditioning_scale=VALUE, guess_mode=VALUE)
)

_MULTI_CONTROLNET = _spec(
    "sample", dict(_UNET, controlnet_cond=Items(ROW), conditioning_scale=VALUE, guess_mode=VALUE)
)

_SD3_INPUTS: dict[str, ArgumentRole] = {
    "hidden_states": ROW,
    "encoder_hidden_states": ROW,
    "pooled_projections": ROW,
    "timestep": FLOAT_STEP,
    "joint_attention_kwargs": VALUE,
}

_SD3 = _spec(
    "hidden_states",
    dict(_SD3_INPUTS, block_controlnet_hidden_states=BLOCKS, skip_layers=VALUE),
    is_denoiser=True,
)

_SD3_CONTROLNET = _spec(
    "hidden_states", dict(_SD3_INPUTS, controlnet_cond=ROW, conditioning_scale=VALUE)
)

_FLUX_INPUTS: dict[str, ArgumentRole] = {
    "hidden_states": ROW,
    "encoder_hidden_states": ROW,
    "pooled_projections": ROW,
    "timestep": STEP,
    "img_ids": IDS,
    "txt_ids": IDS,
    "guidance": STEP,
    "joint_attention_kwargs": VALUE,
}

_FLUX = _spec(
    "hidden_states",
    dict(
        _FLUX_INPUTS,
        controlnet_block_samples=BLOCKS,
        controlnet_single_block_samples=BLOCKS,
        controlnet_blocks_repeat=VALUE,
    ),
    is_denoiser=True,
)

_FLUX_CONTROLNET = _spec(
    "hidden_states",
    dict(_FLUX_INPUTS, controlnet_cond=ROW, controlnet_mode=ROW, conditioning_scale=VALUE),
)

# Its key-value cache belongs to one request: the arguments for it have no role.
_FLUX2 = _spec(
    "hidden_states",
    dict(
        hidden_states=ROW,
        encoder_hidden_states=ROW,
        timestep=STEP,
        img_ids=IDS,
        txt_ids=IDS,
        guidance=STEP,
        joint_attention_kwargs=VALUE,
    ),
    is_denoiser=True,
)

# Text positions do not depend on the padded length, and padded keys are masked in the attention.
_QWEN_IMAGE = ModuleSpec(
    primary="hidden_states",
    roles=MappingProxyType(
        {
            "hidden_states": ROW,
            "timestep": STEP,
            "img_shapes": RowListEqual(),
            "guidance": STEP,
            "attention_kwargs": VALUE,
            "controlnet_block_samples": BLOCKS,
            "additional_t_cond": ROW,
            "return_dict": VALUE,
        }
    ),
    padded=Padded("encoder_hidden_states", "encoder_hidden_states_mask"),
    is_denoiser=True,
)

# It pads and masks captions of differing length by itself. ControlNet residuals come keyed by layer
# and padded to the caption lengths of their own request: no role.
_Z_IMAGE = ModuleSpec(
    primary="x",
    roles=MappingProxyType(
        {
            "x": RowList(),
            "t": STEP,
            "cap_feats": RowList(ragged=True),
            "patch_size": VALUE,
            "f_patch_size": VALUE,
            "joint_attention_kwargs": VALUE,
            "return_dict": VALUE,
        }
    ),
    row_lists=True,
    is_denoiser=True,
)

_SANA_INPUTS: dict[str, ArgumentRole] = {
    "hidden_states": ROW,
    "encoder_hidden_states": ROW,
    "timestep": FLOAT_STEP,
    "encoder_attention_mask": ROW,
    "attention_mask": ROW,
    "attention_kwargs": VALUE,
}

_SANA = _spec(
    "hidden_states",
    dict(_SANA_INPUTS, guidance=ROW, controlnet_block_samples=BLOCKS),
    is_denoiser=True,
)

_SANA_CONTROLNET = _spec(
    "hidden_states", dict(_SANA_INPUTS, controlnet_cond=ROW, conditioning_scale=VALUE)
)

_PIXART = _spec(
    "hidden_states",
    {
        "hidden_states": ROW,
        "encoder_hidden_states": ROW,
        "timestep": FLOAT_STEP,
        "added_cond_kwargs": Entries((("resolution", ROW), ("aspect_ratio", ROW))),
        "cross_attention_kwargs": VALUE,
        "attention_mask": ROW,
        "encoder_attention_mask": ROW,
    },
    is_denoiser=True,
)

_TEXT_INPUTS: dict[str, ArgumentRole] = {
    "input_ids": ROW,
    "attention_mask": ROW,
    "output_hidden_states": VALUE,
    "output_attentions": VALUE,
}

_TEXT_ENCODER = _spec("input_ids", dict(_TEXT_INPUTS))

# A language model returns its key-value cache unless told not to, and a cache cannot be split
# without copying it. The pipelines of Flux2 pass `use_cache=False`; those of Sana and Z-Image do
# not, so their prompts are encoded one request at a time. Qwen2.5-VL is not here at all: it keeps
# the position offsets of its latest call in the module.
_LANGUAGE_MODEL = _spec("input_ids", dict(_TEXT_INPUTS, use_cache=Exactly(False)))

# `generator` is in the signature for other decoders' sake: these do not read it.
_DECODER = _spec("z", dict(z=ROW, generator=Ignore()))
_TINY_DECODER = _spec("x", dict(x=ROW, generator=Ignore()))

SPECS: Mapping[tuple[str, str], ModuleSpec] = MappingProxyType(
    {
        ("UNet2DConditionModel", "forward"): _UNET_2D,
        ("ControlNetModel", "forward"): _CONTROLNET,
        ("MultiControlNetModel", "forward"): _MULTI_CONTROLNET,
        ("SD3Transformer2DModel", "forward"): _SD3,
        ("SD3ControlNetModel", "forward"): _SD3_CONTROLNET,
        ("FluxTransformer2DModel", "forward"): _FLUX,
        ("FluxControlNetModel", "forward"): _FLUX_CONTROLNET,
        ("Flux2Transformer2DModel", "forward"): _FLUX2,
        ("QwenImageTransformer2DModel", "forward"): _QWEN_IMAGE,
        ("ZImageTransformer2DModel", "forward"): _Z_IMAGE,
        ("SanaTransformer2DModel", "forward"): _SANA,
        ("SanaControlNetModel", "forward"): _SANA_CONTROLNET,
        ("PixArtTransformer2DModel", "forward"): _PIXART,
        ("CLIPTextModel", "forward"): _TEXT_ENCODER,
        ("CLIPTextModelWithProjection", "forward"): _TEXT_ENCODER,
        ("T5EncoderModel", "forward"): _TEXT_ENCODER,
        ("Gemma2Model", "forward"): _LANGUAGE_MODEL,
        ("Qwen3Model", "forward"): _LANGUAGE_MODEL,
        ("Qwen3ForCausalLM", "forward"): _LANGUAGE_MODEL,
        ("Mistral3ForConditionalGeneration", "forward"): _LANGUAGE_MODEL,
        ("AutoencoderKL", "decode"): _DECODER,
        ("AutoencoderKLFlux2", "decode"): _DECODER,
        ("AutoencoderKLQwenImage", "decode"): _DECODER,
        ("AutoencoderDC", "decode"): _DECODER,
        ("AutoencoderTiny", "decode"): _TINY_DECODER,
    }
)
"""Keyed by the class that defines the method and the method. `encode` is in none: its output is a
distribution object from which the pipeline draws with the request's own generator."""
