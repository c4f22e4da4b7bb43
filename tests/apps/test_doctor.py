"""`locrl doctor`: what it says of a machine, of weights and of an encoder, and its exit code."""

import hashlib

import pytest
from typer.testing import CliRunner

from locrl.apps import cli, doctor
from locrl.apps.doctor import check_data, check_disk, check_drive, check_gpu, check_memory, check_weights, sha256_of


def test_machine_only(capsys):
    "Without an encoder every line is about the machine, and none fails where the package runs"
    checks = doctor.doctor()
    lines = capsys.readouterr().out.splitlines()
    assert [c.name for c in checks] == ["versions", "GPU", "memory", "disk", "Drive", "data", "weights"]
    assert len(lines) == len(checks) + 1
    assert all(": " in line and "expected" in line for line in lines[:-1])


def test_weights_are_compared_with_the_published_digest(tmp_path, monkeypatch):
    assert check_weights("efficientnet_lite0", None).passed
    monkeypatch.setattr(doctor, "EMBEDDED_SHA256", "0" * 64)
    assert check_weights("efficientnet_lite0", None).passed is False


def test_openai_archive_is_compared_with_its_address(tmp_path):
    "A .pt file that is no archive of OpenAI's is told; a file of another kind cannot be"
    (tmp_path / "ViT-L-14.pt").write_bytes(b"not weights")
    check = check_weights("ViT-L-14", str(tmp_path / "ViT-L-14.pt"))
    assert check.passed is False and check.expected == "b8cca3fd41ae"
    (tmp_path / "mine.safetensors").write_bytes(b"not weights")
    assert check_weights("ViT-L-14", str(tmp_path / "mine.safetensors")).passed is None


def test_weights_in_the_hub_cache(tmp_path, monkeypatch):
    "The cache names a file by its SHA-256, so that a damaged one can be told"
    content = b"weights"
    digest = hashlib.sha256(content).hexdigest()
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / digest).write_bytes(content)
    link = tmp_path / "open_clip_model.safetensors"
    link.symlink_to(tmp_path / "blobs" / digest)
    monkeypatch.setattr(doctor, "_in_hub_cache", lambda repo, name: link if name == link.name else None)
    assert check_weights("ViT-L-14", "openai").passed
    (tmp_path / "blobs" / digest).write_bytes(b"half of th")
    assert check_weights("ViT-L-14", "openai").passed is False


def test_weights_that_are_not_there(monkeypatch):
    monkeypatch.setattr(doctor, "_in_hub_cache", lambda repo, name: None)
    check = check_weights("ViT-L-14", "openai")
    assert check.passed is None and "not on this machine" in check.measured


def test_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 5_000_000)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(b"x" * 5_000_000).hexdigest()


def test_little_memory_and_disk_fail(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "free_memory", lambda: 1 << 30)
    assert check_memory(clip=True).passed is False and check_memory(clip=False).passed is False
    monkeypatch.setenv("LOCRL_CACHE", str(tmp_path / "not" / "yet" / "there"))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 3 << 30})())
    assert check_disk(clip=True).passed is False and check_disk(clip=False).passed


def test_drive(monkeypatch, tmp_path):
    assert check_drive().passed
    monkeypatch.setattr(doctor, "in_colab", lambda: True)
    monkeypatch.setenv("LOCRL_CACHE", str(tmp_path / "MyDrive" / "locrl"))
    assert check_drive(str(tmp_path)).passed
    assert check_drive("/content/drive").passed is False


def test_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(doctor.torch.cuda, "is_available", lambda: False)
    assert check_gpu("cuda", True).passed is False
    assert check_gpu("cpu", True).passed is None


def test_data(monkeypatch, tmp_path):
    monkeypatch.setenv("LOCRL_DATA", str(tmp_path))
    assert check_data().passed is None
    lists = tmp_path / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "test.txt").write_text("a\nb\n")
    assert "VOC2007 test (2 pictures)" in check_data().measured


@pytest.mark.parametrize(("failed", "code"), [(False, 1), (True, 0)])
def test_exit_code(monkeypatch, failed, code):
    from locrl.vision.acceptance import Check

    monkeypatch.setattr(doctor, "doctor", lambda *_: [Check("a", "", "", "", "", failed)])
    assert CliRunner().invoke(cli.app, ["doctor"]).exit_code == code


def test_saliency_report_command(monkeypatch, tmp_path):
    "On the embedded encoder and a few scenes; a second kind of evidence stands beside the first"
    from locrl.experiments.config import named_config

    monkeypatch.setenv("LOCRL_CACHE", str(tmp_path))
    small = named_config("demo").replace(
        {
            "data.train": "simple-scenes:train:40",
            "data.select": "simple-scenes:val:16",
            "data.classes": ("cat", "dog"),
            "encoder.input_size": 128,
            "encoder.dim": 16,
        }
    )
    monkeypatch.setattr(cli, "_config", lambda name: small)
    result = CliRunner().invoke(cli.app, ["saliency-report", "--on", "demo", "--images", "12"])
    assert result.exit_code == 0, result.output
    assert "12 pictures" in result.output and "prototypes" in result.output and "own head" in result.output
