"Intervals over seeds, and the paired bootstrap: a plain loop, and splits that were really resampled"

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from locrl.data.voc import GroundTruth
from locrl.evaluation.average_precision import Detections, MetricError, evaluate_detections
from locrl.evaluation.statistics import Ranked, _localised, _resampled, interval, iqm, paired
from evaluation.test_average_precision import random_set

CLASSES = ["a", "b", "c"]


def test_interval_by_hand():
    # mean 2, standard deviation 1, t(.975, 2) = 4.3027: half width 4.3027/sqrt(3)
    i = interval([1, 2, 3])
    assert i["mean"] == 2 and i["high"] - 2 == pytest.approx(4.30265273 / 3**0.5) == 2 - i["low"]
    assert interval([4]) == {"mean": 4} == iqm([4])
    assert interval([1, 2, 3], level=0.5)["high"] < i["high"]


def test_bad_values():
    for f in (interval, iqm):
        with pytest.raises(ValueError, match="no values"):
            f([])
        with pytest.raises(ValueError, match="nan"):
            f([1, np.nan])
        with pytest.raises(ValueError, match="level=95"):
            f([1, 2], level=95)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=1, max_size=8))
def test_iqm_is_the_trimmed_mean_and_lies_in_its_interval_range(scores):
    i = iqm(scores, resamples=50)
    flat = sorted(np.ravel(scores))
    cut = len(flat) // 4
    assert i["mean"] == pytest.approx(np.mean(flat[cut : len(flat) - cut]))
    if len(scores) > 1:
        assert min(flat) - 1e-12 <= i["low"] <= i["high"] <= max(flat) + 1e-12


def test_iqm_against_a_plain_loop():
    rng, scores = np.random.default_rng(1), np.random.default_rng(0).normal(0, 1, (6, 3)) + [0, 3, 9]
    means = []
    for _ in range(4000):
        drawn = [scores[rng.integers(0, 6), task] for task in range(3) for _ in range(6)]
        means.append(stats.trim_mean(drawn, 0.25))
    i = iqm(scores, resamples=4000)
    assert (i["low"], i["high"]) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.06)


def resampled(det, gt, drawn):
    "The split in which image `i` is image `drawn[i]` of the old one; copies of a detection keep equal scores"

    def take(x):
        return [np.flatnonzero(np.asarray(x) == i) for i in drawn]

    d, g = take(det.image), take(gt.image)

    def image(rows):
        return np.repeat(np.arange(len(drawn)), [len(r) for r in rows])

    rows, objects = np.concatenate(d), np.concatenate(g)
    new = Detections(image(d), det.label[rows], det.boxes[rows], det.scores[rows])
    return new, SimpleNamespace(
        image=image(g), label=gt.label[objects], boxes=gt.boxes[objects], difficult=gt.difficult[objects]
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 0.5), st.sampled_from([0.3, 0.5, 0.75]))
def test_weights_equal_a_split_that_was_resampled(seed, difficult, threshold):
    det, gt = random_set(seed, difficult=difficult)
    drawn = np.random.default_rng(seed).integers(0, 8, 8)
    weights = np.stack([np.ones(8, int), np.bincount(drawn, minlength=8)])
    again = resampled(det, gt, drawn)
    results = [evaluate_detections(*pair, CLASSES, threshold) for pair in ((det, gt), again)]
    for label, name in enumerate(CLASSES):
        for row, aps in enumerate(np.transpose(Ranked.of(det, gt, label, threshold).ap(weights))):
            c = results[row][name]
            if c.npos:
                assert aps == pytest.approx((c.ap11, c.ap_area), abs=1e-12)
            else:
                assert np.isnan(aps).all()
    ours = _resampled(det, gt, 3, weights, threshold)
    for row, r in enumerate(results):
        if r.map11 is not None:
            assert (ours["map11"][row], ours["map_area"][row]) == pytest.approx((r.map11, r.map_area), abs=1e-12)
        best = _localised(*((det, gt), again)[row])[1]
        if len(best):
            assert (ours["hit_rate"][row], ours["mean_iou"][row]) == pytest.approx(
                (np.mean(best >= threshold), best.mean()), abs=1e-12
            )


def test_localised_takes_the_best_scored_box_and_no_difficult_object():
    gt = SimpleNamespace(
        image=np.array([0, 0, 1, 2]),
        label=np.array([0, 0, 0, 1]),
        difficult=np.array([True, False, False, False]),
        boxes=np.array([[0, 0, 0.5, 1], [0.5, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]], np.float32),
    )
    det = Detections([0, 0, 1], [0, 0, 0], [[0, 0, 0.5, 1], [0.5, 0, 1, 1], [0, 0, 0.5, 1]], [0.9, 0.1, 0.5])
    image, best = _localised(det, gt)
    assert image.tolist() == [0, 1, 2] and best == pytest.approx(
        [0, 0.5, 0]
    )  # image 2 holds class 1, without a detection
    assert _localised(Detections([], [], [], []), gt)[1].tolist() == [0, 0, 0]


