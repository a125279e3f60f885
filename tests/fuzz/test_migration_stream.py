import random

import migration_stream
import pytest

from pysampler import core


@pytest.fixture
def destination():
    return migration_stream.Destination()


def test_streams_as_a_source_sends_them_are_received(destination):
    for data in migration_stream.seeds():
        assert destination.check(data) == ""


def test_mutated_streams_are_received_or_refused(destination):
    corpus = [(data, migration_stream.words_of(data)) for data in migration_stream.seeds()]
    rng = random.Random(1)
    refusals = [destination.check(migration_stream.mutate(rng, corpus)) for _ in range(5000)]
    # What cannot be is told from what can: both happen, and the refusals are of many kinds.
    assert 500 < sum(map(bool, refusals)) < 4900
    for text in ("is not here", "do not fit", "begins neither", "in the middle", "kind", "page "):
        assert any(text in refusal for refusal in refusals), text


@pytest.mark.parametrize("n_bytes", [1 << 20, 1 << 32, (1 << 40) - 1])
@pytest.mark.parametrize("kind", [1, 2, 3, 4, 16, 65535])
def test_no_memory_is_taken_for_a_length_that_is_too_long(destination, kind, n_bytes):
    word = n_bytes << 24 | kind << 8 | 0x80
    refusal = destination.check(word.to_bytes(8, "little"))
    assert "unknown kind" in refusal or "are the most that fit" in refusal


def test_any_first_word_is_refused_or_waits_for_more(destination):
    rng = random.Random(2)
    for _ in range(2000):
        data = rng.randbytes(rng.randrange(1, 40))
        assert destination.check(data)
    assert destination.check(b"") == ""
    assert destination.check(core.message_bytes(4, b"")) == ""
