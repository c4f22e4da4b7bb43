"Region pooling against an explicit loop, banks of features in memory, and crops that are encoded one by one"

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from locrl.data.scenes import Scenes
from locrl.vision.encoders import CropCache, EfficientNetLite0, FeatureError
from locrl.vision import region_pooling
from locrl.vision.region_pooling import (
    CropBank,
    FeatureBank,
    HalfMaps,
    choose_maps,
    class_evidence,
    fit_prototypes,
    integral_image,
    map_bytes,
    memory_room,
    region_pool,
    region_weights,
    weighted_sums,
)
from mosaic import Mosaic, build, pictures


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = tmp_path_factory.mktemp("original")
    build(root)
    return root


def test_banks_need_one_projection_and_known_classes(tmp_path):
    a, b = build(tmp_path), build(tmp_path, dim=5)
    with pytest.raises(FeatureError, match="do not share a projection"):
        FeatureBank([a, b], ("cat",))
    with pytest.raises(FeatureError, match="no evidence for bird.*[Ff]it prototypes"):
        FeatureBank(a, ("cat", "bird"))
    assert len(FeatureBank([a, build(tmp_path, projection=a.projection, flip=True)], ("dog",))) == 20


# Region pooling


def coverage(low, high, n):
    "Length of each of `n` cells of the unit interval inside [low, high], in cells"
    edges = np.arange(n + 1)
    return np.clip(np.minimum(edges[1:], high * n) - np.maximum(edges[:-1], low * n), 0, None)


def explicit(dense, box):
    "Mean of `dense` (H, W, D) over `box`: every cell counts by its area inside; outside the picture is zero"
    h, w, _ = dense.shape
    x1, y1, x2, y2 = (float(v) for v in box)
    weights = coverage(y1, y2, h)[:, None] * coverage(x1, x2, w)
    return np.einsum("hw,hwd->d", weights, dense.astype(np.float64)) / ((x2 - x1) * (y2 - y1) * h * w)


side = st.floats(1 / 64, 1.5, width=32)
corner = st.floats(-1, 1.5, width=32, allow_subnormal=False)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.lists(st.tuples(corner, corner, side, side), min_size=1, max_size=6),
    st.integers(0, 2**32 - 1),
)
def test_region_pool_is_the_explicit_loop(h, w, corners, seed):
    dense = np.random.default_rng(seed).normal(size=(3, h, w, 2)).astype(np.float32)
    boxes = np.array([[x, y, x + a, y + b] for x, y, a, b in corners], np.float32)
    image = np.arange(len(boxes)) % 3
    pooled = region_pool(
        integral_image(torch.from_numpy(dense)), torch.from_numpy(image), torch.from_numpy(boxes)[:, None]
    )[:, 0]
    expected = [explicit(dense[i], b) for i, b in zip(image, boxes)]
    np.testing.assert_allclose(pooled.numpy(), expected, atol=3e-3)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.lists(st.tuples(st.integers(0, 3), corner, corner, side, side), min_size=1, max_size=9),
    st.integers(1, 3),
    st.integers(0, 2**32 - 1),
)
def test_half_maps_pool_as_the_explicit_loop_and_as_integral_images(h, w, keys, regions, seed):
    "The same to 1e-3 of the largest feature, map by map and many at once, whichever pictures are asked for how often"
    dense = torch.from_numpy(np.random.default_rng(seed).normal(size=(4, h, w, 2)).astype(np.float16))
    image = torch.tensor([i for i, *_ in keys])
    one = torch.tensor([[x, y, x + a, y + b] for _, x, y, a, b in keys])
    boxes = torch.stack([one.roll(k, 0) for k in range(regions)], 1)
    by_integral = region_pool(integral_image(dense), image, boxes)
    expected = [[explicit(dense[i].numpy(), b) for b in some] for i, some in zip(image, boxes.numpy())]
    for together in (False, True):
        pooled = weighted_sums(dense, image, region_weights(boxes, h, w), together)
        np.testing.assert_allclose(pooled, expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(pooled, by_integral, rtol=1e-3, atol=3e-3)


def test_many_regions_at_once():
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(5, 14, 14, 3)).astype(np.float32)
    boxes = np.sort(rng.uniform(-0.2, 1.2, (2000, 4, 2, 2)), 2).astype(np.float32)
    boxes[:, :, 1] = np.maximum(boxes[:, :, 1], boxes[:, :, 0] + 0.05)
    boxes, image = boxes.reshape(2000, 4, 4), rng.integers(0, 5, 2000)
    pooled = region_pool(
        integral_image(torch.from_numpy(dense)), torch.from_numpy(image), torch.from_numpy(boxes)
    ).numpy()
    for m in range(0, 2000, 37):
        for r in range(4):
            np.testing.assert_allclose(pooled[m, r], explicit(dense[image[m]], boxes[m, r]), atol=2e-3)


