"""The scripts that watch over environments: what they read, without a network."""

import importlib.util
import subprocess
import sys

import pytest

from conftest import ROOT


def script(name: str):
    "The module of `.ci/NAME.py`"
    spec = importlib.util.spec_from_file_location(name, ROOT / f".ci/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


matrix, outdated = script("matrix"), script("outdated")


@pytest.mark.parametrize(
    "line, passed, failed, skipped",
    [
        ("1430 passed, 9 skipped, 24 warnings in 267.78s (0:04:27)", 1430, 0, 9),
        ("=== 46 failed, 1274 passed, 9 skipped, 24 warnings, 22 errors in 247.39s ===", 1274, 68, 9),
        ("1 error in 0.2s", 0, 1, 0),
        ("", 0, 0, 0),
    ],
)
def test_counts(line, passed, failed, skipped):
    "pytest's closing line in numbers; what could not be collected has failed"
    assert matrix.counts(line) == {"passed": passed, "failed": failed, "skipped": skipped}


def test_find_python(tmp_path, monkeypatch):
    "The first version that is there is taken, and a folder that only bears its name is not"
    place = tmp_path / "versions/9.9.1/bin/python3"
    place.parent.mkdir(parents=True)
    place.symlink_to(sys.executable)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    (tmp_path / f"python{own}").symlink_to(sys.executable)
    assert matrix.find_python(("9.9", own)) == (own, str(tmp_path / f"python{own}"))
    with pytest.raises(SystemExit, match="none of Python 9.9 is installed"):
        matrix.find_python(("9.9",))


def test_unknown_environment():
    "A wrong word is told at once"
    with pytest.raises(SystemExit, match="no environment called oldest"):
        matrix.main(["oldest"])


def test_behind():
    "A patch release is no reason to warn, a minor release is"
    pins = outdated.pinned(
        "# torch==1.0\ntorch==2.13.0\nnumpy==2.4.6; python_version >= '3.11'\ndev_requirements = nbdev==3.3.26\n"
    )
    assert pins == {"torch": "2.13.0", "numpy": "2.4.6", "nbdev": "3.3.26"}
    assert outdated.behind(pins, {"torch": "2.15.0", "numpy": "2.4.9", "nbdev": "3.3.27"}) == [
        "torch is pinned to 2.13.0, and 2.15.0 is out"
    ]
    assert outdated.behind(pins, {"nbdev": "4.0.0", "torch": "2.9.1"}) == [
        "nbdev is pinned to 3.3.26, and 4.0.0 is out"
    ]


def test_every_watched_package_is_pinned():
    "What the check asks about stands in constraints.txt or settings.ini"
    pins = outdated.pinned((ROOT / "settings.ini").read_text()) | outdated.pinned(
        (ROOT / "constraints.txt").read_text()
    )
    assert set(outdated.WATCHED) <= pins.keys()


def test_without_an_answer_nothing_fails():
    "Where the index cannot be reached the check says so and goes on"
    done = subprocess.run(
        [sys.executable, ROOT / ".ci/outdated.py"],
        capture_output=True,
        text=True,
        env={"PIP_NO_INDEX": "1", "PATH": ""},
    )
    assert done.returncode == 0 and done.stdout.startswith("constraints.txt: no answer about torch"), done.stderr
