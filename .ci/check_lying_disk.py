"""A new image is compared as its disk holds it, not as the page cache remembers it."""

import os
import subprocess

import host
from host import MIB, inject, tool

TEMPORARY = ".image.qcow2.reimage-unfinished"
DISK = 24 * MIB
# The disk below changes a byte of the last chunk, which is read last; every read takes a while.
PLACE = DISK - MIB // 2
EACH_READ = "delay_enter=50000"


def capture_onto(program, image, disk, at_read_back):
    """A capture in which something happens when the new file is complete: its exit code, and the page cache's file."""
    temporary = os.path.join(os.path.dirname(image), TEMPORARY)
    words = [*inject("pread64,preadv2", EACH_READ),
             *program.words("capture", disk, image, "--compress", "none", "--threads", "1", "--manifest", "none")]
    words[-1] = "json"
    cached = None
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        for line in process.stderr:
            if cached is None and b'"phase":"read_back"' in line:
                at_read_back()
                cached = host.read(temporary)
    return process.returncode, cached


def lying_disk(program, scratch, tally):
    """The file system's pages hold what was written, and the disk below it something else: 31, and no image."""
    disk = host.make(scratch / "captured.raw", 0)
    content = host.noise(81, DISK)
    host.write(disk, content)
    below = host.make(scratch / "below.img", 96 * MIB)
    tool("mkfs.ext4", "-q", "-F", below)
    folder = scratch.mount(scratch.loop(below), "lying")
    image = os.path.join(folder, "image.qcow2")

    def spoil():
        host.read(os.path.join(folder, TEMPORARY))
        at = host.read(below).find(content[PLACE:PLACE + 512])
        if at < 0:
            raise host.Broken("the image does not lie on its disk")
        host.write(below, bytes(8), at)

    code, cached = capture_onto(program, image, disk, spoil)
    tally.expect(content[PLACE:PLACE + 512] in (cached or b""), "the page cache remembers what was written")
    left = set(os.listdir(folder)) - {"lost+found"}
    tally.expect(code == 31 and not left, "a disk that holds something else: 31, and no image", (code, left))
    code, _ = capture_onto(program, image, disk, lambda: None)
    tally.expect(code == 0 and os.path.exists(image), "a disk that keeps what it was given", code)
