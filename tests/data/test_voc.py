"Reading PASCAL VOC: the real photographs, and every way in which files can be wrong"

import io
import pickle
import re

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageFile

import locrl.data.voc as data
from conftest import VocFolder, box_xml
from locrl.data.voc import ANIMALS, VOC, VOC_CLASSES, DataError, check_classes, data_root, rgb


@pytest.fixture
def folder(tmp_path):
    return VocFolder(tmp_path)


def test_boxes_are_one_based_and_inclusive(folder):
    folder.xml(
        "a",
        box_xml(box=(1, 1, 100, 80))
        + box_xml("dog", (11.5, 21, 50.25, 60), "<difficult>1</difficult><truncated>1</truncated>"),
    )
    a = folder.voc().annotation(0)
    np.testing.assert_allclose(a.boxes, [[0, 0, 1, 1], [0.105, 0.25, 0.5025, 0.75]], atol=1e-6)
    assert [VOC_CLASSES[k] for k in a.labels] == ["cat", "dog"]
    assert a.difficult.tolist() == a.truncated.tolist() == [False, True]
    assert (a.boxes.dtype, a.labels.dtype, a.difficult.dtype) == (np.float32, np.int64, bool)


def test_parts_of_objects_are_not_objects(folder):
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    folder.xml("a", box_xml("person", extra=part))
    np.testing.assert_allclose(folder.voc().annotation(0).boxes, [[0.1, 0.25, 0.5, 0.75]], atol=1e-6)


def test_class_subset_keeps_the_images(folder):
    folder.xml("b", box_xml("dog"))
    voc = folder.voc(classes=("dog", "cow"))
    assert voc.ids == ("a", "b") and [len(voc.annotation(i)) for i in range(2)] == [0, 1]
    truth = voc.ground_truth()
    assert (truth.image.tolist(), truth.label.tolist(), len(truth)) == ([1], [0], 1)


def test_a_class_list_keeps_all_ids(folder):
    folder.list("cat_test", "a  1\nb -1\n\n")
    assert folder.voc("cat_test").ids == ("a", "b")


def test_views(folder, tmp_path):
    folder.xml("b", box_xml("dog", extra="<difficult>1</difficult>"))
    other = VocFolder(tmp_path / "more", "2012")
    for old, new in ("a", "c"), ("b", "d"):
        for sub, end in ("JPEGImages", "jpg"), ("Annotations", "xml"):
            (other.path / sub / f"{old}.{end}").rename(other.path / sub / f"{new}.{end}")
    other.list("test", "c\nd")
    both = folder.voc() + other.voc()
    assert both.ids == ("a", "b", "c", "d") and both.ground_truth().image.tolist() == [0, 1, 2, 3]
    assert both.having("dog").ids == ("b",) and both.subset([3, 0]).ids == ("d", "a")
    assert both.subset([True, False, False, True]).having("cat").ids == ("a", "d")
    assert both.image(2).size == both.size(2) == (100, 80)
    assert both.subset([-1]).ids == ("d",)
    with pytest.raises(DataError, match="no image of .* holds dog"):
        both.having("dog", difficult=False)
    with pytest.raises(DataError, match="twice"):
        folder.voc() + folder.voc()
    with pytest.raises(DataError, match="same `classes`"):
        folder.voc() + other.voc(classes=ANIMALS)
    with pytest.raises(DataError, match="needs 4 values, got 1"):
        both.subset([True])
    with pytest.raises(DataError, match="holds no image"):
        both.subset([])
    with pytest.raises(IndexError):
        both.subset([4])
    with pytest.raises(IndexError):
        both.annotation(4)


def test_fingerprint_follows_the_content(folder):
    first = folder.voc().fingerprint
    assert re.fullmatch("[0-9a-f]{64}", first) and folder.voc().fingerprint == first
    changed = {
        folder.voc(classes=ANIMALS).fingerprint,
        folder.voc().subset([0]).fingerprint,
        folder.voc().subset([1, 0]).fingerprint,
    }
    folder.xml("a", box_xml(box=(11, 21, 50, 61)))
    changed.add(folder.voc().fingerprint)
    folder.image("b", quality=50)
    changed.add(folder.voc().fingerprint)
    assert len(changed | {first}) == 6


