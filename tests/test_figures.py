"Figures, GIFs and tables: what they show, what they leave out, what they refuse"

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from locrl.data.boxes import FULL, TRIGGER, Moves
from locrl.evaluation.average_precision import Detections, evaluate_detections
from locrl.figures import (
    Episode,
    Table,
    animate,
    draw_boxes,
    episode_figure,
    filmstrip,
    pr_curves,
    table,
    training_curves,
)


def episode(steps=5, size=(120, 90), noise=False, **kw):
    "A search of `steps` actions, the last one the trigger, in a plain or a noisy picture"
    rng, moves = np.random.default_rng(0), Moves()
    actions = np.append(rng.integers(0, 8, max(steps - 1, 0)), TRIGGER)[:steps]
    boxes = [FULL]
    for a in actions:
        boxes.append(moves.apply(boxes[-1], np.array(a)))
    pixels = (
        rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        if noise
        else np.full((*size[::-1], 3), 128, dtype=np.uint8)
    )
    return Episode(Image.fromarray(pixels), "cat", boxes, actions, triggered=bool(steps), **kw)


def full_episode(steps=5, **kw):
    rng = np.random.default_rng(1)
    return episode(
        steps,
        ious=rng.random(steps + 1),
        q_values=rng.normal(size=(steps, 10)),
        saliency=rng.random((16, 16)),
        truth=[0.2, 0.2, 0.7, 0.8],
        confidence=0.9,
        **kw,
    )


def titles(figure):
    return [ax.get_title() for ax in figure.axes]


def test_importing_report_does_not_import_matplotlib():
    code = "import sys, locrl.figures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_episode_refuses_parts_that_do_not_fit():
    with pytest.raises(ValueError, match=r"actions has shape \(3,\): with 3 boxes, expected \(2\)"):
        Episode(None, "cat", [FULL] * 3, [0, 1, 2])
    with pytest.raises(ValueError, match="q_values has shape"):
        episode(5, q_values=np.zeros((6, 10)))
    with pytest.raises(ValueError, match="ious has shape"):
        episode(5, ious=np.zeros(5))
    with pytest.raises(ValueError, match="saliency has shape"):
        episode(5, saliency=np.zeros(256))
    with pytest.raises(ValueError, match="boxes is empty"):
        Episode(None, "cat", np.zeros((0, 4)), [])
    with pytest.raises(ValueError, match=r"expected \(H, W, 3\)"):
        draw_boxes(np.zeros((5, 5)))


def test_colours_and_line_styles_of_boxes():
    "Ground truth green and dashed, agent orange and solid, final box thicker"
    from matplotlib.colors import to_hex

    ax = draw_boxes(np.zeros((60, 80, 3)), [0.1, 0.1, 0.5, 0.5], truth=[[0.2, 0.2, 0.6, 0.6]])
    lines = {to_hex(p.get_edgecolor()): p for p in ax.patches}
    assert lines["#009e73"].get_linestyle() not in ("-", "solid") and lines["#e69f00"].get_linestyle() in ("-", "solid")
    assert lines["#e69f00"].get_bbox().extents == pytest.approx([8, 6, 40, 30])  # pixels of the 80 x 60 picture

    def width(thick):
        return max(p.get_linewidth() for p in draw_boxes(np.zeros((60, 80, 3)), FULL, thick=thick).patches)

    assert width(True) > width(False)


def test_filmstrip_shows_first_and_last():
    t = [x for x in titles(filmstrip(full_episode(30), n=6, columns=3)) if x]
    assert len(t) == 6 and t[0] == "start" and t[-1] == "30: trigger"
    assert [x for x in titles(filmstrip(episode(0))) if x] == ["start"]
    with pytest.raises(ValueError, match="at least 2 frames"):
        filmstrip(episode(), n=1)


def test_episode_figure_leaves_out_what_is_absent():
    assert titles(episode_figure(episode(), 2)) == ["cat, 2: " + episode().action_name(1)]
    shown = titles(episode_figure(full_episode(), 0))
    assert [x.split()[0] for x in shown if x] == ["cat,", "saliency", "Q", "IoU"]
    assert not any(
        x.startswith("Q") for x in titles(episode_figure(full_episode(), -1))
    )  # no action follows the last box
    with pytest.raises(ValueError, match="step=6: the episode has steps 0 to 5"):
        episode_figure(full_episode(), 6)


