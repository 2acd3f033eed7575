"""Whose images are taken: manifests signed by the real minisign, lists signed by the real gpg, the host's policy."""

import os
import shutil

import host
from host import MIB, tool

SIZE = 8 * MIB
IN_POLICY = "/etc/reimage/policy.toml"
# The program in a mount namespace of its own, with another folder as /etc; the host's stays as it is.
ELSEWHERE = 'mount --bind "$1" /etc && shift && exec "$@"'


def trust(program, scratch, tally):
    Lab(program, scratch, tally).run()


class Lab:
    def __init__(self, program, scratch, tally):
        self.program, self.scratch, self.tally = program, scratch, tally
        self.images = scratch.folder_of("images")
        self.image = self.image_of("base", 1)
        self.other = self.image_of("other", 2)
        self.file = scratch / "disk.raw"
        host.write(self.file, host.noise(9, SIZE))
        backing = scratch / "device.raw"
        host.write(backing, host.noise(10, SIZE))
        self.device = scratch.loop(backing)

    def image_of(self, name, rng_seed):
        raw, path = self.scratch / f"{name}.raw", os.path.join(self.images, f"{name}.qcow2")
        host.write(raw, host.noise(rng_seed, 3 * MIB + 4096))
        tool("truncate", "--size", SIZE, raw)
        tool("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, path)
        return path

    def run(self):
        self.minisign()
        self.gpgv()
        self.policy()

    def refused(self, name, code, image, *flags, said="", **more):
        """A plan and two rebuilds, of a file and of a device, end with this code and change nothing."""
        for target in (self.file, self.device):
            before = host.checksum(target)
            for command in ("plan", "rebuild"):
                words = (image, target, "--keep-image-credentials", *flags)
                outcome = self.program.run(command, *words, *(["--yes"] if command == "rebuild" else []), **more)
                right = outcome.code == code and any(said in message for message in outcome.messages)
                self.tally.expect(right, f"{name}: {command} onto {target}", outcome)
                untouched = outcome.state == "untouched" and host.checksum(target) == before
                self.tally.expect(untouched, f"{name}: {target} is untouched", outcome)

    def taken(self, name, image, *flags, **more):
        """A rebuild goes well, and the disk is an old one again afterwards."""
        for target in (self.file, self.device):
            outcome = self.program.rebuild(image, target, *flags, **more)
            self.tally.expect(outcome.code == 0, f"{name}: {target}", outcome)
            host.write(target, host.noise(9, SIZE))

    # Manifests

    def sign(self, key, manifest, *flags):
        tool("minisign", "-S", "-s", self.scratch / f"{key}.key", "-m", manifest, *flags)

    def manifest_of(self, image):
        path = image + ".manifest.json"
        outcome = self.program.run("manifest", image, "--output", path)
        self.tally.expect(outcome.code == 0, f"a manifest of {os.path.basename(image)}", outcome)
        return path

    def minisign(self):
        for key in ("mine", "other"):
            words = ("-p", self.scratch / f"{key}.pub", "-s", self.scratch / f"{key}.key")
            tool("minisign", "-G", "-W", *words)
        key = ("--trust-key", self.scratch / "mine.pub")
        self.refused("no manifest", 21, self.image, *key, said="no manifest")
        manifest = self.manifest_of(self.image)
        signature = manifest + ".minisig"
        self.refused("no signature", 21, self.image, *key, said="no signature")
        self.sign("mine", manifest)
        self.taken("a signed manifest", self.image, *key)
        self.taken("two keys", self.image, "--trust-key", self.scratch / "other.pub", *key)
        self.refused("another key", 21, self.image, "--trust-key", self.scratch / "other.pub", said="trusted keys")
        self.refused("no manifest at all", 21, self.image, *key, "--manifest", "none")
        text = open(manifest, "rb").read()
        self.one_chunk_changed(manifest, text, key)
        self.replayed(manifest, signature, key)
        self.sign("mine", manifest, "-l")
        self.refused("the legacy form", 21, self.image, *key, said="legacy")
        for name, junk in (("empty", b""), ("noise", host.noise(3, 300)), ("endless", b"a" * 100_000)):
            host.make(signature, 0)
            host.write(signature, junk)
            self.refused(f"a signature that is {name}", 21, self.image, *key)
        os.unlink(signature)
        self.refused("a signature that is gone", 21, self.image, *key, "--preflight", "tables")
        self.sign("mine", manifest)

    def one_chunk_changed(self, manifest, text, key):
        """The digest of one chunk is another: told by the signature, and where that is right by the content."""
        # The SHA-256 is there for other programs, and is not compared.
        sha256 = text.index(host.checksum(self.image).encode())
        digests = [at for at in range(len(text) - 64) if is_digest(text[at : at + 64])]
        digests.remove(sha256)
        self.tally.expect(len(digests) > 4, "the manifest has digests", len(digests))
        for at in digests:
            digit = b"0" if text[at : at + 1] != b"0" else b"1"
            host.write(manifest, text[:at] + digit + text[at + 1 :])
            outcome = self.program.rebuild(self.image, self.device, *key)
            self.tally.expect(outcome.code == 21, f"a digest at {at} is changed", outcome)
            # Signed as it is now, it still is not the image's.
            self.sign("mine", manifest)
            outcome = self.program.rebuild(self.image, self.device, *key)
            name = f"a digest at {at} is changed and signed"
            self.tally.expect(outcome.code == 21, name, outcome)
            self.tally.expect(outcome.state == "untouched", name, outcome)
            host.write(manifest, text)
            self.sign("mine", manifest)
        self.taken("the manifest as it was", self.image, *key)

    def replayed(self, manifest, signature, key):
        """A manifest that is rightly signed, and another image's."""
        for name in (manifest, signature):
            shutil.copy(name, name.replace("base", "other"))
        self.refused("another image's manifest", 21, self.other, *key)
        self.refused("another image's manifest", 21, self.other, *key, "--preflight", "tables")
        # The image with a byte that no table points to, and under the other's name.
        longer = os.path.join(self.images, "longer.qcow2")
        shutil.copy(self.image, longer)
        with open(longer, "ab") as image:
            image.write(b"x")
        self.refused("a longer image", 21, longer, *key, "--manifest", manifest)

    # Lists

    def gpgv(self):
        home = self.scratch.folder_of("gnupg")
        os.chmod(home, 0o700)
        gpg = ("gpg", "--batch", "--quiet", "--no-tty", "--yes", "--homedir", home)
        try:
            for name, more in (("good", ()), ("unknown", ()), ("expired", ("--faked-system-time", "20200101T000000"))):
                lasts = "2d" if more else "never"
                words = ("--passphrase", "", "--quick-gen-key", f"{name}@example.org", "ed25519", "sign", lasts)
                tool(*gpg, *more, *words)
            self.lists(gpg)
        finally:
            tool("gpgconf", "--homedir", home, "--kill", "all")

    def lists(self, gpg):
        sums, keyring = self.scratch / "SHA256SUMS", self.scratch / "keys.gpg"
        tool(*gpg, "--output", keyring, "--export", "good@example.org", "expired@example.org")
        flags = ("--sha256sums", sums, "--keyring", keyring)

        def signed(by, *more, name=self.image, of=self.image, style="{0} *{1}\n"):
            for ending in ("", ".sig"):
                if os.path.exists(sums + ending):
                    os.unlink(sums + ending)
            host.write(sums, style.format(host.checksum(of), os.path.basename(name)).encode())
            mode = ("--output", sums + ".sig", "--detach-sign")
            tool(*gpg, *more, "--local-user", f"{by}@example.org", *mode, sums)

        signed("good")
        self.taken("a signed list", self.image, *flags)
        signed("good", style="# a list\nSHA256 ({1}) = {0}\n")
        self.taken("a list in BSD's style", self.image, *flags)
        tool(*gpg, "--local-user", "good@example.org", "--output", sums + ".clear", "--clearsign", sums)
        self.taken("a clear-signed list", self.image, "--sha256sums", sums + ".clear", "--keyring", keyring)
        self.refused("another image's line", 21, self.other, *flags, said="no SHA-256 of")
        signed("good", of=self.other)
        self.refused("another image's digest", 21, self.image, *flags, "--preflight", "tables", said="SHA-256 is")
        # Text around the signed one is not signed.
        clear = open(sums + ".clear", "rb").read()
        line = f"{host.checksum(self.other)}  other.qcow2\n".encode()
        host.write(sums + ".clear", clear + line)
        beside = ("--sha256sums", sums + ".clear", "--keyring", keyring)
        self.refused("a line behind the signed ones", 21, self.other, *beside)
        changed = clear.replace(b"base.qcow2", b"othe.qcow2")
        host.make(sums + ".clear", 0)
        host.write(sums + ".clear", changed)
        self.refused("a clear-signed list that was changed", 21, self.image, *beside)
        signed("good")
        with open(sums, "ab") as more:
            more.write(line)
        self.refused("a list that was changed", 21, self.image, *flags, said="does not belong")
        signed("unknown")
        self.refused("an unknown key", 21, self.image, *flags, said="not in the keyring")
        signed("expired", "--faked-system-time", "20200101T010000")
        self.refused("an expired key", 21, self.image, *flags, said="expired")
        os.unlink(sums + ".sig")
        self.refused("no signature", 21, self.image, *flags, said="no signature")
        self.refused("no keyring", 2, self.image, "--sha256sums", sums)
        signed("good")
        # Where there is no gpgv, nothing is believed.
        hidden = ("unshare", "--mount", "sh", "-c", 'mount --bind /dev/null "$(readlink -f /usr/bin/gpgv)" && exec "$@"', "sh")
        self.refused("no gpgv", 2, self.image, *flags, said="gpgv cannot be run", before=hidden)
        left = [name for name in os.listdir("/proc/self/fd") if "memfd" in os.path.realpath(f"/proc/self/fd/{name}")]
        self.tally.expect(not left, "nothing is left open", left)

    # The host's policy

    def policy(self):
        self.etc = self.scratch / "etc"
        tool("cp", "--archive", "/etc", self.etc)
        os.makedirs(os.path.join(self.etc, "reimage"), exist_ok=True)
        self.path = os.path.join(self.etc, "reimage", "policy.toml")
        self.inside = ("unshare", "--mount", "sh", "-c", ELSEWHERE, "sh", self.etc)
        self.signed_manifests()
        self.places()
        self.broken()
        self.taken("no policy", self.image, before=self.inside)

    def host_says(self, lines, mode=0o644):
        if os.path.lexists(self.path):
            os.unlink(self.path)
        with open(self.path, "w", encoding="ascii") as policy:
            policy.write(lines)
        os.chmod(self.path, mode)

    def forbidden(self, name, code, *flags, image=None, said=IN_POLICY):
        self.refused(name, code, image or self.image, *flags, said=said, before=self.inside)

    def signed_manifests(self):
        shutil.copy(self.scratch / "mine.pub", os.path.join(self.etc, "reimage", "mine.pub"))
        self.host_says('require_signed_manifests = true\nallowed_keys = ["mine.pub"]\n')
        self.taken("a signed manifest, as the policy wants it", self.image, before=self.inside)
        manifest = self.image + ".manifest.json"
        self.forbidden("without the manifest", 21, "--manifest", "none")
        self.forbidden("another key", 21, "--trust-key", self.scratch / "other.pub")
        self.sign("other", manifest)
        self.forbidden("a manifest by another key", 21, said="trusted keys")
        self.forbidden("a manifest by another key", 21, "--trust-key", self.scratch / "other.pub")
        os.unlink(manifest + ".minisig")
        self.forbidden("no signature", 21, "--preflight", "tables", said="no signature")
        os.rename(manifest, manifest + ".away")
        self.forbidden("no manifest", 21)
        os.rename(manifest + ".away", manifest)
        self.sign("mine", manifest)

    def places(self):
        self.host_says(f'allowed_image_folders = ["{self.images}"]\n')
        self.taken("an allowed folder", self.image, before=self.inside)
        outside, link = self.scratch / "outside.qcow2", os.path.join(self.images, "link.qcow2")
        shutil.copy(self.image, outside)
        os.symlink(outside, link)
        looser = self.scratch / "looser.toml"
        host.write(looser, f'allowed_image_folders = ["{self.scratch.folder}", "/"]\n'.encode())
        for image in (outside, link):
            name = f"{os.path.basename(image)} is outside"
            self.forbidden(name, 20, image=image)
            self.forbidden(name, 20, "--policy", looser, image=image)
        overlay = os.path.join(self.images, "overlay.qcow2")
        tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", outside, overlay)
        self.forbidden("a base outside", 20, "--allow-backing", self.scratch.folder, image=overlay)
        self.host_says("forbid_backing = true\n")
        self.forbidden("a backing file", 20, "--allow-backing", self.scratch.folder, image=overlay)
        self.taken("an image without one", self.image, before=self.inside)

    def broken(self):
        """Where the policy cannot be relied on or understood, nothing runs."""
        self.host_says("forbid_backing = true\ncolour = 1\n")
        self.forbidden("an unknown key", 2)
        for mode in (0o664, 0o646):
            self.host_says("", mode)
            self.forbidden(f"mode {mode:o}", 2, said="others than root may write")
        self.host_says("")
        os.chown(self.path, 1, 0)
        self.forbidden("another owner", 2, said="belongs to user 1")
        self.host_says("")
        os.chmod(os.path.dirname(self.path), 0o777)
        self.forbidden("a folder that everybody may write", 2, said="others than root may write")
        os.chmod(os.path.dirname(self.path), 0o755)
        for name, make in (
            ("a link to nothing", lambda: os.symlink("nowhere.toml", self.path)),
            ("a folder in its place", lambda: os.mkdir(self.path)),
            ("a pipe in its place", lambda: os.mkfifo(self.path)),
        ):
            os.unlink(self.path)
            make()
            self.forbidden(name, 2)
            if os.path.isdir(self.path):
                os.rmdir(self.path)
                self.host_says("")
        with open(os.path.join(self.etc, "real.toml"), "w", encoding="ascii") as real:
            real.write("allowed_image_folders = []\n")
        os.unlink(self.path)
        os.symlink("../real.toml", self.path)
        self.forbidden("a link to a policy", 20)
        os.unlink(self.path)


def is_digest(text):
    return len(text) == 64 and all(digit in b"0123456789abcdef" for digit in text)
