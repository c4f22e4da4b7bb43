"""Downloading PASCAL VOC, against a local server: connections that break, servers that cannot resume or send too much,
wrong sums, full disks, evil archives."""

import errno
import hashlib
import http.server
import io
import os
import tarfile
import threading
from types import SimpleNamespace

import numpy as np
import pytest

import locrl.data.download as downloads
from conftest import VocFolder
from locrl.data.voc import VOC, DataError
from locrl.data.download import Archive, download, fetch, unpack


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, name = self.server, self.path.strip("/")
        server.asked.append((name, self.headers.get("Range")))
        if name not in server.files:
            return self.send_error(404)
        if name in server.refuse:
            return self.send_error(416)
        body, first = server.files[name], 0
        if (wanted := self.headers.get("Range")) and server.ranges:
            first = int(wanted.split("=")[1].rstrip("-"))
            if first >= len(body):
                return self.send_error(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if server.length:
            self.send_header("Content-Length", str(len(body) - first))
        self.end_headers()
        stop = min(len(body), first + server.cut) if server.cut and name not in server.whole else len(body)
        self.wfile.write(body[first:stop])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files = {}
    server.asked = []
    server.ranges = True
    server.cut = 0
    server.whole = set()
    server.refuse = set()
    server.length = True
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


BODY = np.random.default_rng(0).bytes(300_000)


def archive(server, *names, body=BODY, **kwargs):
    return Archive(
        "some.tar",
        hashlib.md5(body).hexdigest(),
        len(body),
        tuple(f"{server.url}/{n}" for n in names),
        "test",
        **kwargs,
    )


def test_fetch(server, tmp_path):
    server.files["good"] = BODY
    wanted = archive(server, "good")
    assert fetch(wanted, tmp_path).read_bytes() == BODY
    assert [p.name for p in tmp_path.iterdir()] == ["some.tar"]
    fetch(wanted, tmp_path)
    assert len(server.asked) == 1


def test_fetch_resumes(server, tmp_path):
    server.files["good"] = BODY
    (tmp_path / "some.tar.part").write_bytes(BODY[:100_000])
    assert fetch(archive(server, "good"), tmp_path).read_bytes() == BODY
    assert server.asked == [("good", "bytes=100000-")]


def test_fetch_restarts_where_the_server_cannot_resume(server, tmp_path):
    server.files["good"], server.ranges = BODY, False
    (tmp_path / "some.tar.part").write_bytes(b"x" * 100_000)
    assert fetch(archive(server, "good"), tmp_path).read_bytes() == BODY


def test_fetch_survives_a_breaking_connection(server, tmp_path):
    server.files["good"], server.cut = BODY, 70_000
    assert fetch(archive(server, "good"), tmp_path).read_bytes() == BODY
    assert [r for _, r in server.asked] == [None, "bytes=70000-", "bytes=140000-", "bytes=210000-", "bytes=280000-"]


def test_fetch_drops_a_stale_part(server, tmp_path):
    server.files["good"] = BODY
    for stale in b"x" * 1000, BODY[::-1], BODY + b"x":
        (tmp_path / "some.tar.part").write_bytes(stale)
        assert fetch(archive(server, "good"), tmp_path).read_bytes() == BODY
        (tmp_path / "some.tar").unlink()


def test_fetch_goes_on_to_the_next_mirror(server, tmp_path):
    server.files.update(bad=BODY[::-1], good=BODY)
    assert fetch(archive(server, "missing", "bad", "good"), tmp_path).read_bytes() == BODY
    assert [n for n, _ in server.asked] == ["missing", "bad", "good"]


def test_fetch_keeps_the_part_of_a_broken_mirror(server, tmp_path):
    server.files.update(first=BODY, good=BODY)
    server.cut, server.whole = 100_000, {"good"}
    server.ranges = True
    (tmp_path / "some.tar.part").write_bytes(BODY[:50_000])
    assert fetch(archive(server, "gone", "good"), tmp_path).read_bytes() == BODY
    assert server.asked[-1] == ("good", "bytes=50000-")


def test_fetch_keeps_the_part_from_what_is_no_archive(server, tmp_path):
    "A page that answers in the archive's place, with 200, writes over nothing"
    server.files.update(page=b"<html>log in</html>")
    server.ranges = False
    (tmp_path / "some.tar.part").write_bytes(BODY[:100_000])
    with pytest.raises(DataError, match="19 bytes instead of 300,000"):
        fetch(archive(server, "page"), tmp_path)
    assert (tmp_path / "some.tar.part").read_bytes() == BODY[:100_000]


def test_fetch_goes_on_after_a_refused_beginning(server, tmp_path):
    "416 to a request without a range: no reason to look for a part that is not there"
    server.files.update(empty=b"", good=BODY)
    server.refuse = {"empty"}
    assert fetch(archive(server, "empty", "good"), tmp_path).read_bytes() == BODY


def test_fetch_says_what_to_do(server, tmp_path):
    server.files["bad"] = BODY[::-1]
    closed = "http://127.0.0.1:9/closed"
    wanted = archive(server, "missing", "bad")
    wanted = Archive(wanted.name, wanted.md5, wanted.size, (*wanted.urls, closed), "test")
    with pytest.raises(DataError) as e:
        fetch(wanted, tmp_path, tries=1)
    for part in "404", "wrong MD5", "refused", str(tmp_path / "some.tar"), "LOCRL_DATA", "Scenes":
        assert part in str(e.value)
    assert not (tmp_path / "some.tar").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_fetch_on_a_full_or_read_only_disk(server, tmp_path, monkeypatch, code):
    def fail(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(downloads, "_resume", fail)
    with pytest.raises(DataError, match=r"cannot write .*some\.tar\.part .*LOCRL_DATA"):
        fetch(archive(server, "good"), tmp_path)


def test_fetch_refuses_a_wrong_file_in_place(server, tmp_path):
    (tmp_path / "some.tar").write_text("something else")
    with pytest.raises(DataError, match=r"some\.tar has 14 bytes instead of 300,000: delete"):
        fetch(archive(server, "good"), tmp_path)


@pytest.fixture
def tar(tmp_path):
    folder = VocFolder(tmp_path / "source")
    (folder.path / "SegmentationClass").mkdir()
    (folder.path / "SegmentationClass" / "a.png").write_text("not needed")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        file.add(folder.root / "VOCdevkit", "VOCdevkit")
    return out.getvalue()


def test_download(server, tar, tmp_path, monkeypatch):
    server.files["tar"] = tar
    monkeypatch.setitem(downloads.ARCHIVES, "2007", (archive(server, "tar", body=tar),))
    folder = download(2007, tmp_path)
    assert VOC("2007", "test", root=tmp_path).image(0).size == (100, 80)
    assert sorted(p.name for p in folder.iterdir()) == ["Annotations", "ImageSets", "JPEGImages"]
    assert not (tmp_path / "some.tar").exists()
    download("2007", tmp_path)
    assert len(server.asked) == 1
    (folder / "JPEGImages" / "b.jpg").unlink()
    download("2007", tmp_path, keep_archive=True)
    assert (folder / "JPEGImages" / "b.jpg").exists() and (tmp_path / "some.tar").exists() and len(server.asked) == 2


class Killed(BaseException):
    "In place of a SIGKILL: no `except Exception` hears of it"


def files_of(root):
    "Name and content of every file below a folder"
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


class Moments:
    "Counts the steps of unpacking that may be the last, and kills at one of them, a file being half-written"

    def __init__(self, monkeypatch, last=None):
        self.steps, self.last = [], last
        self.copy = tarfile.copyfileobj
        monkeypatch.setattr(tarfile, "copyfileobj", self.half)
        for module, name in ((downloads.os, "replace"), (downloads.os, "unlink"), (downloads.shutil, "rmtree")):
            monkeypatch.setattr(module, name, self.before(name, getattr(module, name)))

    def step(self, name):
        "Whether this is the last step"
        self.steps.append(name)
        return len(self.steps) - 1 == self.last

    def half(self, source, target, length=None, *args, **kwargs):
        if self.step("copy"):
            target.write(source.read(length // 2))
            target.flush()
            raise Killed
        return self.copy(source, target, length, *args, **kwargs)

    def before(self, name, real):
        def act(*args, **kwargs):
            if self.step(name):
                raise Killed
            return real(*args, **kwargs)

        return act


@pytest.mark.parametrize("keep", [False, True])
def test_a_download_killed_at_any_moment_of_unpacking_ends_as_one_that_was_not(
    server, tar, tmp_path, monkeypatch, keep
):
    server.files["tar"] = tar
    monkeypatch.setitem(downloads.ARCHIVES, "2007", (archive(server, "tar", body=tar),))
    with monkeypatch.context() as m:
        moments = Moments(m)
        download("2007", tmp_path / "whole", keep_archive=keep)
    want = files_of(tmp_path / "whole")
    assert ("some.tar" in want) == keep and not [name for name in want if "unpacking" in name]
    assert moments.steps.count("copy") >= 5 and (moments.steps.count("unlink"), moments.steps[-1]) == (
        not keep,
        "rmtree",
    )
    begin = moments.steps.index("copy")
    for last in range(begin, len(moments.steps)):
        root = tmp_path / f"{last}"
        with monkeypatch.context() as m, pytest.raises(Killed):
            Moments(m, last)
            download("2007", root, keep_archive=keep)
        now = {name: content for name, content in files_of(root).items() if name.startswith("VOCdevkit")}
        assert all(want[name] == content for name, content in now.items())
        asked = len(server.asked)
        download("2007", root, keep_archive=keep)
        assert files_of(root) == want and len(server.asked) == asked
        assert sorted(p.name for p in root.iterdir()) == ["VOCdevkit", "some.tar"][: 1 + keep]


def test_unpacking_onto_a_full_disk_leaves_nothing(server, tar, tmp_path, monkeypatch):
    root = tmp_path / "here"
    server.files["tar"] = tar
    monkeypatch.setitem(downloads.ARCHIVES, "2007", (archive(server, "tar", body=tar),))

    def full(source, target, length=None, *args, **kwargs):
        target.write(source.read(length // 2))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as m:
        m.setattr(tarfile, "copyfileobj", full)
        with pytest.raises(DataError, match="cannot write to .*No space left"):
            download("2007", root)
    assert list(files_of(root)) == ["some.tar"]
    download("2007", root)
    assert [p.name for p in root.iterdir()] == ["VOCdevkit"] and len(server.asked) == 1


def test_download_wants_room(server, tar, tmp_path, monkeypatch):
    monkeypatch.setitem(downloads.ARCHIVES, "2007", (Archive("some.tar", "", 10**18, (server.url,), "test"),))
    with pytest.raises(DataError, match="GB free: make room"):
        download("2007", tmp_path)
    assert not server.asked


def test_download_counts_what_is_there(server, tar, tmp_path, monkeypatch):
    "Room for the archive and what is unpacked from it, less the part that was downloaded before"
    server.files["tar"] = tar
    monkeypatch.setitem(downloads.ARCHIVES, "2007", (archive(server, "tar", body=tar),))
    (tmp_path / "some.tar.part").write_bytes(tar[:1000])

    def free(n):
        monkeypatch.setattr(downloads.shutil, "disk_usage", lambda path: SimpleNamespace(free=n))

    free(2 * len(tar) - 1001)
    with pytest.raises(DataError, match="make room"):
        download("2007", tmp_path)
    free(2 * len(tar) - 1000)
    assert download("2007", tmp_path).is_dir()


def test_download_to_a_place_that_cannot_be_written(server, tar, tmp_path, monkeypatch):
    monkeypatch.setitem(downloads.ARCHIVES, "2007", (archive(server, "tar", body=tar),))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write to .*LOCRL_DATA"):
        download("2007", tmp_path / "file")


def test_download_of_what_is_no_tar(server, tmp_path, monkeypatch):
    server.files["good"] = BODY
    monkeypatch.setitem(downloads.ARCHIVES, "2007", (archive(server, "good"),))
    with pytest.raises(DataError, match=r"some\.tar cannot be unpacked .*delete"):
        download("2007", tmp_path)


@pytest.mark.parametrize(
    "name, kind",
    [("../evil", tarfile.REGTYPE), ("/evil", tarfile.REGTYPE), ("VOCdevkit/VOC2007/JPEGImages/a", tarfile.SYMTYPE)],
)
def test_unpack_stays_in_its_folder(tmp_path, name, kind):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "evil.tar", "w") as file:
        file.addfile(member, io.BytesIO())
    with pytest.raises(DataError, match="which no VOC archive does"):
        unpack(tmp_path / "evil.tar", tmp_path / "out")
    assert not (tmp_path / "evil").exists() and not (tmp_path / "out").exists()


def test_the_official_addresses():
    for year, archives in downloads.ARCHIVES.items():
        for a in archives:
            assert a.urls[-1] == f"http://host.robots.ox.ac.uk/pascal/VOC/voc{year}/{a.name}"
            assert len(a.md5) == 32 and len(a.sha256) == 64
            encrypted = [url.startswith("https://") for url in a.urls]
            assert encrypted == sorted(encrypted, reverse=True) and encrypted[0]


# What a server may not do


@pytest.mark.parametrize("start", [0, 100_000])
def test_fetch_writes_no_more_than_the_archive_has(server, tmp_path, monkeypatch, start):
    "A server that names no length and goes on for ever: reading ends where the archive does"
    server.files["endless"], server.length = BODY + bytes(5_000_000), False
    if start:
        (tmp_path / "some.tar.part").write_bytes(BODY[:start])
    assert fetch(archive(server, "endless"), tmp_path).read_bytes() == BODY
    server.files["zeros"] = bytes(5_000_000)
    largest, real = [], downloads._fault
    monkeypatch.setattr(
        downloads, "_fault", lambda path, wanted: largest.append(path.stat().st_size) or real(path, wanted)
    )
    (tmp_path / "some.tar").unlink()
    with pytest.raises(DataError, match="wrong MD5"):
        fetch(archive(server, "zeros"), tmp_path)
    assert max(largest) == len(BODY)


def test_fetch_resumes_without_a_length(server, tmp_path):
    server.files["good"], server.length, server.cut = BODY, False, 130_000
    assert fetch(archive(server, "good"), tmp_path).read_bytes() == BODY
    assert [r for _, r in server.asked] == [None, "bytes=130000-", "bytes=260000-"]


def test_fetch_refuses_another_part_of_the_file(server, tmp_path, monkeypatch):
    "An answer that says it begins elsewhere is not written behind what is there"
    server.files["good"] = BODY
    (tmp_path / "some.tar.part").write_bytes(BODY[:1000])
    real = Handler.send_header

    def elsewhere(self, key, value):
        real(self, key, value.replace("bytes 1000-", "bytes 900-"))

    monkeypatch.setattr(Handler, "send_header", elsewhere)
    with pytest.raises(DataError, match="instead of what follows byte 1,000"):
        fetch(archive(server, "good"), tmp_path)
    assert (tmp_path / "some.tar.part").read_bytes() == BODY[:1000]


def test_fetch_checks_both_sums(server, tmp_path):
    server.files["good"] = BODY
    right = hashlib.sha256(BODY).hexdigest()
    assert fetch(archive(server, "good", sha256=right), tmp_path).exists()
    (tmp_path / "some.tar").unlink()
    with pytest.raises(DataError, match="wrong SHA-256 sum"):
        fetch(archive(server, "good", sha256="0" * 64), tmp_path)
    assert not (tmp_path / "some.tar").exists()


def evil_tar(path, name, size, kind=tarfile.REGTYPE, content=b""):
    "An archive with one member that declares `size` bytes"
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + content.ljust(10_240, b"\0"))
    return path


def test_unpack_refuses_what_declares_too_much(tmp_path):
    tar = evil_tar(tmp_path / "evil.tar", "VOCdevkit/VOC2007/JPEGImages/a.jpg", 10**12)
    with pytest.raises(DataError, match="declares more in .* than it has: delete"):
        unpack(tar, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unpack_refuses_sparse_members(tmp_path):
    "A member of a few bytes that would be written as a terabyte of zeros"
    tar = evil_tar(tmp_path / "evil.tar", "VOCdevkit/VOC2007/JPEGImages/a.jpg", 0, tarfile.GNUTYPE_SPARSE)
    with pytest.raises(DataError, match="which no VOC archive does"):
        unpack(tar, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["C:/evil", "VOCdevkit\\..\\..\\evil", "VOCdevkit/VOC2007/JPEGImages/../../../evil"])
def test_unpack_refuses_names_that_leave_on_any_system(tmp_path, name):
    tar = evil_tar(tmp_path / "evil.tar", name, 0)
    with pytest.raises(DataError, match="which no VOC archive does"):
        unpack(tar, tmp_path / "out")
