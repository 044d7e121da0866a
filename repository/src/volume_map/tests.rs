use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::chunk::codec::Codec;
use crate::id::PackId;

#[derive(Default)]
struct Chunks(Mutex<HashMap<ChunkId, Vec<u8>>>);

impl Chunks {
    fn store(&self, bytes: Vec<u8>) -> MapRef {
        let id = ChunkId::from_bytes(*blake3::hash(&bytes).as_bytes());
        let mut map = self.0.lock().unwrap();
        let slot = map.len() as u32;
        map.insert(id, bytes);
        MapRef { id, place: place(1, slot, 10) }
    }
}

#[async_trait]
impl MapSource for Chunks {
    type Error = String;
    async fn chunk(&self, r: &MapRef) -> Result<Bytes, String> {
        self.0.lock().unwrap().get(&r.id).cloned().map(Bytes::from).ok_or_else(|| "missing".into())
    }
    fn malformed(&self, _: &MapRef, what: &'static str) -> String {
        what.into()
    }
}

fn place(pack: u8, slot: u32, plain_len: u32) -> Place {
    Place { pack: PackId::from_bytes([pack; 16]), slot, offset: 64, sealed_len: 30, plain_len, codec: Codec::Zstd }
}

fn leaf(seed: u8, len: u32) -> Leaf {
    let id = ChunkId::from_bytes([seed; 32]);
    let half = Extent::Data { len: len / 2, chunk_offset: 5, id, place: place(seed, 3, len), pages: None };
    [half, Extent::Hole { len: len - len / 2 }].into_iter().collect()
}

/// `None` is a region of holes.
fn round_trip(regions: &[Option<u8>]) {
    let chunks = Chunks::default();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut put = |bytes: Vec<u8>| {
            let r = chunks.store(bytes);
            async move { Ok::<_, String>(r) }
        };
        let mut builder = MapBuilder::new();
        for region in regions {
            let chunk = region.map(|seed| chunks.store(leaf(seed, 1000).encode()));
            builder.push(Child { len: 1000, chunk }, &mut put).await.unwrap();
        }
        let root = builder.finish(&mut put).await.unwrap();
        assert_eq!(root.len, regions.len() as u64 * 1000);
        let mut cursor = MapCursor::new(root);
        let mut at = 0;
        let mut seen = Vec::new();
        while let Some(step) = cursor.next(&chunks).await.unwrap() {
            match step {
                Step::Hole { offset, len } => {
                    assert_eq!(offset, at);
                    at += len;
                    seen.extend(std::iter::repeat_n(None, (len / 1000) as usize));
                }
                Step::Leaf { offset, leaf: found, .. } => {
                    assert_eq!(offset, at);
                    at += found.len();
                    let Extent::Data { id, .. } = found.nth(0) else { panic!() };
                    let seed = id.as_bytes()[0];
                    assert_eq!(found, leaf(seed, 1000));
                    seen.push(Some(seed));
                }
            }
        }
        assert_eq!(seen, regions);
        // The walk may start anywhere: it gives the same steps, without those that end before its start.
        let all = steps(&chunks, MapCursor::new(root)).await;
        for from in [0, 1, 999, 1000, 255_500, 256_000, root.len / 2, root.len] {
            let wanted = all.iter().filter(|s| s.1 > from);
            assert!(steps(&chunks, MapCursor::starting_at(root, from)).await.iter().eq(wanted), "from {from}");
        }
    });
}

/// Where each step begins and ends.
async fn steps(chunks: &Chunks, mut cursor: MapCursor) -> Vec<(u64, u64)> {
    let mut steps = Vec::new();
    while let Some(step) = cursor.next(chunks).await.unwrap() {
        let (offset, len) = match &step {
            Step::Hole { offset, len } => (*offset, *len),
            Step::Leaf { offset, leaf, .. } => (*offset, leaf.len()),
        };
        assert_eq!(cursor.offset(), offset + len);
        steps.push((offset, offset + len));
    }
    steps
}

#[test]
fn what_is_passed_over_is_not_read() {
    let chunks = Chunks::default();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut put = |bytes: Vec<u8>| {
            let r = chunks.store(bytes);
            async move { Ok::<_, String>(r) }
        };
        let mut builder = MapBuilder::new();
        for n in 0..1000u32 {
            let chunk = Some(chunks.store(leaf((n % 250) as u8, 1000 + n).encode()));
            builder.push(Child { len: u64::from(1000 + n), chunk }, &mut put).await.unwrap();
        }
        let root = builder.finish(&mut put).await.unwrap();
        let mut cursor = MapCursor::starting_at(root, root.len - 1);
        assert!(matches!(cursor.next(&chunks).await, Ok(Some(Step::Leaf { .. }))));
        assert_eq!(cursor.next(&chunks).await, Ok(None));
        assert_eq!(cursor.take_visited().len(), 3, "the top, one node of level 1, one leaf");
    });
}

