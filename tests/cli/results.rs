//! What the commands do when nothing stands in their way.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::support::{PASSWORD, Ran, Room, Seen, expected, sha256, text};

#[track_caller]
fn holds(path: &Path, name: &str) {
    let disk = fs::read(path).unwrap();
    let (size, sum) = expected(name);
    let (image, behind) = disk.split_at(usize::try_from(size).unwrap());
    assert_eq!(sha256(image), sum, "{name}");
    assert!(behind.iter().all(|byte| *byte == 0), "{name}: something lies behind the image");
}

#[test]
fn every_kind_of_image_lands_on_a_new_file_as_qemu_img_reads_it() {
    let room = Room::new();
    let mut roots = Vec::new();
    for name in ["v2-64k", "v3-512", "zlib-64k", "zstd-4k", "extl2-64k"] {
        let image = room.image(name);
        let target = room.path(&format!("{name}.raw"));
        let report = room.rebuild(&[text(&image), text(&target), "--whole-digest"]).document();
        holds(&target, name);
        let disk = fs::read(&target).unwrap();
        assert_eq!(report["whole_digest"], blake3::hash(&disk).to_hex().as_str(), "{name}");
        assert_eq!(report["target_bytes"], disk.len(), "{name}");
        assert_eq!(report["target_state"], "verified", "{name}");
        roots.push(report["root"].clone());
    }
    roots.dedup();
    assert_eq!(roots.len(), 1, "the root digest depends on the format: {roots:?}");
}

#[test]
fn a_larger_file_keeps_its_size_and_nothing_of_the_old_disk_is_left() {
    for placement in [&[][..], &["--in-place"]] {
        let room = Room::new();
        let image = room.image("zlib-4k");
        let target = room.old_disk("disk.raw", 3 << 20);
        let inode = fs::metadata(&target).unwrap().ino();
        let words = [&[text(&image), text(&target)], placement].concat();
        let report = room.rebuild(&words).document();
        assert_eq!(report["target_bytes"], 3 << 20);
        assert_eq!(fs::metadata(&target).unwrap().len(), 3 << 20);
        holds(&target, "zlib-4k");
        let kept = fs::metadata(&target).unwrap().ino() == inode;
        assert_eq!(kept, !placement.is_empty(), "only --in-place writes into the old file");
        assert_eq!(room.names(), ["disk.raw", "zlib-4k.qcow2"], "something was left behind");
    }
}

#[test]
fn a_size_that_is_asked_for_is_the_size_of_the_disk() {
    let room = Room::new();
    let image = room.image("empty");
    let target = room.path("disk.raw");
    let report = room.rebuild(&[text(&image), text(&target), "--size", "40MiB"]).document();
    assert_eq!(report["target_bytes"], 40 << 20);
    assert_eq!(fs::metadata(&target).unwrap().len(), 40 << 20);
}

#[test]
fn a_plan_writes_nothing() {
    let room = Room::new();
    let image = room.image("zlib-64k");
    let target = room.old_disk("disk.raw", 2 << 20);
    let before = Seen::of(&target);
    let plan = room.run("plan", &[text(&image), text(&target)]).document();
    before.check(&target);
    assert_eq!(plan["target_kind"], "replaced_file");
    assert_eq!(plan["size_after"], 2 << 20);
    assert_eq!(plan["image"]["format"], "qcow2");
    assert!(!room.path("state").exists(), "a plan made a state folder");
}

#[test]
fn what_was_rebuilt_verifies() {
    let room = Room::new();
    let image = room.image("zstd-64k");
    let target = room.old_disk("disk.raw", 4 << 20);
    let report = room.rebuild(&[text(&image), text(&target)]).document();
    let before = Seen::of(&target);
    let verified = room.plain(&["verify", "--json", text(&image), text(&target)]).document();
    assert_eq!(verified["root"], report["root"]);
    before.check(&target);
}

/// The demonstration's files in a room of their own.
fn demo(room: &Room) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/demo");
    fs::create_dir(room.path("out")).unwrap();
    for name in ["demo.qcow2", "data.raw", "instance.toml", "password"] {
        fs::copy(folder.join(name), room.path(name)).unwrap();
    }
}