def test_precision_of_the_integral():
    "Half floats of 16 x 16 cells, mean 3 deviations: a box of a tenth is exact to 1e-3, of a hundredth to 3e-2"
    rng = np.random.default_rng(0)
    dense = torch.from_numpy((rng.normal(size=(4, 16, 16, 8)) + 3).astype(np.float16)).float()
    integral = integral_image(dense)
    for side, tolerance in ((0.1, 1e-3), (0.01, 3e-2)):
        at = rng.uniform(0, 1 - side, (400, 2))
        boxes = np.concatenate([at, at + side], 1).astype(np.float32)
        image = rng.integers(0, 4, 400)
        pooled = region_pool(integral, torch.from_numpy(image), torch.from_numpy(boxes)[:, None])[:, 0].numpy()
        worst = max(np.abs(pooled[i] - explicit(dense[image[i]].numpy(), boxes[i])).max() for i in range(400))
        assert worst < tolerance, (side, worst)


def test_pooling_beside_crop_encoding():
    "EfficientNet-Lite0: pooled and crop embeddings of a box resemble each other more than those of other boxes"
    encoder, data = EfficientNetLite0(input_size=448), Scenes(8, seed=2, size=(300, 400))
    truth = data.ground_truth()
    large = np.flatnonzero((truth.boxes[:, 2:] - truth.boxes[:, :2]).min(1) > 0.2)[:12]
    images, boxes = [data.image(i) for i in range(8)], truth.boxes[large]
    crops = encoder.embed_crops([images[i] for i in truth.image[large]], boxes)
    dense = torch.cat([encoder.encode([im]) for im in images]).permute(0, 2, 3, 1)
    pooled = region_pool(integral_image(dense), torch.from_numpy(truth.image[large]), torch.from_numpy(boxes)[:, None])[
        :, 0
    ]
    similarity = F.normalize(pooled) @ F.normalize(crops).T
    same, others = similarity.diagonal().mean(), similarity[~torch.eye(len(large), dtype=bool)].mean()
    print(f"cosine of pooled and crop embedding: same box {same:.3f}, other boxes {others:.3f}")
    assert same > others + 0.05 and same > 0.5


# Exact crops


class Counted(Mosaic):
    "Counts the crops it encodes, and how many at a time"

    def embed_crops(self, images, boxes, context=0):
        self.seen = [*getattr(self, "seen", []), len(images)]
        return super().embed_crops(images, boxes, context)


def test_crops_are_remembered_by_picture_and_rounded_box():
    encoder = Counted()
    data = pictures()
    rng = np.random.default_rng(0)
    cache = CropCache(encoder, data, context=4, steps=64)
    image = torch.from_numpy(rng.integers(0, 10, 50))
    boxes = torch.from_numpy(np.sort(rng.uniform(0, 1, (50, 2, 2)), 1).reshape(50, 4).astype(np.float32))
    first = cache(image, boxes)
    rounded = (boxes * 64).round() / 64
    for i, box, vector in zip(image, rounded, first):
        torch.testing.assert_close(
            vector, Mosaic().embed_crops([data.image(int(i))], [box], context=4)[0], atol=1e-5, rtol=1e-4
        )
    assert (cache.hits, cache.misses, sum(encoder.seen), max(encoder.seen)) == (0, 50, 50, 8)
    assert (
        torch.equal(cache(image.flip(0), boxes.flip(0) + 1e-4 * (rounded > boxes).flip(0)), first.flip(0))
        and cache.misses == 50
    )  # the same boxes, nearly
    again = CropCache(Counted(), data, context=4, steps=64)
    torch.testing.assert_close(again(image[:1].repeat(3), boxes[:1].repeat(3, 1))[2], first[0])
    assert (again.hits, again.misses) == (2, 1)


