"""Install locrl as a user would, into empty environments, and try it without the repository.

    python .ci/smoke.py                    # all of it
    python .ci/smoke.py wheel sdist        # a wheel and a source distribution of HEAD
    python .ci/smoke.py 2.13.0 2.14.1      # the install cell of the Colab notebooks beside these versions of torch

A wheel or source distribution must import, run `locrl locate` and get through the demo's first minute. The install cell
must leave torch as it is. Everything happens in a temporary folder. The notebooks' cell runs as it stands, except that
the clone of HEAD is installed instead of the public address.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCH = {"2.13.0": "0.28.0", "2.14.1": "0.29.1"}  # and the torchvision made for it


def run(*command, **options) -> str:
    "Output of a command; where it fails, its output is the message"
    done = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))[:200]} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


def environment(folder: Path) -> Path:
    "The `bin` of an empty virtual environment in `folder`"
    run(sys.executable, "-m", "venv", folder)
    return folder / "bin"


def try_package(kind: str, clone: Path, folder: Path) -> None:
    "Build a wheel or an sdist of `clone`, install it into an empty environment and use it from `folder`"
    built, place = folder / "dist", environment(folder / "venv")
    if kind == "wheel":
        run(place / "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", built, clone)
    else:
        run(place / "pip", "install", "--quiet", "build")
        run(place / "python", "-m", "build", "--sdist", "--outdir", built, clone)
    (package,) = built.iterdir()
    print(f"{package.name}: {package.stat().st_size / 1e6:.1f} MB", flush=True)
    run(place / "pip", "install", "--quiet", package)
    ask = "import locrl; print(locrl.__file__); from locrl.apps.localizer import EXAMPLE; print(EXAMPLE)"
    module, picture = run(place / "python", "-c", ask, cwd=folder).splitlines()[-2:]
    assert Path(module).is_relative_to(folder), f"{module} is not the package that was installed"
    answer = run(place / "locrl", "locate", picture, "cat", cwd=folder)
    assert "cat" in answer, answer
    print("  locate:", answer.strip().splitlines()[-1], flush=True)
    with open(folder / "demo.log", "w") as log:
        demo = subprocess.Popen([place / "locrl", "demo"], cwd=folder, stdout=log, stderr=log, text=True)
        try:
            ended = demo.wait(timeout=60)
        except subprocess.TimeoutExpired:
            ended = None
        demo.kill()
    text = (folder / "demo.log").read_text()
    assert not ended, f"locrl demo ended with {ended}:\n{text[-3000:]}"
    print("  demo, after a minute:", re.split(r"[\r\n]+", text.strip())[-1][:100], flush=True)


def install_cell() -> str:
    "The code of the cell by which the Colab notebooks install locrl"
    cells = json.loads((ROOT / "nbs/tutorials/train_clip.ipynb").read_text(encoding="utf-8"))["cells"]
    return next(source for cell in cells if "%pip install" in (source := "".join(cell["source"])))


def try_beside(torch: str, clone: Path, folder: Path) -> None:
    "Run the install cell in an environment that holds `torch`, then the first check"
    place = environment(folder / "venv")
    run(place / "pip", "install", "--quiet", f"torch=={torch}", f"torchvision=={TORCH[torch]}")
    cell = re.sub(
        r"^%pip (.*) git\+\S+$",
        rf"import subprocess, sys; subprocess.run([sys.executable, '-m', 'pip', *'\1'.split(), '{clone}'], check=True)",
        install_cell(),
        flags=re.M,
    )
    assert "%pip" not in cell, cell
    check = "\nfrom locrl.apps.colab import first_check\nprint(pins)\nfirst_check(pins)\n"
    print(
        f"torch {torch}:",
        *run(place / "python", "-c", cell + check, cwd=folder).strip().splitlines()[-4:],
        sep="\n  ",
        flush=True,
    )


def main(names: list[str]) -> int:
    "0 when everything works; the first thing that does not is the message"
    if {"-h", "--help"} & set(names):
        print(__doc__.strip())
        return 0
    for name in names or ["wheel", "sdist", *TORCH]:
        with tempfile.TemporaryDirectory(prefix="locrl-smoke-") as temporary:
            folder = Path(temporary).resolve()
            run("git", "clone", "--quiet", ROOT, folder / "clone")
            if name in ("wheel", "sdist"):
                try_package(name, folder / "clone", folder)
            elif name in TORCH:
                try_beside(name, folder / "clone", folder)
            else:
                sys.exit(f"nothing called {name}: there are wheel, sdist, {', '.join(TORCH)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
