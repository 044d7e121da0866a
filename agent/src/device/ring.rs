//! Many small reads at once through io_uring. This takes less CPU time in the kernel than as many `pread` calls on
//! threads (docs/performance-history.md). Where the kernel or a container's system call filter refuses io_uring, threads read.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use io_uring::{IoUring, opcode, types};

/// Reads in flight for each thread that reads.
const DEPTH: u32 = 64;
/// The pause between two polls of a ring that can't be waited for.
const POLL_PAUSE: Duration = Duration::from_micros(100);

/// Set once a ring was refused, or failed.
static REFUSED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static RING: RefCell<Option<IoUring>> = const { RefCell::new(None) };
}

/// The offset of a part of a file, and the buffer for it.
pub type Piece<'a> = (u64, &'a mut [u8]);

/// Whether a person turned io_uring off.
fn is_off() -> bool {
    static OFF: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *OFF.get_or_init(|| std::env::var_os("MILKRUN_IO_URING").is_some_and(|v| v == "off"))
}

/// Whether reads are made through io_uring, as far as is known.
pub(crate) fn has_ring() -> bool {
    !is_off() && !REFUSED.load(Ordering::Relaxed)
}

fn open() -> io::Result<IoUring> {
    let newest = IoUring::builder().setup_coop_taskrun().setup_single_issuer().build(DEPTH);
    newest.or_else(|_| IoUring::new(DEPTH))
}

