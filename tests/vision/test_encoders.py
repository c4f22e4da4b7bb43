"""Pictures of every kind through an encoder, and batches that fit into memory."""

import io
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image

from locrl.data.voc import DataError, rgb
from locrl.files import FileError, pack_tensors, write_atomic
from locrl.vision import encoders
from locrl.vision.encoders import Batches, EfficientNetLite0, Prototypes, crop, free_memory, out_of_memory, warp


# Memory


def cramped(capacity, error):
    "A function that doubles, and has room for `capacity` rows"

    def f(x):
        f.sizes.append(len(x))
        if len(x) > capacity:
            raise error
        return x * 2

    f.sizes = []
    return f


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 8 bytes. Error code 12"
    ),
]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.sampled_from(ERRORS))
def test_batches_halve_until_they_fit(n, size, capacity, error):
    f = cramped(capacity, error)
    batches = Batches(size=size)
    x = torch.arange(n)
    assert torch.equal(batches(f, x), x * 2)
    assert batches.size <= max(size, 1) and all(s <= size for s in f.sizes)
    before = len(f.sizes)
    batches(f, x)
    assert max(f.sizes[before:]) <= capacity  # what was learned stays


def test_the_memory_error_of_torchs_own_allocator_is_known():
    with pytest.raises(RuntimeError) as e:
        torch.empty(1 << 58)
    assert out_of_memory(e.value) and not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_other_errors_pass_and_one_that_does_not_fit_says_what_to_do():
    calls = []

    def wrong(x):
        calls.append(x)
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        Batches(size=8)(wrong, torch.zeros(8))
    assert len(calls) == 1
    with pytest.raises(MemoryError, match="no room for a single picture .*smaller input_size"):
        Batches(size=8)(cramped(0, ERRORS[0]), torch.zeros(8))


def test_the_first_size_follows_the_memory(monkeypatch):
    assert free_memory() > 1 << 20
    for free, each, size in ((1 << 30, 1 << 28, 2), (1 << 30, 1 << 40, 1), (1 << 40, 1, 8)):
        monkeypatch.setattr("locrl.vision.encoders.free_memory", lambda device: free)
        assert Batches(bytes_each=each).size == size
    assert Batches("cuda", bytes_each=1 << 20).size == 256 and Batches(size=5).size == 5


