//! Shell text, as far as a command in it would hurt a disk or change a password.
//!
//! No shell is imitated: words are looked at, and rather one too many is found than one too few.

/// What a command does that must be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Does {
    DestroyDisk,
    SetPassword,
}

/// A command that does it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) does: Does,
    /// Its line in the text, from 0.
    pub(super) line: usize,
    /// The program, and the device if one is named; no other word, for that may be a secret.
    pub(super) shown: String,
}

/// How many words behind a program are looked at: a line of a megabyte must not take hours.
const MOST_ARGUMENTS: usize = 64;

/// In what the commands stand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Around {
    Shell,
    /// A template or a configuration that cannot be read as one: words may be names in a list.
    Anything,
}

/// The commands of a text, but for those on the system's own disks (`/dev/vda`, and so its partitions).
pub(super) fn commands(text: &str, around: Around, system_disks: &[&str]) -> Vec<Command> {
    let mut found = Vec::new();
    let (mut joined, mut first) = (String::new(), 0);
    for (number, line) in text.lines().enumerate() {
        if joined.is_empty() {
            first = number;
        }
        match line.strip_suffix('\\') {
            Some(begun) => {
                joined.push_str(begun);
                joined.push(' ');
                continue;
            }
            None => joined.push_str(line),
        }
        look_at(&joined, first, around, system_disks, &mut found);
        joined.clear();
    }
    look_at(&joined, first, around, system_disks, &mut found);
    found
}

fn look_at(line: &str, number: usize, around: Around, system_disks: &[&str], found: &mut Vec<Command>) {
    // A rule of sudoers names programs too.
    let is_sudoers = around == Around::Anything && line.contains("ALL=") && !line.contains(['{', '[']);
    if line.trim_start().starts_with('#') || is_sudoers {
        return;
    }
    if let Some(device) = overwritten(line)
        && !is_system(device, system_disks)
    {
        found.push(Command { does: Does::DestroyDisk, line: number, shown: format!("> {}", clean(device)) });
    }
    for simple in line.split([';', '|', '&', '(', ')', '`']) {
        let words: Vec<&str> = simple.split(is_between).filter(|word| !word.is_empty()).collect();
        if words.first().is_some_and(|first| ONLY_NAME_PROGRAMS.contains(&base(first))) {
            continue;
        }
        for (at, word) in words.iter().enumerate() {
            let rest = &words[at + 1..words.len().min(at + MOST_ARGUMENTS)];
            let Some(does) = what_does(base(word), rest) else { continue };
            let pointed = |word: &&str| word.starts_with(['/', '$', '-', '{']) || word.contains("/dev/");
            if around == Around::Anything && !rest.iter().any(pointed) {
                continue;
            }
            let devices: Vec<&str> = rest.iter().filter_map(|word| device(word)).collect();
            let on_system = !devices.is_empty() && devices.iter().all(|name| is_system(name, system_disks));
            if does == Does::DestroyDisk && on_system {
                continue;
            }
            let mut shown = clean(base(word));
            if let Some(device) = devices.iter().find(|name| !is_system(name, system_disks)) {
                shown = format!("{shown} {}", clean(device));
            }
            found.push(Command { does, line: number, shown });
            break;
        }
    }
}

/// Programs whose arguments are names of programs, or text.
const ONLY_NAME_PROGRAMS: [&str; 20] = [
    "apt", "apt-get", "aptitude", "yum", "dnf", "microdnf", "zypper", "apk", "pacman", "snap", "pip",
    "which", "type", "man", "rpm", "dpkg", "modprobe", "logger", "grep", "#",
];

