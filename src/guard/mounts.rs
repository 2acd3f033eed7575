//! Mounts in every mount namespace that `/proc` shows, and the mounts of this process's own.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use super::kernel::{Kernel, Number, names};

/// File systems of the kernel's own, on local disks or in memory.
const LOCAL: [&str; 23] = [
    "bcachefs", "btrfs", "devtmpfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "iso9660", "jfs",
    "ntfs3", "overlay", "proc", "ramfs", "rootfs", "squashfs", "sysfs", "tmpfs", "udf", "vfat", "xfs", "zfs",
];

/// File systems whose number is no device's, and whose source names one of their devices.
pub(super) const POOLS: [&str; 2] = ["bcachefs", "btrfs"];

/// One line of a `mountinfo` (`proc_pid_mountinfo(5)`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) number: Number,
    /// What of its file system is mounted: a folder, or a single file.
    root: PathBuf,
    pub(super) point: PathBuf,
    pub(super) kind: String,
    pub(super) source: PathBuf,
    /// Options of the mount and of its file system.
    pub(super) options: String,
    /// A process that sees it, when it is not this one's own.
    pub(super) by: Option<u32>,
}

impl Mount {
    /// Whether a block device may be below it; of thousands of containers most mounts have none.
    fn is_on_a_device(&self) -> bool {
        self.number.0 != 0 || POOLS.contains(&self.kind.as_str())
    }

    /// Whether other hosts may have the same file system mounted.
    pub(super) fn may_be_shared(&self) -> bool {
        !LOCAL.contains(&self.kind.as_str())
    }

    /// The folders that an overlay shows, the one that is written first; as its mounter named them.
    fn layers(&self) -> Vec<PathBuf> {
        let folders = |key: &str| {
            let values = self.options.split(',').filter_map(|option| option.strip_prefix(key));
            values.flat_map(|value| value.split(':')).map(PathBuf::from).collect::<Vec<_>>()
        };
        match self.kind.as_str() {
            "overlay" => [folders("upperdir="), folders("lowerdir="), folders("lowerdir+=")].concat(),
            _ => Vec::new(),
        }
    }

    /// Whether files on it can be changed.
    pub(super) fn is_writable(&self) -> bool {
        !self.options.split(',').any(|option| option == "ro")
    }
}

/// All mounts of all mount namespaces that can be seen.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    /// Those that this process sees itself, in the order in which they were made.
    own: Vec<Mount>,
    /// Where the file systems are mounted that the run touches anyway.
    near: Vec<PathBuf>,
    pub(super) all: Vec<Mount>,
}

impl Mounts {
    pub(super) fn read(kernel: &Kernel) -> Self {
        let table = |by: Option<u32>, folder: &str| -> Option<Vec<Mount>> {
            let bytes = fs::read(kernel.proc.join(folder).join("mountinfo")).ok()?;
            Some(bytes.split(|byte| *byte == b'\n').filter_map(|line| parse(line, by)).collect())
        };
        let own = table(None, "self").unwrap_or_default();
        let mut all = own.clone();
        let mut seen: HashSet<_> = fs::read_link(kernel.proc.join("self/ns/mnt")).into_iter().collect();
        for name in names(&kernel.proc) {
            let Ok(pid) = name.parse() else { continue };
            // One process of each namespace is enough. Who may not ask for another's namespace still reads its table.
            let namespace = fs::read_link(kernel.proc.join(&name).join("ns/mnt")).ok();
            if namespace.as_ref().is_some_and(|namespace| seen.contains(namespace)) {
                continue;
            }
            // One that has just ended leaves the question to the next of its namespace.
            let Some(theirs) = table(Some(pid), &name) else { continue };
            seen.extend(namespace);
            all.extend(theirs.into_iter().filter(Mount::is_on_a_device));
        }
        let mut mounts = Self { own, near: Vec::new(), all };
        let real = |path: &PathBuf| std::fs::canonicalize(path).or_else(|_| std::path::absolute(path));
        let near = kernel.near.iter().filter_map(|path| real(path).ok());
        mounts.near = near.filter_map(|path| Some(mounts.holding(&path)?.point.clone())).collect();
        mounts
    }

    /// The mount that a path of this process lies on.
    pub(super) fn holding(&self, path: &Path) -> Option<&Mount> {
        // Of two at one place the later hides the earlier.
        let covering = self.own.iter().filter(|mount| path.starts_with(&mount.point));
        covering.max_by_key(|mount| mount.point.components().count())
    }

    /// Whether no server and no other program has to answer when this path is looked at.
    ///
    /// A path that the kernel's tables name may lie on a file system whose server is gone: looking at it would
    /// hang, here and in every other run on the host.
    pub(super) fn answers_at_once(&self, path: &Path) -> bool {
        let on_the_way = self.own.iter().filter(|mount| path.starts_with(&mount.point));
        let answers =
            |mount: &Mount| LOCAL.contains(&mount.kind.as_str()) || self.near.contains(&mount.point);
        path.is_absolute() && on_the_way.into_iter().all(answers)
    }

