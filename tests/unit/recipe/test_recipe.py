from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.core.errors import UsageError
from scripts.core.paths import RECIPES, ROOT
from scripts.cuda.archs import parse_arch_list
from scripts.recipe.files import check_recipe, json_schema, load_recipe, merge, recipe_names
from scripts.recipe.model import SCHEMA_FILE, Component, Recipe, recipe_file
from tests.support import recipe_data, write_recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def refusal(folder: Path, **changes: Any) -> UsageError:
    """Return the error for a recipe with some keys changed (None: left out); it names the file, whatever is wrong."""
    write_recipe(folder, "mine", **changes)
    with pytest.raises(UsageError) as raised:
        load_recipe("mine", folder=folder)
    assert "mine.toml" in raised.value.what
    return raised.value


@pytest.mark.parametrize("name", recipe_names())
def test_the_recipes_that_come_with_wheelsmith_load_and_name_files_that_exist(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.lock_file.is_file()
    assert all((ROOT / "patches" / patch).is_file() for patch in recipe.patches)
    assert recipe.shared_objects
    assert set(recipe.needed_dependencies()) <= set(recipe.dependencies)


def test_quickstart_is_the_full_recipe_with_two_components() -> None:
    quick, full = load_recipe("quickstart"), load_recipe("vllm-0.20.1-cu130")
    assert quick.components == (Component.CUMEM_ALLOCATOR, Component.MOE)
    assert quick.source == full.source
    assert quick.package.version == full.package.version
    assert quick.version(quick.archs) == "0.20.1+cu130.quickstart"
    assert quick.version(parse_arch_list("9.0")) == "0.20.1+cu130.sm90.quickstart"
    assert quick.digest != full.digest


def test_a_recipe_file_from_anywhere_may_extend_one_of_wheelsmith_s(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('extends = "quickstart"\narchs = ["8.9"]\n')
    mine = load_recipe(str(tmp_path / "mine.toml"))
    assert (mine.name, [str(arch) for arch in mine.archs]) == ("mine", ["8.9"])
    assert mine.lock_file == load_recipe("quickstart").lock_file


def test_a_recipe_file_may_extend_the_recipe_whose_name_it_has(tmp_path: Path) -> None:
    (tmp_path / "quickstart.toml").write_text('extends = "quickstart"\narchs = ["8.9"]\n')
    mine = load_recipe(str(tmp_path / "quickstart.toml"))
    assert [str(arch) for arch in mine.archs] == ["8.9"]
    assert mine.components == load_recipe("quickstart").components


def test_what_decides_the_result_is_in_the_digest_and_the_rest_is_not(tmp_path: Path) -> None:
    def digest_of(**changes: Any) -> str:
        write_recipe(tmp_path, "mine", **changes)
        return load_recipe("mine", folder=tmp_path).digest

    plain = digest_of()
    assert digest_of(description="other words") == plain
    assert digest_of(archs=["8.0"]) != plain
    assert digest_of(environment={"A": "1"}) != plain


def test_archs_are_kept_as_written_and_components_as_an_enum(tmp_path: Path) -> None:
    write_recipe(tmp_path, "mine", archs=["9.0a", "8.0+PTX"], components=["_C", "triton_kernels"])
    recipe = load_recipe("mine", folder=tmp_path)
    assert [str(arch) for arch in recipe.archs] == ["9.0a", "8.0+PTX"]
    assert recipe.shared_objects == (Component.CORE,)


def test_dependencies_are_needed_by_their_components_or_by_all(tmp_path: Path) -> None:
    wheel = {"kind": "wheel", "name": "w", "version": "1", "sha256": "0" * 64, "path": "w/data"}
    needs = {"version": "1", "variable": "W_DIR", "source": wheel}
    dependencies = {"always": needs, "moe": {**needs, "components": ["_moe_C"]}, "fa": {**needs, "components": ["_C"]}}
    write_recipe(tmp_path, "mine", dependencies=dependencies)
    assert set(load_recipe("mine", folder=tmp_path).needed_dependencies()) == {"always", "moe"}


@pytest.mark.parametrize(
    ("component", "member"),
    [
        (Component.CORE, "vllm/_C"),
        (Component.FLASH_ATTENTION_3, "vllm/vllm_flash_attn/_vllm_fa3_C"),
        (Component.DEEP_GEMM, "vllm/third_party/deep_gemm/_C"),
        (Component.FLASH_ATTENTION_4, "vllm/vllm_flash_attn/cute/"),
        (Component.TML_FA4, "vllm/third_party/tml_fa4/"),
    ],
)
def test_a_component_knows_where_its_files_are(component: Component, member: str) -> None:
    assert component.member == member


def test_deep_gemm_is_found_under_the_name_of_any_version() -> None:
    folder = "vllm/third_party/deep_gemm"
    assert Component.DEEP_GEMM.stem_in({f"{folder}/_C_extension": 1}) == f"{folder}/_C_extension"
    assert Component.DEEP_GEMM.stem_in({f"{folder}/_C": 1, "vllm/_C": 2}) == f"{folder}/_C"
    assert Component.DEEP_GEMM.stem_in({}) == f"{folder}/_C"


# What is wrong, and what its message must hold: key and value, what is allowed, the nearest name.
WRONG = {
    "unknown key": ({"tourch": {}}, ["unknown key 'tourch'", "'torch'", "components"]),
    "unknown key in a table": (
        {"torch": {"version": "2.11.0", "cuda": "13.0", "cdua": "1"}},
        ["torch.cdua", "'cuda'", "version"],
    ),
    "unknown key in a source": (
        {"source": {"kind": "sdist", "name": "v", "version": "0.20.1", "sha256": "0" * 64, "sha265": "x"}},
        ["source.sha265", "'sha256'"],
    ),
    "unknown key in a dependency called like a field": (
        {
            "dependencies": {
                "version": {
                    "version": "1",
                    "variabel": "X",
                    "variable": "X",
                    "source": {"kind": "git", "repository": "https://host/x", "commit": "0" * 40},
                }
            }
        },
        ["dependencies.version.variabel", "'variable'"],
    ),
    "missing key": ({"torch": {"version": "2.11.0"}}, ["torch.cuda", "missing", "add the key 'cuda'"]),
    "missing table": ({"toolchain": None}, ["toolchain: missing"]),
    "unknown component": ({"components": ["_moe_c"]}, ["components.0", "'_moe_c'", "'_moe_C'", "cumem_allocator"]),
    "unknown source kind": ({"source": {"kind": "sdsit"}}, ["source.kind", "'sdsit'", "'sdist'", "wheel"]),
    "no source kind": ({"source": {"name": "v"}}, ["source", "kind", "sdist"]),
    "unknown toolchain kind": (
        {"toolchain": {"kind": "pipy", "cuda": "13.0", "lock": "l", "build_requirements": []}},
        ["toolchain.kind", "'pipy'", "'pypi'", "redist"],
    ),
    "unknown arch": ({"archs": ["9.5"]}, ["archs.0", "'9.5'", "Perhaps you meant", "sm_90"]),
    "arch that is no text": ({"archs": [9.0]}, ["archs.0", "9.0", "string"]),
    "no archs": ({"archs": []}, ["archs", "at least one"]),
    "arch its CUDA lacks": ({"archs": ["7.0"]}, ["archs", "7.0", "12.9", "older CUDA"]),
    "bad sha256": (
        {"source": {"kind": "sdist", "name": "v", "version": "0.20.1", "sha256": "123"}},
        ["source.sha256", "'123'", "64"],
    ),
    "bad version": ({"torch": {"version": "new", "cuda": "13.0"}}, ["torch.version", "'new'", "PEP 440"]),
    "path that leads outside": ({"patches": ["../x.patch"]}, ["patches.0", "'../x.patch'", "'..'"]),
    "bad variable name": ({"environment": {"a b": "1"}}, ["environment", "a b"]),
    "wrong type": ({"description": 3}, ["description", "3", "a text in quotes"]),
    "two CUDA versions": ({"torch": {"version": "2.11.0", "cuda": "12.9"}}, ["12.9", "13.0", "extensions"]),
    "two versions of vllm": (
        {"source": {"kind": "sdist", "name": "v", "version": "0.19.0", "sha256": "0" * 64}},
        ["0.20.1", "source.version"],
    ),
    "infinite cost": (
        {
            "cost": {
                "units": 1,
                "cpu_seconds": float("inf"),
                "cpu_seconds_per_arch": 1.0,
                "unit_memory_gb": 1.0,
                "download_gb": 1.0,
                "disk_gb": 1.0,
                "measured": "",
            }
        },
        ["cost.cpu_seconds", "finite"],
    ),
    "a text where a list belongs": ({"archs": 9}, ["archs", "a list is wanted", '["9.0"']),
    "a name where a list belongs": ({"components": "_C"}, ["components", "'_C': a list is wanted: [\"_C\"]"]),
    "a text where a table belongs": ({"torch": "2.11.0"}, ["torch", "a table is wanted"]),
    "a component twice": ({"components": ["_C", "_moe_C", "_C"]}, ["components", "_C is named twice"]),
    "a family that is none": ({"families": {"_moe_C": {"Marlin MOE": ""}}}, ["'Marlin MOE'", "'Marlin MoE'", "DSV3"]),
    "a family of a component without any": ({"families": {"triton_kernels": {"x": ""}}}, ["'x'", "it has none"]),
    "a library without GPU code as optional": (
        {"optional_libraries": {"cumem_allocator": {"archs": "8.0", "lost": "x"}}},
        ["optional_libraries.cumem_allocator", "no code for a GPU"],
    ),
    "an optional library for no arch": (
        {"optional_libraries": {"_moe_C": {"archs": "", "lost": "x"}}},
        ["optional_libraries._moe_C.archs"],
    ),
    "an optional library that is none": (
        {"optional_libraries": {"_fa2_C": {"archs": "8.0", "lost": "x"}}},
        ["optional_libraries._fa2_C", "_vllm_fa2_C"],
    ),
    "host code only": ({"components": ["cumem_allocator", "triton_kernels"]}, ["code for a GPU", "_moe_C"]),
    "a tag that is a path": (
        {"source": {"kind": "git", "repository": "https://h/x", "commit": "0" * 40, "tag": "../../etc/passwd"}},
        ["source.tag", "'../../etc/passwd'", "git tag", "v0.20.1"],
    ),
    "a URL of another kind": (
        {"source": {"kind": "git", "repository": "ftp://h/x", "commit": "0" * 40}},
        ["source.repository", "https://, ssh:// or file://"],
    ),
    "its own name": ({"name": "other"}, ["unknown key 'name'", "named by its file"]),
}


@pytest.mark.parametrize(("changes", "words"), WRONG.values(), ids=WRONG)
def test_each_kind_of_mistake_is_refused_with_file_key_value_and_what_is_allowed(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    error = refusal(tmp_path, **changes)
    shown = " ".join([error.what, error.why, *error.fix])
    assert [word for word in words if word not in shown] == []


def test_optional_libraries_say_for_which_gpus_and_do_not_change_what_is_built(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'extends = "vllm-0.20.1-cu130"\n[optional_libraries._moe_C]\narchs = "8.0;12.0+PTX"\nlost = "MoE kernels"\n'
    )
    recipe, base = load_recipe(str(path)), load_recipe("vllm-0.20.1-cu130")
    [(component, item)] = recipe.optional_libraries.items()
    assert (component, [arch.number for arch in item.archs], item.lost) == ("_moe_C", ["8.0", "12.0"], "MoE kernels")
    assert recipe.model_copy(update={"name": base.name}).digest == base.digest


def test_several_mistakes_are_all_named(tmp_path: Path) -> None:
    error = refusal(tmp_path, components=["_c"], archs=["99"], torch=None)
    shown = error.what + error.why
    assert all(word in shown for word in ("components.0", "archs.0", "torch", "2 more:"))


@pytest.mark.parametrize(
    "text",
    [
        "archs = [",
        'a = "x"\na = "y"',
        "a = " + "1" * 5000,
        "a = " + "[" * 5000,
        "\ud800".encode("utf-8", "surrogatepass"),
    ],
    ids=["cut", "repeated key", "huge number", "deep nesting", "not UTF-8"],
)
def test_a_file_that_is_not_toml_is_refused_by_name(tmp_path: Path, text: str | bytes) -> None:
    (tmp_path / "broken.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=r"broken\.toml is not valid TOML"):
        load_recipe("broken", folder=tmp_path)


def test_a_folder_with_a_recipe_s_name_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        load_recipe("folder", folder=tmp_path)


@pytest.mark.parametrize("name", ["quickstrat", "quick", ""])
def test_an_unknown_recipe_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(UsageError, match="unknown recipe") as raised:
        load_recipe(name)
    assert "quickstart" in raised.value.fix[0]
    assert ("Perhaps you meant 'quickstart'" in raised.value.what) == bool(name)


def test_a_missing_recipe_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no recipe file .*mine\.toml"):
        load_recipe(str(tmp_path / "mine.toml"))


def test_extending_merges_tables_and_replaces_values_and_lists(tmp_path: Path) -> None:
    write_recipe(tmp_path, "base", environment={"A": "1", "B": "2"}, cmake={"X": "1"})
    (tmp_path / "child.toml").write_text('extends = "base"\narchs = ["8.0"]\n[environment]\nB = "3"\n')
    (tmp_path / "grandchild.toml").write_text('extends = "child"\ndescription = "d"\n[cmake]\nY = "2"\n')
    recipe = load_recipe("grandchild", folder=tmp_path)
    assert (recipe.name, recipe.description) == ("grandchild", "d")
    assert recipe.environment == {"A": "1", "B": "3"}
    assert recipe.cmake == {"X": "1", "Y": "2"}
    assert [str(arch) for arch in recipe.archs] == ["8.0"]


def test_recipes_that_extend_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('extends = "b"')
    (tmp_path / "b.toml").write_text('extends = "a"')
    with pytest.raises(UsageError, match=r"'a' extends itself \(a -> b -> a\)"):
        load_recipe("a", folder=tmp_path)


def test_an_unknown_parent_is_refused_with_who_wants_it(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('extends = "quikstart"')
    with pytest.raises(UsageError, match=r"'quikstart' \(extended by 'a'\)\. Perhaps you meant 'quickstart'"):
        load_recipe("a", folder=tmp_path)


def test_extends_must_be_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("extends = 3")
    with pytest.raises(UsageError, match=r"a\.toml: extends: 3"):
        load_recipe("a", folder=tmp_path)


NESTED = st.recursive(
    st.text(max_size=8) | st.integers(-9, 9**20) | st.floats() | st.booleans() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(sorted(Recipe.model_fields))


def same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)


def what_is_wrong(data: dict[str, Any]) -> str:
    """Return what the reader says of a table, "" when it is a recipe. Anything but a UsageError fails the test."""
    try:
        recipe = check_recipe(data, Path("any.toml"))
    except UsageError as error:
        return error.what
    assert recipe.name == "any"
    return ""


@given(st.dictionaries(KEYS | st.text(max_size=8), NESTED, max_size=4), st.sampled_from([{}, recipe_data()]))
def test_any_table_is_a_recipe_or_a_usage_error(data: dict[str, Any], base: dict[str, Any]) -> None:
    what = what_is_wrong(merge(base, data))
    assert what.startswith("any.toml: ") or (base and not what)


PATHS = st.sampled_from(
    ["torch", "torch.cuda", "source.kind", "source", "toolchain.lock", "package.label", "dependencies.x", "cost.units"]
)


@given(PATHS, NESTED)
def test_one_wrong_value_in_a_good_recipe_is_named_by_its_key(path: str, value: Any) -> None:
    change: Any = value
    for part in reversed(path.split(".")):
        change = {part: change}
    what = what_is_wrong(merge(recipe_data(), change))
    assert not what or path.split(".", maxsplit=1)[0] in what


@given(
    st.dictionaries(st.text(max_size=3), NESTED, max_size=3), st.dictionaries(st.text(max_size=3), NESTED, max_size=3)
)
def test_merging_keeps_both_sides_keys_and_the_change_wins(base: dict[str, Any], change: dict[str, Any]) -> None:
    merged = merge(base, change)
    assert set(merged) == set(base) | set(change)
    assert all(same(merged[key], value) for key, value in change.items() if not isinstance(value, dict))
    assert all(same(merged[key], value) for key, value in base.items() if key not in change)
    assert same(merge(merged, {}), merged)


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(SCHEMA_FILE.read_text())
    return read


def errors_of(schema: dict[str, Any], data: Any) -> list[str]:
    validator = jsonschema.Draft202012Validator(schema)
    return [error.message for error in validator.iter_errors(data)]


def test_the_published_schema_is_what_the_models_say(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema == json_schema(), "renew it: nox -s upgrade -- schema"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_file_fits_the_schema_and_names_it(path: Path, schema: dict[str, Any]) -> None:
    text = path.read_text()
    assert text.startswith("#:schema ../docs/recipe.schema.json\n")
    assert errors_of(schema, tomllib.loads(text)) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"extends": "quickstart", "tourch": {}},
        {"extends": "quickstart", "torch": {"cdua": "13.0"}},
        {"extends": "quickstart", "components": ["_moe_c"]},
        {"extends": "quickstart", "toolchain": {"kind": "pipy"}},
        {"extends": "quickstart", "name": "x"},
        {"description": "nothing else"},
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(wrong: dict[str, Any], schema: dict[str, Any]) -> None:
    assert errors_of(schema, wrong)


def test_a_file_that_a_recipe_names_lies_beside_it_or_in_recipes(tmp_path: Path) -> None:
    ours = RECIPES / "triton_kernels-v3.5.0.sha256"
    assert recipe_file(ours.name, tmp_path) == ours
    (tmp_path / ours.name).write_text("mine")
    assert recipe_file(ours.name, tmp_path) == tmp_path / ours.name
    assert recipe_file("nowhere", tmp_path) == tmp_path / "nowhere"


WRONG_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["kind", "version", "x"]), inner, max_size=2)
    ),
    max_leaves=3,
)


@settings(max_examples=120, deadline=None)
@given(key=st.sampled_from(sorted(set(Recipe.model_fields) - {"name", "folder"})), value=WRONG_VALUES)
def test_no_message_speaks_of_the_checker_and_all_speak_of_toml(key: str, value: Any) -> None:
    data = load_recipe("quickstart").model_dump(mode="json", exclude={"name", "folder"}) | {key: value}
    try:
        check_recipe(data, RECIPES / "quickstart.toml")
    except UsageError as error:
        shown = f"{error.what} {error.why}".lower()
        for word in (
            "tuple",
            "pydantic",
            "input should",
            "dictionary",
            "valid string",
            "model",
            "instance",
            "none type",
        ):
            assert word not in shown.replace(str(value).lower(), ""), shown
