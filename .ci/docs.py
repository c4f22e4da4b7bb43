"""Builds the documentation's pages without Quarto and fails on a broken link.

    python .ci/docs.py [FOLDER]    # FOLDER: where to leave the pages; by default they are only checked

nbdev processes the notebooks as it would for Quarto, and smalldocs renders them in Quarto's place.
All of it happens on a copy of the sources in a temporary folder.
"""
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
SOURCES = ("nbs", "locrl", "pyproject.toml", "_quarto.yml")


def copy_sources(target: Path) -> None:
    "What the pages are made from, copied to `target`"
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            skip = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
            shutil.copytree(source, target / name, symlinks=True, ignore=skip)
        else:
            shutil.copy(source, target / name)


def process(folder: Path) -> Path:
    "Folder of the notebooks as nbdev hands them to Quarto; a `quarto` that does nothing satisfies its check for one"
    stub = folder / "bin" / "quarto"
    stub.parent.mkdir()
    stub.write_text("#!/bin/sh\nexit 0\n")
    stub.chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if key != "IN_TEST"}
    environment["PATH"] = os.pathsep.join([str(stub.parent), str(BIN), environment.get("PATH", "")])
    pages = r"\.(?:ipynb|qmd|html)$"
    command = [BIN / "nbdev-proc-nbs", "--n-workers", "2", "--file-re", pages]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode: sys.exit(done.stderr[done.stderr.rfind("\nException: Error in notebook") + 1:])
    return folder / "_proc"


def main() -> int:
    "0 when every page builds and every link leads somewhere"
    with tempfile.TemporaryDirectory(prefix="locrl-docs-") as name:
        folder = Path(name)
        copy_sources(folder)
        pages = process(folder)
        rendered = subprocess.run([BIN / "smalldocs", "render", pages], capture_output=True, text=True)
        report = (rendered.stdout + rendered.stderr).splitlines()
        broken = sorted({line for line in report if "broken link" in line})
        print(*(broken or report[:1] if rendered.returncode == 0 else report), sep="\n")
        if sys.argv[1:]: shutil.copytree(pages / "_docs", sys.argv[1], dirs_exist_ok=True)
        return int(bool(broken) or rendered.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
