from __future__ import annotations

from typing import Any

import pytest
import torch

from deployments.hf_diffusers.stepping.calls.argument_roles import UnbatchableError
from deployments.hf_diffusers.stepping.calls.schemas import find_schema, guess_schema
from deployments.hf_diffusers.stepping.calls.tensor_hash import Digests
from deployments.hf_diffusers.tiny_models.flux import create_flux_transformer, create_vae
from deployments.hf_diffusers.tiny_models.text_encoders import WIDTH, create_t5
from tests.support.image_calls import (
    Call,
    check_batch,
    flux2_call,
    flux_call,
    noise,
    qwen_call,
    schema_of,
    steps,
    unet_call,
    xl_conditions,
    z_image_call,
)
from tests.support.tiny_images import denoisers, text_encoders


def test_unet_joins_timesteps_of_every_form_and_dtype() -> None:
    calls = [
        unet_call(2, torch.tensor(981)),
        unet_call(1, 17),
        unet_call(1, torch.tensor(3.25)),
        unet_call(2, torch.tensor([5, 900])),
        unet_call(1, torch.tensor([1.5], dtype=torch.float64)),
    ]
    check_batch(denoisers.create_unet(1), calls)


def test_unet_with_the_conditions_of_sdxl() -> None:
    unet = denoisers.create_unet(1, xl=True)
    calls = [
        unet_call(
            rows,
            torch.tensor(500),
            encoder_hidden_states=noise(rows, 7, 2 * WIDTH),
            added_cond_kwargs=xl_conditions(rows),
        )
        for rows in (2, 1, 3)
    ]
    check_batch(unet, calls)


