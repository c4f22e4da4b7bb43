"Reading PASCAL VOC: the real photographs, and every way in which files can be wrong"

import io
import os
import pickle
import re
import struct

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageFile, ImageOps

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
        f"<annotation><size><width>{width}</width><height>{height}</height></size>"
        f"{box_xml(box=(x1, y1, x2, y2))}</annotation>"
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
    with pytest.raises(DataError, match=r"a\.jpg is missing: restore"):
        voc.image(0)
    with pytest.raises(DataError, match=r"b\.xml is missing: restore"):
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
        (("nan", 10, 20, 20), "needs a number in <xmin>, got 'nan'"),
        (("x", 10, 20, 20), r"needs a number in <xmin>, got 'x'"),
        (("", 1, 2, 3), "needs a number"),
        ((10, 10, "inf", 20), "needs a number in <xmax>, got 'inf'"),
        ((10, 10, "1_1", 20), "needs a number in <xmax>, got '1_1'"),
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
<object><name>cat</name><difficult>{difficult}</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>{more}</object>
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


@pytest.mark.parametrize(
    "text, message",
    [
        ("<size><width>1</width><height>1</height></size>", "has 2 <size>"),
        ("<object><name>cat</name><name>dog</name>" + BOX.format(5) + "</object>", "<object> has 2 <name>"),
        (
            "<object><name>cat</name><truncated>0</truncated><truncated>1</truncated>" + BOX.format(5) + "</object>",
            "<object> has 2 <truncated>",
        ),
        (
            "<object><name>cat</name><truncated>partly</truncated>" + BOX.format(5) + "</object>",
            "<truncated> of the cat",
        ),
        (
            "<object><name>cat</name><bndbox><xmin>1</xmin><xmin>2</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
            "</bndbox></object>",
            "<bndbox> has 2 <xmin>",
        ),
    ],
)
def test_what_is_said_twice(tmp_path, text, message):
    "Of two values, neither is taken in silence"
    with pytest.raises(DataError, match=message):
        data.read_xml(annotation(tmp_path, beside=text))


@pytest.mark.parametrize(
    "width, message",
    [
        ("inf", "<size> needs a number in <width>, got 'inf'"),
        ("nan", "needs a number in <width>, got 'nan'"),
        ("1e999", "needs a number in <width>"),
        ("100.5", "<size> is 100.5 x 80: put the image's real size there, in whole pixels"),
        ("-100", "<size> is -100 x 80"),
        ("", "needs a number in <width>, got ''"),
    ],
)
def test_sizes_that_cannot_be(folder, width, message):
    folder.xml("a", box_xml(), size=(width, 80))
    broken(folder, rf"a\.xml.*{message}")


def test_whole_sizes_with_a_point(folder):
    folder.xml("a", box_xml(), size=("100.0", "80.0"))
    assert folder.voc().size(0) == (100, 80)


XML = "<annotation><folder>{0}</folder><size><width>100</width><height>80</height></size>{1}</annotation>"


@pytest.mark.parametrize("encoding", ["gbk", "big5", "shift_jis", "utf-16", "utf-8-sig", "latin-1", "us-ascii"])
@pytest.mark.parametrize("declared", [True, False])
def test_annotations_in_any_encoding(folder, encoding, declared):
    "The byte order mark, else the declaration, says what the bytes mean"
    word = "photos" if encoding in ("latin-1", "us-ascii") else "照片"
    if not declared and encoding in ("gbk", "big5", "shift_jis"):
        word = "photos"
    head = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>' if declared else ""
    path = folder.path / "Annotations" / "a.xml"
    path.write_bytes((head + XML.format(word, box_xml())).encode(encoding))
    assert data.read_xml(path)[1][0][0] == "cat"


