"""Fitting a judge: its targets against loops, the loss by hand, seeds, difficult objects; and what binds."""

import numpy as np
import pytest
import torch

from locrl.agents.judge import LEVELS
from locrl.agents.predictions import ConfidenceError
from locrl.data.boxes import iou
from locrl.data.voc import Annotation, Dataset
from locrl.evaluation import judging
from locrl.evaluation.judging import average_precision_of, fit_judge, judge_loss, moving_or_judging, nearest_objects
from locrl.evaluation.multi import Regions
from locrl.evaluation.protocols import relabelled
from locrl.vision.region_pooling import FeatureBank, integral_image

CLASSES = ("cat", "dog")


class Drawn(Dataset):
    "Objects at random places, some difficult; no pictures"

    def __init__(self, n, seed=0, difficult=0.1):
        super().__init__("drawn", CLASSES, tuple(str(i) for i in range(n)))
        rng = np.random.default_rng(seed)
        self.objects = []
        for _ in range(n):
            side = rng.uniform(0.3, 0.6, (2, 2))
            corner = (1 - side) * rng.random((2, 2))
            kinds = rng.integers(2, size=2)
            flags = rng.random(2) < difficult
            self.objects.append(
                [(np.concatenate([a, a + b]), int(k), bool(f), False) for a, b, k, f in zip(corner, side, kinds, flags)]
            )

    def _annotate(self, i):
        return Annotation.of(self.objects[i])

    def _stamp(self, i):
        return str(self.objects[i])


class Painted(FeatureBank):
    "Maps that show the objects: channel 0 for cats, 1 for dogs"

    def __init__(self, data, mirrored=False):
        maps = torch.zeros(len(data), 16, 16, 3)
        for i, objects in enumerate(data.objects):
            for (x1, y1, x2, y2), kind, _, _ in objects:
                maps[i, int(16 * y1) : round(16 * y2), int(16 * x1) : round(16 * x2), kind] = 1
        maps[..., 2] = torch.linspace(0, 1, 16)
        maps = torch.cat([maps, maps.flip(2)]) if mirrored else maps
        self.classes, self.dim, self.device = CLASSES, 3, "cpu"
        self.projection = type("P", (), dict(digest="painted", dim=3))()
        self.integral = integral_image(maps)
        self.saliency = maps[..., :2].permute(0, 3, 1, 2).contiguous()
        self.presence = self.saliency.amax((2, 3))


def test_nearest_objects_against_a_loop():
    data = Drawn(6)
    gt, rng = relabelled(data, CLASSES), np.random.default_rng(1)
    image, corner = rng.integers(6, size=40), rng.uniform(0, 0.5, (40, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.1, 0.5, (40, 2))], 1).astype(np.float32)
    objects, best = nearest_objects(gt, image, boxes)
    for i, box, found, value in zip(image, boxes, objects, best):
        mine = [b for b, _, difficult, _ in data.objects[i] if not difficult]
        overlaps = [float(iou(box, np.float32(b))) for b in mine]
        assert value == pytest.approx(max(overlaps, default=0), abs=1e-6)
        if value:
            np.testing.assert_allclose(found, mine[int(np.argmax(overlaps))], atol=1e-6)


def test_the_loss_by_hand():
    logits, shift = torch.zeros(2, 1, len(LEVELS)), torch.tensor([[3.0, 0, 0, 0], [9.0, 9, 9, 9]])
    overlap, goal, near = torch.tensor([[0.55], [0.0]]), torch.zeros(2, 4), torch.tensor([True, False])
    logits[0, 0] = torch.tensor([2.0, 2, 2, -2, -2])  # .3, .4 and .5 are reached, .6 and .7 are not
    each = np.log(1 + np.exp(-2))
    expected = (5 * each + 5 * np.log(2) + (3 - 0.5)) / 2
    assert judge_loss(logits, shift, overlap, goal, near).item() == pytest.approx(expected, abs=1e-5)


