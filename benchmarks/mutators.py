"""Ways to spoil a file: blindly by bytes, or by what its format is made of.

A mutator takes a file's bytes, a generator, and the bytes of another file of the same kind, and
gives bytes. Those of a format keep what a reader checks first: checksums, lengths, syntax.
"""

import copy
import csv
import io
import json
import random
import struct
import tomllib
import warnings
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import h5py
import numpy as np
import tomli_w

Mutator = Callable[[bytes, random.Random, bytes], bytes]

INTEGERS = (0, 1, -1, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
NUMBERS = (0, -1, 1, 0.5, -0.0, 1e-320, 1e30, 1e300, 2**31, 2**53, 2**63, 10**25, 10**400)
TEXTS = (
    *("", " ", "\x00", "a\x1b[2J", "\ud800", "../../x", "/etc/passwd", "x" * 5000, "²", "9" * 5000),
    *("<script>alert(1)</script>", "=1+1", "\\input{x}", "os:Env-v0", "learned", "ogbench v1"),
)


# Bytes.


def flip(data: bytes, rng: random.Random, _other: bytes) -> bytes:
    """Some bits."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        place = rng.randrange(len(changed)) if changed else 0
        changed[place : place + 1] = bytes(
            b ^ 1 << rng.randrange(8) for b in changed[place : place + 1]
        )
    return bytes(changed)


def integer(data: bytes, rng: random.Random, _other: bytes) -> bytes:
    """An integer on a limit, of one to eight bytes, either end first."""
    width = rng.choice((1, 2, 4, 8))
    value = rng.choice(INTEGERS) + rng.choice((0, 0, 1, -1)) & (1 << 8 * width) - 1
    place = rng.randrange(len(data) + 1)
    return (
        data[:place] + value.to_bytes(width, rng.choice(("little", "big"))) + data[place + width :]
    )


def insert(data: bytes, rng: random.Random, _other: bytes) -> bytes:
    """A block of noise, of one byte many times, or of the file itself."""
    place, length = rng.randrange(len(data) + 1), rng.choice((1, 4, 100, 5000))
    begin = rng.randrange(len(data) + 1)
    blocks = (rng.randbytes(length), rng.randbytes(1) * length, data[begin : begin + length])
    return data[:place] + rng.choice(blocks) + data[place:]


def delete(data: bytes, rng: random.Random, _other: bytes) -> bytes:
    """A block."""
    place = rng.randrange(len(data) + 1)
    return data[:place] + data[place + rng.choice((1, 2, 8, 512)) :]


def truncate(data: bytes, rng: random.Random, _other: bytes) -> bytes:
    """All behind some place."""
    return data[: rng.randrange(len(data) + 1)]


def overwrite(data: bytes, rng: random.Random, _other: bytes) -> bytes:
    """A block by zeros or by 255."""
    place, length = rng.randrange(len(data) + 1), rng.choice((1, 8, 64, 512))
    return data[:place] + rng.choice((b"\0", b"\xff")) * length + data[place + length :]


def splice(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """The beginning of one file and the end of another."""
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


_MOVING = (insert, delete, truncate, splice)
BYTES: tuple[Mutator, ...] = (*(flip, integer, overwrite) * 3, *_MOVING)
"""Mostly those that leave the rest in its place: where bytes have moved, readers stop early."""


# Documents.


def _odd(rng: random.Random) -> Any:
    """A value where another was meant."""
    deep: Any = 1
    for _ in range(rng.choice((3, 20, 40, 300))):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    odd: tuple[Any, ...] = (None, True, False, [], {}, [[]], [1] * 1000, {"a": 1}, deep)
    return rng.choice((rng.choice(NUMBERS), rng.choice(TEXTS), rng.choice(odd), float("nan")))


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container with every key of it."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        item = waiting.pop()
        keys = list(item) if isinstance(item, dict) else range(len(item))
        found += [(item, key) for key in keys]
        waiting += [item[key] for key in keys if isinstance(item[key], dict | list) and item[key]]
    return found


def _edit(document: Any, rng: random.Random, other: Any) -> None:
    """Change, swap, move, double or remove one value."""
    places = _places(document)
    if not places:
        return
    (holder, key), (source, name) = rng.choice(places), rng.choice(places)
    how = rng.randrange(5)
    if how == 0:
        del holder[key]
    elif how == 1:
        # Copies: nothing comes to lie in itself.
        holder[key], source[name] = copy.deepcopy(source[name]), copy.deepcopy(holder[key])
    elif how == 2 and isinstance(holder, dict):
        holder[rng.choice((*TEXTS, str(name)))] = holder.pop(key)
    elif how == 3 and isinstance(other, dict) and other:
        holder[key] = copy.deepcopy(other[rng.choice(list(other))])
    else:
        holder[key] = _odd(rng)


def json_values(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """Values of a JSON document."""
    document, second = json.loads(data), json.loads(other)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        _edit(document, rng, second)
    return _json_text(document)


def _json_text(document: Any) -> bytes:
    try:
        return json.dumps(document).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):  # more digits than are printed, or too deep
        return b'{"a": ' + b"9" * 5000 + b"}"


def json_lines(data: bytes, rng: random.Random, _other: bytes) -> bytes:
    """Values of one line of a JSON-lines file, or the order of its lines."""
    lines = data.splitlines() or [b"{}"]
    place = rng.randrange(len(lines))
    changed = json_values(lines[place], rng, rng.choice(lines))
    lines[place : place + rng.choice((0, 1, 1, 1))] = [changed] * rng.choice((1, 1, 2))
    if rng.random() < 0.1:
        rng.shuffle(lines)
    return b"\n".join(lines) + rng.choice((b"\n", b""))


def toml_values(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """Values of a TOML document."""
    document, second = tomllib.loads(data.decode()), tomllib.loads(other.decode())
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        _edit(document, rng, second)
    try:
        return tomli_w.dumps(document).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError, RecursionError):  # null, or too deep
        return toml_text(data, rng, other)


def toml_text(data: bytes, rng: random.Random, _other: bytes) -> bytes:
    """One line's value by what TOML writes in ways of its own."""
    odd = (
        *(b"inf", b"nan", b"0x" + b"f" * 6000, b"9" * 6000, b"1979-05-27", b"[" * 400, b"{a.b=1}"),
        *(b"{" + b"a." * 50 + b"a=1}", b"'''\n'''", b"1e999", b"[[1,2],[3]]", b"[[1.5,-2],[1,1]]"),
    )
    lines = data.splitlines()
    place = rng.randrange(len(lines))
    lines[place] = lines[place].partition(b"=")[0] + b"= " + rng.choice(odd)
    if rng.random() < 0.2:
        lines[place] = b"a." * rng.choice((20, 200, 30_000)) + b"a = 1"
    return b"\n".join(lines)


def csv_fields(data: bytes, rng: random.Random, _other: bytes) -> bytes:
    """Fields of a CSV file, or the order of its lines."""
    rows = list(csv.reader(io.StringIO(data.decode())))
    for _ in range(rng.choice((1, 1, 2, 5))):
        row = rng.choice(rows)
        row[rng.randrange(len(row))] = rng.choice(
            (*TEXTS, *map(str, NUMBERS[:-1]), *rng.choice(rows))
        )
    if rng.random() < 0.2:
        rng.shuffle(rows)
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", "surrogatepass")


# Npz.


def npz_members(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """Members of an npz file, with right checksums."""
    members = _members(data)
    place = rng.randrange(len(members))
    name, content = members[place]
    how = rng.randrange(6)
    if how == 0:
        members[place] = (rng.choice(("../a.npy", "/a.npy", "a\\b.npy", "a.npy", "é.npy")), content)
    elif how == 1:
        members.append((name, content))
    elif how == 2:
        del members[place]
    elif how == 3:
        members[place] = (name, rng.choice(BYTES)(content, rng, other[:500]))
    elif how == 4:
        members[place] = (name, rng.choice(members)[1])
    else:
        members += [(f"column{i}.npy", content) for i in range(rng.choice((5, 100)))]
    return _archive(members, rng)


def _members(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(member.filename, archive.read(member)) for member in archive.infolist()]


def _archive(members: list[tuple[str, bytes]], rng: random.Random) -> bytes:
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED))
    method = rng.choice((*(method,) * 18, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that is there twice
        with zipfile.ZipFile(out, "w", method) as archive:
            for name, content in members:
                archive.writestr(name, content)
    return out.getvalue()


def npz_headers(data: bytes, rng: random.Random, _other: bytes) -> bytes:
    """What an array's header says, with right checksums."""
    members = _members(data)
    place = rng.randrange(len(members))
    name, content = members[place]
    length = int.from_bytes(content[8:10], "little")
    head, numbers = content[10 : 10 + length].decode("latin-1"), content[10 + length :]
    shapes: tuple[str, ...] = (
        "(0,)",
        "()",
        "(7,)",
        "(7, 1)",
        "(-1,)",
        "(2**40,)",
        "(True, 7)",
        "(1,) * 9",
        "7",
    )
    shapes += (f"({2**62}, 0)", f"({2**40}, {2**40})", "(1," * 1500 + ")" * 1500, "1," * 100)
    types: tuple[str, ...] = (
        "|O",
        "<f2",
        ">f8",
        "<i8",
        "<U7",
        "|V0",
        "|S0",
        "<M8[ns]",
        "|b1",
        "<c16",
        "f,O",
        "x",
    )
    types += ("[('a','<f4')]", "<f16", "|V99999999999")
    head = rng.choice(
        (
            f"{{'descr': '{rng.choice(types)}', 'fortran_order': False, 'shape': (7, 2), }}",
            f"{{'descr': '<f4', 'fortran_order': True, 'shape': {rng.choice(shapes)}, }}",
            f"{{'descr': {rng.choice(shapes)}, 'fortran_order': None, 'shape': (7,)}}",
            rng.choice(("(" * 5000, "__import__('os').abort()", "[" * 9000, "{}", "9" * 6000)),
            head,
        )
    )
    version = rng.choice((b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x03\x00"))
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(head) + 1)
    if rng.random() < 0.2:
        numbers = b"\0" * rng.choice((0, 1, 4, 28, 10**6))
    members[place] = (name, b"\x93NUMPY" + version + size + head.encode() + b"\n" + numbers)
    return _archive(members, rng)


# HDF5.


def hdf5_items(data: bytes, rng: random.Random, _other: bytes) -> bytes:
    """Datasets, links and attributes of an HDF5 file."""
    out = io.BytesIO(data)
    with h5py.File(out, "r+") as file:
        names: list[str] = []
        file.visit(names.append)  # what lies in groups, too
        name = rng.choice(names)
        # The library writes no such, or it is a group.
        with suppress(AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError):
            rng.choice(_HDF5_EDITS)(file, name, rng)
    return out.getvalue()


def _replace(file: h5py.File, name: str, rng: random.Random) -> None:
    del file[name]
    types = ("f8", ">f4", "i1", "?", "S0", "c8", "f2", h5py.string_dtype(), h5py.ref_dtype)
    more = (np.dtype(("f4", (3,))), np.dtype([("a", "f4")]), np.dtype("V3"))
    shapes = ((), (0,), (7,), (7, 1), (2**20, 2**20), (2**60, 2**60), (7, 2, 1), (2**30,))
    shape = rng.choice(shapes)
    chunks = tuple(rng.choice((1, 2, 2**15)) for _ in shape) or None
    kind: dict[str, Any] = {"dtype": rng.choice((*types, *more))}
    if rng.random() < 0.7 and chunks:
        packed = {"compression": rng.choice((None, "gzip", "lzf")), "shuffle": rng.random() < 0.5}
        kind |= {"chunks": chunks, "maxshape": (None,) * len(shape), **packed}
    file.create_dataset(name, shape=shape, **kind)


def _link(file: h5py.File, name: str, rng: random.Random) -> None:
    del file[name]
    links = (h5py.SoftLink("/actions"), h5py.SoftLink(f"/{name}"), h5py.ExternalLink("x.h5", name))
    file[name] = rng.choice((*links, h5py.ExternalLink("/dev/zero", "/")))


def _group(file: h5py.File, name: str, _rng: random.Random) -> None:
    del file[name]
    file.create_group(name)[name] = file  # a way round in circles


def _virtual(file: h5py.File, name: str, _rng: random.Random) -> None:
    shape = file[name].shape
    del file[name]
    layout = h5py.VirtualLayout(shape=shape, dtype="f4")
    layout[...] = h5py.VirtualSource("/etc/passwd", name, shape=shape)
    file.create_virtual_dataset(name, layout)


def _external(file: h5py.File, name: str, _rng: random.Random) -> None:
    shape = file[name].shape
    del file[name]
    file.create_dataset(name, shape=shape, dtype="u1", external=[("/etc/passwd", 0, 100)])


def _attributes(file: h5py.File, name: str, rng: random.Random) -> None:
    for i in range(rng.choice((1, 100, 1000))):
        file[name].attrs[f"a{i}"] = i


def _chunk(file: h5py.File, name: str, rng: random.Random) -> None:
    """One chunk by something else, packed or not."""
    numbers = file[name][()]
    del file[name]
    packed = {"compression": "gzip", "shuffle": rng.random() < 0.5, "fletcher32": False}
    if not numbers.shape:
        return
    item = file.create_dataset(name, data=numbers, chunks=numbers.shape, **packed)
    bomb = zlib.compress(bytes(rng.choice((1, 10, 10**4, 10**8))), 9)
    content = rng.choice((bomb, bomb[:-3], b"", rng.randbytes(50), bytes(numbers.nbytes)))
    item.id.write_direct_chunk((0,) * numbers.ndim, content, rng.choice((0, 0, 1, 3, 2**31)))


def _resize(file: h5py.File, name: str, rng: random.Random) -> None:
    """Rows that no chunk holds."""
    numbers = file[name][()]
    if numbers.ndim == 0:
        return
    del file[name]
    file.create_dataset(name, data=numbers, maxshape=(None,) * numbers.ndim, chunks=numbers.shape)
    file[name].resize(rng.choice((3, 10**5, 10**9, 2**50)), axis=0)


_HDF5_EDITS = (_replace, _link, _group, _virtual, _external, _attributes, _chunk, _chunk, _resize)


# Safetensors.


def safetensors_header(data: bytes, rng: random.Random, _other: bytes) -> bytes:
    """What a header says of its tensors, with its own right length."""
    length = int.from_bytes(data[:8], "little")
    header, tensors = json.loads(data[8 : 8 + length]), data[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    for _ in range(rng.choice((1, 1, 3)) if names else 0):
        piece = header[rng.choice(names)]
        field = rng.choice(("dtype", "shape", "data_offsets"))
        odd = {
            "dtype": ("F64", "F16", "BF16", "I64", "BOOL", "U8", "C64", "F8_E4M3", "F4", "x", 1),
            "shape": ([], [0], [2**62, 4], [-1], [1, 1, 1], [10**9], [None], "x", [0.5], [2**64]),
            "data_offsets": ([0, 0], [0, 4], [4, 0], [0, 2**63], [-4, 0], [0], "x", [None, 1]),
        }
        piece[field] = rng.choice((*odd[field], header[rng.choice(names)][field]))
    if rng.random() < 0.3:
        _edit(header, rng, {})
    text = _json_text(header)
    text += b" " * rng.choice((0, 0, 0, 8, 10**5))
    return len(text).to_bytes(8, "little") + text + tensors


def safetensors_numbers(data: bytes, rng: random.Random, _other: bytes) -> bytes:
    """Numbers that no training ends with."""
    length = int.from_bytes(data[:8], "little")
    changed = bytearray(data)
    odd = (float("nan"), float("inf"), 1e38, -1e-45)
    for _ in range(rng.choice((1, 20))):
        places = range(8 + length, len(data) - 3, 4)
        if places:
            struct.pack_into("<f", changed, rng.choice(places), rng.choice(odd))
    return bytes(changed)


# Arrow.


def arrow_columns(data: bytes, rng: random.Random, _other: bytes) -> bytes:
    """Columns of an Arrow file: their types, names, lengths, numbers and packing."""
    import pyarrow as arrow  # an extra

    with arrow.ipc.open_file(arrow.BufferReader(data)) as file:
        table = file.read_all()
    for _ in range(rng.choice((1, 1, 2))):
        place = rng.randrange(table.num_columns) if table.num_columns else -1
        # A type that does not take the numbers.
        with suppress(arrow.ArrowException, ValueError):
            if place >= 0:
                table = rng.choice(_ARROW_EDITS)(table, place, rng)
    out = io.BytesIO()
    packing = rng.choice((None, None, "lz4", "zstd"))
    options = arrow.ipc.IpcWriteOptions(compression=packing)
    with arrow.ipc.new_file(out, table.schema, options=options) as file:
        file.write_table(table, max_chunksize=rng.choice((None, 1, 3)))
    return out.getvalue()


def _without(table: Any, place: int, _rng: random.Random) -> Any:
    return table.remove_column(place)


def _renamed(table: Any, place: int, rng: random.Random) -> Any:
    names = list(table.column_names)
    names[place] = rng.choice((*names, "x" * 5000, "a\nb", ""))
    return table.rename_columns(names)


def _retyped(table: Any, place: int, rng: random.Random) -> Any:
    import pyarrow as arrow

    count = table.num_rows
    nothing = [None] * count
    made = rng.choice(
        (
            arrow.nulls(count),
            arrow.array([1.5, *nothing][:count], arrow.float64()),
            arrow.array([[1.0]] * count, arrow.list_(arrow.float64())),
            arrow.array([[float("nan")] * 2] * count, arrow.list_(arrow.float64(), 2)),
            arrow.array([[]] * count, arrow.list_(arrow.float64(), 0)),
            arrow.array(["a"] * count).dictionary_encode(),
            arrow.array([True] * count),
            arrow.array([2**63] * count, arrow.uint64()),
            arrow.array([{"a": 1}] * count),
        )
    )
    return table.set_column(place, table.column_names[place], made)


def _resized(table: Any, _place: int, rng: random.Random) -> Any:
    import pyarrow as arrow

    start = rng.randrange(table.num_rows + 1)
    return rng.choice((table.slice(start), table.slice(0, start), arrow.concat_tables([table] * 3)))


_ARROW_EDITS = (_without, _renamed, _retyped, _retyped, _resized)


def json_in_json(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """Values of a document that is a text in a JSON document, as Minari's spaces are."""
    document = json.loads(data)
    inner = [k for k, v in document.items() if isinstance(v, str) and v.startswith("{")]
    if not inner:
        return json_values(data, rng, other)
    key = rng.choice(inner)
    text = document[key].encode()
    document[key] = json_values(text, rng, text).decode("utf-8", "replace")
    return _json_text(document)


FORMATS: dict[str, tuple[Mutator, ...]] = {
    ".json": (json_values, json_in_json),
    ".jsonl": (json_lines,),
    ".csv": (csv_fields,),
    ".toml": (toml_values, toml_text),
    ".npz": (npz_members, npz_headers),
    ".hdf5": (hdf5_items,),
    ".arrow": (arrow_columns,),
    ".safetensors": (safetensors_header, safetensors_header, safetensors_numbers),
}
"""Mutators by the suffix of what they understand."""


def mutate(data: bytes, suffix: str, rng: random.Random, other: bytes) -> bytes:
    """A spoiled copy: by the format, by bytes, or by one after the other."""
    known = FORMATS.get(suffix, ())
    if known and rng.random() < 0.6:
        data = rng.choice(known)(data, rng, other)
        if rng.random() < 0.7:
            return data
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = rng.choice(BYTES)(data, rng, other)
    return data
