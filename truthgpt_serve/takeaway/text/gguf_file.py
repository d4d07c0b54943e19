"""Exports a text model as a GGUF file, by the package `gguf` of llama.cpp.

The names of tensors are those of its tensor map. What else a file needs follows llama.cpp's own
convert_hf_to_gguf.py, for the architectures that are tested here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy

from truthgpt_serve.takeaway.errors import TakeawayError
from truthgpt_serve.takeaway.output import check_room, writing
from truthgpt_serve.takeaway.result import Result
from truthgpt_serve.takeaway.text.gguf_vocab import add_vocab
from truthgpt_serve.takeaway.text.models import load_merged, load_tokenizer
from truthgpt_serve.training.text.quantized import weight_bytes

FILE = "model.gguf"
ARCHITECTURES = {
    "LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "MistralForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2,
    "Qwen3ForCausalLM": gguf.MODEL_ARCH.QWEN3,
}
_KINDS = {
    "float32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "float16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bfloat16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
}


def export(result: Result, out: Path, *, dtype: str | None, **_: Any) -> list[str]:
    """Writes the folder of a GGUF file, which holds the tokenizer and its chat template too.

    Args:
        result: An adapter, which is merged, or a whole model.
        out: The folder, see `check_output`.
        dtype: Number format of the matrices; None: as the base's. Vectors are in float32.

    Returns:
        Lines on what was done.

    Raises:
        TakeawayError: The architecture, a setting of it or the tokenizer is not known here.
    """
    model, difference = load_merged(result, dtype)
    kind, file_type = _KINDS[str(model.dtype).removeprefix("torch.")]
    architecture = _architecture(model)
    check_room(out, weight_bytes(model))
    with writing(out) as folder:
        writer = gguf.GGUFWriter(folder / FILE, gguf.MODEL_ARCH_NAMES[architecture])
        try:
            writer.add_name(result.name)
            writer.add_file_type(file_type)
            _add_settings(writer, model.config)
            add_vocab(writer, load_tokenizer(result), model.get_input_embeddings().weight.shape[0])
            for name, array in tensors(model, architecture):
                own = kind if array.ndim > 1 else gguf.GGMLQuantizationType.F32
                writer.add_tensor(name, gguf.quantize(array, own), raw_dtype=own)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
    lines = [f"architecture {gguf.MODEL_ARCH_NAMES[architecture]}, {kind.name}"]
    if difference is not None:
        lines.append(f"largest difference of a logit to base and adapter: {difference:.2g}")
    return lines


def _architecture(model: Any) -> Any:
    """Returns gguf's architecture.

    Raises:
        TakeawayError: It is unknown, or has a setting that would be lost.
    """
    name, config = type(model).__name__, model.config
    advice = "convert the folder of --to safetensors with llama.cpp's convert_hf_to_gguf.py"
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise TakeawayError(f"{name} is not exported to GGUF, only {known} are ({advice})")
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope != "default":
        raise TakeawayError(
            f"{name}: scaled positions ({rope}) are not exported to GGUF ({advice})"
        )
    if getattr(config, "sliding_window", None) is not None:
        raise TakeawayError(f"{name}: a sliding window is not exported to GGUF ({advice})")
    return ARCHITECTURES[name]


def _add_settings(writer: Any, config: Any) -> None:
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def tensors(model: Any, architecture: Any) -> Iterator[tuple[str, Any]]:
    """Yields each tensor under its name in GGUF, as a float32 array.

    llama.cpp rotates neighboring numbers of a head where transformers rotates its halves: the rows
    of Llama's queries and keys change their order for that.

    Raises:
        TakeawayError: One has no name there.
    """
    config = model.config
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    heads = {
        "q_proj": config.num_attention_heads,
        "k_proj": config.num_key_value_heads,
    }
    for key, weight in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise TakeawayError(f"the tensor {key} has no name in GGUF")
        array = weight.float().numpy()
        module = key.split(".")[-2]
        if architecture == gguf.MODEL_ARCH.LLAMA and module in heads:
            array = _interleave(array, heads[module])
        yield name, array


def _interleave(array: Any, num_heads: int) -> Any:
    """Returns the rows of each head in the order of rotated pairs, `[heads * size, ...]`."""
    halves = array.reshape(num_heads, 2, array.shape[0] // num_heads // 2, *array.shape[1:])
    return numpy.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))
