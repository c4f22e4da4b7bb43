"""Readers of text, JSON, arrays and pictures against files that somebody else wrote, cut, damaged or made up."""

import io
import json
import math
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from locrl import files
from locrl.files import FileError, check_json, parse_json, read_bytes, read_json, read_npz, read_tensors, read_text


class OwnError(ValueError):
    "What a caller documents"


READERS = [
    read_bytes,
    read_text,
    lambda path, error, cure: read_json(path, {"a": int}, error, cure),
    read_npz,
    lambda path, error, cure: read_tensors(path, {"a": int}, error, cure),
]
every_reader = pytest.mark.parametrize("read", READERS, ids=["bytes", "text", "json", "npz", "tensors"])


@every_reader
def test_what_is_no_file(read, tmp_path):
    "A missing file, a folder, a device and a pipe give the caller's error at once, with the file and the cure"
    places = [tmp_path / "none", tmp_path, tmp_path / "a\0b", tmp_path / ("x" * 300)]
    if os.name == "posix":
        os.mkfifo(tmp_path / "pipe")
        places += ["/dev/zero", "/dev/null", tmp_path / "pipe"]
    for place in places:
        with pytest.raises(OwnError, match="make it again"):
            read(place, OwnError, "make it again")


@every_reader
@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=200))
def test_any_bytes_give_the_callers_error(read, raw, tmp_path_factory):
    "No reader raises anything but what its caller documents"
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(raw)
    try:
        read(path, OwnError, "make it again")
    except OwnError as e:
        assert str(path) in str(e)


def test_the_limit_is_exact(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_bytes(path, limit=5) == b"12345"
    with pytest.raises(FileError, match="more than 4 bytes"):
        read_bytes(path, limit=4)


# Writing


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def interrupt(f):
        f.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_atomic(tmp_path / "a", interrupt)
    assert not list(tmp_path.iterdir())


@given(st.text(max_size=300))
def test_safe_names(text):
    "Every name can be made on Windows and elsewhere, and a safe one stays as it is"
    name = files.safe_name(text)
    assert name and not set('<>:"/\\|?*') & set(name) and min(map(ord, name)) >= 32
    assert len(name) <= 150 and name[-1] not in " ."
    assert files.safe_name(name) == name


# Text


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), min_size=1))
def test_every_encoding_gives_the_same_text(text):
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert files.decode_text(text.encode(encoding), "a") == text


@pytest.mark.parametrize("codec", ["utf-16-be", "utf-32-be"])
def test_big_endian_marks(codec):
    assert files.decode_text("\ufeffhöhle".encode(codec), "a") == "höhle"


def test_declared_encodings():
    assert files.decode_text("狗".encode("gbk"), "a", "gbk") == "狗"
    for unknown in ("klingon", "", "rot13", "zip", "a\0"):
        with pytest.raises(FileError, match="unknown encoding"):
            files.decode_text(b"abc", "a", unknown)


def test_utf16_without_a_mark():
    with pytest.raises(FileError, match="NUL characters"):
        files.decode_text("abc".encode("utf-16-le"), "a")


# JSON

SCHEMA = {"name": str, "n": int, "scale": float, "flip": bool, "grid": [int], "deep": {"x": [float]}, "any": object}
SCHEMA |= {"maybe": (str, [int], type(None))}
GOOD = dict(
    name="a", n=1, scale=0.5, flip=True, grid=[1, 2], deep={"x": [1, 2.5]}, any={"y": [None]}, maybe=[3], more=9
)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(name=1), "name should be a text, got '1'"),
        (dict(n=1.0), "n should be a whole number"),
        (dict(n=True), "n should be a whole number"),
        (dict(n="1"), "n should be a whole number"),
        (dict(scale="0.5"), "scale should be a number"),
        (dict(scale=False), "scale should be a number"),
        (dict(flip=1), "flip should be true or false"),
        (dict(grid={"0": 1}), "grid should be a list"),
        (dict(grid=[1, None]), r"grid\[1\] should be a whole number"),
        (dict(deep=[]), "deep should be an object"),
        (dict(deep={}), "deep has no x"),
        (dict(deep={"x": [1, "a"]}), r"deep.x\[1\] should be a number"),
        (dict(maybe=1), "maybe should be a text or a list or null"),
        (dict(maybe=["a"]), r"maybe\[0\] should be a whole number"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    check_json(GOOD, SCHEMA)
    with pytest.raises(ValueError, match=message):
        check_json(GOOD | change, SCHEMA)


@pytest.mark.parametrize("key", SCHEMA)
def test_every_key_is_needed(key):
    with pytest.raises(ValueError, match=f"the object has no {key}"):
        check_json({k: v for k, v in GOOD.items() if k != key}, SCHEMA)


@pytest.mark.parametrize(
    "text", ["NaN", "Infinity", "-Infinity", "1e999", "[" * 10**5, "9" * 5000 + "x", "", "{'a': 1}"]
)
def test_what_is_no_json(text):
    with pytest.raises(ValueError):
        parse_json(text, object)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*SCHEMA, "z"]), inner, max_size=8),
    max_leaves=12,
)


