"""What is refused of a seed's request: exit 13, a message that names the input and the rule, never the secret."""

import base64
import os
import re
import struct

from check_seed_secrets import Machine, seen
from check_seed_volume import ID
from host import tool
from seeds import case, config, crypted, mime, squeezed

GOOD = "Corr3ct-horse"
# Stands in every secret that is refused, and so must not be shown.
MARK = "Mk7Wq"


def passwords():
    """(what, bytes of the file, what the message says)."""
    return [
        ("empty", b"", r"password.*empty|shorter"),
        ("a newline alone", b"\n", r"password.*empty|shorter"),
        ("7 characters", MARK.encode() + b"xy", r"password.*(shorter|8)"),
        ("129 bytes", MARK.encode() + b"x" * 124, r"password.*(longer|128)"),
        ("not UTF-8", MARK.encode() + b"\xff\xfe\xfd\xfc", r"password.*UTF-8"),
        ("NUL", MARK.encode() + b"\0abc", r"password.*control"),
        ("CR", MARK.encode() + b"ab\rcd\n", r"password.*(control|line)"),
        ("two newlines", MARK.encode() + b"abcd\n\n", r"password.*(control|line)"),
        ("tabulator", MARK.encode() + b"\tabcd", r"password.*control"),
        ("DEL", MARK.encode() + b"\x7fabcd", r"password.*control"),
        ("C1", MARK.encode() + "\u0085abcd".encode(), r"password.*control"),
        ("a hash", crypted("x", f"$6${MARK}").encode(), r"password.*hash"),
    ]


def windows_passwords():
    return [
        ("two classes", f"{MARK.lower()}abcdefg1234".encode(), r"password.*(three|3|kinds|classes)"),
        ("the user's name", f"{MARK}-Administrator-1".encode(), r"password.*(user|account|name)"),
        ("128 bytes", (MARK + "xY1!" * 31)[:128].encode(), r"password.*(longer|127)"),
    ]


def hashes():
    good = crypted("x", f"$6${MARK}56789abcdef")
    salt, digest = good.rsplit("$", 1)
    return [(what, text.encode(), r"hash") for what, text in [
        ("yescrypt", f"$y$j9T${MARK}salt$F5Jx5fExrKuPp53xLKQ..1tnLbXfRvDk2PZiMUKDCx5"),
        ("MD5", f"$1${MARK}$qRPK7m23GJusamGpoGLby/"), ("DES", "ab01FAX.bQRSU"),
        ("bcrypt", f"$2b$12${MARK}xyzxyzxyzxyzxyzxyzu5d8B1eU7n1zGmC0QnZ0l9nE1l7yQ0m"), ("locked", "!"), ("no password", "*"),
        ("empty", ""), ("a locked hash", "!" + good), ("long salt", f"{salt}x$" + digest), ("short", good[:-1]),
        ("long", good + "a"), ("alphabet", good[:-1] + "="), ("colon", good + ":1"), ("two lines", f"{good}\n{good}\n"),
        ("salt's alphabet", good.replace(MARK, "Mk7:q")), ("few rounds", good.replace("$6$", "$6$rounds=10$")),
    ]]


