"Kinds of mistakes: each worked by hand, and what must hold for any detections"

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from locrl.evaluation.errors import FIXES, KINDS, STATES, analyse_errors
from locrl.evaluation.average_precision import Detections, MetricError, evaluate_detections, match
from evaluation.test_average_precision import CORNER, LEFT, RIGHT, WHOLE, found, random_set, truth

CLASSES = ["a", "b", "c"]


def kinds(*args, **kwargs):
    return [KINDS[k] if k >= 0 else "-" for k in analyse_errors(*args, **kwargs).kind]


def test_each_kind():
    gt = truth((0, 0, LEFT), (0, 1, RIGHT))
    det = found(
        (0, 0, LEFT, 0.9),
        (0, 0, LEFT, 0.8),
        (0, 0, [0, 0, 0.4, 0.4], 0.7),
        (0, 0, RIGHT, 0.6),
        (0, 0, [0.7, 0, 1, 0.5], 0.5),
        (0, 0, CORNER, 0.4),
        (1, 0, LEFT, 0.3),
    )
    assert kinds(det, gt, CLASSES[:2]) == ["-", *KINDS, "background"]


def test_own_class_comes_first():
    # IoU .2 with the cat of its own class, 1 with the dog: a badly placed cat; a free-standing box is a confusion
    gt = truth((0, 0, [0, 0, 0.2, 1]), (0, 1, WHOLE), (1, 1, WHOLE))
    assert kinds(found((0, 0, WHOLE, 0.9), (1, 0, WHOLE, 0.8)), gt, CLASSES[:2]) == ["localisation", "confusion"]


def test_difficult_objects_are_neither_errors_nor_missed():
    gt = truth((0, 0, LEFT, True), (1, 0, WHOLE))
    e = analyse_errors(found((0, 0, LEFT, 0.9), (0, 0, LEFT, 0.8), (0, 0, [0, 0, 0.4, 0.4], 0.7)), gt, ["a"])
    assert [KINDS[k] if k >= 0 else "-" for k in e.kind] == ["-", "-", "localisation"]
    assert [STATES[s] for s in e.state] == ["never proposed"] and e.objects.tolist() == [1]
    # moved onto the difficult object, the box is ignored: nothing is gained
    assert e.gain["localisation"]["a"] == 0


def test_what_became_of_each_object():
    gt = truth(
        (0, 0, LEFT), (1, 0, WHOLE), (1, 0, [0, 0, 1, 0.9]), (2, 0, LEFT), (3, 0, LEFT), (4, 0, LEFT), (3, 1, CORNER)
    )
    det = found(
        (0, 0, LEFT, 0.9), (1, 0, WHOLE, 0.8), (1, 0, WHOLE, 0.7), (2, 0, [0, 0, 0.4, 0.4], 0.6), (3, 1, LEFT, 0.5)
    )
    e = analyse_errors(det, gt, CLASSES[:2])
    assert [STATES[s] for s in e.state] == [
        "found",
        "found",
        "crowded",
        "mislocated",
        "confused",
        "never proposed",
        "never proposed",
    ]
    # two objects, the second found at rank 3, after the two that count
    e = analyse_errors(
        found((0, 0, LEFT, 0.9), (2, 0, LEFT, 0.8), (1, 0, WHOLE, 0.7)), truth((0, 0, LEFT), (1, 0, WHOLE)), ["a"]
    )
    assert [STATES[s] for s in e.state] == ["found", "ranked low"]


def test_what_each_repair_is_worth():
    # Two objects; scores down: a misplaced box, a hit, its duplicate. Precision 1/2 at recall 1/2: area AP 1/4.
    gt = truth((0, 0, LEFT), (1, 0, WHOLE))
    e = analyse_errors(found((0, 0, [0, 0, 0.4, 0.4], 0.9), (1, 0, WHOLE, 0.8), (1, 0, WHOLE, 0.7)), gt, ["a"])
    assert e.ap == {"a": 0.25}
    assert {f: g["a"] for f, g in e.gain.items()} == pytest.approx(
        {
            "localisation": 0.75,  # TP, TP, duplicate
            "duplicate": 0,
            "confusion": 0,
            "both": 0,
            "background": 0,
            "missed": 0,  # the object not found is explained by the misplaced box
            "false positives": 0.25,  # one of two found, nothing wrong
            "false negatives": 0.25,  # one object, found at rank 2
            "everything": 0.75,
        }
    )


