"""Manifests and receipts with other programs' eyes: b3sum, sha256sum, sgdisk, qemu-img; on files and loop devices."""

import copy
import json
import os

import disks
import host
from host import MIB, tool

SIZE = 40 * MIB
DISK = 64 * MIB


def b3sum(path):
    return tool("b3sum", "--no-names", path).strip()


def beside(image):
    return image + ".manifest.json"


def load(path):
    with open(path, encoding="utf-8") as handle:
        return json.load(handle)


def store(path, value):
    with open(path, "w", encoding="utf-8") as handle:
        json.dump(value, handle)


def images(scratch):
    """One disk with a GPT, as raw, zlib, zstd, and compressed with large clusters."""
    raw = disks.gpt_image(scratch / "system.raw", SIZE, 7)
    made = {"raw": raw}
    for name, options in (("zlib", ""), ("zstd", "compression_type=zstd"), ("zlib-2m", "cluster_size=2M")):
        made[name] = scratch / f"{name}.qcow2"
        words = ("-o", options) if options else ()
        tool("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", *words, raw, made[name])
    return made


def what_it_says(program, tally, made):
    """Root and whole digest are those of the disk, whatever the format; the file's are those of the file."""
    roots = set()
    for name, image in made.items():
        outcome = program.run("manifest", image, "--output", beside(image), "--whole-digest")
        if not tally.expect(outcome.code == 0, f"manifest of {name}", outcome):
            continue
        value = load(beside(image))
        roots.add(value["root"])
        said, found = value["image"], (os.path.getsize(image), b3sum(image), host.checksum(image))
        tally.expect((said["bytes"], said["blake3"], said["sha256"]) == found, f"{name}: the file", (said, found))
        tally.expect(value["whole_digest"] == b3sum(made["raw"]), f"{name}: whole digest")
        outcome = program.run("manifest", image, "--output", beside(image))
        tally.expect(outcome.code == 2, f"{name}: an old manifest stays", outcome)
    tally.expect(len(roots) == 1, "the root is that of the disk", roots)


def refused(program, tally, name, image, targets, code=21, state="untouched"):
    """None of the targets changes."""
    for target, flags in targets:
        before = host.checksum(target)
        outcome = program.rebuild(image, target, *flags)
        tally.expect(outcome.code == code and outcome.state == state, f"{name} onto {target}", outcome)
        if state == "untouched":
            tally.expect(host.checksum(target) == before, f"{name}: {target} is what it was")


