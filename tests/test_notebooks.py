"""Every notebook runs, is clean, is exported, and shows no path of the machine it was written on."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from nbdev.test import test_nb as run_notebook

from conftest import FLAGS, ROOT
from locrl.vision import clip, encoders, timm  # both families are registered before any notebook runs

NOTEBOOKS = sorted(
    path.relative_to(ROOT / "nbs")
    for path in (ROOT / "nbs").rglob("*.ipynb")
    if not any(part.startswith((".", "_")) for part in path.relative_to(ROOT / "nbs").parts)
)
MACHINE_PATH = re.compile(r"(?<![\w./])/(?:work|root|tmp|home|Users|mnt|opt|var)/[\w.]+")


@pytest.fixture
def own_interrupt():
    "Ctrl-C stays pytest's: nbdev puts a handler of its own that ends the process"
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def own_encoders():
    "A notebook that defines a family of encoders registers its own class; the package's is put back"
    registries = encoders.ENCODERS, encoders.FAMILIES
    assert {clip.__name__, timm.__name__} == set(encoders.FAMILY_MODULES.values())
    before = [dict(registry) for registry in registries]
    yield
    for registry, kept in zip(registries, before):
        registry.clear()
        registry.update(kept)


@pytest.mark.parametrize("name", NOTEBOOKS, ids=str)
def test_runs(name: Path, request, own_interrupt, own_encoders):
    "All cells run, those with a flag only when asked for"
    if (ROOT / "nbs" / name).with_name(".notest").exists():
        pytest.skip("its folder holds a .notest file")
    skip = [flag for flag in FLAGS if not request.config.getoption(flag)]
    passed, _ = run_notebook(ROOT / "nbs" / name, skip_flags=skip, basepath=ROOT)
    assert passed, f"nbs/{name} failed: its traceback stands under `Captured stderr call`"


@pytest.mark.parametrize("name", NOTEBOOKS, ids=str)
def test_names_no_machine(name: Path):
    "Neither source nor text output holds an absolute path of one machine"
    found = []
    for number, cell in enumerate(json.loads((ROOT / "nbs" / name).read_text(encoding="utf-8"))["cells"]):
        texts = ["".join(cell["source"])]
        for output in cell.get("outputs", []):
            texts.append("".join(output.get("text", "")))
            texts += ["".join(data) for kind, data in output.get("data", {}).items() if kind.startswith("text/")]
        found += [f"cell {number}: {match}" for text in texts for match in MACHINE_PATH.findall(text)]
    assert not found


def contents(folder: Path) -> dict:
    "Hash of every notebook and module under `folder`, by relative path"
    files = [*folder.glob("nbs/**/*.ipynb"), *folder.glob("locrl/**/*.py")]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_clean_and_exported(tmp_path: Path):
    "`nbdev-clean` and `nbdev_export`, as typed, change nothing (tried on a copy of the tree)"
    for name in ("nbs", "locrl"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "_quarto.yml"):
        shutil.copy(ROOT / name, tmp_path)
    before = contents(tmp_path)
    environment = {key: value for key, value in os.environ.items() if key != "IN_TEST"}
    for command in ("nbdev-clean", "nbdev_export"):
        subprocess.run([Path(sys.executable).with_name(command)], cwd=tmp_path, env=environment, check=True)
    after = contents(tmp_path)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    assert not changed, f"run nbdev-clean and nbdev_export, then commit: {changed}"
