"""Networks of timm as encoders: their own features, their own preprocessing, weights from everywhere they may lie."""

import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from locrl.experiments.config import Config, ConfigError, load_data, make_encoder, prepare
from locrl.vision.clip import WeightsError
from locrl.vision.encoders import UnknownClassError, ensure_torchvision, load_encoder
from locrl.vision.timm import TimmEncoder

ensure_torchvision()
timm = pytest.importorskip("timm")


def random_encoder(name, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_encoder(f"timm:{name}", pretrained=None, precision="fp32", **options)


# a class token; a register and no class token; channels first with stride 32, twice; channels last
NETWORKS = {"test_vit": 16, "test_vit2": 16, "test_convnext": 32, "test_resnet": 32, "test_mambaout": 32}


@pytest.mark.parametrize("name", NETWORKS)
def test_cells_are_timms_own_features(name):
    "Every cell equals what `forward_features` gives there, written out cell by cell; at a size that is not the native"
    encoder, stride = random_encoder(name, input_size=96), NETWORKS[name]
    side = 96 // stride
    assert encoder.grid == (side, side) and encoder.stride == stride and encoder.crop_size == 160
    pixels = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = encoder.model.forward_features(pixels)
    dense = encoder.dense(pixels)
    assert dense.shape == (2, encoder.dim, side, side) and dense.dtype == torch.float32
    for row in range(side):
        for column in range(side):
            if own.ndim == 3:
                there = own[:, own.shape[1] - side * side + row * side + column]
            elif name == "test_mambaout":
                there = own[:, row, column]
            else:
                there = own[:, :, row, column]
            torch.testing.assert_close(dense[:, :, row, column], there, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoder.embed_images(pixels), dense.mean((2, 3)))


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_a_cell_is_where_the_picture_is(name):
    "A change in one place changes that cell most"
    encoder = random_encoder(name, input_size=160)
    pixels = torch.zeros(1, 3, 160, 160)
    for row, column in ((0, 0), (1, 3), (4, 2)):
        changed = pixels.clone()
        changed[..., 32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = 2.0
        change = (encoder.dense(changed) - encoder.dense(pixels)).norm(dim=1)[0]
        y, x = divmod(int(change.argmax()), encoder.grid[1])
        assert (y * encoder.stride // 32, x * encoder.stride // 32) == (row, column)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_pixels_are_those_of_timms_transform(name):
    "Bilinear or bicubic, with mean and standard deviation of the network; timm squashes where we warp"
    encoder = random_encoder(name)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 140, 3), dtype=np.uint8))
    config = timm.data.resolve_model_data_config(encoder.model) | dict(crop_pct=1.0, crop_mode="squash")
    ours = encoder.preprocess([picture])[0]
    torch.testing.assert_close(ours, timm.data.create_transform(**config)(picture), atol=1e-5, rtol=1e-5)
    assert ours.shape == (3, 160, 160)


def test_other_sizes_are_those_of_a_network_made_for_them():
    "Position embeddings are resampled as timm does it on purpose"
    encoder = random_encoder("test_vit", input_size=96)
    other = timm.create_model("test_vit", img_size=160, dynamic_img_size=False).eval()
    other.load_state_dict(encoder.model.state_dict())
    other.set_input_size((96, 96))
    pixels = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        own = other.forward_features(pixels)[:, 1:]
    torch.testing.assert_close(encoder.dense(pixels).flatten(2).transpose(1, 2), own, atol=1e-4, rtol=1e-4)


def test_a_network_of_one_size_takes_crops_at_that_size():
    encoder = random_encoder("mobilevit_xxs", input_size=64)
    assert encoder.crop_size == encoder.input_size == 64 and encoder.grid == (2, 2)


@pytest.fixture
def weights(tmp_path):
    "A file with weights of test_vit, and the encoder that has them"
    encoder = random_encoder("test_vit", seed=5)
    file = tmp_path / "model.safetensors"
    save_file(encoder.model.state_dict(), file)
    return file, encoder


def test_weights_from_a_file(weights, tmp_path):
    "safetensors and a PyTorch checkpoint of them are one encoder; another seed or size is another one"
    file, encoder = weights
    torch.save({"state_dict": encoder.model.state_dict()}, tmp_path / "model.pth")
    for path in (file, tmp_path / "model.pth"):
        same = load_encoder("timm:test_vit", pretrained=str(path))
        assert same.fingerprint == encoder.fingerprint and same.name == f"timm:test_vit/{path.name}"
    others = [random_encoder("test_vit", **k).fingerprint for k in (dict(seed=6), dict(seed=5, input_size=96))]
    assert len({encoder.fingerprint, *others}) == 3


