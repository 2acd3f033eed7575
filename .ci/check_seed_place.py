"""The seed's file: for its owner alone, and whole at any instant, whatever fails or dies."""

import os
import shutil
import subprocess

from check_seed_secrets import Machine
from host import Broken, kill_at, speak, tool
from seeds import case, crypted

OLD_ID, NEW_ID = "ri-00000000-0000-4000-8000-000000000001", "ri-00000000-0000-4000-8000-000000000002"
# Every call by which a file can come, grow, move or go. The program is ended as it enters the call.
CALLS = ("openat", "write", "writev", "pwrite64", "fsync", "fdatasync", "sync_file_range", "ftruncate", "fallocate",
         "fchmod", "rename", "renameat", "renameat2", "linkat", "unlink", "unlinkat", "exit_group")


def place(seeds, tally):
    flags = Flags(seeds)
    masks(seeds, tally, flags)
    full(seeds, tally, flags)
    read_only(seeds, tally, flags)
    kills(seeds, tally, flags)
    rebuild_kills(seeds, tally, flags)


class Flags:
    """Requests whose bytes are known beforehand."""

    def __init__(self, seeds):
        self.hash = seeds.file(crypted("place", "$6$0123456789abcdef"))
        self.old, self.new = self.bytes(seeds, OLD_ID), self.bytes(seeds, NEW_ID)

    def of(self, instance_id):
        return ("--password-hash-file", self.hash, "--instance-id", instance_id)

    def bytes(self, seeds, instance_id):
        return slurp(seeds.make(*self.of(instance_id))[0])


