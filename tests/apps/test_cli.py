"""The command line as a user types it: one line for a mistake, and the way from training to a picture on a tiny configuration."""

import json
import subprocess
import sys

import pytest
from PIL import Image
from typer.testing import CliRunner

from locrl.apps import cli
from locrl.experiments import config
from locrl.experiments.train import load_checkpoint
from tiny import TINY


def locrl(*args):
    "Run the command in a process of its own"
    return subprocess.run(
        [sys.executable, "-c", "from locrl.apps.cli import main; main()", *args], capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "args, words",
    [
        (("train", "demmo"), "known are demo, animals-5"),
        (("sweep", "--on", "demo", "--set", "learning_rte=1"), "no field 'learning_rte'"),
        (("iterate", "v99"), "known are paper"),
        (("download", "voc2008"), "use voc2007 or voc2012"),
        (("evaluate", "no/such/run"), "config.json is missing"),
        (("show", "no/such/run", "--out", "episode.mp4"), "ends in .gif or .png"),
    ],
)
def test_a_mistake_is_one_line(args, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["locrl", *args])
    with pytest.raises(SystemExit) as e:
        cli.main()
    said = capsys.readouterr().err
    assert e.value.code == 1 and words in said and len(said.strip().splitlines()) == 1


def test_wrong_option_and_help():
    assert locrl("train", "--sed", "1").returncode == 2
    done = locrl("--help")
    assert done.returncode == 0
    for command in (
        "demo",
        "download",
        "cache",
        "data",
        "train",
        "sweep",
        "iterate",
        "evaluate",
        "diagnose",
        "compare",
        "transfer",
        "show",
        "locate",
        "pack",
        "configs",
        "iterations",
    ):
        assert command in done.stdout


def test_missing_data_names_the_folder_and_the_cure(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCRL_DATA", str(tmp_path))
    done = locrl("train", "animals-5")
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def tiny_demo():
    "The configuration `demo` is a tiny one"
    with pytest.MonkeyPatch.context() as m:
        m.setitem(config.CONFIGS, "demo", TINY)
        yield


def test_from_training_to_results_and_pictures(tiny_demo, tiny_runs, tmp_path):
    run, invoke = tiny_runs[1], CliRunner().invoke
    (run / "last.pt.previous").replace(run / "last.pt")  # killed half-way: the command goes on to the same end
    result = invoke(cli.app, ["train", "demo", "--seed", "1", "--root", str(run.parents[1])])
    assert result.exit_code == 0, result.exception
    assert load_checkpoint(run / "last.pt")["model"]["counters"]["num_timesteps"] == TINY.learning.steps
    result = invoke(cli.app, ["evaluate", str(run), "--out", str(tmp_path / "results.json")])
    assert result.exit_code == 0, result.exception
    assert "planning oracle" in result.output and "agent (1 seed)" in result.output
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["seeds"] == [1] and 0 <= stored["metrics"]["aggregate"]["hit_rate"]["mean"] <= 1
    assert stored["data"]["images"] == 30
    for name in ("episode.gif", "episode.png"):
        result = invoke(cli.app, ["show", str(run), "--class", "cat", "--out", str(tmp_path / name)])
        assert result.exit_code == 0, result.exception
        Image.open(tmp_path / name).verify()
    picture = tmp_path / "mine.png"
    Image.new("RGB", (90, 60), "green").save(picture)
    result = invoke(cli.app, ["locate", str(picture), "a cat", "--run", str(run), "--out", str(tmp_path / "found.png")])
    assert result.exit_code == 0, result.exception
    assert result.output.startswith("cat: ") and (tmp_path / "found.png").exists()
    result = invoke(cli.app, ["show", str(run), "--image", "nowhere"])
    assert result.exit_code == 1 and "no picture 'nowhere'" in str(result.exception)


def test_demo_in_one_go(tiny_demo, tmp_path):
    result = CliRunner().invoke(cli.app, ["demo", "--root", str(tmp_path / "root"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.exception
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "results.json",
        "episode.gif",
        "episode.png",
        "training.png",
    }
    assert "hit rate" in result.output and "11 points" in result.output
