//! Reading the few pages that a list of changes names in a region: those of several regions together, so that the device has many reads
//! in hand and fewer threads are woken. What is asked for while others are read goes with the next ones.

use std::ops::Range;
use std::sync::Arc;

use tokio::sync::{Mutex, mpsc, oneshot};

use super::cut::{CutRegion, Cutting, cut_region};
use super::held::Held;
use super::read::{Failed, named_pieces, read_named};
use super::{Engine, ParentExtent};
use crate::buffer::Buffer;
use crate::device::Source;

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

/// The tasks that read; stopped when dropped.
pub(super) struct Reading(Vec<tokio::task::JoinHandle<()>>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Readers {
    /// Starts reading from one volume.
    pub(super) fn start(engine: &Arc<Engine>, source: &Arc<dyn Source>) -> (Self, Reading) {
        let (sender, receiver) = mpsc::channel(WAITING);
        let receiver = Arc::new(Mutex::new(receiver));
        let read = || tokio::spawn(read_all(engine.clone(), source.clone(), receiver.clone()));
        (Self { sender }, Reading((0..READERS).map(|_| read()).collect()))
    }

    /// Reads and cuts a region; `None` if the readers were stopped.
    pub(super) async fn read(&self, few: Few) -> Option<Result<Seen, Failed>> {
        let (answer, answered) = oneshot::channel();
        self.sender.send((few, answer)).await.ok()?;
        answered.await.ok()
    }
}

async fn read_all(engine: Arc<Engine>, source: Arc<dyn Source>, receiver: Arc<Mutex<mpsc::Receiver<(Few, Answer)>>>) {
    loop {
        let mut batch = Vec::new();
        if receiver.lock().await.recv_many(&mut batch, TOGETHER).await == 0 {
            return;
        }
        let source = source.clone();
        engine.io.run(move || read_together(&*source, batch)).await;
    }
}

fn read_together(source: &dyn Source, mut batch: Vec<(Few, Answer)>) {
    let pieces = batch.iter_mut().flat_map(|(few, _)| named_pieces(&mut few.buffer, few.offset, &few.named));
    let all_read = source.read_pieces(pieces.collect()).is_ok();
    for (few, answer) in batch {
        let Few { offset, len, named, buffer, predicted, how } = few;
        let read = if all_read {
            let read = named.iter().map(|r| r.len() as u64).sum();
            Ok((Held::parts(buffer, named, len), read))
        } else {
            // Each by itself: whoever can be read does not fail for another, and who fails says where.
            read_named(source, buffer, offset, len, named)
        };
        let seen = read.map(|(held, read)| Seen { cut: cut_region(&held, &predicted, &how), held, read });
        // Nobody waits any more: the assignment was cancelled.
        let _ = answer.send(seen);
    }
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
            read_together(&Numbered { bad }, batch);
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
