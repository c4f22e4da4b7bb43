"""Rehearse nbs/tutorials/train_clip.ipynb with random weights in the place of CLIP's real ones.

Every code cell runs in order in one process, as in Colab. The script notes time, processor time, peak memory of host
and GPU, and disk of each. The random weights lie where the notebook's own choice, the tag "openai", is looked for: in
a cache of the hub, as a safetensors file of that name. No number that comes out is a result of the method. What is
rehearsed is time, memory, disk, and going on after an interruption.

    python benchmarks/rehearse_clip.py --tiny                # a minute, for CI
    python benchmarks/rehearse_clip.py --device cuda --steps 50000 --out rehearsal.json
    python benchmarks/rehearse_clip.py --seen 8 --images 20 --share 0.01 --steps 5120 --out rehearsal.json   # no GPU
    python benchmarks/rehearse_clip.py --tiny --kill 17 0.5   # dies in cell 17 after half a second; then run it without
    python benchmarks/rehearse_clip.py --tiny --kill-each --out killed.json   # dies once in each cell, and goes on

Without a GPU the whole of it takes days. With `--seen N` the network looks at N pictures, which gives the time of one,
and the features of all are random numbers of the right shape, written by the package's own code: so memory and disk
are those of all pictures. The features of all pictures to report on are loaded, and `--images` of them are searched;
the judge is fitted with all training features at hand, and learns from a `--share` of the searches and few boxes.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
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
    parser.add_argument("--seen", type=int, help="pictures that the network looks at; the features are random")
    parser.add_argument("--images", type=int, help="pictures to report on, evenly spaced; default all")
    parser.add_argument("--share", type=float, help="of the searches that the judge learns from")
    parser.add_argument("--machine-only", action="store_true", help="the doctor looks at the machine and the weights")
    parser.add_argument("--kill", nargs=2, metavar=("CELL", "SECONDS"), help="die in a cell after so many seconds")
    parser.add_argument("--kill-each", action="store_true", help="die once in each cell, go on, and compare the ends")
    parser.add_argument("--out", type=Path, help="file for the table, JSON")
    return parser.parse_args()


def random_state(model):
    "Return the random weights of a model"
    import open_clip
    import torch

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_clip.create_model(model, force_quick_gelu=True).state_dict()


def checkpoint(model, folder):
    "Return a checkpoint file of random weights, made where it is not there yet"
    import torch

    path = folder / f"{model}-random.pt"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(random_state(model), part := path.with_suffix(".part"))
        os.replace(part, path)
    return path


def place_in_hub_cache(model, hub):
    "Put random weights where huggingface_hub keeps OpenAI's of this model, under their SHA-256, as it does"
    from open_clip.pretrained import get_pretrained_cfg
    from safetensors.torch import save_file

    from locrl.apps.doctor import sha256_of

    folder = hub / f"models--{get_pretrained_cfg(model, 'openai')['hf_hub'].strip('/').replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    file = snapshot / "open_clip_model.safetensors"
    if file.exists():
        return
    for part in (snapshot, folder / "refs", folder / "blobs"):
        part.mkdir(parents=True, exist_ok=True)
    save_file(random_state(model), part := folder / "blobs" / "part")
    blob = part.rename(part.with_name(sha256_of(part)))
    (folder / "refs" / "main").write_text("0" * 40)
    file.symlink_to(blob)


def look_at_few(n):
    "Make stores be filled with random features once `n` pictures were encoded; return a dictionary in which they count"
    import numpy as np
    import torch

    from locrl.vision import feature_store

    count = {"pictures": 0, "seconds": 0.0, "processor_seconds": 0.0}
    rng = np.random.default_rng(0)

    def encode(plans, todo, batch_size, workers):
        "Encode pictures until there were `n` of them, then write shards of random numbers"
        (plan,) = plans  # CLIP has no finer layer
        data, encoder, classes, shard_size = plan.data, plan.encoder, plan.classes, plan.shard_size
        while count["pictures"] < n:
            images = [data.image(count["pictures"] + k) for k in range(min(n, 8))]
            start, worked = time.monotonic(), time.process_time()
            dense = encoder.encode(images)
            encoder.presence(dense, classes)
            count["seconds"] += time.monotonic() - start
            count["processor_seconds"] += time.process_time() - worked
            count["pictures"] += len(images)
            print(f"{count['pictures']} pictures, {count['seconds']:.0f} s", file=sys.stderr, flush=True)
        shape = (shard_size, *encoder.grid, plan.projection.dim)
        drawn = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).half().numpy()
        evidence = rng.random((shard_size, len(classes), *encoder.grid), dtype=np.float32).astype(np.float16)
        presence = rng.random((shard_size, len(classes)), dtype=np.float32)
        for k in todo:
            rows = min(shard_size, len(data) - k * shard_size)
            drawn = np.roll(drawn, 1, axis=2)  # other numbers in each shard
            feature_store._write_shard(plan.path, k, drawn[:rows], evidence[:rows], presence[:rows])

    def projected(data, encoder, dim, n_images=500, workers=None):
        "Fit the projection on random cells, as many as those of the pictures it would be fitted on"
        cells = min(n_images, len(data)) * encoder.grid[0] * encoder.grid[1]
        return feature_store.Projection.fit(rng.standard_normal((cells, encoder.dim), dtype=np.float32), dim)

    feature_store.encoding.set(encode)
    feature_store.fit_projection = projected
    return count


def search_few(share):
    "Make the judge learn from a share of the searches and boxes that it would learn from"
    from locrl.experiments import results

    real, fit = results._some_queries, results.fit_judge
    every = max(1, round(1 / share))
    results._some_queries = lambda *of: tuple(part[::every] for part in real(*of))
    results.fit_judge = lambda *of, **options: fit(*of, **options, epochs=1, around=1, anywhere=1, of_passed=1)


def changes(chosen, weights):
    "Return the fields in which the rehearsal's configuration differs from the notebook's"
    fields = {"name": f"rehearsal-{chosen.model}", "encoder.name": chosen.model, "encoder.pretrained": weights}
    if chosen.tiny:
        fields |= TINY_CONFIG
    else:
        fields |= {"data.train": chosen.train, "data.select": chosen.select, "data.report": chosen.report}
        if chosen.steps:
            fields |= {"learning.steps": chosen.steps, "evaluation.eval_every": chosen.steps}
    return fields


def disk(folder):
    "Return the bytes of all files in a folder"
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def memory(which):
    "Return the memory of this process in bytes: `VmRSS` now, or `VmHWM` at most since `forget_peak`"
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))


def forget_peak():
    "Begin to measure the peak anew, where the system can"
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


LOADED = """everything = world.bank("report")  # features of all pictures to report on
for split in ("select", "report"):
    world.bank(split)
    data = world.data[split]
    world.data[split] = data.subset([k * len(data) // IMAGES for k in range(IMAGES)])
    del world.banks[split]"""


def cells(images):
    "Return number and source of the notebook's code cells, without the installation; `images` of them are reported on"
    found = []
    for number, cell in enumerate(json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        lines = [line for line in source.splitlines() if not line.startswith("#|")]
        if cell["cell_type"] == "code" and any(lines) and "%pip" not in source and "first_check" not in source:
            found.append((number, "\n".join(lines)))
            if images and source.startswith("world ="):
                found.append((number, LOADED.replace("IMAGES", str(images))))
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

    names, rows, seen = {"__name__": "rehearsal"}, [], None
    for number, source in cells(chosen.images):
        if chosen.kill and int(chosen.kill[0]) == number:
            threading.Timer(float(chosen.kill[1]), os._exit, (137,)).start()
        if chosen.iteration and source.startswith("iteration, seed"):
            source = source.replace(source.split('"')[1], chosen.iteration, 1)
        if source.startswith("world =") and chosen.seen is not None:
            seen = look_at_few(chosen.seen)
        if source.startswith("world =") and chosen.share:
            search_few(chosen.share)
        cuda = chosen.device.startswith("cuda")
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        forget_peak()
        before, start, worked = disk(cache), time.monotonic(), time.process_time()
        printed = run_cell(source, names)
        row = {
            "cell": number,
            "begins": source.splitlines()[0][:60],
            "seconds": round(time.monotonic() - start, 1),
            "processor_seconds": round(time.process_time() - worked, 1),
            "host_now_gb": round(memory("VmRSS") / 1e9, 3),
            "host_peak_gb": round(memory("VmHWM") / 1e9, 3),
            "gpu_peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 3) if cuda else None,
            "disk_gb": round((disk(cache) - before) / 1e9, 4),
            "printed": printed[-300:],
        }
        rows.append(row | ({"seen": dict(seen)} if seen is not None and source.startswith("world =") else {}))
        figures = [
            f"{row[key]}"
            for key in ("seconds", "processor_seconds", "host_now_gb", "host_peak_gb", "gpu_peak_gb", "disk_gb")
        ]
        print(f"cell {number:2d}  {'  '.join(f'{x:>8}' for x in figures)}  {row['begins']}", flush=True)
        prepared(source, names, chosen, weights)
    return rows, names["measured"]


def prepared(source, names, chosen, weights):
    "Put the rehearsal's choices in the place of the notebook's, after the cell that made them"
    if "from locrl.data.download import download" in source:
        names["download"] = lambda year: print(f"rehearsal: VOC{year} is not downloaded")
    if source.startswith("full ="):
        names["full"], names["device"] = True, chosen.device
    if source.startswith("from locrl.apps.doctor import"):
        real = names["doctor"]
        names["doctor"] = lambda encoder, device, small: (
            look_at_machine(chosen, weights)
            if chosen.machine_only
            else real(chosen.model, weights, device, chosen.tiny)
        )
    if source.startswith("config ="):
        names["config"] = names["config"].replace(changes(chosen, weights))


def look_at_machine(chosen, weights):
    "Do what `doctor` does before the acceptance test"
    from locrl.apps import doctor

    found = [
        doctor.check_versions(),
        doctor.check_gpu(chosen.device, True),
        doctor.check_memory(True),
        doctor.check_disk(True),
        doctor.check_drive(),
        doctor.check_data(),
        doctor.check_weights(chosen.model, weights),
    ]
    print(*found, sep="\n")
    return found


def about(chosen):
    "Return what the table was made with"
    from locrl.experiments.train import versions

    return {
        "command": " ".join(["python", "benchmarks/rehearse_clip.py", *sys.argv[1:]]),
        "machine": {"cores": os.cpu_count(), "load_average_at_the_end": os.getloadavg()[0]},
        "versions": versions(),
        "model": chosen.model,
        "device": chosen.device,
        "seen": chosen.seen,
        "images": chosen.images,
        "share": chosen.share,
    }


def kill_each():
    """Rehearse once undisturbed; then elsewhere with a kill in the middle of each cell that takes a tenth of a second,
    each time beginning again from the top as a user does. Return a row for each kill and whether the ends are equal."""
    words = [word for word in sys.argv[1:] if word != "--kill-each"]
    if "--out" in words:
        at = words.index("--out")
        del words[at : at + 2]
    rows = []
    with tempfile.TemporaryDirectory() as folder:

        def run(cache, *more):
            "Return exit status and table of a rehearsal"
            table = Path(folder, "table.json")
            table.unlink(missing_ok=True)
            command = [sys.executable, __file__, *words, "--out", str(table), *more]
            found = subprocess.run(
                command, env=os.environ | {"LOCRL_CACHE": str(Path(folder, cache))}, capture_output=True
            )
            return found.returncode, json.loads(table.read_text()) if table.exists() else None

        code, whole = run("undisturbed")
        if code:
            raise SystemExit(f"the undisturbed rehearsal ended with status {code}")
        for row in whole["cells"]:
            if row["seconds"] < 0.1:
                continue
            after = row["seconds"] / 2
            code, _ = run("killed", "--kill", str(row["cell"]), str(after))
            rows.append({"cell": row["cell"], "begins": row["begins"], "after": after, "killed": code == 137})
            print(*rows[-1].values(), flush=True)
        code, end = run("killed")
    equal = code == 0 and end["map11"] == whole["map11"]
    print(f"after {len(rows)} kills: status {code}, the result is {'the same' if equal else 'ANOTHER'}")
    return {"kills": rows, "status": code, "equal": equal}


def main():
    "Rehearse and print the table"
    chosen = options()
    if chosen.kill_each:
        sys.path.insert(0, str(ROOT))
        chosen.model = "tiny-rehearsal" if chosen.tiny else chosen.model
        found = about(chosen) | kill_each()
        if chosen.out:
            chosen.out.write_text(json.dumps(found, indent=1) + "\n")
        raise SystemExit(0 if found["equal"] else 1)
    os.environ.setdefault("IN_TEST", "1")
    os.environ.setdefault("MPLBACKEND", "agg")
    sys.path.insert(0, str(ROOT))
    from locrl.files import cache_root

    if not chosen.tiny:  # before huggingface_hub is imported, which reads it once
        os.environ["HF_HUB_CACHE"] = str(cache_root() / "rehearsal" / "hub")
        os.environ["HF_HUB_OFFLINE"] = "1"
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
        weights = str(checkpoint(chosen.model, cache / "rehearsal"))
    else:
        place_in_hub_cache(chosen.model, cache / "rehearsal" / "hub")
        weights = "openai"
    print("cell  seconds  of processor  host now, peak  GPU peak  disk (GB)")
    rows, measured = rehearse(chosen, weights, cache)
    if chosen.out:
        chosen.out.write_text(json.dumps(about(chosen) | {"map11": measured, "cells": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
