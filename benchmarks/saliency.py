"""The saliency report on photographs: EfficientNet-Lite0, and CLIP with random weights, which must read chance.

    python benchmarks/saliency.py --out results/benchmarks/saliency.json      # VOC2012 val, the five animals

The rows of EfficientNet-Lite0 are those of `locrl saliency-report --on animals-5`. The rows of random CLIP are means
over some models, each with its own random weights.
"""

import argparse
import json
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from locrl.evaluation.saliency_report import saliency_report
from locrl.experiments.config import load_data, make_encoder, named_config
from locrl.experiments.train import versions
from locrl.vision.encoders import load_encoder


def main():
    "Make both reports, print them and write them"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--on", default="animals-5", help="configuration that gives data, encoder and budget")
    parser.add_argument("--split", default="select", help="report or select")
    parser.add_argument("--model", default="ViT-B-32", help="open_clip model with random weights")
    parser.add_argument("--seeds", type=int, default=3, help="random models")
    parser.add_argument("--images", type=int, default=100, help="pictures that random models look at, evenly spaced")
    parser.add_argument("--out", type=Path, help="file for the tables, JSON")
    chosen = parser.parse_args()
    start = time.monotonic()
    config = named_config(chosen.on)
    data = load_data(getattr(config.data, chosen.split), config.data.classes)
    few = data.subset([k * len(data) // chosen.images for k in range(chosen.images)])
    train = load_data(config.data.train, config.data.classes)
    embedded = saliency_report(data, make_encoder(config), fit_on=train, dim=config.encoder.dim)
    print(*embedded, sep="\n", flush=True)
    methods = {}
    for seed in range(chosen.seeds):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            encoder = load_encoder(chosen.model, pretrained=None, seed=seed, prompts="single")
        for scores in saliency_report(few, encoder):
            print(seed, scores, flush=True)
            methods.setdefault(scores.method, []).append(vars(scores))
    about = {
        "command": " ".join(["python", "benchmarks/saliency.py", *sys.argv[1:]]),
        "data": {"name": data.name, "images": len(data), "images_of_random_models": len(few)},
        "versions": versions(),
        "minutes": (time.monotonic() - start) / 60,
        "load_average_at_the_end": os.getloadavg()[0],
        "random_model": chosen.model,
        "random_models": chosen.seeds,
    }
    rows = [vars(scores) for scores in embedded]
    random = [
        found[0]
        | {key: float(np.mean([row[key] for row in found])) for key in found[0] if key not in ("method", "maps")}
        for found in methods.values()
    ]
    spread = {
        method: {
            key: float(np.std([row[key] for row in found], ddof=1)) for key in found[0] if key not in ("method", "maps")
        }
        for method, found in methods.items()
        if len(found) > 1
    }
    if chosen.out:
        chosen.out.write_text(json.dumps(about | {"embedded": rows, "random": random, "sd": spread}, indent=1) + "\n")


if __name__ == "__main__":
    main()
