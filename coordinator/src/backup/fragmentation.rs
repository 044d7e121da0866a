//! Finds the fragmented chunks of a leaf: little of them is in use, or they lie so scattered that a restore reads them one by one.
//! A backup that changes the region stores their pages anew. Pure.
//!
//! When single pages change, the new point keeps the rest of the old chunk by reference. So chunks become more fragmented with each
//! generation. When an agent is sent the parent's extents, those of fragmented chunks are marked, and the agent stores them anew if
//! anything near them changes. Two budgets limit what fragmentation costs: a restore opens at most 1.5 bytes of plaintext for each
//! byte that it writes, and a region lies in at most 64 packs. As in the cleaning of a log (Rosenblum and Ousterhout, 1992), the
//! emptiest chunks go first. With a budget of 1.5, each changed page costs at most two more, when changes are spread evenly.
//!
//! The budgets count the fragmentation from before the run. Fragmentation that a backup causes is repaired by the next one that
//! changes the region. A stream is written in order, so its restore opens a chunk once for each region that uses it. The root
//! records what a restore costs, and `milkrun show` prints it.

use std::collections::{HashMap, HashSet};

use milkrun_repository::id::{ChunkId, PackId};
use milkrun_repository::volume_map::Leaf;

/// How much plaintext the chunks of a region may have for each 2 bytes that the region uses of them.
const OPENED_PER_TWO: u64 = 3;
/// How many packs a region of 16 MiB uses at most, and how many are left once it had more.
const PACKS_MAX: usize = 64;
const PACKS_LEFT: usize = 48;

struct Use {
    id: ChunkId,
    used: u64,
    plain: u64,
    pack: PackId,
}

/// The fragmented chunks of a leaf.
pub(super) fn fragmented(leaf: &Leaf) -> HashSet<ChunkId> {
    let used = leaf.used();
    let chunks = leaf.chunks().iter().zip(used);
    let chunks: Vec<Use> = chunks
        .map(|(chunk, used)| Use { id: chunk.id, used, plain: chunk.place.plain_len.into(), pack: chunk.place.pack })
        .collect();
    let mut fragmented = by_emptiness(&chunks);
    if leaf.packs().len() > PACKS_MAX {
        fragmented.extend(by_packs(&chunks, &fragmented));
    }
    fragmented
}

fn by_emptiness(chunks: &[Use]) -> HashSet<ChunkId> {
    let mut fragmented = HashSet::new();
    let used: u64 = chunks.iter().map(|c| c.used.min(c.plain)).sum();
    let mut opened: u64 = chunks.iter().map(|c| c.plain).sum();
    if opened * 2 <= used * OPENED_PER_TWO {
        return fragmented;
    }
    let mut emptiest: Vec<&Use> = chunks.iter().filter(|c| c.used < c.plain).collect();
    // Sorted by used / plain, without fractions, and then by id, so that a leaf always gives the same answer.
    emptiest.sort_by(|a, b| (a.used * b.plain).cmp(&(b.used * a.plain)).then(a.id.cmp(&b.id)));
    for chunk in emptiest {
        if opened * 2 <= used * OPENED_PER_TWO {
            break;
        }
        // When the chunk is stored anew, a restore opens exactly the bytes that are in use.
        opened -= chunk.plain - chunk.used;
        fragmented.insert(chunk.id);
    }
    fragmented
}

fn by_packs(chunks: &[Use], fragmented: &HashSet<ChunkId>) -> HashSet<ChunkId> {
    let mut packs: HashMap<PackId, u64> = HashMap::new();
    for chunk in chunks.iter().filter(|c| !fragmented.contains(&c.id)) {
        *packs.entry(chunk.pack).or_default() += chunk.used;
    }
    if packs.len() <= PACKS_MAX {
        return HashSet::new();
    }
    let mut least: Vec<(u64, PackId)> = packs.into_iter().map(|(pack, used)| (used, pack)).collect();
    least.sort_unstable();
    let gone: HashSet<PackId> = least[..least.len() - PACKS_LEFT].iter().map(|(_, pack)| *pack).collect();
    chunks.iter().filter(|c| gone.contains(&c.pack)).map(|c| c.id).collect()
}

