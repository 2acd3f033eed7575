//! Goal: what would hurt is told with its line, and hostile user-data neither panics nor hangs.

use zeroize::Zeroizing;

use super::*;

fn lint_of(text: &[u8], user: Option<&str>, password: NewPassword) -> Vec<Finding> {
    let customer = CustomerData::new(Zeroizing::new(text.to_vec())).unwrap();
    lint(&customer, &Against { user, password, system_disks: &["/dev/vda"] })
}

#[track_caller]
fn check(text: &str, expected: &[(usize, &str, Harm)]) {
    let findings = lint_of(text.as_bytes(), Some("root"), NewPassword::Set);
    let seen: Vec<_> = findings.iter().map(|one| (one.line, one.what.as_str(), one.harm)).collect();
    assert_eq!(seen, expected, "{text}");
}

#[test]
fn a_cloud_config_that_sets_up_disks_is_found_line_by_line() {
    check(
        "#cloud-config\npackages: [parted]\nfs_setup:\n- device: /dev/vdb\n",
        &[(3, "fs_setup", Harm::Disk)],
    );
    check("#cloud-config\n{\"disk_setup\": {\"/dev/vdb\": {}}}\n", &[(2, "disk_setup", Harm::Disk)]);
    check("#cloud-config\ngrowpart:\n  devices: [/, /dev/vdb]\n", &[(2, "growpart", Harm::Disk)]);
    check("#cloud-config\ngrowpart:\n  mode: auto\n  devices: ['/']\n", &[]);
    check(
        "#cloud-config\nruncmd:\n- ls\n- mkfs.ext4 /dev/vdb\n- [mkfs.xfs, -f, /dev/vdc]\n- [sh, -c, 'wipefs -a /dev/vdd']\n- |\n  set -e\n  parted /dev/vde mklabel gpt\nbootcmd:\n- mkfs.ext4 /dev/vda2\n",
        &[
            (4, "mkfs.ext4 /dev/vdb", Harm::Disk),
            (5, "mkfs.xfs /dev/vdc", Harm::Disk),
            (6, "wipefs /dev/vdd", Harm::Disk),
            (9, "parted /dev/vde", Harm::Disk),
        ],
    );
    check(
        "#cloud-config\nx: &a\n- mkfs.ext4 /dev/vdb\nruncmd: *a\n",
        &[(3, "mkfs.ext4 /dev/vdb", Harm::Disk)],
    );
    check("#cloud-config\nx: &a\n  fs_setup: []\n<<: *a\n", &[(3, "fs_setup", Harm::Disk)]);
    check(
        "#cloud-config\nfs_setup: [\n",
        &[(2, "fs_setup", Harm::Disk), (3, "YAML that cannot be read", Harm::Unread)],
    );
}

#[test]
fn every_other_kind_is_looked_into() {
    check("#!/bin/sh\nmkfs.ext4 /dev/vdb\n", &[(2, "mkfs.ext4 /dev/vdb", Harm::Disk)]);
    check("#cloud-boothook\n#!/bin/sh\nblkdiscard /dev/vdb\n", &[(3, "blkdiscard /dev/vdb", Harm::Disk)]);
    check(
        "## template: jinja\n#cloud-config\nfs_setup:\n- device: {{ x }}\nruncmd:\n- mkfs.ext4 /dev/vdb\n",
        &[(3, "fs_setup", Harm::Disk), (6, "mkfs.ext4 /dev/vdb", Harm::Disk)],
    );
    check(
        "#cloud-config-jsonp\n[{\"op\":\"add\",\"path\":\"/fs_setup\",\"value\":[]}]\n",
        &[(2, "fs_setup", Harm::Disk)],
    );
    check("#include\nhttps://example.org/a\n", &[(1, "#include", Harm::Elsewhere)]);
    check("#part-handler\n", &[(1, "#part-handler", Harm::Elsewhere)]);
    check(
        "#cloud-config-archive\n- type: text/cloud-config\n  content: |\n    a: 1\n    fs_setup: []\n- |\n  #!/bin/sh\n  mkswap /dev/vdb\n- \"#cloud-config\\nfs_setup: []\\n\"\n",
        &[(5, "fs_setup", Harm::Disk), (8, "mkswap /dev/vdb", Harm::Disk), (9, "fs_setup", Harm::Disk)],
    );
    check(
        "Content-Type: multipart/mixed; boundary=b\nMIME-Version: 1.0\n\n--b\nContent-Type: text/cloud-config\n\nfs_setup: []\n--b\nContent-Transfer-Encoding: base64\n\nIyEvYmluL3NoCm1rc3dhcCAvZGV2L3ZkYgo=\n--b--\n",
        &[(7, "fs_setup", Harm::Disk), (11, "mkswap /dev/vdb", Harm::Disk)],
    );
}

