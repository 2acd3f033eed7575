"""Seeds as volumes: by blkid, isoinfo, xorriso, fsck.vfat and mtools, and as ds-identify finds them."""

import concurrent.futures
import os
import random
import re
import sys
import time
import unicodedata

import yaml

from host import Broken, speak, tool
from seeds import accepts, case, content, crypted, mime, probe

DS_IDENTIFY = "/usr/lib/cloud-init/ds-identify"
NETWORK = "version: 2\nethernets: {eth0: {dhcp4: true}}\n"
ID = "ri-0f6a4d5e-4b8a-4c9e-9d62-5f0f1f6c2a11"
HASH = crypted("given as a hash", "$6$0123456789abcdef")
PASSWORD = "Corr3ct horse ё"
LATEST = "openstack/latest"

# What the flags add, the volume's label, and its files without those that only some requests give.
VOLUMES = {
    "nocloud": ((), "cidata", ["meta-data", "user-data"], "network-config"),
    "config-drive": (("--seed-format", "config-drive"), "config-2",
                     [f"{LATEST}/meta_data.json", f"{LATEST}/user_data"], f"{LATEST}/network_data.json"),
    "windows": (("--os", "windows"), "config-2", [f"{LATEST}/meta_data.json"], None),
}


def volumes(seeds, tally):
    """Labels, names and modes, with and without all that can be asked for."""
    key = seeds.file(seeds.key() + "\n")
    for name, (flags, label, files, network) in VOLUMES.items():
        secret = ("--password-file", seeds.file(PASSWORD + "\n"), "--ssh-key", key)
        more = ("--hostname", "web-1", "--user", "ops")
        # What ConfigDrive calls a network configuration has another shape than cloud-init's.
        net = ("--network-config", seeds.file(NETWORK)) if name == "nocloud" else ()
        for what, extra, names in ((name, (), files), (f"{name}, all", (*more, *net), [*files, *([network] if net else [])])):
            with case(tally, what):
                image, report = seeds.make(*flags, *secret, *extra)
                one_volume(tally, what, image, label, sorted(names))
                status = os.stat(image)
                tally.expect(status.st_mode & 0o7777 == 0o600, f"{what}: the file is for its owner alone")
                tally.expect(status.st_size <= 128 << 10, f"{what}: it is small", status.st_size)
                # That of a clear-text password and little else could be tried against every word there is.
                clear = "windows" in flags and "--password-file" in secret
                found = None if clear else tool("b3sum", "--no-names", image).strip()
                tally.expect(report["blake3"] == found, f"{what}: the report has the file's digest, or none", report)
                tally.expect(report["label"] == label, f"{what}: the report has its label")
                source = "NoCloud" if label == "cidata" else "ConfigDrive"
                ds_identify(seeds, tally, what, image, source)
    schema(seeds, tally)
    vfat(seeds, tally)
    same(seeds, tally)


def one_volume(tally, what, image, label, names):
    found = probe(image)
    tally.expect((found["LABEL"], found["TYPE"]) == (label, "iso9660"), f"{what}: blkid says label and type", found)
    for tree, suffix, mode in (("-R", "", "-r--------"), ("-J", ";1", "----------")):
        rows = []
        folder = ""
        for line in tool("isoinfo", tree, "-l", "-i", image).splitlines():
            if line.startswith("Directory listing of "):
                folder = line.removeprefix("Directory listing of ").strip().strip("/")
            elif line.startswith("-"):
                words = line.split()
                rows.append((words[0], os.path.join(folder, words[-1].removesuffix(suffix))))
        tally.expect(sorted(rows) == [(mode, name) for name in names], f"{what}: isoinfo {tree} lists names and modes", rows)
    listing = tool("xorriso", "-indev", image, "-find", "/", "-type", "f", "-exec", "lsdl").splitlines()
    rows = sorted((line.split()[0], line.split()[-1].strip("'/")) for line in listing if line[:1] == "-")
    tally.expect(rows == [("-r--------", name) for name in names], f"{what}: xorriso lists names and modes", rows)
    for name in names:
        trees = [tool("isoinfo", tree, "-i", image, "-x", f"/{name}{end}") for tree, end in (("-R", ""), ("-J", ";1"))]
        tally.expect(trees[0] and trees[0] == trees[1], f"{what}: {name} is the same by Rock Ridge and by Joliet")
    for tree in ("PVD", "SVD"):
        offset = 0x8000 + (0x800 if tree == "SVD" else 0) + 40
        with open(image, "rb") as file:
            file.seek(offset)
            raw = file.read(32)
        text = raw.decode("ascii" if tree == "PVD" else "utf-16-be", errors="replace").rstrip(" \0")
        tally.expect(text == label, f"{what}: the {tree} has the label in lower case", raw)


