"Checkpoint files on disks that are killed, full, damaged or slow to answer"

import errno
import os
import warnings

import pytest

from locrl.experiments import train as training
from locrl.experiments.config import Config
from locrl.vision.encoders import FeatureError
from locrl import files
from locrl.checkpoints import RunError, RunFolder, pack_tree
from locrl.experiments.train import load_checkpoint


def save_checkpoint(folder, content):
    RunFolder(folder).commit({"last": pack_tree(content)})


class Kill(BaseException):
    "Stands for SIGKILL: nothing may catch it and tidy up"


@pytest.mark.parametrize("before", range(4))
def test_a_kill_between_any_two_writes_leaves_a_whole_checkpoint(tmp_path, monkeypatch, before):
    "Kill at every renaming and writing in turn, twice in a row, and always find the newest whole checkpoint"
    file = tmp_path
    for step in range(before):
        save_checkpoint(file, {"step": step})
    newest, left = before - 1, [0]

    def counted(real):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise Kill
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr(os, "replace", counted(os.replace))
    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    for first in range(9):
        for second in range(9):
            for calls in (first, second):
                left[0], done = calls, True
                try:
                    save_checkpoint(file, {"step": newest + 1})
                except Kill:
                    done = False
                newest += done
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    there = load_checkpoint(file)
                assert (there or {"step": -1})["step"] == newest
    assert newest > before


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    file = tmp_path
    save_checkpoint(file, {"step": 1})
    names = {"last-1.safetensors", "manifest.json"}

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(files.time, "sleep", lambda s: pytest.fail("waiting does not empty a disk"))
    with pytest.raises(OSError, match="cannot write .*last-2.safetensors.*No space left on device.*free space"):
        save_checkpoint(file, {"step": 2})
    assert load_checkpoint(file) == {"step": 1} and {f.name for f in tmp_path.iterdir()} == names


@pytest.mark.parametrize("fails", [1, 2, 4])
def test_a_disk_that_answers_late(tmp_path, monkeypatch, fails):
    "Fails at every renaming and flushing for a while, and then works: two good checkpoints, and growing waits"
    waits = []
    left = {}
    real = {name: getattr(os, name) for name in ("replace", "fsync")}
    monkeypatch.setattr(files.time, "sleep", waits.append)

    def failing(name):
        def call(*args):
            left["n"] -= 1
            if left["n"] >= 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real[name](*args)

        return call

    for name in real:
        monkeypatch.setattr(os, name, failing(name))
    for step in range(3):
        left["n"] = fails
        save_checkpoint(tmp_path, {"step": step})
    assert load_checkpoint(tmp_path) == {"step": 2}
    assert waits == [files.WAIT * 2**k for k in range(fails)] * 3
    left["n"] = 0
    (tmp_path / "last-3.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match="last-3.safetensors is damaged"):
        load_checkpoint(tmp_path)
    RunFolder(tmp_path).roll_back()
    assert load_checkpoint(tmp_path) == {"step": 1}


def test_a_disk_that_never_answers(tmp_path, monkeypatch):
    file = tmp_path
    for step in range(2):
        save_checkpoint(file, {"step": step})
    monkeypatch.setattr(files, "WAIT", 0.0)

    def never(*args, **kwargs):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as m:
        m.setattr(os, "replace", never)
        with pytest.raises(OSError, match=f"cannot write {file}/last-3.safetensors: .*Input/output error"):
            save_checkpoint(file, {"step": 2})
        m.setattr(type(file), "read_bytes", never)
        with pytest.raises(OSError, match=f"cannot read {file}/manifest.json: .*Input/output error"):
            load_checkpoint(file)
    assert load_checkpoint(file) == {"step": 1}


def test_going_back_twice_is_refused(tmp_path):
    "There are two generations: where both are damaged, nothing older is taken"
    for step in range(3):
        save_checkpoint(tmp_path, {"step": step})
    for file in tmp_path.glob("last-*"):
        file.write_bytes(b"damaged")
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(RunError, match="last-2.safetensors is damaged"):
        RunFolder(tmp_path).roll_back()
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_run_on_a_drive_that_is_not_mounted_is_refused():
    "Before anything is encoded or trained: it would land on the machine's own disk"
    with pytest.raises(FeatureError, match="not mounted"):
        training.train(Config(), root="/content/drive/MyDrive/locrl", progress=False)