def test_pickle(folder):
    voc = pickle.loads(pickle.dumps(folder.voc().having("cat")))
    assert voc.ids == ("a", "b") and voc.image(0).mode == "RGB"


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_any_colour_space_becomes_rgb(folder, mode):
    folder.image("a", mode=mode)
    assert folder.voc().image(0).mode == "RGB"


def test_exif_rotation_is_honoured(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    folder.image("a", (80, 100), exif=exif)
    folder.xml("a", box_xml())
    assert folder.voc().image(0).size == (100, 80)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500), st.integers(1, 500), st.data())
def test_boxes_round_trip(tmp_path_factory, width, height, draw):
    x1, y1 = draw.draw(st.integers(1, width)), draw.draw(st.integers(1, height))
    x2, y2 = draw.draw(st.integers(x1, width)), draw.draw(st.integers(y1, height))
    path = tmp_path_factory.mktemp("xml") / "a.xml"
    path.write_text(
        f"<annotation><size><width>{width}</width><height>{height}</height></size>{box_xml(box=(x1, y1, x2, y2))}</annotation>"
    )
    size, [(_, box, *_)] = data.read_xml(path)
    assert size == (width, height) and 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1
    back = box[0] * width + 1, box[1] * height + 1, box[2] * width, box[3] * height
    np.testing.assert_allclose(back, (x1, y1, x2, y2), atol=1e-6)


def broken(folder, message, call=lambda voc: (voc.annotation(0), voc.image(0)), **kwargs):
    with pytest.raises(DataError, match=message):
        call(folder.voc(**kwargs))


def test_missing_image(folder):
    (folder.path / "JPEGImages" / "a.jpg").unlink()
    broken(folder, r"no image .*a\.jpg \(1 of 2 are missing\): restore")


def test_missing_annotation(folder):
    (folder.path / "Annotations" / "b.xml").unlink()
    broken(folder, r"no annotation .*b\.xml \(1 of 2")


def test_files_that_go_missing_later(folder):
    voc = folder.voc()
    (folder.path / "JPEGImages" / "a.jpg").unlink()
    (folder.path / "Annotations" / "b.xml").unlink()
    with pytest.raises(DataError, match=r"no image .*a\.jpg"):
        voc.image(0)
    with pytest.raises(DataError, match=r"no annotation .*b\.xml"):
        voc.annotation(1)


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("keep", [2, 3, 100, 0.5, -2, -1, 0])
@pytest.mark.parametrize("progressive", [False, True])
def test_truncated_jpeg(folder, monkeypatch, lenient, keep, progressive):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    folder.image("a", progressive=progressive)
    path = folder.path / "JPEGImages" / "a.jpg"
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * keep) if keep == 0.5 else keep])
    broken(folder, r"a\.jpg (is cut short|cannot be decoded)")


def test_a_file_that_is_no_picture(folder):
    (folder.path / "JPEGImages" / "a.jpg").write_text("<html>404</html>")
    broken(folder, r"a\.jpg cannot be decoded .*restore")


def test_trailing_bytes_are_no_truncation(folder):
    with open(folder.path / "JPEGImages" / "a.jpg", "ab") as file:
        file.write(b"\0" * 100)
    assert folder.voc().image(0).size == (100, 80)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("progressive", [False, True])
def test_a_film_may_follow_the_picture(folder, seed, progressive):
    "A phone's moving picture: any bytes after the end marker, the markers of a scan among them"
    folder.image("a", progressive=progressive)
    path = folder.path / "JPEGImages" / "a.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole + np.random.default_rng(seed).bytes(200_000) + b"\xff\xda")
    assert folder.voc().image(0).size == (100, 80)
    path.write_bytes(whole[:-40])
    with pytest.raises(DataError, match="cut short|cannot be decoded"):
        folder.voc().image(0)


