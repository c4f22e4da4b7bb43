"""Search, the two protocols and the baselines: against one question at a time, and by the sanity identities."""

import numpy as np
import pytest
import torch
from evaluation.test_confidence import CLASSES, MapBank, Squares

from locrl.agents.predictions import CONFIDENCE, Predictions, confidence_of, predict, sources_of
from locrl.agents.search import evidence_inside
from locrl.agents.double_dqn import DoubleDQN
from locrl.data.boxes import FULL, TRIGGER, Moves, iou
from locrl.envs.localization import LocalizationVecEnv, Search, Targets
from locrl.evaluation.protocols import baselines, evaluate, all_queries, score
from locrl.envs.observation import ObservationConfig
from locrl.agents.policy import RegionPolicy, policy_kwargs


@pytest.fixture(scope="module")
def world():
    data = Squares(30, seed=2)
    bank = MapBank(data)
    env = LocalizationVecEnv(Search(Targets.of(data), n=4, seed=0))
    config = ObservationConfig(saliency=False, local_saliency=6, box=True, steps=True)
    policy = DoubleDQN(
        RegionPolicy,
        env,
        policy_kwargs=policy_kwargs(bank.dim, config, (32, 32), 8),
        seed=3,
        device="cpu",
        buffer_size=100,
    ).policy
    while (
        predict(policy, bank, *all_queries(len(data), 2), max_steps=10).triggered.mean() < 0.2
    ):  # so that some searches trigger
        with torch.no_grad():
            policy.q_net.q_net[-1].bias[TRIGGER] += 0.01
    return data, bank, policy


def answers(data, box, confidence=None, triggered=True):
    "One answer for every question"
    image, label = all_queries(len(data), len(data.classes))
    n = len(image)
    return Predictions(
        image,
        label,
        np.asarray(box, np.float32),
        np.full(n, triggered),
        np.ones(n, int),
        np.zeros(n) if confidence is None else confidence,
        np.ones(n),
        np.ones(n),
        np.ones(n),
    )


def true_boxes(data, otherwise=FULL):
    "For every query the first object of its class, else `otherwise`; and whether there is one that counts"
    image, label = all_queries(len(data), len(data.classes))
    box, there = np.tile(otherwise, (len(image), 1)).astype(np.float32), np.zeros(len(image), bool)
    for k, (i, c) in enumerate(zip(image, label)):
        a = data.annotation(int(i))
        mine = np.flatnonzero((a.labels == c) & ~a.difficult)
        if len(mine):
            box[k], there[k] = a.boxes[mine[0]], True
    return box, there


def path_of(policy, bank, image, label, max_steps=40):
    "One search by an explicit loop: boxes before each action, actions, Q-values, predicted IoU"
    box, history, steps = FULL.copy(), [-1] * 10, []
    for t in range(max_steps):
        keys = torch.tensor([[image, label, *box, t, *history[:10]]], dtype=torch.float32)
        q, believed = (x[0].numpy() for x in policy.q_net.predict_all(keys, bank))
        steps.append((box, int(q.argmax()), q, float(believed)))
        if steps[-1][1] == TRIGGER:
            break
        box, history = Moves().apply(box, steps[-1][1]), [steps[-1][1], *history]
    return zip(*steps)


@torch.no_grad()
def test_side_by_side_is_the_search_of_each_query(world):
    "Every query at once gives what one query after the other gives, by an implementation of its own"
    data, bank, policy = world
    image, label = all_queries(len(data), 2)
    together = predict(policy, bank, image, label, batch=16)
    assert 0 < together.triggered.mean() < 1
    for k in range(0, len(image), 3):
        boxes, actions, q_values, believed = path_of(policy, bank, int(image[k]), int(label[k]))
        triggered = actions[-1] == TRIGGER
        at = len(actions) - 1 if triggered else int(np.argmax(believed))
        assert together.triggered[k] == triggered and together.steps[k] == len(actions)
        assert np.allclose(together.box[k], boxes[at], atol=1e-6)
        assert together.iou[k] == pytest.approx(believed[at], abs=1e-5)
        assert together.q_trigger[k] == pytest.approx(q_values[at][TRIGGER], abs=1e-4)
    assert np.allclose(together.presence, bank.presence.numpy()[image, label]) and together.region is None


