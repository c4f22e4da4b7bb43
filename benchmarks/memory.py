"""How much memory a run takes against the number of its pictures, and what pooling from half floats costs.

For each number of pictures a process of its own writes a feature store of random maps of ViT-L/14's size (16 x 16
cells, 768 channels), trains an agent on them, and searches every picture. Its peak resident memory is what the system
says. The store lies in a scratch folder, which is deleted at the end. With its features it may hold --limit MB beyond
what the interpreter and its libraries hold (LOCRL_MEMORY). The script prints a Markdown table and writes it, with
machine, versions and seed, to results/benchmarks/memory.json. No encoder runs: the features are random, so that
nothing is learned, and memory, disk and time are the same as with real ones.

With --most a third number of pictures is tried (40,000 take 16 GB on the disk and about as long as ten times the
others). With --voc the same is done once for three data sets of VOC2007's sizes, all held at once: train with its
mirrored pictures, val and test, searched for one object and for several, within so many MB.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from locrl.agents.policy import attach
from locrl.data.voc import Annotation, Dataset
from locrl.envs.localization import Targets
from locrl.envs.observation import ObservationConfig, observe
from locrl.evaluation.multi import attended_regions
from locrl.evaluation.protocols import all_queries, evaluate
from locrl.experiments.config import Config, World, feature_needs, named_config
from locrl.experiments.train import make_model
from locrl.vision.encoders import Encoder, Projection
from locrl.vision.feature_store import build_store
from locrl.vision.region_pooling import HalfMaps, integral_image, region_pool
from speed import SEED, command_line, markdown, resident
from stable_baselines3.common.callbacks import CallbackList

CLASSES = ("cat", "dog")
VOC2007 = (2501, 2510, 4952)  # pictures of train, val and test


class Boxes(Dataset):
    "Pictures of nothing, with a box of one class in each"

    def __init__(self, n, name="boxes"):
        super().__init__(f"{name} {n}", CLASSES, [str(i) for i in range(n)])
        self.picture = Image.new("RGB", (8, 8))

    def image(self, i):
        "Return the same small picture"
        return self.picture

    def size(self, i):
        "Return its size"
        return 8, 8

    def _annotate(self, i):
        x, y = 0.6 * np.random.default_rng(i).random(2)
        return Annotation.of([((x, y, x + 0.4, y + 0.4), i % 2, False, False)])

    def _stamp(self, i):
        return str(i)


class RandomMaps(Encoder):
    "Gives windows of one random array as features: quick, and no two batches alike"

    name, input_size, fingerprint = "random maps", 8, "random maps"

    def __init__(self, side=16, dim=768):
        self.grid, self.dim = (side, side), dim
        self.random = torch.randn(1 << 22, generator=torch.Generator().manual_seed(SEED))
        self.at = 0

    def preprocess(self, images, size=None):
        "Return pixels that nobody looks at"
        return torch.zeros(len(images), 3, 8, 8)

    def dense(self, pixels):
        "Return random maps"
        n = len(pixels) * self.dim * self.grid[0] * self.grid[1]
        self.at = (self.at + 7919) % (len(self.random) - n)
        return self.random[self.at : self.at + n].view(len(pixels), self.dim, *self.grid)

    def embed_images(self, pixels):
        "Return their means"
        return self.dense(pixels).mean((2, 3))

    def class_embeddings(self, names):
        "Return something for every name"
        return torch.ones(len(names), self.dim)

    def evidence(self, dense, names):
        "Return maps in [0, 1]"
        return dense[:, : len(names)].sigmoid()

    def presence(self, dense, names):
        "Return the highest value of each map"
        return self.evidence(dense, names).amax((2, 3))


def peak() -> int:
    "Bytes that this process held at most"
    import resource

    try:
        (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")]
        return 1024 * int(line.split()[1])
    except (OSError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def configuration(steps: int, flip: bool) -> Config:
    "Return that of the whole of VOC2007 with ViT-L/14, for two classes and a short training"
    return named_config("voc2007-clip").replace(
        {
            "name": "memory",
            "data.classes": CLASSES,
            "data.flip": flip,
            "learning.steps": max(steps, 128),
            "learning.learning_starts": min(1_000, steps // 4),
            "replay.buffer_size": 50_000,
        }
    )


def trained(world: World, steps: int):
    "Return the agent after so many transitions, and how many there were a second"
    learning = world.config.learning
    model, quiet = make_model(world, SEED), CallbackList([])
    model._setup_learn(learning.steps)
    quiet.init_callback(model)
    start = time.perf_counter()
    while model.num_timesteps < steps:
        model.collect_rollouts(
            model.env, quiet, model.train_freq, model.replay_buffer, learning_starts=learning.learning_starts
        )
        if model.num_timesteps > learning.learning_starts:
            model.train(learning.gradient_steps, learning.batch_size)
    return model, model.num_timesteps / (time.perf_counter() - start)


def voc(sizes: tuple[int, int, int], steps: int, side: int, dim: int, limit: int, root: str) -> dict:
    "Hold train with its mirrored pictures, val and test at once, train, and search the last two in both ways"
    interpreter = resident() or 0
    os.environ["LOCRL_MEMORY"] = str((interpreter + limit) / 1e9)
    config, encoder = configuration(steps, flip=True), RandomMaps(side, dim)
    splits = {split: Boxes(n, split) for split, n in zip(("train", "select", "report"), sizes)}
    needs = feature_needs(config, encoder, splits)
    projection = Projection(np.zeros(encoder.dim, np.float32), None, 1.0)
    stores = {
        split: [build_store(data, encoder, projection=projection, flip=flip, root=Path(root)) for flip in flips]
        for (split, data), flips in zip(splits.items(), ((False, True), (False,), (False,)))
    }
    targets = Targets.of(splits["train"], CLASSES)
    world = World(config, encoder, projection, None, splits, {}, targets)
    for split, data in splits.items():
        world.banks[split] = world.look(stores[split], data, CLASSES, None)
    held = peak() - interpreter
    model, rate = trained(world, steps)
    for split in ("select", "report"):
        bank, data = world.banks[split], splits[split]
        attach(model.policy, bank)
        evaluate(model.policy, bank, data, config.moves, "presence*iou", max_steps=4)
        attended_regions(
            model.policy, bank, *all_queries(len(data), 1), config.moves, 4, restarts=config.search.restarts
        )
    return dict(
        pictures=dict(zip(splits, (2 * sizes[0], *sizes[1:]))),
        limit=limit,
        estimated_disk=needs.disk,
        disk=sum(f.stat().st_size for each in stores.values() for store in each for f in store.path.iterdir()),
        banks={split: "integral" if bank.maps is None else "half" for split, bank in world.banks.items()},
        in_memory={
            split: len(bank) if bank.maps is None else len(bank.maps.cells) for split, bank in world.banks.items()
        },
        held=held,
        transitions_per_second=rate,
        interpreter=interpreter,
        peak=peak() - interpreter,
    )


def run(n: int, steps: int, side: int, dim: int, limit: int, root: str) -> dict:
    "Encode, train and search `n` pictures in this process; `limit` and the peaks are bytes beyond what it holds now"
    interpreter, out = resident() or 0, dict(pictures=n, limit=limit)
    os.environ["LOCRL_MEMORY"] = str((interpreter + limit) / 1e9)
    config = configuration(steps, flip=False)
    data, encoder = Boxes(n), RandomMaps(side, dim)
    needs = feature_needs(config, encoder, {"train": data})
    out |= dict(estimated_disk=needs.disk, estimated_memory=needs.memory, free_memory=needs.free_memory)
    start = time.perf_counter()
    projection = Projection(np.zeros(encoder.dim, np.float32), None, 1.0)
    store = build_store(data, encoder, projection=projection, root=Path(root))
    out |= dict(
        disk=sum(f.stat().st_size for f in store.path.iterdir()),
        encoding_peak=peak() - interpreter,
        encoding_minutes=(time.perf_counter() - start) / 60,
    )
    world = World(config, encoder, projection, None, {"train": data}, {}, Targets.of(data, CLASSES))
    before = resident() or 0
    bank = world.banks["train"] = world.look(store, data, CLASSES, None)
    out |= dict(
        bank="integral" if bank.maps is None else "half",
        in_memory=n if bank.maps is None else len(bank.maps.cells),
        bank_memory=(resident() or 0) - before,
    )
    model, rate = trained(world, steps)
    start = time.perf_counter()
    attach(model.policy, bank)
    found = evaluate(model.policy, bank, data, config.moves, "presence*iou", max_steps=4)
    assert len(found.predictions) == n * len(CLASSES)
    return out | dict(
        transitions=model.num_timesteps,
        transitions_per_second=rate,
        pictures_searched_per_second=n / (time.perf_counter() - start),
        interpreter=interpreter,
        peak=peak() - interpreter,
    )


CODE = """
import json, sys, torch
torch.set_num_threads(1)
import memory
print(json.dumps(getattr(memory, sys.argv[1])(**json.loads(sys.argv[2]))))
"""


def in_a_process(what: str = "run", **options) -> dict:
    "Return what `run`, or `voc`, gives in a process of its own"
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    ran = subprocess.run(
        [sys.executable, "-c", CODE, what, json.dumps(options)],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(ran.stdout.splitlines()[-1])


class _Memory:
    "Stands in for a store whose maps are in memory"

    def __init__(self, cells):
        self.cells, self.grid, self.dim = cells, tuple(cells.shape[1:3]), cells.shape[3]

    def __len__(self):
        return len(self.cells)

    def take(self, name, ids):
        return self.cells[np.asarray(ids)].numpy()


class _Bank:
    "What `observe` asks of a bank"

    device = "cpu"

    def __init__(self, pool):
        self.pool = pool


def pooling(side: int, dim: int, n: int, keys: int = 256, rounds: int = 15) -> dict:
    "Milliseconds to pool a batch from integral images and, in turn, from half floats; medians and their ratio"
    g = torch.Generator().manual_seed(SEED)
    cells = torch.randn(n, side, side, dim, generator=g).half()
    integral, maps = integral_image(cells), HalfMaps([_Memory(cells)], n)
    config = named_config("animals-5").observation
    regions_only = ObservationConfig(history=False, saliency=False, grid=config.grid, reach=config.reach)
    ways = {"integral": lambda i, b: region_pool(integral, i, b), "half": maps.pool}
    times: dict[str, list[float]] = {way: [] for way in ways}
    rng = np.random.default_rng(SEED)
    for _ in range(rounds + 1):
        size = rng.uniform(0.2, 1, (keys, 2))
        at = rng.uniform(0, 1, (keys, 2)) * (1 - size)
        batch = np.concatenate([rng.integers(0, n, (keys, 1)), np.zeros((keys, 1)), at, at + size], 1)
        batch = torch.from_numpy(np.concatenate([batch, np.zeros((keys, 11))], 1).astype(np.float32))
        for way, pool in ways.items():
            start = time.perf_counter()
            observe(_Bank(pool), batch, regions_only)
            times[way].append(1e3 * (time.perf_counter() - start))
    integral_ms, half_ms = (float(np.median(t[1:])) for t in times.values())
    return dict(
        grid=side, channels=dim, keys=keys, regions=1 + config.grid**2, integral_ms=integral_ms, half_ms=half_ms
    ) | dict(ratio=half_ms / integral_ms)


def measure(few: int, many: int, most: int, steps: int, limit: int, voc: int) -> dict:
    "All measurements; of each number of pictures in a process of its own"
    rows = []
    for n in filter(None, (few, many, most)):
        with scratch(n) as folder:
            rows.append(in_a_process(n=n, steps=steps, side=16, dim=768, limit=limit * 1_000_000, root=folder))
    out = dict(runs=rows, pooling=[pooling(14, 256, 2000), pooling(16, 768, 500)])
    if voc:
        with scratch(2 * VOC2007[0] + sum(VOC2007[1:])) as folder:
            options = dict(sizes=VOC2007, steps=steps, side=16, dim=768, limit=voc * 1_000_000, root=folder)
            out["voc"] = in_a_process("voc", **options)
    return out


@contextmanager
def scratch(n: int):
    "Give a folder with room for the features of so many pictures, which is deleted at the end"
    with tempfile.TemporaryDirectory() as folder:
        need = n * 400_000
        if shutil.disk_usage(folder).free < 1.2 * need:
            raise OSError(f"{folder} has too little room for {need / 1e9:.0f} GB of features")
        yield folder


def table(results: dict) -> str:
    "Markdown"
    rows = []
    for r in results["runs"]:
        name = f"{r['pictures']:,} pictures"
        rows += [
            (
                f"**{name}**: on the disk, GB (estimated)",
                f"{r['disk'] / 1e9:.2f} ({r['estimated_disk'] / 1e9:.2f})",
                "",
            ),
            ("maps in memory", f"{r['in_memory']:,}, {r['bank']}", ""),
            (
                "memory of the bank, GB (estimated)",
                f"{r['bank_memory'] / 1e9:.2f} ({r['estimated_memory'] / 1e9:.2f})",
                "",
            ),
            ("peak above the interpreter's, GB", f"{r['peak'] / 1e9:.2f}", "3 at most"),
            ("training, transitions/s", f"{r['transitions_per_second']:,.0f}", ""),
            ("searching, pictures/s", f"{r['pictures_searched_per_second']:,.0f}", ""),
        ]
    if v := results.get("voc"):
        n = sum(v["pictures"].values())
        banks = ", ".join(f"{split} {v['in_memory'][split]:,} ({kind})" for split, kind in v["banks"].items())
        rows += [
            (f"**VOC2007, {n:,} pictures**: on the disk, GB", f"{v['disk'] / 1e9:.2f}", ""),
            ("maps in memory", banks, ""),
            ("peak above the interpreter's, GB", f"{v['peak'] / 1e9:.2f}", "8 at most, with the interpreter"),
        ]
    for p in results["pooling"]:
        what = f"pooling {p['keys']} x {p['regions']} regions, {p['grid']} x {p['grid']} x {p['channels']}"
        rows.append(
            (f"{what}: integral, half floats, ms", f"{p['integral_ms']:.1f}, {p['half_ms']:.1f}: {p['ratio']:.1f}x", "")
        )
    return markdown(rows)


if __name__ == "__main__":
    command_line(
        __doc__,
        "memory",
        measure,
        table,
        few=(2_000, "pictures of the first run"),
        many=(5_000, "pictures of the second"),
        most=(0, "pictures of a third; 0 for none"),
        steps=(3_000, "transitions to train"),
        limit=(2_000, "MB that a process may hold with its features, beyond the interpreter"),
        voc=(0, "the same for all of VOC2007 at once; 0 leaves it out, 6000 keeps it below 8 GB"),
    )
