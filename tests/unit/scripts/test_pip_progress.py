"""The line that tells how far an installation is, from what pip prints."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from scripts.pip_progress import Progress, UvProgress, find_cause, run_pip

FETCHING = """\
Obtaining file:///serve
  Preparing editable metadata (pyproject.toml): finished with status 'done'
Collecting torch==2.13.0+cpu
  Using cached torch-2.13.0%2Bcpu-cp311-cp311-manylinux_2_28_x86_64.whl (180.5 MB)
Collecting ray[serve]==2.60.0
  Obtaining dependency information for ray from https://index/ray.whl.metadata
  Downloading ray-2.60.0-cp311-cp311-manylinux2014_x86_64.whl.metadata (21 kB)
  Downloading ray-2.60.0-cp311-cp311-manylinux2014_x86_64.whl (70.1 MB)
"""


def feed(progress: Progress, text: str) -> None:
    for line in text.splitlines(keepends=True):
        progress.take(line)


def test_fetching_and_installing(tmp_path: Path) -> None:
    (tmp_path / "pip-1.dist-info").mkdir()
    progress = Progress(tmp_path, expected=200)
    feed(progress, FETCHING)
    start = "fetching package 2 of about 200, 251 MB, now ray (70.1 MB), 0:0"
    assert progress.describe().startswith(start)
    feed(progress, "Installing collected packages: torch, ray, click\n")
    (tmp_path / "torch-2.13.0.dist-info").mkdir()
    assert progress.describe().startswith("installing package 1 of 3, 0:0")


def test_more_packages_than_expected(tmp_path: Path) -> None:
    progress = Progress(tmp_path, expected=1)
    feed(progress, FETCHING)
    assert "of about" not in progress.describe()


def test_the_cause_of_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = (
        "import sys\n"
        "for n in range(40): print('Collecting', n)\n"
        "print('ERROR: No matching distribution found for nothing==1')\n"
        "print('[notice] a new release')\n"
        "sys.exit(1)\n"
    )
    progress, log = Progress(tmp_path), tmp_path / "log"
    assert run_pip([sys.executable, "-c", program], tmp_path, progress, log) == 1
    cause = find_cause(progress.lines)
    assert "ERROR: No matching distribution found for nothing==1" in cause
    assert len(cause) <= 3
    assert log.read_text().count("\n") == 42
    assert "\r" not in capsys.readouterr().out


UV = """\
Resolved 289 packages in 1.62s
   Building truthgpt-serve @ file:///serve
Downloading transformers (12.0MiB)
Downloading ray (75.6MiB)
 Downloaded transformers
"""


def test_uv_says_how_far_it_is() -> None:
    progress = UvProgress()
    assert progress.describe().startswith("looking up packages, 0:0")
    for line in UV.splitlines(keepends=True):
        progress.take(line)
    assert progress.describe().startswith("fetching 289 packages, 13 MB of 92 MB, 0:0")
    progress.take("Prepared 289 packages in 9.2s")
    assert progress.describe().startswith("installing 289 packages, 0:0")


@pytest.mark.skipif(find_spec("uv") is None, reason="the packages were installed without uv")
def test_the_cause_that_uv_names(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "uv", "pip", "install", "--offline", "--no-cache"]
    progress = UvProgress()
    command += ["--target", str(tmp_path), "no-such-package-at-all"]
    assert run_pip(command, tmp_path, progress, tmp_path / "log", {"UV_NO_CONFIG": "1"}) != 0
    assert "no-such-package-at-all" in " ".join(find_cause(progress.lines))
