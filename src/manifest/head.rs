//! What an image has where a moved backup GPT changes a disk.

use std::io;

use crate::layout::{self, LayoutError, Patch, ReadBytes, SectorSize, Window};
use crate::range::ByteRange;
use crate::verify::{CHUNK, Former};

/// How much larger the disks are that are tried: the size in the protective MBR may by chance be that of one.
const LARGER: [u64; 2] = [1 << 30, 3 << 30];

/// The bytes of the image's head that a move of its backup GPT changes; none where there is nothing to move, or where
/// it cannot be moved.
///
/// # Errors
///
/// When the image cannot be read.
pub(crate) fn former_head(image: &dyn ReadBytes) -> io::Result<Vec<Former>> {
    let mut ranges: Vec<ByteRange> = Vec::new();
    // Some images carry a GPT for either size of a sector.
    for (larger, sector) in [(LARGER[0], 512), (LARGER[1], 512), (LARGER[0], 4096), (LARGER[1], 4096)] {
        let patches = match moved(image, larger, sector) {
            Ok(patches) => patches,
            Err(LayoutError::Read(error)) => return Err(error),
            Err(_) => continue,
        };
        let of_head = patches.into_iter().map(|patch| patch.range).filter(|range| range.end() <= CHUNK);
        ranges.extend(of_head.filter(|range| range.end() <= image.size()));
    }
    ranges.sort_unstable();
    ranges.dedup();
    let former = |range: ByteRange| {
        let mut bytes = vec![0; usize::try_from(range.len()).map_err(io::Error::other)?];
        image.read_at(range, &mut bytes)?;
        Ok(Former { range, bytes })
    };
    ranges.into_iter().map(former).collect()
}

/// The backup GPT that an image with this first one has at its end, if it is as usual; the digests tell whether it was.
pub(super) fn original_backup(
    image: &dyn ReadBytes,
    sector: SectorSize,
) -> Result<Option<Former>, LayoutError> {
    let shorter = Window::new(image, ByteRange::new(0, image.size().saturating_sub(sector.bytes())));
    let relocation = match layout::relocate(&shorter, image.size(), sector) {
        Err(LayoutError::Read(error)) => return Err(LayoutError::Read(error)),
        relocation => relocation.ok(),
    };
    let backup = relocation.and_then(|relocation| relocation.patches.into_iter().next_back());
    Ok(backup.map(|Patch { range, bytes }| Former { range, bytes }))
}

fn moved(image: &dyn ReadBytes, larger: u64, sector: u32) -> Result<Vec<Patch>, LayoutError> {
    let Some(sector) = layout::fits_sector(image, sector)? else { return Ok(Vec::new()) };
    let size = image.size().next_multiple_of(sector.bytes()).checked_add(larger);
    let Some(size) = size else { return Ok(Vec::new()) };
    Ok(layout::relocate(image, size, sector)?.patches)
}
