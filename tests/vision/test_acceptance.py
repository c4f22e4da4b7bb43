"""The acceptance test: EfficientNet-Lite0 passes it, random weights fail it, and each of ten mistakes is caught."""

import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from locrl.vision import acceptance
from locrl.vision.acceptance import (
    MISTAKES,
    Check,
    accept,
    activations,
    area_under_curve,
    cells_inside,
    check_activation,
    check_attention,
    check_finite,
    check_photographs,
    check_pixels,
    check_place,
    check_reference,
    check_scenes,
    check_sprites,
    check_trained,
    failures,
    photographs,
    plant,
)
from locrl.vision.clip import OpenClipEncoder
from locrl.vision.encoders import ensure_torchvision, load_encoder

ensure_torchvision()
open_clip = pytest.importorskip("open_clip")

TINY = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 3, "width": 128, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def embedded():
    return load_encoder("efficientnet_lite0", input_size=224)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    "A small CLIP with random weights"
    folder = tmp_path_factory.mktemp("configs")
    (folder / "tiny-acceptance.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return OpenClipEncoder("tiny-acceptance", pretrained=None, precision="fp32", bank=("grass", "sky"))


def test_embedded_encoder_passes(embedded):
    "Real weights pass every check, none of them undecided"
    checks = accept(embedded)
    assert all(check.passed for check in checks), "\n".join(map(str, checks))
    names = {check.name for check in checks}
    assert {"pixels", "activation", "place", "reference", "sprites ranked", "saliency", "presence", "pooling"} <= names


def test_random_clip_passes_what_needs_no_meaning_and_fails_the_rest(clip):
    "No check of meaning lets random weights through"
    checks = [
        check for make in (check_finite, check_pixels, check_activation, check_attention) for check in [make(clip)]
    ]
    assert not failures([*checks, check_place(clip)])
    assert set(failures([check_trained(clip), *check_photographs(clip), check_sprites(clip, 1)])) == {
        "trained",
        "photographs named",
        "text and image",
        "sprites named",
    }
    assert failures(check_scenes(clip, 8)) == ["saliency", "presence"]


CAUGHT_EMBEDDED = {
    "activation": [check_activation, check_reference],
    "normalisation": [check_pixels, check_reference],
    "resize": [check_pixels, check_reference],
    "crop": [check_pixels, check_place],
    "text tower of another model": [check_reference],
    "half of the weights": [check_reference],
    "another model's weights": [check_reference],
    "shuffled patches": [check_place],
    "transposed grid": [check_place],
}
CAUGHT_CLIP = {
    "activation": [check_activation],
    "normalisation": [check_pixels],
    "resize": [check_pixels],
    "crop": [check_pixels, check_place],
    "shuffled patches": [check_place],
    "transposed grid": [check_place],
    "unscaled attention": [check_attention],
}


@pytest.mark.parametrize("mistake", CAUGHT_EMBEDDED)
def test_mistakes_in_the_embedded_encoder_are_caught(embedded, mistake):
    "Each check passes without the mistake (tested above) and fails with it"
    with plant(embedded, mistake) as wrong:
        for check in CAUGHT_EMBEDDED[mistake]:
            assert check(wrong).passed is False, check(wrong)


@pytest.mark.parametrize("mistake", CAUGHT_CLIP)
def test_mistakes_in_clip_are_caught(clip, mistake):
    "Random weights are enough for the checks that need no meaning"
    with plant(clip, mistake) as wrong:
        for check in CAUGHT_CLIP[mistake]:
            assert check(clip).passed or mistake == "unscaled attention"
            assert check(wrong).passed is False, check(wrong)


def test_every_mistake_is_tested():
    assert set(MISTAKES) == CAUGHT_EMBEDDED.keys() | CAUGHT_CLIP.keys()


def test_unscaled_attention_is_put_right_again(clip):
    "Also where the context ends with an exception"
    with pytest.raises(KeyError), plant(clip, "unscaled attention"):
        raise KeyError
    assert check_attention(clip).passed


def test_names_by_another_text_tower_fail(clip, monkeypatch):
    "A text tower that fits by construction passes; turned to another model's space, it fails"
    seen = clip.embed_images(clip.preprocess(photographs(), clip.crop_size))
    names = list(acceptance.PHOTOGRAPHS.values())
    mean = seen.mean(0) / seen.mean(0).norm()
    rest = torch.nn.functional.normalize(seen - seen @ mean[:, None] * mean, dim=1)
    apart = torch.linalg.svd(seen).Vh[-1]
    known = dict(zip(names, 0.4 * torch.nn.functional.normalize(rest + 0.25 * mean, dim=1) + 0.84**0.5 * apart))
    monkeypatch.setattr(clip, "class_embeddings", lambda asked: torch.stack([known[n] for n in asked]))
    assert not failures(check_photographs(clip))
    turn = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(5))).Q
    monkeypatch.setattr(clip, "class_embeddings", lambda asked: torch.stack([known[n] for n in asked]) @ turn)
    assert failures(check_photographs(clip)) == ["photographs named", "text and image"]


