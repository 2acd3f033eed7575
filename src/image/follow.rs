//! Follows a name that stands in an image to where it leads, and tells nothing of what lies elsewhere.
//!
//! Whoever made the image may see what is said of it. So a name that leads out of the allowed folders gets one answer,
//! whether or not anything is there, and so does one that would come back into them by way of what is there.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

/// How many links are followed: what the kernel does (`MAXSYMLINKS` of linux/namei.h).
const LINKS_MAX: u32 = 40;

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

/// Where a name leads, seen from a folder: a path without links, in one of the folders.
///
/// `base` and `folders` are canonical.
pub(super) fn follow(base: &Path, name: &Path, folders: &[PathBuf]) -> Result<PathBuf, Astray> {
    let is_inside = |at: &Path| folders.iter().any(|folder| at.starts_with(folder));
    let is_on_the_way = |at: &Path| {
        is_inside(at) || base.starts_with(at) || folders.iter().any(|folder| folder.starts_with(at))
    };
    let mut steps: VecDeque<_> = steps_of(name, From::Name).collect();
    let (mut at, mut links, mut has_strayed) = (base.to_path_buf(), 0, false);
    while let Some((step, from)) = steps.pop_front() {
        match step {
            Step::Root => at = "/".into(),
            // Only where something is can one turn back, and whether something is there is nobody's business.
            Step::Up if has_strayed && from == From::Name => return Err(Astray::Outside),
            Step::Up => drop(at.pop()),
            Step::Stay => {}
            Step::Into(name) => {
                let astray = |error| if is_inside(&at) { Astray::Inside(error) } else { Astray::Outside };
                let next = at.join(&name);
                if next.symlink_metadata().map_err(astray)?.is_symlink() {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(astray(io::Error::from_raw_os_error(libc::ELOOP)));
                    }
                    let target = next.read_link().map_err(astray)?;
                    steps_of(&target, From::Link).rev().for_each(|step| steps.push_front(step));
                    continue;
                }
                at = next;
            }
        }
        let is_end_of_link = from == From::Link && steps.front().is_none_or(|(_, from)| *from == From::Name);
        if is_end_of_link && is_inside(&at) {
            // The host's own link leads here, as `/srv/images` may do.
            has_strayed = false;
        } else if !is_on_the_way(&at) {
            has_strayed = true;
        }
    }
    if has_strayed || !is_inside(&at) { Err(Astray::Outside) } else { Ok(at) }
}

/// One step of a way.
#[derive(Clone)]
enum Step {
    Root,
    Up,
    Stay,
    Into(OsString),
}

fn steps_of(path: &Path, from: From) -> impl DoubleEndedIterator<Item = (Step, From)> {
    let step = |component: Component<'_>| match component {
        Component::RootDir | Component::Prefix(_) => Step::Root,
        Component::ParentDir => Step::Up,
        Component::CurDir => Step::Stay,
        Component::Normal(name) => Step::Into(name.to_owned()),
    };
    path.components().map(move |component| (step(component), from))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// What a name leads to: `Ok` with its place below the folder, or what is said of it.
    fn led(folder: &Path, base: &str, name: &str) -> Result<PathBuf, String> {
        let (images, more) = (folder.join("images"), folder.join("more"));
        let name = name.replace("$", folder.to_str().unwrap());
        follow(&folder.join(base), Path::new(&name), &[images, more])
            .map(|path| path.strip_prefix(folder).unwrap().to_path_buf())
            .map_err(|astray| match astray {
                Astray::Outside => "outside".to_owned(),
                Astray::Inside(error) => error.raw_os_error().unwrap().to_string(),
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
        ] {
            let expected = if expected == "images/second" { "images/base" } else { expected };
            assert_eq!(led(&folder, base, name), Ok(expected.into()), "{name} from {base}");
            let kernels = folder.join(base).join(name.replace("$", folder.to_str().unwrap()));
            assert_eq!(kernels.canonicalize().unwrap(), folder.join(expected), "{name} from {base}");
        }
        for (name, errno) in [
            ("missing", libc::ENOENT),
            ("base/x", libc::ENOTDIR),
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
            "$/links/up/images/base",
            "$/links/not-there/images/base",
            "$/links/root$/images/base",
            "/proc/self/root$/images/base",
            "/proc/4194305/root$/images/base",
            &format!("$/other/there/{}", "a".repeat(300)),
            &format!("$/other/not-there/{}", "a".repeat(300)),
        ] {
            assert_eq!(led(&folder, "images", name), Err("outside".to_owned()), "{name}");
        }
    }
}
