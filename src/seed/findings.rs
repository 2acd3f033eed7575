//! What is said of a customer's user-data: which findings refuse the seed, and which are told.

use super::error::SeedError;
use super::lint::{self, Against, Finding, Harm};
use super::user_data::CustomerData;
use crate::request::UserDataDisks;

/// What was found, as it is said.
#[derive(Default)]
pub(super) struct Judged {
    pub(super) refusals: Vec<SeedError>,
    pub(super) warnings: Vec<String>,
}

/// Looks through user-data that a new instance id makes run again.
pub(super) fn judge(customer: &CustomerData, against: &Against<'_>, disks: UserDataDisks) -> Judged {
    let mut judged = Judged::default();
    for Finding { line, what, harm } in lint::lint(customer, against) {
        // Debug escapes what a hostile name could do to a terminal.
        let told = |why: &str| format!("line {line} of the user-data ({what:?}) {why}");
        let warning = match (harm, disks) {
            (Harm::Disk, UserDataDisks::Refuse) => {
                judged.refusals.push(SeedError::UserDataDisk { line, what });
                continue;
            }
            (Harm::Unread, UserDataDisks::Refuse) => {
                judged.refusals.push(SeedError::UserDataUnread { line, what });
                continue;
            }
            (Harm::Lockout, _) => {
                judged.refusals.push(SeedError::UserDataLockout { line, what });
                continue;
            }
            (Harm::Disk, UserDataDisks::Allow) => told("runs again, and may wipe a data disk"),
            (Harm::Password, _) => told("may set the same user's password after ours"),
            (Harm::Dropped, _) => {
                told("sets passwords of other users, for which cloud-init takes ours instead")
            }
            (Harm::Unread, UserDataDisks::Allow) => {
                told("cannot be read here, so that nobody knows what it does to disks and passwords")
            }
            (Harm::Elsewhere, _) => told("brings more from elsewhere, which cannot be looked at here"),
        };
        judged.warnings.push(warning);
    }
    judged
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::super::lint::NewPassword;
    use super::*;

    #[track_caller]
    fn check(text: &str, disks: UserDataDisks, refusals: &[&str], warnings: &[&str]) {
        let customer = CustomerData::new(Zeroizing::new(text.as_bytes().to_vec())).unwrap();
        let against = Against { user: None, password: NewPassword::Set, system_disks: &[] };
        let judged = judge(&customer, &against, disks);
        let said: Vec<_> = judged.refusals.iter().map(ToString::to_string).collect();
        assert_eq!(said, refusals);
        assert_eq!(judged.warnings, warnings);
    }

    #[test]
    fn what_may_wipe_a_disk_is_refused_unless_it_is_allowed() {
        let text = "#cloud-config\nfs_setup:\n- device: /dev/vdb\nruncmd:\n- mkfs.ext4 /dev/vdb\n";
        let lines = [
            "line 2 of the user-data (\"fs_setup\") runs again, and may wipe a data disk",
            "line 5 of the user-data (\"mkfs.ext4 /dev/vdb\") runs again, and may wipe a data disk",
        ];
        check(text, UserDataDisks::Refuse, &lines, &[]);
        check(text, UserDataDisks::Allow, &[], &lines);
    }

    #[test]
    fn what_cannot_be_read_is_refused_unless_disks_are_allowed() {
        let text = "#cloud-config\nruncmd: [[mkfs.ext4, *a]]# x\n";
        let lines = [
            "line 2 of the user-data (\"YAML that cannot be read\") cannot be read here, so that nobody knows what it \
             does to disks and passwords",
        ];
        check(text, UserDataDisks::Refuse, &lines, &[]);
        check(text, UserDataDisks::Allow, &[], &lines);
    }

    #[test]
    fn a_lockout_is_refused_and_all_else_is_told() {
        check(
            "#cloud-config\nusers: {}\n",
            UserDataDisks::Allow,
            &[
                "line 2 of the user-data (\"users\") keeps cloud-init from the account that gets the credentials",
            ],
            &[],
        );
        check(
            "#include\nhttp://192.0.2.1/x\n",
            UserDataDisks::Refuse,
            &[],
            &[
                "line 1 of the user-data (\"#include\") brings more from elsewhere, which cannot be looked at here",
            ],
        );
        check("#!/bin/sh\necho\n", UserDataDisks::Refuse, &[], &[]);
    }
}
