"""SIGKILL at random moments of everything that writes: nothing lost, nothing left over, the end equal bit for bit.

    python benchmarks/kill.py                          # 200 kills: 60 store, 60 train, 30 pack, 40 download, 10 sweep
    python benchmarks/kill.py --store 3 --train 2 --pack 0 --download 0 --sweep 0

Each job is begun, killed with all its processes at a random moment, and begun again in the same folder until it ends;
then it starts in a new folder. After each kill what was finished before must still be there and be readable. After the
end the results are compared with those of a job that was never killed, and the files with its files. Prints a table,
writes results/benchmarks/kill.json, and ends with status 1 where something was lost, left over or different.
"""

import argparse
import hashlib
import http.server
import io
import json
import os
import random
import re
import signal
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "results" / "benchmarks" / "kill.json"
sys.path.append(str(ROOT / "tests"))
COUNTS = dict(store=60, train=60, pack=30, download=40, sweep=10)
CHANGING = re.compile(r"(?<=-)\d+(?=\.safetensors)|events\.out\.tfevents.*|log\.txt|\.lock$")  # of file names


def digest(path: Path) -> str:
    "SHA-256 of a file"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def listing(folder: Path) -> list[str]:
    "Names of all files below a folder, without what differs between two good runs"
    names = {CHANGING.sub("", f.relative_to(folder).as_posix()) for f in folder.rglob("*") if f.is_file()}
    empty = {f"{f.relative_to(folder).as_posix()}/" for f in folder.rglob("*") if f.is_dir() and not any(f.iterdir())}
    return sorted(names | empty)


class Store:
    "Encode a data set into a feature store"

    def do(self, folder):
        "Build it"
        from mosaic import Mosaic, pictures

        from locrl.vision.feature_store import build_store

        build_store(pictures(40), Mosaic(pause=0.01), 6, root=folder, shard_size=4, batch_size=2)

    def progress(self, folder):
        "Finished shards; each is whole"
        done = 0
        for declared in folder.glob("*/shard-*.json"):
            for name, wanted in json.loads(declared.read_text())["sha256"].items():
                if digest(declared.parent / name) != wanted:
                    raise AssertionError(f"{name} does not match {declared.name}")
            done += 1
        return done

    def result(self, folder):
        "Digest of every file"
        return {f.relative_to(folder).as_posix(): digest(f) for f in folder.rglob("*") if f.suffix in (".npy", ".json")}


def rows_and_weights(folder):
    "Validations of a run, without the clock, and a digest of the weights that were best"
    from locrl.checkpoints import RunFolder
    from locrl.experiments.train import CLOCK, Agent

    rows = [{k: v for k, v in row.items() if k not in CLOCK} for row in RunFolder(folder).validations()]
    h = hashlib.sha256()
    for name, value in sorted(Agent.load(folder).policy.state_dict().items()):
        h.update(name.encode() + value.numpy().tobytes())
    return dict(rows=rows, weights=h.hexdigest())


def steps_of(folder):
    "Transitions behind the last row of a run; its agent, where there is one, can be loaded"
    from locrl.checkpoints import RunFolder
    from locrl.experiments.train import Agent

    rows = RunFolder(folder).validations()
    if rows:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Agent.load(folder)
    return rows[-1]["step"] if rows else 0


class Train:
    "Train a run"

    def __init__(self):
        from tiny import TINIEST

        from locrl.experiments.config import prepare

        self.config = TINIEST
        self.world = prepare(TINIEST)
        self.world.bank("select")

    def do(self, folder):
        "Train it"
        from locrl.experiments.train import train

        train(self.config, 0, folder, self.world, progress=False)

    def progress(self, folder):
        "Transitions that were validated"
        return steps_of(folder / self.config.name / "seed-0")

    def result(self, folder):
        "Rows and weights"
        return rows_and_weights(folder / self.config.name / "seed-0")


class Pack:
    "Write the agent of a run into one file"

    def __init__(self, run):
        self.run = run

    def do(self, folder):
        "Pack it"
        from locrl.apps.pretrained import pack

        pack(self.run, folder / "agent.npz", measured=False)

    def progress(self, folder):
        "Whether the file is there; then it is whole"
        from locrl.apps.pretrained import load_pretrained

        if not (folder / "agent.npz").exists():
            return 0
        load_pretrained(folder / "agent.npz")
        return 1

    def result(self, folder):
        "All numbers of the agent"
        with np.load(folder / "agent.npz") as z:
            return {k: hashlib.sha256(z[k].tobytes()).hexdigest() for k in z.files}


