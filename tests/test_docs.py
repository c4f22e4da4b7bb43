"""The documentation's pages build; links, anchors, pictures, sidebar, saved outputs and public names are in order."""

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


@pytest.mark.parametrize(
    "source, promised",
    [
        ("#| echo: false\ntable(rows)", True),
        ("rows = 1\nrows", True),
        ("a, b", True),
        ("x.shape", True),
        ("x[0]", True),
        ("x = 1", False),
        ("x;", False),
        ("show(x)", False),
        ("#| export\nx", False),
        ("#| hide\nx", False),
        ("#| eval: false\nx", False),
        ("%pip install x", False),
        ('"text"', False),
    ],
)
def test_promised_output(source, promised):
    "Cells that are there for what they show are told from those that work"
    assert docs.shows(source) is promised


def notebook(path, *cells):
    "Write a notebook of code cells, each (source, outputs)"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(cells=[dict(cell_type="code", source=s, outputs=o) for s, o in cells])))


def test_silent_cells_are_found(tmp_path):
    "A missing output, an error and a warning are named with their cell"
    result = dict(output_type="execute_result")
    notebook(tmp_path / "a.ipynb", ("x = 1", []), ("x", [result]))
    assert docs.silent(tmp_path) == []
    notebook(
        tmp_path / "sub/b.ipynb",
        ("x", []),
        ("x = 1/0", [dict(output_type="error")]),
        ("y = 1", [dict(output_type="stream", name="stderr")]),
    )
    assert docs.silent(tmp_path) == [
        "sub/b.ipynb, cell 0 (x): no output is saved",
        "sub/b.ipynb, cell 1 (x = 1/0): its output is an error",
        "sub/b.ipynb, cell 2 (y = 1): a warning is saved with it",
    ]


def test_notebooks_outside_the_sidebar_are_found(tmp_path):
    "Sections, patterns and addresses elsewhere in the sidebar are understood"
    for name in "index", "guide/a", "guide/b", "lost":
        notebook(tmp_path / f"{name}.ipynb")
    sidebar = """website: {sidebar: {contents: [
        {text: Home, href: index.ipynb},
        {section: Guide, contents: guide/*.ipynb},
        {section: More, contents: [{text: Elsewhere, href: "https://example.org/lost.ipynb"}]}]}}"""
    (tmp_path / "_quarto.yml").write_text(sidebar)
    assert docs.unreachable(tmp_path) == ["lost.ipynb: not in the sidebar of _quarto.yml"]
    (tmp_path / "_quarto.yml").write_text(
        "website: {sidebar: {contents: ['*.ipynb', 'guide/*.ipynb', gone.ipynb, 'none/*.ipynb']}}"
    )
    assert docs.unreachable(tmp_path) == [
        f"{each}: in the sidebar of _quarto.yml, but there is no such notebook"
        for each in ("gone.ipynb", "none/*.ipynb")
    ]


@pytest.fixture
def repository(tmp_path):
    "A repository, known as me/it, with one file"
    (tmp_path / "it").mkdir()
    (tmp_path / "it/pyproject.toml").write_text('[project.urls]\nRepository = "https://github.com/me/it"\n')
    return tmp_path / "it"


def test_dead_ends_are_found(tmp_path, repository):
    "Pages, anchors and pictures that are not there, once each; what is elsewhere is left alone"
    site = tmp_path / "site"
    (site / "sub").mkdir(parents=True)
    (site / "a.html").write_text(
        '<h2 id="here"></h2><a href="sub/b.html#there">b</a> <a href="#here">up</a> <img src="gone.png"> '
        '<a href="https://x.org/y">y</a>'
    )
    (site / "sub/b.html").write_text(
        '<a href="../a.html#here">a</a> <a href="../a.html#nowhere">a</a> <img src="../gone.png"> '
        '<a href="c%20d.html">c</a> <img src="data:image/png;base64,AA">'
    )
    (site / "z.html").write_text('<img src="attachment:z.png"> <a href="mailto:a@b.org">a</a>')
    assert docs.dead_ends(site, repository) == [
        "broken link to sub/b.html#there, on a.html",
        "broken link to gone.png, on a.html and 1 more",
        "broken link to a.html#nowhere, on sub/b.html",
        "broken link to sub/c d.html, on sub/b.html",
        "broken link to z.png, on z.html",
    ]


def test_links_into_the_repository_are_followed(tmp_path, repository):
    "Links to the source, badges and files of the repository are looked up in it"
    site, colab = tmp_path / "site", "https://colab.research.google.com/github"
    site.mkdir()
    links = (
        "https://github.com/me/it/blob/main/pyproject.toml#L1",
        "https://github.com/me/it/blob/main/gone.py#L3",
        f"{colab}/me/it/blob/main/pyproject.toml",
        f"{colab}/me/it/blob/main/nbs/gone.ipynb",
        "https://github.com/you/it/blob/main/y",
        "https://github.com/me/it",
    )
    (site / "a.html").write_text(" ".join(f'<a href="{link}">x</a>' for link in links))
    assert docs.dead_ends(site, repository) == [
        "broken link to gone.py of the repository, on a.html",
        "broken link to nbs/gone.ipynb of the repository, on a.html",
    ]


def test_names_without_a_place_are_found(tmp_path):
    "Public functions and classes need a heading on the page of the notebook that exports them"
    notebook(tmp_path / "nbs/00_a.ipynb", ("#| default_exp sub.a", []))
    notebook(tmp_path / "nbs/faq.ipynb", ("x = 1", []))
    for folder in "pkg/sub", "site":
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "pkg/sub/a.py").write_text(
        "def shown(): pass\ndef _private(): pass\nclass Lost: pass\nSIZE = 3\n"
        "@patch\ndef turn(self: Lost): pass\n@patch\ndef end(self: Lost): pass\n"
    )
    (tmp_path / "site/00_a.html").write_text('<h3 id="shown">shown</h3><p>Lost</p><h4>Lost.<i>turn</i></h4>')
    assert docs.undocumented(tmp_path / "nbs", tmp_path / "pkg", tmp_path / "site") == [
        f"00_a.ipynb: {each} is not on the page" for each in ("Lost", "Lost.end")
    ]
