"""The replay buffer against an explicit loop and against SB3; demonstrations, margin loss, warm-up and resuming."""

import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from locrl.agents.double_dqn import DoubleDQN
from locrl.agents.replay import (
    DemoReplayBuffer,
    LargeMarginLoss,
    Samples,
    SumTree,
    demo_accuracy,
    imitation_loss,
    pretrain,
)

SPACE, THREE = gym.spaces.Box(-1, 1, (2,), np.float32), gym.spaces.Discrete(3)
FIELDS = ("observations", "actions", "next_observations", "dones", "rewards", "discounts")


def stream(n_envs, length, seed=0, end=0.15, limit=0.1):
    "Arguments of `add`; the observations number the transitions: (time, environment)"
    rng = np.random.default_rng(seed)
    envs = np.arange(n_envs)
    for t in range(length):
        cut, done = rng.random(n_envs) < limit, rng.random(n_envs) < end
        yield (
            np.stack([np.full(n_envs, t), envs], 1),
            np.stack([np.full(n_envs, t + 1), envs], 1),
            rng.integers(0, 3, (n_envs, 1)),
            rng.random(n_envs),
            done | cut,
            [{"TimeLimit.truncated": bool(c and not d)} for c, d in zip(cut, done)],
        )


def fill(buffer, length, **kwargs):
    "`buffer`, after `length` steps of a `stream`"
    for transition in stream(buffer.n_envs, length, **kwargs):
        buffer.add(*transition)
    return buffer


def made(rows=20, n_envs=4, cls=DemoReplayBuffer, **kwargs):
    "A buffer on the CPU"
    return cls(rows * n_envs, SPACE, THREE, device="cpu", n_envs=n_envs, **kwargs)


def demonstrations(lengths, terminated, seed=0, first=1000):
    "Arguments of `add_demonstrations`: episodes of these lengths, ended by a termination or by a time limit"
    rng, m = np.random.default_rng(seed), sum(lengths)
    t = first + np.arange(m)
    dones, timeouts = np.zeros(m, bool), np.zeros(m, bool)
    ends = np.cumsum(lengths) - 1
    dones[ends], timeouts[ends] = True, ~np.asarray(terminated)

    def see(t):
        return np.stack([t, t * 0], 1).astype(np.float32)

    return dict(
        observations=see(t),
        actions=rng.integers(0, 3, m),
        rewards=rng.random(m),
        next_observations=see(t + 1),
        dones=dones,
        timeouts=timeouts,
    )


def slow_return(episode, i, n, gamma):
    "Return, discount, terminal and next observation of transition `i` of (reward, done, timeout, next observation)"
    total, k = 0.0, 0
    while True:
        reward, done, timeout, after = episode[i + k]
        total += gamma**k * reward
        k += 1
        if done or timeout or k == n or i + k == len(episode):
            return total, gamma**k, float(done and not timeout), after


@settings(max_examples=40)
@given(
    rows=st.integers(2, 12),
    n_envs=st.integers(1, 4),
    length=st.integers(1, 40),
    n=st.integers(1, 6),
    gamma=st.floats(0, 1),
    seed=st.integers(0, 999),
    end=st.sampled_from([0.0, 0.1, 0.5]),
    alpha=st.sampled_from([0.0, 0.7]),
)
def test_returns_against_an_explicit_loop(rows, n_envs, length, n, gamma, seed, end, alpha):
    "Any buffer size, fill, wrap-around, number of environments"
    n = min(n, rows)
    buffer = fill(made(rows, n_envs, n_steps=n, gamma=gamma, alpha=alpha), length, seed=seed, end=end)
    tracks = [[] for _ in range(n_envs)]  # per environment, everything that ever happened
    for _, after, _, reward, done, infos in stream(n_envs, length, seed=seed, end=end):
        for e in range(n_envs):
            tracks[e].append((reward[e], done[e], infos[e]["TimeLimit.truncated"], after[e]))
    batch = buffer.sample(50)
    for j in range(50):
        t, e = batch.observations[j].long().tolist()
        assert length - rows <= t and batch.indices[j] == (t % rows) * n_envs + e
        want = slow_return(tracks[e], t, n, gamma)
        np.testing.assert_allclose(
            [batch.rewards[j, 0], batch.discounts[j, 0], batch.dones[j, 0]], want[:3], rtol=1e-5, atol=1e-6
        )
        assert batch.next_observations[j].tolist() == list(want[3])


