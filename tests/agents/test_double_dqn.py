"Double DQN against SB3's DQN; saving and loading"

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor

from stable_baselines3.dqn.policies import DQNPolicy, MlpPolicy

from locrl.agents.double_dqn import DoubleDQN, TrunkPolicy
from locrl.agents.replay import PrioritizedReplayBuffer
from locrl.checkpoints import RunError, pack_tree, unpack_tree

CARTPOLE = dict(
    learning_rate=2.3e-3,
    batch_size=64,
    buffer_size=100_000,
    learning_starts=1000,
    gamma=0.99,
    target_update_interval=10,
    train_freq=256,
    gradient_steps=128,
    exploration_fraction=0.16,
    exploration_final_eps=0.04,
    policy_kwargs=dict(net_arch=[256, 256]),
    device="cpu",
)
SMALL = dict(learning_starts=50, batch_size=16, policy_kwargs=dict(net_arch=[16]), seed=0, device="cpu")


def same_weights(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [DoubleDQN, DQN])
def test_cartpole(algorithm):
    "With the hyper-parameters of SB3's zoo the best policy of both passes 400 of 500 within its 50,000 steps"
    model = algorithm("MlpPolicy", gym.make("CartPole-v1"), seed=0, **CARTPOLE)
    best = EvalCallback(
        Monitor(gym.make("CartPole-v1")),
        callback_on_new_best=StopTrainingOnRewardThreshold(400),
        eval_freq=2048,
        n_eval_episodes=10,
        verbose=0,
    )
    model.learn(50_000, callback=best)
    print(f"{algorithm.__name__} on CartPole-v1: {best.best_mean_reward:.1f} after {model.num_timesteps} steps")
    assert best.best_mean_reward > 400


class Greedy(DQN):
    "SB3's DQN, drawing no random number when it does not explore"

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return self.policy.predict(observation, state, episode_start, True)


@pytest.mark.parametrize("max_grad_norm", [10, 0.05])
def test_without_double_it_is_sb3s_dqn(max_grad_norm):
    "The same seed gives the same weights as SB3's DQN, where nothing is explored (they draw actions in other ways)"
    kwargs = SMALL | dict(
        max_grad_norm=max_grad_norm,
        learning_starts=0,
        exploration_initial_eps=0.0,
        exploration_final_eps=0.0,
        target_update_interval=40,
    )
    ours = DoubleDQN("MlpPolicy", gym.make("CartPole-v1"), double=False, **kwargs).learn(300)
    theirs = Greedy("MlpPolicy", gym.make("CartPole-v1"), **kwargs).learn(300)
    torch.testing.assert_close(dict(ours.policy.state_dict()), dict(theirs.policy.state_dict()))
    assert ours._n_updates == theirs._n_updates > 0


def test_double_changes_the_choice_only():
    "Double targets take the target network's value of the action that the online network prefers"
    model = DoubleDQN("MlpPolicy", gym.make("CartPole-v1"), **SMALL).learn(200)
    with torch.no_grad():
        for p in model.q_net_target.parameters():
            p += torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
        batch = model.replay_buffer.sample(64)
        online, target = model.q_net(batch.next_observations), model.q_net_target(batch.next_observations)
        best = target.gather(1, online.argmax(1, keepdim=True))
        torch.testing.assert_close(model.targets(batch), batch.rewards + (1 - batch.dones) * 0.99 * best)
        model.double = False
        torch.testing.assert_close(
            model.targets(batch), batch.rewards + (1 - batch.dones) * 0.99 * target.amax(1, keepdim=True)
        )
        assert (best <= target.amax(1, keepdim=True)).all() and (best < target.amax(1, keepdim=True)).any()


def test_save_and_load(tmp_path):
    model = DoubleDQN("MlpPolicy", gym.make("CartPole-v1"), double=True, **SMALL).learn(150)
    model.save(tmp_path / "agent")
    model.save_replay_buffer(tmp_path / "replay")
    again = DoubleDQN.load(tmp_path / "agent", env=gym.make("CartPole-v1"), device="cpu")
    again.load_replay_buffer(tmp_path / "replay")
    assert same_weights(model.policy.state_dict(), again.policy.state_dict()) and again.double and again.guide is None
    observations = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    assert np.array_equal(
        model.predict(observations, deterministic=True)[0], again.predict(observations, deterministic=True)[0]
    )
    assert again.num_timesteps == model.num_timesteps and again.replay_buffer.size() == model.replay_buffer.size()
    again.learn(50, reset_num_timesteps=False)
    assert again.num_timesteps >= model.num_timesteps + 50


