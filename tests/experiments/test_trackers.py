"""What a tracker gets is what the run notes, a run is the same with and without one, and none stops a run.

Weights & Biases is tried offline, MLflow with a store in a folder; the tests skip where the library is missing."""

import json
import struct
import sys

import pytest
import torch

from locrl.experiments import diagnostics
from locrl.experiments.config import ConfigError, prepare
from locrl.experiments.diagnostics import row_key
from locrl.experiments.train import Agent, train
from locrl.experiments.trackers import TRACKERS, Tracker, mlflow_tracker, wandb_tracker
from tiny import TINIEST, no_film


@pytest.fixture(scope="module")
def world():
    return prepare(TINIEST)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(diagnostics, "filmstrip", no_film)


def noted(folder):
    "Return {(curve, transitions): value} of the validations of a run"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {(k, row["step"]): v for row in rows for k, v in row.items() if k != "step" and v is not None}


def validated(points):
    "Return the same of [(curve, transitions, value)], without the live curves"
    return {(row_key(k), step): v for k, step, v in points if not k.startswith("live/")}


def in_two(tracker, tmp_path, world):
    "Train in two pieces with a tracker; return the run's folder"
    first = train(TINIEST, 0, tmp_path / "runs", world, progress=False, stop_after=1, trackers=[tracker])
    assert train(TINIEST, 0, tmp_path / "runs", world, progress=False, trackers=[tracker]) == first
    assert len({step for _, step in noted(first)}) > 1
    return first


def test_a_tracker_gets_what_the_run_notes_and_changes_nothing(tmp_path, world):
    got, ended = [], []

    def tracker(folder, about):
        assert about["config"] == TINIEST.to_dict() and about["seed"] == 0
        send = lambda numbers, step: got.extend((k, step, v) for k, v in numbers.items())  # noqa: E731
        return Tracker("a list", send, lambda: ended.append(folder))

    folder = in_two(tracker, tmp_path, world)
    assert validated(got) == noted(folder) and ended == [folder, folder]
    alone = train(TINIEST, 0, tmp_path / "alone", world, progress=False)
    for a, b in zip(*(Agent.load(f).policy.state_dict().values() for f in (folder, alone)), strict=True):
        assert torch.equal(a, b)


def test_a_tracker_that_fails_stops_nothing(tmp_path, world):
    def fail(*_):
        raise OSError("the server is gone")

    with pytest.warns(UserWarning, match=r"Somewhere did not take the numbers of step \d+ \(the server is gone\)"):
        folder = train(
            TINIEST, 0, tmp_path, world, progress=False, trackers=[lambda *_: Tracker("Somewhere", fail, fail)]
        )
    assert noted(folder)


@pytest.mark.parametrize("name", TRACKERS)
def test_without_its_library(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf'is not installed: pip install "locrl\[{name}\]"'):
        TRACKERS[name](tmp_path, dict(config=TINIEST.to_dict(), seed=0))


def logged(content, header=7, block=32 * 1024):
    """Yield the records of W&B's offline file: after a header of the file LevelDB's log, pieces in blocks, each with
    checksum, length and kind (1 whole, 2 first, 3 middle, 4 last)."""
    at, parts = header, b""
    while at + 7 <= len(content):
        if block - at % block < 7:  # no room for another piece
            at += block - at % block
        length, kind = struct.unpack_from("<HB", content, at + 4)
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def test_weights_and_biases_offline(tmp_path, world, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_PROJECT", "boxes")
    folder = in_two(wandb_tracker, tmp_path, world)
    points, runs, configs = [], set(), []
    for file in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb")):
        for data in logged(file.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                runs.add((record.run.run_id, record.run.project, record.run.display_name, record.run.run_group))
                configs.append({u.key: json.loads(u.value_json) for u in record.run.config.update})
            values = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.history.item}
            points += [(k, values["transitions"], v) for k, v in values.items() if k[0] != "_" and k != "transitions"]
    assert validated(points) == noted(folder)
    name = json.loads((folder / "trackers.json").read_text())["wandb"]
    assert runs == {(name, "boxes", f"{TINIEST.name} seed 0", TINIEST.name)}
    assert configs[0]["config"]["learning"] == TINIEST.to_dict()["learning"]


def test_mlflow_in_a_folder(tmp_path, world, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "boxes")
    monkeypatch.chdir(tmp_path)
    folder = in_two(mlflow_tracker, tmp_path, world)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("boxes").experiment_id])
    assert run.info.run_id == json.loads((folder / "trackers.json").read_text())["mlflow"]
    assert (run.info.run_name, run.info.status) == (f"{TINIEST.name} seed 0", "FINISHED")
    assert run.data.params["learning.gamma"] == str(TINIEST.learning.gamma)
    points = [(k, m.step, m.value) for k in run.data.metrics for m in client.get_metric_history(run.info.run_id, k)]
    assert validated(points) == noted(folder)


def test_mlflow_that_cannot_begin(tmp_path, world, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "trackers.json").write_text('{"mlflow": "0123456789abcdef0123456789abcdef"}')
    with pytest.raises(ConfigError, match=r"MLflow cannot begin at sqlite.*delete trackers\.json"):
        mlflow_tracker(tmp_path, dict(config=TINIEST.to_dict(), seed=0))
    assert mlflow.get_tracking_uri()
