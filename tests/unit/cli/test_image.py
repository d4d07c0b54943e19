"""`truthgpt image`: what is asked for, the files, and what a terminal gets to see."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import PIL.Image
import pytest

from tests.support.cli_service import (
    EVENTS,
    Answer,
    Request,
    envelope,
    environment,
    events,
    model_list,
    run_cli,
    serve,
)
from tests.support.terminal import on_terminal
from truthgpt_serve.cli._image.files import Target
from truthgpt_serve.cli._image.show import KITTY_PIECE, find_way, render

DRAW = "/v1/images/generations"


def png(color: tuple[int, int, int], size: tuple[int, int] = (8, 4)) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


RED, BLUE = png((255, 0, 0)), png((0, 0, 255))


def event(kind: str, index: int = 0, **fields: Any) -> Any:
    return {"type": f"image_generation.{kind}", "index": index, **fields}


def completed(data: bytes, index: int = 0, seed: int | None = 7) -> Any:
    fields = {} if seed is None else {"seed": seed}
    text = base64.b64encode(data).decode()
    return event("completed", index, b64_json=text, size="8x4", **fields)


def stream(*values: Any, pause_s: float = 0.0) -> Answer:
    return Answer(pieces=events(*values, done=False), content_type=EVENTS, pause_s=pause_s)


def service_of(answer: Any) -> dict[str, Any]:
    return {DRAW: answer, "/v1/models": model_list("shapes")}


def test_an_image_is_saved_under_a_name_of_its_own(tmp_path: Path) -> None:
    steps = [event("progress", queue_position=1), event("progress", step=1, num_steps=2)]
    drawn = iter([stream(*steps, completed(RED)), stream(completed(BLUE))])
    options = ["--seed", "7", "--size", "8x4", "--steps", "2", "--guidance-scale", "3"]
    with serve(service_of(lambda _: next(drawn))) as service:
        first = run_cli("image", "a red circle", *options, env=service.env(), cwd=tmp_path)
        second = run_cli("image", "shapes", "a circle", env=service.env(), cwd=tmp_path)
    assert (first.returncode, first.stdout) == (0, "shapes-7.png\n"), first.stderr
    assert (second.returncode, second.stdout) == (0, "shapes-7-2.png\n"), second.stderr
    assert (tmp_path / "shapes-7.png").read_bytes() == RED
    assert (tmp_path / "shapes-7-2.png").read_bytes() == BLUE
    request = next(request for request in service.requests if request.path == DRAW)
    assert request.body == {
        "model": "shapes", "prompt": "a red circle", "n": 1, "seed": 7, "size": "8x4", "steps": 2,
        "guidance_scale": 3.0, "output_format": "png", "progress": True, "stream": True,
    }  # fmt: skip


def test_several_images_are_numbered_and_programs_get_json(tmp_path: Path) -> None:
    answer = stream(completed(BLUE, 1, 8), completed(RED, 0, 7))
    with serve(service_of(answer)) as service:
        options = ["--n", "2", "--out", "a/x.png", "--json"]
        (tmp_path / "a").mkdir()
        done = run_cli("image", "shapes", "x", *options, env=service.env(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == [
        {"file": "a/x-1.png", "index": 1, "seed": 8, "size": "8x4"},
        {"file": "a/x-0.png", "index": 0, "seed": 7, "size": "8x4"},
    ]
    assert (tmp_path / "a" / "x-0.png").read_bytes() == RED


def test_nothing_is_overwritten_unless_it_is_wanted(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    file.write_bytes(b"precious")
    with serve(service_of(stream(completed(RED)))) as service:
        command = ["image", "shapes", "x", "--out", "x.png"]
        done = run_cli(*command, env=service.env(), cwd=tmp_path)
        assert done.returncode == 2
        assert "x.png exists already" in done.stderr
        assert service.requests == []  # nothing is drawn in vain
        assert file.read_bytes() == b"precious"
        done = run_cli(*command, "--overwrite", env=service.env(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert file.read_bytes() == RED
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_a_file_that_appears_meanwhile_stays(tmp_path: Path) -> None:
    def answer(_: Request) -> Answer:
        (tmp_path / "x.png").write_bytes(b"precious")
        return stream(completed(RED))

    with serve(service_of(answer)) as service:
        command = ["image", "shapes", "x", "--out", "x.png"]
        done = run_cli(*command, env=service.env(), cwd=tmp_path)
    assert done.returncode == 1
    assert "the image is not saved" in done.stderr
    assert (tmp_path / "x.png").read_bytes() == b"precious"


def test_standard_output_is_the_image_and_nothing_else() -> None:
    with serve(service_of(stream(completed(RED)))) as service:
        done = subprocess.run(
            [sys.executable, "-m", "truthgpt_serve.cli", "image", "shapes", "x", "--out", "-"],
            capture_output=True,
            timeout=60,
            env=environment(service.env(COLORTERM="truecolor")),
        )
    assert (done.returncode, done.stdout) == (0, RED), done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["a", "red", "circle"], "put the prompt in quotes"),
        (["shapes", " "], "the prompt is empty"),
        (["shapes", "x", "--out", "no/such/x.png"], "no/such is not a folder"),
        (["shapes", "x", "--out", "-", "--n", "2"], "writes one image"),
    ],
)
def test_wrong_use_is_exit_code_2(arguments: list[str], text: str, tmp_path: Path) -> None:
    with serve(service_of(stream(completed(RED)))) as service:
        done = run_cli("image", *arguments, env=service.env(), cwd=tmp_path)
    assert done.returncode == 2
    assert text in done.stderr
    assert service.requests == []


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (Answer(envelope("`steps` may be at most 50", param="steps"), 400), "at most 50"),
        (stream(envelope("the model failed")), "the model failed"),
        (stream(), "sent 0 of 1 images"),
        (stream(event("completed", b64_json="!")), "not base64"),
        (stream(event("completed", b64_json="aGk=")), "is not a PNG image"),
        (stream(event("completed", b64_json=5)), "not base64"),
    ],
)
def test_failures_are_one_line_and_exit_code_1(answer: Answer, text: str, tmp_path: Path) -> None:
    with serve(service_of(answer)) as service:
        done = run_cli("image", "shapes", "x", env=service.env(), cwd=tmp_path)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert text in line
    assert list(tmp_path.iterdir()) == []


def test_what_was_finished_before_a_failure_is_kept(tmp_path: Path) -> None:
    answer = stream(completed(RED), envelope("it broke"))
    with serve(service_of(answer)) as service:
        done = run_cli("image", "shapes", "x", "--n", "2", env=service.env(), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "shapes-7.png\n")


# -- on a terminal

COMMAND = [sys.executable, "-m", "truthgpt_serve.cli", "image", "shapes", "x"]


def test_a_terminal_shows_the_steps_and_the_image(tmp_path: Path) -> None:
    steps = [event("progress", step=step, num_steps=40) for step in range(1, 41)]
    answer = stream(*steps, completed(RED), pause_s=0.05)
    with serve(service_of(answer)) as service:
        env = environment(service.env(COLORTERM="truecolor"))
        for name in ("TMUX", "KITTY_WINDOW_ID", "TERM_PROGRAM", "LC_TERMINAL"):
            env.pop(name, None)
        with on_terminal(*COMMAND, env=env, cwd=tmp_path) as shown:
            shown.wait_for("step")
            shown.wait_for("/40")
            shown.wait_for("\x1b[38;2;255;0;0;48;2;255;0;0m▀")
            shown.wait_for("shapes-7.png")
            assert shown.end() == 0


def test_ctrl_c_gives_the_image_up(tmp_path: Path) -> None:
    steps = [event("progress", step=1, num_steps=9)] * 100_000
    with (
        serve(service_of(stream(*steps, pause_s=0.01))) as service,
        on_terminal(*COMMAND, env=environment(service.env()), cwd=tmp_path) as shown,
    ):
        shown.wait_for("1/9")
        shown.type("\x03")
        assert shown.end() == 130
        assert service.requests[0].left.wait(30)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environ", "way"),
    [
        ({"KITTY_WINDOW_ID": "1", "COLORTERM": "truecolor"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"LC_TERMINAL": "iTerm2"}, "iterm2"),
        ({"TERM_PROGRAM": "iTerm.app", "TMUX": "x", "COLORTERM": "truecolor"}, "blocks"),
        ({"KITTY_WINDOW_ID": "1", "TERM": "screen-256color"}, "none"),
        ({"TERM": "xterm", "COLORTERM": "24bit"}, "blocks"),
        ({"TERM": "xterm"}, "none"),
        ({}, "none"),
    ],
)
def test_a_terminal_says_what_it_can(environ: dict[str, str], way: str) -> None:
    assert find_way(environ, on_terminal=True) == way
    assert find_way(environ, on_terminal=False) == "none"


def test_each_protocol_carries_the_file_as_it_is() -> None:
    noise = PIL.Image.effect_noise((128, 128), 100).convert("RGB")
    file = io.BytesIO()
    noise.save(file, "PNG")
    data = file.getvalue()
    assert len(data) > 2 * KITTY_PIECE
    sequences = render(data, "kitty").removesuffix("\x1b\\\n").split("\x1b\\")
    parts = [each.removeprefix("\x1b_G").split(";") for each in sequences]
    heads = [head for head, _ in parts]
    assert base64.b64decode("".join(payload for _, payload in parts)) == data
    assert heads[0] == "a=T,f=100,m=1"
    assert set(heads[1:-1]) <= {"m=1"}
    assert heads[-1] == "m=0"
    iterm = render(data, "iterm2").removesuffix("\x07\n")
    assert base64.b64decode(iterm.partition(":")[2]) == data
    assert f"size={len(data)}" in iterm
    assert render(data, "none") == ""


@pytest.mark.parametrize("size", [(1, 1), (8, 4), (2000, 3), (3, 2000)])
def test_half_blocks_keep_to_the_terminal(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    lines = render(png((1, 2, 3), size), "blocks").splitlines()
    assert 0 < len(lines) <= 22
    assert all(0 < line.count("▀") <= 64 for line in lines)
    assert all(line.endswith("\x1b[0m") for line in lines)


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    """As root `--out /dev/null --overwrite` would else have an image in the place of the device."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(click.UsageError, match="is not a regular file"):
            Target(tmp_path / name, "m", 1, overwrite=True)
