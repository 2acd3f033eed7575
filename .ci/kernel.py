"""Devices of the kernel that fail or forget on purpose, and what it keeps in memory."""

import contextlib
import os
import shutil

import host


@contextlib.contextmanager
def compressed_memory(size, limit):
    """A zram device that takes no more than `limit`, and its folder in sysfs; twice None where there is none."""
    control = "/sys/class/zram-control"
    if not os.path.exists(control):
        yield None, None
        return
    with open(os.path.join(control, "hot_add"), encoding="ascii") as hot:
        number = hot.read().strip()
    folder = f"/sys/block/zram{number}"
    try:
        for name, value in (("disksize", size), ("mem_limit", limit)):
            poke(os.path.join(folder, name), value)
        yield f"/dev/zram{number}", folder
    finally:
        poke(os.path.join(folder, "reset"), 1)
        poke(os.path.join(control, "hot_remove"), number)


def poke(path, value):
    with open(path, "w", encoding="ascii") as handle:
        handle.write(str(value))


def forget_cache():
    os.sync()
    poke("/proc/sys/vm/drop_caches", 1)


def device_mapper():
    """Whether this kernel has the targets that lose or record writes; the simulated disk does so in any case."""
    targets = ""
    with open("/proc/misc", encoding="ascii") as devices:
        if "device-mapper" in devices.read() and shutil.which("dmsetup"):
            targets = host.speak("dmsetup", "targets")[1]
    for name in ("flakey", "log-writes"):
        there = any(line.split()[:1] == [name] for line in targets.splitlines())
        print(f"  dm-{name}: {'there, but not used here' if there else 'NOT AVAILABLE on this kernel, not checked'}")
