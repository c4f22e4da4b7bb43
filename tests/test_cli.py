"""The command line as a user types it: one line for a mistake, and the way from training to a picture on a tiny configuration."""
import json
import subprocess
import sys

import pytest
from PIL import Image
from typer.testing import CliRunner

from locrl import cli, config
from locrl.config import Config

TINY = Config(name="tiny", train="scenes:train:60", select="scenes:val:30", report="scenes:test:30", classes=("cat", "dog"), dim=32, input_size=128,
              n_envs=16, batch_size=32, gradient_steps=1, net_arch=(64, 64), region_width=16, steps=800, eval_every=400, learning_starts=200)


def locrl(*args):
    "Run the command in a process of its own"
    return subprocess.run([sys.executable, "-c", "from locrl.cli import main; main()", *args], capture_output=True, text=True)


@pytest.mark.parametrize("args, words", [
    (("train", "demmo"), "known are demo, animals-5"),
    (("sweep", "--on", "demo", "--set", "learning_rte=1"), "no field 'learning_rte'"),
    (("iterate", "v99"), "known are paper"),
    (("download", "voc2008"), "use voc2007 or voc2012"),
    (("evaluate", "no/such/run"), "config.json is missing"),
    (("show", "no/such/run", "--out", "episode.mp4"), "ends in .gif or .png"),
])
def test_a_mistake_is_one_line(args, words):
    done = locrl(*args)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_wrong_option_and_help():
    assert locrl("train", "--sed", "1").returncode == 2
    done = locrl("--help")
    assert done.returncode == 0
    for command in ("demo", "download", "cache", "train", "sweep", "iterate", "evaluate", "diagnose", "compare", "transfer", "show", "locate", "pack", "configs", "iterations"): assert command in done.stdout


def test_missing_data_names_the_folder_and_the_cure(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCRL_DATA", str(tmp_path))
    done = locrl("train", "animals-5")
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr and "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A tiny run made by the command itself"
    root, patch = tmp_path_factory.mktemp("runs"), pytest.MonkeyPatch()
    patch.setitem(config.CONFIGS, "demo", TINY)
    result = CliRunner().invoke(cli.app, ["train", "demo", "--seed", "1", "--root", str(root)])
    assert result.exit_code == 0, result.exception
    yield root
    patch.undo()


def test_from_training_to_results_and_pictures(trained, tmp_path):
    run, invoke = trained/"tiny"/"seed-1", CliRunner().invoke
    result = invoke(cli.app, ["evaluate", str(run), "--out", str(tmp_path/"results.json")])
    assert result.exit_code == 0, result.exception
    assert "planning oracle" in result.output and "agent (1 seed)" in result.output
    stored = json.loads((tmp_path/"results.json").read_text())
    assert stored["seeds"] == [1] and 0 <= stored["metrics"]["aggregate"]["hit_rate"]["mean"] <= 1
    assert stored["data"]["images"] == 30
    for name in ("episode.gif", "episode.png"):
        result = invoke(cli.app, ["show", str(run), "--class", "cat", "--out", str(tmp_path/name)])
        assert result.exit_code == 0, result.exception
        Image.open(tmp_path/name).verify()
    picture = tmp_path/"mine.png"
    Image.new("RGB", (90, 60), "green").save(picture)
    result = invoke(cli.app, ["locate", str(picture), "a cat", "--run", str(run), "--out", str(tmp_path/"found.png")])
    assert result.exit_code == 0, result.exception
    assert result.output.startswith("cat: ") and (tmp_path/"found.png").exists()
    result = invoke(cli.app, ["show", str(run), "--image", "nowhere"])
    assert result.exit_code == 1 and "no picture 'nowhere'" in str(result.exception)


def test_demo_in_one_go(trained, tmp_path):
    result = CliRunner().invoke(cli.app, ["demo", "--root", str(tmp_path/"root"), "--out", str(tmp_path/"out")])
    assert result.exit_code == 0, result.exception
    assert {p.name for p in (tmp_path/"out").iterdir()} == {"results.json", "episode.gif", "episode.png", "training.png"}
    assert "hit rate" in result.output and "11 points" in result.output