class Slow(http.server.BaseHTTPRequestHandler):
    "Sends a file in small parts, from where it is asked to"

    body = b""

    def do_GET(self):  # noqa: N802
        "Answer"
        wanted = self.headers.get("Range")
        first = int(wanted.split("=")[1].rstrip("-")) if wanted else 0
        if first >= len(self.body):
            return self.send_error(416)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(self.body) - first))
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{len(self.body) - 1}/{len(self.body)}")
        self.end_headers()
        try:
            for at in range(first, len(self.body), 1 << 18):
                self.wfile.write(self.body[at : at + (1 << 18)])
                time.sleep(0.04)
        except OSError:
            pass  # whoever asked was killed

    def log_message(self, *args):
        "Say nothing"


def archive_of_voc() -> bytes:
    "Return a tar archive of a small VOC folder, of a few MB"
    from conftest import VocFolder, box_xml

    with tempfile.TemporaryDirectory() as folder:
        made = VocFolder(Path(folder))
        names = [f"{k:06d}" for k in range(40)]
        for name in names:
            made.image(name, (300, 200), quality=95)
            made.xml(name, box_xml(), (300, 200))
        made.list("test", "\n".join(["a", "b", *names]) + "\n")
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            tar.add(Path(folder) / "VOCdevkit", "VOCdevkit")
        return buffer.getvalue()


class Download:
    "Fetch and unpack an archive, from a local server in a process of its own"

    def __init__(self):
        import dataclasses

        from locrl.data import download as downloads

        Slow.body = archive_of_voc()
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
        self.server = os.fork()
        if not self.server:
            server.serve_forever()
            os._exit(0)
        server.server_close()
        known = downloads.ARCHIVES["2007"][1]
        changes = dict(
            md5=hashlib.md5(Slow.body, usedforsecurity=False).hexdigest(),
            size=len(Slow.body),
            urls=(f"http://127.0.0.1:{server.server_port}/x",),
        )
        if hasattr(known, "sha256"):
            changes["sha256"] = hashlib.sha256(Slow.body).hexdigest()
        self.archive = dataclasses.replace(known, **changes)

    def do(self, folder):
        "Download"
        from locrl.data import download as downloads

        downloads.ARCHIVES["2007"] = (self.archive,)
        downloads.download("2007", folder)

    def progress(self, folder):
        "Bytes that were fetched, beside those of the folder that was unpacked"
        parts = [f.stat().st_size for f in folder.glob("*.tar*") if f.is_file()]
        return max([len(Slow.body) * (folder / "VOCdevkit").exists(), *parts], default=0)

    def result(self, folder):
        "Digest of every file"
        return {f.relative_to(folder).as_posix(): digest(f) for f in folder.rglob("*") if f.is_file()}

    def close(self):
        "End the server"
        os.kill(self.server, signal.SIGKILL)
        os.waitpid(self.server, 0)


class Sweep:
    "Two seeds side by side, each in a process of its own"

    def __init__(self):
        from tiny import TINIEST

        self.config = TINIEST

    def do(self, folder):
        "Train both"
        from locrl.experiments.sweep import Trial, run_sweep

        errors = run_sweep([Trial(self.config, seed, folder) for seed in (0, 1)], 2, progress=False)
        assert not errors, errors

    def progress(self, folder):
        "Transitions of both"
        return sum(steps_of(folder / self.config.name / f"seed-{seed}") for seed in (0, 1))

    def result(self, folder):
        "Rows and weights of both"
        return [rows_and_weights(folder / self.config.name / f"seed-{seed}") for seed in (0, 1)]


def attempt(job, folder: Path, after: float | None) -> str:
    "Run a job in a process of its own; 'killed' when it was killed after so many seconds, else 'done' or what failed"
    log = folder.with_suffix(".log")
    child = os.fork()
    if not child:
        with suppress(OSError):  # the parent may have done so
            os.setpgid(0, 0)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        code = 1
        try:
            job.do(folder)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    with suppress(OSError):  # both do it, so that the group is there whoever comes first
        os.setpgid(child, child)
    end = time.monotonic() + (600 if after is None else after)
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "done" if not status else f"failed: {log.read_text().strip().splitlines()[-1]}"
        time.sleep(0.002)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "killed" if after is not None else "failed: ten minutes are over"


