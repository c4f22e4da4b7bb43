"""Builds the documentation's pages without Quarto and fails where a reader would stumble.

    python .ci/docs.py [FOLDER]    # FOLDER: where to leave the pages; by default they are only checked

nbdev processes the notebooks as it would for Quarto, and smalldocs renders them in Quarto's place.
All of it happens on a copy of the sources in a temporary folder. These things are checked:
- Every page builds.
- Links, anchors and pictures lead somewhere, also those into the repository.
- Every notebook is in the sidebar, and every page that the sidebar names exists.
- Cells that show something have their output saved.
- Every public function and class stands on its module's page.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

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
    if done.returncode:
        sys.exit(done.stderr[done.stderr.rfind("\nException: Error in notebook") + 1 :])
    return folder / "_proc"


def hrefs(entry) -> list[str]:
    "Paths and patterns named anywhere below `entry` of the sidebar"
    if isinstance(entry, str):
        return [entry]
    if isinstance(entry, list):
        return [path for part in entry for path in hrefs(part)]
    return hrefs(entry.get("contents", [])) + ([entry["href"]] if "href" in entry else [])


def unreachable(notebooks: Path) -> list[str]:
    "Notebooks below `notebooks` that the sidebar does not lead to, and what it names in vain"
    sidebar = hrefs(yaml.safe_load((notebooks / "_quarto.yml").read_text())["website"]["sidebar"]["contents"])
    leads = {pattern: set(notebooks.glob(pattern)) for pattern in sidebar if "://" not in pattern}
    lost = set(notebooks.rglob("*.ipynb")).difference(*leads.values())
    return [
        f"{pattern}: in the sidebar of _quarto.yml, but there is no such notebook"
        for pattern, paths in leads.items()
        if not paths
    ] + [f"{path.relative_to(notebooks)}: not in the sidebar of _quarto.yml" for path in sorted(lost)]


def shows(source: str) -> bool:
    "Return whether a cell is there for its output: it hides its source, or ends with an expression that is no call"
    if re.search(r"^#\|\s*(hide|eval:\s*false|export)", source, re.M):
        return False
    if re.search(r"^#\|\s*echo:\s*false", source, re.M):
        return True
    try:
        last = ast.parse(re.sub(r"^[%!].*", "", source, flags=re.M)).body[-1:]
    except SyntaxError:
        return False
    return (
        bool(last)
        and isinstance(last[0], ast.Expr)
        and isinstance(last[0].value, (ast.Name, ast.Attribute, ast.Tuple, ast.Subscript, ast.BinOp))
        and not source.rstrip().endswith(";")
    )


def silent(notebooks: Path) -> list[str]:
    "Cells that promise an output and have none, or have an error or a warning"
    found = []
    for path in sorted(notebooks.rglob("*.ipynb")):
        for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
            source, outputs = "".join(cell["source"]), cell.get("outputs", [])
            last = source.strip().splitlines()[-1][:60] if source.strip() else ""
            where = f"{path.relative_to(notebooks)}, cell {number} ({last})"
            if cell["cell_type"] == "code" and not outputs and shows(source):
                found.append(f"{where}: no output is saved")
            found += [f"{where}: its output is an error" for output in outputs if output["output_type"] == "error"]
            found += [f"{where}: a warning is saved with it" for output in outputs if output.get("name") == "stderr"]
    return found


class Page(HTMLParser):
    "Where a page leads, what it shows, which anchors and headings it has"

    def __init__(self, path: Path):
        super().__init__()
        self.links = []
        self.ids = set()
        self.headings = []
        self.inside = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        "Keep anchors and links of a tag, and begin a heading"
        attrs = dict(attrs)
        self.ids |= {attrs[key] for key in ("id", "name") if attrs.get(key)}
        self.links += [attrs[key] for key in ("href", "src") if attrs.get(key) and tag in ("a", "img", "source")]
        if re.fullmatch("h[1-6]", tag):
            self.inside = True
            self.headings.append("")

    def handle_endtag(self, tag):
        "End a heading"
        self.inside = self.inside and not re.fullmatch("h[1-6]", tag)

    def handle_data(self, data):
        "Add text to the heading it stands in"
        if self.inside:
            self.headings[-1] += data


def dead_ends(site: Path, repository: Path = ROOT) -> list[str]:
    """Return the links, anchors and pictures of the built pages that lead nowhere, each with a page that has it.
    Links into the repository are looked up in `repository`."""
    pages, found = {path: Page(path) for path in sorted(site.rglob("*.html"))}, {}
    project = re.search(
        r'^Repository = "https://github\.com/(.+?)/?"$',
        (repository / "pyproject.toml").read_text(encoding="utf-8"),
        re.M,
    )[1]
    for path, page in pages.items():
        for link in dict.fromkeys(page.links):
            parts = urlsplit(link)
            if own := re.fullmatch(
                rf"https://(?:colab\.research\.google\.com/github|github\.com)/{re.escape(project)}/"
                r"(?:blob|tree|edit)/main/([^?#]+)(?:[?#].*)?",
                link,
            ):
                if not (repository / unquote(own[1])).exists():
                    found.setdefault((f"{own[1]} of the repository", ""), []).append(path.relative_to(site))
                continue
            if parts.netloc or parts.scheme not in ("", "file", "attachment"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            anchor = unquote(parts.fragment)
            if (
                not parts.scheme
                and target.exists()
                and (not anchor or target not in pages or anchor in pages[target].ids)
            ):
                continue
            found.setdefault((os.path.relpath(target, site), anchor), []).append(path.relative_to(site))
    return [
        f"broken link to {target}{'#' if anchor else ''}{anchor}, on {where[0]}"
        + (f" and {len(where) - 1} more" if where[1:] else "")
        for (target, anchor), where in found.items()
    ]


def public_names(module: Path) -> list[str]:
    "Functions and classes of `module` as nbdev heads them: a method added by fastcore's `patch` goes by its class"
    nodes = [
        node
        for node in ast.parse(module.read_text(encoding="utf-8")).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_"
    ]
    patched = [any(ast.unparse(each).startswith("patch") for each in node.decorator_list) for node in nodes]
    return [
        f"{ast.unparse(node.args.args[0].annotation)}.{node.name}" if method else node.name
        for node, method in zip(nodes, patched)
    ]


def undocumented(notebooks: Path, package: Path, site: Path) -> list[str]:
    "Public functions and classes of `package` that have no heading on the page of their notebook"
    found = []
    for path in sorted(notebooks.rglob("*.ipynb")):
        source = ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
        name = re.search(r"^#\|\s*default_exp\s+([\w.]+)", "\n".join(source), re.M)
        if not name:
            continue
        headings = {
            heading.strip() for heading in Page(site / path.relative_to(notebooks).with_suffix(".html")).headings
        }
        found += [
            f"{path.relative_to(notebooks)}: {each} is not on the page"
            for each in public_names(package / (name[1].replace(".", "/") + ".py"))
            if each not in headings
        ]
    return found


def main() -> int:
    "0 when every page builds and a reader stumbles nowhere"
    with tempfile.TemporaryDirectory(prefix="locrl-docs-") as name:
        folder = Path(name).resolve()
        copy_sources(folder)
        wrong = unreachable(folder / "nbs") + silent(folder / "nbs")
        pages = process(folder)
        rendered = subprocess.run([BIN / "smalldocs", "render", pages], capture_output=True, text=True)
        report = (rendered.stdout + rendered.stderr).splitlines()
        wrong += (
            report
            if rendered.returncode
            else dead_ends(pages / "_docs") + undocumented(folder / "nbs", folder / "locrl", pages / "_docs")
        )
        print(*(wrong or report[:1]), sep="\n")
        if sys.argv[1:]:
            shutil.copytree(pages / "_docs", sys.argv[1], dirs_exist_ok=True)
        return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
