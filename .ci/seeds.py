"""What the checks of seeds share: making one with the program, taking it apart, keys and passwords."""

import contextlib
import gzip
import itertools
import json
import os
import shutil
import warnings

from host import Broken, Program, tool

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import crypt

CHEAP = "$5$rounds=1000$oldoldoldoldold1"


def crypted(password, salt=CHEAP):
    """crypt(3), cheap where the strength does not matter."""
    return crypt.crypt(password, salt)


def accepts(field, password):
    """Whether a field of /etc/shadow lets a password in, by crypt(3)."""
    return field[:1] not in ("", "!", "*") and crypt.crypt(password, field) == field


class Seeds:
    """Makes seeds with the program, in a folder of its own."""

    def __init__(self, binary, scratch):
        self.scratch = scratch
        self.program = Program(binary, scratch)
        self.count = itertools.count()

    def path(self, suffix=""):
        return self.scratch / f"{next(self.count)}{suffix}"

    def file(self, data, mode=0o600):
        """A file with this text or these bytes."""
        path = self.path()
        with open(path, "wb") as file:
            file.write(data if isinstance(data, bytes) else data.encode())
        os.chmod(path, mode)
        return path

    def key(self, comment="ops №1 🔑"):
        """A public key, as ssh-keygen writes it."""
        path = self.path()
        tool("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path)
        with open(f"{path}.pub", encoding="utf-8") as file:
            return file.read().strip()

    def run(self, *flags, image=None, **more):
        """The seed's path and what the program said; `image` replaces a seed that is there."""
        path = image or self.path(".iso")
        return path, self.program.run("seed", "--seed", path, *flags, **more)

    def make(self, *flags, **more):
        """The seed's path and its report; a seed that cannot be made is a failure."""
        path, outcome = self.run(*flags, **more)
        if outcome.code != 0 or not os.path.isfile(path):
            said = outcome.error.get("message", outcome.err[-300:])
            raise Broken(f"no seed was made of {' '.join(map(str, flags))}: exit {outcome.code}: {said}")
        return path, outcome.report

    def extract(self, image):
        """The folder with a seed's files: by Rock Ridge names, or by mtools."""
        folder = self.scratch.folder_of(str(next(self.count)))
        if probe(image)["TYPE"] == "iso9660":
            tool("xorriso", "-osirrox", "on", "-indev", image, "-extract", "/", folder)
        else:
            tool("mcopy", "-s", "-n", "-i", image, "::*", folder)
        # Rock Ridge gives the files 0400 and the folders 0500: for root that is no hindrance.
        return folder


@contextlib.contextmanager
def case(tally, what):
    """One case of many: where it cannot be made, that is one failure, and the others go on."""
    try:
        yield
    except (Broken, OSError, KeyError, ValueError) as broken:
        tally.expect(False, what, f"it could not be made: {type(broken).__name__}: {str(broken)[:700]}")


def probe(image):
    return dict(line.split("=", 1) for line in tool("blkid", "-p", "-o", "export", image).splitlines())


def content(folder, name):
    with open(os.path.join(folder, name), "rb") as file:
        return file.read()


def mime(*parts):
    """A customer's own MIME document of (type, text)."""
    text = 'Content-Type: multipart/mixed; boundary="==customer=="\nMIME-Version: 1.0\n\n'
    for kind, body in parts:
        text += f'--==customer==\nContent-Type: {kind}; charset="utf-8"\nMIME-Version: 1.0\n\n{body}\n'
    return text + "--==customer==--\n"


def squeezed(text):
    return gzip.compress(text.encode(), mtime=0)


def config(**keys):
    """A customer's cloud-config."""
    return "#cloud-config\n" + json.dumps(keys) + "\n"


def discard(folder):
    shutil.rmtree(folder, ignore_errors=True)
