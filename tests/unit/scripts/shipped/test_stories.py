from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.shipped import stories_data
from scripts.shipped.stories import (
    STYLES,
    Example,
    Style,
    read_story,
    split_sentences,
    write_example,
)
from scripts.shipped.stories_grammar import Grammar, Word
from scripts.shipped.stories_plots import PLOTS
from scripts.shipped.stories_words import WORDS

numbers = st.integers(0, 10**6)
NAMES = {word.text for word in WORDS["hero"]}


def parses(text: str, style: Style = "plain", request: str | None = None) -> bool:
    return read_story(text, style, request).bound is not None


def words_of(text: str) -> list[str]:
    return re.findall(r"[A-Za-z']+", text)


@given(numbers, st.sampled_from(STYLES))
def test_what_the_grammar_writes_it_reads(index: int, style: Style) -> None:
    example = write_example("train", 1, index, style)
    reading = read_story(example.story, style, example.request)
    assert reading.bound is not None
    assert reading.is_prefix


@given(numbers, st.floats(0, 1))
def test_each_beginning_of_a_story_is_one_until_something_else_follows(
    index: int, share: float
) -> None:
    story = write_example("train", 1, index).story
    beginning = story[: int(share * len(story))]
    assert read_story(beginning).is_prefix
    assert not read_story(beginning + "#").is_prefix


def test_a_half_told_story_is_none() -> None:
    sentences = split_sentences(write_example("train", 1, 0).story)
    for count in range(len(sentences)):
        assert not parses(" ".join(sentences[:count]))


@given(numbers, st.data())
def test_a_name_that_changes_on_the_way_is_noticed(index: int, data: Any) -> None:
    story = write_example("train", 1, index).story
    reading = read_story(story)
    assert reading.bound is not None
    hero, friend = reading.bound["hero"].text, reading.bound["friend"].text
    for old in (hero, friend):
        places = [found.start() for found in re.finditer(rf"\b{old}\b", story)]
        # The first mention decides; with only one there is nothing to contradict it.
        if len(places) < 2:
            continue
        new = data.draw(st.sampled_from(sorted(NAMES - {hero, friend})))
        last = places[-1]
        assert not parses(story[:last] + new + story[last + len(old) :])


@given(numbers)
def test_a_pronoun_of_the_wrong_kind_is_noticed(index: int) -> None:
    story = write_example("train", 1, index).story
    swapped = {"he": "she", "she": "he", "He": "She", "She": "He", "his": "her", "His": "Her"}
    for found in re.finditer(r"\b(he|she|He|She|his|His)\b", story):
        # In the first sentence the kind of child comes first, so that the pronoun is never free.
        wrong = story[: found.start()] + swapped[found[1]] + story[found.end() :]
        assert not parses(wrong), wrong


@given(numbers)
def test_a_thing_that_becomes_another_is_noticed(index: int) -> None:
    story = write_example("train", 1, index).story
    reading = read_story(story)
    assert reading.bound is not None
    thing = reading.bound["thing"].text
    other = "wagon" if thing != "wagon" else "kettle"
    last = story.rindex(f" {thing}") + 1
    assert not parses(story[:last] + other + story[last + len(thing) :])


@given(numbers, st.data())
def test_sentences_in_another_order_are_noticed(index: int, data: Any) -> None:
    sentences = split_sentences(write_example("train", 1, index).story)
    first = data.draw(st.integers(0, len(sentences) - 2))
    second = data.draw(st.integers(first + 1, len(sentences) - 1))
    sentences[first], sentences[second] = sentences[second], sentences[first]
    assert not parses(" ".join(sentences))


def test_a_dropped_sentence_is_noticed_unless_it_is_one_that_may_be_left_out() -> None:
    for index in range(60):
        sentences = split_sentences(write_example("train", 1, index).story)
        droppable = [
            number
            for number in range(len(sentences))
            if parses(" ".join(sentences[:number] + sentences[number + 1 :]))
        ]
        # What the hero wants to be, the weather, and the meal at the end.
        assert len(droppable) <= 3
        assert not {0, len(sentences) - 1} & set(droppable)
        assert all(number in (2, 5, 4, len(sentences) - 2) for number in droppable), droppable


def test_hardly_any_word_can_be_swapped_for_another() -> None:
    rng = random.Random(0)
    stories = [write_example("train", 1, index).story for index in range(300)]
    vocabulary = sorted({word for story in stories for word in words_of(story)})
    survived = 0
    for story in stories:
        found = rng.choice(list(re.finditer(r"[A-Za-z']+", story)))
        word = rng.choice([word for word in vocabulary if word != found[0]])
        survived += parses(story[: found.start()] + word + story[found.end() :])
    # Some words are mentioned once and free: a brave girl may as well be a clever one.
    assert survived <= 6


