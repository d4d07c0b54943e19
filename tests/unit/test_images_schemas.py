from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from deployments.hf_diffusers.stepping.digests import Digests
from deployments.hf_diffusers.stepping.roles import UnbatchableError
from deployments.hf_diffusers.stepping.schema_table import SPECS
from deployments.hf_diffusers.stepping.schemas import CallSchema, find_schema, guess_schema
from deployments.hf_diffusers.tiny_models import create_pipeline, denoisers, text_encoders
from deployments.hf_diffusers.tiny_models.text_encoders import WIDTH

Call = Mapping[str, Any]
TOLERANCE = 2e-6

_generator = torch.Generator().manual_seed(0)


def noise(*shape: int) -> Any:
    return torch.randn(*shape, generator=_generator)


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


@torch.no_grad()
def check_batch(module: nn.Module, calls: Sequence[Call], method: str = "forward") -> None:
    """Runs the calls in one forward and alone: they share a key, and give the same."""
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
            torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=TOLERANCE)


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


def flux_call(rows: int, **more: Any) -> dict[str, Any]:
    call = {
        "hidden_states": noise(rows, 16, 16),
        "encoder_hidden_states": noise(rows, 5, WIDTH),
        "pooled_projections": noise(rows, WIDTH),
        "timestep": torch.rand(rows, generator=_generator),
        "guidance": torch.full([1], 3.5 + rows),
        "img_ids": torch.arange(48.0).reshape(16, 3),
        "txt_ids": torch.zeros(5, 3),
        "return_dict": False,
    }
    return call | more


def test_flux_compares_position_ids_by_content() -> None:
    flux = denoisers.create_flux_transformer(1)
    check_batch(flux, [flux_call(1), flux_call(2), flux_call(1)])
    schema, digests = schema_of(flux), Digests()
    other = flux_call(1, img_ids=torch.arange(48.0).reshape(16, 3) + 1)
    assert schema.key(other, digests) != schema.key(flux_call(1), digests)


def flux2_call(rows: int, first: int = 0) -> dict[str, Any]:
    ids = torch.stack([torch.arange(64).reshape(16, 4) + first + row for row in range(rows)])
    return {
        "hidden_states": noise(rows, 16, 16),
        "encoder_hidden_states": noise(rows, 5, 2 * WIDTH),
        "timestep": torch.rand(rows, generator=_generator),
        "guidance": torch.full([rows], 4.0),
        "img_ids": ids,
        "txt_ids": torch.zeros(rows, 5, 4),
        "return_dict": False,
    }


def test_flux2_shares_a_forward_only_with_the_same_first_position_ids() -> None:
    flux2 = denoisers.create_flux2_transformer(1, guidance=True, num_text_layers=2)
    # The module reads item 0 alone: calls whose others differ still get what they get alone.
    check_batch(flux2, [flux2_call(1), flux2_call(2), flux2_call(3)])
    schema, digests = schema_of(flux2), Digests()
    assert schema.key(flux2_call(1), digests) != schema.key(flux2_call(1, first=7), digests)


def qwen_call(rows: int, length: int, mask: Any = None) -> dict[str, Any]:
    return {
        "hidden_states": noise(rows, 16, 16),
        "encoder_hidden_states": noise(rows, length, WIDTH),
        "encoder_hidden_states_mask": mask,
        "timestep": torch.rand(rows, generator=_generator),
        "img_shapes": [[(1, 4, 4)]] * rows,
        "return_dict": False,
    }


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


def z_image_call(*lengths: int) -> dict[str, Any]:
    return {
        "x": [noise(4, 1, 16, 16) for _ in lengths],
        "t": torch.rand(len(lengths), generator=_generator),
        "cap_feats": [noise(length, WIDTH) for length in lengths],
        "return_dict": False,
    }


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
    tokenizer, model = text_encoders.create_t5(1)
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
        (denoisers.create_vae, (4, 8, 8)),
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


def test_decoders_ignore_the_generator() -> None:
    schema, digests = schema_of(denoisers.create_vae(1), "decode"), Digests()
    latents = noise(1, 4, 8, 8)
    call = {"z": latents, "generator": torch.Generator(), "return_dict": False}
    assert schema.key(call, digests) == schema.key({"z": latents, "return_dict": False}, digests)
    assert "generator" not in schema.merge([call, call], [1, 1])


