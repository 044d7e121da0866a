//! Facts about block devices, by ioctl.
//!
//! A restore to a loop device does not give it its source's sector size: milkrun makes no loop devices. It says so where a size is
//! no multiple of the sectors. A cluster's volumes come with their driver's.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

mod calls {
    // <linux/fs.h>: BLKGETSIZE64 returns bytes, BLKSSZGET the logical sector size.
    nix::ioctl_read!(blkgetsize64, 0x12, 114, u64);
    nix::ioctl_read_bad!(blksszget, 0x1268, nix::libc::c_int);
    nix::ioctl_none!(blkflsbuf, 0x12, 97);
    // Since Linux 5.15: a number that no two devices have had since the machine started.
    nix::ioctl_read!(blkgetdiskseq, 0x12, 128, u64);
}

/// Bytes of a block device.
pub(super) fn size(file: &File) -> io::Result<u64> {
    let mut bytes = 0;
    // SAFETY: the descriptor is open and the call writes one u64 to a valid address.
    #[expect(unsafe_code, reason = "ioctl")]
    unsafe { calls::blkgetsize64(file.as_raw_fd(), &raw mut bytes) }?;
    Ok(bytes)
}

/// Bytes of a block device whose size is a multiple of its sector size.
///
/// # Errors
/// What the system says; [`io::ErrorKind::InvalidData`] for any other size: its last bytes can't be read.
pub(super) fn whole_size(file: &File) -> io::Result<u64> {
    let (bytes, sector) = (size(file)?, u64::from(sector_bytes(file)?.max(1)));
    let rest = bytes % sector;
    if rest == 0 {
        return Ok(bytes);
    }
    let why = format!(
        "its size of {bytes} bytes is no multiple of its sectors of {sector}: the last {rest} bytes can't be read. \
         The disk is not broken; attach it with smaller sectors, or make it larger"
    );
    Err(io::Error::new(io::ErrorKind::InvalidData, why))
}

/// Logical sector size of a block device.
pub(super) fn sector_bytes(file: &File) -> io::Result<u32> {
    let mut bytes = 0;
    // SAFETY: the descriptor is open and the call writes one int to a valid address.
    #[expect(unsafe_code, reason = "ioctl")]
    unsafe { calls::blksszget(file.as_raw_fd(), &raw mut bytes) }?;
    u32::try_from(bytes).map_err(|_| io::Error::other("negative sector size"))
}

/// Drops the device's page cache, so that the next read comes from the device.
pub(super) fn flush_buffers(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open; the call takes no argument.
    #[expect(unsafe_code, reason = "ioctl")]
    unsafe { calls::blkflsbuf(file.as_raw_fd()) }?;
    Ok(())
}

/// Identifies this very device, and not another one that had or will have the same name. `None` if the kernel can't
/// say.
pub(super) fn identity(file: &File) -> Option<String> {
    let mut sequence = 0;
    // SAFETY: the descriptor is open and the call writes one u64 to a valid address.
    #[expect(unsafe_code, reason = "ioctl")]
    unsafe { calls::blkgetdiskseq(file.as_raw_fd(), &raw mut sequence) }.ok()?;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let device = file.metadata().ok()?.rdev();
    Some(format!("device {device:x}:{sequence}:{}", boot.trim()))
}
