//! Goal: both trees of a volume lead to the same files, and the bytes never change by themselves.
//! Method: a reader of its own, which follows the descriptors and trusts only big-endian or
//! little-endian numbers that agree; other programs read the volume in `.ci/seed-check`.

use super::super::folder::MOST_CONTENT;
use super::*;

fn file(bytes: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(bytes.to_vec())
}

fn seed() -> Folder {
    let mut root = Folder::default();
    root.add("meta-data", file(b"{\"instance-id\":\"i-1\"}\n"));
    root.add("user-data", file(b"#cloud-config\n{}\n"));
    root.add("network-config", file(&[b'n'; SECTOR + 1]));
    root
}

fn nested() -> Folder {
    let mut latest = Folder::default();
    latest.add("meta_data.json", file(b"{}"));
    latest.add("meta_data-other.json", file(b"{ }"));
    latest.add("user_data", file(b""));
    let mut openstack = Folder::default();
    openstack.add_folder("latest", latest);
    let mut root = Folder::default();
    root.add_folder("openstack", openstack);
    root.add("z-last", file(&[7; 3 * SECTOR]));
    root.add("a-first", file(b"a"));
    root
}

struct Reader<'a> {
    volume: &'a [u8],
    joliet: bool,
}

impl Reader<'_> {
    fn u32_at(&self, at: usize) -> usize {
        let little = u32::from_le_bytes(self.volume[at..at + 4].try_into().unwrap());
        let big = u32::from_be_bytes(self.volume[at + 4..at + 8].try_into().unwrap());
        assert_eq!(little, big, "both orders say the same at {at}");
        usize::try_from(little).unwrap()
    }

    fn field(&self, record: &[u8], signature: &[u8]) -> Option<Vec<u8>> {
        let mut at = 33 + usize::from(record[32]);
        at += at % 2;
        while at + 4 <= record.len() {
            let length = usize::from(record[at + 2]);
            if &record[at..at + 2] == signature {
                return Some(record[at + 4..at + length].to_vec());
            }
            at += length;
        }
        None
    }

    fn name(&self, record: &[u8]) -> String {
        let identifier = &record[33..33 + usize::from(record[32])];
        if self.joliet {
            let units = identifier.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
            return String::from_utf16(&units.collect::<Vec<_>>()).unwrap().replace(";1", "");
        }
        String::from_utf8(self.field(record, b"NM").unwrap()[1..].to_vec()).unwrap()
    }

    fn walk(&self, prefix: &str, folder: (usize, usize), found: &mut Vec<(String, Vec<u8>)>) {
        let (start, length) = (folder.0 * SECTOR, folder.1);
        assert_eq!(length % SECTOR, 0);
        let (mut at, mut position) = (start, 0);
        while at < start + length {
            let size = usize::from(self.volume[at]);
            if size == 0 {
                at = at.next_multiple_of(SECTOR);
                continue;
            }
            assert!(at % SECTOR + size <= SECTOR, "no record lies across two sectors");
            let record = &self.volume[at..at + size];
            let (sector, bytes) = (self.u32_at(at + 2), self.u32_at(at + 10));
            let is_folder = record[25] & 2 != 0;
            match position {
                0 => assert_eq!((&record[33..34], sector), (&[0][..], folder.0)),
                1 => assert_eq!(&record[33..34], [1]),
                _ => {
                    if !self.joliet {
                        let mode =
                            u32::from_le_bytes(self.field(record, b"PX").unwrap()[..4].try_into().unwrap());
                        assert_eq!(mode, if is_folder { 0o040_500 } else { 0o100_400 });
                    }
                    let path = format!("{prefix}/{}", self.name(record));
                    if is_folder {
                        self.walk(&path, (sector, bytes), found);
                    } else {
                        found.push((path, self.volume[sector * SECTOR..][..bytes].to_vec()));
                    }
                }
            }
            position += 1;
            at += size;
        }
    }
}