fn what_does(program: &str, rest: &[&str]) -> Option<Does> {
    let has = |wanted: &[&str]| rest.iter().any(|word| wanted.contains(word));
    let has_short = |letter: char| {
        rest.iter().any(|word| word.starts_with('-') && !word.starts_with("--") && word.contains(letter))
    };
    let destroys = match program {
        "mkswap" | "mke2fs" | "mkntfs" | "mkdosfs" => true,
        _ if program == "mkfs" || program.starts_with("mkfs.") => true,
        // Its -d deletes and its -l loads; only to print and to verify harm nothing.
        "sgdisk" => rest.iter().any(|word| {
            word.starts_with('-') && !["-p", "--print", "-v", "--verify", "-i", "--info"].contains(word)
        }),
        "sfdisk" => !has(&["-l", "--list", "-d", "--dump"]),
        "parted" | "gdisk" | "cgdisk" | "fdisk" | "cfdisk" => !has(&["-l", "--list"]),
        "wipefs" => has(&["--all", "--offset"]) || has_short('a') || has_short('o'),
        "dd" => rest.iter().any(|word| {
            word.strip_prefix("of=")
                .is_some_and(|file| file.starts_with("/dev/") || file.starts_with(['$', '"', '{']))
                && !is_no_disk(&word[3..])
        }),
        "tee" | "cp" | "qemu-img" | "pv" | "ddrescue" => rest.iter().any(|word| device(word).is_some()),
        "nvme" => has(&["format", "sanitize", "delete-ns"]),
        "btrfs" | "stratis" | "bcachefs" => has(&["add", "create", "format", "replace", "init-cache"]),
        "make-bcache" | "sg_format" | "mkreiserfs" | "newfs" => true,
        "pvcreate" | "pvremove" | "vgcreate" | "vgremove" | "lvremove" | "blkdiscard" | "shred"
        | "badblocks" => true,
        "cryptsetup" => has(&["luksFormat", "luksErase", "erase", "reencrypt"]),
        "mdadm" => has(&["--create", "--zero-superblock"]) || has_short('C'),
        "zpool" => has(&["create", "destroy", "labelclear"]),
        "growpart" => !rest.is_empty(),
        _ => false,
    };
    if destroys {
        return Some(Does::DestroyDisk);
    }
    let sets = match program {
        "chpasswd" => true,
        "passwd" => !has(&["-S", "--status"]),
        "usermod" => has(&["--password"]) || has_short('p'),
        _ => false,
    };
    sets.then_some(Does::SetPassword)
}

/// The device that `>` writes to.
fn overwritten(line: &str) -> Option<&str> {
    line.split('>').skip(1).find_map(|target| {
        let target = target.trim_start_matches(['|', ' ', '"', '\'']).split(is_between).next()?;
        let target = target.trim_end_matches([';', '&', ')', '|']);
        (target.starts_with("/dev/") && !is_no_disk(target)).then_some(target)
    })
}

fn is_no_disk(path: &str) -> bool {
    let files = [
        "null", "zero", "full", "stdout", "stderr", "stdin", "console", "kmsg", "log", "random", "urandom",
        "tty",
    ];
    let Some(name) = path.strip_prefix("/dev/") else { return false };
    files.contains(&name)
        || ["tty", "fd/", "shm/", "pts/", "tcp/", "udp/", "hvc"].iter().any(|head| name.starts_with(head))
}

fn device(word: &str) -> Option<&str> {
    let at = word.find("/dev/")?;
    (!is_no_disk(&word[at..])).then_some(&word[at..])
}

/// The disk itself or one of its partitions.
fn is_system(device: &str, system_disks: &[&str]) -> bool {
    system_disks.iter().any(|disk| {
        device.strip_prefix(disk).is_some_and(|rest| {
            let number = match disk.ends_with(|letter: char| letter.is_ascii_digit()) {
                true => rest.strip_prefix('p').unwrap_or(if rest.is_empty() { "" } else { "none" }),
                false => rest,
            };
            number.bytes().all(|byte| byte.is_ascii_digit())
        })
    })
}

fn is_between(letter: char) -> bool {
    letter.is_whitespace() || matches!(letter, '"' | '\'' | ',' | '[' | ']' | '<' | '>')
}

fn base(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}

