"The paper's search for several objects"

from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from locrl.agents.predictions import CONFIDENCE, confidence_of, predict
from locrl.agents.search import WINDOWS
from locrl.data.boxes import ACTIONS, FULL, TRIGGER, Moves
from locrl.data.voc import GroundTruth
from locrl.evaluation.multi import (
    BAR,
    CORNERS,
    MarkedBank,
    Regions,
    attended_regions,
    coverage,
    cross,
    draw_crosses,
    first_cover,
    recall_curve,
    score_multi,
    show_search,
    suppress,
    terminal_regions,
)
from locrl.vision.region_pooling import FeatureBank, HalfMaps, HalfTensor, MadeIntegrals, integral_image, region_pool

SMALLER = ACTIONS.index("smaller")


# a bank and policies without an encoder


class Maps(FeatureBank):
    "Random feature maps of a few pictures"

    def __init__(self, n=3, classes=("cat", "dog"), grid=6, dim=4, seed=0):
        g = torch.Generator().manual_seed(seed)
        self.classes = classes
        self.dim = dim
        self.device = "cpu"
        self.cells = torch.randn(n, grid, grid, dim, generator=g)
        self.integral = integral_image(self.cells)
        self.saliency = torch.rand(n, len(classes), 16, 16, generator=g)
        self.presence = torch.rand(n, len(classes), generator=g)


class Scripted:
    "A policy whose action is `act(keys, bank)`; it stands in for a `SearchPolicy`"

    def __init__(self, act):
        self.act, self.keys = act, []
        self.q_net = SimpleNamespace(training=False, predict_all=self.predict_all)

    def predict_all(self, keys, bank):
        self.keys.append(keys.numpy().copy())
        action = torch.as_tensor(self.act(keys, bank)).long()
        q = torch.zeros(len(keys), len(ACTIONS))
        q[torch.arange(len(keys)), action] = 1.0
        return q, keys[:, 2:6].mean(1)


def looking(keys, bank):
    "An action that depends on what is seen, remembered and asked"
    seen = bank.pool(keys[:, 0].long(), keys[:, None, 2:6])[:, 0] @ torch.tensor([1.0, -2.0, 3.0, 0.5])
    return (seen * 7 + keys[:, 1] + keys[:, 7:].sum(1)).abs().long() % len(ACTIONS)


def ask(policy, bank=None, n=3, total=200, **kwargs):
    bank = bank or Maps()
    return attended_regions(policy, bank, np.repeat(np.arange(n), 2), np.tile([0, 1], n), total_steps=total, **kwargs)


# the cross


def test_the_bars_cover_a_third():
    assert pytest.approx(1 - np.sqrt(2 / 3)) == BAR and pytest.approx(1 / 3) == 2 * BAR - BAR**2
    upright, lying = cross(np.array([0.2, 0.1, 0.8, 0.5]))
    np.testing.assert_allclose(upright, [0.5 - 0.3 * BAR, 0.1, 0.5 + 0.3 * BAR, 0.5])
    np.testing.assert_allclose(lying, [0.2, 0.3 - 0.2 * BAR, 0.8, 0.3 + 0.2 * BAR])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4), st.integers(1, 20), st.integers(1, 20))
def test_coverage_is_the_area(corners, h, w):
    box = np.array([[min(corners[0::2]), min(corners[1::2]), max(corners[0::2]), max(corners[1::2])]])
    covered = coverage(box, h, w, reach=0)
    assert covered.mean() == pytest.approx((box[0, 2] - box[0, 0]) * (box[0, 3] - box[0, 1]) / 3, abs=1e-6)
    wide = coverage(box, h, w, reach=0.5)
    assert (covered >= -1e-6).all() and (wide <= 1 + 1e-6).all() and (wide >= covered - 1e-6).all()


def test_coverage_is_what_is_drawn():
    boxes = np.array([[0, 0, 1, 1], [0.25, 0.125, 0.75, 0.875]])
    for box, covered in zip(boxes, coverage(boxes, 8, 8, reach=0)):
        drawn = np.asarray(draw_crosses(Image.new("L", (800, 800), 255), [box])) == 0
        np.testing.assert_allclose(drawn.reshape(8, 100, 8, 100).mean((1, 3)), covered, atol=0.02)


