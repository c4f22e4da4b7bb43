"""Player, picker and game, driven without a front end; their drawings are well-formed and show what they should."""

import re
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, strategies as st
from IPython.core.formatters import DisplayFormatter

from locrl.data.boxes import ACTIONS, Moves, iou
from locrl.figures import COLOURS, Episode
from locrl.apps.widgets import EpisodeState, Game, Picker, curve_svg, game, picker, player

TRUTH = np.array([[0.2, 0.3, 0.6, 0.8], [0.7, 0.1, 0.9, 0.4]])
WORDS = ("smaller", "left", "fine_smaller", "trigger")


def episode(words=WORDS, name="cat", **changed):
    "A search by the actions called `words`"
    boxes = [np.float32([0, 0, 1, 1])]
    actions = [ACTIONS.index(w) for w in words]
    for a in actions:
        boxes.append(Moves().apply(boxes[-1], a))
    rng, boxes = np.random.default_rng(0), np.stack(boxes)
    q = rng.normal(size=(len(actions), 10))
    values = dict(
        ious=iou(boxes[:, None], TRUTH).max(1),
        q_values=q,
        saliency=rng.random((16, 16)),
        truth=TRUTH,
        triggered=words[-1:] == ("trigger",),
        confidence=0.5,
    )
    return Episode(rng.random((60, 90, 3)), name, boxes, np.array(actions, int), **values | changed)


def shapes(svg, tag):
    "The elements called `tag` of an SVG text"
    return list(ElementTree.fromstring(svg).iter(f"{{http://www.w3.org/2000/svg}}{tag}"))


def words(svg):
    return ["".join(t.itertext()) for t in shapes(svg, "text")]


def boxes(svg, colour):
    "Boxes of a colour, in pixels: x1, y1, x2, y2"
    found = [
        [float(r.get(k)) for k in ("x", "y", "width", "height")]
        for r in shapes(svg, "rect")
        if r.get("stroke") == colour
    ]
    return [[x, y, x + w, y + h] for x, y, w, h in found]


@pytest.mark.parametrize("step", range(5))
def test_a_step_shows_its_boxes_and_values(step):
    e = episode()
    state = EpisodeState(e, step, width=300)
    svg = state.svg()
    size = np.array([300, 200, 300, 200])
    assert state.size == (300, 200) and len(shapes(svg, "image")) == 1
    np.testing.assert_allclose(boxes(svg, COLOURS["agent"]), e.boxes[[*range(step), step]] * size, atol=0.11)
    np.testing.assert_allclose(boxes(svg, COLOURS["truth"]), TRUTH * size, atol=0.11)
    assert f"IoU {e.ious[step]:.2f}" in words(svg)
    bars = [r for r in shapes(svg, "rect") if r.get("stroke") is None]
    assert len(bars) == (0 if step == 4 else 10)
    if step < 4:
        assert [r.get("fill") for r in bars].index(COLOURS["agent"]) == e.actions[step]
        lengths = np.array([float(r.get("width")) for r in bars])
        q = np.abs(e.q_values[step])
        np.testing.assert_allclose(lengths / lengths.max(), q / q.max(), atol=0.01)


def test_what_an_episode_lacks_is_left_out():
    svg = EpisodeState(episode(ious=None, q_values=None, saliency=None, truth=None), saliency=True).svg()
    assert not shapes(svg, "polyline") and len(shapes(svg, "image")) == 1 and not boxes(svg, COLOURS["truth"])
    still = Episode(
        np.zeros((4, 4, 3)),
        "<b>&",
        np.array([[0, 0, 1, 1.0]]),
        np.zeros(0, int),
        q_values=np.zeros((0, 10)),
        ious=np.zeros(1),
    )
    assert words(EpisodeState(still).svg())[0] == "<b>&, start, not triggered"
    zero = EpisodeState(episode(q_values=np.zeros((4, 10)))).svg()
    assert "nan" not in zero and len(shapes(zero, "rect")) > 10


@given(st.integers(-100, 100))
def test_steps_stay_within_the_episode(step):
    state = EpisodeState(episode())
    assert state.go(step) == state.step == (min(step, 4) if step >= 0 else max(step + 5, 0))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_curves_stay_within_their_panel(values):
    points = re.search(r'points="(.*?)"', curve_svg({"a": ("red", values)}, 0, len(values), 200, 240))[1]
    x, y = np.array([p.split(",") for p in points.split()], float).T
    assert len(x) == len(values) and x.min() >= 0 and x.max() <= 200 and y.min() >= 0 and y.max() <= 240
    np.testing.assert_allclose(1 - y / 222, values, atol=0.001)