def test_paper_actions_have_nine_bars():
    e = episode(3, q_values=np.zeros((3, 9)))
    assert len(episode_figure(e, 0).axes[1].patches) == 9


def test_episode_shows_itself_as_png():
    assert full_episode()._repr_png_().startswith(b"\x89PNG")


def test_gif_has_a_frame_per_box_and_stays_under_a_megabyte(tmp_path):
    "White noise, 40 steps: the worst case for compression"
    path = animate(full_episode(40, size=(500, 375), noise=True), tmp_path / "new" / "long.gif")
    assert path.stat().st_size < 1_000_000
    with Image.open(path) as gif:
        assert gif.n_frames >= 38 and gif.info["loop"] == 0  # equal neighbours may be merged
    assert [p.name for p in path.parent.iterdir()] == ["long.gif"]


def test_gif_keeps_the_colours_of_the_boxes(tmp_path):
    path = animate(full_episode(), tmp_path / "a.gif")
    with Image.open(path) as gif:
        pixels = np.asarray(gif.convert("RGB")).reshape(-1, 3).astype(int)
    for colour in ([0, 158, 115], [230, 159, 0]):
        assert np.abs(pixels - colour).sum(1).min() < 12


def test_gif_refusals_leave_no_file(tmp_path):
    with pytest.raises(ValueError, match="ends in .gif"):
        animate(episode(), tmp_path / "a.png")
    with pytest.raises(ValueError, match="do not fit into 100 bytes"):
        animate(episode(), tmp_path / "a.gif", max_bytes=100)
    assert not list(tmp_path.iterdir())


def test_pr_curves_has_a_panel_a_class_and_says_undefined():
    gt = SimpleNamespace(image=[0, 1], label=[0, 1], boxes=np.tile(FULL, (2, 1)), difficult=[False, False])
    result = evaluate_detections(Detections([0], [0], [FULL], [1.0]), gt, ["cat", "dog", "cow"])
    assert titles(pr_curves(result)) == ["cat  1.000", "dog  0.000", "cow: undefined"]
    twenty = evaluate_detections(Detections([], [], [], []), gt, [f"class {i}" for i in range(20)])
    assert len(pr_curves(twenty).axes) == 20


def test_training_curves_takes_ragged_rows_and_several_runs():
    rows = [
        dict(step=0, loss=1.0, note="start"),
        dict(step=10, loss=0.5, hit_rate=0.2),
        dict(step=20, hit_rate=0.4, best=True),
    ]
    assert titles(training_curves(rows)) == ["loss", "hit_rate"]
    axes = training_curves({"a": rows, "b": rows[:1]}, ["hit_rate"]).axes
    assert len(axes) == 1 and len(axes[0].lines) == 1  # run b has no hit rate
    with pytest.raises(ValueError, match="no numbers called reward"):
        training_curves(rows, ["reward"])
    with pytest.raises(ValueError, match="nothing but steps"):
        training_curves([])


def test_table():
    t = table(
        [dict(method="random", map=0.1, steps=1200), dict(method="agent <b>", map=(0.4, 0.35, 0.45), rho=float("nan"))],
        emphasise="agent <b>",
    )
    assert str(t).splitlines() == [
        "| method | map | steps | rho |",
        "|---|---:|---:|---:|",
        "| random | 0.100 | 1,200 | – |",
        "| **agent <b>** | **0.400 [0.350, 0.450]** | **–** | **–** |",
    ]
    assert "agent &lt;b&gt;" in t._repr_html_() and t._repr_markdown_() == str(t)
    assert isinstance(t, Table) and table(t.rows, ["method"]).columns == ("method",)


def test_drawing_leaves_no_open_figures_and_no_changed_settings():
    import matplotlib.pyplot as plt

    before = plt.rcParams["font.size"], plt.get_fignums()
    filmstrip(episode())
    episode_figure(full_episode())
    training_curves([dict(step=0, loss=1.0)])
    assert (plt.rcParams["font.size"], plt.get_fignums()) == before
