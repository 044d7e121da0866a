//! One writer for each target. The kernel lets one writer at a time into a file, and those that wait for it spin: on two cores that cost a seventh
//! of a restore's CPU time (measured on tmpfs), and a lock of our own left a core idle. So a thread that finds another one writing leaves its bytes
//! with that one and goes on; it waits only when too many bytes lie there. Block devices have no such lock: they are written
//! [beside](SingleWriter::beside).

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes that may lie with the one who writes.
pub(super) const LEFT_MAX: usize = 8 << 20;

/// Something that was not written any more: writing ended before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended;

/// The turns of one target; `E` is why a write failed.
#[derive(Debug)]
pub(super) struct SingleWriter<E> {
    state: Mutex<State<E>>,
    changed: Condvar,
    left_max: usize,
}

#[derive(Debug)]
struct State<E> {
    /// Somebody writes.
    taken: bool,
    /// So many zero, which the kernel does beside writes.
    beside: usize,
    /// What they will write next: plaintext, and where each part of it goes.
    left: VecDeque<Piece>,
    left_bytes: usize,
    /// How many buffers were taken, and how many of them, in the same order, are written.
    taken_in: u64,
    written: u64,
    /// Buffers whose bytes were written; no more of them than may be left.
    spare: Vec<Vec<u8>>,
    /// Nothing is written any more.
    ended: bool,
    failed: Option<E>,
}

/// Where a part of a buffer goes: (offset in the target, offset in the buffer, bytes).
pub(super) type Part = (u64, usize, usize);

#[derive(Debug)]
struct Piece {
    bytes: Vec<u8>,
    parts: Vec<Part>,
}

