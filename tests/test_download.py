import errno
import hashlib
import io
import json
import re
import sys
import threading
import types
import zipfile
from contextlib import suppress
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import h5py
import httpx
import numpy as np
import pytest
from filelock import FileLock

from tql_offline.datasets import catalogue
from tql_offline.datasets import download as module
from tql_offline.datasets import verify as verifying
from tql_offline.datasets.availability import check
from tql_offline.datasets.download import download
from tql_offline.datasets.minari_remote import download_minari
from tql_offline.datasets.verify import verify
from tql_offline.errors import InputError

NAME = "pointmaze-medium-navigate-v0"
TRAIN, VAL = f"{NAME}.npz", f"{NAME}-val.npz"


def npz(seed=0, rows=12_000, columns=("observations", "actions", "terminals")):
    """An incompressible file of several of the downloader's 64 KiB pieces."""
    values = np.random.default_rng(seed).normal(size=(rows, 2)).astype(np.float32)
    buffer = io.BytesIO()
    np.savez(buffer, **dict.fromkeys(columns, values))
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Answers `/<mirror>/<file>` as that mirror's script says; "fine" once the script is spent.

    A script that ends in "..." goes on with what stands before it.
    """

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        # A mirror may keep its files in folders.
        mirror, *_, file = self.path.strip("/").split("/")
        site = self.server.site
        script = site.scripts.get(mirror, [])
        act = script.pop(0) if script else "fine"
        if script == ["..."]:
            script.insert(0, act)
        site.asked.append((self.command, self.path))
        site.log.append((mirror, file, act, self.headers["Range"], self.headers["If-Range"]))
        body = site.files.get(file)
        if isinstance(act, int) or body is None:
            self.send_error(act if isinstance(act, int) else 404)
        else:
            getattr(self, act)(body)

    def fine(self, body, *, etag='"v1"', sent=None, announced=None, shift=0):
        """Serve the body or its rest, as Apache does; the keywords are ways to misbehave."""
        asked = self.headers["Range"]
        guard = self.headers["If-Range"]
        start = 0
        if asked and guard in (None, etag):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start + shift}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        rest = body[start:]
        self.send_header("Content-Length", str(len(rest) if announced is None else announced))
        self.send_header("Content-Type", "application/octet-stream")
        if etag:
            self.send_header("ETag", etag)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(rest if sent is None else rest[:sent])

    def drop(self, body):
        self.fine(body, sent=150_000)

    def no_etag_drop(self, body):
        self.fine(body, sent=150_000, etag=None)

    def no_etag(self, body):
        self.fine(body, etag=None)

    def weak_etag_drop(self, body):
        self.fine(body, sent=150_000, etag='W/"v1"')

    def changed(self, body):
        self.fine(body, etag='"v2"')

    def announce_more(self, body):
        self.fine(body, announced=len(body) + 1000)

    def announce_less(self, body):
        self.fine(body, announced=len(body) - 1000, sent=len(body) - 1000)

    def announce_petabyte(self, body):
        self.fine(body, announced=10**15)

    def shifted(self, body):
        self.fine(body, shift=1)

    def short_range(self, body):
        self.fine(body, announced=20_000, sent=20_000)

    def wrong(self, body):
        self.fine(body[:-5000] + bytes(5000))

    def garbage(self, body):
        self.fine(bytes(len(body)))

    def ignore_range(self, body):
        del self.headers["Range"]
        self.fine(body)

    def html(self, _body):
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(b"<html>Log in to the hotel's wireless</html>")

    def endless(self, body):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def endless_chunks(self, body):
        """More and more, in chunks, for as long as anybody listens."""
        self.protocol_version = "HTTP/1.1"
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with suppress(OSError):
            while not self.server.site.over.wait(0.01):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(body), body))

    def more(self, body):
        """What it announces, and then a second answer that nobody has asked for."""
        self.protocol_version = "HTTP/1.1"
        forged = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nPK\x03\x04"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body + forged)
        self.close_connection = self.headers["Connection"] == "close"

    def stall(self, body):
        """Half of it, and then silence."""
        self.fine(body, sent=150_000)
        self.wfile.flush()
        self.server.site.over.wait(5)

    def wait(self, body):
        """Only with all others that wait."""
        self.server.site.together.wait(5)
        self.fine(body)

    def no_head(self, body):
        if self.command == "HEAD":
            self.send_error(405)
        else:
            self.fine(body)

    def redirect_html(self, body):
        self.redirect(body, self.path.replace("/login/", "/page/"))

    def redirect(self, _body, to=None):
        self.send_response(302)
        self.send_header("Location", to or self.path.replace("/moved/", "/good/"))
        self.end_headers()

    def loop(self, body):
        self.redirect(body, self.path)

    def leave(self, body):
        self.redirect(body, "file:///etc/hostname")

    def hang(self, _body):
        self.server.site.over.wait(5)


class Site:
    def __init__(self):
        self.files = {TRAIN: npz(1), VAL: npz(2, rows=500)}
        self.scripts = {}
        self.log = []
        self.asked = []
        self.together = threading.Barrier(2)
        self.over = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.site = self
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def mirror(self, name="good", *script):
        self.scripts[name] = list(script)
        return f"http://127.0.0.1:{self.server.server_port}/{name}/{{file}}"

    def acts(self, file=TRAIN):
        return [act for _, name, act, _, _ in self.log if name == file]

    def ranges(self, file=TRAIN):
        return [asked for _, name, _, asked, _ in self.log if name == file]

    def close(self):
        self.over.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def site():
    site = Site()
    yield site
    site.close()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def waits():
    return []


@pytest.fixture
def fetch(folder, waits):
    return partial(download, NAME, folder=folder, sleep=waits.append)


def measured(site, name=NAME):
    """The dataset with length and sha256 of the served files."""
    entry = catalogue.find(name)
    files = tuple(
        replace(f, bytes=len(site.files[f.name]), sha256=hashlib.sha256(body).hexdigest())
        for f in entry.files
        for body in [site.files[f.name]]
    )
    return replace(entry, files=files)


@pytest.fixture
def known(site, monkeypatch):
    """The catalogue knows length and sha256 of the served files."""
    entry = measured(site)
    monkeypatch.setattr(catalogue, "find", lambda _name: entry)


def listing(folder):
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_both_files_arrive_whole_and_alone(site, folder, fetch):
    seen = []
    train, val = fetch(mirrors=[site.mirror()], progress=lambda *step: seen.append(step))
    assert train.path.read_bytes() == site.files[TRAIN]
    assert val.path.read_bytes() == site.files[VAL]
    assert train.sha256 == hashlib.sha256(site.files[TRAIN]).hexdigest()
    assert train.url == site.mirror().replace("{file}", TRAIN)
    assert listing(folder) == sorted([TRAIN, VAL])
    size = len(site.files[TRAIN])
    steps = [(done, total) for file, done, total in seen if file == TRAIN]
    assert steps == sorted(steps)
    assert steps[-1] == (size, size)


def test_a_singletask_name_fetches_the_file_it_relabels(site, folder):
    name = NAME.replace("-v0", "-singletask-task2-v0")
    train, _ = download(name, folder=folder, mirrors=[site.mirror()])
    assert train.path == folder / TRAIN


def test_files_that_are_there_are_kept_without_a_request(site, fetch):
    fetch(mirrors=[site.mirror()])
    site.log.clear()
    again = fetch(mirrors=[site.mirror()])
    assert [d.url for d in again] == [None, None]
    assert site.log == []


def test_a_bad_file_in_the_way_is_never_overwritten_unasked(site, folder, fetch):
    folder.mkdir()
    (folder / VAL).write_bytes(b"my own notes")
    with pytest.raises(InputError, match=r"-val\.npz is not the published.*--force"):
        fetch(mirrors=[site.mirror()])
    assert (folder / VAL).read_bytes() == b"my own notes"
    assert site.log == []  # and nothing large was fetched before it was noticed
    fetch(mirrors=[site.mirror()], force=True)
    assert (folder / VAL).read_bytes() == site.files[VAL]


def test_force_that_fails_keeps_what_is_there(site, folder, fetch):
    folder.mkdir()
    (folder / TRAIN).write_bytes(b"bad")
    with pytest.raises(InputError, match="no mirror gave"):
        fetch(mirrors=[site.mirror("gone", 404)], force=True)
    assert (folder / TRAIN).read_bytes() == b"bad"


def test_a_dropped_body_is_continued_where_it_broke_off(site, fetch, waits):
    train, _ = fetch(mirrors=[site.mirror("flaky", "drop")])
    assert train.path.read_bytes() == site.files[TRAIN]
    (_, _, _, none, _), (_, _, _, asked, guard) = site.log[:2]
    assert none is None
    assert asked == f"bytes={2 * 65536}-"  # whole pieces of the 150 000 bytes that came
    assert guard == '"v1"'
    assert waits == [1.0]


def test_ctrl_c_leaves_a_part_that_the_next_call_continues(site, folder, fetch):
    def interrupt(file, done, total):
        if done > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(mirrors=[site.mirror()], progress=interrupt)
    assert listing(folder) == [f"{TRAIN}.part", f"{TRAIN}.part.json"]
    train, _ = fetch(mirrors=[site.mirror("other"), site.mirror()])
    assert train.path.read_bytes() == site.files[TRAIN]
    # The mirror that the part came from is asked first, for the rest only.
    assert site.log[1][:4] == ("good", TRAIN, "fine", "bytes=131072-")


def test_a_complete_part_is_only_verified(site, folder, fetch):
    url = site.mirror().replace("{file}", TRAIN)
    folder.mkdir()
    (folder / f"{TRAIN}.part").write_bytes(site.files[TRAIN])
    note = {"url": url, "length": len(site.files[TRAIN]), "etag": None, "last_modified": None}
    (folder / f"{TRAIN}.part.json").write_text(json.dumps(note))
    train, _ = fetch(mirrors=[site.mirror()])
    assert train.path.read_bytes() == site.files[TRAIN]
    assert site.acts() == []


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"url": 1}', "nonsense", None])
def test_a_part_without_a_usable_note_starts_again(site, folder, fetch, note):
    folder.mkdir()
    (folder / f"{TRAIN}.part").write_bytes(b"PK\x03\x04 who knows what")
    if note is not None:
        (folder / f"{TRAIN}.part.json").write_text(note)
    train, _ = fetch(mirrors=[site.mirror()])
    assert train.path.read_bytes() == site.files[TRAIN]
    assert site.log[0][3] is None


@pytest.mark.parametrize(
    "script",
    [
        ("drop", "ignore_range"),
        ("drop", "changed"),
        ("drop", 416, "fine"),
        ("drop", "shifted", "fine"),
        ("drop", "short_range", "fine"),
        (500, "fine"),
        (503, 429, "fine"),
        ("announce_more", "fine", "fine"),  # too much noted, so what came is not continued
        ("no_etag_drop", "no_etag"),
    ],
)
def test_one_mirror_recovers_from(site, folder, fetch, script):
    train, _ = fetch(mirrors=[site.mirror("shaky", *script)])
    assert train.path.read_bytes() == site.files[TRAIN]
    assert site.acts() == list(script)
    assert listing(folder) == sorted([TRAIN, VAL])


def test_a_part_that_the_mirror_cannot_continue_is_fetched_from_the_start(site, fetch):
    fetch(mirrors=[site.mirror("odd", "drop", 416)])
    assert [entry[3] for entry in site.log[:3]] == [None, "bytes=131072-", None]


def test_a_resumed_part_that_proves_bad_gets_one_fresh_copy(site, folder, fetch, known):
    mirror = site.mirror("flaky", "drop")
    with pytest.raises(InputError):
        fetch(mirrors=[mirror], retries=0)
    part = folder / f"{TRAIN}.part"
    part.write_bytes(bytes(part.stat().st_size))
    train, _ = fetch(mirrors=[mirror])
    assert train.path.read_bytes() == site.files[TRAIN]
    assert site.ranges()[1:] == ["bytes=131072-", None]


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (403, "HTTP 403"),
        (404, "HTTP 404"),
        ("html", "web page"),
        ("garbage", "not an npz file"),
        ("wrong", "not a sound npz file|checksum"),
        ("announce_less", "not a sound npz file"),
        ("announce_petabyte", "more than any dataset has"),
        ("endless", "does not announce"),
        ("endless_chunks", "does not announce"),
        (416, "HTTP 416"),
        ("loop", "cannot be followed"),
        ("leave", "cannot be followed.*file://"),
    ],
)
def test_a_mirror_that_will_not_do_is_left_at_once(site, folder, fetch, waits, act, reason):
    bad = site.mirror("bad", *[act] * 20)
    train, _ = fetch(mirrors=[bad, site.mirror()])
    assert train.url.endswith(f"/good/{TRAIN}")
    assert train.path.read_bytes() == site.files[TRAIN]
    assert waits == []
    assert listing(folder) == sorted([TRAIN, VAL])
    with pytest.raises(InputError, match=reason):
        fetch(mirrors=[bad], force=True)


def test_wrong_bytes_are_told_by_their_sha256(site, folder, fetch, known):
    with pytest.raises(InputError, match=r"sha256 [0-9a-f]{64} where the file has"):
        fetch(mirrors=[site.mirror("bad", "wrong")])
    assert listing(folder) == [VAL]
    train, _ = fetch(mirrors=[site.mirror("bad", "wrong"), site.mirror()])
    assert train.path.read_bytes() == site.files[TRAIN]


def test_a_length_other_than_the_known_one_is_refused_before_the_body(site, fetch, known):
    seen = []
    with pytest.raises(InputError, match=r"announces \d+ bytes where the file has"):
        fetch(mirrors=[site.mirror("bad", "announce_less")], progress=lambda *s: seen.append(s))
    assert [file for file, _, _ in seen if file == TRAIN] == []


def test_a_web_page_does_not_cost_the_part(site, folder, fetch):
    mirror = site.mirror("flaky", "drop", "html")
    with pytest.raises(InputError, match="web page"):
        fetch(mirrors=[mirror])
    assert (folder / f"{TRAIN}.part").stat().st_size == 2 * 65536
    fetch(mirrors=[mirror])
    assert site.ranges()[2] == "bytes=131072-"


def test_a_mirror_is_tried_with_longer_and_longer_waits(site, fetch, waits):
    fetch(mirrors=[site.mirror("down", *[500] * 9), site.mirror()], retries=3)
    assert waits == [1.0, 2.0, 4.0]
    assert site.acts() == [500] * 4 + ["fine"]
    # The mirror that worked goes first for the second file.
    assert [entry[0] for entry in site.log if entry[1] == VAL] == ["good"]


def test_redirects_are_followed(site, fetch):
    train, _ = fetch(mirrors=[site.mirror("moved", "redirect", "redirect")])
    assert train.path.read_bytes() == site.files[TRAIN]


def test_a_silent_mirror_times_out(site, fetch):
    with httpx.Client(timeout=0.1) as client:
        train, _ = fetch(
            mirrors=[site.mirror("mute", "hang", "hang"), site.mirror()], client=client, retries=1
        )
        assert train.path.read_bytes() == site.files[TRAIN]
        assert site.acts() == ["hang", "hang", "fine"]
        with pytest.raises(InputError, match=r"no answer in time \(ReadTimeout\); tries: 1"):
            fetch(mirrors=[site.mirror("mute", "hang")], client=client, retries=0, force=True)


def test_when_all_fail_every_mirror_is_named_with_its_reason_and_the_way_by_hand(
    site, folder, fetch
):
    dead = "http://127.0.0.1:9/{file}"  # the discard port: nothing listens there
    mirrors = [site.mirror("gone", 404), site.mirror("down", 500, 500), dead, "file:///nowhere"]
    with pytest.raises(InputError) as caught:
        fetch(mirrors=mirrors, retries=1)
    text = str(caught.value)
    assert f"/gone/{TRAIN} (HTTP 404)" in text
    assert f"/down/{TRAIN} (HTTP 500; tries: 2)" in text
    assert f"http://127.0.0.1:9/{TRAIN} (" in text
    assert f"file:///nowhere/{TRAIN} (No such file or directory)" in text
    assert f"save it as {folder / TRAIN}" in text
    assert "\n" not in text
    assert listing(folder) == [VAL]


@pytest.mark.parametrize("plain", [True, False])
def test_a_local_folder_is_a_mirror(site, tmp_path, fetch, plain):
    shelf = tmp_path / "my shelf"
    shelf.mkdir()
    for name, body in site.files.items():
        (shelf / name).write_bytes(body)
    train, val = fetch(mirrors=[str(shelf) if plain else shelf.as_uri()])
    assert train.path.read_bytes() == site.files[TRAIN]
    assert val.url == f"{shelf.as_uri()}/{VAL}"


@pytest.mark.parametrize("mirror", ["ftp://host/x", "/data/shelf", "https://", "http://[", ""])
def test_a_mirror_must_be_an_address(fetch, mirror):
    with pytest.raises(InputError, match=r"write it as https://host/folder or file:///folder"):
        fetch(mirrors=[mirror])


def test_no_space_is_told_before_a_byte_is_written(site, folder, fetch, monkeypatch):
    usage = module.shutil.disk_usage(folder.parent)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(InputError, match=r"0\.00 GB free.*make room"):
        fetch(mirrors=[site.mirror()])
    assert listing(folder) == []


def test_a_folder_that_cannot_be_made_is_one_sentence(site, folder, fetch):
    folder.write_text("a file where the folder should be")
    with pytest.raises(InputError, match="cannot be written to"):
        fetch(mirrors=[site.mirror()])


def test_two_processes_do_not_write_one_part(site, folder, fetch):
    folder.mkdir()
    with FileLock(folder / f"{TRAIN}.lock"), pytest.raises(InputError, match="another process"):
        fetch(mirrors=[site.mirror()])
    fetch(mirrors=[site.mirror()])


def test_without_locks_nothing_is_downloaded(site, folder, fetch, no_flock):
    no_flock(errno.ENOLCK)
    with pytest.raises(InputError, match=r"has no locks.*; choose another folder, or mount"):
        fetch(mirrors=[site.mirror()])
    assert site.log == []


def test_without_locks_the_process_that_downloads_is_named(site, folder, fetch, no_flock):
    folder.mkdir()
    lock = folder / f"{TRAIN}.lock"
    lock.write_text("4711\nnode7\n")
    no_flock(errno.ENOSYS)
    with pytest.raises(InputError, match=r"or delete .* if process 4711 on host 'node7' is gone"):
        fetch(mirrors=[site.mirror()])
    lock.unlink()
    fetch(mirrors=[site.mirror()])
    assert not lock.exists()


@pytest.mark.parametrize("name", ["../../escape-x-v0", "/etc/passwd", "no-such-dataset-v0"])
def test_names_cannot_leave_the_folder(site, folder, name):
    with pytest.raises(InputError):
        download(name, folder=folder, mirrors=[site.mirror()])
    assert listing(folder) == []
    assert site.log == []


@pytest.mark.parametrize("file", ["../x.npz", "a/b.npz", "a\\b.npz", "..", ".hidden", ""])
def test_file_names_of_the_catalogue_cannot_leave_the_folder(folder, monkeypatch, file):
    entry = catalogue.find(NAME)
    files = (replace(entry.files[0], name=file), entry.files[1])
    monkeypatch.setattr(catalogue, "find", lambda _name: replace(entry, files=files))
    with pytest.raises(InputError, match="could leave"):
        download(NAME, folder=folder)


def test_an_unusable_proxy_setting_is_one_sentence(folder, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:9")
    with pytest.raises(InputError, match="unset ALL_PROXY"):
        download(NAME, folder=folder)


def sound_of(tmp_path, body):
    path = tmp_path / "x.npz"
    path.write_bytes(body)
    return verify(path, catalogue.PublishedFile(name=TRAIN))


def test_verify_gives_the_digest(tmp_path):
    assert sound_of(tmp_path, npz()) == hashlib.sha256(npz()).hexdigest()


def flipped(body):
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


def in_directory(body, offset, value):
    """Set one byte of every record of the zip's central directory."""
    parts = body.split(b"PK\x01\x02")
    return b"PK\x01\x02".join(
        [parts[0], *(p[:offset] + bytes([value]) + p[offset + 1 :] for p in parts[1:])]
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (npz()[:-1], "not a sound npz"),
        (flipped(npz()), "fails its checksum"),
        (npz(columns=("observations", "actions")), r"lacks terminals\.npy"),
        (in_directory(npz(), 4, 1), "not a sound npz.*password"),
        (in_directory(npz(), 6, 12), "is packed by a method"),  # bzip2
        (b"", "not a sound npz"),
    ],
)
def test_verify_names_the_fault(tmp_path, body, reason):
    with pytest.raises(InputError, match=reason):
        sound_of(tmp_path, body)


