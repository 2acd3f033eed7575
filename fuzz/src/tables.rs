//! An image whose L1 and L2 tables are rewritten.

use crate::{Scene, stored};

const OFFSET: u64 = (1 << 56) - 512;

/// A big-endian number of a header or table.
///
/// # Panics
///
/// When it lies behind the end.
#[must_use]
pub fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Where the L2 tables of a valid image lie.
#[must_use]
pub fn l2_tables(image: &[u8]) -> Vec<usize> {
    let (l1, count) = (index(number(image, 40, 8)), index(number(image, 36, 4)));
    let tables = (0..count).map(|entry| index(number(image, l1 + entry * 8, 8) & OFFSET));
    tables.filter(|table| *table != 0).collect()
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("a stored image is small")
}

/// A valid image and its tables.
pub struct Tables {
    scene: Scene,
    /// Where each lies: the L1 table, then the L2 tables.
    places: Vec<usize>,
    tables: Vec<Vec<u8>>,
}

impl Tables {
    /// Of an image of `testdata/images`.
    #[must_use]
    pub fn of(name: &str) -> Self {
        let image = stored(name);
        let cluster = 1 << number(&image, 20, 4);
        let l1_len = 8 * index(number(&image, 36, 4));
        let l2 = l2_tables(&image);
        let places: Vec<_> = std::iter::once(index(number(&image, 40, 8))).chain(l2).collect();
        let lens = std::iter::once(l1_len).chain(std::iter::repeat(cluster));
        let tables = places.iter().zip(lens).map(|(at, len)| image[*at..*at + len].to_vec()).collect();
        Self { scene: Scene::new("image.qcow2", &image), places, tables }
    }

    /// All tables, one behind the other.
    #[must_use]
    pub fn whole(&self) -> Vec<u8> {
        self.tables.concat()
    }

    /// Lays the input over the tables, as far as it reaches, and looks.
    pub fn look_with(&self, mut input: &[u8]) {
        for (at, whole) in self.places.iter().zip(&self.tables) {
            let mut table = whole.clone();
            let (over, rest) = input.split_at(input.len().min(table.len()));
            table[..over.len()].copy_from_slice(over);
            input = rest;
            self.scene.lay(*at as u64, &table);
        }
        self.scene.look();
    }
}
