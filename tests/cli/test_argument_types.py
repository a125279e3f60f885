import pytest

from pysampler.cli import main
from pysampler.cli.arguments import RefusedArgumentError, integer, several, size, whole_number
from pysampler.prediction.prediction import as_limit_ms, as_rate


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (whole_number("n", low=1, high=9), "x", "n must be a whole number (got 'x')"),
        (whole_number("n", low=1, high=9), "10", "n must be between 1 and 9 (got 10)"),
        (integer("--n", low=0, high=9, bounds="from 0 to 9"), "-1", "--n: -1 is not from 0 to 9"),
        (
            several(as_rate),
            "1Gbps,",
            "bandwidth: '' is not a rate; write 10Gbps, 1Gibps, 400MiB/s or bytes a second",
        ),
        (size("memory"), "x", "memory: 'x' is not a size; write bytes, or 16M, 4G"),
    ],
)
def test_a_refused_value_is_no_value_error_which_argparse_would_reword(parse, text, message):
    with pytest.raises(RefusedArgumentError) as refused:
        parse(text)
    assert (str(refused.value), refused.value.exit_code) == (message, 2)
    assert not isinstance(refused.value, ValueError)


def test_what_is_said_of_a_refused_value_is_one_line_with_the_verb(capsys):
    assert main(["guest", "--vcpus", "0"]) == 2
    assert capsys.readouterr().err == "pysampler guest: --vcpus: 0 is not from 1 to 255\n"


def test_debug_shows_where_a_value_was_refused(capsys):
    assert main(["sample", "--debug", "--threads", "x"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_word_that_is_no_integer_gets_the_message_of_argparse(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["guest", "--vcpus", "two"])
    assert ended.value.code == 2
    assert "argument --vcpus: invalid int value: 'two'" in capsys.readouterr().err


def test_a_list_is_parsed_value_by_value():
    assert several(as_limit_ms)("300ms,unlimited") == [300.0, None]


def test_of_several_wrong_options_the_first_one_is_named(capsys):
    assert main(["predict", "--bandwidth", "x", "--deadline", "y"]) == 2
    assert capsys.readouterr().err.startswith("pysampler predict: bandwidth: 'x' is not a rate")
    assert main(["advise", "--deadline", "y", "--bandwidth", "x"]) == 2
    assert capsys.readouterr().err.startswith("pysampler advise: deadline: 'y' is not a duration")