def test_the_least_recently_used_crops_are_forgotten():
    cache = CropCache(Counted(), pictures(), capacity=3)
    box = torch.tensor([[0.0, 0, 1, 1]])
    for i in (0, 1, 2, 0, 3):
        cache(torch.tensor([i]), box)
    assert len(cache) == 3 and (cache.hits, cache.misses) == (1, 4)
    cache(torch.tensor([0, 2, 3]), box.repeat(3, 1))
    assert cache.misses == 4
    cache(torch.tensor([1]), box)
    assert cache.misses == 5
    assert (
        cache(torch.arange(10), box.repeat(10, 1)).shape == (10, 12) and len(cache) == 3
    )  # more at once than are kept


def test_a_bank_of_exact_crops(original):
    store, data = build(original), pictures()
    cache = CropCache(Mosaic(), data, steps=1024)
    bank, pooled = CropBank(store, ("cat",), cache), FeatureBank(store, ("cat",))
    image = torch.tensor([2, 7])
    boxes = torch.tensor([[[0.0, 0, 1, 1], [0.25, 0.5, 0.75, 1]], [[0.5, 0.5, 1, 1], [0, 0, 0.5, 0.25]]])
    got = bank.pool(image, boxes)
    assert got.shape == pooled.pool(image, boxes).shape == (2, 2, 6)
    expected = store.projection(Mosaic().embed_crops([data.image(7)], [boxes[1, 1]])[..., None, None])[0, 0, 0]
    torch.testing.assert_close(got[1, 1], expected)
    torch.testing.assert_close(
        got[0, 0], pooled.pool(image, boxes)[0, 0], atol=1e-2, rtol=1e-2
    )  # this encoder's whole picture is the mean of its cells
    assert torch.equal(bank.saliency, pooled.saliency)
    with pytest.raises(FeatureError, match="is of .*the crops of"):
        CropBank(store, ("cat",), CropCache(Mosaic(seed=1), data))


# Banks that hold half floats


@pytest.fixture
def stores(tmp_path):
    "A store of ten pictures and one of their mirror images, in shards of four"
    plain = build(tmp_path)
    return [plain, build(tmp_path, projection=plain.projection, flip=True)]


def some_keys(n, m=200, r=3, seed=0):
    "Random pictures, and regions that may reach outside"
    rng = np.random.default_rng(seed)
    ends = np.sort(rng.uniform(-0.2, 1.2, (m, r, 2, 2)), 2)
    ends[:, :, 1] += 0.05
    return torch.from_numpy(rng.integers(0, n, m)), torch.from_numpy(ends.reshape(m, r, 4).astype(np.float32))


def test_the_usual_bank_holds_the_bits_it_always_held(stores):
    "Integral images, saliency and presence of all pictures at once, as banks of November 2026 were made"
    features = [torch.from_numpy(s.array("features")) for s in stores]
    prototypes = fit_prototypes(stores[0], pictures(), ("cat", "dog"))
    for given_prototypes in (None, prototypes):
        bank = FeatureBank(stores, ("dog", "cat"), given_prototypes)
        each = [class_evidence(s, x, ("dog", "cat"), given_prototypes) for s, x in zip(stores, features)]
        saliency, presence = (torch.cat(x) for x in zip(*each))
        assert torch.equal(bank.integral, integral_image(torch.cat(features))) and bank.maps is None
        assert torch.equal(bank.saliency, saliency) and torch.equal(bank.presence, presence)


