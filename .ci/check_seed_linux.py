"""Linux seeds in guests: the real cloud-init boots from them, and /etc/shadow and authorized_keys are judged.

The guests are private images: they ran before under another instance-id, with the old passwords and keys
of root, the default user, the user that is named, and somebody else.
"""

import itertools
import re

import guest
from host import Broken
from seeds import accepts, config, content, crypted, discard, mime, probe, squeezed

OLD, NEW, CUSTOMER = "0ld password ё", "n3w pass: #word 🔑", "what the customer wrote"
USERS = (None, "root", "web-1")
SECRETS = ("password", "key", "both")
FIRST = "i-first"
STATIC = "auto ens3\niface ens3 inet static\n    address 192.0.2.7/24\n"


def target_of(user):
    return user or guest.DEFAULT_USER


def customers(account):
    """What customers write beside us, by name: (bytes or text, whether it makes the user carol)."""
    carol = {"name": "carol", "gecos": "made by the customer"}
    listed = f"{account}:{CUSTOMER}\nalice:{CUSTOMER}\n"
    named = [{"name": account, "password": CUSTOMER, "type": "text"}]
    script = "#!/bin/sh\necho ran > /root/script-ran\n"
    with_default = config(users=["default", carol])
    return {
        "users with default": (with_default, True),
        "users without default": (config(users=[carol]), True),
        "chpasswd list": (config(chpasswd={"list": listed, "expire": True}), False),
        "chpasswd users": (config(chpasswd={"users": named, "expire": True}, users=["default", carol]), True),
        "password": (config(password=CUSTOMER, ssh_pwauth=False, disable_root=True), False),
        "script": (script, False),
        "MIME": (mime(("text/cloud-config", config(users=[carol])), ("text/x-shellscript", script)), True),
        "gzip": (squeezed(config(users=[carol])), True),
        "jinja": (f"## template: jinja\n{with_default}", True),
    }


class Guests:
    """Guests that are copies of one another."""

    def __init__(self, seeds):
        self.seeds = seeds
        # useradd and its kin sync each file that they write: in memory that costs nothing.
        self.memory, self.count = seeds.scratch.tmpfs("guests", "1g"), itertools.count()
        self.old_key, self.new_key = seeds.key("old"), seeds.key("new №1 🔑")
        self.fresh = self.place()
        guest.make(self.fresh)
        self.private = self.ran_before()

    def place(self):
        return f"{self.memory}/{next(self.count)}"

    def ran_before(self):
        """A machine that its owner used, and then made an image of."""
        root = guest.copy(self.fresh, self.place())
        accounts = ["root", guest.DEFAULT_USER, "web-1", "alice"]
        users = [{"name": name, "ssh_authorized_keys": [self.old_key]} for name in accounts]
        users[3]["homedir"] = "/srv/alice"
        hashed = [{"name": name, "password": crypted(OLD), "type": "hash"} for name in accounts]
        settings = {"users": ["default", *users], "disable_root": False,
                    "chpasswd": {"expire": False, "users": hashed}}
        cdrom = self.seeds.scratch.folder_of("first-cdrom")
        guest.write(f"{cdrom}/meta-data", f"instance-id: {FIRST}\n")
        guest.write(f"{cdrom}/user-data", config(**settings))
        guest.write(f"{root}/etc/network/interfaces.d/50-cloud-init", STATIC)
        guest.write(f"{cdrom}/network-config", '{"config": "disabled"}\n')
        guest.write(f"{root}/srv/.keep", "")
        guest.boot(root, cdrom, "cidata")
        # sshd reads this file too.
        guest.write(f"{root}/srv/alice/.ssh/authorized_keys2", f"{self.old_key}\n", 0o600)
        for name in accounts:
            if not accepts(guest.shadow(root)[name][0], OLD) or self.old_key not in guest.keys(root, name):
                raise Broken(f"the private image has no old credentials of {name}")
        return root

    def flags(self, user, secret):
        flags = ["--user", user] if user else []
        if secret in ("password", "both"):
            flags += ["--password-file", self.seeds.file(NEW + "\n")]
        if secret in ("key", "both"):
            flags += ["--ssh-key", self.seeds.file(self.new_key + "\n")]
        return flags

    def boot(self, flags, base=None):
        """A copy of the guest after its first boot from a seed: (folder, log)."""
        image, _ = self.seeds.make(*flags, image=f"{self.place()}.iso")
        return self.boot_from(image, guest.copy(base or self.private, self.place()))

    def boot_from(self, image, root):
        cdrom = self.seeds.extract(image)
        log = guest.boot(root, cdrom, probe(image)["LABEL"])
        discard(cdrom)
        return root, log