def test_paired_sees_what_is_there():
    rng, n = np.random.default_rng(0), 600
    gt = SimpleNamespace(
        image=np.arange(n),
        label=np.zeros(n, int),
        difficult=np.zeros(n, bool),
        boxes=np.tile([0, 0, 1, 1], (n, 1)).astype(np.float32),
    )
    luck, scores = rng.random(n), rng.random(n)

    def make(q):
        return Detections(
            np.arange(n), np.zeros(n, int), np.where((luck < q)[:, None], [0, 0, 1, 1], [0, 0, 0.3, 1]), scores
        )

    p = paired(make(0.5), make(0.6), gt, ["a"], n)
    d = p["hit_rate"]
    assert d.difference == pytest.approx(np.mean((luck >= 0.5) & (luck < 0.6))) and d.improvement == 1 and d.low > 0
    # a share q of n images drawn anew: the interval of a paired difference of shares is that of one share
    assert d.high - d.low == pytest.approx(2 * 1.96 * (d.difference * (1 - d.difference) / n) ** 0.5, rel=0.1)
    back = paired(make(0.6), make(0.5), gt, ["a"], n)["hit_rate"]
    assert back.improvement == 0 and back.difference == -d.difference
    assert p.to_dict()["metrics"]["map11"]["a"] == evaluate_detections(make(0.5), gt, ["a"]).map11
    assert "P(b > a)" in repr(p) and "<table" in p._repr_html_()


def test_paired_with_itself_is_a_tie():
    gt = GroundTruth(
        np.arange(4),
        np.zeros(4, int),
        np.tile(np.float32([0.1, 0.1, 0.6, 0.6]), (4, 1)),
        np.zeros(4, bool),
        np.zeros(4, bool),
    )
    det = Detections(
        np.arange(4), np.zeros(4, int), np.float32([[0.1, 0.1, 0.6, 0.6], [0.5, 0.5, 0.9, 0.9]] * 2), np.arange(4.0)
    )
    for d in paired(det, det, gt, ("cat",), 4, resamples=50).metrics.values():
        assert (d.difference, d.low, d.high, d.improvement) == (0, 0, 0, 0.5)


def test_paired_averages_seeds():
    det, gt = random_set(0)
    other, _ = random_set(1)
    p = paired([det, other], [det, det], gt, CLASSES, 8, resamples=20)["map_area"]
    aps = [evaluate_detections(d, gt, CLASSES).map_area for d in (det, other)]
    assert p.a == pytest.approx(np.mean(aps)) and p.b == pytest.approx(aps[0])


def test_paired_bad_input():
    det, gt = random_set(0)
    for bad, words in [
        ((det, det, gt, CLASSES, 3), "3 images"),
        (([], det, gt, CLASSES, 8), "a is empty"),
        ((det, det, gt, ["a"], 8), "label"),
    ]:
        with pytest.raises(MetricError, match=words):
            paired(*bad)
    hard = SimpleNamespace(**vars(gt) | {"difficult": np.ones(len(gt.image), bool)})
    with pytest.raises(MetricError, match="no object counts"):
        paired(det, det, hard, CLASSES, 8)
    nothing = Detections([], [], [], [])
    assert paired(nothing, det, gt, CLASSES, 8, resamples=20)["map11"].a == 0


def test_two_seeds_have_an_interval():
    # mean 2, standard deviation sqrt(2), t(.975, 1) = 12.7062: half width 12.7062
    i = interval([1, 3])
    assert i["mean"] == 2 and i["high"] - 2 == pytest.approx(12.7062047) == 2 - i["low"]
    assert iqm([1, 3]).keys() == {"mean", "low", "high"}


@pytest.mark.parametrize("level", [0, 1, -0.5, 1.5, float("nan")])
def test_levels_that_are_none(level):
    for f in (interval, iqm):
        with pytest.raises(ValueError, match="level="):
            f([1, 2, 3], level=level)


def test_iqm_by_hand():
    # 8 numbers: the lowest and the highest two are left out
    assert iqm(np.arange(8).reshape(4, 2))["mean"] == 3.5
    assert iqm([[0, 100], [2, 3], [1, 2], [-50, 4]])["mean"] == 2


def test_a_draw_of_one_image_is_that_image():
    det, gt = random_set(7, n_classes=3, n_images=8, n_objects=10, difficult=0.2)
    found = _resampled(det, gt, 3, np.eye(8, dtype=np.int32), 0.5)
    image, best = _localised(det, gt)
    assert len(image) > len(set(image)) < 8  # some have one query, some have several, one has none
    for i in range(8):
        mine = best[image == i]
        assert found["mean_iou"][i] == pytest.approx(mine.mean() if len(mine) else np.nan, nan_ok=True)
        assert found["hit_rate"][i] == pytest.approx((mine >= 0.5).mean() if len(mine) else np.nan, nan_ok=True)
    ranked = Ranked.of(det, gt, 0)
    assert ranked in {ranked} and ranked != Ranked.of(det, gt, 0)  # arrays are not compared
