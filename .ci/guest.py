"""A throw-away Debian guest, in which the real cloud-init runs: /usr is the host's, all else is its own.

A guest is a folder. Booting it forks, takes namespaces of its own (mounts, network, host name), changes
root into the folder and runs cloud-init's own stages there, so that useradd, usermod, chpasswd and
ssh-keygen change the folder's files and nothing else. Only finding and mounting the CD-ROM is stood in for:
not every kernel that runs these checks can mount ISO 9660.
"""

import ctypes
import glob
import os
import shutil
import sys

from cloudinit import util
from cloudinit.cmd import main as cloud_init
# Imported once here, and not in every guest.
from cloudinit.config import cc_set_hostname, cc_set_passwords, cc_ssh, cc_users_groups  # noqa: F401
from cloudinit.distros import debian  # noqa: F401
from cloudinit.net import eni
from cloudinit.sources import DataSourceConfigDrive, DataSourceNoCloud, DataSourceNone  # noqa: F401

DEFAULT_USER = "debian"
STAGES = (["init", "--local"], ["init"], ["modules", "--mode=config"], ["modules", "--mode=final"])

# From <linux/sched.h> and <linux/mount.h>.
NEWNS, NEWUTS, NEWIPC, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x40000000
RDONLY, NOSUID, REMOUNT, BIND, REC, PRIVATE = 1, 2, 32, 4096, 16384, 1 << 18

PASSWD = """root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
GROUP = """root:x:0:
daemon:x:1:
adm:x:4:
tty:x:5:
dialout:x:20:
cdrom:x:24:
floppy:x:25:
sudo:x:27:
audio:x:29:
dip:x:30:
shadow:x:42:
video:x:44:
plugdev:x:46:
users:x:100:
netdev:x:101:
nogroup:x:65534:
"""
SHADOW = "root:*:19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\nnobody:*:19000:0:99999:7:::\n"
COPIED = ("login.defs", "default", "pam.d", "security", "alternatives", "skel", "shells", "debian_version",
          "adduser.conf", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "os-release", "localtime", "cloud/templates")

libc = ctypes.CDLL(None, use_errno=True)


def system(call, *words):
    if call(*words) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call.__name__} {words[:2]}: {os.strerror(number)}")


def mount(what, where, flags):
    system(libc.mount, what.encode(), where.encode(), None, ctypes.c_ulong(flags), None)


def write(path, text, mode=0o644):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, mode)


def make(root):
    """A system as a public image holds it: nobody can log in, and cloud-init never ran."""
    for folder in ("dev", "proc", "usr", "etc", "home", "mnt/cdrom", "run", "sys", "var/log", "var/tmp", "var/lib/cloud"):
        os.makedirs(f"{root}/{folder}")
    os.mkdir(f"{root}/root", 0o700)
    os.mkdir(f"{root}/tmp")
    os.chmod(f"{root}/tmp", 0o1777)
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{root}/{name}")
        elif os.path.isdir(f"/{name}"):
            os.mkdir(f"{root}/{name}")
    for name in ("null", "zero", "full", "random", "urandom"):
        write(f"{root}/dev/{name}", "")
    for name in COPIED:
        if os.path.isdir(f"/etc/{name}"):
            shutil.copytree(f"/etc/{name}", f"{root}/etc/{name}", symlinks=True)
        elif os.path.lexists(f"/etc/{name}"):
            shutil.copy2(f"/etc/{name}", f"{root}/etc/{name}", follow_symlinks=False)
    write(f"{root}/etc/passwd", PASSWD)
    write(f"{root}/etc/group", GROUP)
    write(f"{root}/etc/gshadow", "".join(f"{line.split(':')[0]}:*::\n" for line in GROUP.splitlines()), 0o640)
    write(f"{root}/etc/shadow", SHADOW, 0o640)
    write(f"{root}/etc/nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files\n")
    write(f"{root}/etc/hostname", "image\n")
    write(f"{root}/etc/hosts", "127.0.0.1 localhost\n")
    write(f"{root}/etc/ssh/sshd_config", "PasswordAuthentication no\n")
    write(f"{root}/etc/sudoers", "#includedir /etc/sudoers.d\n", 0o440)
    configure(root)


def configure(root):
    """Debian's configuration of cloud-init, with fewer modules and one kind of host key."""
    with open("/etc/cloud/cloud.cfg", encoding="utf-8") as file:
        config = util.load_yaml(file.read())
    kept = {"set_hostname", "users-groups", "ssh", "set-passwords", "scripts-user"}
    for stage in ("cloud_init_modules", "cloud_config_modules", "cloud_final_modules"):
        config[stage] = [name for name in config[stage] if name in kept]
    found = {name for stage in ("init", "config", "final") for name in config[f"cloud_{stage}_modules"]}
    if found != kept:
        raise OSError(f"/etc/cloud/cloud.cfg lacks {kept - found}")
    config["datasource_list"] = ["NoCloud", "ConfigDrive", "None"]
    config["ssh_genkeytypes"] = ["ed25519"]
    write(f"{root}/etc/cloud/cloud.cfg", util.json_dumps(config))
    shutil.copytree("/etc/cloud/cloud.cfg.d", f"{root}/etc/cloud/cloud.cfg.d")


