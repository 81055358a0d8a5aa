"""Griffe extension: our docstrings on the page. Roles become links, and a paragraph that ends with ``::`` opens code.

The docstrings are written for the person who reads the source: Google sections, and Sphinx roles where a name is meant
that the reader may follow (``:meth:`close```, ``:class:`~killswitch.link.RouterLink```). A name that has a place on the
site is linked; any other is set as code, for a private module is nothing to link to.
"""

from __future__ import annotations

import re
from html import escape
from typing import Any

from griffe import AliasResolutionError, Attribute, Class, Extension, Function, Module, NameResolutionError, Object

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`(~?)([^`<>]+)`")
SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)$", re.MULTILINE)
"""Several arguments, attributes or errors with one text: the source says it once, the page at each name."""
LITERAL = re.compile(r"::$", re.MULTILINE)


def full_name(owner: Object, name: str) -> str:
    """Return the full name of what ``name`` means where ``owner`` is written, or ``name`` itself when nothing is."""
    try:
        return owner.resolve(name)
    except (NameResolutionError, AliasResolutionError):
        return name


def _at_each_name(found: re.Match[str]) -> str:
    indent, names, text = found.groups()
    return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))


class Roles(Extension):
    """Rewrites every docstring once, as soon as its owner is known."""

    def _rewrite(self, owner: Object) -> None:
        if owner.docstring is not None:
            linked = ROLE.sub(lambda role: self._link(owner, *role.groups()), owner.docstring.value)
            owner.docstring.value = LITERAL.sub(":", SHARED.sub(_at_each_name, linked))

    def _link(self, owner: Object, short: str, name: str) -> str:
        shown = name.rpartition(".")[2] if short else name
        target = escape(full_name(owner, name), quote=True)
        return f'<autoref identifier="{target}" optional><code>{escape(shown)}</code></autoref>'

    def on_module_members(self, *, mod: Module, **_: Any) -> None:
        """A module, once its names are known: its docstring speaks of them."""
        self._rewrite(mod)

    def on_class_members(self, *, cls: Class, **_: Any) -> None:
        """A class, once its methods are known."""
        self._rewrite(cls)

    def on_function_instance(self, *, func: Function, **_: Any) -> None:
        """A function or a method."""
        self._rewrite(func)

    def on_attribute_instance(self, *, attr: Attribute, **_: Any) -> None:
        """A constant or an attribute."""
        self._rewrite(attr)
