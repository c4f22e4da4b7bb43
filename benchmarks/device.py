"""A GPU beside the processor, in two parts of a few minutes each: do they agree, and how quick is the GPU?

    python benchmarks/device.py agree                       # the same run on both: features, boxes, mAP
    python benchmarks/device.py speed                       # the GPU alone: encoding, training, searching
    python benchmarks/device.py agree --quick --device cpu  # the same steps with a few small pictures, without a GPU

Both take EfficientNet-Lite0, and ViT-L/14 with random weights. Sums are made in another order on another device, so two
trainings drift apart. `agree` therefore trains once, on the processor, and the agent searches with the features of
either side, each encoded on its own device. ViT-L/14 takes seconds a picture on a processor: a few pictures suffice,
and their mAP, which one box can move, is not compared. Each part writes its half of results/benchmarks/device.json.
`agree` ends with status 1 where a number leaves its tolerance.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from encoding import Files
from locrl.agents.predictions import predict
from locrl.data.boxes import iou
from locrl.evaluation.protocols import all_queries, score
from locrl.experiments.config import Config, make_encoder, named_config, prepare
from locrl.experiments.train import Agent, make_model, train
from locrl.figures import table
from locrl.files import write_atomic
from locrl.vision.feature_store import build_store, kept_projection
from speed import described, machine
from stable_baselines3.common.callbacks import CallbackList

OUT = Path(__file__).resolve().parents[1] / "results" / "benchmarks" / "device.json"
ENCODERS = {
    "EfficientNet-Lite0": dict(name="efficientnet_lite0", input_size=320, dim=128),
    "ViT-L/14, random": dict(name="ViT-L-14", pretrained=None, input_size=None, dim=128, prompts="single"),
}  # the ensemble takes minutes on a processor
PICTURES = {"EfficientNet-Lite0": (200, 100), "ViT-L/14, random": (6, 6)}  # to train on and to search, for `agree`
STEPS = {"EfficientNet-Lite0": 6_400, "ViT-L/14, random": 1_280}  # transitions, for `agree`
# What rounding may do: the smallest cosine between a picture's features, the share of predicted boxes with IoU .9, and
# the difference in map11. It was measured on a processor that rounds the operands as a GPU does.
# Features: .99983 for convolutions in TF32, .999999 for a random ViT-L/14 in fp16 and .99996 in bf16.
# Predictions are less steady, since one close decision sends a search elsewhere: TF32 leaves 83 % the same, and noise
# of .3, 3 and 10 % of a cell's length leaves 95, 73 and 48 %. The map11 of all these lies within .015.
# So wrong features, which move by more than a tenth, break the first two limits; emulated rounding broke none.
TOLERANCE = dict(cosine=0.9995, same_answer=0.65, map11=0.03)


def configuration(name: str, quick: bool, pictures: tuple[int, int], steps: int) -> Config:
    "Return the shortened demo; where `quick`, with a few pictures of 64 pixels, or four patches of ViT-L/14"
    config = named_config("demo").replace(
        {
            "name": f"device-{ENCODERS[name]['name']}",
            "data.train": f"simple-scenes:train:{pictures[0]}",
            "data.select": f"simple-scenes:val:{pictures[1]}",
            "learning.steps": steps,
            "evaluation.eval_every": steps,
            "learning.learning_starts": min(1_280, steps // 4),
            **{f"encoder.{field}": value for field, value in ENCODERS[name].items()},
        }
    )
    if not quick:
        return config
    return config.replace(
        {
            "data.train": "simple-scenes:train:16",
            "data.select": "simple-scenes:val:8",
            "encoder.input_size": 64 if config.encoder.input_size else 56,
            "encoder.dim": 16,
            "learning.n_envs": 8,
            "learning.batch_size": 16,
            "learning.gradient_steps": 1,
            "network.net_arch": (16, 16),
            "network.region_width": 4,
            "learning.steps": 320,
            "evaluation.eval_every": 320,
            "learning.learning_starts": 64,
            "replay.buffer_size": 400,
            "learning.target_update_interval": 80,
        }
    )


def synchronised(device: str) -> float:
    "The clock, when the device has done what it was given"
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work, device: str) -> float:
    "How long the device takes for `work`"
    start = synchronised(device)
    work()
    return synchronised(device) - start


@contextmanager
def cached_in(folder: Path):
    "Keep computed files in `folder`"
    before = os.environ.get("LOCRL_CACHE")
    os.environ["LOCRL_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("LOCRL_CACHE") if before is None else os.environ.update(LOCRL_CACHE=before)


def answers(folder: Path, device: str, cache: Path) -> dict:
    "What the agent of `folder` sees and answers on `device`, with features that were encoded there"
    with cached_in(cache):
        agent = Agent.load(folder, device)
        world = agent.world(device)
        bank = world.bank("select")
        data = world.data["select"]
        searches = predict(agent.policy, bank, *all_queries(len(data), len(bank.classes)), agent.config.moves)
    return dict(
        features=bank.integral[:, 1:, 1:].flatten(1).cpu().double(),
        box=searches.box,
        map11=score(searches, data, bank.classes).detection.map11,
    )


def agree(name: str, device: str, quick: bool) -> dict:
    "How far processor and device agree, and which of the tolerances do not hold"
    config = configuration(name, quick, PICTURES[name], STEPS[name])
    with tempfile.TemporaryDirectory() as folder:
        sides = {side: Path(folder) / side for side in ("processor", "device")}
        with cached_in(sides["processor"]):
            world = prepare(config, "cpu")
            run = train(config, world=world, progress=False)
        a, b = answers(run, "cpu", sides["processor"]), answers(run, device, sides["device"])
    found = dict(
        cosine=float(torch.cosine_similarity(a["features"], b["features"]).min()),
        same_answer=float((iou(a["box"], b["box"]) >= 0.9).mean()),
    )
    if len(a["features"]) > 6:
        found["map11"] = abs(float(np.nan_to_num(a["map11"]) - np.nan_to_num(b["map11"])))
    broken = [k for k, v in found.items() if not (v <= TOLERANCE[k] if k == "map11" else v >= TOLERANCE[k])]
    return dict(pictures=len(a["features"]), agree=found, broken=broken)


def encoding(config: Config, device: str, n: int) -> dict:
    "Pictures a second of the bare network, of opening files alone, and of `build_store` from files to files"
    encoder = make_encoder(config, device)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "pictures").mkdir()
        data = Files(n, Path(folder) / "pictures")
        size = encoder.batch_size
        pixels = encoder.preprocess([data.image(i) for i in range(min(n, size))])
        pixels = pixels.pin_memory() if device.startswith("cuda") else pixels
        projection = kept_projection(data, encoder, config.encoder.dim, Path(folder) / "projection")  # warms up, too
        bare = n / seconds(lambda: [encoder.dense(pixels) for _ in range(-(-n // len(pixels)))], device)
        ready = encoder.dense(pixels)
        cached = n / seconds(lambda: build_store(data, encoder, projection=projection, root=Path(folder) / "a"), device)
        encoder.dense = lambda x: ready[: len(x)]
        opened = n / seconds(lambda: build_store(data, encoder, projection=projection, root=Path(folder) / "b"), device)
    return dict(
        batch_size=size,
        bare_a_second=bare,
        without_network_a_second=opened,
        cached_a_second=cached,
        share=cached / min(bare, opened),
    )


def training(config: Config, device: str) -> dict:
    "Milliseconds of an update, transitions a second without validations, and searches a second"
    world = prepare(config, device)
    model, quiet = make_model(world, 0), CallbackList([])
    learning = config.learning
    model._setup_learn(learning.steps)
    quiet.init_callback(model)
    updates, start = [], None
    while model.num_timesteps < learning.steps:
        starts = learning.learning_starts
        model.collect_rollouts(model.env, quiet, model.train_freq, model.replay_buffer, learning_starts=starts)
        if model.num_timesteps > starts:
            if start is None:
                start = synchronised(device), model.num_timesteps
            took = seconds(lambda: model.train(learning.gradient_steps, learning.batch_size), device)
            updates.append(1e3 * took / learning.gradient_steps)
    rate = (model.num_timesteps - start[1]) / (synchronised(device) - start[0])
    bank = world.bank("select")
    queries = all_queries(len(world.data["select"]), len(bank.classes))
    searched = len(queries[0]) / seconds(lambda: predict(model.policy, bank, *queries, config.moves), device)
    return dict(
        update_ms=float(np.median(updates)),
        transitions_a_second=rate,
        seconds_for_250_000=250_000 / rate,
        searches_a_second=searched,
    )


def speed(name: str, device: str, quick: bool) -> dict:
    "What the device does in a second, with a network of v14's size"
    config = configuration(name, quick, (400, 200), 12_800)
    if not quick:
        config = config.replace({"network.net_arch": (512, 512), "network.region_width": 64})
        config = config.replace({"encoder.input_size": 448} if config.encoder.input_size else {})
    with tempfile.TemporaryDirectory() as folder, cached_in(Path(folder)):
        return encoding(config, device, 16 if quick else 2_048) | training(config, device)


PARTS = {"agree": agree, "speed": speed}


def main(argv=None) -> int:
    "Command line; 0 where everything agrees, 1 where something does not, 2 where there is no such device"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS, help="what is measured")
    parser.add_argument("--device", default="cuda", help="torch device that is tried")
    parser.add_argument("--quick", action="store_true", help="a few small pictures and a short run")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the processor")
    parser.add_argument(
        "--out", type=Path, help="results file; default results/benchmarks/device.json, none for --quick"
    )
    args = parser.parse_args(argv)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print(
            f"There is no GPU on this machine: torch {torch.__version__} sees no CUDA device, so nothing was measured. "
            "`--quick --device cpu` goes through the same steps on the processor.",
            file=sys.stderr,
        )
        return 2
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", message=".*random.*")
    about, start = machine(args.threads), time.monotonic()
    if args.device.startswith("cuda"):
        about["gpu"] = torch.cuda.get_device_name(args.device)
    results = {name: PARTS[args.part](name, args.device, args.quick) for name in ENCODERS}
    print(table([{"encoder": name} | _row(args.part, found) for name, found in results.items()]))
    out = args.out or (None if args.quick else OUT)
    if out:
        before = json.loads(out.read_text()) if out.exists() else {}
        command = f"python benchmarks/device.py {args.part} --device {args.device} --threads {args.threads}"
        content = before | {args.part: described(command, about, start, results)}
        write_atomic(out, json.dumps(content, indent=1) + "\n")
    return int(any(found.get("broken") for found in results.values()))


def _row(part, found):
    "Return a row of the table that is printed"
    if part == "agree":
        numbers = {f"{k} (tolerance {TOLERANCE[k]})": f"{v:.4f}" for k, v in found["agree"].items()}
        return numbers | {"verdict": f"BROKEN {', '.join(found['broken'])}" if found["broken"] else "agree"}
    names = {k.replace("_a_second", "/s").replace("_", " "): v for k, v in found.items()}
    return {k: f"{v:.1f}" if v < 20 else f"{v:,.0f}" for k, v in names.items()}


if __name__ == "__main__":
    sys.exit(main())
