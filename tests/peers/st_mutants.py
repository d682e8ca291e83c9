"""Damaged, odd and valid safetensors files by the thousand, from a seed: for comparing two readers of the format.

A file is built as text, not from a dictionary, so that names can be there twice, numbers be written in any way and the
JSON be broken. Most mutants are one step away from a valid file: that is where readers differ.
"""

import json
import math
import random
from collections.abc import Callable, Iterator

BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip

# Pieces of JSON that stand where something else is expected: each is put in the place of a value, once in a while.
VALUES = [
    "null", "true", "false", "0", "1", "4", "-0", "-1", "0.0", "1.0", "4.0", "1e0", "4e0", "1E+1", "01", "+1", ".5",
    "1.", "1e", "1e400", "-1e400", "1e-400", "NaN", "Infinity", "-Infinity", "0x10", "1_000", "18446744073709551615",
    "18446744073709551616", "9223372036854775808", "9223372036854775807", "-9223372036854775809", "4294967296",
    "100000000000000000000000000000000000000", '""', '"F32"', '"4"', "'F32'", "F32", "[]", "[0]", "[0,4]", "[0,4,8]",
    "[4,0]", "[[0,4]]", "{}", '{"F32":null}', '{"F32":1}', '{"F32":[]}', '{"F32":{}}', '{"F32":null,"F16":null}',
    '{"0":0,"1":4}', '["F32",[1],[0,4]]', '["F32",[1],[0,4],1]', '["F32",[1]]', '{"dtype":"F32","shape":[1]}',
    '"\\u0046\\u0033\\u0032"', '"F32\\u0000"', '"f32"', '"F\\/32"', "", ",", "[1,]", "[,1]", '{"a":1,}', "/**/1", "nul",
]  # fmt: skip

# Names, as JSON writes them between quotes; what is not UTF-8 comes in as bytes.
NAMES: list[bytes] = [
    b"", b" ", b"a", b"\\u0061", b"\\u0041\\u00e9\\u4e2d", "é中😀".encode(), b"\\ud83d\\ude00", b"\\ud83d",
    b"\\ude00", b"\\ude00\\ud83d", b"\\ud83dx", b"\\ud83d\\n", b"\\ud83d\\u0041", b"\\u0000", b"a\\u0000b",
    b"a\x00b", b"a\nb", b"a\tb", b"a\x1fb", b"a\x7fb", b"\\\"", b"\\\\", b"\\/", b"\\b\\f\\n\\r\\t", b"\\x41",
    b"\\u12", b"\\u12g4", b"\\U0041", b"\\'", b"\\", b"\xff", b"\xc0\x80", b"\xc3", b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80", b"\xf0\x80\x80\x80", b"\xe2\x80\xa8", b"\xef\xbf\xbf", b"\xef\xbb\xbf", b"__metadata__",
    b"\\u005f_metadata__", b"__metadata__ ", b"__METADATA__", b"x" * 4096, b"x" * 4097,
    b"model.layers.0.mlp.down_proj.weight", b"../../etc/passwd", b"a/b", b"%s%n",
]  # fmt: skip

# The first six are white space in JSON, the others only look like it.
BLANKS = [b" ", b"\t", b"\n", b"\r", b"\r\n", b"  \n\t "]
BLANKS += [b"\x0b", b"\x0c", b"\x00", b"\xc2\xa0", b"\xef\xbb\xbf", b"//x\n"]


class Entry:
    """One tensor of a header: the bytes of its name, and its fields as (name, JSON text) pairs."""

    def __init__(self, name: bytes, dtype: str, shape: list[int], begin: int, end: int) -> None:
        self.name = name
        self.fields: list[tuple[str, str]] = [
            ("dtype", json.dumps(dtype)),
            ("shape", json.dumps(shape)),
            ("data_offsets", json.dumps([begin, end])),
        ]
        self.whole: str | None = None  # stands for the whole object

    def text(self) -> bytes:
        value = self.whole
        if value is None:
            value = "{" + ",".join(f'"{key}":{text}' for key, text in self.fields) + "}"
        return b'"' + self.name + b'":' + value.encode()

    def field(self, key: str) -> int:
        return next((i for i, (name, _) in enumerate(self.fields) if name == key), 0)


