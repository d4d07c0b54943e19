"""The families that exist: packages' by entry point, built-in ones too, a user's by decorator.

Imports no family until its name is asked for, and no engine before its class is.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from truthgpt_serve.contract import FAMILY_ENTRY_POINTS, FamilySpec, Model
from truthgpt_serve.errors import RegistryError
from truthgpt_serve.wording import nearest

logger = logging.getLogger(__name__)
ClassT = TypeVar("ClassT", bound=type)


class ModelRegistry(Mapping[str, FamilySpec]):
    """A read-only mapping of family name to `FamilySpec`; `register` is the only way in."""

    def __init__(self, group: str = FAMILY_ENTRY_POINTS) -> None:
        self._group = group
        self._registered: dict[str, FamilySpec] = {}
        self._entry_points: dict[str, EntryPoint] | None = None

    def register(self, spec: FamilySpec) -> None:
        """Adds a family of the user's own.

        A name that an entry point has is taken over, with a log line.

        Raises:
            RegistryError: Another class was registered under this name.
        """
        present = self._registered.get(spec.name)
        if present is not None and present.class_path != spec.class_path:
            raise RegistryError(
                f"model family {spec.name!r} is registered twice: by {present.class_path} and by "
                f"{spec.class_path}; give one of them another name"
            )
        if present is None and spec.name in self._found():
            logger.warning(
                "model family %r: %s replaces the built-in one", spec.name, spec.class_path
            )
        self._registered[spec.name] = spec

    def _found(self) -> dict[str, EntryPoint]:
        if self._entry_points is None:
            found: dict[str, EntryPoint] = {}
            for point in entry_points(group=self._group):
                other = found.get(point.name)
                if other is not None and other.value != point.value:
                    raise RegistryError(
                        f"model family {point.name!r} comes from two packages: {other.value} and "
                        f"{point.value}; uninstall one of them"
                    )
                found[point.name] = point
            self._entry_points = found
        return self._entry_points

    def __getitem__(self, name: str) -> FamilySpec:
        if name in self._registered:
            return self._registered[name]
        point = self._found().get(name)
        if point is None:
            raise KeyError(name)
        spec = point.load()
        if not isinstance(spec, FamilySpec):
            raise RegistryError(
                f"entry point {point.value!r} of family {name!r} is a {type(spec).__name__}, "
                "not a FamilySpec"
            )
        return spec

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._found(), *self._registered}))

    def __len__(self) -> int:
        return len({*self._found(), *self._registered})

    def registered_names(self) -> frozenset[str]:
        """Returns the names that `register` added in this process."""
        return frozenset(self._registered)

    def find(self, name: str) -> FamilySpec:
        """Returns the family called `name`.

        Raises:
            RegistryError: No such family; the message lists the known ones.
        """
        try:
            return self[name]
        except KeyError:
            near = nearest(name, self)
            hint = f"did you mean {near!r}? " if near else ""
            raise RegistryError(
                f"unknown model family {name!r}; {hint}known families: {', '.join(self)}; "
                "a class of your own is registered by naming its module in `model.import`"
            ) from None


MODEL_REGISTRY = ModelRegistry()


def register_model(name: str) -> Callable[[ClassT], ClassT]:
    """Registers a class with `load(cfg)` and `infer(inputs)` as the family `name`.

    Raises:
        RegistryError: The class lacks one of the two methods, the name is not usable, or another
            class has it.
    """
    if not isinstance(name, str) or not name:
        raise RegistryError(
            f"register_model takes a family name, not {name!r}: write @register_model('my-family')"
        )

    def decorate(cls: ClassT) -> ClassT:
        missing = [
            method for method in ("load", "infer") if not callable(getattr(cls, method, None))
        ]
        if missing:
            raise RegistryError(
                f"{cls.__qualname__} cannot be the model family {name!r}: it has no "
                f"{' and no '.join(f'`{method}`' for method in missing)} method"
            )
        path = f"{cls.__module__}:{cls.__qualname__}"
        MODEL_REGISTRY.register(FamilySpec(name=name, class_path=path, model_class=cls))
        return cls

    return decorate


_added_by: dict[str, frozenset[str]] = {}


def import_user_module(module: str) -> frozenset[str]:
    """Imports the module that `model.import` names; returns the family names it registers.

    These are the families of the classes that the module defines, in its submodules too; else of
    those that it imports by name; else of those that importing it registered. A second import
    returns the same names. The working directory is searched last.

    Raises:
        RegistryError: The module cannot be imported; the cause is chained. Or it registers nothing
            and is not the one in the working directory.
    """
    if (folder := os.getcwd()) not in sys.path:
        sys.path.append(folder)  # a console script does not have it, unlike `python -m`
    before = MODEL_REGISTRY.registered_names()
    try:
        imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        hint = "correct the module"
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            hint = (
                "the module must be in the working directory, in the Serve file's `working_dir` "
                "or `py_modules`, or installed"
            )
        raise RegistryError(
            f"cannot import {module!r} ({type(error).__name__}: {error}); {hint}"
        ) from error
    _added_by.setdefault(module, MODEL_REGISTRY.registered_names() - before)
    found = _defined_in(module) or _visible_in(imported) or _added_by[module]
    if not found and (own := _find_hidden(module, Path(folder))):
        origin = getattr(sys.modules[module.partition(".")[0]], "__file__", None)
        raise RegistryError(
            f"{module!r} is {origin or 'a module of Python itself'}, which is found before {own}; "
            "give your module a name that no other has"
        )
    return found


def _find_hidden(module: str, folder: Path) -> Path | None:
    """Returns the module of this name in a folder where the imported one is another."""
    top = module.partition(".")[0]
    origin = getattr(sys.modules.get(top), "__file__", None)
    for own in (folder / f"{top}.py", folder / top / "__init__.py"):
        if own.is_file() and not (origin and own.samefile(origin)):
            return own
    return None


def _defined_in(module: str) -> frozenset[str]:
    return frozenset(
        name
        for name in MODEL_REGISTRY.registered_names()
        if f"{MODEL_REGISTRY[name].class_path.partition(':')[0]}.".startswith(f"{module}.")
    )


def _visible_in(module: ModuleType) -> frozenset[str]:
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    return frozenset(
        name
        for name in MODEL_REGISTRY.registered_names()
        if MODEL_REGISTRY[name].model_class in classes
    )


def model_class(name: str) -> type[Model]:
    """Returns the class of the family `name`; see `ModelRegistry.find` for the errors."""
    return MODEL_REGISTRY.find(name).load_class()