def ssh_keys(seeds):
    def blob(*fields):
        raw = b"".join(struct.pack(">I", len(field)) + field for field in fields)
        return base64.b64encode(raw).decode()

    path = seeds.path()
    tool("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", MARK, "-f", path)
    with open(path, encoding="utf-8") as file:
        private = file.read()
    key = seeds.key("plain")
    kind, body, _ = key.split(" ", 2)
    small = seeds.path()
    tool("ssh-keygen", "-q", "-t", "rsa", "-b", "1024", "-N", "", "-f", small)
    with open(f"{small}.pub", encoding="utf-8") as file:
        rsa = file.read()
    many = "".join(f"{kind} {blob(b'ssh-ed25519', bytes([number]) * 32)} k\n" for number in range(65))
    dss = blob(b"ssh-dss", *(b"\x01" * 64,) * 4)
    certificate = blob(b"ssh-ed25519-cert-v01@openssh.com", b"x" * 32, b"y" * 32)
    return [(what, text.encode() if isinstance(text, str) else text, r"key") for what, text in [
        ("private", private), ("options", f'command="/bin/sh" {key}\n'), ("from=", f'from="*" {key}\n'), ("DSA", f"ssh-dss {dss} x\n"),
        ("certificate", f"ssh-ed25519-cert-v01@openssh.com {certificate} x\n"), ("RSA of 1024 bits", rsa),
        ("unknown algorithm", f"ssh-foo {blob(b'ssh-foo', b'x' * 32)} x\n"), ("another algorithm within", f"ssh-rsa {body} x\n"),
        ("rest behind it", f"{kind} {base64.b64encode(base64.b64decode(body) + b'more').decode()} x\n"), ("no base64", f"{kind} !!!! x\n"),
        ("escape in the comment", f"{key}\x1b[2J\n"), ("NUL in the comment", f"{key}\0{key}\n"), ("CR in the comment", f"{key}\r{key}\n"),
        ("too long", f"{kind} {body} {'c' * 20000}\n"), ("65 keys", many), ("none", "# nothing\n\n"), ("empty", ""),
        ("not UTF-8", key.encode() + b"\xff\n"),
    ]]


# Flag, value, what the message says; all beside a good password.
VALUES = [
    *(("--user", value, r"user") for value in ("Root", "default", "a:b", "a/b", "a\nb", "-a", "123", "a" * 33, "", "a b", "ё")),
    *(("--hostname", value, r"host ?name") for value in ("-a", "a-", "a_b", "a" * 64, ".".join(["a" * 60] * 5), "", "a..b", "a b", "a\nb")),
    *(("--instance-id", value, r"instance.id") for value in (
        "", "nocloud", "iid-dsconfigdrive", "a/b", "a\nb", "..", ".", "a\x7fb", "x" * 300, "../../etc")),
]
WINDOWS_VALUES = [
    *(("--user", value, r"user") for value in ("a" * 21, 'a"b', "a/b", "a[b", "a:b", "a.", "a@b", "", "...")),
    ("--hostname", "a" * 16, r"host ?name"),
]
NETWORKS = [("a list", "- a\n"), ("text", "hello\n"), ("no version", "ethernets: {}\n"), ("version 3", "version: 3\n"),
            ("version 1 without config", "version: 1\n"), ("no YAML", "version: 2\n  ethernets: [\n"), ("not UTF-8", b"version: 2 #\xff\n"),
            ("NUL", "version: 2\0\n"), ("empty", ""), ("another config", "config: enabled\n")]
USER_DATA = [("no known beginning", "hello\n"), ("over 1 MiB", "#!/bin/sh\n" + "#" * (1 << 20)), ("empty", ""),
             ("MIME without boundary", "Content-Type: multipart/mixed\nMIME-Version: 1.0\n\nhello\n"),
             ("a mark before it", "\ufeff#cloud-config\n{}\n"), ("a cut gzip", b"\x1f\x8b\x08\x00\x00\x00\x00\x00")]
