//! Facts about block devices, by ioctl.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

mod calls {
    // <linux/fs.h>: BLKGETSIZE64 returns bytes, BLKSSZGET the logical sector size.
    nix::ioctl_read!(blkgetsize64, 0x12, 114, u64);
    nix::ioctl_read_bad!(blksszget, 0x1268, nix::libc::c_int);
    nix::ioctl_none!(blkflsbuf, 0x12, 97);
}

/// Bytes of a block device.
pub(super) fn size(file: &File) -> io::Result<u64> {
    let mut bytes = 0;
    // SAFETY: the descriptor is open and the call writes one u64 to a valid address.
    #[expect(unsafe_code, reason = "ioctl")]
    unsafe { calls::blkgetsize64(file.as_raw_fd(), &raw mut bytes) }?;
    Ok(bytes)
}

/// Logical sector size of a block device.
pub(super) fn sector_bytes(file: &File) -> io::Result<u32> {
    let mut bytes = 0;
    // SAFETY: the descriptor is open and the call writes one int to a valid address.
    #[expect(unsafe_code, reason = "ioctl")]
    unsafe { calls::blksszget(file.as_raw_fd(), &raw mut bytes) }?;
    u32::try_from(bytes).map_err(|_| io::Error::other("negative sector size"))
}

/// Drops the device's page cache, so that what is read next comes from the device.
pub(super) fn flush_buffers(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open; the call takes no argument.
    #[expect(unsafe_code, reason = "ioctl")]
    unsafe { calls::blkflsbuf(file.as_raw_fd()) }?;
    Ok(())
}