def ds_identify(seeds, tally, what, image, source):
    """The real tool in a root of its own, where blkid shows the seed as the one drive."""
    root = seeds.scratch.folder_of(os.path.basename(seeds.path()))
    for folder in ("bin", "run", "etc/cloud", "proc/1", "sys/class/dmi/id", "sys/class/block", "dev/disk"):
        os.makedirs(f"{root}/{folder}")
    export = tool("blkid", "-p", "-o", "export", image).replace(image, "/dev/sr0")
    files = {"proc/cmdline": "root=/dev/vda1\n", "proc/1/cmdline": "/sbin/init\n", "proc/uptime": "1 1\n",
             "proc/1/environ": "", "bin/blkid": f"#!/bin/sh\ncat <<'EOF'\n{export}EOF\n",
             "bin/systemd-detect-virt": "#!/bin/sh\necho kvm\n"}
    for path, text in files.items():
        with open(f"{root}/{path}", "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(f"{root}/{path}", 0o755)
    env = {"PATH": f"{root}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PATH_ROOT": root, "DEBUG_LEVEL": "0"}
    code, text = speak(DS_IDENTIFY, "--force", env=env)
    try:
        with open(f"{root}/run/cloud-init/cloud.cfg", encoding="utf-8") as file:
            found = yaml.safe_load(file)["datasource_list"]
    except OSError:
        found = f"exit {code}: {text}"
    tally.expect(found == [source, "None"], f"{what}: ds-identify finds {source}", found)


def schema(seeds, tally):
    """cloud-init's own schema takes each form, without a deprecation."""
    key = seeds.file(seeds.key() + "\n")
    secrets = {"password": ("--password-file", seeds.file(PASSWORD)), "key": ("--ssh-key", key)}
    secrets["both"] = (*secrets["password"], *secrets["key"])
    for user in (None, "root", "web-1"):
        for secret, flags in secrets.items():
            what = f"{user or 'default user'}, {secret}"
            with case(tally, what):
                image, _ = seeds.make(*flags, *(("--user", user) if user else ()))
                path = os.path.join(seeds.extract(image), "user-data")
                code, text = speak("cloud-init", "schema", "-c", path)
                good = code == 0 and "Valid cloud-config" in text and "eprecat" not in text
                tally.expect(good, f"{what}: cloud-init's schema takes it without a deprecation", text)


def vfat(seeds, tally):
    """The same files on FAT, for guests that have no driver for CD-ROMs."""
    flags = ("--password-hash-file", seeds.file(HASH), "--instance-id", ID, "--hostname", "web-1",
             "--network-config", seeds.file(NETWORK))
    with case(tally, "vfat"):
        image, report = seeds.make(*flags, "--seed-format", "nocloud-vfat")
        found = probe(image)
        tally.expect((found["TYPE"], found["LABEL"], found.get("LABEL_FATBOOT")) == ("vfat", "cidata", "cidata"),
                     "vfat: blkid finds the label in the root folder and in the boot sector", found)
        code, text = speak("fsck.vfat", "-n", "-v", image)
        tally.expect(code == 0, "vfat: fsck.vfat finds nothing", text)
        names = [line.split("::/")[-1] for line in tool("mdir", "-b", "-i", image, "::").split()]
        tally.expect(sorted(names) == ["meta-data", "network-config", "user-data"], "vfat: mdir lists the files", names)
        tally.expect((os.stat(image).st_mode & 0o7777, report["label"]) == (0o600, "cidata"), "vfat: mode and label")
        folders = [seeds.extract(image), seeds.extract(seeds.make(*flags)[0])]
        for name in names:
            tally.expect(len({content(folder, name) for folder in folders}) == 1, f"vfat: {name} is as on the ISO")
        ds_identify(seeds, tally, "vfat", image, "NoCloud")


def same(seeds, tally):
    """The same request gives the same bytes, at any time and in any place; another one gives others."""
    flags = ("--password-hash-file", seeds.file(HASH), "--ssh-key", seeds.file(seeds.key()), "--hostname", "web-1")
    part = mime(("text/cloud-config", "#cloud-config\nusers: [default, {name: carol}]\n"))
    beside = ("--user-data", seeds.file(part))
    kinds = {"nocloud": (), "nocloud with user-data": beside, "vfat": ("--seed-format", "nocloud-vfat"),
             "config-drive": ("--seed-format", "config-drive")}
    made = {}
    for zone in ("UTC", "Asia/Tokyo"):
        for name, more in kinds.items():
            with case(tally, name):
                image, _ = seeds.make(*flags, *more, "--instance-id", ID, env={"TZ": zone, "LC_ALL": "C"})
                with open(image, "rb") as file:
                    made.setdefault(name, []).append(file.read())
        time.sleep(1.1)
    for name in kinds:
        tally.expect(len(made.get(name, ())) == 2 and len(set(made[name])) == 1, f"{name}: the same bytes each time")
    with case(tally, "other bytes"):
        (_, one), (_, two) = (seeds.make(*flags) for _ in range(2))
        form = re.compile("ri-[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
        ids = [one["instance_id"], two["instance_id"]]
        tally.expect(ids[0] != ids[1] and all(map(form.fullmatch, ids)), "each seed has a fresh id", ids)


# General categories of what can be printed: letters, marks, numbers, punctuation, symbols, spaces.
PRINTABLE = ("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi",
             "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs")


def random_passwords(rng_seed, count):
    """Passwords of 8 to 128 bytes, each class of characters as likely as any other."""
    rng = random.Random(rng_seed)
    classes = {}
    for code in range(0x20, sys.maxunicode + 1):
        classes.setdefault(unicodedata.category(chr(code)), []).append(chr(code))
    ascii_printable = [chr(code) for code in range(0x20, 0x7F)]
    for number in range(count):
        length = rng.randint(32, 128)
        text = ""
        while True:
            # Every other password is half ASCII, where YAML and shells have their special characters.
            kind = ascii_printable if number % 2 and rng.random() < 0.5 else classes[rng.choice(PRINTABLE)]
            more = text + rng.choice(kind)
            if len(more.encode()) > length:
                break
            text = more
        # Eight of the longest characters fit into the shortest length.
        yield text


def passwords(seeds, tally):
    """1,000 passwords through file, seed and PyYAML: crypt(3) takes each of them, and no other."""
    rng_seed = random.SystemRandom().randrange(1 << 32)
    folder = seeds.scratch.tmpfs("memory", "64m")

    def one(numbered):
        number, password = numbered
        image, file = os.path.join(folder, f"{number}.iso"), os.path.join(folder, f"{number}.txt")
        with open(file, "wb") as stream:
            stream.write(password.encode() + b"\n" * (number % 2))
        outcome = seeds.program.run("seed", "--seed", image, "--password-file", file)
        if outcome.code:
            return f"{outcome}"
        with open(image, "rb") as stream:
            raw = stream.read()
        os.unlink(image)
        os.unlink(file)
        # Each file of an ISO begins a block and is padded with zeroes.
        starts = [at for at in range(0, len(raw), 2048) if raw.startswith(b"#cloud-config\n", at)]
        if len(starts) != 1:
            return f"{len(starts)} user-data found"
        user_data = raw[starts[0] : raw.index(b"\0", starts[0])]
        hashed = yaml.safe_load(user_data)["password"]
        if not accepts(hashed, password):
            return "crypt(3) refuses it"
        if number % 50 == 0 and accepts(hashed, password + "x"):
            return "crypt(3) takes another one"
        if password.encode() in raw:
            return "the seed holds it as it is"
        good = re.fullmatch(r"\$6\$(rounds=\d+\$)?[./0-9A-Za-z]{16}\$[./0-9A-Za-z]{86}", hashed)
        return None if good else f"the hash is of another form: {hashed}"

    if not yaml.__version__:
        raise Broken("no PyYAML")
    with concurrent.futures.ThreadPoolExecutor(2) as two:
        found = list(two.map(one, enumerate(random_passwords(rng_seed, 1000))))
    bad = [(number, why) for number, why in enumerate(found) if why]
    tally.expect(len(found) == 1000 and not bad, f"1,000 passwords, rng_seed {rng_seed}", bad[:3])


PARTS = {"volumes": volumes, "passwords": passwords}
