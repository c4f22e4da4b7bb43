"""Scored where it was not trained: the weights stay, what was new is named, and what cannot be asked is refused."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from locrl.experiments.config import ConfigError
from locrl.evaluation.protocols import score
from locrl.experiments.results import searches_of
from locrl.experiments.train import Agent
from tiny import rewrite
from locrl.experiments.transfer import elsewhere, transfer
from tiny import TINY

NEW = dict(classes=["horse", "car"], data="scenes:test:30", fit_on="scenes:train:60")


@pytest.fixture(scope="module")
def result(tiny_runs):
    return transfer(tiny_runs, **NEW)


def test_the_weights_and_the_checkpoint_stay(tiny_runs):
    before = {file: file.read_bytes() for file in tiny_runs[0].glob("best-*")}
    agent = Agent.load(tiny_runs[0])
    weights = {k: v.clone() for k, v in agent.policy.state_dict().items()}
    bank, _ = elsewhere(agent, NEW["classes"], NEW["data"], fit_on=NEW["fit_on"])
    searches_of(agent, bank)
    assert all(torch.equal(v, agent.policy.state_dict()[k]) for k, v in weights.items())
    assert before and {file: file.read_bytes() for file in tiny_runs[0].glob("best-*")} == before


def test_it_looks_through_the_projection_of_the_run(tiny_runs):
    agent = Agent.load(tiny_runs[0])
    bank, data = elsewhere(agent, NEW["classes"], NEW["data"], fit_on=NEW["fit_on"])
    assert bank.projection.digest == agent.projection.digest
    assert bank.classes == ("horse", "car") == data.classes and len(bank) == 30


def test_numbers_are_those_of_the_evaluator(tiny_runs, result):
    for m, folder in zip(result["metrics"]["seeds"], tiny_runs):
        agent = Agent.load(folder)
        bank, data = elsewhere(agent, NEW["classes"], NEW["data"], fit_on=NEW["fit_on"])
        e = score(searches_of(agent, bank), data, bank.classes)
        assert m["hit_rate"] == e.localisation.hit_rate and m["one_shot"]["map_area"] == e.detection.map_area
    mean = np.mean([m["hit_rate"] for m in result["metrics"]["seeds"]])
    assert result["metrics"]["aggregate"]["hit_rate"]["mean"] == pytest.approx(mean)


def test_what_was_new_and_where_its_evidence_is_from(result):
    assert result["transfer"] == dict(
        trained_on=["cat", "dog"], new_classes=["horse", "car"], evidence="prototypes", evidence_from="scenes:train:60"
    )
    assert result["seeds"] == [0, 1] and result["data"]["classes"] == ["horse", "car"]


def test_every_baseline_stands_beside(result):
    assert set(result["baselines"]) == {
        "whole image",
        "centre box",
        "random policy",
        "saliency box",
        "greedy oracle",
        "centre-tie oracle",
        "planning oracle",
    }


def test_own_classes_on_other_data_use_the_runs_own_prototypes(tiny_runs):
    other = transfer(tiny_runs[0], data="simple-scenes:test:20", with_baselines=False)
    assert other["transfer"]["new_classes"] == [] and other["data"]["classes"] == ["cat", "dog"]


def test_a_class_code_cannot_be_asked_for_others(tiny_runs):
    agent = Agent.load(tiny_runs[0])
    agent.config = TINY.replace({"observation": replace(TINY.observation, n_classes=2)})
    with pytest.raises(ConfigError, match="one-hot code of its 2 classes"):
        elsewhere(agent, ["horse"], "scenes:test:30")


def test_runs_of_two_configurations_are_refused(tiny_runs, tmp_path):
    other = shutil.copytree(tiny_runs[0], tmp_path / "other")
    rewrite(other, lambda about: about["config"]["learning"].update(gamma=0.5))
    with pytest.raises(ConfigError, match="of another configuration .learning.gamma"):
        transfer([tiny_runs[0], other], ["horse"], "scenes:test:10", fit_on="scenes:train:20")


def test_classes_without_boxes_to_learn_from(tiny_runs):
    with pytest.raises(ConfigError, match=r"has no boxes of horse .*fit_on"):
        transfer(tiny_runs[0], ["horse"], "scenes:test:10")


def test_nothing_given():
    with pytest.raises(ConfigError, match="name at least one run folder"):
        transfer([])