def test_player():
    seen = player(episode(), step=1)
    assert seen.step.value == 1 and "1: smaller" in seen.frame.value
    seen.play.value = 3
    assert (seen.step.value, seen.state.step) == (3, 3) and "3: fine smaller" in seen.frame.value
    plain = seen.frame.value
    seen.saliency.value = True
    assert len(shapes(seen.frame.value, "image")) == 2 and len(shapes(plain, "image")) == 1
    seen.show(episode(("left",) * 7, "dog"))
    assert (seen.step.max, seen.step.value, seen.play.max, seen.state.step) == (
        7,
        0,
        7,
        0,
    ) and "dog, start" in seen.frame.value
    seen.step.value = 7
    assert "not triggered" in seen.frame.value
    seen.show(episode(("trigger",), saliency=None))
    assert (seen.step.value, seen.step.max, seen.saliency.disabled) == (0, 1, True)
    seen.show(episode(()))
    seen.step.value = 1
    assert seen.state.step == 0


def test_shown_live_and_as_a_picture():
    "A front end gets both; one without widgets takes the film strip"
    for view in (player(episode()), game(episode()), picker(lambda i, name: episode(), ["a"], ["cat"])):
        data, _ = DisplayFormatter().format(view)
        assert set(data) >= {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
        assert data["image/png"].startswith("iVBOR") and data["text/plain"] == repr(view)


def test_without_ipywidgets(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    for view in (player(episode()), game(episode()), picker(lambda i, name: episode(), ["a"], ["cat"])):
        assert view.widget is None and set(view._repr_mimebundle_()) == {"image/png", "text/plain"}
    view = player(episode())
    view.show(episode(name="dog"))
    assert view.state.episode.class_name == "dog"


def test_picker():
    asked = []

    def search(image, name):
        asked.append((image, name))
        if name == "<zebra>":
            raise ValueError("unknown class '<zebra>'")
        return episode(WORDS[image:], name)

    view = picker(search, ["first", "second"], ["cat", "dog"])
    assert asked == [(0, "cat")] and "cat, start" in view.player.frame.value
    view.class_name.value = "dog"
    view.image.value = 1
    assert asked[1:] == [(0, "dog"), (1, "dog")] and view.player.step.max == 3
    view.class_name.value = "<zebra>"
    assert view.words.value == "unknown class &#x27;&lt;zebra&gt;&#x27;" and view.state.episode.class_name == "dog"
    view.class_name.value = "dog"
    assert view.words.value == "" and len(asked) == 4
    with pytest.raises(ValueError, match="at least one"):
        Picker(search, [], ["cat"])
    with pytest.raises(ValueError, match="no class can be looked for in first: unknown class"):
        picker(search, ["first"], ["<zebra>"])
    assert picker(search, ["first"], ["<zebra>", "dog"]).class_name.value == "dog"  # begins with what has an answer


def test_a_game_by_buttons():
    view = game(episode())
    assert not boxes(view.frame.value, COLOURS["truth"]) and "IoU" not in view.frame.value  # nothing is given away
    for name in ("smaller", "fatter"):
        view.buttons[name].click()
    np.testing.assert_allclose(view.state.boxes[-1], Moves().apply(Moves().apply(np.float32([0, 0, 1, 1]), 5), 6))
    assert "2 of 40 steps" in view.words.value and not view.state.over
    view.buttons["trigger"].click()
    assert view.state.over and all(b.disabled for b in view.buttons.values())
    assert len(boxes(view.frame.value, COLOURS["truth"])) == 4 and len(shapes(view.frame.value, "polyline")) == 2
    (mine, n), (its, m) = view.state.score().values()
    assert (
        (n, m) == (3, 4)
        and mine == pytest.approx(iou(view.state.boxes[-1], TRUTH).max())
        and "you took fewer steps" in view.words.value
    )
    view.state.press("left")
    assert len(view.state.actions) == 3
    view.again.click()
    assert not view.state.actions and not view.buttons["left"].disabled and "0 of 40" in view.words.value


@pytest.mark.parametrize(
    "mine, verdict",
    [
        (WORDS, "the boxes are equally good, both took as many steps"),
        (("trigger",), "the agent has the better box, you took fewer steps"),
        (
            ("smaller", "left", "fatter", "fine_smaller", "trigger"),
            "you have the better box, the agent took fewer steps",
        ),
    ],
)
def test_verdict(mine, verdict):
    played = Game(episode())
    for action in mine:
        played.press(action)
    better = iou(played.boxes[-1], TRUTH).max() - played.agent.ious[-1]
    assert played.words.endswith(verdict), better


def test_limits_of_a_game():
    played = Game(episode(), Moves(n_actions=9), max_steps=2)
    with pytest.raises(ValueError, match="no action called 'fine_smaller'"):
        played.press("fine_smaller")
    with pytest.raises(ValueError, match="0 to 8"):
        played.press(9)
    for _ in range(5):
        played.press(0)
    assert played.over and len(played.actions) == 2 and not played.mine.triggered
    for truth in (None, np.zeros((0, 4))):
        with pytest.raises(ValueError, match="nobody knows where the cat is"):
            Game(episode(truth=truth))
