//! Walking every map once, and noting what it expects of each pack.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::pages::{self, KeptPages};
use super::{Findings, Report, metadata_finding};
use crate::id::{ChunkId, PackId, PointId};
use crate::pack::Place;
use crate::repository::{OpenPoint, Repository};
use crate::store::{Failure, Key};
use crate::volume_map::{Extent, MapCursor, Step};

/// What maps and the index say about a pack's slots: the slot and a fingerprint of (chunk, place). That is 16 bytes instead of
/// 70.
pub(super) type Slots = HashMap<PackId, Vec<(u32, u64)>>;

/// What maps say about packs.
#[derive(Default)]
pub(super) struct Expected {
    pub(super) slots: Slots,
    pub(super) pages: KeptPages,
}

/// A fingerprint of what a map says about a slot.
pub(super) fn fingerprint(id: &ChunkId, place: &Place) -> u64 {
    let mut h = blake3::Hasher::new();
    h.update(id.as_bytes()).update(&place.slot.to_le_bytes()).update(&place.offset.to_le_bytes());
    h.update(&place.sealed_len.to_le_bytes()).update(&place.plain_len.to_le_bytes()).update(&[place.codec as u8]);
    let out = h.finalize();
    let b = out.as_bytes();
    u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])
}

pub(super) async fn check(
    repository: &Repository,
    points: &[OpenPoint],
    chosen: &BTreeSet<PackId>,
    report: &mut Report,
    findings: &mut Findings,
) -> Result<Expected, Failure> {
    let mut expected = Expected::default();
    // A leaf that several points share is read once.
    let mut seen: HashSet<ChunkId> = HashSet::new();
    for point in points {
        let id = point.found.root.id();
        let placed: BTreeSet<PackId> = point.placement.packs.iter().map(|p| p.id).collect();
        let reader = repository.reader(&point.domain, point.placement.packs.iter().cloned());
        for (what, map) in point.maps() {
            let mut cursor = MapCursor::new(map);
            loop {
                let step = match cursor.next(&reader).await {
                    Ok(Some(step)) => step,
                    Ok(None) => break,
                    Err(e) => {
                        metadata_finding(e, &what, id, findings)?;
                        break;
                    }
                };
                for r in cursor.take_visited() {
                    report.map_chunks += 1;
                    expect(&mut expected.slots, &placed, &r.id, &r.place, id, findings);
                }
                let Step::Leaf { reference, leaf, .. } = step else { continue };
                if !seen.insert(reference.id) {
                    // Even if the leaf was read before, its packs must be in this placement.
                    for pack in leaf.needs().filter(|p| !placed.contains(p)) {
                        findings.add(Key::pack(&pack), "needed by a map and not in the placement", [id]);
                    }
                    continue;
                }
                for list in leaf.page_lists() {
                    report.map_chunks += 1;
                    expect(&mut expected.slots, &placed, &list.id, &list.place, id, findings);
                }
                if !chosen.is_empty() {
                    let wanted = |pack: &PackId| chosen.contains(pack);
                    pages::keep(&mut expected.pages, &leaf, wanted, &reader, (&what, id), findings).await?;
                }
                report.extents += leaf.extents().filter(|e| matches!(e, Extent::Data { .. })).count() as u64;
                for chunk in leaf.chunks() {
                    expect(&mut expected.slots, &placed, &chunk.id, &chunk.place, id, findings);
                }
            }
        }
    }
    Ok(expected)
}

fn expect(
    expected: &mut Slots,
    placed: &BTreeSet<PackId>,
    chunk: &ChunkId,
    place: &Place,
    point: PointId,
    findings: &mut Findings,
) {
    if !placed.contains(&place.pack) {
        findings.add(Key::pack(&place.pack), "needed by a map and not in the placement", [point]);
    }
    expected.entry(place.pack).or_default().push((place.slot, fingerprint(chunk, place)));
}
