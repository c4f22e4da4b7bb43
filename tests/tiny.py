"""The small configurations that several test files train."""

import json

from locrl.experiments.config import Config

TINY = Config().replace(
    {
        "name": "tiny",
        "data.train": "scenes:train:60",
        "data.select": "scenes:val:30",
        "data.report": "scenes:test:30",
        "data.classes": ("cat", "dog"),
        "encoder.dim": 32,
        "encoder.input_size": 128,
        "learning.n_envs": 16,
        "learning.batch_size": 32,
        "learning.gradient_steps": 1,
        "network.net_arch": (64, 64),
        "network.region_width": 16,
        "learning.steps": 800,
        "evaluation.eval_every": 400,
        "learning.learning_starts": 200,
    }
)
TINIEST = Config().replace(
    {
        "name": "tiny",
        "data.train": "scenes:train:24",
        "data.select": "scenes:val:12",
        "data.report": "scenes:test:12",
        "data.classes": ("cat", "dog"),
        "encoder.dim": 8,
        "encoder.input_size": 64,
        "learning.n_envs": 8,
        "learning.batch_size": 16,
        "learning.gradient_steps": 1,
        "network.net_arch": (16, 16),
        "network.region_width": 4,
        "learning.steps": 640,
        "evaluation.eval_every": 160,
        "learning.learning_starts": 64,
        "replay.buffer_size": 400,
        "learning.target_update_interval": 80,
    }
)


def amend(run, **checkpoints):
    "Write other content into checkpoints of a run, as a run that had it"
    from locrl.checkpoints import RunFolder, pack_tree

    RunFolder(run).commit({role: pack_tree(tree) for role, tree in checkpoints.items()})


def rewrite(run, change):
    "Change what `config.json` and the last checkpoint say of a run, as a run that was made so"
    from locrl.checkpoints import RunFolder, pack_tree
    from locrl.experiments.train import load_checkpoint

    about, state = json.loads((run / "config.json").read_text()), load_checkpoint(run)
    change(about)
    if "about" in state:
        change(state["about"])
    RunFolder(run).commit({"config.json": json.dumps(about).encode(), "last": pack_tree(state)})


def no_film(episode, n):
    "Stand in for the film of a validation, which takes longer than the rest; tests/test_diagnostics.py draws it"
    import matplotlib.pyplot as plt

    return plt.figure()
