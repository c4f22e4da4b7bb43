"""Rewards: bounds, monotonicity, ties, and the batch against an explicit loop."""

from dataclasses import asdict, replace
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from locrl.envs.rewards import (
    BinaryTrigger,
    ContinuousTrigger,
    DeltaReward,
    Reward,
    SignReward,
    named_reward,
    register_reward,
)

unit = st.floats(0, 1)


@st.composite
def continuous(draw):
    eta = draw(st.floats(0.1, 10))
    return ContinuousTrigger(
        threshold=draw(st.floats(0.05, 0.95)),
        eta=eta,
        base=draw(unit) * eta,
        edge=draw(unit) * eta,
        power=draw(st.floats(0.1, 10)),
        fail_power=draw(st.floats(0.1, 10)),
    )


triggers = st.one_of(continuous(), st.builds(BinaryTrigger, threshold=unit, eta=st.floats(0, 10)))


@given(triggers, st.lists(unit, min_size=2, max_size=30))
def test_triggers_never_fall_with_iou_and_stay_within_eta(trigger, ious):
    ious = np.sort(ious)
    for values in (trigger(ious), trigger(ious.astype(np.float32))):
        assert (np.diff(values) >= -1e-5 * max(1, trigger.eta)).all()
        assert (np.abs(values) <= trigger.eta * (1 + 1e-5)).all()  # a power of a float32 may end a little above 1
        assert np.isfinite(values).all()


@given(continuous())
def test_continuous_trigger_meets_its_named_values(t):
    ends = t(np.array([0, np.nextafter(t.threshold, 0), t.threshold, 1]))
    np.testing.assert_allclose(ends[[0, 2, 3]], [-t.eta, t.base, t.eta], atol=1e-9)
    assert replace(t, fail_power=1)(np.nextafter(t.threshold, 0)) == pytest.approx(-t.edge, abs=1e-6)
    closed = replace(t, base=0, edge=0, power=1, fail_power=1)
    assert abs(closed(t.threshold + 1e-9) - closed(t.threshold - 1e-9)) < 1e-5 * t.eta


def test_continuous_trigger_is_strictly_increasing_by_default():
    assert (np.diff(ContinuousTrigger()(np.linspace(0, 1, 10001))) > 0).all()


@given(unit, unit)
def test_the_continuous_reward_has_no_jump(a, b):
    "The reward of two IoUs differs by at most 6 times their difference, and the larger one never pays less"
    low, high = sorted((a, b))
    difference = named_reward("continuous").trigger(high) - named_reward("continuous").trigger(low)
    assert -1e-12 <= difference <= 6 * (high - low) + 1e-12


def test_the_reward_called_jump_has_one():
    below, above = named_reward("jump").trigger(np.array([np.nextafter(0.5, 0), 0.5]))
    assert above - below == pytest.approx(1)


def test_rounding_of_iou_is_harmless():
    """float32 IoU may be a hair above 1 or below 0, which a fractional power must survive."""
    values = ContinuousTrigger(power=0.5, fail_power=0.5)(np.array([-1e-7, 1 + 1e-7], dtype=np.float32))
    np.testing.assert_allclose(values, [-3, 3], atol=1e-5)


@given(unit, unit, unit, unit, st.sampled_from(["negative", "centre"]))
def test_sign_reward_has_two_values_and_follows_the_iou(before, after, d0, d1, ties):
    value = SignReward(ties=ties, size=2.0)(before, after, d0, d1)
    assert abs(value) == 2
    if abs(after - before) > 2e-6:
        assert value == 2 * np.sign(after - before)
    elif abs(after - before) < 5e-7:
        assert value == (2 if ties == "centre" and d0 - d1 > 1e-6 else -2)


def test_noise_below_eps_is_a_tie():
    iou = np.float32(0.3)
    noisy = np.nextafter(iou, np.float32(1))
    assert SignReward()(iou, noisy) == -1
    assert SignReward(ties="centre")(iou, noisy, 0.2, 0.1) == 1
    assert SignReward(ties="centre")(iou, noisy, 0.2, 0.2) == -1


@given(st.lists(unit, min_size=2, max_size=20), st.floats(0.1, 10), st.floats(0.5, 1))
def test_delta_reward_telescopes(ious, scale, gamma):
    ious, part = np.array(ious), DeltaReward(scale, gamma)
    discounted = (part(ious[:-1], ious[1:]) * gamma ** np.arange(len(ious) - 1)).sum()
    np.testing.assert_allclose(discounted, scale * (gamma ** (len(ious) - 1) * ious[-1] - ious[0]), atol=1e-9)


def loop(name, before, after, triggered, d0, d1):
    "The named rewards, written out with `if`"
    if triggered:
        if name in ("paper", "flat"):
            return 3.0 if after >= (0.6 if name == "paper" else 0.5) else -3.0
        if name == "continuous":
            return 6 * (after - 0.5)
        return 0.5 + 2.5 * (after - 0.5) / 0.5 if after >= 0.5 else -0.5 - 2.5 * (1 - after / 0.5)
    if name == "potential":
        return 5 * ((after - 0.5 * d1) - (before - 0.5 * d0))
    if name == "centre" and abs(after - before) <= 1e-6:
        return 1.0 if d0 - d1 > 1e-6 else -1.0
    return 1.0 if after - before > 1e-6 else -1.0


