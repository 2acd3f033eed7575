#!/usr/bin/python3
"""Windows seeds, as cloudbase-init reads them. Usage: check_seed_windows.py install

Installs the pinned cloudbase-init of PyPI beside the build's files, once.
"""

import fcntl
import hashlib
import json
import os
import random
import shutil
import sys

from host import tool
from seeds import case, config

HERE = os.path.dirname(os.path.abspath(__file__))
PINS = os.path.join(HERE, "cloudbase-init.txt")
# Three of four classes each, for Windows, and no account's name within.
PASSWORDS = ["Corr3ct-horse", "Пароль №1 ё", "密码密码密码aB3!", "🔑🔒🗝🔐🔑🔒aB3!", "p\"A's`s$(id)1", "\\N\\t\\0\\\\x1",
             "{Json: [1]}", "%Temp%1^&|<>", "  Spaces 9 ", "Nbsp\u00a0zero1!", "x" * 60 + "Y1!" + "z" * 64]


def environment():
    """Where cloudbase-init lies: one folder for each list of pins."""
    with open(PINS, "rb") as pins:
        digest = hashlib.sha256(pins.read()).hexdigest()[:12]
    build = os.environ.get("CARGO_TARGET_DIR", os.path.join(os.path.dirname(HERE), "target"))
    return os.path.join(os.path.abspath(build), f"cloudbase-init-{digest}")


def install():
    """Its Python; two checks at a time install it once."""
    folder = environment()
    python = os.path.join(folder, "bin", "python")
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    with open(f"{folder}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(f"{folder}/complete"):
            shutil.rmtree(folder, ignore_errors=True)
            tool("/usr/bin/python3", "-m", "venv", folder, timeout=120)
            tool(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
                 "--requirement", PINS, timeout=240)
            with open(f"{folder}/complete", "w", encoding="utf-8"):
                pass
    return python


def read(images):
    """What cloudbase-init finds on each."""
    script = os.path.join(HERE, "read_windows_seed.py")
    return json.loads(tool(install(), script, *images, timeout=120).splitlines()[-1])


def windows(seeds, tally):
    """Each password arrives as it is, with names, keys and user-data."""
    keys = [seeds.key("first"), seeds.key("второй 🔑")]
    user_data = "#ps1_sysnative\r\nWrite-Output 'ё'\r\n"
    full = ("--os", "windows", "--hostname", "win-1", "--user", "Оператор", "--user-data", seeds.file(user_data))
    key_flags = [word for key in keys for word in ("--ssh-key", seeds.file(key + "\n"))]
    rng = random.Random(5)
    more = ["".join(rng.choice("aA1!ёЖ密🔑 ") for _ in range(16)) + "aA1" for _ in range(20)]
    wanted, images = [], []
    for password in PASSWORDS + more:
        with case(tally, f"windows, {password!r}"):
            image, report = seeds.make(*full, *key_flags, "--password-file", seeds.file(password + "\n"))
            images.append(image)
            wanted.append((password, report))
    with case(tally, "windows, plain"):
        plain, plain_report = seeds.make("--os", "windows", "--password-file", seeds.file(PASSWORDS[0]),
                                         "--user-data", seeds.file(config(hostname="x")))
        images.append(plain)
        wanted.append((PASSWORDS[0], plain_report))
    with case(tally, "cloudbase-init reads the seeds"):
        for (password, report), found in zip(wanted, read(images), strict=True):
            what = f"windows, {password!r}"
            if not tally.expect(found and "error" not in found, f"{what}: cloudbase-init finds the seed", found):
                continue
            # The image's own default user has the name of cloudbase-init's configuration.
            user = "Оператор" if report["user"] else "Admin"
            tally.expect(found["uuid"] == report["instance_id"], f"{what}: uuid", found["uuid"])
            tally.expect(found["admin_pass"] == password, f"{what}: password", found["admin_pass"])
            tally.expect(found["set"] == [user, password], f"{what}: the plugin sets it", found["set"])
            if report["user"]:
                tally.expect(found["hostname"] == "win-1", f"{what}: host name", found["hostname"])
                tally.expect(found["admin_username"] == user, f"{what}: user", found["admin_username"])
                tally.expect(sorted(found["keys"]) == sorted(keys), f"{what}: keys", found["keys"])
                tally.expect(sorted(found["authorized_keys"].splitlines()) == sorted(keys),
                             f"{what}: the plugin writes the keys", found["authorized_keys"])
                tally.expect(found["user_data"] == user_data, f"{what}: user_data as it was", found["user_data"])
            else:
                tally.expect(found["admin_username"] is None, f"{what}: no user is named", found["admin_username"])
    ids = {report["instance_id"] for _, report in wanted}
    tally.expect(len(ids) == len(wanted) > 1, "each seed has an id of its own")


PARTS = {"windows": windows}

if __name__ == "__main__":
    if sys.argv[1:] != ["install"]:
        sys.exit(__doc__)
    print(install())
