"""The same run on two devices: cache, train and evaluate on --device, compared with the processor, in one command.

    python benchmarks/device.py                        # EfficientNet-Lite0, and ViT-L/14 with random weights
    python benchmarks/device.py --small --device cpu   # the same steps without a GPU, in a few minutes

Each side has a cache of its own, so everything is encoded on its own device. Sums are made in another order on another
device, so two trainings drift apart. Both sides are therefore trained only to measure their speed. Then the agent that
was trained on the processor searches with the features of either side. The script writes
results/benchmarks/device.json, and ends with status 1 where a number leaves its tolerance.
"""

import argparse
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from locrl.experiments.config import Config, named_config, prepare
from locrl.agents.predictions import predict
from locrl.evaluation.protocols import all_queries, score
from locrl.figures import table
from locrl.experiments.train import Agent, train
from speed import machine, write

OUT = Path(__file__).resolve().parents[1] / "results" / "benchmarks" / "device.json"
ENCODERS = {
    "EfficientNet-Lite0": dict(name="efficientnet_lite0", input_size=320, dim=128),
    "ViT-L/14, random": dict(name="ViT-L-14", pretrained=None, input_size=None, dim=128, prompts="single"),
}  # the ensemble takes minutes on a processor
# What rounding may do: the smallest cosine between a picture's features, the share of predicted boxes with IoU .9, and
# the difference in map11. It was measured on a processor that rounds the operands as a GPU does.
# Features: .99983 for convolutions in TF32, .999999 for a random ViT-L/14 in fp16 and .99996 in bf16.
# Predictions are less steady, since one close decision sends a search elsewhere: TF32 leaves 83 % the same, and noise
# of .3, 3 and 10 % of a cell's length leaves 95, 73 and 48 %. The map11 of all these lies within .015.
# So wrong features, which move by more than a tenth, break the first two limits; emulated rounding broke none.
TOLERANCE = dict(cosine=0.9995, same_answer=0.65, map11=0.03)


def configuration(name: str, small: bool) -> Config:
    "Return the shortened demo; where `small`, with a few pictures of 64 pixels, or four patches of ViT-L/14"
    config = named_config("demo").replace(
        {
            "name": f"device-{ENCODERS[name]['name']}",
            "data.train": "simple-scenes:train:200",
            "data.select": "simple-scenes:val:100",
            "learning.steps": 12_800,
            "evaluation.eval_every": 12_800,
            "learning.learning_starts": 1_280,
            **{f"encoder.{field}": value for field, value in ENCODERS[name].items()},
        }
    )
    if not small:
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


def side(config: Config, device: str, cache: Path) -> tuple[Path, dict]:
    "Cache and train on `device`: the run's folder and what it took"
    os.environ["LOCRL_CACHE"] = str(cache)
    start = synchronised(device)
    world = prepare(config, device)
    world.bank("select")
    cached = synchronised(device)
    folder = train(config, world=world, device=device, progress=False)
    trained = synchronised(device)
    n = sum(len(bank) for bank in world.banks.values())
    return folder, dict(
        pictures_a_second=n / (cached - start), transitions_a_second=config.learning.steps / (trained - cached)
    )


def answers(folder: Path, device: str, cache: Path) -> dict:
    "What the agent of `folder` sees and answers on `device`, with features that were encoded there"
    os.environ["LOCRL_CACHE"] = str(cache)
    agent = Agent.load(folder, device)
    world = agent.world(device)
    bank = world.bank("select")
    data, start = world.data["select"], synchronised(device)
    searches = predict(agent.policy, bank, *all_queries(len(data), len(bank.classes)), agent.config.moves)
    seconds = synchronised(device) - start
    return dict(
        features=bank.integral[:, 1:, 1:].flatten(1).cpu().double(),
        box=searches.box,
        searches_a_second=len(searches) / seconds,
        map11=score(searches, data, bank.classes).detection.map11,
    )


def compare(config: Config, device: str) -> dict:
    "Both sides of a configuration, how far they agree, and which of the tolerances do not hold"
    from locrl.data.boxes import iou

    with tempfile.TemporaryDirectory() as folder:
        sides = {name: Path(folder) / name for name in ("processor", "device")}
        reference, here = side(config, "cpu", sides["processor"])
        _, there = side(config, device, sides["device"])
        a, b = answers(reference, "cpu", sides["processor"]), answers(reference, device, sides["device"])
    agree = dict(
        cosine=float(torch.cosine_similarity(a["features"], b["features"]).min()),
        same_answer=float((iou(a["box"], b["box"]) >= 0.9).mean()),
        map11=abs(float(np.nan_to_num(a["map11"]) - np.nan_to_num(b["map11"]))),
    )
    broken = [k for k, v in agree.items() if not (v <= TOLERANCE[k] if k == "map11" else v >= TOLERANCE[k])]
    return dict(
        processor=here | dict(searches_a_second=a["searches_a_second"]),
        device=there | dict(searches_a_second=b["searches_a_second"]),
        agree=agree,
        broken=broken,
    )


def main(argv=None) -> int:
    "Command line; 0 where everything agrees, 1 where something does not, 2 where there is no such device"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="torch device that is compared with the processor")
    parser.add_argument("--small", action="store_true", help="a few small pictures and a short run")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the processor")
    parser.add_argument(
        "--out", type=Path, help="results file; default results/benchmarks/device.json, none for --small"
    )
    args = parser.parse_args(argv)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print(
            f"There is no GPU on this machine: torch {torch.__version__} sees no CUDA device, so nothing was compared. "
            "`--small --device cpu` goes through the same steps on the processor.",
            file=sys.stderr,
        )
        return 2
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", message=".*random.*")
    about = machine(args.threads)
    start = time.monotonic()
    results = {}
    if args.device.startswith("cuda"):
        about["gpu"] = torch.cuda.get_device_name(args.device)
    before = os.environ.get("LOCRL_CACHE")
    try:
        for name in ENCODERS:
            results[name] = compare(configuration(name, args.small), args.device)
    finally:
        os.environ.pop("LOCRL_CACHE") if before is None else os.environ.update(LOCRL_CACHE=before)
    print(
        table(
            [
                {
                    "encoder": name,
                    "device": which,
                    **{k.replace("_a_second", "/s"): f"{v:.0f}" for k, v in r[key].items()},
                }
                for name, r in results.items()
                for key, which in (("processor", "cpu"), ("device", args.device))
            ]
        )
    )
    for name, r in results.items():
        print(
            f"{name}: "
            + ", ".join(f"{k} {v:.4f} (tolerance {TOLERANCE[k]})" for k, v in r["agree"].items())
            + (f": BROKEN {', '.join(r['broken'])}" if r["broken"] else ": agree")
        )
    out = args.out or (None if args.small else OUT)
    if out:
        write(out, f"python benchmarks/device.py --device {args.device}", about, start, results)
    return int(any(r["broken"] for r in results.values()))


if __name__ == "__main__":
    sys.exit(main())
