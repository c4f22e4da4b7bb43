"""Write the project's public address into badges, install cells and links. With --check, only say whether all agree.

The address is one setting: Repository in pyproject.toml [project.urls]. After a fork, change it there and run this.
Every Colab badge, every `pip install git+...` cell, the site's link and its address (OWNER.github.io/NAME) follow.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COLAB = "https://colab.research.google.com/github"


def address() -> tuple[str, str]:
    "Owner and name of the repository"
    found = re.search(
        r'^Repository = "https://github\.com/([\w.-]+)/([\w.-]+?)/?"$',
        (ROOT / "pyproject.toml").read_text(encoding="utf-8"),
        re.M,
    )
    if not found:
        sys.exit('pyproject.toml [project.urls] has no Repository = "https://github.com/OWNER/NAME"')
    return found[1], found[2]


def rewritten(path: Path, owner: str, name: str) -> str:
    "Return the text of `path` with the right address; a badge opens the notebook it stands in, wherever it led"
    text = path.read_text(encoding="utf-8")
    place = path.relative_to(ROOT).as_posix()
    badge = rf"{COLAB}/{owner}/{name}/blob/main/"
    text = re.sub(
        re.escape(COLAB) + r"/[\w.-]+/[\w.-]+/blob/main/([\w./-]+)",
        lambda m: badge + (place if "/tutorials/" in place else m[1]),
        text,
    )
    text = re.sub(r"git\+https://github\.com/[\w.-]+/[\w.-]+?\.git", f"git+https://github.com/{owner}/{name}.git", text)
    text = re.sub(
        r"(href: |url += \{)https://github\.com/[\w.-]+/[\w.-]+", rf"\1https://github.com/{owner}/{name}", text
    )
    text = re.sub(r'(\n *url: "?)https://[\w.-]+\.github\.io/[\w.-]+/', rf"\1https://{owner}.github.io/{name}/", text)
    return re.sub(
        r'(Documentation = "|repository-code: "?)https://[\w.-]+/[\w./-]*',
        lambda m: (
            m[1] + (f"https://{owner}.github.io/{name}/" if "Doc" in m[1] else f"https://github.com/{owner}/{name}")
        ),
        text,
    )


if __name__ == "__main__":
    files = [
        *(ROOT / "nbs").rglob("*.ipynb"),
        *(
            ROOT / f
            for f in ("_quarto.yml", "pyproject.toml", "CITATION.cff", ".github/ISSUE_TEMPLATE/config.yml")
            if (ROOT / f).exists()
        ),
    ]
    files = [f for f in files if ".ipynb_checkpoints" not in f.parts]
    stale = {f: text for f in files if (text := rewritten(f, *address())) != f.read_text(encoding="utf-8")}
    if sys.argv[1:] == ["--check"]:
        if not stale:
            sys.exit()
        files = ", ".join(f.name for f in stale)
        sys.exit(f"the address of {files} is not that of pyproject.toml: run .ci/address.py, then .ci/readme.py")
    for f, text in stale.items():
        f.write_text(text, encoding="utf-8")
    print(f"{len(stale)} files changed")