@pytest.mark.parametrize("there", [1, 3, 12, 20])
def test_a_bank_of_half_floats_gives_the_same(stores, there):
    "However many of its maps are in memory"
    usual, half = FeatureBank(stores, ("cat", "dog")), FeatureBank(stores, ("cat", "dog"), maps="half")
    half.maps = HalfMaps(stores, there)
    half.integral.maps = half.maps
    for seed in range(4):
        image, boxes = some_keys(20, seed=seed)
        torch.testing.assert_close(half.pool(image, boxes), usual.pool(image, boxes), rtol=1e-3, atol=1e-3)
    assert len(half.maps.cells) == there and len(half) == len(half.maps) == 20
    torch.testing.assert_close(half.saliency[image, 1], usual.saliency[image, 1], rtol=1e-3, atol=1e-3)
    assert half.saliency.shape == usual.saliency.shape and half.saliency.cpu().dtype == torch.float32
    assert torch.equal(half.presence, usual.presence)


def test_integral_images_are_made_for_whoever_asks(stores):
    usual, half = FeatureBank(stores, ("cat",)), FeatureBank(stores, ("cat",), maps="half")
    half.maps.load(np.arange(7, 9))
    for index in (3, slice(2, 17), slice(None), np.array([5, 5, 19]), torch.tensor([19, 0]), (slice(None), -1), (4, 2)):
        assert torch.equal(half.integral[index], usual.integral[index]), index
    assert half.integral.shape == usual.integral.shape and half.integral[np.zeros(0, int)].shape[0] == 0
    assert torch.equal(torch.cat(list(half.column_sums())), usual.integral[:, -1])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.lists(st.sets(st.integers(0, 19), min_size=1), max_size=12))
def test_maps_in_memory_are_those_of_their_pictures(room, asked):
    "Whatever is asked for in whatever order, a row of `cells` holds the map of the picture it is said to hold"
    maps = HalfMaps([Numbered(13), Numbered(7, first=13)], room)
    for images in asked:
        images = np.array(sorted(images))[:room]
        rows = maps.load(images)
        assert (maps.cells[rows, 0, 0, 0].numpy() == images).all()
        held = np.flatnonzero(maps.slot[:20] >= 0)
        assert len(held) <= room and (maps.holds[maps.slot[held]] == held).all()
        assert (maps.take(np.arange(20))[:, 0, 0, 0].numpy() == np.arange(20)).all()


class Numbered:
    "Stands in for a store: every feature of a picture is its number"

    grid, dim = (1, 1), 1

    def __init__(self, n, first=0):
        self.n, self.first = n, first

    def __len__(self):
        return self.n

    def take(self, name, ids):
        assert name == "features" and len(ids) and min(ids) >= 0 and max(ids) < self.n
        return (self.first + np.asarray(ids, np.float16))[:, None, None, None]


def test_a_read_that_fails_leaves_no_wrong_map(stores):
    maps = HalfMaps(stores, 4)
    file = stores[1].path / "features-00001.npy"
    content = file.read_bytes()
    file.write_bytes(content[:200])
    with pytest.raises(FeatureError, match="features-00001.npy is damaged: it is shorter"):
        maps.load(np.arange(12, 16))
    file.unlink()
    with pytest.raises(FeatureError, match="features-00001.npy cannot be read"):
        maps.load(np.arange(12, 16))
    file.write_bytes(content)
    for images in (np.arange(12, 16), np.arange(4)):
        rows = maps.load(images)
        assert all(
            torch.equal(maps.cells[r].float(), torch.from_numpy(map_of(stores, i))) for r, i in zip(rows, images)
        )


