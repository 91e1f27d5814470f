"""Reading recipes: TOML files merged along `extends`, errors that name file, key and nearest name, the JSON Schema."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from scripts.core.errors import UsageError, nearest
from scripts.core.paths import RECIPES, ROOT
from scripts.cuda.archs import check_cuda_can
from scripts.recipe.fitting import without_what_is_too_new
from scripts.recipe.model import Cost, Dependency, OptionalLibrary, Recipe
from scripts.recipe.sources import GitSource, MembersSource, SdistSource, WheelSource

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def recipe_names(folder: Path = RECIPES) -> list[str]:
    """Return the names of all recipes in a folder."""
    return sorted(path.stem for path in folder.glob("*.toml"))


def load_recipe(name: str, *, folder: Path = RECIPES) -> Recipe:
    """Read, merge and check the recipe `name` of a folder, or a recipe file `some/where/NAME.toml`.

    A file of one's own may extend the recipes of `folder`, and bring its lock file and patches beside it.
    Raises UsageError.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"there is no recipe file {name}", fix=f"or name one of: {', '.join(recipe_names())}")
        name, folder = path.stem, path.parent
    return check_recipe(_merged(name, folder, seen=()), folder / f"{name}.toml")


def check_recipe(data: Mapping[str, Any], path: Path) -> Recipe:
    """Return what was read from the recipe file `path` (and what it extends) as a Recipe. Raises UsageError."""
    try:
        recipe = Recipe.model_validate({**data, "name": path.stem, "folder": path.parent})
    except ValidationError as error:
        raise _explain(error, path) from error
    recipe = without_what_is_too_new(recipe)
    try:
        check_cuda_can(recipe.archs, recipe.toolchain.cuda)
    except UsageError as error:
        raise UsageError(f"{_shown(path)}: archs: {error.what}", why=error.why, fix=error.fix) from error
    return recipe


def _merged(name: str, folder: Path, *, seen: tuple[Path, ...]) -> dict[str, Any]:
    known = recipe_names(folder)
    # What a recipe elsewhere extends may be one of ours, even one of its own name.
    if seen and folder != RECIPES and (name not in known or seen[-1].stem == name):
        folder, known = RECIPES, recipe_names()
    path = folder / f"{name}.toml"
    if path in seen:
        circle = " -> ".join(step.stem for step in (*seen, path))
        raise UsageError(f"recipe {name!r} extends itself ({circle})", fix="remove one `extends`")
    if name not in known:
        who = f" (extended by {seen[-1].stem!r})" if seen else ""
        raise UsageError(
            f"unknown recipe {name!r}{who}.{nearest(name, known)}", fix=f"choose one of: {', '.join(known)}"
        )
    data = _read(path)
    parent = data.pop("extends", None)
    if parent is None:
        return data
    if not isinstance(parent, str):
        raise UsageError(f"{_shown(path)}: extends: {parent!r} is not the name of a recipe")
    return merge(_merged(parent, folder, seen=(*seen, path)), data)


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `change` on top: tables key by key, everything else replaced."""
    merged = dict(base)
    for key, value in change.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _read(path: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError: TOML, UTF-8, and integers of thousands of digits
        raise UsageError(f"{_shown(path)} is not valid TOML", why=str(error), fix="correct the line named") from error
    except OSError as error:
        raise UsageError(f"{_shown(path)} cannot be read", why=error.strerror or str(error)) from error
    for key in set(_NOT_IN_FILES) & set(data):
        raise UsageError(f"{_shown(path)}: unknown key {key!r}", fix="a recipe is named by its file; remove the key")
    return data


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


_SOURCES = {"sdist": SdistSource, "wheel": WheelSource, "wheel-members": MembersSource, "git": GitSource}
_TAGS = set(_SOURCES)
_NOT_IN_FILES = ("name", "folder", "lost", "pinned_torch")  # the file's own path says them


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys allowed in the table that holds the key at `location`."""
    model: Any = Recipe
    parts = location[:-1]
    if parts[:1] == ("dependencies",):
        model, parts = Dependency, parts[2:]  # after the dependency's own name
    elif parts[:1] == ("optional_libraries",) and len(parts) > 1:
        model, parts = OptionalLibrary, parts[2:]  # after the library's name
    for part in parts:
        if part in _TAGS and model is None:
            model = _SOURCES[str(part)]
            continue
        field = model.model_fields.get(str(part)) if model is not None else None
        kind = field.annotation if field else None
        known = isinstance(kind, type) and issubclass(kind, BaseModel)
        model = kind if known else Cost if part == "cost" else None
    hidden = _NOT_IN_FILES if model is Recipe else ()
    return sorted(set(model.model_fields) - set(hidden))


def _explain(error: ValidationError, path: Path) -> UsageError:
    items = error.errors()
    # A list all of whose members are wrong is also reported as empty: say it once.
    inside = {item["loc"][: depth + 1] for item in items for depth in range(len(item["loc"]) - 1)}
    messages = [_explain_one(item) for item in items if item["loc"] not in inside]
    whats = [message for message, _ in messages]
    fixes = [fix for _, fix in messages if fix]
    what = f"{_shown(path)}: {whats[0]}"
    more = f"and {len(whats) - 1} more: " + "; ".join(whats[1:4]) if len(whats) > 1 else ""
    return UsageError(what, why=more, fix=list(dict.fromkeys(fixes))[:4])


