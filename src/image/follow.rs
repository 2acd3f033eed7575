//! Follows a name that stands in an image to where it leads, and tells nothing of what lies elsewhere.
//!
//! Whoever made the image may see what is said of it. So a name that leads out of the allowed folders gets one answer,
//! whether or not anything is there, and so does one that would come back into them by way of what is there.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// How many links are followed: what the kernel does (`MAXSYMLINKS` of linux/namei.h).
const LINKS_MAX: u32 = 40;

/// Where images may lead.
pub(super) struct Allowed {
    /// The folders that are allowed; canonical.
    pub(super) folders: Vec<PathBuf>,
    /// The same and the image's own folder as the caller wrote them, absolute: what the caller says is no secret.
    pub(super) written: Vec<PathBuf>,
}

/// Why a name leads to nothing that may be opened.
#[derive(Debug)]
pub(super) enum Astray {
    /// It leaves the folders.
    Outside,
    /// It is in one of them, and the system says this of it.
    Inside(io::Error),
}

/// What a step of the way comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    /// The name that was given.
    Name,
    /// A link on the way.
    Link,
}

/// Where a name leads, seen from a folder, which is canonical: a path without links, in one of the folders.
pub(super) fn follow(base: &Path, name: &Path, allowed: &Allowed) -> Result<PathBuf, Astray> {
    let Allowed { folders, written } = allowed;
    let is_inside = |at: &Path| folders.iter().any(|folder| at.starts_with(folder));
    let is_on_the_way = |at: &Path| {
        let leads_there = |folder: &PathBuf| folder.starts_with(at);
        is_inside(at) || base.starts_with(at) || folders.iter().chain(written).any(leads_there)
    };
    let mut steps: VecDeque<_> = steps_of(name, From::Name).collect();
    let (mut at, mut links, mut has_strayed) = (base.to_path_buf(), 0, false);
    while let Some((step, from)) = steps.pop_front() {
        let astray = |error| if is_inside(&at) { Astray::Inside(error) } else { Astray::Outside };
        match step {
            Step::Root => at = "/".into(),
            // Only where something is can one turn back, and whether something is there is nobody's business.
            Step::Up if has_strayed && from == From::Name => return Err(Astray::Outside),
            Step::Up | Step::Stay => {
                // Nothing goes on behind what is no folder.
                at.join(".").symlink_metadata().map_err(astray)?;
                if step == Step::Up {
                    at.pop();
                }
            }
            Step::Into(name) => {
                let next = at.join(&name);
                match next.read_link() {
                    // What such a link says is not where the kernel goes, and that it is there tells of a process.
                    Ok(_) if is_of_processes(&at) => return Err(Astray::Outside),
                    Ok(_) if links == LINKS_MAX => {
                        return Err(astray(io::Error::from_raw_os_error(libc::ELOOP)));
                    }
                    Ok(target) => {
                        links += 1;
                        steps_of(&target, From::Link).rev().for_each(|step| steps.push_front(step));
                        continue;
                    }
                    // readlink(2): it is there, and no link.
                    Err(error) if error.raw_os_error() == Some(libc::EINVAL) => at = next,
                    Err(error) => return Err(astray(error)),
                }
            }
        }
        let is_end_of_link = from == From::Link && steps.front().is_none_or(|(_, from)| *from == From::Name);
        if !is_on_the_way(&at) {
            has_strayed = true;
        } else if is_end_of_link {
            // The host's own link leads here, as `/srv/images` and `/var/lib/libvirt` may do.
            has_strayed = false;
        }
    }
    if has_strayed || !is_inside(&at) { Err(Astray::Outside) } else { Ok(at) }
}

