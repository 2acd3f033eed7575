//! One of the volume's two trees: its folders, their records and its path tables.

use super::{SECTOR, Volume, both_u16, both_u32, in_u32, sectors};
use crate::seed::folder::{Folder, Node};

/// 1 January 2000, in years since 1900 (ECMA-119 9.1.5).
const DATE: [u8; 7] = [100, 1, 1, 0, 0, 0, 0];
const IS_FOLDER: u8 = 2;

/// How a tree names its files.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Naming {
    /// Upper case, 8 and 3 characters; the whole name in a Rock Ridge field.
    RockRidge,
    /// The whole name in UCS-2.
    Joliet,
}

impl Naming {
    pub(super) fn encode(self, text: &str) -> Vec<u8> {
        match self {
            Self::RockRidge => text.as_bytes().to_vec(),
            Self::Joliet => text.encode_utf16().flat_map(u16::to_be_bytes).collect(),
        }
    }
}

/// Where a file or a folder lies.
#[derive(Clone, Copy, Default)]
pub(super) struct Extent {
    pub(super) sector: u32,
    pub(super) bytes: u32,
}

/// One of the two trees; folders in the order of the path table, the root first.
pub(super) struct Tree<'a> {
    naming: Naming,
    folders: Vec<Placed<'a>>,
    path_table_sector: u32,
}

struct Placed<'a> {
    parent: usize,
    identifier: Vec<u8>,
    children: Vec<Child<'a>>,
    extent: Extent,
}

struct Child<'a> {
    name: &'a str,
    identifier: Vec<u8>,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    /// Which of the tree's folders.
    Folder(usize),
    /// Which of the volume's files.
    File(usize),
}

impl<'a> Tree<'a> {
    /// Names and sorts everything; nothing has its place yet.
    pub(super) fn of(root: &'a Folder, naming: Naming) -> Self {
        let mut tree = Self { naming, folders: Vec::new(), path_table_sector: 0 };
        tree.folders.push(Placed::new(0, vec![0]));
        // Level by level, which is the order of a path table.
        let mut queue = vec![(root, 0)];
        let mut index = 0;
        while let Some((folder, first_file)) = queue.get(index).copied() {
            for (mut child, inner) in named(folder, first_file, naming) {
                if let Some(inner) = inner {
                    child.what = What::Folder(tree.folders.len());
                    tree.folders.push(Placed::new(index, child.identifier.clone()));
                    queue.push(inner);
                }
                tree.folders[index].children.push(child);
            }
            index += 1;
        }
        for index in 0..tree.folders.len() {
            tree.folders[index].extent.bytes = in_u32(tree.listing(index, &|_| Extent::default()).len());
        }
        tree
    }

    pub(super) fn naming(&self) -> Naming {
        self.naming
    }

    /// Gives both path tables their sectors, from `next` on, and says which is next.
    pub(super) fn place_path_tables(&mut self, next: u32) -> u32 {
        self.path_table_sector = next;
        next + 2 * self.path_table_sectors()
    }

    /// Gives each folder its sectors, from `next` on, and says which is next.
    pub(super) fn place_folders(&mut self, mut next: u32) -> u32 {
        for folder in &mut self.folders {
            folder.extent.sector = next;
            next += folder.extent.bytes / in_u32(SECTOR);
        }
        next
    }

    pub(super) fn path_table_bytes(&self) -> u32 {
        in_u32(self.path_table(u32::to_le_bytes, u16::to_le_bytes).len())
    }

    /// The sectors of the little-endian and of the big-endian path table.
    pub(super) fn path_tables(&self) -> (u32, u32) {
        (self.path_table_sector, self.path_table_sector + self.path_table_sectors())
    }

    /// The record of the root folder as a volume descriptor holds it.
    pub(super) fn root_record(&self) -> Vec<u8> {
        record(&[0], self.folders[0].extent, IS_FOLDER, &[])
    }

    /// Writes path tables and folders.
    pub(super) fn write(&self, files: &[Extent], volume: &mut Volume) {
        let (little, big) = self.path_tables();
        volume.put(little, &self.path_table(u32::to_le_bytes, u16::to_le_bytes));
        volume.put(big, &self.path_table(u32::to_be_bytes, u16::to_be_bytes));
        let extent_of = |what| match what {
            What::Folder(index) => self.folders[index].extent,
            What::File(index) => files[index],
        };
        for (index, folder) in self.folders.iter().enumerate() {
            volume.put(folder.extent.sector, &self.listing(index, &extent_of));
        }
    }

    fn path_table_sectors(&self) -> u32 {
        sectors(self.path_table(u32::to_le_bytes, u16::to_le_bytes).len())
    }

    fn path_table(&self, in_u32: fn(u32) -> [u8; 4], in_u16: fn(u16) -> [u8; 2]) -> Vec<u8> {
        let mut table = Vec::new();
        for folder in &self.folders {
            let parent = u16::try_from(folder.parent + 1).expect("a seed has a handful of folders");
            table.extend([in_u8(folder.identifier.len()), 0]);
            table.extend(in_u32(folder.extent.sector));
            table.extend(in_u16(parent));
            table.extend(&folder.identifier);
            if folder.identifier.len() % 2 == 1 {
                table.push(0);
            }
        }
        table
    }