@pytest.mark.parametrize("length", [3, 20, 21, 57])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_equal_to_sb3(length, n):
    "Same stream, same seed: the same samples as `NStepReplayBuffer`, and with one step as `ReplayBuffer`, to the bit"
    others = [made(cls=NStepReplayBuffer, n_steps=n, gamma=0.97)] + ([made(cls=ReplayBuffer)] if n == 1 else [])
    for other in others:
        samples = []
        for b in (made(n_steps=n, gamma=0.97), other):
            fill(b, length)
            np.random.seed(3)
            samples.append(b.sample(300))
        for k in FIELDS:
            if getattr(samples[1], k) is not None:
                assert torch.equal(getattr(samples[0], k), getattr(samples[1], k)), k


def test_normalised_like_sb3():
    "`VecNormalize` reaches observations and every single reward of a return"
    env = VecNormalize(make_vec_env(Still, n_envs=4))
    env.obs_rms.mean, env.ret_rms.var = np.array([3.0, 1]), np.array(7.0)
    samples = []
    for b in (made(n_steps=3, gamma=0.9), made(cls=NStepReplayBuffer, n_steps=3, gamma=0.9)):
        fill(b, 30)
        np.random.seed(0)
        samples.append(b.sample(50, env))
    for k in FIELDS:
        torch.testing.assert_close(getattr(samples[0], k), getattr(samples[1], k), rtol=0, atol=1e-6)


@settings(max_examples=50)
@given(size=st.integers(1, 40), seed=st.integers(0, 9999))
def test_tree(size, seed):
    "Sums stay exact over any changes, and a slot without weight is never drawn"
    rng = np.random.default_rng(seed)
    tree = SumTree(size)
    weights = np.zeros(size)
    for _ in range(6):
        slots = rng.choice(size, rng.integers(1, size + 1), replace=False)
        weights[slots] = rng.choice([0.0, 1e-9, 1.0, 1e6], len(slots))
        tree[slots] = weights[slots]
    np.testing.assert_array_equal(tree[np.arange(size)], weights)
    np.testing.assert_allclose(tree.total, weights.sum())
    if weights.sum():
        assert (weights[tree.draw(500)] > 0).all()


def chi_square(counts, p):
    "Pearson's statistic over its degrees of freedom"
    n = counts.sum()
    return ((counts - n * p) ** 2 / (n * p)).sum() / (len(p) - 1)


@pytest.mark.parametrize("alpha", [0.4, 1.0])
def test_frequencies(alpha):
    "Slots are drawn in proportion to (error + eps)**alpha: chi-square, also when drawn one at a time"
    per = fill(made(alpha=alpha), 33)
    errors = np.random.default_rng(0).exponential(size=80)
    per.update_priorities(np.arange(80), torch.tensor(-errors))  # the sign of an error does not matter
    p = (errors + per.eps) ** alpha
    np.random.seed(0)
    single = np.bincount(np.concatenate([per.tree.draw(1) for _ in range(8000)]), minlength=80)
    batches = np.bincount(np.concatenate([per.sample(64).indices for _ in range(500)]), minlength=80)
    assert 0.6 < chi_square(single, p / p.sum()) < 1.4  # 99 % of the time for 79 degrees of freedom
    assert chi_square(batches, p / p.sum()) < 1.4  # slices lower the variance