#[cfg(test)]
mod tests {
    use milkrun_repository::chunk::codec::Codec;
    use milkrun_repository::pack::Place;
    use milkrun_repository::volume_map::Extent;
    use proptest::prelude::*;

    use super::*;

    fn extent(id: u32, pack: u8, len: u32, plain_len: u32) -> Extent {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&id.to_le_bytes());
        let pack = PackId::from_bytes([pack; 16]);
        let place = Place { pack, slot: 0, offset: 64, sealed_len: plain_len, plain_len, codec: Codec::Raw };
        Extent::Data { len, chunk_offset: 0, id: ChunkId::from_bytes(bytes), place, pages: None }
    }

    #[test]
    fn whole_chunks_in_few_packs_have_not_worn() {
        let leaf = (0..128).map(|n| extent(n, (n % 60) as u8, 4096, 4096)).collect();
        assert!(fragmented(&leaf).is_empty());
    }

    #[test]
    fn the_emptiest_goes_first_and_no_more_than_must() {
        let extents = vec![extent(1, 1, 40, 100), extent(2, 1, 90, 100), extent(3, 1, 10, 100), extent(4, 1, 100, 100)];
        // 240 of 400 bytes are used. So 360 may be opened: the emptiest chunk is stored anew to get there.
        let Extent::Data { id, .. } = extents[2] else { panic!() };
        assert_eq!(fragmented(&extents.into_iter().collect()), HashSet::from([id]));
    }

    #[test]
    fn packs_with_least_of_the_region_go_first() {
        let mut extents: Vec<Extent> = (0..70).map(|n| extent(n, n as u8, 4096, 4096)).collect();
        extents.extend((70..100).map(|n| extent(n, 0, 4096, 4096)));
        let fragmented = fragmented(&extents.into_iter().collect());
        assert_eq!(fragmented.len(), 70 - PACKS_LEFT);
        assert!(!fragmented.contains(&ChunkId::from_bytes([0; 32])), "most of it lies there");
    }

    proptest! {
        #[test]
        fn what_is_left_keeps_the_budgets(parts in proptest::collection::vec((0u32..300, 0u8..120, 1u32..=32), 1..400)) {
            let mut packs = HashMap::new();
            let extents: Vec<Extent> = parts.iter().map(|&(id, pack, len)| extent(id, *packs.entry(id).or_insert(pack), len, 32)).collect();
            let leaf: Leaf = extents.into_iter().collect();
            let fragmented = fragmented(&leaf);
            let (mut used, mut opened, mut left): (HashMap<_, u64>, HashMap<_, u64>, HashSet<_>) = Default::default();
            for e in leaf.extents() {
                let Extent::Data { len, id, place, .. } = e else { continue };
                let uses = used.entry(id).or_default();
                *uses += u64::from(len);
                // Of a chunk that is stored anew, a restore opens only what is in use.
                opened.insert(id, if fragmented.contains(&id) { (*uses).min(32) } else { 32 });
                if !fragmented.contains(&id) {
                    left.insert(place.pack);
                }
            }
            prop_assert!(left.len() <= PACKS_MAX);
            // The parts of a chunk that is used in several places may add up to more than the chunk.
            let used: u64 = used.values().map(|&u| u.min(32)).sum();
            prop_assert!(opened.values().sum::<u64>() * 2 <= used * OPENED_PER_TWO);
            let partly = |id: &ChunkId| leaf.extents().filter(|e| matches!(e, Extent::Data { id: i, .. } if i == id)).map(|e| e.len()).sum::<u32>() < 32;
            prop_assert!(fragmented.iter().all(|id| partly(id) || packs.values().collect::<HashSet<_>>().len() > PACKS_MAX));
        }
    }
}
