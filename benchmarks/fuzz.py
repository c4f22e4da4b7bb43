"""Random damage to every kind of file that locrl reads: only the documented errors may come out.

    python benchmarks/fuzz.py                  # 10,000 cases and more
    python benchmarks/fuzz.py --cases 700      # a taste

Hypothesis damages a good file of each kind: bytes, tokens, lines, or values of its JSON; seldom it makes up the whole
file. A reader may take the file or refuse it with its documented error, within seconds; anything else is a fault.
Prints a table and writes results/benchmarks/fuzz.json. Ends with status 1 where there is a fault.
"""

import argparse
import io
import json
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from locrl.data.voc import VOC, DataError, open_image, read_xml
from locrl.experiments.config import Config, ConfigError
from locrl.files import FileError, read_json, read_npz, read_tensors, read_text, write_atomic
from locrl.vision.encoders import FeatureError
from locrl.vision.feature_store import FeatureStore

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "results" / "benchmarks" / "fuzz.json"
sys.path.append(str(ROOT / "tests"))
SLOW = 10.0  # seconds after which a case counts as stuck
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "ICO", "DDS", "PCX", "PPM", "SGI", "TGA")
FORMATS += ("SPIDER", "IM", "QOI", "MPO")

# How files are damaged

ODD_TOKENS = [
    b"",
    b"\0",
    b"-1",
    b"1e999",
    b"nan",
    b"inf",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"<",
    b"&x;",
    b"]]>",
    b"{",
    b"[",
]
ODD_TOKENS += [b'"', b"null", b"9" * 400, b"../", b"/etc/passwd", b"\r", b" " * 99, "ä".encode(), "ä".encode("latin-1")]
EDITS = st.tuples(
    st.sampled_from(["flip", "drop", "insert", "repeat", "cut", "swap"]),
    st.floats(0, 1),
    st.integers(1, 60),
    st.sampled_from(ODD_TOKENS) | st.binary(max_size=12),
)


def edited(content: bytes, edits) -> bytes:
    "Return `content` after some edits, each (kind, place in [0, 1], length, token)"
    for kind, place, length, token in edits:
        at = int(place * len(content))
        if kind == "flip" and at < len(content):
            content = content[:at] + bytes([content[at] ^ (length or 1)]) + content[at + 1 :]
        elif kind == "drop":
            content = content[:at] + content[at + length :]
        elif kind == "insert":
            content = content[:at] + token + content[at:]
        elif kind == "repeat":
            content = content[: at + length] + content[at:]
        elif kind == "cut":
            content = content[:at]
        elif kind == "swap":
            content = content[:at] + token + content[at + len(token) :]
    return content


def damaged(*originals: bytes):
    "Strategy: one of some files, damaged; seldom any bytes"
    some = st.sampled_from(originals)
    return st.builds(edited, some, st.lists(EDITS, min_size=1, max_size=4)) | st.binary(max_size=200)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["cat", "../x", "voc2007:test", 0, -1, 1, 2**31, 1e308]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def places(value, way=()):
    "All places in nested JSON"
    yield way
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*way, key))


def altered(value, way, new, gone):
    "Return nested JSON with another value at a place, or without it"
    if not way:
        return new
    out = dict(value) if isinstance(value, dict) else list(value)
    if len(way) == 1 and gone:
        del out[way[0]]
    else:
        out[way[0]] = altered(value[way[0]], way[1:], new, gone)
    return out


@st.composite
def other_json(draw, original):
    "Strategy: JSON with some values replaced or removed"
    value = original
    for _ in range(draw(st.integers(1, 3))):
        way = draw(st.sampled_from(list(places(value))))
        value = altered(value, way, draw(JSON_VALUES), draw(st.booleans()))
        if not isinstance(value, (dict, list)):
            break
    return value


def json_file(original):
    "Strategy: bytes of a JSON file, wrong in its values or in its bytes"
    right = json.dumps(original).encode()
    return other_json(original).map(lambda v: json.dumps(v).encode()) | damaged(right)


# Good files

XML = b"""<annotation><filename>a.jpg</filename><size><width>100</width><height>80</height><depth>3</depth></size>
<object><name>cat</name><difficult>0</difficult><truncated>0</truncated><bndbox><xmin>11</xmin><ymin>21</ymin>
<xmax>50</xmax><ymax>60</ymax></bndbox></object><object><name>dog</name><bndbox><xmin>1</xmin><ymin>1</ymin>
<xmax>100</xmax><ymax>80</ymax></bndbox><part><name>head</name></part></object></annotation>"""
XML_TOKENS = [b"0", b"80", b"cat", b"<object>", b"</object>", b"<bndbox>", b"<size>", b"</size>", b"difficult", b"dog"]