def judge(tally, what, root, log, user, secret, new_key):
    """Whether the account got what was asked for, and nothing else lets it in."""
    account = target_of(user)
    field, changed = guest.shadow(root).get(account, ("", ""))
    if secret in ("password", "both"):
        tally.expect(accepts(field, NEW), f"{what}: the new password lets in", field[:4])
    else:
        tally.expect(field[:1] in ("!", "*"), f"{what}: the account has no password", field[:4])
    for password in (OLD, CUSTOMER, ""):
        tally.expect(not accepts(field, password), f"{what}: {password!r} does not let in", field[:4])
    tally.expect(changed != "0", f"{what}: the password need not be changed at the first login")
    lines = [line for line in guest.keys(root, account) if line.endswith(new_key)]
    wanted = [new_key] if secret in ("key", "both") else []
    tally.expect(lines == wanted, f"{what}: the key is in authorized_keys, without a forced command", lines)
    bad = re.findall(r".*(?:WARNING|ERROR|CRITICAL|Traceback|[Dd]eprecat|DEPRECAT).*", log)
    bad = [line for line in bad if "authorized_keys" not in line or "Traceback" in line]
    return bad


def forms(seeds, tally):
    """Each user with each kind of credential, alone: on a public image and on a private one."""
    guests = Guests(seeds)
    for user in USERS:
        for secret in SECRETS:
            for name, base in (("public image", guests.fresh), ("private image", guests.private)):
                what = f"{target_of(user)}, {secret}, {name}"
                root, log = guests.boot(guests.flags(user, secret), base)
                bad = judge(tally, what, root, log, user, secret, guests.new_key)
                tally.expect(not bad, f"{what}: cloud-init warns of nothing", bad)
                if base is guests.private:
                    stays(tally, what, root, guests, target_of(user), secret)
                discard(root)
    identity(seeds, guests, tally)
    network(seeds, guests, tally)


def stays(tally, what, root, guests, account, secret):
    """Without --revoke-image-credentials all that was not named keeps letting in, as documented."""
    for other in ("root", guest.DEFAULT_USER, "web-1", "alice"):
        tally.expect(guests.old_key in guest.keys(root, other), f"{what}: the old key of {other} stays")
        # Whenever users are named, cloud-init locks the image's default user; that is its own rule.
        if other not in (account, guest.DEFAULT_USER):
            tally.expect(accepts(guest.shadow(root)[other][0], OLD), f"{what}: the old password of {other} stays")


def identity(seeds, guests, tally):
    """Only a new instance-id makes cloud-init run again; a scrubbed seed has the old one."""
    for user in USERS:
        account = target_of(user)
        given = [*guests.flags(user, "both"), "--instance-id", FIRST]
        root, _ = guests.boot(given)
        tally.expect(accepts(guest.shadow(root)[account][0], OLD) and guests.new_key not in guest.keys(root, account),
                     f"{account}: the same instance-id changes nothing")
        discard(root)

        image, report = seeds.make(*guests.flags(user, "both"))
        root, _ = guests.boot_from(image, guest.copy(guests.private, guests.place()))
        before = guest.shadow(root), guest.keys(root, account)
        _, scrubbed = seeds.make("--scrub", "--instance-id", report["instance_id"], "--replace", image=image)
        tally.expect(scrubbed["instance_id"] == report["instance_id"], f"{account}: a scrubbed seed keeps its id")
        texts = scrubbed_texts(seeds, image)
        tally.expect(not any(word in texts for word in (b"$6$", b"$5$", b"passw", NEW.encode())),
                     f"{account}: a scrubbed seed holds no secret", texts)
        _, log = guests.boot_from(image, root)
        tally.expect((guest.shadow(root), guest.keys(root, account)) == before and "NoCloud" in log,
                     f"{account}: cloud-init leaves the password as it is after --scrub")
        discard(root)


def scrubbed_texts(seeds, image):
    """All that a seed holds: its files, and the bytes between them."""
    folder = seeds.extract(image)
    with open(image, "rb") as file:
        return file.read() + b"".join(content(folder, name) for name in ("meta-data", "user-data"))


