//! The files of a seed, whatever volume they go onto.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use super::error::SeedError;

/// What the files of a seed may hold together; guests take more, and need less.
pub(super) const MOST_CONTENT: usize = 1 << 20;

/// A folder of the volume: file contents are wiped when it is dropped.
#[derive(Default)]
pub(super) struct Folder(pub(super) BTreeMap<&'static str, Node>);

/// What a folder holds.
pub(super) enum Node {
    File(Zeroizing<Vec<u8>>),
    Folder(Folder),
}

impl Folder {
    /// Adds a file; the name is one of ours, in ASCII.
    pub(super) fn add(&mut self, name: &'static str, bytes: Zeroizing<Vec<u8>>) {
        self.insert(name, Node::File(bytes));
    }

    /// Adds a folder; the name is one of ours, in ASCII.
    pub(super) fn add_folder(&mut self, name: &'static str, folder: Folder) {
        self.insert(name, Node::Folder(folder));
    }

    /// All files in the order of their names, folder by folder; refused where they are too many bytes.
    pub(super) fn files(&self) -> Result<Vec<&[u8]>, SeedError> {
        let mut files = Vec::new();
        self.collect(&mut files);
        let size = files.iter().map(|bytes| bytes.len()).sum();
        match size <= MOST_CONTENT {
            true => Ok(files),
            false => Err(SeedError::TooLarge { size, most: MOST_CONTENT }),
        }
    }

    /// How many files it holds, those of its folders included.
    pub(super) fn count(&self) -> usize {
        let of_node = |node: &Node| match node {
            Node::File(_) => 1,
            Node::Folder(folder) => folder.count(),
        };
        self.0.values().map(of_node).sum()
    }

    fn insert(&mut self, name: &'static str, node: Node) {
        // Joliet takes 64 characters; ASCII makes its order the same as that of the bytes.
        assert!((1..=62).contains(&name.len()) && name.is_ascii(), "a name fits every volume");
        assert!(self.0.insert(name, node).is_none(), "a folder holds a name once");
    }

    fn collect<'a>(&'a self, files: &mut Vec<&'a [u8]>) {
        for node in self.0.values() {
            match node {
                Node::File(bytes) => files.push(bytes),
                Node::Folder(folder) => folder.collect(files),
            }
        }
    }
}
