"""A file whose reads, writes and syncs fail, or come short: FUSE as the kernel speaks it, without a library.

The file is mounted over another one and served by a process of its own. Faults happen while they are switched on.
Protocol and structures: linux/fuse.h, version 7.31.
"""

import ctypes
import errno
import os
import struct
import subprocess
import sys

import host
import holders

GETATTR, SETATTR, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC, FLUSH, INIT, INTERRUPT, DESTROY, FALLOCATE = (
    3, 4, 14, 15, 16, 17, 18, 20, 25, 26, 36, 38, 43)
FORGET, BATCH_FORGET = 2, 42
SET_SIZE, DIRECT_IO, KEEP_SIZE, PUNCH_HOLE = 1 << 3, 1, 1, 2
KINDS = {"read": READ, "write": WRITE, "fsync": FSYNC}


class Faulty:
    """`path` behind FUSE: `faults` are "read:OFFSET", "write:OFFSET" (EIO where that byte is), "fsync:0" or "short:0".

    With "short" every read and write does half of what was asked, and says so.
    """

    def __init__(self, scratch, path, *faults):
        self.mount_point = host.make(f"{path}.behind", 0)
        self.scratch, self.switch = scratch, f"{path}.switch"
        words = [sys.executable, "-B", os.path.abspath(__file__), path, self.mount_point, self.switch, *faults]
        self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
        if not holders.until(lambda: os.path.ismount(self.mount_point) or self.process.poll() is not None):
            raise host.Broken("FUSE is not mounted")
        if self.process.poll() is not None:
            raise host.Broken(f"FUSE cannot be mounted: exit {self.process.returncode}")
        scratch.mounts.append(self.mount_point)

    def fails(self, whether):
        """Switches the faults on or off."""
        if whether:
            host.make(self.switch, 0)
        elif os.path.exists(self.switch):
            os.unlink(self.switch)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.fails(False)
        self.scratch.unmount(self.mount_point)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Server:
    def __init__(self, path, mount_point, switch, faults):
        self.file = os.open(path, os.O_RDWR)
        self.switch = switch
        self.faults = [(kind, int(offset)) for kind, offset in (fault.split(":") for fault in faults)]
        self.device = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self.device},rootmode=100644,user_id=0,group_id=0,allow_other".encode()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"faulty", os.fsencode(mount_point), b"fuse", 0, options) != 0:
            raise OSError(ctypes.get_errno(), "mount")

    def attributes(self):
        found = os.fstat(self.file)
        times = [int(time) for time in (found.st_atime, found.st_mtime, found.st_ctime)]
        # Kept for no time at all, so that the kernel asks for the size again.
        valid = struct.pack("<QII", 0, 0, 0)
        return valid + struct.pack("<6Q10I", 1, found.st_size, found.st_blocks, *times, 0, 0, 0, 0o100644, 1, 0, 0, 0,
                                   4096, 0)

    def is_on(self, kind):
        return any(found == kind for found, _ in self.faults) and os.path.exists(self.switch)

    def check(self, kind, offset, length):
        for found, at in self.faults:
            if found == kind and (kind == "fsync" or offset <= at < offset + length) and os.path.exists(self.switch):
                raise OSError(errno.EIO, "a fault that was asked for")

    def read(self, body):
        _, offset, size = struct.unpack_from("<QQI", body)
        self.check("read", offset, size)
        return os.pread(self.file, max(size // 2, 1) if self.is_on("short") else size, offset)

    def write(self, body):
        _, offset, size = struct.unpack_from("<QQI", body)
        self.check("write", offset, size)
        data = body[40 : 40 + size]
        count = os.pwrite(self.file, data[: max(size // 2, 1)] if self.is_on("short") else data, offset)
        return struct.pack("<II", count, 0)

    def set_attributes(self, body):
        valid, _, _, size = struct.unpack_from("<IIQQ", body)
        if valid & SET_SIZE:
            os.ftruncate(self.file, size)
        return self.attributes()

    def fallocate(self, body):
        _, offset, length, mode = struct.unpack_from("<QQQI", body)
        if mode != KEEP_SIZE | PUNCH_HOLE:
            raise OSError(errno.EOPNOTSUPP, "fallocate")
        self.check("write", offset, length)
        length = max(min(length, os.fstat(self.file).st_size - offset), 0)
        os.pwrite(self.file, bytes(length), offset)
        return b""

    def sync(self, _body):
        self.check("fsync", 0, 0)
        os.fsync(self.file)
        return b""

    def answer(self, opcode, body):
        direct = any(kind == "short" for kind, _ in self.faults)
        answers = {
            INIT: lambda _: struct.pack("<IIIIHHIIHHII24x", 7, 31, 128 << 10, 0, 12, 9, 128 << 10, 1, 0, 0, 0, 0),
            GETATTR: lambda _: self.attributes(), SETATTR: self.set_attributes,
            # Only then a short write is one for the program, too.
            OPEN: lambda _: struct.pack("<QII", 1, DIRECT_IO if direct else 0, 0),
            READ: self.read, WRITE: self.write, FSYNC: self.sync, FALLOCATE: self.fallocate,
            STATFS: lambda _: struct.pack("<5Q4I24x", 1 << 20, 1 << 19, 1 << 19, 0, 0, 4096, 255, 4096, 0),
            RELEASE: lambda _: b"", FLUSH: lambda _: b"",
        }
        if opcode not in answers:
            raise OSError(errno.ENOSYS, "not there")
        return answers[opcode](body)

    def serve(self):
        while True:
            try:
                request = os.read(self.device, 1 << 20)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                raise
            _, opcode, unique = struct.unpack_from("<IIQ", request)
            if opcode in (FORGET, BATCH_FORGET, INTERRUPT):
                continue
            try:
                code, data = 0, self.answer(opcode, request[40:])
            except OSError as error:
                code, data = -error.errno, b""
            try:
                os.write(self.device, struct.pack("<IiQ", 16 + len(data), code, unique) + data)
            except OSError as error:
                # Whoever asked has been interrupted.
                if error.errno != errno.ENOENT:
                    raise
            if opcode == DESTROY:
                return


if __name__ == "__main__":
    Server(*sys.argv[1:4], sys.argv[4:]).serve()