def test_a_wide_bar_by_hand():
    """On a 3 x 3 grid the bars of the whole image are 0.55 of the middle cells wide.

    With a reach of a cell they cover them, and 0.78 of the others."""
    plain, wide = coverage(FULL[None], 3, 3, reach=0)[0], coverage(FULL[None], 3, 3, reach=1)[0]
    np.testing.assert_allclose(
        plain, [[0, 3 * BAR, 0], [3 * BAR, 1 - (1 - 3 * BAR) ** 2, 3 * BAR], [0, 3 * BAR, 0]], atol=1e-6
    )
    t = 1 - (1 - (3 * BAR + 2 - 1) / 2) ** 2
    np.testing.assert_allclose(wide, [[t, 1, t], [1, 1, 1], [t, 1, t]], atol=1e-6)


# marks


def test_marks_are_a_questions_own():
    bank = Maps()
    marked = MarkedBank(bank, np.array([1, 1, 2]), reach=0)
    box = np.array([[0.1, 0.2, 0.9, 0.7]], np.float32)
    marked.mark(np.array([1]), box)
    want = bank.cells[1] * (1 - torch.from_numpy(coverage(box, 6, 6, reach=0)))[0][..., None]
    np.testing.assert_allclose(marked.integral[1].diff(dim=0).diff(dim=1), want, atol=1e-5)
    np.testing.assert_allclose(
        marked.saliency[1], bank.saliency[1] * (1 - torch.from_numpy(coverage(box, 16, 16, reach=0))), atol=1e-6
    )

    def top(maps):
        return maps.flatten(1).sort(dim=1, descending=True).values[:, :12].mean(1)  # 5 % of 256 cells

    np.testing.assert_allclose(
        marked.presence[1], bank.presence[1] * top(marked.saliency[1]) / top(bank.saliency[1]), rtol=1e-5
    )
    assert torch.equal(marked.presence[[0, 2]], bank.presence[[1, 2]])
    for copy, original in ((0, 1), (2, 2)):
        assert torch.equal(marked.integral[copy], bank.integral[original]) and torch.equal(
            marked.saliency[copy], bank.saliency[original]
        )
    assert torch.equal(bank.integral, integral_image(bank.cells))


class Held:
    "Stands in for a store that holds these maps"

    def __init__(self, cells):
        self.cells, self.grid, self.dim = cells, cells.shape[1:3], cells.shape[3]

    def __len__(self):
        return len(self.cells)

    def take(self, name, ids):
        return self.cells[np.asarray(ids)].numpy()


def both_kinds(n=6, there=2):
    "A bank of integral images, and one of the same maps in half precision, of which `there` are in memory"
    usual, half = Maps(n), Maps(n)
    cells = usual.cells.half()
    usual.integral = integral_image(cells)
    half.maps = HalfMaps([Held(cells)], there)
    half.integral = MadeIntegrals(half.maps)
    half.saliency = HalfTensor(half.saliency.half())
    return usual, half


