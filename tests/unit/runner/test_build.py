"""Models run without a server: `build_model`, `run_infer`, and the command `truthgpt infer`."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import subprocess
import sys
import time
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from truthgpt_serve import MODEL_REGISTRY, build_model, register_model, run_infer
from truthgpt_serve.cli import main
from truthgpt_serve.errors import ConfigError, RegistryError
from truthgpt_serve.runner import run_stream

ECHO = """
run_name: offline
model: {family: echo}
serving: {engine: {num_tokens: 3, token_interval_s: 0.05}}
"""
PAINTER = """
task: custom
model: {import: tg_painter}
"""
PAINTER_MODULE = """
from PIL import Image
from truthgpt_serve import register_model

@register_model("tg-painter")
class Painter:
    closed = 0

    def load(self, cfg):
        self.size = (cfg["seed"], 1)

    def infer(self, inputs):
        if inputs.get("prompt") == "fail":
            raise ValueError("cannot draw")
        return {"image": Image.new("RGB", self.size), "prompt": inputs["prompt"]}

    def close(self):
        Painter.closed += 1
"""
LOOK_MODULE = """
from truthgpt_serve import register_model

@register_model("tg-look")
class Look:
    sampling_rate = 4000

    def load(self, cfg):
        pass

    def infer(self, inputs):
        return {name: self.describe(value) for name, value in inputs.items()}

    def describe(self, value):
        if isinstance(value, list):
            return "[" + ", ".join(map(self.describe, value)) + "]"
        size = getattr(value, "shape", None) or getattr(value, "size", "")
        return f"{type(value).__name__} {size}".strip()
"""
LOUD_MODULE = """
import os, subprocess
from truthgpt_serve import register_model

@register_model("tg-loud")
class Loud:
    def load(self, cfg):
        print("printed")
        os.write(1, b"written")
        subprocess.run(["echo", "a child's"])

    def infer(self, inputs):
        return {"answer": inputs["text"]}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with two models; families registered by a test are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "echo.yaml").write_text(ECHO)
    (tmp_path / "painter.yaml").write_text(PAINTER)
    (tmp_path / "tg_painter.py").write_text(PAINTER_MODULE)
    families = dict(MODEL_REGISTRY._registered)
    yield tmp_path
    MODEL_REGISTRY._registered.clear()
    MODEL_REGISTRY._registered.update(families)
    sys.modules.pop("tg_painter", None)


def infer(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, ["infer", *arguments], input=stdin)


async def test_build_model_loads_with_every_section_present() -> None:
    @register_model("tg-sections")
    class Sections:
        async def load(self, cfg: dict[str, Any]) -> None:
            await asyncio.sleep(0)
            self.cfg = cfg

        def infer(self, inputs: Any) -> Any:
            return inputs

    model = build_model("tg-sections", {"seed": 7, "model": {"name_or_path": "some/weights"}})
    assert isinstance(model.instance, Sections)
    sections = {"training", "model_optim", "hardware", "data", "serving", "model"}
    assert sections <= model.cfg.keys()
    assert model.cfg["seed"] == 7
    assert model.cfg["model"]["name_or_path"] == "some/weights"
    assert model.cfg["model"]["family"] == "tg-sections"
    assert type(model.cfg["training"]) is dict
    assert build_model("tg-sections").cfg["seed"] == 42


def test_build_model_refuses_what_it_does_not_know() -> None:
    with pytest.raises(RegistryError, match="unknown model family 'nosuch'; known families: "):
        build_model("nosuch", {})
    with pytest.raises(ConfigError, match=r"build_model\('echo'\).*: .*sead"):
        build_model("echo", {"sead": 1})

    @register_model("tg-argument")
    class Argument:
        def __init__(self, size: int) -> None: ...
        def load(self, cfg: Any) -> None: ...
        def infer(self, inputs: Any) -> None: ...

    with pytest.raises(RegistryError, match=r"Argument\(\) failed: .* belongs in `load\(cfg\)`"):
        build_model("tg-argument")


def test_run_infer_runs_asynchronous_classes_for_a_synchronous_caller() -> None:
    expected = {"text": " a b a", "finish_reason": "length"}
    assert run_infer("echo.yaml", {"text": "a b"}) == expected


async def test_run_infer_works_inside_an_event_loop_as_in_a_notebook() -> None:
    assert run_infer(Path("echo.yaml"), {"text": "a"})["text"] == " a a a"


def test_run_infer_closes_the_model_whatever_happens() -> None:
    assert run_infer("painter.yaml", {"prompt": "x"})["image"].size == (42, 1)
    painter: Any = sys.modules["tg_painter"].Painter
    assert painter.closed == 1
    with pytest.raises(ValueError, match="cannot draw"):
        run_infer("painter.yaml", {"prompt": "fail"})
    assert painter.closed == 2


