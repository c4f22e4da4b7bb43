"The VOC evaluator: hand-worked cases, sanity identities, two other implementations"

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from locrl.evaluation.average_precision import (
    Detections,
    MetricError,
    average_precision,
    coverage_at,
    evaluate_detections,
    localisation,
    match,
    precision_recall,
)

LEFT = [0, 0, 0.5, 1]
RIGHT = [0.5, 0, 1, 1]
TOP = [0, 0, 1, 0.5]
WHOLE = [0, 0, 1, 1]
CORNER = [0, 0, 0.1, 0.1]


def truth(*objects):
    "Ground truth from `(image, label, box)` or `(image, label, box, difficult)`"
    return SimpleNamespace(
        image=np.array([o[0] for o in objects], dtype=np.int64),
        label=np.array([o[1] for o in objects], dtype=np.int64),
        boxes=np.array([o[2] for o in objects], dtype=np.float32).reshape(-1, 4),
        difficult=np.array([len(o) > 3 and o[3] for o in objects], dtype=bool),
    )


def found(*detections):
    "Detections from `(image, label, box, score)`"
    return Detections(*([d[i] for d in detections] for i in range(4)))


def random_set(seed, n_classes=3, n_images=8, n_objects=25, n_detections=60, difficult=0.0, grid=None):
    """A random split and detections: half of them jittered objects, so that matches, duplicates and misses all occur.

    With `grid`, corners are multiples of 1/grid, so that equal IoUs and IoUs of exactly one half occur; scores are a
    permutation."""
    rng = np.random.default_rng(seed)

    def boxes(n):
        corner, side = rng.uniform(0, 0.6, (n, 2)), rng.uniform(0.1, 0.4, (n, 2))
        return np.concatenate([corner, corner + side], 1)

    def snap(b):
        return (
            b
            if grid is None
            else np.concatenate(
                [np.floor(b[:, :2] * grid), np.floor(b[:, :2] * grid) + np.ceil((b[:, 2:] - b[:, :2]) * grid)], 1
            )
            / grid
        )

    gt_boxes = snap(boxes(n_objects))
    gt = SimpleNamespace(
        image=rng.integers(0, n_images, n_objects),
        label=rng.integers(0, n_classes, n_objects),
        boxes=gt_boxes.astype(np.float32),
        difficult=rng.random(n_objects) < difficult,
    )
    source, jittered = rng.integers(0, n_objects, n_detections), rng.random(n_detections) < 0.6
    jitter = np.clip(gt.boxes[source] + rng.normal(0, 0.04, (n_detections, 4)), 0, 1)
    jitter = np.concatenate([np.minimum(jitter[:, :2], jitter[:, 2:] - 0.01), jitter[:, 2:]], 1)
    det_boxes = snap(np.where(jittered[:, None], jitter, boxes(n_detections)))
    return Detections(
        np.where(jittered, gt.image[source], rng.integers(0, n_images, n_detections)),
        np.where(jittered, gt.label[source], rng.integers(0, n_classes, n_detections)),
        det_boxes,
        rng.permutation(n_detections) / n_detections,
    ), gt


def test_one_right_one_wrong_one_missed():
    # Two objects. Detections: .9 on the first object (TP), .8 in a corner (FP), nothing on the second.
    # recall 1/2, 1/2; precision 1, 1/2. Area: 1/2 * 1 = 1/2. 11-point: recalls 0 ... 0.5 reach precision 1: 6/11.
    r = evaluate_detections(found((0, 0, LEFT, 0.9), (1, 0, CORNER, 0.8)), truth((0, 0, LEFT), (1, 0, WHOLE)), ["cat"])
    assert r["cat"].ap_area == pytest.approx(1 / 2, abs=1e-12)
    assert r["cat"].ap11 == pytest.approx(6 / 11, abs=1e-12)
    assert r["cat"].recall_ceiling == 1 / 2


