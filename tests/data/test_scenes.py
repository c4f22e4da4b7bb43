"The composed data set: deterministic, valid, varied, and readable as VOC"

import pickle

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from locrl.data.voc import ANIMALS, VOC, VOC_CLASSES, DataError
from locrl.data.scenes import OTHER, Scenes, sprites


@pytest.fixture(scope="module")
def many():
    return Scenes(500, seed=3)


def same(a, b):
    return all(np.array_equal(getattr(a, f), getattr(b, f)) for f in ("boxes", "labels", "difficult", "truncated"))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**40), st.sampled_from(("train", "val", "test")), st.permutations(range(4)), st.booleans())
def test_an_image_depends_on_nothing_but_its_index(seed, split, order, boxes_first):
    a, b = Scenes(4, seed=seed, split=split), Scenes(9, seed=seed, split=split)
    for i in order:
        if boxes_first:
            a.annotation(i)
        assert np.array_equal(a.image(i), b.image(i))
        assert same(a.annotation(i), b.annotation(i)) and a.size(i) == b.size(i) == a.image(i).size
        assert a.ids[i] == b.ids[i]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.lists(st.sampled_from(VOC_CLASSES), min_size=1, max_size=20, unique=True),
    st.integers(32, 120),
    st.integers(0, 150),
    st.floats(0.05, 0.5),
    st.floats(0, 0.5),
    st.integers(1, 6),
)
def test_boxes_are_valid(seed, classes, smallest, more, low, span, most):
    data = Scenes(
        3, seed=seed, classes=classes, size=(smallest, smallest + more), scale=(low, low + span), objects=(1, most)
    )
    truth = data.ground_truth()
    assert (truth.boxes >= 0).all() and (truth.boxes <= 1).all() and (truth.boxes[:, 2:] > truth.boxes[:, :2]).all()
    assert ((truth.label >= 0) & (truth.label < len(classes))).all()
    assert (truth.truncated | ~truth.difficult).all()
    for i in range(3):
        assert data.image(i).mode == "RGB" and data.image(i).size == data.size(i)
        assert smallest <= min(data.size(i)) and max(data.size(i)) <= smallest + more
        assert len(data.annotation(i)) <= most


def test_what_the_pictures_hold(many):
    truth = many.ground_truth()
    counts, per_image = np.bincount(truth.label, minlength=20), np.bincount(truth.image, minlength=len(many))
    assert counts.min() > 0.5 * counts.mean() and counts.max() < 2 * counts.mean()
    assert (
        0.05 < (per_image == 0).mean() < 0.2
        and all((per_image == n).mean() > 0.1 for n in (1, 2, 3, 4))
        and per_image.max() == 4
    )
    assert 0.005 < truth.difficult.mean() < 0.15 and 0.2 < truth.truncated.mean() < 0.6
    area = np.prod(truth.boxes[:, 2:] - truth.boxes[:, :2], 1)
    assert np.quantile(area, 0.1) < 0.04 and np.quantile(area, 0.9) > 0.25
    centre = (truth.boxes[:, 2:] + truth.boxes[:, :2]) / 2
    assert (centre.std(0) > 0.15).all()
    twice = sum(len(set(many.annotation(i).labels)) < len(many.annotation(i)) for i in range(len(many)))
    assert twice > 20


def test_boxes_fit_what_is_seen():
    "An object alone in its picture is exactly what differs from the same picture without it"
    data = Scenes(40, objects=(1, 1), distractors=0, negatives=0, classes="cow")
    for i in range(40):
        ((sprite, (x, y)),) = data._layout(i)
        w, h = data.size(i)
        drawn = np.zeros((h, w), bool)
        solid = np.asarray(sprite.getchannel("A")) > 127
        for row, column in np.argwhere(solid):
            if 0 <= row + y < h and 0 <= column + x < w:
                drawn[row + y, column + x] = True
        rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
        box = columns[0] / w, rows[0] / h, (columns[-1] + 1) / w, (rows[-1] + 1) / h
        np.testing.assert_allclose(data.annotation(i).boxes, [box], atol=1e-6)
        assert data.annotation(i).truncated[0] == (drawn.sum() < 0.99 * solid.sum())


def test_classes_can_be_told_from_the_pixels(many):
    "The mean colour inside a box differs from that of its surroundings: objects are really drawn where the boxes are"
    inside, outside = [], []
    for i in range(60):
        pixels, (w, h) = np.asarray(many.image(i), float), many.size(i)
        for (x1, y1, x2, y2), hard in zip(
            (many.annotation(i).boxes * [w, h, w, h]).round().astype(int), many.annotation(i).difficult
        ):
            part = pixels[y1:y2, x1:x2]
            if not hard:
                inside.append(part.std((0, 1)).mean())
                outside.append(np.abs(part.mean((0, 1)) - pixels.mean((0, 1))).mean())
    assert np.mean(inside) > 25 and np.mean(outside) > 12


def test_splits_and_seeds_differ():
    first = [
        np.asarray(d.image(0).resize((32, 32)), float)
        for d in (Scenes(1), Scenes(1, split="val"), Scenes(1, split="test"), Scenes(1, seed=1))
    ]
    assert all(np.abs(a - b).mean() > 5 for k, a in enumerate(first) for b in first[:k])
    prints = {
        Scenes(3, **kw).fingerprint
        for kw in (
            {},
            dict(seed=1),
            dict(split="val"),
            dict(classes=ANIMALS),
            dict(scale=(0.2, 0.8)),
            dict(size=(256, 256)),
            dict(objects=(1, 2)),
            dict(negatives=0),
            dict(distractors=0),
        )
    } | {Scenes(4).fingerprint}
    assert len(prints) == 10 and Scenes(3).fingerprint in prints