def test_unknown_arguments_are_refused_unless_they_have_their_default() -> None:
    unet = denoisers.create_unet(1)
    schema, digests = schema_of(unet), Digests()
    flux2 = denoisers.create_flux2_transformer(1, guidance=True, num_text_layers=2)
    schema_of(flux2).key(flux2_call(1) | {"num_ref_tokens": 0, "kv_cache": None}, digests)
    with pytest.raises(UnbatchableError, match="num_ref_tokens"):
        schema_of(flux2).key(flux2_call(1) | {"num_ref_tokens": 4}, digests)
    for name, value in (
        ("surprise", 1),
        ("cross_attention_kwargs", {"gligen": {"boxes": noise(1, 4)}}),
        ("added_cond_kwargs", {"image_embeds": [noise(1, 4)]}),
        ("added_cond_kwargs", {"surprise": noise(1, 4)}),
        ("encoder_hidden_states", noise(2, 7, WIDTH)),
        ("timestep", steps(1, 2, 3)),
        ("timestep", "now"),
        ("sample", None),
        ("down_block_additional_residuals", (noise(2, 4),)),
    ):
        with pytest.raises(UnbatchableError, match=name):
            schema.key(unet_call(1, 5) | {name: value}, digests)


def test_keys_tell_calls_apart() -> None:
    schema, digests = schema_of(denoisers.create_unet(1)), Digests()
    base = unet_call(1, 5)
    same = schema.key(unet_call(2, 9), digests)
    assert schema.key(base, digests) == same
    assert schema.key(base | {"class_labels": None, "attention_mask": None}, digests) == same
    for change in (
        {"sample": noise(1, 4, 8, 16)},
        {"sample": noise(1, 4, 16, 16).to(torch.bfloat16)},
        {"encoder_hidden_states": noise(1, 8, WIDTH)},
        {"return_dict": True},
        {"cross_attention_kwargs": {"scale": 0.5}},
        {"added_cond_kwargs": {}},
        {"mid_block_additional_residual": noise(1, 32, 8, 8)},
        {"down_block_additional_residuals": [noise(1, 4)]},
        {"down_block_additional_residuals": (noise(1, 4),)},
    ):
        assert schema.key(base | change, digests) != same, change


def test_bind_names_positional_arguments() -> None:
    schema = schema_of(denoisers.create_unet(1), "__call__")
    assert schema.bind((1, 2), {"return_dict": False}) == {
        "sample": 1,
        "timestep": 2,
        "return_dict": False,
    }
    with pytest.raises(UnbatchableError, match="sample"):
        schema.bind((1,), {"sample": 2})
    with pytest.raises(UnbatchableError, match="40 positional"):
        schema.bind(range(40), {})


def test_one_call_alone_is_left_as_it_is() -> None:
    schema = schema_of(denoisers.create_unet(1))
    call = unet_call(2, torch.tensor(5), surprise=object())
    merged = schema.merge([call], [2])
    assert merged.keys() == call.keys()
    assert all(merged[name] is call[name] for name in call)
    output = object()
    assert schema.split(output, [2]) == [output]


def test_row_shape() -> None:
    assert schema_of(denoisers.create_unet(1)).row_shape(unet_call(2, 5)) == (4, 16, 16)
    z_image = schema_of(denoisers.create_z_image_transformer(1))
    assert z_image.row_shape(z_image_call(5, 6)) == (4, 1, 16, 16)


def test_split_keeps_types() -> None:
    schema = schema_of(denoisers.create_unet(1))
    output = (
        [noise(3, 2), None],
        Transformer2DModelOutput(sample=noise(3, 4)),
        BaseModelOutput(last_hidden_state=noise(3, 5), hidden_states=(noise(3, 1),)),
        {"plain": noise(3)},
    )
    first, second = schema.split(output, [2, 1])
    assert [type(item) for item in first] == [type(item) for item in output]
    assert first[0][0].shape == (2, 2)
    assert first[0][1] is None
    assert second[1].sample.shape == (1, 4)
    assert second[2].hidden_states[0].shape == (1, 1)
    assert second[2].attentions is None
    torch.testing.assert_close(second[3]["plain"], output[3]["plain"][2:])
    for wrong in (noise(4, 2), torch.tensor(1.0), "text", (noise(3), 7)):
        with pytest.raises(UnbatchableError):
            schema.split(wrong, [2, 1])


