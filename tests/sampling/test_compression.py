"""Compression of sampled pages: XBZRLE lengths against an encoder, ratios against the libraries."""

import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from invented import PAGE, ScriptedClock, fill_page

from pysampler.errors import MissingFeatureError, UsageError
from pysampler.memory.source import buffer_block
from pysampler.sampling.compression import (
    CODECS,
    CompressedSampling,
    CompressionProbe,
    compress_pages,
    parse_codecs,
    xbzrle_lengths,
)
from pysampler.sampling.page_sampling import PageSampling
from pysampler.sampling.plan import PROFILES
from pysampler.sampling.sampler import Sampler
from pysampler.vector.schedule import periods_ms


def uleb128(value):
    out = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        out.append(low | (0x80 if value else 0))
        if not value:
            return bytes(out)


def encode(old, new):
    """The documented format, byte by byte."""
    out, i = b"", 0
    while i < len(new):
        begin = i
        while i < len(new) and new[i] == old[i]:
            i += 1
        if i == len(new):
            break
        zero_run, begin = i - begin, i
        while i < len(new) and new[i] != old[i]:
            i += 1
        out += uleb128(zero_run) + uleb128(i - begin) + new[begin:i]
    return out


def pages(*contents):
    return np.frombuffer(b"".join(contents), dtype=np.uint8).reshape(len(contents), -1)


@given(st.integers(0, 2**32), st.sampled_from([0, 1, 3, 40, 900, 4096]))
def test_xbzrle_lengths_are_those_of_an_encoder(seed, changes):
    rng = np.random.default_rng(seed)
    old = fill_page(seed)
    new = bytearray(old)
    for place in rng.integers(0, PAGE, changes):
        new[place] ^= int(rng.integers(1, 256))
    expected = min(PAGE, len(encode(old, bytes(new))))
    assert xbzrle_lengths(pages(old), pages(bytes(new))).tolist() == [expected]


def test_an_unchanged_page_has_length_zero_and_a_changed_word_ten():
    old = bytes(PAGE)
    word = old[:100] + b"\xff" * 8 + old[108:]
    assert xbzrle_lengths(pages(old, old), pages(old, word)).tolist() == [0, 10]


def test_each_page_begins_anew():
    old = bytes(PAGE)
    ends = old[:-1] + b"\x01"
    begins = b"\x01" + old[1:]
    expected = [len(encode(old, ends)), len(encode(old, begins))]
    assert xbzrle_lengths(pages(old, old), pages(ends, begins)).tolist() == expected


def test_a_page_of_changes_overflows():
    assert xbzrle_lengths(pages(bytes(PAGE)), pages(b"\xff" * PAGE)).tolist() == [PAGE]


def needs(codec):
    try:
        parse_codecs(codec)
    except MissingFeatureError:
        pytest.skip(f"the library of {codec} is not installed")


@pytest.mark.parametrize("codec", CODECS)
def test_noise_does_not_shrink_and_a_text_does(codec):
    needs(codec)
    figures = compress_pages(codec, pages(fill_page(1), b"migration " * 409 + b"123456"))
    assert figures.ratios[0] == 1
    assert figures.ratios[1] < 0.1
    assert figures.to_dict()["bytes-per-s"] > 0


def test_the_ratio_is_the_librarys():
    text = (b"dirty page " * 400)[:PAGE]
    figures = compress_pages("zlib", pages(text))
    assert figures.ratios[0] == len(zlib.compress(text, 1)) / PAGE


def test_each_page_is_a_zstd_frame_of_its_own():
    needs("zstd")
    n_bytes = 28  # of `zstd -1 --no-check -c PAGE | wc -c`; the package zstandard said the same
    text = (b"dirty page " * 400)[:PAGE]
    figures = compress_pages("zstd", pages(text, text, fill_page(1)))
    assert (figures.ratios[:2] * PAGE).tolist() == [n_bytes] * 2
    assert figures.ratios[2] == 1


@pytest.mark.parametrize("text", ["brotli", "", "lz4,,zstd"])
def test_an_unknown_codec_is_refused(text):
    with pytest.raises(UsageError, match="measure-compression"):
        parse_codecs(text)


def test_a_codec_is_taken_once():
    assert parse_codecs("zlib, zlib") == ("zlib",)


def test_zero_pages_are_left_out_and_dirtied_pages_told_apart():
    probe = CompressionProbe(["zlib"])
    before = pages(bytes(PAGE), fill_page(1), fill_page(2))
    after = pages(bytes(PAGE), fill_page(1), b"x" * PAGE)
    probe.baseline(before)
    probe.period(before)
    probe.period(after)
    found = probe.result()
    assert found["pages"] == 3
    assert [period["dirty-pages"] for period in found["xbzrle"]] == [0, 1]
    assert found["codecs"]["zlib"]["all"]["pages"] == 2
    assert found["codecs"]["zlib"]["dirtied"]["pages"] == 1
    assert found["codecs"]["zlib"]["dirtied"]["ratio-mean"] < 0.02


def test_pages_of_another_shape_are_refused():
    probe = CompressionProbe(["zlib"])
    probe.baseline(pages(bytes(PAGE)))
    with pytest.raises(ValueError, match="shape"):
        probe.period(pages(bytes(PAGE), bytes(PAGE)))


@pytest.mark.parametrize("threads", [1, 3])
def test_a_measurement_carries_what_its_samples_compress_to(threads):
    n_pages = 4099
    memory = bytearray(b"".join(fill_page(7) for _ in range(n_pages)))

    def write():
        for page in range(n_pages):
            memory[page * PAGE + 100 : page * PAGE + 108] = b"\x00" * 8

    sampling = PageSampling(
        [buffer_block(memory)],
        profile=PROFILES["qemu"],
        sample_pages=16384,
        seed=5,
        threads=threads,
    )
    n_periods = len(periods_ms(500))
    observer = CompressedSampling(sampling, ["zlib"], n_periods)
    with Sampler(observer, 500, clock=ScriptedClock({300: write})) as sampler:
        vectors = list(sampler)
    assert all("compression" not in vector.details for vector in vectors[:-1])
    found = vectors[-1].details["compression"]
    sampled = vectors[-1].n_sampled_pages
    assert found["pages"] == min(512, sampled)
    clean = sum(period <= 300 for period in vectors[-1].periods)
    dirty = [period["dirty-pages"] for period in found["xbzrle"]]
    assert dirty == [0] * clean + [found["pages"]] * (n_periods - clean)
    expected = len(encode(fill_page(7), fill_page(7)[:100] + bytes(8) + fill_page(7)[108:]))
    assert found["xbzrle"][-1]["xbzrle-bytes-median"] == expected
    assert found["codecs"]["zlib"]["all"]["ratio-mean"] == 1


def test_without_its_library_a_codec_names_the_cure(monkeypatch):
    package = "compression" if sys.version_info >= (3, 14) else "backports"
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingFeatureError, match=r"pip install pysampler.compression."):
        parse_codecs("zstd")
