# SPDX-License-Identifier: MIT
"""The record of a migration, as `predict --evaluate` reads it."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from pysampler.cli.migration_watch import figure
from pysampler.cli.streams import STDOUT, put
from pysampler.errors import FormatError, PysamplerError
from pysampler.host.writer import append_line, check_appendable, writing
from pysampler.prediction.records import read_migrations

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pysampler.cli.migration_watch import Watch
    from pysampler.vector.measurement import Measurement


def check_file(path: str) -> None:
    """Make sure that a record can be appended to a file.

    Raises:
        PysamplerError: it cannot.
    """
    with writing(path):
        check_appendable(path)


def record_of(
    watch: Watch,
    vector: Measurement,
    parameters: Mapping[str, Any],
    capabilities: list[str],
    uri: str,
    limit_s: float,
) -> str:
    """Return the record of a migration that has ended, as one line of JSON.

    Args:
        watch: what was seen of it.
        vector: the guest's, measured before.
        parameters: as query-migrate-parameters reports them.
        capabilities: those that were on.
        uri: where it went; only its scheme is recorded.
        limit_s: it was cancelled after that, or would have been.

    Raises:
        FormatError: this migration cannot be a record, such as one with a downtime-limit of 0.
    """
    now = watch.now
    converged = now.status == "completed"
    seen = now if converged or watch.figures is None else watch.figures
    bandwidth = figure(parameters, "max-bandwidth")
    config = {
        # 0 is unlimited: then it is what the link carried.
        "max-bandwidth": bandwidth or (figure(seen.reply.get("ram"), "mbps") or 0) * 1e6 / 8,
        "downtime-limit": figure(parameters, "downtime-limit"),
        "limit-s": limit_s,
        "uri": uri.partition(":")[0],
        "capabilities": capabilities,
    }
    if "multifd" in capabilities:
        config["multifd-channels"] = parameters.get("multifd-channels")
    result = {
        "converged": converged,
        "status": now.status,
        "elapsed-ms": round(now.elapsed_s * 1000),
        "query-migrate": seen.reply,
        "trace": watch.trace,
    }
    record = {"config": config, "vector": vector.to_dict(), "result": result}
    line = json.dumps(record, separators=(",", ":"))
    try:
        read_migrations([line.encode()])
    except FormatError as error:
        reason = str(error).removeprefix("line 1: ")
        raise FormatError(f"no record of this migration can be had: {reason}") from error
    return line


def write_record(path: str, line: str) -> None:
    """Append a record to a file, or put it on stdout if that fails: it took a while to get.

    Raises:
        PysamplerError: it could not be written where it belongs.
    """
    try:
        append_line(path, line)
    except OSError as error:
        why = f"cannot write {path}: {error.strerror}"
        with contextlib.suppress(OSError, PysamplerError):
            put(line)
            why += f"; so it is on {STDOUT}"
        raise PysamplerError(why) from error
