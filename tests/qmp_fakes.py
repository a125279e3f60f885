"""A guest without memory, and a measurement without time."""

import select
import socket
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

from pysampler import Measurement, Mode, Status
from pysampler.errors import MissingFeatureError
from pysampler.guest.run_state import RunState, check_cont
from pysampler.migration.info import MigrationInfo
from pysampler.migration.settings import Settings
from pysampler.qmp.address import listen
from pysampler.qmp.server import QmpServer

TIMEOUT_S = 20  # of what happens at once; only a failing test waits for it


@dataclass(frozen=True)
class FakeBlock:
    idstr: str
    length: int


@dataclass(frozen=True)
class FakeVcpu:
    index: int
    thread_id: int
    workload: str = "uniform:wps=500k"
    writes: int = 12_345
    writes_per_second: float = 499_999.6


@dataclass
class FakeGuest:
    blocks: tuple = (FakeBlock("pc.ram", 1 << 28), FakeBlock("vga", 16 << 20))
    state: RunState = RunState.RUNNING
    truth: bool = True
    shutdown_requested: threading.Event = field(default_factory=threading.Event)

    @property
    def running(self):
        return self.state is RunState.RUNNING

    def stop(self):
        was_running = self.running
        if was_running:
            self.state = RunState.PAUSED
        return was_running

    def cont(self):
        was_running = self.running
        check_cont(self.state)
        self.state = RunState.RUNNING
        return not was_running

    def vcpus(self):
        return (FakeVcpu(0, 4001), FakeVcpu(1, 4002, "idle", 0, 0.0))

    def count_dirty_since(self, monotonic_ns):
        if not self.truth:
            raise MissingFeatureError("the guest keeps no truth; start it with --truth")
        return {"pc.ram": monotonic_ns % 1000, "vga": 1}

    def request_shutdown(self):
        self.shutdown_requested.set()


VECTOR = Measurement(
    page_size=4096,
    periods=(125,),
    n_dirty_pages=(3,),
    n_sampled_pages=128,
    n_zero_pages=60,
    n_total_pages=65536,
    sample_pages=512,
    calc_time_ms=1000,
    status=Status.MEASURING,
    details={"confidence": 0.95},
)


class FakeMeasure:
    """Yields one period at once and the last one when the test says `finish`."""

    def __init__(self, modes=(Mode.PAGE_SAMPLING, Mode.DIRTY_BITMAP)):
        self.modes = frozenset(modes)
        self.asked = []
        self.finish = threading.Event()
        self.first_period = threading.Event()
        self.error = None
        self.closed = threading.Event()

    def __call__(self, *, clock, **asked):
        self.asked.append(asked)
        part = replace(
            VECTOR,
            mode=asked["mode"],
            calc_time_ms=asked["calc_time_ms"],
            calc_time_unit=asked["calc_time_unit"],
            vcpu_dirty_rate=((0, 5), (1, 7)) if asked["mode"] is Mode.DIRTY_RING else (),
        )
        try:
            yield part
            self.first_period.set()
            while not self.finish.is_set():
                clock.wait_until(clock.now_ns() + 1_000_000)
            if self.error is not None:
                raise self.error
            yield replace(
                part,
                periods=(125, asked["calc_time_ms"] + 1),
                n_dirty_pages=(3, 28),
                status=Status.MEASURED,
            )
        finally:
            self.closed.set()


@dataclass
class FakeMigration:
    """Keeps the settings; notes the rest, and raises the error that the test gives it."""

    settings: Settings = field(default_factory=lambda: Settings(has_ring=True))
    asked: list = field(default_factory=list)
    error: Exception | None = None
    known: MigrationInfo | None = None
    limits: tuple = ()
    may_go_on: threading.Event = field(default_factory=threading.Event)
    emit: object = None

    def __post_init__(self):
        self.may_go_on.set()

    def _note(self, name, *arguments):
        self.asked.append((name, *arguments))
        if self.error is not None:
            raise self.error

    def send_events_to(self, emit):
        self.emit = emit

    def migrate(self, uri, resume=False):
        self._note("migrate", uri, resume)
        self.emit("MIGRATION", {"status": "setup"})

    def cancel(self):
        self._note("cancel")

    def incoming(self, uri, exit_on_error=True):
        self._note("incoming", uri, exit_on_error)

    def proceed(self, state):
        self._note("proceed", state)

    def start_postcopy(self):
        self._note("start_postcopy")

    def pause(self):
        self._note("pause")

    def recover(self, uri):
        self._note("recover", uri)

    def set_parameters(self, given):
        self.settings.set_parameters(given)

    def set_capabilities(self, given):
        self.settings.set_capabilities(given)

    def parameters(self):
        return self.settings.parameters()

    def capabilities(self):
        return self.settings.capabilities()

    def info(self):
        return self.known

    def set_dirty_limit(self, rate, vcpu, method="merged", pause_s=15):
        self._note("set", rate, vcpu, method, pause_s)

    def cancel_dirty_limit(self, vcpu):
        self._note("cancel limit", vcpu)
        assert self.may_go_on.wait(TIMEOUT_S)

    def dirty_limits(self):
        return self.limits


class Client:
    """A plain socket; reads what QEMU ends with CR LF."""

    def __init__(self, address):
        kind, _, where = address.partition(":")
        if kind == "unix":
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(where)
        else:
            host, _, port = where.rpartition(":")
            self.socket = socket.create_connection((host.strip("[]"), int(port)))
        self.socket.settimeout(TIMEOUT_S)
        self.file = self.socket.makefile("rb")

    def send(self, data):
        self.socket.sendall(data)

    def line(self):
        line = self.file.readline()
        assert line == b"" or line.endswith(b"\r\n")
        return line[:-2].decode("ascii")

    def ask(self, request):
        self.send(request.encode() if isinstance(request, str) else request)
        return self.line()

    def negotiate(self, request='{"execute": "qmp_capabilities"}'):
        assert self.line().startswith('{"QMP": ')
        assert self.ask(request) == '{"return": {}}'
        return self

    def is_dropped(self, timeout_s=0.0):
        """Return whether the server has closed the connection; nothing is read."""
        polled = select.poll()
        polled.register(self.socket, 0)  # POLLHUP is always reported
        return bool(polled.poll(timeout_s * 1000))

    def close(self):
        self.file.close()
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def is_admitted(address, timeout_s=0.0):
    """Return whether a server takes one more client, before or after so long."""
    deadline = time.monotonic() + timeout_s
    while True:
        with Client(address) as late, suppress(ConnectionResetError):
            if late.line():
                return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)


@contextmanager
def serving(address, guest=None, measure=None, migration=None):
    server = QmpServer(
        guest or FakeGuest(),
        measure or FakeMeasure(),
        migration or FakeMigration(),
        listen(address),
    )
    server.start()
    try:
        yield server
    finally:
        server.close()
