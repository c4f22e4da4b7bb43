"""The small configurations that several test files train."""

from locrl.experiments.config import Config

TINY = Config(
    name="tiny",
    train="scenes:train:60",
    select="scenes:val:30",
    report="scenes:test:30",
    classes=("cat", "dog"),
    dim=32,
    input_size=128,
    n_envs=16,
    batch_size=32,
    gradient_steps=1,
    net_arch=(64, 64),
    region_width=16,
    steps=800,
    eval_every=400,
    learning_starts=200,
)
TINIEST = Config(
    name="tiny",
    train="scenes:train:24",
    select="scenes:val:12",
    report="scenes:test:12",
    classes=("cat", "dog"),
    dim=8,
    input_size=64,
    n_envs=8,
    batch_size=16,
    gradient_steps=1,
    net_arch=(16, 16),
    region_width=4,
    steps=640,
    eval_every=160,
    learning_starts=64,
    buffer_size=400,
    target_update_interval=80,
)


def no_film(episode, n):
    "In place of the film of a validation, which takes longer than the rest of a tiny one; tests/test_diagnostics.py draws it"
    import matplotlib.pyplot as plt

    return plt.figure()
