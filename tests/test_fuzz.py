"""Files damaged at random: readers take or refuse them with the documented error (long form: benchmarks/fuzz.py)."""

import importlib.util
import sys

import pytest

from conftest import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import fuzz  # noqa: E402

sys.path.remove(str(ROOT / "benchmarks"))
NAMES = ("annotation", "list", "text", "json", "arrays", "tensors", "picture", "config", "store", "shard", "features")
if importlib.util.find_spec("locrl.checkpoints"):
    NAMES += ("checkpoint", "manifest")
FAULTY = {}  # reader -> why it may fail until its owner has mended it


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    return fuzz.readers(tmp_path_factory.mktemp("fuzz"))


def waits(name):
    return [pytest.mark.xfail(strict=True, reason=FAULTY[name])] if name in FAULTY else []


@pytest.mark.parametrize("name", [pytest.param(n, marks=waits(n)) for n in NAMES])
def test_only_documented_errors(readers, name):
    found = fuzz.fuzz(name, readers[name], 150)
    assert found["cases"] >= 100 and found["refused"] > 20
    assert not found["faults"], "\n".join(f"{f['what']}: {f['file']!r}" for f in found["faults"])


def test_every_reader_is_listed(readers):
    assert set(NAMES) == set(readers)


def test_a_fault_is_noticed(readers):
    "A reader that raises what it does not document, says nothing, or takes its time"

    def breaks(content):
        raise KeyError("x")

    def silent(content):
        raise ValueError("")

    strategy = readers["text"].strategy
    assert fuzz.tried(fuzz.Reader(strategy, breaks, (ValueError,), b""), b"").startswith("KeyError")
    assert "says nothing" in fuzz.tried(fuzz.Reader(strategy, silent, (ValueError,), b""), b"")
    with pytest.raises(AssertionError, match="does not take a good file"):
        fuzz.fuzz("x", fuzz.Reader(strategy, breaks, (), b""), 10)
    picky = fuzz.Reader(strategy, lambda content: content == b"good" or breaks(content), (), b"good")
    assert fuzz.fuzz("x", picky, 10)["faults"]
