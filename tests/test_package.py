"""What holds for the package as a whole: direction of imports, docstrings, a quick import, one version, the README."""

import ast
import configparser
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from conftest import ROOT

HEAVY = {"torchvision", "open_clip", "timm", "matplotlib", "stable_baselines3", "tensorboard", "ipywidgets"}
# from the lowest floor to the highest
WINGS = ("data", "vision", "envs", "agents", "evaluation", "experiments", "apps")
# rooms that every floor may use, and what they may use
BESIDE = {"files": set(), "checkpoints": {"files"}, "figures": {"data.boxes", "files"}}
# Stable-Baselines3 writes its event files with tensorboard, tqdm draws its bars in notebooks with ipywidgets, and
# open_clip imports torchvision
# and pycocotools scores what `coco_results` writes
INDIRECT = {"tensorboard", "ipywidgets", "torchvision", "pycocotools"}
# ipywidgets brings IPython wherever there is a notebook; google.colab is part of Colab and not to be had elsewhere
PROVIDED = {"IPython", "google"}
MODULES = sorted(path for path in (ROOT / "locrl").rglob("*.py") if not path.name.startswith("_"))


def notebook_of() -> dict[str, Path]:
    "The notebook that exports each module, by dotted name without `locrl.`"
    notebooks = {}
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        source = "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"])
        if name := re.search(r"^#\|\s*default_exp\s+(\S+)", source, re.M):
            notebooks[name[1]] = path.relative_to(ROOT / "nbs")
    return notebooks


def place(name: str) -> tuple[int, int]:
    "Floor of a module and number of its notebook on that floor"
    return WINGS.index(name.partition(".")[0]), int(notebook_of()[name].name[:2])


def name_of(path: Path) -> str:
    "Dotted name of the module at `path`, without `locrl.`"
    return ".".join(path.relative_to(ROOT / "locrl").with_suffix("").parts)


def imported_modules(path: Path) -> set[str]:
    "Modules of locrl that the module at `path` imports anywhere, functions included"
    known, found = {name_of(other) for other in MODULES}, set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("locrl.") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[:-1]
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = (
                ".".join([*base, *((node.module or "").split(".") if node.module else [])])
                .removeprefix("locrl")
                .removeprefix(".")
            )
            found |= {module} | {f"{module}.{alias.name}".removeprefix(".") for alias in node.names}
    return found & known


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path):
    "A module imports from lower floors, from rooms before it on its own floor, and from the rooms beside the floors"
    name = name_of(path)
    if name in BESIDE:
        assert imported_modules(path) <= BESIDE[name]
        return
    assert not {other for other in imported_modules(path) - BESIDE.keys() if place(other) >= place(name)}


def test_imports_are_seen():
    "The check above reads relative imports: without this it could pass by seeing none"
    assert {"data.voc", "vision.encoders", "vision.saliency", "files"} <= imported_modules(
        ROOT / "locrl/vision/clip.py"
    )


def test_private_names_stay_at_home():
    "No module imports a name with an underscore from another"
    taken = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("locrl")):
                taken += [f"{name_of(path)}: {a.name}" for a in node.names if re.match(r"_(?!_)", a.name)]
    assert not taken


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_notebook_and_module_share_their_place(path: Path):
    "`locrl/vision/clip.py` is exported by `nbs/vision/NN_clip.ipynb`; on each floor the numbers run without gaps"
    name = name_of(path)
    notebook = notebook_of()[name]
    if name in BESIDE:
        assert notebook == Path(f"{name}.ipynb")
        return
    wing, room = name.split(".")
    assert notebook.parent == Path(wing) and re.fullmatch(rf"\d\d_{room}\.ipynb", notebook.name)
    numbers = sorted(int(each.name[:2]) for each in notebook_of().values() if each.parent == Path(wing))
    assert numbers == list(range(len(numbers)))


def test_public_face():
    "Every name that `locrl` offers can be had, and is what its own module holds"
    import locrl

    for name in locrl.__all__:
        assert getattr(locrl, name) is not None
    from locrl.apps.localizer import Localizer

    assert locrl.Localizer is Localizer and "Config" in dir(locrl)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_public_names_have_docstrings(path: Path):
    "Every public function and class says what it is"
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    public = [node for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_"]
    assert not [node.name for node in public if not ast.get_docstring(node)]


def test_import_is_quick():
    "`import locrl` brings in no library that is not needed yet"
    code = "import sys, locrl; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not (HEAVY | {"torch", "numpy", "gymnasium", "scipy"}) & set(loaded)


def settings() -> configparser.SectionProxy:
    "The values of settings.ini"
    config = configparser.ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def test_one_version():
    "settings.ini, the package and the installation name the same version"
    import locrl

    assert locrl.__version__ == settings()["version"] == importlib.metadata.version("locrl")


def test_wheel_holds_every_file(tmp_path: Path):
    "Modules, sprites and their licence are in the wheel"
    shutil.copytree(ROOT / "locrl", tmp_path / "locrl", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    files = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "locrl").rglob("*") if path.is_file()}
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", "."]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert files <= set(zipfile.ZipFile(wheel).namelist())