class Endless(gym.Env):
    "Counts its steps and never ends; the reward is the number of the step"

    observation_space, action_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.at += 1
        return np.full(1, self.at, np.float32), float(self.at), False, False, {}


@pytest.mark.parametrize("policy", ["CnnPolicy", "MultiInputPolicy", "unknown", MlpPolicy, DQNPolicy])
def test_a_policy_without_a_trunk_is_refused(policy):
    with pytest.raises(
        ValueError, match="needs a policy with trunk and head: 'MlpPolicy' or a subclass of TrunkPolicy"
    ):
        DoubleDQN(policy, gym.make("CartPole-v1"))


def test_dict_observations_are_refused():
    class Two(Endless):
        observation_space = gym.spaces.Dict({"a": gym.spaces.Box(0, 1, (2,)), "b": gym.spaces.Box(0, 1, (2,))})

    with pytest.raises(ValueError, match="no Dict observations"):
        DoubleDQN(TrunkPolicy, Two())


def returns_by_hand(buffer, first, gamma, n):
    "The n-step return of row `first`, cut where an episode or a call of `learn` ends, and the discount of what follows"
    total, k = 0.0, 0
    while True:
        total += gamma**k * buffer.rewards[first + k, 0]
        k += 1
        if (
            k == n or first + k == buffer.pos or buffer.observations[first + k, 0, 0] == 0
        ):  # the environment starts anew
            return total, gamma**k


@pytest.mark.parametrize("kind", ["ours", "SB3's"])
def test_returns_end_where_learn_begins_anew(kind):
    "Three-step returns on an environment without an end, over two calls of learn, against a loop"
    own = dict(replay_buffer_class=PrioritizedReplayBuffer, replay_buffer_kwargs=dict(gamma=0.5, n_steps=3))
    kwargs = SMALL | dict(learning_starts=1000, gamma=0.5) | (own if kind == "ours" else dict(n_steps=3))
    model = DoubleDQN("MlpPolicy", Endless(), **kwargs).learn(12).learn(8)
    buffer = model.replay_buffer
    assert buffer.pos == 20 and np.flatnonzero(buffer.timeouts[:20, 0]).tolist() == [11]
    for row in range(20):
        if kind == "ours":
            _, _, _, dones, rewards, discounts = buffer._transitions(np.array([row]))
        else:
            sample = buffer._get_samples(np.array([row]))
            dones, rewards, discounts = sample.dones, sample.rewards, sample.discounts
        reward, discount = returns_by_hand(buffer, row, 0.5, 3)
        assert float(rewards[0, 0]) == reward and float(discounts[0, 0]) == discount and not float(dones[0, 0])


def test_a_run_that_goes_on_has_no_seam():
    model = DoubleDQN("MlpPolicy", Endless(), **SMALL | dict(learning_starts=1000)).learn(10)
    model.learn(10, reset_num_timesteps=False)
    assert not model.replay_buffer.timeouts.any()


PER = dict(replay_buffer_class=PrioritizedReplayBuffer, replay_buffer_kwargs=dict(gamma=0.9, n_steps=3), gamma=0.9)


@pytest.mark.parametrize("kind", ["ours", "SB3's", "plain"])
def test_loading_with_another_gamma_learns_with_it(kind, tmp_path):
    "The targets are those of the new discount, not only the attribute"
    kwargs = {"ours": PER, "SB3's": dict(gamma=0.9, n_steps=3), "plain": dict(gamma=0.9)}[kind]
    DoubleDQN("MlpPolicy", Endless(), **SMALL | kwargs).learn(60).save(tmp_path / "agent")
    model = DoubleDQN.load(tmp_path / "agent", Endless(), gamma=0.5, device="cpu").learn(60)
    n = 1 if kind == "plain" else 3
    buffer = model.replay_buffer
    sample = buffer.sample(64)
    longest = 0.5 if sample.discounts is None else float(sample.discounts.min())
    assert model.gamma == 0.5 and longest == 0.5**n
    first = sample.observations[:, 0].numpy().astype(int)
    for row, got in zip(first, sample.rewards[:, 0].tolist()):
        assert got == pytest.approx(returns_by_hand(buffer, int(row), 0.5, n)[0])


def test_a_gamma_that_is_changed_later_is_refused():
    model = DoubleDQN("MlpPolicy", Endless(), **SMALL | PER).learn(60)
    model.gamma = 0.5
    with pytest.raises(ValueError, match="gamma=0.5, but the replay buffer discounts by 0.9"):
        model.learn(10, reset_num_timesteps=False)