def test_a_zip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for column in verifying.COLUMNS:
            archive.writestr(f"{column}.npy", bytes(100_000))
    monkeypatch.setattr(verifying, "MAX_FILE_BYTES", 200_000)
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda _self: pytest.fail("unpacked"))
    with pytest.raises(InputError, match="unpacks to more"):
        sound_of(tmp_path, buffer.getvalue())


def test_a_silent_body_is_continued_where_it_stopped(site, fetch):
    with httpx.Client(timeout=0.2) as client:
        train, _ = fetch(mirrors=[site.mirror("sleepy", "stall")], client=client)
    assert train.path.read_bytes() == site.files[TRAIN]
    assert site.ranges() == [None, "bytes=131072-"]


def test_bytes_after_the_announced_ones_spoil_neither_this_file_nor_the_next(site, fetch):
    train, val = fetch(mirrors=[site.mirror("chatty", "more", "...")])
    assert train.path.read_bytes() == site.files[TRAIN]
    assert val.path.read_bytes() == site.files[VAL]


def test_a_redirect_to_a_web_page_is_seen_through(site, fetch):
    site.mirror("page", "html", "...")
    login = site.mirror("login", "redirect_html", "...")
    train, _ = fetch(mirrors=[login, site.mirror()])
    assert train.url.endswith(f"/good/{TRAIN}")


