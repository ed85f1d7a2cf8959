"""YAML as this project reads it: no surprising conversions, no duplicate keys, errors with a line number."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pm1_core.errors import InputError, ManifestError
from pm1_core.validate import refusal

_KEPT = {"tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"}
_MOST_VALUES = 1_000_000


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: `no` and `on` are words, `007` and `12:30` are text, dates are text.

    Under YAML 1.1 the value map `{no: 0, yes: 1}` and the category `NO` would turn into booleans. No tag names
    another type, and aliases stand for no more values than a person can mean.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own class attribute)
        first: [(tag, pattern) for tag, pattern in pairs if tag in _KEPT]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _size(node, {})
        return node

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None):  # an alias has none
            raise yaml.composer.ComposerError(None, None, f"the tag {event.tag!r}", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int | float | bool) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} twice", key_node.start_mark)
            if isinstance(key, str | int | float | bool):
                seen.add(key)
        return super().construct_mapping(node, deep)


def _size(node: yaml.Node, sizes: dict[yaml.Node, int]) -> int:
    """Values in `node`, with those of an alias wherever it stands. sizes: of nodes met, 0 while one is open"""
    if node not in sizes:
        sizes[node] = 0
        below = [] if isinstance(node, yaml.ScalarNode) else node.value
        nodes = [one for each in below for one in (each if isinstance(each, tuple) else (each,))]
        sizes[node] = 1 + sum(_size(one, sizes) for one in nodes)
    if not 0 < sizes[node] <= _MOST_VALUES:
        problem = f"aliases for more than {_MOST_VALUES:,} values" if sizes[node] else "a value within itself"
        raise yaml.composer.ComposerError(None, None, problem, node.start_mark)
    return sizes[node]


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|false|True|False)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    # Longer ones are text: they fit no 64 bits.
    "tag:yaml.org,2002:int",
    re.compile(r"^[-+]?(?:0|[1-9][0-9]{0,17})$"),
    list("-+0123456789"),
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


def read_yaml(path: Path, error: type[InputError] = ManifestError) -> Any:
    """The content of a YAML file. Raises `error` naming file, line and problem."""
    text = read_text(path, error)
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise error(refusal(where, f"found {problem.problem}", "correct the YAML")) from None
    except yaml.reader.ReaderError as problem:
        where = f"{path}, character {problem.position + 1}"
        raise error(refusal(where, "found a character that YAML does not have", "remove it")) from None
    except RecursionError:
        raise error(refusal(path, "found values nested too deep", "correct the YAML")) from None


def is_there(path: Path, folder: bool = False) -> bool:
    """Whether a file, or a folder, is there; not if the system cannot tell, as of a name that is too long."""
    try:
        return path.is_dir() if folder else path.is_file()
    except OSError:
        return False


def text_of(where: str, value: Any) -> str:
    """A line of text; numbers are accepted and written as text. Raises ManifestError."""
    text = str(value).strip() if isinstance(value, str | int | float) else ""
    # Cc and Cs: control characters, and surrogates, which no file can hold.
    if isinstance(value, bool) or not text or any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
        raise ManifestError(refusal(where, f"found {value!r}", "write a line of text"))
    return text


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
