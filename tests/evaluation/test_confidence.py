"""Region classifier: learns what features tell, is calibrated, stored without pickle; ablation and reliability."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from locrl.agents.predictions import (
    CONFIDENCE,
    CONTEXT,
    ConfidenceError,
    Predictions,
    RegionClassifier,
    confidence_of,
    predict,
    region_inputs,
    sources_of,
    with_region,
)
from locrl.data.boxes import FULL, TRIGGER, Moves, pairwise_iou
from locrl.evaluation import confidence as module
from locrl.evaluation.confidence import (
    ORACLE,
    ablation,
    best_iou,
    fit_region_classifier,
    reliability,
    reliability_figure,
    sample_boxes,
)
from locrl.data.voc import Annotation, Dataset
from locrl.experiments.config import Config, search_policy
from locrl.evaluation.protocols import all_queries
from locrl.vision.region_pooling import FeatureBank, integral_image

CLASSES = ("cat", "dog")


class Squares(Dataset):
    "One object a picture, of either class, sometimes difficult; no pictures"

    def __init__(self, n, seed=0, classes=CLASSES):
        super().__init__("squares", classes, tuple(str(i) for i in range(n)))
        rng = np.random.default_rng(seed)
        side = rng.uniform(0.3, 0.7, (n, 2))
        corner = (1 - side) * rng.random((n, 2))
        self.objects = [
            [(b, int(rng.integers(len(classes))), rng.random() < 0.1, False)]
            for b in np.concatenate([corner, corner + side], 1)
        ]

    def _annotate(self, i):
        return Annotation.of(self.objects[i])

    def _stamp(self, i):
        return str(self.objects[i])

    def size(self, i):
        return 100, 100


class MapBank(FeatureBank):
    "Features that say where the objects of each class are, and some noise"

    def __init__(self, data, flip=False, dim=6, digest="d1", seed=0):
        at, rng = (np.arange(16) + 0.5) / 16, np.random.default_rng(seed)
        maps = np.zeros((len(data), 16, 16, dim), np.float32)
        for i in range(len(data)):
            for b, c, *_ in data.objects[i]:
                maps[i, :, :, c] = ((at > b[1]) & (at < b[3]))[:, None] & ((at > b[0]) & (at < b[2]))
        maps += rng.normal(scale=0.2, size=maps.shape)
        if flip:
            maps = np.concatenate([maps, maps[:, :, ::-1]])
        self.classes = data.classes
        self.dim = dim
        self.device = "cpu"
        self.projection = SimpleNamespace(digest=digest)
        maps = torch.from_numpy(maps.astype(np.float32))
        self.integral = integral_image(maps)
        self.saliency = maps[..., : len(data.classes)].permute(0, 3, 1, 2).clamp(0, 1)
        self.presence = self.saliency.amax((2, 3))


def answers_for(data, bank, seed=0):
    "One drawn box for every question"
    image, label = all_queries(len(data), len(data.classes))
    where, boxes = sample_boxes(data, np.random.default_rng(seed), per_image=0)
    order = np.argsort(where, kind="stable")
    count = np.bincount(where)
    n = len(image)
    box = boxes[
        order[(count.cumsum() - count)[image] + (np.random.default_rng(seed).random(n) * count[image]).astype(int)]
    ]
    return Predictions(
        image,
        label,
        box,
        np.ones(n, bool),
        np.ones(n, int),
        np.random.default_rng(1).normal(size=n),
        np.full(n, 0.5),
        bank.presence.numpy()[image, label],
        np.full(n, 0.5),
    )


@pytest.fixture(scope="module")
def fitted():
    train, test = Squares(300), Squares(200, seed=7)
    bank, elsewhere = MapBank(train), MapBank(test, seed=3)
    classifier = fit_region_classifier(bank, train, seed=0, width=32, epochs=12, decay=0.1)
    return SimpleNamespace(
        train=train,
        test=test,
        bank=bank,
        elsewhere=elsewhere,
        classifier=classifier,
        answers=answers_for(test, elsewhere),
    )


def hits(answers, data):
    return (
        best_iou(data.ground_truth(), len(data.classes), answers.image, answers.box)[
            np.arange(len(answers)), answers.label
        ]
        >= 0.5
    )


def test_inputs_match_means_computed_by_hand(fitted):
    "Means over boxes on whole cells, the grown box cut at the border, evidence of every class, and the shape"
    bank, box = fitted.elsewhere, np.float32([[4 / 16, 0, 12 / 16, 8 / 16]])
    x = region_inputs(bank, np.array([5]), box)[0].numpy()
    cells = bank.integral.diff(dim=1).diff(dim=2)[5].numpy()
    assert CONTEXT == 1.5
    assert np.allclose(x[:6], cells[:8, 4:12].mean((0, 1)), atol=1e-4)
    assert np.allclose(x[6:12], cells[:10, 2:14].mean((0, 1)), atol=1e-4)
    assert np.allclose(x[12:18], cells.mean((0, 1)), atol=1e-4)
    assert np.allclose(x[18:20], bank.saliency[5, :, :8, 4:12].mean((1, 2)), atol=1e-4)
    assert np.allclose(x[22:24], bank.presence[5])
    assert np.allclose(x[24:], [0.5, 0.5, np.log(0.5), 0, 0, 1, 0, 0, 0.5, 0.25], atol=1e-5)


def test_inputs_do_not_depend_on_company(fitted):
    "A box is seen alike alone, in another order and among others"
    bank, rng = fitted.elsewhere, np.random.default_rng(0)
    image, boxes = sample_boxes(fitted.test, rng)
    pick = rng.permutation(len(image))[:50]
    alone = torch.cat([region_inputs(bank, image[i : i + 1], boxes[i : i + 1]) for i in pick])
    assert torch.allclose(region_inputs(bank, image[pick], boxes[pick]), alone, atol=1e-5)


def test_finds_what_is_right(fitted):
    "On other pictures right answers are told from wrong ones, better than by presence, and at their word"
    p = with_region(fitted.answers, fitted.classifier, fitted.elsewhere).region
    right = hits(fitted.answers, fitted.test)

    def auc(score):
        return (score[right][:, None] > score[~right]).mean()

    assert p.shape == right.shape and p.dtype == np.float32 and ((p >= 0) & (p <= 1)).all()
    assert auc(p) > 0.9 and auc(p) > auc(fitted.answers.presence) + 0.05
    assert reliability(p, right, bins=5).ece < 0.1


def test_same_seed_same_classifier(fitted):
    "Determined by the seed to the last bit"

    def fit(seed):
        return fit_region_classifier(fitted.elsewhere, fitted.test, seed=seed, width=8, epochs=2)

    a = fit(3)
    b = fit(3)
    c = fit(4)
    assert (
        np.array_equal(a.hidden, b.hidden)
        and np.array_equal(a.out_bias, b.out_bias)
        and not np.array_equal(a.hidden, c.hidden)
    )


def test_a_committee_is_the_mean_of_its_members(fitted, monkeypatch):
    """Its log-odds are the mean of those of its members, who differ.

    Each was calibrated on pictures that the others learned from."""
    members = []
    held = []
    fit = module._fit

    def remembered(x, right, learn, check, *more):
        held.append(check)
        members.append(fit(x, right, learn, check, *more))
        return members[-1]

    monkeypatch.setattr(module, "_fit", remembered)
    committee = fit_region_classifier(fitted.bank, fitted.train, width=32, epochs=2, members=3)
    assert not (held[0] & held[1] | held[0] & held[2] | held[1] & held[2]).any()
    x = region_inputs(fitted.elsewhere, fitted.answers.image[:50], fitted.answers.box[:50]).numpy()
    votes = np.stack([np.maximum(x @ w + b, 0) @ v + c for w, b, v, c in members])
    assert np.abs(votes[0] - votes[1]).max() > 0.01
    np.testing.assert_allclose(committee.logits(torch.from_numpy(x)), votes.mean(0), atol=1e-3)
    for n in (0, 6):
        with pytest.raises(ConfidenceError, match="1 to 5"):
            fit_region_classifier(fitted.bank, fitted.train, members=n)


def test_what_is_learned_from_and_what_calibrates(monkeypatch):
    """No picture, nor its mirror image, serves both; difficult objects serve neither.

    The mean probability where it was calibrated is the share that is right."""
    data = Squares(100)
    seen = {}
    fits = []
    fit = module._fit
    inputs = module._inputs
    bank = MapBank(data, flip=True)
    own = answers_for(data, bank)
    monkeypatch.setattr(
        module,
        "_inputs",
        lambda bank, image, boxes: seen.update(image=image, boxes=boxes) or inputs(bank, image, boxes),
    )
    monkeypatch.setattr(
        module,
        "_fit",
        lambda x, right, learn, check, *more: (
            fits.append((x, right, learn, check, fit(x, right, learn, check, *more))) or fits[-1][-1]
        ),
    )
    fit_region_classifier(bank, data, [own], width=16, epochs=3, members=2)
    picture, mirrored = seen["image"] % 100, seen["image"] >= 100
    boxes = np.where(
        mirrored[:, None], 1 - seen["boxes"][:, [2, 1, 0, 3]] * [1, -1, 1, -1] - [0, 1, 0, 1], seen["boxes"]
    )
    objects = np.stack([data.objects[p][0][0] for p in picture])
    label, difficult = np.array([data.objects[p][0][1:3] for p in picture]).T
    close = np.array([pairwise_iou(b[None], o[None])[0, 0] for b, o in zip(boxes, objects)]) >= 0.5
    assert mirrored.any() and (close & mirrored).any() and (difficult.astype(bool) & close).any()
    for x, right, learn, check, (w, b, v, c) in fits:
        assert not set(picture[learn]) & set(picture[check])
        assert not (learn | check)[close & difficult.astype(bool)].any() and not check[-len(own) :].any()
        used = learn | check
        np.testing.assert_array_equal(right[used], (close[:, None] & (label[:, None] == np.arange(2)))[used])
        p = 1 / (1 + np.exp(-(np.maximum(x[check] @ w + b, 0) @ v + c)))
        assert p.mean() == pytest.approx(right[check].mean(), abs=2e-3)


def test_batches_change_nothing(fitted):
    a = fitted.answers
    assert np.allclose(
        fitted.classifier.predict(fitted.elsewhere, a.image, a.label, a.box, batch=7),
        fitted.classifier.predict(fitted.elsewhere, a.image, a.label, a.box),
        atol=1e-6,
    )


def test_no_boxes(fitted):
    none = np.zeros(0, int)
    assert fitted.classifier.predict(fitted.elsewhere, none, none, np.zeros((0, 4), np.float32)).shape == (0,)


def test_learns_from_mirrored_pictures_and_answers():
    "A bank with the mirrored pictures behind, answers on both halves, and a single class"
    train, test = Squares(300, classes=("cat",)), Squares(120, seed=9, classes=("cat",))
    bank, elsewhere = MapBank(train, flip=True), MapBank(test)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 600, 2000)
    boxes = np.stack([train.objects[i % 300][0][0] for i in image]).astype(np.float32)
    boxes[image >= 300] = boxes[image >= 300][:, [2, 1, 0, 3]] * np.float32([-1, 1, -1, 1]) + np.float32([1, 0, 1, 0])
    nothing = np.zeros(len(image))
    own = Predictions(image, np.zeros(len(image), int), boxes, nothing > 0, nothing, nothing, nothing, nothing, nothing)
    classifier = fit_region_classifier(bank, train, [own], width=16, epochs=20, decay=0.1)
    image, boxes = sample_boxes(test, rng)
    p = classifier.predict(elsewhere, image, np.zeros(len(image), int), boxes)
    right = best_iou(test.ground_truth(), 1, image, boxes)[:, 0] >= 0.5
    assert p[right].mean() > p[~right].mean() + 0.3
    exact = np.stack([o[0][0] for o in test.objects]).astype(np.float32)
    assert np.median(classifier.predict(elsewhere, np.arange(120), np.zeros(120, int), exact)) > 0.6


def test_save_and_load(fitted, tmp_path):
    "Same answers after a round trip; no pickle; nothing but the file is left"
    path = tmp_path / "run" / "region_classifier.npz"
    fitted.classifier.save(path)
    again, a = RegionClassifier.load(path), fitted.answers
    assert again.classes == CLASSES and again.features == "d1"
    assert np.array_equal(
        again.predict(fitted.elsewhere, a.image, a.label, a.box),
        fitted.classifier.predict(fitted.elsewhere, a.image, a.label, a.box),
    )
    assert [p.name for p in path.parent.iterdir()] == ["region_classifier.npz"]
    with np.load(path, allow_pickle=False) as f:
        assert all(f[k].dtype != object for k in f.files)


def test_damaged_files_are_named(fitted, tmp_path):
    "Missing, cut short at any length, bits turned over, another npz, text"
    path = tmp_path / "c.npz"
    with pytest.raises(ConfidenceError, match="no region classifier at .*c.npz"):
        RegionClassifier.load(path)
    fitted.classifier.save(path)
    whole = path.read_bytes()
    turned = bytearray(whole)
    turned[len(whole) // 2] ^= 255
    for content in (b"", b"hello", whole[:50], whole[: len(whole) // 2], whole[:-10], bytes(turned)):
        path.write_bytes(content)
        with pytest.raises(ConfidenceError, match="c.npz is damaged"):
            RegionClassifier.load(path)
    np.savez(path, a=np.zeros(3))
    with pytest.raises(ConfidenceError, match="c.npz is damaged"):
        RegionClassifier.load(path)
    bad = replace(fitted.classifier)
    bad.out_bias[:] = bad.out_bias.copy()
    np.savez(
        path,
        classes=np.array(CLASSES),
        features=np.array("d1"),
        hidden=bad.hidden,
        hidden_bias=bad.hidden_bias,
        out=bad.out,
        out_bias=bad.out_bias * np.nan,
    )
    with pytest.raises(ConfidenceError, match="out_bias.*not finite"):
        RegionClassifier.load(path)


def test_foreign_banks_are_refused(fitted):
    "Other classes or other features; both are named"
    image = np.zeros(1, int)
    label = np.zeros(1, int)
    box = FULL[None]
    with pytest.raises(ConfidenceError, match="classes cat, dog, the bank has dog, cat"):
        fitted.classifier.predict(MapBank(Squares(3, classes=("dog", "cat"))), image, label, box)
    with pytest.raises(ConfidenceError, match="features d1, the bank has d2"):
        fitted.classifier.predict(MapBank(Squares(3), digest="d2"), image, label, box)


def test_unfit_data_is_refused(fitted):
    with pytest.raises(ConfidenceError, match="the bank holds 300 pictures, squares has 7"):
        fit_region_classifier(fitted.bank, Squares(7))
    empty = Squares(30)
    empty.objects = [[] for _ in empty.objects]
    with pytest.raises(ConfidenceError, match="no boxes to learn from.*0 objects of cat, dog"):
        fit_region_classifier(MapBank(empty), empty)


def test_best_iou_against_a_loop():
    data, rng = Squares(30), np.random.default_rng(0)
    data.objects = [o * int(rng.integers(0, 3)) + data.objects[0] * int(rng.integers(0, 2)) for o in data.objects]
    gt, (image, boxes) = data.ground_truth(), sample_boxes(data, rng, 3, 3)
    mixed = rng.permutation(len(image))
    image, boxes = image[mixed], boxes[mixed]
    for difficult in (False, True):
        expected = np.zeros((len(image), 2))
        for k in range(len(image)):
            for c in range(2):
                mine = gt.boxes[(gt.image == image[k]) & (gt.label == c) & (gt.difficult == difficult)]
                if len(mine):
                    expected[k, c] = pairwise_iou(boxes[k : k + 1], mine).max()
        assert np.allclose(best_iou(gt, 2, image, boxes, difficult), expected, atol=1e-6)


def test_sampled_boxes_are_boxes():
    "Inside the picture, of all qualities, whole pictures among them, and the same for the same seed"
    data = Squares(50)
    image, boxes = sample_boxes(data, np.random.default_rng(0))
    again = sample_boxes(data, np.random.default_rng(0))
    assert np.array_equal(boxes, again[1]) and np.array_equal(image, again[0]) and boxes.dtype == np.float32
    assert ((boxes >= 0) & (boxes <= 1)).all() and (boxes[:, 2:] - boxes[:, :2] > 0.029).all()
    assert set(image) == set(range(50)) and (boxes == FULL).all(1).sum() >= 50
    share = np.histogram(best_iou(data.ground_truth(), 2, image, boxes).max(1), [0, 0.2, 0.5, 0.7, 0.9, 1.01])[0] / len(
        image
    )
    assert (share > 0.02).all()


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.integers(1, 12))
def test_reliability_keeps_every_answer(pairs, bins):
    "Counts and means add up; groups are of equal size; constant bins reduce to the mean difference"
    p, hit = map(np.array, zip(*pairs))
    r = reliability(p, hit, bins)
    assert r.count.sum() == len(p) and r.count.max() - r.count.min() <= 1 and len(r.count) == min(bins, len(p))
    assert r.predicted @ r.count == pytest.approx(p.sum(), abs=1e-9) and r.observed @ r.count == pytest.approx(
        hit.sum()
    )
    assert (np.diff(r.predicted) >= -1e-12).all() and 0 <= r.ece <= 1
    assert reliability(p, hit, 1).ece == pytest.approx(abs(p.mean() - hit.mean()))


@pytest.mark.parametrize(
    "p, hit, message",
    [
        ([0.5], [1, 0], "equal lengths"),
        ([], [], "equal lengths"),
        ([-0.1], [1], "probabilities"),
        ([np.nan], [1], "probabilities"),
    ],
)
def test_reliability_refuses(p, hit, message):
    with pytest.raises(ConfidenceError, match=message):
        reliability(p, hit)


def test_reliability_figure_names_its_curves():
    figure = reliability_figure({"mine": reliability([0.1, 0.9], [0, 1], 2)})
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == ["mine: ECE 0.100"]


def test_sources_that_are_not_there(fitted):
    "Without the classifier its sources raise and are not listed; with it they are what their names say"
    a = fitted.answers
    for name in ("region", "region*iou", "presence*region*iou"):
        with pytest.raises(ValueError, match="with_region"):
            confidence_of(a, name)
        assert name not in sources_of(a)
    b = with_region(a, fitted.classifier, fitted.elsewhere)
    assert {"region", "region*iou", "presence*region*iou", "iou"} <= set(sources_of(b)) and a.region is None
    assert np.allclose(confidence_of(b, "region"), b.region)
    assert np.array_equal(
        np.argsort(confidence_of(b, "region*iou"), kind="stable"),
        np.argsort(np.log(b.region.astype(float) + 1e-6) + np.log(0.5 + 1e-6), kind="stable"),
    )
    assert np.allclose(np.exp(confidence_of(b, "presence*region*iou")), b.presence * b.region * 0.5, atol=1e-5)


def test_ablation_orders_the_sources(fitted):
    "The true IoU bounds all; the gap runs from 0 to 1; several agents are averaged; only what is there is listed"
    a = with_region(fitted.answers, fitted.classifier, fitted.elsewhere)
    b = with_region(answers_for(fitted.test, fitted.elsewhere, seed=5), fitted.classifier, fitted.elsewhere)
    one, two, both = (ablation(x, fitted.test, CLASSES) for x in (a, b, [a, b]))
    value = {r["confidence"]: r for r in both}
    assert list(value)[-1] == ORACLE and all(r["mAP (11 pt)"] <= value[ORACLE]["mAP (11 pt)"] for r in both)
    assert value["q_trigger"]["gap closed"] == 0 and value[ORACLE]["gap closed"] == 1
    assert value["region"]["mAP (11 pt)"] > value["presence"]["mAP (11 pt)"]
    for r, s, m in zip(one, two, both):
        assert m["mAP (area)"] == pytest.approx((r["mAP (area)"] + s["mAP (area)"]) / 2)
    assert m["cat"] == pytest.approx((r["cat"] + s["cat"]) / 2)
    assert [r["confidence"] for r in ablation(a, fitted.test, CLASSES, ["region"])] == ["region", ORACLE]
    assert "region" not in [r["confidence"] for r in ablation([fitted.answers, a], fitted.test, CLASSES)]
    with pytest.raises(ConfidenceError, match="no predictions"):
        ablation([], fitted.test, CLASSES)


@pytest.fixture(scope="module")
def searched(fitted):
    "A policy that triggers in some searches, and questions in no order"
    policy, moves = search_policy(Config().replace({"data.classes": CLASSES}), 6), Moves()
    image, label = (x[np.random.default_rng(0).permutation(len(x))[:40]] for x in all_queries(len(fitted.test), 2))
    return policy, moves, image, label


def path_of(policy, bank, image, label, moves, max_steps):
    "Every box of one search with the IoU believed there, move by move, and whether it triggered"
    net = policy.q_net
    box = FULL.copy()
    history = [-1] * 10
    way = []
    for t in range(max_steps):
        q, believed = net.predict_all(torch.tensor([[image, label, *box, t, *history[:10]]], dtype=torch.float32), bank)
        way.append((box, float(believed)))
        action = int(q.argmax())
        if action == TRIGGER:
            return way, True
        box, history = moves.apply(box, action), [action, *history]
    return way, False


@torch.no_grad()
def test_the_surest_of_the_boxes_passed(fitted, searched):
    "As a loop over one search after another finds it, for a confidence with and without the region classifier"
    policy, moves, image, label = searched
    for source, judge in ("iou", None), ("region*iou", fitted.classifier):
        found = predict(policy, fitted.elsewhere, image, label, moves, 12, "surest", source, judge)
        assert np.array_equal(found.image, image) and np.array_equal(found.label, label)
        for k in range(len(image)):
            way, triggered = path_of(policy, fitted.elsewhere, image[k], label[k], moves, 12)
            boxes, believed = np.stack([b for b, _ in way]), np.array([x for _, x in way])
            sure = np.log(believed + 1e-6)
            if judge:
                sure = sure + np.log(
                    judge.predict(fitted.elsewhere, np.repeat(image[k], len(way)), np.repeat(label[k], len(way)), boxes)
                    + 1e-6
                )
            assert sure[(np.abs(boxes - found.box[k]) < 1e-6).all(1)].max() >= sure.max() - 1e-4
            assert (found.steps[k], found.triggered[k]) == (len(way), triggered)


def test_the_answer_where_it_stops(fitted, searched):
    "Is that of `predict`; another answer is refused"
    policy, moves, image, label = searched
    stop = predict(policy, fitted.elsewhere, image, label, moves, 12, classifier=fitted.classifier)
    plain = predict(policy, fitted.elsewhere, image, label, moves, 12)
    assert np.array_equal(stop.box, plain.box) and np.array_equal(stop.steps, plain.steps) and stop.region is not None
    with pytest.raises(ValueError, match="use 'stop' or 'surest'"):
        predict(policy, fitted.elsewhere, image, label, choice="last")


def test_products_of_nothing_are_finite():
    "A probability of 0 counts as a millionth, so that the logarithm is finite"
    none, one = np.zeros(1), np.ones(1)
    for presence, evidence, region, believed in ((0, 1, 1, 1), (1, 0, 1, 1), (1, 1, 0, 1), (1, 1, 1, 0)):
        numbers = dict(presence=presence, evidence=evidence, region=region, iou=believed)
        p = Predictions(
            np.zeros(1, int),
            np.zeros(1, int),
            np.float32([[0, 0, 1, 1]]),
            one > 0,
            np.ones(1, int),
            none,
            believed * one,
            presence * one,
            evidence * one,
            region * one,
        )
        for name in CONFIDENCE:
            if "*" in name:
                wanted = sum(np.log(numbers[part] + 1e-6) for part in name.split("*"))
                assert confidence_of(p, name)[0] == pytest.approx(wanted, abs=1e-12), name
