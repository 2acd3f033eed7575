"""Images that mean harm: whatever they say, no file is opened that nobody named, and the answer comes soon."""

import os
import random
import re
import socket
import struct
import subprocess
import time
import zlib

import host
from host import MIB, tool

MOST_SECONDS = 1.0
MOST_MEMORY = 128 * MIB
ADDRESS_SPACE = 1 << 30
STORED = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "testdata", "images")
# What hangs is a failure like any other, and is not left behind.
BOUNDED = ("timeout", "--signal=KILL", "20")
LIMITED = (*BOUNDED, "prlimit", f"--as={ADDRESS_SPACE}")


def hostile(program, scratch, tally):
    lab = Lab(program, scratch, tally)
    lab.names()
    lab.old_contents()
    lab.bounds()
    lab.mutated(100)


def header(**fields):
    """A qcow2 file of version 3 with nothing in it: header, refcount table, L1 table, one cluster each."""
    cluster = 1 << fields.get("cluster_bits", 16)
    values = {"backing_offset": 0, "backing_size": 0, "cluster_bits": 16, "size": MIB, "crypt": 0, "l1_size": 1,
              "l1_offset": 2 * cluster, "refcounts": cluster, "refcount_clusters": 1, "snapshots": 0,
              "snapshot_offset": 0, "incompatible": 0, "compatible": 0, "autoclear": 0, "order": 4,
              "length": 112, **fields}
    order = ("backing_offset", "backing_size", "cluster_bits", "size", "crypt", "l1_size", "l1_offset", "refcounts",
             "refcount_clusters", "snapshots", "snapshot_offset", "incompatible", "compatible", "autoclear", "order",
             "length")
    head = b"QFI\xfb" + struct.pack(">IQIIQIIQQIIQQQQII", 3, *(values[name] for name in order)) + bytes(8)
    return head, cluster


def extension(kind, content):
    return struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)


def image(path, extensions=b"", clusters=3, **fields):
    """Writes such a file of that many clusters; all but its header is a hole."""
    head, cluster = header(**fields)
    with open(path, "wb") as file:
        file.write(head + extensions)
        file.truncate(clusters * cluster)
    return path


def naming(path, name, kind=b"raw", **fields):
    """An image that names a file below it."""
    extensions = extension(0xE2792ACA, kind) + bytes(8)
    at = 112 + len(extensions)
    return image(path, extensions + name, backing_offset=at, backing_size=len(name), **fields)


