"""The registry: who may take which name, and where families are found."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from truthgpt_serve import MODEL_REGISTRY, register_model
from truthgpt_serve.contract import FamilySpec
from truthgpt_serve.errors import RegistryError
from truthgpt_serve.registry import ModelRegistry, import_user_module

GROUP = "truthgpt_serve.test_families"
MODEL = """
from truthgpt_serve import register_model

@register_model({name!r})
class {cls}:
    def load(self, cfg): ...
    def infer(self, inputs): return inputs
"""


def model_source(name: str, cls: str = "Mine") -> str:
    return MODEL.format(name=name, cls=cls)


class First:
    def load(self, cfg: dict[str, Any]) -> None: ...

    def infer(self, inputs: Any) -> Any:
        return inputs


class Second(First):
    pass


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An importable folder whose modules and families are forgotten after the test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    families = dict(MODEL_REGISTRY._registered)
    yield tmp_path
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and file.startswith(str(tmp_path)):
            del sys.modules[name]
    MODEL_REGISTRY._registered.clear()
    MODEL_REGISTRY._registered.update(families)


def add_distribution(folder: Path, name: str, points: dict[str, str]) -> None:
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"[{GROUP}]", *(f"{key} = {value}" for key, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def test_two_classes_under_one_name_raise() -> None:
    registry = ModelRegistry(GROUP)
    registry.register(FamilySpec(name="x", class_path="a:First", model_class=First))
    registry.register(FamilySpec(name="x", class_path="a:First", model_class=First))
    with pytest.raises(RegistryError) as caught:
        registry.register(FamilySpec(name="x", class_path="b:Second", model_class=Second))
    assert str(caught.value) == (
        "model family 'x' is registered twice: by a:First and by b:Second; "
        "give one of them another name"
    )
    assert list(registry) == ["x"]
    assert registry["x"].load_class() is First


@pytest.mark.usefixtures("modules")
def test_the_decorator_returns_the_class_and_registers_it() -> None:
    assert register_model("test-first")(First) is First
    assert MODEL_REGISTRY["test-first"].load_class() is First
    with pytest.raises(
        RegistryError, match=r"'test-first' is registered twice: by .*First and by "
    ):
        register_model("test-first")(Second)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (type("A", (), {"load": print}), "A cannot be the model family 'a': it has no `infer` "),
        (type("B", (), {"infer": print}), "B cannot be the model family 'a': it has no `load` "),
        (type("C", (), {}), "it has no `load` and no `infer` method"),
    ],
)
def test_a_class_that_breaks_the_contract_is_refused(cls: type, message: str) -> None:
    with pytest.raises(RegistryError) as caught:
        register_model("a")(cls)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["", None, First])
def test_a_name_must_be_a_text(name: Any) -> None:
    with pytest.raises(RegistryError, match="register_model takes a family name, not"):
        register_model(name)


def test_an_unknown_family_lists_the_known_ones() -> None:
    with pytest.raises(RegistryError) as caught:
        MODEL_REGISTRY.find("ecko")
    message = str(caught.value)
    assert message.startswith("unknown model family 'ecko'; did you mean 'echo'? known families: ")
    assert "echo, " in message
    assert "vllm" in message


def test_a_family_of_another_package_is_found_by_its_entry_point(modules: Path) -> None:
    (modules / "other_family.py").write_text(
        "from truthgpt_serve.contract import FamilySpec\n"
        "FAMILY = FamilySpec(name='other', class_path='other_model:Other')\n"
        "WRONG = 3\n"
    )
    (modules / "other_model.py").write_text("class Other:\n    def load(self, cfg): ...\n")
    add_distribution(
        modules, "other", {"other": "other_family:FAMILY", "wrong": "other_family:WRONG"}
    )
    registry = ModelRegistry(GROUP)
    assert list(registry) == ["other", "wrong"]
    assert len(registry) == 2
    assert "other_family" not in sys.modules, "listing the names imports no family"
    assert registry["other"].class_path == "other_model:Other"
    assert "other_model" not in sys.modules, "the specification imports no engine"
    assert registry["other"].load_class().__name__ == "Other"
    with pytest.raises(RegistryError, match="of family 'wrong' is a int, not a FamilySpec"):
        registry.find("wrong")


def test_two_packages_with_one_family_name_raise(modules: Path) -> None:
    add_distribution(modules, "one", {"same": "one:FAMILY"})
    add_distribution(modules, "two", {"same": "two:FAMILY"})
    with pytest.raises(RegistryError, match=r"'same' comes from two packages: .* uninstall one"):
        list(ModelRegistry(GROUP))


def test_a_users_class_replaces_a_built_in_family_with_a_log_line(
    modules: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_distribution(modules, "builtin", {"echo": "builtin:FAMILY"})
    registry = ModelRegistry(GROUP)
    with caplog.at_level(logging.WARNING):
        registry.register(FamilySpec(name="echo", class_path="mine:First", model_class=First))
    assert caplog.messages == ["model family 'echo': mine:First replaces the built-in one"]
    assert registry.find("echo").load_class() is First
    assert list(registry) == ["echo"]


def test_import_returns_what_the_module_itself_registers(modules: Path) -> None:
    (modules / "tg_helper.py").write_text(model_source("tg-helper"))
    (modules / "tg_mine.py").write_text("import tg_helper\n" + model_source("tg-mine"))
    (modules / "tg_mine2.py").write_text(model_source("tg-mine2"))
    assert import_user_module("tg_mine2") == {"tg-mine2"}
    assert import_user_module("tg_mine") == {"tg-mine"}
    assert import_user_module("tg_mine") == {"tg-mine"}
    assert import_user_module("tg_helper") == {"tg-helper"}


def test_import_finds_classes_that_the_module_only_imports(modules: Path) -> None:
    (modules / "tg_library.py").write_text(model_source("tg-a", "A") + model_source("tg-b", "B"))
    (modules / "tg_entry.py").write_text("from tg_library import A\n")
    (modules / "tg_plain.py").write_text("import tg_library\n")
    (modules / "tg_all.py").write_text("import tg_library2\n")
    (modules / "tg_library2.py").write_text(model_source("tg-c"))
    (modules / "tg_package").mkdir()
    (modules / "tg_package" / "__init__.py").write_text("from tg_package.inner import Mine\n")
    (modules / "tg_package" / "inner.py").write_text(model_source("tg-inner"))
    import_user_module("tg_library")
    assert import_user_module("tg_entry") == {"tg-a"}
    assert import_user_module("tg_plain") == set()
    assert import_user_module("tg_all") == {"tg-c"}
    assert import_user_module("tg_all") == {"tg-c"}
    assert import_user_module("tg_package") == {"tg-inner"}


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            "tg_absent",
            "(ModuleNotFoundError: No module named 'tg_absent'); the module must be in the",
        ),
        ("tg_broken", "(ModuleNotFoundError: No module named 'no_such_library'); correct the"),
        ("tg_syntax", "cannot import 'tg_syntax' (SyntaxError: "),
        ("tg_exit", "cannot import 'tg_exit' (SystemExit: 3); correct the module"),
        ("tg_twice", "(RegistryError: model family 'tg-x' is registered twice: "),
    ],
)
def test_a_module_that_cannot_be_imported(modules: Path, module: str, message: str) -> None:
    (modules / "tg_broken.py").write_text("import no_such_library\n")
    (modules / "tg_syntax.py").write_text("def\n")
    (modules / "tg_exit.py").write_text("raise SystemExit(3)\n")
    (modules / "tg_twice.py").write_text(model_source("tg-x", "A") + model_source("tg-x", "B"))
    with pytest.raises(RegistryError) as caught:
        import_user_module(module)
    assert message in str(caught.value)


def test_the_working_directory_is_searched(
    modules: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cwd")
    (folder / "tg_in_cwd.py").write_text(model_source("tg-in-cwd"))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert import_user_module("tg_in_cwd") == {"tg-in-cwd"}
    del sys.modules["tg_in_cwd"]


@pytest.mark.parametrize("own", ["statistics.py", "statistics/__init__.py", "time.py"])
def test_a_module_that_another_one_hides_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own: str
) -> None:
    (tmp_path / own).parent.mkdir(exist_ok=True)
    (tmp_path / own).write_text(model_source("tg-hidden"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(RegistryError, match="give your module a name that no other has") as caught:
        import_user_module(own.split("/")[0].removesuffix(".py"))
    assert str(tmp_path / own) in str(caught.value)
