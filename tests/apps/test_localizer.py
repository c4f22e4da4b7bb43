"""A user's pictures and phrases: boxes are those of the evaluation, and what cannot be used is refused in words."""

import json
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch
from PIL import Image

from locrl.agents.predictions import CONFIDENCE, ConfidenceError, RegionClassifier, predict, region_inputs
from locrl.data.boxes import TRIGGER
from locrl.experiments.config import ConfigError, prepare
from locrl.data.voc import DataError
from locrl.vision.encoders import ENCODERS, UnknownClassError
from locrl.vision.feature_store import Projection
from locrl.vision.region_pooling import integral_image
from locrl.evaluation.protocols import all_queries
from locrl.apps.localizer import Localizer, PictureBank, picture
from locrl.envs.observation import ObservationConfig
from locrl.experiments.results import classifier_file
from locrl.data.scenes import Scenes
from locrl.experiments.train import train
from vision.test_clip import TINY as TINY_CLIP
from mosaic import Mosaic
from tiny import TINIEST

TINY = TINIEST.replace(
    {
        "network.net_arch": (16,),
        "learning.steps": 200,
        "evaluation.eval_every": 200,
        "learning.learning_starts": 50,
        "replay.buffer_size": 200_000,
        "learning.target_update_interval": 8_000,
    }
)


@pytest.fixture(scope="module")
def world():
    return prepare(TINY)


@pytest.fixture(scope="module")
def localizer(world, tmp_path_factory):
    return Localizer.from_run(train(TINY, root=tmp_path_factory.mktemp("runs"), world=world, progress=False))


@pytest.fixture(scope="module")
def scenes(world):
    world.bank("report")
    return [world.data["report"].image(i) for i in range(12)]


def same(a, b):
    np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-6)
    np.testing.assert_allclose(a.q_values, b.q_values, atol=1e-4)
    np.testing.assert_allclose(a.box, b.box, atol=1e-6)
    assert a.confidence == pytest.approx(b.confidence, abs=1e-5) and a.class_name == b.class_name


def test_features_are_those_of_the_store(world, scenes):
    "A bank made in memory holds what one read from disk holds"
    disk = world.banks["report"]
    here = PictureBank(scenes, world.encoder, world.projection, TINY.data.classes, world.prototypes)
    torch.testing.assert_close(here.integral, disk.integral, atol=0.01, rtol=1e-3)
    torch.testing.assert_close(here.saliency, disk.saliency, atol=5e-3, rtol=0)
    torch.testing.assert_close(here.presence, disk.presence, atol=5e-3, rtol=0)
    mixed = PictureBank(scenes[:2], world.encoder, world.projection, ("bus", "dog", "cat"), world.prototypes)
    assert mixed.classes == ("dog", "cat", "bus")
    torch.testing.assert_close(mixed.saliency[:, 0], here.saliency[:2, 1], atol=1e-5, rtol=0)


def test_finer_features_are_those_of_the_finer_encoder(world, scenes):
    "For more pictures than a batch holds; the other features stay bit for bit what they are without"
    finer = world.encoder.finer()
    projection = Projection.fit(finer.encode(scenes[:2]).flatten(2).transpose(1, 2).flatten(0, 1).numpy(), 4)
    some = [*scenes, *scenes[:8]]
    given = world.encoder, world.projection, TINY.data.classes, world.prototypes
    plain, here = PictureBank(some, *given), PictureBank(some, *given, finer=projection)
    assert plain.finer is None and torch.equal(plain.integral, here.integral)
    expected = integral_image(torch.cat([projection(finer.encode(some[i : i + 16])).half() for i in (0, 16)]))
    assert torch.equal(here.finer, expected)


