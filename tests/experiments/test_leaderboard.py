"""The leaderboard and the notebooks of the iterations: rows from committed results, pages in step with the files."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from scipy import stats

from locrl.experiments.config import ConfigError
from locrl.experiments.iterations import ITERATIONS, find_config
from locrl.experiments.leaderboard import CITED, METRICS, Leaderboard, iterations_figure, learning_figure, moved

RESULTS, PAGES = ROOT / "results/animals-5", ROOT / "nbs/iterations"


@pytest.fixture(scope="module")
def board():
    return Leaderboard(RESULTS)


def made_up(folder: Path, name: str, seeds: list[dict], encoder: str = "efficientnet_lite0", learned: str = "") -> None:
    "A results file with these metrics; what was learned is the iteration's own unless it is named"
    for seed in seeds:
        seed.setdefault("one_shot", {}).setdefault("confidence", "iou")
    result = dict(
        seeds=list(range(len(seeds))),
        config=dict(encoder=encoder, learned=learned or name),
        data=dict(train="a", report="b"),
        budget=dict(minutes=[1.0] * len(seeds)),
        metrics=dict(seeds=seeds),
    )
    (folder / f"{name}-{encoder}.json").write_text(json.dumps(result))


def by_hand(file: Path, path: str) -> list:
    "A metric of every seed that has it, read without the package"
    found = []
    for metrics in json.loads(file.read_text())["metrics"]["seeds"]:
        if path.startswith("confidence."):
            metrics, path_here = (
                metrics["confidence"],
                [path.removeprefix("confidence.").removesuffix(".map11"), "map11"],
            )
        else:
            path_here = path.split(".")
        for part in path_here:
            metrics = (metrics or {}).get(part)
        if metrics is not None:
            found.append(metrics)
    return found


def test_rows_are_the_committed_numbers(board):
    "Every number of every row is the one in the results file, and every file has a row"
    rows = {r["iteration"]: r for r in board.rows()}
    files = {f.name.removesuffix("-efficientnet_lite0.json"): f for f in RESULTS.glob("*-efficientnet_lite0.json")}
    assert set(rows) == set(files)
    assert list(rows) == [name for name in ITERATIONS if name in rows]
    for name, file in files.items():
        for title, path in METRICS.items():
            assert rows[name].get(title, []) == by_hand(file, path), (name, title)
        mean = np.mean(by_hand(file, METRICS["hit rate"]))
        assert f"**{mean:.3f}" in str(board.table([name], cited=False))


def test_absent_stays_absent(tmp_path):
    "A metric that was not measured is a dash in the table, never zero; one measured for some seeds is of those"
    made_up(tmp_path, "v6", [dict(hit_rate=0.5), dict(hit_rate=0.6)])
    made_up(tmp_path, "v7", [dict(hit_rate=0.7, mean_trigger_iou=None), dict(hit_rate=0.8, mean_trigger_iou=0.62)])
    board = Leaderboard(tmp_path)
    v6, v7 = board.rows()
    assert "mean trigger IoU" not in v6 and "rho" not in v6 and v7["mean trigger IoU"] == [0.62]
    line = next(line for line in str(board.table()).splitlines() if line.startswith("| **v6**"))
    assert "–" in line and "nan" not in line
    assert "rho" not in str(board.table(cited=False)) and "0.000" not in str(board.table(cited=False))
    assert moved(board["v7"], board["v6"], "mean_trigger_iou") is None
    assert board.compare("v7").verdict.passed is None
    assert "mean trigger IoU" in str(board.compare("v7").moves) and "rho" not in str(board.compare("v7").moves)


def test_rankings_are_not_mixed(tmp_path):
    "No difference between mAPs that two sources ranked; what does not hang on the ranking is compared"
    made_up(tmp_path, "v6", [dict(hit_rate=x, one_shot=dict(map11=x, confidence="presence*iou")) for x in (0.4, 0.5)])
    made_up(tmp_path, "v7", [dict(hit_rate=x, one_shot=dict(map11=x, confidence="region*iou")) for x in (0.5, 0.7)])
    ranked, hits = (
        next(r for r in Leaderboard(tmp_path).compare("v7").moves.rows if r["metric"] == m)
        for m in ("one-shot mAP", "hit rate")
    )
    assert ranked["difference"] is None and hits["difference"][0] == pytest.approx(0.15)


def test_cited_rows_are_apart(board):
    "Cited rows are named so, in plain type, below ours; each has a source; none is a row of `rows`"
    lines = str(board.table()).splitlines()[2:]
    cited = [line.startswith("| cited: ") for line in lines]
    assert cited == sorted(cited) and all(c or line.startswith("| **") for c, line in zip(cited, lines))
    assert sum(cited) == sum(c.iteration in board.results for c in CITED) and all(c.source and c.encoder for c in CITED)
    assert not any("cited" in row["iteration"] for row in board.rows())
    assert "cited" not in str(board.table(cited=False))


def test_difference_is_welchs(tmp_path):
    "Against the formula of Welch and Satterthwaite; of the same agents, that of the paired test"
    old, new = [0.31, 0.35, 0.30], [0.40, 0.39, 0.46]
    made_up(tmp_path, "v6", [dict(hit_rate=x) for x in old])
    made_up(tmp_path, "v7", [dict(hit_rate=x) for x in new])
    board = Leaderboard(tmp_path)
    a, b = (np.var(x, ddof=1) / len(x) for x in (old, new))
    half = stats.t.ppf(0.975, (a + b) ** 2 / (a**2 / 2 + b**2 / 2)) * (a + b) ** 0.5
    gap = np.mean(new) - np.mean(old)
    np.testing.assert_allclose(moved(board["v7"], board["v6"], "hit_rate"), [gap, gap - half, gap + half])
    made_up(tmp_path, "v7", [dict(hit_rate=x) for x in new], learned="v6")
    paired = stats.ttest_rel(new, old).confidence_interval()
    np.testing.assert_allclose(moved(Leaderboard(tmp_path)["v7"], board["v6"], "hit_rate"), [gap, *paired])


def test_only_what_is_asked_for(tmp_path):
    "Other splits, encoders and files do not mix in; an empty folder is told"
    with pytest.raises(ConfigError, match="no results of efficientnet_lite0"):
        Leaderboard(tmp_path)
    made_up(tmp_path, "v7", [dict(hit_rate=0.5)])
    made_up(tmp_path, "v10", [dict(hit_rate=0.5)], "ViT-L-14")
    (tmp_path / "v7-efficientnet_lite0-diagnosis.json").write_text("{}")
    assert list(Leaderboard(tmp_path).results) == ["v7"]
    assert list(Leaderboard(tmp_path, encoder="ViT-L-14").results) == ["v10"]
    with pytest.raises(ConfigError, match="on select"):
        Leaderboard(tmp_path, "select")


def test_figures(board):
    "One dot for each seed, one curve for each log"
    name = list(board.results)[-1]
    figure = iterations_figure(board, ("hit rate",), [name])
    assert sum(len(line.get_xdata()) for line in figure.axes[0].lines if line.get_marker() == ".") == len(
        board[name]["seeds"]
    )
    logs = board.logs(name)
    figure = learning_figure(board, [name], ["hit_rate"])
    drawn = [list(line.get_ydata()) for line in figure.axes[0].lines]
    assert drawn == [[row["hit_rate"] for row in rows] for rows in logs.values()] and len(drawn) == len(
        board[name]["seeds"]
    )


ON_VAL = ("v17", "v18", "v19")  # judged on VOC2012 val; VOC2007 test is reported once, for the last of them


def board_of(name):
    "The results that an iteration's page shows"
    board = Leaderboard(RESULTS, "select" if name in ON_VAL else "report")
    if name == "v11":  # compared with the v10 of its time, which had its reward and margin
        board.results["v10"] = Leaderboard(RESULTS / "jump").results["v10"]
    return board


def page_of(name: str) -> Path | None:
    "The notebook of an iteration"
    return next(PAGES.glob(f"[0-9][0-9]_{name.replace('.', '_')}.ipynb"), None)


def saved(page: Path) -> str:
    "What the cells of a notebook showed, as one text"
    outputs = [o for cell in json.loads(page.read_text())["cells"] for o in cell.get("outputs", ())]
    return "\n".join("".join(o.get("text", "")) + "".join(o.get("data", {}).get("text/html", "")) for o in outputs)


def test_every_iteration_has_a_page_in_order():
    "Numbered as the iterations are"
    pages = [page_of(name) for name in ITERATIONS]
    assert None not in pages, [n for n, p in zip(ITERATIONS, pages) if p is None]
    assert [p.name[:2] for p in pages] == [f"{k:02}" for k in range(1, len(pages) + 1)]


@pytest.mark.parametrize("name", ITERATIONS)
def test_page_is_in_step(name):
    "The numbers saved in an iteration's notebook are those of the results files; its flag is down"
    page, board = page_of(name), board_of(name)
    shown, source = saved(page), "\n".join("".join(cell["source"]) for cell in json.loads(page.read_text())["cells"])
    comparison, before = board.compare(name), ITERATIONS[name].after
    assert str(comparison.verdict) in shown
    assert comparison.changes._repr_html_() in shown
    assert board.table([before, name] if before else [name])._repr_html_() in shown
    if before:
        assert comparison.moves._repr_html_() in shown
    assert re.search(r"^FROM_SCRATCH = False\b", source, re.M) and f"locrl iterate {name} --seeds 3" in source


@pytest.mark.parametrize("name", ITERATIONS)
def test_from_scratch_measures_the_same(name, tmp_path):
    "With its flag up, a page runs the iterations it shows, ranked and searched as in the committed results"
    asked, board = {}, board_of(name)

    def iterate(name, out, root, confidence=None, multi=True, split="report"):
        asked[name] = (confidence or find_config(f"animals-5/{name}").final_confidence, multi)

    cell = next(
        source
        for cell in json.loads(page_of(name).read_text())["cells"]
        if "if FROM_SCRATCH" in (source := "".join(cell["source"]))
    )
    exec(
        cell,
        dict(
            FROM_SCRATCH=True,
            iterate=iterate,
            save_expectations=lambda *a, **k: None,
            cache_root=lambda: tmp_path,
            Path=Path,
            Leaderboard=lambda folder, split="report": board,
        ),
    )
    assert {ITERATIONS[name].after, name} - {None} <= asked.keys()
    for one, how in asked.items():
        committed = board[one]["metrics"]["seeds"][0]
        assert how == (committed["one_shot"]["confidence"], "tr" in committed), one


def test_leaderboard_page_is_in_step(board):
    "The saved table is the one that the files give, and every page is linked"
    page = PAGES / "00_leaderboard.ipynb"
    shown, source = saved(page), page.read_text()
    assert board.table()._repr_html_() in shown
    for name in board.results:
        assert str(board.compare(name).verdict).replace("<", "&lt;").replace(">", "&gt;") in shown
    for name in ITERATIONS:
        assert f"]({page_of(name).name})" in source


def test_train_clip_takes_the_best_by_default(board):
    "The tutorial begins with the iteration of the highest one-shot mAP here, and offers the first author's by name"
    cells = json.loads((ROOT / "nbs" / "tutorials" / "train_clip.ipynb").read_text(encoding="utf-8"))["cells"]
    chosen = next(c for c in map("".join, (c["source"] for c in cells)) if c.startswith("iteration, seed"))
    means = {name: np.mean(values["one-shot mAP"]) for name, values in zip(board.results, board.rows())}
    assert chosen.split('"')[1] == max(means, key=means.get)
    assert re.findall(r'"(v[\d.]+)"', chosen.splitlines()[0])[1:] == ["v5", "v6", "v7", "v9.2", "v10"]


def test_a_moved_number_is_noticed(board):
    "The check above would see a changed result"
    name = list(board.results)[-1]
    other = Leaderboard(RESULTS)
    other.results[name] = json.loads(json.dumps(board[name]))
    other.results[name]["metrics"]["seeds"][0]["hit_rate"] += 0.02
    assert other.table()._repr_html_() != board.table()._repr_html_()


def test_cited_numbers_have_known_metrics():
    "Each cited number belongs to a column"
    assert {metric for c in CITED for metric in c.numbers} <= set(METRICS.values())
