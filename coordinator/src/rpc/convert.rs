//! Converts between domain types and the wire.

use milkrun_proto::agent::v1 as wire;
use milkrun_repository::chunk::codec::Codec;
use milkrun_repository::id::{ChunkId, PackId};
use milkrun_repository::pack::{HEADER_LEN, PackKind, Place, SealedKey};
use milkrun_repository::point::commit::StoredReport;
use milkrun_repository::store::grant::{GetGrant, PutGrant};
use milkrun_repository::store::{Firmness, Lock, Version};

fn presigned(url: &str, headers: &[(String, String)]) -> wire::grant::Kind {
    let headers = headers.iter().map(|(name, value)| wire::grant::Header { name: name.clone(), value: value.clone() });
    wire::grant::Kind::Presigned(wire::grant::Presigned { url: url.to_owned(), headers: headers.collect() })
}

fn lock(l: Lock) -> wire::Lock {
    wire::Lock { compliance: l.firmness == Firmness::Compliance, until_ms: l.until.millis() }
}

/// A grant to store.
pub fn put_grant(g: &PutGrant) -> wire::Grant {
    let kind = match g {
        PutGrant::Presigned { url, headers } => presigned(url, headers),
        PutGrant::File { root, key, lock: l } => wire::grant::Kind::File(wire::grant::File {
            root: root.display().to_string(),
            key: key.as_str().to_owned(),
            lock: l.map(lock),
        }),
    };
    wire::Grant { kind: Some(kind) }
}

/// A grant to read.
pub fn get_grant(g: &GetGrant) -> wire::Grant {
    let kind = match g {
        GetGrant::Presigned { url, headers } => presigned(url, headers),
        GetGrant::File { root, key } => wire::grant::Kind::File(wire::grant::File {
            root: root.display().to_string(),
            key: key.as_str().to_owned(),
            lock: None,
        }),
    };
    wire::Grant { kind: Some(kind) }
}

/// Reads ids from their concatenation.
pub fn ids(bytes: &[u8]) -> Option<Vec<ChunkId>> {
    let (chunks, rest) = bytes.as_chunks::<{ ChunkId::LEN }>();
    rest.is_empty().then(|| chunks.iter().map(|c| ChunkId::from_bytes(*c)).collect())
}

const ENTRY: usize = 45;

/// An agent's report on a pack: the claim, and its slots. `None` if the report contradicts itself.
pub fn sealed(r: &wire::SealRequest) -> Option<(StoredReport, Vec<(ChunkId, Place)>)> {
    let id = PackId::try_from(&r.pack[..]).ok()?;
    let (encapsulated, ciphertext) = r.sealed_key.split_at_checked(32)?;
    let key = SealedKey {
        encapsulated: encapsulated.try_into().ok()?,
        ciphertext: ciphertext.try_into().ok()?,
        slots: r.slots,
        directory_len: r.directory_length,
    };
    let claim = StoredReport {
        id,
        kind: PackKind::Data,
        length: r.length,
        digest: r.digest[..].try_into().ok()?,
        crc32: r.crc32,
        key,
        version: Some(r.version.clone()).filter(|v| !v.is_empty()).map(Version),
    };
    let (raw, rest) = r.entries.as_chunks::<ENTRY>();
    if !rest.is_empty() || raw.len() != r.slots as usize {
        return None;
    }
    let mut entries = Vec::with_capacity(raw.len());
    let mut at = HEADER_LEN as u64;
    for (slot, e) in raw.iter().enumerate() {
        let number = |from: usize| Some(u32::from_le_bytes(e[from..from + 4].try_into().ok()?));
        let place = Place {
            pack: id,
            slot: u32::try_from(slot).ok()?,
            offset: number(32)?,
            sealed_len: number(36)?,
            plain_len: number(40)?,
            codec: Codec::from_u8(e[44])?,
        };
        // Slots lie back to back, as in the pack's directory.
        if u64::from(place.offset) != at || place.end() > r.length || !place.is_of_a_chunk() {
            return None;
        }
        at = place.end();
        entries.push((ChunkId::try_from(&e[..32]).ok()?, place));
    }
    Some((claim, entries))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A report that names more than a pack can hold is refused.
    #[test]
    fn slots_that_no_pack_has_are_refused() {
        let with = |offset: u32, stored: u32, plain: u32| {
            let mut entry = vec![1; 32];
            for number in [offset, stored, plain] {
                entry.extend_from_slice(&number.to_le_bytes());
            }
            entry.push(Codec::Zstd as u8);
            let request = wire::SealRequest {
                pack: vec![2; 16].into(),
                length: 1 << 30,
                digest: vec![3; 32].into(),
                sealed_key: vec![4; 80].into(),
                slots: 1,
                entries: entry.into(),
                ..Default::default()
            };
            sealed(&request)
        };
        let at = u32::try_from(HEADER_LEN).unwrap();
        assert!(with(at, 4096 + 16, 4096).is_some());
        assert!(with(at, 100, 4 << 20).is_some());
        assert!(with(at + 1, 100, 4096).is_none(), "a gap");
        assert!(with(at, 100, (4 << 20) + 1).is_none(), "more than a chunk may have");
        assert!(with(at, 4096 + 17, 4096).is_none(), "more than its plaintext and a tag");
        assert!(with(at, u32::MAX, u32::MAX).is_none());
    }
}