def test_weights_undo_the_bias():
    "The expectation of weight*x is exactly the plain mean times a constant, for beta=1; beta anneals with the progress"
    per = fill(made(alpha=0.7, beta=0.5), 30)
    per.update_priorities(np.arange(80), np.random.default_rng(0).exponential(size=80))
    p = per.tree[np.arange(80)] / per.tree.total
    assert per.beta == 0.5
    per.progress_remaining = 0.0
    assert per.beta == 1
    batch = per.sample(256)
    w = batch.weights[:, 0].double().numpy()
    scale = w * p[batch.indices]  # w = c/p: the same constant for every sample of a batch
    np.testing.assert_allclose(scale, scale[0], rtol=1e-5)
    assert w.max() == 1
    per.progress_remaining = 0.5
    batch = per.sample(256)
    scale = batch.weights[:, 0].double().numpy() * p[batch.indices] ** 0.75
    np.testing.assert_allclose(scale, scale[0], rtol=1e-5)


def test_weights_across_the_regions():
    "Own transitions and demonstrations are weighted each within their region, on one scale of n*probability"
    buffer, rng = made(rows=10, alpha=1.0, beta=1.0, demo_ratio=0.5), np.random.default_rng(0)
    buffer.add_demonstrations(**demonstrations([5, 7], [True, False]))
    fill(buffer, 10)
    slots = np.concatenate([np.arange(40), buffer.slots + np.arange(12)])
    buffer.update_priorities(slots, rng.exponential(size=52))
    batch = buffer.sample(400)
    relative = np.concatenate(
        [
            40 * buffer.tree[np.arange(40)] / buffer.tree.total,
            12 * buffer.demos.tree[np.arange(12)] / buffer.demos.tree.total,
        ]
    )
    want = 1 / relative[batch.indices]
    np.testing.assert_allclose(batch.weights[:, 0], want / want.max(), rtol=1e-5)


def test_nothing_stale():
    "A slot that is overwritten takes the largest priority; the others keep theirs; the empty part is never drawn"
    per = made(rows=10, n_envs=3, alpha=1.0)
    fill(per, 4)
    assert per.sample(500).indices.max() < 12
    per.update_priorities(np.arange(12), np.arange(12.0))
    fill(per, 9)
    tree = per.tree[np.arange(30)]
    np.testing.assert_allclose(tree[9:12], np.arange(9, 12) + per.eps)  # row 3 is the oldest left
    assert (np.delete(tree, [9, 10, 11]) == per.max_priority).all() and per.max_priority == 11 + per.eps
    assert per.statistics()["priority_max"] == per.max_priority and 0 < per.statistics()["priority_spread"] <= 1


