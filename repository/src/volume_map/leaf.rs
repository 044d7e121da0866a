//! Leaves: what a range of a volume is made of.

use super::{LEAF_BYTES_MAX, MapRef, head};
use crate::chunk::codec::Codec;
use crate::id::{ChunkId, PackId};
use crate::pack::Place;
use crate::wire::{Decoder, Encoder, Malformed};

/// A run of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Zeros that are stored nowhere.
    Hole {
        /// Bytes.
        len: u32,
    },
    /// A part of a chunk, or all of it.
    Data {
        /// Bytes.
        len: u32,
        /// Where they begin in the chunk's plaintext.
        chunk_offset: u32,
        /// The chunk.
        id: ChunkId,
        /// Where it is stored.
        place: Place,
        /// Where the digests of its pages are kept, if they are.
        pages: Option<PagesAt>,
    },
}

/// Digests of the pages of an extent: in which list, and the number of the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagesAt {
    /// The chunk that holds the list.
    pub list: MapRef,
    /// The digest of the extent's first page is this one of it; those of the other pages follow.
    pub first: u32,
}

impl Extent {
    /// Bytes covered.
    pub fn len(&self) -> u32 {
        match *self {
            Self::Hole { len } | Self::Data { len, .. } => len,
        }
    }

    /// Never true of a decoded extent.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A leaf: the extents of up to 64 MiB of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    /// In order, without gaps.
    pub extents: Vec<Extent>,
}

impl Leaf {
    /// Bytes covered.
    pub fn len(&self) -> u64 {
        self.extents.iter().map(|e| u64::from(e.len())).sum()
    }

    /// Whether it covers nothing.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Whether it is one hole.
    pub fn is_hole(&self) -> bool {
        self.extents.iter().all(|e| matches!(e, Extent::Hole { .. }))
    }

    /// The packs that hold its data, each once, sorted.
    pub fn packs(&self) -> Vec<PackId> {
        let packs = self.extents.iter().filter_map(|e| match e {
            Extent::Data { place, .. } => Some(place.pack),
            Extent::Hole { .. } => None,
        });
        let mut packs = few(packs);
        packs.sort_unstable();
        packs.dedup();
        packs
    }

    /// The lists of digests that it names, each once, sorted. A backup needs them; a restore does not.
    pub fn page_lists(&self) -> Vec<MapRef> {
        let lists = self.extents.iter().filter_map(|e| match e {
            Extent::Data { pages: Some(PagesAt { list, .. }), .. } => Some(*list),
            _ => None,
        });
        let mut lists = few(lists);
        lists.sort_unstable_by_key(list_order);
        lists.dedup();
        lists
    }

    /// All packs that whoever names this leaf in a restore point must keep, besides the leaf's own.
    pub fn needs(&self) -> impl Iterator<Item = PackId> {
        self.packs().into_iter().chain(self.page_lists().into_iter().map(|l| l.place.pack))
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let (packs, lists) = (self.packs(), self.page_lists());
        let mut e = Encoder::new();
        e.raw(b"leaf").u8(if lists.is_empty() { 1 } else { 2 }).raw(&[0; 3]).count(packs.len());
        for pack in &packs {
            e.raw(pack.as_bytes());
        }
        if !lists.is_empty() {
            e.count(lists.len());
            for list in &lists {
                list.encode(&mut e);
            }
        }
        let number = |found: Result<usize, usize>| found.ok().and_then(|n| u16::try_from(n).ok()).unwrap_or(u16::MAX);
        e.count(self.extents.len());
        for extent in &self.extents {
            match *extent {
                Extent::Hole { len } => {
                    e.u8(0).u32(len);
                }
                Extent::Data { len, chunk_offset, id, place, pages } => {
                    e.u8(if pages.is_some() { 2 } else { 1 }).u8(place.codec as u8);
                    e.u16(number(packs.binary_search(&place.pack))).u32(len).u32(chunk_offset);
                    e.u32(place.plain_len).u32(place.sealed_len).u32(place.slot).u32(place.offset).raw(id.as_bytes());
                    if let Some(PagesAt { list, first }) = pages {
                        e.u16(number(lists.binary_search_by_key(&list_order(&list), list_order))).u32(first);
                    }
                }
            }
        }
        e.finish()
    }