def test_a_thumbnail_does_not_hide_the_end(folder):
    "The picture in a JPEG's EXIF segment has an end marker of its own"
    small, exif = io.BytesIO(), Image.Exif()
    Image.new("RGB", (8, 8)).save(small, "JPEG")
    exif[0x9286] = small.getvalue()  # any field may hold it
    folder.image("a", exif=exif)
    path = folder.path / "JPEGImages" / "a.jpg"
    raw = path.read_bytes()
    assert raw.count(b"\xff\xd9") == 2
    assert folder.voc().image(0).size == (100, 80)
    path.write_bytes(raw[:-2])
    broken(folder, r"a\.jpg is cut short")


@pytest.mark.parametrize("fill", [1, 2, 3])
def test_filled_markers_and_several_pictures(folder, fill):
    "JPEG allows any number of fill bytes before a marker; a file of several pictures is read as its first"
    folder.image("a")
    path = folder.path / "JPEGImages" / "a.jpg"
    raw = path.read_bytes()
    path.write_bytes(raw[:2] + b"\xff" * fill + raw[2:])
    assert folder.voc().image(0).size == (100, 80)
    pictures = [Image.new("RGB", (100, 80), c) for c in ("red", "blue")]
    pictures[0].save(path, "MPO", save_all=True, append_images=pictures[1:])
    assert folder.voc().image(0).getpixel((50, 40))[0] > 200


def test_floating_greys():
    "Read as a share of white where they lie in [0, 1], else as 8 bits"
    grey = np.linspace(0, 1, 20, dtype=np.float32).reshape(4, 5)
    for image in Image.fromarray(grey), Image.fromarray(255 * grey):
        np.testing.assert_array_equal(np.asarray(rgb(image))[..., 0], (255 * grey).round())
    grey[0, 0] = np.nan
    with pytest.raises(DataError, match="NaN"):
        rgb(Image.fromarray(grey))


@pytest.mark.parametrize("text", ["", "<annotation><size>", "no xml", "<annotation><size></annotation>"])
def test_malformed_xml(folder, text):
    folder.raw("a", text)
    broken(folder, r"a\.xml is not valid XML \(.*: restore")


@pytest.mark.parametrize(
    "box, message",
    [
        ((50, 10, 40, 20), r"inverted"),
        ((50, 30, 60, 20), r"inverted"),
        ((-5, 10, 20, 20), r"leaves the 100 x 80 image"),
        ((10, 10, 102, 20), r"leaves the"),
        ((10, 10, 20, 82), r"leaves the"),
        ((101, 10, 101, 20), r"leaves the"),
        (("nan", 10, 20, 20), r"inverted|leaves"),
        (("x", 10, 20, 20), r"needs a number in <xmin>, got 'x'"),
        (("", 1, 2, 3), "needs a number"),
        ((10, 10, "inf", 20), "leaves the"),
    ],
)
def test_bad_boxes(folder, box, message):
    folder.xml("a", box_xml(box=box))
    broken(folder, rf"a\.xml.*{message}")


def test_a_pixel_outside_is_put_on_the_border(folder):
    folder.xml("a", box_xml(box=(0, 0, 101, 81)))
    assert folder.voc().annotation(0).boxes.tolist() == [[0, 0, 1, 1]]


def test_incomplete_annotations(folder):
    folder.xml("a", "<object><name>cat</name></object>")
    broken(folder, r"a\.xml: the cat has no <bndbox>")
    folder.raw("a", f"<annotation>{box_xml()}</annotation>")
    broken(folder, r"a\.xml has no <size>")
    folder.xml("a", box_xml(), (0, 80))
    broken(folder, r"a\.xml: <size> is 0 x 80")
    folder.xml("a", "<object><bndbox/></object>")
    broken(folder, r"a\.xml: unknown class ''")


def test_unknown_class_in_a_file(folder):
    folder.xml("a", box_xml("catt"))
    broken(folder, r"a\.xml: unknown class 'catt': did you mean 'cat'\?", classes=ANIMALS)


