"""Labelled pictures in the formats of the tools: what trips people, and the same arrays from every format."""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from locrl.data import coco, formats, hub, layout, yolo
from locrl.data.formats import absolute_spec, damaged_pictures, load_pictures, open_all, shared_pictures
from locrl.data.scenes import Scenes
from locrl.data.voc import Annotation, DataError, View

W, H = 32, 24


def paint(path: Path, colour="grey", size=(W, H), orientation=None) -> Path:
    "Save a picture; with an EXIF orientation where one is given"
    path.parent.mkdir(parents=True, exist_ok=True)
    image, exif = Image.new("RGB", size, colour), Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    image.save(path, exif=exif)
    return path


def write(path: Path, text: str) -> Path:
    "Save a text"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def xml(objects=(), size=(W, H), filename="") -> str:
    "A VOC annotation; objects are (name, xmin, ymin, xmax, ymax)"
    body = "".join(
        f"<object><name>{n}</name>"
        f"<bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for n, a, b, c, d in objects
    )
    size = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    return f"<annotation><filename>{filename}</filename>{size}{body}</annotation>"


def instances(path: Path, images, annotations=(), categories=((1, "bird"),), **more) -> Path:
    "Save a COCO file; images are (id, file name) or (id, file name, width, height)"
    made = []
    for id, name, *size in images:
        made.append(dict(id=id, file_name=name, width=(size or (W, H))[0], height=(size or (W, H))[1]))
    content = dict(images=made, annotations=list(annotations), categories=[dict(id=i, name=n) for i, n in categories])
    return write(path, json.dumps(content | more))


def thing(image=1, bbox=(8, 6, 16, 12), category=1, id=1, **more) -> dict:
    "A COCO annotation"
    return dict(id=id, image_id=image, category_id=category, bbox=list(bbox)) | more


BOX = np.float32([[0.25, 0.25, 0.75, 0.75]])  # 8, 6, 24, 18 of 32 x 24


# ---- the same pictures in every format -------------------------------------------------------------------------------


class Unflagged(View):
    "Pictures none of whose objects is difficult or truncated"

    def _annotate(self, i):
        a = super()._annotate(i)
        return Annotation(a.boxes, a.labels, np.zeros(len(a), bool), np.zeros(len(a), bool))


def scenes_without_flags(n=6, split="train", classes=("cat", "dog")):
    "Scenes without flags, which not every format can write"
    scenes = Scenes(n, split=split, classes=classes, size=(32, 48), negatives=0.4)
    return Unflagged(scenes.name, [(scenes, i) for i in range(n)])


def copies(root: Path, scenes, split="train") -> dict:
    "One set of picture files with YOLO's, COCO's and VOC's labels: format -> spec"
    pictures = root / "images" / split
    yaml = yolo.write_yolo(scenes, root, split)
    names = [f"images/{split}/{id}.jpg" for id in scenes.ids]
    file = coco.write_coco(scenes, root / f"{split}.json", names)
    for i, id in enumerate(scenes.ids):
        (w, h), a = scenes.size(i), scenes.annotation(i)
        pixels = np.rint(a.boxes * np.float32([w, h, w, h])).astype(int) + [1, 1, 0, 0]
        objects = [(scenes.classes[k], *box) for k, box in zip(a.labels, pixels)]
        write(pictures / f"{id}.xml", xml(objects, (w, h)))
    return {"yolo": f"yolo:{yaml}:{split}", "coco": f"coco:{file}", "voc": f"voc:{pictures}"}


def arrays(data):
    "All that a training sees of a data set"
    truth = data.ground_truth()
    return [
        data.ids,
        data.classes,
        [data.size(i) for i in range(len(data))],
        *(vars(truth)[k].tobytes() for k in vars(truth)),
    ]


def test_coco_yolo_and_voc_copies_give_the_same_arrays(tmp_path):
    scenes = scenes_without_flags(12)
    assert 0 in [len(scenes.annotation(i)) for i in range(12)], "no negative among them: take more scenes"
    read = {kind: load_pictures(spec, scenes.classes) for kind, spec in copies(tmp_path, scenes).items()}
    for data in read.values():
        assert arrays(data) == arrays(scenes)
        assert not data.left_out
    assert len({np.asarray(data.image(3)).tobytes() for data in read.values()}) == 1


@given(st.integers(1, 5000), st.integers(0, 4999), st.integers(1, 5000))
def test_six_decimals_give_back_whole_pixels(width, left, extent):
    left = min(left, width - 1)
    right = min(left + extent, width)
    centre, wide = float(f"{(left + right) / 2 / width:.6f}"), float(f"{(right - left) / width:.6f}")
    box = formats.snapped((centre - wide / 2, 0, centre + wide / 2, 1), (width, 1))
    assert (box[0], box[2]) == (left / width, right / width)


# ---- VOC -------------------------------------------------------------------------------------------------------------


def test_voc_with_any_classes_in_any_folder(tmp_path):
    paint(tmp_path / "images" / "a.jpg")
    write(tmp_path / "annots" / "a.xml", xml([("kangaroo", 9, 7, 24, 18)]))
    data = load_pictures(f"voc:{tmp_path}")
    assert (data.ids, data.classes) == (("a",), ("kangaroo",))
    np.testing.assert_array_equal(data.annotation(0).boxes, BOX)


