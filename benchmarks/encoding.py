"""What seeing costs: embedding the boxes of an episode, and caching the features of a data set, in one run.

The script prints a Markdown table and writes it, with machine, versions and seed, to results/benchmarks/encoding.json.
ViT-B/16 has random weights: its speed does not depend on them. Everything is measured on composed Scenes, so it runs
anywhere. The two sides of a comparison take turns, so that whatever else runs on the machine slows both. Torch has one
thread unless --threads says otherwise. Caching may use a second core for everything that is not the network, as it does
in use. Where no second core is free, the share of caching says more about the machine than about the code; the row with
a network that only waits shows what the code itself costs.
"""

import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from locrl.data.voc import open_image
from locrl.vision.encoders import Projection, load_encoder
from locrl.envs.localization import Search, Targets
from locrl.vision.feature_store import build_store
from locrl.vision.region_pooling import integral_image, region_pool
from locrl.data.scenes import Scenes
from speed import SEED, command_line, markdown

ENCODERS = {
    "EfficientNet-Lite0, 448 px": dict(name="efficientnet_lite0", input_size=448),
    "ViT-B/16, 224 px": dict(name="ViT-B-16", pretrained=None, precision="fp32"),
}


def make(options: dict):
    "An encoder; that its weights are random is known"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_encoder(**options)


def visited(targets: Targets) -> np.ndarray:
    "The 40 boxes of a random episode"
    search = Search(targets[:1], 1)
    rng = np.random.default_rng(SEED)
    boxes = []
    search.start(episode=0)
    for _ in range(40):
        boxes.append(search.box.copy())
        search.step(rng.integers(0, 8, 1))
    return np.concatenate(boxes)


def seconds(work) -> float:
    "How long `work` takes"
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def took(work) -> tuple[float, float]:
    "Seconds that `work` takes, by the clock and by the processors"
    start = time.process_time()
    return seconds(work), time.process_time() - start


def episode(encoder, data) -> dict:
    """Return milliseconds to embed the 40 boxes of an episode, one after another.
    They are pooled from the picture's feature map and, in turn, cut out and encoded."""
    boxes = visited(Targets.of(data, data.classes))
    picture = data.image(0)
    first = torch.zeros(1, dtype=torch.long)
    integral = integral_image(encoder.encode([picture]).permute(0, 2, 3, 1))

    def pool(box):
        region_pool(integral, first, torch.from_numpy(box)[None, None])

    def cut(box):
        encoder.embed_crops([picture], box[None], context=16)

    for box in boxes[:2]:
        pool(box), cut(box)
    pooled, crops = np.array([(seconds(lambda: pool(box)), seconds(lambda: cut(box))) for box in boxes]).sum(0) * 1e3
    return dict(
        pool_40=pooled,
        crops_40=crops,
        ratio=crops / pooled,
        dense_once=1e3 * statistics.median(seconds(lambda: encoder.encode([picture])) for _ in range(3)),
    )


