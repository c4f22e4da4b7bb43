"Double DQN against SB3's DQN; saving and loading"

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.monitor import Monitor

from locrl.agents.double_dqn import DoubleDQN

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
    "With the hyper-parameters of SB3's zoo both pass 400 of 500 within its 50,000 steps, by the best policy that was evaluated"
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
    "The same seed gives the same weights as SB3's DQN, where nothing is explored (they draw explored actions in other ways)"
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
