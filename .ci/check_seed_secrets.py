"""Where a secret may be found: in the seed's file, and nowhere else in files, output, arguments and calls."""

import base64
import os
import re
import subprocess
import threading

from host import MIB, Broken, inject, make, noise, speak, write
from seeds import CHEAP, accepts, case, content, crypted

# ASCII without quotes, so that strace shows it as it is.
SECRET = "Zq9-Correct.Horse-Battery+Staple"
CALLS = ("write,writev,pwrite64,pwritev,pwritev2,sendto,sendmsg,sendmmsg,execve,execveat,vmsplice,setxattr,fsetxattr,"
         "symlink,symlinkat,rename,renameat,renameat2,link,linkat,mkdir,mkdirat,prctl,ioctl,add_key,keyctl")


def needles(secret):
    """The secret as it is, as JSON has it, as UTF-16, in hexadecimal, and in base64 at each of its three phases."""
    raw = secret.encode()
    found = {"as it is": raw, "UTF-16": secret.encode("utf-16-le"), "hexadecimal": raw.hex().encode(),
             "JSON": secret.replace("/", "\\/").encode()}
    for phase in range(3):
        encoded = base64.b64encode(b"\0" * phase + raw)
        # Only the characters that the secret alone decides.
        found[f"base64, phase {phase}"] = encoded[-(-phase * 8 // 6) : (phase + len(raw)) * 8 // 6]
    return found


def seen(data, secrets):
    """Which secret stands where in some bytes, and in which form."""
    return [f"{name} {form}" for name, secret in secrets.items() for form, needle in needles(secret).items() if needle in data]


class Watch:
    """Reads every process's arguments and environment, again and again, until it is left."""

    def __init__(self, secrets):
        self.wanted = [needle for secret in secrets.values() for needle in needles(secret).values()]
        self.found, self.rounds, self.over = [], 0, threading.Event()
        self.thread = threading.Thread(target=self.look)

    def look(self):
        while not self.over.is_set():
            for number in filter(str.isdigit, os.listdir("/proc")):
                for name in ("cmdline", "environ"):
                    try:
                        with open(f"/proc/{number}/{name}", "rb") as file:
                            data = file.read()
                    except OSError:
                        continue
                    self.found += [f"{name} of {number}" for needle in self.wanted if needle in data]
            self.rounds += 1

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


class Machine:
    """An image, a system disk and a folder for the seed."""

    def __init__(self, seeds, size=4 * MIB):
        self.seeds, folder = seeds, os.path.basename(seeds.path())
        self.folder = seeds.scratch.folder_of(folder)
        self.image = f"{self.folder}/base.raw"
        self.disk = f"{self.folder}/system.raw"
        self.data = noise(11, size)
        write(self.image, self.data)
        write(make(self.disk, size), noise(12, size))
        os.mkdir(f"{self.folder}/vm", 0o700)
        self.seed = f"{self.folder}/vm/seed.iso"
        self.state = f"{self.folder}/state"

    def words(self, command, *flags):
        return [self.seeds.program.binary, command, self.image, self.disk, "--seed", self.seed, "--state-dir", self.state,
                *(("--yes",) if command == "rebuild" else ()), *flags]


def traced(machine, words, secrets):
    """Runs words under strace: (exit code, output, what was found where it must not be)."""
    log = f"{machine.folder}/trace"
    with Watch(secrets) as watch:
        before = ("strace", "-f", "-y", "-s", "100000", "-e", f"trace={CALLS}", "-e", "signal=none", "-o", log)
        ran = subprocess.run([*before, *words], capture_output=True, timeout=120)
    # The hash that this run made is known only now.
    secrets = {**secrets, **hash_in(machine)}
    bad = [f"output: {name}" for name in seen(ran.stdout + ran.stderr, secrets)] + watch.found
    lines = 0
    with open(log, "rb") as file:
        for line in file:
            lines += 1
            if f"<{machine.folder}/vm/".encode() not in line:
                bad += [f"{name}: {line[:100]!r}" for name in seen(line, secrets)]
    os.unlink(log)
    if not lines or not watch.rounds:
        raise Broken(f"nothing was traced: {ran.stderr[-300:]!r}")
    for folder, _, names in os.walk(machine.folder):
        for path in (os.path.join(folder, name) for name in names):
            if path != machine.seed:
                with open(path, "rb") as file:
                    bad += [f"{path}: {name}" for name in seen(file.read(), secrets)]
    return ran.returncode, (ran.stdout + ran.stderr).decode(errors="replace"), bad


def hash_in(machine):
    """The hash that stands in a seed that was made, by name."""
    if not os.path.exists(machine.seed):
        return {}
    with open(machine.seed, "rb") as file:
        found = re.search(rb"\$6\$[./0-9A-Za-z]{16}\$[./0-9A-Za-z]{86}", file.read())
    return {"hash in the seed": found[0].decode()} if found else {}


def secrets(seeds, tally):
    """Rebuilds and plans, also refused and failing ones, traced."""
    given = crypted(SECRET, "$6$0123456789abcdef")
    # The password's own input file lies outside the machine's folder.
    password, hashed = seeds.file(SECRET + "\n"), seeds.file(given + "\n")
    key = seeds.file(seeds.key())
    cases = {
        "password": (("--password-file", password, "--ssh-key", key), 0, False),
        "password, text": (("--password-file", password, "--progress", "plain"), 0, False),
        "root": (("--password-file", password, "--user", "root", "--progress", "json", "--json"), 0, False),
        "hash": (("--password-hash-file", hashed, "--json", "--progress", "json"), 0, False),
        "windows": (("--password-file", password, "--os", "windows", "--json"), 0, True),
        "refused user": (("--password-file", password, "--user", "no:name", "--json"), 13, False),
        "refused as a hash": (("--password-hash-file", password, "--json"), 13, False),
        "refused as a key": (("--ssh-key", password), 13, False),
        "refused as user-data": (("--password-file", password, "--user-data", password), 13, False),
        "refused as a network": (("--password-file", password, "--network-config", password), 13, False),
    }
    for command in ("plan", "rebuild"):
        for name, (flags, code, windows) in cases.items():
            what = f"secrets, {command}, {name}"
            with case(tally, what):
                machine = Machine(seeds)
                wanted = {"password": SECRET, "hash": given}
                found, text, bad = traced(machine, machine.words(command, *flags), wanted)
                tally.expect(found == code, f"{what}: exit {code}", f"{found}: {text[-400:]}")
                tally.expect(not bad, f"{what}: the secret is in the seed's file only", bad[:5])
                made = os.path.exists(machine.seed)
                tally.expect(made == (command == "rebuild" and not code), f"{what}: whether there is a seed", made)
                if made:
                    in_seed(tally, what, machine, windows)
    failing(seeds, tally, password)
    forms(seeds, tally, password)
    channels(seeds, tally)


def in_seed(tally, what, machine, windows):
    """A Windows seed holds the password once, a Linux seed a hash of it."""
    with open(machine.seed, "rb") as file:
        raw = file.read()
    found = seen(raw, {"password": SECRET})
    wanted = ["password as it is", "password JSON"] if windows else []
    tally.expect(found == wanted and (not windows or raw.count(SECRET.encode()) == 1), f"{what}: plaintext in the seed", found)
    tally.expect(bool(hash_in(machine)) != windows, f"{what}: a hash in the seed")


def failing(seeds, tally, password):
    """A seed that cannot be put in place: the error does not show it, and the disk is left unfinished."""
    with case(tally, "secrets, failing rename"):
        machine = Machine(seeds)
        words = (*inject("renameat2,renameat,rename", "error=EIO"), *machine.words("rebuild", "--password-file", password, "--json"))
        code, text = speak(*words)
        tally.expect(code in (30, 40) and not seen(text.encode(), {"password": SECRET}), "secrets, failing rename", text[-300:])
        tally.expect(not os.listdir(f"{machine.folder}/vm"), "secrets, failing rename: no temporary seed is left")


def forms(seeds, tally, password):
    """No form of a Linux seed holds the password."""
    data = seeds.file("#!/bin/sh\necho hello\n")
    for flags in ((), ("--user", "root"), ("--user", "web-1"), ("--seed-format", "nocloud-vfat"),
                  ("--seed-format", "config-drive"), ("--user-data", data), ("--revoke-image-credentials",)):
        with case(tally, f"plaintext {flags}"):
            image, _ = seeds.make("--password-file", password, *flags)
            with open(image, "rb") as file:
                tally.expect(not seen(file.read(), {"password": SECRET}), f"no plaintext in a seed with {flags}")


def channels(seeds, tally):
    """Each way for a password to come in; exactly one newline is cut."""
    folder = seeds.scratch.folder_of("credentials")
    with open(f"{folder}/password", "w", encoding="utf-8") as file:
        file.write(SECRET + "\n")
    hashes = seeds.scratch.folder_of("credentials-hash")
    with open(f"{hashes}/password-hash", "w", encoding="utf-8") as file:
        file.write(crypted(SECRET, CHEAP) + "\n")
    ways = {
        "a file": (("--password-file", seeds.file(SECRET + "\n")), {}),
        "a file without newline": (("--password-file", seeds.file(SECRET)), {}),
        "standard input": (("--password-file", "-"), {"stdin": SECRET.encode() + b"\n"}),
        "systemd": ((), {"env": {"CREDENTIALS_DIRECTORY": folder}}),
        "systemd, hash": ((), {"env": {"CREDENTIALS_DIRECTORY": hashes}}),
        "a hash": (("--password-hash-file", seeds.file(crypted(SECRET, CHEAP) + "\n")), {}),
    }
    for what, (flags, more) in ways.items():
        with case(tally, f"a password from {what}"):
            image, _ = seeds.make(*flags, **more)
            found = re.search(rb"\$[56]\$[^\"]+", content(seeds.extract(image), "user-data"))
            tally.expect(found and accepts(found[0].decode(), SECRET), f"a password from {what}")
    with case(tally, "a password from a descriptor"):
        image, (reader, writer) = seeds.path(".iso"), os.pipe()
        os.write(writer, SECRET.encode())
        os.close(writer)
        words = [*seeds.program.words("seed", "--seed", image, "--password-fd", reader)]
        ran = subprocess.run(words, pass_fds=(reader,), capture_output=True, timeout=60)
        os.close(reader)
        tally.expect(ran.returncode == 0 and os.path.exists(image), "a password from a descriptor", ran.stdout[-300:])


PARTS = {"secrets": secrets}