def test_duplicate_is_a_false_positive():
    # One object, found twice: TP then FP. Recall is 1 at precision 1; what follows does not lower the envelope: AP 1.
    # A second object found after the duplicate: recall 1/2, 1/2, 1; precision 1, 1/2, 2/3: area 1/2 + 1/2 * 2/3 = 5/6;
    # 11-point: 0 ... 0.5 get 1 (6 points), 0.6 ... 1 get 2/3 (5 points): (6 + 10/3)/11 = 28/33.
    gt = truth((0, 0, WHOLE), (1, 0, WHOLE))
    r = evaluate_detections(found((0, 0, WHOLE, 0.9), (0, 0, TOP, 0.8), (1, 0, WHOLE, 0.7)), gt, ["cat"])
    assert r["cat"].ap_area == pytest.approx(5 / 6, abs=1e-12)
    assert r["cat"].ap11 == pytest.approx(28 / 33, abs=1e-12)
    assert evaluate_detections(found((0, 0, WHOLE, 0.9), (0, 0, TOP, 0.8)), truth((0, 0, WHOLE)), ["cat"]).map_area == 1


def test_difficult_match_is_ignored_and_not_counted():
    # Objects: LEFT ordinary, RIGHT difficult: npos 1. The best-scored detection matches the difficult one and vanishes,
    # twice; the third is a TP: recall 1, precision 1 (the two ignored are not false positives): AP 1.
    gt = truth((0, 0, LEFT), (0, 0, RIGHT, True))
    det = found((0, 0, RIGHT, 0.9), (0, 0, RIGHT, 0.8), (0, 0, LEFT, 0.7))
    m = match(det, gt, 0)
    assert (
        m.npos == 1
        and m.ignored.tolist() == [True, True, False]
        and m.tp.tolist() == [False, False, True]
        and not m.fp.any()
    )
    r = evaluate_detections(det, gt, ["cat"])
    assert r.map11 == r.map_area == 1


def test_only_the_best_object_counts():
    # WHOLE-ish detection d overlaps A = [0,0,1,.9] with IoU .9 and B = WHOLE with IoU 1. The first d takes B. The
    # second d also has B as its best object and is a FP, though A (IoU .9) is still free: VOC does not fall back to the
    # second best, COCO does.
    gt = truth((0, 0, [0, 0, 1, 0.9]), (0, 0, WHOLE))
    m = match(found((0, 0, WHOLE, 0.9), (0, 0, WHOLE, 0.8)), gt, 0)
    assert m.tp.tolist() == [True, False] and m.object.tolist() == [1, 1]


def test_threshold_is_inclusive_and_ties_go_to_the_first_object():
    # WHOLE against LEFT: overlap 1/2, union 1, IoU exactly 1/2: a match. RIGHT has the same IoU; `ov > ovmax` keeps
    # LEFT.
    gt = truth((0, 0, LEFT), (0, 0, RIGHT))
    m = match(found((0, 0, WHOLE, 1.0)), gt, 0)
    assert m.tp.tolist() == [True] and m.object.tolist() == [0] and m.iou.tolist() == [0.5]
    assert not match(found((0, 0, WHOLE, 1.0)), gt, 0, iou_threshold=0.5001).tp.any()


def test_other_class_and_other_image_never_match():
    # The same box: class 1 in image 0, or class 0 in image 1, is wrong for an object of class 0 in image 0.
    gt = truth((0, 0, WHOLE), (0, 1, CORNER))
    r = evaluate_detections(found((0, 1, WHOLE, 0.9), (1, 0, WHOLE, 0.8)), gt, ["cat", "dog"])
    assert r.map11 == 0 and r["cat"].ndet == r["dog"].ndet == 1


def test_eleven_recalls_are_exact():
    # Ten objects, three found, no mistakes: recall reaches 3/10 exactly, so 0, .1, .2, .3 get precision 1: 4/11 (with
    # thresholds summed from steps of 0.1 the fourth, 0.30000000000000004, would be missed).
    gt = truth(*((i, 0, WHOLE) for i in range(10)))
    for k in range(11):
        det = Detections(np.arange(k), np.zeros(k, dtype=int), np.tile(WHOLE, (k, 1)), np.arange(k))
        assert evaluate_detections(det, gt, ["cat"]).map11 == pytest.approx((k + 1) / 11 if k else 0, abs=1e-12)


def test_perfect_boxes_give_one():
    _, gt = random_set(0, difficult=0.3)
    det = Detections(gt.image, gt.label, gt.boxes, np.arange(len(gt.image)))
    r = evaluate_detections(det, gt, ["a", "b", "c"])
    assert r.map11 == pytest.approx(1) and r.map_area == pytest.approx(1) and r.recall_ceiling == 1


