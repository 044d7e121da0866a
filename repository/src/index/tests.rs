use proptest::prelude::*;

use super::*;

pub(super) fn pack(n: u8) -> PackInfo {
    PackInfo {
        id: PackId::from_bytes([n; 16]),
        kind: PackKind::Data,
        length: 1000,
        digest: [n; 32],
        version: Version(format!("v{n}")),
        key: SealedKey { encapsulated: [n; 32], ciphertext: [n; 48], slots: 3, directory_len: 148 },
        locked_until: n.is_multiple_of(2).then(|| Moment::from_millis(1 + i64::from(n) * 1000)),
    }
}

pub(super) fn entry(id: [u8; 32], pack: u8, slot: u32) -> (ChunkId, Place) {
    let pack = PackId::from_bytes([pack; 16]);
    (ChunkId::from_bytes(id), Place { pack, slot, offset: 64, sealed_len: 100, plain_len: 200, codec: Codec::Zstd })
}

fn cache_in(folder: &std::path::Path) -> IndexCache {
    let ring = crate::keys::KeyRing::from_secret(&crate::keys::Secret::from_bytes([1; 32]));
    IndexCache::new(Some(folder), &crate::id::RepositoryId::from_bytes([0; 16]), &ring)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn mapped_segments_find_what_is_in_them_and_nothing_else(
        ids in proptest::collection::hash_set(any::<[u8; 32]>(), 0..600),
        others in proptest::collection::vec(any::<[u8; 32]>(), 0..100),
    ) {
        let entries: Vec<_> = ids.iter().enumerate().map(|(i, &id)| entry(id, (i % 5) as u8, i as u32)).collect();
        let mut segment = Segment::new((0..5).map(pack).collect(), entries.clone());
        segment.replaces = vec![SegmentId::from_bytes([1; 16])];
        let body = segment.encode();
        prop_assert_eq!(&Segment::decode(&body).unwrap(), &segment);
        let folder = tempfile::tempdir().unwrap();
        let cache = cache_in(folder.path());
        let mapped = cache.store(&SegmentId::from_bytes([2; 16]), &body).unwrap();
        for (id, place) in &entries {
            prop_assert_eq!(mapped.find(id), Some(*place));
        }
        for other in others.iter().filter(|o| !ids.contains(*o)) {
            prop_assert_eq!(mapped.find(&ChunkId::from_bytes(*other)), None);
        }
        prop_assert_eq!(mapped.entries().collect::<Vec<_>>(), segment.entries);
    }
}

#[test]
fn what_lies_in_packs_that_were_set_aside_is_not_found_unless_elsewhere_too() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache_in(folder.path());
    let mut index = ChunkIndex::default();
    let (both, one) = (ChunkId::from_bytes([1; 32]), ChunkId::from_bytes([2; 32]));
    // It does not matter which segment is asked first.
    for n in [1, 2] {
        let entries = (1..=3 - n).map(|id| entry([id; 32], n, 0));
        let body = Segment::new(vec![pack(n)], entries.collect()).encode();
        let id = SegmentId::from_bytes([n; 16]);
        index.written(id, cache.store(&id, &body).unwrap());
    }
    let in_pack = |index: &ChunkIndex, id| index.find(id).map(|p| p.pack.as_bytes()[0]);
    assert_eq!((in_pack(&index, &both), in_pack(&index, &one)), (Some(2), Some(1)));
    index.set_aside([PackId::from_bytes([2; 16])]);
    assert_eq!((in_pack(&index, &both), in_pack(&index, &one)), (Some(1), Some(1)));
    index.set_aside([PackId::from_bytes([1; 16])]);
    assert_eq!((in_pack(&index, &both), in_pack(&index, &one)), (None, None));
    // A chunk that is stored again is known again.
    index.add(pack(3), [entry([1; 32], 3, 0)]);
    assert_eq!((in_pack(&index, &both), in_pack(&index, &one)), (Some(3), None));
    index.set_aside([PackId::from_bytes([3; 16])]);
    assert_eq!(in_pack(&index, &both), None);
}
