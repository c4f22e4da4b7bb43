"""An example as the evidence to search by."""

import numpy as np
import pytest
import torch

from locrl.vision.encoders import UnknownClassError
from locrl.vision.example import SCALE, THRESHOLD, Example, example_cells


def field(seed=0):
    "Random features (6, 6, 8) with a patch of one direction"
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(6, 6, 8)).astype(np.float32)
    features[2:4, 1:3] += 8 * np.eye(8, dtype=np.float32)[0]
    return features


def test_evidence_by_hand():
    "The formula of the page, one cell at a time"
    features, box = field(), (1 / 6, 2 / 6, 3 / 6, 4 / 6)
    example = Example.of(features, box)
    inside = np.zeros((6, 6), bool)
    inside[2:4, 1:3] = True

    def unit(v):
        return v / np.linalg.norm(v)

    direction = unit(unit(features[inside].mean(0)) - 0.5 * unit(features[~inside].mean(0)))
    other = field(1)
    found = example.evidence(torch.from_numpy(other).permute(2, 0, 1)[None], ["this"])[0, 0].numpy()
    for y in range(6):
        for x in range(6):
            wanted = 1 / (1 + np.exp(-SCALE * (unit(other[y, x]) @ direction - THRESHOLD)))
            assert found[y, x] == pytest.approx(wanted, abs=1e-5)
    assert found[2:4, 1:3].min() > 0.9 > 0.5 > np.delete(found.ravel(), [13, 14, 19, 20]).mean()


def test_crop_is_the_mean_of_its_cells():
    features = field()
    direction = Example.of(features).direction
    mean = features.reshape(-1, 8).mean(0)
    assert torch.allclose(direction, torch.from_numpy(mean / np.linalg.norm(mean)), atol=1e-6)


def test_box_of_the_whole_picture_is_a_crop():
    assert torch.allclose(Example.of(field(), (0, 0, 1, 1)).direction, Example.of(field()).direction, atol=1e-6)


def test_small_box_takes_the_cell_it_lies_in():
    assert np.argwhere(example_cells((0.99, 0.01, 1, 0.02), (4, 4))).tolist() == [[0, 3]]


@pytest.mark.parametrize("box", [(0, 0, 1), (0.5, 0, 0.5, 1), (0, 0, 2, 1), (0, 0, float("nan"), 1), (10, 20, 50, 60)])
def test_bad_boxes(box):
    with pytest.raises(ValueError, match="box"):
        example_cells(box, (4, 4))


def test_another_name_is_refused():
    with pytest.raises(UnknownClassError):
        Example.of(field()).evidence(torch.zeros(1, 8, 2, 2), ["dog"])