/// Whether a folder is of proc(5), or cannot be asked.
fn is_of_processes(folder: &Path) -> bool {
    rustix::fs::statfs(folder).map_or(true, |system| system.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

/// One step of a way.
#[derive(Clone, PartialEq, Eq)]
enum Step {
    Root,
    Up,
    Stay,
    Into(OsString),
}

/// The steps of a path; unlike [`Path::components`], what stands behind its last slash counts.
fn steps_of(path: &Path, from: From) -> impl DoubleEndedIterator<Item = (Step, From)> {
    let bytes = path.as_os_str().as_bytes();
    let root = bytes.starts_with(b"/").then_some(Step::Root);
    let step = |part: &[u8]| match part {
        b"" | b"." => Step::Stay,
        b".." => Step::Up,
        name => Step::Into(OsStr::from_bytes(name).to_owned()),
    };
    root.into_iter().chain(bytes.split(|byte| *byte == b'/').map(step)).map(move |step| (step, from))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// What a name leads to: `Ok` with its place below the folder, or what is said of it.
    fn led(folder: &Path, base: &str, name: &str) -> Result<PathBuf, String> {
        led_as_written(folder, (base, name), &[])
    }

    fn led_as_written(
        folder: &Path,
        (base, name): (&str, &str),
        written: &[&str],
    ) -> Result<PathBuf, String> {
        let name = name.replace("$", folder.to_str().unwrap());
        let folders = vec![folder.join("images"), folder.join("more")];
        let allowed = Allowed { folders, written: written.iter().map(|name| folder.join(name)).collect() };
        follow(&folder.join(base), Path::new(&name), &allowed)
            .map(|path| path.strip_prefix(folder).unwrap().to_path_buf())
            .map_err(|astray| match astray {
                Astray::Outside => "outside".to_owned(),
                Astray::Inside(error) => {
                    error.raw_os_error().map_or(error.to_string(), |errno| errno.to_string())
                }
            })
    }

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().canonicalize().unwrap();
        for name in ["images/deep", "more", "other/there", "links"] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
        }
        for name in ["images/base", "more/base", "other/there/secret", "images/deep/base"] {
            std::fs::write(folder.join(name), b"").unwrap();
        }
        symlink("../images", folder.join("links/relative")).unwrap();
        symlink(folder.join("images"), folder.join("links/absolute")).unwrap();
        symlink("..", folder.join("links/up")).unwrap();
        symlink("/", folder.join("links/root")).unwrap();
        symlink("../other/there/secret", folder.join("images/out")).unwrap();
        symlink("../other/not-there/secret", folder.join("images/nowhere")).unwrap();
        symlink("base", folder.join("images/second")).unwrap();
        symlink("circle", folder.join("images/circle")).unwrap();
        symlink("base/", folder.join("images/slash")).unwrap();
        (temporary, folder)
    }

    #[test]
    fn a_name_is_followed_as_the_kernel_does() {
        let (_temporary, folder) = folder();
        for (base, name, expected) in [
            ("images", "base", "images/base"),
            ("images", "./deep//../base", "images/base"),
            ("images", "second", "images/second"),
            ("images", "../more/base", "more/base"),
            ("other/there", "../../images/deep/base", "images/deep/base"),
            ("images", "$/images/base", "images/base"),
            ("images", "$/links/relative/base", "images/base"),
            ("images", "$/links/absolute/deep/../base", "images/base"),
            ("images", "../links/relative/base", "images/base"),
            ("images", ".//deep/./base", "images/deep/base"),
            // A link to what is above a folder, in one that is not on the way.
            ("images", "$/links/up/images/base", "images/base"),
            ("images", "../links/up/images/deep/../base", "images/base"),
            ("other/there", "../../links/up/more/base", "more/base"),
            ("images", "$/links/root$/images/base", "images/base"),
        ] {
            let expected = if expected == "images/second" { "images/base" } else { expected };
            assert_eq!(led(&folder, base, name), Ok(expected.into()), "{name} from {base}");
            let kernels = folder.join(base).join(name.replace("$", folder.to_str().unwrap()));
            assert_eq!(kernels.canonicalize().unwrap(), folder.join(expected), "{name} from {base}");
        }
        for (name, errno) in [
            ("missing", libc::ENOENT),
            ("base/x", libc::ENOTDIR),
            ("base/", libc::ENOTDIR),
            ("base/.", libc::ENOTDIR),
            ("base/../base", libc::ENOTDIR),
            ("second/", libc::ENOTDIR),
            ("slash", libc::ENOTDIR),
            ("circle", libc::ELOOP),
            (&"a".repeat(300), libc::ENAMETOOLONG),
        ] {
            assert_eq!(led(&folder, "images", name), Err(errno.to_string()), "{name}");
        }
    }

    #[test]
    fn what_is_said_of_a_name_that_leads_outside_is_the_same_whether_or_not_it_is_there() {
        let (_temporary, folder) = folder();
        for name in [
            "../other/there/secret",
            "../other/not-there/secret",
            "../other/there/secret/x",
            "$/other/there",
            "$/other/not-there",
            "$/not-there",
            "..",
            "out",
            "nowhere",
            "out/x",
            // Back again, by way of what is there or not.
            "../other/there/../../images/base",
            "../other/not-there/../../images/base",
            "$/other/there/../../images/base",
            "$/other/not-there/../../images/base",
            "$/links/root/proc/1/root/../images/base",
            "$/links/up/../images/secret",
            "$/links/up/other/there/../../images/base",
            "$/links/up/other/there/secret",
            "$/links/up/other/not-there/secret",
            "$/links/not-there/images/base",
            "$/links/../images/base",
            "$/other/there/secret/",
            "$/other/there/secret/.",
            "/proc/self/root$/images/base",
            "/proc/4194305/root$/images/base",
            &format!("$/other/there/{}", "a".repeat(300)),
            &format!("$/other/not-there/{}", "a".repeat(300)),
        ] {
            assert_eq!(led(&folder, "images", name), Err("outside".to_owned()), "{name}");
        }
    }

    #[test]
    fn what_the_caller_wrote_is_no_secret() {
        let (_temporary, folder) = folder();
        let name = "$/links/../links/absolute/base";
        assert_eq!(led(&folder, "images", name), Err("outside".to_owned()));
        let written = ["links/absolute"];
        assert_eq!(led_as_written(&folder, ("images", name), &written), Ok("images/base".into()));
        let beside = "$/links/there/../absolute/base";
        assert_eq!(led_as_written(&folder, ("images", beside), &written), Err("outside".to_owned()));
    }

    #[test]
    fn whether_a_process_holds_a_file_of_a_folder_open_is_not_told() {
        let (_temporary, folder) = folder();
        let held = std::fs::File::open(folder.join("images/base")).unwrap();
        let working = std::fs::File::open(folder.join("images")).unwrap();
        let number = |file: &std::fs::File| std::os::fd::AsRawFd::as_raw_fd(file);
        for name in [
            format!("/proc/self/fd/{}", number(&held)),
            format!("/proc/{}/fd/{}", std::process::id(), number(&held)),
            format!("/dev/fd/{}", number(&held)),
            format!("/proc/self/fd/{}/../base", number(&held)),
            format!("/proc/self/fd/{}/base", number(&working)),
            "/proc/self/fd/1000000".to_owned(),
        ] {
            assert_eq!(led(&folder, "images", &name), Err("outside".to_owned()), "{name}");
        }
    }

    #[test]
    fn a_folder_that_becomes_a_link_meanwhile_is_the_one_or_the_other() {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let (_temporary, folder) = folder();
        symlink("../more", folder.join("images/other")).unwrap();
        let is_over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (one, other) = (folder.join("images/deep"), folder.join("images/other"));
                while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap();
                }
            });
            let either = ["more/base", "images/deep/base"].map(|name| Ok(name.into()));
            let wrong =
                (0..20_000).map(|_| led(&folder, "images", "deep/base")).find(|led| !either.contains(led));
            is_over.store(true, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(wrong, None);
        });
    }
}