def test_voc_by_list_by_folder_and_by_seed(tmp_path):
    for k in range(4):
        paint(tmp_path / "lists" / "JPEGImages" / f"bird {k}.jpg")
        write(tmp_path / "lists" / "Annotations" / f"bird {k}.xml", xml([("b", 1, 1, 9, 9)]))
        for split in "train", "valid":
            paint(tmp_path / "folders" / split / f"{k}.jpg", (k, 0, 9 if split == "train" else 0))
            write(tmp_path / "folders" / split / f"{k}.xml", xml([("b", 1, 1, 9, 9)] * (split == "train")))
    write(tmp_path / "lists" / "ImageSets" / "Main" / "train.txt", "bird 2\nbird 0\nbird 0\n")
    data = load_pictures(f"voc:{tmp_path / 'lists'}:train")
    assert (
        data.ids == ("bird 0", "bird 2")
        and data.notes[0].startswith("lines of the list that name a picture again")
        and data.notes[0].endswith(": 1")
    )
    with pytest.raises(DataError, match="has no split 'val': there are train"):
        load_pictures(f"voc:{tmp_path / 'lists'}:val")
    val = load_pictures(f"voc:{tmp_path / 'folders'}:val")
    assert val.ids == ("0", "1", "2", "3") and len(val.ground_truth()) == 0
    np.testing.assert_array_less(
        np.asarray(val.image(0)).max(), 7
    )  # of `valid`, not of `train`, which has the same names
    (tmp_path / "lists" / "ImageSets" / "Main" / "train.txt").unlink()
    parts = [load_pictures(f"voc:{tmp_path / 'lists'}:{split}").ids for split in ("train", "val", "test")]
    assert sorted(sum(parts, ())) == [f"bird {k}" for k in range(4)] and all(parts)
    assert json.loads((tmp_path / "lists" / "locrl-split.json").read_text())["seed"] == 0


def test_voc_errors_come_all_at_once_with_their_files(tmp_path):
    for k in range(3):
        paint(tmp_path / f"{k}.jpg")
    write(tmp_path / "0.xml", xml([("b", 1, 1, 99, 9)]))
    write(tmp_path / "1.xml", "<annotation>\n<size>\n</annotation>")
    write(tmp_path / "2.xml", xml([("b", 1, 1, 9, 9)]))
    write(tmp_path / "3.xml", xml([("b", 1, 1, 9, 9)]))
    with pytest.raises(DataError) as e:
        load_pictures(f"voc:{tmp_path}")
    message = str(e.value)
    for part in (
        "3 errors",
        "0.xml",
        "leaves the 32 x 24",
        "1.xml",
        "line 3",
        "3.xml: no picture",
        "--leave-out-damaged",
    ):
        assert part in message
    data = load_pictures(f"undamaged:voc:{tmp_path}")
    assert data.ids == ("2",) and len(data.left_out) == 3


def test_voc_without_xml_is_a_negative_and_is_told(tmp_path):
    for name in "a.jpg", "b.jpg", "SegmentationClass/a.png", ".hidden.jpg":
        paint(tmp_path / name)
    write(tmp_path / "a.xml", xml([("b", 1, 1, 9, 9)]))
    data = load_pictures(f"voc:{tmp_path}")
    assert data.ids == ("a", "b") and [len(data.annotation(i)) for i in range(2)] == [1, 0]
    assert data.notes == ("pictures without an XML file, which count as pictures without objects: 1",)


def test_voc_file_that_names_its_picture(tmp_path):
    paint(tmp_path / "photo é.jpg")
    write(tmp_path / "task-1.xml", xml([("b", 1, 1, 9, 9)], filename="photo é.jpg"))
    assert len(load_pictures(f"voc:{tmp_path}").annotation(0)) == 1


# ---- COCO ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("json_name", "picture", "named"),
    [
        ("_annotations.coco.json", "a.jpg", "a.jpg"),  # Roboflow
        ("annotations/instances_default.json", "images/default/sub/a b.jpg", "sub/a b.jpg"),  # CVAT
        ("result.json", "images/é-a.jpg", "../../label-studio/data/media/upload/1/é-a.jpg"),  # Label Studio
        ("result.json", "images/1-a.jpg", r"images\1-a.jpg"),  # Label Studio on Windows
        ("result.json", "images/my cat.jpg", "images/my%20cat.jpg"),
        ("annotations/instances_val2017.json", "val2017/000.jpg", "000.jpg"),  # COCO
        ("result.json", "images/é.jpg", "images/e\u0301.jpg"),  # packed on a Mac
    ],
)
def test_coco_finds_pictures_as_the_tools_name_them(tmp_path, json_name, picture, named):
    paint(tmp_path / picture)
    file = instances(tmp_path / json_name, [(7, named)], [thing(7)])
    np.testing.assert_array_equal(load_pictures(f"coco:{file}").annotation(0).boxes, BOX)


def test_coco_name_in_two_splits_means_the_one_beside_the_json(tmp_path):
    for split, colour in ("train", "red"), ("valid", "blue"):
        paint(tmp_path / split / "1.jpg", colour)
        instances(tmp_path / split / "_annotations.coco.json", [(0, "1.jpg")], [thing(0)])
        instances(tmp_path / "annotations" / f"instances_{split}.json", [(0, "1.jpg")])
    train, valid = (load_pictures(f"coco:{tmp_path / s / '_annotations.coco.json'}") for s in ("train", "valid"))
    assert np.asarray(train.image(0))[0, 0, 0] > 200 > np.asarray(valid.image(0))[0, 0, 0]
    assert train.path(0).stat().st_size == valid.path(0).stat().st_size and train.fingerprint != valid.fingerprint
    for split in "train", "valid":
        data = load_pictures(f"coco:{tmp_path / 'annotations' / f'instances_{split}.json'}")
        assert data.path(0).parent.name == split
    with pytest.raises(DataError, match="may mean"):
        load_pictures(f"coco:{instances(tmp_path / 'all.json', [(0, '1.jpg')])}")


