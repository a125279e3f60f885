# SPDX-License-Identifier: MIT
"""A guest's migration as QMP sees it: settings, the two ends, and which command is allowed when."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from pysampler.errors import StateError
from pysampler.guest.run_state import RunState
from pysampler.migration.address import parse_uri
from pysampler.migration.dirty_limit import DirtyLimits
from pysampler.migration.incoming import Incoming
from pysampler.migration.outgoing import Outgoing
from pysampler.migration.settings import Settings
from pysampler.migration.status import MigrationStatus
from pysampler.qemu.migration import DIRTY_LIMIT_PERIOD_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pysampler.guest.guest import Guest
    from pysampler.migration.info import MigrationInfo
    from pysampler.migration.settings import Setting

_CLOSE_S = 2.0  # how long a thread that was told to end may take


class Migration:
    """Migrates a guest of this process, in either direction. Any thread may call.

    It implements `pysampler.qmp.interface.ServedMigration`, whose docstrings say what each method
    does and raises.

    Args:
        guest: the guest.
        link_speed: bytes/s that the link to a destination carries; 0: whatever the socket takes.
        failed: is called with a reason when an incoming migration has failed and the process is to
            end with exit code 1.
    """

    def __init__(
        self, guest: Guest, link_speed: int = 0, failed: Callable[[str], object] = lambda _: None
    ) -> None:
        self._guest = guest
        self._link_speed = link_speed
        self._process_failed = failed
        self._settings = Settings(has_ring=guest.log.file.ring_size > 0)
        self._limits = DirtyLimits(guest, self._limit_period_ms)
        self._emit: Callable[..., None] = _nobody
        self._lock = threading.RLock()  # guards what follows, and the order of commands
        self._outgoing: Outgoing | None = None
        self._incoming: Incoming | None = None
        self._waits = guest.state is RunState.INMIGRATE  # it was started to wait for one
        self._exit_on_error = True

    def send_events_to(self, emit: Callable[..., None]) -> None:
        """Send events there from now on."""
        self._emit = emit

    def migrate(self, uri: str, resume: bool = False) -> None:
        """Begin to migrate to an address, and return at once."""
        address = parse_uri(uri)
        with self._lock:
            if resume:
                raise StateError("Cannot resume if there is no paused migration")
            if self._is_running() or not (self._outgoing is None or self._outgoing.has_ended()):
                raise StateError("There's a migration process in progress")
            if self._guest.state is RunState.INMIGRATE:
                raise StateError("Guest is waiting for an incoming migration")
            if self._guest.state is RunState.POSTMIGRATE:
                raise StateError("Can't migrate the vm that was paused due to previous migration")
            self._settings.check_supported()
            self._outgoing = Outgoing(
                self._guest, self._settings, address, self._limits, self._link_speed, self._send
            )
            self._outgoing.start()

    def cancel(self) -> None:
        """Cancel the migration, if one runs; return at once."""
        with self._lock:
            if self._outgoing is not None:
                self._outgoing.cancel()

    def incoming(self, uri: str, exit_on_error: bool = True) -> None:
        """Listen for a migration."""
        with self._lock:
            if self._incoming is not None and self._incoming.is_listening:
                raise StateError("The incoming migration has already been started")
            if not self._waits:
                raise StateError("'-incoming' was not specified on the command line")
            address = parse_uri(uri)
            if self._incoming is not None:
                raise StateError(f"Illegal migration incoming state: {self._incoming.status.value}")
            self._settings.check_supported()
            self._exit_on_error = exit_on_error
            self._incoming = Incoming(
                self._guest, self._settings, self._send, self._incoming_failed
            )
            self._incoming.start(address)

    @property
    def incoming_uri(self) -> str | None:
        """Where it listens for a migration, or has listened, with the real port; else None."""
        return None if self._incoming is None else self._incoming.uri

    def proceed(self, state: str) -> None:
        """Go on from pre-switchover."""
        with self._lock:
            status = MigrationStatus.NONE if self._outgoing is None else self._outgoing.status
            if self._outgoing is None or status.value != state:
                raise StateError(f"Migration not in expected state: {status.value}")
            self._outgoing.proceed()

    def start_postcopy(self) -> None:
        """Refuse: an emulated guest has no post-copy yet."""
        if not (self._settings.enabled("postcopy-ram") or self._settings.enabled("dirty-bitmaps")):
            raise StateError(
                "Enable postcopy with migrate_set_capability before the start of migration"
            )
        if self._outgoing is None:
            raise StateError("Postcopy must be started after migration has been started")

    def pause(self) -> None:
        """Refuse: there is no post-copy that could be paused."""
        raise StateError(
            "migrate-pause is currently only supported during postcopy-active or"
            " postcopy-recover state"
        )

    def recover(self, uri: str) -> None:  # noqa: ARG002 - QEMU looks at the state first
        """Refuse: there is no post-copy that has paused."""
        raise StateError("Migrate recover can only be run when postcopy is paused.")

    def set_parameters(self, given: Mapping[str, Setting]) -> None:
        """Set some parameters: all of them, or none."""
        self._settings.set_parameters(given)

    def set_capabilities(self, given: Sequence[tuple[str, bool]]) -> None:
        """Switch some capabilities on or off: all of them, or none."""
        with self._lock:
            if self._is_running():
                raise StateError("There's a migration process in progress")
            self._settings.set_capabilities(given)

    def parameters(self) -> dict[str, Setting]:
        """Return all parameters."""
        return self._settings.parameters()

    def capabilities(self) -> list[dict[str, str | bool]]:
        """Return all capabilities."""
        return self._settings.capabilities()

    def info(self) -> MigrationInfo | None:
        """Return what is known of the migration; None when there has been none."""
        outgoing, incoming = self._outgoing, self._incoming
        if outgoing is not None:
            return outgoing.info()
        return None if incoming is None else incoming.info()

    def set_dirty_limit(
        self, rate: int, vcpu: int | None, method: str = "merged", pause_s: float = 15
    ) -> None:
        """Limit the dirty rate of vCPUs; 0 ends the limit."""
        self._check_limit_is_free("set")
        if rate:
            self._limits.set(rate, vcpu, method=method, pause_s=pause_s)
        else:
            self._limits.cancel(vcpu)

    def cancel_dirty_limit(self, vcpu: int | None) -> None:
        """End the limit of one vCPU, or of all (None)."""
        self._check_limit_is_free("cancel")
        self._limits.cancel(vcpu)

    def dirty_limits(self) -> Sequence[tuple[int, int, int]]:
        """Return the limits in force."""
        return self._limits.query()

    def close(self) -> bool:
        """End all of it, as the process ends.

        Returns:
            Whether nothing uses the guest's memory any more.
        """
        ended = True
        with self._lock:
            ends = [end for end in (self._outgoing, self._incoming) if end is not None]
        for end in ends:
            ended = end.close(_CLOSE_S) and ended
        self._limits.close()
        return ended

    def _is_running(self) -> bool:
        return self._outgoing is not None and self._outgoing.is_running

    def _check_limit_is_free(self, verb: str) -> None:
        if self._settings.enabled("dirty-limit") and self._is_running() and self._limits.in_force:
            raise StateError(f"can't {verb} dirty page rate limit while migration is running")

    def _limit_period_ms(self) -> int:
        if self._settings.enabled("dirty-limit") and self._is_running():
            return self._settings.number("x-vcpu-dirty-limit-period")
        return DIRTY_LIMIT_PERIOD_MS

    def _incoming_failed(self, reason: str) -> None:
        if self._exit_on_error:
            self._process_failed(reason)

    def _send(self, name: str, data: dict[str, Any] | None = None) -> None:
        self._emit(name, data)


def _nobody(_: str, __: dict[str, Any] | None = None) -> None:
    """Take an event that nobody wants."""
