"""Rehearse nbs/tutorials/train_clip.ipynb with random weights in the place of CLIP's real ones.

Every code cell runs in order in one process, as in Colab. The script notes time, peak memory of host and GPU, and
disk of each. The random weights are written as a checkpoint file, and the notebook's configuration is pointed at
it. No number that comes out is a result of the method. What is rehearsed is time, memory, disk, and going on after
an interruption.

    python benchmarks/rehearse_clip.py --tiny                # a minute, for CI
    python benchmarks/rehearse_clip.py --device cuda --steps 50000 --out rehearsal.json
    python benchmarks/rehearse_clip.py --tiny --kill 8 0.5   # dies in cell 8 after half a second; then run it without
"""

import argparse
import contextlib
import io
import json
import os
import resource
import sys
import threading
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "nbs" / "tutorials" / "train_clip.ipynb"
TINY_MODEL = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
TINY_CONFIG = {
    "data.train": "simple-scenes:train:24",
    "data.select": "simple-scenes:val:12",
    "data.report": "simple-scenes:test:12",
    "data.classes": ("cat", "dog"),
    "network.net_arch": (16, 16),
    "network.region_width": 4,
    "learning.n_envs": 8,
    "learning.batch_size": 16,
    "learning.gradient_steps": 1,
    "learning.learning_starts": 64,
    "learning.steps": 640,
    "replay.buffer_size": 400,
    "evaluation.eval_every": 320,
}


def options():
    "Read the command line"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a tiny model on a few composed scenes")
    parser.add_argument("--model", default="ViT-L-14", help="open_clip model")
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--iteration", help="instead of the notebook's own")
    parser.add_argument("--train", default="voc2012:train", help="data to learn from")
    parser.add_argument("--select", default="voc2012:val", help="data to select the policy on")
    parser.add_argument("--report", default="voc2007:test", help="data to report on")
    parser.add_argument("--steps", type=int, help="transitions, instead of the configuration's")
    parser.add_argument("--kill", nargs=2, metavar=("CELL", "SECONDS"), help="die in a cell after so many seconds")
    parser.add_argument("--out", type=Path, help="file for the table, JSON")
    return parser.parse_args()


def checkpoint(model, folder):
    "Return a checkpoint file of random weights, made where it is not there yet"
    import open_clip
    import torch

    path = folder / f"{model}-random.pt"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = open_clip.create_model(model, force_quick_gelu=True).state_dict()
        torch.save(state, part := path.with_suffix(".part"))
        os.replace(part, path)
    return path


def changes(chosen, weights):
    "Return the fields in which the rehearsal's configuration differs from the notebook's"
    fields = {"name": f"rehearsal-{chosen.model}", "encoder.name": chosen.model, "encoder.pretrained": str(weights)}
    if chosen.tiny:
        fields |= TINY_CONFIG
    else:
        fields |= {"data.train": chosen.train, "data.select": chosen.select, "data.report": chosen.report}
        if chosen.steps:
            fields |= {"learning.steps": chosen.steps, "evaluation.eval_every": max(1, chosen.steps // 4)}
    return fields


def disk(folder):
    "Return the bytes of all files in a folder"
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def resident():
    "Return the bytes of memory that this process holds now"
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def cells():
    "Return number and source of the notebook's code cells, without the installation"
    found = []
    for number, cell in enumerate(json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        lines = [line for line in source.splitlines() if not line.startswith("#|")]
        if cell["cell_type"] == "code" and any(lines) and "%pip" not in source and "first_check" not in source:
            found.append((number, "\n".join(lines)))
    return found


def run_cell(source, names):
    "Run a cell and return what it printed; a last line that is an expression is shown as a notebook shows it"
    import ast

    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) and not source.rstrip().endswith(";") else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, str(NOTEBOOK), "exec"), names)  # noqa: S102
        if last is not None:
            shown = eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names)  # noqa: S307
            getattr(shown, "_repr_png_", lambda: None)()
            getattr(shown, "_repr_html_", lambda: None)()
    return printed.getvalue()


def rehearse(chosen, weights, cache):
    "Run every cell; return a row for each"
    import torch

    names, rows = {"__name__": "rehearsal"}, []
    for number, source in cells():
        if chosen.kill and int(chosen.kill[0]) == number:
            threading.Timer(float(chosen.kill[1]), os._exit, (137,)).start()
        if chosen.iteration and source.startswith("iteration, seed"):
            source = source.replace(source.split('"')[1], chosen.iteration, 1)
        cuda = chosen.device.startswith("cuda")
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        before, start = disk(cache), time.monotonic()
        printed = run_cell(source, names)
        row = {
            "cell": number,
            "begins": source.splitlines()[0][:60],
            "seconds": round(time.monotonic() - start, 1),
            "host_now_gb": round(resident() / 1e9, 3),
            "host_peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3),
            "gpu_peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 3) if cuda else None,
            "disk_gb": round((disk(cache) - before) / 1e9, 4),
            "printed": printed[-300:],
        }
        rows.append(row)
        figures = [f"{row[key]}" for key in ("seconds", "host_now_gb", "host_peak_gb", "gpu_peak_gb", "disk_gb")]
        print(f"cell {number:2d}  {'  '.join(f'{x:>8}' for x in figures)}  {row['begins']}", flush=True)
        prepared(source, names, chosen, weights)
    return rows


def prepared(source, names, chosen, weights):
    "Put the rehearsal's choices in the place of the notebook's, after the cell that made them"
    if "from locrl.data.download import download" in source:
        names["download"] = lambda year: print(f"rehearsal: VOC{year} is not downloaded")
    if source.startswith("full ="):
        names["full"], names["device"] = True, chosen.device
    if source.startswith("from locrl.apps.doctor import"):
        real = names["doctor"]
        names["doctor"] = lambda encoder, device, small: real(chosen.model, str(weights), device, chosen.tiny)
    if source.startswith("config ="):
        names["config"] = names["config"].replace(changes(chosen, weights))


def main():
    "Rehearse and print the table"
    chosen = options()
    os.environ.setdefault("IN_TEST", "1")
    os.environ.setdefault("MPLBACKEND", "agg")
    sys.path.insert(0, str(ROOT))
    from locrl.files import cache_root
    from locrl.vision.encoders import ensure_torchvision

    ensure_torchvision()
    cache = cache_root()
    cache.mkdir(parents=True, exist_ok=True)
    if chosen.tiny:
        import open_clip

        chosen.model = "tiny-rehearsal"
        folder = cache / "rehearsal"
        folder.mkdir(exist_ok=True)
        (folder / f"{chosen.model}.json").write_text(json.dumps(TINY_MODEL))
        open_clip.add_model_config(folder)
    weights = checkpoint(chosen.model, cache / "rehearsal")
    print("cell  seconds  host now, peak  GPU peak  disk (GB)")
    rows = rehearse(chosen, weights, cache)
    if chosen.out:
        chosen.out.write_text(json.dumps({"model": chosen.model, "device": chosen.device, "cells": rows}, indent=1))


if __name__ == "__main__":
    main()
