use proptest::prelude::*;

use super::*;
use crate::chunk::codec::{Codec, Compressor, Level};
use crate::id::{AppHash, DomainId};
use crate::keys::{Domain, KeyRing, Secret};

fn domain() -> Domain {
    let id = DomainId { app: AppHash::from_bytes([5; 16]), number: 0 };
    let ring = KeyRing::from_secret(&Secret::from_bytes([1; 32]));
    Domain::sample(id, &RepositoryId::from_bytes([9; 16]), &ring).0
}

fn build(chunks: &[Vec<u8>]) -> (Domain, SealedPack, Vec<(ChunkId, Place)>) {
    let domain = domain();
    let target = PackTarget {
        repository: RepositoryId::from_bytes([9; 16]),
        kind: PackKind::Data,
        recipient: domain.recipient(PackKind::Data),
    };
    let mut compressor = Compressor::new(Level::DEFAULT).unwrap();
    let mut builder = PackBuilder::new(target, vec![0xaa; 4 << 20]);
    let mut places = Vec::new();
    for chunk in chunks {
        let id = domain.chunks().identify(chunk);
        places.push((id, builder.append(&id, chunk, &mut compressor)));
    }
    (domain, builder.finish().unwrap(), places)
}

fn directory(domain: &Domain, pack: &SealedPack) -> Result<Directory, PackError> {
    let repository = RepositoryId::from_bytes([9; 16]);
    let head = Directory::check_header(&pack.bytes, &repository, &pack.id)?;
    if head.recipient != domain.recipient(head.kind).tag() {
        return Err(PackError::Misplaced);
    }
    let key = Directory::footer(&pack.bytes)?;
    let pack_key = key.open(domain.secret(head.kind), &repository, &pack.id, head.kind)?;
    Directory::open(&pack.bytes, pack.bytes.len() as u64, &repository, &pack.id, &pack_key, &key)
}

#[test]
fn every_flipped_byte_is_noticed_somewhere() {
    let (domain, mut pack, _) = build(&[b"hello".to_vec(), vec![7; 5000]]);
    let repository = RepositoryId::from_bytes([9; 16]);
    let open_all = |pack: &SealedPack| -> Result<(), String> {
        let directory = directory(&domain, pack).map_err(|e| e.to_string())?;
        let key = Directory::footer(&pack.bytes).map_err(|e| e.to_string())?;
        let pack_key = key
            .open(domain.secret(PackKind::Data), &repository, &pack.id, PackKind::Data)
            .map_err(|e| e.to_string())?;
        let mut opener = SlotOpener::new(repository).unwrap();
        for (id, place) in &directory.slots {
            let mut sealed = pack.bytes[place.offset as usize..place.end() as usize].to_vec();
            let mut out = vec![0; place.plain_len as usize];
            opener
                .open(id, place, &slot_key(&pack_key, place.slot), &mut sealed, &mut out, |b| {
                    domain.chunks().identify(b)
                })
                .map_err(|e| e.to_string())?;
        }
        Ok(())
    };
    open_all(&pack).unwrap();
    assert_eq!(pack.digest, *blake3::hash(&pack.bytes).as_bytes());
    assert_eq!(pack.crc32, crc32fast::hash(&pack.bytes));
    for at in 0..pack.bytes.len() {
        pack.bytes[at] ^= 0x40;
        assert!(open_all(&pack).is_err(), "byte {at} of {}", pack.bytes.len());
        pack.bytes[at] ^= 0x40;
    }
    for cut in [0, 1, HEADER_LEN, pack.bytes.len() - 1] {
        let short = SealedPack { bytes: pack.bytes[..cut].to_vec(), key: pack.key.clone(), ..pack };
        assert!(open_all(&short).is_err(), "cut at {cut}");
    }
}

#[test]
fn only_the_data_key_opens_a_data_pack() {
    let (domain, pack, _) = build(&[b"x".to_vec()]);
    let repository = RepositoryId::from_bytes([9; 16]);
    assert!(pack.key.open(domain.secret(PackKind::Data), &repository, &pack.id, PackKind::Data).is_ok());
    assert!(pack.key.open(domain.secret(PackKind::Metadata), &repository, &pack.id, PackKind::Data).is_err());
    assert!(
        pack.key
            .open(domain.secret(PackKind::Data), &repository, &PackId::from_bytes([0; 16]), PackKind::Data)
            .is_err()
    );
    assert!(pack.key.open(domain.secret(PackKind::Data), &repository, &pack.id, PackKind::Metadata).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn what_goes_in_comes_out(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..3000), 0..40)) {
        let (domain, pack, places) = build(&chunks);
        let directory = directory(&domain, &pack).unwrap();
        prop_assert_eq!(&directory.slots, &places);
        let repository = RepositoryId::from_bytes([9; 16]);
        let pack_key = pack.key.open(domain.secret(PackKind::Data), &repository, &pack.id, PackKind::Data).unwrap();
        let mut opener = SlotOpener::new(repository).unwrap();
        for (chunk, (id, place)) in chunks.iter().zip(&places) {
            let mut sealed = pack.bytes[place.offset as usize..place.end() as usize].to_vec();
            let mut out = vec![0; chunk.len()];
            opener.open(id, place, &slot_key(&pack_key, place.slot), &mut sealed, &mut out, |_| *id).unwrap();
            prop_assert_eq!(&out, chunk);
            // A chunk that is stored as it is also opens in place; no other chunk does.
            let mut sealed = pack.bytes[place.offset as usize..place.end() as usize].to_vec();
            let key = slot_key(&pack_key, place.slot);
            let in_place = opener.open_raw(id, place, &key, &mut sealed, |_| *id);
            prop_assert_eq!(in_place.is_ok(), place.codec == Codec::Raw);
            if in_place.is_ok() {
                prop_assert_eq!(&sealed[..chunk.len()], &chunk[..]);
                let mut sealed = pack.bytes[place.offset as usize..place.end() as usize].to_vec();
                let other = |_: &[u8]| ChunkId::from_bytes([0; 32]);
                prop_assert_eq!(opener.open_raw(id, place, &key, &mut sealed, other), Err(OpenError::Identity));
                let mut sealed = pack.bytes[place.offset as usize..place.end() as usize].to_vec();
                sealed[chunk.len()] ^= 1;
                prop_assert_eq!(opener.open_raw(id, place, &key, &mut sealed, |_| *id), Err(OpenError::Sealed));
            }
        }
    }
}
