"What a configuration may ask of the encoder: sliding windows, regions cut out; what it may not; folders from before there were such fields"

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from locrl.experiments.config import CONFIGS, LOOKS, Config, ConfigError, make_encoder, prepare
from locrl.vision.region_pooling import CropBank
from locrl.envs.observation import ObservationConfig
from locrl.experiments.train import Agent, train

TINY = Config(
    name="tiny",
    train="scenes:train:12",
    select="scenes:val:6",
    report="scenes:test:6",
    classes=("cat", "dog"),
    dim=8,
    input_size=64,
    n_envs=8,
    batch_size=16,
    gradient_steps=1,
    net_arch=(16, 16),
    region_width=4,
    steps=160,
    eval_every=160,
    learning_starts=64,
    buffer_size=400,
)
CLIP = replace(TINY, encoder="tiny-windows", pretrained=None, prompts="single")


@pytest.fixture(scope="module", autouse=True)
def tiny_clip(tmp_path_factory):
    "A CLIP of a few thousand numbers under a name of its own"
    from locrl.vision.clip import ensure_torchvision

    ensure_torchvision()
    import open_clip

    folder = tmp_path_factory.mktemp("configs")
    made = dict(
        embed_dim=16,
        vision_cfg=dict(image_size=32, layers=2, width=32, patch_size=8, head_width=16),
        text_cfg=dict(context_length=77, vocab_size=49408, width=16, heads=1, layers=1),
    )
    (folder / "tiny-windows.json").write_text(json.dumps(made))
    open_clip.add_model_config(folder)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(window=32), "window=32.*efficientnet_lite0 has no sliding windows"),
        (dict(stride=16), "stride=16.*give a window"),
        (dict(encoder="ViT-B-16", window=32, stride=48), "stride=48.*gaps between windows of 32"),
        (dict(encoder="ViT-B-16", window=0), "window=0.*positive"),
        (dict(encoder="ViT-B-16", window=32, stride=0), "stride=0.*positive"),
        (dict(encoder="ViT-B-16", window=96), "window=96.*larger than the input of 64"),
        (dict(regions="cut"), "regions='cut'.*'pooled' or 'crops'"),
        (dict(regions="crops", flip=True), "regions='crops'.*flip=False"),
    ],
)
def test_what_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **changes)


@pytest.mark.parametrize("name", CONFIGS)
def test_folders_from_before(name):
    "A config.json without the new fields is the same configuration"
    now = CONFIGS[name].to_dict()
    old = {k: v for k, v in now.items() if k not in ("window", "stride", "regions")}
    assert len(old) == len(now) - 3 and Config.from_dict(old) == CONFIGS[name]
    assert {"window", "stride", "regions"} <= set(LOOKS)


@pytest.mark.filterwarnings("ignore:.*random")
def test_windows_reach_the_encoder():
    plain, slid = make_encoder(CLIP), make_encoder(replace(CLIP, window=32, stride=16))
    assert (plain.window, plain.stride) == (None, None) and (slid.window, slid.stride) == (32, 16)
    assert make_encoder(replace(CLIP, window=32)).fingerprint == slid.fingerprint != plain.fingerprint  # half a window
    world = prepare(replace(CLIP, window=32))
    assert world.encoder.fingerprint == slid.fingerprint and len(world.bank("select")) == 6
    with pytest.raises(ConfigError, match="window=32.*asks for None"):
        world.under(CLIP)


def test_crops_are_what_the_encoder_gives():
    world = prepare(replace(TINY, regions="crops"))
    bank, box = world.bank("select"), np.float32([[0, 0, 0.5, 1], [0.25, 0.25, 1, 0.75]])
    assert isinstance(bank, CropBank)
    expected = world.projection(
        world.encoder.embed_crops([world.data["select"].image(i) for i in (3, 1)], box)[..., None, None]
    )[:, 0, 0]
    torch.testing.assert_close(
        bank.pool(torch.tensor([3, 1]), torch.from_numpy(box)[:, None])[:, 0], expected, atol=1e-4, rtol=1e-4
    )


def test_a_run_on_crops(tmp_path):
    "Trained, loaded and scored; its pooled sister shares store and prototypes but is another world"
    config = replace(
        TINY,
        regions="crops",
        observation=ObservationConfig(saliency=False, grid=0, box=True, max_steps=3),
        n_envs=2,
        batch_size=4,
        steps=16,
        eval_every=16,
        learning_starts=4,
    )
    agent = Agent.load(train(config, root=tmp_path, progress=False))
    world = agent.world()
    assert (
        agent.config == config and agent.evaluate(world.bank("select"), world.data["select"]).localisation is not None
    )
    with pytest.raises(ConfigError, match="regions='crops'"):
        world.under(replace(config, regions="pooled"))
    with pytest.raises(ConfigError, match="holds another run.*regions"):
        train(replace(config, regions="pooled"), root=tmp_path, progress=False)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("steps", 640.5, "whole number"),
        ("steps", True, "whole number"),
        ("n_envs", "8", "whole number"),
        ("net_arch", (0,), "widths of at least 1"),
        ("net_arch", (64, 2.5), "widths of at least 1"),
        ("learning_rate", float("inf"), "finite"),
        ("gamma", float("nan"), "finite"),
        ("margin", "1", "finite number"),
        ("double", 1, "True or False"),
        ("reward", 3, "a text"),
        ("name", "../../x", "folder below the root"),
        ("name", "/tmp/x", "folder below the root"),
        ("name", "a/../b", "folder below the root"),
        ("name", "C:\\x", "folder below the root"),
        ("name", "", "folder below the root"),
    ],
)
def test_types_and_places(field, value, message):
    "A number of the wrong kind does not train, and no name leads out of the root"
    with pytest.raises(ConfigError, match=rf"Config\({field}=.*{message}"):
        Config(**{field: value})


def test_numbers_of_numpy_are_numbers():
    "Counts from arrays are whole numbers too, and a whole number is a finite one"
    assert Config(steps=np.int64(40_000), margin=1).steps == 40_000