#[test]
fn the_demonstration_rebuilds_the_system_disk_and_leaves_the_data_disk() {
    let room = Room::new();
    demo(&room);
    let data = Seen::of(&room.path("data.raw"));
    // From another folder: the file's paths are relative to the file.
    let (instance, password) = (room.path("instance.toml"), room.path("password"));
    let mut command = room.command(["rebuild", "--yes", "--instance", text(&instance)]);
    command.args(["--password-file", text(&password), "--state-dir", text(&room.path("state"))]);
    let ran = crate::support::Ran::of(command.current_dir("/").output().unwrap());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    data.check(&room.path("data.raw"));
    assert!(room.path("out/seed.iso").exists());
    for said in [
        "Rebuilt and verified",
        "unchanged (times of the file; digest compared)",
        "the instance stays Stopped",
        "root digest",
    ] {
        assert!(ran.stdout.contains(said), "{said} is not in {}", ran.stdout);
    }
    let verified = room.plain(&["verify", "demo.qcow2", "out/system.raw"]);
    assert_eq!(verified.code, Some(0), "{verified:?}");
}

#[test]
fn a_password_is_in_nothing_that_is_printed() {
    let room = Room::new();
    demo(&room);
    let words = ["--instance", "instance.toml", "--password-file", "password", "--state-dir", "state"];
    for verb in ["plan", "rebuild"] {
        for form in [&["--progress", "plain"][..], &["--json", "--progress", "json"]] {
            let yes = if verb == "rebuild" { &["--yes"][..] } else { &[] };
            let ran = room.plain(&[&[verb], &words[..], form, yes].concat());
            assert_eq!(ran.code, Some(0), "{ran:?}");
            assert!(!ran.stdout.contains(PASSWORD) && !ran.stderr.contains(PASSWORD), "{ran:?}");
            assert!(!ran.stdout.contains("$6$") && !ran.stderr.contains("$6$"), "{ran:?}");
        }
    }
}

#[test]
fn flags_win_over_the_instance_file() {
    let room = Room::new();
    demo(&room);
    let image = room.image("zlib-4k");
    let words = ["--instance", "instance.toml", "--hostname", "other", text(&image), "out/other.raw"];
    let plan = room.run("plan", &words).document();
    assert_eq!(plan["image"]["chain"][0]["path"], text(&image));
    assert_eq!(plan["target"], "out/other.raw");
    assert_eq!(plan["seed"], serde_json::Value::Null, "--keep-image-credentials writes no seed");
    // What must survive still stands in the file, and flags add to it.
    let more = room.file("more.raw", "more");
    let plan = room.run("plan", &[&words[..], &["--data-disk", text(&more)]].concat()).document();
    assert_eq!(plan["data_disks"].as_array().unwrap().len(), 2);
    // One word beside an instance file is the image.
    let plan = room.run("plan", &["--instance", "instance.toml", text(&image)]).document();
    assert!(plan["target"].as_str().unwrap().ends_with("out/system.raw"), "{plan}");
}

#[test]
fn credentials_of_the_service_manager_are_taken_when_none_are_named() {
    let room = Room::new();
    demo(&room);
    fs::create_dir(room.path("credentials")).unwrap();
    room.file("credentials/password", PASSWORD);
    let words = ["rebuild", "--yes", "--instance", "instance.toml", "--state-dir", "state"];
    let mut command = room.command(words);
    let ran = crate::support::Ran::of(command.env("CREDENTIALS_DIRECTORY", "credentials").output().unwrap());
    assert_eq!(ran.code, Some(0), "{ran:?}");

    room.file("credentials/password-hash", "");
    let words = ["plan", "--instance", "instance.toml", "--state-dir", "state"];
    let mut command = room.command(words);
    let ran = crate::support::Ran::of(command.env("CREDENTIALS_DIRECTORY", "credentials").output().unwrap());
    assert_eq!(ran.code, Some(13), "{ran:?}");
    assert!(ran.stderr.contains("holds both a password and a password-hash"), "{ran:?}");
}

