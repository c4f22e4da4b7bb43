"""The ladder of oracles: it adds up, a perfect agent loses only what one box must lose, each oracle costs what it should."""
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from locrl import results
from locrl.boxes import FULL
from locrl.config import ConfigError
from locrl.data import GroundTruth
from locrl.diagnose import ANSWERS, Step, Walks, auc, demonstrated, diagnose, levels, planned, verdict
from locrl.env import Targets
from locrl.evaluate import Searches, questions
from locrl.metrics import evaluate_detections
from locrl.train import train
from tiny import TINY


@pytest.fixture(scope="module")
def made(tiny_world, tiny_runs):
    "World and two seeds of a tiny run"
    return tiny_world, tiny_runs


@pytest.mark.parametrize("metric", ["map11", "map_area"])
def test_losses_add_up_in_total_and_for_each_class(made, metric):
    world, runs = made
    d = diagnose(runs, world=world, metric=metric, resamples=50)
    assert tuple(s.component for s in d.steps) == tuple(ANSWERS)
    for of in ("total", "cat", "dog"):
        assert sum(s.loss[of]["mean"] for s in d.steps) == pytest.approx(1 - d.steps[-1].level[of]["mean"])
        for s in d.steps: assert s.level[of]["low"] <= s.level[of]["high"]
    assert sum(s.largest for s in d.steps) == pytest.approx(1)
    assert d.binding in d.verdict[0] and json.loads(json.dumps(d.to_dict()))["binding"] == d.binding
    assert "<table>" in d._repr_html_()
    again = diagnose(runs, world=world, metric=metric, resamples=50)
    assert again.to_dict() == d.to_dict()


def test_unknown_metric(made):
    with pytest.raises(ConfigError, match="map_area"): diagnose(made[1], world=made[0], metric="map")


def never(*args, **kwargs): raise AssertionError("searched again")


def test_searches_and_walks_are_made_once(made, monkeypatch):
    world, runs = made
    first = diagnose(runs, world=world, resamples=20)
    monkeypatch.setattr(results, "search_all", never)
    monkeypatch.setitem(diagnose.__globals__, "walk", never)
    assert diagnose(runs, world=world, resamples=20).to_dict() == first.to_dict()
    with pytest.raises(AssertionError, match="searched again"): diagnose(runs, "report", world=world, resamples=20)


def test_walks_of_other_questions_are_not_taken(made, monkeypatch):
    "As many questions in another order: what was walked for the first of them is no answer to the second"
    world, runs = made
    diagnose(runs, world=world, resamples=20)
    monkeypatch.setitem(diagnose.__globals__, "walk", never)
    turned = SimpleNamespace(of=lambda *args: Targets.of(*args)[::-1])
    monkeypatch.setitem(diagnose.__globals__, "Targets", turned)
    with pytest.raises(AssertionError, match="searched again"): diagnose(runs, world=world, resamples=20)


@pytest.mark.parametrize("kind", ["one-shot", "walks"])
def test_damaged_searches_are_made_again_and_nothing_changes(made, kind):
    world, runs = made
    first = diagnose(runs, world=world, resamples=20)
    for file in (runs[0] / "searches").glob(f"{kind}-*.npz"): file.write_bytes(file.read_bytes()[:-40])
    with pytest.warns(UserWarning, match=f"{kind}-.*made anew"): again = diagnose(runs, world=world, resamples=20)
    assert again.to_dict() == first.to_dict()


def test_two_configurations_are_refused(made, tmp_path):
    world, runs = made
    other = train(replace(TINY, name="other", gamma=.5, steps=200, eval_every=200), 0, tmp_path, world, progress=False)
    with pytest.raises(ConfigError, match="gamma: 0.9 -> 0.5"): diagnose([*runs, other], world=world)
    with pytest.raises(ConfigError, match="no run given"): diagnose([])