def test_marks_on_half_floats_need_no_copies_of_maps():
    "Two marks on one copy, one on another of the same picture, none on a third: all pool as marked integral images do"
    rng, image = np.random.default_rng(0), np.array([1, 1, 4, 0])
    usual, half = (MarkedBank(bank, image) for bank in both_kinds())
    boxes = np.array([[0.1, 0.2, 0.9, 0.7], [0.0, 0.1, 0.5, 1.0]], np.float32)
    for which, box in (([0, 1], boxes), ([0], boxes[1:]), ([], boxes[:0])):
        for bank in (usual, half):
            bank.mark(np.array(which, int), box)
    ends = np.sort(rng.uniform(-0.2, 1.2, (60, 3, 2, 2)), 2)
    ends[:, :, 1] += 0.1
    keys, regions = torch.from_numpy(rng.integers(0, 4, 60)), torch.from_numpy(ends.reshape(60, 3, 4)).float()
    torch.testing.assert_close(half.pool(keys, regions), usual.pool(keys, regions), rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(half.saliency, usual.saliency, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(half.presence, usual.presence, rtol=1e-2, atol=1e-3)
    assert not hasattr(half, "integral") and half.maps.kept.shape == (4, 6, 6) and len(half) == 4


def test_both_kinds_of_bank_give_the_same_search():
    "With marks and restarts, where the scores of actions depend on the pooled features"

    def act(keys, bank):
        seen = bank.pool(keys[:, 0].long(), keys[:, None, 2:6])[:, 0]
        return torch.where(seen[:, 0] > 0.1, TRIGGER, (10 * seen[:, 1].abs()).round().long() % 8)

    usual, half = (ask(Scripted(act), bank, total=60) for bank in both_kinds())
    np.testing.assert_array_equal(usual.box, half.box)
    assert (usual.terminal == half.terminal).all() and 0 < usual.terminal.sum() < len(usual)


def test_a_bank_of_crops_cannot_be_marked():
    class Crops(Maps):
        def pool(self, image, boxes):
            return region_pool(self.integral, image, boxes)

    with pytest.raises(ValueError, match="Crops encodes each region anew"):
        MarkedBank(Crops(), np.arange(2))


# the walk


def test_no_trigger_restarts_after_forty_steps():
    r = ask(Scripted(lambda keys, bank: torch.zeros(len(keys))))
    assert len(r) == 6 * 200 and not r.terminal.any() and len(terminal_regions(r)) == 0
    one = r[:200]
    assert one.step.tolist() == list(range(200)) and one.episode.tolist() == np.repeat(np.arange(5), 40).tolist()
    np.testing.assert_array_equal(one.box[::40], [FULL, *CORNERS])


def test_trigger_restarts_at_once_and_corners_come_in_turn():
    r = ask(Scripted(lambda keys, bank: torch.full((len(keys),), TRIGGER)), total=10)
    np.testing.assert_array_equal(r.box[:10], [FULL, *CORNERS, *CORNERS, CORNERS[0]])
    assert r.terminal.all() and r.episode[:10].tolist() == list(range(10))
    assert [tuple(c) for c in CORNERS] == [
        (0, 0, 0.75, 0.75),
        (0.25, 0, 1, 0.75),
        (0, 0.25, 0.75, 1),
        (0.25, 0.25, 1, 1),
    ]


def test_restarts_forget():
    "Trigger after three moves: step and history of the key begin anew, the total goes on"
    policy = Scripted(lambda keys, bank: torch.where(keys[:, 6] == 3, TRIGGER, SMALLER))
    r = ask(policy, total=9)
    keys = np.stack(policy.keys)[:, 0]
    assert keys[:, 6].tolist() == [0, 1, 2, 3] * 2 + [0]
    assert (keys[[0, 4, 8], 7:] == -1).all() and keys[3, 7:11].tolist() == [SMALLER] * 3 + [-1]
    assert r.terminal[:9].tolist() == [False] * 3 + [True] + [False] * 3 + [True, False] and r.step[
        :9
    ].tolist() == list(range(9))
    np.testing.assert_allclose(r.box[4:6], [CORNERS[0], Moves().apply(CORNERS[0], SMALLER)])


def test_the_mark_lies_on_what_was_triggered_on():
    shown = []

    def act(keys, bank):
        shown.append(bank.integral[0].diff(dim=0).diff(dim=1).clone())
        return torch.where(keys[:, 6] == 1, TRIGGER, SMALLER)

    bank = Maps()
    r = ask(Scripted(act), bank, total=3)
    box = r.box[1:2]
    torch.testing.assert_close(shown[1], bank.cells[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        shown[2], bank.cells[0] * (1 - torch.from_numpy(coverage(box, 6, 6)))[0][..., None], atol=1e-5, rtol=0
    )
    assert r.evidence[2] < bank.saliency[0, 0].mean()


def test_the_first_episode_is_the_one_shot_search():
    bank = Maps(20, seed=3)
    image = np.repeat(np.arange(20), 2)
    label = np.tile([0, 1], 20)
    policy = Scripted(looking)
    once, many = predict(policy, bank, image, label), attended_regions(policy, bank, image, label)
    first = many[many.episode == 0]
    last = np.flatnonzero(np.diff(first.image * 2 + first.label, append=-1))
    assert once.triggered.sum() > 0
    np.testing.assert_array_equal(first.step[last] + 1, once.steps)
    np.testing.assert_array_equal(first.terminal[last], once.triggered)
    for name in ("box", "q_trigger", "iou", "evidence", "presence"):
        np.testing.assert_allclose(
            getattr(first[last], name)[once.triggered], getattr(once, name)[once.triggered], atol=1e-6
        )


def test_order_and_batches_do_not_matter():
    bank = Maps(12, seed=4)
    image = np.repeat(np.arange(12), 2)
    label = np.tile([0, 1], 12)
    plain = attended_regions(Scripted(looking), bank, image, label, total_steps=90)
    shuffled = np.random.default_rng(0).permutation(24)
    other = attended_regions(Scripted(looking), bank, image[shuffled], label[shuffled], total_steps=90, batch=7)
    back = other[np.lexsort((other.step, other.label, other.image))]
    for f in fields(Regions):
        if f.name != "region":
            np.testing.assert_allclose(getattr(back, f.name), getattr(plain, f.name), atol=1e-6, err_msg=f.name)
    assert plain.terminal.any() and plain.episode.max() > 4


# many start windows


def test_the_windows_cover_the_picture():
    boxes = WINDOWS
    assert len(boxes) == 14 and boxes[0].tolist() == FULL.tolist() and boxes.min() == 0 and boxes.max() == 1
    np.testing.assert_allclose(np.bincount(np.round((boxes[:, 2] - boxes[:, 0]) * 4).astype(int))[2:], [9, 4, 1])
    np.testing.assert_allclose(boxes[1:5], CORNERS[[0, 1, 2, 3]])


@pytest.mark.parametrize("total", [14, 60, 200])
def test_every_window_is_an_episode_played_step_by_step(total):
    "Against one query and one window at a time, by an explicit loop"
    bank = Maps(5, seed=5)
    image = np.repeat(np.arange(5), 2)
    label = np.tile([0, 1], 5)
    r = attended_regions(Scripted(looking), bank, image, label, total_steps=total, restarts="windows", batch=3)
    policy = Scripted(looking)
    row = 0
    for i, c in zip(image, label):
        taken = 0
        for k, start in enumerate(WINDOWS):
            box, history = start.copy(), [-1] * 10
            for t in range(total // 14):
                q, believed = policy.predict_all(torch.tensor([[i, c, *box, t, *history]], dtype=torch.float32), bank)
                action = int(q.argmax())
                assert (r.image[row], r.label[row], r.episode[row], r.step[row], r.terminal[row]) == (
                    i,
                    c,
                    k,
                    taken,
                    action == TRIGGER,
                )
                np.testing.assert_allclose(r.box[row], box, atol=1e-6)
                assert r.iou[row] == pytest.approx(float(believed), abs=1e-6) and r.presence[row] == pytest.approx(
                    float(bank.presence[i, c])
                )
                box, history, row, taken = Moves().apply(box, action), [action, *history[:-1]], row + 1, taken + 1
                if action == TRIGGER:
                    break
    assert row == len(r) and r.terminal.any() and r.episode.max() == 13


def test_the_kind_of_restarts_is_named():
    bank, asked = Maps(), (np.array([0]), np.array([1]))
    assert attended_regions(Scripted(looking), bank, *asked, restarts="windows").episode.max() == 13
    assert len(attended_regions(Scripted(looking), bank, *asked, restarts="corners")) == 200
    with pytest.raises(ValueError, match="'corners', 'windows' or 'fine'"):
        attended_regions(Scripted(looking), bank, *asked, restarts="elsewhere")
    with pytest.raises(ValueError, match="not enough for 14 windows"):
        attended_regions(Scripted(looking), bank, *asked, total_steps=13, restarts="windows")


# scoring


def make(box, image=None, label=None, terminal=None, iou=None):
    n, box = len(box), np.asarray(box, np.float32).reshape(-1, 4)

    def fill(x, value):
        return np.full(n, value) if x is None else np.asarray(x)

    image, label = fill(image, 0), fill(label, 0)
    return Regions(
        image,
        label,
        box,
        fill(terminal, True),
        np.zeros(n, int),
        np.arange(n),
        np.zeros(n),
        fill(iou, 0.5),
        np.ones(n),
        np.ones(n),
    )


def test_suppression_by_hand():
    "The best drops its near copy (IoU 0.9), keeps its neighbour (IoU 0), and drops the half (IoU 0.5) above 0.3 only"
    r = make([[0, 0, 0.4, 1], [0, 0, 0.4, 0.9], [0.5, 0, 0.9, 1], [0, 0, 0.2, 1]])
    scores = np.array([0.8, 0.9, 0.5, 0.7])
    assert suppress(r, scores).tolist() == [1, 2]
    assert suppress(r, scores, 0.6).tolist() == [1, 2, 3]
    half = make([[0, 0, 1, 1], [0, 0, 0.5, 1]])  # an IoU of exactly one half
    assert suppress(half, np.array([0.9, 0.8]), 0.5).tolist() == [0, 1]
    assert suppress(half, np.array([0.9, 0.8]), 0.49).tolist() == [0]
    assert suppress(half, np.array([0.8, 0.9]), 0.49).tolist() == [1]


def slow_nms(boxes, scores, threshold):
    "One box after the other, in plain Python"
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        (a, b, c, d), clear = boxes[i], True
        for j in kept:
            e, f, g, h = boxes[j]
            overlap = max(0, min(c, g) - max(a, e)) * max(0, min(d, h) - max(b, f))
            clear &= overlap / max((c - a) * (d - b) + (g - e) * (h - f) - overlap, 1e-12) <= threshold
        if clear:
            kept.append(i)
    return kept


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 60), st.integers(1, 5), st.integers(0, 2**16), st.sampled_from([0.0, 0.3, 0.5, 0.9]), st.booleans()
)
def test_suppression_is_a_plain_loop(n, questions, seed, overlap, ties):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.6, (n, 2))
    r = make(
        np.concatenate([low, low + rng.uniform(0.05, 0.4, (n, 2))], 1),
        rng.integers(0, questions, n),
        rng.integers(0, 2, n),
    )
    scores = rng.integers(0, 4, n).astype(float) if ties else rng.normal(size=n)
    kept, want = suppress(r, scores, overlap), []
    for i in range(questions):
        for c in range(2):
            rows = np.flatnonzero((r.image == i) & (r.label == c))
            want += rows[slow_nms(r.box[rows].astype(float).tolist(), scores[rows], overlap)].tolist()
    assert kept.tolist() == sorted(want)
    assert suppress(r[kept], scores[kept], overlap).tolist() == list(range(len(kept)))  # once is enough


def test_first_cover_by_hand():
    r = make([[0, 0, 0.5, 0.5], [0, 0, 0.6, 0.5], [0.5, 0.5, 1, 1], [0, 0, 0.5, 0.5]], image=[0, 0, 0, 1])
    gt = GroundTruth(
        np.array([0, 0, 1, 2]),
        np.zeros(4, int),
        np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 0.9], [0.5, 0.5, 1, 1], [0, 0, 1, 1]], np.float32),
        np.zeros(4, bool),
        np.zeros(4, bool),
    )
    assert first_cover(r, [5, 3, 7, 1], gt).tolist() == [3, 7, np.inf, np.inf]
    assert first_cover(r[:0], [], gt).tolist() == [np.inf] * 4