#[test]
fn an_inspection_shows_the_partitions_and_a_picture_of_64_cells() {
    let room = Room::new();
    demo(&room);
    let found = room.plain(&["inspect", "--json", "demo.qcow2"]).document();
    assert_eq!(found["image"]["virtual_size"], 64 << 20);
    let partitions = found["layout"]["partitions"].as_array().unwrap();
    let numbers: Vec<_> = partitions.iter().map(|partition| partition["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [1, 14, 15]);
    assert_eq!(found["picture"].as_array().unwrap().len(), 64);
    for (locale, ends) in [("C", ['[', ']']), ("C.UTF-8", ['▕', '▏'])] {
        let output = room.command(["inspect", "demo.qcow2"]).env("LC_ALL", locale).output().unwrap();
        let ran = crate::support::Ran::of(output);
        let map = ran.stdout.lines().find(|line| line.starts_with(ends[0])).unwrap();
        assert_eq!(map.chars().count(), 66, "{map}");
        assert!(map.ends_with(ends[1]), "{map}");
        assert!(ran.stdout.contains("ext4 \"root\"") && ran.stdout.contains("BIOS boot"), "{}", ran.stdout);
        assert_eq!(ran.stdout.is_ascii(), locale == "C", "{}", ran.stdout);
        assert!(ran.stdout.lines().all(|line| line.chars().count() <= 110), "{}", ran.stdout);
    }
}

#[test]
fn the_status_of_an_instance_file_is_that_of_its_system_disk() {
    let room = Room::new();
    demo(&room);
    let disk = room.old_disk("out/system.raw", 1 << 20);
    for words in [&["instance.toml"][..], &["--instance", "instance.toml"], &[text(&disk)]] {
        let status = room.plain(&[&["status", "--json"], words].concat()).document();
        assert_eq!(status["state"], "stopped");
    }
}

#[test]
fn a_seed_is_written_alone_and_replaced_only_when_asked() {
    let room = Room::new();
    room.file("password", PASSWORD);
    let seed = |words: &[&str]| {
        let common = ["seed", "--json", "--seed", "seed.iso", "--password-file", "password", "--instance-id"];
        room.plain(&[&common, words].concat())
    };
    assert_eq!(seed(&["i-1"]).document()["instance_id"], "i-1");
    let before = Seen::of(&room.path("seed.iso"));
    seed(&["i-2"]).error(13);
    let again = seed(&["i-1", "--replace"]).error(13);
    let message = again["message"].as_str().unwrap();
    let expected = "is that of the machine's last seed, so that nothing would be set";
    assert!(message.ends_with(expected), "{message}");
    before.check(&room.path("seed.iso"));
    seed(&["i-2", "--replace"]).document();
}

#[test]
fn completions_and_man_pages_name_every_command() {
    let room = Room::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = room.plain(&["completions", shell]).stdout;
        for command in ["rebuild", "plan", "verify", "inspect", "seed", "status"] {
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
    fs::create_dir(room.path("man")).unwrap();
    assert_eq!(room.plain(&["man", "man"]).code, Some(0));
    let page = fs::read_to_string(room.path("man/reimage-rebuild.1")).unwrap();
    assert!(page.contains("state"), "{page}");
}

#[test]
fn names_that_are_no_text_are_shown_with_a_replacement_and_work() {
    use std::os::unix::ffi::OsStrExt;
    let room = Room::new();
    let name = |name: &[u8]| room.path("x").with_file_name(std::ffi::OsStr::from_bytes(name));
    let (image, target) = (name(b"image\xff\n.img"), name(b"target\xff.raw"));
    fs::copy(room.image("v3-64k"), &image).unwrap();
    let run = |words: &[&str], paths: &[&std::path::Path]| {
        let mut command = room.command(words);
        Ran::of(command.args(paths).output().unwrap())
    };
    let words = ["rebuild", "--yes", "--json", "--keep-image-credentials", "--state-dir", "state"];
    run(&words, &[&image, &target]).document();
    run(&["inspect", "--json"], &[&image]).document();
    run(&["verify", "--json"], &[&image, &target]).document();
    run(&words, &[&name(b"no\xff.img"), &target]).error(20);
}

#[test]
fn the_longest_name_that_a_file_can_have_is_made_and_replaced() {
    let room = Room::new();
    let image = room.image("v3-64k");
    let target = format!("{}.raw", "n".repeat(251));
    room.rebuild(&[text(&image), &target]).document();
    room.rebuild(&[text(&image), &target]).document();
    assert_eq!(room.names().iter().filter(|name| name.contains("unfinished")).count(), 0);
}

#[test]
fn a_product_that_cannot_be_printed_is_30_and_a_rebuild_that_is_done_is_not() {
    let room = Room::new();
    let image = room.image("zlib-64k");
    let target = room.path("disk.raw");
    let into = |words: &[&str], path: &str| {
        let stdout = fs::File::options().write(true).open(path).unwrap();
        room.command(words).stdout(stdout).output().unwrap().status.code()
    };
    let keep = "--keep-image-credentials";
    let rebuild = ["rebuild", text(&image), text(&target), keep, "--yes"];
    assert_eq!(into(&rebuild, "/dev/full"), Some(0));
    for words in [
        &["manifest", text(&image)][..],
        &["plan", text(&image), text(&target), keep],
        &["inspect", text(&image)],
        &["verify", text(&image), text(&target)],
        &["status", text(&target)],
        &["inspect", "--json", text(&image)],
    ] {
        assert_eq!(into(words, "/dev/full"), Some(30), "{words:?}");
        assert_eq!(into(words, "/dev/null"), Some(0), "{words:?}");
    }
}
