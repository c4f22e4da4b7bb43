"""A run with a judge: fitted once and kept, its stop and corrections in both protocols, on a photograph, in a pack."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from locrl.agents.judge import Judge
from locrl.agents.predictions import predict
from locrl.apps import pretrained
from locrl.apps.localizer import Localizer
from locrl.evaluation import judging
from locrl.evaluation.multi import attended_regions
from locrl.evaluation.protocols import all_queries
from locrl.experiments import results
from locrl.experiments.config import Config, ConfigError
from locrl.experiments.iterate import take_over
from locrl.experiments.results import answers_of, classifier_file, classifier_of, opened
from locrl.experiments.sweep import Trial
from locrl.experiments.transfer import transfer
from tiny import TINY

JUDGED = {"evaluation.judge": True, "evaluation.report_confidence": "region", "search.answer": "surest"}
STOPPED = {"search.stop": 0.2, "search.corrected": True, "search.restarts": "windows"}


def quick(*args, **kwargs):
    return fit(*args, **kwargs, epochs=1, widths=(16,))


fit = judging.fit_judge


@pytest.fixture
def opened_run(tiny_runs, monkeypatch):
    "Agent with a judge, features and data of the first seed"
    monkeypatch.setattr(results, "fit_judge", quick)
    load = results.Agent.load

    def with_judge(folder, device="cpu"):
        agent = load(folder, device)
        agent.config = agent.config.replace(JUDGED | STOPPED)
        return agent

    monkeypatch.setattr(results.Agent, "load", with_judge)
    (agent,), world, bank, data = opened(tiny_runs[0], "report")
    return agent, world, bank, data


def test_fitted_once_and_read_again(opened_run, monkeypatch):
    agent, _, bank, _ = opened_run
    assert bank.finer is not None and classifier_file(agent).exists()
    judge = classifier_of(agent)
    monkeypatch.setattr(results, "fit_judge", None)
    assert isinstance(judge, Judge) and classifier_of(agent).digest == judge.digest
    file = classifier_file(agent)
    file.write_bytes(file.read_bytes()[:100])
    monkeypatch.setattr(results, "fit_judge", quick)
    with pytest.warns(UserWarning, match="made anew"):
        assert classifier_of(agent).digest == judge.digest


def test_the_surest_box_is_corrected_and_found_where_the_judge_says(opened_run):
    agent, _, bank, _ = opened_run
    judge, c = classifier_of(agent), agent.config
    queries = all_queries(len(bank), len(bank.classes))
    passed = predict(agent.policy, bank, *queries, c.moves, c.observation.max_steps, "surest", "region", judge)
    scores, moved = judge.judge(bank, passed.image, passed.box)
    answers = answers_of(agent, bank, "region")
    np.testing.assert_allclose(answers.box, moved, atol=1e-6)
    mine = scores[np.arange(len(passed)), passed.label]
    np.testing.assert_allclose(answers.region, mine, atol=1e-6)
    np.testing.assert_array_equal(answers.triggered, mine >= 0.2)
    agent.config = c.replace({"search.corrected": False, "search.stop": 0.0})
    plain = answers_of(agent, bank, "region")  # kept apart from the other
    np.testing.assert_array_equal(plain.box, passed.box)
    np.testing.assert_array_equal(plain.triggered, passed.triggered)


def test_terminal_regions_are_those_the_judge_stops_at(opened_run, monkeypatch):
    agent, _, bank, data = opened_run
    seen = {}
    score_multi = results.score_multi

    def watched(regions, *args):
        seen["regions"], seen["overlap"] = regions, args[-1]
        return score_multi(regions, *args)

    monkeypatch.setattr(results, "score_multi", watched)
    numbers = results._several(agent, bank, data, "region", False)
    regions = seen["regions"]
    np.testing.assert_array_equal(regions.terminal, regions.region >= 0.2)
    assert seen["overlap"] == 0.3 and numbers["tr"]["confidence"] == "region"
    assert results._several(agent, bank, data, "region", False) == numbers


def test_on_a_photograph(opened_run):
    agent, world, _, _ = opened_run
    localizer = Localizer(agent, world.encoder)
    name = agent.config.data.classes[0]
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8))
    one = localizer.locate(picture, name)
    assert one.visited is not None and (one.boxes == one.visited).all(1).any()
    assert one.triggered == (one.confidence >= 0.2) and 0 <= one.confidence <= 1
    assert one.episode.boxes[-1].tolist() == one.box.tolist() != one.visited.tolist()
    for location in localizer.locate_all(picture, name, least=0.0)[:3]:
        assert (location.boxes == location.visited).all(1).any()


def test_in_a_pack(opened_run, tmp_path):
    agent, world, _, _ = opened_run
    packed = pretrained.pack(agent.folder, tmp_path / "small.npz", measured=False)
    assert isinstance(packed.classifier, Judge) and packed.classifier.features == packed.projection.digest
    localizer = Localizer.pretrained(str(tmp_path / "small.npz"))
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 255, (90, 120, 3), dtype=np.uint8))
    ours, theirs = (
        each.locate(picture, agent.config.data.classes[0]) for each in (Localizer(agent, world.encoder), localizer)
    )
    assert abs(ours.confidence - theirs.confidence) < 0.1
    assert np.isfinite(theirs.box).all() and torch.is_tensor(packed.classifier.shift.weight)


def test_settings_that_need_a_judge():
    for changes in ({"search.stop": 0.3}, {"search.corrected": True}):
        with pytest.raises(ConfigError, match="set evaluation.judge"):
            Config().replace(changes)
    with pytest.raises(ConfigError, match="report_confidence"):
        Config().replace({"evaluation.judge": True})
    assert replace(Config(), name="x").search.stop == 0


def test_other_classes_are_judged_by_their_map(opened_run, tiny_runs):
    agent, *_ = opened_run
    result = transfer(tiny_runs[:1], ("horse", "cow"), "scenes:test:12", fit_on="scenes:train:60")
    (numbers,) = result["metrics"]["seeds"]
    assert numbers["one_shot"]["confidence"] == "region" and 0 <= numbers["hit_rate"] <= 1
    assert [file.name for file in agent.folder.glob("any_judge-*")] and result["transfer"]["new_classes"]
    judge = results.any_judge_of(agent)
    assert judge.classes == () and judge.digest == results.any_judge_of(agent).digest
    agent.config = agent.config.replace({"search.stop": 0.0, "search.corrected": False, "evaluation.judge": False})
    with pytest.raises(ConfigError, match="has no judge"):
        results.any_judge_of(agent)


def test_one_box_of_all_windows(opened_run):
    "With `begin` at windows the prediction is the surest box of all that the windows' searches pass"
    agent, _, bank, _ = opened_run
    judge = classifier_of(agent)
    changes = {"search.begin": "windows", "search.restarts": "fine", "search.corrected": False, "search.stop": 0.0}
    agent.config = agent.config.replace(changes)
    answers = answers_of(agent, bank, "region")
    queries = all_queries(len(bank), len(bank.classes))
    c = agent.config
    regions = attended_regions(agent.policy, bank, *queries, c.moves, c.observation.max_steps, restarts="fine")
    score = judge.predict(bank, regions.image, regions.label, regions.box)
    for row in range(0, len(answers), 7):
        mine = (regions.image == answers.image[row]) & (regions.label == answers.label[row])
        assert answers.region[row] == pytest.approx(score[mine].max(), abs=1e-5)
        assert (regions.box[mine] == answers.box[row]).all(1).any()
    name, picture = c.data.classes[0], Image.fromarray(np.zeros((60, 80, 3), np.uint8))
    location = Localizer(agent, agent.encoder()).locate(picture, name)
    assert (location.boxes == location.box).all(1).any() and len(location.actions) <= 200 // 30


def test_an_iteration_that_takes_runs_over_takes_their_judge_too(tiny_trained, tmp_path):
    "A judge is named after the policy, so it is not fitted anew; what trains otherwise is not taken over"
    shutil.copytree(tiny_trained[0].parents[1], tmp_path, dirs_exist_ok=True)
    source = Trial(TINY, 0, tmp_path)
    (source.folder / "judge-0123456789ab.safetensors").write_bytes(b"a judge")
    judged = TINY.replace({"name": "tiny/judged", "evaluation.judge": True, "evaluation.report_confidence": "region"})
    trial = Trial(judged, 0, tmp_path)
    assert take_over(trial, source) and trial.finished
    assert (trial.folder / "judge-0123456789ab.safetensors").read_bytes() == b"a judge"
    assert not take_over(trial, source)
    other = Trial(TINY.replace({"name": "tiny/other", "learning.gamma": 0.5}), 0, tmp_path)
    assert not take_over(other, source) and not other.folder.exists()
