"""The documentation's pages build, and a reader stumbles nowhere: links, anchors, pictures, sidebar, saved outputs."""
import importlib.util
import json
import subprocess
import sys

import pytest

from conftest import ROOT

spec = importlib.util.spec_from_file_location("docs", ROOT / ".ci/docs.py")
docs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(docs)


@pytest.mark.skipif(importlib.util.find_spec("smalldocs") is None, reason="smalldocs needs Python 3.11")
def test_pages_build():
    "The check that .ci/docs.py makes"
    done = subprocess.run([sys.executable, ROOT / ".ci/docs.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("source, promised", [
    ("#| echo: false\ntable(rows)", True), ("rows = 1\nrows", True), ("a, b", True), ("x.shape", True), ("x[0]", True),
    ("x = 1", False), ("x;", False), ("show(x)", False), ("#| export\nx", False), ("#| hide\nx", False), ("#| eval: false\nx", False), ("%pip install x", False), ('"text"', False)])
def test_promised_output(source, promised):
    "Cells that are there for what they show are told from those that work"
    assert docs.shows(source) is promised


def notebook(path, *cells):
    "A notebook of code cells, each (source, outputs)"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(cells=[dict(cell_type="code", source=s, outputs=o) for s, o in cells])))


def test_silent_cells_are_found(tmp_path):
    "A missing output and an error are named with their cell"
    result = dict(output_type="execute_result")
    notebook(tmp_path / "a.ipynb", ("x = 1", []), ("x", [result]))
    assert docs.silent(tmp_path) == []
    notebook(tmp_path / "sub/b.ipynb", ("x", []), ("x = 1/0", [dict(output_type="error")]))
    assert docs.silent(tmp_path) == ["sub/b.ipynb, cell 0 (x): no output is saved", "sub/b.ipynb, cell 1 (x = 1/0): its output is an error"]


def test_notebooks_outside_the_sidebar_are_found(tmp_path):
    "Sections, patterns and addresses elsewhere in the sidebar are understood"
    for name in "index", "guide/a", "guide/b", "lost": notebook(tmp_path / f"{name}.ipynb")
    (tmp_path / "_quarto.yml").write_text("""website: {sidebar: {contents: [{text: Home, href: index.ipynb}, {section: Guide, contents: guide/*.ipynb},
        {section: More, contents: [{text: Elsewhere, href: "https://example.org/lost.ipynb"}]}]}}""")
    assert docs.unreachable(tmp_path) == ["lost.ipynb: not in the sidebar of _quarto.yml"]


def test_dead_ends_are_found(tmp_path):
    "Pages, anchors and pictures that are not there, once each; what is elsewhere is left alone"
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.html").write_text('<h2 id="here"></h2><a href="sub/b.html#there">b</a> <a href="#here">up</a> <img src="gone.png"> <a href="https://x.org/y">y</a>')
    (tmp_path / "sub/b.html").write_text('<a href="../a.html#here">a</a> <a href="../a.html#nowhere">a</a> <img src="../gone.png"> <a href="c%20d.html">c</a>')
    assert docs.dead_ends(tmp_path) == ["broken link to sub/b.html#there, on a.html", "broken link to gone.png, on a.html and 1 more",
                                        "broken link to a.html#nowhere, on sub/b.html", "broken link to sub/c d.html, on sub/b.html"]
