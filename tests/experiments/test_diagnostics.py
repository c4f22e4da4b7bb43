"What a run says about itself: every curve is documented and logged, measured as an independent computation gives it"

import errno
import json
import os
import time
import random

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from locrl.experiments import diagnostics
from locrl.data.boxes import TRIGGER, iou
from locrl.experiments.config import config_fields, prepare
from locrl.experiments.diagnostics import (
    NAMES,
    Diagnostics,
    Events,
    Histogram,
    Probe,
    applies,
    pearson,
    ridge,
    row_key,
    watch,
)
from locrl.envs.localization import Targets
from locrl.experiments.train import Agent, make_model, train
from tiny import TINIEST

PLAIN = TINIEST.replace(
    {"name": "plain", "data.select": "scenes:val:24", "learning.steps": 480, "evaluation.eval_every": 240}
)
FULL = PLAIN.replace(
    {
        "name": "full",
        "replay.n_steps": 3,
        "replay.alpha": 0.6,
        "demonstrations.ratio": 0.25,
        "demonstrations.episodes": 50,
        "demonstrations.warmup": 100,
        "demonstrations.margin_weight": 1.0,
        "reward": "continuous",
    }
)


@pytest.fixture(scope="module")
def world():
    return prepare(PLAIN)


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return {c.name: train(c, 0, root, world, progress=False) for c in (PLAIN, FULL)}


