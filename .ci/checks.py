#!/usr/bin/env python3
"""Checks the program with the host's own tools. Usage: checks.py BINARY [SECTION…]

Needs root. Makes everything in one temporary folder under TMPDIR (or /var/tmp) and leaves nothing.
"""

import os
import re
import subprocess
import sys
import time

import check_aliases
import check_capture
import check_claim
import check_cut_off
import check_data_disks
import check_faults
import check_files
import check_guard
import check_hostile
import check_kills
import check_layout
import check_limits
import check_lying_disk
import check_manifest
import check_once
import check_overlaps
import check_qcow2_targets
import check_real_faults
import check_refusals
import check_streams
import check_tricks
import check_trust
import check_undo
from host import Broken, Program, Scratch, Tally

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def seed(program, _scratch, tally):
    """The seed, as its readers read it."""
    check = os.path.join(ROOT, ".ci", "seed-check")
    code = subprocess.run([check, program.binary], stdin=subprocess.DEVNULL).returncode
    tally.expect(code == 0, "seed-check", f"exit {code}")


def silence(_program, _scratch, tally):
    """The library prints nothing and logs nothing."""
    for folder, _, names in os.walk(os.path.join(ROOT, "src")):
        if os.path.join("src", "bin") in folder:
            continue
        for name in (name for name in names if name.endswith(".rs")):
            path = os.path.join(folder, name)
            with open(path, encoding="utf-8") as source:
                lines = enumerate(source, 1)
                loud = [f"{number}: {line.strip()}" for number, line in lines
                        if re.search(r"println|\be?print!|\bdbg!|log::", line)]
            tally.expect(not loud, f"{os.path.relpath(path, ROOT)} is silent", loud)


SECTIONS = {
    "silence": silence,
    "sizes": check_files.sizes,
    "devices as images": check_files.device_images,
    "gpt": check_layout.gpt,
    "refusals": check_refusals.refusals,
    "aliases": check_aliases.aliases,
    "in use": check_guard.in_use,
    "claim": check_claim.claim,
    "swapped": check_guard.swapped,
    "data disks": check_data_disks.data_disks,
    "tricks": check_tricks.tricks,
    "streams": check_streams.streams,
    "decoded once": check_once.decoded_once,
    "trust": check_trust.trust,
    "race": check_claim.race,
    "faults": check_faults.io_errors,
    "signals": check_faults.signals,
    "real faults": check_real_faults.real_faults,
    "cut off": check_cut_off.cut_off,
    "hostile": check_hostile.hostile,
    "overlaps": check_overlaps.overlaps,
    "kills": check_kills.kills,
    "capture": check_capture.captures_section,
    "lying disk": check_lying_disk.lying_disk,
    "qcow2 targets": check_qcow2_targets.qcow2_targets,
    "replaced": check_files.replaced,
    "unfinished": check_layout.unfinished,
    "limits": check_limits.limits,
    "manifests": check_manifest.manifests,
    "undo": check_undo.undo,
    "seed": seed,
}


def main():
    names = sys.argv[2:] or list(SECTIONS)
    if len(sys.argv) < 2 or not set(names) <= set(SECTIONS):
        sys.exit(f"{__doc__}\nSections: {', '.join(SECTIONS)}")
    if os.geteuid() != 0:
        sys.exit("checks.py needs root: it makes loop devices and mounts")
    tally = Tally()
    for name in names:
        started, before = time.monotonic(), tally.passed
        # Each section has a folder of its own, removed when it ends.
        scratch = Scratch(name)
        try:
            SECTIONS[name](Program(sys.argv[1], scratch), scratch, tally)
        except Broken as broken:
            tally.expect(False, name, f"a check could not be made: {broken}")
        finally:
            scratch.close()
        print(f"{name}: {tally.passed - before} passed, {time.monotonic() - started:.1f} s", flush=True)
    tally.end()


if __name__ == "__main__":
    main()
