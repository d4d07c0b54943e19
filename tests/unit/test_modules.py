"""Every module has its tests or a reason in `tests/modules.yaml`; none import in a circle."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Container, Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
ENTRY = {"modules", "tests", "reason"}


def product_modules() -> dict[Path, list[Path]]:
    """Returns each module's path in the repository with the test modules of its name."""
    found = {}
    for package in ("truthgpt_serve", "deployments"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.name == "__init__.py":
                continue
            module = path.relative_to(ROOT)
            folder = TESTS / "unit" / ("families" if package == "deployments" else "")
            folder = folder.joinpath(*module.parts[1:-1])
            name = f"test_{module.stem.lstrip('_')}"
            found[module] = [*folder.glob(f"{name}.py"), *folder.glob(f"{name}_*.py")]
    return found


def listed() -> list[tuple[Path, list[str]]]:
    """Returns each module that the list names, with the tests named for it."""
    folders = yaml.safe_load((TESTS / "modules.yaml").read_text(encoding="utf-8"))
    entries = []
    for folder, groups in folders.items():
        for group in groups:
            assert set(group) == ENTRY, folder
            assert group["modules"], folder
            assert group["tests"], folder
            assert group["reason"].strip(), folder
            entries += [(Path(folder, f"{name}.py"), group["tests"]) for name in group["modules"]]
    return entries


def test_every_module_has_its_tests_or_is_listed() -> None:
    named = {module for module, _ in listed()}
    missing = [path for path, own in product_modules().items() if not own and path not in named]
    assert [str(path) for path in missing] == []


def test_the_list_names_modules_without_tests_of_their_own() -> None:
    modules = product_modules()
    named = [module for module, _ in listed()]
    assert [str(path) for path in named if path not in modules] == [], "no such module"
    assert [str(path) for path in named if modules[path]] == [], "they have tests of their own"
    assert len(named) == len(set(named)), "a module is there twice"


def test_the_list_names_tests_that_exist() -> None:
    tests = {test for _, tests in listed() for test in tests}
    wrong = [test for test in tests if not Path(test).name.startswith("test_")]
    assert [*wrong, *(test for test in tests if not (TESTS / test).is_file())] == []


def imported(tree: ast.AST, files: Container[str]) -> Iterator[str]:
    """Yields the modules that one imports: at its top, in functions, and for types alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            for each in node.names:
                inner = f"{node.module}.{each.name}"
                yield inner if inner in files else str(node.module)


def circle_of(files: dict[str, Path]) -> list[str]:
    """Returns modules that import each other in a circle, or none."""
    arrows = {
        name: files.keys() & {*imported(ast.parse(path.read_text(encoding="utf-8")), files)}
        for name, path in files.items()
    }
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other_in_a_circle(tmp_path: Path) -> None:
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in ("truthgpt_serve", "deployments")
        for path in (ROOT / package).rglob("*.py")
    }
    assert circle_of(files) == []
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    one.write_text("import two\n")
    two.write_text("def run():\n    from one import x\n")
    assert sorted({*circle_of({"one": one, "two": two})}) == ["one", "two"]
