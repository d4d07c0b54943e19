"""Makes a small random Whisper, the same weights every time.

It has heard nothing, so what it writes is noise, but another one for another recording.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import pre_tokenizers

from tests.support.tiny_transformers.files import save, spread

SEED = 42
SAMPLING_RATE = 16000
LANGUAGES = ("en", "de", "fr")
WINDOW_S = 6
"""What it hears at once: a fifth of Whisper's 30 s, at a twentieth of their cost."""

SPEECH_POSITIONS = 50 * WINDOW_S
"""What its encoder makes of a window."""


def make_tiny_speech(folder: Path) -> Path:
    """Writes a Whisper-shaped model: byte tokens, three languages, timestamps every 20 ms."""
    torch.manual_seed(SEED)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _speech_tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    end, start = ids("<|endoftext|>"), ids("<|startoftranscript|>")
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=80,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_source_positions=SPEECH_POSITIONS,
        max_target_positions=96,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=start,
        begin_suppress_tokens=None,
        tie_word_embeddings=False,
    )
    model = spread(transformers.WhisperForConditionalGeneration(config))
    _make_legible(model, tokenizer)
    model.generation_config = transformers.GenerationConfig(
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=start,
        lang_to_id={f"<|{name}|>": ids(f"<|{name}|>") for name in LANGUAGES},
        task_to_id={name: ids(f"<|{name}|>") for name in ("transcribe", "translate")},
        is_multilingual=True,
        no_timestamps_token_id=ids("<|notimestamps|>"),
        prev_sot_token_id=ids("<|startofprev|>"),
        max_initial_timestamp_index=50,
        alignment_heads=[[1, 0], [1, 1]],
        return_timestamps=False,
        max_length=40,
    )
    save(folder, model)
    tokenizer.save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=80, chunk_length=WINDOW_S).save_pretrained(
        folder
    )
    return folder


def _make_legible(model: Any, tokenizer: Any) -> None:
    """Makes a speech model write printable letters, other ones for other recordings."""
    first_time = tokenizer.convert_tokens_to_ids("<|notimestamps|>") + 1
    texts = [tokenizer.decode([index]) for index in range(first_time)]
    others = [not (text.isascii() and text.isprintable()) for text in texts[:256]]
    with torch.no_grad():
        weight = model.proj_out.weight
        weight[:first_time][torch.tensor(others + [True] * (first_time - 256))] = 0
        weight[first_time:] *= 0.25
        for layer in model.model.decoder.layers:
            layer.encoder_attn.q_proj.weight *= 8  # sharper: it looks at a part of the recording


def _speech_tokenizer() -> Any:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    tokenizer = transformers.WhisperTokenizer(vocab=vocabulary, merges=[])
    special = ["<|endoftext|>", "<|startoftranscript|>"]
    special += [f"<|{name}|>" for name in LANGUAGES]
    special += ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>"]
    special += ["<|nospeech|>", "<|notimestamps|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.pad_token = "<|endoftext|>"
    times = [f"<|{step * 0.02:.2f}|>" for step in range(SPEECH_POSITIONS + 1)]
    tokenizer.add_tokens(times)
    return tokenizer