impl<E> SingleWriter<E> {
    /// With at most about `left_max` bytes (one buffer more) left to whoever writes.
    pub(super) fn new(left_max: usize) -> Self {
        let state = State {
            taken: false,
            beside: 0,
            left: VecDeque::new(),
            left_bytes: 0,
            taken_in: 0,
            written: 0,
            spare: Vec::new(),
            ended: false,
            failed: None,
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), left_max }
    }

    fn state(&self) -> MutexGuard<'_, State<E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<E>>) -> MutexGuard<'a, State<E>> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes, or leaves to whoever writes now, parts of `bytes`. `bytes` is then another buffer, or the same one.
    ///
    /// # Errors
    /// [`Ended`] after a write failed (see [`Self::failure`]) or after [`Self::end`].
    pub(super) fn write(
        &self,
        bytes: &mut Vec<u8>,
        parts: Vec<Part>,
        write_at: impl Fn(&[u8], u64) -> Result<(), E>,
    ) -> Result<(), Ended> {
        let mut state = self.state();
        while !state.ended && state.taken && state.left_bytes >= self.left_max {
            state = self.wait(state);
        }
        if state.ended {
            return Err(Ended);
        }
        state.taken_in += 1;
        let mut own = Piece { bytes: std::mem::take(bytes), parts };
        if state.taken {
            *bytes = state.spare.pop().unwrap_or_default();
            state.left_bytes += own.bytes.len();
            state.left.push_back(own);
            return Ok(());
        }
        state.taken = true;
        loop {
            for &(to, from, len) in &own.parts {
                drop(state);
                let result = write_at(&own.bytes[from..from + len], to);
                state = self.state();
                if let Err(e) = result {
                    state.failed.get_or_insert(e);
                    state.ended = true;
                }
                if state.ended {
                    break;
                }
            }
            state.written += u64::from(!state.ended);
            self.changed.notify_all();
            if !state.ended
                && let Some(next) = state.left.pop_front()
            {
                state.left_bytes -= next.bytes.len();
                let written = std::mem::replace(&mut own, next).bytes;
                if state.spare.iter().map(Vec::capacity).sum::<usize>() + written.capacity() <= self.left_max {
                    state.spare.push(written);
                }
                continue;
            }
            state.taken = false;
            state.left.clear();
            self.changed.notify_all();
            *bytes = own.bytes;
            return if state.ended { Err(Ended) } else { Ok(()) };
        }
    }

    /// Does what may be done beside writes (and takes long, perhaps), unless writing ended.
    ///
    /// # Errors
    /// [`Ended`].
    pub(super) fn beside<T>(&self, work: impl FnOnce() -> T) -> Result<T, Ended> {
        let mut state = self.state();
        if state.ended {
            return Err(Ended);
        }
        state.beside += 1;
        drop(state);
        let out = work();
        self.state().beside -= 1;
        self.changed.notify_all();
        Ok(out)
    }

    /// Waits until everything is written that was left when this is called.
    ///
    /// # Errors
    /// [`Ended`] if it is not.
    pub(super) fn catch_up(&self) -> Result<(), Ended> {
        let mut state = self.state();
        let wanted = state.taken_in;
        while state.written < wanted && !state.ended {
            state = self.wait(state);
        }
        if state.ended { Err(Ended) } else { Ok(()) }
    }

    /// Whether everything was written that was left so far.
    ///
    /// # Errors
    /// [`Ended`] if not.
    pub(super) fn settle(&self) -> Result<(), Ended> {
        let mut state = self.state();
        while state.taken {
            state = self.wait(state);
        }
        if state.ended { Err(Ended) } else { Ok(()) }
    }

    /// Ends all writing; waits for the one write that is under way. What was left is dropped.
    pub(super) fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        state.left.clear();
        // Those who wait for room need not wait any more.
        self.changed.notify_all();
        while state.taken || state.beside > 0 {
            state = self.wait(state);
        }
    }

    /// Why writing ended by itself, if it did.
    pub(super) fn failure<T>(&self, tell: impl FnOnce(&E) -> T) -> Option<T> {
        self.state().failed.as_ref().map(tell)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    fn fill(
        turns: &SingleWriter<u64>,
        image: &Mutex<Vec<u8>>,
        inside: &AtomicUsize,
        thread: usize,
        fail_at: Option<u64>,
    ) -> bool {
        let mut buffer = Vec::new();
        (0..200).all(|i| {
            let at = (i * 4 + thread) * 100;
            buffer.clear();
            buffer.resize(100, (at % 251) as u8 + 1);
            // In two parts, the second first.
            let parts = vec![(at as u64 + 60, 60, 40), (at as u64, 0, 60)];
            let write = |bytes: &[u8], to: u64| {
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two write at once");
                std::thread::sleep(Duration::from_micros(20));
                image.lock().unwrap()[to as usize..to as usize + bytes.len()].copy_from_slice(bytes);
                inside.fetch_sub(1, Ordering::SeqCst);
                if fail_at.is_some_and(|f| f <= to) { Err(to) } else { Ok(()) }
            };
            turns.write(&mut buffer, parts, write).is_ok()
        })
    }

    fn run(fail_at: Option<u64>) -> (Vec<bool>, Arc<SingleWriter<u64>>, Vec<u8>) {
        // Room for hardly more than two buffers: they wait for each other.
        let turns = Arc::new(SingleWriter::new(250));
        let image = Arc::new(Mutex::new(vec![0; 80_000]));
        let inside = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..4)
            .map(|t| {
                let (turns, image, inside) = (turns.clone(), image.clone(), inside.clone());
                std::thread::spawn(move || fill(&turns, &image, &inside, t, fail_at))
            })
            .collect();
        let results = threads.into_iter().map(|t| t.join().unwrap()).collect();
        let image = image.lock().unwrap().clone();
        (results, turns, image)
    }

    #[test]
    fn everything_is_written_by_one_at_a_time() {
        let (results, turns, image) = run(None);
        assert_eq!(results, [true; 4]);
        assert!(turns.settle().is_ok() && turns.failure(|_| ()).is_none());
        for (n, piece) in image.chunks(100).enumerate() {
            assert!(piece.iter().all(|&b| b == (n * 100 % 251) as u8 + 1), "{n}");
        }
    }

    #[test]
    fn a_failed_write_ends_all_writing_and_is_told() {
        let (results, turns, _) = run(Some(40_000));
        // One whose last bytes lay with the writer may have gone before; the end is told to whoever finishes.
        assert!(results.contains(&false));
        assert!(turns.failure(|at| *at).is_some_and(|at| at >= 40_000));
        assert_eq!(turns.settle(), Err(Ended));
    }

    #[test]
    fn nothing_is_written_after_the_end() {
        let turns = Arc::new(SingleWriter::<()>::new(20));
        let (ended, late) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let writers: Vec<_> = (0..3)
            .map(|_| {
                let (turns, ended, late) = (turns.clone(), ended.clone(), late.clone());
                std::thread::spawn(move || {
                    let mut buffer = vec![0; 10];
                    while turns
                        .write(&mut buffer, vec![(0, 0, 0)], |_, _| {
                            std::thread::sleep(Duration::from_micros(200));
                            late.fetch_or(ended.load(Ordering::SeqCst), Ordering::SeqCst);
                            Ok(())
                        })
                        .is_ok()
                    {}
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(50));
        turns.end();
        ended.store(true, Ordering::SeqCst);
        for writer in writers {
            writer.join().unwrap();
        }
        assert!(!late.load(Ordering::SeqCst));
    }
}