def test_coco_categories_with_gaps_from_zero_and_of_one_name(tmp_path):
    paint(tmp_path / "a.jpg")
    things = [thing(1, (0, 0, 4, 4), 0), thing(1, (4, 0, 4, 4), 90), thing(1, (8, 0, 4, 4), 17)]
    file = instances(tmp_path / "c.json", [(1, "a.jpg")], things, [(90, "cat"), (0, "dog"), (17, "cat"), (3, "none")])
    data = load_pictures(f"coco:{file}")
    assert data.classes == ("dog", "none", "cat")
    assert data.annotation(0).labels.tolist() == [0, 2, 2]
    assert data.notes == ("categories with the name of another, which are one class with it: 1",)


def test_coco_crowd_is_difficult_and_negatives_stay(tmp_path):
    paint(tmp_path / "a.jpg")
    paint(tmp_path / "b.jpg")
    file = instances(
        tmp_path / "c.json", [(1, "a.jpg"), (2, "b.jpg")], [thing(iscrowd=1), thing(bbox=(0, 0, 3, 3), id=2)]
    )
    data = load_pictures(f"coco:{file}")
    assert data.annotation(0).difficult.tolist() == [True, False] and len(data.annotation(1)) == 0 and len(data) == 2


def test_coco_boxes_from_polygons_and_masks(tmp_path):
    mask_utils = pytest.importorskip("pycocotools.mask")
    paint(tmp_path / "a.jpg")
    pixels = np.zeros((H, W), np.uint8, order="F")
    pixels[6:18, 8:24] = 1
    packed = mask_utils.encode(pixels)
    runs = np.flatnonzero(np.diff(np.r_[0, pixels.ravel("F"), 2]))
    plain = np.diff(np.r_[0, runs + 0]).tolist()
    shapes = [
        [[8, 6, 24, 6, 24, 18, 8, 18]],
        dict(size=[H, W], counts=packed["counts"].decode()),
        dict(size=[H, W], counts=plain),
    ]
    for shape in shapes:
        for box in {"bbox": []}, {"bbox": None}:
            file = instances(tmp_path / "c.json", [(1, "a.jpg")], [thing(segmentation=shape) | box])
            np.testing.assert_array_equal(load_pictures(f"coco:{file}").annotation(0).boxes, BOX)
    file = instances(tmp_path / "c.json", [(1, "a.jpg")], [thing(bbox=[]), thing(bbox=(3, 3, 0, 9)), thing()])
    data = load_pictures(f"coco:{file}")
    assert (
        len(data.annotation(0)) == 1
        and data.notes[0].startswith("objects without a box")
        and data.notes[0].endswith(": 2")
    )


@given(st.lists(st.integers(0, 60), min_size=3, max_size=40), st.integers(1, 9))
def test_masks_are_read_as_pycocotools_reads_them(runs, height):
    mask_utils = pytest.importorskip("pycocotools.mask")
    runs[-1] += -sum(runs) % height
    width = sum(runs) // height
    if not width:
        return
    plain = dict(size=[height, width], counts=runs)
    packed = mask_utils.frPyObjects(plain, height, width)
    text = packed["counts"].decode()
    assert coco.rle_counts(text) == runs
    expected = mask_utils.toBbox(packed).tolist()
    for mask in plain, dict(plain, counts=text):
        assert (coco.rle_box(mask) or [0, 0, 0, 0]) == (expected if mask_utils.area(packed) else [0, 0, 0, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(image_id=9), r"annotations\[1\] \(id 5\): no picture has the id 9"),
        (dict(category_id=4), r"annotations\[1\] \(id 5\): no category has the id 4"),
        (dict(bbox=[1, 2, 3]), "four numbers"),
        (dict(bbox=[1, 2, -3, 4]), "negative"),
        (dict(bbox=[1, 2, 3, "4"]), "four numbers"),
        (dict(bbox=[20, 2, 30, 4]), "leaves"),
        (dict(iscrowd=2), "iscrowd is 2"),
        (dict(bbox=[], segmentation=[[1, 2, 3]]), "polygons"),
        (dict(bbox=[], segmentation=dict(size=[H, W], counts=[5])), "run lengths"),
    ],
)
def test_coco_errors_name_the_entry(tmp_path, change, message):
    paint(tmp_path / "a.jpg")
    paint(tmp_path / "b.jpg")
    wrong = thing(2, id=5) | change
    file = instances(tmp_path / "c.json", [(1, "a.jpg"), (2, "b.jpg")], [thing(), wrong])
    with pytest.raises(DataError, match=message):
        load_pictures(f"coco:{file}")
    left = load_pictures(f"undamaged:coco:{file}")
    assert left.left_out and left.ids[0] == "a" and len(left.annotation(0)) == 1


def test_coco_file_that_is_none(tmp_path):
    for content, message in (
        ("{", "c.json is damaged"),
        ("[]", "should be an object"),
        ('{"images": [], "categories": []}', "holds no picture"),
        ('{"images": []}', "no categories"),
        ('{"images": [], "categories": [{"id": 1}]}', r"categories\[0\]"),
        ('{"images": [], "categories": [], "annotations": 3}', "annotations should be a list"),
    ):
        with pytest.raises(DataError, match=message):
            load_pictures(f"coco:{write(tmp_path / 'c.json', content)}")


