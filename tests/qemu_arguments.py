"""The arguments of all commands, and what a real QEMU 10.0.2 said to wrong ones.

`ROWS` is what a real one said to wrong arguments.
"""

import json
from pathlib import Path

from pysampler.qmp.commands.table import COMMANDS
from pysampler.qmp.schema import check_arguments
from pysampler.qmp.wire.messages import QmpError

TABLE = Path(__file__).parent / "golden" / "qmp-argument-errors.jsonl"
ROWS = [json.loads(line) for line in TABLE.read_text().splitlines()]

ARGUMENTS = {name: command.arguments for name, command in COMMANDS.items()}


def error_of(name, arguments):
    """Return what the schema of a command says to arguments; None when it takes them."""
    try:
        check_arguments(ARGUMENTS[name], arguments)
    except QmpError as error:
        return str(error)
    return None
