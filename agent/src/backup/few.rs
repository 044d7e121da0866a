//! Reading the few pages that a list of changes names in a region: those of several regions together, so that the device has many reads
//! in hand and fewer threads are woken. What is asked for while others are read goes with the next ones.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};

use super::cut::{CutRegion, Cutting, cut_region};
use super::held::Held;
use super::read::{Failed, named_pieces, read_named};
use super::{Engine, ParentExtent};
use crate::buffer::Buffer;
use crate::device::{Source, has_ring};
use crate::workers::Workers;

/// How many read at once: while one compares what it read, the device works for the others.
const READERS: usize = 4;
/// Regions that are read together at most.
const TOGETHER: usize = 16;
/// Regions that may wait for a reader.
const WAITING: usize = 128;

/// A region of which little is read.
pub(super) struct Few {
    /// Where it begins, and how long it is.
    pub(super) offset: u64,
    pub(super) len: usize,
    /// What of it is read, in order and apart, and where to.
    pub(super) named: Vec<Range<usize>>,
    pub(super) buffer: Buffer,
    /// What the parent has there, and how it is compared.
    pub(super) predicted: Vec<ParentExtent>,
    pub(super) how: Cutting,
}

/// What became of it.
pub(super) struct Seen {
    pub(super) cut: CutRegion,
    pub(super) held: Held,
    /// Bytes that were read.
    pub(super) read: u64,
}

type Answer = oneshot::Sender<Result<Seen, Failed>>;

/// The way in.
#[derive(Clone)]
pub(super) struct Readers {
    sender: mpsc::Sender<(Few, Answer)>,
}

impl Readers {
    /// Starts reading from one volume, until all ways in are dropped. On threads of its own: those of a pool look around for a while
    /// whenever they have done something, which costs more than few pages do.
    pub(super) fn start(engine: &Arc<Engine>, source: &Arc<dyn Source>) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..READERS {
            let (engine, source, receiver) = (engine.clone(), source.clone(), receiver.clone());
            tokio::task::spawn_blocking(move || read_all(&engine.io, &*source, &receiver));
        }
        Self { sender }
    }

    /// Reads and cuts a region; `None` if the readers were stopped.
    pub(super) async fn read(&self, few: Few) -> Option<Result<Seen, Failed>> {
        let (answer, answered) = oneshot::channel();
        self.sender.send((few, answer)).await.ok()?;
        answered.await.ok()
    }
}

fn read_all(io: &Workers, source: &dyn Source, receiver: &Mutex<mpsc::Receiver<(Few, Answer)>>) {
    loop {
        let mut batch = Vec::new();
        let next = receiver.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv_many(&mut batch, TOGETHER);
        if next == 0 {
            return;
        }
        read_together(io, source, batch);
    }
}

fn read_together(io: &Workers, source: &dyn Source, mut batch: Vec<(Few, Answer)>) {
    let pieces = batch.iter_mut().flat_map(|(few, _)| named_pieces(&mut few.buffer, few.offset, &few.named));
    let pieces = pieces.collect();
    let all_read = many_at_once(io, || source.read_pieces(pieces)).is_ok();
    for (few, answer) in batch {
        let Few { offset, len, named, buffer, predicted, how } = few;
        let read = if all_read {
            let read = named.iter().map(|r| r.len() as u64).sum();
            Ok((Held::parts(buffer, named, len), read))
        } else {
            // Each by itself: whoever can be read does not fail for another, and who fails says where.
            many_at_once(io, || read_named(source, buffer, offset, len, named))
        };
        let seen = read.map(|(held, read)| Seen { cut: cut_region(&held, &predicted, &how), held, read });
        // Nobody waits any more: the assignment was cancelled.
        let _ = answer.send(seen);
    }
}

/// One thread has as many reads in hand as it likes with io_uring; without it, that many threads are wanted.
fn many_at_once<T: Send>(io: &Workers, read: impl FnOnce() -> T + Send) -> T {
    if has_ring() { read() } else { io.install(read) }
}

#[cfg(test)]
mod tests {
    use std::io;

    use milkrun_repository::chunk::PAGE;
    use milkrun_repository::chunk::page_cutter::PageCutter;
    use milkrun_repository::keys::DomainKey;

    use super::super::{Extent, Run};
    use super::*;
    use crate::buffer::BufferPool;
    use crate::device::SourceError;

    /// Each page is full of its number; one of them can't be read.
    struct Numbered {
        bad: Option<u64>,
    }

    impl Source for Numbered {
        fn len(&self) -> u64 {
            1 << 40
        }
        fn sector_bytes(&self) -> u32 {
            0
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            buf.fill((offset / PAGE as u64) as u8);
            if Some(offset) == self.bad { Err(io::Error::other("bad sector")) } else { Ok(()) }
        }
        fn finish(&self) -> Result<Vec<String>, SourceError> {
            Ok(Vec::new())
        }
    }

    const PAGES: usize = 64;
    const NAMED: [usize; 3] = [3, 9, 20];

    fn few(region: u64) -> Few {
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
            offset: region * len as u64,
            len,
            named: NAMED.map(|n| n * PAGE..(n + 1) * PAGE).to_vec(),
            buffer: BufferPool::new(8 * PAGE).take(8 * PAGE),
            predicted: vec![ParentExtent { extent: kept, retire: false }],
            how,
        }
    }

    #[test]
    fn regions_are_read_together_and_fail_apart() {
        let second = ((PAGES + 9) * PAGE) as u64;
        for bad in [None, Some(second)] {
            let (batch, mut answers): (Vec<_>, Vec<_>) = (0..3)
                .map(|region| {
                    let (answer, answered) = oneshot::channel();
                    ((few(region), answer), answered)
                })
                .unzip();
            // Nobody waits for the last.
            drop(answers.pop());
            read_together(&Workers::new("test", 1).unwrap(), &Numbered { bad }, batch);
            for (region, mut answer) in answers.into_iter().enumerate() {
                match answer.try_recv().unwrap() {
                    Err((at, e)) => {
                        assert_eq!((region, Some(at), e.to_string()), (1, bad, "bad sector".into()));
                    }
                    Ok(seen) => {
                        assert!(region != 1 || bad.is_none(), "what can't be read was read");
                        assert_eq!((seen.read as usize, seen.cut.extents.len()), (NAMED.len() * PAGE, 7));
                        let [fresh] = &seen.cut.fresh[..] else { panic!("{:?}", seen.cut.fresh) };
                        let plain = fresh.plaintext(&seen.held, &mut Vec::new()).to_vec();
                        let wanted = NAMED.map(|n| vec![(region * PAGES + n) as u8; PAGE]).concat();
                        assert!(plain == wanted, "region {region} has other bytes");
                    }
                }
            }
        }
    }
}
