"""A GGUF file has the model's tensors and computes its logits, read by gguf and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from deployments.vllm.tiny_model import make_tiny_adapter, make_tiny_llama
from truthgpt_serve.takeaway.errors import TakeawayError
from truthgpt_serve.takeaway.export import export
from truthgpt_serve.takeaway.text.gguf_vocab import SPLITS, split_name

SIZES: dict[str, Any] = {
    "vocab_size": 1540,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 128}),  # transformers reads no other size from its files
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("base") / "llama")


def make(folder: Path, base: Path, kind: str, **settings: Any) -> Any:
    """Writes a random model of an architecture; its vocabulary has rows without a token."""
    torch.manual_seed(1)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **settings})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn(weight.shape)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(3, 40)[None]).logits
    return found


@pytest.mark.parametrize("name", KINDS)
def test_what_is_read_back_is_the_model(name: str, base: Path, tmp_path: Path) -> None:
    kind, settings = KINDS[name]
    # The folder's name is in the file: transformers guesses from one with "mistral" in it.
    model = make(tmp_path / "model", base, kind, **settings)
    folder, lines = export(tmp_path / "model", "gguf")
    assert folder == tmp_path / "model-gguf"
    assert "F32" in lines[0]
    reader = gguf.GGUFReader(folder / "model.gguf")
    tied = model.config.tie_word_embeddings
    assert len(reader.tensors) == len(model.state_dict()) - tied
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    wanted = model.state_dict()
    layer = "model.layers.1."
    for own, theirs in (
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.1.ffn_down.weight", f"{layer}mlp.down_proj.weight"),
        ("blk.1.attn_v.weight", f"{layer}self_attn.v_proj.weight"),
        ("output_norm.weight", "model.norm.weight"),
    ):
        assert numpy.array_equal(found[own], wanted[theirs].numpy())
    again = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf").eval()
    assert (logits(again) - logits(model)).abs().max() <= 1e-4


def test_an_adapter_is_merged_and_the_tokenizer_is_in_the_file(base: Path, tmp_path: Path) -> None:
    adapter = make_tiny_adapter(tmp_path / "adapter")
    folder, _ = export(adapter, "gguf", base=str(base), dtype="float16", out=tmp_path / "out")
    reader = gguf.GGUFReader(folder / "model.gguf")
    kinds = {tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds == {"F16", "F32"}
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert reader.fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert [tokens[n] for n in (0, 300, 900)] == tokenizer.convert_ids_to_tokens([0, 300, 900])
    assert reader.fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer.eos_token_id
    assert reader.fields["tokenizer.ggml.pre"].contents() == "gpt-2"


def test_what_would_be_lost_is_refused(base: Path, tmp_path: Path) -> None:
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    make(tmp_path / "scaled", base, "Llama", rope_parameters=scaled)
    make(tmp_path / "window", base, "Mistral", sliding_window=32)
    make(tmp_path / "gemma", base, "Gemma")
    for name, words in (
        ("scaled", r"scaled positions \(linear\)"),
        ("window", "a sliding window"),
        ("gemma", r"GemmaForCausalLM is not .*convert_hf_to_gguf"),
    ):
        with pytest.raises(TakeawayError, match=words):
            export(tmp_path / name, "gguf")
    assert [path.name for path in tmp_path.iterdir() if "gguf" in path.name] == []


def test_tokenizers_are_named_by_how_they_split() -> None:
    model = {"type": "BPE", "byte_fallback": False}
    ends = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    for pattern, name in SPLITS.items():
        split = {"type": "Split", "pattern": {"Regex": pattern}}
        pre = {"type": "Sequence", "pretokenizers": [split, ends]}
        normalizer = {"type": "NFC"} if name == "qwen2" else None
        given = {"model": model, "pre_tokenizer": pre, "normalizer": normalizer}
        assert split_name(given) == name
        with pytest.raises(TakeawayError, match="none of those whose name"):
            split_name({**given, "normalizer": {"type": "Lowercase"}})
    for other in ({}, {"model": {"type": "Unigram"}}, {"model": {**model, "byte_fallback": True}}):
        with pytest.raises(TakeawayError, match="none of those whose name"):
            split_name(other)