def xml_file():
    "Strategy: annotations with tokens exchanged, lines doubled, bytes damaged, other encodings declared"
    token = st.tuples(st.sampled_from(XML_TOKENS), st.sampled_from([*XML_TOKENS, *ODD_TOKENS]))
    exchanged = st.builds(lambda pairs: _exchange(XML, pairs), st.lists(token, min_size=1, max_size=3))
    codes = st.sampled_from(["utf-8", "utf-16", "latin-1", "gbk", "no-such", "utf-7", "ascii", "cp037"])
    head = codes.map(lambda c: f'<?xml version="1.0" encoding="{c}"?>'.encode())
    return exchanged | damaged(XML) | st.builds(lambda a, b: a + b, head, exchanged | damaged(XML))


def _exchange(content, pairs):
    "Return `content` with tokens exchanged"
    for old, new in pairs:
        content = content.replace(old, new, 1)
    return content


def pictures() -> list[bytes]:
    "Return one small picture in every format that can be written here"
    grey = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    out = []
    for name in FORMATS:
        image = Image.fromarray(grey).convert("F" if name == "SPIDER" else "RGB")
        exif = Image.Exif()
        exif[0x0112] = 6
        exif[0x011A] = (72, 1)
        try:
            image.save(buffer := io.BytesIO(), name, **(dict(exif=exif) if name in ("JPEG", "TIFF", "WEBP") else {}))
        except (KeyError, OSError, ValueError):
            continue
        out.append(buffer.getvalue())
    return out


@dataclass
class Reader:
    "Something that reads files"

    strategy: object  # of the content, bytes
    read: Callable  # given the content
    errors: tuple  # that are documented
    good: bytes  # a file that it takes


def voc_folder(folder: Path) -> Path:
    "Make a VOC folder of two pictures; return the path of its list"
    voc = folder / "VOCdevkit" / "VOC2007"
    for id in ("a", "b"):
        write_atomic(voc / "Annotations" / f"{id}.xml", XML)
        write_atomic(voc / "JPEGImages" / f"{id}.jpg", b"not read here")
    return write_atomic(voc / "ImageSets" / "Main" / "test.txt", "a\nb\n")


def store_folder(folder: Path) -> Path:
    "Make a small store; return its folder"
    from mosaic import build

    return build(folder).path


def tensors_file() -> bytes:
    "Return a small safetensors file with metadata"
    from safetensors.numpy import save

    arrays = dict(weight=np.zeros((2, 3), np.float32), bias=np.zeros(3, np.int64))
    return save(arrays, dict(classes=json.dumps(["cat", "dog"])))


def arrays_file() -> bytes:
    "Return a small .npz file"
    np.savez_compressed(buffer := io.BytesIO(), mean=np.zeros(4, np.float32), scale=np.float64(1))
    return buffer.getvalue()


def readers(folder: Path) -> dict[str, Reader]:
    "Every reader by name; the files are written below `folder`"
    listed = voc_folder(folder / "voc")
    place = store_folder(folder / "store")
    about = json.loads((place / "store.json").read_bytes())
    shard = (place / "shard-00000.json").read_bytes()
    features = (place / "features-00000.npy").read_bytes()
    root = listed.parents[4]

    def in_file(path, read):
        def run(content):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            return read(path)

        return run

    def store(file):
        whole = (place / file).read_bytes()

        def run(content):
            (place / file).write_bytes(content)
            try:
                made = FeatureStore(place)
                return [made.array(name) for name in ("features", "evidence", "presence")], made[0]
            finally:
                (place / file).write_bytes(whole)

        return run

    def split(path):
        data = VOC("2007", "test", root=root)
        return [data.annotation(i) for i in range(len(data))]

    schema = {"classes": [str]}
    out = dict(
        annotation=Reader(xml_file(), in_file(folder / "x.xml", read_xml), (DataError,), XML),
        list=Reader(
            damaged(b"a\nb\n", b"a 1\nb -1\n", "a\nb".encode("utf-16")), in_file(listed, split), (DataError,), b"a\nb\n"
        ),
        text=Reader(
            damaged(b"a\nb\n", "ä".encode("utf-16")), in_file(folder / "t.txt", read_text), (FileError,), b"a\n"
        ),
        json=Reader(json_file(about), in_file(folder / "j.json", read_json), (FileError,), b"{}"),
        arrays=Reader(damaged(arrays_file()), in_file(folder / "a.npz", read_npz), (FileError,), arrays_file()),
        tensors=Reader(
            damaged(tensors_file()),
            in_file(folder / "t.safetensors", lambda p: read_tensors(p, schema)),
            (FileError,),
            tensors_file(),
        ),
        picture=Reader(damaged(*pictures()), in_file(folder / "p.jpg", open_image), (DataError,), pictures()[0]),
        config=Reader(
            other_json(Config().to_dict()).map(lambda v: json.dumps(v).encode()),
            lambda content: Config.from_dict(json.loads(content)),
            (ConfigError,),
            json.dumps(Config().to_dict()).encode(),
        ),
        store=Reader(json_file(about), store("store.json"), (FeatureError,), json.dumps(about).encode()),
        shard=Reader(json_file(json.loads(shard)) | damaged(shard), store("shard-00000.json"), (FeatureError,), shard),
        features=Reader(damaged(features), store("features-00000.npy"), (FeatureError,), features),
    )
    return out | of_runs(folder)