@pytest.mark.parametrize("p", [0.2, 0.5, 0.8])
def test_constant_scores_give_the_square_of_the_hit_rate(p):
    n, rng = 20_000, np.random.default_rng(1)
    gt = SimpleNamespace(
        image=np.arange(n),
        label=np.zeros(n, dtype=int),
        boxes=np.tile(WHOLE, (n, 1)),
        difficult=np.zeros(n, dtype=bool),
    )
    boxes = np.where((rng.random(n) < p)[:, None], WHOLE, CORNER)
    r = evaluate_detections(Detections(np.arange(n), np.zeros(n, dtype=int), boxes, np.ones(n)), gt, ["cat"])
    assert r.map_area == pytest.approx(p * p, abs=0.02)


@pytest.mark.parametrize("seed", range(20))
def test_order_of_input_changes_nothing_but_ties(seed):
    det, gt = random_set(seed, difficult=0.2)
    order = np.random.default_rng(seed).permutation(len(det))
    classes = ["a", "b", "c"]
    assert evaluate_detections(det[order], gt, classes).to_dict() == evaluate_detections(det, gt, classes).to_dict()
    # A permuted ground truth changes nothing either, where no two objects overlap a detection equally.
    order = np.random.default_rng(seed).permutation(len(gt.image))
    shuffled = SimpleNamespace(**{name: getattr(gt, name)[order] for name in ("image", "label", "boxes", "difficult")})
    assert evaluate_detections(det, shuffled, classes).to_dict() == evaluate_detections(det, gt, classes).to_dict()


def test_ties_keep_the_order_given():
    right, wrong = (0, 0, WHOLE, 1.0), (0, 0, CORNER, 1.0)
    assert evaluate_detections(found(right, wrong), truth((0, 0, WHOLE)), ["cat"]).map_area == 1
    assert evaluate_detections(found(wrong, right), truth((0, 0, WHOLE)), ["cat"]).map_area == 0.5


def test_dropping_difficult_objects_lowers_ap():
    # A detector that finds everything, difficult objects first: without them in the ground truth its boxes on them
    # become false positives.
    _, gt = random_set(3, difficult=0.4)
    det = Detections(gt.image, gt.label, gt.boxes, gt.difficult + np.linspace(0, 0.5, len(gt.image)))
    keep = ~gt.difficult
    dropped = SimpleNamespace(**{name: getattr(gt, name)[keep] for name in ("image", "label", "boxes", "difficult")})
    assert (
        evaluate_detections(det, dropped, ["a", "b", "c"]).map_area
        < evaluate_detections(det, gt, ["a", "b", "c"]).map_area
        == 1
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 0.5), st.sampled_from([None, 8]))
def test_ap_in_range_and_below_the_recall_ceiling(seed, difficult, grid):
    det, gt = random_set(seed, difficult=difficult, grid=grid)
    for c in evaluate_detections(det, gt, ["a", "b", "c"]).per_class:
        if c.npos:
            assert 0 <= c.ap_area <= c.recall_ceiling <= 1 and 0 <= c.ap11 <= 1


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 0.5))
def test_a_correct_top_detection_never_lowers_ap(seed, difficult):
    det, gt = random_set(seed, n_classes=1, difficult=difficult)
    before = evaluate_detections(det, gt, ["a"])
    free = np.setdiff1d(np.flatnonzero(~gt.difficult), (m := match(det, gt, 0)).object[m.tp])
    if not len(free):
        return
    i = free[0]
    # exact duplicates of the object aside, the added box has its own object as the best one
    after = evaluate_detections(
        Detections.concatenate([Detections([gt.image[i]], [0], gt.boxes[[i]], [2.0]), det]), gt, ["a"]
    )
    assert after.map_area >= before.map_area and after.map11 >= before.map11 - 1e-12


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([np.exp, np.arctan, lambda s: 3 * s - 7, lambda s: s**3, lambda s: np.log(s + 1e-3)]),
)
def test_monotone_transforms_of_the_scores_change_nothing(seed, f):
    det, gt = random_set(seed, difficult=0.2)
    moved = Detections(det.image, det.label, det.boxes, f(det.scores))
    assert (
        evaluate_detections(moved, gt, ["a", "b", "c"]).to_dict()
        == evaluate_detections(det, gt, ["a", "b", "c"]).to_dict()
    )