def test_refusals():
    "Impossible settings are refused by name"
    for wrong in (
        dict(n_steps=0),
        dict(n_steps=21),
        dict(gamma=1.1),
        dict(alpha=-1),
        dict(beta=2),
        dict(eps=0),
        dict(demo_ratio=1.5),
        dict(optimize_memory_usage=True, handle_timeout_termination=False),
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            made(**wrong)
    with pytest.raises(ValueError, match="not finite"):
        fill(made(alpha=1.0), 3).update_priorities(np.arange(2), torch.tensor([1.0, torch.nan]))
    with pytest.raises(ValueError, match="add_demonstrations"):
        fill(made(demo_ratio=0.5), 3).sample(8)


@settings(max_examples=30)
@given(
    lengths=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=3),
    n=st.integers(1, 5),
    seed=st.integers(0, 999),
    alpha=st.sampled_from([0.0, 0.7]),
)
def test_demonstrated_returns(lengths, n, seed, alpha):
    "Against the loop, episode by episode, over several calls: nothing leaks over a seam"
    buffer = made(n_steps=n, gamma=0.9, alpha=alpha, demo_ratio=1.0)
    rng = np.random.default_rng(seed)
    episodes = {}
    first = 0
    for call in lengths:
        d = demonstrations(call, rng.random(len(call)) < 0.5, seed, first)
        d["dones"][-1] = d["timeouts"][-1] = False  # as if cut out of a longer recording
        buffer.add_demonstrations(**d)
        for length in call:
            part = slice(first - int(d["observations"][0, 0]), first - int(d["observations"][0, 0]) + length)
            track = list(zip(d["rewards"][part], d["dones"][part], d["timeouts"][part], d["next_observations"][part]))
            for i in range(length):
                episodes[first + i] = slow_return(track, i, n, 0.9)
            first += length
    assert buffer.n_demos == first
    fill(buffer, 3)
    batch = buffer.sample(100)
    assert batch.is_demo.all()
    for j in range(100):
        want = episodes[int(batch.observations[j, 0])]
        np.testing.assert_allclose([batch.rewards[j, 0], batch.discounts[j, 0], batch.dones[j, 0]], want[:3], rtol=1e-5)
        assert batch.next_observations[j].tolist() == list(want[3])


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_never_evicted_and_at_their_share(alpha):
    "After many times its size of transitions, a quarter of each batch still is demonstrations, with their priorities"
    buffer = made(rows=10, n_envs=4, alpha=alpha, demo_ratio=0.25, n_steps=3)
    d = demonstrations([5, 7], [True, False])
    expert = np.eye(3, dtype=bool)[d["actions"]] | np.array([True, False, False])
    buffer.add_demonstrations(**d, expert=expert)
    fill(buffer, 200)
    batch = buffer.sample(64)
    assert isinstance(batch, Samples) and int(batch.is_demo.sum()) == 16
    own = ~batch.is_demo
    assert not batch.expert[own].any() and (batch.observations[own, 0] >= 190).all()
    rows = batch.indices[batch.is_demo] - buffer.slots
    np.testing.assert_array_equal(batch.expert[batch.is_demo], expert[rows])
    np.testing.assert_array_equal(batch.actions[batch.is_demo, 0], d["actions"][rows])
    if alpha:
        buffer.update_priorities(buffer.slots + np.arange(12), np.arange(12.0))
        buffer.update_priorities(np.arange(3), np.full(3, 50.0))
        np.testing.assert_allclose(buffer.demos.tree[np.arange(12)], (np.arange(12) + buffer.eps) ** alpha)
        assert buffer.demos.max_priority < buffer.max_priority  # each region has its own
        buffer.add_demonstrations(**d)
        np.testing.assert_allclose(buffer.demos.tree[np.arange(12)], (np.arange(12) + buffer.eps) ** alpha)
        assert (buffer.demos.tree[np.arange(12, 24)] == buffer.demos.max_priority).all()


