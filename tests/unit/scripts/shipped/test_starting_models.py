from __future__ import annotations

import argparse
import hashlib
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from scripts.shipped import shapes_check, shapes_model, stories_check, stories_model
from scripts.shipped.shapes_draw import Kind, create_scene, draw_scene, write_caption
from scripts.shipped.stories import STYLES, split_sentences, write_example
from scripts.shipped.stories_data import write_train
from scripts.shipped.stories_tokenizer import SPECIAL


@pytest.fixture(scope="module")
def story_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stories_model.save_starting_model(tmp_path_factory.mktemp("story") / "model")


@pytest.fixture(scope="module")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes_model.save_starting_model(tmp_path_factory.mktemp("shapes") / "model")


@pytest.fixture(scope="module")
def tokenizer(story_folder: Path) -> Any:
    return Tokenizer.from_file(str(story_folder / "tokenizer.json"))


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    content = b"".join(str(path.relative_to(folder)).encode() + path.read_bytes() for path in files)
    return hashlib.sha256(content).hexdigest()


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.mark.long("makes both models twice")
def test_both_are_the_same_bytes_every_time(
    story_folder: Path, shapes_folder: Path, tmp_path: Path
) -> None:
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert digest(stories_model.save_starting_model(tmp_path / "a")) == digest(story_folder)
    assert digest(shapes_model.save_starting_model(tmp_path / "b")) == digest(shapes_folder)
    assert torch.equal(torch.get_rng_state(), state)


def test_both_are_small_enough_to_ship(story_folder: Path, shapes_folder: Path) -> None:
    assert size(story_folder) < 6_000_000
    assert size(story_folder) + size(shapes_folder) < 20_000_000