def test_a_file_that_no_mirror_gives_does_not_keep_the_others_from_coming(site, folder, fetch):
    other = NAME.replace("medium", "large")
    del site.files[TRAIN]
    site.files |= {f"{other}.npz": npz(3, rows=500), f"{other}-val.npz": npz(4, rows=50)}
    here = []
    with pytest.raises(InputError, match=rf"no mirror gave {TRAIN}") as caught:
        download(
            [NAME, other], folder=folder, mirrors=[site.mirror()], arrived=here.append, workers=3
        )
    assert "files did not come" not in str(caught.value)  # one failure speaks for itself
    assert listing(folder) == sorted([VAL, f"{other}.npz", f"{other}-val.npz"])
    assert sorted(file.path.name for file in here) == listing(folder)


def test_several_failures_are_told_together(site, folder, fetch):
    with pytest.raises(InputError, match="2 of 2 files did not come: no mirror gave") as caught:
        fetch(mirrors=[site.mirror("gone", 404, "...")])
    assert f"save it as {folder / TRAIN}" in str(caught.value)
    assert f"save it as {folder / VAL}" in str(caught.value)


def test_files_come_at_once_and_in_order(site, fetch):
    # Each waits for the other to have begun: one after another, both would be refused.
    train, val = fetch(mirrors=[site.mirror("pair", "wait", "...")], workers=2)
    assert (train.path.name, val.path.name) == (TRAIN, VAL)
    assert not site.together.broken


