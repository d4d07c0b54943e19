"""The documentation as a site: it builds without a warning, and loads nothing from other hosts."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import truthgpt_serve

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("truthgpt_serve", "deployments", "scripts")
OF_OTHERS = (
    "401",
    "gated repo",
    "CUDA out of memory",
    "No available memory for the cache blocks",
    "Too many open files",
    "No space left on device",
    "nvidia-smi",
    "serve status",
)
"""Symptoms in the words of pip, the engines, the hub, Ray and the operating system."""
_VALUES = re.compile(
    r"…|'x'|\bN\b|NAME|[\d.]+|torch==|\+cpu|configs/\S+|pip install|: |\[install\]"
)
"""What stands in a message for values, and what joins its parts."""
_LOADS = re.compile(r"<(?:script|img|iframe|source)[^>]*\ssrc=\"([^\"]+)\"")
_STYLES = re.compile(r"<link[^>]*rel=\"(?:stylesheet|preconnect|icon)\"[^>]*>")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_there(site: Path) -> None:
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    made = {str(path.relative_to(site)) for path in site.rglob("*.html")}
    assert {page.removesuffix(".md") + ".html" for page in pages} <= made
    assert {"kubernetes.html", "python.html"} <= made
    assert "register_model" in (site / "python.html").read_text()


def test_nothing_comes_from_other_hosts(site: Path) -> None:
    found = []
    for page in site.rglob("*.html"):
        text = page.read_text()
        loaded = [*_LOADS.findall(text), *_STYLES.findall(text)]
        found += [(page.name, one) for one in loaded if re.search(r"(?:https?:)?//", one)]
    assert found == []


def test_symptoms_are_in_the_words_of_the_code() -> None:
    """Each message in the first column of the tables is one that the code has."""
    code = "\n".join(path.read_text() for name in SOURCES for path in (ROOT / name).rglob("*.py"))
    code = re.sub(r"\"\s*\n?\s*f?\"", "", code)  # texts that are split over lines
    rows = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.M)
    messages = [text for row in rows for text in re.findall(r"`+([^`]{3,})`+", row)]
    assert len(messages) > 20
    parts = [part for text in messages for part in _VALUES.split(text)]
    missing = [
        part.strip()
        for part in parts
        if len(part.strip()) > 4 and part.strip() not in code and part.strip() not in OF_OTHERS
    ]
    assert missing == []


def blocks_of(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run_truthgpt(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = "from truthgpt_serve.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_family_of_the_page_is_found_and_runs(tmp_path: Path) -> None:
    config, model = blocks_of("adding-a-family.md", "python")
    (tmp_path / "shouting").mkdir()
    (tmp_path / "shouting" / "config.py").write_text(config)
    (tmp_path / "shouting" / "model.py").write_text(model)
    package = tomllib.loads(blocks_of("adding-a-family.md", "toml")[0])
    (name, entries), *others = package["project"]["entry-points"].items()
    assert others == []
    lines = [f"[{name}]", *(f"{key} = {value}" for key, value in entries.items())]
    installed = tmp_path / "shouting-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("\n".join(lines))
    file = tmp_path / "x.yaml"
    file.write_text("model: {family: shouting}\nserving: {engine: {marks: 3}}\n")
    assert "HELLO!!!" in run_truthgpt(tmp_path, "infer", "x.yaml", "--text", "hello").stdout
    file.write_text("model: {family: shouting}\nserving: {engine: {mark: 3}}\n")
    wrong = run_truthgpt(tmp_path, "validate", "x.yaml")
    assert wrong.returncode == 2
    assert "serving.engine.mark" in wrong.stderr
    assert "marks" in wrong.stderr


def test_the_programs_of_the_python_page(tmp_path: Path) -> None:
    hello = "{'text': ' hello hello hello hello', 'finish_reason': 'length'}"
    there, stream = hello.replace("hello", "there"), " hello hello hello hello"
    printed = []
    for number, text in enumerate(blocks_of("python.md", "python")):
        program = tmp_path / f"program{number}.py"
        program.write_text(text)
        done = subprocess.run(
            [sys.executable, program], cwd=ROOT, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        printed.append(done.stdout)
    assert printed == [f"{hello}\n", f"{hello}\n{stream}\n", f"[{hello}, {there}]\n{stream}\n"]


def test_what_the_package_exports_is_what_its_page_documents() -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    section = page.split("\n## In `truthgpt_serve`\n")[1].split("\n## ")[0]
    documented = {name.rpartition(".")[::2] for name in re.findall(r"^::: (\S+)", section, re.M)}
    found = {name: getattr(importlib.import_module(home), name) for home, name in documented}
    functions = {name for name, value in found.items() if not isinstance(value, type)}
    assert functions | {"MODEL_REGISTRY"} == {*truthgpt_serve.__all__}
    assert "`MODEL_REGISTRY`" in section
    for name in functions:
        assert getattr(truthgpt_serve, name) is found[name]