@pytest.mark.parametrize("config", [PLAIN, FULL], ids=lambda c: c.name)
def test_what_is_logged_is_documented_and_what_is_documented_is_logged(runs, config):
    events = EventAccumulator(str(runs[config.name])).Reload()
    tags = events.Tags()
    logged = {*tags["scalars"], *tags["histograms"], *tags["images"]}
    sometimes = {"val/mean_trigger_iou", "val/trigger_ious"}  # nothing to show while nothing is triggered
    assert logged <= set(NAMES)
    assert {n for n in NAMES if applies(n, config)} - sometimes <= logged
    assert {n for n in logged if not applies(n, config)} == set()
    rows = [json.loads(line) for line in (runs[config.name] / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [0, 240, 480][not config.demonstrations.warmup :]  # a warm-up is validated too
    for name in tags["scalars"]:
        points = {e.step: e.value for e in events.Scalars(name)}
        assert points == pytest.approx(
            {r["step"]: r[row_key(name)] for r in rows if r.get(row_key(name)) is not None}, rel=1e-5
        ), name


def test_every_curve_is_told_apart_and_explained():
    assert len({row_key(n) for n in NAMES}) == len(NAMES)
    for name, curve in NAMES.items():
        assert curve.meaning and curve.healthy and name.count("/") == 1
        for field in curve.needs:
            assert field in config_fields(), name


def test_looking_on_changes_nothing(world):
    "No weight, no random state and no attached picture is another afterwards"
    model = make_model(world, 0)
    model._setup_learn(100)
    model.set_logger(type("L", (), dict(name_to_value={}, record=lambda *a: None, dump=lambda *a: None))())
    before = {k: v.clone() for k, v in model.policy.state_dict().items()}

    def states():
        return (
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
            model.env.search.rng.bit_generator.state,
        )

    random_before = states()
    Diagnostics(world)(model)
    assert states() == random_before and all(torch.equal(v, before[k]) for k, v in model.policy.state_dict().items())
    assert model.policy.q_net.features_extractor.bank is world.banks["train"]


def test_two_looks_are_the_same(runs, world):
    agent, bank = Agent.load(runs["full"]), world.bank("select")
    targets = Targets.of(world.data["select"], bank.classes)
    assert Probe(bank, targets)(agent.policy) == Probe(bank, targets)(agent.policy)


def test_the_probe_asks_within_the_band_and_splits_by_picture(world):
    bank = world.bank("select")
    targets = Targets.of(world.data["select"], bank.classes)
    probe = Probe(bank, targets, n=700)
    row = {(i, label): b for i, label, b in zip(targets.image, targets.label, targets.boxes)}
    truth = np.array([iou(k[2:6], row[int(k[0]), int(k[1])]).max() for k in probe.keys.numpy()])
    np.testing.assert_allclose(truth, probe.truth, atol=1e-6)
    assert truth.min() >= 0.5 and truth.max() <= 0.85 and len(truth) <= 700
    assert np.histogram(truth, np.linspace(0.5, 0.85, 8))[0].max() <= 100
    assert not set(probe.keys[probe.other, 0].tolist()) & set(probe.keys[~probe.other, 0].tolist())


def test_a_probe_without_states_says_none(world, runs):
    probe = Probe(world.bank("select"), Targets.of(world.data["select"], world.bank("select").classes), band=(1.5, 2))
    assert probe(Agent.load(runs["plain"]).policy) == dict(head=None, probe=None)


def test_ridge_is_scikit_learns():
    rng = np.random.default_rng(0)
    x, y = rng.normal(2, 3, (80, 30)), rng.normal(5, 1, 80)
    theirs = Ridge(alpha=0.5 * 60).fit((x[:60] - x[:60].mean(0)) / x[:60].std(0), y[:60])
    np.testing.assert_allclose(
        ridge(x[:60], y[:60], 0.5)(x[60:]), theirs.predict((x[60:] - x[:60].mean(0)) / x[:60].std(0)), rtol=1e-5
    )
    assert (
        pearson([1, 2, 3], [2, 4, 7]) == pytest.approx(np.corrcoef([1, 2, 3], [2, 4, 7])[0, 1])
        and pearson([1, 2], [1, 2]) is None
    )


def test_a_search_is_shown_without_its_picture(world, runs):
    "Where the photographs are gone the boxes are drawn on grey"

    class Blind:
        def __init__(self, data):
            self.data = data

        def __getattr__(self, name):
            return getattr(self.data, name)

        def image(self, i):
            raise OSError(errno.ENOENT, "no such picture")

    agent = Agent.load(runs["full"])
    bank = world.bank("select")
    data = world.data["select"]
    seen, blind = (watch(agent.policy, bank, d, 0, 0) for d in (data, Blind(data)))
    assert (
        np.array_equal(seen.boxes, blind.boxes)
        and np.asarray(blind.image).std() == 0
        and np.asarray(seen.image).std() > 0
    )
    assert len(diagnostics.filmstrip(blind, n=6).axes) <= 6


def test_events_are_dropped_after_the_checkpoint_that_is_resumed(tmp_path):
    for first, steps in ((0, (10, 20, 30)), (20, (30, 40))):
        log = Events(tmp_path, first)
        for step in steps:
            log.write(
                {"a": float(step + first), "h": Histogram(np.array([0.1, 0.9]), np.linspace(0, 1, 3))},
                {"a": None, "h": None},
                step,
            )
        log.close()
        time.sleep(1.1)  # TensorBoard reads files in the order of the second in their names
    events = EventAccumulator(str(tmp_path), size_guidance=dict(histograms=0)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("a")] == [(10, 10.0), (20, 20.0), (30, 50.0), (40, 60.0)]
    assert len(events.Histograms("h")) == 4


def test_events_that_cannot_be_written_stop_nothing(tmp_path, monkeypatch):
    log, real = Events(tmp_path), diagnostics.SummaryWriter

    def broken(*args, **kwargs):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(diagnostics, "SummaryWriter", broken)
    with pytest.warns(UserWarning, match="step 10 is missing from the curves"):
        log.write({"a": 1.0}, {"a": None}, 10)
    monkeypatch.setattr(diagnostics, "SummaryWriter", real)
    log.write({"a": 2.0}, {"a": None}, 20)
    monkeypatch.setattr(log.writer, "flush", broken)
    with pytest.warns(UserWarning, match="step 30"):
        log.write({"a": 3.0}, {"a": None}, 30)
    log.write({"a": 4.0}, {"a": None}, 40)
    log.close()
    assert {20, 40} <= {e.step for e in EventAccumulator(str(tmp_path)).Reload().Scalars("a")}


def test_moves_and_trigger_are_told_apart():
    q = torch.randn(32, 10, generator=torch.Generator().manual_seed(0))
    kept = q.clone()
    loss, log = diagnostics.ActionValues()(None, None, q, None)
    moves = np.delete(q.numpy(), TRIGGER, 1).max(1)
    assert loss == 0 and torch.equal(q, kept)
    assert log["q_move_max"].item() == pytest.approx(moves.mean(), rel=1e-5)
    assert log["q_trigger"].item() == pytest.approx(q[:, TRIGGER].mean().item(), rel=1e-5)
    assert log["trigger_greedy"].item() == pytest.approx((q[:, TRIGGER].numpy() > moves).mean())
