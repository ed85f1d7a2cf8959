"""YAML as this project reads it: no surprising conversions, no duplicate keys, errors with a line number."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pm1_core.errors import InputError, ManifestError
from pm1_core.validate import refusal

_KEPT = {"tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"}


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: `no` and `on` are words, `007` and `12:30` are text, dates are text.

    Under YAML 1.1 the value map `{no: 0, yes: 1}` and the category `NO` would turn into booleans.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own class attribute)
        first: [(tag, pattern) for tag, pattern in pairs if tag in _KEPT]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int | float | bool) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} twice", key_node.start_mark)
            if isinstance(key, str | int | float | bool):
                seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|false|True|False)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf)$"),
    list("-+.0123456789"),
)


def read_text(path: Path, error: type[InputError] = ManifestError) -> str:
    """The UTF-8 text of `path`; raises `error` naming the file if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise error(refusal(path, "found no such file", "correct the path or add the file")) from None
    except UnicodeDecodeError as problem:
        raise error(
            refusal(f"{path}, byte {problem.start}", "found text that is not UTF-8", "save it as UTF-8")
        ) from None
    except OSError as problem:
        raise error(refusal(path, f"could not read it ({problem.strerror})", "make it readable")) from None


def read_yaml(path: Path) -> Any:
    """The content of a YAML file. Raises ManifestError naming file, line and problem."""
    text = read_text(path)
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise ManifestError(refusal(where, f"found {problem.problem}", "correct the YAML")) from None
    except (yaml.YAMLError, RecursionError) as problem:
        raise ManifestError(refusal(path, f"found {problem}", "correct the YAML")) from None


def text_of(where: str, value: Any) -> str:
    """A non-empty text; numbers are accepted and written as text. Raises ManifestError."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or str(value).strip() == "":
        raise ManifestError(refusal(where, f"found {value!r}", "write a text"))
    return str(value).strip()


def list_of(where: str, value: Any) -> Sequence[Any]:
    """A list, or ManifestError."""
    if not isinstance(value, list):
        raise ManifestError(refusal(where, f"found {value!r}", "write a list"))
    return value


def mapping_of(where: str, value: Any) -> Mapping[Any, Any]:
    """A mapping, or ManifestError."""
    if not isinstance(value, Mapping):
        raise ManifestError(refusal(where, f"found {value!r}", "write a mapping of keys to values"))
    return value


def scalar_text(value: Any) -> str:
    """How a YAML scalar would stand in a table cell.

    >>> [scalar_text(v) for v in (True, -1, 2.5, "never")]
    ['true', '-1', '2.5', 'never']
    """
    return str(value).lower() if isinstance(value, bool) else str(value)