    /// Parses a leaf.
    ///
    /// # Errors
    /// [`Malformed`] unless it is exactly what [`Leaf::encode`] writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut d = Decoder::new(bytes);
        let version = head(&mut d, *b"leaf", 2)?;
        d.reserved(3, "reserved")?;
        let n = d.count(PackId::LEN, "pack count")?;
        let mut packs = Vec::with_capacity(n);
        for _ in 0..n {
            packs.push(PackId::from_bytes(d.array("pack id")?));
        }
        let n = if version == 1 { 0 } else { d.count(ChunkId::LEN + Place::ENCODED_LEN, "page list count")? };
        let mut lists = Vec::with_capacity(n);
        for _ in 0..n {
            lists.push(MapRef::decode(&mut d)?);
        }
        let n = d.count(5, "extent count")?;
        let mut leaf = Self { extents: Vec::with_capacity(n) };
        let mut total = 0_u64;
        for _ in 0..n {
            let extent = match d.u8("extent kind")? {
                0 => Extent::Hole { len: d.u32("hole length")? },
                kind @ (1 | 2) => data(&mut d, kind == 2, &packs, &lists)?,
                _ => return Err(d.bad("extent kind")),
            };
            total += u64::from(extent.len());
            if extent.is_empty() || total > LEAF_BYTES_MAX {
                return Err(d.bad("extent length"));
            }
            leaf.extents.push(extent);
        }
        d.finish("end of leaf")?;
        // What is listed is used, in order, and version 2 only if there is something to list: one leaf has one encoding.
        let most = usize::from(u16::MAX);
        if leaf.packs() != packs || packs.len() > most {
            return Err(Malformed { what: "pack table", at: 8 });
        }
        if leaf.page_lists() != lists || lists.len() > most || (version == 2 && lists.is_empty()) {
            return Err(Malformed { what: "page lists", at: 8 });
        }
        Ok(leaf)
    }
}

fn data(d: &mut Decoder<'_>, digests: bool, packs: &[PackId], lists: &[MapRef]) -> Result<Extent, Malformed> {
    let codec = Codec::from_u8(d.u8("codec")?).ok_or_else(|| d.bad("codec"))?;
    let pack = *packs.get(usize::from(d.u16("pack number")?)).ok_or_else(|| d.bad("pack number"))?;
    let (len, chunk_offset) = (d.u32("length")?, d.u32("chunk offset")?);
    let plain_len = d.u32("plain length")?;
    let place = Place {
        pack,
        codec,
        plain_len,
        sealed_len: d.u32("sealed length")?,
        slot: d.u32("slot")?,
        offset: d.u32("offset")?,
    };
    if chunk_offset.checked_add(len).is_none_or(|end| end > plain_len) {
        return Err(d.bad("extent outside of its chunk"));
    }
    let id = ChunkId::from_bytes(d.array("chunk id")?);
    let pages = match digests {
        false => None,
        true => {
            let list = *lists.get(usize::from(d.u16("page list")?)).ok_or_else(|| d.bad("page list"))?;
            Some(PagesAt { list, first: d.u32("first digest")? })
        }
    };
    Ok(Extent::Data { len, chunk_offset, id, place, pages })
}

/// Of many values, few of which differ: most of them once. Looking through the last ones costs less than sorting all.
fn few<T: PartialEq>(all: impl Iterator<Item = T>) -> Vec<T> {
    const NEAR: usize = 8;
    all.fold(Vec::new(), |mut found, value| {
        if !found.iter().rev().take(NEAR).any(|f| *f == value) {
            found.push(value);
        }
        found
    })
}

/// Equal lists may have been stored twice, by two runs at once.
fn list_order(list: &MapRef) -> (ChunkId, PackId, [u32; 4], u8) {
    let p = &list.place;
    (list.id, p.pack, [p.slot, p.offset, p.sealed_len, p.plain_len], p.codec as u8)
}