@pytest.mark.parametrize(
    ("with_gelu", "passed"), [(0.08, True), (0.12, False), (0.0999, None)], ids=["better", "worse", "the same"]
)
def test_activation_of_a_file_is_told_by_what_it_does(clip, monkeypatch, with_gelu, passed):
    "A file does not say what it was trained with: the activation with which names fit better is right"
    import copy

    file = copy.deepcopy(clip)
    file.name = "tiny-acceptance/mine.safetensors/sclip"

    def lead(encoder):
        "What names would be ahead by, with either activation"
        return {"QuickGELU": 0.1, "GELU": with_gelu}[activations(encoder.model).pop()]

    monkeypatch.setattr(acceptance, "_lead_of_names", lead)
    check = check_activation(file)
    assert check.passed is passed and check.measured.startswith("QuickGELU;")
    with plant(file, "activation") as wrong:
        check = check_activation(wrong)
    assert check.passed is (None if passed is None else not passed) and "-quickgelu" in check.cure


def test_activation_of_random_weights_in_a_file_is_undecided(clip):
    import copy

    file = copy.deepcopy(clip)
    file.name = "tiny-acceptance/mine.pt/sclip"
    assert check_activation(file).passed is None


def test_another_activation_makes_other_texts(clip):
    "Texts that are remembered are not those of the other activation"
    right = clip.class_embeddings(["a cat"])
    with plant(clip, "activation") as wrong:
        assert not torch.allclose(wrong.class_embeddings(["a cat"]), right, atol=1e-5)
    assert torch.equal(clip.class_embeddings(["a cat"]), right)


def test_half_trained_weights_are_told(clip):
    "Layer norms that training moved are no sign of missing weights; one that is the identity is"
    import copy

    trained = copy.deepcopy(clip)
    norms = [m for m in trained.model.modules() if isinstance(m, torch.nn.LayerNorm)]
    for norm in norms:
        norm.weight.data.mul_(1.1)
    trained.model.logit_scale.data.fill_(np.log(100))
    assert check_trained(trained).passed
    norms[-1].weight.data.fill_(1)
    assert check_trained(trained).passed is False
    assert "1 of 13" in check_trained(trained).measured


def test_nan_is_told(embedded):
    with plant(embedded, "transposed grid") as wrong:
        wrong.dense = lambda pixels: torch.full((len(pixels), 1280, 7, 7), float("nan"))
        assert check_finite(wrong).passed is False


def test_activations_go_by_value_not_by_name():
    class GELU(torch.nn.Module):  # a name that deceives
        def forward(self, x):
            return x * torch.sigmoid(1.702 * x)

    assert activations(torch.nn.Sequential(GELU(), torch.nn.ReLU6())) == {"QuickGELU", "ReLU6"}
    assert activations(torch.nn.Sequential(torch.nn.GELU())) == {"GELU"}


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_area_under_curve_by_counting_pairs(pairs):
    scores, positive = np.array([s for s, _ in pairs]), np.array([p for _, p in pairs])
    value = area_under_curve(scores, positive)
    wins = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert np.isnan(value) if not wins else np.isclose(value, np.mean(wins))


@given(st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=0, max_size=4))
def test_cells_inside_one_by_one(boxes):
    inside = cells_inside(np.array(boxes).reshape(-1, 4), (3, 5))
    for row in range(3):
        for column in range(5):
            y, x = (row + 0.5) / 3, (column + 0.5) / 5
            assert inside[row, column] == any(b[0] <= x <= b[2] and b[1] <= y <= b[3] for b in boxes)


def test_unknown_mistake_and_attention_where_there_is_none(embedded):
    with pytest.raises(ValueError, match="there are activation, normalisation"), plant(embedded, "typo"):
        pass
    with pytest.raises(ValueError, match="no attention"), plant(embedded, "unscaled attention"):
        pass


def test_line_of_a_check():
    good = Check("a", "1", "2", "because", "do this", np.bool_(True))
    assert str(good) == "ok     a: 1; expected 2 (because)"
    assert str(Check("a", "1", "2", "because", "Do this", False)).endswith("(because). Do this")
    assert failures([good, Check("b", "", "", "", "", np.bool_(False)), Check("c", "", "", "", "", None)]) == ["b"]