FAULTS = """
import resource, sys, torch
from locrl.vision.encoders import Batches, keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "kept": Batches()
def layers():
    for _ in range(20): torch.ones(5_000_000).mul(2)
layers()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
layers()
print(keep_freed_memory(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of GNU's C library")
def test_freed_memory_is_kept_for_the_next_pass():
    "Two blocks of 20 MB, twenty times: 4,883 pages each where the system has to give them anew"

    def faults(how, **env):
        return subprocess.run(
            [sys.executable, "-c", FAULTS, how], env=os.environ | env, capture_output=True, text=True, check=True
        ).stdout.split()

    kept, tuned = faults("kept"), faults("kept", MALLOC_MMAP_THRESHOLD_="65536")
    assert kept[0] == "True" and int(kept[1]) < 1000
    assert tuned[0] == "False" and int(tuned[1]) > 50_000  # whoever sets the C library's own switches is left alone


def test_the_embedded_encoder_halves_too(monkeypatch):
    encoder = EfficientNetLite0(64, batch_size=8)
    pixels = torch.randn(5, 3, 64, 64)
    expected, real = encoder.dense(pixels), encoders.on_device

    def small(x, *args, **options):
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(x, *args, **options)

    monkeypatch.setattr(encoders, "on_device", small)
    torch.testing.assert_close(encoder.dense(pixels), expected)
    assert encoder.batch_size == 2


# Pictures


@pytest.fixture(scope="module")
def encoder():
    return EfficientNetLite0(64)


def scene(width=60, height=40):
    "A picture whose corners differ"
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([255 * x // width, 255 * y // height, 0 * x + 90], -1).astype(np.uint8))


def saved(image, format, **options):
    "As it comes back from a file"
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return Image.open(buffer)


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16", "F"],
)
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (60, 40)])
def test_any_mode_and_size(encoder, mode, size):
    image = Image.new(mode, size)
    assert rgb(image).mode == "RGB" and rgb(image).size == size
    features = encoder.encode([image])
    assert features.shape == (1, 1280, 2, 2) and features.isfinite().all()
    assert encoder.embed_crops([image], [[0.2, 0.2, 0.21, 0.21]], context=16).isfinite().all()


def test_forms_of_one_picture_agree():
    image = scene()
    plain, grey = np.asarray(image).astype(int), np.asarray(image.convert("L"))

    def close(other, tolerance, to=plain):
        np.testing.assert_allclose(np.asarray(rgb(other)).astype(int), to, atol=tolerance)

    close(saved(image, "PNG"), 0)
    close(saved(image.convert("RGBA"), "PNG"), 0)
    close(saved(image.convert("CMYK"), "TIFF"), 1)
    close(saved(image.convert("CMYK"), "JPEG", quality=95), 12)
    close(saved(image.quantize(256), "PNG"), 20)
    close(
        saved(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"), 0, np.stack([grey] * 3, -1)
    )  # 16 bits: Pillow's convert makes it white
    close(Image.fromarray(grey.astype(np.int32) * 257), 0, np.stack([grey] * 3, -1))
    close(Image.fromarray(grey.astype(np.int32)), 0, np.stack([grey] * 3, -1))


def test_transparency_shows_white():
    image = scene().convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    for form in (image, saved(image, "PNG"), image.convert("LA")):
        assert np.asarray(rgb(form)).min() == 255
    palette = scene().quantize(8)
    clear = saved(palette, "PNG", transparency=palette.getpixel((0, 0)))
    assert rgb(clear).getpixel((0, 0)) == (255, 255, 255) and rgb(clear).getpixel((59, 39)) != (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(encoder, orientation):
    "A camera that lay on its side stores the pixels turned and says so: what comes out is upright, with boxes to match"
    turn = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # Pillow's Transpose that undoes the tag's
    stored, exif = scene() if turn is None else scene().transpose(Image.Transpose(turn)), Image.Exif()
    exif[0x0112] = orientation
    read = saved(stored, "JPEG", quality=100, subsampling=0, exif=exif)
    assert rgb(read).size == (60, 40)
    np.testing.assert_allclose(np.asarray(rgb(read)).astype(int), np.asarray(scene()).astype(int), atol=6)
    assert torch.cosine_similarity(*(encoder.embed_crops([im], [[0, 0, 0.5, 0.5]]) for im in (read, scene()))) > 0.95


def test_twenty_megapixels(encoder):
    image = scene().resize((5000, 4000))
    torch.testing.assert_close(encoder.encode([image]), encoder.encode([image.reduce(10)]), atol=0.3, rtol=0.3)
    assert crop(image, [0.5, 0.5, 0.5, 0.5]).size == (1, 1)
    assert rgb(image) is image  # not copied for each of a search's crops


@pytest.mark.parametrize("context", [0.0, 16 / 224, 0.2])
def test_context_is_a_share_of_the_whole_crop(context):
    "The box fills the crop but for its border, on all sides, which is black beyond the picture"
    image, box = (
        Image.new("RGB", (400, 300), "white"),
        np.array([0.5, 0.25, 1, 0.75]),
    )  # 200 x 150 pixels at the right edge
    cut = crop(image, box, context)
    border = context * np.array(cut.size)
    np.testing.assert_allclose(np.array(cut.size) - 2 * border, [200, 150], atol=1.5)
    white = np.asarray(cut)[..., 0] == 255
    assert white[:, : round(200 + border[0])].all() and not white[:, round(200 + border[0]) + 1 :].any()
    assert (
        cut.tobytes()
        == image.crop(
            tuple(np.round([200 - border[0], 75 - border[1], 400 + border[0], 225 + border[1]]).astype(int))
        ).tobytes()
    )


def test_prototypes_know_their_cells_from_background():
    "Well separated clusters: each cell goes to its class, the others to the background in the last row"
    rng, centres = np.random.default_rng(0), 6 * np.eye(4, 8)
    labels = rng.integers(-1, 3, 600)
    fitted = Prototypes.fit(
        centres[labels] + rng.normal(size=(600, 8)), labels, ("a", "b", "c")
    )  # the background is at the last centre
    test = torch.from_numpy(centres).float()
    assert (test @ fitted.weight.T + fitted.bias).argmax(1).tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="no training cells for b, background"):
        Prototypes.fit(centres[:3], np.array([0, 0, 2]), ("a", "b", "c"))


@pytest.mark.parametrize("size", [(1, 1), (320, 240)])
@pytest.mark.parametrize("box", [[0.999, 0, 1, 1], [0, 0.999, 1, 1], [0.999, 0.999, 1, 1]])
def test_a_sliver_is_of_the_picture(size, box):
    "And not of the black beside it"
    assert min(low for low, _ in crop(Image.new("RGB", size, "white"), box).getextrema()) == 255


def test_a_picture_without_pixels():
    with pytest.raises(DataError, match="0 x 3 pixels"):
        rgb(Image.new("RGB", (0, 3)))


def test_a_truncated_file_is_an_error_not_a_grey_half(encoder):
    buffer = io.BytesIO()
    scene(200, 200).save(buffer, "PNG")
    with pytest.raises(OSError):
        encoder.encode([Image.open(io.BytesIO(buffer.getvalue()[: len(buffer.getvalue()) // 2]))])


def test_warp_is_the_same_for_all_pictures_of_a_batch():
    pictures = [scene(), scene(30, 80), Image.new("L", (3, 3), 7)]
    together = warp(pictures, 32)
    assert together.shape == (3, 3, 32, 32) and together.dtype == torch.float32
    for one, picture in zip(together, pictures):
        assert torch.equal(one, warp([picture], 32)[0])
    with pytest.raises(KeyError):
        warp(pictures, 32, "nearest-ish")


# Prototypes on disk


def some_prototypes(n=2, dim=3):
    "Random numbers in the shape of prototypes"
    rng = np.random.default_rng(n)
    weight, bias = (torch.tensor(rng.normal(size=shape), dtype=torch.float32) for shape in ((n + 1, dim), (n + 1,)))
    return Prototypes([f"class {k}" for k in range(n)], weight, bias)


@pytest.mark.parametrize("n", [0, 1, 2, 20])
def test_prototypes_come_back_bit_for_bit(tmp_path, n):
    before = some_prototypes(n)
    before.save(tmp_path / "p.safetensors")
    after = Prototypes.load(tmp_path / "p.safetensors")
    assert after.classes == before.classes
    assert torch.equal(after.weight, before.weight) and torch.equal(after.bias, before.bias)


CAT_AND_DOG = {"weight": np.ones((3, 4), np.float32), "bias": np.ones(3, np.float32)}


@pytest.mark.parametrize(
    "tensors, about",
    [
        (CAT_AND_DOG, {}),
        (CAT_AND_DOG, {"classes": "cat"}),
        (CAT_AND_DOG, {"classes": ["cat", 2]}),
        (CAT_AND_DOG, {"classes": ["cat"]}),
        (CAT_AND_DOG, {"classes": ["cat", "dog", "cow"]}),
        (CAT_AND_DOG | {"weight": np.ones((3, 4))}, {"classes": ["cat", "dog"]}),
        (CAT_AND_DOG | {"weight": np.ones((4, 3), np.float32)}, {"classes": ["cat", "dog"]}),
        (CAT_AND_DOG | {"weight": np.ones(3, np.float32)}, {"classes": ["cat", "dog"]}),
        (CAT_AND_DOG | {"bias": np.ones(2, np.float32)}, {"classes": ["cat", "dog"]}),
        (CAT_AND_DOG | {"bias": np.full(3, np.nan, np.float32)}, {"classes": ["cat", "dog"]}),
        ({"weight": CAT_AND_DOG["weight"]}, {"classes": ["cat", "dog"]}),
        ({}, {"classes": ["cat", "dog"]}),
    ],
)
def test_prototypes_that_do_not_fit_together(tmp_path, tensors, about):
    path = write_atomic(tmp_path / "p.safetensors", pack_tensors(tensors, about))
    with pytest.raises(FileError, match="p.safetensors is damaged"):
        Prototypes.load(path)


def test_prototypes_are_never_unpickled(tmp_path):
    "What torch.load would run is refused"
    path = tmp_path / "prototypes.pt"
    torch.save(some_prototypes(), path)
    with pytest.raises(FileError, match="prototypes.pt is damaged"):
        Prototypes.load(path)
    with pytest.raises(FileError, match="is missing"):
        Prototypes.load(tmp_path / "none")


# The registry


def test_clip_adds_itself_to_the_registry():
    "`encoders` alone imports no open_clip; a name that it does not know brings in the module of the family"
    code = """
import sys
from locrl.vision import encoders
assert not encoders.FAMILIES and "locrl.vision.clip" not in sys.modules
try:
    encoders.load_encoder("ViT-L-41")
except ValueError as e:
    assert "unknown encoder" in str(e)
from locrl.vision.clip import OpenClipEncoder
assert encoders.FAMILIES == {"open_clip": OpenClipEncoder}
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_encoder_of_ones_own_comes_first(monkeypatch):
    monkeypatch.setattr(encoders, "ENCODERS", dict(encoders.ENCODERS))
    encoders.register_encoder("ViT-L-14", lambda device, **options: (device, options))
    assert encoders.load_encoder("ViT-L-14", "cuda", input_size=3) == ("cuda", {"input_size": 3})
    with pytest.raises(ValueError, match="is taken"):
        encoders.register_encoder("ViT-L-14", lambda device: None)