def devkit(det, gt, label, threshold=0.5):
    "VOCevaldet.m in loops and scalars, no shared code. Returns AP as area and at 11 points, None without positives."
    taken = set()
    tp = []
    fp = []
    npos = sum(1 for g in range(len(gt.image)) if gt.label[g] == label and not gt.difficult[g])
    if not npos:
        return None
    mine = [d for d in range(len(det.scores)) if det.label[d] == label]
    for d in sorted(mine, key=lambda d: -det.scores[d]):
        ovmax, jmax = float("-inf"), None
        for g in range(len(gt.image)):
            if gt.image[g] != det.image[d] or gt.label[g] != label:
                continue
            a, b = [float(v) for v in det.boxes[d]], [float(v) for v in gt.boxes[g]]
            iw, ih = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
            if iw > 0 and ih > 0:
                ov = iw * ih / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - iw * ih)
                if ov > ovmax:
                    ovmax, jmax = ov, g
        right = wrong = 0
        if ovmax >= threshold:
            if not gt.difficult[jmax]:
                if jmax not in taken:
                    right = 1
                    taken.add(jmax)
                else:
                    wrong = 1
        else:
            wrong = 1
        tp.append(right)
        fp.append(wrong)
    points = [(sum(tp[:k]) / npos, sum(tp[:k]) / max(sum(tp[:k]) + sum(fp[:k]), 1)) for k in range(1, len(tp) + 1)]

    def best(r):
        return max((p for rec, p in points if rec >= r), default=0.0)

    levels = sorted({r for r, _ in points} | {0.0})
    return sum((b - a) * best(b) for a, b in zip(levels, levels[1:])), sum(best(k / 10) for k in range(11)) / 11


@pytest.mark.parametrize("difficult", [0.0, 0.3])
@pytest.mark.parametrize("grid", [None, 8])
def test_agrees_with_a_literal_devkit_loop(difficult, grid):
    "With and without difficult objects; on a coarse grid, exact ties of IoU and IoUs of one half occur"
    for seed in range(75):
        det, gt = random_set(seed, difficult=difficult, grid=grid, n_images=4 + seed % 9, n_detections=10 + seed % 70)
        for label, c in enumerate(evaluate_detections(det, gt, ["a", "b", "c"]).per_class):
            expected = devkit(det, gt, label)
            assert (expected is None) == (c.ap_area is None)
            if expected is not None:
                assert (c.ap_area, c.ap11) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    "seeds", [range(200), pytest.param(range(200, 1000), marks=pytest.mark.slow)], ids=["200", "800 more"]
)
def test_agrees_with_mean_average_precision(seeds):
    "1,000 random sets without difficult objects against the PyPI package (continuous area AP, greedy VOC matching)"
    package = pytest.importorskip(
        "mean_average_precision.mean_average_precision_2d", reason="pip install mean-average-precision to compare"
    )
    for seed in seeds:
        det, gt = random_set(seed, n_images=2, n_objects=3 + seed % 6, n_detections=3 + seed % 16)
        theirs = package.MeanAveragePrecision2d(num_classes=3)

        # It counts pixels, with corners inclusive: side = x2 - x1 + 1. Scaling and taking one off gives the same IoU.
        def pixels(b):
            return b.astype(np.float64) * 10_000 - [0, 0, 1, 1]

        for i in range(2):
            d, g = det.image == i, gt.image == i
            theirs.add(
                np.column_stack([pixels(det.boxes[d]), det.label[d], det.scores[d]]),
                np.column_stack([pixels(gt.boxes[g]), gt.label[g], np.zeros((g.sum(), 2))]),
            )
        for label, c in enumerate(evaluate_detections(det, gt, ["a", "b", "c"]).per_class):
            # The public value() rounds to float32; this is the float64 before that.
            if c.npos:
                assert c.ap_area == pytest.approx(theirs._evaluate_class(label, 0.5, None)[0], abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 0.5))
