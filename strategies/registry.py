"""Strategies by name: every class in a file of this package, and those that installed packages offer.

A file strategies/NAME.py with a subclass of Strategy that has a `name` is all there is to add one. A package
offers one under the entry point group "pm1.strategies". It is the coordinator's machine that chooses: no message
and no site names code to import.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any, TypeGuard

from pm1_core.errors import ConfigError
from pm1_core.validate import refusal, require_choice
from strategies.base import Strategy

GROUP = "pm1.strategies"

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


class Registry(Mapping[str, type[Strategy]]):
    """Name -> class. Files are looked through when the first name is asked for."""

    def __init__(self) -> None:
        self._found: dict[str, type[Strategy]] = {}

    def __getitem__(self, name: str) -> type[Strategy]:
        return self._classes()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes())

    def __len__(self) -> int:
        return len(self._classes())

    def _classes(self) -> dict[str, type[Strategy]]:
        if not self._found:
            found: dict[str, type[Strategy]] = {}
            for where, member in (*_of_package(), *_of_installed()):
                if member.name in found:
                    other = found[member.name].__module__
                    raise ConfigError(
                        refusal(where, f"strategy {member.name!r} is also in {other}", "rename one")
                    )
                assert member.name is not None
                found[member.name] = member
            self._found = {name: found[name] for name in sorted(found)}
        return self._found


STRATEGIES = Registry()


def build(given: Mapping[str, Any]) -> Strategy:
    """The strategy {"name": NAME, option: value, ...} with its defaults filled in.

    Raises ConfigError naming the key and what it accepts.
    """
    rest = dict(given)
    name = require_choice("key 'strategy.name'", rest.pop("name", None), STRATEGIES, ConfigError)
    cls = STRATEGIES[name]
    kinds = option_types(cls)
    values: dict[str, Any] = {}
    for option, value in rest.items():
        if option not in kinds:
            accepted = ", ".join(kinds) if kinds else "no options"
            raise ConfigError(
                refusal(f"key 'strategy.{option}'", f"{name!r} has no such option", f"it takes {accepted}")
            )
        values[option] = _typed(option, value, kinds[option])
    return cls(**values)


def option_types(cls: type[Strategy]) -> dict[str, Any]:
    """The options of a strategy with their types, in the order in which it declares them."""
    hints = typing.get_type_hints(cls)
    return {item.name: hints[item.name] for item in dataclasses.fields(cls)}


def _typed(option: str, value: Any, kind: Any) -> Any:
    """`value` as an option of type `kind`: int, float, bool, str, or a tuple of one of them."""
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        if not isinstance(value, (list, tuple)):
            raise ConfigError(
                refusal(f"key 'strategy.{option}'", f"found {value!r}", f"give a list, each {_KINDS[inner]}")
            )
        return tuple(_typed(option, item, inner) for item in value)
    number = kind is float and isinstance(value, int) and not isinstance(value, bool)
    if not number and type(value) is not kind:
        raise ConfigError(refusal(f"key 'strategy.{option}'", f"found {value!r}", f"give {_KINDS[kind]}"))
    return float(value) if number else value


def _of_package() -> Iterator[tuple[str, type[Strategy]]]:
    package = importlib.import_module(__package__)
    for module in sorted(item.name for item in pkgutil.iter_modules(package.__path__)):
        full = f"{__package__}.{module}"
        try:
            content: ModuleType = importlib.import_module(full)
        except Exception as error:
            found = f"cannot be imported ({type(error).__name__}: {error})"
            raise ConfigError(refusal(f"strategies/{module}.py", found, "mend or remove it")) from error
        for _, member in inspect.getmembers(content, inspect.isclass):
            if member.__module__ == full and _selectable(member):
                yield f"strategies/{module}.py", member


def _of_installed() -> Iterator[tuple[str, type[Strategy]]]:
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        where = f"entry point {point.value!r} of {GROUP}"
        try:
            member = point.load()
        except Exception as error:
            found = f"cannot be imported ({type(error).__name__}: {error})"
            raise ConfigError(refusal(where, found, "mend or uninstall that package")) from error
        if not (inspect.isclass(member) and _selectable(member)):
            raise ConfigError(
                refusal(where, f"found {member!r}", "name a subclass of strategies.Strategy with a `name`")
            )
        yield where, member


def _selectable(member: type) -> TypeGuard[type[Strategy]]:
    return (
        issubclass(member, Strategy) and bool(member.__dict__.get("name")) and not inspect.isabstract(member)
    )
