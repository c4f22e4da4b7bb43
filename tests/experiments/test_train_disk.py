"Checkpoint files on disks that are killed, full, damaged or slow to answer"

import errno
import os
import warnings

import pytest

from locrl.experiments import train as training
from locrl.experiments.config import Config
from locrl.vision.feature_store import FeatureError
from locrl.experiments.train import load_checkpoint, save_checkpoint
import contextlib


class Kill(BaseException):
    "Stands for SIGKILL: nothing may catch it and tidy up"


@pytest.mark.parametrize("before", range(4))
def test_a_kill_between_any_two_writes_leaves_a_whole_checkpoint(tmp_path, monkeypatch, before):
    "Kill at every renaming and writing in turn, twice in a row, and always find the newest whole checkpoint"
    file = tmp_path / "last.pt"
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
    file = tmp_path / "last.pt"
    save_checkpoint(file, {"step": 1})

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(training.time, "sleep", lambda s: pytest.fail("waiting does not empty a disk"))
    with pytest.raises(OSError, match="cannot write the checkpoint .*last.pt.*No space left on device.*free space"):
        save_checkpoint(file, {"step": 2})
    assert load_checkpoint(file) == {"step": 1} and {f.name for f in tmp_path.iterdir()} == {
        "last.pt",
        "last.pt.sha256",
    }


@pytest.mark.parametrize("fails", [1, 2, 4])
def test_a_disk_that_answers_late(tmp_path, monkeypatch, fails):
    "Fails at every renaming and flushing for a while, and then works: two good checkpoints, and growing waits"
    waits = []
    left = {}
    real = {name: getattr(os, name) for name in ("replace", "fsync")}
    monkeypatch.setattr(training.time, "sleep", waits.append)

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
        save_checkpoint(tmp_path / "last.pt", {"step": step})
    assert load_checkpoint(tmp_path / "last.pt") == {"step": 2}
    assert waits == [training.WAIT * 2**k for k in range(fails)] * 3
    (tmp_path / "last.pt").write_bytes(b"")
    with pytest.warns(UserWarning, match="last.pt is damaged"):
        assert load_checkpoint(tmp_path / "last.pt") == {"step": 1}


def test_a_disk_that_never_answers(tmp_path, monkeypatch):
    file = tmp_path / "last.pt"
    for step in range(2):
        save_checkpoint(file, {"step": step})
    monkeypatch.setattr(training, "WAIT", 0.0)

    def never(*args, **kwargs):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as m:
        m.setattr(os, "replace", never)
        with pytest.raises(OSError, match=f"cannot write the checkpoint {file}: .*Input/output error"):
            save_checkpoint(file, {"step": 2})
        m.setattr(type(file), "read_bytes", never)
        with pytest.raises(OSError, match=f"cannot read the checkpoint {file}: .*Input/output error"):
            load_checkpoint(file)
    assert load_checkpoint(file) == {"step": 1}


def test_a_damaged_checkpoint_never_takes_the_place_of_a_good_one(tmp_path, monkeypatch):
    "The newest is damaged, and the next one is killed while it is written: the one before is still there"
    file = tmp_path / "last.pt"
    for step in range(2):
        save_checkpoint(file, {"step": step})
    real, left = os.replace, [0]

    def killed(*args):
        left[0] -= 1
        if left[0] < 0:
            raise Kill
        return real(*args)

    monkeypatch.setattr(os, "replace", killed)
    for calls in range(5):
        file.write_bytes(b"damaged")
        left[0] = calls
        with contextlib.suppress(Kill):
            save_checkpoint(file, {"step": 2})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert load_checkpoint(file)["step"] in (0, 2)


def test_a_run_on_a_drive_that_is_not_mounted_is_refused():
    "Before anything is encoded or trained: it would land on the machine's own disk"
    with pytest.raises(FeatureError, match="not mounted"):
        training.train(Config(), root="/content/drive/MyDrive/locrl", progress=False)
