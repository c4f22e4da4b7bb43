"""Write README.md from nbs/index.ipynb (nbdev-readme would need Quarto). With --check, only say if it is current."""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTE = "<!-- Made from nbs/index.ipynb by .ci/readme.py: edit the notebook. -->\n\n"


def text_of(output: dict) -> str:
    "The text of a cell's output, without pictures"
    data = output.get("data", {})
    text = output.get("text") or data.get("text/markdown") or data.get("text/plain") or ""
    text = "".join(text).rstrip()
    if "text/markdown" in data or not text:
        return text
    return f"```\n{text}\n```"


def readme(notebook: Path) -> str:
    "The Markdown of `notebook`: hidden cells left out, links made relative to the folder above it"
    parts = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"]).strip()
        if not source or re.match(r"#\|\s*hide\b", source):
            continue
        if cell["cell_type"] == "markdown":
            parts.append(re.sub(r"\]\((?!\w+:|#|/)", f"]({notebook.parent.name}/", source))
        else:
            code = "\n".join(line for line in source.splitlines() if not line.startswith("#|"))
            if not re.search(r"^#\|\s*echo:\s*false", source, re.M):
                parts.append(f"```python\n{code.strip()}\n```")
            parts += filter(None, map(text_of, cell["outputs"]))
    return NOTE + "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    target, text = ROOT / "README.md", readme(ROOT / "nbs/index.ipynb")
    if sys.argv[1:] == ["--check"]:
        in_step = target.exists() and target.read_text(encoding="utf-8") == text
        sys.exit(None if in_step else "README.md is not in step with nbs/index.ipynb: run python .ci/readme.py")
    target.write_text(text, encoding="utf-8")
