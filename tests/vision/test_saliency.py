"""Last-block attention, absolute evidence, the 16x16 map and the saliency-threshold box."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from locrl.vision.saliency import (
    METHODS,
    attention_weights,
    cosine_evidence,
    keeps_residual,
    last_block_attention,
    presence_score,
    saliency_box,
    to_saliency,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("lead", [(), (3,), (2, 4)])
@pytest.mark.parametrize("method", METHODS)
def test_attention_against_numpy(lead, method):
    q, k, v = randn(3, *lead, 7, 5)

    def softmax(a, b):
        e = np.exp(np.einsum("...id,...jd->...ij", a.numpy(), b.numpy()) / np.sqrt(5))
        return e / e.sum(-1, keepdims=True)

    w = dict(
        vanilla=lambda: softmax(q, k),
        sclip=lambda: softmax(q, q) + softmax(k, k),
        clearclip=lambda: softmax(q, q),
        maskclip=lambda: np.eye(7),
    )[method]()
    np.testing.assert_allclose(last_block_attention(q, k, v, method), w @ v.numpy(), atol=1e-5)
    np.testing.assert_allclose(attention_weights(q, k, method), np.broadcast_to(w, (*lead, 7, 7)), atol=1e-5)


def test_attention_refuses_unknown_method():
    q = randn(4, 3)
    for f in (
        lambda: attention_weights(q, q, "nope"),
        lambda: last_block_attention(q, q, q, "nope"),
        lambda: keeps_residual("nope"),
    ):
        with pytest.raises(ValueError, match="nope.*sclip"):
            f()
    assert [m for m in METHODS if not keeps_residual(m)] == ["clearclip"]


def test_evidence_of_a_class_ignores_the_other_classes_asked():
    cosine, bank = randn(2, 4, 3, 3) * 0.1, randn(2, 6, 3, 3, seed=1) * 0.1
    together = cosine_evidence(cosine, bank, 100.0)
    alone = torch.cat([cosine_evidence(cosine[:, [c]], bank, 100.0) for c in range(4)], 1)
    torch.testing.assert_close(together, alone)
    assert ((together >= 0) & (together <= 1)).all()


def test_absent_class_is_cold_present_class_is_hot():
    bank = torch.full((1, 5, 4, 4), 0.22)
    cosine = torch.full((1, 2, 4, 4), 0.15)
    cosine[0, 0, 1, 1] = 0.30
    seen = cosine_evidence(cosine, bank, 100.0)
    assert seen[0, 0, 1, 1] > 0.99 and seen[0, 1].max() < 1e-3
    assert to_saliency(seen)[0, 1].max() < 1e-3


def test_evidence_survives_extreme_scales():
    seen = cosine_evidence(torch.ones(1, 1, 2, 2), -torch.ones(1, 3, 2, 2), 1e4)
    assert torch.isfinite(seen).all() and (seen == 1).all()


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.just(1), st.just(2), st.integers(1, 40), st.integers(1, 40)),
        elements=st.floats(0, 1, width=32),
    )
)
@settings(max_examples=60)
def test_saliency_stays_within_the_evidence(evidence):
    maps = to_saliency(evidence).numpy()
    assert maps.shape == (1, 2, 16, 16)
    low, high = evidence.min((2, 3)), evidence.max((2, 3))
    assert (maps.min((2, 3)) >= low - 1e-5).all() and (maps.max((2, 3)) <= high + 1e-5).all()


def test_saliency_input():
    assert to_saliency(torch.full((1, 1, 16, 16), 1.0005)).max() == 1  # half-float rounding
    assert to_saliency(torch.rand(1, 1, 14, 14).half()).dtype == torch.float32
    for bad in (1.1, -0.1, float("nan")):
        with pytest.raises(ValueError, match="evidence"):
            to_saliency(torch.full((1, 1, 4, 4), bad))


def test_presence_is_monotone_and_absolute():
    evidence = torch.rand(5, 14, 14, generator=torch.Generator().manual_seed(0))
    score = presence_score(evidence)
    assert score.shape == (5,) and (score <= evidence.amax((1, 2))).all() and (score >= evidence.mean((1, 2))).all()
    torch.testing.assert_close(presence_score(evidence * 0.5), score * 0.5)
    torch.testing.assert_close(
        presence_score(torch.arange(100.0).view(1, 10, 10) / 99, top=0.05), torch.tensor([97 / 99])
    )  # the mean of 95 to 99
    torch.testing.assert_close(presence_score(evidence[:, :1, :1]), evidence[:, 0, 0])


def box_by_loop(m, threshold):
    "One map at a time, as one would write it down"
    h, w = m.shape
    if m.max() <= 0:
        return [0, 0, 1, 1]
    groups, n = ndimage.label(m >= np.float32(threshold) * m.max(), structure=np.ones((3, 3)))
    ys, xs = np.nonzero(groups == 1 + np.argmax([(groups == g).sum() for g in range(1, n + 1)]))
    return [xs.min() / w, ys.min() / h, (xs.max() + 1) / w, (ys.max() + 1) / h]


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.9, 1.0])
def test_box_against_loop(threshold):
    maps = np.random.default_rng(0).random((200, 9, 13), dtype=np.float32)
    maps[::7] = 0
    np.testing.assert_allclose(saliency_box(maps, threshold), [box_by_loop(m, threshold) for m in maps], atol=1e-6)


def test_box_keeps_shape_and_refuses_nonsense():
    assert saliency_box(np.zeros((2, 3, 16, 16))).shape == (2, 3, 4)
    assert saliency_box(np.zeros((0, 16, 16))).shape == (0, 4)
    assert saliency_box(np.ones((16, 16))).tolist() == [0, 0, 1, 1]
    for bad in (0, -1, 1.01):
        with pytest.raises(ValueError, match="threshold"):
            saliency_box(np.ones((4, 4)), bad)
    with pytest.raises(ValueError, match="NaN"):
        saliency_box(np.full((4, 4), np.nan))


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("top", [0.02, 0.1, 0.25, 1])
def test_presence_against_a_plain_loop(shape, top):
    evidence = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    found = presence_score(evidence, top)
    assert found.shape == shape[:-2]
    count = dict({0.02: 1, 0.1: 2, 0.25: 5, 1: 20})[top]
    for index in np.ndindex(*shape[:-2]):
        hottest = sorted(evidence[index].flatten().tolist(), reverse=True)[:count]
        assert float(found[index]) == pytest.approx(sum(hottest) / count, abs=1e-6)


@pytest.mark.parametrize("top", [0, -0.1, 1.01])
def test_presence_refuses_other_shares(top):
    with pytest.raises(ValueError, match="fraction of the cells"):
        presence_score(torch.zeros(2, 2), top)


def test_evidence_against_part_of_the_bank_by_hand():
    # one cell; class 0 competes with texts 0 and 1, class 1 with text 2 alone
    cosine = torch.tensor([0.3, 0.2]).view(2, 1, 1)
    bank = torch.tensor([0.1, 0.25, 0.2]).view(3, 1, 1)
    keep = torch.tensor([[True, True, False], [False, False, True]])
    found = cosine_evidence(cosine, bank, 10.0, keep).flatten().tolist()
    e = np.exp(10 * np.array([0.3, 0.1, 0.25]))
    assert found == pytest.approx([e[0] / e.sum(), 0.5])
    everything = np.exp(10 * np.array([0.3, 0.1, 0.25, 0.2]))
    assert cosine_evidence(cosine, bank, 10.0)[0].item() == pytest.approx(everything[0] / everything.sum())
    with pytest.raises(ValueError, match="no member of the bank left"):
        cosine_evidence(cosine, bank, 10.0, keep & torch.tensor([[True], [False]]))


@pytest.mark.parametrize("value, fine", [(-0.0005, True), (1.0005, True), (-0.002, False), (1.002, False)])
def test_evidence_may_leave_its_range_by_rounding_alone(value, fine):
    evidence = torch.full((1, 1, 4, 4), value)
    if fine:
        assert to_saliency(evidence).unique().item() == pytest.approx(min(max(value, 0), 1))
    else:
        with pytest.raises(ValueError, match="must lie in"):
            to_saliency(evidence)


def test_a_map_of_the_right_size_stays_as_it_is():
    evidence = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(to_saliency(evidence), evidence)
    assert to_saliency(evidence, 8).shape == (2, 3, 8, 8)
    assert to_saliency(evidence[..., :8]).shape == (2, 3, 16, 16)


def test_the_box_of_a_map_by_hand():
    heat = np.zeros((2, 4, 5), np.float32)
    heat[0, 1:3, 1:3] = 1  # four cells
    heat[0, 0, 4] = 1  # one more, apart
    np.testing.assert_allclose(saliency_box(heat), [[0.2, 0.25, 0.6, 0.75], [0, 0, 1, 1]])
    heat[0, 3, 3] = 0.5  # touches by a corner, and is just hot enough
    np.testing.assert_allclose(saliency_box(heat)[0], [0.2, 0.25, 0.8, 1])
    np.testing.assert_allclose(saliency_box(heat, 0.51)[0], [0.2, 0.25, 0.6, 0.75])
