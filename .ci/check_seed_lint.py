"""User-data in random clothes: whatever PyYAML reads as a command on a data disk is refused.

The program reads YAML with a parser of its own, cloud-init with PyYAML. Where the two differ, a document
could wipe a data disk unseen; so this compares them.
"""

import concurrent.futures
import os
import random

import yaml

from seeds import crypted

DISK = "/dev/vdb"
DOCUMENTS = [
    "disk_setup: {/dev/vdb: {overwrite: true}}", "disk_setup:\n  /dev/vdb:\n    overwrite: true", '"disk_setup": {"/dev/vdb": {}}',
    "runcmd:\n- mkfs.ext4 /dev/vdb", "runcmd:\n - [mkfs.ext4, /dev/vdb]", "a: &a /dev/vdb\nruncmd: [[mkfs.ext4, *a]]",
    "runcmd:\n- |\n  set -e\n  mkfs.ext4 /dev/vdb", "bootcmd: [mkfs.ext4 /dev/vdb]",
]
# What YAML 1.1 and 1.2, and their parsers, read in different ways.
BITS = ["\t", " ", "\n", "# x\n", "---\n", "...\n", "%YAML 1.1\n", "%TAG ! x\n", "!!str ", "!!map ", "&x ", "*x", "? ", ": ", "- ", "'", '"',
        "\\", "|\n", ">-\n", "\u0085", "\u2028", "\u2029", "\ufeff", "é", "\r", "\r\n", "[", "]", "{", "}", ",", "!x ", "=", "~", "<<: ",
        "0o7", "@", "`", "!!binary ", "!!set ", "- - ", "k: v\n", "k: v\nk: w\n", "k:\tv\n", "? k\n: v\n"]


def dressed(rng):
    """A document with one to three changes, or None if PyYAML sees no danger in it."""
    text = rng.choice(DOCUMENTS)
    for _ in range(rng.randint(1, 3)):
        at = rng.choice([0, len(text), rng.randint(0, len(text))])
        text = text[:at] + rng.choice(BITS) + text[at:]
    text = f"#cloud-config\n{text}\n"
    try:
        read = yaml.safe_load(text)
    except Exception:  # pylint: disable=broad-except
        return None
    return text if isinstance(read, dict) and dangerous(read) else None


def dangerous(read):
    setup = read.get("disk_setup")
    if isinstance(setup, dict) and DISK in setup:
        return True
    commands = [word for key in ("runcmd", "bootcmd") if isinstance(read.get(key), list) for word in read[key]]
    lines = [line for word in commands if isinstance(word, str) for line in word.split("\n")]
    return ["mkfs.ext4", DISK] in commands or f"mkfs.ext4 {DISK}" in lines


def lint(seeds, tally):
    """500 such documents."""
    rng_seed = random.SystemRandom().randrange(1 << 32)
    rng = random.Random(rng_seed)
    folder = seeds.scratch.tmpfs("memory", "64m")
    hashed = seeds.file(crypted("lint", "$6$0123456789abcdef"))
    documents = []
    while len(documents) < 500:
        documents += [text for text in [dressed(rng)] if text]

    def missed(numbered):
        number, text = numbered
        path = os.path.join(folder, str(number))
        with open(path, "wb") as file:
            file.write(text.encode())
        outcome = seeds.program.run("seed", "--seed", f"{path}.iso", "--password-hash-file", hashed, "--user-data", path)
        if outcome.code == 0:
            os.unlink(f"{path}.iso")
        # For what it says, and not for another fault of the request.
        return outcome.code != 13 or "of the user-data" not in outcome.error.get("message", "")

    with concurrent.futures.ThreadPoolExecutor(2) as two:
        bad = [text for text, miss in zip(documents, two.map(missed, enumerate(documents))) if miss]
    tally.expect(not bad, f"user-data that wipes a data disk is refused, rng_seed {rng_seed}: {len(bad)} of 500 are not", bad[:4])


PARTS = {"lint": lint}
