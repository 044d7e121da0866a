//! Reads the dirty ranges of several regions together, so that the device has many reads in hand and fewer threads are woken. What is asked for
//! while others are read goes with the next ones.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};

use super::cut::{CutRegion, Cutting, cut_region};
use super::read::{Failed, named_pieces, read_named};
use super::region_bytes::RegionBytes;
use super::{IN_FLIGHT, ParentExtent};
use crate::budget::Permit;
use crate::buffer::Buffer;
use crate::device::{Source, has_ring};
use crate::workers::{StartError, Workers, start_threads};

/// How many read at once: while one compares what it read, the device works for the others.
const READERS: usize = 4;
/// Regions that are read together at most.
const TOGETHER: usize = 16;

/// A region of which little is read.
pub(super) struct Few {
    /// Of what.
    pub(super) source: Arc<dyn Source>,
    /// Where it begins, and how long it is.
    pub(super) offset: u64,
    pub(super) len: usize,
    /// What of it is read, in order and apart, and where to.
    pub(super) named: Vec<Range<usize>>,
    pub(super) buffer: Buffer,
    pub(super) permit: Permit,
    /// What the parent has there, and how it is compared.
    pub(super) predicted: Vec<ParentExtent>,
    pub(super) how: Cutting,
}

/// What became of it.
pub(super) struct Seen {
    pub(super) cut: CutRegion,
    pub(super) held: RegionBytes,
    pub(super) permit: Permit,
    /// Bytes that were read.
    pub(super) read: u64,
}

type Answer = oneshot::Sender<Result<Seen, Failed>>;

/// The way in, for all volumes of an agent.
pub struct Readers {
    sender: mpsc::Sender<(Few, Answer)>,
}

impl Readers {
    /// Starts the threads, which end when this is dropped. Those of a pool look around for a while whenever they have done something, which
    /// costs more than few pages do. Where there is no io_uring, `io` reads.
    ///
    /// # Errors
    /// [`StartError`] when the system refuses.
    pub fn start(io: &Arc<Workers>) -> Result<Self, StartError> {
        let (sender, receiver) = mpsc::channel(IN_FLIGHT);
        let (io, receiver) = (io.clone(), Arc::new(Mutex::new(receiver)));
        start_threads("few", READERS, move || read_all(&io, &receiver))?;
        Ok(Self { sender })
    }

    /// Reads and cuts a region; `None` if that broke off.
    pub(super) async fn read(&self, few: Few) -> Option<Result<Seen, Failed>> {
        let (answer, answered) = oneshot::channel();
        self.sender.send((few, answer)).await.ok()?;
        answered.await.ok()
    }
}

fn read_all(io: &Workers, receiver: &Mutex<mpsc::Receiver<(Few, Answer)>>) {
    loop {
        let mut batch = Vec::new();
        let next = receiver.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv_many(&mut batch, TOGETHER);
        if next == 0 {
            return;
        }
        while !batch.is_empty() {
            let first = batch[0].0.source.clone();
            let (of_one, others) = batch.into_iter().partition(|(few, _)| Arc::ptr_eq(&few.source, &first));
            batch = others;
            // Whoever panics has said why, and its volumes hear that they got no answer; other volumes need this thread.
            let _ = catch_unwind(AssertUnwindSafe(|| read_together(io, &*first, of_one)));
        }
    }
}

/// Reads regions of one volume.
fn read_together(io: &Workers, source: &dyn Source, mut batch: Vec<(Few, Answer)>) {
    // Of a volume that was stopped nobody waits any more.
    batch.retain(|(_, answer)| !answer.is_closed());
    let pieces = batch.iter_mut().flat_map(|(few, _)| named_pieces(&mut few.buffer, few.offset, &few.named));
    let pieces = pieces.collect();
    // One thread has as many reads in hand as it likes with io_uring; without it, that many threads are wanted.
    let read = || source.read_pieces(pieces);
    let all_read = if has_ring() { read() } else { io.install(read) }.is_ok();
    for (few, answer) in batch {
        let Few { offset, len, named, buffer, permit, predicted, how, .. } = few;
        let read = if all_read {
            let read = named.iter().map(|r| r.len() as u64).sum();
            Ok((RegionBytes::parts(buffer, named, len), read))
        } else {
            // Each by itself: whoever can be read does not fail for another, and who fails says where.
            io.install(|| read_named(source, buffer, offset, len, named))
        };
        let seen = read.map(|(held, read)| Seen { cut: cut_region(&held, &predicted, &how), held, permit, read });
        let _ = answer.send(seen);
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
    const NAMED: [usize; 3] = [3, 9, 20];

    async fn few(source: &Arc<dyn Source>, region: u64) -> Few {
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
        Few {
            source: source.clone(),
            offset: region * len as u64,
            len,
            named: NAMED.map(|n| n * PAGE..(n + 1) * PAGE).to_vec(),
            buffer: BufferPool::new(8 * PAGE).take(8 * PAGE),
            permit: Budget::new(0).transfer(1 << 20).await,
            predicted: vec![ParentExtent { extent: kept, retire: false }],
            how,
        }
    }

    fn source(bad: Option<u64>) -> Arc<dyn Source> {
        // Each page is full of its number.
        let content = Arc::new((0..3 * PAGES * PAGE).map(|at| (at / PAGE) as u8).collect());
        Arc::new(Scripted { content, mishap: bad.map(|at| (at, Mishap::Error)), size_at_end: None })
    }

    fn check(region: usize, seen: &Seen) {
        assert_eq!((seen.read as usize, seen.cut.extents.len()), (NAMED.len() * PAGE, 7));
        let [fresh] = &seen.cut.fresh[..] else { panic!("{:?}", seen.cut.fresh) };
        let plain = fresh.plaintext(&seen.held, &mut Vec::new()).to_vec();
        let wanted = NAMED.map(|n| vec![(region * PAGES + n) as u8; PAGE]).concat();
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
                batch.push((few(&source, region).await, answer));
                answers.push(answered);
            }
            // Nobody waits for the last.
            drop(answers.pop());
            read_together(&Workers::new("test", 1).unwrap(), &*source, batch);
            for (region, mut answer) in answers.into_iter().enumerate() {
                match answer.try_recv().unwrap() {
                    Err((at, e)) => assert_eq!((region, Some(at), e.raw_os_error()), (1, bad, Some(nix::libc::EIO))),
                    Ok(seen) => {
                        assert!(region != 1 || bad.is_none(), "what can't be read was read");
                        check(region, &seen);
                    }
                }
            }
        }
    }

    /// Reading it panics: more is named than its buffer holds.
    fn nonsense(mut few: Few) -> Few {
        few.named[2].end = few.len;
        few
    }

    #[tokio::test]
    async fn volumes_share_readers_and_one_that_breaks_off_does_not_stop_another() {
        let readers = Readers::start(&Arc::new(Workers::new("test", 1).unwrap())).unwrap();
        let sources = [source(None), source(None)];
        for _ in 0..2 * READERS {
            assert!(readers.read(nonsense(few(&sources[0], 1).await)).await.is_none());
        }
        let reads = (0..3).flat_map(|region| sources.iter().map(move |source| (region, source)));
        let reads = reads.map(|(region, source)| {
            let readers = &readers;
            async move { (region, readers.read(few(source, region).await).await.unwrap().map_err(|e| e.1).unwrap()) }
        });
        for (region, seen) in futures::future::join_all(reads).await {
            check(usize::try_from(region).unwrap(), &seen);
        }
    }
}
