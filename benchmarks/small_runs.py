"""What the benchmarks that train many small agents share: the small budget, the last policy, a resumable pool."""

import argparse
import json
from collections.abc import Callable
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
    "demonstrations.warmup": 1_000,
}


def trained(config: Config, seed: int):
    "Train an agent, or find it trained; return it with its last policy, the rows of its log and its validation data"
    import torch

    from locrl.experiments.config import prepare
    from locrl.checkpoints import RunFolder
    from locrl.experiments.train import Agent, load_checkpoint, train

    torch.set_num_threads(1)
    world = prepare(config)
    folder = train(config, seed, cache_root() / "runs", world, progress=False)
    agent = Agent.load(folder)
    agent.policy.load_state_dict(load_checkpoint(folder)["model"]["policy"])
    return agent, RunFolder(folder).validations(), world.bank("select"), world.data["select"]


def options_of(
    doc: str,  # of the script
    results: Path,  # JSON file that it writes
) -> argparse.ArgumentParser:
    "Return the options that every such script has"
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="0, 1, 2, ...")
    parser.add_argument("--processes", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--out", type=Path, default=results)
    return parser


class _Call:
    "Calls a function with the parts of its argument; a pool can send it to another process"

    def __init__(self, function: Callable):
        self.function = function

    def __call__(self, parts: tuple):
        return self.function(*parts)


def measure_all(
    options: argparse.Namespace,  # what `options_of` read
    measure: Callable,  # of a task and a seed; returns a row, with the task's values and the seed in it
    tasks: list[dict],  # all there are, in the order of the rows
    wanted: list[dict],  # those to be measured
    name: Callable,  # of a task or a row: what tells tasks apart
    **about,  # what else the file says
) -> None:
    "Measure what the results file lacks, task after task, and write it after each of them"
    path = options.out
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    done = {(name(run), run["seed"]) for run in runs}
    todo = [(task, seed) for seed in range(options.seeds) for task in wanted if (name(task), seed) not in done]
    order = [name(task) for task in tasks]
    with get_context("spawn").Pool(options.processes, maxtasksperchild=4) as pool:
        for run in tqdm(pool.imap_unordered(_Call(measure), todo), total=len(todo), desc="agents"):
            runs.append(run)
            runs.sort(key=lambda run: (order.index(name(run)), run["seed"]))
            write_atomic(path, json.dumps(about | {"runs": runs}, indent=1) + "\n")
