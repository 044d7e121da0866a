//! Turns a volume's map into pages of granted ranges, window by window. The agent gets the keys of the slots that it needs, never a
//! pack's key.

use std::collections::HashMap;
use std::sync::Arc;

use milkrun_proto::agent::v1 as wire;
use milkrun_repository::id::PackId;
use milkrun_repository::metadata::MetadataReader;
use milkrun_repository::pack::{PackKey, slot_key};
use milkrun_repository::restore_plan::{Limits, PlannedRange, WINDOW_LEAVES, Write, plan};
use milkrun_repository::store::Key;
use milkrun_repository::store::grant::GetGrant;
use milkrun_repository::volume_map::{Leaf, MapCursor, Step};

use super::{RestoreError, Run};
use crate::rpc::convert;

/// Ranges in one message.
const PAGE_RANGES: usize = 32;

/// The form of a plan: it depends on the target and on the agent's release.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlanForm {
    /// The target can't seek.
    pub in_order: bool,
    /// The agent reads [`wire::plan_page::Slot::packed_writes`].
    pub packed: bool,
    /// The agent sorts the writes of a group of ranges itself: a chunk is then read once for each leaf, not for each of its pieces.
    pub grouped: bool,
}

/// The pages of one volume's plan.
pub struct PageStream<'a> {
    run: &'a Run,
    reader: MetadataReader<'a>,
    cursor: MapCursor,
    form: PlanForm,
    window: Option<Window>,
    ended: bool,
}

/// The rest of a window of the volume, which has not been sent yet.
struct Window {
    holes: Vec<wire::plan_page::Hole>,
    ranges: std::vec::IntoIter<PlannedRange>,
    grants: HashMap<PackId, (PackKey, GetGrant)>,
    /// The offset where the window ends.
    until: u64,
    /// The whole window has been sent.
    sent: bool,
}

impl Run {
    /// The plan of a volume, without the parts that end before `from`.
    pub fn pages(self: &Arc<Self>, volume: usize, from: u64, form: PlanForm) -> PageStream<'_> {
        let entry = &self.point.body.volumes[volume];
        let reader = self.repository.reader(&self.point.domain, self.point.placement.packs.iter().cloned());
        let cursor = MapCursor::starting_at(self.point.map(volume, &entry.map), from);
        PageStream { run: self, reader, cursor, form, window: None, ended: false }
    }

    async fn pack_key(&self, pack: &PackId) -> Result<PackKey, RestoreError> {
        let mut keys = self.keys.lock().await;
        if let Some(key) = keys.get(pack) {
            return Ok(key.clone());
        }
        let info = self.point.placement.pack(pack).ok_or_else(|| RestoreError::Unplaced(Key::pack(pack)))?;
        let id = &self.repository.config.id;
        let opened = info.key.open(self.point.domain.secret(info.kind), id, pack, info.kind);
        let key = opened.map_err(|e| RestoreError::PackKey(Key::pack(pack), e))?;
        keys.insert(*pack, key.clone());
        Ok(key)
    }
}

impl PageStream<'_> {
    /// The next page; `None` at the end.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub async fn next(&mut self) -> Result<Option<wire::PlanPage>, RestoreError> {
        loop {
            if let Some(page) = self.window.as_mut().and_then(|window| window.page(self.form)) {
                return Ok(Some(page));
            }
            self.window = None;
            if self.ended {
                return Ok(None);
            }
            self.window = Some(self.plan_window().await?);
        }
    }

    async fn plan_window(&mut self) -> Result<Window, RestoreError> {
        let mut leaves: Vec<(u64, Leaf)> = Vec::new();
        let mut holes: Vec<wire::plan_page::Hole> = Vec::new();
        let steps = if self.form.grouped { 1 } else { WINDOW_LEAVES };
        for _ in 0..steps {
            match self.cursor.next(&self.reader).await? {
                None => {
                    self.ended = true;
                    break;
                }
                Some(Step::Hole { offset, len }) => add_hole(&mut holes, offset, len),
                Some(Step::Leaf { offset, leaf, .. }) => {
                    let mut at = offset;
                    for (len, of) in leaf.pieces() {
                        if of.is_none() {
                            add_hole(&mut holes, at, u64::from(len));
                        }
                        at += u64::from(len);
                    }
                    leaves.push((offset, leaf));
                }
            }
        }
        self.cursor.take_visited();
        let ranges = plan(&leaves, Limits::DEFAULT, self.form.in_order && !self.form.grouped);
        let mut grants: HashMap<PackId, (PackKey, GetGrant)> = HashMap::new();
        for range in &ranges {
            if let std::collections::hash_map::Entry::Vacant(entry) = grants.entry(range.pack) {
                let key = Key::pack(&range.pack);
                let info = self.run.point.placement.pack(&range.pack);
                let info = info.ok_or_else(|| RestoreError::Unplaced(key.clone()))?;
                let grant = self.run.repository.store.grant_get(&key, &info.version).await?;
                entry.insert((self.run.pack_key(&range.pack).await?, grant));
            }
        }
        // For a target that is written in order, holes are not sent: they are what lies between the parts.
        if self.form.in_order {
            holes.clear();
        }
        Ok(Window { holes, ranges: ranges.into_iter(), grants, until: self.cursor.offset(), sent: false })
    }
}