class Trap:
    "Makes a folder when it is unpickled"

    def __reduce__(self):
        return Path.mkdir, (Path("sprung"),)


def test_nothing_is_unpickled_and_other_weights_are_refused(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trap.pth").write_bytes(pickle.dumps(Trap()))
    torch.save({"state_dict": Trap()}, tmp_path / "zipped.pth")
    save_file(random_encoder("test_vit2").model.state_dict(), tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(weights[0].read_bytes()[:-9])
    for name in ("trap.pth", "zipped.pth", "other.safetensors", "cut.safetensors"):
        with pytest.raises(
            WeightsError, match=f"no weights for timm:test_vit from '{name}'.*hf download timm/test_vit"
        ):
            load_encoder("timm:test_vit", pretrained=name)
    assert not (tmp_path / "sprung").exists()


def test_no_network_says_what_to_fetch(no_network):
    for options in ({}, {"pretrained": "openai"}):
        with pytest.raises(WeightsError) as e:
            load_encoder("timm:vit_small_patch14_dinov2.lvd142m", **options)
        for part in (
            "hf download timm/vit_small_patch14_dinov2.lvd142m",
            "pretrained='/path/to/",
            "efficientnet_lite0",
        ):
            assert part in str(e.value)
    with pytest.raises(WeightsError, match=r"No pretrained weights exist for test_mambaout.*efficientnet_lite0"):
        load_encoder("timm:test_mambaout")


def test_weights_in_the_hubs_cache_need_no_network(no_network, weights):
    "What `hf download` leaves behind is found"
    file, encoder = weights
    repo = no_network / "models--timm--test_vit.r160_in1k"
    (repo / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    shutil.copy(file, repo / "snapshots" / ("0" * 40) / "model.safetensors")
    found = load_encoder("timm:test_vit")
    assert found.fingerprint == encoder.fingerprint and found.name == "timm:test_vit.r160_in1k"


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("convnxt_tiny", {}, "nearest timm networks: convnext_tiny"),
        ("test_vit.r224", {}, "test_vit has test_vit.r160_in1k"),
        ("test_resnet", dict(pretrained=None, input_size=100), "multiple of timm:test_resnet's stride 32, e.g. 96"),
        ("coat_tiny", dict(pretrained=None), "no map: forward_features gives list"),
        ("test_vit", dict(pretrained=None, precision="fp8"), "choose auto"),
    ],
)
def test_what_cannot_be_is_refused(name, options, words):
    with warnings.catch_warnings(), pytest.raises(ValueError, match=words):
        warnings.simplefilter("ignore")
        load_encoder(f"timm:{name}", **options)


def test_a_configuration_names_it():
    "A class is a prototype; what an encoder of timm has not cannot be asked for"
    from tiny import TINIEST

    config = TINIEST.replace({"encoder.name": "timm:test_resnet", "encoder.pretrained": None, "encoder.dim": 16})
    with pytest.warns(UserWarning, match="RANDOM weights in timm:test_resnet"):
        world = prepare(config)
    assert world.encoder.input_size == 64 and world.prototypes.classes == ("cat", "dog")
    bank = world.bank("train")
    assert bank.saliency.shape == (len(load_data(config.data.train, config.data.classes)), 2, 16, 16)
    with pytest.raises(UnknownClassError, match="unknown class 'cat'. timm:test_resnet/random-seed0 knows no class"):
        world.encoder.evidence(None, ["cat"])
    for field, value in (("evidence", "encoder"), ("window", 64)):
        with pytest.raises(ConfigError, match=f"encoder.{field}.*timm:test_resnet"):
            config.replace({f"encoder.{field}": value})
    with pytest.raises(ConfigError, match="unknown encoder 'timm:resnt18'"):
        make_encoder(Config().replace({"encoder.name": "timm:resnt18"}))


def test_it_is_tried_like_any_encoder():
    "The acceptance test leaves out what needs names, and compares the pixels with timm's configuration"
    from locrl.vision.acceptance import accept

    found = {check.name: check for check in accept(random_encoder("test_resnet"), small=True)}
    assert found["pixels"].passed and found["finite"].passed and "timm" in found["pixels"].why
    assert not {"activation", "sprites ranked", "photographs named", "reference"} & set(found)
    assert isinstance(random_encoder("test_resnet"), TimmEncoder)
