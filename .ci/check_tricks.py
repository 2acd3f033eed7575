"""Tricks with names and timing, each of which once led to a wrong disk: every one is seen."""

import os
import subprocess
import sys
import threading
import time

import host
from check_refusals import Bench
from host import MIB, tool

# A thread that leaves its process's table of open files and opens a file of its own.
LONER = """
import ctypes, os, sys, threading
def alone():
    if ctypes.CDLL(None, use_errno=True).unshare(0x400) != 0:
        sys.exit("unshare failed")
    os.open(sys.argv[1], os.O_RDWR)
    print("open", flush=True)
    sys.stdin.read()
threading.Thread(target=alone).start()
"""


def tricks(program, scratch, tally):
    bench = Bench(program, scratch, tally)
    bench.each(names_that_are_no_text, overlays, bind_mount_elsewhere, loner, other_numbers)
    swapped_while_examined(bench)
    together(bench)


def names_that_are_no_text(b, _scratch):
    for name in (b"\xff.raw", b"blank at the end ", b"line\nend"):
        name = os.fsdecode(name)
        disk = b.disk(name)
        device = b.scratch.loop(disk)
        shown = repr(name)
        b.refused(11, f"the file {shown} under a data disk", b.image, disk, "--data-disk", device, "--in-place")
        b.refused(11, f"a loop device over the data disk {shown}", b.image, device, "--data-disk", disk)
        b.scratch.unloop(device)


def overlays(b, _scratch):
    upper, lower, work, merged = (b.scratch.folder_of(name) for name in ("upper", "lower", "work", "merged"))
    disk = b.disk("upper/disk.raw")
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    tool("mount", "-t", "overlay", "overlay", "-o", options, merged)
    b.scratch.mounts.append(merged)
    through = os.path.join(merged, "disk.raw")
    for flags in ((), ("--in-place",)):
        how = "in place" if flags else "replaced"
        b.refused(11, f"a data disk through an overlay, {how}", b.image, through, "--data-disk", disk, *flags,
                  watch=[disk])
        b.refused(11, f"the file below an overlay's data disk, {how}", b.image, disk, "--data-disk", through, *flags)
    with open(disk, "r+b"):
        says = [f"pid {os.getpid()}"]
        b.refused(10, "a file that somebody has open below an overlay", b.image, through, "--in-place", says=says)
    b.scratch.unmount(merged)


def bind_mount_elsewhere(b, _scratch):
    disk, bound = b.disk("bound-elsewhere.raw"), host.make(b.scratch / "elsewhere.raw", 0)
    tool("mount", "--bind", disk, bound)
    b.scratch.mounts.append(bound)
    b.refused(14, "the source of a bind mount", b.image, disk)
    b.scratch.unmount(bound)
    outcome = b.program.rebuild(b.image, disk)
    b.tally.expect(outcome.code == 0, "the same without the bind mount", outcome)


def loner(b, _scratch):
    disk = b.disk("loner.raw")
    words = [sys.executable, "-c", LONER, disk]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        if process.stdout.readline() != b"open\n":
            raise host.Broken("a thread could not leave its process's open files")
        says = [f"pid {process.pid}"]
        b.refused(10, "a file that a thread alone has open", b.image, disk, "--in-place", says=says)
    finally:
        process.stdin.close()
        process.wait(30)


def other_numbers(b, _scratch):
    """In a process namespace of its own, with the /proc of the host, a run does not take itself for another."""
    disk = b.disk("namespace.raw")
    before = ("unshare", "--pid", "--fork")
    outcome = b.program.rebuild(b.image, disk, before=before)
    good = outcome.code == 0 and outcome.report["plan"]["sight"]["full"] is False
    b.tally.expect(good, "in a process namespace of its own: done, and the limit is said", outcome)


def swapped_while_examined(b):
    """The target's loop device gets the data disk's file while the run still looks at the data disks."""
    for attempt in range(3):
        disk, data = b.disk(f"swap-a-{attempt}.raw"), b.disk(f"swap-b-{attempt}.raw")
        large = b.scratch.loop(host.make(b.scratch / "large.raw", 3 << 29))
        device = b.scratch.loop(disk)
        before = host.checksum(data)
        flags = ("--data-disk", data, "--data-disk", large, "--data-disk-digest", "full")
        done = []
        run = threading.Thread(target=lambda: done.append(b.program.rebuild(b.image, device, *flags)))
        run.start()
        time.sleep(0.2 + 0.1 * attempt)
        tool("losetup", "--detach", device)
        code, text = host.speak("losetup", device, data)
        run.join()
        outcome = done[0]
        b.tally.expect(host.checksum(data) == before, f"swapped while examined, {attempt}: the data disk", outcome)
        if code == 0:
            good = outcome.code == 11 and outcome.state == "untouched"
            b.tally.expect(good, f"swapped while examined, {attempt}: exit", outcome)
        b.scratch.unloop(device)
        b.scratch.unloop(large)


def together(b):
    """Of several runs that begin at once one wins, and the others are told at once and disturb nothing."""
    for number in range(6):
        disk = b.disk(f"together-{number}.raw", 4 * MIB)
        target = b.scratch.loop(disk) if number % 2 else disk
        outcomes = []
        lock = threading.Lock()

        def run(target=target, outcomes=outcomes):
            outcome = b.program.rebuild(b.image, target, "--in-place")
            with lock:
                outcomes.append(outcome)

        runs = [threading.Thread(target=run) for _ in range(6)]
        for one in runs:
            one.start()
        for one in runs:
            one.join()
        codes = sorted(outcome.code for outcome in outcomes)
        b.tally.expect(set(codes) <= {0, 10} and 0 in codes, f"six runs at once, {number}: {codes}", outcomes[-1])
        b.tally.expect(host.holds(target, host.read(b.image)) == "", f"six runs at once, {number}: the image is there")
        if number % 2:
            b.scratch.unloop(target)
