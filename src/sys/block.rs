//! What only block devices can be asked or told: the `BLK*` requests of `linux/fs.h`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::range::ByteRange;

// linux/fs.h. `_IOR(0x12, 114, size_t)` and `_IO(0x12, n)`.
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
const BLKSSZGET: libc::c_ulong = 0x1268;
const BLKROGET: libc::c_ulong = 0x125e;
const BLKFLSBUF: libc::c_ulong = 0x1261;
const BLKZEROOUT: libc::c_ulong = 0x127f;
// linux/blkpg.h. `_IO(0x12, 105)` and its operation.
const BLKPG: libc::c_ulong = 0x1269;
const BLKPG_DEL_PARTITION: libc::c_int = 2;

// linux/loop.h.
const LOOP_GET_STATUS64: libc::c_ulong = 0x4C05;

/// What a loop device is over: the numbers of its file, and of the device where that is one.
pub(crate) struct LoopBacking {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) block_device: Option<u64>,
}

/// What the loop device of that number is over; its node is opened for a moment, read-only.
pub(crate) fn loop_backing(node: &std::path::Path, number: (u32, u32)) -> io::Result<LoopBacking> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let node = File::from(rustix::fs::open(node, flags, Mode::empty())?);
    let found = rustix::fs::fstat(&node)?.st_rdev;
    if (rustix::fs::major(found), rustix::fs::minor(found)) != number {
        return Err(io::ErrorKind::NotFound.into());
    }
    // linux/loop.h: struct loop_info64 has 232 bytes and begins with lo_device, lo_inode, lo_rdevice.
    let mut info = [0_u64; 29];
    // SAFETY: the request writes one structure of 232 bytes through the pointer, which is valid for the call.
    done(unsafe { libc::ioctl(node.as_raw_fd(), LOOP_GET_STATUS64, info.as_mut_ptr()) })?;
    let [device, inode, block_device, ..] = info;
    Ok(LoopBacking { device, inode, block_device: Some(block_device).filter(|device| *device != 0) })
}

/// The device's size in bytes.
pub(crate) fn size(device: &File) -> io::Result<u64> {
    let mut size: u64 = 0;
    // SAFETY: the request writes one u64 through the pointer, which is valid for the call.
    done(unsafe { libc::ioctl(device.as_raw_fd(), BLKGETSIZE64, &raw mut size) })?;
    Ok(size)
}

/// The logical sector size in bytes: 512 or 4096 as a rule.
pub(crate) fn sector_size(device: &File) -> io::Result<u32> {
    let mut size: libc::c_int = 0;
    // SAFETY: the request writes one int through the pointer, which is valid for the call.
    done(unsafe { libc::ioctl(device.as_raw_fd(), BLKSSZGET, &raw mut size) })?;
    u32::try_from(size).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// Whether the device is set read-only.
pub(crate) fn is_read_only(device: &File) -> io::Result<bool> {
    let mut flag: libc::c_int = 0;
    // SAFETY: the request writes one int through the pointer, which is valid for the call.
    done(unsafe { libc::ioctl(device.as_raw_fd(), BLKROGET, &raw mut flag) })?;
    Ok(flag != 0)
}

/// Writes the device's dirty pages out and drops its page cache.
pub(crate) fn flush_cache(device: &File) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    done(unsafe { libc::ioctl(device.as_raw_fd(), BLKFLSBUF, 0) })
}

/// Makes `range` read as zero: by the device's own command where it has one, else by writing.
pub(crate) fn zero_out(device: &File, range: ByteRange) -> io::Result<()> {
    let argument: [u64; 2] = [range.start(), range.len()];
    // SAFETY: the request reads two u64 through the pointer, which is valid for the call.
    done(unsafe { libc::ioctl(device.as_raw_fd(), BLKZEROOUT, argument.as_ptr()) })
}

/// Makes the kernel forget the partition of that number.
pub(crate) fn forget_partition(device: &File, number: i32) -> io::Result<()> {
    // linux/blkpg.h: struct blkpg_partition, struct blkpg_ioctl_arg.
    #[repr(C)]
    struct Partition {
        start: i64,
        length: i64,
        number: libc::c_int,
        device_name: [u8; 64],
        volume_name: [u8; 64],
    }
    #[repr(C)]
    struct Argument {
        operation: libc::c_int,
        flags: libc::c_int,
        data_len: libc::c_int,
        data: *mut Partition,
    }
    let mut partition = Partition { start: 0, length: 0, number, device_name: [0; 64], volume_name: [0; 64] };
    let data_len = libc::c_int::try_from(size_of::<Partition>()).expect("the structure is small");
    let mut argument =
        Argument { operation: BLKPG_DEL_PARTITION, flags: 0, data_len, data: &raw mut partition };
    // SAFETY: both structures have the kernel's layout and live until the call returns.
    done(unsafe { libc::ioctl(device.as_raw_fd(), BLKPG, &raw mut argument) })
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