class Lab:
    def __init__(self, program, scratch, tally):
        self.program, self.scratch, self.tally = program, scratch, tally
        self.allowed = scratch.folder_of("allowed")
        self.outside = scratch.folder_of("outside")
        self.home = scratch.folder_of("home")
        self.secret = os.path.join(self.outside, "secret.raw")
        host.write(self.secret, b"this must not be read\n" * 5000)
        self.base = os.path.join(self.allowed, "base.raw")
        host.write(self.base, host.noise(1, 64 << 10))
        self.target = os.path.join(self.home, "system.raw")
        host.write(self.target, host.noise(2, 2 * MIB))
        self.old = host.checksum(self.target)
        self.slowest, self.largest = (0, ""), (0, "")

    def inside(self, name):
        return os.path.join(self.allowed, name)

    # What is opened

    def opened(self, code, name, path, *flags, target=None):
        """A rebuild ends with this code, and opens only what it must."""
        target = target or self.target
        log = self.scratch / "strace.log"
        calls = "trace=open,openat,openat2,creat,execve,execveat,open_by_handle_at,io_uring_setup,connect"
        before = ("strace", "-f", "--seccomp-bpf", "-qq", "-y", "-s", "4096", "-o", log, "-e", calls)
        outcome = self.program.rebuild(path, target, *flags, before=before)
        self.tally.expect(outcome.code == code, f"{name}: exit {code}", outcome)
        with open(log, encoding="utf-8", errors="replace") as text:
            lines = [line for line in text if "(" in line]
        strange = [line.strip() for line in lines if not self.is_rightful(line, path, target)]
        self.tally.expect(not strange, f"{name}: opens nothing else", "\n    ".join(strange[:5]))
        self.tally.expect(len(lines) > 20, f"{name}: strace sees what is opened", len(lines))
        if code != 0:
            untouched = host.checksum(self.target) == self.old and outcome.state == "untouched"
            self.tally.expect(untouched, f"{name}: untouched", outcome)

    def is_rightful(self, line, image, target):
        """Whether a line of strace's is about a file that the caller named, or that every run looks at."""
        call = re.search(r"(\w+)\((?:AT_FDCWD<[^>]*>, |\d+<([^>]*)>, )?\"([^\"]*)\"", line)
        if call is None or call[1] in ("connect", "io_uring_setup", "open_by_handle_at", "execveat"):
            return False
        path = os.path.normpath(os.path.join(call[2] or "/", call[3]))
        if call[1] == "execve":
            return path == self.program.binary
        if path.startswith(("/proc/", "/sys/")):
            # Where it looks for who uses a disk; what an image names there is of no process.
            return "self/environ" not in path and "self/fd/0" not in path
        if re.fullmatch(r"/dev/loop\d+", path):
            # Which file is below it is asked of every loop device that there is.
            return True
        libraries = ("/lib/", "/usr/lib/", "/etc/ld.so.", "/lib64/")
        named = [image, self.base, "/proc", "/sys", "/dev/null", "/etc/reimage", "/etc/reimage/policy.toml"]
        # The folders on the way to the state are synced, and what lies beside the disk may be an overlay on it.
        ways = [os.path.dirname(self.program.state)]
        while ways[-1] != "/":
            ways.append(os.path.dirname(ways[-1]))
        mine = (self.program.state, os.path.dirname(target))
        inside = any(path == folder or path.startswith(folder + "/") for folder in mine)
        return inside or path in named or path in ways or path == self.allowed or path.startswith(libraries)

    def names(self):
        """Names in images lead nowhere but into the folders that are allowed."""
        os.symlink(self.secret, self.inside("link.raw"))
        os.symlink(self.outside, self.inside("linked"))
        allow = ("--allow-backing", self.allowed)
        good = naming(self.inside("good.qcow2"), b"base.raw")
        self.opened(0, "a name that is allowed", good, *allow)
        host.write(self.target, host.noise(2, 2 * MIB))
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        harmful = {
            "passwd": b"/etc/passwd", "up": b"../outside/secret.raw", "a link": b"link.raw",
            "a linked folder": b"linked/secret.raw", "absolute": self.secret.encode(),
            "environment": b"/proc/self/environ", "stdin": b"/proc/self/fd/0",
            "json": b'json:{"driver":"file","filename":"/etc/passwd"}', "file:": b"file:/etc/passwd",
            "nbd": b"nbd:127.0.0.1:%d" % port, "host_device": b"host_device:/dev/reimage-hostile",
            "NUL": b"base.raw\0/etc/passwd",
            "missing": b"missing.raw", "a folder": b".", "the shadow of a name": b"../allowed-not/base.raw",
        }
        for name, backing in harmful.items():
            path = naming(self.inside("top.qcow2"), backing)
            self.opened(20, f"backing {name}", path, *allow)
        path = naming(self.inside("top.qcow2"), b"/etc/passwd")
        self.opened(20, "backing passwd, no folder allowed", path)
        naming(self.base, b"/etc/passwd")
        path = naming(self.inside("top.qcow2"), b"base.raw", b"qcow2")
        self.opened(20, "backing passwd, below the image", path, *allow)
        host.write(host.make(self.base, 0), host.noise(1, 64 << 10))
        data = extension(0x44415441, b"/etc/passwd")
        self.opened(20, "a data file", image(self.inside("data.qcow2"), data, incompatible=4), *allow)
        self.opened(20, "a data file without its bit", image(self.inside("data.qcow2"), data), *allow)
        self.opened(20, "a raw data file", image(self.inside("data.qcow2"), data, incompatible=4, autoclear=2), *allow)
        luks = extension(0x0537BE77, struct.pack(">QQ", 65536, 4096))
        self.opened(20, "encryption", image(self.inside("luks.qcow2"), luks, crypt=2), *allow)
        self.foreign(allow)
        listener.setblocking(False)
        try:
            listener.accept()
            came = True
        except BlockingIOError:
            came = False
        self.tally.expect(not came, "nobody connects to what an image names")

    def foreign(self, allow):
        """Other formats that name files, under names that say otherwise."""
        descriptor = (b"# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n"
                      b"createType=\"monolithicFlat\"\nRW 2048 FLAT \"/etc/passwd\" 0\n")
        for ending in ("raw", "qcow2", "vmdk"):
            path = self.inside(f"descriptor.{ending}")
            host.write(host.make(path, 0), descriptor + bytes(-len(descriptor) % 512))
            # A descriptor is text; as raw content it is a disk that holds text, and nothing in it is followed.
            code = 20 if ending == "qcow2" else None
            self.one_of((20,) if code else (0, 20), f"a vmdk descriptor named .{ending}", path, *allow)
        path = naming(self.inside("disguised.raw"), b"/etc/passwd")
        self.opened(20, "qcow2 under a raw name", path, *allow)
        self.opened(20, "qcow2 declared raw", path, *allow, "--image-format", "raw")

    def one_of(self, codes, name, path, *flags):
        outcome = self.program.run("plan", path, self.target, "--keep-image-credentials", *flags)
        self.tally.expect(outcome.code in codes, f"{name}: exit {codes}", outcome)
        self.opened(outcome.code, name, path, *flags)
        host.write(self.target, host.noise(2, 2 * MIB))

    def old_contents(self):
        """The disk that is replaced belonged to somebody too: nothing in it is followed."""
        good = image(self.inside("plain.qcow2"))
        target = os.path.join(self.home, "guest.raw")
        for name in (b"/etc/passwd", self.secret.encode()):
            naming(target, name)
            os.truncate(target, 2 * MIB)
            for flags in (("--in-place", "--target-format", "raw"), ("--target-format", "raw")):
                self.opened(0, f"a guest's header that names {name.decode()}", good, *flags, target=target)
                naming(target, name)
                os.truncate(target, 2 * MIB)

    # How soon

    def answer(self, codes, name, command, *words):
        """An answer within a second and the bound on memory; the same within 1 GiB of address space."""
        for attempt in (1, 2, 3):
            started = time.monotonic()
            outcome = self.program.measured(command, *words, before=BOUNDED)
            seconds = time.monotonic() - started
            if seconds < MOST_SECONDS:
                break
        memory, _ = outcome.usage
        self.tally.expect(outcome.code in codes, f"{name}: exit {codes}", outcome)
        self.tally.expect(seconds < MOST_SECONDS, f"{name}: an answer in a second", f"{seconds:.2f} s")
        self.tally.expect(memory < MOST_MEMORY, f"{name}: memory", f"{memory} bytes")
        limited = self.program.run(command, *words, before=LIMITED)
        same = limited.code == outcome.code
        self.tally.expect(same, f"{name}: the same in 1 GiB of address space", limited)
        self.tally.expect(host.checksum(self.target) == self.old, f"{name}: untouched")
        self.slowest = max(self.slowest, (seconds, name))
        self.largest = max(self.largest, (memory, name))

    def rebuild_answer(self, codes, name, path, *flags):
        self.answer(codes, name, "rebuild", path, self.target, "--keep-image-credentials", "--yes", *flags)

    def bounds(self):
        for part in (self.sizes, self.bombs, self.long_chain, self.no_files):
            part()
        print(f"  slowest: {self.slowest[0]:.2f} s ({self.slowest[1]}), "
              f"most memory: {self.largest[0] / MIB:.1f} MiB ({self.largest[1]})")

    def sizes(self):
        path = self.inside("size.qcow2")
        huge = {"size": 1 << 61, "cluster_bits": 21, "l1_size": 1 << 22}
        for name, fields in {
            "2^32-1 L1 entries": {"l1_size": (1 << 32) - 1},
            "8 EiB": {"size": 1 << 63}, "16 EiB": {"size": (1 << 64) - 512},
            "8 EiB less a sector": {**huge, "size": (1 << 63) - 512}, "no L1 entries": {"l1_size": 0},
            "65537 snapshots": {"snapshots": 65537, "snapshot_offset": 65536},
            "2^32-1 clusters of refcounts": {"refcount_clusters": (1 << 32) - 1},
        }.items():
            self.rebuild_answer((20,), name, image(path, **fields))
        # The L1 table of 2 EiB has 32 MiB, all of them a hole.
        big = image(path, clusters=2 + 16, **huge)
        self.answer((0,), "2 EiB: inspect", "inspect", big)
        self.rebuild_answer((12,), "2 EiB onto a small disk", big)
        sea = self.scratch.tmpfs("sea", "64M")
        self.answer((0,), "2 EiB: plan", "plan", big, os.path.join(sea, "new.raw"), "--keep-image-credentials")

    def bombs(self):
        """A little that unpacks to a lot: one cluster, whatever its stream says, and once."""
        packer = zlib.compressobj(9, zlib.DEFLATED, -12)
        zeroes = bytes(MIB)
        deflate = b"".join(packer.compress(zeroes) for _ in range(1024)) + packer.flush()
        raw = host.make(self.scratch / "zeroes", 1 << 30)
        zstd = subprocess.run(["zstd", "-q", "-c", raw], capture_output=True, check=True).stdout
        small = zlib.compressobj(9, zlib.DEFLATED, -12)
        one = small.compress(bytes(2 * MIB)) + small.flush()
        for name, stream, fields, count in (
            ("a zlib bomb", deflate, {}, 1),
            ("a zstd bomb", zstd, {"incompatible": 8}, 1),
            ("one stream for 64 GiB", one, {}, 32768),
        ):
            path = self.inside("bomb.qcow2")
            cluster = 2 * MIB
            size = 2 * MIB * count
            image(path, clusters=4, cluster_bits=21, size=size, **fields)
            sectors = (len(stream) - 1) // 512
            entry = struct.pack(">Q", 1 << 62 | sectors << 49 | 4 * cluster)
            with open(path, "r+b") as file:
                if "incompatible" in fields:
                    file.seek(104)
                    file.write(b"\1")
                file.seek(2 * cluster)
                file.write(struct.pack(">Q", 3 * cluster))
                file.seek(3 * cluster)
                file.write(entry * count)
                file.seek(4 * cluster)
                file.write(stream + bytes(-len(stream) % 512))
            if count == 1:
                self.rebuild_answer((20,), f"{name}, deep", path, "--preflight", "deep")
                self.rebuild_answer((20, 32), name, path)
            else:
                self.rebuild_answer((12, 20), name, path)
                self.answer((20,), f"{name}: inspect", "inspect", path)

    def long_chain(self):
        links = self.scratch.folder_of("allowed/links")
        for number in range(300):
            below = b"%d.qcow2" % (number + 1) if number < 299 else b"../base.raw"
            kind = b"qcow2" if number < 299 else b"raw"
            naming(os.path.join(links, f"{number}.qcow2"), below, kind, cluster_bits=9, size=4096)
        allow = ("--allow-backing", self.allowed)
        self.rebuild_answer((20,), "a chain of 300", os.path.join(links, "0.qcow2"), *allow)
        self.answer((0,), "a chain of 16", "inspect", os.path.join(links, "285.qcow2"), *allow)
        naming(os.path.join(links, "299.qcow2"), b"0.qcow2", b"qcow2", cluster_bits=9, size=4096)
        self.rebuild_answer((20,), "a chain that bites its tail", os.path.join(links, "290.qcow2"), *allow)

    def no_files(self):
        """What is no file must not be waited for, as an image and below one."""
        fifo, listener = self.inside("fifo"), socket.socket(socket.AF_UNIX)
        os.mkfifo(fifo)
        listener.bind(self.inside("socket"))
        os.symlink("nowhere", self.inside("dangling"))
        others = (self.inside("socket"), self.inside("dangling"), "/")
        for path in (fifo, "/dev/zero", "/dev/random", "/dev/null", *others):
            for kind in ("auto", "raw", "qcow2"):
                self.rebuild_answer((20,), f"{os.path.basename(path) or path} as {kind}", path, "--image-format", kind)
        devices = ((b"/dev/zero", "/dev"), (b"/dev/random", "/dev"))
        for name, folder in ((b"fifo", self.allowed), (b"socket", self.allowed), *devices):
            for kind in (b"raw", b"qcow2"):
                path = naming(self.inside("top.qcow2"), name, kind)
                self.rebuild_answer((20,), f"{name.decode()} below as {kind.decode()}", path, "--allow-backing", folder)

    # Damage at random

    def mutated(self, count):
        """Stored images with damage at random, through the real program; qemu-img says what they hold.

        qemu-img is laxer (what lies behind the file's end reads as zeroes), so that only what was done is compared. It
        is stricter about the place of a backing name that has no bytes.
        """
        names = sorted(name for name in os.listdir(STORED) if name.endswith(".qcow2.zst") and "chain" not in name)
        rng_seed = int(os.environ.get("REIMAGE_FUZZ_SEED", "1"))
        done = {}
        sea = self.scratch.tmpfs("mutated", "256M")
        path, target, out = (os.path.join(sea, name) for name in ("image.qcow2", "disk.raw", "qemu.raw"))
        for number in range(rng_seed, rng_seed + count):
            numbers = random.Random(number)
            stored = os.path.join(STORED, numbers.choice(names))
            data = bytearray(subprocess.run(["zstd", "-dcq", stored], capture_output=True, check=True).stdout)
            damage(data, numbers)
            host.write(host.make(path, 0), data)
            if not os.path.exists(target) or done.get("last"):
                host.write(host.make(target, 0), b"\xaa" * (6 * MIB))
            label = f"{os.path.basename(stored)} with rng_seed {number}"
            words = (path, target, "--keep-image-credentials", "--yes")
            outcome = self.program.measured("rebuild", *words, before=LIMITED)
            memory, seconds = outcome.usage
            good = outcome.code in (0, 12, 20, 32) and memory < MOST_MEMORY and seconds < MOST_SECONDS
            self.tally.expect(good, f"{label}: an answer", f"{memory} bytes, {seconds} s, {outcome}")
            done[outcome.code] = done.get(outcome.code, 0) + 1
            done["last"] = outcome.code == 0
            found = host.read(target)
            if outcome.code != 0:
                self.tally.expect(found == b"\xaa" * (6 * MIB), f"{label}: the old file stays", outcome)
                continue
            code, said = host.speak("timeout", "20", "qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, out)
            nameless = "Invalid backing file offset" in said and data[16:20] == bytes(4)
            right = nameless or code == 0 and holds(found, host.read(out))
            self.tally.expect(right, f"{label}: what qemu-img reads", said)
        done.pop("last", None)
        print(f"  damaged images by exit code: {done}")
        self.tally.expect(done.get(0, 0) > count // 8 and done.get(20, 0) > count // 8, "damage of all kinds", done)


def holds(found, expected):
    """qemu-img drops the last part of a sector; behind the disk there are zeroes."""
    rest = found[len(expected):]
    return found[: len(expected)] == expected and rest[511:].count(0) == len(rest[511:])


def damage(data, numbers):
    """One to three changes to header, tables or anything, or an end that comes early."""
    def number_at(at):
        return int.from_bytes(data[at:at + 8], "big")
    for _ in range(numbers.randint(1, 3)):
        place = numbers.randrange(6)
        if place == 0:
            at = numbers.randrange(112)
        elif place == 1:
            at = number_at(40) + numbers.randrange(16)
        elif place in (2, 3):
            at = (number_at(min(number_at(40), len(data) - 8)) & 0x00FFFFFFFFFFFE00) + numbers.randrange(256)
        elif place == 4:
            at = numbers.randrange(len(data))
        else:
            del data[numbers.randrange(1, len(data)):]
            break
        if at < len(data):
            data[at] = numbers.choice((data[at] ^ 1 << numbers.randrange(8), 0, 255, numbers.randrange(256)))
