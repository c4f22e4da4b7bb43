"""Predictions kept by content, and scoring elsewhere: read back without searching, made anew when damaged."""

import numpy as np
import pytest
import torch

from locrl.agents.predictions import CHOICES, predict
from locrl.experiments import results
from locrl.experiments.config import ConfigError
from locrl.evaluation.protocols import evaluate, all_queries
from locrl.evaluation.multi import evaluate_multi
from locrl.apps.pages import class_records, write_folder
from locrl.experiments.results import answers_of, evaluate_runs, opened, results_table, searches_of
from locrl.experiments.transfer import compare, transfer
from tiny import TINY


@pytest.fixture
def first(tiny_runs):
    "Agent, features and data of the first seed, and no kept searches"
    (agent,), _, bank, data = opened(tiny_runs[0], "report")
    for file in (agent.folder / "searches").glob("*"):
        file.unlink()
    return agent, bank, data


def never(*args, **kwargs):
    raise AssertionError("searched again")


def test_second_time_is_read_and_equal(first, monkeypatch):
    agent, bank, data = first
    made = searches_of(agent, bank)
    monkeypatch.setattr(results, "predict", never)
    again = searches_of(agent, bank)
    for name in ("image", "label", "box", "triggered", "steps", "q_trigger", "iou", "presence", "evidence"):
        np.testing.assert_array_equal(getattr(made, name), getattr(again, name))
        assert getattr(made, name).dtype == getattr(again, name).dtype
    fresh = evaluate(agent.policy, bank, data, confidence=TINY.evaluation.confidence)
    np.testing.assert_array_equal(fresh.predictions.box, again.box)


@pytest.mark.parametrize("restarts", ["corners", "windows"])
def test_the_search_for_several_is_kept_as_its_score(first, monkeypatch, restarts):
    agent, bank, data = first
    agent.config = agent.config.replace({"search.restarts": restarts})
    made = results._several(agent, bank, data, "presence*iou", False)
    assert made == evaluate_multi(agent.policy, bank, data, restarts=restarts).to_dict()
    monkeypatch.setattr(results, "attended_regions", never)
    assert results._several(agent, bank, data, "presence*iou", False) == made
    with pytest.raises(AssertionError, match="searched again"):
        results._several(agent, bank, data, "iou", False)
    agent.config = agent.config.replace({"search.restarts": "windows" if restarts == "corners" else "corners"})
    with pytest.raises(AssertionError, match="searched again"):
        results._several(agent, bank, data, "presence*iou", False)


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[: len(b) // 2],
        lambda b: b"",
        lambda b: b[:200] + bytes([b[200] ^ 255]) + b[201:],
        lambda b: b"not an archive",
    ],
)
def test_damage_is_told_and_mended(first, damage):
    agent, bank, _ = first
    made = searches_of(agent, bank)
    (file,) = (agent.folder / "searches").glob("*.npz")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match="made anew"):
        again = searches_of(agent, bank)
    np.testing.assert_array_equal(made.box, again.box)
    searches_of(agent, bank)  # whole again: no warning


def test_answers_of_others_are_not_taken(first):
    agent, bank, _ = first
    searches_of(agent, bank)
    (own,) = (agent.folder / "searches").glob("*.npz")
    bank.presence[0, 0] += 0.25  # other evidence, other key
    searches_of(agent, bank)
    other = next(f for f in (agent.folder / "searches").glob("*.npz") if f != own)
    other.write_bytes(own.read_bytes())
    with pytest.warns(UserWarning, match="of other searches"):
        searches_of(agent, bank)


def test_a_changed_policy_has_another_key(first):
    agent, bank, _ = first
    searches_of(agent, bank)
    with torch.no_grad():
        agent.policy.q_net.iou_head.bias += 1
    searches_of(agent, bank)
    assert len(list((agent.folder / "searches").glob("*.npz"))) == 2


def test_each_policy_has_a_region_classifier_of_its_own(first, monkeypatch):
    "A run that was reported and then trained further is not ranked by what was fitted on its former answers"
    agent, _, _ = first
    made = results.classifier_of(agent)
    with monkeypatch.context() as m:
        m.setattr(results, "fit_region_classifier", never)
        assert results.classifier_of(agent).digest == made.digest
        for change in (
            lambda: agent.policy.q_net.iou_head.bias.add_(1),
            lambda: setattr(agent, "config", agent.config.replace({"evaluation.classifiers": 2})),
        ):
            with torch.no_grad():
                change()
            with pytest.raises(AssertionError, match="searched again"):
                results.classifier_of(agent)
    results.classifier_file(agent).write_bytes(b"no archive")
    with pytest.warns(UserWarning, match="made anew"):
        assert results.classifier_of(agent).digest != made.digest


def test_where_nothing_can_be_written_the_answers_still_come(first, monkeypatch):
    agent, bank, _ = first

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results, "write_atomic", full)
    with pytest.warns(UserWarning, match="not kept"):
        assert len(searches_of(agent, bank)) == 60