def test_demonstrations_that_do_not_fit():
    "The field is named"
    good = demonstrations([4], [True])
    for wrong in (
        dict(rewards=np.ones(3)),
        dict(actions=np.ones(5, int)),
        dict(observations=np.ones((4, 3))),
        dict(expert=np.ones((4, 2))),
        dict(expert=np.zeros((4, 3), bool)),
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            made().add_demonstrations(**good | wrong)


@pytest.mark.parametrize("alpha", [0.0, 0.6])
@pytest.mark.parametrize("length", [7, 33])
def test_state(alpha, length):
    "A buffer with the state of another goes on like it, to the bit; so does a pickled one"

    def grow(b, seed):
        for _ in range(5):
            fill(b, 2, seed=seed)
            batch = b.sample(32)
            b.update_priorities(batch.indices, batch.rewards[:, 0])
        return batch

    kwargs = dict(alpha=alpha, n_steps=3, demo_ratio=0.25)
    one = fill(made(**kwargs), length)
    one.add_demonstrations(**demonstrations([5, 7], [True, False]))
    np.random.seed(0)
    grow(one, 1)
    two, three = made(**kwargs), pickle.loads(pickle.dumps(one))
    two.load_state(pickle.loads(pickle.dumps(one.state())))
    batches = []
    for b in (one, two, three):
        np.random.seed(1)
        batches.append(grow(b, 2))
    for other in batches[1:]:
        for k in Samples._fields:
            assert np.array_equal(getattr(batches[0], k), getattr(other, k)), k
    with pytest.raises(ValueError, match="rows"):
        made(rows=5, **kwargs).load_state(one.state())
    with pytest.raises(ValueError, match="alpha"):
        made(**kwargs | dict(alpha=0.6 - alpha)).load_state(one.state())


@settings(max_examples=50)
@given(seed=st.integers(0, 9999), margin=st.floats(0, 2))
def test_margin_against_a_loop(seed, margin):
    "Both forms, written out"
    rng = np.random.default_rng(seed)
    q, right = rng.normal(size=(6, 4)), rng.random((6, 4)) < 0.5
    right[np.arange(6), rng.integers(0, 4, 6)] = True
    got = LargeMarginLoss(margin).violation(torch.tensor(q), torch.tensor(right))
    want = [
        max(q[i, a] + margin * (not right[i, a]) for a in range(4)) - max(q[i, a] for a in range(4) if right[i, a])
        for i in range(6)
    ]
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert (got >= 0).all()


class Still(gym.Env):
    "Never ends and pays nothing"

    observation_space, action_space = SPACE, THREE

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, False, False, {}


def agent(n_envs=4, terms=(), cls=DoubleDQN, **switches):
    "An agent with random transitions and demonstrations of the rule 'action 1 or 2 right of the middle, else 0'"
    torch.set_num_threads(1)
    extra = dict(terms=terms) if cls is DoubleDQN else {}
    model = cls(
        "MlpPolicy",
        make_vec_env(Still, n_envs=n_envs),
        gamma=0.9,
        seed=0,
        buffer_size=400,
        learning_rate=1e-2,
        device="cpu",
        policy_kwargs=dict(net_arch=[32]),
        replay_buffer_class=DemoReplayBuffer,
        replay_buffer_kwargs=dict(gamma=0.9, **switches),
        **extra,
    )
    model.set_logger(configure(None, []))
    rng = np.random.default_rng(0)
    see = rng.uniform(-1, 1, (200, 2)).astype(np.float32)
    right = see[:, :1] > 0
    expert = np.concatenate([~right, right, right], 1)
    model.replay_buffer.add_demonstrations(
        see, np.where(right[:, 0], 1 + rng.integers(0, 2, 200), 0), np.zeros(200), see, np.ones(200), expert=expert
    )
    for _ in range(50):
        o, n = rng.uniform(-1, 1, (2, n_envs, 2))
        model.replay_buffer.add(
            o, n, rng.integers(0, 3, n_envs), rng.random(n_envs), rng.random(n_envs) < 0.2, [{}] * n_envs
        )
    return model


def shuffle(buffer):
    "Give everything a random priority"
    slots = np.concatenate([np.arange(buffer.size() * buffer.n_envs), buffer.slots + np.arange(buffer.n_demos)])
    buffer.update_priorities(slots, np.random.default_rng(0).exponential(size=len(slots)))


def test_margin_term_only_where_it_was_demonstrated():
    "Its own samples give no loss and no gradient; schedule and importance weights count; violations become priorities"
    model = agent(alpha=0.6, demo_ratio=0.5, n_steps=2)
    shuffle(model.replay_buffer)
    batch = model.replay_buffer.sample(64)
    q = torch.randn(64, 3, requires_grad=True)
    loss, log = LargeMarginLoss(0.5, weight=2.0)(model, batch, q, None)
    loss.backward()
    assert not q.grad[~batch.is_demo].any() and q.grad[batch.is_demo].any()
    missed = LargeMarginLoss(0.5).violation(q, batch.expert | ~batch.is_demo[:, None])
    torch.testing.assert_close(loss, 2 * (missed * batch.weights[:, 0])[batch.is_demo].mean())
    torch.testing.assert_close(log["priority"], missed.detach())
    w = batch.weights[batch.is_demo, 0]
    torch.testing.assert_close(log["margin_violations"], (w * (missed[batch.is_demo] > 0)).sum() / w.sum())
    model._current_progress_remaining = 0.5
    torch.testing.assert_close(
        LargeMarginLoss(0.5, 2.0, schedule=LinearSchedule(1.0, 0.0, 1.0))(model, batch, q, None)[0], loss / 2
    )
    assert LargeMarginLoss(0.5, labels="single")(model, batch, q, None)[0] >= loss / 2
    with pytest.raises(ValueError, match="labels"):
        LargeMarginLoss(labels="both")
    with pytest.raises(TypeError, match="DemoReplayBuffer"):
        LargeMarginLoss()(model, made(cls=ReplayBuffer), q, None)


def test_mixed_demonstrations_give_way_to_the_agents_own_transitions():
    "Their share of a batch is their share of all that is remembered, and never below the ratio"
    buffer = agent(demo_ratio=0.25).replay_buffer
    own = buffer.size() * buffer.n_envs
    assert buffer.demo_share == 0.25
    buffer.demo_mixed = True
    assert buffer.demo_share == max(0.25, buffer.n_demos / (buffer.n_demos + own))
    buffer.pos = 0
    assert buffer.demo_share == 1 and buffer.sample(32).is_demo.all()
    buffer.pos = -(-3 * buffer.n_demos // buffer.n_envs) + 1  # as if many had come in
    assert buffer.demo_share == 0.25


def test_the_margin_does_not_depend_on_the_share_of_demonstrations():
    "A batch of demonstrations alone, and the same among samples of the agent's own, have the same loss"
    model = agent(demo_ratio=0.5, n_steps=2)
    batch = model.replay_buffer.sample(64)
    q = torch.randn(64, 3)
    demo = batch.is_demo
    assert 0 < demo.sum() < 64
    alone = batch._replace(**{name: getattr(batch, name)[demo] for name in ("actions", "weights", "is_demo", "expert")})
    term = LargeMarginLoss(0.5)
    torch.testing.assert_close(term(model, batch, q, None)[0], term(model, alone, q[demo], None)[0])


def test_set_valued_margin_spares_equal_actions():
    "Where two actions are right, the single label cannot be satisfied by equal values, the set can"
    q, both = torch.tensor([[0.0, 2.0, 2.0]]), torch.tensor([[False, True, True]])
    assert LargeMarginLoss(0.8).violation(q, both) == 0
    assert LargeMarginLoss(0.8).violation(q, torch.tensor([[False, True, False]])) == pytest.approx(0.8)


def test_imitation_loss():
    "Minus the logarithm of the expert's share of the softmax; the split among the expert's actions is free"
    q, expert = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[True, True, False]])
    torch.testing.assert_close(imitation_loss(q, expert, 0.5), -(q / 0.5).softmax(1)[0, :2].sum().log())
    assert imitation_loss(q, torch.ones(1, 3, dtype=bool)).abs() < 1e-6