DANGERS = [
    ("disk_setup", config(disk_setup={"/dev/vdb": {"table_type": "gpt", "layout": True, "overwrite": True}})),
    ("fs_setup", config(fs_setup=[{"device": "/dev/vdb", "filesystem": "ext4", "overwrite": True}])),
    ("bootcmd mkfs", config(bootcmd=[["mkfs.ext4", "-F", "/dev/vdb"]])), ("runcmd wipefs", config(runcmd=["wipefs -a /dev/sdb"])),
    ("runcmd parted", config(runcmd=[["parted", "-s", "/dev/vdb", "mklabel", "gpt"]])),
    ("growpart", config(growpart={"mode": "auto", "devices": ["/", "/dev/vdb1"]})),
    ("a script", "#!/bin/sh\nset -e\nmkfs.xfs -f /dev/disk/by-id/virtio-data\n"),
]
WIPE = {"/dev/vdb": {"table_type": "gpt", "layout": True, "overwrite": True}}
SETUP = config(disk_setup=WIPE)
# The same in other clothes, each of which cloud-init or the shell takes off.
DANGERS += [
    ("gzip", squeezed(SETUP)), ("CRLF", SETUP.replace("\n", "\r\n")), ("MIME", mime(("text/cloud-config", SETUP.split("\n", 1)[1]))),
    ("gzip of MIME", squeezed(mime(("text/cloud-config", SETUP)))), ("MIME of plain text", mime(("text/plain", SETUP))),
    ("an archive", '#cloud-config-archive\n- {type: text/cloud-config, content: "#cloud-config\\ndisk_setup: {/dev/vdb: {overwrite: true}}"}\n'),
    ("merge keys", "#cloud-config\nx: &x {disk_setup: {/dev/vdb: {overwrite: true}}}\n<<: *x\n"),
    ("an escaped key", '#cloud-config\n"disk\\x5fsetup": {/dev/vdb: {overwrite: true}}\n'),
    ("a key that stands twice", "#cloud-config\ndisk_setup: {}\ndisk_setup: {/dev/vdb: {overwrite: true}}\n"),
    ("jinja", "## template: jinja\n#cloud-config\ndisk_setup: {/dev/vdb: {overwrite: true}}\n"),
    ("a boothook", "#cloud-boothook\n#!/bin/sh\nmkfs.ext4 -F /dev/vdb\n"), ("a JSON patch",
     '#cloud-config-jsonp\n[{"op": "add", "path": "/disk_setup", "value": {"/dev/vdb": {"overwrite": true}}}]\n'),
    ("a path", config(runcmd=["/usr/sbin/mkfs.ext4 -F /dev/vdb"])), ("a variable", config(runcmd=["D=/dev/vdb; mkfs.ext4 -F $D"])),
    ("dd", config(bootcmd=["dd if=/dev/zero of=/dev/vdb bs=1M count=1"])), ("sgdisk", config(bootcmd=[["sgdisk", "--zap-all", "/dev/vdb"]])),
    ("blkdiscard", config(runcmd=["blkdiscard -f /dev/vdb"])), ("pvcreate", config(runcmd=[["pvcreate", "-ff", "-y", "/dev/vdb"]])),
    ("mkswap", config(runcmd=["mkswap /dev/vdb"])), ("sh -c", config(runcmd=[["sh", "-c", "mkfs.ext4 /dev/vdb"]])),
    ("cryptsetup", config(runcmd=["cryptsetup luksFormat -q /dev/vdb /key"])), ("mdadm", config(runcmd=["mdadm --create /dev/md0 -l1 -n2 /dev/vdb /dev/vdc"])),
]
# What cannot be judged, and what gives the same account another password later.
WARNED = [("no YAML", "#cloud-config\na: [\n"), ("an include", "#include\nhttps://example.org/x\n"),
          ("a later password", config(runcmd=["echo debian:later-word | chpasswd"])),
          ("a script with a password", "#!/bin/sh\necho root:later-word | chpasswd\n")]
HARMLESS = [("growpart of /", config(growpart={"mode": "auto", "devices": ["/"]})), ("packages", config(packages=["mdadm"])),
            ("mounts", config(mounts=[["/dev/vdb", "/srv"]])), ("words", config(write_files=[{"path": "/x", "content": "see mkfs(8)"}]))]


class Refusals:
    def __init__(self, seeds, tally):
        self.seeds, self.tally = seeds, tally
        self.password = seeds.file(GOOD + "\n")

    def check(self, what, flags, says, codes=(13,), names=None, image=None):
        with case(self.tally, what):
            before = os.path.lexists(image) if image else False
            path, outcome = self.seeds.run(*flags, image=image)
            good = outcome.code in codes and before == os.path.lexists(path)
            if not self.tally.expect(good, f"{what}: exit {codes[0]} and no seed", outcome):
                return
            message = str(outcome.error.get("message"))
            self.tally.expect(re.search(says, message, re.IGNORECASE | re.DOTALL), f"{what}: the message names the rule", message)
            if names:
                told = f"{message} {outcome.error.get('path')}"
                self.tally.expect(names in told, f"{what}: the message names the file", told)
            shown = seen((outcome.out + outcome.err).encode(), {"secret": MARK})
            self.tally.expect(not shown, f"{what}: the secret is not shown", outcome.out[-300:])
            self.tally.expect(outcome.error.get("hint"), f"{what}: there is a hint")
            self.tally.expect(outcome.state == "untouched", f"{what}: untouched", outcome.state)

    def files(self, flag, table, *more):
        for what, data, says in table:
            path = self.seeds.file(data)
            # A rule of Windows is about several inputs at once; it names them by what they are.
            names = None if "windows" in more else path
            self.check(f"{flag}, {what}", (flag, path, *more), says, names=names)