def put_to_the_test(name: str, job, kills: int, folder: Path, rng: random.Random) -> dict:
    "Kill a job so many times: what was lost, left over or different"
    row = dict(job=name, kills=0, jobs=0, lost=[], leftovers=[], different=[], failed=[])
    whole = folder / "whole"
    whole.mkdir()
    begun = time.monotonic()
    verdict = attempt(job, whole, None)
    lasts = time.monotonic() - begun
    if verdict != "done":
        return row | dict(failed=[verdict])
    want, files = job.result(whole), listing(whole)
    while row["kills"] < kills:
        row["jobs"] += 1
        here = folder / f"job-{row['jobs']}"
        here.mkdir()
        had = 0
        for _ in range(200):
            left = row["kills"] < kills
            started = time.monotonic()
            verdict = attempt(job, here, rng.uniform(0, 1.1 * lasts) if left else None)
            if verdict != "killed":
                if not had:  # from the start to the end, nothing of it done before
                    lasts = min(lasts, time.monotonic() - started)
                break
            row["kills"] += 1
            try:
                now = job.progress(here)
                if now < had:
                    row["lost"].append(f"{here.name}: {now} after {had}")
                had = now
            except Exception as e:
                row["lost"].append(f"{here.name}: {type(e).__name__}: {e}")
        if verdict != "done":
            row["failed"].append(f"{here.name}: {verdict}")
            continue
        if job.result(here) != want:
            row["different"].append(here.name)
        more = [f for f in listing(here) if f not in files]
        row["leftovers"] += [f"{here.name}: {f}" for f in more]
        row["lost"] += [f"{here.name}: {f} is missing" for f in files if f not in listing(here)]
    return row | dict(seconds=round(time.monotonic() - begun, 1))


def jobs(counts: dict, folder: Path):
    "Yield (name, job) for each job that is to be killed"
    makers = SimpleNamespace(store=Store, train=Train, download=Download, sweep=Sweep)
    for name, count in counts.items():
        if not count:
            continue
        if name == "pack":
            whole = folder / "train" / "whole"  # the run that was never killed
            if not whole.exists():
                Train().do(whole)
            (run,) = whole.glob("*/seed-0")
            yield name, Pack(run)
        else:
            yield name, getattr(makers, name)()


def main():
    "Read the arguments, kill, write the table"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, count in COUNTS.items():
        parser.add_argument(f"--{name}", type=int, default=count, help=f"kills of {name}")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    counts = {name: getattr(args, name) for name in COUNTS}
    rows = run(counts, args.seed, lambda rows: write(args.out, counts, args.seed, rows))
    bad = write(args.out, counts, args.seed, rows)
    print(f"{sum(r['kills'] for r in rows)} kills, {bad} faults")
    sys.exit(1 if bad else 0)


def write(out: Path, counts: dict, seed: int, rows: list[dict]) -> int:
    "Write the results so far; return the number of faults"
    from locrl.files import write_atomic

    total = sum(r["kills"] for r in rows)
    bad = sum(len(r[k]) for r in rows for k in ("lost", "leftovers", "different", "failed"))
    options = " ".join(f"--{name} {count}" for name, count in counts.items())
    content = dict(command=f"python benchmarks/kill.py {options} --seed {seed}", kills=total, faults=bad, jobs=rows)
    write_atomic(out, json.dumps(content, indent=1) + "\n")
    return bad


def run(counts: dict, seed: int = 0, tell=lambda rows: None) -> list[dict]:
    "Kill each job so many times; a row for each. `tell` gets the rows after each job."
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    import locrl.apps.pretrained  # noqa: F401  imported once, before any fork
    import locrl.experiments.sweep  # noqa: F401

    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory(prefix="locrl-kill-") as folder:
        os.environ["LOCRL_CACHE"] = str(Path(folder) / "cache")
        for name, job in jobs(counts, Path(folder)):
            place = Path(folder) / name
            place.mkdir()
            try:
                rows.append(put_to_the_test(name, job, counts[name], place, random.Random(f"{seed} {name}")))
            finally:
                getattr(job, "close", lambda: None)()
            tell(rows)
            row = rows[-1]
            faults = {k: len(row[k]) for k in ("lost", "leftovers", "different", "failed")}
            print(f"{name:9} {row['kills']:4} kills in {row['jobs']:3} jobs, {faults}", flush=True)
            for kind in faults:
                for each in row[kind][:5]:
                    print(f"    {kind}: {each}")
    return rows


if __name__ == "__main__":
    main()
