"""The ladder of oracles: it adds up, a perfect agent loses only what one box must, each oracle costs what it should."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from locrl.agents.predictions import Predictions
from locrl.experiments import results
from locrl.data.boxes import FULL, Moves, iou
from locrl.experiments.config import ConfigError
from locrl.data.voc import GroundTruth
from locrl.experiments.diagnose import (
    ANSWERS,
    Step,
    Walks,
    auc,
    demonstrated,
    diagnose,
    evidence,
    levels,
    planned,
    verdict,
)
from locrl.envs.localization import Targets
from locrl.evaluation.protocols import all_queries
from locrl.evaluation.average_precision import evaluate_detections
from locrl.envs.oracle import greedy, plan
from locrl.experiments.train import train
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
        for s in d.steps:
            assert s.level[of]["low"] <= s.level[of]["high"]
    assert sum(s.largest for s in d.steps) == pytest.approx(1)
    assert d.binding in d.verdict[0] and json.loads(json.dumps(d.to_dict()))["binding"] == d.binding
    assert "<table>" in d._repr_html_()
    again = diagnose(runs, world=world, metric=metric, resamples=50)
    assert again.to_dict() == d.to_dict()


def test_unknown_metric(made):
    with pytest.raises(ConfigError, match="map_area"):
        diagnose(made[1], world=made[0], metric="map")


def never(*args, **kwargs):
    raise AssertionError("searched again")


def test_searches_and_walks_are_made_once(made, monkeypatch):
    world, runs = made
    first = diagnose(runs, world=world, resamples=20)
    monkeypatch.setattr(results, "predict", never)
    monkeypatch.setitem(diagnose.__globals__, "walk", never)
    assert diagnose(runs, world=world, resamples=20).to_dict() == first.to_dict()
    with pytest.raises(AssertionError, match="searched again"):
        diagnose(runs, "report", world=world, resamples=20)


def test_walks_of_other_questions_are_not_taken(made, monkeypatch):
    "As many questions in another order: what was walked for the first of them is no answer to the second"
    world, runs = made
    diagnose(runs, world=world, resamples=20)
    monkeypatch.setitem(diagnose.__globals__, "walk", never)
    turned = SimpleNamespace(of=lambda *args: Targets.of(*args)[::-1])
    monkeypatch.setitem(diagnose.__globals__, "Targets", turned)
    with pytest.raises(AssertionError, match="searched again"):
        diagnose(runs, world=world, resamples=20)


@pytest.mark.parametrize("kind", ["one-shot", "walks"])
def test_damaged_searches_are_made_again_and_nothing_changes(made, kind):
    world, runs = made
    first = diagnose(runs, world=world, resamples=20)
    for file in (runs[0] / "searches").glob(f"{kind}-*.npz"):
        file.write_bytes(file.read_bytes()[:-40])
    with pytest.warns(UserWarning, match=f"{kind}-.*made anew"):
        again = diagnose(runs, world=world, resamples=20)
    assert again.to_dict() == first.to_dict()


def test_two_configurations_are_refused(made, tmp_path):
    world, runs = made
    other = train(
        TINY.replace({"name": "other", "learning.gamma": 0.5, "learning.steps": 200, "evaluation.eval_every": 200}),
        0,
        tmp_path,
        world,
        progress=False,
    )
    with pytest.raises(ConfigError, match="gamma: 0.9 -> 0.5"):
        diagnose([*runs, other], world=world)
    with pytest.raises(ConfigError, match="no run given"):
        diagnose([])


@pytest.mark.parametrize("worst, share", [(c, s) for c in ANSWERS for s in (1.0, 0.6)])
def test_the_verdict_names_the_largest_fall_and_what_comes_close(worst, share):
    losses = dict.fromkeys(ANSWERS, 0.04) | {"ranking": 0.05, worst: 0.3}
    left, steps = 1.0, []
    for name, loss in losses.items():
        left -= loss
        steps.append(
            Step(
                name,
                ANSWERS[name],
                {"total": dict(mean=left)},
                {"total": dict(mean=loss, low=loss - 0.01, high=loss + 0.01)},
                share if name == worst else 0.0,
                share if name == worst else 0.0,
            )
        )
    e = dict.fromkeys(
        [
            "planned_hit",
            "planned_iou",
            "demonstrated_hit",
            "passed_hit",
            "passed_iou",
            "hit",
            "lost_early",
            "lost_late",
            "lost_never",
            "auc_miss",
            "auc_negative",
            "trigger_rate_negatives",
        ],
        0.5,
    ) | dict(questions=40, objects=60, negatives=90)
    first, *rest = verdict(steps, e, TINY)
    assert f"{worst} costs most: 0.300 [0.290, 0.310]" in first and first.startswith(f"Of {1 - left:.3f} lost below 1")
    second = max((c for c in ANSWERS if c != worst), key=losses.get)
    assert ("100 % of the resamples" in first) == (share == 1) and (
        f"but {second} (0.05" in first or f"but {second} (0.04" in first
    ) == (share < 1)
    if worst == "multiple instances":
        assert "ranking costs most" in rest[0]


def scene():
    "Three pictures, one class: two objects, one object, none"
    boxes = np.float32([[0.1, 0.1, 0.5, 0.6], [0.6, 0.2, 0.9, 0.9], [0.2, 0.3, 0.8, 0.8]])
    gt = GroundTruth(np.array([0, 0, 1]), np.zeros(3, np.int64), boxes, np.zeros(3, bool), np.zeros(3, bool))
    targets = Targets(
        np.array([0, 1]), np.zeros(2, np.int64), np.stack([boxes[:2], np.stack([boxes[2], np.zeros(4, np.float32)])])
    )
    return gt, targets


def climb(answer, presence):
    "Scores after each step for an agent that walks from the full picture to `answer` and has these confidences"
    gt, targets = scene()
    image, label = all_queries(3, 1)
    box, zero = np.concatenate([answer, FULL[None]]).astype(np.float32), np.zeros(3, np.float32)
    s = Predictions(image, label, box, np.ones(3, bool), np.full(3, 2), zero, zero, np.asarray(presence), zero)
    walks = Walks(
        np.stack([np.tile(FULL, (2, 1)), answer], 1).astype(np.float32),
        np.zeros((2, 2), np.int64),
        np.ones(2, np.int64),
    )
    out = levels(s, walks, targets, gt, 1, "presence", planned(targets), demonstrated(targets))
    return {k: evaluate_detections(d, gt, ("cat",)).map_area for k, d in out.items()}


def test_a_perfect_agent_loses_only_the_further_objects():
    found = climb(scene()[1].boxes[:, 0], [0.9, 0.8, 0.1])
    assert list(found.values()) == pytest.approx([2 / 3] * 7)


def test_each_fault_costs_at_its_own_step():
    perfect = scene()[1].boxes[:, 0]
    found = climb(perfect, [0.9, 0.2, 0.5])  # the picture without the class outranks one with it
    assert found["ranking"] == pytest.approx(2 / 3) and found["presence"] == pytest.approx(1 / 3 + 1 / 3 * 2 / 3)
    lost = perfect.copy()
    lost[0] = 0.9, 0.9, 1, 1  # never near the first object
    found = climb(lost, [0.9, 0.8, 0.1])
    assert found["demonstrations"] == pytest.approx(2 / 3) and found["movement"] == pytest.approx(1 / 3)
    assert found["trigger"] == pytest.approx(1 / 3) and found["ranking"] == pytest.approx(
        1 / 6
    )  # its miss outranks its hit


def test_auc_by_hand():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 30), rng.integers(0, 5, 40)
    assert auc(a, b) == pytest.approx(np.mean((a[:, None] > b) + (a[:, None] == b) / 2))
    assert auc(a, b[:0]) is None


def drawn_boxes(rng, *shape):
    side = rng.uniform(0.2, 0.7, (*shape, 2))
    corner = (1 - side) * rng.random((*shape, 2))
    return np.concatenate([corner, corner + side], -1).astype(np.float32)


@pytest.fixture
def questioned():
    """Twelve pictures, three classes, up to three objects of each in a picture, some of them difficult.

    The predictions lie near an object or anywhere, and their walks pass by."""
    rng = np.random.default_rng(0)
    n = 12
    c = 3
    t = 7
    things = [
        (i, k, b, d)
        for i in range(n)
        for k in range(c)
        for b, d in zip(drawn_boxes(rng, 3)[: rng.integers(0, 4)], rng.random(3) < 0.3)
    ]
    gt = GroundTruth(*(np.array(x) for x in zip(*things)), np.zeros(len(things), bool))
    asked = sorted({(i, k) for i, k, _, d in things if not d})
    boxes = np.zeros((len(asked), 3, 4), np.float32)
    for row, q in zip(boxes, asked):
        count = [b for i, k, b, d in things if (i, k) == q and not d]
        row[: len(count)] = count
    targets = Targets(*np.array(asked).T, boxes)
    image, label = all_queries(n, c)
    answer = drawn_boxes(rng, n * c)
    of = {q: e for e, q in enumerate(asked)}
    for row, q in enumerate(zip(image, label)):
        if q in of and rng.random() < 0.6:
            answer[row] = boxes[of[q], 0].clip(0.05, 0.95)
    stop = rng.integers(1, t + 1, len(asked))
    walks = Walks(drawn_boxes(rng, len(asked), t), rng.integers(0, 9, (len(asked), t)), stop)
    for e in range(0, len(asked), 2):
        walks.boxes[e, rng.integers(t)] = boxes[e, 0]
    triggered = rng.random(n * c) < 0.7
    score, zero = rng.random(n * c), np.zeros(n * c)
    return SimpleNamespace(
        searches=Predictions(image, label, answer, triggered, rng.integers(1, 40, n * c), zero, zero, score, zero),
        walks=walks,
        targets=targets,
        gt=gt,
        things=things,
        of=of,
        n_classes=c,
    )


def best(box, objects):
    return max((float(iou(np.float64(box), np.float64(o))) for o in objects), default=0.0)


def objects_of(p, q):
    return [b for i, k, b, d in p.things if (i, k) == q and not d]


def test_levels_against_a_loop(questioned):
    p = questioned
    out = levels(
        p.searches, p.walks, p.targets, p.gt, p.n_classes, "presence", planned(p.targets), demonstrated(p.targets)
    )
    assert list(out) == list(ANSWERS)
    for q, e in p.of.items():
        mine, row = objects_of(p, q), q[0] * p.n_classes + q[1]
        reached = [plan(o[None], max_steps=39).final_boxes[0] for o in mine]
        expected = {
            "multiple instances": mine[0],
            "action space": max(zip(mine, reached), key=lambda z: iou(*z))[1],
            "demonstrations": greedy(np.array(mine)[None], ties="centre", max_steps=39).final_boxes[0],
            "movement": max(p.walks.boxes[e], key=lambda b: best(b, mine)),
            "trigger": p.searches.box[row],
        }
        for name, box in expected.items():
            assert (out[name].image[e], out[name].label[e]) == q, name
            np.testing.assert_allclose(out[name].boxes[e], box, atol=1e-5, err_msg=name)
            assert out[name].scores[e] == pytest.approx(best(box, mine), abs=1e-5), name
    there = {(i, k) for i, k, *_ in p.things}  # a difficult object is there too
    kept = [(i, k) for i, k in zip(p.searches.image, p.searches.label) if (i, k) in there]
    assert list(zip(out["ranking"].image, out["ranking"].label)) == kept and len(kept) < len(p.searches) == len(
        out["presence"]
    )
    np.testing.assert_allclose(out["presence"].scores, p.searches.presence)


def test_the_oracles_of_the_ladder_have_time_to_trigger(questioned):
    "Their moves and TRIGGER fit into the step limit"
    boxes = questioned.targets.boxes
    np.testing.assert_array_equal(
        demonstrated(questioned.targets, max_steps=4),
        greedy(boxes, ties="centre", max_steps=3, mask=boxes[..., 2] > boxes[..., 0]).final_boxes,
    )
    assert (demonstrated(questioned.targets, max_steps=4) != demonstrated(questioned.targets, max_steps=5)).any()
    moved = planned(questioned.targets, Moves(), max_steps=2)
    assert {tuple(b.round(4)) for b in moved} <= {tuple(b.round(4)) for b in [FULL, *Moves().all(FULL[None])[0]]}


def test_evidence_against_a_loop(questioned):
    p, s = questioned, questioned.searches
    plans, demos = planned(p.targets), demonstrated(p.targets)
    e = evidence(s, p.walks, p.targets, p.gt, p.n_classes, "presence", plans, demos)
    held, rows = {(i, k) for i, k, *_ in p.things}, []
    for q, j in p.of.items():
        mine = objects_of(p, q)
        row = q[0] * p.n_classes + q[1]
        along = [best(b, objects_of(p, q)) for b in p.walks.boxes[j]]
        rows.append(
            dict(
                planned=best(plans[j], mine),
                demo=best(demos[j], mine),
                at=best(s.box[row], mine),
                passed=max(along),
                step=int(np.argmax(along)),
                steps=s.steps[row],
                triggered=bool(s.triggered[row]),
                sure=s.presence[row],
                later=any(u >= 0.5 for u in along[p.walks.stop[j] + 1 :]),
                taken=list(p.walks.actions[j][: p.walks.stop[j]]),
            )
        )

    def of(key, keep=lambda r: True):
        return [r[key] for r in rows if keep(r)]

    def share(values):
        return pytest.approx(np.mean(values), abs=1e-5)

    hits, misses = [r for r in rows if r["at"] >= 0.5], [r for r in rows if r["at"] < 0.5]
    lost = [r for r in misses if r["passed"] >= 0.5]
    absent = [row for row, q in enumerate(zip(s.image, s.label)) if q not in held]
    assert len(hits) > 3 and len(lost) > 2 and len(absent) > 2
    assert (e["questions"], e["objects"], e["negatives"], e["lost"]) == (
        len(rows),
        sum(not d for *_, d in p.things),
        len(absent),
        len(lost),
    )
    for name, key in dict(planned="planned", demonstrated="demo", passed="passed").items():
        assert e[f"{name}_iou"] == share(of(key)) and e[f"{name}_hit"] == share([u >= 0.5 for u in of(key)])
    assert (
        e["hit"] == share([r["at"] >= 0.5 for r in rows])
        and e["mean_iou"] == share(of("at"))
        and e["steps"] == share(of("steps"))
        and e["passed_step"] == share(of("step"))
    )
    assert e["trigger_rate"] == share(of("triggered")) and e["trigger_iou"] == share(of("at", lambda r: r["triggered"]))
    assert e["lost_early"] == share([r["triggered"] and r["later"] for r in lost]) and e["lost_late"] == share(
        [r["triggered"] and not r["later"] for r in lost]
    )
    assert e["lost_never"] == share([not r["triggered"] for r in lost])
    assert e["auc_miss"] == auc(np.array([r["sure"] for r in hits]), np.array([r["sure"] for r in misses]))
    assert e["auc_negative"] == auc(np.array([r["sure"] for r in hits]), s.presence[absent]) and e[
        "trigger_rate_negatives"
    ] == share(s.triggered[absent])
    assert sum(e["trigger_ious"]) == sum(of("triggered")) and e["actions"] == [
        sum(a == k for r in rows for a in r["taken"]) for k in range(10)
    ]