#[test]
fn a_compressed_document_is_looked_into() {
    let text = b"#!/bin/sh\nmkfs.ext4 /dev/vdb\n";
    let mut packed = vec![0; 200];
    let length = libdeflater::Compressor::new(libdeflater::CompressionLvl::default())
        .gzip_compress(text, &mut packed)
        .unwrap();
    let findings = lint_of(&packed[..length], None, NewPassword::Set);
    assert_eq!(findings.len(), 1);
    assert_eq!((findings[0].line, findings[0].harm), (2, Harm::Disk));
}

#[track_caller]
fn check_harms(text: &str, user: Option<&str>, password: NewPassword, expected: &[Harm]) {
    let harms: Vec<_> = lint_of(text.as_bytes(), user, password).iter().map(|one| one.harm).collect();
    assert_eq!(harms, expected, "{text}");
}

#[test]
fn a_password_that_ours_does_not_outlive_is_found() {
    let (set, none) = (NewPassword::Set, NewPassword::None);
    check_harms("#!/bin/sh\necho root:x | chpasswd\n", None, set, &[Harm::Password]);
    check_harms("#cloud-config\nruncmd:\n- [usermod, -p, x, root]\n", None, set, &[Harm::Password]);
    check_harms("#cloud-config\npassword: x\n", None, set, &[]);
    check_harms("#cloud-config\npassword: x\n", None, none, &[Harm::Password]);
    check_harms("#cloud-config\nchpasswd: {list: [a]}\n", None, none, &[Harm::Password]);
    check_harms("#cloud-config\nchpasswd: {list: [a]}\n", None, set, &[Harm::Dropped]);
    check_harms("#cloud-config\nchpasswd: {expire: false}\n", None, set, &[]);
    let users = "#cloud-config\nusers:\n- name: root\n  hashed_passwd: x\n";
    check_harms(users, Some("root"), set, &[]);
    check_harms(users, Some("root"), none, &[Harm::Password]);
    check_harms(users, Some("web"), none, &[]);
}

#[test]
fn users_that_are_no_list_would_lock_the_owner_out() {
    for users in ["bob,default", "{bob: {}}", "", "null"] {
        let text = format!("#cloud-config\nusers: {users}\n");
        check_harms(&text, None, NewPassword::Set, &[Harm::Lockout]);
        check_harms(&text, Some("root"), NewPassword::Set, &[Harm::Lockout]);
        check_harms(&text, Some("web"), NewPassword::Set, &[]);
    }
    check_harms("#cloud-config\nusers: []\n", None, NewPassword::Set, &[]);
}

#[test]
fn aliases_of_aliases_end_at_a_bound() {
    let mut bomb = String::from("#cloud-config\na0: &a0 [x, x]\n");
    for n in 1..30 {
        bomb.push_str(&format!("a{n}: &a{n} [*a{0}, *a{0}]\n", n - 1));
    }
    bomb.push_str("runcmd: [*a29]\n");
    assert!(lint_of(bomb.as_bytes(), None, NewPassword::Set).iter().any(|one| one.harm == Harm::Unread));
    let own = "#cloud-config\nruncmd: &r\n- *r\n";
    assert!(lint_of(own.as_bytes(), None, NewPassword::Set).iter().all(|one| one.harm == Harm::Unread));
    let own = "#cloud-config\n<<: &r\n  <<: *r\n";
    assert!(lint_of(own.as_bytes(), None, NewPassword::Set).iter().all(|one| one.harm == Harm::Unread));
}

/// A small generator, so that a failure can be made again from its number.
fn next(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    usize::try_from(*state >> 33).unwrap()
}

