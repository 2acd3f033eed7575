//! Takes from the calling thread every right to open a file.

use landlock::{ABI, Access, AccessFs, Ruleset, RulesetAttr};

/// From now on the calling thread, and only it, can open nothing; what is open stays open.
///
/// On a kernel without Landlock (before 5.13, or switched off) nothing happens: the rule is a second
/// wall behind code that opens nothing anyway.
pub(crate) fn forbid_opening() -> Result<(), landlock::RulesetError> {
    // ABI 3 (Linux 6.2) is the newest that adds a right to files: truncation.
    Ruleset::default().handle_access(AccessFs::from_all(ABI::V3))?.create()?.restrict_self()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs a kernel with Landlock"]
    fn a_restricted_thread_opens_nothing_and_its_siblings_do() {
        let opened = std::thread::spawn(|| {
            forbid_opening().expect("the ruleset is made");
            std::fs::File::open("/proc/self/status").map(drop)
        })
        .join()
        .expect("the thread ends");
        assert_eq!(opened.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
        std::fs::File::open("/proc/self/status").expect("the other threads are free");
    }
}
