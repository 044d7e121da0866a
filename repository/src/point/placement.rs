//! The placement of a point: every pack that the point needs in this location, with its version and digest.
//!
//! ```text
//!   0  16  magic "milkrun place\0\0\0"
//!  16   2  version u16 = 1
//!  18   6  reserved
//!  24  16  repository id
//!  40  32  BLAKE3 of the root's bytes: binds it to exactly one root
//!  72   4  number n of this placement, u32
//!  76   8  made at, ms since 1970, i64
//!  84   …  u32 count, count × (u8 some, place 36): the topmost map chunk of each volume, then of the manifests
//!   …   …  u32 count = 0: forwards of slots whose packs were rewritten (format 2 writes none)
//!   …   …  u32 count, count × pack info, sorted by pack id
//!   …  64  Ed25519 signature of everything before
//! ```
//! It can be read with the public key alone. It carries the sealed pack keys, so that a restore needs no GET for each footer.

use crate::clock::Moment;
use crate::id::{PackId, PointId, RepositoryId};
use crate::index::PackInfo;
use crate::keys::{BadSignature, KeyRing, Label, SIGNATURE_LEN, VerifyingKey};
use crate::pack::Place;
use crate::store::Key;
use crate::wire::{Decoder, Encoder, HeaderError, Malformed, header};

const MAGIC: &[u8; 16] = b"milkrun place\0\0\0";
const VERSION: u16 = 1;

/// Where a point's packs are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The repository.
    pub repository: RepositoryId,
    /// BLAKE3 of the root's bytes.
    pub root: [u8; 32],
    /// A later one replaces an earlier one.
    pub number: u32,
    /// When it was made.
    pub made: Moment,
    /// The topmost map chunks: volumes in the root's order, then the manifests (if any).
    pub maps: Vec<Option<Place>>,
    /// Packs, sorted by id.
    pub packs: Vec<PackInfo>,
}

/// Why a placement was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// Not a placement, or of a later format.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// Not signed by this repository.
    #[error(transparent)]
    Signature(#[from] BadSignature),
    /// An authentic placement of another root, or under another number.
    #[error("belongs to another restore point")]
    Misplaced,
}

impl From<Malformed> for PlacementError {
    fn from(m: Malformed) -> Self {
        Self::Header(m.into())
    }
}

impl Placement {
    /// The signed bytes.
    pub fn encode(&self, ring: &KeyRing) -> Vec<u8> {
        let mut e = Encoder::new();
        e.raw(MAGIC).u16(VERSION).raw(&[0; 6]).raw(self.repository.as_bytes()).raw(&self.root);
        e.u32(self.number).i64(self.made.millis()).count(self.maps.len());
        for map in &self.maps {
            e.u8(u8::from(map.is_some()));
            match map {
                Some(place) => place.encode(&mut e),
                None => {
                    e.raw(&[0; Place::ENCODED_LEN]);
                }
            }
        }
        e.u32(0);
        PackInfo::encode_all(&self.packs, &mut e);
        let signature = ring.sign(Label::Placement, e.as_slice());
        e.raw(&signature);
        e.finish()
    }

    /// Parses a placement and checks only its form.
    ///
    /// # Errors
    /// [`PlacementError::Header`].
    pub fn parse(bytes: &[u8]) -> Result<Self, PlacementError> {
        let mut d = Decoder::new(bytes);
        header(&mut d, MAGIC, VERSION)?;
        d.reserved(6, "reserved")?;
        let repository = RepositoryId::from_bytes(d.array("repository")?);
        let (root, number) = (d.array("root digest")?, d.u32("number")?);
        let made = Moment::from_millis(d.i64("made")?);
        let n = d.count(1 + Place::ENCODED_LEN, "map count")?;
        let mut maps = Vec::with_capacity(n);
        for _ in 0..n {
            maps.push(match d.u8("map")? {
                0 => {
                    d.reserved(Place::ENCODED_LEN, "map")?;
                    None
                }
                1 => Some(Place::decode(&mut d)?),
                _ => return Err(d.bad("map").into()),
            });
        }
        if d.u32("forwards")? != 0 {
            return Err(d.bad("forwards (written by a later release)").into());
        }
        let packs = PackInfo::decode_all(&mut d)?;
        d.raw(SIGNATURE_LEN, "signature")?;
        d.finish("end of placement")?;
        Ok(Self { repository, root, number, made, maps, packs })
    }

    /// Parses a placement found at `key` and checks that it belongs to the root.
    ///
    /// # Errors
    /// [`PlacementError`].
    pub fn decode(
        bytes: &[u8],
        key: &Key,
        point: &PointId,
        root: &[u8; 32],
        repository: &RepositoryId,
        signer: &VerifyingKey,
    ) -> Result<Self, PlacementError> {
        let placement = Self::parse(bytes)?;
        let signed = bytes.len() - SIGNATURE_LEN;
        signer.verify(Label::Placement, &bytes[..signed], &bytes[signed..])?;
        let own_key = Key::placement(point, placement.number);
        if &placement.repository != repository || &placement.root != root || &own_key != key {
            return Err(PlacementError::Misplaced);
        }
        Ok(placement)
    }

    /// What is known of a pack.
    pub fn pack(&self, id: &PackId) -> Option<&PackInfo> {
        self.packs.binary_search_by_key(id, |p| p.id).ok().map(|i| &self.packs[i])
    }
}