def _explain_one(item: Any) -> tuple[str, str]:
    """Return (what, what is allowed) for one of pydantic's errors."""
    location = tuple(item["loc"])
    tags = {i for i, part in enumerate(location) if part in _TAGS and location[i - 1] == "source"}
    shown = ".".join(str(part) for i, part in enumerate(location) if i not in tags) or "recipe"
    key, value = str(location[-1]) if location else "", item.get("input")
    if item["type"] == "extra_forbidden":
        allowed = _fields_at(location)
        return f"{shown}: unknown key {key!r}.{nearest(key, allowed)}", f"allowed here: {', '.join(allowed)}"
    if item["type"] == "missing":
        return f"{shown}: missing", f"add the key {key!r}"
    if item["type"] in {"enum", "literal_error"}:
        allowed = re.findall(r"'([^']+)'", str(item["ctx"]["expected"]))
        hint = nearest(str(value), allowed)
        return f"{shown}: {value!r} is not known.{hint}", f"allowed: {', '.join(allowed)}"
    if item["type"] in {"union_tag_invalid", "union_tag_not_found"}:
        kind = value.get("kind") if isinstance(value, dict) else value
        hint = nearest(str(kind), _TAGS)
        return f"{shown}.kind: {kind!r} is not known.{hint}", f"allowed: {', '.join(sorted(_TAGS))}"
    message = _in_words(item)
    if not location:  # of the recipe as a whole: the message names its keys
        return message, ""
    given = "" if isinstance(value, dict) else f" {value!r}:"
    return f"{shown}:{given} {message}", ""


_KINDS = {
    "tuple_type": 'a list is wanted, such as ["9.0", "12.0"]',
    "list_type": 'a list is wanted, such as ["9.0", "12.0"]',
    "string_type": 'a text in quotes is wanted, such as "9.0"',
    "dict_type": "a table is wanted: keys with values, below a [heading]",
    "mapping_type": "a table is wanted: keys with values, below a [heading]",
    "model_type": "a table is wanted: keys with values, below a [heading]",
    "model_attributes_type": "a table is wanted: keys with values, below a [heading]",
    "int_type": "a whole number is wanted, without quotes",
    "int_parsing": "a whole number is wanted, without quotes",
    "int_from_float": "a whole number is wanted, without a fraction",
    "float_type": "a number is wanted, without quotes",
    "float_parsing": "a number is wanted, without quotes",
    "finite_number": "a number is wanted that is not infinite",
    "bool_type": "true or false is wanted, without quotes",
    "bool_parsing": "true or false is wanted, without quotes",
    "too_short": "the list is empty; at least one is needed",
    "string_too_short": "the text is empty",
}
"""What TOML would have to say, by pydantic's names of what is wrong."""
_FORMS = {
    r"^[0-9a-f]{64}$": "a sha256 is wanted: 64 digits out of 0-9 and a-f",
    r"^[0-9a-f]{40}$": "a full commit id is wanted: 40 digits out of 0-9 and a-f",
    r"^([0-9a-f]{40}|tree)$": 'a full commit id is wanted, 40 digits out of 0-9 and a-f, or "tree"',
    r"^\d{2}\.\d$": 'a CUDA version with one dot is wanted, such as "12.8"',
    r"^[A-Z_][A-Z0-9_]*$": "the name of a variable is wanted: capitals, digits and _",
    r"^[\w.+/-]+$": "a relative path is wanted: letters, digits and . _ + - /",
    r"^[\w.+/@-]*$": "the name of a git tag is wanted, such as v0.20.1",
    r"^(https|ssh|file)://\S+$": "a URL is wanted that begins with https://, ssh:// or file://",
    r"^https?://\S+$": "a URL is wanted that begins with https:// or http://",
    r"^([a-z0-9]+(\.[a-z0-9]+)*)?$": "small letters and digits are wanted, with dots between them",
    r"^\d+\.\d+\.\d+$": 'a release with two dots is wanted, such as "12.8.1"',
    r"^[a-z0-9][a-z0-9.-]*$": "small letters, digits, . and - are wanted",
}
"""The patterns of the models in words."""


def _in_words(item: Any) -> str:
    """Return what is wrong with a value in TOML's words, not the checker's."""
    if item["type"] == "string_pattern_mismatch":
        pattern = str(item["ctx"]["pattern"])
        return _FORMS.get(pattern, f"the text does not fit the pattern {pattern}")
    limits = {"greater_than": "more than", "greater_than_equal": "at least", "less_than": "less than"}
    limits["less_than_equal"] = "at most"
    if item["type"] in limits:
        return f"it must be {limits[item['type']]} {next(iter(item['ctx'].values()))}"
    if item["type"] in {"tuple_type", "list_type"} and isinstance(item.get("input"), str):
        return f"a list is wanted: [{json.dumps(item['input'])}]"  # a string of TOML is written as one of JSON
    return _KINDS.get(item["type"], str(item["msg"]).removeprefix("Value error, "))


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of recipe files, for editors: `extends` allowed, nothing required beside it."""
    schema = Recipe.model_json_schema(mode="validation")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "wheelsmith recipe"
    del schema["properties"]["name"]
    for hidden in _NOT_IN_FILES[1:]:
        schema["properties"].pop(hidden, None)
    schema["properties"]["extends"] = {
        "type": "string",
        "description": "Name of the recipe this one changes: tables are merged, values and lists replaced.",
    }
    required = [key for key in schema.pop("required") if key != "name"]
    schema["anyOf"] = [{"required": ["extends"]}, {"required": required}]
    schema["$defs"] = {name: _relaxed(name, part) for name, part in schema["$defs"].items()}
    return schema


def _relaxed(name: str, part: dict[str, Any]) -> dict[str, Any]:
    # A recipe that extends another may give single keys of a table, so tables cannot require theirs.
    return {key: value for key, value in part.items() if key != "required" or name.endswith("Source")}
