"""What `nox -s lock` writes is read again as it was."""

from __future__ import annotations

import sys
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.recipe.written import recipe_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.one_of(TEXT, st.booleans(), st.integers(0, 10**9), st.lists(TEXT, max_size=12))
TABLES = st.recursive(
    st.dictionaries(TEXT, VALUES, max_size=4),
    lambda inner: st.dictionaries(
        st.one_of(TEXT, st.sampled_from(["submodules", "cmake"])), inner | VALUES, max_size=4
    ),
    max_leaves=12,
)


@settings(max_examples=60)
@given(TABLES)
def test_any_tables_come_back_as_they_were(data: dict[str, Any]) -> None:
    assert tomllib.loads(recipe_text(data)) == data


def test_a_recipe_is_written_as_people_would() -> None:
    source = {"kind": "git", "subdirectories": ["include"], "submodules": {"csrc/cutlass": "a" * 40}}
    dependency = {"version": "4.2.1", "source": source, "components": ["_C", "_moe_C"], "cmake": {"CUTLASS": "."}}
    data = {"dependencies": {"cutlass": dependency}, "archs": [f"{number}.0" for number in range(20)], "package": {}}
    assert recipe_text(data).splitlines() == [
        "archs = [",
        *(f'    "{number}.0",' for number in range(20)),
        "]",
        "",
        "[dependencies.cutlass]",
        'version = "4.2.1"',
        'components = ["_C", "_moe_C"]',
        'cmake = {CUTLASS = "."}',
        "",
        "[dependencies.cutlass.source]",
        'kind = "git"',
        'subdirectories = ["include"]',
        f'submodules = {{"csrc/cutlass" = "{"a" * 40}"}}',
        "",
        "[package]",
    ]