def test_coco_pictures_that_are_missing_are_all_named(tmp_path):
    paint(tmp_path / "c.jpg")
    file = instances(tmp_path / "c.json", [(1, "a.jpg"), (2, "b.jpg"), (3, "c.jpg")], [thing(1)])
    with pytest.raises(DataError, match="(?s)2 errors.*a.jpg.*b.jpg"):
        load_pictures(f"coco:{file}")
    assert load_pictures(f"undamaged:coco:{file}").ids == ("c",)


# ---- YOLO ------------------------------------------------------------------------------------------------------------


def yolo_set(root: Path, yaml: str, split="train", lines="0 0.5 0.5 0.5 0.5\n", name="a") -> Path:
    "A YOLO folder as Roboflow lays it out"
    paint(root / split / "images" / f"{name}.jpg")
    write(root / split / "labels" / f"{name}.txt", lines)
    return write(root / "data.yaml", yaml)


@pytest.mark.parametrize(
    "yaml",
    [
        "train: ../train/images\nval: ../valid/images\nnc: 1\nnames: ['bird']\n",  # Roboflow
        "path: /content/datasets/birds-1\ntrain: train/images\nval: valid/images\nnames:\n  0: bird\n",
        "train: /content/datasets/birds-1/train/images\nval: /content/x/valid/images\nnames: {0: bird}\n",
        "path: ../datasets/birds\ntrain: [train/images]\nvalid: valid/images\nnames: [bird]\n",
        "names: [bird]\n",  # folders alone
        "path: .\ntrain: train\nval: valid\nnames: [bird]\n",
    ],
)
def test_yolo_paths_of_other_machines(tmp_path, yaml):
    file = yolo_set(tmp_path, yaml)
    yolo_set(tmp_path, yaml, "valid", "")
    train = load_pictures(f"yolo:{file}:train")
    np.testing.assert_array_equal(train.annotation(0).boxes, BOX)
    for split in "val", "valid", "validation":
        val = load_pictures(f"yolo:{tmp_path}:{split}")
        assert val.path(0).parent.parent.name == "valid" and len(val.annotation(0)) == 0


def test_yolo_images_alone_would_mix_the_splits_up(tmp_path):
    paint(tmp_path / "images" / "a.jpg")
    write(tmp_path / "labels" / "a.txt", "")
    file = write(tmp_path / "data.yaml", "train: ../train/images\nval: ../valid/images\nnames: [bird]\n")
    with pytest.raises(DataError, match=r"train: ../train/images is not there"):
        load_pictures(f"yolo:{file}:train")


def test_yolo_list_of_files_as_cvat_writes_it(tmp_path):
    paint(tmp_path / "images" / "train" / "x" / "a b.jpg")
    write(tmp_path / "labels" / "train" / "x" / "a b.txt", "0 0.5 0.5 0.5 0.5")
    write(tmp_path / "train.txt", "data/images/train/x/a b.jpg\n\n")
    file = write(tmp_path / "data.yaml", "path: ./\ntrain: train.txt\nnames:\n  0: bird\n")
    assert len(load_pictures(f"yolo:{file}:train").annotation(0)) == 1
    write(tmp_path / "train.txt", "data/images/train/x/a b.jpg\ndata/images/train/gone.jpg\n")
    with pytest.raises(DataError, match=r"train.txt, line 2: no picture 'data/images/train/gone.jpg'"):
        load_pictures(f"yolo:{file}:train")


