"""The page that asks whether each mechanism is in effect: what is switched off, and numbers that belong to it."""

import json
import sys

import pytest

from conftest import ROOT
from locrl.experiments.config import Config, difference

sys.path.append(str(ROOT / "benchmarks"))
import attribution  # noqa: E402
from mechanisms import MECHANISMS, config_of  # noqa: E402

RESULTS = json.loads((ROOT / "results/mechanisms.json").read_text())


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_nothing_else_is_switched_off(mechanism):
    "The configuration without a mechanism differs from the one with all of them in the named fields alone"
    with_it, without = config_of(None).to_dict(), config_of(mechanism).to_dict()
    changed = {line.split(":")[0] for line in difference(with_it, without)} - {"name"}
    assert changed == set(MECHANISMS[mechanism][0])


def test_the_results_are_of_todays_settings():
    "A setting that has changed since asks for new runs"
    assert difference(Config.from_dict(RESULTS["config"]).to_dict(), config_of(None).to_dict()) == []
    assert {run["off"] for run in RESULTS["runs"]} <= {None, *MECHANISMS}


def test_the_margin_and_the_warm_up_hold():
    "With all mechanisms on the policy of the demonstrations is there at every reading; without the margin less of it"
    accuracy = {run["off"]: run["demos_accuracy_lowest"] for run in RESULTS["runs"] if run["seed"] == 0}
    assert accuracy[None] >= 0.95 > 0.9 > accuracy["margin"]


def test_every_combination_was_trained_with_todays_settings():
    "Four rewards, two algorithms, two lengths of returns, with and without margin: three seeds of each"
    found = json.loads((ROOT / "results/attribution.json").read_text())
    cells = [(tuple(run[axis] for axis in attribution.AXES), run["seed"]) for run in found["runs"]]
    wanted = [
        (tuple(cell[axis] for axis in attribution.AXES), seed) for cell in attribution.cells() for seed in range(3)
    ]
    assert sorted(cells, key=str) == sorted(wanted, key=str)
    now = attribution.config_of(attribution.cells()[-1]).to_dict()
    assert difference(Config.from_dict(found["config"]).to_dict(), now) == []