@pytest.mark.parametrize("other", [dict(gamma=0.5), dict(n_steps=2)])
def test_a_replay_buffer_of_other_returns_is_refused(other, tmp_path):
    DoubleDQN("MlpPolicy", Endless(), **SMALL | PER).learn(60).save_replay_buffer(tmp_path / "replay")
    kwargs = dict(PER, replay_buffer_kwargs=PER["replay_buffer_kwargs"] | other, gamma=other.get("gamma", 0.9))
    model = DoubleDQN("MlpPolicy", Endless(), **SMALL | kwargs)
    with pytest.raises(
        ValueError, match=r"was filled with (gamma=0.9|n_steps=3), this agent has (gamma=0.5|n_steps=2)"
    ):
        model.load_replay_buffer(tmp_path / "replay")


@pytest.mark.parametrize("kwargs", [PER, dict(gamma=0.9, n_steps=3), {}])
def test_a_saved_replay_buffer_comes_back_whole(kwargs, tmp_path):
    model = DoubleDQN("MlpPolicy", Endless(), **SMALL | kwargs).learn(60)
    model.save_replay_buffer(tmp_path / "replay")
    again = DoubleDQN("MlpPolicy", Endless(), **SMALL | kwargs)
    again.load_replay_buffer(tmp_path / "replay")
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        assert np.array_equal(getattr(again.replay_buffer, name)[:60], getattr(model.replay_buffer, name)[:60]), name
    assert again.replay_buffer.pos == 60 and not again.replay_buffer.full
    small = DoubleDQN("MlpPolicy", Endless(), **SMALL | kwargs | dict(buffer_size=40))
    with pytest.raises(ValueError, match="replay.safetensors does not fit this agent: .*60 rows"):
        small.load_replay_buffer(tmp_path / "replay")


def test_a_function_among_the_arguments_is_given_again(tmp_path):
    "It is a pickle in the file: refused with its name, read where trusted, not read where it is given"
    DoubleDQN("MlpPolicy", Endless(), **SMALL, learning_rate=lambda left: 1e-3 * left).save(tmp_path / "agent")
    with pytest.raises(RunError, match=r"the field learning_rate is a pickle.*load\(path, learning_rate=...\)"):
        DoubleDQN.load(tmp_path / "agent", device="cpu")
    assert DoubleDQN.load(tmp_path / "agent", device="cpu", learning_rate=5e-4).lr_schedule(0.5) == 5e-4
    assert DoubleDQN.load(tmp_path / "agent", device="cpu", trusted=True).lr_schedule(0.5) == 5e-4


def test_what_sb3_saved_is_read_where_it_is_trusted(tmp_path):
    "Its archives hold pickles of classes and spaces"
    model = DoubleDQN("MlpPolicy", Endless(), **SMALL).learn(60)
    DQN.save(model, tmp_path / "theirs")
    DQN.save_replay_buffer(model, tmp_path / "replay")
    with pytest.raises(RunError, match=r"theirs.zip is a pickle.*trusted=True"):
        DoubleDQN.load(tmp_path / "theirs")
    again = DoubleDQN.load(tmp_path / "theirs", Endless(), "cpu", trusted=True)
    assert same_weights(model.policy.state_dict(), again.policy.state_dict())
    with pytest.raises(RunError, match=r"replay.pkl is a pickle.*trusted=True"):
        again.load_replay_buffer(tmp_path / "replay")
    again.load_replay_buffer(tmp_path / "replay", trusted=True)
    assert again.replay_buffer.size() == 60


@pytest.mark.parametrize("name", ["subprocess:Popen", "os:system", "builtins:dict", "gymnasium:Env", "antigravity:fly"])
def test_a_file_names_no_class_but_those_of_an_agent(name, tmp_path):
    DoubleDQN("MlpPolicy", Endless(), **SMALL).save(tmp_path / "agent")
    tree = unpack_tree((tmp_path / "agent.safetensors").read_bytes())
    kwargs = {"items": [["features_extractor_class", {"class": name}], ["features_extractor_kwargs", {"items": []}]]}
    tree["fields"]["policy_kwargs"] = {"plain": kwargs}
    (tmp_path / "agent.safetensors").write_bytes(pack_tree(tree))
    with pytest.raises(RunError, match=f"of {name.split(':')[0]} is not known here"):
        DoubleDQN.load(tmp_path / "agent", device="cpu")


