"""Reads seeds as cloudbase-init does, with its own code, and prints JSON. Usage: read_windows_seed.py ISO…

The disks, the Windows calls and the accounts are stood in for; what finds, unpacks and reads a seed, and
the plugins that make the user and set password and keys, are cloudbase-init's.
"""

import ctypes
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from unittest import mock

# What only Windows has.
ctypes.windll = mock.MagicMock()
sys.modules["winioctlcon"] = mock.MagicMock()
for name in ("WinError", "WINFUNCTYPE", "get_last_error", "FormatError", "oledll"):
    if not hasattr(ctypes, name):
        setattr(ctypes, name, mock.MagicMock())

from cloudbaseinit import conf
from cloudbaseinit.metadata.services import configdrive
from cloudbaseinit.metadata.services.osconfigdrive import factory, windows
from cloudbaseinit.osutils import factory as osutils_factory
from cloudbaseinit.plugins.common import createuser, setuserpassword, sshpublickeys

CONF = conf.CONF


class Disk:
    """A file as cloudbase-init sees a fixed disk."""

    def __init__(self, path):
        self.path, self.fixed, self.size = path, True, os.path.getsize(path)

    def __enter__(self):
        self.file = open(self.path, "rb")
        return self

    def __exit__(self, *_):
        self.file.close()

    def seek(self, offset):
        # A disk is read by whole sectors.
        self.file.seek(offset // 512 * 512)
        return self.file.tell()

    def read(self, size, skip=0):
        return self.file.read(skip + size)[skip:]


def run(words, *_, **__):
    done = subprocess.run(words, capture_output=True)
    return done.stdout, done.stderr, done.returncode


class CreateUser(createuser.BaseCreateUserPlugin):
    """The part of the plugin that does not call Windows: which user it is."""

    def create_user(self, *_):
        pass

    def post_create_user(self, *_):
        pass


def look(image):
    home = tempfile.mkdtemp()
    accounts = mock.MagicMock()
    accounts.get_physical_disks.return_value = [image]
    accounts.execute_process.side_effect = run
    accounts.user_exists.return_value = True
    accounts.get_user_home.return_value = home
    accounts.get_maximum_password_length.return_value = 127
    windows.disk.Disk = Disk
    osutils_factory.get_os_utils = lambda: accounts
    factory.get_config_drive_manager = windows.WindowsConfigDriveManager
    service = configdrive.ConfigDriveService()
    if not service.load():
        return None
    found = {
        "uuid": service.get_instance_id(), "hostname": service.get_host_name(),
        "keys": service.get_public_keys(), "admin_username": service.get_admin_username(),
        "admin_pass": service.get_admin_password(),
    }
    try:
        found["user_data"] = service.get_user_data().decode()
    except Exception as error:  # pylint: disable=broad-except
        found["user_data"] = type(error).__name__
    shared = {}
    CreateUser().execute(service, shared)
    setuserpassword.SetUserPasswordPlugin().execute(service, shared)
    # The plugin that makes the user sets a random password first.
    found["set"] = list(accounts.set_user_password.call_args.args)
    sshpublickeys.SetUserSSHPublicKeysPlugin().execute(service, shared)
    path = os.path.join(home, ".ssh", "authorized_keys")
    found["authorized_keys"] = open(path, encoding="utf-8").read() if os.path.exists(path) else ""
    shutil.rmtree(home)
    return found


def main():
    logging.disable(logging.CRITICAL)
    CONF([], project="cloudbase-init")
    CONF.set_override("bsdtar_path", shutil.which("bsdtar"))
    CONF.set_override("types", ["iso"], group="config_drive")
    CONF.set_override("locations", ["hdd"], group="config_drive")
    CONF.set_override("retry_count", 0)
    found = []
    for image in sys.argv[1:]:
        try:
            found.append(look(image))
        except Exception as error:  # pylint: disable=broad-except
            found.append({"error": f"{type(error).__name__}: {error}"})
    json.dump(found, sys.stdout)


main()