fn clean(word: &str) -> String {
    let plain = |letter: &char| letter.is_ascii_alphanumeric() || "/._-".contains(*letter);
    word.chars().take_while(plain).take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[(Does, usize, &str)]) {
        let found = commands(text, Around::Shell, &["/dev/vda", "/dev/nvme0n1"]);
        let seen: Vec<_> = found.iter().map(|one| (one.does, one.line, one.shown.as_str())).collect();
        assert_eq!(seen, expected, "{text}");
    }

    #[test]
    fn commands_that_destroy_a_disk_are_found() {
        for (text, shown) in [
            ("mkfs.ext4 -F /dev/vdb", "mkfs.ext4 /dev/vdb"),
            ("sudo /usr/sbin/mkfs -t xfs /dev/vdb1", "mkfs /dev/vdb1"),
            ("if ! blkid /dev/vdb; then mkfs.xfs /dev/vdb; fi", "mkfs.xfs /dev/vdb"),
            ("mkfs.ext4 $DISK", "mkfs.ext4"),
            ("x=$(mkswap /dev/vdc)", "mkswap /dev/vdc"),
            ("sh -c 'wipefs -af /dev/vdb'", "wipefs /dev/vdb"),
            ("parted -s /dev/vdb mklabel gpt", "parted /dev/vdb"),
            ("sgdisk --zap-all /dev/vdb", "sgdisk /dev/vdb"),
            ("echo ',,' | sfdisk /dev/vdb", "sfdisk /dev/vdb"),
            ("dd if=/dev/zero of=/dev/vdb bs=1M", "dd /dev/vdb"),
            ("dd if=/dev/zero of=$disk", "dd"),
            ("pvcreate /dev/vdb", "pvcreate /dev/vdb"),
            ("vgremove -f data", "vgremove"),
            ("lvremove -y data/db", "lvremove"),
            ("cryptsetup -q luksFormat /dev/vdb -", "cryptsetup /dev/vdb"),
            ("mdadm --create /dev/md0 -n 2 /dev/vdb /dev/vdc", "mdadm /dev/md0"),
            ("zpool create tank vdb", "zpool"),
            ("blkdiscard /dev/vdb", "blkdiscard /dev/vdb"),
            ("shred -n1 /dev/vdb", "shred /dev/vdb"),
            ("cat disk.img > /dev/vdb", "> /dev/vdb"),
            ("cat disk.img | tee /dev/vdb", "tee /dev/vdb"),
            ("qemu-img convert -O raw a.qcow2 /dev/vdb", "qemu-img /dev/vdb"),
            ("nvme format -s1 /dev/nvme1n1", "nvme /dev/nvme1n1"),
            ("btrfs device add -f /dev/vdb /data", "btrfs /dev/vdb"),
            ("growpart /dev/vdb 1", "growpart /dev/vdb"),
            ("mkfs.ext4 \\\n  /dev/vdb", "mkfs.ext4 /dev/vdb"),
            ("mkfs.ext4 /dev/vda1 /dev/vdb", "mkfs.ext4 /dev/vdb"),
            ("mkfs.ext4 /dev/vdab", "mkfs.ext4 /dev/vdab"),
            ("mkfs.ext4 /dev/nvme0n11", "mkfs.ext4 /dev/nvme0n11"),
        ] {
            check(text, &[(Does::DestroyDisk, 0, shown)]);
        }
        check("#!/bin/sh\n\nmkfs.ext4 /dev/vdb\n", &[(Does::DestroyDisk, 2, "mkfs.ext4 /dev/vdb")]);
    }

    #[test]
    fn commands_that_set_a_password_are_found_without_it() {
        for (text, shown) in [
            ("echo root:secret | chpasswd", "chpasswd"),
            ("passwd root", "passwd"),
            ("usermod -p '$6$x$y' root", "usermod"),
            ("usermod --password x root", "usermod"),
        ] {
            check(text, &[(Does::SetPassword, 0, shown)]);
        }
    }

    #[test]
    fn harmless_commands_are_not() {
        for text in [
            "# mkfs.ext4 /dev/vdb",
            "mkfs.ext4 /dev/vda3",
            "wipefs /dev/vdb",
            "parted -l",
            "fdisk -l /dev/vdb",
            "sfdisk -d /dev/vdb",
            "apt-get install -y parted gdisk cryptsetup",
            "dd if=/dev/vdb of=/dev/null",
            "dd if=/dev/zero of=/swapfile",
            "echo hi > /dev/null 2>&1",
            "echo hi > /dev/ttyS0",
            "cryptsetup open /dev/vdb data",
            "mdadm --assemble --scan",
            "zpool import tank",
            "cp -a /dev/null /etc/x",
            "btrfs filesystem resize max /",
            "echo x | tee /etc/x",
            "usermod -aG docker web",
            "passwd -S root",
            "mount /dev/vdb /data",
            "mkfs.ext4 /dev/nvme0n1p2",
            "",
        ] {
            check(text, &[]);
        }
    }

    #[test]
    fn in_a_template_a_name_in_a_list_is_no_command() {
        assert!(commands("packages:\n- parted\n- fdisk\n", Around::Anything, &[]).is_empty());
        let rule = "web ALL=(root) NOPASSWD: /usr/sbin/parted, /usr/bin/passwd";
        assert!(commands(rule, Around::Anything, &[]).is_empty());
        assert_eq!(commands("- mkfs.ext4 /dev/{{ disk }}\n", Around::Anything, &[]).len(), 1);
        assert_eq!(commands("- [mkfs.ext4, '/dev/vdb']\n", Around::Anything, &[]).len(), 1);
    }
}