def test_coverage_against_a_plain_loop(seed, difficult):
    from locrl.data.boxes import iou

    det, gt = random_set(seed, difficult=difficult)
    c = coverage_at(det, gt, (3, 1, 50))
    assert c.regions.tolist() == [1, 3, 50] and c.objects.tolist() == np.flatnonzero(~gt.difficult).tolist()
    for row, o in zip(c.best, c.objects):
        mine = [d for d in np.argsort(-det.scores) if det.image[d] == gt.image[o] and det.label[d] == gt.label[o]]
        for k, best in zip(c.regions, row):
            assert best == pytest.approx(
                max((float(iou(det.boxes[d].astype(float), gt.boxes[o].astype(float))) for d in mine[:k]), default=0),
                abs=1e-12,
            )
    if len(c.objects):
        assert (np.diff(c.recall(0.6)) >= 0).all() and (c.recall(0.5) >= c.recall(0.7)).all()
        fine = np.linspace(0.5, 1, 2001)
        assert c.average_recall() == pytest.approx(
            2 * np.trapezoid([c.recall(t) for t in fine], fine, axis=0), abs=2e-3
        )


def test_coverage_without_objects_or_regions():
    with pytest.raises(MetricError, match="no object that counts"):
        coverage_at(found((0, 0, WHOLE, 1.0)), truth((0, 0, WHOLE, True))).recall()
    c = coverage_at(Detections([], [], [], []), truth((0, 0, WHOLE)), [1, 5])
    assert c.recall().tolist() == c.average_recall().tolist() == [0, 0]
    with pytest.raises(MetricError, match="1 or more"):
        coverage_at(found((0, 0, WHOLE, 1.0)), truth(), [0, 1])


def test_bad_detections_name_the_row():
    box = [[0, 0, 1, 1]]
    for bad, words in [
        ((([0, 1], [0, 0], box * 2, [1.0, np.nan])), "scores[1] is NaN"),
        (([0], [0], [[0.5, 0, 0.2, 1]], [1.0]), "boxes[0] is inverted"),
        (([0], [0], [[0, 0, np.inf, 1]], [1.0]), "finite"),
        (([-1], [0], box, [1.0]), "image[0] is -1"),
        (([0.5], [0], box, [1.0]), "expected integers"),
        (([0], [0], [[0, 0, 1]], [1.0]), "expected (n, 4)"),
        (([0, 1], [0], box, [1.0]), "image has shape (2,)"),
    ]:
        with pytest.raises(MetricError) as error:
            Detections(*bad)
        assert words in str(error.value)


def test_bad_evaluation_input():
    gt, det = truth((0, 0, WHOLE)), found((7, 0, WHOLE, 0.5))
    for n in (3, 7):
        with pytest.raises(MetricError, match=f"image 7 in row 0 of the detections: the split has {n} images"):
            evaluate_detections(det, gt, ["cat"], n_images=n)
    evaluate_detections(det, gt, ["cat"], n_images=8)
    with pytest.raises(MetricError, match="label 1 in row 0 of the detections"):
        evaluate_detections(found((0, 1, WHOLE, 1.0)), gt, ["cat"])
    with pytest.raises(MetricError, match="no difficult"):
        evaluate_detections(det, SimpleNamespace(image=[], label=[], boxes=[]), ["cat"])
    with pytest.raises(MetricError, match="inverted"):
        evaluate_detections(det, truth((0, 0, [1, 0, 0, 1])), ["cat"])
    with pytest.raises(MetricError, match="iou_threshold=0"):
        evaluate_detections(det, gt, ["cat"], iou_threshold=0)
    with pytest.raises(MetricError, match="sequence"):
        evaluate_detections(det, gt, "cat")
    with pytest.raises(MetricError, match="kind='coco'"):
        average_precision([1], [1], "coco")


def test_class_without_objects_is_undefined_and_not_in_the_mean():
    # "dog" has only a difficult object, "cow" none at all: both undefined.
    gt = truth((0, 0, WHOLE), (1, 1, WHOLE, True))
    det = found((0, 0, WHOLE, 1.0), (1, 1, WHOLE, 1.0), (1, 2, WHOLE, 1.0))
    r = evaluate_detections(det, gt, ["cat", "dog", "cow"])
    assert r.map11 == r.map_area == 1 and r["dog"].ap11 is None and r.undefined == ("dog", "cow")
    assert r.to_dict()["ap11"] == {"cat": 1.0} and r.to_dict()["undefined"] == ["dog", "cow"]
    assert "undefined" in repr(r) and "dog, cow" in r._repr_html_()
    with pytest.raises(MetricError, match="undefined"):
        precision_recall(match(det, gt, 2))
    nothing = evaluate_detections(det, truth(), ["cat", "dog", "cow"])
    assert nothing.map11 is None and "map11" not in nothing.to_dict()


