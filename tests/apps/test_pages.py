"""The folder of an evaluation: a page that stands alone, says all, and names no folder of the machine.

Its CSV and JSON can be read back."""

import base64
import csv
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from locrl import files
from locrl.apps import pages
from locrl.experiments.diagnose import diagnose
from locrl.apps.pages import (
    without_folders,
    class_records,
    class_table,
    diagnosis_parts,
    diagnosis_records,
    evaluation_parts,
    evaluation_details,
    write_folder,
)
from locrl.figures import table
from locrl.experiments.results import evaluate_runs
from locrl.experiments.transfer import transfer

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    "Sections, pictures, links and text of a page; fails on a tag left open, or where something is fetched or run"

    def __init__(self, file):
        super().__init__()
        self.open = []
        self.ids = []
        self.headings = []
        self.images = []
        self.links = []
        self.text = ""
        self.feed(file.read_text(encoding="utf-8"))
        assert not self.open
        assert len(set(self.ids)) == len(self.ids)
        for link in self.links:
            assert link[0] == "#" and link[1:] in self.ids

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        assert tag not in ("script", "link", "iframe", "object") and not any(k.startswith("on") for k in a)
        if "id" in a:
            self.ids.append(a["id"])
        if tag == "a":
            self.links.append(a["href"])
        if tag == "img":
            assert a["alt"]
            kind, code = a["src"].split(",")
            assert kind == "data:image/png;base64"
            self.images.append(base64.b64decode(code))
            Image.open(io.BytesIO(self.images[-1])).verify()
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        if "style" not in self.open:
            self.text += data


def line(title=""):
    "A small figure"
    figure = matplotlib.figure.Figure(figsize=(2, 1))
    figure.subplots().set_title(title)
    return figure


def test_sections_in_order_and_files_beside(tmp_path):
    parts = {
        "One": "some words",
        "Two words!": [line(), "between", line(), table([dict(a=1)])],
        "Three": table([dict(method="agent", mAP=(0.5, 0.4, 0.6))]),
        "Four": line(),
    }
    made = write_folder(tmp_path / "new" / "folder", "Title", parts, dict(a=1), [dict(x=1)], "locrl evaluate")
    page = Page(made)
    assert page.headings == list(parts) and page.ids == ["one", "two-words", "three", "four"] and len(page.images) == 3
    assert {f.name for f in made.parent.iterdir()} == {
        "index.html",
        "results.json",
        "results.csv",
        "two-words.png",
        "two-words-2.png",
        "two-words.csv",
        "three.csv",
        "four.png",
    }
    assert (made.parent / "four.png").read_bytes() == page.images[2]
    for file in made.parent.iterdir():
        if file != made:
            assert file.name in page.text
    numbers = json.loads((made.parent / "results.json").read_text())
    assert (
        numbers["command"] == "locrl evaluate"
        and set(numbers["versions"]) >= {"locrl", "torch"}
        and f"locrl {numbers['versions']['locrl']}" in page.text
    )


def test_all_text_is_escaped(tmp_path):
    bad = '<script>alert("1")</script> & <b>'
    page = Page(write_folder(tmp_path, bad, {bad: [bad, line(), table([{bad: bad}])]}, {bad: bad}, [{bad: bad}], bad))
    assert (
        page.text.count(bad) == 7
    )  # title twice, heading, paragraph, head and cell of the table, command; a tag would have failed
    assert json.loads((tmp_path / "results.json").read_text())[bad] == bad


def test_headings_that_make_one_name(tmp_path):
    parts = {
        "A b": line("1"),
        "a-b": line("2"),
        "Results": table([dict(x=1)]),
        "Index": table([dict(x=2)]),
        "é!": line("3"),
        "?": line("4"),
    }
    page = Page(write_folder(tmp_path, "names", parts, {}, [dict(y=3)]))
    assert page.headings == list(parts) and page.ids == ["a-b", "a-b-2", "results-2", "index", "part", "part-2"]
    assert (tmp_path / "results.csv").read_text() == "y\n3\n" and (tmp_path / "results-2.csv").read_text() == "x\n1\n"
    assert len({(tmp_path / f"{n}.png").read_bytes() for n in ("a-b", "a-b-2", "part", "part-2")}) == 4