def test_residuals_of_a_controlnet_go_row_by_row_even_when_as_many_as_the_rows() -> None:
    unet, controlnet = denoisers.create_unet(1), denoisers.create_controlnet(2)
    calls = []
    for rows in (2, 2):
        call = unet_call(rows, torch.tensor(300))
        with torch.no_grad():
            down, mid = controlnet(**call, controlnet_cond=noise(rows, 3, 32, 32))
        calls.append(
            call | {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        )
        assert len(down) == 4  # the two calls together have as many rows as residuals
    check_batch(unet, calls)


def test_controlnet() -> None:
    calls = [
        unet_call(rows, torch.tensor(300), controlnet_cond=noise(rows, 3, 32, 32))
        for rows in (1, 2)
    ]
    controlnet = denoisers.create_controlnet(2)
    check_batch(controlnet, calls)
    schema, digests = schema_of(controlnet), Digests()
    other = calls[0] | {"conditioning_scale": 0.5}
    assert schema.key(other, digests) != schema.key(calls[0], digests)
    assert schema.key(calls[0] | {"conditioning_scale": 1.0}, digests) == schema.key(
        calls[0], digests
    )


def test_several_controlnets() -> None:
    from diffusers import MultiControlNetModel

    module = MultiControlNetModel([denoisers.create_controlnet(seed) for seed in (1, 2)])
    calls = [
        unet_call(
            rows,
            torch.tensor(300),
            controlnet_cond=[noise(rows, 3, 32, 32), noise(rows, 3, 32, 32)],
            conditioning_scale=[1.0, 0.5],
        )
        for rows in (1, 2)
    ]
    check_batch(module, calls)


def test_sd3() -> None:
    calls = [
        {
            "hidden_states": noise(rows, denoisers.SD3_LATENT_CHANNELS, 16, 16),
            "encoder_hidden_states": noise(rows, 9, 2 * WIDTH),
            "pooled_projections": noise(rows, 2 * WIDTH),
            "timestep": steps(*[700.0] * rows),
            "block_controlnet_hidden_states": [noise(rows, 64, 32)],
            "return_dict": as_dict,
        }
        for rows, as_dict in ((2, True), (1, True))
    ]
    check_batch(denoisers.create_sd3_transformer(1), calls)


def test_flux_compares_position_ids_by_content() -> None:
    flux = create_flux_transformer(1)
    check_batch(flux, [flux_call(1), flux_call(2), flux_call(1)])
    schema, digests = schema_of(flux), Digests()
    other = flux_call(1, img_ids=torch.arange(48.0).reshape(16, 3) + 1)
    assert schema.key(other, digests) != schema.key(flux_call(1), digests)


def test_flux2_shares_a_forward_only_with_the_same_first_position_ids() -> None:
    flux2 = denoisers.create_flux2_transformer(1, guidance=True, num_text_layers=2)
    # The module reads item 0 alone: calls whose others differ still get what they get alone.
    check_batch(flux2, [flux2_call(1), flux2_call(2), flux2_call(3)])
    schema, digests = schema_of(flux2), Digests()
    assert schema.key(flux2_call(1), digests) != schema.key(flux2_call(1, first=7), digests)


def test_qwen_pads_prompts_of_different_length() -> None:
    holes = torch.tensor([[1, 1, 0], [1, 0, 0]])
    calls = [qwen_call(1, 11), qwen_call(2, 3, holes), qwen_call(1, 5), qwen_call(1, 11)]
    check_batch(denoisers.create_qwen_transformer(1), calls)


def test_qwen_without_padding_gets_no_mask() -> None:
    schema = schema_of(denoisers.create_qwen_transformer(1))
    merged = schema.merge([qwen_call(1, 4), qwen_call(2, 4)], [1, 2])
    assert merged["encoder_hidden_states_mask"] is None
    assert merged["encoder_hidden_states"].shape == (3, 4, WIDTH)


def test_qwen_refuses_what_its_positions_do_not_allow() -> None:
    schema, digests = schema_of(denoisers.create_qwen_transformer(1)), Digests()
    base = qwen_call(1, 4)
    assert schema.key(base | {"img_shapes": [[(1, 2, 8)]]}, digests) != schema.key(base, digests)
    # Far longer prompts do not make the short ones pay.
    assert schema.key(qwen_call(1, 300), digests) != schema.key(base, digests)
    for wrong in (
        {"img_shapes": [[(1, 4, 4)]] * 2},
        {"encoder_hidden_states_mask": torch.ones(1, 5)},
        {"encoder_hidden_states": None},
    ):
        with pytest.raises(UnbatchableError):
            schema.key(base | wrong, digests)
    with pytest.raises(UnbatchableError, match="equal items"):
        schema.key(qwen_call(2, 4) | {"img_shapes": [[(1, 4, 4)], [(1, 2, 8)]]}, digests)


def test_z_image_takes_and_gives_a_list_with_an_item_per_row() -> None:
    transformer = denoisers.create_z_image_transformer(1)
    check_batch(transformer, [z_image_call(5, 40), z_image_call(33), z_image_call(70, 3)])
    schema, digests = schema_of(transformer), Digests()
    residuals = {"controlnet_block_samples": {0: noise(1, 96, 32)}}
    with pytest.raises(UnbatchableError, match="controlnet_block_samples"):
        schema.key(z_image_call(5) | residuals, digests)


def test_sana_and_pixart() -> None:
    def call(rows: int, **more: Any) -> dict[str, Any]:
        mask = torch.ones(rows, 9)
        mask[:, 5 + rows :] = 0
        return {
            "hidden_states": noise(rows, 4, 16, 16),
            "encoder_hidden_states": noise(rows, 9, WIDTH),
            "encoder_attention_mask": mask,
            "timestep": torch.full([rows], 400 + rows),
            "return_dict": False,
        } | more

    check_batch(denoisers.create_sana_transformer(1), [call(1), call(2)])
    sizes = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
    check_batch(denoisers.create_pixart_transformer(1), [call(2, **sizes), call(1, **sizes)])


@pytest.mark.parametrize("projection", [False, True])
def test_clip_text_encoders(projection: bool) -> None:
    tokenizer, model = text_encoders.create_clip(1, projection=projection)
    calls = [
        {
            "input_ids": tokenizer(
                texts, padding="max_length", max_length=16, truncation=True, return_tensors="pt"
            ).input_ids,
            "output_hidden_states": True,
        }
        for texts in (["a red fox"], ["a castle by the sea", "snow"])
    ]
    check_batch(model, calls)


def test_t5_text_encoder() -> None:
    tokenizer, model = create_t5(1)
    calls = [
        dict(tokenizer(text, padding="max_length", max_length=12, return_tensors="pt"))
        for text in ("fox", "a red sea")
    ]
    check_batch(model, calls)


def test_language_models_share_a_forward_only_without_their_cache() -> None:
    tokenizer, model = text_encoders.create_qwen3(1, causal_lm=True)
    calls: list[Call] = [
        {
            **tokenizer(text, padding="max_length", max_length=12, return_tensors="pt"),
            "output_hidden_states": True,
            "use_cache": False,
        }
        for text in ("fox", "a red sea")
    ]
    check_batch(model, calls)
    with pytest.raises(UnbatchableError, match="use_cache"):
        schema_of(model).key({"input_ids": calls[0]["input_ids"]}, Digests())


@pytest.mark.parametrize(
    ("create", "shape"),
    [
        (create_vae, (4, 8, 8)),
        (denoisers.create_flux2_vae, (4, 8, 8)),
        (denoisers.create_qwen_vae, (4, 1, 8, 8)),
        (denoisers.create_dc_vae, (4, 8, 8)),
    ],
)
def test_vae_decoders(create: Any, shape: tuple[int, ...]) -> None:
    vae = create(1)
    check_batch(vae, [{"z": noise(2, *shape)}, {"z": noise(1, *shape)}], method="decode")
    assert find_schema(vae, "encode") is None
    assert guess_schema(vae, "encode", {"x": noise(1, 3, 16, 16)}) is None
    assert not schema_of(vae, "decode").is_denoiser


def test_decoders_ignore_theGENERATOR() -> None:
    schema, digests = schema_of(create_vae(1), "decode"), Digests()
    latents = noise(1, 4, 8, 8)
    call = {"z": latents, "generator": torch.Generator(), "return_dict": False}
    assert schema.key(call, digests) == schema.key({"z": latents, "return_dict": False}, digests)
    assert "generator" not in schema.merge([call, call], [1, 1])