#[test]
fn empty_sparse_and_large_maps() {
    round_trip(&[]);
    round_trip(&[None]);
    round_trip(&[Some(1)]);
    round_trip(&vec![None; 700]);
    round_trip(&vec![Some(3); 257]);
    let mut far = vec![None; 70_000];
    far[69_999] = Some(9);
    round_trip(&far);
}

#[test]
fn one_changed_leaf_rewrites_its_path_only() {
    let chunks = Chunks::default();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let build = |changed: Option<usize>| {
        runtime.block_on(async {
            let mut put = |bytes: Vec<u8>| {
                let r = chunks.store(bytes);
                async move { Ok::<_, String>(r) }
            };
            let mut builder = MapBuilder::new();
            for i in 0..1000 {
                let r = MapRef {
                    id: ChunkId::from_bytes([if changed == Some(i) { 1 } else { 2 }; 32]),
                    place: place(1, 0, 9),
                };
                builder.push(Child { len: 1000, chunk: Some(r) }, &mut put).await.unwrap();
            }
            builder.finish(&mut put).await.unwrap();
        });
        chunks.0.lock().unwrap().len()
    };
    let first = build(None);
    assert_eq!(build(Some(500)) - first, 2, "one node of level 1, and the top");
}

/// This must also hold for a map whose levels are full at its end: each node can be read, and there are no more nodes than
/// necessary.
#[test]
fn nodes_are_full_and_never_more_than_full() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for leaves in [1, 2, 255, 256, 257, 512, 513, 65_535, 65_536, 65_537, 65_791, 65_792, 65_793, 131_072, 131_073] {
        let nodes = Mutex::new(Vec::new());
        let root = runtime.block_on(async {
            let mut put = |bytes: Vec<u8>| {
                let mut nodes = nodes.lock().unwrap();
                nodes.push(Node::decode(&bytes).unwrap());
                let n = nodes.len() as u32;
                let id = ChunkId::from_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes());
                async move { Ok::<_, String>(MapRef { id, place: place(2, n, 9) }) }
            };
            let mut builder = MapBuilder::new();
            for i in 0..leaves {
                let id = ChunkId::from_bytes(*blake3::hash(&u64::from(i).to_le_bytes()).as_bytes());
                builder
                    .push(Child { len: 1000, chunk: Some(MapRef { id, place: place(1, i, 9) }) }, &mut put)
                    .await
                    .unwrap();
            }
            builder.finish(&mut put).await.unwrap()
        });
        let (mut wanted, mut level, mut on_level) = (0, 0, leaves as usize);
        while on_level > 1 {
            on_level = on_level.div_ceil(FAN_OUT);
            wanted += on_level;
            level += 1;
        }
        let nodes = nodes.into_inner().unwrap();
        assert_eq!((nodes.len(), root.level), (wanted, level), "{leaves} leaves");
        assert_eq!(root.len, u64::from(leaves) * 1000);
        let children: usize = nodes.iter().map(|n| n.children.len()).sum();
        // Every node but the topmost is a child of a node, unless there is no node.
        assert_eq!(children, if wanted == 0 { 0 } else { leaves as usize + wanted - 1 }, "{leaves} leaves");
    }
}

