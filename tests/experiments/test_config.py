"What a configuration may ask of the encoder and what it may not; folders from before there were such fields"

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from locrl.agents.judge import look_closer
from locrl.experiments.config import (
    CONFIGS,
    Config,
    ConfigError,
    LearningConfig,
    difference,
    feature_needs,
    make_encoder,
    prepare,
    saved_fields,
)
from locrl.experiments.iterations import ITERATIONS, find_config
from locrl.vision.feature_store import build_store
from locrl.vision.region_pooling import CropBank
from locrl.envs.observation import ObservationConfig
from locrl.experiments.train import Agent, train
from tiny import TINIEST

RESULTS = Path(__file__).parents[2] / "results"
TINY = TINIEST.replace(
    {
        "data.train": "scenes:train:12",
        "data.select": "scenes:val:6",
        "data.report": "scenes:test:6",
        "learning.steps": 160,
        "learning.target_update_interval": 8_000,
    }
)
CLIP = TINY.replace({"encoder.name": "tiny-windows", "encoder.pretrained": None, "encoder.prompts": "single"})


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
        ({"encoder.window": 32}, "window=32.*efficientnet_lite0 has no sliding windows"),
        ({"encoder.stride": 16}, "stride=16.*give a window"),
        (
            {"encoder.name": "ViT-B-16", "encoder.window": 32, "encoder.stride": 48},
            "stride=48.*gaps between windows of 32",
        ),
        ({"encoder.name": "ViT-B-16", "encoder.window": 0}, "window=0.*positive"),
        ({"encoder.name": "ViT-B-16", "encoder.window": 32, "encoder.stride": 0}, "stride=0.*positive"),
        ({"encoder.name": "ViT-B-16", "encoder.window": 96}, "window=96.*larger than the input of 64"),
        ({"encoder.regions": "cut"}, "regions='cut'.*'pooled' or 'crops'"),
        ({"encoder.regions": "crops", "data.flip": True}, "regions='crops'.*flip=False"),
    ],
)
def test_what_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        TINY.replace(changes)


@pytest.mark.parametrize("name", CONFIGS)
def test_folders_from_before(name):
    "A config.json without the new fields is the same configuration"
    old = CONFIGS[name].to_dict()
    for field in ("window", "stride", "regions"):
        del old["encoder"][field]
    assert Config.from_dict(old) == CONFIGS[name]


@pytest.mark.filterwarnings("ignore:.*random")
def test_windows_reach_the_encoder():
    plain, slid = make_encoder(CLIP), make_encoder(CLIP.replace({"encoder.window": 32, "encoder.stride": 16}))
    assert (plain.window, plain.stride) == (None, None) and (slid.window, slid.stride) == (32, 16)
    assert (
        make_encoder(CLIP.replace({"encoder.window": 32})).fingerprint == slid.fingerprint != plain.fingerprint
    )  # half a window
    world = prepare(CLIP.replace({"encoder.window": 32}))
    assert world.encoder.fingerprint == slid.fingerprint and len(world.bank("select")) == 6
    with pytest.raises(ConfigError, match="encoder.window: 32 -> None"):
        world.under(CLIP)


def test_the_needs_that_are_told_are_those_that_follow(capsys, monkeypatch):
    "Bytes of the arrays on the disk and in memory, exactly"
    world = prepare(TINY, tell=("train", "select"))
    told = capsys.readouterr().out
    assert told.startswith("features of 18 pictures (12 to train, 6 to select): ") and told.count("\n") == 1
    banks = [world.banks["train"], world.bank("select")]
    needs = feature_needs(TINY, world.encoder, world.data)
    held = sum(x.numel() * x.element_size() for b in banks for x in (b.integral, b.saliency, b.presence))
    assert needs.pictures == {"train": 12, "select": 6} and needs.memory == held and not needs.half
    stores = [build_store(world.data[s], world.encoder, projection=world.projection) for s in ("train", "select")]
    assert needs.disk == sum(np.load(file).nbytes for store in stores for file in store.path.glob("*.npy"))
    judge = TINY.replace({"evaluation.judge": True, "evaluation.report_confidence": "region"})
    both = prepare(judge)
    both.bank("select")
    for split, bank in both.banks.items():
        look_closer(bank, both.data[split], both.encoder, both.finer)
    more = feature_needs(judge, both.encoder, both.data)
    assert more.memory == held + sum(4 * bank.finer.numel() for bank in both.banks.values())
    closer = [build_store(both.data[s], both.encoder.finer(), projection=both.finer) for s in ("train", "select")]
    assert more.disk == needs.disk + sum(np.load(file).nbytes for store in closer for file in store.path.glob("*.npy"))
    monkeypatch.setattr("locrl.experiments.config.memory_room", lambda device: 3000)
    tight = feature_needs(TINY.replace({"data.flip": True}), world.encoder, world.data)
    assert tight.pictures == {"train": 24, "select": 6} and tight.half == ("train", "select")
    assert "(as half floats: train, select)" in str(tight)