def slurp(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def put(path, data):
    with open(path, "wb") as file:
        file.write(data)
    os.chmod(path, 0o600)


def masks(seeds, tally, flags):
    """umask 0 gives 0600, from the file's first instant and over an old file of another mode."""
    for what, old in (("new", None), ("replaced", flags.old)):
        with case(tally, f"umask 0, {what}"):
            path = seeds.path(".iso")
            if old:
                put(path, old)
                os.chmod(path, 0o666)
            log = seeds.path()
            words = ("strace", "-f", "--seccomp-bpf", "-qq", "-o", log, "-e", "trace=open,openat,openat2,creat",
                     *seeds.program.words("seed", "--seed", path, *flags.of(NEW_ID), "--replace"))
            ran = subprocess.run(words, umask=0, capture_output=True, timeout=60)
            tally.expect(ran.returncode == 0 and os.stat(path).st_mode & 0o7777 == 0o600, f"umask 0, {what}: mode",
                         (ran.returncode, oct(os.stat(path).st_mode)))
            made = [line for line in slurp(log).decode().splitlines() if "O_CREAT" in line or "O_TMPFILE" in line]
            good = [line for line in made if ("O_EXCL" in line or "O_TMPFILE" in line) and "0600" in line]
            tally.expect(made and good == made, f"umask 0, {what}: made exclusively and with 0600", made)


def full(seeds, tally, flags):
    """Without room for the new seed the old one stays, and nothing lies beside it."""
    room = len(flags.old) + 8192
    for old in (flags.old, None):
        what = f"full disk, {'an' if old else 'no'} old seed"
        with case(tally, what):
            folder = seeds.scratch.tmpfs(os.path.basename(seeds.path()), room if old else 16384)
            path = f"{folder}/seed.iso"
            if old:
                put(path, old)
            _, outcome = seeds.run(*flags.of(NEW_ID), "--replace", image=path)
            tally.expect(outcome.code == 40 and outcome.error.get("message"), f"{what}: exit 40", outcome)
            tally.expect(slurp(path) == old, f"{what}: it is as it was")
            tally.expect(os.listdir(folder) == (["seed.iso"] if old else []), f"{what}: nothing beside", os.listdir(folder))
            tally.expect(folder in str(outcome.error), f"{what}: the message names the place", outcome.error)


def read_only(seeds, tally, flags):
    """A folder that cannot be written is told before anything happens."""
    with case(tally, "read-only file system"):
        folder = seeds.scratch.tmpfs(os.path.basename(seeds.path()), "1m")
        path = f"{folder}/seed.iso"
        put(path, flags.old)
        tool("mount", "-o", "remount,ro", folder)
        _, outcome = seeds.run(*flags.of(NEW_ID), "--replace", image=path)
        tally.expect(outcome.code in (13, 40) and slurp(path) == flags.old, "read-only file system", outcome)
        machine = Machine(seeds)
        machine.seed = path
        before = slurp(machine.disk)
        words = machine.words("rebuild", *flags.of(NEW_ID), "--json")
        code, text = speak(*words)
        tally.expect(code in (13, 40) and slurp(machine.disk) == before,
                     "read-only file system: a rebuild leaves the disk as it was", f"{code}: {text[-300:]}")
    with case(tally, "folder without room in a rebuild"):
        folder = seeds.scratch.tmpfs(os.path.basename(seeds.path()), 16384)
        machine = Machine(seeds)
        machine.seed = f"{folder}/seed.iso"
        before = slurp(machine.disk)
        code, text = speak(*machine.words("rebuild", *flags.of(NEW_ID), "--in-place", "--json"))
        tally.expect(code in (13, 40) and slurp(machine.disk) == before and not os.listdir(folder),
                     "folder without room: a rebuild leaves the disk as it was", f"{code}: {text[-300:]}")


def kills(seeds, tally, flags):
    """Ended at each call in turn, the old seed is whole, or the new one is."""
    folder = seeds.scratch.folder_of("kills")
    path, ended, both = f"{folder}/seed.iso", 0, set()
    words = seeds.program.words("seed", "--seed", path, *flags.of(NEW_ID), "--replace")

    def reset():
        # The state folder remembers the id, and would refuse it the next time.
        shutil.rmtree(seeds.program.state, ignore_errors=True)
        put(path, flags.old)

    with case(tally, "kills"):
        for call, nth in endings(words, reset):
            ended += 1
            found = slurp(path)
            state = {flags.old: "old", flags.new: "new"}.get(found)
            both.add(state)
            tally.expect(state, f"ended at {call} {nth}: the seed is whole", None if found is None else len(found))
            for name in os.listdir(folder):
                mode = os.stat(f"{folder}/{name}").st_mode & 0o7777
                tally.expect(mode == 0o600, f"ended at {call} {nth}: {name} is for its owner alone", oct(mode))
                if name != "seed.iso":
                    os.unlink(f"{folder}/{name}")
        tally.expect(ended >= 10 and both == {"old", "new"}, "kills: before and after the rename", (ended, both))


def endings(words, before):
    """Runs words again and again, each time ended at another call, and yields after each."""
    for call in calls_of(words, before):
        for nth in range(1, 400):
            before()
            trace = kill_at(call, nth)
            code = subprocess.run([*trace, *words], capture_output=True, timeout=60).returncode
            if code not in (-9, 137):
                if code != 0:
                    raise Broken(f"a run that nothing ends ({call}): exit {code}")
                break
            yield call, nth


def calls_of(words, before):
    """Which of the calls a run makes at all."""
    before()
    ran = subprocess.run(["strace", "-f", "--seccomp-bpf", "-qq", "-c", "-U", "name", "-o", "/dev/stdout", "-e", f"trace={','.join(CALLS)}", *words],
                         capture_output=True, text=True, timeout=60)
    made = {line.strip() for line in ran.stdout.splitlines()}
    return [call for call in CALLS if call in made or call == "exit_group"]


def rebuild_kills(seeds, tally, flags):
    """Ended at each sync and rename of a rebuild: no disk that boots has the old seed beside it."""
    machine = Machine(seeds, 1 << 20)
    old = slurp(machine.disk)
    runs, states = 0, set()

    def reset():
        shutil.rmtree(machine.state, ignore_errors=True)
        for name in os.listdir(f"{machine.folder}/vm"):
            os.unlink(f"{machine.folder}/vm/{name}")
        put(machine.seed, flags.old)
        with open(machine.disk, "r+b") as file:
            file.write(old)

    words = machine.words("rebuild", *flags.of(NEW_ID), "--in-place", "--threads", "1", "--json", "--progress", "none")
    with case(tally, "kills of a rebuild"):
        for call in ("fsync", "fdatasync", "renameat2", "pwrite64"):
            for nth in range(1, 60):
                reset()
                trace = kill_at(call, nth)
                ran = subprocess.run([*trace, *words], capture_output=True, timeout=60)
                seed, disk = slurp(machine.seed), slurp(machine.disk)
                which = {flags.old: "old", flags.new: "new"}.get(seed)
                head = "new" if disk[:4096] == machine.data[:4096] else "old" if disk == old else "unfinished"
                tally.expect(which, f"rebuild ended at {call} {nth}: the seed is whole", seed and len(seed))
                tally.expect((head, which) != ("new", "old"), f"rebuild ended at {call} {nth}: no new disk with the old seed")
                states.add((head, which))
                if ran.returncode not in (-9, 137):
                    tally.expect(ran.returncode == 0, f"a rebuild that nothing ends ({call})", ran.stdout[-300:])
                    break
                runs += 1
        tally.expect(runs >= 10 and {("old", "old"), ("unfinished", "old"), ("unfinished", "new"), ("new", "new")} <= states,
                     "kills of a rebuild: before, during and after", (runs, states))


PARTS = {"place": place}