def test_run_infer_lists_every_fault(folder: Path) -> None:
    (folder / "bad.yaml").write_text("modle: {}\nserving: {engine: {speed: 3}}\n")
    with pytest.raises(ConfigError) as caught:
        run_infer("bad.yaml", {})
    assert "bad.yaml" in str(caught.value)
    assert "modle" in str(caught.value)


def test_run_stream_yields_as_the_model_does() -> None:
    times = []
    items = []
    for item in run_stream("echo.yaml", {"text": "a b"}):
        times.append(time.monotonic())
        items.append(item["text"])
    assert items == [" a", " b", " a", ""]
    assert times[1] - times[0] > 0.03
    assert [item["prompt"] for item in run_stream("painter.yaml", {"prompt": "x"})] == ["x"]
    stream = run_stream("painter.yaml", {"prompt": "x"})
    next(stream)
    del stream
    assert sys.modules["tg_painter"].Painter.closed == 2


def test_the_command_prints_json_or_text(folder: Path) -> None:
    result = infer("echo.yaml", "--text", "a b", "--max-new-tokens", "2")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"text": " a b", "finish_reason": "length"}
    assert infer("echo.yaml", "--text", "a b", "--stream").stdout == " a b a\n"
    (folder / "in.json").write_text('{"text": "c"}')
    assert json.loads(infer("echo.yaml", "--inputs", "in.json").stdout)["text"] == " c c c"
    result = infer("echo.yaml", "--inputs", "-", stdin='{"text": "d"}')
    assert json.loads(result.stdout)["text"] == " d d d"


def test_the_command_writes_files(folder: Path) -> None:
    assert infer("painter.yaml", "--prompt", "x", "--out", "x.png").exit_code == 0
    with Image.open(folder / "x.png") as image:
        assert image.size == (42, 1)
    assert infer("echo.yaml", "--text", "x", "--out", "x.json").exit_code == 0
    assert json.loads((folder / "x.json").read_text())["text"] == " x x x"
    output = json.loads(infer("painter.yaml", "--prompt", "x").stdout)
    assert output["image"]["format"] == "png"


def test_the_command_reads_images_recordings_and_arrays(folder: Path) -> None:
    (folder / "look.yaml").write_text("task: custom\nmodel: {import: tg_look}\n")
    (folder / "tg_look.py").write_text(LOOK_MODULE)
    Image.new("L", (3, 2)).save(folder / "x.png")
    numpy.save(folder / "x.npy", numpy.arange(6).reshape(2, 3))
    with wave.open(str(folder / "x.wav"), "wb") as file:
        file.setparams((2, 2, 8000, 800, "NONE", ""))
        file.writeframes(bytes(3200))
    data = base64.b64encode(numpy.ones(2, "float32").tobytes()).decode()
    array = {"shape": [2], "dtype": "float32", "b64": data}
    inputs = {"files": [{"path": "x.npy"}, {"path": "x.bin"}], "array": array}
    (folder / "in.json").write_text(json.dumps(inputs))
    try:
        result = infer("look.yaml", "--inputs", "in.json", "--image", "x.png", "--audio", "x.wav")
    finally:
        sys.modules.pop("tg_look", None)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "files": "[ndarray (2, 3), dict]",
        "array": "ndarray (2,)",
        "image": "PngImageFile (3, 2)",
        "audio": "ndarray (400,)",  # a tenth of a second at the class's own rate
    }


def test_only_the_answer_is_on_standard_output(folder: Path) -> None:
    (folder / "loud.yaml").write_text("task: custom\nmodel: {import: tg_loud}\n")
    (folder / "tg_loud.py").write_text(LOUD_MODULE)
    program = Path(sys.executable).with_name("truthgpt")
    for more in ([], ["--stream"]):
        done = subprocess.run(
            [program, "infer", "loud.yaml", "--text", "x", *more],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=folder,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {"answer": "x"}
        for noise in ("printed", "written", "a child's"):
            assert noise in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["echo.yaml"], 2, "give the inputs of a model with task text-generation: --text TEXT"),
        (["painter.yaml"], 2, "with task custom: --text, --image, --audio or --inputs FILE"),
        (["echo.yaml", "--prompt", "x"], 2, "needs `text`, found prompt: give --text TEXT"),
        (["echo.yaml", "--text", "x", "--out", "x.png"], 1, "the model returned no image"),
        (["painter.yaml", "--image", "absent.png"], 2, "absent.png cannot be read: "),
        (["painter.yaml", "--audio", "list.wav"], 2, "`file` cannot be read"),
        (["painter.yaml", "--prompt", "fail"], 1, "the model failed: ValueError: cannot draw"),
        (["nosuch.yaml", "--text", "x"], 2, "nosuch.yaml"),
        (["echo.yaml", "--inputs", "echo.yaml"], 2, "--inputs echo.yaml is not JSON: "),
        (["echo.yaml", "--inputs", "list.json"], 2, "must hold a JSON object"),
        (["echo.yaml", "--inputs", "absent.json"], 2, "absent.json cannot be read: "),
        (["echo.yaml", "--text", "x", "--max-new-tokens", "0"], 2, "0 is not in the range x>=1"),
        (["echo.yaml", "--text", "x", "--stream", "--out", "y"], 2, "--stream prints; leave --out"),
        (["painter.yaml", "--prompt", "x", "--out", "x.nosuch"], 1, "x.nosuch cannot be written"),
    ],
)
def test_a_wrong_command(folder: Path, arguments: list[str], code: int, message: str) -> None:
    (folder / "list.json").write_text("[]")
    (folder / "list.wav").write_text("[]")
    result = infer(*arguments)
    assert result.exit_code == code
    assert message in result.stderr


