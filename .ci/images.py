#!/usr/bin/env python3
"""Makes one image of every kind that the engine must read, with the real qemu-img and qemu-io.

Usage: images.py FOLDER. Prints the name, the file and the flags of each image, one a line.

Many images hold the same disk (`same` is true): its digest must come out the same for all of them.
"""

import os
import struct
import sys
from dataclasses import dataclass, field

import host
from host import MIB, tool

SIZE = 24 * MIB


@dataclass
class Variant:
    name: str
    path: str
    flags: list = field(default_factory=list)
    same: bool = False
    # The disk it describes, where qemu-img does not give every byte of it.
    disk: str = ""


def the_disk(size=SIZE):
    """Noise, text and zeroes, with borders on, beside and between the borders of clusters and sectors."""
    disk = bytearray(size)

    def put(offset, data):
        data = data[: max(size - offset, 0)]
        disk[offset : offset + len(data)] = data

    text = b"".join(b"line %07d of a file that compresses well\n" % number for number in range(60000))
    put(0, host.noise(1, 700_001))
    put(1 * MIB, text[: 2 * MIB + 4097])
    put(4 * MIB - 512, host.noise(2, MIB + 1024))
    put(6 * MIB + 65536, text[777 : 777 + MIB])
    put(8 * MIB + 1, b"\x01")
    put(9 * MIB - 1, b"\x02\x03")
    for number in range(64):
        put(10 * MIB + number * 32768 + 512 * (number % 5), host.noise(100 + number, 512 * (1 + number % 9)))
    put(14 * MIB + 3 * 512, b"\xff" * MIB)
    put(17 * MIB, host.noise(3, 2 * MIB))
    put(size - 70_000, host.noise(4, 70_000))
    return bytes(disk)


class Maker:
    def __init__(self, folder):
        self.folder = folder
        self.variants = []
        self.raw = os.path.join(folder, "disk.raw")
        host.write(self.raw, the_disk())

    def path(self, name):
        return os.path.join(self.folder, name)

    def add(self, name, path=None, flags=(), same=False, disk=""):
        path = path or self.path(f"{name}.qcow2")
        self.variants.append(Variant(name, path, list(flags), same, disk))
        return path

    def convert(self, name, options="", *flags, source=None):
        """The disk in another form; returns the new image's path."""
        path = self.path(f"{name}.qcow2")
        options = ("-o", options) if options else ()
        tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", *flags, *options, source or self.raw, path)
        return path

    def same(self, name, options="", *flags):
        self.convert(name, options, *flags)
        return self.add(name, same=True)

    def create(self, name, options, size=SIZE, *flags, cwd=None):
        path = self.path(f"{name}.qcow2")
        options = ("-o", options) if options else ()
        size = () if size is None else (size,)
        tool("qemu-img", "create", "-q", "-f", "qcow2", *options, *flags, path, *size, cwd=cwd)
        return path

    def io(self, path, *commands, codes=(0,)):
        words = [word for command in commands for word in ("-c", command)]
        return tool("qemu-io", "-f", "qcow2", *words, path, codes=codes)

    def fill(self, path):
        """The disk into an image that exists already."""
        tool("qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", self.raw, path)


def scattered(step, length, count, first=0):
    """Writes of a pattern here and there."""
    return [f"write -P {17 + number % 200} {first + number * step} {length}" for number in range(count)]


def raw_images(m):
    sparse = m.path("sparse.raw")
    tool("cp", "--sparse=always", m.raw, sparse)
    m.add("raw", m.raw, same=True)
    m.add("raw sparse", sparse, same=True)
    for size in (SIZE - 12_345, 3 * MIB + 1, 511):
        path = m.path(f"odd-{size}.raw")
        host.write(path, the_disk()[-size:])
        m.add(f"raw of {size} bytes", path)
    empty = host.make(m.path("holes.raw"), SIZE)
    m.add("raw, all a hole", empty)