    /// The records of a folder, in whole sectors.
    fn listing(&self, index: usize, extent_of: &dyn Fn(What) -> Extent) -> Vec<u8> {
        let folder = &self.folders[index];
        let itself = extent_of(What::Folder(index));
        let parent = extent_of(What::Folder(folder.parent));
        let mut records = vec![
            record(&[0], itself, IS_FOLDER, &self.rock_ridge_of_itself(index)),
            record(&[1], parent, IS_FOLDER, &self.rock_ridge(What::Folder(folder.parent), None)),
        ];
        for child in &folder.children {
            let flags = if matches!(child.what, What::Folder(_)) { IS_FOLDER } else { 0 };
            let fields = self.rock_ridge(child.what, Some(child.name));
            records.push(record(&child.identifier, extent_of(child.what), flags, &fields));
        }
        let mut listing = Vec::new();
        for record in records {
            let room = SECTOR - listing.len() % SECTOR;
            if record.len() > room {
                // No record lies across two sectors (ECMA-119 6.8.1.1).
                listing.resize(listing.len() + room, 0);
            }
            listing.extend(record);
        }
        listing.resize(listing.len().next_multiple_of(SECTOR), 0);
        listing
    }

    /// The fields of a folder's own record; the root's say that Rock Ridge is spoken.
    fn rock_ridge_of_itself(&self, index: usize) -> Vec<u8> {
        let fields = self.rock_ridge(What::Folder(index), None);
        if index != 0 || self.naming == Naming::Joliet {
            return fields;
        }
        let name = b"RRIP_1991A";
        let text = b"THE ROCK RIDGE INTERCHANGE PROTOCOL PROVIDES SUPPORT FOR POSIX FILE SYSTEM SEMANTICS";
        let lengths = [in_u8(name.len()), in_u8(text.len()), 0, 1];
        let speaks = field(*b"ER", &[lengths.as_slice(), name, text].concat());
        [field(*b"SP", &[0xbe, 0xef, 0]), fields, speaks].concat()
    }

    /// PX (mode, links, owner, group) and NM (the whole name).
    fn rock_ridge(&self, what: What, name: Option<&str>) -> Vec<u8> {
        if self.naming == Naming::Joliet {
            return Vec::new();
        }
        let (mode, links) = match what {
            What::File(_) => (0o100_400, 1),
            What::Folder(index) => (0o040_500, 2 + self.folders_in(index)),
        };
        let mut fields = field(*b"PX", &[mode, links, 0, 0].map(both_u32).concat());
        if let Some(name) = name {
            fields.extend(field(*b"NM", &[&[0], name.as_bytes()].concat()));
        }
        fields
    }

    fn folders_in(&self, index: usize) -> u32 {
        let children = &self.folders[index].children;
        in_u32(children.iter().filter(|child| matches!(child.what, What::Folder(_))).count())
    }
}

impl Placed<'_> {
    fn new(parent: usize, identifier: Vec<u8>) -> Self {
        Self { parent, identifier, children: Vec::new(), extent: Extent::default() }
    }
}

type Inner<'a> = Option<(&'a Folder, usize)>;

/// The children of a folder by identifier; with each folder also the number of its first file.
fn named<'a>(folder: &'a Folder, first_file: usize, naming: Naming) -> Vec<(Child<'a>, Inner<'a>)> {
    let mut children: Vec<(Child<'a>, Inner<'a>)> = Vec::new();
    let mut file = first_file;
    let mut taken = Vec::new();
    for (name, node) in &folder.0 {
        let plain = match naming {
            Naming::RockRidge => short_name(name, &taken),
            Naming::Joliet => String::from(*name),
        };
        taken.push(plain.clone());
        let (text, inner) = match node {
            Node::Folder(inner) => (without_dot(plain), Some((inner, file))),
            Node::File(_) => (plain + ";1", None),
        };
        children.push((Child { name, identifier: naming.encode(&text), what: What::File(file) }, inner));
        match node {
            Node::File(_) => file += 1,
            Node::Folder(inner) => file += inner.count(),
        }
    }
    children.sort_by(|(one, _), (other, _)| one.identifier.cmp(&other.identifier));
    children
}

/// A folder's identifier has no extension, not even an empty one (ECMA-119 7.6.1).
fn without_dot(name: String) -> String {
    match name.strip_suffix('.') {
        Some(stem) => String::from(stem),
        None => name,
    }
}

/// A name of 8 and 3 characters (ECMA-119 10.1); a digit takes the eighth place if it is taken.
fn short_name(name: &str, taken: &[String]) -> String {
    let allowed = |text: &str, most: usize| -> String {
        let character = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
        text.chars().map(character).take(most).collect()
    };
    let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
    let (stem, extension) = (allowed(stem, 8), allowed(extension, 3));
    let first = format!("{stem}.{extension}");
    std::iter::once(first)
        .chain((0..10).map(|digit| format!("{stem:.7}{digit}.{extension}")))
        .find(|short| !taken.contains(short))
        .expect("a seed's folder has no eleven names that begin alike")
}

/// A directory record (ECMA-119 9.1).
fn record(identifier: &[u8], extent: Extent, flags: u8, fields: &[u8]) -> Vec<u8> {
    let mut record = vec![0; 2];
    record.extend(both_u32(extent.sector));
    record.extend(both_u32(extent.bytes));
    record.extend(DATE);
    record.extend([flags, 0, 0]);
    record.extend(both_u16(1));
    record.push(in_u8(identifier.len()));
    record.extend(identifier);
    if record.len() % 2 == 1 {
        record.push(0);
    }
    record.extend(fields);
    if record.len() % 2 == 1 {
        record.push(0);
    }
    record[0] = in_u8(record.len());
    record
}

/// A system use field (SUSP 4.1): signature, length, version 1, data.
fn field(signature: [u8; 2], data: &[u8]) -> Vec<u8> {
    [&signature, [in_u8(data.len() + 4), 1].as_slice(), data].concat()
}

fn in_u8(length: usize) -> u8 {
    u8::try_from(length).expect("our names and fields are short")
}