def test_unknown_class_asked_for(folder):
    broken(folder, "unknown class 'Horses': did you mean 'horse'", classes=["Horses"])
    with pytest.raises(DataError, match="did you mean 'sheep'"):
        folder.voc(classes=ANIMALS).having("sheeps")
    with pytest.raises(DataError, match="known are aeroplane"):
        check_classes(["xqz"])
    with pytest.raises(DataError, match="twice"):
        check_classes(["cat", "cat"])


def test_empty_split(folder):
    folder.list("test", "\n\n")
    broken(folder, r"test\.txt lists no image")


def test_repeated_ids(folder):
    folder.list("test", "a\na\n")
    broken(folder, r"test\.txt lists an image twice")


def test_missing_list_names_the_others(folder):
    for split in "train", "val", "cat_val", "train_val":
        folder.list(split, "a")
    broken(folder, r"no list .*vall\.txt: there are test, train, val and 2 lists", split="vall")


def test_size_that_disagrees(folder):
    folder.image("a", (80, 100))
    broken(folder, r"a\.jpg is 80 x 100, its annotation says 100 x 80: correct")


def test_no_data_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCRL_DATA", str(tmp_path / "here"))
    assert data_root() == tmp_path / "here"
    with pytest.raises(DataError, match=r"here.*LOCRL_DATA.*download\('2012'\).*Scenes"):
        VOC("2012", "val")


def real(year, split):
    return pytest.mark.skipif(
        not (data_root() / f"VOCdevkit/VOC{year}/ImageSets/Main/{split}.txt").exists(),
        reason=f"no VOC{year} {split} under LOCRL_DATA",
    )


@real("2007", "test")
def test_voc2007_test():
    voc = VOC("2007", "test")
    truth = voc.ground_truth()
    easy = ~truth.difficult
    assert (len(voc), len(truth), easy.sum()) == (4952, 14976, 12032)
    images = {
        c: len(set(truth.image[easy & (truth.label == VOC_CLASSES.index(c))])) for c in (*ANIMALS, "person", "bottle")
    }
    assert images == dict(cat=322, cow=127, dog=418, horse=274, sheep=97, person=2007, bottle=212)
    assert (truth.boxes >= 0).all() and (truth.boxes <= 1).all() and (truth.boxes[:, :2] < truth.boxes[:, 2:]).all()
    for i in range(0, len(voc), 250):
        assert voc.image(i).mode == "RGB"


@real("2012", "trainval")
def test_voc2012_animals():
    train, val, both = (VOC("2012", split, ANIMALS) for split in ("train", "val", "trainval"))
    assert (len(train), len(val)) == (3159, 441) and set((train + val).ids) == set(both.ids)
    assert [len(both.having(c, difficult=False)) for c in ANIMALS] == [1110, 324, 1316, 512, 346]
    assert len(both) == 3600 and len(both.having()) == 3552 and not both.ground_truth().truncated.any()


# What would otherwise change a number in silence

ANNOTATION = """<annotation><size><width>100</width><height>80</height></size>
<object><name>cat</name><difficult>{difficult}</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>{more}</object>
{beside}</annotation>"""
BOX = "<bndbox><xmin>{0}</xmin><ymin>{0}</ymin><xmax>{0}</xmax><ymax>{0}</ymax></bndbox>"


def annotation(folder, difficult="0", more="", beside=""):
    "A file with one cat"
    path = folder / "a.xml"
    path.write_text(ANNOTATION.format(difficult=difficult, more=more, beside=beside))
    return path


@pytest.mark.parametrize(
    "text, flag",
    [
        ("0", False),
        ("1", True),
        (" 1 ", True),
        ("", False),
        ("false", False),
        ("No", False),
        ("TRUE", True),
        ("yes", True),
    ],
)
def test_flags_that_are_clear(tmp_path, text, flag):
    "Numbers and words that say yes or no"
    assert data.read_xml(annotation(tmp_path, text))[1][0][2] is flag


@pytest.mark.parametrize("text", ["0.0", "-1", "2", "Unspecified", "None", "maybe"])
def test_flags_that_are_not(tmp_path, text):
    "An object must not leave training and AP because of a word nobody understood"
    with pytest.raises(DataError, match=rf"a.xml: <difficult> of the cat is '{text.lower()}': write 1 or 0"):
        data.read_xml(annotation(tmp_path, text))