WRONG_MODULE = """
from truthgpt_serve import register_model

@register_model("tg-wrong")
class Wrong:
    def load(self, cfg):
        if cfg["seed"] == 7:
            import no_such_package

    def infer(self, inputs):
        return eval(inputs.get("text") or inputs["prompt"])

    def stream(self, inputs):
        yield from eval(inputs.get("text") or inputs["prompt"])
"""


@pytest.mark.parametrize(
    ("task", "returned", "said"),
    [
        ("text-generation", "'hello'", "Wrong.infer returned str; a text-generation model returns"),
        ("text-generation", "{'text': 'a', 'finish_reason': 'x'}", "gave finish_reason 'x'"),
        ("text-generation", "{'text': 'a', 'usage': {}}", "gave a usage without whole numbers"),
        ("image-generation", "{'image': 'cat.png'}", "an image-generation model returns"),
        ("embedding", "{'embedding': [[1.0]]}", "Wrong returned no vector"),
        ("embedding", "{'embedding': []}", "a vector that is empty or not finite"),
        ("tensor", "[1, 2]", "a tensor model returns a dict of output name to array"),
    ],
)
def test_what_the_service_refuses_the_command_refuses(
    folder: Path, task: str, returned: str, said: str
) -> None:
    (folder / "tg_wrong.py").write_text(WRONG_MODULE)
    (folder / "wrong.yaml").write_text(
        f"task: {task}\nmodel: {{family: custom, import: tg_wrong}}\n"
    )
    given = ["--prompt" if task == "image-generation" else "--text", returned]
    try:
        result = infer("wrong.yaml", *given)
        assert (result.exit_code, result.stdout) == (1, ""), result.stderr
        assert result.stderr.startswith("Error: the service would refuse this: ")
        assert said in result.stderr
        assert result.stderr.count("\n") == 1
    finally:
        sys.modules.pop("tg_wrong", None)


def test_a_stream_is_checked_item_by_item(folder: Path) -> None:
    (folder / "tg_wrong.py").write_text(WRONG_MODULE)
    (folder / "text.yaml").write_text("model: {family: custom, import: tg_wrong}\n")
    (folder / "image.yaml").write_text(
        "task: image-generation\nmodel: {family: custom, import: tg_wrong}\n"
    )
    try:
        result = infer("text.yaml", "--text", "[{'text': 'a'}, 'b']", "--stream")
        assert result.exit_code == 1
        assert "Wrong.stream yielded str" in result.stderr
        result = infer("image.yaml", "--prompt", "[{'step': 1, 'num_steps': 2}]", "--stream")
        assert "Wrong.stream ended without an image" in result.stderr
    finally:
        sys.modules.pop("tg_wrong", None)


def test_a_module_that_a_class_misses_is_one_line(folder: Path) -> None:
    (folder / "tg_wrong.py").write_text(WRONG_MODULE)
    (folder / "missing.yaml").write_text("seed: 7\nmodel: {family: custom, import: tg_wrong}\n")
    try:
        result = infer("missing.yaml", "--text", "x")
        assert result.exit_code == 1
        assert "tg_wrong.py:8: No module named 'no_such_package' (install it)" in result.stderr
        assert result.stderr.count("\n") == 1
    finally:
        sys.modules.pop("tg_wrong", None)


def test_the_page_about_ones_own_model_is_true(root: Path, folder: Path) -> None:
    page = (root / "docs" / "your-own-model.md").read_text()
    blocks = dict(re.findall(r"`([\w.]+)`:\n\n```\w+\n(.*?)```", page, re.DOTALL))
    assert set(blocks) == {"shouting.py", "shouting.yaml"}
    assert sum(len(block.splitlines()) for block in blocks.values()) < 30
    for name, block in blocks.items():
        (folder / name).write_text(block)
    try:
        assert run_infer("shouting.yaml", {"text": "hello"}) == {"text": "HELLO!"}
        pieces = [item["text"] for item in run_stream("shouting.yaml", {"text": "a b"})]
        assert pieces == ["A ", "B", "!"]
    finally:
        sys.modules.pop("shouting", None)