def test_yolo_without_yaml_as_label_studio_and_cvat_write_it(tmp_path):
    for k in range(10):
        paint(tmp_path / "studio" / "images" / f"{k}.jpg")
        write(tmp_path / "studio" / "labels" / f"{k}.txt", "1 0.5 0.5 0.5 0.5")
    write(tmp_path / "studio" / "classes.txt", "cat\ndog\n")
    parts = [load_pictures(f"yolo:{tmp_path / 'studio'}:{split}") for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [6, 2, 2] and parts[0].annotation(0).labels.tolist() == [1]
    paint(tmp_path / "cvat" / "obj_train_data" / "a.png")
    write(tmp_path / "cvat" / "obj_train_data" / "a.txt", "0 0.5 0.5 0.5 0.5")
    write(tmp_path / "cvat" / "train.txt", "data/obj_train_data/a.png\n")
    write(tmp_path / "cvat" / "obj.names", "bird\n")
    assert load_pictures(f"yolo:{tmp_path / 'cvat'}:train").ids == ("a",)


def test_yolo_negatives_stay_and_polygons_become_boxes(tmp_path):
    yaml = "train: train/images\nnames: [bird, 'a bird']\n"
    file = yolo_set(tmp_path, yaml, lines="0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.5\r\n\r\n1 0.5 0.5 0.5 0.5\r\n")
    yolo_set(tmp_path, yaml, lines="", name="empty")
    paint(tmp_path / "train" / "images" / "none.jpg")
    data = load_pictures(f"yolo:{file}:train")
    assert data.ids == ("a", "empty", "none") and [len(data.annotation(i)) for i in range(3)] == [2, 0, 0]
    np.testing.assert_array_equal(data.annotation(0).boxes, np.repeat(BOX, 2, 0))
    assert set(data.notes) == {
        "pictures without a label file, which count as pictures without objects: 1",
        "polygons read as the boxes around them: 1",
    }


def test_yolo_classes_of_one_name_are_one_class(tmp_path):
    file = yolo_set(tmp_path, "names: [cat, dog, cat]\n", lines="2 0.5 0.5 0.5 0.5\n1 0.5 0.5 0.5 0.5\n")
    data = load_pictures(f"yolo:{file}:train")
    assert data.classes == ("cat", "dog") and data.annotation(0).labels.tolist() == [0, 1]
    assert "classes called 'cat', which are one: 2" in data.notes


def test_yolo_errors_name_file_and_line(tmp_path):
    file = yolo_set(
        tmp_path, "names: [bird]\n", lines="0 0.5 0.5 0.5 0.5\n\n1 0.5 0.5 0.5 0.5\n0 0.9 0.5 0.5 0.5\n0 a\n"
    )
    yolo_set(tmp_path, "names: [bird]\n", name="good")
    with pytest.raises(DataError) as e:
        load_pictures(f"yolo:{file}:train")
    for part in "a.txt, line 3: class 1", "line 5", "a.txt: the bird's box", "leaves":
        assert part in str(e.value)
    data = load_pictures(f"undamaged:yolo:{file}:train")
    assert data.ids == ("good",) and len(data.left_out) == 1


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("names: [bird\n", "line 2 is not valid YAML"),
        ("names: {1: bird}\n", "numbered 0 to 0"),
        ("names: []\n", "a list of class names"),
        ("names: [bird]\nnc: 2\n", "nc is 2, names has 1"),
        ("train: train/images\n", "a list of class names"),
        ("- a\n", "should hold names"),
        ("names: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
)
def test_yolo_yaml_that_is_wrong(tmp_path, yaml, message):
    with pytest.raises(DataError, match=message):
        load_pictures(f"yolo:{yolo_set(tmp_path, yaml)}:train")


def test_yolo_without_any_label_file_is_an_error(tmp_path):
    paint(tmp_path / "train" / "images" / "a.jpg")
    file = write(tmp_path / "data.yaml", "names: [bird]\ntrain: train/images\n")
    with pytest.raises(DataError, match="none of 1 pictures has a label file, e.g. .*labels"):
        load_pictures(f"yolo:{file}:train")


def test_same_stem_twice_keeps_both(tmp_path):
    yolo_set(tmp_path, "names: [bird]\n")
    paint(tmp_path / "train" / "images" / "a.png")
    data = load_pictures(f"yolo:{tmp_path}:train")
    assert data.ids == ("a.jpg", "a.png") and [len(data.annotation(i)) for i in range(2)] == [1, 1]


# ---- photographs that are turned -------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_boxes_cover_the_turned_pixels(tmp_path, orientation):
    stored = Image.new("RGB", (W, H), "black")
    stored.paste("white", (2, 4, 10, 9))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    file = instances(tmp_path / "stored.json", [(1, "a.png")], [thing(bbox=(2, 4, 8, 5))])
    data = load_pictures(f"coco:{file}")
    if orientation in (1, 5, 6, 7, 8):  # the stated size is that of the stored picture
        pixels = np.asarray(data.image(0))[..., 0] > 128
        rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
        w, h = data.size(0)
        expected = np.float32([columns[0] / w, rows[0] / h, (columns[-1] + 1) / w, (rows[-1] + 1) / h])
        np.testing.assert_allclose(data.annotation(0).boxes[0], expected, atol=1e-6)
        assert data.image(0).size == data.size(0)
    else:
        np.testing.assert_allclose(data.annotation(0).boxes[0], np.float32([2 / W, 4 / H, 10 / W, 9 / H]))
        assert "taken to mean the upright picture" in data.notes[0]


def test_turned_photograph_whose_size_is_stated_upright(tmp_path):
    paint(tmp_path / "a.jpg", orientation=6)
    write(tmp_path / "a.xml", xml([("b", 1, 1, 12, 16)], (H, W)))
    data = load_pictures(f"voc:{tmp_path}")
    np.testing.assert_array_equal(data.annotation(0).boxes, np.float32([[0, 0, 0.5, 0.5]]))
    assert data.size(0) == (H, W) == data.image(0).size


def test_size_that_is_neither(tmp_path):
    paint(tmp_path / "a.jpg")
    write(tmp_path / "a.xml", xml([("b", 1, 1, 9, 9)], (64, 48)))
    with pytest.raises(DataError, match="a.jpg is 32 x 24, .*a.xml says 64 x 48"):
        load_pictures(f"voc:{tmp_path}")


# ---- damaged pictures ------------------------------------------------------------------------------------------------


def test_every_damaged_picture_of_every_split_is_named_at_once(tmp_path):
    for split in "train", "valid":
        for k in range(3):
            yolo_set(tmp_path, "names: [bird]\n", split, name=f"{split}{k}")
        cut = tmp_path / split / "images" / f"{split}1.jpg"
        cut.write_bytes(cut.read_bytes()[:-9])
        write(tmp_path / split / "labels" / f"{split}0.txt", "7 1 1 1 1")
    (tmp_path / "valid" / "images" / "valid2.jpg").write_bytes(b"GIF89a")
    specs = [f"yolo:{tmp_path}:{split}" for split in ("train", "val")]
    for _ in range(2):  # the second time from memory
        with pytest.raises(DataError, match="(?s)3 things.*train0.*train1.*valid0.*valid2.*valid1.*leave-out-damaged"):
            open_all(specs)
    with pytest.raises(DataError, match="every picture is damaged"):
        open_all(specs, leave_out=True)
    for split in "train", "valid":
        write(tmp_path / split / "labels" / f"{split}0.txt", "")
    paint(tmp_path / "valid" / "images" / "valid2.jpg")
    assert [len(data) for data in open_all(specs, leave_out=True).values()] == [2, 2]
    left = load_pictures(f"undamaged:{specs[0]}")
    assert left.ids == ("train0", "train2") and "train1" in left.left_out[0] and not damaged_pictures(left)
    cut = tmp_path / "valid" / "images" / "valid1.jpg"
    paint(cut)
    assert not damaged_pictures(load_pictures(specs[1]))


def test_no_picture_is_left(tmp_path):
    file = yolo_set(tmp_path, "names: [bird]\n")
    picture = tmp_path / "train" / "images" / "a.jpg"
    picture.write_bytes(picture.read_bytes()[:-9])
    with pytest.raises(DataError, match="every picture is damaged"):
        load_pictures(f"undamaged:yolo:{file}:train")
    picture.write_bytes(b"GIF89a")
    with pytest.raises(DataError, match="cannot be opened"):
        load_pictures(f"undamaged:yolo:{file}:train")


def test_pictures_in_two_splits_are_found_by_their_bytes(tmp_path):
    for split, name, colour in (
        ("train", "a", "red"),
        ("train", "b", "blue"),
        ("valid", "c", "red"),
        ("valid", "b", "green"),
    ):
        yolo_set(tmp_path, "names: [bird]\n", split, name=name)
        paint(tmp_path / split / "images" / f"{name}.jpg", colour)
    train, val = (load_pictures(f"yolo:{tmp_path}:{split}") for split in ("train", "val"))
    assert shared_pictures(train, val) == [("a", "c")]


# ---- specs -----------------------------------------------------------------------------------------------------------


def test_specs(tmp_path, monkeypatch):
    yolo_set(tmp_path / "a:b", "names: [bird]\n")
    assert load_pictures(f"yolo:{tmp_path / 'a:b'}:train").name == "a_b train"
    monkeypatch.chdir(tmp_path)
    assert (
        absolute_spec("undamaged:yolo:a:b/data.yaml:train") == f"undamaged:yolo:{tmp_path / 'a:b' / 'data.yaml'}:train"
    )
    assert absolute_spec("hf:cppe-5:train") == "hf:cppe-5:train" and absolute_spec("voc2007:train") == "voc2007:train"
    monkeypatch.chdir("/")
    monkeypatch.setenv("LOCRL_DATA", str(tmp_path))
    assert len(load_pictures("yolo:a:b:train")) == 1
    with pytest.raises(DataError, match="no file or folder nowhere"):
        load_pictures("voc:nowhere:train")
    assert not formats.is_own("voc2007:train") and not formats.is_own("voc") and formats.is_own("undamaged:coco:x.json")


def test_classes_are_those_of_the_data_or_those_asked_for(tmp_path):
    file = yolo_set(tmp_path, "names: [cat, dog]\n", lines="0 0.5 0.5 0.5 0.5\n1 0.5 0.5 0.25 0.25\n")
    both, one = load_pictures(f"yolo:{file}:train"), load_pictures(f"yolo:{file}:train", ["dog"])
    assert (both.classes, one.classes) == (("cat", "dog"), ("dog",))
    assert one.annotation(0).labels.tolist() == [0] and one.annotation(0).boxes[0, 0] == 0.375
    with pytest.raises(DataError, match="unknown class 'dgo': did you mean 'dog'"):
        load_pictures(f"yolo:{file}:train", ["cat", "dgo"])


def test_objects_given_twice_count_once(tmp_path):
    file = yolo_set(tmp_path, "names: [bird]\n", lines="0 0.5 0.5 0.5 0.5\n" * 3)
    data = load_pictures(f"yolo:{file}:train")
    assert len(data.annotation(0)) == 1 and data.notes == (
        "objects given again with the same class and box, which count once: 2",
    )


def test_plain_folder(tmp_path):
    paint(tmp_path / "sub" / "a.PNG")
    paint(tmp_path / "b.jpg")
    data = load_pictures(f"folder:{tmp_path}", ("bird",))
    assert data.ids == ("b", "sub/a") and len(data.ground_truth()) == 0 and data.classes == ("bird",)


def test_read_only_folder_keeps_its_split_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCRL_CACHE", str(tmp_path / "cache"))
    write_atomic = layout.write_atomic

    def refuse(path, content):
        if not path.is_relative_to(tmp_path / "cache"):
            raise PermissionError
        return write_atomic(path, content)

    monkeypatch.setattr(layout, "write_atomic", refuse)
    names = [str(k) for k in range(9)]
    first = layout.made_split(tmp_path / "locrl-split.json", names, "val")
    assert layout.made_split(tmp_path / "locrl-split.json", names, "val") == first and len(first) == 1
    assert list((tmp_path / "cache" / "splits").iterdir()) and not (tmp_path / "locrl-split.json").exists()


def test_split_file_that_contradicts(tmp_path):
    file = tmp_path / "locrl-split.json"
    for content, message in (
        (dict(train=["a"], val=["a"], test=[]), "'a' in two splits"),
        (dict(train=["a"], val=["b"], test=[]), "does not name 'c'"),
        (dict(train=["a", "c"], val=["b", "d"], test=[]), "names what is not there, 'd'"),
        (dict(train=["a"], val=["b"]), "no test"),
    ):
        write(file, json.dumps(content))
        with pytest.raises(DataError, match=message):
            layout.made_split(file, ["a", "b", "c"], "train")


@given(st.integers(3, 300))
def test_made_splits_part_the_pictures(n):
    parts = layout._divided([f"{k}" for k in range(n)], 0)
    assert sorted(sum(parts.values(), [])) == sorted(f"{k}" for k in range(n)) and all(parts.values())


# ---- Hugging Face ----------------------------------------------------------------------------------------------------


def rows_of(boxes, category=0, size=(W, H), **more):
    "Rows of a data set in memory, one a list of boxes"
    picture = Image.new("RGB", size, "grey")
    return [dict(image=picture, objects=dict(bbox=b, category=[category] * len(b), **more)) for b in boxes]


class Rows(list):
    "A list of rows with the features of the library `datasets`"

    features = {"objects": {"category": types.SimpleNamespace(feature=types.SimpleNamespace(names=["cat", "dog"]))}}
    _fingerprint = "f"


@pytest.mark.parametrize(
    ("box", "form"),
    [
        ([8, 6, 16, 12], "coco"),
        ([8, 6, 24, 18], "corners"),
        ([0.5, 0.5, 0.5, 0.5], "yolo"),
        ([0.25, 0.25, 0.75, 0.75], "fractions"),
    ],
)
def test_rows_with_boxes_of_any_form(box, form):
    other = {
        "coco": [0, 0, 32, 24],
        "corners": [30, 20, 32, 24],
        "yolo": [0.5, 0.5, 1, 1],
        "fractions": [0.9, 0.9, 1, 1],
    }
    data = hub.from_rows(Rows(rows_of([[box, other[form]], []], 1)), "x")
    np.testing.assert_array_equal(data.annotation(0).boxes[:1], BOX)
    assert data.classes == ("cat", "dog") and data.annotation(0).labels.tolist() == [1, 1] and len(data) == 2
    assert data.notes == (f"boxes are read as {form}, which fits all of them",)


def test_rows_errors_and_crowd():
    rows = rows_of([[[8, 6, 16, 12]], [[8, 6, 160, 12]], [[8, 6, 0, 12]]], iscrowd=[1])
    with pytest.raises(DataError, match="row 1: the 0's box"):
        hub.from_rows(rows, "x", form="coco")
    data = hub.from_rows(rows, "x", form="coco", leave_out=True)
    assert data.numbers == (0, 2) and len(data.left_out) == 1 and data.annotation(0).difficult.tolist() == [True]
    with pytest.raises(DataError, match="row 0 has no objects"):
        hub.from_rows([dict(image=rows[0]["image"])], "x")
    with pytest.raises(DataError, match="row 0: the picture cannot be decoded"):
        hub.from_rows([dict(rows[0], image=dict(bytes=b"x", path=None))], "x")


def test_hf_spec_asks_the_library(monkeypatch):
    asked = {}

    def load_dataset(name, split):
        asked.update(name=name, split=split)
        return Rows(rows_of([[[8, 6, 16, 12]]]))

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    data = load_pictures("hf:someone/birds:train[:80%]")
    assert asked == dict(name="someone/birds", split="train[:80%]") and data.classes == ("cat", "dog")
    np.testing.assert_array_equal(load_pictures("hf:someone/birds:train:coco").annotation(0).boxes, BOX)
    with pytest.raises(DataError, match="write hf:NAME:SPLIT"):
        load_pictures("hf:birds")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install 'locrl\\[data\\]'"):
        load_pictures("hf:birds:train")


def test_rows_of_the_library_itself(tmp_path):
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["cat", "dog"])
    objects = {"bbox": datasets.List(datasets.List(datasets.Value("float32"))), "category": datasets.List(names)}
    features = datasets.Features({"image": datasets.Image(), "objects": objects})
    content = dict(image=[], objects=[])
    for row in rows_of([[[8, 6, 16, 12]], []], 1):
        content["image"].append(row["image"])
        content["objects"].append(row["objects"])
    made = datasets.Dataset.from_dict(content, features=features)
    made.save_to_disk(tmp_path / "birds")
    data = load_pictures(f"hf:{tmp_path / 'birds'}:train")
    assert data.classes == ("cat", "dog") and data.annotation(0).labels.tolist() == [1] and len(data) == 2
    np.testing.assert_array_equal(data.annotation(0).boxes, BOX)
    assert data.image(1).size == (W, H)