#[test]
fn mutated_user_data_never_panics() {
    let seeds: [&[u8]; 5] = [
        b"#cloud-config\nx: &a {fs_setup: []}\n<<: *a\nruncmd:\n- [mkfs.ext4, '/dev/vdb']\n- |\n  dd of=/dev/vdb\nusers: [default]\n",
        b"#cloud-config-archive\n- content: |\n    #!/bin/sh\n    mkswap /dev/vdb\n- \"#cloud-config\\nfs_setup: []\"\n",
        b"Content-Type: multipart/mixed; boundary=\"b\"\nMIME-Version: 1.0\n\n--b\nContent-Transfer-Encoding: quoted-printable\n\n#!/bin/sh=0A\n--b\nContent-Transfer-Encoding: base64\n\nIyEvYmlu\n--b--\n",
        b"## template: jinja\n#cloud-config\nfs_setup: {{ x }}\n",
        b"#!/bin/sh\nmkfs.ext4 \\\n /dev/vdb > /dev/vdc; echo \"a:b\" | chpasswd\n",
    ];
    let pieces: [&[u8]; 14] = [
        b"\n",
        b"- ",
        b": ",
        b"|",
        b"&a ",
        b"*a",
        b"{",
        b"[",
        b"\"",
        b"--b",
        b"\xc3\xa9",
        b"\xff",
        b"\t",
        b"> /dev/",
    ];
    for rng_seed in 1..=4000_u64 {
        let mut state = rng_seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut text = seeds[next(&mut state) % seeds.len()].to_vec();
        for _ in 0..=next(&mut state) % 6 {
            let at = next(&mut state) % (text.len() + 1);
            let piece = pieces[next(&mut state) % pieces.len()];
            match next(&mut state) % 3 {
                0 => drop(text.splice(at..at, piece.iter().copied())),
                1 => text.truncate(at.max(20)),
                _ => {
                    let end = (at + next(&mut state) % 9).min(text.len());
                    drop(text.splice(at..end, piece.iter().copied()));
                }
            }
        }
        let Ok(customer) = CustomerData::new(Zeroizing::new(text)) else { continue };
        let against = Against { user: None, password: NewPassword::Set, system_disks: &["/dev/vda"] };
        let told = lint(&customer, &against);
        let lines = customer.document().split(|byte| *byte == b'\n').count() + 1;
        assert!(told.iter().all(|one| (1..=lines).contains(&one.line)), "rng_seed {rng_seed}");
    }
}

#[test]
fn a_long_text_of_anything_ends_soon() {
    let heads =
        ["#cloud-config\n", "#!/bin/sh\n", "#cloud-config\nruncmd:\n- |\n  ", "#cloud-config-archive\n- "];
    let repeated = [
        ">",
        "dd ",
        "[",
        "{",
        "\"",
        "&a ",
        "*a ",
        "- ",
        "? ",
        ": ",
        "a: ",
        "{a: ",
        "!!x ",
        "|\n",
        "\\\n",
        "chpasswd: {}\n",
        "users: [a]\n",
        "- mkfs /dev/vdb\n",
        "\t",
        "é",
    ];
    for head in heads {
        for piece in repeated {
            let begun = std::time::Instant::now();
            let text = format!("{head}{}", piece.repeat((1 << 16) / piece.len()));
            assert!(lint_of(text.as_bytes(), None, NewPassword::None).len() <= MOST_FINDINGS);
            assert!(begun.elapsed().as_secs() < 10, "{head:?} {piece:?}");
        }
    }
    let map: String = (0..20_000).map(|n| format!("a{n}: 1, ")).collect();
    let users = "*m, ".repeat(50_000);
    let text = format!("#cloud-config\nx: &m {{{map}}}\nusers: &u [{users}]\n{}", "users: *u\n".repeat(5000));
    assert!(lint_of(text.as_bytes(), None, NewPassword::None).iter().any(|one| one.harm == Harm::Unread));
}

#[test]
fn files_that_run_are_looked_into() {
    let script = "#!/bin/sh\nmkfs.ext4 /dev/vdb\n";
    check(
        "#cloud-config\nwrite_files:\n- path: /var/lib/cloud/scripts/per-instance/a\n  permissions: '0755'\n  content: |\n    #!/bin/sh\n    mkfs.ext4 /dev/vdb\n",
        &[(7, "mkfs.ext4 /dev/vdb", Harm::Disk)],
    );
    let mut packed = vec![0; 200];
    let length = libdeflater::Compressor::new(libdeflater::CompressionLvl::default())
        .gzip_compress(script.as_bytes(), &mut packed)
        .unwrap();
    let encode = <base64ct::Base64 as base64ct::Encoding>::encode_string;
    let (plain, packed) = (encode(script.as_bytes()), encode(&packed[..length]));
    for (encoding, content) in [
        ("b64", plain.clone()),
        ("Base64 ", plain.clone()),
        ("gz+b64", packed.clone()),
        ("gzip+base64", packed.clone()),
        ("gz", format!("!!binary {packed}")),
        ("text/plain", format!("!!binary {plain}")),
    ] {
        let text = format!("#cloud-config\nwrite_files:\n- encoding: '{encoding}'\n  content: {content}\n");
        match encoding {
            // What is binary and packed is no text.
            "gz" => check(&text, &[(4, "write_files, content", Harm::Unread)]),
            _ => check(&text, &[(4, "mkfs.ext4 /dev/vdb", Harm::Disk)]),
        }
    }
    let file = |rest: &str| {
        format!("#cloud-config\nwrite_files:\n- {{path: /opt/x, content: 'zpool destroy tank'}}\n{rest}")
    };
    check(&file(""), &[]);
    for rest in ["runcmd: [[sh, /opt/x]]", "runcmd: ['sh -c \"/opt/x;\"']", "bootcmd: '/opt/x'"] {
        check(&file(rest), &[(3, "zpool", Harm::Disk)]);
    }
    check(
        "#cloud-config\na: &a\n  encoding: b64\nwrite_files:\n- <<: *a\n  content: IyEvYmluL3NoCm1rc3dhcCAvZGV2L3ZkYgo=\n",
        &[(6, "mkswap /dev/vdb", Harm::Disk)],
    );
    check(
        "#cloud-config\nwrite_files:\n- encoding: b64\n  content: x\n- {path: a, source: {uri: 'https://a'}}\n",
        &[(4, "write_files, content", Harm::Unread), (5, "write_files, source", Harm::Elsewhere)],
    );
}

