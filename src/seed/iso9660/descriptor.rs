//! Volume descriptors: what a reader finds at sector 16 (ECMA-119 8.4 and 8.5).

use super::tree::{Naming, Tree};
use super::{SECTOR, both_u16, both_u32};

/// 1 January 2000: a volume has to have a date, and a seed has to be the same for the same content.
const DATE: &[u8; 17] = b"2000010100000000\0";
const NO_DATE: &[u8; 17] = b"0000000000000000\0";

/// Fields of identifiers: where they begin and how long they are, the label apart.
const IDENTIFIERS: [(usize, usize); 8] =
    [(8, 32), (190, 128), (318, 128), (446, 128), (574, 128), (702, 37), (739, 37), (776, 37)];

/// The descriptor of one of the two trees.
pub(super) fn volume(tree: &Tree<'_>, label: &str, sectors: u32) -> [u8; SECTOR] {
    let mut descriptor = [0; SECTOR];
    let mut put = |offset: usize, bytes: &[u8]| {
        descriptor[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    let kind = match tree.naming() {
        Naming::RockRidge => 1,
        Naming::Joliet => 2,
    };
    put(0, &[kind]);
    put(1, b"CD001\x01");
    for (offset, length) in IDENTIFIERS {
        put(offset, &text("", length, tree.naming()));
    }
    put(40, &text(label, 32, tree.naming()));
    put(80, &both_u32(sectors));
    if tree.naming() == Naming::Joliet {
        // UCS-2 level 3.
        put(88, b"%/E");
    }
    put(120, &both_u16(1));
    put(124, &both_u16(1));
    put(128, &both_u16(2048));
    put(132, &both_u32(tree.path_table_bytes()));
    let (little, big) = tree.path_tables();
    put(140, &little.to_le_bytes());
    put(148, &big.to_be_bytes());
    put(156, &tree.root_record());
    put(813, DATE);
    put(830, DATE);
    put(847, NO_DATE);
    put(864, NO_DATE);
    put(881, &[1]);
    descriptor
}

/// The descriptor after the last.
pub(super) fn end() -> [u8; 7] {
    *b"\xffCD001\x01"
}

/// A text filled with spaces; in Joliet of two bytes each, and a last odd byte is zero.
fn text(text: &str, length: usize, naming: Naming) -> Vec<u8> {
    let mut bytes = naming.encode(text);
    assert!(bytes.len() <= length, "a text fits its field");
    let space = naming.encode(" ");
    while bytes.len() + space.len() <= length {
        bytes.extend(&space);
    }
    bytes.resize(length, 0);
    bytes
}