SIZES = [(264, 264), (288, 281), (271, 281)]
OBJECTS = [
    ("horse", 9, 42, 206, 227),
    ("aeroplane", 186, 157, 247, 224),
    ("horse", 110, 58, 248, 247),
    ("train", 150, 62, 231, 126),
    ("sofa", 80, 127, 151, 171),
    ("sheep", 5, 40, 186, 209),
    ("person", 97, 146, 199, 268),
    ("person", 71, 161, 109, 204),
]


def test_pictures_stay_as_they_are():
    "A change that alters pictures must raise `locrl.data.scenes.VERSION`, and these numbers with it"
    data = Scenes(3, seed=11)
    assert [data.size(i) for i in range(3)] == SIZES
    found = [
        (data.classes[k], *(b * [*s, *s]).round().astype(int).tolist())
        for i in range(3)
        for s in [data.size(i)]
        for k, b in zip(data.annotation(i).labels, data.annotation(i).boxes)
    ]
    assert [f[0] for f in found] == [f[0] for f in OBJECTS]
    np.testing.assert_allclose([f[1:] for f in found], [f[1:] for f in OBJECTS], atol=2)


def test_few_classes_and_negatives():
    data = Scenes(60, classes=("dog",), negatives=0.5)
    held = len(data.having())
    assert 15 < held < 45 and set(data.ground_truth().label) == {0}
    assert not len(Scenes(20, negatives=1).ground_truth()) and len(Scenes(40, negatives=0).having()) == 40
    with pytest.raises(DataError, match="no image of Scenes train holds"):
        Scenes(3, negatives=1).having()


def test_views_and_unions(many):
    both = Scenes(5) + Scenes(5, split="val")
    assert len(both) == 10 and np.array_equal(both.image(7), Scenes(5, split="val").image(2))
    assert all(
        "cat" in [many.classes[k] for k in few.annotation(i).labels]
        for few in [many.having("cat")]
        for i in range(len(few))
    )
    copy = pickle.loads(pickle.dumps(both))
    assert copy.fingerprint == both.fingerprint and np.array_equal(copy.image(0), both.image(0))
    assert np.array_equal(Scenes(5).image(-1), Scenes(5).image(4)) and same(
        Scenes(5).annotation(-1), Scenes(5).annotation(4)
    )
    assert Scenes(5).size(np.int64(2)) == Scenes(5).size(2)
    for method in "image", "annotation", "size":
        with pytest.raises(IndexError):
            getattr(Scenes(5), method)(5)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(n=0), "at least one image"),
        (dict(split="training"), "no split 'training': there are train, val, test"),
        (dict(seed=-1), "seed=-1"),
        (dict(classes="hrose"), "did you mean 'horse'"),
        (dict(size=(10, 20)), "at least 32"),
        (dict(size=(300, 200)), "size="),
        (dict(objects=(0, 2)), "objects="),
        (dict(objects=(3, 2)), "objects="),
        (dict(scale=(0, 1)), "scale="),
        (dict(scale=(0.5, 1.5)), "scale="),
        (dict(negatives=2), "negatives="),
        (dict(distractors=-1), "distractors="),
    ],
)
def test_bad_options(kwargs, message):
    with pytest.raises(DataError, match=message):
        Scenes(**{"n": 3, **kwargs})


def test_every_class_has_a_sprite():
    for name in (*VOC_CLASSES, OTHER):
        for large, half, quarter in sprites(name):
            assert (
                large.mode == "RGBa"
                and max(large.size) <= 256
                and abs(large.width / 2 - half.width) <= 1
                and abs(large.width / 4 - quarter.width) <= 1
            )


def test_licence_and_credits_travel_along():
    from locrl.data.scenes import SPRITES

    assert "Microsoft" in (SPRITES / "LICENSE").read_text()
    credits = (SPRITES / "CREDITS.md").read_text()
    for name in (*VOC_CLASSES, OTHER):
        if name != "diningtable":
            for p in (SPRITES / name).iterdir():
                assert f"{name}/{p.name}" in credits
    assert sum(p.stat().st_size for p in SPRITES.rglob("*.webp")) < 1_500_000


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from((VOC_CLASSES, ANIMALS, ("person",))))
def test_voc_round_trip(tmp_path_factory, seed, classes):
    root, data = tmp_path_factory.mktemp("voc"), Scenes(6, seed=seed, split="val", classes=classes)
    data.export_voc(root)
    read = VOC("Scenes", "val", classes, root=root)
    assert read.ids == data.ids and VOC("Scenes", f"{classes[0]}_val", root=root).ids == data.ids
    for i in range(6):
        a, b = read.annotation(i), data.annotation(i)
        np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-6)
        assert all(np.array_equal(getattr(a, f), getattr(b, f)) for f in ("labels", "difficult", "truncated"))
        assert np.abs(np.asarray(read.image(i), float) - np.asarray(data.image(i))).mean() < 6


def test_what_was_drawn_is_annotated_already(monkeypatch):
    "Sizes and annotations come with the pictures, and without them no picture is drawn"
    drawn, undrawn = Scenes(4, seed=9), Scenes(4, seed=9)
    for i in range(4):
        drawn.image(i)
    monkeypatch.setattr(Scenes, "image", lambda *args: pytest.fail("drew a picture"))
    seen = [(undrawn.size(i), undrawn.annotation(i)) for i in range(4)]
    monkeypatch.setattr(Scenes, "_layout", lambda *args: pytest.fail("laid a picture out again"))
    for i, (size, annotation) in enumerate(seen):
        assert drawn.size(i) == size and np.array_equal(drawn.annotation(i).boxes, annotation.boxes)