def test_ctrl_c_among_several_files_leaves_parts_that_go_on(site, folder, fetch):
    def interrupt(file, done, total):
        if file == TRAIN and done > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(mirrors=[site.mirror("slow", "wait", "...")], progress=interrupt, workers=2)
    assert f"{TRAIN}.part" in listing(folder)
    train, val = fetch(mirrors=[site.mirror("slow")], workers=2)
    assert train.path.read_bytes() == site.files[TRAIN]
    assert val.path.read_bytes() == site.files[VAL]
    assert site.ranges()[1] == "bytes=131072-"


def test_ctrl_c_does_not_wait_for_a_silent_mirror(site, fetch, monkeypatch):
    monkeypatch.setattr(module, "_FAREWELL_SECONDS", 0.1)
    monkeypatch.setattr(module.threading.Thread, "join", interrupted_once())
    with httpx.Client(timeout=1.0) as client, pytest.raises(KeyboardInterrupt):
        fetch(mirrors=[site.mirror("mute", "hang", "...")], client=client, workers=2, retries=0)
    assert not site.over.is_set()  # the mirror is silent still


def interrupted_once():
    """Thread.join, but Ctrl-C comes at the first one."""
    join, came = threading.Thread.join, []

    def first(thread, timeout=None):
        if not came:
            came.append(thread)
            raise KeyboardInterrupt
        join(thread, timeout)

    return first


