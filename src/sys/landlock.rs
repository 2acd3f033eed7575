//! Takes from the calling thread every right to open a file.

use landlock::{ABI, Access, AccessFs, Ruleset, RulesetAttr, RulesetStatus};
use serde::Serialize;

/// What keeps the threads that touch an image's bytes from opening files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Sandbox {
    /// The kernel: Landlock without any rule.
    Landlock,
    /// Only that their code opens none: this kernel has no Landlock (before 5.13, or switched off).
    None,
}

/// From now on the calling thread, and only it, can open nothing; what is open stays open.
///
/// On a kernel without Landlock (before 5.13, or switched off) nothing happens: the rule is a second
/// wall behind code that opens nothing anyway.
pub(crate) fn forbid_opening() -> Result<Sandbox, landlock::RulesetError> {
    // ABI 3 (Linux 6.2) is the newest that adds a right to files: truncation.
    let ruleset = Ruleset::default().handle_access(AccessFs::from_all(ABI::V3))?.create()?;
    Ok(match ruleset.restrict_self()?.ruleset {
        RulesetStatus::NotEnforced => Sandbox::None,
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Sandbox::Landlock,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs a kernel with Landlock"]
    fn a_restricted_thread_opens_nothing_and_its_siblings_do() {
        let opened = std::thread::spawn(|| {
            assert_eq!(forbid_opening().expect("the ruleset is made"), Sandbox::Landlock);
            std::fs::File::open("/proc/self/status").map(drop)
        })
        .join()
        .expect("the thread ends");
        assert_eq!(opened.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
        std::fs::File::open("/proc/self/status").expect("the other threads are free");
    }
}