@pytest.mark.parametrize("loss", ["cross_entropy", "dqfd"])
def test_pretrain(loss):
    "The demonstrations are learned, the target network follows, the log tells, and the buffer is as before"
    model = agent(terms=(LargeMarginLoss(0.3),), alpha=0.6, demo_ratio=0.25)
    before = demo_accuracy(model)
    history = pretrain(model, 200, 64, loss=loss, progress=False)
    assert (
        before < 0.8 < 0.95 < history[-1][1] == demo_accuracy(model) == model.logger.name_to_value["pretrain/accuracy"]
    )
    assert [n for n, _ in history] == list(range(20, 201, 20)) and model.replay_buffer.demo_ratio == 0.25
    for a, b in zip(model.q_net.parameters(), model.q_net_target.parameters()):
        assert torch.equal(a, b)


def test_a_warm_up_with_a_margin_that_does_not_last():
    "An agent without a margin loss has one while it warms up, and none afterwards"
    model = agent(demo_ratio=0.25)
    before = demo_accuracy(model)
    history = pretrain(model, 200, 64, loss="dqfd", margin=LargeMarginLoss(0.3), progress=False)
    assert before < 0.8 < 0.95 < history[-1][1] and model.terms == ()
    assert "train/margin_loss" in model.logger.name_to_value


def test_pretrain_refuses():
    "What is missing is named"
    empty = DoubleDQN("MlpPolicy", make_vec_env(Still), buffer_size=10, device="cpu")
    with pytest.raises(ValueError, match="add_demonstrations"):
        pretrain(empty, 1)
    with pytest.raises(ValueError, match="cross_entropy"):
        pretrain(agent(), 1, loss="bc")


