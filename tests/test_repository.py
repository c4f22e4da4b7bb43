"""Issue forms, workflows, citation and hooks are valid: the sites that read them report nothing when they are not."""

import re

import pytest
import yaml

from conftest import ROOT
from test_package import settings

FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml"))
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_valid(path):
    "GitHub drops a form with an unknown key or a field without a label"
    form = yaml.safe_load(path.read_text())
    assert (
        {"name", "description", "body"} <= set(form) <= {"name", "description", "body", "labels", "title", "assignees"}
    )
    for field in form["body"]:
        assert set(field) <= {"type", "id", "attributes", "validations"} and field["type"] in {
            "textarea",
            "input",
            "dropdown",
            "checkboxes",
        }
        assert "label" in field["attributes"] and set(field["attributes"]) <= {
            "label",
            "description",
            "placeholder",
            "render",
            "value",
        }


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_are_whole(path):
    "What a job needs or calls is there, and so is every script it runs"
    jobs = yaml.safe_load(path.read_text())["jobs"]
    for job in jobs.values():
        assert set(job.get("needs", "").split()) <= set(jobs)
        if "uses" in job:
            assert (ROOT / job["uses"]).is_file()
        for step in job.get("steps", []):
            for script in re.findall(r"[\w./-]*\.ci/\w[\w.]*", step.get("run", "")):
                assert (ROOT / script).is_file(), script


def test_pages_are_published_after_the_tests():
    "The site is built from what passed"
    jobs = yaml.safe_load((ROOT / ".github/workflows/docs.yml").read_text())["jobs"]
    assert jobs["publish"]["needs"] == "test" and jobs["test"]["uses"].endswith("ci.yml")


def test_citation_is_of_this_version():
    "CITATION.cff has what the format asks for, and the version of settings.ini"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert str(citation["version"]) == settings()["version"]


def test_hooks_run_what_is_there():
    "Every local hook of pre-commit names a command of the environment or a script of the repository"
    for hook in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]:
        words = hook["entry"].split()
        assert (
            (ROOT / words[1]).is_file()
            if words[0] == "python"
            else words[0] in {"nbdev-clean", "nbdev-export", "mypy", "ruff"}
        )