def test_order_and_batches_change_nothing(world):
    data, bank, policy = world
    image, label = all_queries(len(data), 2)
    mixed = np.random.default_rng(0).permutation(len(image))
    a, b = predict(policy, bank, image, label), predict(policy, bank, image[mixed], label[mixed], batch=7)
    assert np.allclose(a.box[mixed], b.box, atol=1e-6) and np.array_equal(a.steps[mixed], b.steps)


def test_steps_are_limited(world):
    data, bank, policy = world
    s = predict(policy, bank, *all_queries(len(data), 2), max_steps=3)
    assert s.steps.max() == 3 and (s.steps[~s.triggered] == 3).all()


def test_evidence_inside_by_hand(world):
    "The mean of the cells whose centre the box holds; the nearest cell for a box that holds none"
    _, bank, _ = world
    maps, none = bank.saliency.numpy(), np.float32([[0.51, 0.51, 0.52, 0.52]])
    half = evidence_inside(bank, np.array([4]), np.array([1]), np.float32([[0, 0, 0.5, 1]]))
    assert half[0] == pytest.approx(maps[4, 1, :, :8].mean(), abs=1e-5)
    assert evidence_inside(bank, np.array([4]), np.array([1]), none)[0] == pytest.approx(maps[4, 1, 8, 8], abs=1e-5)


def test_perfect_boxes_give_one():
    "Also with the negatives among them, as long as they rank below"
    data = Squares(60, seed=1)
    box, there = true_boxes(data)
    e = score(answers(data, box, there.astype(float)), data, CLASSES, "q_trigger")
    assert (
        e.detection.map11 == e.detection.map_area == 1
        and e.localisation.hit_rate == 1
        and e.localisation.mean_iou == pytest.approx(1)
    )
    assert (
        score(answers(data, box), data, CLASSES, "q_trigger").detection.map_area < 0.8
    )  # without a ranking the negatives cost


def test_constant_scores_give_the_square_of_the_hit_rate():
    "One box per positive picture, right with probability p, gives an area near p^2, as nothing is ranked"
    data, p = Squares(3000, seed=4, classes=("cat",)), 0.6
    data.objects = [[(o[0][0], 0, False, False)] for o in data.objects]
    box, _ = true_boxes(data)
    box[np.random.default_rng(0).random(len(data)) > p] = [0, 0, 0.02, 0.02]
    e = score(answers(data, box), data, ("cat",), "q_trigger")
    assert e.localisation.hit_rate == pytest.approx(p, abs=0.03) and e.detection.map_area == pytest.approx(
        p**2, abs=0.04
    )


def test_order_of_answers_does_not_matter():
    data, rng = Squares(80, seed=5), np.random.default_rng(0)
    box, there = true_boxes(data)
    box = np.sort((box + rng.normal(scale=0.1, size=box.shape)).clip(0, 1).reshape(-1, 2, 2), 1).reshape(-1, 4)
    s = answers(data, box, there + rng.random(len(box)))
    mixed = rng.permutation(len(box))
    t = Predictions(
        *(
            getattr(s, f)[mixed]
            for f in ("image", "label", "box", "triggered", "steps", "q_trigger", "iou", "presence", "evidence")
        )
    )
    a, b = (score(x, data, CLASSES, "q_trigger") for x in (s, t))
    assert a.detection.to_dict() == b.detection.to_dict() and a.localisation.hit_rate == b.localisation.hit_rate


