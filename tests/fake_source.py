"""A source of migrations that only talks: QMP whose every reply a test chooses."""

import json
import os
import socket
import threading
from contextlib import contextmanager, suppress

GREETING = {"QMP": {"version": {}, "capabilities": []}}
RAM = {
    "total": 1 << 30, "remaining": 1 << 29, "transferred": 1 << 29, "page-size": 4096,
    "normal": 131_072, "duplicate": 0, "dirty-sync-count": 1, "dirty-pages-rate": 0, "mbps": 838.8,
    "pages-per-second": 25_600,
}  # fmt: skip
ACTIVE = {"status": "active", "total-time": 5000, "setup-time": 5, "ram": RAM}
COMPLETED = {
    "status": "completed", "total-time": 10_005, "setup-time": 5, "downtime": 120,
    "ram": {**RAM, "remaining": 0, "transferred": 1 << 30, "normal": 262_144,
            "dirty-sync-count": 3, "downtime-bytes": 1000},
}  # fmt: skip


class FakeSource:
    """What it answers, and what it was asked.

    Attributes:
        replies: command -> what it returns, a list of them one after another (the last one again
            and again), or a function of the arguments. An Exception is an error's description,
            None is silence, bytes are sent as they are.
        asked: [command, arguments] of each request.
    """

    def __init__(self, address):
        self.address = address
        self.asked = []
        self.greeting = GREETING
        self.replies = {
            "qmp_capabilities": {},
            "query-migrate-parameters": {"max-bandwidth": 1 << 27, "downtime-limit": 300,
                                         "multifd-channels": 2, "x-share": 0.5, "x-way": "a"},
            "query-migrate-capabilities": [],
            "query-status": {"running": True, "status": "running"},
            "migrate-set-parameters": {},
            "migrate-set-capabilities": {},
            "migrate": {},
            "migrate_cancel": {},
            "query-migrate": [ACTIVE, COMPLETED],
        }  # fmt: skip

    def commands(self):
        return [command for command, _ in self.asked]

    def arguments(self, wanted):
        return [arguments for command, arguments in self.asked if command == wanted]

    def answer(self, request):
        name = request["execute"]
        self.asked.append([name, request.get("arguments")])
        reply = self.replies.get(name, Exception(f"The command {name} has not been found"))
        if callable(reply):
            reply = reply(request.get("arguments"))
        elif isinstance(reply, list) and name == "query-migrate":
            reply = reply.pop(0) if len(reply) > 1 else reply[0]
        if reply is None or isinstance(reply, bytes):
            return reply
        end = {"id": request["id"]}
        if isinstance(reply, Exception):
            reply = {"error": {"class": "GenericError", "desc": str(reply)}, **end}
        else:
            reply = {"return": reply, **end}
        return json.dumps(reply).encode() + b"\r\n"

    def serve(self, client):
        with client, suppress(OSError):
            if self.greeting is not None:
                client.sendall(json.dumps(self.greeting).encode() + b"\r\n")
            for line in client.makefile("rb"):
                answer = self.answer(json.loads(line))
                if answer is not None:
                    client.sendall(answer)


@contextmanager
def fake_source(directory, family=socket.AF_UNIX):
    """Serve one client."""
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        if family == socket.AF_UNIX:
            address = f"unix:{directory}/qmp"
            listening.bind(os.fspath(directory / "qmp"))
        else:
            listening.bind(("127.0.0.1", 0))
            address = f"tcp:127.0.0.1:{listening.getsockname()[1]}"
        listening.listen()
        source = FakeSource(address)
        ended = threading.Event()

        def serve():
            with suppress(OSError):
                client, _ = listening.accept()
                source.serve(client)
            ended.set()

        threading.Thread(target=serve, daemon=True).start()
        yield source
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        assert ended.wait(20)