@pytest.mark.parametrize(
    "more, beside, message",
    [
        (BOX.format(5), "", "the cat has 2 <bndbox>"),
        (
            "",
            "<part><object><name>cat</name>" + BOX.format(5) + "</object></part>",
            "1 <object> not directly below <annotation>",
        ),
        ("", "<object><name>cat</name>" + BOX.format(0) + "</object>", r"\(0, 0, 0, 0\) holds nothing"),
        ("", "<object><name>cat</name></object>", "the cat has no <bndbox>"),
    ],
)
def test_objects_that_would_be_lost(tmp_path, more, beside, message):
    "A second box, an object elsewhere and an empty box are told, not dropped"
    with pytest.raises(DataError, match=message):
        data.read_xml(annotation(tmp_path, more=more, beside=beside))


# Pictures by hand


@pytest.mark.parametrize(
    "mode, kind, values, want",
    [
        ("I;16", np.uint16, [0, 100, 255], [0, 0, 1]),  # 16 bits by its name, however dark
        ("I;16", np.uint16, [0, 257, 65535], [0, 1, 255]),
        ("I", np.int32, [0, 100, 255], [0, 100, 255]),  # 8 bits, since nothing is brighter
        ("I", np.int32, [0, 257, 65535], [0, 1, 255]),
        ("F", np.float32, [0, 0.5, 1], [0, 128, 255]),
        ("F", np.float32, [0, 100, 255], [0, 100, 255]),
        ("F", np.float32, [-1, 300, 65535], [0, 1, 255]),
    ],
)
def test_greys_of_every_depth(mode, kind, values, want):
    image = Image.fromarray(np.array([values], kind))
    assert image.mode == mode
    assert [p[0] for p in np.asarray(rgb(image))[0].tolist()] == pytest.approx(want, abs=1)


def test_transparent_parts_are_white():
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (200, 0, 0, 0))
    for other in (image, image.convert("RGBa"), image.convert("PA")):
        assert np.asarray(rgb(other))[0].tolist() == [[200, 0, 0], [255, 255, 255]]


def test_width_and_height_are_told_apart(tmp_path):
    text = ANNOTATION.format(difficult="0", more="", beside="").replace("<xmax>9<", "<xmax>51<")
    size, objects = _read(tmp_path, text)
    assert size == (100, 80)
    np.testing.assert_allclose(objects[0][1], (0, 0, 0.51, 9 / 80))


def _read(folder, text):
    "`read_xml` of a text"
    path = folder / "a.xml"
    path.write_text(text)
    return data.read_xml(path)


@pytest.mark.parametrize(
    "corners, fine",
    [
        ((0, 0, 10, 10), True),
        ((1, 1, 101, 81), True),
        ((1, 1, 101.5, 80), False),
        ((1, 1, 100, 81.5), False),
        ((-0.5, 1, 10, 10), False),
        ((1, -0.5, 10, 10), False),
        ((100, 80, 100, 80), True),
        ((100.5, 1, 101, 10), False),
        ((1, 80.5, 10, 81), False),
        ((7, 7, 7, 7), True),
        ((8, 7, 7.5, 9), False),
        ((7, 8, 9, 7.5), False),
    ],
)
def test_where_a_box_may_lie(tmp_path, corners, fine):
    tags = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{t}>{v}</{t}>" for t, v in zip(tags, corners))
    text = f"<annotation><size><width>100</width><height>80</height></size><object><name>cat</name><bndbox>{box}"
    text += "</bndbox></object></annotation>"
    if not fine:
        with pytest.raises(DataError, match="inverted|leaves"):
            _read(tmp_path, text)
        return
    x1, y1, x2, y2 = corners
    want = max(x1 - 1, 0) / 100, max(y1 - 1, 0) / 80, min(x2 / 100, 1), min(y2 / 80, 1)
    np.testing.assert_allclose(_read(tmp_path, text)[1][0][1], want)
