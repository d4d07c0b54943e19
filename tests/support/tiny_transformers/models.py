"""Makes small random models of every kind that this family runs, the same weights every time.

They have seen no data, so what they say is noise: for tests and demos. `python -m` of this module
writes one of them into a folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.tiny_transformers.files import save, spread
from tests.support.tiny_transformers.speech import make_tiny_speech

SEED = 42
WORDS = (
    "the",
    "a",
    "small",
    "large",
    "red",
    "blue",
    "cat",
    "dog",
    "runs",
    "sleeps",
    "under",
    "tree",
)
LABELS = ("bird", "boat", "bread", "bridge")


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _word_tokenizer(folder: Path) -> Any:
    """Writes a tokenizer with a token for each word and letter, in BERT's layout."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters]
    pieces += [f"##{letter}" for letter in letters]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    fast.save_pretrained(folder)
    return fast


def _bert_config(tokenizer: Any, **options: Any) -> Any:
    return transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        **options,
    )


def make_one_layer_llama(folder: Path) -> Path:
    """Writes the tiny Llama without its second layer: a compiler takes half as long with it."""
    make_tiny_llama(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    del model.model.layers[1:]
    model.config.num_hidden_layers = 1
    model.config.layer_types = None
    return save(folder, model)


def make_tiny_encoder(
    folder: Path, *, pooling: str = "mean", normalize: bool = True, dense: int | None = None
) -> Path:
    """Writes a BERT with sentence-transformers' files; 32 values, 64 tokens.

    Args:
        folder: Where to.
        pooling: The pooling that `1_Pooling/config.json` names, such as `mean` or `cls_token`.
        normalize: Whether `modules.json` has a `Normalize` at its end.
        dense: Values that a dense layer behind the pooling makes; None for no such layer.
    """
    torch.manual_seed(SEED)
    tokenizer = _word_tokenizer(folder)
    save(folder, spread(transformers.BertModel(_bert_config(tokenizer))))
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    keys = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")
    chosen = {f"pooling_mode_{key}": key.removesuffix("_tokens") == pooling for key in keys}
    chosen["pooling_mode_cls_token"] = pooling == "cls"
    _write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, **chosen})
    if dense is not None:
        kinds.append(("2_Dense", "Dense"))
        _write_dense(folder / "2_Dense", dense)
    if normalize:
        kinds.append((f"{len(kinds)}_Normalize", "Normalize"))
    rows = [
        {
            "idx": index,
            "name": str(index),
            "path": path,
            "type": f"sentence_transformers.models.{k}",
        }
        for index, (path, k) in enumerate(kinds)
    ]
    _write(folder / "modules.json", rows)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": 48, "do_lower_case": True})
    return folder


def _write_dense(folder: Path, size: int) -> None:
    from safetensors.torch import save_file

    config = {
        "in_features": 32,
        "out_features": size,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    _write(folder / "config.json", config)
    weights = {"linear.weight": torch.randn(size, 32) / 4, "linear.bias": torch.randn(size) / 4}
    save_file(weights, folder / "model.safetensors")


def _labels() -> dict[str, Any]:
    names = dict(enumerate(LABELS))
    return {"id2label": names, "label2id": {name: index for index, name in names.items()}}


def make_tiny_classifier(folder: Path) -> Path:
    """Writes a BERT that tells texts apart, with the labels of `LABELS`."""
    torch.manual_seed(SEED)
    tokenizer = _word_tokenizer(folder)
    config = _bert_config(tokenizer, **_labels())
    return save(folder, spread(transformers.BertForSequenceClassification(config)))


def make_tiny_vision(folder: Path) -> Path:
    """Writes a ViT that tells images of 32 by 32 pixels apart, with the labels of `LABELS`."""
    torch.manual_seed(SEED)
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=32,
        patch_size=8,
        **_labels(),
    )
    save(folder, spread(transformers.ViTForImageClassification(config)))
    processor = transformers.ViTImageProcessorPil(size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    return folder


def make_tiny_seq2seq(folder: Path) -> Path:
    """Writes a T5: an encoder for the prompt and a decoder for the answer."""
    torch.manual_seed(SEED)
    tokenizer = _word_tokenizer(folder)
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.sep_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return save(folder, transformers.T5ForConditionalGeneration(config))


def make_tiny_state_space(folder: Path) -> Path:
    """Writes a Mamba: a decoder whose memory is no cache of keys and values."""
    torch.manual_seed(SEED)
    tokenizer = _word_tokenizer(folder)
    config = transformers.MambaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        state_size=8,
        num_hidden_layers=2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    return save(folder, transformers.MambaForCausalLM(config))


MAKERS: dict[str, Callable[[Path], Path]] = {
    "classifier": make_tiny_classifier,
    "encoder": make_tiny_encoder,
    "seq2seq": make_tiny_seq2seq,
    "speech": make_tiny_speech,
    "state-space": make_tiny_state_space,
    "vision": make_tiny_vision,
}


def main() -> None:
    """Writes the model that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=sorted(MAKERS))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    MAKERS[arguments.kind](arguments.folder)


if __name__ == "__main__":
    main()