class Data:
    "Two pictures: two cats in the first, a difficult cat in the second"

    classes, name = ("bird", "cat"), "two"

    def __len__(self):
        return 2

    def ground_truth(self):
        boxes = np.array([[0, 0, 0.4, 0.4], [0.6, 0.6, 1, 1], [0, 0, 1, 1]], np.float32)
        return GroundTruth(
            np.array([0, 0, 1]), np.ones(3, int), boxes, np.array([False, False, True]), np.zeros(3, bool)
        )


def test_scores_by_hand():
    box = [[0, 0, 0.4, 0.4], [0, 0, 0.41, 0.4], [0.6, 0.6, 1, 1], [0.4, 0, 0.6, 0.2], [0, 0, 1, 1]]
    r = make(box, image=[0, 0, 0, 0, 1], terminal=[True, True, False, True, True], iou=[0.9, 0.8, 0.7, 0.3, 0.95])
    result = score_multi(r, Data(), ("cat",), "iou")
    assert result.tr.recall_ceiling == 0.5 and result.aar.recall_ceiling == 1.0
    assert result.recall_before == dict(tr=0.5, aar=1.0) and result.regions_kept == dict(tr=1.5, aar=2.0)
    assert result.aar.map_area == 1.0 and result.tr.map_area == 0.5  # the difficult one counts neither way
    assert result.found == 0.5 and result.steps.tolist() == [0]
    out = result.to_dict()
    assert out["tr"]["steps_median"] == 0 and out["tr"]["at_once"] == 1 and out["aar"]["ap11"] == {"cat": 1.0}
    np.testing.assert_array_equal(recall_curve(r, Data(), ("cat",)), [0.5, 0.5, 1, 1])
    np.testing.assert_array_equal(
        recall_curve(r, Data(), ("cat",), -r.iou), [0, 0.5, 1, 1]
    )  # the miss, then the second cat, then the first