@pytest.mark.parametrize(
    "raw, message",
    [
        (b'<?xml version="1.0" encoding="klingon"?><annotation/>', "unknown encoding 'klingon': save it as UTF-8"),
        (b'<?xml version="1.0" encoding=""?><annotation/>', "unknown encoding ''"),
        (XML.format("照片", "").encode("gbk"), "a.xml, line 1: not utf-8"),
        (XML.format("a", "").encode("utf-16-le"), "NUL characters"),
        (b"<a>" * 100_000, "is not valid XML"),
    ],
)
def test_annotations_that_cannot_be_decoded(tmp_path, raw, message):
    path = tmp_path / "a.xml"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=message):
        data.read_xml(path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_annotations_give_the_documented_error(tmp_path_factory, draw):
    "Bytes of a good annotation are changed, cut or repeated at random"
    path = tmp_path_factory.getbasetemp() / "fuzzed.xml"
    raw = bytearray(ANNOTATION.format(difficult="0", more="", beside="").encode())
    for _ in range(draw.draw(st.integers(1, 4))):
        at = draw.draw(st.integers(0, len(raw) - 1))
        raw[at : at + draw.draw(st.integers(0, 9))] = draw.draw(st.binary(max_size=6))
    path.write_bytes(bytes(raw))
    try:
        size, objects = data.read_xml(path)
    except DataError as e:
        assert str(path) in str(e)
    else:
        assert min(size) > 0
        assert all(0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1 for _, (x1, y1, x2, y2), *_ in objects)


# Lists


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_in_any_encoding(folder, encoding):
    path = folder.path / "ImageSets" / "Main" / "test.txt"
    path.write_bytes("a\r\nb\r\n".encode(encoding))
    assert folder.voc().ids == ("a", "b")
    path.write_bytes("höhle\n".encode("latin-1"))
    broken(folder, r"test\.txt, line 1: not utf-8 .*: save it as UTF-8")


def test_ids_with_spaces(folder):
    "An id is the whole line; only the list of a class has a flag behind it, on every line"
    for id in ("my cat", "my cat 2"):
        folder.image(id)
        folder.xml(id, box_xml())
    folder.list("test", "my cat\nmy cat 2\n")
    assert folder.voc().ids == ("my cat", "my cat 2")
    folder.list("cat_test", "my cat  1\nmy cat 2 -1\na 0\n")
    assert folder.voc("cat_test").ids == ("my cat", "my cat 2", "a")
    folder.list("test", "my\n")
    broken(folder, r"no image .*my\.jpg")


@pytest.mark.parametrize("id", ["../a", "/etc/passwd", "..", "a/b", "a\\b"])
def test_ids_that_leave_the_folder(folder, id):
    folder.list("test", f"{id}\n")
    broken(folder, "which is no image id")


# Pictures


def saved(format, **options):
    "A small picture as bytes"
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert("F" if format == "SPIDER" else "RGB").save(out, format, **options)
    return out.getvalue()


FORMATS = [f for f in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "AVIF", "DDS", "SPIDER", "PCX")]
FORMATS = [f for f in FORMATS if Image.init() is not None and f in Image.SAVE]


@pytest.mark.parametrize("format", FORMATS)
def test_damaged_pictures_of_every_format(tmp_path, format):
    "Cut anywhere, and with bytes changed at random: a picture or the documented error, nothing else"
    path, rng = tmp_path / "a", np.random.default_rng(0)
    whole = saved(format)
    path.write_bytes(whole)
    assert data.open_image(path).size == (16, 12)
    for k in range(150):
        raw = np.frombuffer(whole, np.uint8).copy()
        if k % 3:
            raw[rng.integers(0, min(len(raw), 200), 1 + k % 7)] = rng.integers(0, 256, 1 + k % 7)
        else:
            raw = raw[: rng.integers(0, len(raw))]
        path.write_bytes(raw.tobytes())
        try:
            image = data.open_image(path)
        except DataError as e:
            assert str(path) in str(e) and "restore it" in str(e)
        else:
            assert image.mode == "RGB"


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_against_pillow(tmp_path, turn, format):
    "The picture is the one that Pillow's own function gives, and turned only once"
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / "a"
    path.write_bytes(saved(format, exif=exif))
    expected = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    upright = data.open_image(path)
    assert np.array_equal(upright, expected) and np.array_equal(rgb(upright), expected)


def test_an_odd_exif_field_refuses_no_good_photograph(tmp_path):
    "An orientation beside an XResolution of 1/0: Pillow's own function raises here"
    entries = [(0x0112, 3, 1, struct.pack("<HH", 6, 0)), (0x011A, 5, 1, struct.pack("<I", 38))]
    ifd = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    exif = b"II*\0" + struct.pack("<IH", 8, 2) + ifd + struct.pack("<III", 0, 1, 0)
    path = tmp_path / "a.jpg"
    path.write_bytes(saved("JPEG", exif=b"Exif\0\0" + exif))
    assert data.open_image(path).size == (12, 16)
    for cut in range(len(exif)):
        path.write_bytes(saved("JPEG", exif=b"Exif\0\0" + exif[:cut]))
        assert data.open_image(path).size in ((16, 12), (12, 16))


def test_pictures_that_are_no_files(tmp_path):
    places = [tmp_path, tmp_path / "none.jpg"]
    if os.name == "posix":
        os.mkfifo(tmp_path / "pipe")
        places += ["/dev/zero", tmp_path / "pipe"]
    for place in places:
        with pytest.raises(DataError, match="take another"):
            data.open_image(place, cure="take another")


def test_postscript_is_not_run(tmp_path):
    (tmp_path / "a.jpg").write_bytes(saved("EPS"))
    with pytest.raises(DataError, match="PostScript"):
        data.open_image(tmp_path / "a.jpg")


def test_a_picture_that_declares_too_many_pixels(tmp_path):
    "A few bytes that would become gigabytes"
    raw = bytearray(saved("BMP"))
    raw[18:26] = struct.pack("<ii", 100_000, 100_000)
    (tmp_path / "a.bmp").write_bytes(raw)
    with pytest.raises(DataError, match="cannot be decoded"):
        data.open_image(tmp_path / "a.bmp")


def test_annotations_and_truth_are_themselves(folder):
    "Arrays are not compared: two objects that hold them are equal where they are the same object"
    voc = folder.voc()
    truth, first = voc.ground_truth(), voc.annotation(0)
    assert truth == voc.ground_truth() and truth in {truth} and first in {first} and first != voc.annotation(1)
    for held in (truth, first):
        with pytest.raises(AttributeError):  # what is shared is not changed
            held.difficult = None