def caching(encoder, data, rounds: int) -> dict:
    "Pictures a second of the bare network on ready pixels and of `build_store` from picture files to files, in turns"
    pixels = torch.cat([encoder.preprocess([data.image(i)]) for i in range(len(data))])
    encoder.fingerprint, data.fingerprint, encoder.class_embeddings(["cat"])  # both are made once and kept
    keep = Projection(
        np.zeros(encoder.dim, np.float32), np.eye(encoder.dim, min(encoder.dim, 256), dtype=np.float32), 1.0
    )
    times = []

    encoder.dense(pixels[: encoder.batch_size])  # warms up
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as root:
            times.append(
                [
                    took(lambda: [encoder.dense(x) for x in pixels.split(encoder.batch_size)]),
                    took(lambda: build_store(data, encoder, projection=keep, root=root)),
                ]
            )
    each = np.median(times, 0) / len(data)  # (bare, cached) x (wall, processor)
    ready = encoder.dense(pixels[: encoder.batch_size])
    encoder.dense = lambda x: time.sleep(each[0, 1] * len(x)) or ready[: len(x)].clone()
    with tempfile.TemporaryDirectory() as root:
        waiting = each[0, 1] * len(data) / seconds(lambda: build_store(data, encoder, projection=keep, root=root))
    encoder.dense = lambda x: time.sleep(0.001 * len(x)) or ready[: len(x)].clone()  # a quick one that only waits
    every = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    by_cores = {}
    for some in (every[:1], every) * rounds if every else ():
        os.sched_setaffinity(0, some)  # threads that are started from here on
        with tempfile.TemporaryDirectory() as root:
            took_all = seconds(lambda: build_store(data, encoder, projection=keep, root=root))
            by_cores.setdefault(len(some), []).append(len(data) / took_all)
    del encoder.dense
    return dict(
        bare_per_second=1 / each[0, 0],
        cached_per_second=1 / each[1, 0],
        shares=[a[0] / b[0] for a, b in times],
        share=statistics.median(a[0] / b[0] for a, b in times),
        waiting_share=waiting,
        waiting_per_second={str(n): statistics.median(rates) for n, rates in by_cores.items()},
        more_cores=statistics.median(b / a for a, b in zip(*by_cores.values())) if len(by_cores) > 1 else None,
        bare_processor_ms=1e3 * each[0, 1],
        cached_processor_ms=1e3 * each[1, 1],
        pictures=len(data),
        batch_size=encoder.batch_size,
    )


class Files(Scenes):
    "Scenes that were saved as JPEG files of a photograph's size, so that reading and decoding is part of the work"

    def __init__(self, n, folder):
        super().__init__(n, seed=SEED, size=(375, 500))
        self.folder = Path(folder)
        for i in range(n):
            super().image(i).save(self.folder / f"{i}.jpg", quality=90)

    def image(self, i):
        "Read picture `i` from its file"
        return open_image(self.folder / f"{i}.jpg")


def measure(n_images: int, rounds: int) -> dict:
    "All measurements"
    out = {}
    with tempfile.TemporaryDirectory() as folder, tqdm(total=2 * len(ENCODERS), unit="part") as bar:
        data = Files(n_images, folder)
        for title, options in ENCODERS.items():
            encoder = make(options)
            bar.set_description(f"{title}: an episode")
            out[title] = dict(episode=episode(encoder, data))
            bar.update()
            bar.set_description(f"{title}: caching")
            out[title]["caching"] = caching(encoder, data, rounds)
            bar.update()
    return out


def table(results: dict) -> str:
    "Markdown"
    rows = []
    for title, r in results.items():
        e, c = r["episode"], r["caching"]
        rows += [
            (f"**{title}**: 40 boxes of an episode pooled from the store, ms", f"{e['pool_40']:.1f}", ""),
            ("the picture's dense map, once, ms", f"{e['dense_once']:.0f}", ""),
            ("40 crops encoded one after another, ms", f"{e['crops_40']:,.0f}", ""),
            (
                "pooling is so many times as fast as crops",
                f"{e['ratio']:,.0f} ({e['crops_40'] / (e['pool_40'] + e['dense_once']):.0f} with the dense map)",
                "30",
            ),
            ("bare network, pictures/s", f"{c['bare_per_second']:.2f}", ""),
            ("feature caching, JPEG files to store, pictures/s", f"{c['cached_per_second']:.2f}", ""),
            ("share of the bare network", f"{c['share']:.0%}", "95%"),
            ("the same with a network that waits as long as it would compute", f"{c['waiting_share']:.0%}", "90%"),
            (
                "pictures/s with a network that only waits, a millisecond a picture, by the number of cores",
                ", ".join(f"{rate:.0f} ({n})" for n, rate in c["waiting_per_second"].items())
                + (f": {c['more_cores']:.2f} times" if c["more_cores"] else ""),
                "1.8 times with two cores",
            ),
            (
                "processor time a picture: network, everything, ms",
                f"{c['bare_processor_ms']:.0f}, {c['cached_processor_ms']:.0f}",
                "",
            ),
        ]
    return markdown(rows)


if __name__ == "__main__":
    command_line(
        __doc__,
        "encoding",
        measure,
        table,
        images=(64, "pictures to cache"),
        rounds=(2, "turns of bare network and caching"),
    )
