import os
import shutil

import pytest
import real_qemu


@pytest.fixture
def start_qemu(tmp_path):
    """Return a function that starts a QEMU with the given arguments."""
    if shutil.which(real_qemu.PROGRAM) is None:
        reason = f"no {real_qemu.PROGRAM} here; apt-get install qemu-system-x86"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return lambda *arguments: real_qemu.Qemu(tmp_path, *arguments)