def test_agent_without_switches_is_sb3():
    "With everything off, training is SB3's DQN on the same buffer"
    ours, theirs = agent(), agent(cls=DQN)
    ours.double = False
    theirs.policy.load_state_dict(ours.policy.state_dict())
    for m in (ours, theirs):
        np.random.seed(0)
        m.train(20, 32)
    for a, b in zip(ours.q_net.parameters(), theirs.q_net.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_agent_weights_and_priorities():
    "Weights scale the loss; absolute TD errors and the margin's violation come back as priorities; beta anneals"
    model = agent(alpha=1.0, demo_ratio=0.5, terms=(LargeMarginLoss(0.5),))
    buffer, seen = model.replay_buffer, {}
    shuffle(buffer)
    draw, give = buffer.sample, buffer.update_priorities
    buffer.sample = lambda *args, **kwargs: seen.setdefault("batch", draw(*args, **kwargs))
    buffer.update_priorities = lambda indices, errors: (
        seen.update(indices=indices, errors=errors),
        give(indices, errors),
    )
    with torch.no_grad():
        for p in model.q_net.parameters():
            p.add_(0.3 * torch.randn_like(p))
    before = pickle.loads(pickle.dumps(model.policy.state_dict()))
    model._current_progress_remaining = 0.5
    model.train(1, 32)
    batch, after = seen["batch"], pickle.loads(pickle.dumps(model.policy.state_dict()))
    assert buffer.progress_remaining == 0.5
    model.policy.load_state_dict(before)
    q, target = model.q_net(batch.observations), model.targets(batch)
    error = (q.gather(1, batch.actions) - target)[:, 0].abs().detach()
    missed = LargeMarginLoss(0.5).violation(q, batch.expert | ~batch.is_demo[:, None])
    missed = missed.detach()
    torch.testing.assert_close(seen["errors"], error + missed)
    huber = torch.where(error < 1, error**2 / 2, error - 0.5)
    assert model.logger.name_to_value["train/td_loss"] == pytest.approx(
        float((huber * batch.weights[:, 0]).mean()), rel=1e-5
    )
    own = batch.indices < buffer.slots
    last = {int(i): float(e) for i, e in zip(batch.indices[own], (error + missed)[torch.from_numpy(own)])}
    np.testing.assert_allclose(buffer.tree[list(last)], np.array(list(last.values())) + buffer.eps, rtol=1e-5)
    assert any(not torch.equal(before[k], after[k]) for k in before)


def test_agent_and_buffer_discount_alike():
    "Two discounts are refused"
    with pytest.raises(ValueError, match="gamma=0.5"):
        DoubleDQN(
            "MlpPolicy",
            make_vec_env(Still),
            gamma=0.5,
            buffer_size=10,
            device="cpu",
            replay_buffer_class=DemoReplayBuffer,
        )


def test_learns_with_everything_on():
    "`learn` end to end with several environments; two runs of the same seed are equal"

    def run():
        model = agent(
            alpha=0.6, demo_ratio=0.25, n_steps=3, terms=(LargeMarginLoss(0.3, schedule=LinearSchedule(1.0, 0.1, 1.0)),)
        )
        np.random.seed(0)
        model.learning_starts, model.gradient_steps = 0, 8
        model.learn(800)
        return model

    one, two = run(), run()
    assert (
        demo_accuracy(one) > 0.9
        and one.replay_buffer.beta > 0.9
        and 0 < one.logger.name_to_value["train/margin_violations"] < 1
    )
    for a, b in zip(one.q_net.parameters(), two.q_net.parameters()):
        assert torch.equal(a, b)


@pytest.mark.parametrize("steps, said", [(4, [1, 2, 3, 4]), (25, [*range(2, 25, 2), 25]), (40, [*range(4, 41, 4)])])
def test_the_accuracy_is_measured_after_each_tenth(steps, said):
    "And at the end, where the target network is that which learned"
    model = agent()
    shuffle(model.replay_buffer)
    assert [step for step, _ in pretrain(model, steps, 8, target_update_interval=1000, progress=False)] == said
    pairs = zip(model.q_net.parameters(), model.q_net_target.parameters())
    assert all(torch.equal(a, b) for a, b in pairs)