def test_nothing_triggered_scores_zero():
    result = score_multi(make([[0, 0, 0.4, 0.4]], terminal=[False]), Data(), ("cat",))
    assert (
        result.tr.map11 == 0
        and result.tr.recall_ceiling == 0
        and result.found == 0
        and "steps_median" not in result.to_dict()["tr"]
    )
    with pytest.raises(ValueError, match="no confidence called 'luck'"):
        score_multi(make([FULL]), Data(), ("cat",), "luck")


def test_every_confidence_reads_regions():
    r = replace(ask(Scripted(looking), total=20), region=np.full(120, 0.5))
    for source in CONFIDENCE:
        assert confidence_of(r, source).shape == (120,)


def test_a_search_is_drawn():
    import matplotlib

    matplotlib.use("Agg")
    r = ask(Scripted(lambda keys, bank: torch.where(keys[:, 6] == 3, TRIGGER, SMALLER)), total=20)
    figure = show_search(Image.new("RGB", (60, 40), "white"), r[:20], truth=CORNERS[:1])
    assert len(figure.axes) == 8 and figure.axes[0].get_title() == "1: triggered, 4 steps"
    with pytest.raises(ValueError, match="one query"):
        show_search(Image.new("RGB", (60, 40)), r)


@settings(max_examples=40)
@given(st.integers(0, 2**31))
def test_first_cover_of_several_classes_against_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    n, g = rng.integers(1, 30), rng.integers(1, 12)

    def boxes(k):
        side = rng.uniform(0.5, 0.9, (k, 2))
        corner = rng.uniform(0, 1 - side)
        return np.concatenate([corner, corner + side], 1).astype(np.float32)

    r = replace(make(boxes(n), image=rng.integers(0, 3, n)), label=rng.integers(0, 3, n))
    gt = GroundTruth(rng.integers(0, 3, g), rng.integers(0, 3, g), boxes(g), np.zeros(g, bool), np.zeros(g, bool))
    value = rng.permutation(n).astype(float)
    want = []
    for k in range(g):
        best = np.inf
        for j in range(n):
            if r.image[j] != gt.image[k] or r.label[j] != gt.label[k]:
                continue
            a, b = r.box[j].astype(float), gt.boxes[k].astype(float)
            w = max(0, min(a[2], b[2]) - max(a[0], b[0]))
            h = max(0, min(a[3], b[3]) - max(a[1], b[1]))
            union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
            if w * h / union >= 0.5:
                best = min(best, value[j])
        want.append(best)
    assert first_cover(r, value, gt).tolist() == want