def plain_images(m):
    m.same("v2", "compat=0.10")
    m.same("v3", "compat=1.1")
    sizes = (512, 1024, 2048, 4096, 8192, 16384, 32768, 131072, 262144, 524288, MIB, 2 * MIB)
    for cluster in sizes:
        m.same(f"cluster-{cluster}", f"cluster_size={cluster}")
    m.same("v2-cluster-512", "compat=0.10,cluster_size=512")
    for bits in (1, 2, 4, 8, 16, 32, 64):
        m.same(f"refcount-{bits}", f"refcount_bits={bits},cluster_size=4096")
    m.same("lazy-refcounts", "lazy_refcounts=on")
    for kind in ("metadata", "falloc", "full"):
        path = m.create(f"prealloc-{kind}", f"preallocation={kind}")
        m.fill(path)
        m.add(f"prealloc-{kind}", same=True)
    m.create("prealloc-unwritten", "preallocation=metadata")
    m.add("prealloc-unwritten")


def compressed_images(m):
    for cluster in (512, 4096, 65536, 2 * MIB):
        m.same(f"zlib-{cluster}", f"cluster_size={cluster}", "-c")
        m.same(f"zstd-{cluster}", f"cluster_size={cluster},compression_type=zstd", "-c")
    m.same("v2-zlib", "compat=0.10", "-c")
    m.same("v2-zlib-4096", "compat=0.10,cluster_size=4096", "-c")
    path = m.convert("zlib-rewritten", "", "-c")
    m.io(path, *scattered(3 * MIB + 512, 1536, 7), "write -z 17M 1M", "write -c -P 9 20M 64k")
    m.add("zlib-rewritten")


def subcluster_images(m):
    m.same("extl2", "extended_l2=on")
    m.same("extl2-16k", "extended_l2=on,cluster_size=16384")
    m.same("extl2-2m", "extended_l2=on,cluster_size=2M")
    m.same("extl2-zlib", "extended_l2=on", "-c")
    m.same("extl2-zstd", "extended_l2=on,compression_type=zstd", "-c")
    path = m.create("extl2-sparse", "extended_l2=on,cluster_size=65536")
    m.io(path, *scattered(140_288, 2048, 60), "write -z 1M 70k", "discard 2M 6k", "write -P 5 2050k 1k")
    m.add("extl2-sparse")


def states(m):
    """Images that were used: dirty, with snapshots, bitmaps, zero clusters, odd sizes."""
    path = m.create("dirty", "lazy_refcounts=on")
    m.fill(path)
    # qemu-io dies by its own hand, as a machine that loses power would.
    m.io(path, "write -P 7 5M 3M", "write -P 8 100k 1k", "abort", codes=None)
    with open(path, "rb") as image:
        if not image.read(80)[79] & 1:
            raise host.Broken("the image is not dirty")
    m.add("dirty")

    path = m.convert("snapshots")
    m.io(path, "write -P 1 0 2M")
    tool("qemu-img", "snapshot", "-c", "first", path)
    m.io(path, *scattered(MIB, 9 * 512, 20, 3 * 512))
    tool("qemu-img", "snapshot", "-c", "second", path)
    m.io(path, "write -z 4M 3M", "discard 9M 1M", "write -P 3 9500k 5k")
    m.add("snapshots")

    path = m.convert("snapshot-applied")
    tool("qemu-img", "snapshot", "-c", "first", path)
    m.io(path, "write -P 1 0 8M", "write -z 12M 12M")
    tool("qemu-img", "snapshot", "-a", "first", path)
    m.add("snapshot-applied", same=True)

    path = m.convert("zero-clusters")
    m.io(path, "write -z 0 1M", "write -z -u 1M 1M", "write -z 17000k 3k", "discard 4M 1M", "write -P 4 2M 1k")
    m.add("zero-clusters")
    path = m.convert("zero-v2", "compat=0.10")
    m.io(path, "write -z 0 1M", "discard 17M 2M")
    m.add("zero-v2")

    path = m.convert("bitmap")
    tool("qemu-img", "bitmap", "--add", path, "backup")
    m.io(path, "write -P 6 3M 200k")
    m.add("bitmap")

    for size in (SIZE - 512, SIZE - 65536 - 1536, 512):
        raw = m.path("cut.raw")
        host.write(host.make(raw, 0), the_disk()[-size:])
        m.convert(f"odd-{size}", "", source=raw)
        m.add(f"odd-{size}")
        m.convert(f"odd-{size}-zlib", "cluster_size=4096", "-c", source=raw)
        m.add(f"odd-{size}-zlib")
    # qemu-img rounds; the header may say any number of bytes.
    size = SIZE - 12_345
    path = m.convert("odd-bytes")
    with open(path, "r+b") as image:
        image.seek(24)
        image.write(struct.pack(">Q", size))
    disk = m.path("odd-bytes.disk")
    host.write(disk, the_disk()[:size])
    m.add("odd-bytes", disk=disk)

    m.create("size-0", "", 0)
    m.add("size-0")
    m.create("empty", "")
    m.add("empty")


