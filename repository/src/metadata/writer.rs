//! Filling metadata packs. No I/O: full packs are handed out to be stored. Slow work on a chunk is done before its turn in its
//! pack, so that many chunks can be prepared at once.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::chunk::codec::{Codec, Compressor, Level};
use crate::id::ChunkId;
use crate::keys::DomainKey;
use crate::keys::hybrid::HybridError;
use crate::pack::{PackBuilder, PackTarget, Place, SealedPack};
use crate::volume_map::MapRef;

/// How many bytes a metadata pack may hold.
const PACK_BYTES: usize = 8 << 20;

/// Which metadata is packed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// What a restore reads: maps and manifests.
    Maps,
    /// What only backups read, in packs of its own: lists of page digests.
    Pages,
}

/// A chunk that was identified and compressed, but is in no pack yet.
#[derive(Debug)]
pub struct Prepared {
    part: Part,
    id: ChunkId,
    plain_len: usize,
    codec: Codec,
    stored: Vec<u8>,
}

/// Prepares chunks, from several threads at once.
pub struct Preparer {
    domain: DomainKey,
    idle: Mutex<Vec<Compressor>>,
}

impl Preparer {
    /// A preparer for one domain.
    ///
    /// # Errors
    /// When zstd can't get its memory.
    pub fn new(domain: DomainKey) -> std::io::Result<Self> {
        Ok(Self { domain, idle: Mutex::new(vec![Compressor::new(Level::MAPS)?]) })
    }

    /// Prepares a part of a map.
    ///
    /// # Errors
    /// When zstd can't get its memory.
    pub fn map(&self, plain: Vec<u8>) -> std::io::Result<Prepared> {
        self.prepare(plain, Level::MAPS)
    }

    /// Prepares a part of the manifests, which are text.
    ///
    /// # Errors
    /// When zstd can't get its memory.
    pub fn manifests(&self, plain: Vec<u8>) -> std::io::Result<Prepared> {
        self.prepare(plain, Level::DEFAULT)
    }

    fn prepare(&self, plain: Vec<u8>, level: Level) -> std::io::Result<Prepared> {
        let id = self.domain.identify(&plain);
        let idle = self.idle().pop();
        let mut compressor = idle.map_or_else(|| Compressor::new(level), Ok)?;
        compressor.set_level(level)?;
        let mut out = vec![0; plain.len()];
        let compressed = compressor.compress(&plain, &mut out);
        self.idle().push(compressor);
        let (plain_len, part) = (plain.len(), Part::Maps);
        Ok(match compressed {
            Some(len) => {
                out.truncate(len);
                Prepared { part, id, plain_len, codec: Codec::Zstd, stored: out }
            }
            None => Prepared { part, id, plain_len, codec: Codec::Raw, stored: plain },
        })
    }

    /// Prepares a list of page digests. Digests don't compress.
    pub fn pages(&self, plain: Vec<u8>) -> Prepared {
        let id = self.domain.identify(&plain);
        Prepared { part: Part::Pages, id, plain_len: plain.len(), codec: Codec::Raw, stored: plain }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Compressor>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fills metadata packs.
pub struct MetadataWriter {
    target: PackTarget,
    maps: Option<PackBuilder>,
    pages: Option<PackBuilder>,
    /// The chunks that this run wrote, so that equal leaves are stored once.
    written: HashMap<ChunkId, Place>,
    full: Vec<FinishedMetadata>,
}

/// A metadata pack to be stored.
pub struct FinishedMetadata {
    /// The pack.
    pub pack: SealedPack,
    /// Whether storing it was tried; the pack may then be in the store although no success was reported.
    pub tried: bool,
}

impl MetadataWriter {
    /// A writer that has written nothing yet.
    pub fn new(target: PackTarget) -> Self {
        Self { target, maps: None, pages: None, written: HashMap::new(), full: Vec::new() }
    }

    /// Adds a chunk, unless this run wrote it already.
    ///
    /// # Errors
    /// When the repository's public key can't be used.
    pub fn put(&mut self, chunk: &Prepared) -> Result<MapRef, HybridError> {
        let id = chunk.id;
        if let Some(&place) = self.written.get(&id) {
            return Ok(MapRef { id, place });
        }
        let open = match chunk.part {
            Part::Maps => &mut self.maps,
            Part::Pages => &mut self.pages,
        };
        if let Some(full) = open.take_if(|p| !p.fits(chunk.plain_len)) {
            self.full.push(finished(full)?);
        }
        let target = self.target;
        let pack = open.get_or_insert_with(|| {
            // A chunk that is larger than a pack gets a pack of its own size.
            let buffer = vec![0; PACK_BYTES.max(chunk.plain_len + 4096)];
            PackBuilder::new(target, buffer)
        });
        let place = pack.append_compressed(&id, chunk.plain_len, chunk.codec, &chunk.stored);
        self.written.insert(id, place);
        Ok(MapRef { id, place })
    }

    /// Learns of a chunk that is stored already, so that an unchanged part of a map is referred to instead of written again.
    pub fn note(&mut self, known: MapRef) {
        self.written.entry(known.id).or_insert(known.place);
    }

    /// Closes the open packs.
    ///
    /// # Errors
    /// As [`MetadataWriter::put`].
    pub fn close(&mut self) -> Result<(), HybridError> {
        for open in [self.maps.take(), self.pages.take()].into_iter().flatten() {
            self.full.push(finished(open)?);
        }
        Ok(())
    }

    /// Packs to be stored now.
    pub fn take_full(&mut self) -> Vec<FinishedMetadata> {
        std::mem::take(&mut self.full)
    }

    /// Takes back packs that could not be stored: chunks that were put into them count as stored there. The next call of
    /// [`Self::take_full`] returns these packs first.
    pub fn give_back(&mut self, packs: impl Iterator<Item = FinishedMetadata>) {
        self.full.splice(0..0, packs);
    }
}

fn finished(open: PackBuilder) -> Result<FinishedMetadata, HybridError> {
    Ok(FinishedMetadata { pack: open.finish()?, tried: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RepositoryId;
    use crate::keys::hybrid::HybridSecret;
    use crate::pack::PackKind;

    #[test]
    fn packs_that_are_given_back_come_first_and_what_they_hold_stays_known() {
        let repository = RepositoryId::from_bytes([1; 16]);
        let target =
            PackTarget { repository, kind: PackKind::Metadata, recipient: HybridSecret::derive(&[3; 32]).public() };
        let preparer = Preparer::new(DomainKey::from_bytes([2; 32])).unwrap();
        let mut writer = MetadataWriter::new(target);
        let large = |n: u8| {
            let mut bytes = vec![0; PACK_BYTES / 2];
            blake3::Hasher::new().update(&[n]).finalize_xof().fill(&mut bytes);
            preparer.pages(bytes)
        };
        let chunks: Vec<Prepared> = (0..5).map(large).collect();
        let places: Vec<MapRef> = chunks[..3].iter().map(|c| writer.put(c).unwrap()).collect();
        let full = writer.take_full();
        let before: Vec<_> = full.iter().map(|f| f.pack.id).collect();
        assert!(!before.is_empty());
        writer.give_back(full.into_iter());
        assert_eq!(writer.put(&chunks[0]).unwrap(), places[0]);
        for chunk in &chunks[3..] {
            writer.put(chunk).unwrap();
        }
        writer.close().unwrap();
        let all: Vec<_> = writer.take_full().iter().map(|f| f.pack.id).collect();
        assert!(all.len() > before.len() && all.starts_with(&before), "{before:?} {all:?}");
    }
}
