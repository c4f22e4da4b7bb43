"Region pooling against an explicit loop, banks of features in memory, and crops that are encoded one by one"

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from locrl.data.scenes import Scenes
from locrl.vision.encoders import CropCache, EfficientNetLite0
from locrl.vision.feature_store import FeatureError
from locrl.vision.region_pooling import CropBank, FeatureBank, integral_image, region_pool
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
