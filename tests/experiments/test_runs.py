"""What `locrl runs` and `locrl show --follow` say of real runs, of runs in training and of damaged ones."""

import json
import subprocess
import sys
import threading
import time

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from locrl.apps import cli
from locrl.checkpoints import RunFolder
from locrl.experiments.runs import follow, run_state, runs_in, validation_line
from locrl.files import FileError, locked


def test_a_real_run(tiny_runs):
    "Finished, with the mAP that selected its policy; stopped when its last checkpoint is an earlier one"
    from tiny import TINY

    run, other = tiny_runs
    found = run_state(run)
    assert (found.state, found.step, found.steps) == ("finished", TINY.learning.steps, TINY.learning.steps)
    assert found.best == max(row["map_area"] for row in RunFolder(run).validations()) and found.written <= time.time()
    RunFolder(other).roll_back()
    stopped = run_state(other)
    assert stopped.state == "stopped" and stopped.step < stopped.steps
    with locked(other):
        assert run_state(other).state == "training"
    shown = CliRunner().invoke(cli.app, ["runs", "--root", str(run.parents[1])]).output
    assert "| tiny/seed-0 | finished | 800 of 800 |" in shown and "| tiny/seed-1 | stopped |" in shown


def test_followed_until_it_ends(tmp_path):
    "Rows that come while it is held are given as they come, each once, the last one too"
    config = json.dumps({"config": {"learning": {"steps": 300}}}).encode()
    RunFolder(tmp_path).commit({"config.json": config, "best": b""}, step=300)
    rows, ready = [{"step": 100 * k, "map_area": k / 10} for k in (1, 2, 3)], threading.Event()

    def train():
        with locked(tmp_path):
            for k in range(1, 4):
                (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:k]))
                ready.set()
                time.sleep(0.1)

    thread = threading.Thread(target=train)
    thread.start()
    ready.wait()
    assert list(follow(tmp_path, every=0.01)) == rows
    thread.join()
    assert validation_line(rows[1]) == "step 200, mAP 0.200"
    said = CliRunner().invoke(cli.app, ["show", str(tmp_path), "--follow"]).output.splitlines()
    assert said == [*map(validation_line, rows), "finished at 300 of 300 transitions"]


def test_a_writer_waits_for_whoever_looks(tmp_path):
    "Looking holds the lock for an instant, and stops no training that begins in it"
    looking = FileLock(tmp_path / ".lock", thread_local=False)
    looking.acquire()
    threading.Timer(0.1, looking.release).start()
    with locked(tmp_path):
        assert looking.is_locked is False


def test_damaged_and_old_runs_are_listed(tmp_path):
    for name, rows in (("a", b""), ("b", b"no row"), ("c", b"")):
        (tmp_path / name).mkdir()
        RunFolder(tmp_path / name).commit({"config.json": b'{"config": {"steps": 10}}', "metrics.jsonl": rows}, step=5)
    (tmp_path / "a" / "manifest.json").write_text("{")
    (tmp_path / "c" / "manifest.json").unlink()
    states = {run.folder.name: run.state for run in runs_in(tmp_path)}
    assert states["a"].startswith("damaged") and "manifest.json" in states["a"]
    assert "metrics.jsonl, line 1 is damaged" in states["b"] and "locrl convert" in states["c"]
    with pytest.raises(FileError, match="is no run"):
        next(follow(tmp_path))


def test_it_answers_at_once(tmp_path):
    "Neither PyTorch nor matplotlib is loaded to list runs"
    code = "import sys\nfrom locrl.apps.cli import main\ntry: main()\nexcept SystemExit: pass\nprint(*sys.modules)"
    command = [sys.executable, "-c", code, "runs", "--root", str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"no runs in {tmp_path}") and not {"torch", "matplotlib"} & set(said.split())