def test_answers_are_those_of_the_evaluation(localizer, world, scenes):
    "Every picture x class: box, trigger and confidence as `predict` has them, the way as the actions lead it"
    policy, bank = localizer.agent.policy, world.banks["report"]
    scored = predict(policy, bank, *all_queries(12, 2))
    for name in TINY.data.classes:
        for i, found in enumerate(localizer.locate(scenes, name)):
            row = 2 * i + TINY.data.classes.index(name)
            np.testing.assert_allclose(found.box, scored.box[row], atol=1e-5)
            assert found.triggered == scored.triggered[row] and len(found.actions) == scored.steps[row]
            assert found.confidence == pytest.approx(scored.presence[row] * scored.iou[row], abs=1e-2)
            for before, action, after in zip(found.boxes, found.actions, found.boxes[1:]):
                np.testing.assert_allclose(TINY.moves.apply(before, action), after, atol=1e-6)
            assert (found.actions[:-1] != TRIGGER).all() and (found.actions[-1] == TRIGGER) == found.triggered
            np.testing.assert_allclose(found.episode.boxes[-1], found.box, atol=1e-6)


def test_the_surest_box_passed(localizer, world, scenes):
    "A run whose answer is that is answered so, and the episode ends with the answer"
    agent = replace(localizer.agent, config=TINY.replace({"search.answer": "surest"}))
    scored = predict(agent.policy, world.banks["report"], *all_queries(12, 2), choice="surest")
    for row, found in enumerate(
        Localizer(agent, world.encoder).locate(
            [s for s in scenes for _ in TINY.data.classes], list(TINY.data.classes) * 12
        )
    ):
        np.testing.assert_allclose(found.box, scored.box[row], atol=1e-5)
        assert found.triggered == scored.triggered[row] and len(found.actions) == scored.steps[row]
        assert found.believed.max() == pytest.approx(scored.iou[row], abs=1e-2)
        np.testing.assert_array_equal(found.episode.boxes[-1], found.box)


def test_cut_out_regions(localizer, world, scenes):
    "A run that learned from cut-out regions is answered from those, as in its evaluation"
    agent = replace(localizer.agent, config=TINY.replace({"encoder.regions": "crops"}))
    bank = replace(world, config=agent.config, banks={}, data={}).bank("report")
    scored = predict(agent.policy, bank, *all_queries(2, 2), max_steps=6)
    agent.config = agent.config.replace({"observation": replace(TINY.observation, max_steps=6)})
    for row, found in enumerate(
        f for scene in scenes[:2] for f in Localizer(agent, world.encoder).locate(scene, ["cat", "dog"])
    ):
        np.testing.assert_allclose(found.box, scored.box[row], atol=1e-5)


def test_a_run_that_learned_from_cut_out_regions(tmp_path, monkeypatch):
    "Trained, opened from its folder, and used: on a picture of any kind, on several at once, on frames one by one"
    monkeypatch.setenv("LOCRL_CACHE", str(tmp_path))
    monkeypatch.setitem(ENCODERS, "mosaic", lambda device, input_size: Mosaic())
    cut = Localizer.from_run(
        train(
            TINY.replace(
                {
                    "name": "crops",
                    "encoder.name": "mosaic",
                    "encoder.dim": 6,
                    "encoder.regions": "crops",
                    "data.select": "scenes:val:4",
                    "data.report": "scenes:test:4",
                }
            ),
            root=tmp_path,
            progress=False,
        )
    )
    world = cut.agent.world()
    bank, data = world.bank("report"), world.data["report"]
    scored = predict(cut.agent.policy, bank, *all_queries(len(data), 2))
    images = [data.image(i) for i in range(len(data))]
    for k, name in enumerate(TINY.data.classes):
        batch = cut.locate(images, name)
        for i, (together, frame) in enumerate(zip(batch, cut.locate_stream(iter(images), name))):
            np.testing.assert_allclose(together.box, scored.box[2 * i + k], atol=1e-5)
            same(frame, together)
    array = np.asarray(images[0])
    for given in (array, array / 255, torch.from_numpy(array.copy()).permute(2, 0, 1), images[0].convert("RGBA")):
        same(cut.locate(given, "dog"), cut.locate(images[0], "dog"))
    for odd in (Image.new("L", (1, 1)), Image.new("CMYK", (30, 40)), Image.new("RGB", (5000, 4000))):
        assert np.isfinite(cut.locate(odd, "cat").confidence)
    assert all(0 <= found.confidence <= 1 for found in cut.locate_all(images[0], "cat", least=0))


