import gc
import itertools
import json
import math
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pysampler.qmp.wire.json_stream import MAX_NESTING, MAX_VALUE_BYTES, BadInput, JsonStream

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    # Noncharacters are no characters to QEMU: its own test is below.
    | st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abé", max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
# Mostly JSON, in the pieces that break it.
PIECES = [
    b"{", b"}", b"[", b"]", b":", b",", b'"a"', b"'b'", b"1", b"-", b".5", b"0", b"e", b"true",
    b"nul", b" ", b"\n", b"\x00", b"\xff", b'"', b"'", b"\\", b"\\u00e9", b"\\ud83d", b"\xc3",
]  # fmt: skip
NEARLY_JSON = st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=40).map(b"".join)


def parse(*chunks):
    stream = JsonStream()
    return [value for chunk in chunks for value in stream.feed(chunk)]


def chunked(data, cuts):
    bounds = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(bounds)]


@settings(deadline=None)
@given(st.lists(VALUES, max_size=5), st.booleans(), st.sampled_from([" ", "\n", "\r\n", "\t"]))
def test_values_come_back_as_pythons_own_json_wrote_them(values, ascii_only, space):
    text = space.join(json.dumps(value, ensure_ascii=ascii_only) for value in values)
    assert parse(text.encode() + b"\n") == values


@settings(deadline=None)
@given(NEARLY_JSON, st.lists(st.integers(0, 1 << 16), max_size=20))
def test_any_chunking_gives_the_same_sequence(data, cuts):
    assert parse(*chunked(data, cuts)) == parse(data)
    assert parse(*(data[i : i + 1] for i in range(len(data)))) == parse(data)


@settings(deadline=None)
@given(NEARLY_JSON)
def test_the_byte_ff_brings_any_stream_back_to_its_senses(data):
    assert parse(data, b'\xff\n{"id": 1}')[-1] == {"id": 1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"a": 1}{"a": 2}[3]', [{"a": 1}, {"a": 2}, [3]]),
        (b'{"a"\n:\n1', []),
        (b"5", []),  # 50 may be coming
        (b"5 ", [5]),
        (b"-0 ", [0]),
        (b"'it\\'s \"so\"'", ['it\'s "so"']),
        (b'"\\ud83d\\ude00\\u0000\\/"', ["\U0001f600\0/"]),
        (b"18446744073709551615 18446744073709551616 ", [(1 << 64) - 1, float(1 << 64)]),
        (b"1.25e2 ", [125.0]),
        (b"true1 ", [True, 1]),
    ],
)
def test_values_are_read_as_qemu_reads_them(text, expected):
    actual = parse(text)
    assert expected == actual
    assert [type(value) for value in expected] == [type(value) for value in actual]


# What QEMU 7.2 answers; tests/integration asks it again where it is installed.
QEMU_ERRORS = [
    (b"nonsense ", ["invalid keyword 'nonsense'"]),
    (b"True\n", ["stray 'T'"]),
    (b"}", ["expecting value"]),
    (b"[,]", ["expecting value"]),
    (b"[1,]", ["expecting value"]),
    (b'{"a":}', ["expecting value"]),
    (b"{]", ["expecting value"]),
    (b"{[}]", ["expecting value"]),
    (b"[1 2]", ["expected separator in list"]),
    (b'["a":1]', ["expected separator in list"]),
    (b'{"a":1 "b":2}', ["expected separator in dict"]),
    (b'{"a" 1}', ["missing : in object pair"]),
    (b"{1:2}", ["key is not a string in object"]),
    (b"{[1]:2}", ["key is not a string in object"]),
    (b'{"a":1,"a":2}', ["duplicate key"]),
    (b'{"a":01}', ["stray '01'", "expecting value"]),
    (b'{"a":-}', ["stray '-}'"]),
    (b"1.e5\n", ["stray '1.e'"]),
    (b"--1\n", ["stray '--'"]),
    (b'"a\nb"\n', ["stray '\"a\n'"]),
    (b'"a\x00', ["stray '\"a'"]),
    (b"\xff", ["stray '\ufffd'"]),
    (b'"\xed\xa0\x80"', ["invalid UTF-8 sequence in string"]),
    (b'"\xef\xbf\xbe"', ["invalid UTF-8 sequence in string"]),  # U+FFFE
    (b'"\\q"', ["invalid escape sequence in string"]),
    (b'"\\u12"', ['\\u12" is not a valid Unicode character']),
    (b'"\\ud800x"', ["\\ud800 is not a valid Unicode character"]),
    (b'"\\ufdd0"', ["\\ufdd0 is not a valid Unicode character"]),
    (b'[{"a":tru},[1 2],1]', ["invalid keyword 'tru'"]),
]


@pytest.mark.parametrize(("text", "descs"), QEMU_ERRORS)
def test_broken_input_is_refused_in_qemus_words(text, descs):
    assert [BadInput(f"JSON parse error, {desc}") for desc in descs] == parse(text)


def test_a_number_that_no_float_holds_is_refused():
    # QEMU echoes it as `inf`, which its client cannot read.
    assert parse(b"1e999 ") == [BadInput("JSON parse error, number out of range")]
    assert not any(math.isinf(value) for value in parse(b"9" * 308 + b" "))


def nested(depth):
    return b"[" * depth + b"]" * depth


def test_nesting_ends_where_qemus_does():
    [value] = parse(nested(MAX_NESTING))
    for _ in range(MAX_NESTING - 1):
        [value] = value
    assert value == []
    limit = BadInput("JSON nesting depth limit exceeded")
    assert parse(nested(MAX_NESTING + 1))[0] == limit
    assert parse(b"[" * (3 * MAX_NESTING)) == [limit] * 2


@pytest.mark.parametrize("quote", [b'"', b"'"])
def test_a_value_may_have_64_kib_and_no_more(quote):
    limit = BadInput("JSON token size limit exceeded")
    fits = quote + b"x" * (MAX_VALUE_BYTES - 2) + quote
    assert parse(fits) == ["x" * (MAX_VALUE_BYTES - 2)]
    assert parse(b"[" + fits + b']\n"next"') == [limit, "next"]


def size_of(thing):
    """Return the bytes of an object and of all that it refers to, classes left out."""
    seen, left = {}, [thing]
    while left:
        one = left.pop()
        if id(one) not in seen and not isinstance(one, type):
            seen[id(one)] = one
            left += gc.get_referents(one)
    return sum(map(sys.getsizeof, seen.values()))


@pytest.mark.parametrize(
    "pattern", [b"x", b'"', b"7", b"[1,", b'{"a":', b"\\", b' "ab"', b"\xc3\xa9", b"{}[", b"'\\x"]
)
@pytest.mark.parametrize("chunk", [1000, 65_536, 100_003])
def test_an_endless_line_takes_no_memory_and_ends_at_its_end(pattern, chunk):
    line = pattern * (150_000 // len(pattern))
    stream = JsonStream()
    for start in range(0, len(line), chunk):
        for _ in stream.feed(line[start : start + chunk]):
            pass
        # As much again for the lists and dicts of MAX_NESTING open brackets.
        assert size_of(stream) < 2 * MAX_VALUE_BYTES
    last = b'\xff\n{"id": 7}'
    assert list(stream.feed(last))[-1] == {"id": 7}
    other = JsonStream()
    assert list(other.feed(last))[-1] == {"id": 7}
    assert size_of(stream) == size_of(other)  # nothing is left of the line
