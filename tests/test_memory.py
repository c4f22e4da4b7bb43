"The memory of a run does not grow with its pictures: benchmarks/memory.py with few of them and small maps"

import sys

import pytest


LIMIT = 300_000_000  # bytes beyond the interpreter's that may be held once the features are there
PEAK = 900_000_000  # bytes beyond the interpreter's, with those of building, training and search


@pytest.fixture
def memory(benchmark_module):
    "benchmarks/memory.py as a module"
    return benchmark_module("memory")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs the peak of a process's memory")
def test_more_pictures_than_fit(memory, tmp_path):
    "The bank takes 0.14 GB, all maps 0.29, integral images 0.67: those would bring the peak above the limit"
    out = memory.in_a_process(n=3_000, steps=384, side=16, dim=192, limit=LIMIT, root=str(tmp_path))
    assert out["bank"] == "half" and 0 < out["in_memory"] < 2_000
    assert out["peak"] <= PEAK, out
    assert out["estimated_disk"] <= out["disk"] < 1.03 * out["estimated_disk"]
    assert abs(out["bank_memory"] - out["estimated_memory"]) < 30e6


def test_three_data_sets_at_once(memory, tmp_path):
    "All steps of it, with few pictures and small maps; there is room for all"
    out = memory.in_a_process(
        "voc", sizes=(40, 20, 30), steps=128, side=8, dim=16, limit=1_000_000_000, root=str(tmp_path)
    )
    assert out["pictures"] == dict(train=80, select=20, report=30) and set(out["banks"].values()) == {"integral"}
    assert out["estimated_disk"] <= out["disk"] and out["peak"] <= 1_000_000_000


def test_pooling_is_timed_in_turns(memory):
    "The figures are there; on so few pictures they say nothing"
    out = memory.pooling(4, 8, 6, keys=5, rounds=2)
    assert out["regions"] == 10 and out["ratio"] == pytest.approx(out["half_ms"] / out["integral_ms"])
