"""Every part of an observation against a plain loop over a bank made by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from locrl.envs.observation import HISTORY, KEY_SIZE, MAX_STEPS, ObservationConfig, grown, observe

DIM = 3


def bank(n=4, classes=2, seed=0):
    "Random maps; the pooled feature of a region is its own corners' sum, x1 and y2, so that regions are told apart"
    g = torch.Generator().manual_seed(seed)

    def pool(image, boxes):
        return torch.stack([boxes.sum(-1) + image[:, None], boxes[..., 0], boxes[..., 3]], -1)

    return SimpleNamespace(saliency=torch.rand(n, classes, 16, 16, generator=g), device="cpu", dim=DIM, pool=pool)


def key(box=(0, 0, 1, 1), image=0, label=0, step=0, past=()):
    "One state key (1, 17)"
    row = [image, label, *box, step, *past, *[-1] * (HISTORY - len(past))]
    assert len(row) == KEY_SIZE
    return torch.tensor([row], dtype=torch.float32)


def only(**parts):
    "Saliency of the picture and what is asked for: an observation has to see something"
    return ObservationConfig(embedding=False, history=False, **parts)


def bilinear(field, x, y):
    "The value of `field` (16, 16) at (x, y) in [0, 1] of the picture: a plain loop over four cells, zero outside"
    u, v = 16 * x - 0.5, 16 * y - 0.5
    total = 0.0
    for row in (int(np.floor(v)), int(np.floor(v)) + 1):
        for column in (int(np.floor(u)), int(np.floor(u)) + 1):
            if 0 <= row < 16 and 0 <= column < 16:
                total += float(field[row, column]) * (1 - abs(v - row)) * (1 - abs(u - column))
    return total


def test_the_local_map_of_the_whole_picture_is_the_map():
    b = bank()
    seen = observe(b, key(image=2, label=1), only(saliency=False, local_saliency=16, reach=1.0))
    np.testing.assert_allclose(seen.view(16, 16), b.saliency[2, 1], atol=1e-6)


@pytest.mark.parametrize("x, y", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_the_local_map_of_a_quarter_is_that_quarter_row_by_row(x, y):
    b = bank()
    box = (x / 2, y / 2, x / 2 + 0.5, y / 2 + 0.5)
    seen = observe(b, key(box, 1), only(saliency=False, local_saliency=8, reach=1.0))
    want = b.saliency[1, 0][8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
    np.testing.assert_allclose(seen.view(8, 8), want, atol=1e-6)


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 7), st.floats(0.5, 3))
def test_the_local_map_against_a_plain_loop(seed, n, reach):
    b = bank(seed=seed)
    x1, x2, y1, y2 = np.random.default_rng(seed).uniform(0, 1, 4).astype(np.float32)
    x1, x2, y1, y2 = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
    seen = observe(b, key((x1, y1, x2, y2), 3, 1), only(saliency=False, local_saliency=n, reach=reach)).view(n, n)
    for row in range(n):
        for column in range(n):
            x = (x1 + x2) / 2 + (x2 - x1) * reach * ((column + 0.5) / n - 0.5)
            y = (y1 + y2) / 2 + (y2 - y1) * reach * ((row + 0.5) / n - 0.5)
            assert float(seen[row, column]) == pytest.approx(bilinear(b.saliency[3, 1], x, y), abs=2e-5)


@pytest.mark.parametrize("step, left", [(0, 1.0), (10, 0.75), (39, 0.025), (40, 0.0)])
def test_the_share_of_steps_that_remain(step, left):
    seen = observe(bank(), key(step=step), only(steps=True))
    assert seen[0, -1].item() == pytest.approx(left) and MAX_STEPS == 40
    assert observe(bank(), key(step=step), only(steps=True, max_steps=80))[0, -1].item() == pytest.approx(1 - step / 80)


def test_box_history_and_class_by_hand():
    seen = observe(bank(), key((0.1, 0.2, 0.4, 0.8), label=1, past=(3, 0, 9)), only(box=True, n_classes=2))[0, 256:]
    np.testing.assert_allclose(seen, [0.1, 0.2, 0.4, 0.8, 0.3, 0.6, 0, 1], atol=1e-6)
    config = ObservationConfig(embedding=False)
    past = observe(bank(), key(past=(3, 0, 9)), config)[0, : HISTORY * 10].view(HISTORY, 10)
    assert past.nonzero().tolist() == [[0, 3], [1, 0], [2, 9]] and past.sum() == 3


def test_regions_stand_first_and_row_by_row():
    box = (0.2, 0.2, 0.6, 0.4)
    config = ObservationConfig(history=False, saliency=False, grid=2, reach=2.0, context=1.5)
    seen = observe(bank(), key(box, image=2), config).view(-1, DIM)
    x1, y1, x2, y2 = 0.0, 0.1, 0.8, 0.5  # the frame: twice the box, about its centre (.4, .3)
    xs, ys = (x1, (x1 + x2) / 2, x2), (y1, (y1 + y2) / 2, y2)
    want = [(0.1, 0.15, 0.7, 0.45)]  # the box, half as large again
    want += [(xs[c], ys[r], xs[c + 1], ys[r + 1]) for r in (0, 1) for c in (0, 1)]
    np.testing.assert_allclose(seen, [(sum(w) + 2, w[0], w[3]) for w in want], atol=1e-5)


@settings(max_examples=40)
@given(st.data())
def test_parts_say_how_wide_each_part_is(draw):
    flags = {k: draw.draw(st.booleans()) for k in ("embedding", "history", "saliency", "box", "steps")}
    numbers = {k: draw.draw(st.integers(0, 3)) for k in ("local_saliency", "grid")}
    code = draw.draw(st.sampled_from([0, 2]))
    sees = flags["embedding"] or flags["saliency"] or numbers["local_saliency"] or numbers["grid"]
    if not sees:
        with pytest.raises(ValueError, match="blind"):
            ObservationConfig(**flags, **numbers, n_classes=code)
        return
    config = ObservationConfig(**flags, **numbers, n_classes=code)
    widths = dict(embedding=DIM, history=100, saliency=256, box=6, steps=1)
    want = {k: v for k, v in widths.items() if flags[k]}
    want |= {k: v**2 * (DIM if k == "grid" else 1) for k, v in numbers.items() if v}
    want |= {"code": code} if code else {}
    assert config.parts(DIM) == want and config.size(DIM) == sum(want.values())
    assert observe(bank(), torch.cat([key()] * 2), config).shape == (2, config.size(DIM))


def test_grown_keeps_the_centre():
    np.testing.assert_allclose(grown(torch.tensor([[0.2, 0.4, 0.4, 0.8]]), 2), [[0.1, 0.2, 0.5, 1.0]], atol=1e-6)


@pytest.mark.parametrize("bad, words", [(dict(reach=0), "reach=0"), (dict(context=0.99), "context=0.99")])
def test_settings_that_cannot_be(bad, words):
    with pytest.raises(ValueError, match=words):
        ObservationConfig(**bad)
    assert ObservationConfig(context=1) and ObservationConfig(reach=0.01)


@pytest.mark.parametrize("context", [1.0, 1.25, 2.0])
def test_the_embedding_looks_at_the_box_and_its_context(context):
    seen = observe(bank(), key((0.4, 0.3, 0.6, 0.7)), ObservationConfig(history=False, saliency=False, context=context))
    w, h = 0.1 * context, 0.2 * context
    want = (0.5 - w, 0.5 - h, 0.5 + w, 0.5 + h)
    np.testing.assert_allclose(seen, [(sum(want), want[0], want[3])], atol=1e-6)


def test_the_smallest_values_that_a_part_may_have():
    "They are taken; the next smaller ones are refused"
    smallest = dict(local_saliency=0, grid=0, n_classes=0, n_actions=1, max_steps=1, context=1.0)
    ObservationConfig(**smallest)
    for name, value in smallest.items():
        with pytest.raises(ValueError, match=name):
            ObservationConfig(**{name: value - 1})
    with pytest.raises(ValueError, match="reach=0"):
        ObservationConfig(reach=0)
    with pytest.raises(ValueError, match="context=0.99"):
        ObservationConfig(context=0.99)