/// If a node can't be stored, the map is the same after any retry.
#[test]
fn a_map_survives_nodes_that_could_not_be_stored() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let build = |fails_at_first: bool| {
        let chunks = Chunks::default();
        let failed = Mutex::new(HashSet::new());
        runtime.block_on(async {
            let mut put = |bytes: Vec<u8>| {
                let fails = fails_at_first && failed.lock().unwrap().insert(bytes.clone());
                let stored = if fails { Err("not now") } else { Ok(chunks.store(bytes)) };
                async move { stored }
            };
            let mut builder = MapBuilder::new();
            // There are three levels, a hole here and there, and the last nodes are not full.
            for i in 0..66_000_u32 {
                let id = ChunkId::from_bytes([(i % 200) as u8; 32]);
                let chunk = (!i.is_multiple_of(7)).then_some(MapRef { id, place: place(1, i, 9) });
                while builder.push(Child { len: 1000, chunk }, &mut put).await.is_err() {}
            }
            let root = loop {
                if let Ok(root) = builder.finish(&mut put).await {
                    break root;
                }
            };
            (root, failed.lock().unwrap().len())
        })
    };
    let ((smooth, none), (rough, many)) = (build(false), build(true));
    assert_eq!((smooth, smooth.len, smooth.level), (rough, 66_000_000, 3));
    assert!(none == 0 && many > 258, "{none} {many}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_map_reads_as_written(regions in proptest::collection::vec(proptest::option::weighted(0.3, any::<u8>()), 0..900)) {
        round_trip(&regions);
    }

    #[test]
    fn leaves_are_canonical(parts in proptest::collection::vec((any::<bool>(), 1u32..5000, any::<u8>(), 0u32..100, proptest::option::weighted(0.3, 0u8..4)), 1..60)) {
        let extents = parts.iter().map(|&(hole, len, seed, chunk_offset, list)| {
            if hole { Extent::Hole { len } } else {
                let list = list.map(|n| MapRef { id: ChunkId::from_bytes([n; 32]), place: place(9, 4, 900) });
                let pages = list.map(|list| PagesAt { list, first: u32::from(seed) * 7 });
                Extent::Data { len, chunk_offset, id: ChunkId::from_bytes([seed; 32]), place: place(seed % 7, 3, len + chunk_offset), pages }
            }
        });
        let extents: Vec<Extent> = extents.collect();
        let leaf: Leaf = extents.iter().copied().collect();
        prop_assert!(leaf.extents().eq(extents.iter().copied()), "another leaf than it was made of");
        prop_assert_eq!(leaf.len(), extents.iter().map(|e| u64::from(e.len())).sum::<u64>());
        let used: u64 = extents.iter().filter(|e| matches!(e, Extent::Data { .. })).map(|e| u64::from(e.len())).sum();
        prop_assert_eq!(leaf.used().iter().sum::<u64>(), used);
        let all: HashSet<(ChunkId, u32, PackId)> = leaf.chunks().iter().map(|c| (c.id, c.place.plain_len, c.place.pack)).collect();
        prop_assert_eq!(all.len(), leaf.chunks().len(), "a chunk is listed twice");
        let bytes = leaf.encode();
        prop_assert_eq!(bytes[4], 3);
        prop_assert_eq!(&Leaf::decode(&bytes).unwrap(), &leaf);
        for cut in 0..bytes.len() {
            prop_assert!(Leaf::decode(&bytes[..cut]).is_err());
        }
    }

    /// Extents that are copied from other leaves by number equal the ones that were added in full, whatever is done to them
    /// afterwards.
    #[test]
    fn parts_of_other_leaves_are_what_they_were(
        leaves in proptest::collection::vec(proptest::collection::vec((0u8..6, 1u32..6, 0u8..4), 1..20), 1..3),
        taken in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0u32..3 * 4096, 1u32..4096), 0..40),
        pages in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..5, 0u32..99), 0..6),
        forget: bool,
    ) {
        let list = |n: u8| MapRef { id: ChunkId::from_bytes([0x80 | n; 32]), place: place(9, 4, 900) };
        let extent = |&(chunk, pages, digests): &(u8, u32, u8)| match chunk {
            0 => Extent::Hole { len: pages * 4096 },
            _ => {
                let pages_at = (digests > 0).then(|| PagesAt { list: list(digests), first: pages * 3 });
                Extent::Data { len: pages * 4096, chunk_offset: 4096, id: ChunkId::from_bytes([chunk; 32]), place: place(chunk, 3, 1 << 20), pages: pages_at }
            }
        };
        let leaves: Vec<Leaf> = leaves.iter().map(|parts| parts.iter().map(extent).collect()).collect();
        let mut seen: Vec<Renumbered> = leaves.iter().map(|_| Renumbered::default()).collect();
        let (mut builder, mut wanted) = (LeafBuilder::default(), Vec::new());
        for (which, number, skipped, len) in taken {
            let which = which.index(leaves.len());
            let (of, number) = (&leaves[which], number.index(leaves[which].extents().len()));
            let all = of.nth(number);
            let skipped = skipped % all.len();
            let len = len.min(all.len() - skipped);
            builder.push_part(of, number, skipped, len, &mut seen[which]);
            let mut part = all;
            match &mut part {
                Extent::Hole { len: all } => *all = len,
                Extent::Data { len: all, chunk_offset, pages, .. } => {
                    *all = len;
                    *chunk_offset += skipped;
                    *pages = pages.filter(|_| skipped % 4096 == 0).map(|p| PagesAt { first: p.first + skipped / 4096, ..p });
                }
            }
            wanted.push(part);
            // From time to time an extent is added in full.
            if number % 3 == 0 {
                builder.push(all);
                wanted.push(all);
            }
        }
        if forget {
            builder.forget_pages();
            wanted.iter_mut().for_each(|e| if let Extent::Data { pages, .. } = e { *pages = None });
        }
        for (number, digests, first) in pages {
            if wanted.is_empty() { break; }
            let number = number.index(wanted.len());
            let at = PagesAt { list: list(digests), first };
            builder.keep_pages(number, at);
            if let Extent::Data { pages, .. } = &mut wanted[number] { *pages = Some(at); }
        }
        let leaf = builder.finish();
        prop_assert!(leaf.extents().eq(wanted.iter().copied()), "{:?}\n{:?}", leaf.extents().collect::<Vec<_>>(), wanted);
        prop_assert!(leaf.lengths().eq(wanted.iter().map(Extent::len)));
        // Equal leaves have equal bytes, however they were made, and every table entry is used.
        let again: Leaf = wanted.into_iter().collect();
        prop_assert_eq!(leaf.encode(), again.encode());
        if !leaf.is_empty() {
            prop_assert_eq!(Leaf::decode(&leaf.encode()).unwrap(), leaf);
        }
    }
}
