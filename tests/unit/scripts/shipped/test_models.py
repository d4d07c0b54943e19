"""The trained weights in models/ do what their cards say."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.shipped import shapes_check, stories_check
from scripts.shipped.stories import read_request
from scripts.shipped.stories_tokenizer import create_tokenizer
from tests.unit.test_repository import source_files

ROOT = Path(__file__).parents[4]
MODELS = ROOT / "models"
NAMES = ("shapes", "shapes-night", "story", "story-moral")
CHECK_S = 600
MAX_BYTES = 25_000_000
SHARE = 0.25
"""Of the images and stories that a card's command makes; the whole takes four times as long."""
CHANCE = 4
"""Images or stories by which a part of them differs from its share of the whole, and by which they
differ where numbers are rounded otherwise."""
PATH = re.compile(r"(?:^|[\s\"'=:])/\w+/\w")

Check = Callable[[Sequence[str]], None]


def read_card(name: str) -> str:
    """Returns a model's card with its lines joined."""
    return " ".join((MODELS / name / "README.md").read_text(encoding="utf-8").split())


def run_as_the_card_says(
    name: str, check: Check, capsys: pytest.CaptureFixture[str], *fewer: str
) -> str:
    """Runs the card's command, on the first part of what it looks at; it must end with status 0."""
    [command] = re.findall(
        r"`python -m scripts\.shipped\.\w+_check (--model [^`]+)`", read_card(name)
    )
    arguments = [
        str(ROOT / part) if part.startswith("models/") else part for part in shlex.split(command)
    ]
    with pytest.raises(SystemExit) as ended:
        check([*arguments, *fewer])
    printed = capsys.readouterr().out
    assert ended.value.code == 0, printed
    return printed


def assert_near(
    printed: str, stated: str, tolerance: float, pairs: dict[str, str], share: float = 1.0
) -> None:
    """What was printed is this share of what the card states, each found by a pattern."""
    for measured, said in pairs.items():
        [found] = re.findall(measured, printed)
        [claim] = re.findall(said, stated)
        wanted = share * float(claim)
        assert float(found) == pytest.approx(wanted, abs=tolerance), (measured, printed)


@pytest.mark.long("makes 38 stories")
@pytest.mark.timeout(CHECK_S)
@pytest.mark.parametrize("name", ["story", "story-moral"])
def test_stories(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed, card = (
        run_as_the_card_says(
            name, stories_check.main, capsys, "--num", "25", "--num-requests", "13"
        ),
        read_card(name),
    )
    counts = {
        r"fit their beginning: (\d+)": r"(\d+) of 100 beginnings",
        r"absent from the training data: (\d+)": r"(\d+) of the continuations are in no",
        r"what they name: (\d+) of 13": r"(\d+) of 50 requests",
    }
    assert_near(printed, card, CHANCE, counts, SHARE)
    assert_near(printed, card, 0.002, {r"loss: ([\d.]+) nats": r"loss: ([\d.]+) nats"})


@pytest.mark.long("draws 50 images")
@pytest.mark.timeout(CHECK_S)
@pytest.mark.parametrize("name", ["shapes", "shapes-night"])
def test_shapes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run_as_the_card_says(name, shapes_check.main, capsys, "--num", "50")
    counts = {
        r"seen combinations: (\d+) of 25": r"(\d+) of 100 images of combinations that it was",
        r"held-out combinations: (\d+) of 25": r"(\d+) of 100 of combinations that it never",
    }
    assert_near(printed, read_card(name), CHANCE, counts, SHARE)


def test_all_of_it_is_small_and_committed() -> None:
    files = [path for path in source_files() if MODELS in path.parents]
    assert {path.relative_to(MODELS).parts[0] for path in files} == set(NAMES)
    assert sum(path.stat().st_size for path in files) < MAX_BYTES
    weights = {path.relative_to(MODELS) for path in files if path.suffix == ".safetensors"}
    assert weights == {
        Path("story/model.safetensors"),
        Path("story-moral/adapter_model.safetensors"),
        Path("shapes/text_encoder/model.safetensors"),
        Path("shapes/unet/diffusion_pytorch_model.safetensors"),
        Path("shapes/vae/diffusion_pytorch_model.safetensors"),
        Path("shapes-night/pytorch_lora_weights.safetensors"),
    }


@pytest.mark.parametrize("name", NAMES)
def test_cards_say_how_to_make_it(name: str) -> None:
    card = (MODELS / name / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "apache-2.0"
    for path in re.findall(r"configs/[\w/.-]+\.yaml", card):
        assert (ROOT / path).is_file(), path
    config = f"configs/models/{name}-training.yaml"
    assert config in card
    assert yaml.safe_load((ROOT / config).read_text(encoding="utf-8"))["seed"] == 42


@pytest.mark.long("makes many stories")
def test_the_tokenizer_is_the_one_that_the_grammar_makes() -> None:
    texts = json.loads((MODELS / "story" / "tokenizer.json").read_text(encoding="utf-8"))
    made = json.loads(create_tokenizer().to_str())
    assert texts["model"] == made["model"]


def test_no_path_of_a_machine_is_in_them() -> None:
    files = [path for path in source_files() if MODELS in path.parents]
    for path in files:
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            assert not PATH.search(json.dumps(head.get("__metadata__", {})).replace("\\", "")), path
        elif path.suffix == ".json":
            assert not paths_in(json.loads(path.read_text(encoding="utf-8"))), path


def paths_in(value: Any) -> list[str]:
    """Returns the texts in parsed JSON that hold an absolute path of a file."""
    if isinstance(value, dict):
        return [path for key, each in value.items() if key != "vocab" for path in paths_in(each)]
    if isinstance(value, list):
        return [path for each in value for path in paths_in(each)]
    return [value] if isinstance(value, str) and PATH.search(value) else []


def test_requests_in_the_readme_are_such_as_it_knows() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    requests = re.findall(r'"(Tell me [^"]+)"', text)
    assert len(requests) >= 2
    assert all(read_request(request) for request in requests)