def test_a_search_without_trigger_answers_with_what_it_believed_in_most(localizer, scenes, monkeypatch):
    network = type(localizer.agent.policy.q_net)
    predict = network.predict_all

    def never_triggers(net, keys, bank):
        q, believed = predict(net, keys, bank)
        q[:, TRIGGER] = -100
        return q, believed

    monkeypatch.setattr(network, "predict_all", never_triggers)
    found = localizer.locate(scenes[0], "cat")
    assert not found.triggered and len(found.actions) == 40
    np.testing.assert_allclose(found.box, found.boxes[found.believed.argmax()])
    assert found.episode.steps == found.believed.argmax() and "never triggered" in repr(found)


@pytest.fixture
def classifier(localizer, world, scenes):
    "A region classifier in the run's folder that gives cats 0.25 and dogs 0.75"
    size = region_inputs(world.banks["report"], np.zeros(1, int), np.float32([[0, 0, 1, 1]])).shape[1]
    zero, odds = np.zeros((size, 1), np.float32), np.log(np.float32([1 / 3, 3]))
    file = classifier_file(localizer.agent)
    RegionClassifier(
        TINY.data.classes, world.projection.digest, zero, zero[0], np.zeros((1, 2), np.float32), odds
    ).save(file)
    yield file
    file.unlink()


def test_region_classifier_of_the_run(localizer, scenes, classifier):
    judged = Localizer.from_run(localizer.agent.folder, confidence="region")
    assert [f.confidence for f in judged.locate(scenes[0], ["dog", "cat"])] == pytest.approx([0.75, 0.25])
    with pytest.raises(UnknownClassError, match="classes of its training only"):
        judged.locate(scenes[0], "bus")


def test_no_region_classifier(localizer):
    with pytest.raises(ConfidenceError, match="no region classifier"):
        Localizer.from_run(localizer.agent.folder, confidence="region")


@pytest.mark.parametrize("confidence", CONFIDENCE)
def test_confidence(localizer, scenes, confidence, request):
    if "region" in confidence:
        request.getfixturevalue("classifier")
    found = Localizer(localizer.agent, localizer.encoder, confidence).locate(scenes[0], "cat")
    assert np.isfinite(found.confidence) and (confidence == "q_trigger" or 0 <= found.confidence <= 1)


def test_whatever_a_picture_comes_as(localizer, scenes, tmp_path):
    image = scenes[0]
    array = np.asarray(image)
    image.save(tmp_path / "scene.png")
    expected = localizer.locate(image, "a cat")
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    for given in (
        tmp_path / "scene.png",
        str(tmp_path / "scene.png"),
        array,
        array / 255,
        array.astype(np.float32) / 255,
        tensor,
        tensor / 255,
        image.convert("RGBA"),
        np.dstack([array, np.full(array.shape[:2], 255, np.uint8)]),
    ):
        same(localizer.locate(given, "a cat"), expected)
    for batch in ([image, array], (image, image), np.stack([array, array]), torch.stack([tensor, tensor])):
        first, second = localizer.locate(batch, "a cat")
        same(first, expected)
        same(second, expected)
    assert localizer.locate([], "cat") == [] and localizer.locate(image, []) == []


def test_odd_pictures(localizer):
    "One pixel, greys, CMYK, a long strip, twenty megapixels, and a photograph taken with the camera turned"
    for image in (
        Image.new("RGB", (1, 1)),
        Image.new("L", (30, 40), 100),
        Image.new("CMYK", (30, 40)),
        Image.new("1", (9, 9)),
        Image.new("RGB", (500, 2)),
        Image.new("RGB", (5000, 4000)),
        np.zeros((5, 7)),
        np.zeros((5, 7, 1), np.uint8),
        torch.zeros(1, 5, 7),
    ):
        found = localizer.locate(image, "dog")
        x1, y1, x2, y2 = found.pixels
        assert 0 <= x1 <= x2 <= found.image.width and 0 <= y1 <= y2 <= found.image.height
    turned = Image.new("RGB", (40, 20))
    turned.getexif()[0x0112] = 6
    assert localizer.locate(turned, "dog").image.size == (20, 40)


