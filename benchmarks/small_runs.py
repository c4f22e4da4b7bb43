"""What the benchmarks that train many small agents share: the small budget, the last policy, a resumable pool."""

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from tqdm.auto import tqdm

from locrl.experiments.config import Config
from locrl.files import cache_root, write_atomic

SMALL = {
    "data.train": "simple-scenes:train:400",
    "data.select": "simple-scenes:val:150",
    "learning.steps": 24_000,
    "evaluation.eval_every": 8_000,
}


def trained(config: Config, seed: int):
    "Train an agent, or find it trained; return it with its last policy, the rows of its log and its validation data"
    import torch

    from locrl.experiments.config import prepare
    from locrl.experiments.results import history
    from locrl.experiments.train import Agent, load_checkpoint, train

    torch.set_num_threads(1)
    world = prepare(config)
    folder = train(config, seed, cache_root() / "runs", world, progress=False)
    agent = Agent.load(folder)
    agent.policy.load_state_dict(load_checkpoint(folder)["model"]["policy"])
    return agent, history(folder), world.bank("select"), world.data["select"]


def measure_all(
    measure: Callable,  # of a task's arguments; returns a row with their values
    todo: list[tuple],  # arguments of each task
    processes: int,  # at once
    path: Path,  # JSON file; its "runs" are kept
    order: Callable,  # sorts the rows
    **about,  # what else the file says
) -> None:
    "Measure task after task and write the file after each of them"
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), max_tasks_per_child=4) as pool:
        waiting = [pool.submit(measure, *task) for task in todo]
        for finished in tqdm(as_completed(waiting), total=len(waiting), desc="agents"):
            runs.append(finished.result())
            runs.sort(key=order)
            write_atomic(path, json.dumps(about | {"runs": runs}, indent=1) + "\n")