    /// The mount by which a file has a second name: one of the file alone.
    pub(super) fn of_file(&self, path: &Path) -> Option<&Mount> {
        let holding = self.holding(path)?;
        let inside = holding.root.join(path.strip_prefix(&holding.point).ok()?);
        let mut others = self.all.iter().filter(|mount| mount.number == holding.number);
        others.find(|mount| mount.root == inside && mount.point != path)
    }

    /// Where a file of an overlay may really lie, in the order in which the overlay looks for it.
    pub(super) fn below_overlay(&self, path: &Path) -> Vec<PathBuf> {
        let Some(mount) = self.holding(path) else { return Vec::new() };
        let Ok(inside) = path.strip_prefix(&mount.point) else { return Vec::new() };
        let inside = mount.root.strip_prefix("/").unwrap_or(&mount.root).join(inside);
        mount.layers().into_iter().map(|folder| folder.join(&inside)).collect()
    }

    /// The mounts at one of these places, in this process's view or that of the first process.
    pub(super) fn at<'a>(&'a self, places: &'a [&str]) -> impl Iterator<Item = &'a Mount> {
        let first = self.all.iter().filter(|mount| mount.by == Some(1));
        self.own
            .iter()
            .chain(first)
            .filter(|mount| places.iter().any(|place| mount.point == Path::new(place)))
    }
}

fn parse(line: &[u8], by: Option<u32>) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let number = Kernel::number(&text(fields.nth(2)?))?;
    let (root, point) = (unescape(fields.next()?), unescape(fields.next()?));
    let flags = text(fields.next()?);
    // Optional fields, as many as there are, end with a hyphen.
    fields.find(|field| *field == b"-")?;
    let (kind, source) = (text(fields.next()?), unescape(fields.next()?));
    let options = format!("{flags},{}", unescape(fields.next().unwrap_or_default()).display());
    Some(Mount { number, root, point, kind, source, options, by })
}

/// Blanks, tabs, line ends and backslashes stand as `\` and three octal digits.
pub(super) fn unescape(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, behind)) = rest.split_first() {
        let octal =
            behind.get(..3).filter(|_| first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { &behind[3..] } else { behind };
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeHost;
    use super::*;

    #[test]
    fn a_mount_point_that_is_no_text_hides_no_other_mount() {
        let host = FakeHost::new();
        let table = host.write("proc/self/mountinfo", "");
        fs::write(table, b"1 0 8:1 / /\xff rw - ext4 a rw\n2 0 8:2 / /b rw - ext4 b rw\n").unwrap();
        let numbers: Vec<_> = Mounts::read(&host.kernel()).all.iter().map(|mount| mount.number).collect();
        assert_eq!(numbers, [(8, 1), (8, 2)]);
    }

    #[test]
    fn a_line_of_mountinfo_says_device_place_source_and_options() {
        let line =
            br"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue";
        let mount = parse(line, Some(7)).unwrap();
        assert_eq!(mount.number, (98, 0));
        assert_eq!(mount.point, Path::new("/mnt 2"));
        assert_eq!(
            (mount.kind.as_str(), mount.source.as_path(), mount.by),
            ("ext3", "/dev/root".as_ref(), Some(7))
        );
        assert!(mount.is_writable());
        assert!(!parse(b"36 35 98:0 / /m ro - ext4 /dev/a rw", None).unwrap().is_writable());
        assert!(parse(b"", None).is_none() && parse(b"36 35 x:0 / /m rw - a b", None).is_none());
    }

    #[test]
    fn a_path_is_looked_at_only_where_no_server_is_on_the_way() {
        let mount = |point: &str, kind: &str| Mount {
            number: (0, 1),
            point: point.into(),
            kind: kind.into(),
            source: PathBuf::new(),
            root: "/".into(),
            options: "rw".into(),
            by: None,
        };
        let own = vec![
            mount("/", "ext4"),
            mount("/net", "nfs4"),
            mount("/net/local", "xfs"),
            mount("/f", "fuse.x"),
        ];
        let mut mounts = Mounts { own, near: Vec::new(), all: Vec::new() };
        let asked = |mounts: &Mounts, path: &str| mounts.answers_at_once(Path::new(path));
        for (path, expected) in [
            ("/var/disk", true),
            ("/nets/disk", true),
            ("/net/local/disk", false),
            ("/f", false),
            ("disk", false),
        ] {
            assert_eq!(asked(&mounts, path), expected, "{path}");
        }
        // What the run touches anyway may be waited for.
        mounts.near.push("/net".into());
        assert!(asked(&mounts, "/net/local/disk") && !asked(&mounts, "/f/disk"));
    }

    #[test]
    fn a_path_lies_on_the_deepest_mount_above_it_and_of_equals_on_the_last() {
        let mount = |number, point: &str| Mount {
            number,
            point: point.into(),
            kind: "ext4".into(),
            source: PathBuf::new(),
            root: "/".into(),
            options: "rw".into(),
            by: None,
        };
        let own =
            vec![mount((8, 1), "/"), mount((8, 2), "/var"), mount((8, 3), "/var"), mount((8, 4), "/va")];
        let mounts = Mounts { own, near: Vec::new(), all: Vec::new() };
        let found = |path: &str| mounts.holding(Path::new(path)).unwrap().number;
        assert_eq!((found("/var/lib/x"), found("/varx"), found("/va/x")), ((8, 3), (8, 1), (8, 4)));
    }
}
