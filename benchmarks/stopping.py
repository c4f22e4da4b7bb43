"""Who decides to stop: TRIGGER as it was learned, TRIGGER tied to a judge's reading, or a threshold from outside.

    python benchmarks/stopping.py                # one seed; trains the tied agent where it is not trained yet
    python benchmarks/stopping.py --seeds 3

Two agents on animals-5, read on VOC2012 val: v17, and the same trained once more with what held-out judges say of its
box in the observation and with Q(TRIGGER) tied to it. Each searches in the fourteen windows, with a constant added to
Q(TRIGGER) as well. Its regions are ranked and corrected by the judge of v17. A region is terminal where the agent calls
TRIGGER (own), or where the judge's score reaches .3 (threshold). Writes results/animals-5/stopping-select.json after
each row.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from locrl.agents.judge import judged, look_closer
from locrl.data.boxes import TRIGGER
from locrl.evaluation.judging import average_precision_of
from locrl.evaluation.multi import attended_regions
from locrl.evaluation.protocols import all_queries, relabelled
from locrl.experiments.iterations import find_config
from locrl.experiments.results import classifier_of
from locrl.experiments.train import Agent, provenance, run_folder, train
from locrl.files import write_atomic

RESULTS = Path(__file__).resolve().parents[1] / "results/animals-5/stopping-select.json"
CONSTANTS = (0.0, 0.5, 1.0, 2.0)
TIED = {"name": "animals-5/tied", "observation.quality": True, "network.tied": True}


def agents(seed: int) -> dict[str, Agent]:
    "Return both agents of a seed; v17 has to be there (`locrl train animals-5/v17`)"
    plain = find_config("animals-5/v17")
    folder = train(plain.replace(TIED), seed)
    return {"v17": Agent.load(run_folder(plain, seed)), "tied": Agent.load(folder)}


def push(agent: Agent, constant: float) -> None:
    "Add a constant to Q(TRIGGER)"
    network = agent.policy.q_net
    with torch.no_grad():
        if network.tied:
            network.stop_head.bias += constant
        else:
            network.q_net[-1].bias[TRIGGER] += constant


def share(regions, held: np.ndarray, n_classes: int, n_queries: int) -> dict:
    "Return on which share of the queries with and without an object of the class something is found"
    found = np.unique(regions.image * n_classes + regions.label)
    there = np.isin(found, held)
    return dict(there=there.sum() / len(held), not_there=(~there).sum() / (n_queries - len(held)))


def measure(name: str, agent: Agent, judge, seed: int, constant: float) -> dict:
    "Search with an agent and return how well its terminal and its attended regions are ranked"
    world = agent.world()
    bank, data = world.bank("select"), world.data["select"]
    look_closer(bank, data, world.encoder, judge.finer)
    gt, n, classes = relabelled(data, bank.classes), len(bank), bank.classes
    c, queries = agent.config, all_queries(len(bank), len(classes))
    push(agent, constant)
    passed = attended_regions(agent.policy, bank, *queries, c.moves, c.observation.max_steps, restarts="windows")
    push(agent, -constant)
    regions = judged(passed, judge, bank, stop=0.3, corrected=True)
    row = dict(agent=name, seed=seed, constant=constant, regions=len(regions))
    sure = ~gt.difficult
    held = np.unique(gt.image[sure] * len(classes) + gt.label[sure])
    for kind, which in (("attended", slice(None)), ("own", passed.terminal), ("threshold", regions.terminal)):
        some = regions[which]
        ap = average_precision_of(some, some.region, gt, classes, n, 0.3)
        row[kind] = dict(map11=ap["mAP"], recall=ap["recall"]) | share(some, held, len(classes), n * len(classes))
    return row


def main():
    "Measure what is missing"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="0, 1, 2, ...")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    done = {(row["agent"], row["seed"], row["constant"]) for row in rows}
    for seed in range(options.seeds):
        both = agents(seed)
        judge = classifier_of(both["v17"])
        todo = [(n, x) for n in both for x in CONSTANTS if (n, seed, x) not in done]
        for name, constant in tqdm(todo, desc=f"searches of seed {seed}"):
            rows.append(measure(name, both[name], judge, seed, constant))
            command = f"python benchmarks/stopping.py --seeds {seed + 1}"
            about = dict(command=command, data="VOC2012 val", provenance=provenance())
            write_atomic(options.out, json.dumps(about | dict(rows=rows), indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
