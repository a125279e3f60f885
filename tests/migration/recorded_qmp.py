"""QMP of a real QEMU's migrations, section by section: tests/golden/migration/transcript.jsonl."""

import json
from dataclasses import dataclass
from pathlib import Path

RECORDED = Path(__file__).parents[1] / "golden/migration/transcript.jsonl"


@dataclass(frozen=True)
class Line:
    """One line: `side` is src or dst; `sent` to QEMU, or come from it; `message` its JSON.

    Where a QEMU ended there is no message but a `remark`: "connection closed" or "exit code N".
    """

    t_ms: int
    side: str
    sent: bool
    message: dict
    remark: str = ""


def sections():
    """Return the lines of each section, by its name."""
    found = {}
    for text in RECORDED.read_text().splitlines():
        one = json.loads(text)
        if "section" in one:
            lines = found[one["section"]] = []
        elif one["line"].startswith("{"):
            message = json.loads(one["line"])
            lines.append(Line(one["t"], one["side"], one["dir"] == "C", message))
        elif not one["line"]:
            lines.append(Line(one["t"], one["side"], False, {}, one["note"]))
    return found


def is_reply(line):
    return not line.sent and ("return" in line.message or "error" in line.message)


def exchanges(lines):
    """Yield each command with its reply; a side answers in turn."""
    waiting = {"src": [], "dst": []}
    for line in lines:
        if line.sent:
            waiting[line.side].append(line)
        elif is_reply(line):
            yield waiting[line.side].pop(0), line