def test_files_that_fit_alone_but_not_together_are_refused_before_a_byte(
    site, folder, fetch, known, monkeypatch
):
    usage = module.shutil.disk_usage(folder.parent)
    room = len(site.files[TRAIN]) + len(site.files[VAL]) - 1
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=room))
    with pytest.raises(InputError, match="GB free where 2 files need"):
        fetch(mirrors=[site.mirror()])
    assert site.log == []


def test_what_is_set_aside_for_one_file_is_not_promised_to_another(tmp_path, monkeypatch):
    usage = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=100))
    space = module._Space()
    space.claim(tmp_path / "a", 60)
    with pytest.raises(InputError, match="b needs"):
        space.claim(tmp_path / "b", 41)
    space.used(tmp_path / "a", 10)
    space.claim(tmp_path / "b", 50)
    space.release(tmp_path / "a")
    space.claim(tmp_path / "c", 50)


@pytest.mark.parametrize("by", ["flag", "environment"])
def test_offline_asks_nobody_and_says_where_the_file_belongs(site, folder, fetch, monkeypatch, by):
    if by == "environment":
        monkeypatch.setenv("TQL_OFFLINE_LOCAL_ONLY", "1")
    with pytest.raises(InputError, match="only local files may be used") as caught:
        fetch(mirrors=[site.mirror()], offline=by == "flag")
    assert str(folder / TRAIN) in str(caught.value)
    assert site.log == []


