"""A recipe as the text of its file, for `nox -s lock`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tomlkit
from tomlkit.items import Array, InlineTable, Item, Table

INLINE = {"submodules", "cmake", "gcc"}  # tables whose keys are data: paths, variables, components
WIDTH = 100  # characters of a list on one line


def recipe_text(data: Mapping[str, Any]) -> str:
    """Return tables, lists and texts as TOML: in each table the values first, then its tables, in the given order."""
    document = tomlkit.document()
    for key, value in _values_first(data):
        document.add(key, _item(key, value))
    return tomlkit.dumps(document)


def _values_first(data: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(data.items(), key=lambda item: _is_table(*item))


def _is_table(key: str, value: Any) -> bool:
    return isinstance(value, Mapping) and key not in INLINE


def _item(key: str, value: Any, *, inline: bool = False) -> Item:
    if not isinstance(value, Mapping):
        return _list(value) if isinstance(value, (list, tuple)) else tomlkit.item(value)
    inline = inline or not _is_table(key, value)
    table = tomlkit.inline_table() if inline else _table(value)
    for name, inner in _values_first(value):
        table.add(name, _item(name, inner, inline=inline))
    return table


def _table(value: Mapping[str, Any]) -> Table | InlineTable:
    """Return a table whose heading is left out where it would stand above other headings only."""
    return tomlkit.table(is_super_table=bool(value) and all(_is_table(*item) for item in value.items()))


def _list(values: Any) -> Array:
    array = tomlkit.array()
    array.extend(values)
    return array.multiline(multiline=len(array.as_string()) >= WIDTH)