def test_crops_are_what_the_encoder_gives():
    world = prepare(TINY.replace({"encoder.regions": "crops"}))
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
    config = TINY.replace(
        {
            "encoder.regions": "crops",
            "observation": ObservationConfig(saliency=False, grid=0, box=True, max_steps=3),
            "learning.n_envs": 2,
            "learning.batch_size": 4,
            "learning.steps": 16,
            "evaluation.eval_every": 16,
            "learning.learning_starts": 4,
        }
    )
    agent = Agent.load(train(config, root=tmp_path, progress=False))
    world = agent.world()
    assert (
        agent.config == config and agent.evaluate(world.bank("select"), world.data["select"]).localisation is not None
    )
    with pytest.raises(ConfigError, match="encoder.regions: 'crops' -> 'pooled'"):
        world.under(config.replace({"encoder.regions": "pooled"}))
    with pytest.raises(ConfigError, match="holds another run.*regions"):
        train(config.replace({"encoder.regions": "pooled"}), root=tmp_path, progress=False)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("learning.steps", 640.5, "whole number"),
        ("learning.steps", True, "whole number"),
        ("learning.n_envs", "8", "whole number"),
        ("network.net_arch", (0,), "widths of at least 1"),
        ("network.net_arch", (64, 2.5), "whole number"),
        ("learning.learning_rate", float("inf"), "finite"),
        ("learning.gamma", float("nan"), "finite"),
        ("demonstrations.margin", "1", "finite number"),
        ("learning.double", 1, "True or False"),
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
    with pytest.raises(ConfigError, match=rf"^{field}=.*{message}"):
        Config().replace({field: value})


def test_numbers_of_numpy_are_numbers():
    "Counts from arrays are whole numbers too, and a whole number is a finite one"
    assert Config().replace({"learning.steps": np.int64(40_000), "demonstrations.margin": 1}).learning.steps == 40_000


SAVED = sorted(file for file in RESULTS.rglob("*.json") if isinstance(json.loads(file.read_text()), dict))
SAVED = [file for file in SAVED if "config" in json.loads(file.read_text())]


@pytest.mark.parametrize("file", SAVED, ids=lambda file: file.stem)
def test_committed_results_hold_configurations_of_today(file):
    "Most were written when a configuration was flat; nothing is lost on the way"
    saved = json.loads(file.read_text())["config"]
    config = Config.from_dict(saved)
    assert difference(saved_fields(saved), config.to_dict()) == []
    assert Config.from_dict(config.to_dict()) == config


def test_there_are_committed_results():
    assert len(SAVED) > 20


def test_the_packed_agent_is_of_a_configuration_of_today():
    from locrl.apps.pretrained import load_pretrained

    config = load_pretrained().config
    assert config == find_config(config.name)