def chains(m):
    folder = m.path("chain")
    os.makedirs(folder)
    allow = ["--allow-backing", folder]
    tool("cp", m.raw, os.path.join(folder, "base.raw"))
    host.write(os.path.join(folder, "short.raw"), the_disk()[: 9 * MIB + 1536])
    for name, options, flags in (
        ("plain", "", ()),
        ("zlib", "", ("-c",)),
        ("v2", "compat=0.10", ()),
        ("zlib-2m", "cluster_size=2M", ("-c",)),
    ):
        m.convert(f"chain/base-{name}", options, *flags)
    short = os.path.join(folder, "short.raw")
    m.convert("chain/short", "", source=short)

    def overlay(name, base, kind="qcow2", options="", size=None, writes=(), absolute=False):
        base = os.path.join(folder, base) if absolute else base
        flags = ("-b", base, "-F", kind)
        path = m.create(f"chain/{name}", options, size, *flags, cwd=folder)
        if writes:
            m.io(path, *writes)
        return path

    def chain(name, *words, same=False, **more):
        m.add(f"chain: {name}", overlay(*words, **more), allow, same=same)

    writes = ["write -P 90 300k 200k", "write -z 1M 1M", "discard 5M 200k", *scattered(2 * MIB, 1024, 11)]
    chain("relative", "relative", "base-plain.qcow2", writes=writes)
    chain("absolute", "absolute", "base-plain.qcow2", writes=writes, absolute=True)
    chain("nothing in the overlay", "nothing", "base-plain.qcow2", same=True)
    chain("longer than its base", "longer", "short.qcow2", size=SIZE, writes=["write -P 5 20M 1k", "write -P 5 9M 512"])
    chain("longer than its raw base", "longer-raw", "short.raw", "raw", size=SIZE + 512, writes=["write -P 5 9438720 512"])
    chain("shorter than its base", "shorter", "base-plain.qcow2", size=10 * MIB + 512, writes=["write -P 5 3M 64k"])
    chain("raw base", "on-raw", "base.raw", "raw", writes=writes)
    chain("raw base, unwritten", "on-raw-nothing", "base.raw", "raw", same=True)
    chain("zlib base", "on-zlib", "base-zlib.qcow2", writes=writes)
    chain("v2 on v2", "v2-on-v2", "base-v2.qcow2", options="compat=0.10", writes=["write -P 90 300k 200k"])
    chain("small clusters on 2 MiB zlib", "small-on-2m", "base-zlib-2m.qcow2", options="cluster_size=512",
          writes=scattered(MIB + 512, 512, 20))
    chain("subclusters on zlib", "sub-on-zlib", "base-zlib.qcow2", options="extended_l2=on",
          writes=["write -z 1M 2k", *scattered(99 * 1024, 2048, 100)])
    chain("2 MiB clusters on small", "large-on-small", "relative.qcow2", options="cluster_size=2M",
          writes=["write -P 33 7M 512"])
    overlay("second", "relative.qcow2", writes=["write -P 20 2M 3k", "write -z 300k 64k"])
    chain("three deep", "third", "second.qcow2", options="cluster_size=4096", writes=["write -P 21 2049k 1k"])
    overlay("middle-short", "base-plain.qcow2", size=8 * MIB)
    chain("a short one in the middle", "over-short", "middle-short.qcow2", size=SIZE, writes=["write -P 2 8M 512"])


def make(folder):
    """Makes all of them in `folder`, and returns the list."""
    m = Maker(folder)
    for part in (raw_images, plain_images, compressed_images, subcluster_images, states, chains):
        part(m)
    return m.variants


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    os.makedirs(sys.argv[1], exist_ok=True)
    for variant in make(os.path.abspath(sys.argv[1])):
        print(variant.name, variant.path, *variant.flags, sep="\t")
