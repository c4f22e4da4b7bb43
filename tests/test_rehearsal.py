"""The rehearsal of train_clip runs every cell with random weights, and goes on after it was killed in the training."""

import json
import os
import subprocess
import sys

from conftest import ROOT


def test_every_cell_runs_after_a_kill_in_the_training(tmp_path):
    few = ["--seen", "2", "--images", "4", "--share", "0.5"]  # as it is rehearsed at full size without a GPU
    script, table = ROOT / "benchmarks" / "rehearse_clip.py", tmp_path / "table.json"
    command = [sys.executable, str(script), "--tiny", *few, "--out", str(table)]
    here = os.environ | {"LOCRL_CACHE": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    assert subprocess.run([*command, "--kill", "20", "0.3"], env=here, capture_output=True).returncode in (0, 137)
    done = subprocess.run(command, env=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(table.read_text())
    assert 0 <= found["map11"] <= 1
    ran = [row["begins"] for row in found["cells"]]
    for part in ("checks = doctor(", "world = prepare(", "folder = train(", "result = evaluate_runs("):
        assert any(begins.startswith(part) for begins in ran), part