fn read(volume: &[u8], joliet: bool) -> Vec<(String, Vec<u8>)> {
    let at = if joliet { 17 } else { 16 } * SECTOR;
    let reader = Reader { volume, joliet };
    assert_eq!(&volume[at..at + 8], if joliet { b"\x02CD001\x01\0" } else { b"\x01CD001\x01\0" });
    assert_eq!(reader.u32_at(at + 80) * SECTOR, volume.len());
    let label = &volume[at + 40..at + 72];
    if joliet {
        assert_eq!(&label[..14], b"\0c\0i\0d\0a\0t\0a\0 ");
    } else {
        assert_eq!(label, format!("{:32}", "cidata").as_bytes());
    }
    let mut found = Vec::new();
    reader.walk("", (reader.u32_at(at + 158), reader.u32_at(at + 166)), &mut found);
    found.sort();
    found
}

#[track_caller]
fn check(root: &Folder, expected: &[(&str, usize)]) {
    let volume = write(root, "cidata").unwrap();
    assert_eq!(&volume[18 * SECTOR..18 * SECTOR + 7], b"\xffCD001\x01");
    let [rock_ridge, joliet] = [false, true].map(|joliet| read(&volume, joliet));
    assert_eq!(rock_ridge, joliet);
    let found: Vec<_> = rock_ridge.iter().map(|(path, bytes)| (path.as_str(), bytes.len())).collect();
    assert_eq!(found, expected);
}

#[test]
fn both_trees_lead_to_the_same_files() {
    check(&Folder::default(), &[]);
    check(&seed(), &[("/meta-data", 22), ("/network-config", 2049), ("/user-data", 17)]);
    check(
        &nested(),
        &[
            ("/a-first", 1),
            ("/openstack/latest/meta_data-other.json", 3),
            ("/openstack/latest/meta_data.json", 2),
            ("/openstack/latest/user_data", 0),
            ("/z-last", 3 * SECTOR),
        ],
    );
}

#[test]
fn a_path_table_names_each_folder_after_its_parent() {
    let volume = write(&nested(), "cidata").unwrap();
    let reader = Reader { volume: &volume, joliet: false };
    let bytes = reader.u32_at(16 * SECTOR + 132);
    let at = u32::from_le_bytes(volume[16 * SECTOR + 140..][..4].try_into().unwrap());
    let table = &volume[at_sector(at)..][..bytes];
    let (mut entries, mut rest) = (Vec::new(), table);
    while let [length, _, _, _, _, _, low, high, ..] = *rest {
        let name = String::from_utf8(rest[8..8 + usize::from(length)].to_vec()).unwrap();
        entries.push((name, u16::from_le_bytes([low, high])));
        rest = &rest[8 + usize::from(length.next_multiple_of(2))..];
    }
    let expected = [("\0", 1), ("OPENSTAC", 1), ("LATEST", 2)].map(|(name, n)| (name.to_owned(), n));
    assert_eq!(entries, expected);
}

#[test]
fn a_folder_of_more_than_a_sector_of_records_is_read_whole() {
    let mut root = Folder::default();
    let names: Vec<&'static str> = (0..40)
        .map(|n| &*Box::leak(format!("{n:02}-a-name-that-fills-its-record").into_boxed_str()))
        .collect();
    for name in &names {
        root.add(name, file(b"x"));
    }
    let expected: Vec<_> = names.iter().map(|name| format!("/{name}")).collect();
    check(&root, &expected.iter().map(|path| (path.as_str(), 1)).collect::<Vec<_>>());
}

#[test]
fn the_same_content_gives_the_same_bytes() {
    let volume = write(&seed(), "cidata").unwrap();
    assert_eq!(
        blake3::hash(&volume).to_hex().as_str(),
        "ab4d87f0eee4e443901da92b5c71f41787dbbe9b20f6eae71a7e1467f7d590e2"
    );
}

#[test]
fn content_of_more_than_1_mib_is_refused() {
    for (bytes, fits) in [(MOST_CONTENT, true), (MOST_CONTENT + 1, false)] {
        let mut root = Folder::default();
        root.add("user-data", file(&vec![0; bytes]));
        assert_eq!(write(&root, "cidata").is_ok(), fits, "{bytes}");
    }
}
