"""Compare "find this" with searching by name: the packed agent asked by class name, by an example, and by nothing.

For each class, examples are drawn at random among the pictures that hold it (the largest box that is not difficult).
Each is searched for in all other pictures with the class. Names of classes that the agent was not trained on are the
encoder's own. A judge has a code for each class of its training and an example has none, so the agent is asked without
its judge, as `Localizer.locate(picture, example=...)` asks it.

    python benchmarks/find_this.py --out results/benchmarks/find_this.json              # VOC2007 test, ten classes
    python benchmarks/find_this.py --data voc2012:val --new --sweep                     # for SCALE and THRESHOLD
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

from locrl.agents.predictions import choose
from locrl.agents.search import beginning, search
from locrl.apps.pretrained import load_pretrained
from locrl.data.boxes import pairwise_iou
from locrl.evaluation.saliency_report import score_maps
from locrl.experiments.config import load_data
from locrl.experiments.train import versions
from locrl.vision.encoders import load_encoder
from locrl.vision.example import SCALE, THRESHOLD, Example
from locrl.vision.feature_store import build_store
from locrl.vision.region_pooling import FeatureBank, class_evidence

NEW = ("aeroplane", "bicycle", "bird", "boat", "bottle")  # the first five that the agent was not trained on
SETTINGS = [(8.0, 0.1), (8.0, 0.2), (12.0, 0.0), (12.0, 0.1), (12.0, 0.2), (12.0, 0.3), (20.0, 0.1)]


def easy_boxes(note, label):
    "Boxes (M, 4) of a class that are not difficult"
    return note.boxes[(note.labels == label) & ~note.difficult]


def hits_of(agent, bank, notes, queries):
    "Whether the box for each (picture, class) has an IoU of at least 0.5 with a box of the class"
    config = agent.config
    image, label = np.array(queries).T
    starts, limit = beginning(config.search.begin, config.search.restarts, config.observation.max_steps)
    hits = []
    for at in range(0, len(image), 512):  # every box on the way is kept until the surest is chosen
        images, labels = image[at : at + 512], label[at : at + 512]
        steps = search(agent.policy, bank, images, labels, config.moves, limit, starts)
        found = choose(steps, bank, images, labels, config.search.answer, config.evaluation.confidence, None)
        for i, k, box in zip(images, labels, found.box):
            hits.append(pairwise_iou(box[None], easy_boxes(notes[i], k)).max() >= 0.5)
    return np.array(hits)


def measured(agent, bank, alone, notes, queries):
    "What is measured with the evidence that `bank` holds, for each class; `alone` are data sets of one class each"
    hits, label = hits_of(agent, bank, notes, queries), np.array(queries)[:, 1]
    found = {}
    for k, (name, data) in enumerate(alone.items()):
        maps = score_maps(name, bank.saliency[:, k : k + 1].numpy(), bank.presence[:, k : k + 1].numpy(), data)
        found[name] = {
            "queries": int((label == k).sum()),
            "hit_rate": float(hits[label == k].mean()),
            "map_auc": maps.map_auc,
            "presence_ap": maps.presence_ap,
        }
    return found


def drawn(rng, notes, held, classes):
    "An example of each class: picture and its largest box"
    found = []
    for k in range(classes):
        i = int(rng.choice([j for j, c in held if c == k]))
        boxes = easy_boxes(notes[i], k)
        found.append((i, boxes[((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).argmax()]))
    return found


def by_example(bank, features, cells, examples, scale, threshold):
    "Give the bank the evidence of an example of each class"
    seen = []
    for i, box in examples:
        like = Example.of(features[i].astype(np.float32), box, scale=scale, threshold=threshold)
        seen.append(class_evidence(None, cells, like.classes, like))
    bank.saliency, bank.presence = (torch.cat(part, 1) for part in zip(*seen))


def mean_of(rows, names):
    "Mean of each measure over some classes, for each of `rows`"
    measures = ("hit_rate", "map_auc", "presence_ap")
    return {m: [float(np.mean([row[name][m] for name in names])) for row in rows] for m in measures}


def told(what, rows, groups):
    "Print the means of each group of classes"
    for group, names in groups.items():
        means = mean_of(rows, names)
        figures = ", ".join(f"{m} {np.mean(v):.3f} (sd {np.std(v):.3f})" for m, v in means.items())
        print(f"{what}, {group}: {figures}", flush=True)


def main():
    "Ask by name, by nothing and by examples; print the means, and write all of it"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="voc2007:test", help="data to search in")
    parser.add_argument("--new", nargs="*", default=NEW, help="classes that the agent was not trained on")
    parser.add_argument("--examples", type=int, default=5, help="examples of each class")
    parser.add_argument("--sweep", action="store_true", help="all scales and thresholds; default those of `Example`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file for the table, JSON")
    chosen = parser.parse_args()
    start = time.monotonic()
    agent = load_pretrained()
    trained = agent.config.data.classes
    classes = (*trained, *chosen.new)
    groups = {"trained": trained, "new": tuple(chosen.new)} if chosen.new else {"trained": trained}
    data = load_data(chosen.data, classes)
    alone = {name: load_data(chosen.data, (name,)) for name in classes}
    encoder = load_encoder(agent.config.encoder.name, input_size=agent.config.encoder.input_size)
    store = build_store(data, encoder, projection=agent.projection)
    features = store.array("features")
    cells = torch.from_numpy(features)
    bank = FeatureBank(store, trained, agent.prototypes)
    if chosen.new:  # by the encoder's own names, as the localizer does
        saliency, presence = class_evidence(store, cells, chosen.new, None)
        bank.saliency = torch.cat([bank.saliency, saliency.to(bank.saliency)], 1)
        bank.presence = torch.cat([bank.presence, presence], 1)
        bank.classes = classes
    notes = [data.annotation(i) for i in range(len(data))]
    held = [(i, int(k)) for i, note in enumerate(notes) for k in np.unique(note.labels[~note.difficult])]
    print(f"{data.name}, {len(data):,} pictures, {len(held):,} queries", flush=True)
    out = {"by name": [measured(agent, bank, alone, notes, held)]}
    told("by name", out["by name"], groups)
    bank.saliency, bank.presence = bank.saliency * 0, bank.presence * 0
    out["nothing"] = [measured(agent, bank, alone, notes, held)]
    told("nothing", out["nothing"], groups)
    for scale, threshold in SETTINGS if chosen.sweep else [(SCALE, THRESHOLD)]:
        rng = np.random.default_rng(chosen.seed)
        rows = out[f"by example, scale {scale:g}, threshold {threshold:g}"] = []
        for _ in range(chosen.examples):
            examples = drawn(rng, notes, held, len(classes))
            own = {(i, k) for k, (i, _) in enumerate(examples)}
            by_example(bank, features, cells, examples, scale, threshold)
            rows.append(measured(agent, bank, alone, notes, [query for query in held if query not in own]))
        told(f"by example, scale {scale:g}, threshold {threshold:g}", rows, groups)
    if chosen.out:
        about = {
            "command": " ".join(["python", "benchmarks/find_this.py", *sys.argv[1:]]),
            "agent": repr(agent),
            "data": {"name": data.name, "images": len(data), "queries": len(held), "groups": groups},
            "versions": versions(),
            "minutes": (time.monotonic() - start) / 60,
            "load_average_at_the_end": os.getloadavg()[0],
        }
        chosen.out.write_text(json.dumps(about | {"evidence": out}, indent=1) + "\n")


if __name__ == "__main__":
    main()
