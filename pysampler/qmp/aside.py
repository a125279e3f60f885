# SPDX-License-Identifier: MIT
"""A thread beside the event loop, for functions that may block."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Aside:
    """Runs functions one after the other, so stop and cont of several clients take their turns.

    Its thread is a daemon: whatever a function does, the process can end.
    """

    def __init__(self) -> None:
        self._todo: queue.SimpleQueue[tuple[Callable[[], bytes], asyncio.Future[bytes]] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._work, name="qmp-aside", daemon=True)
        self._thread.start()

    def run(self, function: Callable[[], bytes]) -> asyncio.Future[bytes]:
        """Run a function that raises nothing; return what it will return.

        Called in an event loop. A function that is cancelled before its turn does not run.
        """
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._todo.put((function, future))
        return future

    def close(self) -> None:
        """End after the function at hand; do not wait for it."""
        self._todo.put(None)

    def _work(self) -> None:
        while job := self._todo.get():
            function, future = job
            if not future.cancelled():
                result = function()
                with contextlib.suppress(RuntimeError):  # the loop is closed, nobody asks any more
                    future.get_loop().call_soon_threadsafe(_finish, future, result)


def _finish(future: asyncio.Future[bytes], result: bytes) -> None:
    if not future.cancelled():
        future.set_result(result)