def test_difficult_objects_are_neither():
    "A box on a difficult object costs nothing, and would if it were not annotated. Its localisation is not scored."
    data = Squares(40, seed=6, classes=("cat",))
    data.objects = [[(o[0][0], 0, i < 10, False)] for i, o in enumerate(data.objects)]
    without = Squares(40, seed=6, classes=("cat",))
    without.objects = [o if i >= 10 else [] for i, o in enumerate(data.objects)]
    s = answers(data, np.stack([o[0][0] for o in data.objects]))
    e = score(s, data, ("cat",), "q_trigger")
    assert e.detection.map_area == 1 and e.detection["cat"].npos == 30
    assert score(s, without, ("cat",), "q_trigger").detection.map_area < 1
    assert (
        e.localisation.trigger_rate_negatives is None
        and score(s, without, ("cat",), "q_trigger").localisation.trigger_rate_negatives == 1
    )


def test_classes_are_matched_by_name():
    "Labels index the classes asked for, whatever the order in the data set; other classes are left out"
    data = Squares(50, seed=8, classes=("cat", "dog", "cow"))
    image, label = all_queries(len(data), 2)
    box = np.tile(FULL, (len(image), 1))
    for k, (i, c) in enumerate(zip(image, label)):
        b, found, difficult, _ = data.objects[i][0]
        if found == data.classes.index(("cow", "cat")[c]) and not difficult:
            box[k] = b
    n = len(image)
    s = Predictions(
        image, label, box, np.ones(n, bool), np.ones(n, int), -iou(box, FULL), np.ones(n), np.ones(n), np.ones(n)
    )
    e = score(s, data, ("cow", "cat"), "q_trigger")
    assert e.detection.recall_ceiling == 1 and [c.name for c in e.detection.per_class] == ["cow", "cat"]


def test_confidence_sources(world):
    data, bank, policy = world
    s = predict(policy, bank, *all_queries(len(data), 2))
    assert sources_of(s) == [name for name in CONFIDENCE if "region" not in name]
    for name in sources_of(s):
        assert confidence_of(s, name).dtype == np.float64 or np.isfinite(confidence_of(s, name)).all()
    assert np.allclose(np.exp(confidence_of(s, "presence*iou")), s.presence * s.iou, atol=1e-5)
    with pytest.raises(ValueError, match="no confidence called 'luck'"):
        confidence_of(s, "luck")


def test_evaluate_is_search_and_score(world):
    data, bank, policy = world
    e = evaluate(policy, bank, data)
    assert len(e.predictions) == 60 and e.row("agent")["mAP (11 pt)"] == e.detection.map11
    assert (
        e.to_dict()["one_shot"]["map_area"]
        == score(predict(policy, bank, *all_queries(len(data), 2)), data, CLASSES).detection.map_area
    )


def test_baselines(world):
    "The whole picture hits what fills half of it; the planner hits everything; no oracle exceeds the step limit"
    data, bank, _ = world
    rows = baselines(bank, data)
    whole = iou(FULL, Targets.of(data).boxes).max(1)
    assert rows["whole image"].localisation.hit_rate == pytest.approx((whole >= 0.5).mean())
    assert rows["planning oracle"].localisation.hit_rate == 1
    assert rows["greedy oracle"].localisation.hit_rate <= rows["centre-tie oracle"].localisation.hit_rate <= 1
    assert max(e.predictions.steps.max() for e in rows.values()) <= 40
    assert np.array_equal(baselines(bank, data)["random policy"].predictions.box, rows["random policy"].predictions.box)


def test_baselines_by_hand(world):
    "Fixed boxes with TRIGGER at once; the random policy moves until it draws TRIGGER, one of ten actions"
    data, bank, _ = world
    rows = baselines(bank, data)
    n = len(data) * len(bank.classes)
    for name, box in (("whole image", (0, 0, 1, 1)), ("centre box", (0.25, 0.25, 0.75, 0.75))):
        p = rows[name].predictions
        assert np.array_equal(p.box, np.tile(np.float32(box), (n, 1))) and p.triggered.all() and not p.steps.any()
    steps = rows["random policy"].predictions.steps
    assert steps.min() >= 1 and 5 < steps.mean() < 15