def test_an_agent_with_classes_and_settings_of_its_own_comes_back(tmp_path):
    "The policy of the search: a features extractor with a dataclass as its argument"
    from locrl.agents.policy import RegionPolicy, policy_kwargs
    from locrl.envs.localization import LocalizationVecEnv, Search, Targets
    from locrl.envs.observation import ObservationConfig

    targets = Targets(np.zeros(1, np.int64), np.zeros(1, np.int64), np.full((1, 1, 4), 0.5, np.float32))
    kwargs = dict(policy_kwargs=policy_kwargs(8, ObservationConfig(), (16,), 4), device="cpu", buffer_size=100)
    model = DoubleDQN(RegionPolicy, LocalizationVecEnv(Search(targets, 2)), **kwargs, guide="exploration_weights")
    model.save(tmp_path / "agent")
    again = DoubleDQN.load(tmp_path / "agent", device="cpu")
    assert same_weights(model.policy.state_dict(), again.policy.state_dict()) and again.guide == model.guide
    assert again.policy_kwargs == model.policy_kwargs and again.observation_space == model.observation_space


def test_optimiser_and_counters_go_on(tmp_path):
    model = DoubleDQN("MlpPolicy", gym.make("CartPole-v1"), **SMALL).learn(150)
    model.save(tmp_path / "agent")
    again = DoubleDQN.load(tmp_path / "agent", gym.make("CartPole-v1"), device="cpu")
    a, b = model.policy.optimizer.state_dict()["state"], again.policy.optimizer.state_dict()["state"]
    assert a.keys() == b.keys() and all(torch.equal(a[k]["exp_avg"], b[k]["exp_avg"]) for k in a)
    for name in ("num_timesteps", "_n_updates", "_n_calls", "exploration_rate", "_episode_num"):
        assert getattr(again, name) == getattr(model, name), name


class Guided(Endless):
    "Allows action 1 alone"

    def allowed(self):
        return np.array([[False, True]])


def test_the_guide_is_not_asked_of_other_environments():
    "evaluate_policy explores in three environments of its own; in training the guide decides"
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    model = DoubleDQN("MlpPolicy", Guided(), **SMALL | dict(learning_starts=60), guide="allowed").learn(50)
    assert model.replay_buffer.actions[:50].all()
    model.exploration_rate = 1.0
    observations = np.zeros((300, 1), np.float32)
    actions, _ = model.predict(observations)
    assert actions.shape == (300,) and 0.4 < actions.mean() < 0.6
    assert model.predict(observations[0])[0].shape == ()
    timed = make_vec_env(lambda: gym.wrappers.TimeLimit(Endless(), 5), 3)
    mean, _ = evaluate_policy(model, timed, 6, deterministic=False)
    assert mean == 15


def test_a_guide_of_another_shape_is_refused():
    class Wrong(Guided):
        def allowed(self):
            return np.array([False, True])

    model = DoubleDQN("MlpPolicy", Wrong(), **SMALL, guide="allowed")
    with pytest.raises(ValueError, match=r"guide='allowed': .* \(1, 2\), but returned \(2,\)"):
        model.learn(10)


def test_importance_weights_scale_the_error_of_each_transition():
    "The loss by hand on three transitions; while it learns, the network is in training mode"
    model = DoubleDQN("MlpPolicy", gym.make("CartPole-v1"), **SMALL, learning_rate=0.0)
    rng = np.random.default_rng(0)
    observations, following = (torch.from_numpy(rng.normal(size=(3, 4)).astype(np.float32)) for _ in range(2))
    batch = SimpleNamespace(
        observations=observations,
        actions=torch.tensor([[0], [1], [1]]),
        next_observations=following,
        rewards=torch.tensor([[3.0], [0.2], [-2.0]]),
        dones=torch.tensor([[0.0], [1.0], [0.0]]),
        discounts=None,
        weights=torch.tensor([[0.25], [1.0], [0.5]]),
    )
    modes = []

    class Buffer:
        def sample(self, n, env):
            modes.append(model.q_net.training)
            return batch

    model.replay_buffer = Buffer()
    model.set_logger(Logger(None, []))
    model.train(1, 3)
    with torch.no_grad():
        off = model.q_net(observations).gather(1, batch.actions) - model.targets(batch)
    huber = torch.where(off.abs() < 1, off**2 / 2, off.abs() - 0.5)
    logged = model.logger.name_to_value
    assert logged["train/td_loss"] == pytest.approx((huber * batch.weights).mean().item(), rel=1e-5)
    assert logged["train/td_error"] == pytest.approx(off.abs().mean().item(), rel=1e-5) and modes == [True]
