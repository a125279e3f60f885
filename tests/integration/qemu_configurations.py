"""QEMU's ways to have guest RAM, each as a row: how it is started, and what is done to it then.

FOLDER stands for a folder of the test's own, on tmpfs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pysampler.units import MIB


class Configuration(NamedTuple):
    """One row.

    Attributes:
        arguments: of the command line.
        then: QMP commands and their arguments.
        n_unnamed: blocks whose idstr the command line does not tell.
        config: text of the file FOLDER/config.
        called: argv[0], where it is another than the program.
        accelerator: ``tcg`` or ``kvm``.
        since: the first major version of QEMU that knows it.
        until: the last one (of qxl: which has it in the package that .ci/qemu10 unpacks).
        huge_pages: 2 MiB pages that it takes.
        stack: limit of threads' stacks, bytes; None for the machine's.
    """

    arguments: list[str]
    then: tuple[tuple[str, dict[str, Any]], ...] = ()
    n_unnamed: int = 0
    config: str = ""
    called: str | None = None
    accelerator: str = "tcg"
    since: int = 7
    until: int = 99
    huge_pages: int = 0
    stack: int | None = None


def row(arguments: str, **rest: Any) -> Configuration:
    return Configuration(arguments.split(), **rest)


def numa(backend: str, sizes: list[int], machine: str = "q35") -> list[str]:
    arguments = ["-machine", machine, "-smp", str(len(sizes)), "-m", f"{sum(sizes)}M"]
    for node, size in enumerate(sizes):
        arguments += ["-object", f"{backend},id=ram{node},size={size}M"]
        arguments += ["-numa", f"node,cpus={node},memdev=ram{node}"]
    return arguments


def plug(
    name: str, kind: str, mib: int, **properties: Any
) -> tuple[tuple[str, dict[str, Any]], ...]:
    backend = {"qom_type": f"memory-backend-{kind}", "id": name, "size": mib * MIB, **properties}
    device = {"driver": "pc-dimm", "memdev": name, "id": f"dimm-{name}"}
    return (("object-add", backend), ("device_add", device))


ROOM = "-m 192M,slots=4,maxmem=2G"
IOTHREADS = " ".join(f"-object iothread,id=io{n}" for n in range(6))
CONFIG_SIZE = '[memory]\n  size = "200M"\n'
CONFIG_BACKEND = """
[object "cfg"]
  qom-type = "memory-backend-memfd"
  size = "96M"
[machine]
  type = "q35"
  memory-backend = "cfg"
[memory]
  size = "96M"