def flat(config):
    "The dictionary that a run of November 2026 kept, written out by hand"
    c = config
    return dict(
        name=c.name,
        **asdict(c.data),
        encoder=c.encoder.name,
        **{k: v for k, v in asdict(c.encoder).items() if k != "name"},
        observation=asdict(c.observation),
        moves=asdict(c.moves),
        reward=c.reward,
        **asdict(c.network),
        **asdict(c.learning),
        exploration_fraction=c.exploration.fraction,
        exploration_initial_eps=c.exploration.initial_eps,
        exploration_final_eps=c.exploration.final_eps,
        guided=c.exploration.guided,
        trigger_share=c.exploration.trigger_share,
        random_starts=c.exploration.random_starts,
        **asdict(c.replay),
        demo_ratio=c.demonstrations.ratio,
        demo_episodes=c.demonstrations.episodes,
        demo_oracle=c.demonstrations.oracle,
        **{k: v for k, v in asdict(c.demonstrations).items() if k not in ("ratio", "episodes", "oracle")},
        **asdict(c.search),
        **asdict(c.evaluation),
    )


OF_OLD = [name for name in ITERATIONS if name not in ("v17", "v18", "v19")]  # there were flat configurations of them


@pytest.mark.parametrize("name", [*CONFIGS, *(f"animals-5/{name}" for name in OF_OLD)])
def test_flat_configurations_are_read(name):
    config = find_config(name).replace({"demonstrations.mixed": False})  # there was no such field
    old = json.loads(json.dumps(flat(config)))
    for newer in ("mixed", "begin", "stop", "corrected", "overlap", "judge", "tied"):
        del old[newer]
    assert len(old) == 59 and Config.from_dict(old) == config


def test_settings_that_have_changed_their_meaning_are_converted():
    "The old reward called continuous had a jump; the old margin was a mean over the whole batch"
    from locrl.experiments.convert import _today

    old = flat(find_config("animals-5/v7").replace({"demonstrations.margin_weight": 1.0, "demonstrations.ratio": 0.1}))
    new = _today({"config": old, "seed": 3})
    assert (new["seed"], new["config"]["reward"]) == (3, "jump")
    assert new["config"]["margin_weight"] == 26 / 256 and old["margin_weight"] == 1.0
    today = {"config": find_config("animals-5/v7").to_dict()}
    assert _today(today) == today


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda c: c.update(gamma=0.5), "no field 'gamma': do you mean learning.gamma"),
        (lambda c: c["learning"].update(gama=0.5), "no field 'learning.gama'.*another version"),
        (lambda c: c["learning"].update(gamma={}), "learning.gamma={}: must be a finite number"),
        (lambda c: c.update(learning=3), "learning=3: must be a LearningConfig"),
        (lambda c: c.update(learning={}), "learning={}: must be a LearningConfig"),
        (lambda c: c["data"].update(classes="cat"), "data.classes='cat': must be a list"),
        (lambda c: c["data"].update(classes=["cat", "cat"]), "each class once"),
        (lambda c: c["observation"].update(reach="far"), "observation.reach='far': must be a finite number"),
        (lambda c: c["observation"].update(reach=-1), "observation: reach=-1.0: must be positive"),
        (lambda c: c["moves"].update(border="wrap"), "moves: border='wrap'"),
    ],
)
def test_damaged_configurations_are_named(damage, message):
    saved = CONFIGS["demo"].to_dict()
    damage(saved)
    with pytest.raises(ConfigError, match=message):
        Config.from_dict(saved)


@pytest.mark.parametrize("saved", [None, [], 3, "demo"])
def test_what_is_no_dictionary_is_no_configuration(saved):
    with pytest.raises(ConfigError, match="is no configuration"):
        Config.from_dict(saved)


def test_replacing_a_group_and_a_field_of_it():
    "The group comes first, whatever the order"
    changes = {"learning.gamma": 0.5, "learning": LearningConfig(steps=500)}
    for order in (changes, dict(reversed(changes.items()))):
        changed = Config().replace(order)
        assert changed.learning == LearningConfig(steps=500, gamma=0.5)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("learning.steps", 127, "give at least 128"),
        ("evaluation.eval_every", 127, "give at least 128"),
        ("learning.learning_starts", -1, "must not be negative"),
        ("encoder.input_size", 0, "must be positive"),
        ("encoder.dim", -4, "must be positive"),
        ("learning.batch_size", 200_001, "one batch"),
    ],
)
def test_numbers_that_train_nothing(field, value, message):
    with pytest.raises(ConfigError, match=message):
        Config().replace({field: value})