def copy(old, new):
    shutil.copytree(old, new, symlinks=True, copy_function=shutil.copy2)
    for folder, folders, files in os.walk(old):
        for name in folders + files:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            if status.st_uid or status.st_gid:
                os.lchown(os.path.join(new, os.path.relpath(path, old)), status.st_uid, status.st_gid)
    return new


def boot(root, cdrom, label, kind="iso9660"):
    """Boots the guest once, with a volume of this label and kind whose files lie in the folder `cdrom`.

    Returns what cloud-init logged during this boot.
    """
    shutil.rmtree(f"{root}/run")
    os.mkdir(f"{root}/run")
    shutil.rmtree(f"{root}/mnt/cdrom", ignore_errors=True)
    shutil.copytree(cdrom, f"{root}/mnt/cdrom")
    log = f"{root}/var/log/cloud-init.log"
    for path in (log, f"{root}/var/log/cloud-init-output.log"):
        if os.path.exists(path):
            os.unlink(path)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            enter(root)
            stand_in({f"TYPE={kind}", f"LABEL={label}"})
            code = stages()
        except BaseException as error:  # pylint: disable=broad-except
            os.write(2, f"guest: {type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if status:
        raise OSError(f"a guest could not be run: {os.waitstatus_to_exitcode(status)}")
    with open(log, encoding="utf-8", errors="replace") as file:
        return file.read()


def enter(root):
    system(libc.unshare, NEWNS | NEWUTS | NEWIPC | NEWNET)
    mount("none", "/", REC | PRIVATE)
    for name in ("usr", "bin", "sbin", "lib", "lib32", "lib64"):
        if os.path.isdir(f"{root}/{name}") and not os.path.islink(f"{root}/{name}"):
            mount(f"/{name}", f"{root}/{name}", BIND | REC)
            mount("none", f"{root}/{name}", BIND | REMOUNT | RDONLY)
    mount("/proc", f"{root}/proc", BIND | REC)
    for name in os.listdir(f"{root}/dev"):
        mount(f"/dev/{name}", f"{root}/dev/{name}", BIND)
    os.chroot(root)
    os.chdir("/")
    os.umask(0o022)
    os.environ.clear()
    os.environ.update(PATH="/usr/sbin:/usr/bin:/sbin:/bin", LANG="C.UTF-8", HOME="/root")


def stand_in(shown):
    """The volume stands in the place of /dev/sr0 for whoever asks for one of these properties."""
    util.find_devs_with = lambda criteria=None, **_: ["/dev/sr0"] if criteria in shown else []

    def mount_cb(device, callback, data=None, **_):
        if device != "/dev/sr0":
            raise util.MountFailedError(device)
        return callback("/mnt/cdrom/", *([] if data is None else [data]))

    util.mount_cb = mount_cb
    util.get_cmdline = lambda: ""
    # Debian's renderer asks for ifupdown's programs, which write nothing here.
    eni.available = lambda target=None: True


def stages():
    with open("/var/log/stages.out", "a", encoding="utf-8") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    for words in STAGES:
        child = os.fork()
        if child == 0:
            sys.argv = ["/usr/bin/cloud-init", *words]
            code = 1
            try:
                code = cloud_init.main(sys.argv)
            except SystemExit as ended:
                code = ended.code
            finally:
                sys.stdout.flush()
                os._exit(code if isinstance(code, int) else 0)
        os.waitpid(child, 0)
    return 0


def shadow(root):
    """The second field and the last change of each account."""
    with open(f"{root}/etc/shadow", encoding="utf-8") as file:
        rows = [line.split(":") for line in file.read().splitlines()]
    return {row[0]: (row[1], row[2]) for row in rows}


def homes(root):
    with open(f"{root}/etc/passwd", encoding="utf-8") as file:
        return {row[0]: row[5] for row in (line.split(":") for line in file.read().splitlines())}


def keys(root, user):
    """The lines that let in by key, from all the files that sshd reads."""
    lines = []
    for path in sorted(glob.glob(f"{root}{homes(root).get(user, '/none')}/.ssh/authorized_keys*")):
        with open(path, encoding="utf-8") as file:
            lines += [line.strip() for line in file if line.strip() and not line.startswith("#")]
    return lines