def refusals(seeds, tally):
    by = Refusals(seeds, tally)
    password = ("--password-file", by.password)
    by.check("no credentials", (), r"no credential")
    by.files("--password-file", passwords())
    by.files("--password-file", windows_passwords(), "--os", "windows", "--user", "administrator")
    by.files("--password-hash-file", hashes())
    by.files("--ssh-key", ssh_keys(seeds))
    key, hashed = seeds.file(seeds.key()), seeds.file(crypted("x", "$6$0123456789abcdef"))
    by.check("windows, a key alone", ("--os", "windows", "--ssh-key", key), r"password")
    by.check("windows, a hash", ("--os", "windows", "--password-hash-file", hashed), r"hash")
    for flag, value, says in VALUES:
        by.check(f"{flag} {value[:40]!r}", (*password, f"{flag}={value}"), says)
    for flag, value, says in WINDOWS_VALUES:
        by.check(f"windows, {flag} {value[:40]!r}", (*password, "--os", "windows", f"{flag}={value}"), says)
    by.files("--network-config", [(what, data, r"network") for what, data in NETWORKS], *password)
    by.files("--user-data", [(what, data, r"user.data") for what, data in USER_DATA], *password)
    dangers(by, password)
    places(by, password)
    missing = seeds.path()
    for flag in ("--password-file", "--password-hash-file", "--ssh-key"):
        by.check(f"{flag} that is missing", (flag, missing), r"reading|No such|failed", names=missing)
    usage(by, password)
    scrub(by, password)
    untouched(by, password)


def dangers(by, password):
    """What would wipe a data disk again under a new instance-id, plain, within MIME and squeezed."""
    for what, data in DANGERS:
        path = by.seeds.file(data)
        by.check(f"user-data, {what}", (*password, "--user-data", path), r"user.data|line", names=path)
        with case(by.tally, f"user-data, {what}, allowed"):
            by.seeds.make(*password, "--user-data", path, "--allow-user-data-disk-setup")
            by.tally.expect(True, what)
    for what, data in HARMLESS:
        with case(by.tally, f"user-data, {what}: harmless"):
            _, report = by.seeds.make(*password, "--user-data", by.seeds.file(data))
            by.tally.expect(not report.get("warnings"), f"user-data, {what}: no warning", report.get("warnings"))
    for what, data in WARNED:
        with case(by.tally, f"user-data, {what}"):
            path, outcome = by.seeds.run(*password, "--user-data", by.seeds.file(data))
            warned = outcome.code == 0 and "user-data" in str(outcome.report.get("warnings"))
            by.tally.expect(warned or outcome.code == 13, f"user-data, {what}: a warning, or a refusal", outcome)


def places(by, password):
    """Where a seed must not lie."""
    folder = by.seeds.scratch.folder_of("places")
    for name, mode in (("open", 0o707), ("sticky", 0o1777), ("plain", 0o700)):
        os.mkdir(f"{folder}/{name}")
        os.chmod(f"{folder}/{name}", mode)
    os.symlink("plain/seed.iso", f"{folder}/link")
    os.mkfifo(f"{folder}/pipe")
    with open(f"{folder}/there", "w", encoding="utf-8"):
        pass
    by.check("a link", password, r"symbolic link", image=f"{folder}/link")
    by.check("a folder", password, r"folder", image=f"{folder}/plain")
    by.check("a pipe", password, r"plain file|pipe", image=f"{folder}/pipe")
    by.check("a device", password, r"device", image="/dev/null")
    by.check("an open folder", password, r"everybody|world", image=f"{folder}/open/seed.iso")
    by.check("a sticky folder", password, r"everybody|world", image=f"{folder}/sticky/seed.iso")
    by.check("no folder", password, r"folder|failed", image=f"{folder}/none/seed.iso")
    by.check("a file that is there", password, r"there already|exists", image=f"{folder}/there")