def test_the_story_model_is_a_llama_of_a_few_million_weights(story_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(story_folder)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.dtype == torch.bfloat16
    assert 2e6 < sum(weight.numel() for weight in model.parameters()) < 5e6
    ids = AutoTokenizer.from_pretrained(story_folder)("Once upon a time", return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=ids["input_ids"]).logits.float()
    # It knows nothing yet, but that a token is like itself.
    assert 0 < float(logits.std()) < 2
    assert logits.argmax(-1).tolist() == ids["input_ids"].tolist()


def test_each_word_of_the_grammar_is_one_token(tokenizer: Any) -> None:
    splitter = tokenizer.pre_tokenizer
    for index in range(300):
        text = write_example("train", 1, index, STYLES[index % 2]).story
        assert len(tokenizer.encode(text).ids) == 1 + len(splitter.pre_tokenize_str(text))
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


@given(st.text())
def test_any_text_comes_back_as_it_was(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if not any(token in text for token in SPECIAL):
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_chat_is_written_as_the_training_rows_are(story_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(story_folder)
    example = next(e for i in range(99) if (e := write_example("train", 1, i)).request)
    chat = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": example.request},
        {"role": "assistant", "content": example.story},
    ]
    row = tokenizer(example.text)["input_ids"]
    assert tokenizer.apply_chat_template(chat, return_dict=False) == [*row, tokenizer.eos_token_id]
    asked = tokenizer.apply_chat_template(chat[:2], add_generation_prompt=True, return_dict=False)
    assert asked == row[: len(asked)]
    assert tokenizer.decode(asked[-1]) == "<|assistant|>"
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3


def test_the_story_check_tells_new_from_known_and_whole_from_broken() -> None:
    train = [example.story for example in write_train(50, 7)]
    prompts = stories_check.create_prompts(8, seed=1)
    wholes = [write_example("prompt", 1, index).story for index in range(8)]
    found: list[str | None] = [
        whole[len(prompt.story) :] for whole, prompt in zip(wholes, prompts, strict=True)
    ]
    assert stories_check.count_parsed(prompts, found) == [True] * 8
    assert stories_check.count_known(found, 50, 7) == 0
    ends = [" " + split_sentences(story)[-1] for story in train[:3]]
    assert stories_check.count_known([*ends, " Nothing.", None], 50, 7) == 3
    found[0], found[1] = None, f"{found[1]} The end."
    assert stories_check.count_parsed(prompts, found) == [False] * 2 + [True] * 6


@pytest.mark.long("makes 150 stories")
def test_the_story_check_fails_an_untrained_model(
    story_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--num", "4", "--num-requests", "2", "--train-num", "100"]
    with pytest.raises(SystemExit, match="1"):
        stories_check.main(["--model", str(story_folder), *few])
    printed = capsys.readouterr().out
    assert "parse, and fit their beginning: 0 " in printed
    # Above the logarithm of the number of tokens, 7.6: it expects each token once more.
    loss = float(printed.split("held-out loss: ")[1].split()[0])
    assert 10 < loss < 25


def test_the_pipeline_draws_something_of_the_right_size(shapes_folder: Path) -> None:
    pipeline = shapes_check.load(shapes_folder, None)
    assert type(pipeline) is StableDiffusionPipeline
    images = shapes_check.draw(pipeline, ["a red circle"] * 2, steps=2, guidance=3, seed=0)
    assert [image.size for image in images] == [(64, 64)] * 2
    again = shapes_check.draw(pipeline, ["a red circle"] * 2, steps=2, guidance=3, seed=0)
    assert [p.tobytes() for p in images] == [p.tobytes() for p in again]


def test_the_pipeline_is_stored_in_half_precision(shapes_folder: Path) -> None:
    files = list(shapes_folder.rglob("*.safetensors"))
    assert {file.parent.name for file in files} == {"unet", "vae", "text_encoder"}
    for file in files:
        weights = load_file(file).values()
        assert {weight.dtype for weight in weights} == {torch.float16}
        assert all(bool(torch.isfinite(weight).all()) for weight in weights)


def test_captions_fit_into_the_text_encoder_one_token_a_word() -> None:
    tokenizer = shapes_model.create_tokenizer()
    rng = random.Random(5)
    kinds = [Kind("turquoise", "triangle", "bottom right"), Kind("purple", "cross", "top")]
    for kind in kinds * 100:
        caption = write_caption(create_scene(kind, rng), rng)
        ids = tokenizer(caption)["input_ids"]
        words = caption.replace(",", " ,").split()
        assert len(ids) == len(words) + 2 <= shapes_model.MAX_TOKENS
    padded = tokenizer("a red circle", padding="max_length", truncation=True)["input_ids"]
    assert len(padded) == shapes_model.MAX_TOKENS


def test_the_shapes_check_counts_each_respect() -> None:
    rng = random.Random(6)
    kinds = [
        Kind("red", "circle", "left"),
        Kind("blue", "ring", "top"),
        Kind("pink", "star", "top"),
    ]
    images = [draw_scene(create_scene(kind, rng)) for kind in kinds]
    every = {"color": 3, "shape": 3, "place": 3, "ground": 3, "all": 3}
    assert shapes_check.count_right(kinds, images, "plain") == every
    assert shapes_check.count_right(kinds, images, "night")["all"] == 0
    asked = [kinds[0], Kind("blue", "ring", "left"), Kind("red", "square", "top")]
    right = shapes_check.count_right(asked, images, "plain")
    assert right == {"color": 2, "shape": 2, "place": 2, "ground": 3, "all": 1}


def test_the_shapes_check_fails_an_untrained_model(
    shapes_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = argparse.Namespace(
        model=shapes_folder,
        adapter=None,
        style="plain",
        num=8,
        steps=2,
        guidance=3.0,
        seed=0,
        out=tmp_path,
    )
    assert not shapes_check.check(options)
    assert "seen combinations: 0 of 4 right" in capsys.readouterr().out
    assert (tmp_path / "seen.png").is_file()
    assert (tmp_path / "held-out.png").is_file()
