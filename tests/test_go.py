"""The script behind the README's two commands: what it runs, what it skips, what it says when something is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT))
import go


@pytest.fixture
def calls(tmp_path, monkeypatch):
    "The commands go.py would run, in a folder of its own with the real settings; `status` is what they return"

    class Calls(list):
        status = 0

    calls = Calls()

    def run(*command, **options):
        calls.append([str(part) for part in command])
        return calls.status

    for name in ("settings.ini", "setup.py", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / ".venv").mkdir()
    monkeypatch.setattr(go, "ROOT", tmp_path)
    monkeypatch.setattr(go, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(go, "run", run)
    monkeypatch.setattr(go, "wants_cpu_torch", lambda: False)
    return calls


def installations(calls) -> list:
    "What pip was asked to install"
    return [command[command.index("--editable") + 1] for command in calls if "--editable" in command]


def test_installs_once_and_again_after_a_change(calls, tmp_path):
    go.install("dev")
    go.install("dev")
    go.install("")  # the development install holds the plain one
    assert installations(calls) == [".[dev]"]
    (tmp_path / "constraints.txt").write_text("torch==2.8.0\n")
    go.install("")
    go.install("dev")
    assert installations(calls) == [".[dev]", ".", ".[dev]"]


def test_a_failed_installation_is_tried_again(calls):
    calls.status = 1
    with pytest.raises(SystemExit, match="Run the same command again"):
        go.install("")
    calls.status = 0
    go.install("")
    assert installations(calls) == [".", "."]


def test_cpu_wheels_come_first_and_may_fail(calls, monkeypatch):
    monkeypatch.setattr(go, "wants_cpu_torch", lambda: True)
    go.install("")
    assert go.CPU_WHEELS in calls[0] and any(part.startswith("torch==") for part in calls[0])
    assert installations(calls) == ["."]


def test_only_a_broken_environment_is_cleared(calls, monkeypatch):
    monkeypatch.setattr(go, "works", lambda *command: True)
    go.make_venv()
    assert not calls
    monkeypatch.setattr(go, "works", lambda *command: "pip" not in command)
    go.make_venv()
    monkeypatch.setattr(go, "works", lambda *command: False)
    go.make_venv()
    assert ["--clear" in command for command in calls] == [False, True]
    calls.status = 1
    with pytest.raises(SystemExit, match="python3-venv"):
        go.make_venv()


@pytest.mark.parametrize("command, passed_on", [("demo", ["--seed", "3"]), ("test", ["-k", "boxes"])])
def test_arguments_are_passed_on(calls, monkeypatch, command, passed_on):
    monkeypatch.setattr(go, "make_venv", lambda: None)
    monkeypatch.setattr(go, "install", lambda extra: None)
    monkeypatch.setattr(sys, "argv", ["go.py", command, *passed_on])
    assert go.main() == 0
    assert calls[-1][-2:] == passed_on and (Path(calls[-1][0]).name == "locrl") == (command == "demo")


@pytest.mark.parametrize(
    "arguments, status, says",
    [([], 0, "python3 go.py demo"), (["--help"], 0, "python3 go.py test"), (["trian"], 2, "`demo` and `test`")],
)
def test_help_and_mistakes(arguments, status, says):
    done = subprocess.run([sys.executable, ROOT / "go.py", *arguments], capture_output=True, text=True)
    assert done.returncode == status and says in done.stdout + done.stderr and "Traceback" not in done.stderr