def test_offline_takes_what_is_here_and_what_a_folder_has(site, tmp_path, folder, fetch):
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    (shelf / TRAIN).write_bytes(site.files[TRAIN])
    folder.mkdir()
    (folder / VAL).write_bytes(site.files[VAL])
    train, val = fetch(mirrors=[site.mirror(), str(shelf)], offline=True)
    assert train.path.read_bytes() == site.files[TRAIN]
    assert val.url is None
    assert site.log == []


D4RL = "maze2d-umaze-v1"
D4RL_FILE = "maze2d-umaze-sparse-v1.hdf5"


def hdf5(columns=("observations", "actions", "rewards", "terminals"), link=None, seed=0):
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for column in columns:
            file[column] = np.random.default_rng(seed).normal(size=(3_000, 2))
        if link is not None:
            file["terminals"] = link
    return buffer.getvalue()


def test_a_d4rl_file_lies_where_d4rl_looks_under_the_name_of_its_address(site, private_home):
    site.files[D4RL_FILE] = hdf5()
    mirror = site.mirror().replace("{file}", "{folder}/{file}")
    (file,) = download(D4RL, mirrors=[mirror])
    assert file.path == private_home / "d4rl" / D4RL_FILE
    assert file.path.read_bytes() == site.files[D4RL_FILE]
    assert site.asked == [("GET", f"/good/maze2d/{D4RL_FILE}")]


