from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from deployments.hf_diffusers.stepping.calls.argument_roles import UnbatchableError
from deployments.hf_diffusers.stepping.calls.schema_table import SPECS
from deployments.hf_diffusers.stepping.calls.schemas import CallSchema, find_schema, guess_schema
from deployments.hf_diffusers.stepping.calls.tensor_hash import Digests
from deployments.hf_diffusers.tiny_models.text_encoders import WIDTH
from tests.support.image_calls import flux2_call, noise, schema_of, steps, unet_call, z_image_call
from tests.support.tiny_images import create_pipeline, denoisers


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
    changes: tuple[dict[str, Any], ...] = (
        {"sample": noise(1, 4, 8, 16)},
        {"sample": noise(1, 4, 16, 16).to(torch.bfloat16)},
        {"encoder_hidden_states": noise(1, 8, WIDTH)},
        {"return_dict": True},
        {"cross_attention_kwargs": {"scale": 0.5}},
        {"added_cond_kwargs": {}},
        {"mid_block_additional_residual": noise(1, 32, 8, 8)},
        {"down_block_additional_residuals": [noise(1, 4)]},
        {"down_block_additional_residuals": (noise(1, 4),)},
    )
    for change in changes:
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
    def forward(self: Any, hidden_states: Any, timestep: Any, **more: Any) -> Any:
        return hidden_states

    unknown = type("Unknown", (nn.Module,), {"forward": forward})
    return guess_schema(unknown(), "__call__", kwargs)


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
