"""The IoU task against plain loops, and what the policy is made of."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from locrl.agents.policy import IoULoss, KeyExtractor, RegionPolicy, attach, policy_kwargs
from locrl.envs.localization import LocalizationVecEnv, Search, Targets
from locrl.envs.observation import HISTORY, KEY_SIZE, ObservationConfig

SEES = ObservationConfig(saliency=False, grid=2)


def targets():
    "Three queries: picture 0 holds a cat and picture 2 two dogs; nobody asks for a dog in picture 0"
    boxes = np.zeros((3, 2, 4), np.float32)
    boxes[0, 0] = [0, 0, 0.5, 0.5]
    boxes[1, 0] = [0.5, 0.5, 1, 1]
    boxes[2] = [[0, 0, 0.5, 1], [0.5, 0, 1, 0.5]]
    return Targets(np.array([0, 1, 2]), np.array([0, 0, 1]), boxes)


def keys(*rows):
    "State keys of (image, class, box)"
    return torch.tensor([[i, c, *box, 0, *[-1] * HISTORY] for i, c, box in rows], dtype=torch.float32)


def test_true_iou_by_hand():
    found = IoULoss(targets()).true_iou(
        keys(
            (0, 0, (0, 0, 1, 1)),  # a quarter
            (1, 0, (0.5, 0.5, 1, 1)),  # all of it
            (2, 1, (0, 0, 1, 1)),  # the larger of two: half
            (2, 1, (0.5, 0, 1, 1)),  # the second: half
            (0, 0, (0.5, 0.5, 1, 1)),  # nothing
        )
    )
    assert found.tolist() == pytest.approx([0.25, 1, 0.5, 0.5, 0])


@settings(max_examples=50)
@given(st.integers(0, 2**31), st.floats(0.1, 0.6), st.floats(0.6, 1.0))
def test_ranking_against_a_plain_loop(seed, low, high):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 12))
    logit, truth = rng.normal(size=n), rng.uniform(size=n).round(2)
    exact, low32, high32 = truth.astype(np.float32), np.float32(low), np.float32(high)  # what the loss compares
    terms = []
    for i in range(n):
        for j in range(n):
            inside = low32 <= exact[i] <= high32 and low32 <= exact[j] <= high32
            if inside and exact[i] > exact[j] + np.float32(0.01):
                terms.append(np.log1p(np.exp(-(logit[i] - logit[j]))))
    loss = IoULoss(targets(), band=(low, high)).ranking(torch.tensor(logit), torch.tensor(truth, dtype=torch.float32))
    assert float(loss) == pytest.approx(np.mean(terms) if terms else 0.0, abs=1e-6)


def test_loss_by_hand_and_where_its_gradient_goes():
    head = nn.Linear(2, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    model = SimpleNamespace(q_net=SimpleNamespace(iou_head=head))
    batch = SimpleNamespace(observations=keys((0, 0, (0, 0, 1, 1)), (2, 1, (0, 0, 1, 1)), (1, 0, (0.5, 0.5, 1, 1))))
    # the network says .5 of each: off by .25, 0 and .5; smooth L1 with beta .1 is |x| - .05 beyond .1
    regression = (0.2 + 0 + 0.45) / 3
    loss, log = IoULoss(targets(), weight=2.0)(model, batch, None, torch.zeros(3, 2))
    assert float(loss.detach()) == pytest.approx(2 * regression) and set(log) == {"iou_loss"}
    loss, log = IoULoss(targets(), 1.0, rank_weight=0.5, band=(0.0, 1.0))(model, batch, None, torch.zeros(3, 2))
    assert float(log["iou_loss"].detach()) == pytest.approx(regression)
    assert float(log["rank_loss"].detach()) == pytest.approx(0.5 * np.log(2))  # three pairs, all undecided
    assert float(loss.detach()) == pytest.approx(regression + 0.5 * np.log(2))
    nn.init.ones_(head.weight)
    for gradient in (True, False):
        trunk = torch.zeros(3, 2, requires_grad=True)
        IoULoss(targets(), gradient=gradient)(model, batch, None, trunk)[0].backward()
        assert (trunk.grad is not None) == gradient


def policy(**changes):
    "A policy without training"
    env = LocalizationVecEnv(Search(targets(), 2))
    kwargs = policy_kwargs(3, SEES, (16, 8), 4) | changes
    return RegionPolicy(env.observation_space, env.action_space, lambda _: 0.0, **kwargs)


def bank(dim=3):
    "Features of three pictures of two classes: what is pooled is the box"
    return SimpleNamespace(
        device="cpu",
        dim=dim,
        saliency=torch.zeros(3, 2, 16, 16),
        pool=lambda image, boxes: boxes[..., :dim] + image[:, None, None],
    )


def test_what_the_policy_is_made_of():
    kwargs = policy_kwargs(3, SEES)
    assert kwargs["net_arch"] == [512, 512] and kwargs["region_width"] == 64
    assert kwargs["dropout"] == 0.0 and kwargs["judges"] is True
    assert kwargs["features_extractor_kwargs"] == dict(dim=3, config=SEES)
    net = policy().q_net
    sizes = [(m.in_features, m.out_features) for m in net.q_net.modules() if isinstance(m, nn.Linear)]
    # five regions (the box and 2 x 2) of 3 channels become 4 each, beside the history of 100
    assert sizes == [(3, 4), (5 * 4 + 100, 16), (16, 8), (8, 10)]
    assert net.iou_head.in_features == 8 and not any(isinstance(m, nn.Dropout) for m in net.modules())
    assert net.iou_head.out_features == 1 and IoULoss(targets()).band == (0.5, 0.85)
    kwargs = policy_kwargs(3, SEES)
    for name in ("region_width", "dropout", "judges"):
        kwargs.pop(name)
    env = LocalizationVecEnv(Search(targets(), 2))
    default = RegionPolicy(env.observation_space, env.action_space, lambda _: 0.0, **kwargs).q_net
    shared = next(m.shared for m in default.modules() if hasattr(m, "shared"))
    assert shared.out_features == 64 and default.judges is True
    assert not any(isinstance(m, nn.Dropout) for m in default.modules())
    plain = policy(region_width=0, dropout=0.3).q_net
    sizes = [(m.in_features, m.out_features) for m in plain.q_net.modules() if isinstance(m, nn.Linear)]
    assert sizes == [(5 * 3 + 100, 16), (16, 8), (8, 10)]
    assert [m.p for m in plain.modules() if isinstance(m, nn.Dropout)] == [0.3, 0.3]


def test_regions_are_narrowed_one_by_one_with_one_matrix():
    p = policy()
    shared = next(m for m in p.q_net.modules() if hasattr(m, "shared"))
    x = torch.randn(2, 5 * 3 + 100, generator=torch.Generator().manual_seed(0))
    want = [shared.shared(x[:, 3 * k : 3 * k + 3]).relu() for k in range(5)] + [x[:, 15:]]
    torch.testing.assert_close(shared(x), torch.cat(want, 1))


def test_a_policy_without_features_says_so():
    p = policy()
    assert isinstance(p.q_net.features_extractor, KeyExtractor) and keys((0, 0, (0, 0, 1, 1))).shape == (1, KEY_SIZE)
    with pytest.raises(RuntimeError, match="attach"):
        p.q_net(keys((0, 0, (0, 0, 1, 1))))
    assert attach(p, bank()) is p
    q = p.q_net(keys((0, 0, (0, 0, 1, 1)), (1, 0, (0, 0, 1, 1))))
    assert q.shape == (2, 10) and not torch.equal(q[0], q[1])
    assert p.q_net_target.features_extractor.bank is p.q_net.features_extractor.bank


def test_both_ends_of_the_band_are_ranked():
    "Two states at its ends make a pair: log(1 + e^-d), where the nearer one has a log-odds greater by d"
    targets = Targets(np.array([0]), np.array([0]), np.float32([[[0, 0, 1, 1]]]))
    loss = IoULoss(targets, rank_weight=1.0, band=(0.5, 0.75))
    value = loss.ranking(torch.tensor([0.25, 1.0]), torch.tensor([0.5, 0.75]))
    assert value.item() == pytest.approx(np.log1p(np.exp(-0.75)), rel=1e-6)


def test_the_loss_is_quadratic_within_a_tenth():
    "Smooth L1: half the square over a tenth below it, linear above"
    targets = Targets(np.array([0]), np.array([0]), np.float32([[[0, 0, 1, 1]]]))
    loss = IoULoss(targets)
    keys = torch.zeros(1, 17)
    keys[0, 2:6] = torch.tensor([0.0, 0.0, 1.0, 0.5])  # IoU .5
    for believed in (0.45, 0.8):
        head = SimpleNamespace(iou_head=lambda trunk, x=believed: torch.logit(torch.tensor([[x]])))
        value, _ = loss(SimpleNamespace(q_net=head), SimpleNamespace(observations=keys), None, torch.zeros(1, 2))
        off = abs(believed - 0.5)
        assert value.item() == pytest.approx(off**2 / 0.2 if off < 0.1 else off - 0.05, rel=1e-4)