@pytest.mark.parametrize("act", ["no_etag_drop", "weak_etag_drop"])
def test_a_part_whose_rest_nothing_can_tell_starts_again(site, private_home, act):
    """The mirror's file is replaced by one of the same length while it is fetched."""
    old, new = hdf5(), hdf5(seed=1)
    assert len(old) == len(new)
    site.files[D4RL_FILE] = old

    def replace_file(_seconds):
        site.files[D4RL_FILE] = new

    (file,) = download(D4RL, mirrors=[site.mirror("bare", act, "no_etag")], sleep=replace_file)
    assert file.path.read_bytes() == new
    assert site.ranges(D4RL_FILE) == [None, None]


@pytest.mark.parametrize(("act", "digest"), [("drop", None), ("no_etag_drop", "known")])
def test_a_part_whose_rest_something_can_tell_is_continued(
    site, private_home, monkeypatch, act, digest
):
    site.files[D4RL_FILE] = hdf5()
    entry = measured(site, D4RL)
    if digest is None:
        entry = replace(entry, files=(replace(entry.files[0], sha256=None),))
    monkeypatch.setattr(catalogue, "find", lambda _name: entry)
    (file,) = download(D4RL, mirrors=[site.mirror("cut", act)], sleep=lambda _seconds: None)
    assert file.path.read_bytes() == site.files[D4RL_FILE]
    assert site.ranges(D4RL_FILE) == [None, "bytes=131072-"]


def test_an_npz_of_two_halves_is_told_by_its_checksums(site, fetch):
    site.files[TRAIN], other = npz(1), npz(3)
    mirror = site.mirror("bare", "no_etag_drop", "no_etag", "no_etag")
    with pytest.raises(InputError, match="no mirror gave"):
        fetch(mirrors=[mirror], retries=0)
    site.files[TRAIN] = other
    train, _ = fetch(mirrors=[mirror])
    assert train.path.read_bytes() == other
    assert site.ranges() == [None, "bytes=131072-", None]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (hdf5()[:-5_000], "not a sound HDF5 file"),
        (hdf5(columns=("observations", "actions", "rewards")), "lacks terminals"),
        (hdf5(("observations", "actions", "rewards"), h5py.ExternalLink("x", "/y")), "lacks term"),
        (hdf5(("observations", "actions", "rewards"), h5py.SoftLink("/actions")), "lacks term"),
        (npz(), "not an HDF5 file"),
    ],
)
def test_what_is_no_sound_hdf5_file_is_left_out(site, private_home, body, reason):
    site.files[D4RL_FILE] = body
    with pytest.raises(InputError, match=reason):
        download(D4RL, mirrors=[site.mirror()])
    assert listing(private_home / "d4rl") == []


def test_a_copy_cut_short_is_told_by_its_known_length(site, private_home):
    name = "hopper-medium-v2"
    site.files["hopper_medium-v2.hdf5"] = hdf5()
    with pytest.raises(InputError, match="where the file has 152756557"):
        download(name, mirrors=[site.mirror()])
    assert listing(private_home / "d4rl") == []


def test_broken_datasets_are_fetched_on_demand_only(site, monkeypatch):
    name = "antmaze-medium-play-v0"
    file = catalogue.find(name).files[0].name
    site.files[file] = hdf5()
    with pytest.raises(InputError, match=r"is broken: its timeouts.*--allow-broken"):
        download(name, mirrors=[site.mirror()])
    assert site.log == []
    entry = measured(site, name)
    monkeypatch.setattr(catalogue, "find", lambda _name: entry)
    (got,) = download(name, mirrors=[site.mirror()], allow_broken=True)
    assert got.path.name == file


