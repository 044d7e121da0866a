//! Sparse reads: the dirty ranges of several regions are read together, so that the device has many reads in flight and
//! fewer threads are woken. Requests that come while others are read are read together next.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};

use super::cut::{CutRegion, Cutting, cut_region};
use super::read::{Failed, range_pieces, read_ranges};
use super::region_bytes::RegionBytes;
use super::{IN_FLIGHT, ParentExtent};
use crate::budget::Permit;
use crate::buffer::Buffer;
use crate::device::{Source, has_ring};
use crate::workers::{StartError, Workers, start_threads};

/// Threads that read: while one compares what it read, the device works for the others.
const READERS: usize = 4;
/// The largest number of regions that are read together.
const TOGETHER: usize = 16;

/// A region of which only dirty ranges are read.
pub(super) struct SparseRead {
    /// The volume.
    pub(super) source: Arc<dyn Source>,
    /// Where the region begins, and how long it is.
    pub(super) offset: u64,
    pub(super) len: usize,
    /// What is read, in order and not touching each other, and the buffer for it.
    pub(super) ranges: Vec<Range<usize>>,
    pub(super) buffer: Buffer,
    pub(super) permit: Permit,
    /// The parent's extents of the region, and how it is compared with them.
    pub(super) predicted: Vec<ParentExtent>,
    pub(super) how: Cutting,
}

/// The result of a sparse read.
pub(super) struct SparseResult {
    pub(super) cut: CutRegion,
    pub(super) bytes: RegionBytes,
    pub(super) permit: Permit,
    /// Bytes that were read.
    pub(super) read: u64,
}

type Answer = oneshot::Sender<Result<SparseResult, Failed>>;

/// The threads for sparse reads of all volumes of an agent.
pub struct Readers {
    sender: mpsc::Sender<(SparseRead, Answer)>,
}

impl Readers {
    /// Starts the threads; they end when this is dropped. Threads of a pool look for more work for a while after each
    /// job, which costs more than reading a few pages does. Without io_uring, the threads of `io` read.
    ///
    /// # Errors
    /// [`StartError`] when the system refuses.
    pub fn start(io: &Arc<Workers>) -> Result<Self, StartError> {
        let (sender, receiver) = mpsc::channel(IN_FLIGHT);
        let (io, receiver) = (io.clone(), Arc::new(Mutex::new(receiver)));
        start_threads("read", READERS, move || read_all(&io, &receiver))?;
        Ok(Self { sender })
    }

    /// Reads and cuts a region. `None` if the thread panicked.
    pub(super) async fn read(&self, request: SparseRead) -> Option<Result<SparseResult, Failed>> {
        let (answer, answered) = oneshot::channel();
        self.sender.send((request, answer)).await.ok()?;
        answered.await.ok()
    }
}

fn read_all(io: &Workers, receiver: &Mutex<mpsc::Receiver<(SparseRead, Answer)>>) {
    loop {
        let mut batch = Vec::new();
        let next = receiver.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv_many(&mut batch, TOGETHER);
        if next == 0 {
            return;
        }
        while !batch.is_empty() {
            let first = batch[0].0.source.clone();
            let (same_volume, others) =
                batch.into_iter().partition(|(request, _)| Arc::ptr_eq(&request.source, &first));
            batch = others;
            // A panic is logged already, and its volume sees that no answer came. Other volumes still need this thread.
            let _ = catch_unwind(AssertUnwindSafe(|| read_together(io, &*first, same_volume)));
        }
    }
}

/// Reads regions of one volume.
fn read_together(io: &Workers, source: &dyn Source, mut batch: Vec<(SparseRead, Answer)>) {
    // Nobody waits for the answer if the volume was stopped.
    batch.retain(|(_, answer)| !answer.is_closed());
    let pieces =
        batch.iter_mut().flat_map(|(request, _)| range_pieces(&mut request.buffer, request.offset, &request.ranges));
    let pieces = pieces.collect();
    // With io_uring one thread keeps many reads in flight; without it, that takes many threads.
    let read = || source.read_pieces(pieces);
    let all_read = if has_ring() { read() } else { io.install(read) }.is_ok();
    for (request, answer) in batch {
        let SparseRead { offset, len, ranges, buffer, permit, predicted, how, .. } = request;
        let read = if all_read {
            let read = ranges.iter().map(|r| r.len() as u64).sum();
            Ok((RegionBytes::parts(buffer, ranges, len), read))
        } else {
            // Each region by itself: those that can be read succeed, and those that can't say where they fail.
            io.install(|| read_ranges(source, buffer, offset, len, ranges))
        };
        let result =
            read.map(|(bytes, read)| SparseResult { cut: cut_region(&bytes, &predicted, &how), bytes, permit, read });
        let _ = answer.send(result);
    }
}

