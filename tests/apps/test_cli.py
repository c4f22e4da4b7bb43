"""The command line as typed: one line for a mistake, and from training to a picture on a tiny configuration."""

import json
import subprocess
import sys

import pytest
from PIL import Image
from typer.testing import CliRunner

from locrl.apps import cli
from locrl.experiments import config
from locrl.checkpoints import RunFolder
from locrl.experiments.train import load_checkpoint
from locrl.vision import feature_store
from tiny import TINY


def locrl(*args):
    "Run the command in a process of its own"
    return subprocess.run(
        [sys.executable, "-c", "from locrl.apps.cli import main; main()", *args], capture_output=True, text=True
    )


MISTAKES = [
    ("train demmo", "known are demo, animals-5"),
    ("train demo --seed -1", "--seed"),
    ("train demo --seed 4294967296", "--seed"),
    ("train demo --seed one", "--seed"),
    ("train demo --sed 1", "No such option"),
    ("train demo --steps 0", "--steps"),
    ("train demo --steps 5", "learning.steps=5: is less than one step of 128 searches"),
    ("train demo --steps 4000", "learning begins after 4000 transitions"),
    ("train demo --evaluation.eval_every 5", "give at least 128"),
    ("train demo --minutes 0", "no number above 0"),
    ("train demo --minutes nan", "no number above 0"),
    ("train demo --track paper", "none of wandb, mlflow"),
    ("train demo --track wandb", 'wandb is not installed: pip install "locrl[wandb]"'),
    ("train demo --root FILE", "is a file"),
    ("train demo --root FILE/runs", "is a file"),
    ("train demo --device abacus", "'abacus' cannot be used here"),
    ("train demo --device 7", "is no device"),
    ("train demo --device cuda:x", "is no device"),
    ("train demo --device meta", "cannot be used here"),
    ("train demo --learning.gamma 2", "learning.gamma=2.0: must lie in [0, 1)"),
    ("train demo --learning.gamma", "--learning.gamma needs a value"),
    ("train demo --learning.gama .9", "do you mean learning.gamma"),
    ("train demo --learning .9", "No such option"),
    ("demo --data.report scenes:test", "no data called 'scenes:test'"),
    ("train demo --data.select voc2007:vall", "vall"),
    ("train demo --reward gold", "no reward called 'gold'"),
    ("cache demo --data.select nowhere:val", "no data called"),
    ("cache demo --device 7", "is no device"),
    ("demo --out FILE", "is a file"),
    ("demo --steps 5", "give at least 128"),
    ("sweep --on demo --set learning_rte=1", "no field 'learning_rte'"),
    ("sweep --on demo --set learning_rate=1", "do you mean learning.learning_rate"),
    ("sweep --on demo --set learning.gamma", "write FIELD=VALUE"),
    ("sweep --on demmo", "known are demo"),
    ("sweep --on demo --seeds 0", "--seeds"),
    ("sweep --on demo --processes 0", "--processes"),
    ("sweep --on demo --iterations v99", "known are paper"),
    ("sweep --on demo --ray-storage s3://x", "give its address too"),
    ("iterate v99", "known are paper"),
    ("iterate v11 --split test", "none of report, select"),
    ("iterate v11 --out FILE", "is a file"),
    ("iterations --on demmo", "known are demo"),
    ("download voc2008", "none of voc2007, voc2012"),
    ("evaluate no/such/run", "config.json is missing"),
    ("evaluate no/such/run --split bogus", "none of report, select"),
    ("evaluate no/such/run --out FILE", "is a file"),
    ("diagnose no/such/run --metric map", "none of map11, map_area"),
    ("compare no/such/run --with x --split test", "none of report, select"),
    ("transfer no/such/run --evidence luck", "none of prototypes, encoder"),
    ("show no/such/run --out episode.mp4", "ends in .gif or .png"),
    ("show no/such/run --out FILE/episode.gif", "is a file"),
    ("show no/such/run --follow", "is no run (config.json is missing)"),
    ("locate no.jpg cat", "there is no picture no.jpg"),
    ("locate no.jpg cat --out found.mp4", "there is no picture no.jpg"),
    ("app --port 0", "--port"),
    ("app --run no/such/run --space FILE/space", "is a file"),
    ("app --run no/such/run --space space", "a Space takes a packed agent: locrl pack no/such/run --out agent.npz"),
    ("pack no/such/run --out agent.zip", "ends in .npz"),
    ("frobnicate", "No such command"),
]


@pytest.mark.parametrize("line, words", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(line, words, monkeypatch, capsys, tmp_path):
    "It is found before any picture is encoded"
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["locrl", *line.replace("FILE", str(tmp_path / "file")).split()])
    monkeypatch.setattr(feature_store, "build_store", lambda *args, **kwargs: pytest.fail("pictures are encoded"))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SystemExit) as e:
        cli.main()
    said = capsys.readouterr().err
    assert e.value.code == 2 and len(said.strip().splitlines()) == 1, said
    assert words in said


def test_a_field_is_an_option(monkeypatch, capsys, tmp_path):
    "Both ways of writing it, before and after the name; the run is named after it"
    from locrl.experiments import train as training

    asked = []
    monkeypatch.setattr(training, "train", lambda config, *args, **kwargs: asked.append(config) or tmp_path)
    for line in ("demo --learning.gamma .8 --reward=flat", "--learning.gamma=0.8 --reward flat demo"):
        monkeypatch.setattr(sys, "argv", ["locrl", "train", *line.split(), "--root", str(tmp_path)])
        with pytest.raises(SystemExit) as e:
            cli.main()
        assert not e.value.code, capsys.readouterr().err
    assert asked[0] == asked[1] and asked[0].name == "demo/learning.gamma=0.8,reward=flat"
    assert (asked[0].learning.gamma, asked[0].reward) == (0.8, "flat")


@pytest.mark.parametrize("args", [["--help"], ["train", "--help"], ["train", "--seed", "-1"]], ids=" ".join)
def test_help_imports_nothing_heavy(args):
    "Help and a mistyped option answer at once"
    code = "import sys\nfrom locrl.apps.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print('loaded', *sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stderr.splitlines()[-1].split()}
    assert "typer" in loaded and not loaded & {"torch", "numpy", "gymnasium", "rich", "matplotlib", "scipy"}


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
        "runs",
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
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def tiny_demo():
    "The configuration `demo` is a tiny one"
    with pytest.MonkeyPatch.context() as m:
        m.setitem(config.CONFIGS, "demo", TINY)
        yield


def test_from_training_to_results_and_pictures(tiny_demo, tiny_runs, tmp_path):
    run, invoke = tiny_runs[1], CliRunner().invoke
    RunFolder(run).roll_back()  # killed half-way: the command goes on to the same end
    result = invoke(cli.app, ["train", "demo", "--seed", "1", "--root", str(run.parents[1])])
    assert result.exit_code == 0, result.exception
    assert load_checkpoint(run)["model"]["counters"]["num_timesteps"] == TINY.learning.steps
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
