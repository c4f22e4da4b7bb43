"""Properties of the geometry that must hold for any box and any sequence of actions."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from locrl.data.boxes import FULL, Moves, area, centre_distance, iou, pairwise_iou


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
