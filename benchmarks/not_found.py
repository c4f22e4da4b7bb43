"""Measure from which confidence on a box is worth showing: the packed agent on VOC2012 val, asked for all its classes.

Every picture is asked for every class, whether it is there or not. For each confidence source and each bound the script
prints what share of the right boxes (an IoU of at least 0.5 with an object of the class) is kept, and to what share of
the questions for an absent class a box is still given. It also prints the largest bound, in steps of 0.05, that keeps
98 % of the right boxes: `locrl.apps.localizer.LEAST` holds these. Nothing is written.

    python benchmarks/not_found.py
"""

import argparse

import numpy as np

from locrl.apps.localizer import Localizer
from locrl.data.boxes import pairwise_iou
from locrl.experiments.config import load_data

BOUNDS = np.arange(0, 20) / 20


def asked(localizer, data):
    "Confidence, whether the class is there and whether the box is right, for each picture and class"
    rows = []
    for i in range(len(data)):
        note = data.annotation(i)
        for k, found in enumerate(localizer.locate(data.image(i), list(data.classes))):
            same = note.labels == k
            boxes = note.boxes[same & ~note.difficult]
            if same.any() and not len(boxes):
                continue  # only difficult ones, which count neither way
            right = len(boxes) and pairwise_iou(found.box[None], boxes).max() >= 0.5
            rows.append((found.confidence, len(boxes) > 0, right))
    return np.array(rows, float).T


def main():
    "Print a table for each confidence source"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="voc2012:val", help="data to search in")
    chosen = parser.parse_args()
    for source in ("region*iou", "presence*iou"):
        localizer = Localizer.pretrained(confidence=source)
        data = load_data(chosen.data, localizer.agent.config.data.classes)
        confidence, there, right = asked(localizer, data)
        print(f"{source}: {len(there):,} questions, {there.sum():.0f} for what is there, {right.sum():.0f} boxes right")
        print("bound  right boxes kept  absent classes with a box")
        best = 0.0
        for bound in BOUNDS:
            kept = (right * (confidence >= bound)).sum() / right.sum()
            wrong = ((1 - there) * (confidence >= bound)).sum() / (1 - there).sum()
            best = bound if kept >= 0.98 else best
            print(f"{bound:.2f}   {kept:.3f}             {wrong:.3f}")
        low = right[confidence < best]
        print(f"largest bound that keeps 98 %: {best:.2f}; below it {low.sum():.0f} of {len(low):,} boxes are right\n")


if __name__ == "__main__":
    main()