/// Reads these pieces and returns the numbers of those that were not read whole, in order. The caller reads these with
/// `pread`, which also says what is wrong with them. Without io_uring, all numbers are returned.
pub(super) fn read(file: &File, pieces: &mut [Piece<'_>]) -> Vec<usize> {
    if !has_ring() {
        return (0..pieces.len()).collect();
    }
    RING.with_borrow_mut(|slot| {
        let mut ring = match slot.take().map_or_else(open, Ok) {
            Ok(ring) => ring,
            Err(e) => {
                if !REFUSED.swap(true, Ordering::Relaxed) {
                    tracing::info!(reason = %e, "no io_uring here: pages are read by threads");
                }
                return (0..pieces.len()).collect();
            }
        };
        let (left, failed) = read_all(&mut ring, file, pieces);
        match failed {
            None => *slot = Some(ring),
            Some(e) => {
                tracing::warn!(reason = %e, "io_uring failed: pages are read by threads");
                REFUSED.store(true, Ordering::Relaxed);
            }
        }
        left
    })
}

/// Ends the process if it is dropped while the kernel may still write into a caller's buffer.
struct NoUnwinding;

impl Drop for NoUnwinding {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// As [`read`]. Also returns why the ring can't be used again, if it can't.
fn read_all(ring: &mut IoUring, file: &File, pieces: &mut [Piece<'_>]) -> (Vec<usize>, Option<io::Error>) {
    let fd = types::Fd(file.as_raw_fd());
    let mut left = Vec::new();
    let (mut next, mut in_flight, mut failed) = (0, 0_usize, None);
    let guard = NoUnwinding;
    while in_flight > 0 || (failed.is_none() && next < pieces.len()) {
        while failed.is_none() && in_flight < DEPTH as usize && next < pieces.len() {
            let (offset, piece) = &mut pieces[next];
            // A piece that is too long for one read is read only in part, and so its number is returned.
            let len = u32::try_from(piece.len()).unwrap_or(u32::MAX);
            let read = opcode::Read::new(fd, piece.as_mut_ptr(), len).offset(*offset).build().user_data(next as u64);
            // SAFETY: the piece is borrowed mutably until this function ends, and it does not end, nor unwind, before the kernel has
            // said of every read that it took that it is done; the file outlives it too.
            #[expect(unsafe_code, reason = "a read that goes on while this thread does something else")]
            let pushed = unsafe { ring.submission().push(&read) };
            if pushed.is_err() {
                break;
            }
            next += 1;
            in_flight += 1;
        }
        if failed.is_some() {
            // Nothing is submitted any more, and above all not the reads that were taken back. Reads in flight are
            // polled for.
            std::thread::sleep(POLL_PAUSE);
        } else if let Err(e) = ring.submit_and_wait(usize::from(in_flight > 0)) {
            match e.raw_os_error() {
                Some(nix::libc::EINTR) => {}
                Some(nix::libc::EAGAIN | nix::libc::EBUSY) => std::thread::sleep(POLL_PAUSE),
                _ => {
                    // The reads that the kernel did not take are the last that were pushed. They are not in flight.
                    let mut queue = ring.submission();
                    queue.sync();
                    next -= queue.len();
                    in_flight -= queue.len();
                    failed = Some(e);
                }
            }
        }
        for done in ring.completion() {
            in_flight -= 1;
            let number = usize::try_from(done.user_data()).unwrap_or(usize::MAX);
            let whole = pieces.get(number).is_some_and(|(_, p)| usize::try_from(done.result()) == Ok(p.len()));
            if !whole {
                left.push(number);
            }
        }
    }
    drop(guard);
    left.extend(next..pieces.len());
    left.sort_unstable();
    (left, failed)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// A byte of the file.
    fn byte(at: u64) -> u8 {
        (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
    }

    #[test]
    fn every_piece_gets_its_bytes_and_pieces_behind_the_end_are_left() {
        let mut file = tempfile::tempfile().unwrap();
        let len = 1_000_000;
        file.write_all(&(0..len).map(byte).collect::<Vec<_>>()).unwrap();
        let Ok(mut ring) = open() else {
            eprintln!("SKIPPED: no io_uring here");
            return;
        };
        // More than fit into the ring at once; the last two end behind the file, and begin there.
        let mut starts: Vec<u64> = (0..500).map(|n| n * 7919 % (len - 4096)).collect();
        starts.extend([len - 100, len + 5]);
        let mut buffers = vec![vec![0; 4096]; starts.len()];
        let mut pieces: Vec<Piece<'_>> = starts.iter().copied().zip(buffers.iter_mut().map(|b| &mut b[..])).collect();
        let (left, failed) = read_all(&mut ring, &file, &mut pieces);
        assert!(left == [500, 501] && failed.is_none(), "{left:?} {failed:?}");
        for (start, buffer) in starts.iter().zip(&buffers).take(500) {
            assert!(buffer.iter().zip(*start..).all(|(b, at)| *b == byte(at)), "the piece at {start}");
        }
        // Once more with the same ring: nothing of the first time is left in it.
        let mut buffer = vec![0; 10];
        let (left, failed) = read_all(&mut ring, &file, &mut [(5, &mut buffer)]);
        assert!(left.is_empty() && failed.is_none(), "{left:?} {failed:?}");
        assert_eq!(buffer, (5..15).map(byte).collect::<Vec<_>>());
    }

    #[test]
    fn a_file_that_can_not_be_read_leaves_all() {
        let folder = tempfile::tempdir().unwrap();
        let writer = File::create(folder.path().join("f")).unwrap();
        let mut buffers = [vec![0; 512], vec![0; 512]];
        let mut pieces: Vec<Piece<'_>> = buffers.iter_mut().map(|b| (0, &mut b[..])).collect();
        assert_eq!(read(&writer, &mut pieces), vec![0, 1]);
        if let Ok(mut ring) = open() {
            let (left, failed) = read_all(&mut ring, &writer, &mut pieces);
            assert!(left == [0, 1] && failed.is_none(), "{left:?} {failed:?}");
        }
    }

    #[test]
    fn a_ring_that_fails_leaves_what_it_did_not_read() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 8192]).unwrap();
        let Ok(mut ring) = open() else {
            eprintln!("SKIPPED: no io_uring here");
            return;
        };
        // The ring's descriptor is replaced: all its calls fail.
        // SAFETY: both are open; the number stays the ring's, and is closed once, by it.
        #[expect(unsafe_code, reason = "a descriptor under somebody's hands")]
        let replaced = unsafe { nix::libc::dup2(file.as_raw_fd(), ring.as_raw_fd()) };
        assert_eq!(replaced, ring.as_raw_fd());
        let mut buffers = [vec![0; 4096], vec![0; 4096]];
        let mut pieces: Vec<Piece<'_>> = buffers.iter_mut().map(|b| (0, &mut b[..])).collect();
        let (left, failed) = read_all(&mut ring, &file, &mut pieces);
        assert!(left == [0, 1] && failed.is_some(), "{left:?} {failed:?}");
    }
}
