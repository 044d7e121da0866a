//! The pages of a restore plan, as the coordinator sends them.

use milkrun_proto::agent::v1 as wire;
use milkrun_repository::chunk::codec::Codec;
use milkrun_repository::id::{ChunkId, PackId};
use milkrun_repository::pack::{Place, SlotKey};
use milkrun_repository::restore_plan::Write;
use milkrun_repository::store::grant::GetGrant;

use super::CallError;
use super::grants::get_grant;

/// A page of a restore plan.
#[derive(Debug)]
pub struct Page {
    /// Holes: (offset, bytes).
    pub holes: Vec<(u64, u64)>,
    /// Ranges to read.
    pub ranges: Vec<GrantedRange>,
    /// The pages up to this one cover all of the volume before this offset. `None`: this page does not say.
    pub until: Option<u64>,
    /// Its ranges belong to a group that ends with the page that has `until`. Their writes are in no order.
    pub grouped: bool,
}

/// One ranged read with its grant.
#[derive(Debug)]
pub struct GrantedRange {
    /// The pack.
    pub pack: PackId,
    /// The grant to read it.
    pub grant: GetGrant,
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// What to open in it.
    pub slots: Vec<GrantedSlot>,
}

/// A chunk to open, with the key of this slot only.
#[derive(Debug)]
pub struct GrantedSlot {
    /// Its id.
    pub id: ChunkId,
    /// Where it is.
    pub place: Place,
    /// Its key.
    pub key: SlotKey,
    /// Where its parts go.
    pub writes: Vec<Write>,
}

/// The stream of pages.
pub struct Pages(pub(super) tonic::Streaming<wire::PlanPage>);

impl Pages {
    /// The next page.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn next(&mut self) -> Result<Option<Page>, CallError> {
        let Some(page) = self.0.message().await? else { return Ok(None) };
        let holes = page.holes.iter().map(|h| (h.offset, h.length)).collect();
        let ranges = page.ranges.into_iter().map(range).collect::<Option<_>>();
        let until = (page.until > 0).then_some(page.until);
        let (ranges, grouped) = (ranges.ok_or(CallError::Nonsense("a planned range"))?, page.grouped);
        Ok(Some(Page { holes, ranges, until, grouped }))
    }
}

/// Where the parts of a slot go. Coordinators of the release before send them one by one.
fn writes(slot: &wire::plan_page::Slot) -> Option<Vec<Write>> {
    if slot.packed_writes.is_empty() {
        let write = |w: &wire::plan_page::Write| Write {
            volume_offset: w.volume_offset,
            chunk_offset: w.chunk_offset,
            len: w.length,
        };
        return Some(slot.writes.iter().map(write).collect());
    }
    let (triples, rest) = slot.packed_writes.as_chunks::<3>();
    let write = |&[volume_offset, chunk_offset, len]: &[u64; 3]| {
        Some(Write { volume_offset, chunk_offset: chunk_offset.try_into().ok()?, len: len.try_into().ok()? })
    };
    rest.is_empty().then(|| triples.iter().map(write).collect())?
}

fn range(r: wire::plan_page::Range) -> Option<GrantedRange> {
    let pack = PackId::try_from(&r.pack[..]).ok()?;
    let slots = r.slots.into_iter().map(|s| {
        let place = Place {
            pack,
            slot: s.slot,
            offset: s.offset,
            sealed_len: s.sealed_length,
            plain_len: s.plain_length,
            codec: Codec::from_u8(u8::try_from(s.codec).ok()?)?,
        };
        // The chunk lies inside the range, and each write inside its chunk: no other code has to check this again.
        let inside = u64::from(place.offset) >= r.start && place.end() <= r.end && place.is_of_a_chunk();
        let writes = writes(&s)?;
        let inside_chunk = |w: &Write| w.chunk_offset.checked_add(w.len).is_some_and(|end| end <= s.plain_length);
        let sound = !writes.is_empty() && writes.iter().all(|w| w.len > 0 && inside_chunk(w));
        (inside && sound).then_some(())?;
        let key: [u8; 32] = s.key[..].try_into().ok()?;
        Some(GrantedSlot { id: ChunkId::try_from(&s.chunk[..]).ok()?, place, key: key.into(), writes })
    });
    let slots = slots.collect::<Option<Vec<_>>>()?;
    // Offsets within a pack have 32 bits: no pack has a longer range, and no buffer is allocated for one.
    (r.start < r.end && r.end <= u64::from(u32::MAX)).then_some(())?;
    Some(GrantedRange { pack, grant: get_grant(r.grant)?, start: r.start, end: r.end, slots })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No buffer is allocated for a range that no pack can have.
    #[test]
    fn ranges_that_no_pack_has_are_refused() {
        let file = wire::grant::File { root: "/r".into(), key: "packs/00/x".into(), ..Default::default() };
        let grant = wire::Grant { kind: Some(wire::grant::Kind::File(file)) };
        let of = |start, end| wire::plan_page::Range {
            pack: vec![7; 16].into(),
            grant: Some(grant.clone()),
            start,
            end,
            ..Default::default()
        };
        assert!(range(of(0, 8 << 20)).is_some());
        for (start, end) in [(5, 5), (6, 5), (0, 1 << 32), (0, u64::MAX)] {
            assert!(range(of(start, end)).is_none(), "{start}..{end}");
        }
        // So is a chunk that no pack can have.
        let with = |plain_length, sealed_length, len| {
            let (chunk, key) = (vec![1; 32].into(), vec![1; 32].into());
            let packed_writes = vec![0, 0, len];
            let slot =
                wire::plan_page::Slot { chunk, key, plain_length, sealed_length, packed_writes, ..Default::default() };
            range(wire::plan_page::Range { slots: vec![slot], ..of(0, 8 << 20) })
        };
        assert!(with(4 << 20, (4 << 20) + 16, 4 << 20).is_some());
        assert!(with((4 << 20) + 1, 100, 1).is_none());
        assert!(with(4096, 4096 + 17, 1).is_none());
        // So is a slot that writes nothing, or more than its chunk has.
        assert!(with(4096, 100, 0).is_none() && with(4096, 100, 4097).is_none());
    }

    /// Both encodings of the writes are read alike, and nonsense in the packed one is refused.
    #[test]
    fn writes_are_read_one_by_one_and_packed() {
        let slot = |numbers: &[u64]| wire::plan_page::Slot { packed_writes: numbers.to_vec(), ..Default::default() };
        let write =
            |volume_offset, chunk_offset, length| wire::plan_page::Write { volume_offset, chunk_offset, length };
        let one_by_one = vec![write(1 << 40, 4096, 8192), write(0, 0, 4096)];
        let one_by_one = wire::plan_page::Slot { writes: one_by_one, ..Default::default() };
        let expected = writes(&one_by_one).unwrap();
        assert_eq!(expected[0], Write { volume_offset: 1 << 40, chunk_offset: 4096, len: 8192 });
        assert_eq!(writes(&slot(&[1 << 40, 4096, 8192, 0, 0, 4096])).unwrap(), expected);
        assert_eq!(writes(&slot(&[])), Some(Vec::new()));
        for nonsense in [&[1][..], &[1, 2, 3, 4], &[0, 1 << 32, 1], &[0, 1, 1 << 32]] {
            assert_eq!(writes(&slot(nonsense)), None, "{nonsense:?}");
        }
    }
}