def test_compare_with_itself_is_no_difference(tiny_runs):
    same = compare(tiny_runs, tiny_runs, split="report", resamples=50)
    for d in same.metrics.values():
        assert (d.difference, d.low, d.high, d.improvement) == (0, 0, 0, 0.5)


def test_transfer_says_what_was_new(tiny_runs, tmp_path):
    result = transfer(tiny_runs[0], ["horse"], "scenes:test:30", fit_on="scenes:train:40")
    assert result["transfer"] == dict(
        trained_on=["cat", "dog"], new_classes=["horse"], evidence="prototypes", evidence_from="scenes:train:40"
    )
    assert set(result["baselines"]) >= {"random policy", "saliency box", "planning oracle"}
    page = write_folder(tmp_path, "transfer", {"Results": results_table(result)}, result, class_records(result))
    assert "planning oracle" in page.read_text() and (tmp_path / "results.csv").read_text().count("\n") == 3
    with pytest.raises(ConfigError, match="the run's own"):
        transfer(tiny_runs[0], ["cat"])
    with pytest.raises(ConfigError, match="use 'prototypes' or 'encoder'"):
        transfer(tiny_runs[0], ["horse"], "scenes:test:30", evidence="none")


@pytest.mark.parametrize("answer", ["stop", "surest"])
def test_answers_are_chosen_as_the_configuration_says(first, monkeypatch, answer):
    agent, bank, _ = first
    agent.config = agent.config.replace({"search.answer": answer})
    made = answers_of(agent, bank, "presence*iou")
    expected = {
        way: predict(
            agent.policy, bank, *all_queries(len(bank), len(bank.classes)), choice=way, confidence="presence*iou"
        )
        for way in CHOICES
    }
    np.testing.assert_array_equal(made.box, expected[answer].box)
    assert not np.array_equal(expected["stop"].box, expected["surest"].box)
    monkeypatch.setattr(results, "predict", never)
    np.testing.assert_array_equal(answers_of(agent, bank, "presence*iou").box, made.box)


def test_the_table_says_what_the_report_does(tiny_runs):
    result = evaluate_runs(tiny_runs, multi=True)
    made = results_table(result).rows
    (agent,), several = [[r for r in made if r["method"].startswith(s)] for s in ("agent", "the same")]
    assert (
        agent["method"] == "agent (2 seeds)"
        and results_table(evaluate_runs(tiny_runs[:1])).rows[-1]["method"] == "agent (1 seed)"
    )
    assert (
        agent["hit rate"][0] == result["metrics"]["aggregate"]["hit_rate"]["mean"]
        and agent["mAP (11 pt)"][0] == result["metrics"]["aggregate"]["one_shot"]["map11"]["mean"]
    )
    assert [r["mAP (area)"][0] for r in several] == [
        result["metrics"]["aggregate"][mode]["map_area"]["mean"] for mode in ("tr", "aar")
    ] and all(r.get("hit rate") is None for r in several)
    assert [r["method"] for r in made if r not in (agent, *several)] == list(result["baselines"])


def test_report_has_both_kinds_of_search(tiny_runs):
    m = evaluate_runs(tiny_runs, multi=True)["metrics"]["aggregate"]
    for mode in ("one_shot", "tr", "aar"):
        assert 0 <= m[mode]["map11"]["mean"] <= m[mode]["recall_ceiling"]["mean"] + 1 / 11


def test_a_seed_counts_once(tiny_runs):
    "The same run twice, or two runs of one seed, is no interval over two seeds"
    with pytest.raises(results.ConfigError, match="the same seed twice"):
        evaluate_runs([tiny_runs[0], tiny_runs[0]])


def test_behaviour_cloning_stands_among_the_baselines_once_it_is_trained(tiny_runs, tmp_path):
    "The row is the mean over the seeds of the clones, scored as the agents are; without clones there is none"
    from locrl.experiments.iterations import cloned
    from locrl.experiments.train import Agent, train

    config = TINY.replace({"demonstrations.ratio": 0.1, "demonstrations.episodes": 50, "learning.steps": 400})
    folder = train(config, 0, tmp_path, progress=False)
    assert "behaviour cloning" not in evaluate_runs([folder])["baselines"]
    clone = train(cloned(config).replace({"demonstrations.warmup": 50}), 0, tmp_path, progress=False)
    row = evaluate_runs([folder])["baselines"]["behaviour cloning"]
    _, _, bank, data = opened([clone], "report")
    again = evaluate(Agent.load(clone).policy, bank, data, confidence=config.evaluation.confidence)
    assert evaluate_runs(folder)["baselines"]["behaviour cloning"] == row  # one run need not be in a list
    assert row == results._mean([again.to_dict()]) and row["hit_rate"] == pytest.approx(again.localisation.hit_rate)
    assert results._mean([{"a": 1, "b": {"c": None}, "d": "x"}, {"a": 2, "b": {"c": 3}, "d": "x"}]) == {
        "a": 1.5,
        "b": {"c": None},
        "d": "x",
    }
