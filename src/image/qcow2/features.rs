//! Feature bits: what must be understood to read an image. Section "Header".

use super::header::{CLUSTER_BITS, CRYPT_METHOD, Corrupt, Fields, INCOMPATIBLE_FEATURES};
use crate::image::error::ImageError;

pub(super) const DIRTY: u64 = 1 << 0;
pub(super) const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA_FILE: u64 = 1 << 2;
pub(super) const COMPRESSION: u64 = 1 << 3;
pub(super) const EXTENDED_L2: u64 = 1 << 4;
const KNOWN: u64 = DIRTY | CORRUPT | EXTERNAL_DATA_FILE | COMPRESSION | EXTENDED_L2;

/// Of the compatible features.
pub(super) const LAZY_REFCOUNTS: u64 = 1 << 0;

/// Checks what the incompatible features and the encryption method ask for; whether the tables are still understood.
pub(super) fn check(
    fields: &Fields<'_>,
    features: u64,
    corrupt: Corrupt,
    faults: &mut Vec<ImageError>,
) -> bool {
    let place = INCOMPATIBLE_FEATURES.range();
    let before = faults.len();
    if features & !KNOWN != 0 {
        faults.push(fields.unsupported(place, &unknown(features & !KNOWN)));
    }
    if features & EXTERNAL_DATA_FILE != 0 {
        faults.push(fields.unsupported(place, "an external data file"));
    }
    if fields.get(CRYPT_METHOD) != 0 {
        faults.push(fields.unsupported(CRYPT_METHOD.range(), "encryption"));
    }
    let is_small = fields.cluster_size().is_some_and(|size| size < 1 << 14);
    if features & EXTENDED_L2 != 0 && is_small {
        faults.push(fields.fault(CLUSTER_BITS, "is less than 14, which extended L2 entries need"));
    }
    let is_understood = faults.len() == before;
    if features & CORRUPT != 0 && corrupt == Corrupt::Refuse {
        // What it says of its tables is the more worth a look.
        faults.push(fields.marked_corrupt(place));
    }
    is_understood
}

/// The unknown features by the numbers of their bits.
fn unknown(bits: u64) -> String {
    let numbers = (0..u64::BITS).filter(|number| bits >> number & 1 == 1).map(|number| number.to_string());
    let numbers = numbers.collect::<Vec<_>>().join(", ");
    format!("what incompatible feature bits {bits:#x} (by number: {numbers}) stand for")
}