class File:
    """A safetensors file that is not yet bytes."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.entries: list[Entry] = []
        self.metadata: list[bytes] = []
        at = 0
        for i in range(rng.choice([0, 1, 1, 2, 2, 3, 5])):
            dtype = rng.choice([*BITS, "F32", "F32", "BF16"])
            shape = [rng.choice([0, 1, 1, 2, 3, 4, 8]) for _ in range(rng.choice([0, 1, 1, 2, 2, 3, 5]))]
            if math.prod(shape) * BITS[dtype] % 8:
                shape.append(4)
            end = at + math.prod(shape) * BITS[dtype] // 8
            self.entries.append(Entry(b"t%d" % i, dtype, shape, at, end))
            at = end
        self.data = rng.randbytes(at)
        if rng.random() < 0.4:
            self.metadata.append(rng.choice([b'{"format":"pt"}', b"{}", b'{"a":"1","b":"2"}']))
        if rng.random() < 0.3:
            rng.shuffle(self.entries)
        # Each of these may be put at odds with the rest.
        self.before = self.after = b""
        self.pad = rng.random() < 0.7
        self.edit_header: Callable[[bytearray], None] | None = None
        self.edit_length: Callable[[int], int] = lambda length: length
        self.edit_file: Callable[[bytearray], None] | None = None

    def bytes(self) -> bytes:
        """Puts the file together."""
        members = [b'"__metadata__":' + text for text in self.metadata] + [entry.text() for entry in self.entries]
        text = bytearray(self.before + b"{" + b",".join(members) + b"}" + self.after)
        if self.pad:
            text += b" " * (-len(text) % 8)
        if self.edit_header:
            self.edit_header(text)
        length = self.edit_length(len(text)) & (1 << 64) - 1
        file = bytearray(length.to_bytes(8, "little") + text + self.data)
        if self.edit_file:
            self.edit_file(file)
        return bytes(file)


# ---- mutations; each takes a File and changes it ----


def flip(buffer: bytearray, rng: random.Random) -> None:
    """Changes up to three bits, bytes or runs of bytes."""
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(buffer) + 1)
        kind = rng.randrange(5)
        if kind == 0 and at < len(buffer):
            buffer[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(buffer):
            buffer[at] = rng.choice(b'"{}[],:\\ 0123456789eE+-.tfn\x00\x1f\x7f\x80\xff')
        elif kind == 2:
            buffer[at:at] = rng.choice([*BLANKS, b'"', b",", b"0", b"}", b"]", b"{", b"\xff"])
        elif kind == 3:
            del buffer[at : at + rng.randint(1, 4)]
        else:
            end = at + rng.randint(1, 24)
            buffer[at:at] = buffer[at:end]


def mutate_header_bytes(file: File) -> None:
    file.edit_header = lambda text: flip(text, file.rng)


def mutate_file_bytes(file: File) -> None:
    """Bytes of length and header, with the length no longer right in many cases."""

    def edit(buffer: bytearray) -> None:
        head = bytearray(buffer[: len(buffer) - len(file.data)])
        flip(head, file.rng)
        buffer[: len(buffer) - len(file.data)] = head

    file.edit_file = edit


def mutate_size(file: File) -> None:
    """Cuts the file anywhere, or makes it longer."""
    def edit(buffer: bytearray) -> None:
        kind = file.rng.randrange(4)
        if kind == 0:
            del buffer[file.rng.randrange(len(buffer)) :]
        elif kind == 1:
            del buffer[-1:]
        elif kind == 2:
            buffer += file.rng.randbytes(file.rng.choice([1, 7, 8, 4096]))
        else:
            del buffer[file.rng.randrange(10) :]

    file.edit_file = edit


def mutate_length(file: File) -> None:
    rng = file.rng
    far = [0, 1, 2, 7, 100_000_000, 100_000_001, 1 << 31, 1 << 32, 1 << 63, (1 << 63) - 1, (1 << 64) - 1, (1 << 64) - 8]
    step = rng.choice([-8, -2, -1, 1, 2, 8])
    value = rng.choice([None, *far])
    file.edit_length = lambda length: length + step if value is None else value


def mutate_value(file: File) -> None:
    """Puts another piece of JSON in the place of a field, or of the whole tensor."""
    if not file.entries:
        return
    entry = file.rng.choice(file.entries)
    if file.rng.random() < 0.2:
        entry.whole = file.rng.choice(VALUES)
    else:
        at = file.rng.randrange(len(entry.fields))
        entry.fields[at] = (entry.fields[at][0], file.rng.choice(VALUES))


def mutate_number(file: File) -> None:
    """Writes one number of a shape or of offsets another way, or another number."""
    if not file.entries:
        return
    entry = file.rng.choice(file.entries)
    at = entry.field(file.rng.choice(["shape", "data_offsets"]))
    key, text = entry.fields[at]
    numbers = text.strip("[]").split(",") if len(text) > 2 else []
    kind = file.rng.randrange(4)
    if kind == 0 and numbers:
        numbers[file.rng.randrange(len(numbers))] = file.rng.choice(VALUES)
    elif kind == 1:
        numbers.insert(file.rng.randint(0, len(numbers)), file.rng.choice([*VALUES, "1", "1", "0"]))
    elif kind == 2 and numbers:
        i = file.rng.randrange(len(numbers))
        numbers[i] = f"{numbers[i].strip()}{file.rng.choice(['.0', 'e0', 'E0', '.', ' ', '0', 'e', '-'])}"
    elif numbers:
        i = file.rng.randrange(len(numbers))
        step = file.rng.choice([-8, -4, -1, 1, 4, 8])
        numbers[i] = str(int(numbers[i]) + step) if numbers[i].strip().isdigit() else "0"
    entry.fields[at] = (key, f"[{','.join(numbers)}]")


def mutate_huge_shape(file: File) -> None:
    """Products that overflow 64 bits as elements, bits or bytes, some of them with a zero among them."""
    if not file.entries:
        return
    rng = file.rng
    big = [1 << 32, 1 << 33, 1 << 61, 1 << 62, 1 << 63, (1 << 64) - 1, (1 << 64) // 3, 1 << 60, (1 << 61) + 1]
    shape = [rng.choice(big) for _ in range(rng.randint(1, 3))]
    if rng.random() < 0.6:
        shape.insert(rng.randint(0, len(shape)), 0)
    entry = rng.choice(file.entries)
    entry.fields[entry.field("shape")] = ("shape", json.dumps(shape))
    if rng.random() < 0.5:
        # A tensor without bytes: whether the shape is looked at then is the question.
        offsets = entry.fields[entry.field("data_offsets")][1].strip("[]").split(",")
        entry.fields[entry.field("data_offsets")] = ("data_offsets", f"[{offsets[0]},{offsets[0]}]")


def mutate_dtype(file: File) -> None:
    """Another dtype, right or nearly: with the size no longer right in many cases."""
    if not file.entries:
        return
    entry = file.rng.choice(file.entries)
    odd = ["", "f32", "F32 ", " F32", "FP32", "F8", "F8_E4M3FN", "F6", "F4_E2M1", "BF32", "C32", "C128", "I4", "Q4"]
    entry.fields[entry.field("dtype")] = ("dtype", json.dumps(file.rng.choice([*BITS, *odd])))


def mutate_fields(file: File) -> None:
    """Fields are missing, there twice, in another order, unknown, or the tensor is a list of values."""
    if not file.entries:
        return
    rng = file.rng
    entry = rng.choice(file.entries)
    kind = rng.randrange(6)
    if kind == 0:
        del entry.fields[rng.randrange(len(entry.fields))]
    elif kind == 1:
        entry.fields.append(rng.choice(entry.fields))
    elif kind == 2:
        rng.shuffle(entry.fields)
    elif kind == 3:
        key = rng.choice(["x", "", "Dtype", "data_offset", "strides", "__metadata__"])
        for _ in range(rng.randint(1, 2)):
            entry.fields.insert(rng.randint(0, len(entry.fields)), (key, rng.choice(VALUES)))
    elif kind == 4:
        entry.whole = f"[{','.join(text for _, text in entry.fields)}]"
    else:
        depth = rng.choice([1, 60, 124, 125, 126, 127, 128, 129, 200])
        opening, closing = rng.choice([("[", "]"), ('{"a":', "}")])
        inner = rng.choice(["1", "", "{}", "[]"]) if opening == "[" else rng.choice(["1", "{}", "[]"])
        entry.fields.append(("deep", opening * depth + inner + closing * depth))


def mutate_offsets(file: File) -> None:
    """Overlaps, holes, a tensor twice in the same bytes, an end before its beginning."""
    if not file.entries:
        return
    rng = file.rng
    entry = rng.choice(file.entries)
    begin, end = (int(n) for n in entry.fields[entry.field("data_offsets")][1].strip("[]").split(","))
    kind = rng.randrange(5)
    step = rng.choice([1, 2, 4, 8])
    if kind == 0:
        begin, end = begin + step, end + step
    elif kind == 1:
        begin, end = end, begin
    elif kind == 2:
        begin = max(0, begin - step)
    elif kind == 3:
        begin, end = 0, end - begin
    else:
        begin, end = begin + (1 << 64) - step, end + (1 << 64) - step
    entry.fields[entry.field("data_offsets")] = ("data_offsets", json.dumps([begin, end]))
    if rng.random() < 0.3:
        file.data += rng.randbytes(step)


def mutate_empty_tensors(file: File) -> None:
    """Adds tensors without bytes, anywhere between the others."""
    for i in range(file.rng.randint(1, 3)):
        at = file.rng.randint(0, len(file.data))
        if file.rng.random() < 0.7 and file.entries:
            offsets = file.rng.choice(file.entries).fields[2][1].strip("[]").split(",")
            at = int(file.rng.choice(offsets))
        entry = Entry(b"e%d" % i, file.rng.choice([*BITS]), file.rng.choice([[0], [0, 3], [3, 0, 2]]), at, at)
        file.entries.insert(file.rng.randint(0, len(file.entries)), entry)


def mutate_name(file: File) -> None:
    if file.entries:
        file.rng.choice(file.entries).name = file.rng.choice(NAMES)


def mutate_twins(file: File) -> None:
    """A name twice: the same tensor again, another one, or the same name in another spelling."""
    if not file.entries:
        return
    rng = file.rng
    entry = rng.choice(file.entries)
    twin = Entry(entry.name, "F32", [1], len(file.data), len(file.data) + 4)
    if rng.random() < 0.5:
        twin.fields = list(entry.fields)
    else:
        file.data += rng.randbytes(4)
    if rng.random() < 0.3 and entry.name:
        twin.name = b"".join(b"\\u%04x" % byte for byte in entry.name[:20])
    file.entries.insert(rng.randint(0, len(file.entries)), twin)


def mutate_metadata(file: File) -> None:
    rng = file.rng
    odd = [
        b"null", b'{"a":1}', b'{"a":null}', b'{"a":["b"]}', b'{"a":"b","a":"c"}', b"[]", b'"x"', b"1", b'{"a":"b",}',
        b'{"dtype":"F32","shape":"[1]","data_offsets":"[0,4]"}', b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}',
        b'{"\\u0000":"\\u0000"}', b'{"\\ud800":"a"}', b'{"a":"\xff"}', b'{"":""}', b'{"a":"\n"}', b'[["a","b"]]', b"{",
    ]  # fmt: skip
    file.metadata.append(rng.choice(odd))
    if rng.random() < 0.6:
        file.metadata = file.metadata[-1:]


def mutate_blanks(file: File) -> None:
    """White space and other things before, after and within the header."""
    rng = file.rng
    kind = rng.randrange(4)
    if kind == 0:
        file.before = rng.choice(BLANKS)
    elif kind == 1:
        file.after = rng.choice([*BLANKS, b",", b"}", b"{}", b"null", b"x"])
    else:

        def edit(text: bytearray) -> None:
            for _ in range(rng.randint(1, 4)):
                places = [i for i, byte in enumerate(text) if byte in b"{}[],:"]
                if places:
                    at = rng.choice(places) + rng.randint(0, 1)
                    text[at:at] = rng.choice(BLANKS if kind == 2 else BLANKS[:6])

        file.edit_header = edit


def mutate_root(file: File) -> None:
    """Another value than an object at the top."""
    value = file.rng.choice([*VALUES, "[{}]", '[null,{}]', '[{"format":"pt"}]'])

    def edit(text: bytearray) -> None:
        text[:] = value.encode()

    file.edit_header = edit
    file.data = b"" if file.rng.random() < 0.7 else file.data


def mutate_dimensions(file: File) -> None:
    """Many dimensions of 1."""
    if file.entries:
        entry = file.rng.choice(file.entries)
        at = entry.field("shape")
        numbers = entry.fields[at][1].strip("[]")
        ones = ",".join("1" * file.rng.choice([5, 31, 32, 33, 64]))
        entry.fields[at] = ("shape", f"[{numbers},{ones}]" if numbers else f"[{ones}]")


def leave(_: File) -> None:
    """A valid file."""


MUTATIONS = [
    mutate_header_bytes, mutate_header_bytes, mutate_file_bytes, mutate_size, mutate_length, mutate_value, mutate_value,
    mutate_number, mutate_number, mutate_huge_shape, mutate_dtype, mutate_fields, mutate_fields, mutate_offsets,
    mutate_empty_tensors, mutate_name, mutate_twins, mutate_metadata, mutate_blanks, mutate_root, mutate_dimensions,
    leave,
]  # fmt: skip


def mutants(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Yields `count` times (what was done, the file's bytes); the same for the same seed."""
    rng = random.Random(f"safetensors {seed}")
    for i in range(count):
        file = File(rng)
        done = [MUTATIONS[i % len(MUTATIONS)]]
        if rng.random() < 0.25:
            done.append(rng.choice(MUTATIONS))
        names = []
        for mutation in done:
            try:
                mutation(file)
            except (ValueError, IndexError):
                # A second mutation may find a number that the first has made something else of.
                continue
            names.append(mutation.__name__.removeprefix("mutate_"))
        yield "+".join(names) or "leave", file.bytes()
