#!/usr/bin/env -S python3 -I -S
"""Runs a program and kills it, with all its threads, as one enters the nth of some system calls.

Usage: kill_at.py CALL[,CALL…] NTH PROGRAM [WORD…]. Dies of SIGKILL where the program did, else exits as the program.

strace could do it, but stops the program at every system call to send a signal at one; here the kernel asks about
these calls alone (seccomp_unotify(2)), and those of all threads are counted as one series.
"""

import ctypes
import fcntl
import os
import select
import signal
import socket
import struct
import sys

# Of x86-64: arch/x86/entry/syscalls/syscall_64.tbl.
NUMBERS = {
    "write": 1, "ioctl": 16, "pread64": 17, "pwrite64": 18, "writev": 20, "fsync": 74, "fdatasync": 75,
    "ftruncate": 77, "rename": 82, "unlink": 87, "fchmod": 91, "fchown": 93, "fsetxattr": 190, "exit_group": 231,
    "openat": 257, "unlinkat": 263, "renameat": 264, "linkat": 265, "fchmodat": 268, "sync_file_range": 277,
    "fallocate": 285, "renameat2": 316, "pwritev2": 328,
}
AUDIT_ARCH_X86_64 = 0xC000003E
SYS_SECCOMP, SET_MODE_FILTER, NEW_LISTENER = 317, 1, 1 << 3
RET_USER_NOTIF, RET_ALLOW = 0x7FC00000, 0x7FFF0000
NOTIF_RECV, NOTIF_SEND = 0xC0502100, 0xC0182101
NOTIF_SIZE = 80
GO_ON = 1
PR_SET_PDEATHSIG = 1

LIBC = ctypes.CDLL(None, use_errno=True)


def listener(numbers):
    """Has the kernel ask about these calls of this process; what to ask with."""
    load, equal, ret = 0x20, 0x15, 0x06
    rules = [(load, 0, 0, 4), (equal, 0, len(numbers) + 1, AUDIT_ARCH_X86_64), (load, 0, 0, 0)]
    rules += [(equal, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
    rules += [(ret, 0, 0, RET_ALLOW), (ret, 0, 0, RET_USER_NOTIF)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *rule) for rule in rules))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(rules), ctypes.addressof(code)))
    asked = LIBC.syscall(SYS_SECCOMP, SET_MODE_FILTER, NEW_LISTENER, program)
    if asked < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return asked


def child(numbers, words, ours):
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    socket.send_fds(ours, [b"-"], [listener(numbers)])
    os.execvp(words[0], words)


def killed(pid, asked, nth):
    """Lets each call go on until the nth one; whether it came to that."""
    ended = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(asked, select.POLLIN)
    poll.register(ended, select.POLLIN)
    while True:
        ready = dict(poll.poll())
        if not ready.get(asked, 0) & select.POLLIN:
            return False
        question = bytearray(NOTIF_SIZE)
        try:
            fcntl.ioctl(asked, NOTIF_RECV, question)
            nth -= 1
            if nth == 0:
                os.kill(pid, signal.SIGKILL)
                return True
            (number,) = struct.unpack_from("=Q", question)
            fcntl.ioctl(asked, NOTIF_SEND, bytearray(struct.pack("=QqiI", number, 0, 0, GO_ON)))
        except FileNotFoundError:
            # The thread that asked has died meanwhile.
            continue


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    numbers = [NUMBERS[call] for call in sys.argv[1].split(",")]
    theirs, ours = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            child(numbers, sys.argv[3:], ours)
        finally:
            os._exit(127)
    ours.close()
    _, fds, _, _ = socket.recv_fds(theirs, 1, 1)
    if not fds:
        sys.exit("the kernel asks nobody about system calls")
    was_killed = killed(pid, fds[0], int(sys.argv[2]))
    _, status = os.waitpid(pid, 0)
    if was_killed or os.WIFSIGNALED(status):
        os.kill(os.getpid(), os.WTERMSIG(status))
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
