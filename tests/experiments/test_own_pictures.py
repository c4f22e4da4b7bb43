"""From pictures of one's own to a trained agent: the plan, the estimate, the command, one training for all formats."""

import json
import sys
import types

import pytest
import torch
from PIL import Image

from locrl.apps import cli
from locrl.data import coco, yolo
from locrl.data.formats import load_pictures
from locrl.data.scenes import Scenes
from locrl.data.voc import Annotation, DataError, View
from locrl.experiments import config, diagnostics, own_pictures
from locrl.experiments.config import ConfigError, load_data
from locrl.experiments.own_pictures import estimate, plan
from locrl.experiments.train import Agent, train
from tiny import TINIEST, no_film

CLASSES = ("cat", "dog")


class Plain(View):
    "Pictures none of whose objects is difficult or truncated, which YOLO cannot say"

    def _annotate(self, i):
        a = super()._annotate(i)
        return Annotation(a.boxes, a.labels, a.difficult & False, a.truncated & False)


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    "A YOLO folder of small scenes with COCO's and VOC's labels beside it"
    root = tmp_path_factory.mktemp("own") / "pets"
    for split, n in ("train", 16), ("val", 8):
        scenes = Scenes(n, split=split, classes=CLASSES, size=(32, 48), negatives=0.3)
        data = Plain(scenes.name, [(scenes, i) for i in range(n)])
        yolo.write_yolo(data, root, split)
        coco.write_coco(data, root / f"{split}.json", [f"images/{split}/{id}.jpg" for id in data.ids])
        scenes.export_voc(root, "Pets")  # its own JPEG files are not used: the bytes must be the same
        for i, id in enumerate(data.ids):
            text = (root / "VOCdevkit" / "VOCPets" / "Annotations" / f"{id}.xml").read_text()
            for flag in "difficult", "truncated":
                text = text.replace(f"<{flag}>1</{flag}>", f"<{flag}>0</{flag}>")
            (root / "images" / split / f"{id}.xml").write_text(text)
            assert len(data.annotation(i)) == text.count("<object>")
    return root


def weights(folder):
    "All numbers of the trained network, and the validations on the way"
    agent = Agent.load(folder)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if k in ("step", "hit_rate", "map11", "q_mean")} for row in rows]
    return {k: v.clone() for k, v in agent.policy.state_dict().items()}, kept


def test_yolo_coco_and_voc_copies_give_the_same_training(pets, tmp_path, monkeypatch):
    monkeypatch.setattr(diagnostics, "filmstrip", no_film)
    short = TINIEST.replace({"learning.steps": 240, "evaluation.eval_every": 240})
    specs = {
        "yolo": (f"yolo:{pets}/data.yaml:train", f"yolo:{pets}/data.yaml:val"),
        "coco": (f"coco:{pets}/train.json", f"coco:{pets}/val.json"),
        "voc": (f"voc:{pets}/images/train", f"voc:{pets}/images/val"),
    }
    trained = {}
    for kind, (learn, select) in specs.items():
        changes = {"name": kind, "data.train": learn, "data.select": select, "data.report": select}
        trained[kind] = weights(train(short.replace(changes), 0, tmp_path))
    (first, rows), *others = trained.values()
    assert len(first) and rows
    for other, their_rows in others:
        assert their_rows == rows and other.keys() == first.keys()
        assert all(torch.equal(other[k], first[k]) for k in first)


def test_plan_takes_classes_and_budget_from_the_data(pets, monkeypatch):
    made = plan(f"yolo:{pets}:train", f"coco:{pets}/val.json")
    assert made.config.data.classes == CLASSES and made.config.name == "pets-train"
    assert made.config.learning.steps == 40_000 and made.config.data.flip
    assert made.config.data.report == made.config.data.select == f"coco:{pets}/val.json"
    assert "give others with --report" in made.notes[-1]
    monkeypatch.setattr(own_pictures, "SMALL", 16)
    large = plan(f"yolo:{pets}:train", f"yolo:{pets}:val", f"yolo:{pets}:val", "large", 500)
    assert (large.config.network.net_arch, large.config.learning.steps, large.config.name) == ((512, 512), 500, "large")
    assert large.config.evaluation.eval_every == 500