def wrong_images(program, scratch, tally, made):
    """A changed byte, a replayed manifest, a changed chunk, with and without a root that fits."""
    back = disks_of_noise(scratch)
    device = scratch.loop(scratch / "device.raw")
    targets = [(device, ()), (back["in place"], ("--in-place",)), (back["replaced"], ())]
    for name, image in made.items():
        value, size = load(beside(image)), os.path.getsize(image)
        for offset in (size // 2, size - 30_000):
            [byte] = host.read(image, offset, 1)
            host.write(image, bytes([byte ^ 0x40]), offset)
            for target, flags in targets[:2]:
                before = host.checksum(target)
                outcome = program.rebuild(image, target, *flags)
                why = (offset, outcome)
                tally.expect(outcome.code in (20, 21) and outcome.state == "untouched", f"{name}: a byte", why)
                tally.expect(host.checksum(target) == before, f"{name}: a byte: {target} is what it was")
            before = host.checksum(back["replaced"])
            outcome = program.rebuild(image, back["replaced"])
            if outcome.code == 0:
                # The byte is none of the disk's.
                tally.expect(outcome.report["root"] == value["root"], f"{name}: other bytes were taken", outcome)
                host.write(back["replaced"], host.noise(5, DISK))
            else:
                same = host.checksum(back["replaced"]) == before
                tally.expect(outcome.code in (20, 21, 32) and same, f"{name}: a byte, replaced whole", outcome)
            host.write(image, bytes([byte]), offset)
        forged = copy.deepcopy(value)
        forged["chunks"][-1]["digests"][0] = "ab" * 32
        store(beside(image), forged)
        refused(program, tally, f"{name}: a chunk in the manifest changed", image, targets)
        store(beside(image), value)
    other = disks.gpt_image(scratch / "other.raw", SIZE, 99)
    os.link(beside(made["raw"]), beside(other))
    refused(program, tally, "a manifest of another image", other, targets)


def disks_of_noise(scratch):
    found = {}
    for name in ("device", "in place", "replaced"):
        found[name] = scratch / f"{name}.raw"
        host.write(found[name], host.noise(5, DISK))
    return found


def without_image(program, scratch, tally, made):
    """A grown disk on a device and in a file is compared with the manifest alone."""
    path = host.make(scratch / "grown.raw", DISK)
    device = scratch.loop(path)
    filed = scratch / "grown-file.raw"
    manifest = beside(made["zstd"])
    for target, flags in ((device, ()), (filed, ("--size", DISK))):
        outcome = program.rebuild(made["zlib"], target, *flags)
        tally.expect(outcome.code == 0, f"zlib onto {target}", outcome)
        tally.expect(not (why := disks.problems(target)), f"{target}: sgdisk --verify", why)
        outcome = program.run("verify", manifest, target)
        good = outcome.code == 0 and outcome.doc["gpt"]["action"] == "moved"
        tally.expect(good, f"the manifest alone verifies {target}", outcome)
        for offset in (458, 600, 1024, 5 * MIB + 3, SIZE - 512, SIZE + 5, DISK - 512 * 33, DISK - 500):
            [byte] = host.read(target, offset, 1)
            host.write(target, bytes([byte ^ 1]), offset)
            outcome = program.run("verify", manifest, target)
            error = outcome.error
            start = error.get("offset") or 0
            inside = start <= offset < start + (error.get("length") or 0)
            tally.expect(outcome.code == 31 and inside, f"byte {offset} of {target} is found", outcome)
            host.write(target, bytes([byte]), offset)
        tally.expect(program.run("verify", manifest, target).code == 0, f"{target} verifies again")
    return device, filed


def not_decoded(program, scratch, tally, made):
    """A cluster that cannot be decoded stops no delta over a disk that holds what the manifest says."""
    image = scratch / "damaged.qcow2"
    tool("cp", made["zlib-2m"], image)
    target = host.make(scratch / "delta.raw", DISK)
    tally.expect(program.rebuild(made["zlib-2m"], target, "--in-place").code == 0, "a disk for delta")
    # The last of the compressed clusters, which lie in order of the disk behind the tables.
    size = os.path.getsize(image)
    host.write(image, host.noise(3, 2000), size - 200_000)
    outcome = program.run("inspect", image, "--check")
    tally.expect(outcome.code == 20, "the damaged image does not decode", outcome)
    value = load(beside(made["zlib-2m"]))
    value["image"] = {"bytes": size, "blake3": b3sum(image), "sha256": host.checksum(image)}
    store(beside(image), value)
    before = host.checksum(target)
    outcome = program.rebuild(image, target, "--in-place", "--mode", "delta")
    good = outcome.code == 0 and outcome.report["bytes_by_manifest"] > 0 and outcome.report["bytes_written"] == 0
    tally.expect(good, "delta needs no decoding", outcome)
    tally.expect(host.checksum(target) == before, "delta left the disk as it was")


def receipts(program, tally, device, filed):
    """What changed since a rebuild is listed; a table that grew is expected, as growpart makes it."""
    for target in (device, filed):
        verify = ("verify", "--receipt", target, "--state-dir", program.state)
        outcome = program.run(*verify)
        good = outcome.code == 0 and outcome.doc["places"] == 0
        tally.expect(good, f"nothing drifted on {target}", outcome)
        last = tool("sgdisk", "--info=1", target)
        start = [line.split()[2] for line in last.splitlines() if line.startswith("First sector")][0]
        kept = host.read(target, 0, MIB), host.read(target, DISK - MIB, MIB)
        # What growpart does: the partition is made anew, with its number, type and GUID, up to the disk's end.
        tool("sgdisk", "--delete=1", f"--new=1:{start}:0", "--typecode=1:8304",
             "--partition-guid=1:8D8D0A55-0000-4000-8000-000000000001", "--change-name=1:root", target)
        host.flush(target)
        outcome = program.run(*verify)
        causes = {drift["cause"] for drift in (outcome.doc or {}).get("drift", [])}
        tally.expect(outcome.code == 0 and causes == {"partition_table"}, f"growpart on {target}", outcome)
        tool("sgdisk", "--delete=15", target)
        host.flush(target)
        tally.expect(program.run(*verify).code == 31, f"a partition of {target} is gone")
        host.write(target, kept[0])
        host.write(target, kept[1], DISK - MIB)
        tally.expect(program.run(*verify).code == 0, f"{target} is as it was again")
        noise = program.state + "/noise"
        host.write(noise, host.noise(1, 512))
        tool("dd", f"if={noise}", f"of={target}", "bs=512", f"seek={20 * MIB // 512}", "conv=notrunc,fsync")
        host.flush(target)
        outcome = program.run(*verify)
        found = outcome.code == 31 and outcome.error["offset"] == 20 * MIB and "partition 1" in outcome.error["message"]
        tally.expect(found, f"a sector of {target} changed", outcome)
        status = program.run("status", target, "--state-dir", program.state)
        tally.expect(bool((status.doc or {}).get("receipt")), f"status of {target} tells of the receipt", status)


def manifests(program, scratch, tally):
    """All of the above."""
    made = images(scratch)
    what_it_says(program, tally, made)
    device, filed = without_image(program, scratch, tally, made)
    receipts(program, tally, device, filed)
    not_decoded(program, scratch, tally, made)
    wrong_images(program, scratch, tally, made)
