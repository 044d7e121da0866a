//! Fetches, opens and checks the chunks of one range. A range of a bucket is fetched whole. A range of a local
//! directory is read chunk by chunk by the thread that opens it, so that each chunk is opened, checked and written
//! while it is in that core's cache.

use std::cell::RefCell;
use std::sync::Arc;

use milkrun_repository::chunk::codec::Codec;
use milkrun_repository::id::RepositoryId;
use milkrun_repository::pack::SlotOpener;
use milkrun_repository::restore_plan::Write;
use milkrun_repository::store::GetError;
use milkrun_repository::store::directory::object::LocalObject;

use super::{RestoreError, RestoreJob, Tally};
use crate::buffer::RangeBuffer;
use crate::rpc::{GrantedRange, GrantedSlot};

/// Where the sealed bytes of a range are.
enum Sealed {
    /// In memory, all of them.
    Fetched(RangeBuffer),
    /// In a file of this machine.
    Local(LocalObject),
}

/// The state of a thread that opens chunks, kept from one range to the next.
struct Opener {
    repository: RepositoryId,
    slots: SlotOpener,
    sealed: Vec<u8>,
    plain: Vec<u8>,
}

thread_local! {
    static OPENER: RefCell<Option<Opener>> = const { RefCell::new(None) };
}

impl RestoreJob {
    /// Passes each chunk of a range to `put`, in order, once its id is checked. `put` gets a buffer that begins with
    /// the plaintext, and which it may exchange for another, and where the parts of the chunk are written.
    pub(super) async fn each_chunk(
        self: Arc<Self>,
        range: GrantedRange,
        mut put: impl FnMut(&Self, &mut Vec<u8>, &[Write]) -> Result<(), RestoreError> + Send + 'static,
    ) -> Result<(), RestoreError> {
        let mut range = Arc::new(range);
        let mut next = 0;
        let mut sealed = self.sealed(&range).await?;
        loop {
            let local = matches!(sealed, Sealed::Local(_));
            let this = self.clone();
            let work = move || {
                let result = this.open_slots(&range, &mut sealed, &mut next, &mut put);
                (range, next, put, result)
            };
            let result;
            (range, next, put, result) = self.engine.cpu.run(work).await;
            match result {
                // A local disk with a transient error is retried like a remote store: the range is fetched. Chunks that
                // `put` has taken are not repeated.
                Err(RestoreError::Fetch { source: GetError::Failed(f), .. }) if local && f.transient() => {
                    sealed = Sealed::Fetched(self.fetch(&range).await?);
                }
                result => return result,
            }
        }
    }

    async fn sealed(&self, range: &GrantedRange) -> Result<Sealed, RestoreError> {
        let opened = self.redeem.open(&range.grant, range.start..range.end).await;
        match opened.map_err(|source| failed(range, source))? {
            Some(object) => Ok(Sealed::Local(object)),
            None => Ok(Sealed::Fetched(self.fetch(range).await?)),
        }
    }

    async fn fetch(&self, range: &GrantedRange) -> Result<RangeBuffer, RestoreError> {
        let (start, end) = (range.start, range.end);
        let mut body = self.engine.ranges.take(end - start);
        let fetched = self.redeem.get(&range.grant, start..end, &mut body).await;
        fetched.map_err(|source| failed(range, source))?;
        Tally::add(&self.tally.fetched, end - start);
        Tally::add(&self.tally.requests, 1);
        Ok(body)
    }

    /// Opens the slots from number `next` on. `next` counts the slots that `put` has taken.
    fn open_slots(
        &self,
        range: &GrantedRange,
        sealed: &mut Sealed,
        next: &mut usize,
        put: &mut impl FnMut(&Self, &mut Vec<u8>, &[Write]) -> Result<(), RestoreError>,
    ) -> Result<(), RestoreError> {
        OPENER.with_borrow_mut(|cell| {
            let opener = match cell {
                Some(kept) if kept.repository == self.repository => kept,
                _ => {
                    let slots = SlotOpener::new(self.repository).map_err(RestoreError::Setup)?;
                    cell.insert(Opener { repository: self.repository, slots, sealed: Vec::new(), plain: Vec::new() })
                }
            };
            if *next == 0 && matches!(sealed, Sealed::Local(_)) {
                Tally::add(&self.tally.requests, 1);
            }
            for slot in &range.slots[*next..] {
                match sealed {
                    Sealed::Fetched(body) => self.open_fetched(opener, range, slot, body)?,
                    Sealed::Local(object) => self.open_local(opener, range, slot, object)?,
                }
                put(self, &mut opener.plain, &slot.writes)?;
                *next += 1;
            }
            Ok(())
        })
    }

    fn open_fetched(
        &self,
        opener: &mut Opener,
        range: &GrantedRange,
        slot: &GrantedSlot,
        body: &mut [u8],
    ) -> Result<(), RestoreError> {
        let from = usize::try_from(u64::from(slot.place.offset) - range.start).unwrap_or(usize::MAX);
        let sealed = &mut body[from..from + slot.place.sealed_len as usize];
        let plain = first(&mut opener.plain, slot.place.plain_len);
        let opened = opener.slots.open(&slot.id, &slot.place, &slot.key, sealed, plain, |b| self.domain.identify(b));
        opened.map_err(|source| damaged(range, slot, source))
    }

    fn open_local(
        &self,
        opener: &mut Opener,
        range: &GrantedRange,
        slot: &GrantedSlot,
        object: &LocalObject,
    ) -> Result<(), RestoreError> {
        let place = &slot.place;
        let Opener { slots, sealed, plain, .. } = opener;
        let identify = |b: &[u8]| self.domain.identify(b);
        let read = |out: &mut [u8]| {
            object.read(out, u64::from(place.offset)).map_err(|source| failed(range, source))?;
            Tally::add(&self.tally.fetched, u64::from(place.sealed_len));
            Ok::<_, RestoreError>(())
        };
        let opened = if place.codec == Codec::Raw {
            let bytes = first(plain, place.sealed_len);
            read(bytes)?;
            slots.open_raw(&slot.id, place, &slot.key, bytes, identify)
        } else {
            let sealed = first(sealed, place.sealed_len);
            read(sealed)?;
            slots.open(&slot.id, place, &slot.key, sealed, first(plain, place.plain_len), identify)
        };
        opened.map_err(|source| damaged(range, slot, source))
    }
}

/// The first `len` bytes of a buffer, which grows if it has to.
fn first(buffer: &mut Vec<u8>, len: u32) -> &mut [u8] {
    let len = len as usize;
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    &mut buffer[..len]
}

fn failed(range: &GrantedRange, source: GetError) -> RestoreError {
    RestoreError::Fetch { pack: range.pack, start: range.start, end: range.end, source }
}

fn damaged(range: &GrantedRange, slot: &GrantedSlot, source: milkrun_repository::pack::OpenError) -> RestoreError {
    let offset = slot.writes.first().map_or(0, |w| w.volume_offset);
    RestoreError::Damaged { pack: range.pack, slot: slot.place.slot, offset, source }
}