def test_requirements_are_what_is_imported():
    "settings.ini names the distributions that locrl imports, all of them and no others"
    providers = importlib.metadata.packages_distributions()
    for (
        distribution
    ) in importlib.metadata.distributions():  # Python 3.10 itself reads top_level.txt only, which not all have
        for file in distribution.files or ():
            if len(file.parts) == 2 and file.name == "__init__.py":
                providers.setdefault(file.parts[0], [distribution.metadata["Name"]])
    used = set()
    for path in [ROOT / "locrl/__init__.py", *MODULES]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            used |= {name.split(".")[0] for name in names}
    used -= sys.stdlib_module_names | {"locrl"} | PROVIDED

    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    named = {
        plain(re.match(r"[\w.-]+", item)[0])
        for extra, items in settings().items()
        if extra.endswith("requirements") and extra not in ("dev_requirements", "contrib_requirements")
        for item in items.split()
    }
    needed = {plain(distribution) for name in used for distribution in providers.get(name, [name])}
    missing, idle = needed - named, named - needed - INDIRECT
    assert not missing and not idle


COLUMNS = 120  # the longest line of code


def too_long(path: Path) -> list[str]:
    "Sentences about the lines of `path` that pass `COLUMNS`; for an exported module they name its notebook"
    named = path.relative_to(ROOT)
    where = f"{named}"
    if named.parts[0] == "locrl" and path in MODULES:
        where += f", which is exported from nbs/{notebook_of()[name_of(path)]}; shorten it there"
    lines = path.read_text(encoding="utf-8").splitlines()
    return [
        f"line {number} has {len(line)} columns, and {COLUMNS} are allowed: {where}"
        for number, line in enumerate(lines, 1)
        if len(line) > COLUMNS and not line.startswith("__all__ = ")  # which nbdev writes on one line
    ]


def checked_files() -> list[Path]:
    "Every Python file of the repository that a person reads; nbdev's index of names is not among them"
    folders = ("locrl", "tests", "benchmarks", ".ci")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(path for path in [*files, ROOT / "go.py", ROOT / "setup.py"] if path.name != "_modidx.py")


@pytest.mark.parametrize("path", checked_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_lines_fit(path: Path):
    "No line of a module, test or script passes 120 columns"
    found = too_long(path)
    assert not found, "\n".join(found)


def test_long_lines_are_seen(monkeypatch: pytest.MonkeyPatch):
    "The check above finds a line that is one column too long, and names the notebook that it comes from"
    monkeypatch.setattr(sys.modules[__name__], "COLUMNS", 20)
    found = too_long(ROOT / "locrl/data/boxes.py")
    assert found and all("nbs/data/00_boxes.ipynb" in sentence for sentence in found)
    lengths = [len(line) for line in (ROOT / "locrl/data/boxes.py").read_text(encoding="utf-8").splitlines()]
    assert len(found) == sum(length > 20 for length in lengths) - 1  # all but that of `__all__`
    assert ROOT / "locrl/data/boxes.py" in checked_files() and Path(__file__) in checked_files()


def test_scripts_are_tidy():
    "Tests and scripts pass ruff, as pyproject.toml sets it"
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", ROOT], capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr


def test_types(tmp_path: Path):
    "Calls within the package fit the annotations, as far as pyproject.toml asks"
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert not done.returncode, done.stdout + done.stderr


def test_type_checkers_see_the_public_face(tmp_path: Path):
    "The stub offers what `locrl` offers, and a wrong call of a public name is an error of mypy"
    import locrl

    nodes = ast.parse((ROOT / "locrl/__init__.pyi").read_text(encoding="utf-8")).body
    imported = [alias for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(alias.asname for alias in imported) == sorted(locrl.__all__)
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text('import locrl\n\nconfig: locrl.Config = locrl.find_config("demo")\n')
    bad.write_text("import locrl\n\nlocrl.find_config(3)\nlocrl.Config(nam='x')\nlocrl.localiser\n")
    command = [sys.executable, "-m", "mypy", "--config-file", "", "--follow-imports", "silent"]
    command += ["--ignore-missing-imports", "--implicit-optional", "--cache-dir", tmp_path / "cache"]

    def check(path):
        environment = os.environ | {"MYPYPATH": str(ROOT)}
        return subprocess.run([*command, path], capture_output=True, text=True, cwd=tmp_path, env=environment)

    assert not check(good).returncode, check(good).stdout
    said = check(bad).stdout
    assert all(f"bad.py:{line}: error" in said for line in (3, 4, 5)), said


def test_address_is_one_setting(tmp_path: Path):
    "Badges and install cells have the address of pyproject.toml; after a fork, one command moves all of them"
    subprocess.run([sys.executable, ROOT / ".ci/address.py", "--check"], check=True)
    for name in (".ci", "nbs"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "_quarto.yml"):
        shutil.copy(ROOT / name, tmp_path)
    project = tmp_path / "pyproject.toml"
    project.write_text(project.read_text().replace("github.com/locrl/locrl", "github.com/someone/fork"))
    assert subprocess.run([sys.executable, tmp_path / ".ci/address.py", "--check"], capture_output=True).returncode
    subprocess.run([sys.executable, tmp_path / ".ci/address.py"], check=True, capture_output=True)
    tutorials = sorted((tmp_path / "nbs/tutorials").glob("*.ipynb"))
    assert tutorials
    for path in tutorials:
        text = path.read_text(encoding="utf-8")
        assert f"https://colab.research.google.com/github/someone/fork/blob/main/nbs/tutorials/{path.name})" in text, (
            "no badge of its own"
        )
        assert "%pip install -q -c pins.txt git+https://github.com/someone/fork.git" in text, "no install cell"


def test_readme_is_in_step():
    "README.md is what .ci/readme.py makes of nbs/index.ipynb"
    subprocess.run([sys.executable, ROOT / ".ci/readme.py", "--check"], check=True)