@pytest.mark.parametrize(
    "given, words",
    [
        (np.full((4, 4, 3), np.nan), "NaN"),
        (np.full((4, 4, 3), 7.0), "7 to 7"),
        (np.zeros((4, 4, 3), int), "int64"),
        (np.zeros((3, 4, 4, 2)), "shape"),
        (np.zeros((3, 8, 8)), r"\(3, 8, 8\)"),
        (np.zeros((0, 4, 3), np.uint8), "shows nothing"),
        (torch.zeros(8, 8, 3), r"\(8, 8, 3\)"),
        (7, "int is no picture"),
        ("no/such.jpg", "no/such.jpg"),
    ],
)
def test_refused_pictures(localizer, given, words):
    with pytest.raises(DataError, match=words):
        localizer.locate(given, "dog")


def test_a_truncated_file(localizer, scenes, tmp_path):
    scenes[0].save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:900])
    with pytest.raises(DataError, match="cut.jpg"):
        localizer.locate(tmp_path / "cut.jpg", "dog")
    with pytest.raises(DataError, match="cannot be decoded"):
        picture(Image.open(tmp_path / "cut.jpg"))
    with pytest.raises(DataError, match="picture 1: .*cut.jpg"):
        localizer.locate([scenes[0], tmp_path / "cut.jpg"], "dog")


def test_what_cannot_be_opened(localizer, tmp_path):
    "A folder, or nothing: the cure is the caller's, no matter of VOC's archives"
    for path in tmp_path, tmp_path / "none.jpg":
        with pytest.raises(DataError, match=f"{path}.*give the path of a picture"):
            localizer.locate(path, "dog")


def test_an_answer_has_pixels(localizer):
    for size in (1, 1), (3, 1), (1, 200):
        x1, y1, x2, y2 = localizer.locate(Image.new("RGB", size), "dog").pixels
        assert 0 <= x1 < x2 <= size[0] and 0 <= y1 < y2 <= size[1]


@pytest.mark.parametrize(
    "phrase, name",
    [
        ("a sheep", "sheep"),
        ("The  Cat", "cat"),
        ("dogs", "dog"),
        ("buses", "bus"),
        ("potted plants", "pottedplant"),
        ("an airplane", "aeroplane"),
        ("couch", "sofa"),
        ("a television", "tvmonitor"),
        ("bus", "bus"),
        ("motorcycles", "motorbike"),
    ],
)
def test_words(localizer, phrase, name):
    assert localizer.class_of(phrase) == name


def test_unknown_words(localizer, scenes):
    with pytest.raises(UnknownClassError, match="'doge'; nearest known: dog"):
        localizer.locate(scenes[0], "a doge")
    with pytest.raises(UnknownClassError, match="no text tower"):
        localizer.locate(scenes[0], "person")
    with pytest.raises(UnknownClassError, match="give an example"):
        localizer.locate(scenes[0], "a mitten")
    for nothing in ("", "  ", None, 3):
        with pytest.raises((ValueError, TypeError)):
            localizer.locate(scenes[0], nothing)
    with pytest.raises(UnknownClassError):
        localizer.locate_stream(iter(()), "unicorn")


def test_a_near_word_is_answered_and_says_how_near(localizer, scenes):
    "The box is that of the class it is led to; one and the same class may be asked for in two ways at once"
    dog, puppy = localizer.locate(scenes[0], ["dog", "a puppy"])
    assert (puppy.class_name, puppy.nearness, dog.nearness) == ("dog", 0.5, 1.0)
    assert (puppy.box == dog.box).all() and "nearness 0.50" in repr(puppy) and "nearness" not in repr(dog)
    assert localizer.name_of("the black dog") == ("dog", 0.5)
    assert all(found.nearness == 0.5 for found in localizer.locate_all(scenes[0], "puppies", least=0.0))


