"""The CI workflows, parsed: what actionlint, which `nox -s lint` runs, does not know of."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from noxfile import PYTHONS
from scripts.commands.wheel import read_arguments
from scripts.compile.shards import JOB_SECONDS, plan_json
from scripts.core.paths import ROOT
from scripts.recipe.files import load_recipe

FOLDER = ROOT / ".github"
WORKFLOWS = sorted((FOLDER / "workflows").glob("*.yml"))
ACTIONS = sorted((FOLDER / "actions").glob("*/action.yml"))


def load(path: Path) -> dict[str, Any]:
    data = yaml.safe_load(path.read_text())
    assert isinstance(data, dict)
    return data


def jobs(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = load(path)["jobs"]
    assert found
    return found


def steps() -> Iterator[dict[str, Any]]:
    """Return every step of all workflows and of our own actions."""
    for path in WORKFLOWS:
        for job in jobs(path).values():
            yield from job["steps"]
    for path in ACTIONS:
        yield from load(path)["runs"]["steps"]


def commands() -> list[list[str]]:
    """Return every `nox` call of the workflows, split as a shell does; optional words (`${X:+...}`) are left out."""
    scripts = [re.sub(r"\$\{\w+:\+[^}]*\}", "", step["run"]) for step in steps() if "run" in step]
    lines = [line for script in scripts for line in script.splitlines()]
    calls = [re.search(r"\bnox -s [^|)]*", line) for line in lines]
    return [shlex.split(call.group()) for call in calls if call]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_job_ends_before_the_services_limit_and_its_steps_before_the_job(path: Path) -> None:
    for name, job in jobs(path).items():
        limit = job["timeout-minutes"]
        assert limit * 60 < JOB_SECONDS, name
        assert all(step.get("timeout-minutes", 0) < limit for step in job["steps"]), name


def test_a_shard_that_runs_out_of_time_still_saves_what_it_compiled() -> None:
    shard = jobs(FOLDER / "workflows/wheels.yml")["shard"]["steps"]
    compiling = next(number for number, step in enumerate(shard) if step.get("name") == "Compile")
    saving = next(step for step in shard[compiling:] if "cache/save" in step.get("uses", ""))
    assert shard[compiling]["timeout-minutes"]
    assert saving["if"] == "always()"
    assert "restore-keys" in shard[compiling - 1]["with"]
    assert shard[compiling - 1]["with"]["path"] == saving["with"]["path"]


def test_an_action_is_our_own_or_pinned_by_commit_everywhere_the_same() -> None:
    used = {step["uses"] for step in steps() if "uses" in step}
    ours = {name for name in used if name.startswith("./")}
    assert all((ROOT / name / "action.yml").is_file() for name in ours)
    assert all(re.fullmatch(r"actions/[a-z/-]+@[0-9a-f]{40}", name) for name in used - ours)
    repositories = {tuple(name.split("/")[1].split("@")[0:1]): name.split("@")[1] for name in used - ours}
    assert len(set(repositories.items())) == len({name.split("@")[1] for name in used - ours})


def test_every_pin_says_which_version_it_is() -> None:
    """The comment is for people, and dependabot renews it with the pin."""
    text = "".join(path.read_text() for path in [*WORKFLOWS, *ACTIONS])
    lines = re.findall(r"uses: (?!\./).*", text)
    assert lines
    assert [line for line in lines if not re.fullmatch(r"uses: \S+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", line)] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_only_read(path: Path) -> None:
    assert load(path)["permissions"] == {"contents": "read"}
    assert not [name for name, job in jobs(path).items() if "permissions" in job]
    checkouts = [step for job in jobs(path).values() for step in job["steps"] if "checkout@" in step.get("uses", "")]
    assert checkouts
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_what_users_type_reaches_the_shell_as_variables_only() -> None:
    scripts = [step["run"] for step in steps() if "run" in step]
    assert len(scripts) > 5
    assert [script for script in scripts if "${{" in script] == []


def test_the_commands_of_the_workflows_exist_and_take_their_options() -> None:
    found = commands()
    sessions = set(re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(), re.MULTILINE))
    assert {words[2] for words in found} <= sessions
    wheels = [words[4:] for words in found if words[2] == "wheel"]
    assert {"--shard", "--plan-json"} <= {word for words in wheels for word in words}
    for words in wheels:
        read_arguments(["1/2" if word == "$SHARD" else "quickstart" if word == "$RECIPE" else word for word in words])


def test_the_plan_gives_the_matrix_that_the_shards_use() -> None:
    recipe = load_recipe("vllm-0.20.1-cu130")
    matrix = json.loads(json.dumps(plan_json(recipe, recipe.archs)))["matrix"]
    shard = jobs(FOLDER / "workflows/wheels.yml")["shard"]
    assert shard["strategy"]["matrix"] == "${{ fromJSON(needs.plan.outputs.matrix) }}"
    assert [f"${{{{ matrix.{key} }}}}" for key in matrix] == [shard["env"]["SHARD"]]


def test_the_tests_run_on_every_python_that_is_promised_and_the_build_on_the_ends() -> None:
    matrices = {
        name: job["strategy"]["matrix"] for name, job in jobs(FOLDER / "workflows/ci.yml").items() if "strategy" in job
    }
    assert matrices["tests"]["python"] == list(PYTHONS)
    assert matrices["quickstart"]["python"] == [PYTHONS[0], PYTHONS[-1]]


def test_dependabot_looks_at_every_folder_with_pins() -> None:
    (update,) = load(FOLDER / "dependabot.yml")["updates"]
    assert update["package-ecosystem"] == "github-actions"
    assert update["directories"] == ["/", *(f"/{path.parent.relative_to(ROOT)}" for path in ACTIONS)]


def test_hooks_before_a_commit_run_what_the_project_has() -> None:
    (repository,) = load(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"  # nothing to fetch, no second place with versions
    hooks = {hook["id"]: hook for hook in repository["hooks"]}
    assert hooks["lint"]["entry"] == "nox -s lint"
    refused = re.compile(hooks["results"]["files"])
    assert refused.search("wheelhouse/vllm-0.20.1+cu130-cp38-abi3-manylinux_2_34_x86_64.whl")
    assert not refused.search("recipes/quickstart.toml")
