import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pysampler.qmp.wire.messages import QmpError, encode, event, failure, success

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(VALUES)
def test_pythons_own_json_reads_what_is_sent(value):
    line = encode(value)
    assert line.endswith(b"\r\n")
    assert line.isascii()
    assert json.loads(line) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("é\U0001f600", r'"\u00E9\uD83D\uDE00"'),
        ("\b\f\n\r\t\x01\x7f/'\"\\", r'"\b\f\n\r\t\u0001\u007F/' + "'" + r'\"\\"'),
        (0.1, "0.10000000000000001"),
        (1e22, "1e+22"),
        (1.0, "1"),
        (-0.0, "-0"),
        ([[], {}, [None, True], {"a": {"b": []}}], '[[], {}, [null, true], {"a": {"b": []}}]'),
    ],
)
def test_text_is_qemus(value, text):
    assert encode(value).decode() == text + "\r\n"


def test_a_surrogate_from_a_file_name_does_not_break_the_line():
    assert json.loads(encode("\udcff"))


def test_id_stands_last_in_success_and_first_in_failure():
    assert success({}, None) == b'{"return": {}, "id": null}\r\n'
    assert failure(QmpError("no"), [1]) == (
        b'{"id": [1], "error": {"class": "GenericError", "desc": "no"}}\r\n'
    )
    assert success({}) == b'{"return": {}}\r\n'


def test_an_event_has_its_time_first_and_data_only_if_there_is_some():
    assert list(json.loads(event("STOP"))) == ["timestamp", "event"]
    assert list(json.loads(event("SHUTDOWN", {"guest": False}))) == ["timestamp", "event", "data"]
    assert 0 <= json.loads(event("STOP"))["timestamp"]["microseconds"] < 10**6