def test_find_this(localizer, scenes, world):
    "An example gives the saliency that the agent is shown; pictures are searched as by name"
    from locrl.vision.example import example_of

    box = (0.1, 0.2, 0.6, 0.9)
    found = localizer.locate(scenes[:3], example=(scenes[3], box))
    assert [one.class_name for one in found] == ["this"] * 3
    like = example_of(localizer.encoder, localizer.agent.projection, scenes[3], box)
    bank = PictureBank(scenes[:3], localizer.encoder, localizer.agent.projection, ("this",), like)
    np.testing.assert_allclose(found[1].saliency, bank.saliency[1, 0], atol=1e-6)
    single = localizer.locate(scenes[1], example=(scenes[3], box))
    same(single, found[1])
    assert localizer.locate(scenes[0], example=np.asarray(scenes[3])).class_name == "this"
    assert localizer.locate([], example=scenes[3]) == []


def test_find_this_is_refused(localizer, scenes):
    with pytest.raises(ValueError, match="give phrases, or an example"):
        localizer.locate(scenes[0])
    with pytest.raises(ValueError, match="give phrases, or an example"):
        localizer.locate(scenes[0], "cat", example=scenes[1])
    with pytest.raises(ValueError, match="box"):
        localizer.locate(scenes[0], example=(scenes[1], (0.5, 0.5, 0.5, 0.6)))
    config = TINY.replace({"observation": ObservationConfig(n_classes=2)})
    coded = Localizer(replace(localizer.agent, config=config), localizer.encoder)
    with pytest.raises(ValueError, match="takes no example"):
        coded.locate(scenes[0], example=scenes[1])


def test_find_this_by_the_agent_of_the_package():
    "Its judge knows the classes of its training only: an example is looked for without it, as without one at all"
    data = Scenes(2, split="test", classes=("cat",), objects=(1, 1), negatives=0)
    judged = Localizer.pretrained()
    assert judged.closed
    plain = Localizer.pretrained(confidence=judged.agent.config.evaluation.confidence)
    example = (data.image(1), data.annotation(1).boxes[0])
    found, wanted = (one.locate(data.image(0), example=example) for one in (judged, plain))
    assert found.class_name == "this"
    same(found, wanted)
    with pytest.raises(UnknownClassError, match="give an example"):
        judged.locate(data.image(0), "bus")
    assert plain.class_of("bus") == "bus"


def test_an_agent_with_a_class_code_takes_its_own_classes_only(localizer, scenes):
    config = TINY.replace({"observation": ObservationConfig(n_classes=2)})
    coded = Localizer(replace(localizer.agent, config=config), localizer.encoder)
    assert coded.class_of("the dogs") == "dog"
    with pytest.raises(UnknownClassError, match="none for others"):
        coded.class_of("bus")


def test_the_way_to_each_of_them(localizer, scenes):
    "Box after box as the actions say, from where a search began to the answer; a trigger leaves the box as it is"
    moves, ways = TINY.moves, [x for scene in scenes[:4] for x in localizer.locate_all(scene, "dog", least=0)]
    assert any(x.triggered for x in ways) and not all(x.triggered for x in ways)
    for x in ways:
        assert len(x.boxes) == len(x.actions) + 1 == len(x.q_values) + 1 == len(x.believed) + 1
        np.testing.assert_allclose(x.boxes[1:], moves.apply(x.boxes[:-1], x.actions), atol=1e-6)
        np.testing.assert_array_equal(x.boxes[-1], x.box)
        assert (x.actions[-1:] == TRIGGER).all() == x.triggered or not len(x.actions)