# ---- against other readers -------------------------------------------------------------------------------------------


def test_coco_as_torchvision_and_pycocotools_read_it(tmp_path):
    pytest.importorskip("pycocotools")
    from locrl.vision.encoders import ensure_torchvision

    ensure_torchvision()
    from torchvision.datasets import CocoDetection

    scenes = Scenes(8, classes=("cat", "dog"), size=(32, 48))
    copies(tmp_path, scenes)
    theirs = CocoDetection(str(tmp_path), str(tmp_path / "train.json"))
    data = load_pictures(f"coco:{tmp_path / 'train.json'}")
    assert len(theirs) == len(data) == 8
    for i, (image, annotations) in enumerate(theirs):
        w, h = image.size
        assert np.array_equal(np.asarray(image), np.asarray(data.image(i)))
        mine = data.annotation(i)
        assert [theirs.coco.cats[a["category_id"]]["name"] for a in annotations] == [
            data.classes[k] for k in mine.labels
        ]
        assert [bool(a["iscrowd"]) for a in annotations] == mine.difficult.tolist()
        corners = [[x / w, y / h, (x + dx) / w, (y + dy) / h] for x, y, dx, dy in (a["bbox"] for a in annotations)]
        np.testing.assert_array_equal(mine.boxes, np.float32(corners).reshape(-1, 4))


