from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from scripts.cuda.archs import Arch, normalised, parse_arch, parse_arch_list
from scripts.cuda.labels import cuda_label, version_label
from tests.support import archs

VERSIONS = st.sampled_from(["0.20.1", "0.15.1rc2", "1.0.post3", "0.9.0.dev4", "0.20.1+abc.7"])
NOTES = st.sampled_from(["", "quickstart", "core", "no.fa3"])
MANY = st.lists(archs(), min_size=1, max_size=5)


def read_back(label: str) -> tuple[Arch, ...]:
    """Return the archs that a label names."""
    words = re.findall(r"(sm\d+[af]?)(ptx)?(?=\.|$)", label.partition("+")[2])
    return tuple(parse_arch(name + ("+PTX" if ptx else "")) for name, ptx in words)


@given(VERSIONS, st.sampled_from(["12.8", "13.0", "13.0.2"]), MANY, MANY, NOTES)
def test_a_label_is_a_normal_local_version_of_upstream_s_release(
    version: str, cuda: str, chosen: list[Arch], recipe: list[Arch], note: str
) -> None:
    label = version_label(version, cuda=cuda, archs=chosen, recipe_archs=recipe, note=note)
    assert str(Version(label)) == label
    assert Version(label).public == Version(version).public
    assert cuda_label(cuda) in label


@given(VERSIONS, MANY, MANY, NOTES)
def test_archs_read_back_from_the_label_unless_they_are_the_recipe_s(
    version: str, chosen: list[Arch], recipe: list[Arch], note: str
) -> None:
    label = version_label(version, cuda="13.0", archs=chosen, recipe_archs=recipe, note=note)
    expected = () if normalised(chosen) == normalised(recipe) else normalised(chosen)
    assert read_back(label) == expected


@given(MANY)
def test_the_order_in_which_archs_were_given_does_not_show(chosen: list[Arch]) -> None:
    turned = list(reversed(chosen))
    labels = {version_label("0.20.1", cuda="13.0", archs=order, recipe_archs=(), note="") for order in (chosen, turned)}
    assert len(labels) == 1


def test_labels_look_as_the_design_says() -> None:
    recipe = parse_arch_list("8.0;9.0;12.0")

    def label(archs: str, note: str = "", version: str = "0.15.1") -> str:
        return version_label(version, cuda="12.8", archs=parse_arch_list(archs), recipe_archs=recipe, note=note)

    assert label("12.0;9.0;8.0") == "0.15.1+cu128"
    assert label("12.0") == "0.15.1+cu128.sm120"
    assert label("12.0,9.0a,8.0+PTX", "quickstart") == "0.15.1+cu128.sm80ptx.sm90a.sm120.quickstart"
    assert label("12.0", version="0.15.1+local") == "0.15.1+local.cu128.sm120"


def test_a_major_version_alone_is_labelled_as_its_first_release() -> None:
    assert [cuda_label(cuda) for cuda in ("13", "13.0", "12.8.93")] == ["cu130", "cu130", "cu128"]
