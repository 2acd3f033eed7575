//! The boothook that takes the image's own logins away before the new ones are set.
//!
//! cloud-init only adds keys and touches only the users that it is told of. It runs a boothook at
//! every boot, before the modules that make users and set passwords: the hook itself leaves off
//! once this instance has any of them behind it.

use zeroize::Zeroizing;

/// POSIX, and for busybox too.
const SCRIPT: &str = include_str!("revoke.sh");

/// The part's content.
pub(super) fn boothook() -> Zeroizing<Vec<u8>> {
    Zeroizing::new(format!("#cloud-boothook\n{SCRIPT}").into_bytes())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_boothook_is_a_script_behind_cloud_inits_word() {
        let text = String::from_utf8(boothook().to_vec()).unwrap();
        assert!(text.starts_with("#cloud-boothook\n#!/bin/sh\n"));
        assert!(text.ends_with("\nexit 0\n"), "it never fails the boot");
    }

    #[test]
    fn the_shell_takes_it() {
        let read = Command::new("/bin/sh").args(["-n", "-c", SCRIPT]).status().unwrap();
        assert!(read.success());
    }

    // Never run here: it would take the logins of whoever runs the tests.
    #[test]
    fn nothing_is_taken_before_the_instance_is_known_to_be_new() {
        let taking = SCRIPT.find("rm -f").unwrap().min(SCRIPT.find("chpasswd").unwrap());
        for guard in ["[ -n \"$INSTANCE_ID\" ]", "[ -e \"$state/$done\" ] && exit 0"] {
            assert!(SCRIPT.find(guard).is_some_and(|at| at < taking), "{guard}");
        }
    }
}
