"""What a wheel says of its torch: a part of a PEP 440 label, and a requirement that only this torch meets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from scripts.recipe.torch_pin import torch_label, torch_requirement


@pytest.mark.parametrize(
    ("version", "label", "requirement"),
    [
        ("2.11.0", "torch2.11.0", "==2.11.0"),
        ("2.9.1+cu128", "torch2.9.1.cu128", "==2.9.1+cu128"),
        ("2.7.0a0+nv25.02", "torch2.7.0a0.nv2502", "==2.7.0a0+nv25.02"),
        ("2.7.0a0+ecf3bae40a.nv25.02", "torch2.7.0a0.ecf3bae40anv2502", "==2.7.0a0+ecf3bae40a.nv25.02"),
        ("2.10.0.dev20251201+cu130", "torch2.10.0.dev20251201.cu130", "==2.10.0.dev20251201+cu130"),
        ("2.9.0+012", "torch2.9.0.local012", "==2.9.0+012"),
        ("1!2.9.0", "torch1.2.9.0", "==1!2.9.0"),
        ("2.9.0-Own Build", "torch2.9.0.own.build", "===2.9.0-Own Build"),
    ],
)
def test_label_and_requirement_name_exactly_that_torch(version: str, label: str, requirement: str) -> None:
    assert torch_label(version) == label
    assert torch_requirement(version) == requirement
    assert str(Version(f"0.20.1+cu130.{label}")) == f"0.20.1+cu130.{label}"  # nothing is lost in normal form


def test_a_source_of_the_stable_abi_asks_for_a_range_within_the_major_version() -> None:
    wanted = SpecifierSet(torch_requirement("2.11.0", stable_since="2.10"))
    assert [version in wanted for version in ("2.9.1", "2.10.0", "2.14.0", "3.0")] == [False, True, True, False]


numbers = st.integers(0, 99)
locals_ = st.lists(st.from_regex(r"[a-z0-9]{1,6}", fullmatch=True), max_size=3).map(".".join)
versions = st.builds(
    lambda a, b, c, pre, local: f"{a}.{b}.{c}{pre}" + (f"+{local}" if local else ""),
    numbers,
    numbers,
    numbers,
    st.sampled_from(["", "a0", "rc1", ".dev20251201", ".post1"]),
    locals_,
)


@given(versions)
def test_any_torch_gets_a_label_that_pep_440_keeps_and_a_requirement_that_it_meets(version: str) -> None:
    label = torch_label(version)
    whole = f"0.20.1+cu130.{label}.quickstart"
    assert str(Version(whole)) == whole
    requirement = Requirement(f"torch{torch_requirement(version)}")
    assert requirement.specifier.contains(version, prereleases=True)


@given(versions, versions)
def test_a_requirement_with_a_local_version_admits_no_other_build(one: str, other: str) -> None:
    if "+" in one and Version(one) != Version(other):
        assert not SpecifierSet(torch_requirement(one)).contains(other, prereleases=True)
