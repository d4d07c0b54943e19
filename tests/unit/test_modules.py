"""Every module has a test module of its name, or is in `tests/modules.yaml` with the reason."""

from __future__ import annotations

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