def test_two_repaired_boxes_on_one_object_count_once():
    gt = truth((0, 0, LEFT))
    e = analyse_errors(found((0, 0, [0, 0, 0.4, 0.4], 0.9), (0, 0, [0, 0.5, 0.4, 1], 0.8)), gt, ["a"])
    assert e.ap["a"] == 0 and e.gain["localisation"]["a"] == 1


def test_confusion_matrix_and_groups():
    gt = truth((0, 0, LEFT), (0, 1, RIGHT), (1, 1, [0, 0, 0.05, 0.1]), (2, 2, LEFT), (2, 2, RIGHT))
    e = analyse_errors(found((0, 0, RIGHT, 0.9), (0, 2, LEFT, 0.8)), gt, CLASSES)
    assert e.confusions().tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]
    # areas 0.5 four times, 0.005 once
    assert {k: sum(v.values()) for k, v in e.states("size").items()} == {"XS": 1, "L": 4}
    assert {k: sum(v.values()) for k, v in e.states("instances").items()} == {"1": 3, "2": 2}
    with pytest.raises(MetricError, match="size, instances"):
        e.states("truncated")


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 0.6), st.sampled_from([None, 8]))
def test_for_any_detections(seed, difficult, grid):
    det, gt = random_set(seed, difficult=difficult, grid=grid)
    e, r = analyse_errors(det, gt, CLASSES), evaluate_detections(det, gt, CLASSES)
    fp = np.zeros(len(det), bool)
    for c in range(3):
        m = match(det, gt, c)
        fp[m.index] = m.fp
        # found are those with a true positive
        mine = e.state[e.gt_label == c]
        assert (mine < STATES.index("crowded")).sum() == m.tp.sum() and len(mine) == m.npos
    assert ((e.kind >= 0) == fp).all() and e.kind.max(initial=-1) < len(
        KINDS
    )  # the kinds partition the false positives
    assert sum(sum(c.values()) for c in e.counts().values()) == fp.sum()
    for c in r.per_class:
        if not c.npos:
            assert c.name not in e.ap
            continue
        assert e.ap[c.name] == pytest.approx(c.ap_area, abs=1e-12)
        assert e.ap[c.name] + e.gain["everything"][c.name] == pytest.approx(1, abs=1e-12)
        assert e.ap[c.name] + e.gain["false positives"][c.name] == pytest.approx(c.recall_ceiling, abs=1e-12)
        # taking away what is wrong never hurts (a confusion may bring a sure box of another class, so that one may)
        for fix in ("duplicate", "both", "background", "missed", "false negatives", "localisation"):
            assert e.gain[fix][c.name] >= -1e-12
    for name in e.groups:
        assert sum(sum(v.values()) for v in e.states(name).values()) == len(e.objects)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_order_changes_nothing(seed):
    det, gt = random_set(seed, difficult=0.2)
    order = np.random.default_rng(seed).permutation(len(det))
    a, b = analyse_errors(det, gt, CLASSES), analyse_errors(det[order], gt, CLASSES)
    assert a.to_dict() == b.to_dict() and (a.kind[order] == b.kind).all()


def test_nothing_at_all():
    nothing = Detections([], [], [], [])
    e = analyse_errors(nothing, truth((0, 0, WHOLE)), ["a", "b"])
    assert e.ap == {"a": 0} and e.gain["missed"] == {"a": 1} and [STATES[s] for s in e.state] == ["never proposed"]
    e = analyse_errors(found((0, 0, WHOLE, 0.5)), truth(), ["a"])
    assert e.mean_gain() == {} and kinds(found((0, 0, WHOLE, 0.5)), truth(), ["a"]) == ["background"]
    assert "background" in repr(e)
    with pytest.raises(MetricError, match="background=0.5"):
        analyse_errors(nothing, truth(), ["a"], background=0.5)
    with pytest.raises(MetricError, match="label 1"):
        analyse_errors(found((0, 1, WHOLE, 0.5)), truth(), ["a"])


def test_display():
    import json

    det, gt = random_set(0)
    e = analyse_errors(det, gt, CLASSES, kind="11point")
    assert json.loads(json.dumps(e.to_dict())) == e.to_dict()
    assert all(f in repr(e) for f in FIXES if f != "everything") and "<table" in e._repr_html_()
    assert len(e.figure().axes) == 4
