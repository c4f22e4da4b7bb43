"""Properties of the geometry that must hold for any box and any sequence of actions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from locrl.data.boxes import (
    ACTIONS,
    FULL,
    PAPER_ACTIONS,
    TRIGGER,
    Moves,
    area,
    centre_distance,
    iou,
    mirror,
    pairwise_iou,
)


@st.composite
def boxes(draw, min_side=0.02):
    x, y = draw(st.floats(0, 1 - min_side)), draw(st.floats(0, 1 - min_side))
    w, h = draw(st.floats(min_side, 1)), draw(st.floats(min_side, 1))
    return np.array([x, y, min(1, x + w), min(1, y + h)], dtype=np.float32)


moves = st.builds(
    Moves,
    alpha=st.floats(0.05, 0.5),
    fine=st.floats(0.02, 0.3),
    border=st.sampled_from(["clip", "keep_size"]),
    n_actions=st.just(10),
)


@given(moves, boxes(), st.lists(st.integers(0, 9), max_size=60))
def test_any_sequence_stays_inside_and_valid(m, box, actions):
    for a in actions:
        box = m.apply(box, a)
        assert (box >= 0).all() and (box <= 1).all()
        assert (box[2:] - box[:2] >= m.min_side - 1e-6).all()


@given(moves, boxes())
def test_all_is_apply_for_every_action(m, box):
    np.testing.assert_array_equal(m.all(box), np.stack([m.apply(box, a) for a in range(10)]))


@given(boxes(), boxes())
def test_iou_is_symmetric_and_bounded(a, b):
    assert 0 <= iou(a, b) <= 1 + 1e-6
    np.testing.assert_allclose(iou(a, b), iou(b, a), rtol=1e-5)
    np.testing.assert_allclose(iou(a, a), 1, rtol=1e-4)
    np.testing.assert_allclose(centre_distance(a, b), centre_distance(b, a), rtol=1e-5, atol=1e-6)  # sums of float32


@given(boxes(), boxes())
def test_iou_against_the_textbook_loop(a, b):
    """The textbook loop over two boxes, in float64."""
    a, b = a.astype(float), b.astype(float)
    inter = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    np.testing.assert_allclose(iou(a, b), inter / union, atol=1e-12)


@given(moves, st.lists(boxes(), min_size=1, max_size=5), st.integers(0, 9))
def test_back_ends_agree(m, many, action):
    many = np.stack(many)
    actions = np.full(len(many), action)
    np.testing.assert_allclose(
        m.apply(many, actions), m.apply(torch.tensor(many), torch.tensor(actions)).numpy(), atol=1e-6
    )
    np.testing.assert_allclose(
        pairwise_iou(many, many), pairwise_iou(torch.tensor(many), torch.tensor(many)).numpy(), atol=1e-5
    )
    np.testing.assert_allclose(area(many), area(torch.tensor(many)).numpy(), atol=1e-6)


@given(boxes(min_side=0.1))
@settings(max_examples=50)
def test_bigger_nearly_undoes_smaller(box):
    m = Moves()
    back = m.apply(m.apply(box, m.actions.index("smaller")), m.actions.index("bigger"))
    assert iou(box, back) > 0.9


def test_keep_size_keeps_the_size():
    m = Moves(border="keep_size")
    box = np.array([0.7, 0.1, 0.95, 0.4], dtype=np.float32)
    for action in range(4):
        np.testing.assert_allclose(area(m.apply(box, action)), area(box), rtol=1e-5)
    np.testing.assert_array_equal(m.apply(FULL, 0), FULL)


# By hand, and against plain loops that share no code: a property alone lets a wrong number pass

BOX = np.array([0.4, 0.2, 0.6, 0.6], np.float32)  # .2 wide, .4 high: with alpha .2 a step is .04 and .08
BY_HAND = dict(
    right=(0.44, 0.2, 0.64, 0.6),
    left=(0.36, 0.2, 0.56, 0.6),
    up=(0.4, 0.12, 0.6, 0.52),
    down=(0.4, 0.28, 0.6, 0.68),
    bigger=(0.38, 0.16, 0.62, 0.64),
    smaller=(0.42, 0.24, 0.58, 0.56),
    fatter=(0.4, 0.24, 0.6, 0.56),
    taller=(0.42, 0.2, 0.58, 0.6),
    trigger=(0.4, 0.2, 0.6, 0.6),
    fine_smaller=(0.41, 0.22, 0.59, 0.58),
)


@pytest.mark.parametrize("border", ["clip", "keep_size"])
def test_every_move_by_hand(border):
    assert tuple(BY_HAND) == ACTIONS and ACTIONS[:9] == PAPER_ACTIONS and ACTIONS[TRIGGER] == "trigger"
    m = Moves(border=border)
    assert m == Moves(alpha=0.2, fine=0.1, min_side=0.01, border=border, n_actions=10)
    for k, (name, want) in enumerate(BY_HAND.items()):
        np.testing.assert_allclose(m.apply(BOX, k), want, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(m.all(BOX), list(BY_HAND.values()), atol=1e-6)
    assert Moves(n_actions=9).actions == PAPER_ACTIONS and m.actions == ACTIONS


@given(moves, boxes(), st.integers(0, 9), st.floats(0.01, 0.3))
def test_moves_against_a_plain_loop(m, box, action, min_side):
    m = replace(m, min_side=min_side)
    x1, y1, x2, y2 = (float(v) for v in box)
    w, h = x2 - x1, y2 - y1
    step = m.fine if ACTIONS[action] == "fine_smaller" else m.alpha
    change = {
        "right": (w, 0, w, 0),
        "left": (-w, 0, -w, 0),
        "up": (0, -h, 0, -h),
        "down": (0, h, 0, h),
        "bigger": (-w / 2, -h / 2, w / 2, h / 2),
        "smaller": (w / 2, h / 2, -w / 2, -h / 2),
        "fatter": (0, h / 2, 0, -h / 2),
        "taller": (w / 2, 0, -w / 2, 0),
        "trigger": (0, 0, 0, 0),
        "fine_smaller": (w / 2, h / 2, -w / 2, -h / 2),
    }[ACTIONS[action]]
    new = [v + step * c for v, c in zip((x1, y1, x2, y2), change)]
    if m.border == "keep_size":
        for low, high in ((0, 2), (1, 3)):
            size = min(new[high] - new[low], 1)
            new[low] = min(max(new[low], 0), 1 - size)
            new[high] = new[low] + size
    new = [min(max(v, 0), 1) for v in new]
    sides = new[2] - new[0], new[3] - new[1]
    if all(abs(side - min_side) > 1e-5 for side in sides):  # closer than this, float32 decides
        want = new if min(sides) >= min_side else (x1, y1, x2, y2)
        np.testing.assert_allclose(m.apply(box, action), want, atol=2e-6)


def test_mirror_area_and_distance_by_hand():
    np.testing.assert_allclose(mirror(BOX[None] * [1, 1, 0.9, 1]), [[0.46, 0.2, 0.6, 0.6]], atol=1e-6)
    np.testing.assert_allclose(mirror(torch.tensor([0.1, 0.2, 0.4, 0.8])), [0.6, 0.2, 0.9, 0.8], atol=1e-6)
    assert area(BOX) == pytest.approx(0.08) and area(FULL) == 1
    assert centre_distance(BOX, np.array([0.7, 0.6, 0.9, 1.0])) == pytest.approx(0.5)  # (.5, .4) and (.8, .8)
    assert iou(np.zeros(4), np.zeros(4)) == 0
    assert iou(FULL, np.array([0, 0, 0.5, 0.5])) == 0.25


@pytest.mark.parametrize("name", ["alpha", "fine", "min_side"])
@pytest.mark.parametrize("value", [0, 1, -0.1, 1.1, float("nan")])
def test_shares_lie_between_0_and_1(name, value):
    with pytest.raises(ValueError, match=f"{name}=.*must lie between 0 and 1"):
        Moves(**{name: value})
    assert Moves(**{name: 0.999}) and Moves(**{name: 0.001})


@pytest.mark.parametrize("bad, words", [(dict(n_actions=8), "n_actions=8"), (dict(border="wrap"), "border='wrap'")])
def test_other_settings_that_cannot_be(bad, words):
    with pytest.raises(ValueError, match=words):
        Moves(**bad)
    with pytest.raises(ValueError, match="n_actions=11"):
        Moves(n_actions=11)


def test_a_side_may_be_as_short_as_allowed():
    m = Moves(alpha=0.5, min_side=0.25)
    assert m.apply(np.array([0, 0, 0.5, 0.5]), ACTIONS.index("smaller")).tolist() == [0.125, 0.125, 0.375, 0.375]
    small = np.array([0, 0, 0.25, 0.5])
    assert m.apply(small, ACTIONS.index("smaller")).tolist() == small.tolist()
