//! One writer for each target. The kernel lets one writer at a time into a file, and other writers spin while they
//! wait: on two cores that cost a seventh of a restore's CPU time (measured on tmpfs), and a lock of our own left a
//! core idle. So a thread that finds another one writing queues its bytes for that one and goes on; it waits only if
//! too many bytes are queued. Block devices have no such lock: they are written
//! [concurrently](SingleWriter::concurrently).

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes that may be queued for the writing thread.
pub(super) const QUEUED_MAX: usize = 8 << 20;

/// Something was not written, since writing to the target had ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended;

/// Lets one thread at a time write to a target. `E` is why a write failed.
#[derive(Debug)]
pub(super) struct SingleWriter<E> {
    state: Mutex<State<E>>,
    changed: Condvar,
    queued_max: usize,
}

#[derive(Debug)]
struct State<E> {
    /// A thread writes.
    writing: bool,
    /// The number of threads in [`SingleWriter::concurrently`].
    concurrent: usize,
    /// What the writing thread writes next: plaintext, and where each part of it goes.
    queue: VecDeque<Piece>,
    queued_bytes: usize,
    /// How many buffers were accepted, and how many of them, in the same order, are written.
    accepted: u64,
    written: u64,
    /// Buffers whose bytes were written. Together they are no larger than the queue may be.
    spare: Vec<Vec<u8>>,
    /// Writing has ended: nothing is written any more.
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
    /// With at most about `queued_max` bytes (and one buffer more) in the queue.
    pub(super) fn new(queued_max: usize) -> Self {
        let state = State {
            writing: false,
            concurrent: 0,
            queue: VecDeque::new(),
            queued_bytes: 0,
            accepted: 0,
            written: 0,
            spare: Vec::new(),
            ended: false,
            failed: None,
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), queued_max }
    }

    fn state(&self) -> MutexGuard<'_, State<E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<E>>) -> MutexGuard<'a, State<E>> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes parts of `bytes`, or queues them if another thread is writing. Afterwards `bytes` is the same buffer, or
    /// another one.
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
        while !state.ended && state.writing && state.queued_bytes >= self.queued_max {
            state = self.wait(state);
        }
        if state.ended {
            return Err(Ended);
        }
        state.accepted += 1;
        let mut own = Piece { bytes: std::mem::take(bytes), parts };
        if state.writing {
            *bytes = state.spare.pop().unwrap_or_default();
            state.queued_bytes += own.bytes.len();
            state.queue.push_back(own);
            return Ok(());
        }
        state.writing = true;
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
                && let Some(next) = state.queue.pop_front()
            {
                state.queued_bytes -= next.bytes.len();
                let written = std::mem::replace(&mut own, next).bytes;
                if state.spare.iter().map(Vec::capacity).sum::<usize>() + written.capacity() <= self.queued_max {
                    state.spare.push(written);
                }
                continue;
            }
            state.writing = false;
            state.queue.clear();
            self.changed.notify_all();
            *bytes = own.bytes;
            return if state.ended { Err(Ended) } else { Ok(()) };
        }
    }

    /// Runs `work` at once, concurrently with writes, unless writing has ended. [`Self::end`] waits for it.
    ///
    /// # Errors
    /// [`Ended`].
    pub(super) fn concurrently<T>(&self, work: impl FnOnce() -> T) -> Result<T, Ended> {
        let mut state = self.state();
        if state.ended {
            return Err(Ended);
        }
        state.concurrent += 1;
        drop(state);
        let out = work();
        self.state().concurrent -= 1;
        self.changed.notify_all();
        Ok(out)
    }

    /// Waits until everything is written that was accepted before this call.
    ///
    /// # Errors
    /// [`Ended`] if writing ends before that.
    pub(super) fn catch_up(&self) -> Result<(), Ended> {
        let mut state = self.state();
        let wanted = state.accepted;
        while state.written < wanted && !state.ended {
            state = self.wait(state);
        }
        if state.ended { Err(Ended) } else { Ok(()) }
    }

    /// Waits until no thread is writing and the queue is empty.
    ///
    /// # Errors
    /// [`Ended`] if writing has ended, so that something may not be written.
    pub(super) fn settle(&self) -> Result<(), Ended> {
        let mut state = self.state();
        while state.writing {
            state = self.wait(state);
        }
        if state.ended { Err(Ended) } else { Ok(()) }
    }

    /// Ends all writing, and waits for the writes that are under way. The queue is dropped.
    pub(super) fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        state.queue.clear();
        // Threads that wait for room in the queue need not wait any more.
        self.changed.notify_all();
        while state.writing || state.concurrent > 0 {
            state = self.wait(state);
        }
    }

    /// The error of the write that failed, if one did.
    pub(super) fn failure<T>(&self, map: impl FnOnce(&E) -> T) -> Option<T> {
        self.state().failed.as_ref().map(map)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    fn fill(
        writer: &SingleWriter<u64>,
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
            // In two parts, of which the second is written first.
            let parts = vec![(at as u64 + 60, 60, 40), (at as u64, 0, 60)];
            let write = |bytes: &[u8], to: u64| {
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two write at once");
                std::thread::sleep(Duration::from_micros(20));
                image.lock().unwrap()[to as usize..to as usize + bytes.len()].copy_from_slice(bytes);
                inside.fetch_sub(1, Ordering::SeqCst);
                if fail_at.is_some_and(|f| f <= to) { Err(to) } else { Ok(()) }
            };
            writer.write(&mut buffer, parts, write).is_ok()
        })
    }

    fn run(fail_at: Option<u64>) -> (Vec<bool>, Arc<SingleWriter<u64>>, Vec<u8>) {
        // The queue has room for hardly more than two buffers, so the threads wait for each other.
        let writer = Arc::new(SingleWriter::new(250));
        let image = Arc::new(Mutex::new(vec![0; 80_000]));
        let inside = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..4)
            .map(|t| {
                let (writer, image, inside) = (writer.clone(), image.clone(), inside.clone());
                std::thread::spawn(move || fill(&writer, &image, &inside, t, fail_at))
            })
            .collect();
        let results = threads.into_iter().map(|t| t.join().unwrap()).collect();
        let image = image.lock().unwrap().clone();
        (results, writer, image)
    }

    #[test]
    fn everything_is_written_by_one_at_a_time() {
        let (results, writer, image) = run(None);
        assert_eq!(results, [true; 4]);
        assert!(writer.settle().is_ok() && writer.failure(|_| ()).is_none());
        for (n, piece) in image.chunks(100).enumerate() {
            assert!(piece.iter().all(|&b| b == (n * 100 % 251) as u8 + 1), "{n}");
        }
    }

    #[test]
    fn a_failed_write_ends_all_writing_and_is_reported() {
        let (results, writer, _) = run(Some(40_000));
        // A thread whose last bytes were queued may have succeeded before the failure; `settle` reports it then.
        assert!(results.contains(&false));
        assert!(writer.failure(|at| *at).is_some_and(|at| at >= 40_000));
        assert_eq!(writer.settle(), Err(Ended));
    }

    #[test]
    fn nothing_is_written_after_the_end() {
        let writer = Arc::new(SingleWriter::<()>::new(20));
        let (ended, late) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let writers: Vec<_> = (0..3)
            .map(|_| {
                let (writer, ended, late) = (writer.clone(), ended.clone(), late.clone());
                std::thread::spawn(move || {
                    let mut buffer = vec![0; 10];
                    while writer
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
        writer.end();
        ended.store(true, Ordering::SeqCst);
        for writer in writers {
            writer.join().unwrap();
        }
        assert!(!late.load(Ordering::SeqCst));
    }
}
