"""What README.md and docs/ tell a reader to type, with the service that `make serve` starts."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import openai
import pytest
import yaml
from PIL import Image

from scripts.shipped.shapes_draw import Kind
from scripts.shipped.shapes_recognize import DARK, measure_ground, recognize
from scripts.shipped.stories import Style, read_story
from tests.serve.shell import ROOT, Shell, assert_nothing_is_left, open_shell

BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
PORT = "127.0.0.1:8000"
COMMAND_S = 60
BIN = Path(sys.executable).parent
STYLES: dict[str, Style] = {"story": "plain", "story-moral": "moral"}


def blocks_of(page: str, language: str) -> list[str]:
    """Returns the fenced blocks of a page in this language, without their indentation."""
    found = []
    for indentation, name, text in BLOCK.findall((ROOT / page).read_text()):
        if name == language:
            lines = [line.removeprefix(indentation) for line in text.splitlines()]
            found.append("\n".join(lines) + "\n")
    return found


PAGES = ("README.md", "docs/index.md", "docs/es/index.md")
REQUESTS = [text for page in PAGES for text in blocks_of(page, "bash")]
PROGRAMS = blocks_of("README.md", "python")
GUIDES = [text for page in PAGES[1:] for text in blocks_of(page, "python")]
COMMANDS = blocks_of("README.md", "sh")
TALKS = sorted(
    {
        line
        for page in PAGES
        for text in blocks_of(page, "sh")
        for line in text.splitlines()
        if "truthgpt chat" in line or "truthgpt image" in line
    }
)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """The service as it is shipped, but for its ports; `make serve` is `serve.py start`."""
    config = yaml.safe_load((ROOT / "configs" / "serve.yaml").read_text())
    with open_shell(tmp_path_factory.mktemp("readme"), config) as shell:
        yield shell


@pytest.fixture(scope="module")
def service(shell: Shell) -> subprocess.Popen[bytes]:
    return shell.start()


def run(command: list[str], *, folder: Path = ROOT) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_pages_have_what_is_run_here() -> None:
    found = [len(REQUESTS), len(PROGRAMS), len(GUIDES), len(COMMANDS), len(TALKS)]
    assert found == [6, 1, 2, 3, 2]
    assert COMMANDS[:2] == ["make serve\n", ".venv/bin/truthgpt chat story\n"]
    assert all(text.count(PORT) == 1 for text in REQUESTS + PROGRAMS + GUIDES)
    run(["make", "--dry-run", "serve"])


def test_the_end_of_the_start_names_models_and_commands(
    shell: Shell, service: subprocess.Popen[bytes]
) -> None:
    deadline = time.monotonic() + COMMAND_S
    while "ends the service" not in (text := shell.log.read_text()):
        assert time.monotonic() < deadline, text
        time.sleep(0.1)
    strange = [
        line
        for line in text.splitlines()
        if not line.startswith(("[serve] ", "  ", "Try:", "playground: "))
    ]
    assert strange == []
    for name in ("story", "shapes", "echo"):
        assert re.search(rf"^  {name} .* running after \d+ s$", text, re.MULTILINE)
    assert f"playground: http://127.0.0.1:{shell.port}/ui" in text
    suggested = re.findall(r"^  (\S*truthgpt) (\w+)", text.partition("Try:")[2], re.MULTILINE)
    assert [name for _, name in suggested] == ["chat", "image", "models"]
    for program, name in suggested:
        run([program, name, "--help"])


@pytest.mark.parametrize("line", TALKS)
def test_commands_that_talk(
    shell: Shell, service: subprocess.Popen[bytes], tmp_path: Path, line: str
) -> None:
    program, *arguments = shlex.split(line)
    assert program == ".venv/bin/truthgpt"
    done = subprocess.run(
        [str(BIN / "truthgpt"), *arguments],
        cwd=tmp_path,
        env={**os.environ, "TRUTHGPT_URL": f"http://127.0.0.1:{shell.port}"},
        input="Tell me a story about a fox.",
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if arguments[0] == "image":
        Image.open(tmp_path / done.stdout.strip()).verify()
    else:
        assert len(done.stdout) > 40


@pytest.mark.parametrize("number", range(len(GUIDES)))
def test_programs_of_the_guides(
    shell: Shell, service: subprocess.Popen[bytes], number: int
) -> None:
    text = GUIDES[number].replace(PORT, f"127.0.0.1:{shell.port}")
    assert len(run([sys.executable, "-c", text])) > 40


@pytest.mark.parametrize("number", range(len(REQUESTS)))
def test_requests(shell: Shell, service: subprocess.Popen[bytes], number: int) -> None:
    text = REQUESTS[number].replace(PORT, f"127.0.0.1:{shell.port}")
    answer = json.loads(run(["bash", "-euo", "pipefail", "-c", text]))
    assert answer.keys() & {"choices", "data", "outputs"}, answer


def test_the_story_and_the_image_are_what_was_asked_for(
    shell: Shell, service: subprocess.Popen[bytes]
) -> None:
    url = f"http://127.0.0.1:{shell.port}/v1"
    wish = "Tell me a story about Mia and a red boat."
    with openai.OpenAI(base_url=url, api_key="-", timeout=COMMAND_S) as client:
        for name, style in STYLES.items():
            told = client.chat.completions.create(
                model=name, messages=[{"role": "user", "content": wish}], temperature=0
            )
            text = told.choices[0].message.content or ""
            assert read_story(text, style, request=wish).bound is not None, text
        for name, is_dark in (("shapes", False), ("shapes-night", True)):
            made = client.images.generate(
                model=name, prompt="a big red star in the top left", extra_body={"seed": 1}
            )
            assert made.data is not None
            image = Image.open(BytesIO(base64.b64decode(made.data[0].b64_json or "")))
            assert recognize(image) == Kind("red", "star", "top left")
            assert (measure_ground(image) < DARK) == is_dark


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_programs(shell: Shell, service: subprocess.Popen[bytes], number: int) -> None:
    text = PROGRAMS[number].replace(PORT, f"127.0.0.1:{shell.port}")
    *story, echoed = run([sys.executable, "-c", text]).splitlines()
    assert "Tom" in "".join(story)
    assert echoed.split()[:3] == ["word", "by", "word"]


def test_routes_that_the_page_names_exist(shell: Shell, service: subprocess.Popen[bytes]) -> None:
    for path in (
        "/v1/models",
        "/v1/models/echo",
        "/health",
        "/ready",
        "/docs",
        "/models/echo/health",
    ):
        run(["curl", "-fsS", f"http://127.0.0.1:{shell.port}{path}"])


def test_a_model_is_added_as_the_page_says(tmp_path: Path) -> None:
    """The commands of the last block, without the running service that the second one needs."""
    model, application = blocks_of("README.md", "yaml")
    configs = tmp_path / "configs"
    shutil.copytree(ROOT / "configs", configs)
    (tmp_path / "models").symlink_to(ROOT / "models")
    (configs / "models" / "qwen.yaml").write_text(model)
    serve_file = configs / "serve.yaml"
    head, marker, tail = serve_file.read_text().partition("  - name: router")
    serve_file.write_text(head + application + marker + tail)
    assert "qwen" in [
        entry["name"] for entry in yaml.safe_load(serve_file.read_text())["applications"]
    ]

    validate, deploy = COMMANDS[2].splitlines()
    assert deploy == ".venv/bin/truthgpt deploy configs/serve.yaml"
    program, *arguments = validate.split()
    assert program == ".venv/bin/truthgpt"
    run([str(BIN / "truthgpt"), *arguments], folder=tmp_path)


def test_the_class_of_the_other_page_works(tmp_path: Path) -> None:
    (tmp_path / "shouting.py").write_text(blocks_of("docs/your-own-model.md", "python")[0])
    (tmp_path / "shouting.yaml").write_text(blocks_of("docs/your-own-model.md", "yaml")[0])
    command = "truthgpt infer shouting.yaml --text hello"
    assert f"`{command}`" in (ROOT / "docs" / "your-own-model.md").read_text()
    assert "HELLO!" in run(command.split(), folder=tmp_path)


def test_stop_from_another_shell(shell: Shell, service: subprocess.Popen[bytes]) -> None:
    run_id = shell.run_id
    second = shell.run("start")
    assert second.returncode == 1
    assert f"already running as process {service.pid} on port {shell.port}" in second.stdout

    status = shell.run("status")
    assert status.returncode == 0
    assert "haproxy" in status.stdout
    assert "raylet" in status.stdout

    stopped = shell.run("stop")
    assert stopped.returncode == 0, stopped.stdout
    assert service.wait(5) == 0, shell.log.read_text()
    assert_nothing_is_left(shell, run_id)
    assert shell.run("stop").stdout == "[serve] nothing is running\n"
