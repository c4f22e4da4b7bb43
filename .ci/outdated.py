"""Warn when constraints.txt is a minor version behind what pip gives today. Never fail, and wait 20 seconds at most."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WATCHED = ("torch", "torchvision", "stable-baselines3", "gymnasium", "open_clip_torch", "nbdev")
CURE = "python .ci/matrix.py newest, then write its versions into constraints.txt"


def minor(version: str) -> tuple[int, int]:
    "Major and minor number of a version"
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def pinned(text: str) -> dict[str, str]:
    "Versions that `name==version` lines pin, comments and markers left out"
    return dict(re.findall(r"^\s*([\w.-]+)==([\w.+]+)", text.replace("dev_requirements = ", ""), re.M))


def behind(pins: dict[str, str], newest: dict[str, str]) -> list[str]:
    "One sentence for every package whose pin is a minor version or more behind"
    return [
        f"{name} is pinned to {pins[name]}, and {newest[name]} is out"
        for name in newest
        if minor(pins[name]) < minor(newest[name])
    ]


def ask(names: tuple[str, ...], seconds: float = 20) -> dict[str, str]:
    "The newest version of each package as pip's index tells it; packages that give no answer in time are left out"
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-m", "pip", "index", "versions", name],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for name in names
    }
    found = {}
    for name, process in processes.items():
        try:
            text, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            for each in processes.values():
                each.kill()
            break
        if match := re.search(r"Available versions: ([\w.]+)", text):
            found[name] = match[1]
    return found


if __name__ == "__main__":
    pins = pinned((ROOT / "settings.ini").read_text()) | pinned((ROOT / "constraints.txt").read_text())
    newest = ask(WATCHED)
    if missing := [name for name in WATCHED if name not in newest]:
        print(f"constraints.txt: no answer about {', '.join(missing)}")
    for sentence in behind(pins, newest):
        print(f"WARNING: {sentence}. To follow: {CURE}")