def test_voc_as_torchvision_reads_it(tmp_path):
    from locrl.vision.encoders import ensure_torchvision

    ensure_torchvision()
    from torchvision.datasets import VOCDetection

    scenes = Scenes(6, classes=("cat", "dog"), size=(32, 48))
    scenes.export_voc(tmp_path, "2012")
    theirs = VOCDetection(str(tmp_path), "2012", "train")
    data = load_pictures(f"voc:{tmp_path / 'VOCdevkit' / 'VOC2012'}:train")
    for i, (image, content) in enumerate(theirs):
        objects, (w, h) = content["annotation"].get("object", []), image.size
        mine = data.annotation(i)
        assert [o["name"] for o in objects] == [data.classes[k] for k in mine.labels]
        assert [[o["difficult"] == "1", o["truncated"] == "1"] for o in objects] == np.c_[
            mine.difficult, mine.truncated
        ].tolist()
        pixels = [[int(o["bndbox"][k]) for k in ("xmin", "ymin", "xmax", "ymax")] for o in objects]
        corners = (np.reshape(pixels, (-1, 4)) - [1, 1, 0, 0]) / [w, h, w, h]
        np.testing.assert_array_equal(mine.boxes, np.float32(corners))


def some_detections(data, rng, n=60):
    "Boxes near objects and anywhere, with scores"
    from locrl.evaluation.average_precision import Detections

    truth = data.ground_truth()
    rows = rng.integers(len(truth), size=n)
    near = np.clip(truth.boxes[rows] + rng.normal(0, 0.06, (n, 4)), 0, 1)
    boxes = np.c_[np.minimum(near[:, :2], near[:, 2:] - 0.01), near[:, 2:]].clip(0, 1)
    label = np.where(rng.random(n) < 0.8, truth.label[rows], rng.integers(len(data.classes), size=n))
    return Detections(truth.image[rows], label, boxes, rng.permutation(n) / n)


