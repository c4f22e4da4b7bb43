"Training does not wait for a GPU: what an update asks of its tensors is counted, on the processor"

from functools import partialmethod

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from locrl.agents.policy import IoULoss
from locrl.agents.replay import PrioritizedReplayBuffer
from locrl.envs.localization import Search
from locrl.experiments.config import prepare
from locrl.experiments.train import demonstrations, make_model
from stable_baselines3.common.logger import Logger
from tiny import TINIEST

ASKING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal")


class Waits(TorchDispatchMode):
    "Notes every operation whose result the host needs before it can go on"

    def __init__(self, optimizer):
        super().__init__()
        self.optimizer, self.found = optimizer, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        counts = [state.get("step") for state in self.optimizer.state.values()]  # the host's own, also with a GPU
        masks = [x for x in args[1] if x is not None and x.dtype == torch.bool] if name.startswith("index") else ()
        if (name in ASKING and not any(args[0] is count for count in counts)) or masks:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    "The ways that are chosen on a GPU; one-hot codes are checked by the processor only"
    monkeypatch.setattr(IoULoss, "ranking", partialmethod(IoULoss.ranking, masked=True))
    monkeypatch.setattr(
        PrioritizedReplayBuffer, "to_torch", lambda self, x, copy=True: torch.from_numpy(np.ascontiguousarray(x))
    )
    monkeypatch.setattr(F, "one_hot", lambda x, n: (x[..., None] == torch.arange(n, device=x.device)).long())
    read = []
    for name in ("cpu", "tolist"):
        method = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, m=method, n=name: (read.append(n), m(self))[1])
    make = torch.tensor  # copies from the host, and waits until it is there
    monkeypatch.setattr(torch, "tensor", lambda *args, **kwargs: (read.append("tensor"), make(*args, **kwargs))[1])
    return read


CHANGES = {"learning.rank_weight": 0.1, "learning.iou_weight": 1.0, "demonstrations.margin_weight": 1.0}
CHANGES |= {
    "demonstrations.ratio": 0.25,
    "observation.grid": 3,
    "observation.local_saliency": 4,
    "network.dropout": 0.1,
}


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_an_update_waits_for_nothing_but_priorities(as_on_a_gpu, alpha):
    "Four updates: the log is read once; each update gives its priorities back where the buffer has some"
    world = prepare(TINIEST.replace(CHANGES | {"replay.alpha": alpha}))
    model = make_model(world, 0)
    model.replay_buffer.add_demonstrations(**demonstrations(Search(world.targets[:4], 4)))
    model._logger = Logger(None, [])
    observations = model.env.reset()
    for _ in range(4):
        actions = np.random.randint(0, 10, len(observations))
        after, rewards, dones, infos = model.env.step(actions)
        model.replay_buffer.add(observations, after, actions, rewards, dones, infos)
        observations = after
    model.train(1, 16)
    as_on_a_gpu.clear()
    with Waits(model.policy.optimizer) as waits:
        model.train(4, 16)
    assert waits.found == [] and as_on_a_gpu == ["cpu"] * (4 * (alpha > 0)) + ["tolist"]
    assert {"train/rank_loss", "train/margin_loss", "train/td_loss"} < set(model.logger.name_to_value)


@pytest.mark.parametrize("ask", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: bool(x.any()), torch.nonzero])
def test_waiting_is_noticed(ask):
    with Waits(torch.optim.Adam([torch.zeros(1, requires_grad=True)])) as waits:
        ask(torch.ones(3))
    assert waits.found


@pytest.mark.parametrize("seed", range(5))
def test_ranking_is_the_same_in_both_ways(seed):
    g = torch.Generator().manual_seed(seed)
    loss = object.__new__(IoULoss)
    loss.band = (0.5, 0.85)
    truth = torch.rand(64, generator=g)
    ends = []
    for masked in (False, True):
        logit = torch.randn(64, generator=torch.Generator().manual_seed(seed), requires_grad=True)
        loss.ranking(logit, truth, masked).backward()
        ends.append((loss.ranking(logit, truth, masked).detach(), logit.grad))
    torch.testing.assert_close(*ends, atol=1e-6, rtol=1e-5)
    assert loss.ranking(torch.zeros(3), torch.zeros(3), True) == 0  # nothing lies in the band