def test_missing_is_a_dash_an_empty_cell_and_null(tmp_path):
    t = table(
        [
            dict(method="a", mAP=(0.5, 0.4, 0.6), hit=0.25),
            dict(method="b", mAP=None, hit=float("nan")),
            dict(method="c", mAP=0.125),
        ]
    )
    page = Page(
        write_folder(
            tmp_path,
            "t",
            {"T": t},
            dict(x=np.float64("nan"), y=np.arange(2), z=[float("inf"), np.int64(3), np.bool_(True), None]),
        )
    )
    assert page.text.count("–") == 3 and "nan" not in page.text
    frame = pd.read_csv(tmp_path / "t.csv")
    assert list(frame) == ["method", "mAP", "mAP low", "mAP high", "hit"]
    np.testing.assert_array_equal(
        frame.drop(columns="method").to_numpy(), [[0.5, 0.4, 0.6, 0.25], [np.nan] * 4, [0.125, np.nan, np.nan, np.nan]]
    )
    numbers = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert (numbers["x"], numbers["y"], numbers["z"]) == (None, [0, 1], [None, 3, True, None])


@given(
    st.lists(
        st.fixed_dictionaries(
            {"id": st.integers()},
            optional={
                "a": st.text(),
                "b": st.integers() | st.none(),
                "c": st.floats(-1, 1),
                "d": st.tuples(*[st.floats(-1, 1)] * 3),
            },
        ),
        min_size=1,
    )
)
def test_csv_reads_back(rows):
    read = list(csv.DictReader(io.StringIO(pages._csv(rows), newline="")))
    assert len(read) == len(rows)
    for row, got in zip(rows, read):
        for k, v in row.items():
            if isinstance(v, float):
                assert float(got[k]) == v
            if k == "a":
                assert got[k] == v.replace("\0", "\ufffd")
            if k == "d":
                assert [float(got[n]) for n in ("d", "d low", "d high")] == list(v)


def test_no_folder_of_the_machine(tmp_path, monkeypatch):
    home, cache, voc, here = (tmp_path / n for n in ("home/user", "cache", "voc", "here"))
    for folder in (home, cache, voc, here):
        folder.mkdir(parents=True)
    for name, folder in (("HOME", home), ("USERPROFILE", home), ("LOCRL_CACHE", cache), ("LOCRL_DATA", voc)):
        monkeypatch.setenv(name, str(folder))
    monkeypatch.chdir(here)
    said = f"locrl x {cache}/runs/demo/seed-0 {here}/runs/b --root {home}/c --data={voc}/VOC2007"
    said += f" {tmp_path}/else/where/a/b/c"
    plain = "locrl x $LOCRL_CACHE/runs/demo/seed-0 runs/b --root ~/c --data=$LOCRL_DATA/VOC2007 …/a/b/c"
    assert without_folders(said) == plain
    parts = {f"In {here}": [said, table([{f"{cache}/a": said, "path": cache / "x"}], emphasise=said)]}
    write_folder(here / "page", said, parts, {said: dict(file=cache / "x", more=[said])}, [{"file": cache / "x"}], said)
    for file in (here / "page").iterdir():
        assert str(tmp_path) not in file.read_text(encoding="utf-8"), file.name


@pytest.mark.parametrize(
    "text",
    [
        "and/or",
        "1/2 of 3 / 4",
        "a </b> c",
        "voc2007:test",
        "runs/a/b",
        "../runs/a",
        "~/runs/a",
        "$LOCRL_CACHE/runs/a",
        "…/a/b",
        "https://host.org/a/b",
        "/",
        "",
    ],
)
def test_what_is_no_path_of_the_machine_stays(text):
    assert without_folders(text) == text


@given(st.text("/ab. -=$~…", max_size=30))
def test_private_once_is_enough(text):
    assert without_folders(without_folders(text)) == without_folders(text)