def of_runs(folder: Path) -> dict[str, Reader]:
    "Readers of a run's files"
    try:
        from locrl.checkpoints import RunError, RunFolder, pack_tree, unpack_tree
    except ImportError:
        return {}
    tree = dict(step=3, values=[1.5, None, True], weights=np.zeros((2, 2), np.float32), name=("a", {1: 2}))
    run = RunFolder(folder / "run")
    run.path.mkdir(parents=True, exist_ok=True)
    run.commit({"config.json": b"{}", "last": pack_tree(tree), "best": pack_tree(tree)}, seed=0)
    file = run.path / "manifest.json"
    manifest = file.read_bytes()

    def load(content):
        file.write_bytes(content)
        try:
            return run.read("config.json", "last")
        finally:
            file.write_bytes(manifest)

    return dict(
        checkpoint=Reader(damaged(pack_tree(tree)), unpack_tree, (RunError,), pack_tree(tree)),
        manifest=Reader(json_file(json.loads(manifest)) | damaged(manifest), load, (RunError,), manifest),
    )


# Running


def tried(reader: Reader, content: bytes):
    "Read one file: 'taken', 'refused', or what went wrong and where"
    begun = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(content)
        verdict = "taken"
    except reader.errors as e:
        verdict = "refused" if len(str(e)) > 10 else f"{type(e).__name__} says nothing"
    except Exception as e:
        frames = [f for f in traceback.extract_tb(e.__traceback__) if "locrl" in f.filename] or [None]
        place = f" at {Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames[-1] else ""
        verdict = f"{type(e).__name__}{place}: {str(e)[:80]}"
    if time.monotonic() - begun > SLOW:
        verdict = f"took {time.monotonic() - begun:.0f} s, {verdict}"
    return verdict


def fuzz(name: str, reader: Reader, cases: int, start: int = 0) -> dict:
    "Try a reader on so many files: how many it took and refused, and each kind of fault with one file that shows it"
    counts = Counter()
    faults = {}

    @seed(start)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(reader.strategy)
    def run(content):
        verdict = tried(reader, content)
        counts[verdict if verdict in ("taken", "refused") else "fault"] += 1
        if verdict not in ("taken", "refused"):
            faults.setdefault(verdict.split(":")[0], (verdict, content[:400].decode("latin-1")))

    begun = time.monotonic()
    if (verdict := tried(reader, reader.good)) != "taken":
        raise AssertionError(f"{name} does not take a good file ({verdict}): nothing is tried")
    run()
    total = sum(counts.values())
    return dict(
        reader=name,
        cases=total,
        taken=counts["taken"],
        refused=counts["refused"],
        faults=[dict(what=what, file=file) for what, file in faults.values()],
        seconds=round(time.monotonic() - begun, 1),
    )


def main():
    "Read the arguments, fuzz every reader, write the table"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=13_000, help="all readers together")
    parser.add_argument("--readers", nargs="+", help="only these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows = []
    with tempfile.TemporaryDirectory(prefix="locrl-fuzz-") as folder:
        every = readers(Path(folder))
        names = args.readers or list(every)
        for name in names:
            rows.append(fuzz(name, every[name], -(-args.cases // len(names)), args.seed))
            row = rows[-1]
            print(f"{name:12} {row['cases']:6} cases  taken {row['taken']:6}  refused {row['refused']:6}", end="  ")
            print(f"faults {len(row['faults'])}  {row['seconds']:.0f} s", flush=True)
            for fault in row["faults"]:
                print(f"    {fault['what']}\n        {fault['file'][:200]!r}")
    faults = sum(len(r["faults"]) for r in rows)
    content = dict(command=f"python benchmarks/fuzz.py --cases {args.cases} --seed {args.seed}")
    content |= dict(cases=sum(r["cases"] for r in rows), faults=faults, readers=rows)
    write_atomic(args.out, json.dumps(content, indent=1) + "\n")
    print(f"{content['cases']:,} cases, {faults} kinds of fault")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