def network(seeds, guests, tally):
    """A static set-up stays with `keep`, and gives way to a file that is given."""
    path = "etc/network/interfaces.d/50-cloud-init"
    given = "version: 2\nethernets: {eth0: {addresses: [198.51.100.9/24]}}\n"
    for what, flags, kept in (("keep", ["--network", "keep"], True),
                              ("a file", ["--network-config", seeds.file(given)], False)):
        root, _ = guests.boot([*guests.flags(None, "key"), "--hostname", "web-7", *flags])
        with open(f"{root}/{path}", encoding="utf-8") as file:
            text = file.read()
        found = (text == STATIC, "198.51.100.9" in text)
        tally.expect(found == (kept, not kept), f"--network {what}: the guest's configuration", text)
        with open(f"{root}/etc/hostname", encoding="utf-8") as file:
            tally.expect(file.read().strip() == "web-7", f"--network {what}: the host name arrives")
        discard(root)


def user_data(seeds, tally):
    """Beside each kind of customer's user-data: our credentials win, and the customer's work is done."""
    guests = Guests(seeds)
    for number, user in enumerate(USERS):
        for place, (name, (data, carol)) in enumerate(customers(target_of(user)).items()):
            # The default user is where accounts get lost; the others take turns.
            secrets = SECRETS if user is None else (SECRETS[(number + place) % 3],)
            # A key with a password of the customer's own for the same account is warned of, not refused.
            if name in ("chpasswd list", "chpasswd users", "password"):
                secrets = [secret for secret in secrets if secret != "key"] or ["both"]
            for secret in secrets:
                what = f"{target_of(user)}, {secret}, beside {name}"
                flags = [*guests.flags(user, secret), "--user-data", seeds.file(data)]
                root, log = guests.boot(flags)
                bad = judge(tally, what, root, log, user, secret, guests.new_key)
                tally.expect(not bad or name == "chpasswd list", f"{what}: cloud-init warns of nothing", bad)
                tally.expect(("carol" in guest.homes(root)) == carol, f"{what}: the customer's user is made")
                ran = name in ("script", "MIME")
                tally.expect(exists(root, "root/script-ran") == ran, f"{what}: the customer's script ran")
                discard(root)


def exists(root, path):
    try:
        with open(f"{root}/{path}", encoding="utf-8"):
            return True
    except FileNotFoundError:
        return False


def revoke(seeds, tally):
    """With --revoke-image-credentials nothing of the image lets in any more, and only once per instance."""
    guests = Guests(seeds)
    data = customers("root")["users without default"][0]
    for user in USERS:
        for secret in SECRETS:
            beside = ("--user-data", seeds.file(data)) if secret == "both" else ()
            account, what = target_of(user), f"{target_of(user)}, {secret}, revoked"
            image, report = seeds.make(*guests.flags(user, secret), *beside, "--revoke-image-credentials")
            root, log = guests.boot_from(image, guest.copy(guests.private, guests.place()))
            bad = judge(tally, what, root, log, user, secret, guests.new_key)
            tally.expect(not bad, f"{what}: cloud-init warns of nothing", bad)
            for other in ("root", guest.DEFAULT_USER, "web-1", "alice"):
                field = guest.shadow(root)[other][0]
                tally.expect(not accepts(field, OLD), f"{what}: the old password of {other} is gone")
                tally.expect(field != "", f"{what}: {other} has no empty password")
                tally.expect(guests.old_key not in " ".join(guest.keys(root, other)),
                             f"{what}: the old key of {other} is gone", guest.keys(root, other))
            again(tally, what, guests, image, root)
            discard(root)
    root, _ = guests.boot([*guests.flags(None, "both"), "--revoke-image-credentials"], guests.fresh)
    tally.expect(accepts(guest.shadow(root)[guest.DEFAULT_USER][0], NEW), "revoked on a public image")


def again(tally, what, guests, image, root):
    """What the owner adds later outlives the next boot from the same seed."""
    guest.write(f"{root}/srv/alice/.ssh/authorized_keys", f"{guests.old_key}\n", 0o600)
    before = guest.shadow(root)
    guests.boot_from(image, root)
    tally.expect(guests.old_key in guest.keys(root, "alice") and guest.shadow(root) == before,
                 f"{what}: the next boot revokes nothing more")


def config_drive(seeds, tally):
    """Images that read ConfigDrive only: the password comes by user_data there."""
    guests = Guests(seeds)
    for user in USERS:
        for secret in SECRETS:
            what = f"{target_of(user)}, {secret}, config drive"
            flags = [*guests.flags(user, secret), "--seed-format", "config-drive", "--hostname", "web-9"]
            root, log = guests.boot(flags)
            bad = judge(tally, what, root, log, user, secret, guests.new_key)
            tally.expect(not bad and "DataSourceConfigDrive" in log, f"{what}: cloud-init reads it", bad)
            discard(root)


PARTS = {"user-data": user_data, "forms": forms, "revoke": revoke, "config-drive": config_drive}
