"The comparison of devices: says that there is no GPU, and goes through all of its steps on the processor"

import json

import pytest
import torch

from vision.test_clip import TINY


@pytest.fixture
def device(benchmark_module):
    "benchmarks/device.py as a module"
    return benchmark_module("device")


@pytest.fixture
def small_vit(device, tmp_path, monkeypatch):
    "A small transformer in the place of ViT-L/14; the number of threads is put back"
    import open_clip

    (tmp_path / "tiny-ViT-device.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(tmp_path)
    monkeypatch.setitem(device.ENCODERS["ViT-L/14, random"], "name", "tiny-ViT-device")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("part", ["agree", "speed"])
def test_no_gpu_is_said(device, part, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.main([part]) == 2
    assert "There is no GPU on this machine" in capsys.readouterr().err


def test_both_parts_on_the_processor(device, small_vit, capsys, tmp_path):
    "Each writes its half of one file and leaves the other as it is"
    out = tmp_path / "out.json"
    for part in ("agree", "speed"):
        assert device.main([part, "--quick", "--device", "cpu", "--out", str(out)]) == 0
    assert "agree" in capsys.readouterr().out
    written = json.loads(out.read_text())
    assert list(written) == ["agree", "speed"]
    for half in written.values():
        assert list(half["results"]) == ["EfficientNet-Lite0", "ViT-L/14, random"] and half["machine"]["cpu"]
    for found in written["agree"]["results"].values():
        assert found["agree"] == dict(cosine=pytest.approx(1), same_answer=1, map11=0) and not found["broken"]
    for found in written["speed"]["results"].values():
        assert all(v > 0 for v in found.values())
        assert found["seconds_for_250_000"] == pytest.approx(250_000 / found["transitions_a_second"])


def test_a_difference_is_named(device, monkeypatch):
    "Answers that moved break the tolerance"
    real = device.answers
    calls = []

    def moved(*args):
        calls.append(args)
        out = real(*args)
        return out if len(calls) == 1 else out | dict(features=-out["features"], box=out["box"] * 0)

    monkeypatch.setattr(device, "answers", moved)
    assert device.agree("EfficientNet-Lite0", "cpu", quick=True)["broken"][:2] == ["cosine", "same_answer"]