def coco_ap(detections, truth, n_classes, threshold):
    "COCO's average precision by a plain loop: 101 points, crowd matched by the share of the detection that it covers"
    from locrl.data.boxes import iou

    aps = []
    for k in range(n_classes):
        rows = [r for r in np.argsort(-detections.scores, kind="stable") if detections.label[r] == k]
        objects = [g for g in range(len(truth)) if truth.label[g] == k]
        positives = sum(not truth.difficult[g] for g in objects)
        if not positives:
            continue
        taken, hits = set(), []
        for r in rows:
            best, match = threshold, None
            for g in sorted(objects, key=lambda g: truth.difficult[g]):
                if truth.image[g] != detections.image[r] or (g in taken and not truth.difficult[g]):
                    continue
                if match is not None and truth.difficult[g] and not truth.difficult[match]:
                    break
                overlap = float(iou(detections.boxes[r], truth.boxes[g]))
                if overlap >= best:
                    best, match = overlap, g
            if match is None:
                hits.append(False)
            elif not truth.difficult[match]:
                taken.add(match)
                hits.append(True)
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        recall = np.cumsum(hits) / positives
        points = [max(precision[recall >= t - 1e-12], default=0.0) for t in np.linspace(0, 1, 101)]
        aps.append(np.mean(points))
    return float(np.mean(aps))


def test_coco_ap_of_exported_detections_is_that_of_a_plain_loop(tmp_path, capsys):
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    copies(tmp_path, scenes_without_flags(10))
    content = json.loads((tmp_path / "train.json").read_text())
    for image in content["images"]:  # ids of their own, with gaps
        image["id"] = 100 - 3 * image["id"]
    for annotation in content["annotations"]:
        annotation["image_id"] = 100 - 3 * annotation["image_id"]
        annotation["category_id"] *= 7
    for category in content["categories"]:
        category["id"] *= 7
    write(tmp_path / "train.json", json.dumps(content))
    data = load_pictures(f"coco:{tmp_path / 'train.json'}")
    detections = some_detections(data, np.random.default_rng(0))
    coco.coco_results(detections, data, tmp_path / "results.json")
    truth = COCO(str(tmp_path / "train.json"))
    evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    mine = [coco_ap(detections, data.ground_truth(), 2, t) for t in np.arange(0.5, 1, 0.05)]
    assert 0.1 < mine[0] < 0.95
    np.testing.assert_allclose([np.mean(mine), mine[0], mine[5]], evaluation.stats[:3], atol=1e-9)


def test_supervision_detections(tmp_path):
    supervision = pytest.importorskip("supervision")
    copies(tmp_path, scenes_without_flags(4))
    data = load_pictures(f"coco:{tmp_path / 'train.json'}")
    detections = some_detections(data, np.random.default_rng(0), 9)
    found = [coco.to_supervision(detections, data, i) for i in range(4)]
    assert isinstance(found[0], supervision.Detections) and sum(map(len, found)) == 9
    for i, each in enumerate(found):
        mine = detections[detections.image == i]
        np.testing.assert_allclose(each.xyxy, mine.boxes * np.tile(data.size(i), 2), rtol=1e-6)
        assert each["class_name"].tolist() == [data.classes[k] for k in mine.label]


def test_supervision_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="locrl\\[data\\]"):
        coco.to_supervision(None, None, 0)


@pytest.mark.parametrize("orientation", [9, 255])
def test_an_orientation_that_there_is_not_turns_nothing(tmp_path, orientation):
    assert formats.picture_header(paint(tmp_path / "a.jpg", orientation=orientation))[1] == 1