def test_first_cover_keeps_classes_apart():
    # a region of class 1 in image 0 and one of class 0 in image 1: a code image + label would mix them up
    r = replace(make([[0, 0, 1, 1]] * 2, image=[0, 1]), label=np.array([1, 0]))
    gt = GroundTruth(
        np.array([0, 1, 0, 1]),
        np.array([0, 1, 1, 0]),
        np.tile(FULL, (4, 1)),
        np.zeros(4, bool),
        np.zeros(4, bool),
    )
    assert first_cover(r, [5, 7], gt).tolist() == [np.inf, np.inf, 5, 7]


def test_panels_that_show_nothing_are_empty():
    "Five episodes in rows of four: a panel for each, and three blank ones; every panel is 2.6 inches wide"
    import matplotlib

    matplotlib.use("Agg")
    r = ask(Scripted(lambda keys, bank: torch.where(keys[:, 6] == 3, TRIGGER, SMALLER)), total=20)
    figure = show_search(Image.new("RGB", (60, 40), "white"), r[:20])
    shown = [bool(ax.images) for ax in figure.axes]
    assert shown == [True] * 5 + [False] * 3
    assert list(figure.get_size_inches()) == pytest.approx([4 * 2.6, 2 * (2.6 * 40 / 60 + 0.3)])
