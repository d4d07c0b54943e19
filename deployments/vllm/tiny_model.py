"""Makes a small random Llama, its tokenizer and LoRA adapters for it, the same bytes every time.

Imports neither vLLM nor torch: the weights are drawn by numpy and written as safetensors. The model
has seen no text, so what it says is noise; it is for demos, tests and load tests.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERSION = 1
"""Raised whenever the files change, so that an older folder is made anew."""

STAMP = "truthgpt-tiny.json"
"""Written last: a folder without it is incomplete."""

HIDDEN = 128
HEADS = 4
KV_HEADS = 2
HEAD_DIM = HIDDEN // HEADS
LAYERS = 2
INTERMEDIATE = 160
VOCABULARY = 1536
MAX_POSITIONS = 4096

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
TOOL_TOKENS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
BOS, _, EOS, PAD = SPECIAL_TOKENS

_ENDINGS = ("", "", "", "s", "ed", "ing", "er", "ly", "ness", "ment")


def make_tiny_llama(out: Path) -> Path:
    """Writes the model into the folder `out` unless it is there already; returns the folder.

    0.6 million float32 parameters, 1536 byte-level BPE tokens, 4096 positions, a chat template
    with tools.

    Raises:
        OSError: The folder cannot be written.
    """
    stamp = {"version": VERSION, "kind": "llama"}
    return _make(out, stamp, _write_llama)


def make_tiny_adapter(out: Path, *, seed: int = 1, rank: int = 8) -> Path:
    """Writes a LoRA adapter for the tiny Llama, in PEFT's layout; returns the folder `out`.

    Raises:
        OSError: The folder cannot be written.
    """
    stamp = {"version": VERSION, "kind": "adapter", "seed": seed, "rank": rank}
    return _make(out, stamp, lambda folder: _write_adapter(folder, seed=seed, rank=rank))


def _make(out: Path, stamp: dict[str, Any], write: Any) -> Path:
    """Writes beside `out` and renames, so that a reader never sees half a model."""
    if _read_stamp(out) == stamp:
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        write(work)
        _write_json(work / STAMP, stamp)
        work.chmod(0o755)
        _replace(work, out, stamp)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out


def _replace(work: Path, out: Path, stamp: dict[str, Any]) -> None:
    if out.exists() and _read_stamp(out) is None and any(out.iterdir()):
        raise FileExistsError(
            f"{out} exists and was not made by this program: name another folder or remove it"
        )
    shutil.rmtree(out, ignore_errors=True)
    try:
        os.rename(work, out)
    except OSError:
        # Another process may have put the same model there in the meantime.
        if _read_stamp(out) != stamp:
            raise


def _read_stamp(out: Path) -> Any:
    try:
        return json.loads((out / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_llama(folder: Path) -> None:
    ids = _write_tokenizer(folder)
    special = {"bos_token_id": ids[BOS], "eos_token_id": ids[EOS], "pad_token_id": ids[PAD]}
    _write_json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "dtype": "float32",
            "head_dim": HEAD_DIM,
            "hidden_act": "silu",
            "hidden_size": HIDDEN,
            "initializer_range": 0.02,
            "intermediate_size": INTERMEDIATE,
            "max_position_embeddings": MAX_POSITIONS,
            "mlp_bias": False,
            "num_attention_heads": HEADS,
            "num_hidden_layers": LAYERS,
            "num_key_value_heads": KV_HEADS,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
            "tie_word_embeddings": False,
            "use_cache": True,
            "vocab_size": VOCABULARY,
            **special,
        },
    )
    _write_json(folder / "generation_config.json", special)
    _save(folder / "model.safetensors", _weights(ids))


def _weights(ids: dict[str, int]) -> dict[str, NDArray[np.float32]]:
    generator = np.random.default_rng(42)

    def draw(rows: int, columns: int, scale: float) -> NDArray[np.float32]:
        values = generator.standard_normal((rows, columns), dtype=np.float32)
        return values * np.float32(scale / columns**0.5)

    head = draw(VOCABULARY, HIDDEN, 4.0)
    # Zero rows are never the largest, so greedy text stays printable ASCII without control tokens:
    # a lone byte of a longer UTF-8 sequence would be held back by every streaming detokenizer.
    head[[index for token, index in ids.items() if not token.isascii() and token[0] != "Ġ"]] = 0
    head[[ids[token] for token in (*SPECIAL_TOKENS, *TOOL_TOKENS)]] = 0
    tensors = {
        "model.embed_tokens.weight": draw(VOCABULARY, HIDDEN, HIDDEN**0.5),
        "model.norm.weight": np.ones(HIDDEN, dtype=np.float32),
        "lm_head.weight": head,
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for name, (rows, columns) in _projections().items():
            tensors[f"{prefix}.{name}.weight"] = draw(rows, columns, 1.5)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = np.ones(HIDDEN, dtype=np.float32)
    return tensors


def _projections() -> dict[str, tuple[int, int]]:
    """Returns (output features, input features) of each linear layer of a block."""
    return {
        "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
        "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    }


def _write_tokenizer(folder: Path) -> dict[str, int]:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(TOOL_TOKENS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sentences(), trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in TOOL_TOKENS])
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    if len(vocabulary) != VOCABULARY:
        raise RuntimeError(f"the tokenizer has {len(vocabulary)} tokens instead of {VOCABULARY}")
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "model_max_length": MAX_POSITIONS,
            "clean_up_tokenization_spaces": False,
        },
    )
    (folder / "chat_template.jinja").write_text(_read("tiny_chat_template.jinja"), encoding="utf-8")
    return vocabulary


def _read(name: str) -> str:
    return files("deployments.vllm").joinpath(name).read_text(encoding="utf-8")


def _sentences() -> list[str]:
    """Returns the text that the tokenizer learns from: word forms, numbers and JSON."""
    generator = random.Random(42)
    stems = json.loads(_read("tiny_words.json"))
    lines = []
    for number in range(4000):
        words = [generator.choice(stems) + generator.choice(_ENDINGS) for _ in range(10)]
        lines.append(" ".join(words).capitalize() + ".")
        if number % 10 == 0:
            lines.append(json.dumps({words[0]: number, words[1]: [words[2], True, None]}))
    return lines


def _write_adapter(folder: Path, *, seed: int, rank: int) -> None:
    targets = ("q_proj", "k_proj", "v_proj", "o_proj")
    _write_json(
        folder / "adapter_config.json",
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": "tiny-llama",
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "lora_alpha": 2 * rank,
            "lora_dropout": 0.0,
            "modules_to_save": None,
            "r": rank,
            "target_modules": list(targets),
        },
    )
    generator = np.random.default_rng(seed)
    tensors: dict[str, NDArray[np.float32]] = {}
    for layer in range(LAYERS):
        for name, (rows, columns) in _projections().items():
            if name.rpartition(".")[2] not in targets:
                continue
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            down = generator.standard_normal((rank, columns), dtype=np.float32)
            up = generator.standard_normal((rows, rank), dtype=np.float32)
            tensors[f"{prefix}.lora_A.weight"] = down * np.float32(columns**-0.5)
            tensors[f"{prefix}.lora_B.weight"] = up * np.float32(rank**-0.5)
    _save(folder / "adapter_model.safetensors", tensors)


def _save(path: Path, tensors: dict[str, NDArray[np.float32]]) -> None:
    from safetensors.numpy import save_file

    save_file(tensors, str(path), metadata={"format": "pt"})
    path.chmod(0o644)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: `python -m deployments.vllm.tiny_model --out FOLDER [--adapter FOLDER]`."""
    parser = argparse.ArgumentParser(description="Make the tiny random Llama.")
    parser.add_argument("--out", type=Path, default=Path(".models/tiny-llama"))
    parser.add_argument("--adapter", type=Path, help="also make a LoRA adapter in this folder")
    options = parser.parse_args(arguments)
    print(f"tiny Llama: {make_tiny_llama(options.out)}")
    if options.adapter is not None:
        print(f"tiny adapter: {make_tiny_adapter(options.adapter)}")


if __name__ == "__main__":
    main()