def test_plan_names_classes_that_cannot_be_learnt(pets, tmp_path):
    content = json.loads((pets / "train.json").read_text())
    content["categories"].append(dict(id=9, name="bird"))
    for image in content["images"]:
        image["file_name"] = str(pets / image["file_name"])
    (pets / "more.json").write_text(json.dumps(content))
    made = plan(f"coco:{pets}/more.json", f"coco:{pets}/train.json")
    assert made.config.data.classes == CLASSES
    assert "not learnt, since no training picture holds one: bird" in made.notes
    assert any("training pictures too, so that scores will flatter: 16, e.g." in note for note in made.notes)
    Image.new("RGB", (32, 24)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="holds no object to learn from"):
        plan(f"folder:{tmp_path}", f"folder:{tmp_path}")


def test_estimate_refuses_a_disk_that_is_full(pets, monkeypatch):
    made = plan(f"yolo:{pets}:train", f"yolo:{pets}:val")
    monkeypatch.setattr(own_pictures.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=10**6))
    with pytest.raises(ConfigError, match="0.0 GB free, the run needs .* set LOCRL_CACHE elsewhere"):
        estimate(made)


def test_load_data_knows_every_family(pets):
    assert load_data(f"yolo:{pets}:train", ["dog"]).classes == ("dog",)
    assert load_data("scenes:val:3").classes == Scenes(1).classes
    with pytest.raises(DataError, match="yolo:FOLDER/data.yaml:SPLIT"):
        load_data("yollo:birds:train")


def command(monkeypatch, *args):
    "Run the command in this process; returns its exit code"
    monkeypatch.setattr(sys, "argv", ["locrl", *map(str, args)])
    with pytest.raises(SystemExit) as e:
        cli.main()
    return e.value.code or 0


def test_data_command_tells_and_draws(pets, tmp_path, monkeypatch, capsys):
    assert command(monkeypatch, "data", f"yolo:{pets}/data.yaml:train", "--out", tmp_path / "sheet.png") == 0
    said = capsys.readouterr().out
    objects = len(load_pictures(f"yolo:{pets}:train").ground_truth())
    assert "pets train: pictures 16," in said and f"objects {objects}; classes 2" in said and "| cat |" in said
    assert Image.open(tmp_path / "sheet.png").width > 1000


def test_train_on_own_pictures(pets, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(diagnostics, "filmstrip", no_film)
    monkeypatch.setitem(config.CONFIGS, "demo", TINIEST)
    monkeypatch.chdir(tmp_path)
    damaged = pets / "images" / "val" / "a.jpg"
    whole = next((pets / "images" / "val").glob("*.jpg")).read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    args = ["train", "--data", f"yolo:{pets}:train", "--select", f"yolo:{pets}:val", "--steps", 320, "--root", tmp_path]
    try:
        assert command(monkeypatch, *args) == 2
        said = capsys.readouterr().err
        assert "a.jpg" in said and "--leave-out-damaged" in said and len(said.strip().splitlines()) == 1
        assert command(monkeypatch, *args, "--leave-out-damaged", "--name", "own") == 0
    finally:
        damaged.unlink()
    said = capsys.readouterr().out
    for words in (
        "select: 8 pictures",
        "classes: cat, dog",
        "left out as damaged or mislabelled in undamaged:",
        "320 transitions, about",
        "hit rate",
    ):
        assert words in said
    made = {path.name for path in (tmp_path / "runs" / "own").iterdir()}
    assert made == {"results.json", "episode.gif", "episode.png", "training.png"}
    assert json.loads((tmp_path / "own" / "seed-0" / "config.json").read_text())


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("train", "--data", "voc:x:train"), "give --select too"),
        (("train", "--select", "voc:x:val"), "belong to --data"),
        (("train", "animals-5", "--data", "voc:x:train", "--select", "voc:x:val"), "no configuration"),
        (("train", "--data", "voc:nowhere:train", "--select", "voc:nowhere:val"), "no file or folder nowhere"),
        (("data", "voc:nowhere"), "no file or folder nowhere"),
        (("data", "voc2008:train"), "VOC2008"),
    ],
)
def test_mistakes_are_one_line(args, words, monkeypatch, capsys):
    assert command(monkeypatch, *args) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.strip().splitlines()) == 1