def test_an_existing_folder_keeps_what_is_not_written(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    write_folder(tmp_path, "first", {"A": line(), "B": "b"}, {})
    old = (tmp_path / "a.png").read_bytes()
    write_folder(tmp_path, "second", {"A": line("other")}, {})
    assert "second" in (tmp_path / "index.html").read_text() and (tmp_path / "a.png").read_bytes() != old
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_no_room_leaves_the_old_page_whole(tmp_path, monkeypatch):
    write_folder(tmp_path, "first", {"A": line()}, {})
    before, replace = {f: f.read_bytes() for f in tmp_path.iterdir()}, files.os.replace

    def full(a, b):
        if Path(b).name == "index.html":
            raise OSError(28, "No space left on device")
        replace(a, b)

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_folder(tmp_path, "second", {"A": line()}, {})
    assert {f: f.read_bytes() for f in tmp_path.iterdir()}.keys() == before.keys()
    assert (tmp_path / "index.html").read_bytes() == before[tmp_path / "index.html"]


def test_classes_by_hand():
    mode = dict(ap11=dict(cat=dict(mean=0.5, low=0.4, high=0.6)), map11=dict(mean=0.5, low=0.4, high=0.6))
    result = dict(
        data=dict(classes=["cat", "dog"]),
        metrics=dict(aggregate=dict(one_shot=mode, aar=dict(ap11=dict(cat=dict(mean=0.7)), map11=dict(mean=0.7)))),
    )
    assert str(class_table(result)).splitlines()[2:] == [
        "| cat | 0.500 [0.400, 0.600] | 0.700 |",
        "| dog | – | – |",
        "| **mean** | **0.500 [0.400, 0.600]** | **0.700** |",
    ]


def test_page_of_an_evaluation(tiny_world, tiny_runs, tmp_path):
    world, runs = tiny_world, tiny_runs
    result = evaluate_runs(runs, world=world, multi=True)
    details = evaluation_details(runs, world=world)
    page = Page(
        write_folder(
            tmp_path,
            "tiny",
            evaluation_parts(result, details),
            result,
            class_records(result),
            f"locrl evaluate {runs[0]}",
        )
    )
    assert page.headings == [
        "Setting",
        "Results",
        "Average precision by class",
        "Confidence",
        "Precision and recall",
        "Mistakes",
        "Calibration",
    ]
    for words in (
        "planning oracle",
        "agent (2 seeds)",
        "all attended regions",
        "30 pictures of scenes:test:30",
        "95 % intervals over seeds",
        "the middle one of 2",
        "never proposed",
    ):
        assert words in page.text
    middle = sorted((m["one_shot"]["map11"], m["seed"]) for m in result["metrics"]["seeds"])[0][1]
    assert f"Of seed {middle}," in page.text and len(page.images) == 3
    for file in tmp_path.glob("*.[cjh]*"):
        assert str(runs[0].parent.parent) not in file.read_text(encoding="utf-8")
    frame = pd.read_csv(tmp_path / "average-precision-by-class.csv", index_col="class")
    assert frame.loc["mean", "TR"] == pytest.approx(result["metrics"]["aggregate"]["tr"]["map11"]["mean"], abs=1e-12)
    assert (frame["AAR low"] <= frame["AAR high"]).all()


def test_page_of_a_transfer_to_a_class_that_is_not_there(tiny_runs, tmp_path):
    result = transfer(tiny_runs[:1], ["horse"], "scenes:test:30", fit_on="scenes:train:40", with_baselines=False)
    page = Page(write_folder(tmp_path, "elsewhere", evaluation_parts(result), result, class_records(result)))
    assert (
        page.headings == ["Setting", "Results", "Average precision by class"]
        and "New to it: horse" in page.text
        and "no interval" in page.text
    )


def test_page_of_a_diagnosis(tiny_world, tiny_runs, tmp_path):
    world, runs = tiny_world, tiny_runs
    d = diagnose(runs, world=world, resamples=20)
    page = Page(
        write_folder(
            tmp_path, f"{d.name} on {d.data}", diagnosis_parts(d), d.to_dict(), diagnosis_records(d), "locrl diagnose"
        )
    )
    assert (
        page.headings == ["Verdict", "Where the mAP is lost", "What each step scores", "By class", "Signs", "Evidence"]
        and len(page.images) == 2
    )
    for sentence in d.verdict:
        assert sentence in page.text
    frame = pd.read_csv(tmp_path / "results.csv")
    for of, rows in frame.groupby("of"):
        assert rows["loss"].sum() == pytest.approx(1 - d.steps[-1].level[of]["mean"])