def test_minaris_datasets_are_not_for_this_downloader(folder):
    with pytest.raises(InputError, match="Minari's own"):
        download("D4RL/pen/human-v2", folder=folder)


# --check: what could be had.


def told(site, *mirrors, **options):
    train, _ = check([measured(site)], mirrors=list(mirrors), **options)
    return train


def test_check_asks_for_heads_only_and_leaves_no_file(site, folder):
    found = told(site, site.mirror(), folder=folder)
    (answer,) = found.answers
    assert answer.available
    assert answer.detail == f"available, {len(site.files[TRAIN]):,} bytes"
    assert {method for method, _ in site.asked} == {"HEAD"}
    assert found.local == "missing"
    assert found.can_be_had
    assert not folder.exists()


@pytest.mark.parametrize(
    ("act", "detail"),
    [
        (403, "HTTP 403"),
        (404, "HTTP 404"),
        (500, "HTTP 500"),
        ("html", "a web page instead of the file"),
        ("announce_more", "has [0-9,]+ bytes where the file has"),
        ("loop", "redirect"),
        ("leave", "file://"),
        ("hang", "no answer in time"),
    ],
)
def test_check_tells_a_mirror_that_will_not_do(site, folder, act, detail):
    with httpx.Client(timeout=0.3, max_redirects=5) as client:
        found = told(site, site.mirror("bad", act, "..."), folder=folder, client=client)
    (answer,) = found.answers
    assert not answer.available
    assert re.search(detail, answer.detail)
    assert not found.can_be_had


def test_check_reads_no_body_of_a_host_that_knows_no_head(site, folder):
    found = told(site, site.mirror("old", "no_head", "..."), folder=folder)
    assert found.answers[0].available


def test_check_knows_what_is_here(site, folder):
    folder.mkdir()
    (folder / f"{TRAIN}.part").write_bytes(b"PK")
    assert told(site, folder=folder, offline=True).local == "unfinished: 2 bytes"
    (folder / TRAIN).write_bytes(b"my own notes")
    assert told(site, folder=folder, offline=True).local.startswith("not the published file: 12")
    (folder / TRAIN).write_bytes(site.files[TRAIN])
    found = told(site, folder=folder, offline=True)
    assert found.is_here
    assert found.can_be_had


def test_check_asks_a_folder_offline(site, folder, tmp_path):
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    (shelf / TRAIN).write_bytes(site.files[TRAIN])
    found = told(site, site.mirror(), str(shelf), folder=folder, offline=True)
    (answer,) = found.answers
    assert answer.available
    assert site.log == []


# Minari fetches its own.


class Minari(types.ModuleType):
    """The one function of Minari's that is called, without its remote."""

    def __init__(self, fault=None):
        super().__init__("minari")
        self.asked, self.fault = [], fault

    def download_dataset(self, dataset_id, force_download=False):
        self.asked.append((dataset_id, force_download))
        if self.fault:
            raise self.fault


def test_minari_is_asked_for_what_is_not_here(private_home, monkeypatch):
    minari = Minari()
    monkeypatch.setitem(sys.modules, "minari", minari)
    entry = catalogue.find("D4RL/pen/human-v2")
    folder = private_home / "minari" / "D4RL" / "pen" / "human-v2"
    assert download_minari(entry) == folder
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "metadata.json").write_text("{}")
    assert download_minari(entry, offline=True) == folder
    assert minari.asked == [("D4RL/pen/human-v2", False)]
    download_minari(entry, force=True)
    assert minari.asked[1:] == [("D4RL/pen/human-v2", True)]


@pytest.mark.parametrize(
    ("minari", "offline", "words"),
    [
        (Minari(OSError("no route\nto host")), False, r"no route to host.*save it as"),
        (None, False, r"pip install 'tql-offline\[minari\]'"),
        (Minari(), True, "only local files may be used"),
    ],
)
def test_what_minari_cannot_fetch_is_one_sentence(monkeypatch, minari, offline, words):
    monkeypatch.setitem(sys.modules, "minari", minari)
    with pytest.raises(InputError, match=words) as caught:
        download_minari(catalogue.find("mujoco/hopper/expert-v0"), offline=offline)
    assert "\n" not in str(caught.value)
    assert minari is None or offline == (minari.asked == [])
