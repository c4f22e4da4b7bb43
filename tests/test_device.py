"The comparison of devices: says that there is no GPU, and goes through all of its steps on the processor"

import json

import pytest
import torch

from vision.test_clip import TINY


@pytest.fixture
def device(benchmark_module):
    "benchmarks/device.py as a module"
    return benchmark_module("device")


def test_no_gpu_is_said(device, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.main([]) == 2
    assert "There is no GPU on this machine" in capsys.readouterr().err


def test_all_steps_on_the_processor(device, capsys, tmp_path, monkeypatch):
    "With EfficientNet-Lite0, and with a small transformer in the place of ViT-L/14"
    import open_clip

    (tmp_path / "tiny-ViT-device.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(tmp_path)
    monkeypatch.setitem(device.ENCODERS["ViT-L/14, random"], "name", "tiny-ViT-device")
    threads = torch.get_num_threads()
    try:
        assert device.main(["--small", "--device", "cpu", "--out", str(tmp_path / "out.json")]) == 0
    finally:
        torch.set_num_threads(threads)
    assert "agree" in capsys.readouterr().out
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert list(results) == ["EfficientNet-Lite0", "ViT-L/14, random"]
    for found in results.values():
        assert found["agree"] == dict(cosine=pytest.approx(1), same_answer=1, map11=0) and not found["broken"]
        assert all(v > 0 for key in ("processor", "device") for v in found[key].values())


def test_a_difference_is_named(device, monkeypatch, tmp_path):
    "Answers that moved break the tolerance"
    real = device.answers
    calls = []

    def moved(*args):
        calls.append(args)
        out = real(*args)
        return out if len(calls) == 1 else out | dict(features=-out["features"], box=out["box"] * 0)

    monkeypatch.setattr(device, "answers", moved)
    assert device.compare(device.configuration("EfficientNet-Lite0", small=True), "cpu")["broken"][:2] == [
        "cosine",
        "same_answer",
    ]
