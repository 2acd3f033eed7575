//! What two threads have in common.

/// Whether both have one table of open files (`kcmp(2)`); not knowing it counts as no.
pub(crate) fn share_open_files(left: u32, right: u32) -> bool {
    // linux/kcmp.h: enum kcmp_type.
    const KCMP_FILES: libc::c_int = 2;
    // SAFETY: kcmp takes five numbers, none of them a pointer.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, left, right, KCMP_FILES, 0, 0) };
    order == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_of_a_process_share_their_open_files_and_a_thread_that_left_does_not() {
        let this = std::process::id();
        assert!(share_open_files(this, this));
        assert!(!share_open_files(this, u32::MAX), "there is no such thread");
    }
}