impl Window {
    /// The next page of the window. Pages are made one at a time: there may be very many.
    fn page(&mut self, form: PlanForm) -> Option<wire::PlanPage> {
        if self.sent {
            return None;
        }
        let holes = std::mem::take(&mut self.holes);
        let part = if holes.is_empty() { PAGE_RANGES } else { 0 };
        let grants = &self.grants;
        let ranges = self.ranges.by_ref().take(part).map(|r| to_wire(&r, &grants[&r.pack], form.packed)).collect();
        self.sent = self.ranges.as_slice().is_empty();
        let until = if self.sent { self.until } else { 0 };
        let page = wire::PlanPage { holes, ranges, until, grouped: form.grouped };
        // Empty pages are not sent to agents of the last release. For an empty volume no page is sent to any agent.
        let empty = page.holes.is_empty() && page.ranges.is_empty();
        (!empty || (form.grouped && page.until > 0)).then_some(page)
    }
}

fn add_hole(holes: &mut Vec<wire::plan_page::Hole>, offset: u64, length: u64) {
    match holes.last_mut() {
        Some(last) if last.offset + last.length == offset => last.length += length,
        _ => holes.push(wire::plan_page::Hole { offset, length }),
    }
}

fn to_wire(range: &PlannedRange, (key, grant): &(PackKey, GetGrant), packed: bool) -> wire::plan_page::Range {
    let slots = range.chunks.iter().map(|c| {
        let (mut writes, mut packed_writes) = (Vec::new(), Vec::new());
        if packed {
            let numbers = |w: &Write| [w.volume_offset, w.chunk_offset.into(), w.len.into()];
            packed_writes = c.writes.iter().flat_map(numbers).collect();
        } else {
            let message = |w: &Write| wire::plan_page::Write {
                volume_offset: w.volume_offset,
                chunk_offset: w.chunk_offset,
                length: w.len,
            };
            writes = c.writes.iter().map(message).collect();
        }
        wire::plan_page::Slot {
            chunk: c.id.as_bytes().to_vec().into(),
            key: slot_key(key, c.place.slot).to_vec().into(),
            slot: c.place.slot,
            offset: c.place.offset,
            sealed_length: c.place.sealed_len,
            plain_length: c.place.plain_len,
            codec: c.place.codec as u32,
            writes,
            packed_writes,
        }
    });
    wire::plan_page::Range {
        pack: range.pack.as_bytes().to_vec().into(),
        grant: Some(convert::get_grant(grant)),
        start: range.start,
        end: range.end,
        slots: slots.collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use milkrun_repository::chunk::codec::Codec;
    use milkrun_repository::id::ChunkId;
    use milkrun_repository::pack::Place;
    use milkrun_repository::restore_plan::PlannedChunk;

    use super::*;

    /// An agent of the last release gets each write as a message; an agent that asks for it gets the same numbers packed.
    #[test]
    fn writes_travel_one_by_one_or_packed() {
        let pack = PackId::from_bytes([1; 16]);
        let place = Place { pack, slot: 3, offset: 64, sealed_len: 9000, plain_len: 8192, codec: Codec::Zstd };
        let writes = vec![
            Write { volume_offset: 1 << 40, chunk_offset: 4096, len: 4096 },
            Write { volume_offset: 8192, chunk_offset: 0, len: 4096 },
        ];
        let chunks = vec![PlannedChunk { id: ChunkId::from_bytes([2; 32]), place, writes }];
        let range = PlannedRange { pack, start: 64, end: 9064, chunks };
        let grant = GetGrant::File { root: PathBuf::from("/r"), key: Key::pack(&pack) };
        let with = (PackKey::new([7; 32]), grant);
        let one_by_one = to_wire(&range, &with, false).slots.remove(0);
        let packed = to_wire(&range, &with, true).slots.remove(0);
        let numbers = one_by_one.writes.iter().flat_map(|w| [w.volume_offset, w.chunk_offset.into(), w.length.into()]);
        assert_eq!(numbers.collect::<Vec<u64>>(), [1 << 40, 4096, 4096, 8192, 0, 4096]);
        assert_eq!(packed.packed_writes, [1 << 40, 4096, 4096, 8192, 0, 4096]);
        assert!(one_by_one.packed_writes.is_empty() && packed.writes.is_empty());
        assert_eq!((one_by_one.chunk, one_by_one.key), (packed.chunk, packed.key));
    }
}