@given(json_values)
def test_what_passes_can_be_used(value):
    "Whatever passes the check has the keys and types that the schema asks for"
    try:
        check_json(value, {"n": int, "grid": [int], "scale": float})
    except ValueError:
        return
    assert value["n"] + 1 and sum(value["grid"]) < math.inf and value["scale"] * 2 < math.inf


# Arrays


class Evil:
    "Writes a file when it is unpickled"

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_no_reader_unpickles(tmp_path):
    touched = tmp_path / "touched"
    np.savez(tmp_path / "objects.npz", a=np.array([Evil(touched)], dtype=object), allow_pickle=True)
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Evil(touched)))
    for name in ("objects.npz", "pickle.npz"):
        with pytest.raises(FileError, match="is damaged"):
            read_npz(tmp_path / name)
        with pytest.raises(FileError):
            read_tensors(tmp_path / name, {})
    assert not touched.exists()


def npy_header(shape, dtype="<f4"):
    "The header of an .npy file that declares `shape`"
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, dict(descr=dtype, fortran_order=False, shape=shape))
    return out.getvalue()


def test_an_array_that_declares_more_than_it_holds(tmp_path):
    "Eight exabytes in a few bytes: refused by the header, before any memory is asked for"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", npy_header((2**61,)) + b"1234")
    with pytest.raises(FileError, match="declares more than it holds"):
        read_npz(tmp_path / "a.npz")


def test_an_archive_that_unpacks_to_too_much(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(10**6, np.uint8))
    assert read_npz(tmp_path / "a.npz", limit=1_001_000)["a"].shape == (10**6,)
    with pytest.raises(FileError, match="would unpack to 1,000,"):
        read_npz(tmp_path / "a.npz", limit=1_000_000)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 7))
def test_a_flipped_bit_or_a_cut_in_an_archive(tmp_path_factory, at, bit):
    "A damaged archive is refused, or what it gives is what was written: the format carries checksums"
    path = tmp_path_factory.getbasetemp() / "bits.npz"
    array = np.arange(50, dtype=np.float32)
    np.savez(path, a=array)
    raw = bytearray(path.read_bytes())
    raw[at % len(raw)] ^= 1 << bit
    for damaged in (bytes(raw), bytes(raw[: at % len(raw)])):
        path.write_bytes(damaged)
        try:
            read = read_npz(path)
        except FileError:
            continue
        assert all(np.array_equal(each, array) for each in read.values())


def test_tensors_round_trip(tmp_path):
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.arange(4).reshape(2, 2).T,
        "empty": np.empty((0, 3)),
    }
    path = files.write_atomic(
        tmp_path / "a.safetensors", files.pack_tensors(arrays, {"classes": ("cat", "dog"), "n": 3})
    )
    read, about = read_tensors(path, {"classes": [str], "n": int})
    assert about == {"classes": ["cat", "dog"], "n": 3} and read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype and np.array_equal(read[name], array)
    with pytest.raises(FileError, match="n should be a text"):
        read_tensors(path, {"n": str})


@pytest.mark.parametrize(
    "header",
    [
        b"{}",
        b"[]",
        b"null",
        b'{"__metadata__": []}',
        b'{"__metadata__": {"n": "x"}}',
        b'{"a": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4000000000]}}',
        b'{"a": {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 4]}}',
    ],
)
def test_headers_of_tensors_that_lie(tmp_path, header):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"1234")
    with pytest.raises(FileError, match="a.safetensors is damaged"):
        read_tensors(path, {"n": int})
    path.write_bytes(struct.pack("<Q", 2**62) + header)
    with pytest.raises(FileError, match="a.safetensors is damaged"):
        read_tensors(path, {"n": int})


def test_json_files(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(json.dumps({"a": 1}).encode("utf-16"))
    assert read_json(path, {"a": int}) == {"a": 1}
    path.write_text('{"a": "1"}')
    with pytest.raises(OwnError, match="a.json is damaged .a should be a whole number, got '1'.: make it again"):
        read_json(path, {"a": int}, OwnError, "make it again")
