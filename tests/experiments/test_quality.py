"""An agent that observes what judges say of its box: training, resuming, searching, packing."""

import numpy as np
import pytest
import torch
from PIL import Image

from locrl.agents.judge import load_judges
from locrl.agents.search import search
from locrl.apps import pretrained
from locrl.apps.localizer import Localizer
from locrl.checkpoints import RunError, RunFolder
from locrl.data.boxes import TRIGGER
from locrl.envs.observation import QUALITY, ObservationConfig, observe
from locrl.evaluation import judging
from locrl.experiments.config import Config, ConfigError, prepare
from locrl.experiments.results import evaluate_runs, searches_of
from locrl.experiments.train import Agent, load_checkpoint, train
from locrl.experiments.transfer import elsewhere
from tiny import TINIEST

TIED = {"name": "tied", "observation.quality": True, "network.tied": True, "search.restarts": "windows"}
fit = judging.fit_judge


def quick(*args, **kwargs):
    return fit(*args, **kwargs | dict(epochs=1, widths=(8,)))


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    "Configuration, world and run folder of an agent that reads judges"
    config = TINIEST.replace(TIED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "fit_judge", quick)
        world = prepare(config)
    return config, world, train(config, 0, tmp_path_factory.mktemp("runs"), world, progress=False)


def test_the_judges_belong_to_the_run(tied):
    config, world, folder = tied
    judges = load_judges(folder / "judges.safetensors")
    assert [j.digest for j in judges] == [j.digest for j in world.judges] and len(judges) == 2
    agent = Agent.load(folder)
    assert [j.digest for j in agent.judges] == [j.digest for j in judges]
    bank = agent.world().bank("select")
    assert bank.quality is not None and len(searches_of(agent, bank)) == 2 * len(bank)
    manifest = RunFolder(folder).manifest()
    assert "judges.safetensors" in manifest["files"]


def test_it_is_the_end_of_the_observation(tied):
    config, world, _ = tied
    bank, seen = world.banks["train"], config.observation
    keys = torch.tensor([[3, 1, 0.1, 0.2, 0.7, 0.9, 0, *[-1] * 10], [5, 0, 0, 0, 1, 1, 2, *[-1] * 10]])
    observed = observe(bank, keys, seen)
    assert list(seen.parts(bank.dim))[-1] == "quality" and observed.shape[1] == seen.size(bank.dim)
    torch.testing.assert_close(observed[:, -QUALITY:], bank.quality(keys[:, 0].long(), keys[:, 1].long(), keys[:, 2:6]))
    bank.quality, reader = None, bank.quality
    with pytest.raises(ValueError, match="no judge has seen"):
        observe(bank, keys, seen)
    bank.quality = reader


def test_a_tied_trigger_reads_the_judge_and_nothing_else(tied):
    config, world, folder = tied
    network = Agent.load(folder).policy.q_net
    a, b = torch.randn(2, 40, config.observation.size(world.projection.dim))
    b[:, -QUALITY:] = a[:, -QUALITY:]
    one, other = network.head(network.trunk(a)), network.head(network.trunk(b))
    torch.testing.assert_close(one[:, TRIGGER], other[:, TRIGGER])
    assert (one - other).abs().amax(0)[[k for k in range(10) if k != TRIGGER]].min() > 0
    line = a[:, -QUALITY:] @ network.stop_head.weight[0] + network.stop_head.bias
    torch.testing.assert_close(one[:, TRIGGER], line)
    start = torch.ones(QUALITY)
    assert not torch.equal(network.stop_head.weight[0], start)  # it has learned


def test_stopping_and_going_on_changes_no_bit(tied, tmp_path, monkeypatch):
    "The judges are read from the run that goes on, not fitted again"
    config, world, folder = tied
    monkeypatch.setattr(judging, "fit_judge", quick)
    train(config, 0, tmp_path, progress=False, stop_after=160)
    monkeypatch.setattr(judging, "fit_judge", None)
    again = train(config, 0, tmp_path, progress=False)
    ours, theirs = (load_checkpoint(run)["model"]["policy"] for run in (folder, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_without_its_judges_is_refused(tied, tmp_path, monkeypatch):
    config, world, folder = tied
    read = RunFolder.read
    monkeypatch.setattr(
        RunFolder, "read", lambda self, *names: read(self, *(n for n in names if n != "judges.safetensors"))
    )
    with pytest.raises(RunError, match="judges.safetensors"):
        Agent.load(folder)


def test_on_a_photograph_and_in_a_pack(tied, tmp_path):
    config, world, folder = tied
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    localizer = Localizer.from_run(folder)
    found = localizer.locate(picture, "cat")
    assert np.isfinite(found.q_values).all() and localizer.closed
    bank = localizer._bank([picture], ["cat"])
    steps = search(localizer.agent.policy, bank, np.array([0]), np.array([0]), config.moves, 40)
    np.testing.assert_allclose(steps.q_values[0], found.q_values[0], atol=1e-5)
    packed = pretrained.pack(folder, tmp_path / "tied.npz", measured=False)
    assert len(packed.judges) == 2
    theirs = Localizer.pretrained(str(tmp_path / "tied.npz")).locate(picture, "cat")
    np.testing.assert_allclose(theirs.q_values[0], found.q_values[0], atol=0.05)


def test_it_is_scored_like_any_run_and_asked_for_no_other_class(tied):
    _, _, folder = tied
    result = evaluate_runs(folder, "select", with_baselines=False)
    assert 0 <= result["metrics"]["seeds"][0]["hit_rate"] <= 1
    with pytest.raises(ConfigError, match="cannot be asked for others"):
        elsewhere(Agent.load(folder), ("cow",), "scenes:test:12")


def test_settings_that_do_not_go_together():
    with pytest.raises(ConfigError, match="observation.quality"):
        Config().replace({"network.tied": True})
    with pytest.raises(ConfigError, match="search.restarts"):
        Config().replace({"observation.quality": True})
    assert ObservationConfig(quality=True).size(8) == ObservationConfig().size(8) + QUALITY