#[test]
fn commands_of_other_keys_are_found() {
    check(
        "#cloud-config\npower_state: {condition: mkfs.ext4 /dev/vdb}\n",
        &[(2, "mkfs.ext4 /dev/vdb", Harm::Disk)],
    );
    check(
        "#cloud-config\nsnap:\n  commands:\n  - [mkfs.ext4, /dev/vdb]\npackages: [parted, /x]\n",
        &[(4, "mkfs.ext4 /dev/vdb", Harm::Disk)],
    );
}

#[test]
fn parts_that_cannot_be_read_are_told() {
    let part = |head: &str| {
        format!("Content-Type: multipart/mixed; boundary=b\nMIME-Version: 1.0\n\n--b\n{head}\n\nx\n--b--\n")
    };
    for head in ["Content-Type: message/rfc822", "Content-Transfer-Encoding: base64"] {
        check(&part(head), &[(7, "a MIME part that cannot be read", Harm::Unread)]);
    }
    check(
        &part("Content-Type: text/x-shellscript-per-boot\n\n#cloud-config\nmkfs.ext4 /dev/vdb"),
        &[(8, "mkfs.ext4 /dev/vdb", Harm::Disk)],
    );
}

#[test]
fn what_is_packed_again_and_again_is_not_unpacked_for_ever() {
    let mut packed = vec![0; 1 << 16];
    let length = libdeflater::Compressor::new(libdeflater::CompressionLvl::default())
        .gzip_compress(&vec![b'#'; 8 << 20], &mut packed)
        .unwrap();
    let content = <base64ct::Base64 as base64ct::Encoding>::encode_string(&packed[..length]);
    let file = "- {encoding: gz+b64, content: *a}\n";
    let text = format!("#cloud-config\na: &a {content}\nwrite_files:\n{}", file.repeat(1000));
    let findings = lint_of(text.as_bytes(), None, NewPassword::Set);
    assert_eq!(findings.first().map(|one| (one.line, one.harm)), Some((1, Harm::Unread)));
    let lines: Vec<_> = findings.iter().map(|one| one.line).filter(|line| *line > 1).collect();
    assert_eq!(lines.first(), Some(&6), "two of them are 16 MiB");
}

#[test]
fn what_is_refused_is_told_however_much_is_only_warned_of() {
    let script = format!("#!/bin/sh\n{}mkfs.ext4 /dev/vdb\n", "echo root:x | chpasswd\n".repeat(3000));
    let findings = lint_of(script.as_bytes(), Some("root"), NewPassword::Set);
    assert!(
        findings.iter().any(|found| found.harm == Harm::Disk && found.line == 3002),
        "{}",
        findings.len()
    );
    let archive = format!("#cloud-config-archive\n{}", "- '#cloud-config'\n".repeat(300));
    let findings = lint_of(archive.as_bytes(), None, NewPassword::Set);
    assert!(
        findings.iter().any(|found| found.harm == Harm::Unread),
        "an archive that is too long to be looked at"
    );
}

#[test]
fn a_program_that_only_shows_is_none_that_destroys_and_its_letters_are_its_own() {
    for (command, harms) in [
        ("sgdisk -p /dev/vdb", false),
        ("sgdisk -d 1 /dev/vdb", true),
        ("sgdisk -l backup /dev/vdb", true),
        ("sfdisk -d /dev/vdb", false),
        ("parted -l", false),
        ("fdisk /dev/vdb", true),
    ] {
        let findings = lint_of(format!("#!/bin/sh\n{command}\n").as_bytes(), None, NewPassword::Set);
        assert_eq!(findings.iter().any(|found| found.harm == Harm::Disk), harms, "{command}");
    }
}
