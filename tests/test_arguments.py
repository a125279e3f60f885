"""What the Python API says to arguments of types that it does not take, and to numpy's."""

import json
import mmap

import numpy as np
import pytest

import pysampler
from pysampler import UsageError

FUNCTIONS = [pysampler.measure, pysampler.sample, pysampler.track]
MEMORY = bytearray(1 << 20)


def numbers(function):
    return ["threads"] if function is pysampler.track else ["threads", "sample_pages", "seed"]


@pytest.mark.parametrize("value", ["512", 512.5, 512.0, True, np.True_, [512], b"512", 1 + 0j])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_is_no_whole_number_is_refused_by_the_arguments_name(function, value):
    for name in numbers(function):
        shown = name.replace("_", "-")
        with pytest.raises(UsageError, match=rf"^{shown} must be a whole number \(got "):
            function(MEMORY, calc_time="50ms", **{name: value})


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("threads", [0, -1, 257])
def test_threads_out_of_range_are_refused(function, threads):
    with pytest.raises(UsageError, match="threads must be between 1 and 256"):
        function(MEMORY, calc_time="50ms", threads=threads)


@pytest.mark.parametrize("profile", [["qemu"], None, 7, "slow"])
def test_a_profile_that_is_none_is_refused(profile):
    with pytest.raises(UsageError, match="profile must be one of qemu, qemu-7, fast"):
        pysampler.measure(MEMORY, profile=profile)


@pytest.mark.parametrize("calc_time", [True, None, "soon", [1], np.nan, -1])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_duration_that_is_none_is_refused(function, calc_time):
    with pytest.raises(UsageError, match=r"^calc-time"):
        function(MEMORY, calc_time=calc_time)


@pytest.mark.parametrize("source", [[MEMORY], [1, 2], (None,)])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_list_of_something_else_than_ramblocks_is_refused(function, source):
    with pytest.raises(UsageError, match=r"^source: a list has RAMBlocks in it, not "):
        function(source, calc_time="50ms")


def test_vcpus_and_pid_are_checked_by_name():
    for arguments, message in (
        ({"pid": "1"}, "pid must be a whole number"),
        ({"vcpus": [1]}, "vcpus must be a mapping"),
        ({"vcpus": {0: "1"}}, "vcpus: a thread id must be a whole number"),
    ):
        with pytest.raises(UsageError, match=message):
            pysampler.track(MEMORY, mode="dirty-ring", **arguments)


@pytest.mark.parametrize("kind", [np.int64, np.uint16, np.int8])
def test_whole_numbers_of_numpy_are_as_good_as_pythons(kind):
    vector = pysampler.sample(
        mmap.mmap(-1, 16 << 20),
        calc_time="50ms",
        sample_pages=None if kind is np.int8 else kind(512),
        seed=kind(7),
        threads=kind(2),
    )
    details = json.loads(vector.to_json())["x-pysampler"]
    assert (details["seed"], details["threads"]) == (7, 2)


def test_only_what_is_public_is_an_attribute_before_its_import():
    assert set(dir(pysampler)) == set(pysampler.__all__)
    for name in pysampler.__all__:
        assert getattr(pysampler, name) is not None
    with pytest.raises(AttributeError, match="module 'pysampler' has no attribute 'nonsense'"):
        pysampler.nonsense  # noqa: B018 - the access is what is tested


def test_a_buffer_that_has_no_bytes_to_show_is_refused():
    with pytest.raises(UsageError, match="cannot sample ndarray: "):
        pysampler.sample(np.zeros(4096, dtype="datetime64[s]"), calc_time="50ms")


@pytest.mark.parametrize(
    ("path", "message"), [("a\0b", "has a NUL in it"), (5, "int names no file")]
)
def test_a_path_that_can_name_no_file_is_refused(path, message):
    with pytest.raises(UsageError, match=message):
        pysampler.file_block(path)