def usage(by, password):
    """There is no way to say a secret in the arguments or the environment."""
    with case(by.tally, "a password as an argument"):
        _, outcome = by.seeds.run("--password", MARK)
        by.tally.expect(outcome.code == 2, "--password is no flag", outcome)
    for name in ("PASSWORD", "REIMAGE_PASSWORD"):
        with case(by.tally, name):
            _, outcome = by.seeds.run(env={name: f"{MARK}abcdef"})
            by.tally.expect(outcome.code == 13, f"{name} is not read", outcome)
    with case(by.tally, "two passwords"):
        _, outcome = by.seeds.run(*password, "--password-hash-file", by.seeds.file(crypted("x", "$6$0123456789abcdef")))
        by.tally.expect(outcome.code in (2, 13), "a password and a hash are refused", outcome)


def scrub(by, password):
    """A scrubbed seed has an id that is given, and nothing secret."""
    by.check("--scrub without an id", ("--scrub",), r"instance.id", codes=(13, 2))
    by.check("--scrub with a password", ("--scrub", "--instance-id", ID, *password), r"scrub", codes=(13, 2))


def untouched(by, password):
    """Before a rebuild or plan opens anything for writing."""
    machine = Machine(by.seeds)
    cases = {
        "user": ("--user", "no:name"), "user-data": ("--user-data", by.seeds.file("hello\n")),
        "network": ("--network-config", by.seeds.file("- a\n")), "id": ("--instance-id", "nocloud"),
        "disk set-up": ("--user-data", by.seeds.file(DANGERS[0][1])),
    }
    def disk():
        with open(machine.disk, "rb") as file:
            return file.read(), os.fstat(file.fileno()).st_mtime_ns

    runs = [(name, machine.seed, flags) for name, flags in cases.items()]
    runs += [("the target as the seed", machine.disk, ()), ("a data disk as the seed", f"{machine.folder}/data", ("--data-disk", f"{machine.folder}/data")),
             ("the image as the seed", machine.image, ())]
    with open(f"{machine.folder}/data", "wb") as file:
        file.write(b"data" * 4096)
    for name, seed, flags in runs:
        for command in ("plan", "rebuild"):
            with case(by.tally, f"{command}, {name}"):
                yes = ("--yes",) if command == "rebuild" else ()
                before = disk()
                outcome = by.seeds.program.run(command, machine.image, machine.disk, "--seed", seed, *yes, *password, *flags)
                code = 11 if " as the " in name else 13
                by.tally.expect(outcome.code in {code, 13} and outcome.state == "untouched", f"{command}, {name}: exit {code}", outcome)
                by.tally.expect(disk() == before, f"{command}, {name}: as it was")
    with open(f"{machine.folder}/data", "rb") as file:
        by.tally.expect(file.read() == b"data" * 4096, "the data disk is as it was")
    ids(by, machine, password)


def ids(by, machine, password):
    """Two rebuilds have two ids, and the last one cannot be given again."""
    found = []
    for _ in range(2):
        with case(by.tally, "two rebuilds"):
            outcome = by.seeds.program.run("rebuild", machine.image, machine.disk, "--seed", machine.seed, "--yes", *password)
            ids_told = re.findall(r'"instance_id": "(ri-[0-9a-f-]{36})"', outcome.out)
            by.tally.expect(outcome.code == 0 and len(set(ids_told)) == 1, "a rebuild tells its id", outcome)
            found += ids_told[:1]
    by.tally.expect(len(set(found)) == 2, "two rebuilds have two ids", found)
    if found:
        with case(by.tally, "the last id again"):
            outcome = by.seeds.program.run("rebuild", machine.image, machine.disk, "--seed", machine.seed, "--yes", *password,
                                           "--instance-id", found[-1])
            by.tally.expect(outcome.code == 13 and re.search("instance.id", str(outcome.error.get("message"))),
                            "the last instance id is refused", outcome)


PARTS = {"refusals": refusals}
