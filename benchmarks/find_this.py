"""Compare "find this" with searching by name: the packed agent on VOC2012 val, by class name and by an example.

For each animal, examples are drawn at random among the pictures that hold it (the largest box that is not difficult).
Each is searched for in all other pictures with the class. The script prints, for each scale and threshold of the
evidence, hit rate (IoU of at least 0.5 with a box of the class), map AUC and presence AP, and writes nothing.

    python benchmarks/find_this.py --examples 5
"""

import argparse

import numpy as np
import torch

from locrl.agents.predictions import choose
from locrl.agents.search import search
from locrl.apps.pretrained import load_pretrained
from locrl.data.boxes import pairwise_iou
from locrl.evaluation.saliency_report import score_maps
from locrl.experiments.config import load_data
from locrl.vision.encoders import load_encoder
from locrl.vision.example import Example
from locrl.vision.feature_store import build_store
from locrl.vision.region_pooling import FeatureBank, class_evidence

SETTINGS = [(8.0, 0.1), (8.0, 0.2), (12.0, 0.0), (12.0, 0.1), (12.0, 0.2), (12.0, 0.3), (20.0, 0.1)]


def hit_rate(agent, bank, data, queries):
    "Share of (picture, class) queries whose box has an IoU of at least 0.5 with a box of the class"
    image, label = np.array(queries).T
    limit = agent.config.observation.max_steps
    steps = search(agent.policy, bank, image, label, agent.config.moves, limit)
    found = choose(steps, bank, image, label, agent.config.search.answer, "presence*iou", None)
    hits = []
    for i, k, box in zip(image, label, found.box):
        note = data.annotation(i)
        hits.append(pairwise_iou(box[None], note.boxes[(note.labels == k) & ~note.difficult]).max() >= 0.5)
    return float(np.mean(hits))


def main():
    "Print by name, then by example"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="voc2012:val", help="data to search in")
    parser.add_argument("--examples", type=int, default=5, help="examples of each class")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    agent = load_pretrained()
    classes = agent.config.data.classes
    data = load_data(chosen.data, classes)
    encoder = load_encoder(agent.config.encoder.name, input_size=agent.config.encoder.input_size)
    store = build_store(data, encoder, projection=agent.projection)
    features = store.array("features").astype(np.float32)
    cells = torch.from_numpy(features)
    bank = FeatureBank(store, classes, agent.prototypes)
    notes = [data.annotation(i) for i in range(len(data))]
    easy = [set(note.labels[~note.difficult].tolist()) for note in notes]
    held = [(i, k) for i, found in enumerate(easy) for k in sorted(found)]
    named = score_maps("by name", bank.saliency.numpy(), bank.presence.numpy(), data)
    print(f"{data.name}, {len(held)} queries")
    hits = hit_rate(agent, bank, data, held)
    print(f"by name: hit rate {hits:.3f}, AUC {named.map_auc:.3f}, AP {named.presence_ap:.3f}")
    bank.saliency, bank.presence = bank.saliency * 0, bank.presence * 0
    print(f"without any evidence: hit rate {hit_rate(agent, bank, data, held):.3f}")
    for scale, threshold in SETTINGS:
        rng = np.random.default_rng(chosen.seed)
        rows = []
        for _ in range(chosen.examples):
            maps, presence, examples = [], [], set()
            for k in range(len(classes)):
                i = int(rng.choice([j for j, c in held if c == k]))
                boxes = notes[i].boxes[(notes[i].labels == k) & ~notes[i].difficult]
                box = boxes[((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).argmax()]
                example = Example.of(features[i], box, scale=scale, threshold=threshold)
                one = class_evidence(None, cells, example.classes, example)
                maps.append(one[0])
                presence.append(one[1])
                examples.add((i, k))
            bank.saliency, bank.presence = torch.cat(maps, 1), torch.cat(presence, 1)
            scores = score_maps("example", bank.saliency.numpy(), bank.presence.numpy(), data)
            hits = hit_rate(agent, bank, data, [query for query in held if query not in examples])
            rows.append((hits, scores.map_auc, scores.presence_ap))
        mean, spread = np.mean(rows, axis=0), np.std(rows, axis=0)
        print(
            f"by example, scale {scale:g}, threshold {threshold:g}: hit rate {mean[0]:.3f} (sd {spread[0]:.3f}), "
            f"AUC {mean[1]:.3f}, AP {mean[2]:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
