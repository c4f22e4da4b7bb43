"""How much is a region worth? AP against the number of regions looked at, chosen by the agent or otherwise.

    python benchmarks/budget.py RUN_FOLDER               # of v18, or of any run with a judge; VOC2012 val
    python benchmarks/budget.py RUN_FOLDER --split report

The same judge ranks all regions. They are chosen by the agent (in the order in which it passes them), as windows of a
regular grid, at random, or by the saliency map (of 2,500 windows those that fit the map best). Each with the boxes as
they are, and as the judge corrects them. The results go to results/animals-5/budget-select.json.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from locrl.agents.judge import judged, relevance
from locrl.data.boxes import FULL
from locrl.evaluation.judging import average_precision_of, moving_or_judging, regions_at
from locrl.evaluation.multi import attended_regions
from locrl.evaluation.protocols import all_queries, relabelled
from locrl.experiments.results import classifier_of, opened
from locrl.experiments.train import provenance
from locrl.files import write_atomic

BUDGETS = (1, 5, 20, 100, 200, 500, 2_500)  # regions for each picture and class
MOST = {"agent": 200, "saliency": 200, "random": 500, "windows": 2_500}  # of each way
SHAPES = (1.0, 0.5, 2.0)  # width by height of a window, in pictures warped to a square
SIDES = (1.0, 0.75, 0.5, 0.33, 0.22)  # square root of the area of a window


def windows(most: int) -> np.ndarray:  # (at most `most`, 4) xyxy in [0, 1]
    "Return the whole picture and windows of a regular grid, as dense as `most` allows, large ones first"
    best = FULL[None]
    for dense in np.linspace(0.5, 12, 231):  # steps within the side of a window
        made = [FULL]
        for side in SIDES:
            for shape in SHAPES:
                w, h = min(side * shape**0.5, 1.0), min(side / shape**0.5, 1.0)
                nx, ny = (max(1, round((1 - s) / s * dense) + (s < 1)) for s in (w, h))
                if w * h < 0.99:
                    xs, ys = np.linspace(0, 1 - w, nx), np.linspace(0, 1 - h, ny)
                    made += [(x, y, x + w, y + h) for y in ys for x in xs]
        if len(made) <= most:
            best = np.array(made, np.float32)
    if len(best) == 1 and most > 1:  # too few even for the loosest grid: large windows first
        best = np.concatenate([FULL[None], windows(2_500)[1:]])[:most]
    return best


def random_windows(n: int, rng: np.random.Generator) -> np.ndarray:  # (n, 4) xyxy in [0, 1]
    "Return windows with sides drawn evenly on a logarithmic scale from a tenth to one, anywhere"
    side = np.exp(rng.uniform(np.log(0.1), 0, (n, 2)))
    corner = (1 - side) * rng.random((n, 2))
    return np.concatenate([corner, corner + side], 1).astype(np.float32)


def spread(boxes, n_images, n_classes):  # `Regions` of the same boxes for every picture and class
    "Return the boxes for every picture and class"
    images, labels = all_queries(n_images, n_classes)
    k = len(boxes)
    return regions_at(np.repeat(images, k), np.repeat(labels, k), np.tile(boxes, (len(images), 1)))


def by_saliency(bank, most):  # dictionary: budget -> `Regions`
    "Return for every picture and class the windows that fit the map best"
    pool = windows(2_500)
    images, labels = all_queries(len(bank), len(bank.classes))
    order = []
    for i, c in zip(images, labels):
        picture, asked = (torch.full((len(pool),), int(k)) for k in (i, c))
        _, _, fit = relevance(bank, picture, asked, torch.from_numpy(pool))
        order.append(np.argsort(-fit.numpy(), kind="stable")[: max(most)])
    order = np.array(order)
    return {b: regions_at(np.repeat(images, b), np.repeat(labels, b), pool[order[:, :b]].reshape(-1, 4)) for b in most}


def main():
    "Measure every way at every budget"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run with a judge")
    parser.add_argument("--split", default="select", choices=("select", "report"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    (agent,), _, bank, data = opened(options.run, options.split)
    judge, c, gt = classifier_of(agent), agent.config, relabelled(data, bank.classes)
    n, classes = len(data), bank.classes
    rows = []

    def measure(way, budget, regions):
        verdicts = judge.judge(bank, regions.image, regions.box)
        scores = judge.of_class(verdicts, regions.label)
        for how, some in (("as it is", regions), ("corrected", replace(regions, box=verdicts.boxes))):
            numbers = average_precision_of(some, scores, gt, classes, n, c.search.overlap)
            rows.append(dict(way=way, regions=budget, boxes=how, looked_at=len(some) / (n * len(classes)), **numbers))
        print(f"{way}, {budget}: mAP {rows[-2]['mAP']:.3f}, corrected {rows[-1]['mAP']:.3f}", flush=True)

    queries = all_queries(n, len(classes))
    limit = c.observation.max_steps
    passed = attended_regions(agent.policy, bank, *queries, c.moves, limit, restarts=c.search.restarts)
    passed = judged(passed, judge, bank)
    for budget in BUDGETS:
        if budget <= MOST["agent"]:
            measure("agent", budget, passed[passed.step < budget])
    rng = np.random.default_rng(0)
    saliency = by_saliency(bank, [b for b in BUDGETS if b <= MOST["saliency"]])
    for budget in tqdm(BUDGETS):
        measure("windows", budget, spread(windows(budget), n, len(classes)))
        if budget <= MOST["random"]:
            measure("random", budget, spread(random_windows(budget, rng), n, len(classes)))
        if budget in saliency:
            measure("saliency", budget, saliency[budget])
    out = options.out or Path(__file__).resolve().parents[1] / f"results/animals-5/budget-{options.split}.json"
    binds = moving_or_judging(passed, judge, bank, data, c.search.overlap)
    result = dict(
        command=f"python benchmarks/budget.py RUN --split {options.split}",
        config=c.to_dict(),
        seed=agent.seed,
        data=data.name,
        images=n,
        classes=list(classes),
        provenance=provenance(),
        rows=rows,
        binds=binds,
    )
    write_atomic(out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
