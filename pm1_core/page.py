"""The pages of a coordinator and of a site, as text: one look, no script, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from pm1_core.words import ago, duration, plain, size

_TEMPLATES = Path(__file__).parent / "templates"


def page(package: str, template: str, facts: Mapping[str, Any]) -> str:
    """A page of `package`, whose templates extend page.html.j2 of this one; all values are escaped."""
    return _environment(package).get_template(template).render(facts)


def style() -> str:
    """The style sheet of all pages."""
    return (_TEMPLATES / "page.css").read_text()


@lru_cache
def _environment(package: str) -> Environment:
    loaders = ChoiceLoader([PackageLoader(package), PackageLoader("pm1_core")])
    made = Environment(
        loader=loaders, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {"ago": ago, "duration": duration, "size": size, "plain": plain, "figure": _figure}
    return made


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