def test_pixels_of_a_sliver(localizer, scenes):
    found, (w, h) = localizer.locate(scenes[0], "dog"), scenes[0].size

    def pixels(*box):
        return replace(found, box=np.float32(box)).pixels

    assert pixels(0, 0, 1, 1) == (0, 0, w, h)
    assert pixels(0.9999, 0, 1, 0.5) == (w - 1, 0, w, h // 2) and pixels(0, 0.9999, 0, 1) == (0, h - 1, 1, h)


def test_several_phrases(localizer, scenes):
    several = localizer.locate(scenes[0], ["a cat", "bus", "the dog", "cat"])
    assert [f.class_name for f in several] == ["cat", "bus", "dog", "cat"]
    same(several[0], localizer.locate(scenes[0], "cat"))
    for found, alone in zip(localizer.locate(scenes[:2], ["dog", "cat"]), ((scenes[0], "dog"), (scenes[1], "cat"))):
        same(found, localizer.locate(*alone))
    with pytest.raises(ValueError, match="2 pictures and 3 phrases"):
        localizer.locate(scenes[:2], ["dog"] * 3)


@pytest.mark.parametrize("restarts", ["corners", "windows"])
def test_threads_that_share_a_localizer_get_the_answers_of_one_alone(localizer, world, scenes, restarts):
    "Eight threads at once, each with pictures of its own and all three methods, again and again"
    agent = replace(localizer.agent, config=TINY.replace({"search.restarts": restarts}))
    shared = Localizer(agent, world.encoder)
    before = set(vars(agent.policy.q_net))

    def work(k):
        picture, other = scenes[k], scenes[k + 4]
        name = TINY.data.classes[k % 2]
        found = [shared.locate(picture, name), *shared.locate([other, picture], ["cat", "dog"])]
        found += shared.locate_all(picture, name, least=0.0)
        return found + list(shared.locate_stream(iter([picture, other]), name))

    alone = [work(k) for k in range(8)]
    start = threading.Barrier(8)

    def at_once(k):
        start.wait()
        return [work(k) for _ in range(3)]

    with ThreadPoolExecutor(8) as pool:
        for k, rounds in enumerate(pool.map(at_once, range(8))):
            for found in rounds:
                assert len(found) == len(alone[k])
                for a, b in zip(found, alone[k]):
                    same(a, b)
                    np.testing.assert_array_equal(a.actions, b.actions)
    assert set(vars(agent.policy.q_net)) == before


@pytest.mark.parametrize("batch", [1, 3])
def test_stream(localizer, scenes, batch):
    "Nothing is read ahead of what is asked for, and the last frames are not lost"
    read = []

    def camera():
        for i in count():
            read.append(i)
            yield scenes[i % 12]

    stream = localizer.locate_stream(camera(), "cat", batch=batch)
    assert not read
    for i, found in zip(range(4), stream):
        same(found, localizer.locate(scenes[i], "cat"))
    assert len(read) <= 5 + batch
    assert len(list(localizer.locate_stream(iter(scenes[:5]), "cat", batch=batch))) == 5
    with pytest.raises(ValueError, match="batch=0"):
        localizer.locate_stream([], "cat", batch=0)


def test_it_draws_itself(localizer, scenes):
    found = localizer.locate(scenes[0], "cat")
    assert found._repr_png_()[:4] == b"\x89PNG" and len(found.figure().axes) == 1


def test_no_run(tmp_path):
    with pytest.raises(ConfigError, match="is no run"):
        Localizer.from_run(tmp_path)


def test_any_phrase_with_a_text_tower(tmp_path, monkeypatch):
    "A run on a tiny CLIP of random weights: a phrase it never learned has an embedding, a map and a search of its own"
    open_clip = pytest.importorskip("open_clip")
    (tmp_path / "tiny-ViT-phrases.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(tmp_path)
    monkeypatch.setenv("LOCRL_CACHE", str(tmp_path))
    config = TINY.replace(
        {
            "name": "clip",
            "encoder.name": "tiny-ViT-phrases",
            "encoder.pretrained": None,
            "encoder.dim": None,
            "encoder.evidence": "encoder",
            "encoder.prompts": "single",
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        localizer = Localizer.from_run(train(config, root=tmp_path, progress=False))
    image = Scenes(1).image(0)
    elephant, dog, cats = localizer.locate(image, ["a purple elephant", "the black dog", "Cats"])
    assert [f.class_name for f in (elephant, dog, cats)] == ["purple elephant", "black dog", "cat"]
    assert np.abs(elephant.saliency - dog.saliency).max() > 0 and elephant.saliency.shape == (16, 16)
    with pytest.raises(ValueError, match="name what to look for"):
        localizer.locate(image, " ")