def test_a_list_of_the_length_of_the_batch_is_not_taken_for_rows() -> None:
    schema = schema_of(denoisers.create_controlnet(1))
    blocks = [noise(2, 3), noise(2, 4)]
    first, _ = schema.split((blocks, None), [1, 1])
    assert [block.shape for block in first[0]] == [(1, 3), (1, 4)]


def test_every_module_of_the_table_exists_with_those_arguments() -> None:
    import inspect

    import diffusers
    import transformers

    for (name, method), spec in SPECS.items():
        cls = getattr(diffusers, name, None) or getattr(transformers, name)
        parameters = inspect.signature(getattr(cls, method)).parameters
        if any(item.kind is item.VAR_KEYWORD for item in parameters.values()):
            continue
        padded = (spec.padded.states, spec.padded.mask) if spec.padded else ()
        unknown = {*spec.roles, *padded, spec.primary} - set(parameters)
        # Decoders share a schema, and some of them lack this one.
        assert unknown <= {"generator"}, name


def test_a_users_own_class_of_a_known_name_has_no_schema() -> None:
    cls = type("UNet2DConditionModel", (nn.Module,), {"forward": lambda self, sample: sample})
    assert find_schema(cls(), "forward") is None
    assert find_schema(nn.Linear(1, 1), "forward") is None
    assert find_schema(nn.Linear(1, 1), "decode") is None


def test_a_subclass_with_its_own_forward_has_no_schema() -> None:
    original = denoisers.create_unet(1)
    plain = type("Plain", (type(original),), {})
    changed = type("Changed", (type(original),), {"forward": lambda self, sample: sample})
    original.__class__ = plain
    assert find_schema(original, "forward") is not None
    original.__class__ = changed
    assert find_schema(original, "forward") is None


def guessed(kwargs: dict[str, Any]) -> CallSchema | None:
    class Unknown(nn.Module):
        def forward(self, hidden_states: Any, timestep: Any, **more: Any) -> Any:
            return hidden_states

    return guess_schema(Unknown(), "__call__", kwargs)


def test_guess_takes_only_known_names_for_rows() -> None:
    ids = torch.arange(6.0).reshape(1, 6)
    kwargs = {"hidden_states": noise(1, 3), "timestep": steps(1.0), "ids": ids, "scale": 2.0}
    schema = guessed(kwargs)
    assert schema is not None
    assert schema.is_denoiser
    digests = Digests()
    other = kwargs | {"hidden_states": noise(2, 3), "timestep": steps(2.0, 3.0)}
    assert schema.key(kwargs, digests) == schema.key(other, digests)
    merged = schema.merge([kwargs, other], [1, 2])
    assert merged["hidden_states"].shape == (3, 3)
    assert merged["timestep"].tolist() == [1.0, 2.0, 3.0]
    assert merged["ids"] is ids
    # A tensor of an unknown name may be shared or not: it must be equal.
    assert schema.key(kwargs | {"ids": ids + 1}, digests) != schema.key(kwargs, digests)
    with pytest.raises(UnbatchableError, match="late"):
        schema.key(kwargs | {"late": noise(1, 2)}, digests)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_states": None},
        {"hidden_states": noise(3)},
        {"timestep": 5},
        {"timestep": noise(1, 2)},
        {"encoder_hidden_states": noise(2, 4)},
        {"blocks": [noise(1, 2)]},
        {"more": {"image": noise(1, 2)}},
        {"anything": object()},
    ],
)
def test_guess_gives_up_in_doubt(change: dict[str, Any]) -> None:
    assert guessed({"hidden_states": noise(1, 3), "timestep": steps(1.0), **change}) is None


def test_every_call_of_a_stock_pipeline_follows_its_schema() -> None:
    pipeline = create_pipeline("sdxl")
    seen = []
    digests = Digests()

    def look(module: Any, args: Any, kwargs: Any) -> None:
        schema = schema_of(module)
        seen.append(schema.key(schema.bind(args, kwargs), digests))

    for name in ("unet", "text_encoder", "text_encoder_2"):
        getattr(pipeline, name).register_forward_pre_hook(look, with_kwargs=True)
    pipeline(
        "a fox",
        negative_prompt="rain",
        num_inference_steps=3,
        height=32,
        width=32,
        output_type="latent",
    )
    # Prompt and negative prompt through two encoders, then the steps, which all match.
    assert len(seen) == 7
    assert len(set(seen[4:])) == 1