@pytest.fixture(scope="module")
def fitted():
    data = Drawn(60)
    return data, Painted(data), fit_judge(Painted(data, mirrored=True), data, epochs=12, widths=(64, 32))


def test_it_learns_and_generalises(fitted):
    _, _, judge = fitted
    other = Drawn(30, seed=5, difficult=0)
    image, boxes = judging.sample_boxes(other, np.random.default_rng(0), 10, 10)
    scores, moved = judge.judge(Painted(other), image, boxes)
    truth = judging.best_iou(relabelled(other, CLASSES), 2, image, boxes)
    assert np.corrcoef(scores.ravel(), truth.ravel())[0, 1] > 0.7
    gt = relabelled(other, CLASSES)
    before = nearest_objects(gt, image, boxes)[1]
    near = (before > 0.4) & (before < 0.7)
    assert nearest_objects(gt, image[near], moved[near])[1].mean() > before[near].mean()


def test_a_judge_of_any_class_generalises_to_a_class_it_never_saw():
    "Fitted on cats alone, asked about dogs: the score follows the IoU with dogs, and a cat is no dog"
    data, other = Drawn(60, seed=2, difficult=0), Drawn(30, seed=3, difficult=0)
    cats = fit_judge(Only(data, 0), Kind(data, 0), any_class=True, epochs=4, widths=(32,))
    image, boxes = judging.sample_boxes(other, np.random.default_rng(0), 10, 10)
    truth = judging.best_iou(relabelled(other, CLASSES), 2, image, boxes)
    scores = cats.predict(Painted(other), image, np.ones(len(image), np.int64), boxes)
    assert np.corrcoef(scores, truth[:, 1])[0, 1] > 0.6 > np.corrcoef(scores, truth[:, 0])[0, 1]
    with pytest.raises(ConfidenceError, match="give labels"):
        cats.judge(Painted(other), image, boxes)


class Kind(Drawn):
    "The objects of one class"

    def __init__(self, data, kind):
        Dataset.__init__(self, "kind", CLASSES[kind : kind + 1], data.ids)
        self.objects = [[(b, 0, f, t) for b, k, f, t in objects if k == kind] for objects in data.objects]


class Only(Painted):
    "Maps of one class"

    def __init__(self, data, kind):
        super().__init__(data)
        self.classes, self.saliency = CLASSES[kind : kind + 1], self.saliency[:, kind : kind + 1]
        self.presence = self.presence[:, kind : kind + 1]


def test_a_seed_gives_the_same_judge(fitted):
    data, _, judge = fitted
    bank = Painted(data, mirrored=True)
    before = torch.get_rng_state()
    assert fit_judge(bank, data, epochs=12, widths=(64, 32)).digest == judge.digest
    assert torch.equal(torch.get_rng_state(), before)
    one, two = (fit_judge(bank, data, seed=seed, epochs=1, widths=(8,)).digest for seed in (0, 1))
    assert one != two


def test_mirrored_pictures_have_mirrored_boxes(monkeypatch):
    "What a box holds is the same in the mirrored picture, so that its inputs belong to its targets"
    data = Drawn(20, difficult=0)
    bank = Painted(data, mirrored=True)
    rng = np.random.default_rng(0)
    passed = Regions(
        np.array([3, 23]),
        np.zeros(2, int),
        np.array([[0.1, 0.2, 0.5, 0.9], [0.5, 0.2, 0.9, 0.9]], np.float32),
        *[np.zeros(2, bool)] * 3,
        *[np.zeros(2)] * 4,
    )
    image, boxes, overlap, objects, best = judging._draw(data, relabelled(data, CLASSES), bank, [passed], rng, 8, 4, 40)
    assert (image >= 20).any() and (image < 20).any() and len(image) == len(boxes) == len(overlap)
    truth = [
        max((float(iou(b, o)) for o in _boxes(data, i, kind)), default=0)
        for i, b in zip(image, boxes)
        for kind in range(2)
    ]
    np.testing.assert_allclose(overlap.ravel(), truth, atol=1e-5)
    np.testing.assert_allclose(iou(boxes[best > 0], objects[best > 0]), best[best > 0], atol=1e-5)


