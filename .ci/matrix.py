"""Runs the whole test suite with the newest and the lowest versions of the packages that locrl needs.

    python .ci/matrix.py                        # both
    python .ci/matrix.py lowest -- -k boxes     # one of them, with options for pytest

*newest* takes what pip gives without constraints, on the newest Python that is found. *lowest* takes the lower bounds
of settings.ini, on the oldest Python. Each gets a clone of HEAD and a virtual environment of its own in a temporary
folder. A run of the whole suite is written to results/environments.json, from which the installation page makes its
table.
"""

import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results/environments.json"
PYTHONS = {"newest": ("3.14", "3.13", "3.12", "3.11"), "lowest": ("3.10", "3.11", "3.12")}
OPTIONS = {"newest": [], "lowest": ["--resolution", "lowest-direct"]}
PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "gymnasium", "stable-baselines3", "numpy", "nbdev")


def find_python(versions: tuple[str, ...]) -> tuple[str, str]:
    "Return the first of `versions` that is installed, on PATH or in pyenv, and the path of its interpreter"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for version in versions:
        paths = [*sorted(pyenv.glob(f"{version}.*/bin/python3"), reverse=True), shutil.which(f"python{version}")]
        for path in filter(None, paths):
            asked = subprocess.run(
                [path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True
            )
            if asked.stdout.strip() == version:
                return version, str(path)
    sys.exit(f"none of Python {', '.join(versions)} is installed: install one of them, for example with pyenv")


def find_uv(folder: Path) -> str:
    "Return the command `uv`; it is installed into a virtual environment below `folder` where there is none"
    if found := shutil.which("uv"):
        return found
    subprocess.run([sys.executable, "-m", "venv", folder / "uv"], check=True)
    subprocess.run([folder / "uv/bin/pip", "install", "--quiet", "uv"], check=True)
    return str(folder / "uv/bin/uv")


def counts(line: str) -> dict[str, int]:
    "Return the passed, failed and skipped tests of pytest's closing line; errors count as failed"
    found = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", line)}
    failed = found.get("failed", 0) + found.get("error", 0)
    return {"passed": found.get("passed", 0), "failed": failed, "skipped": found.get("skipped", 0)}


def versions(python: Path) -> dict[str, str]:
    "Return the versions of `PACKAGES` that the interpreter `python` has"
    ask = f"import importlib.metadata as m; print(*(m.version(name) for name in {PACKAGES}))"
    answer = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.split()
    return dict(zip(PACKAGES, answer))


def run(name: str, options: list[str]) -> dict:
    "Return what came of the tests in the environment called `name`, with its versions"
    with tempfile.TemporaryDirectory(prefix=f"locrl-{name}-") as temporary:
        folder = Path(temporary)
        version, python = find_python(PYTHONS[name])
        uv = find_uv(folder)
        clone = folder / "clone"
        own = folder / "venv/bin/python"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        subprocess.run([uv, "venv", "--quiet", "--seed", "--python", python, folder / "venv"], check=True)
        print(f"{name}: installing for Python {version}", flush=True)
        install = [uv, "pip", "install", "--quiet", "--python", own, *OPTIONS[name], "--editable", ".[dev]"]
        subprocess.run(install, cwd=clone, check=True)
        environment = {**os.environ, "LOCRL_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        if not os.environ.get("LOCRL_DATA") and (ROOT / "../shared/data").is_dir():
            environment["LOCRL_DATA"] = str((ROOT / "../shared/data").resolve())
        command = [own, "-m", "pytest", "-q", "-n", "logical", "--maxprocesses", "4", "--dist", "worksteal", *options]
        process = subprocess.Popen(command, cwd=clone, env=environment, stdout=subprocess.PIPE, text=True)
        closing = ""
        for line in process.stdout:
            print(line, end="", flush=True)
            closing = line if re.search(r"\d+ (passed|failed)", line) else closing
        process.wait()
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=clone, capture_output=True, text=True, check=True
        ).stdout.strip()
        return {
            "environment": name,
            "date": datetime.date.today().isoformat(),
            "commit": commit,
            "python": version,
            "platform": f"{platform.system()} {platform.machine()}",
            "versions": versions(own),
            **counts(closing),
        }


def main(arguments: list[str]) -> int:
    "Return 0 when no test failed"
    if {"-h", "--help"} & set(arguments):
        print(__doc__.strip())
        return 0
    split = arguments.index("--") if "--" in arguments else len(arguments)
    names = arguments[:split] or list(OPTIONS)
    options = arguments[split + 1 :]
    if unknown := set(names) - OPTIONS.keys():
        sys.exit(f"no environment called {', '.join(unknown)}: there are {', '.join(OPTIONS)}")
    rows = [run(name, options) for name in names]
    for row in rows:
        print(json.dumps(row))
    if not options:
        kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
        done = {row["environment"]: row for row in [*kept, *rows]}
        RESULTS.write_text(json.dumps([done[name] for name in OPTIONS if name in done], indent=1) + "\n")
    return int(any(row["failed"] or not row["passed"] for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
