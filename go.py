"""Sets up locrl in its own virtual environment (.venv) and runs the demo or the tests.

    python3 go.py demo [options of `locrl demo`]
    python3 go.py test [options of pytest]

Needs Python 3.10 or newer and nothing else. The first call installs the requirements (about 1.5 GB, some minutes);
later calls install again only when settings.ini, setup.py, pyproject.toml or constraints.txt changed.
An interrupted call can simply be repeated.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"


def run(*command, **options) -> int:
    "Exit status of `command`, run from the repository's root; Ctrl-C reaches it too, and it may finish its own way"
    process = subprocess.Popen([str(part) for part in command], cwd=ROOT, **options)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise


def works(*command) -> bool:
    "Whether `command` can be run and exits with 0; its output is dropped"
    try:
        return run(*command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


def make_venv() -> None:
    "A virtual environment with a working pip in `.venv`; a broken one is made again"
    if works(PYTHON, "-m", "pip", "--version"):
        return
    print(f"go.py: making a virtual environment in {VENV.name} with Python {sys.version.split()[0]}", flush=True)
    clear = [] if works(PYTHON, "-c", "") else ["--clear"]
    if run(sys.executable, "-m", "venv", *clear, VENV):
        sys.exit(
            "go.py: no virtual environment could be made. On Debian or Ubuntu: sudo apt install python3-venv; "
            "then run the same command again."
        )


def fingerprint(extra: str) -> str:
    "What the installation is made from: the folder, the extra and the files that name requirements"
    digest = hashlib.sha256(f"{ROOT} {extra}".encode())
    for name in ("settings.ini", "setup.py", "pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def wants_cpu_torch() -> bool:
    "Whether PyPI's torch would bring CUDA (gigabytes) to a Linux machine without an NVIDIA GPU, pip left as it comes"
    if not sys.platform.startswith("linux") or os.uname().machine != "x86_64":
        return False
    if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists():
        return False
    if works(PYTHON, "-c", "import torch"):
        return False
    settings = subprocess.run([str(PYTHON), "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    return not any(word in settings for word in ("index-url", "find-links", "no-index"))


def install(extra: str) -> None:
    "locrl, its requirements and those of `extra`, unless they are there already"
    stamp = VENV / "locrl-installed"
    done = stamp.read_text().split() if stamp.exists() else []
    if fingerprint(extra) in done:
        return
    pip = [PYTHON, "-m", "pip", "--disable-pip-version-check"]
    if wants_cpu_torch():
        print("go.py: no NVIDIA GPU found, fetching the smaller CPU builds of torch and torchvision", flush=True)
        pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch")]
        if run(*pip, "install", "--retries", "2", "--no-deps", "--index-url", CPU_WHEELS, *pins):
            print("go.py: they could not be had; going on with the builds from PyPI", flush=True)
    print("go.py: installing locrl and its requirements", flush=True)
    if run(*pip, "install", "--editable", f".[{extra}]" if extra else ".", "--constraint", "constraints.txt"):
        sys.exit(
            "go.py: the installation failed; pip's message above says why. It needs a connection to a Python "
            "package index and about 3 GB of disk. Run the same command again to go on."
        )
    stamp.write_text("\n".join({fingerprint(""), fingerprint(extra)}))


def main() -> int:
    "Exit status of the command that was asked for"
    command, *rest = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        print(__doc__.strip())
        return 0
    if command not in ("demo", "test"):
        print(f"go.py: no command {command!r}; there are `demo` and `test` (see python3 go.py --help)", file=sys.stderr)
        return 2
    if sys.version_info < (3, 10):
        print(
            f"go.py: this is Python {sys.version.split()[0]}; locrl needs 3.10 or newer, "
            "for example: python3.12 go.py " + command,
            file=sys.stderr,
        )
        return 2
    make_venv()
    install("dev" if command == "test" else "")
    if command == "demo":
        return run(BIN / "locrl", "demo", *rest)
    return run(PYTHON, "-m", "pytest", "-n", "logical", "--maxprocesses", "4", "--dist", "worksteal", *rest)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ngo.py: stopped; run the same command to go on", file=sys.stderr)
        sys.exit(130)
