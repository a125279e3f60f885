"""`pysampler blocks` at a process of many blocks."""

import mmap
import os

from pysampler.cli import main
from pysampler.core import address_of
from pysampler.memory.reader import opened
from pysampler.memory.reader.process_view import ProcessView


def test_all_blocks_share_one_look_at_their_process(monkeypatch, capsys):
    """A look for each takes minutes where there are hundreds."""
    looks = []

    class Counted(ProcessView):
        def __init__(self, pid):
            looks.append(pid)
            super().__init__(pid)

    monkeypatch.setattr(opened, "ProcessView", Counted)
    memory = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE)
    arguments = [f"--block=b{i}={address_of(memory) + (i << 17):#x}:128K" for i in range(8)]
    assert main(["blocks", "--pid", str(os.getpid()), *arguments]) == 0
    assert capsys.readouterr().out.count("process_vm_readv") == 8
    assert looks == [os.getpid()]