#[cfg(test)]
mod tests {
    use milkrun_repository::chunk::PAGE;
    use milkrun_repository::chunk::page_cutter::PageCutter;
    use milkrun_repository::keys::DomainKey;

    use super::super::{Extent, Run};
    use super::*;
    use crate::budget::Budget;
    use crate::buffer::BufferPool;
    use crate::device::scripted::{Mishap, Scripted};

    const PAGES: usize = 64;
    const DIRTY: [usize; 3] = [3, 9, 20];

    async fn request(source: &Arc<dyn Source>, region: u64) -> SparseRead {
        let how = Cutting {
            cutter: PageCutter::DEFAULT,
            domain: DomainKey::from_bytes([7; 32]),
            seed: 5,
            whole_chunks: false,
            may_keep: true,
            learn: false,
        };
        let len = PAGES * PAGE;
        let kept = Extent { run: Run::Kept { len: len as u32 }, pages: Vec::new() };
        SparseRead {
            source: source.clone(),
            offset: region * len as u64,
            len,
            ranges: DIRTY.map(|n| n * PAGE..(n + 1) * PAGE).to_vec(),
            buffer: BufferPool::new(8 * PAGE).take(8 * PAGE),
            permit: Budget::new(0).transfer(1 << 20).await,
            predicted: vec![ParentExtent { extent: kept, retire: false }],
            how,
        }
    }

    fn source(bad: Option<u64>) -> Arc<dyn Source> {
        // Each page is filled with its number.
        let content = Arc::new((0..3 * PAGES * PAGE).map(|at| (at / PAGE) as u8).collect());
        Arc::new(Scripted { content, mishap: bad.map(|at| (at, Mishap::Error)), size_at_end: None })
    }

    fn check(region: usize, result: &SparseResult) {
        assert_eq!((result.read as usize, result.cut.extents.len()), (DIRTY.len() * PAGE, 7));
        let [fresh] = &result.cut.fresh[..] else { panic!("{:?}", result.cut.fresh) };
        let plain = fresh.plaintext(&result.bytes, &mut Vec::new()).to_vec();
        let wanted = DIRTY.map(|n| vec![(region * PAGES + n) as u8; PAGE]).concat();
        assert!(plain == wanted, "region {region} has other bytes");
    }

    #[tokio::test]
    async fn regions_are_read_together_and_fail_apart() {
        let second = ((PAGES + 9) * PAGE) as u64;
        for bad in [None, Some(second)] {
            let source = source(bad);
            let (mut batch, mut answers) = (Vec::new(), Vec::new());
            for region in 0..3 {
                let (answer, answered) = oneshot::channel();
                batch.push((request(&source, region).await, answer));
                answers.push(answered);
            }
            // Nobody waits for the last answer.
            drop(answers.pop());
            read_together(&Workers::new("test", 1).unwrap(), &*source, batch);
            for (region, mut answer) in answers.into_iter().enumerate() {
                match answer.try_recv().unwrap() {
                    Err((at, e)) => assert_eq!((region, Some(at), e.raw_os_error()), (1, bad, Some(nix::libc::EIO))),
                    Ok(result) => {
                        assert!(region != 1 || bad.is_none(), "what can't be read was read");
                        check(region, &result);
                    }
                }
            }
        }
    }

    /// Reading this panics: a range is longer than the buffer.
    fn read_that_panics(mut request: SparseRead) -> SparseRead {
        request.ranges[2].end = request.len;
        request
    }

    #[tokio::test]
    async fn volumes_share_readers_and_a_panic_stops_only_its_own() {
        let readers = Readers::start(&Arc::new(Workers::new("test", 1).unwrap())).unwrap();
        let sources = [source(None), source(None)];
        for _ in 0..2 * READERS {
            assert!(readers.read(read_that_panics(request(&sources[0], 1).await)).await.is_none());
        }
        let reads = (0..3).flat_map(|region| sources.iter().map(move |source| (region, source)));
        let reads = reads.map(|(region, source)| {
            let readers = &readers;
            async move { (region, readers.read(request(source, region).await).await.unwrap().map_err(|e| e.1).unwrap()) }
        });
        for (region, result) in futures::future::join_all(reads).await {
            check(usize::try_from(region).unwrap(), &result);
        }
    }
}