@pytest.mark.parametrize("worst, share", [(c, s) for c in ANSWERS for s in (1., .6)])
def test_the_verdict_names_the_largest_fall_and_what_comes_close(worst, share):
    losses = dict.fromkeys(ANSWERS, .04) | {"ranking": .05, worst: .3}
    left, steps = 1., []
    for name, loss in losses.items():
        left -= loss
        steps.append(Step(name, ANSWERS[name], {"total": dict(mean=left)}, {"total": dict(mean=loss, low=loss - .01, high=loss + .01)}, share if name == worst else 0., share if name == worst else 0.))
    e = dict.fromkeys(["planned_hit", "planned_iou", "demonstrated_hit", "passed_hit", "passed_iou", "hit", "lost_early", "lost_late", "lost_never", "auc_miss", "auc_negative",
                       "trigger_rate_negatives"], .5) | dict(questions=40, objects=60, negatives=90)
    first, *rest = verdict(steps, e, TINY)
    assert f"{worst} costs most: 0.300 [0.290, 0.310]" in first and first.startswith(f"Of {1 - left:.3f} lost below 1")
    second = max((c for c in ANSWERS if c != worst), key=losses.get)
    assert ("100 % of the resamples" in first) == (share == 1) and (f"but {second} (0.05" in first or f"but {second} (0.04" in first) == (share < 1)
    if worst == "multiple instances": assert "ranking costs most" in rest[0]


def scene():
    "Three pictures, one class: two objects, one object, none"
    boxes = np.float32([[.1, .1, .5, .6], [.6, .2, .9, .9], [.2, .3, .8, .8]])
    gt = GroundTruth(np.array([0, 0, 1]), np.zeros(3, np.int64), boxes, np.zeros(3, bool), np.zeros(3, bool))
    targets = Targets(np.array([0, 1]), np.zeros(2, np.int64), np.stack([boxes[:2], np.stack([boxes[2], np.zeros(4, np.float32)])]))
    return gt, targets


def climb(answer, presence):
    "Scores after each step for an agent that walks from the full picture to `answer` and has these confidences"
    gt, targets = scene()
    image, label = questions(3, 1)
    box, zero = np.concatenate([answer, FULL[None]]).astype(np.float32), np.zeros(3, np.float32)
    s = Searches(image, label, box, np.ones(3, bool), np.full(3, 2), zero, zero, np.asarray(presence), zero)
    walks = Walks(np.stack([np.tile(FULL, (2, 1)), answer], 1).astype(np.float32), np.zeros((2, 2), np.int64), np.ones(2, np.int64))
    out = levels(s, walks, targets, gt, 1, "presence", planned(targets), demonstrated(targets))
    return {k: evaluate_detections(d, gt, ("cat",)).map_area for k, d in out.items()}


def test_a_perfect_agent_loses_only_the_further_objects():
    found = climb(scene()[1].boxes[:, 0], [.9, .8, .1])
    assert list(found.values()) == pytest.approx([2/3]*7)


def test_each_fault_costs_at_its_own_step():
    perfect = scene()[1].boxes[:, 0]
    found = climb(perfect, [.9, .2, .5])                      # the picture without the class outranks one with it
    assert found["ranking"] == pytest.approx(2/3) and found["presence"] == pytest.approx(1/3 + 1/3*2/3)
    lost = perfect.copy()
    lost[0] = .9, .9, 1, 1                                     # never near the first object
    found = climb(lost, [.9, .8, .1])
    assert found["demonstrations"] == pytest.approx(2/3) and found["movement"] == pytest.approx(1/3)
    assert found["trigger"] == pytest.approx(1/3) and found["ranking"] == pytest.approx(1/6)   # its miss outranks its hit


def test_auc_by_hand():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 30), rng.integers(0, 5, 40)
    assert auc(a, b) == pytest.approx(np.mean((a[:, None] > b) + (a[:, None] == b)/2))
    assert auc(a, b[:0]) is None