"""
JSON_OBJECT = (
    '{"qom-type":"memory-backend-ram","id":"json","size":100663296,"share":true,"prealloc":false}'
)

CONFIGURATIONS = {
    # How a size is said, or not.
    "a plain size": row("-m 192"),
    "a fraction of a size": row("-m 0.25G"),
    "a size in KiB": row("-m 100001K"),
    "a hexadecimal size": row("-m 0xC0", until=7),
    "a size with slots": row(ROOM),
    "no size at all": row(""),
    "a machine property": row("-M q35,memory.size=201326592"),
    "a config file": row("-readconfig FOLDER/config", config=CONFIG_SIZE),
    "a backend of a config file": row("-readconfig FOLDER/config", config=CONFIG_BACKEND),
    "the last of several sizes": row("-m 64M -m 192M"),
    # Machines.
    "pc": row("-M pc -m 192"),
    "isapc": row("-M isapc -m 48"),
    "microvm": row("-M microvm -m 100"),
    "no machine": row("-M none -m 64"),
    "no merging, no dump": row("-M q35,mem-merge=off,dump-guest-core=off -m 100"),
    "kvm": row("-m 192 -device VGA", accelerator="kvm"),
    "several vCPUs and TCG threads": row("-smp 6 -m 192 -accel tcg,thread=multi -device VGA"),
    # Video RAM.
    "VGA": row("-m 192 -device VGA"),
    "-vga std beside as much RAM": row("-m 16 -vga std"),
    "VGA of 32 MiB": row("-m 192 -device VGA,vgamem_mb=32"),
    "VGA set by its id": row("-m 192 -device VGA,id=v -set device.v.vgamem_mb=64"),
    "all VGA set": row("-m 192 -device VGA -global VGA.vgamem_mb=32"),
    "VGA and bochs": row("-m 192 -device VGA -device bochs-display"),
    "three of them": row("-m 64 -device ati-vga -device secondary-vga -device bochs-display"),
    "vmware and I/O threads": row(f"-m 192 -vga vmware {IOTHREADS}"),
    "cirrus is too small": row("-m 192 -device cirrus-vga"),
    "qxl": row("-m 192 -vga qxl", until=7),
    "qxl beside VGA": row("-m 192 -device VGA -device qxl,ram_size_mb=32", until=7),
    "video RAM that is shared": row("-M q35,aux-ram-share=on -m 128 -device VGA", since=10),
    "a large stack for each thread": row(f"-m 192 -device VGA {IOTHREADS}", stack=24 * MIB),
    # Backends.
    "a shared memfd": row(
        "-M q35,memory-backend=ram0 -m 192M -object memory-backend-memfd,id=ram0,size=192M,share=on"
    ),
    "a private memfd": row(
        "-M q35,memory-backend=m -m 96M -object memory-backend-memfd,id=m,size=96M,share=off"
    ),
    "memfds of one size": Configuration(numa("memory-backend-memfd,share=on", [96, 96, 96])),
    "memfds of several sizes": Configuration(numa("memory-backend-memfd", [64, 160], "pc")),
    "ram": row("-M pc,memory-backend=m -m 1.25G -object memory-backend-ram,id=m,size=1280M"),
    "shared ram": row(
        "-M q35,memory-backend=m -m 128M -object memory-backend-ram,id=m,size=128M,share=on"
    ),
    "shared ram, two": Configuration(numa("memory-backend-ram,share=on", [64, 64])),
    "ram of one size": Configuration(numa("memory-backend-ram", [96, 96])),
    "ram of several sizes": Configuration(numa("memory-backend-ram", [160, 64])),
    "ram in JSON": Configuration(
        ["-M", "q35,memory-backend=json", "-m", "96M", "-object", JSON_OBJECT]
    ),
    "files": Configuration(numa("memory-backend-file,share=on,mem-path=FOLDER", [64, 96])),
    "files of one size": Configuration(
        numa("memory-backend-file,share=on,mem-path=FOLDER", [64, 64])
    ),
    "private files": Configuration(numa("memory-backend-file,mem-path=FOLDER", [64, 64])),
    "two private of one file": Configuration(
        numa("memory-backend-file,mem-path=FOLDER/template", [64, 64])
    ),
    "a file named as QEMU names its own": row(
        "-M q35,memory-backend=f -m 64M -object memory-backend-file,id=f,size=64M,share=on,"
        "mem-path=FOLDER/qemu_back_mem.x.abc"
    ),
    "a file by name": row(
        "-M q35,memory-backend=f -m 64M"
        " -object memory-backend-file,id=f,size=64M,mem-path=FOLDER/a,,b,share=on"
    ),
    "mem-path, a folder": row("-m 96 -mem-path FOLDER"),
    "mem-path, a file": row("-m 96 -mem-path FOLDER/ram -mem-prealloc"),
    "posix shared memory": row(
        "-M q35,memory-backend=s -m 64M -object memory-backend-shm,id=s,size=64M", since=10
    ),
    "huge pages": Configuration(
        numa("memory-backend-memfd,share=on,hugetlb=on,hugetlbsize=2M", [32, 32]), huge_pages=32
    ),
    "private huge pages": Configuration(
        numa("memory-backend-memfd,share=off,hugetlb=on,hugetlbsize=2M", [32]), huge_pages=16
    ),
    # Memory beside main memory.
    "a DIMM of ram": row(
        f"{ROOM} -object memory-backend-ram,id=d,size=128M -device pc-dimm,memdev=d {IOTHREADS}"
    ),
    "a shared DIMM": row(
        f"{ROOM} -object memory-backend-ram,id=d,size=128M,share=on -device pc-dimm,memdev=d"
    ),
    "a DIMM as large as main memory": row(
        f"{ROOM} -object memory-backend-ram,id=d,size=192M -device pc-dimm,memdev=d"
    ),
    "nvdimm": row(
        f"-M q35,nvdimm=on {ROOM} -object memory-backend-file,id=n,mem-path=FOLDER/n,size=64M,"
        "share=on -device nvdimm,memdev=n"
    ),
    "virtio-mem": row(
        f"{ROOM} -object memory-backend-ram,id=v,size=128M"
        " -device virtio-mem-pci,memdev=v,requested-size=64M"
    ),
    "ivshmem": row(
        "-m 96 -object memory-backend-file,id=i,mem-path=FOLDER/i,size=32M,share=on"
        " -device ivshmem-plain,memdev=i"
    ),
    "ivshmem, two of one file": row(
        "-m 96M -object memory-backend-file,id=i,mem-path=FOLDER/i,size=32M,share=on"
        " -device ivshmem-plain,memdev=i"
        " -object memory-backend-file,id=j,mem-path=FOLDER/i,size=32M,share=on"
        " -device ivshmem-plain,memdev=j"
    ),
    # Plugged in later.
    "a DIMM plugged in": row(ROOM, then=plug("d", "ram", 256), n_unnamed=1),
    "DIMMs and video": row(
        f"{ROOM} -device VGA {IOTHREADS}",
        then=plug("d", "ram", 128) + plug("e", "ram", 256),
        n_unnamed=2,
    ),
    "a shared DIMM plugged in": row(ROOM, then=plug("d", "ram", 128, share=True), n_unnamed=1),
    "a file plugged in": row(
        ROOM, then=plug("d", "file", 128, mem_path="FOLDER", share=True), n_unnamed=1
    ),
    "a private file plugged in": row(
        ROOM, then=plug("d", "file", 128, mem_path="FOLDER/d.img", share=False), n_unnamed=1
    ),
    "a memfd plugged in": row(ROOM, then=plug("d", "memfd", 128), n_unnamed=1),
    "huge pages plugged in": row(
        ROOM, then=plug("d", "memfd", 32, hugetlb=True), n_unnamed=1, huge_pages=16
    ),
    # Names that say something else.
    "another argv[0]": row("-m 192 -device VGA", called="guest=vm1"),
    "a thread's stack below": row(
        f"-smp 4 -m 128,slots=2,maxmem=1G {IOTHREADS}", then=plug("d", "ram", 64), n_unnamed=1
    ),
}
