"""Measure how soon the page of `locrl app` answers: one visitor after another, then eight at once.

Times are those of a client of the page on the same machine, from the question to the walk, and to the ranking and the
files that come after it. Writes results/benchmarks/page.json.

    pip install "locrl[app]"
    python benchmarks/page.py
"""

import argparse
import json
import os
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from locrl.apps.app import running
from locrl.apps.localizer import EXAMPLE, Localizer, picture
from locrl.experiments.train import versions
from locrl.files import write_atomic

OUT = Path(__file__).parents[1] / "results/benchmarks/page.json"


def photographs(folder, n):
    "Write `n` pictures with a cat in each, as large as a telephone's"
    files = []
    for k in range(n):
        photo = Image.new("RGB", (1600, 1200), "#8d9181")
        photo.paste(picture(EXAMPLE).resize((720, 480)), (100 * k % 800, 90 * k % 700))
        files.append(Path(folder) / f"{k}.jpg")
        photo.save(files[-1])
    return files


def visit(address, file):
    "Ask the page; return the seconds to the walk and to everything"
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False, analytics_enabled=False)
    began = time.perf_counter()
    job, walk = client.submit(handle_file(str(file)), "a cat", api_name="/search"), None
    for _, shown, *_ in job:
        walk = walk or (shown and time.perf_counter() - began)
    if not job.result()[-1]["found"]:
        raise SystemExit(f"{file}: no cat was found, so the times are not those of an answer")
    return walk, time.perf_counter() - began


def main():
    "Measure and write"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT, help="file to write")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder, running(Localizer.pretrained()) as address:
        files = photographs(folder, 8)
        first = visit(address, files[0])
        alone = np.array([visit(address, file) for file in files])
        together = {}
        visitors = [threading.Thread(target=lambda f=f: together.update({f: visit(address, f)})) for f in files]
        for visitor in visitors:
            visitor.start()
        for visitor in visitors:
            visitor.join()
    rows = []
    for name, times in ("the first", [first]), ("alone", alone), ("eight at once", list(together.values())):
        walk, whole = np.array(times).T
        rows.append(dict(visitors=name, n=len(walk)))
        for key, seconds in ("walk", walk), ("everything", whole):
            rows[-1] |= {
                f"{key}_median": round(float(np.median(seconds)), 2),
                f"{key}_longest": round(float(seconds.max()), 2),
            }
        print(rows[-1])
    about = dict(command="python benchmarks/page.py", cores=os.cpu_count(), versions=versions())
    write_atomic(out, json.dumps(about | dict(gradio=version("gradio"), rows=rows), indent=1) + "\n")


if __name__ == "__main__":
    main()