def map_of(stores, i):
    "The map of picture `i` of both stores"
    return stores[i // 10][i % 10]


def test_what_fits_decides():
    grid, dim = (16, 16), 768
    assert map_bytes("integral", grid, dim) == 4 * 17 * 17 * 768 and map_bytes("half", grid, dim) == 2 * 16 * 16 * 768
    assert choose_maps(1000, grid, dim, 1_200_000_000) == ("integral", 1000)  # 0.89 GB of 1.2
    assert choose_maps(1000, grid, dim, 1_100_000_000) == ("half", 1000)  # 0.39 GB
    assert choose_maps(1000, grid, dim, 400_000_000) == ("half", 200_000_000 // 393_216)
    assert choose_maps(1000, grid, dim, 0) == ("half", 2**27 // 393_216)  # never less
    assert choose_maps(5, (500, 500), 768, 0) == ("half", 1)
    assert choose_maps(1000, grid, dim, 0, "integral") == ("integral", 1000)
    assert choose_maps(1000, grid, dim, 10**12, "half") == ("half", 1000)
    with pytest.raises(ValueError, match="maps='float'"):
        choose_maps(1, grid, dim, 1, "float")


def test_the_choice_is_said_where_it_is_not_the_usual_one(stores, capsys, monkeypatch):
    monkeypatch.setattr(region_pooling, "LEAST", 0)
    FeatureBank(stores, ("cat",))
    FeatureBank(stores, ("cat",), maps="half")
    assert capsys.readouterr().err == ""
    bank = FeatureBank(stores, ("cat",), room=2000)
    told = capsys.readouterr().err
    assert len(bank.maps.cells) == 1000 // (2 * 4 * 4 * 6) and told.count("\n") == 1
    assert "20 pictures as half floats" in told and "5 of them in memory" in told
    FeatureBank(stores, ("cat",), room=10_000)
    assert "all in memory" in capsys.readouterr().err


def test_the_memory_of_a_process_can_be_limited(monkeypatch):
    monkeypatch.setattr(region_pooling, "free_memory", lambda device: 8_000_000_000)
    monkeypatch.setattr(region_pooling, "_held", lambda device: 500_000_000)
    monkeypatch.delenv("LOCRL_MEMORY", raising=False)
    assert memory_room() == 8_000_000_000
    for limit, room in (("2", 1_500_000_000), ("0.25", 0), ("100", 8_000_000_000)):
        monkeypatch.setenv("LOCRL_MEMORY", limit)
        assert memory_room() == room
    for wrong in ("-1", "0", "nan", "inf", "much"):
        monkeypatch.setenv("LOCRL_MEMORY", wrong)
        with pytest.raises(FeatureError, match=f"LOCRL_MEMORY={wrong}: give the GB"):
            memory_room()


def test_portions_name_every_picture_once():
    "Stores of more pictures than a portion holds"
    from locrl.vision.region_pooling import _portions

    stores = [range(600), range(3), range(256)]
    named = [list(ids) for store, ids in _portions(stores) if store is stores[0]]
    assert sum(named, []) == list(range(600)) and max(map(len, named)) <= 256
    assert [list(ids) for store, ids in _portions(stores) if store is not stores[0]] == [[0, 1, 2], list(range(256))]


def test_column_sums_of_many_pictures():
    "Each picture once, whatever the portions"
    bank = object.__new__(FeatureBank)
    bank.integral = torch.arange(600.0)[:, None, None, None].expand(600, 3, 3, 2)
    bank.presence = torch.zeros(600, 1)
    sums = torch.cat(list(bank.column_sums()))
    assert sums.shape == (600, 3, 2) and torch.equal(sums[:, 0, 0], torch.arange(600.0))


def test_more_maps_in_memory_than_are_read_at_once():
    "Those for which there is room are those of the store, each at its place; the others are read when asked for"
    maps = np.arange(150, dtype=np.float16)[:, None, None, None] * np.ones((1, 2, 2, 3), np.float16)

    class Store:
        grid, dim = (2, 2), 3

        def __len__(self):
            return 150

        def take(self, name, ids):
            return maps[ids]

    held = HalfMaps([Store()], 140)
    assert np.array_equal(held.cells.numpy(), maps[:140]) and np.array_equal(held.holds, np.arange(140))
    assert np.array_equal(held.take(np.array([3, 145, 149, 70])).numpy(), maps[[3, 145, 149, 70]])