def _boxes(data, image, kind):
    "Objects of a class in a picture, or in its mirror image"
    boxes = [np.float32(b) for b, k, _, _ in data.objects[image % 20] if k == kind]
    return [np.array([1 - b[2], b[1], 1 - b[0], b[3]]) for b in boxes] if image >= 20 else boxes


def test_boxes_on_difficult_objects_teach_nothing():
    data = Drawn(20, difficult=0.5)
    gt = relabelled(data, CLASSES)
    image, boxes, *_ = judging._draw(data, gt, Painted(data), (), np.random.default_rng(0), 8, 8, 0)
    hard = judging.best_iou(gt, 2, image, boxes, difficult=True)
    assert len(image) and (hard < LEVELS[0]).all()


def test_data_it_cannot_be_fitted_on():
    data = Drawn(4)
    with pytest.raises(ConfidenceError, match="the bank holds 4 pictures, drawn has 5"):
        fit_judge(Painted(data), Drawn(5))
    with pytest.raises(ConfidenceError, match="no object"):
        fit_judge(Painted(data), Drawn(4, difficult=1.1))


def test_what_binds(fitted):
    "Regions that miss every object leave moving to blame; true boxes under a blind judge leave judging"
    data, bank, judge = fitted
    gt = relabelled(data, CLASSES)
    sure = ~gt.difficult

    def rows(boxes):
        n = sure.sum()
        some = Regions(
            gt.image[sure], gt.label[sure], boxes.astype(np.float32), *[np.zeros(n, bool)] * 3, *[np.zeros(n)] * 4
        )
        return moving_or_judging(judging.replace(some, region=np.zeros(n)), judge, bank, data, overlap=1.0)

    as_judged, better_moving, better_judging = rows(np.tile([0.0, 0, 0.05, 0.05], (sure.sum(), 1)))
    assert as_judged["mAP"] == better_judging["mAP"] == 0 and better_moving["mAP"] > 0.7
    as_judged, _, better_judging = rows(gt.boxes[sure])
    assert better_judging["mAP"] == pytest.approx(1) and as_judged["recall"] == pytest.approx(1)


def test_average_precision_of_suppresses():
    data = Drawn(1, difficult=0)
    gt = relabelled(data, CLASSES)
    twice = np.repeat(gt.boxes[:1], 2, 0)
    some = Regions(np.zeros(2, int), np.repeat(gt.label[:1], 2), twice, *[np.zeros(2, bool)] * 3, *[np.zeros(2)] * 4)
    kept = average_precision_of(some, np.array([0.9, 0.8]), gt, CLASSES, 1)
    assert kept[CLASSES[gt.label[0]]] > 0


def test_the_pace_of_learning_by_hand():
    "Up from a twenty-fifth within a tenth of the way, then down half a cosine to nothing"
    from locrl.evaluation.judging import _pace

    for t, share in ((0, 0.04), (0.05, 0.54), (0.096, 1), (0.096 + 0.904 / 2, 0.5), (0.096 + 0.904 / 3, 0.75), (1, 0)):
        assert _pace(t) == pytest.approx(share, abs=1e-12)


def test_a_judge_of_any_class_is_mostly_asked_about_the_class_that_is_there():
    "In 70 % of the cases and, with two classes, in half of the others"
    from locrl.evaluation.judging import _asked

    overlap = torch.tensor([[0.2, 0.6]]).repeat(20_000, 1)
    assert _asked(overlap, np.random.default_rng(0)).float().mean().item() == pytest.approx(0.85, abs=0.01)
