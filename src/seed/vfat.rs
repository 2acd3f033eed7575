//! A small FAT volume, for machines without a CD-ROM drive: the same folder gives the same bytes, always.

use std::io::{self, Cursor, Write as _};

use fatfs::{Date, DateTime, Dir, FatType, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider};
use zeroize::Zeroizing;

use super::error::SeedError;
use super::folder::{Folder, Node};

const MIB: usize = 1 << 20;
/// Tables, the root folder, and the rounding of a few files to whole clusters.
const BESIDES_CONTENT: usize = 128 << 10;
const SECTOR: u16 = 512;
const CLUSTER: u32 = 4096;
/// How a label is filled up.
const LABEL: usize = 11;

type Bytes<'a> = Cursor<&'a mut [u8]>;

/// The volume that holds `root` under `label`, which must be ASCII of at most 11 characters.
pub(super) fn write(root: &Folder, label: &str) -> Result<Zeroizing<Vec<u8>>, SeedError> {
    let files = root.files()?;
    let size: usize = files.iter().map(|bytes| bytes.len()).sum();
    let mut volume = Zeroizing::new(vec![0; (size + BESIDES_CONTENT).next_multiple_of(MIB)]);
    fill(root, label, &mut volume)
        .map_err(|source| SeedError::Io { doing: "making a FAT volume", source })?;
    Ok(volume)
}

fn fill(root: &Folder, label: &str, volume: &mut [u8]) -> io::Result<()> {
    let mut padded = [b' '; LABEL];
    padded[..label.len()].copy_from_slice(label.as_bytes());
    let sectors = u32::try_from(volume.len() / usize::from(SECTOR)).expect("a seed is small");
    // The label lies in the boot sector and in the root folder: blkid and cloud-init look at both. It stays in
    // lower case, as the oldest readers want it.
    let options = FormatVolumeOptions::new()
        .volume_label(padded)
        .volume_id(volume_id(root)?)
        .fat_type(FatType::Fat12)
        .bytes_per_sector(SECTOR)
        .bytes_per_cluster(CLUSTER)
        .total_sectors(sectors);
    fatfs::format_volume(Cursor::new(&mut *volume), options)?;
    let options = FsOptions::new().time_provider(&FIXED);
    let file_system = FileSystem::new(Cursor::new(volume), options)?;
    add(&file_system.root_dir(), root)?;
    file_system.unmount()
}

fn add(to: &Dir<'_, Bytes<'_>>, folder: &Folder) -> io::Result<()> {
    for (name, node) in &folder.0 {
        match node {
            Node::File(bytes) => {
                let mut file = to.create_file(name)?;
                file.write_all(bytes)?;
                file.flush()?;
            }
            Node::Folder(inner) => add(&to.create_dir(name)?, inner)?,
        }
    }
    Ok(())
}

/// The volume's number: from the content, so that two seeds are told apart and one is always the same.
fn volume_id(root: &Folder) -> io::Result<u32> {
    let mut hasher = blake3::Hasher::new();
    for bytes in root.files().map_err(io::Error::other)? {
        hasher.update(&bytes.len().to_le_bytes());
        hasher.update(bytes);
    }
    let [a, b, c, d, ..] = *hasher.finalize().as_bytes();
    Ok(u32::from_le_bytes([a, b, c, d]))
}

/// 1 January 2000, as the ISO 9660 volumes have it.
#[derive(Debug)]
struct Fixed;

static FIXED: Fixed = Fixed;

impl TimeProvider for Fixed {
    fn get_current_date(&self) -> Date {
        Date { year: 2000, month: 1, day: 1 }
    }

    fn get_current_date_time(&self) -> DateTime {
        DateTime { date: self.get_current_date(), time: Time { hour: 0, min: 0, sec: 0, millis: 0 } }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::super::folder::MOST_CONTENT;
    use super::*;

    fn folder(user_data: Vec<u8>) -> Folder {
        let mut folder = Folder::default();
        folder.add("meta-data", Zeroizing::new(b"{\"instance-id\":\"i-1\"}\n".to_vec()));
        folder.add("user-data", Zeroizing::new(user_data));
        folder
    }

    #[track_caller]
    fn check(len: usize, size: usize) {
        let user_data: Vec<u8> = (0..251).cycle().take(len).collect();
        let mut volume = write(&folder(user_data.clone()), "cidata").unwrap();
        assert_eq!(volume.len(), size);
        let fat = FileSystem::new(Cursor::new(&mut volume[..]), FsOptions::new()).unwrap();
        assert_eq!((fat.fat_type(), fat.volume_label_as_bytes()), (FatType::Fat12, &b"cidata"[..]));
        assert_eq!(fat.read_volume_label_from_root_dir().unwrap().as_deref(), Some("cidata"));
        let names: Vec<_> = fat.root_dir().iter().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["meta-data", "user-data"]);
        let mut read = Vec::new();
        fat.root_dir().open_file("user-data").unwrap().read_to_end(&mut read).unwrap();
        assert_eq!(read, user_data);
    }

    #[test]
    fn a_volume_of_every_size_is_read_back_as_it_was_written() {
        check(0, MIB);
        check(5000, MIB);
        check(MIB - BESIDES_CONTENT - 22, MIB);
        check(MIB - BESIDES_CONTENT - 21, 2 * MIB);
        check(MOST_CONTENT - 22, 2 * MIB);
        assert!(write(&folder(vec![0; MOST_CONTENT]), "cidata").is_err());
    }

    #[test]
    fn the_same_folder_gives_the_same_volume_and_another_a_different_number() {
        let [one, same, other] =
            [b"a", b"a", b"b"].map(|text| write(&folder(text.to_vec()), "cidata").unwrap());
        assert!(one == same);
        // The volume's number in a FAT12 boot sector.
        assert_ne!(one[39..43], other[39..43]);
    }
}