@pytest.mark.parametrize("name", ["paper", "flat", "continuous", "jump", "centre", "potential"])
def test_batch_equals_explicit_loop(name):
    rng = np.random.default_rng(0)
    n = 500
    before, d0, d1 = rng.uniform(size=(3, n))
    triggered = rng.uniform(size=n) < 0.3
    after = np.where(triggered | (rng.uniform(size=n) < 0.4), before, rng.uniform(size=n))
    got = named_reward(name)(before, after, triggered, d0, d1)
    assert got.shape == (n,) and got.dtype == np.float32
    np.testing.assert_allclose(got, [loop(name, *row) for row in zip(before, after, triggered, d0, d1)], atol=1e-6)


def test_any_batch_shape_and_scalars():
    reward = named_reward("centre")
    assert reward(0.3, 0.4, False, 0.2, 0.1) == 1
    assert reward(
        np.zeros((2, 3)), np.ones((2, 3)), np.ones((2, 3), bool), np.zeros((2, 3)), np.zeros((2, 3))
    ).shape == (2, 3)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: SignReward(ties="zero"), "'negative' or 'centre'"),
        (lambda: SignReward(size=-1), "SignReward(size=-1)"),
        (lambda: DeltaReward(gamma=1.1), "DeltaReward(gamma=1.1)"),
        (lambda: BinaryTrigger(threshold=1.5), "from 0 to 1"),
        (lambda: BinaryTrigger(eta=float("nan")), "eta=nan"),
        (lambda: ContinuousTrigger(edge=5), "edge=5"),
        (lambda: ContinuousTrigger(power=0), "power=0"),
        (lambda: ContinuousTrigger(threshold=True), "threshold=True"),
        (lambda: Reward(move="sign"), "must be callable"),
        (lambda: named_reward("papr"), "known are 'centre', 'continuous', 'flat', 'jump', 'paper'"),
        (lambda: register_reward("paper", Reward(trigger=ContinuousTrigger())), "taken by"),
        (lambda: register_reward("mine", SignReward()), "not a Reward"),
        (lambda: named_reward("centre")(np.zeros(2), np.zeros(2), np.zeros(2, bool)), "needs distance_before"),
    ],
)
def test_mistakes_are_named(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert words in str(error.value)


def test_rewards_are_values():
    assert named_reward("paper") == Reward() and hash(named_reward("paper")) == hash(Reward())
    assert Reward() != Reward(trigger=ContinuousTrigger())
    record = json.loads(json.dumps(asdict(named_reward("centre"))))
    assert record["name"] == "centre" and record["move"]["kind"] == "sign" and record["trigger"]["kind"] == "continuous"
    assert "ties='centre'" in repr(named_reward("centre"))


# Numbers that are documented, and where each setting ends


def test_defaults_are_those_of_the_paper_and_the_page():
    assert asdict(SignReward()) == dict(ties="negative", size=1.0, eps=1e-6, kind="sign")
    assert asdict(DeltaReward()) == dict(scale=5.0, gamma=1.0, centre=0.0, kind="delta")
    assert asdict(BinaryTrigger()) == dict(threshold=0.6, eta=3.0, kind="binary")
    assert named_reward("potential").move == DeltaReward(scale=5.0, centre=0.5)
    assert named_reward("flat").trigger.threshold == 0.5
    for kind in (SignReward, DeltaReward, BinaryTrigger, ContinuousTrigger):
        with pytest.raises(TypeError):
            kind(kind="other")
        assert "kind" not in repr(kind())


LIMITS = [
    (SignReward, "size", 0, None),
    (SignReward, "eps", 0, 0.1),
    (DeltaReward, "scale", 0, None),
    (DeltaReward, "gamma", 0, 1),
    (DeltaReward, "centre", 0, None),
    (BinaryTrigger, "threshold", 0, 1),
    (BinaryTrigger, "eta", 0, None),
    (ContinuousTrigger, "threshold", 0.05, 0.95),
    (ContinuousTrigger, "power", 0.1, 10),
    (ContinuousTrigger, "fail_power", 0.1, 10),
    (ContinuousTrigger, "base", 0, 3),
    (ContinuousTrigger, "edge", 0, 3),
]


@pytest.mark.parametrize("kind, name, low, high", LIMITS)
def test_each_setting_has_its_limits(kind, name, low, high):
    edges = [low] + ([] if high is None else [high])
    for value in edges:
        assert getattr(kind(**{name: value}), name) == value
    for value in (low - 0.001, *([] if high is None else [high + 0.001]), np.inf, -np.inf, np.nan, True, "1", None):
        with pytest.raises(ValueError, match=rf"{kind.__name__}\({name}="):
            kind(**{name: value})


def test_a_change_of_eps_is_none():
    reward = SignReward(size=2.0, eps=0.01)
    assert reward(0.5, 0.505) == -2 and reward(0.5, 0.52) == 2 and reward(0.5, 0.49) == -2
    centre = SignReward(ties="centre", eps=0.01)
    assert centre(0.5, 0.505, 0.3, 0.28) == 1 and centre(0.5, 0.505, 0.3, 0.295) == -1
    assert centre(0.5, 0.48, 0.3, 0.1) == -1  # the IoU fell: the centre does not count
    for missing in ((None, 0.1), (0.1, None)):
        with pytest.raises(ValueError, match="distance"):
            centre(0.5, 0.5, *missing)
        with pytest.raises(ValueError, match="distance"):
            DeltaReward(centre=0.5)(0.5, 0.5, *missing)
