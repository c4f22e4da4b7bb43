"""The saliency report: its measures by hand, and random CLIP reads chance."""

import json
import warnings
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from locrl.data.scenes import Scenes
from locrl.evaluation.saliency_report import (
    MapScores,
    random_precision,
    ranking_precision,
    report_rows,
    saliency_report,
    score_maps,
    with_method,
)
from locrl.vision.acceptance import cells_inside
from locrl.vision.encoders import ensure_torchvision
from locrl.vision.saliency import METHODS

ensure_torchvision()
open_clip = pytest.importorskip("open_clip")

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
CLASSES = ("bird", "car", "cat", "dog", "horse", "bus", "boat", "chair")


def scenes(n=40):
    return Scenes(n, split="val", classes=CLASSES, objects=(1, 2), scale=(0.3, 0.6), distractors=0)


def random_encoder(tmp_path, seed):
    from locrl.vision.clip import OpenClipEncoder

    (tmp_path / "tiny-report.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return OpenClipEncoder("tiny-report", pretrained=None, precision="fp32", seed=seed, prompts="single")


def test_random_clip_reads_chance(tmp_path, monkeypatch):
    "Mean over three random models: no method is above chance by more than noise, in any measure"
    monkeypatch.setenv("LOCRL_CACHE", str(tmp_path))
    data, gaps = scenes(), {method: [] for method in METHODS}
    for seed in range(3):
        for s in saliency_report(data, random_encoder(tmp_path, seed)):
            gaps[s.method].append(
                (
                    s.map_auc - s.chance_auc,
                    s.pointing - s.chance_pointing,
                    s.presence_ap - s.chance_ap,
                    s.box_hit_rate - s.chance_hit_rate,
                )
            )
    for method, found in gaps.items():
        assert len(found) == 3
        assert (np.abs(np.mean(found, axis=0)) < 0.15).all(), (method, np.mean(found, axis=0))


def test_evidence_is_kept(tmp_path, monkeypatch):
    "A second report encodes nothing and says the same"
    monkeypatch.setenv("LOCRL_CACHE", str(tmp_path))
    data, encoder = scenes(6), random_encoder(tmp_path, 0)
    first = saliency_report(data, encoder, ["sclip", "clearclip"])
    monkeypatch.setattr(type(encoder), "dense", lambda *_: pytest.fail("encoded again"))
    second = saliency_report(data, encoder, ["sclip", "clearclip"])
    assert [vars(s) | {"seconds": 0} for s in first] == [vars(s) | {"seconds": 0} for s in second]


def test_methods_share_weights_and_differ(tmp_path):
    encoder = random_encoder(tmp_path, 0)
    others = [with_method(encoder, method) for method in METHODS]
    assert len({other.fingerprint for other in others}) == len(METHODS)
    assert all(other.model is encoder.model for other in others)
    assert with_method(encoder, "sclip").fingerprint == encoder.fingerprint
    assert with_method(encoder, "vanilla").name.endswith("/vanilla")
    with pytest.raises(ValueError, match="choose one of"):
        with_method(encoder, "typo")


class OneClass:
    "Pictures with given boxes of one class"

    name, classes = "made up", ("thing",)

    def __init__(self, boxes, difficult=None):
        self.boxes = boxes
        self.difficult = difficult or [[False] * len(b) for b in boxes]

    def __len__(self):
        return len(self.boxes)

    def annotation(self, i):
        from types import SimpleNamespace

        boxes = np.array(self.boxes[i], dtype=np.float32).reshape(-1, 4)
        return SimpleNamespace(
            boxes=boxes, labels=np.zeros(len(boxes), np.int64), difficult=np.array(self.difficult[i], bool)
        )


def test_measures_by_hand():
    "Two pictures with the class and one without, four cells each"
    data = OneClass([[(0, 0, 0.5, 0.5)], [(0.5, 0, 1, 1)], []])
    maps = np.array([[[0.9, 0.1], [0.2, 0.1]], [[0.8, 0.7], [0.1, 0.7]], [[0.5, 0.5], [0.5, 0.5]]])[:, None]
    s = score_maps("by hand", maps, np.array([[0.9], [0.2], [0.5]]), data)
    assert s.maps == 2
    assert s.map_auc == pytest.approx((1 + 0.5) / 2)  # second: inside .7, .7 against .8, .1
    assert s.pointing == 0.5
    assert s.presence_ap == pytest.approx((1 + 2 / 3) / 2)
    assert s.chance_ap == pytest.approx((1 + 5 / 6 + 7 / 12) / 3)  # all orders of two with and one without
    assert s.box_hit_rate == pytest.approx((1 + 1) / 2)  # second: whole picture against its half, IoU one half


def test_difficult_boxes_count_neither_way():
    data = OneClass([[(0, 0, 0.5, 1)], [(0, 0, 0.5, 1)], []], [[False], [True], []])
    maps = np.zeros((3, 1, 2, 2))
    s = score_maps("difficult", maps, np.array([[0.5], [0.9], [0.1]]), data)
    assert s.maps == 1 and s.presence_ap == 1.0 and s.chance_ap == 0.75 and np.isnan(s.chance_auc)


def test_nothing_to_compare_with():
    with pytest.raises(ValueError, match="holds none of thing"):
        score_maps("none", np.zeros((1, 1, 2, 2)), np.zeros((1, 1)), OneClass([[]]))
    with pytest.raises(ValueError, match="do not fit"):
        score_maps("none", np.zeros((2, 1, 2, 2)), np.zeros((2, 1)), OneClass([[]]))


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=12))
def test_ranking_precision_in_a_loop(pairs):
    scores, relevant = [s for s, _ in pairs], [r for _, r in pairs]
    value = ranking_precision(np.array(scores), np.array(relevant))
    if not any(relevant):
        assert np.isnan(value)
        return
    precisions = []
    for score, is_relevant in pairs:
        if is_relevant:
            above = [r for s, r in pairs if s >= score]
            precisions.append(sum(above) / len(above))
    assert value == pytest.approx(np.mean(precisions))


@pytest.mark.parametrize(("n", "relevant"), [(1, 1), (4, 1), (5, 3), (6, 6)])
def test_random_precision_over_all_orders(n, relevant):
    orders = set(permutations([True] * relevant + [False] * (n - relevant)))
    mean = np.mean([ranking_precision(-np.arange(n), np.array(order)) for order in orders])
    assert random_precision(n, relevant) == pytest.approx(mean)


def test_rows_show_chance():
    row = report_rows([MapScores("m", 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 7)])[0]
    assert row["map AUC (chance)"] == "0.900 (0.500)" and row["maps"] == 7


def test_cells_inside_counts_the_edge():
    assert cells_inside(np.array([[0.25, 0.25, 0.75, 0.75]]), (2, 2)).all()