def test_causes_belong_together() -> None:
    kinds = {"sea": "the beach", "forest": "the tall oak"}
    sentence = "One sunny morning, Mia took the kite and went to {} with Tom."
    start = "Mia was a brave girl. Her home was a small cottage beside the {}. {} {}"
    had = "She had a red kite and took it everywhere."
    for land, place in kinds.items():
        for other in kinds.values():
            text = start.format(land, had, sentence.format(other))
            assert read_story(text).is_prefix == (place == other)
    text = start.format("sea", had, sentence.format("the beach"))
    text += " Then the kite fell to the ground and {}."
    assert read_story(text.format("tore")).is_prefix
    assert not read_story(text.format("cracked")).is_prefix


def test_there_are_enough_words_sentences_and_stories() -> None:
    stories = [write_example("train", 1, index).story for index in range(4000)]
    assert len(set(stories)) == len(stories)
    words = {word.lower() for story in stories for word in words_of(story)}
    assert len(words - {name.lower() for name in NAMES}) >= 600
    assert min(len(split_sentences(story)) for story in stories) >= 10
    plots = {read_story(story).bound["plot"].text for story in stories[:200]}  # type: ignore[index] # all parse
    assert plots == set(PLOTS)


def test_sentences_are_split_where_they_end() -> None:
    for index in range(200):
        story = write_example("train", 1, index).story
        sentences = split_sentences(story)
        assert " ".join(sentences) == story
        assert all(re.search(r"[.!?]\"?$", sentence) for sentence in sentences)
        assert all(sentence[0] in '"' or sentence[0].isupper() for sentence in sentences)


def test_a_moral_is_the_whole_difference_between_the_styles() -> None:
    for index in range(50):
        plain, moral = (write_example("train", 1, index, style).story for style in STYLES)
        assert split_sentences(moral)[:-1] == split_sentences(plain)
        assert not parses(moral, "plain")
        assert not parses(plain, "moral")


@pytest.mark.long("makes many stories")
def test_a_request_must_be_honored() -> None:
    asked = [write_example("train", 1, index) for index in range(300)]
    asked = [example for example in asked if example.request is not None]
    assert 60 < len(asked) < 130
    for example in asked:
        assert parses(example.story, request=example.request)
        others = (other.story for other in asked if other is not example)
        if example.request != "Tell me a story.":
            assert sum(parses(other, request=example.request) for other in others) <= 12
    request = "Tell me a story about Mia and a red boat."
    mia = next(e.story for e in asked if "Mia" not in e.story)
    assert not parses(mia, request=request)
    assert not parses(asked[0].story, request="What is the weather like?")


def test_the_same_arguments_give_the_same_example_in_every_process() -> None:
    code = "from scripts.shipped.stories import write_example as write\n"
    code += "print([write('a', 3, index) for index in range(30)])"
    root = Path(__file__).parents[4]
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            cwd=root,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{[write_example('a', 3, index) for index in range(30)]}\n"}
    assert write_example("a", 3, 0) != write_example("b", 3, 0) != write_example("a", 4, 0)


def test_the_files_hold_rows_of_text(tmp_path: Path) -> None:
    for name in ("one", "two"):
        stories_data.main(["--out", str(tmp_path / name), "--num", "50", "--seed", "5"])
    for name in ("train.jsonl", "eval.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    train, held_out = (
        [json.loads(line)["text"] for line in (tmp_path / "one" / name).read_text().splitlines()]
        for name in ("train.jsonl", "eval.jsonl")
    )
    assert len(train) == 50
    assert len(held_out) == stories_data.EVAL_NUM
    assert not set(train) & set(held_out)
    assert train[0] == write_example("train", 5, 0).text


def test_an_example_with_a_request_is_one_text() -> None:
    assert Example("He slept.").text == "He slept."
    assert Example("He slept.", "Tell me!").text == "<|user|>Tell me!<|assistant|>He slept."


def test_a_grammar_reads_a_text_in_every_way() -> None:
    words = {"thing": [Word("boat", tags=frozenset({"wood"})), Word("boat"), Word("egg")]}
    grammar = Grammar(words, [])
    steps = [("I see {thing.a}.",), (None, "{thing^} ahoy!")]
    found = list(grammar.readings("I see a boat.", steps, {}))
    assert [one["thing"].tags for one in found] == [{"wood"}, set()]
    assert grammar.read("I see an egg. Egg ahoy!", steps, {}).bound == {"thing": words["thing"][2]}
    assert grammar.read("I see an egg. Boat ahoy!", steps, {}).bound is None
    assert grammar.read("I see a bo", steps, {}).is_prefix
    assert not grammar.read("I see a bee", steps, {}).is_prefix


def test_an_unknown_form_is_an_error() -> None:
    with pytest.raises(KeyError):
        Word("boat").form("plural")