def test_no_detections():
    r = evaluate_detections(Detections([], [], [], []), truth((0, 0, WHOLE)), ["cat"])
    assert r.map11 == r.map_area == r.recall_ceiling == 0


def test_localisation():
    # Positives: IoU .9 triggered in 4 steps, .5 triggered in 10, .2 timed out at 40. Negatives: one of two triggered.
    loc = localisation(
        [0.9, 0.5, 0.2, np.nan, 0],
        [True, True, False, True, False],
        [4, 10, 40, 3, 40],
        [True, True, True, False, False],
    )
    assert (
        loc.hit_rate == pytest.approx(2 / 3)
        and loc.mean_iou == pytest.approx(1.6 / 3)
        and loc.mean_trigger_iou == pytest.approx(0.7)
    )
    assert loc.trigger_rate == pytest.approx(2 / 3) and loc.mean_steps == 18 and loc.median_steps == 10
    assert (loc.n, loc.n_negatives, loc.trigger_rate_negatives) == (3, 2, 0.5)
    with pytest.raises(MetricError, match="one length"):
        localisation([0.5], [True, False], [1])
    assert localisation([], [], []).to_dict() == {"n": 0, "n_negatives": 0}


def test_a_large_split_agrees_with_the_loop():
    "Hundreds of pictures and thousands of boxes"
    det, gt = random_set(0, n_images=400, n_objects=1000, n_detections=2400, difficult=0.1)
    for label, c in enumerate(evaluate_detections(det, gt, ["a", "b", "c"]).per_class):
        assert (c.ap_area, c.ap11) == pytest.approx(devkit(det, gt, label), abs=1e-9)


def test_a_detection_in_an_image_without_objects_has_none():
    gt = truth((0, 0, LEFT))
    m = match(found((1, 0, WHOLE, 0.9), (0, 0, LEFT, 0.8)), gt, 0)
    assert m.object.tolist() == [-1, 0] and m.iou.tolist() == [0, 1] and m.fp.tolist() == [True, False]
    none = match(found((1, 0, WHOLE, 0.9)), gt, 1)
    assert len(none.object) == 0 and none.npos == 0 and none.recall_ceiling is None
    assert match(found((1, 1, WHOLE, 0.9)), gt, 1).object.tolist() == [-1]


def test_coverage_at_its_default_numbers_of_regions():
    c = coverage_at(found((0, 0, LEFT, 0.9)), truth((0, 0, LEFT)))
    assert c.regions.tolist() == [1, 2, 5, 10, 20, 50, 100, 200] and c.best.tolist() == [[1.0] * 8]
    assert c.average_recall().tolist() == [1.0] * 8 and c.recall(1.0).tolist() == [1.0] * 8
    half = coverage_at(found((0, 0, WHOLE, 0.9)), truth((0, 0, LEFT)), (1,))
    assert half.recall().tolist() == [1.0] and half.recall(0.51).tolist() == [0.0]
    assert half.average_recall().tolist() == [0.0]
    with pytest.raises(MetricError, match="numbers of 1 or more"):
        coverage_at(found((0, 0, WHOLE, 0.9)), truth((0, 0, LEFT)), (0, 1))


@pytest.mark.parametrize("threshold", [0, -0.1, 1.01])
def test_thresholds_that_are_none(threshold):
    with pytest.raises(MetricError, match="iou_threshold="):
        match(found((0, 0, WHOLE, 0.9)), truth((0, 0, LEFT)), 0, threshold)
    assert match(found((0, 0, LEFT, 0.9)), truth((0, 0, LEFT)), 0, 1).tp.all()


def test_localisation_by_hand():
    summary = localisation([0.5, 0.4, 1.0, 0.9], [True, False, True, True], [3, 40, 5, 7], [True, True, True, False])
    assert summary.to_dict() == dict(
        n=3,
        hit_rate=pytest.approx(2 / 3),
        mean_iou=pytest.approx(1.9 / 3),
        mean_trigger_iou=0.75,
        trigger_rate=pytest.approx(2 / 3),
        mean_steps=16.0,
        median_steps=5.0,
        n_negatives=1,
        trigger_rate_negatives=1.0,
    )
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(MetricError, match="expected a number in"):
            localisation([bad], [True], [1])
    assert localisation([float("nan")], [True], [1], [False]).n == 0
