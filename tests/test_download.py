import hashlib
import io
import json
import threading
import zipfile
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import numpy as np
import pytest
from filelock import FileLock

from tql_offline.datasets import catalogue
from tql_offline.datasets import download as module
from tql_offline.datasets import verify as verifying
from tql_offline.datasets.download import download
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
    """Answers `/<mirror>/<file>` as that mirror's script says; "fine" once the script is spent."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        mirror, file = self.path.strip("/").split("/")
        site = self.server.site
        script = site.scripts.get(mirror, [])
        act = script.pop(0) if script else "fine"
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
        self.wfile.write(rest if sent is None else rest[:sent])

    def drop(self, body):
        self.fine(body, sent=150_000)

    def no_etag_drop(self, body):
        self.fine(body, sent=150_000, etag=None)

    def no_etag(self, body):
        self.fine(body, etag=None)

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


@pytest.fixture
def known(site, monkeypatch):
    """The catalogue knows length and sha256 of the served files."""
    entry = catalogue.find(NAME)
    files = tuple(
        replace(f, bytes=len(site.files[f.name]), sha256=hashlib.sha256(body).hexdigest())
        for f in entry.files
        for body in [site.files[f.name]]
    )
    monkeypatch.setattr(catalogue, "find", lambda _name: replace(entry, files=files))


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
