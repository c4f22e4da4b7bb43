"""The doctor's deliberate mistakes in a model of the real size with random weights, as far as they need no meaning.

    python benchmarks/mistakes.py --out results/benchmarks/mistakes.json      # ViT-B-16, that of SCLIP

Each mistake is planted, and the checks that hold for any weights are made: pixels, activation, attention, place. All
must pass without a mistake. The mistakes in what the weights know need real weights, or names by construction, as on
the page of the acceptance test.
"""

import argparse
import json
import os
import sys
import time
import warnings
from pathlib import Path

from locrl.experiments.train import versions
from locrl.vision.acceptance import (
    check_activation,
    check_attention,
    check_finite,
    check_pixels,
    check_place,
    failures,
    plant,
)
from locrl.vision.encoders import load_encoder

ASKED = {  # what can tell each mistake; the other checks do the same as without it
    "activation": [check_activation],
    "normalisation": [check_pixels],
    "resize": [check_pixels],
    "crop": [check_pixels, check_place],
    "shuffled patches": [check_place],
    "transposed grid": [check_place],
    "unscaled attention": [check_attention],
}


def remembering(encoder):
    "Make an encoder remember the dense maps of pixels that it has seen: patches are shuffled after it has looked"
    real, known = encoder.dense, {}

    def dense(pixels):
        key = hash(pixels.numpy().tobytes())
        if key not in known:
            known[key] = real(pixels)
        return known[key]

    encoder.dense = dense


def main():
    "Check without a mistake, then with each; print and write what failed"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-16-quickgelu", help="open_clip model")
    parser.add_argument("--out", type=Path, help="file for the table, JSON")
    chosen = parser.parse_args()
    start = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = load_encoder(chosen.model, pretrained=None)
    remembering(encoder)
    right = [check(encoder) for check in (check_finite, check_pixels, check_activation, check_attention, check_place)]
    print("without a mistake:", *right, sep="\n", flush=True)
    caught = {}
    for mistake, checks in ASKED.items():
        with plant(encoder, mistake) as wrong:
            found = [check(wrong) for check in checks]
        caught[mistake] = failures(found)
        print(mistake, *found, sep="\n", flush=True)
    about = {
        "command": " ".join(["python", "benchmarks/mistakes.py", *sys.argv[1:]]),
        "model": chosen.model,
        "versions": versions(),
        "minutes": (time.monotonic() - start) / 60,
        "load_average_at_the_end": os.getloadavg()[0],
        "passed_without": {check.name: check.measured for check in right if check.passed},
        "failed_without": failures(right),
    }
    if chosen.out:
        chosen.out.write_text(json.dumps(about | {"caught": caught}, indent=1) + "\n")
    raise SystemExit(0 if all(caught.values()) and not failures(right) else 1)


if __name__ == "__main__":
    main()
