"""The CI workflow as text: what actionlint, which `nox -s lint` runs, does not know of."""

from __future__ import annotations

import json
import re

from scripts.recipe import ROOT
from scripts.recipe_files import load_recipe
from scripts.shards import JOB_SECONDS, plan_json
from scripts.wheel import read_arguments

WORKFLOW = (ROOT / ".github/workflows/wheels.yml").read_text()
PREPARE = (ROOT / ".github/actions/prepare/action.yml").read_text()


def test_every_job_ends_before_the_services_limit() -> None:
    jobs = re.split(r"\n  (?=\w+:\n    )", WORKFLOW.split("\njobs:\n")[1])
    limits = [int(minutes) for minutes in re.findall(r"\n    timeout-minutes: (\d+)", WORKFLOW)]
    assert len(limits) == len(jobs) == 3
    assert max(limits) * 60 < JOB_SECONDS
    steps = [int(minutes) for minutes in re.findall(r"\n        timeout-minutes: (\d+)", WORKFLOW)]
    assert steps
    assert max(steps) < max(limits)  # what was compiled is kept after a time-out


def test_actions_are_pinned_to_a_version_or_our_own() -> None:
    used = re.findall(r"uses: (\S+)", WORKFLOW + PREPARE)
    assert used
    assert all(re.fullmatch(r"actions/[a-z/-]+@v\d+|\./\.github/actions/prepare", name) for name in used)


def test_what_users_type_reaches_the_shell_as_variables_only() -> None:
    for script in re.findall(r"run: (?:\|\n((?:          .*\n)+)|(.*)\n)", WORKFLOW):
        assert "${{" not in "".join(script)
    assert "permissions:\n  contents: read\n" in WORKFLOW


def test_the_commands_of_the_workflow_exist_and_take_their_options() -> None:
    sessions = set(re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(), re.MULTILINE))
    assert set(re.findall(r"nox -s (\w+)", WORKFLOW)) - {"publish"} <= sessions
    options = read_arguments(["--recipe", "quickstart", "--arch", "9.0", "--shard", "1/2"])
    assert options.shard == "1/2"
    assert read_arguments(["--plan-json"]).plan_json


def test_the_plan_gives_the_matrix_that_the_shards_use() -> None:
    recipe = load_recipe("vllm-0.20.1-cu130")
    matrix = json.loads(json.dumps(plan_json(recipe, recipe.archs)))["matrix"]
    assert set(matrix) == {"shard"}
    assert "fromJSON(needs.plan.outputs.matrix)" in WORKFLOW
    assert "matrix.shard" in WORKFLOW
