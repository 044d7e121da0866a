//! `journal/<run>/<epoch>-<number>`: what a run has done so far, so that another coordinator can resume it. Sealed in an
//! [envelope](crate::keys::envelope); not locked; deleted when the run ends.
//!
//! An object holds records, in the order in which things happened. A leader that takes a run over begins its own series with
//! [`Record::TakeOver`], which says up to which object it read the earlier series. What an older leader writes after that does
//! not count.

mod begin;
pub mod restore;

pub use begin::{Begin, Complete, Source};

use crate::clock::Moment;
use crate::id::{ChunkId, VolumeName};
use crate::index::PackInfo;
use crate::pack::Place;
use crate::point::root::FileSystem;
use crate::wire::{Decoder, Encoder, Malformed};
use restore::{Restore, Work};

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The run began. The record has all that is needed to begin it again.
    Begin(Begin),
    /// Another leader took over, after this object.
    TakeOver {
        /// The epoch whose series it read last.
        epoch: u64,
        /// The last object of that series that counts.
        number: u32,
    },
    /// A pack is durable, whole and locked.
    Sealed {
        /// The pack.
        pack: PackInfo,
        /// Its chunks.
        entries: Vec<(ChunkId, Place)>,
    },
    /// Regions of a volume are done, in the order of the volume.
    Regions {
        /// The volume.
        volume: VolumeName,
        /// The regions.
        regions: Vec<Region>,
    },
    /// A volume is done.
    Finished(Finished),
    /// The run was stopped, or failed: nobody resumes it.
    Ended,
    /// The run is a restore, and it began.
    Restore(Restore),
    /// A target of a restore is durable up to this offset. A target's first record, with offset 0, is stored before anything is
    /// written.
    Reached {
        /// When.
        moment: Moment,
        /// The volume.
        volume: VolumeName,
        /// Everything before this offset is durable.
        offset: u64,
        /// The tag by which the agent recognises the target's content.
        tag: String,
        /// The work that was done for it.
        work: Work,
    },
    /// From here on, the volume is read by a changed-block list.
    ByList {
        /// The volume.
        volume: VolumeName,
    },
    /// From here on, space that the volume's file system reports as free may be left out.
    LeavesOut {
        /// The volume.
        volume: VolumeName,
    },
    /// A use of a node's quota: a volume was given to the node, or it got a grant to store this many more bytes.
    Granted {
        /// The node.
        node: String,
        /// The volume that was given to it, or for which it got the grant.
        volume: VolumeName,
        /// The bytes of one pack; 0: the volume was given to the node.
        bytes: u64,
    },
    /// A source was added to a run that was opened without sources.
    Source(Source),
    /// No more sources are added to a run that was opened without sources.
    Complete(Complete),
    /// A target of a restore is whole and durable.
    Restored {
        /// The volume.
        volume: VolumeName,
        /// The work that was done for it.
        work: Work,
    },
}

/// A region of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where it begins.
    pub offset: u64,
    /// Its bytes.
    pub len: u64,
    /// It equals the parent's region, byte for byte.
    pub unchanged: bool,
    /// Its runs. If there are none and it is not unchanged, it is a hole.
    pub runs: Vec<Run>,
}

/// A run of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Bytes.
    pub len: u32,
    /// The chunk, where the bytes begin in it, and its bytes; `None`: a hole.
    pub chunk: Option<(ChunkId, u32, u32)>,
}

/// What an agent reports of a volume that is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The volume.
    pub volume: VolumeName,
    /// Its bytes.
    pub len: u64,
    /// Its sector size.
    pub sector_bytes: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes that were not known before.
    pub new_bytes: u64,
    /// Bytes that were stored for it.
    pub stored_bytes: u64,
    /// Problems that were reported but did not fail the volume.
    pub notes: Vec<String>,
    /// The file system that its superblock names.
    pub file_system: FileSystem,
}

const ENTRY_LEN: usize = 32 + Place::ENCODED_LEN;
const RUN_LEN: usize = 4 + 32 + 4 + 4;

/// The body's bytes.
pub fn encode(records: &[Record]) -> Vec<u8> {
    let mut e = Encoder::new();
    e.count(records.len());
    for record in records {
        match record {
            Record::Begin(b) => b.encode(e.u8(1)),
            Record::TakeOver { epoch, number } => {
                e.u8(2).u64(*epoch).u32(*number);
            }
            Record::Sealed { pack, entries } => {
                pack.encode(e.u8(3));
                e.count(entries.len());
                for (id, place) in entries {
                    place.encode(e.raw(id.as_bytes()));
                }
            }
            Record::Regions { volume, regions } => {
                e.u8(4).text(volume.as_str()).count(regions.len());
                for region in regions {
                    region.encode(&mut e);
                }
            }
            Record::Finished(f) => f.encode(e.u8(5)),
            Record::Ended => {
                e.u8(6);
            }
            Record::Restore(r) => r.encode(e.u8(7)),
            Record::Reached { moment, volume, offset, tag, work } => {
                work.encode(e.u8(8).i64(moment.millis()).text(volume.as_str()).u64(*offset).text(tag));
            }
            Record::Restored { volume, work } => work.encode(e.u8(9).text(volume.as_str())),
            Record::ByList { volume } => {
                e.u8(10).text(volume.as_str());
            }
            Record::LeavesOut { volume } => {
                e.u8(11).text(volume.as_str());
            }
            Record::Source(source) => source.encode(e.u8(13)),
            Record::Complete(complete) => complete.encode(e.u8(14)),
            Record::Granted { node, volume, bytes } => {
                e.u8(12).text(node).text(volume.as_str()).u64(*bytes);
            }
        }
    }
    e.finish()
}

/// Parses a body.
///
/// # Errors
/// [`Malformed`].
pub fn decode(body: &[u8]) -> Result<Vec<Record>, Malformed> {
    let mut d = Decoder::new(body);
    let n = d.count(1, "record count")?;
    let mut records = Vec::with_capacity(n);
    for _ in 0..n {
        records.push(match d.u8("record kind")? {
            1 => Record::Begin(Begin::decode(&mut d)?),
            2 => Record::TakeOver { epoch: d.u64("epoch")?, number: d.u32("number")? },
            3 => {
                let pack = PackInfo::decode(&mut d)?;
                let n = d.count(ENTRY_LEN, "entry count")?;
                let entry = |d: &mut Decoder<'_>| Ok((ChunkId::from_bytes(d.array("chunk id")?), Place::decode(d)?));
                let entries = (0..n).map(|_| entry(&mut d)).collect::<Result<_, Malformed>>()?;
                Record::Sealed { pack, entries }
            }
            4 => {
                let volume = volume(&mut d)?;
                let n = d.count(8 + 8 + 1 + 4, "region count")?;
                let regions = (0..n).map(|_| Region::decode(&mut d)).collect::<Result<_, _>>()?;
                Record::Regions { volume, regions }
            }
            5 => Record::Finished(Finished::decode(&mut d)?),
            6 => Record::Ended,
            7 => Record::Restore(Restore::decode(&mut d)?),
            8 => {
                let moment = Moment::from_millis(d.i64("moment")?);
                let (volume, offset, tag) = (volume(&mut d)?, d.u64("reached offset")?, d.text("tag")?);
                Record::Reached { moment, volume, offset, tag, work: Work::decode(&mut d)? }
            }
            9 => Record::Restored { volume: volume(&mut d)?, work: Work::decode(&mut d)? },
            10 => Record::ByList { volume: volume(&mut d)? },
            11 => Record::LeavesOut { volume: volume(&mut d)? },
            12 => Record::Granted { node: d.text("node")?, volume: volume(&mut d)?, bytes: d.u64("granted bytes")? },
            13 => Record::Source(Source::decode(&mut d)?),
            14 => Record::Complete(Complete::decode(&mut d)?),
            _ => return Err(d.bad("record kind")),
        });
    }
    d.finish("end of journal")?;
    Ok(records)
}

fn volume(d: &mut Decoder<'_>) -> Result<VolumeName, Malformed> {
    d.text("volume")?.parse().map_err(|_| d.bad("volume"))
}

fn flag(d: &mut Decoder<'_>, what: &'static str) -> Result<bool, Malformed> {
    match d.u8(what)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(d.bad(what)),
    }
}

impl Region {
    fn encode(&self, e: &mut Encoder) {
        e.u64(self.offset).u64(self.len).u8(u8::from(self.unchanged)).count(self.runs.len());
        for run in &self.runs {
            // A hole is stored as a run without a chunk: an id of zeros, and no bytes in a chunk.
            let (id, offset, len) = run.chunk.unwrap_or((ChunkId::from_bytes([0; 32]), 0, 0));
            e.u32(run.len).raw(id.as_bytes()).u32(offset).u32(len);
        }
    }

    fn decode(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        let (offset, len, unchanged) = (d.u64("region offset")?, d.u64("region length")?, flag(d, "unchanged")?);
        let n = d.count(RUN_LEN, "run count")?;
        let mut runs = Vec::with_capacity(n);
        for _ in 0..n {
            let len = d.u32("run length")?;
            let id: [u8; 32] = d.array("chunk id")?;
            let (offset, chunk_len) = (d.u32("chunk offset")?, d.u32("chunk length")?);
            let chunk = match chunk_len {
                0 if id == [0; 32] && offset == 0 => None,
                0 => return Err(d.bad("chunk length")),
                _ => Some((ChunkId::from_bytes(id), offset, chunk_len)),
            };
            runs.push(Run { len, chunk });
        }
        Ok(Self { offset, len, unchanged, runs })
    }
}

impl Finished {
    fn encode(&self, e: &mut Encoder) {
        e.text(self.volume.as_str()).u64(self.len).u32(self.sector_bytes);
        e.u64(self.read_bytes).u64(self.new_bytes).u64(self.stored_bytes).count(self.notes.len());
        for note in &self.notes {
            e.text(note);
        }
        self.file_system.encode(e);
    }

    fn decode(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        let volume = volume(d)?;
        let (len, sector_bytes) = (d.u64("volume length")?, d.u32("sector size")?);
        let (read_bytes, new_bytes, stored_bytes) = (d.u64("read bytes")?, d.u64("new bytes")?, d.u64("stored bytes")?);
        let n = d.count(4, "note count")?;
        let notes = (0..n).map(|_| d.text("note")).collect::<Result<_, _>>()?;
        let file_system = FileSystem::decode(d)?;
        Ok(Self { volume, len, sector_bytes, read_bytes, new_bytes, stored_bytes, notes, file_system })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::AppId;

    fn region(seed: u8, runs: Vec<(u32, bool)>) -> Region {
        let run = |(len, hole): (u32, bool)| Run {
            len,
            chunk: (!hole).then(|| (ChunkId::from_bytes([seed; 32]), len / 2, len.max(1))),
        };
        Region {
            offset: seed.into(),
            len: 7,
            unchanged: seed.is_multiple_of(2),
            runs: runs.into_iter().map(run).collect(),
        }
    }

    proptest! {
        #[test]
        fn records_survive(seed: u8, runs in proptest::collection::vec((1u32..9, any::<bool>()), 0..20), note in ".{0,20}") {
            let volume: VolumeName = "data".parse().unwrap();
            let records = vec![
                Record::TakeOver { epoch: 7, number: seed.into() },
                Record::Regions { volume: volume.clone(), regions: vec![region(seed, runs.clone()), region(seed.wrapping_add(1), runs)] },
                Record::Finished(Finished { volume: volume.clone(), len: 1, sector_bytes: 512, read_bytes: 2, new_bytes: 3, stored_bytes: 4, notes: vec![note.clone()], file_system: FileSystem { kind: "ext4".into(), label: note.clone() } }),
                Record::Restore(restore::Restore {
                    application: AppId::local("shop".parse().unwrap()),
                    point: "rp-20260101t000000z-0102030405060708".parse().unwrap(),
                    ordered_by: note.clone(),
                    force: seed.is_multiple_of(2),
                    discard_rest: seed.is_multiple_of(3),
                    by_operator: seed.is_multiple_of(7),
                    targets: vec![restore::Target { volume: volume.clone(), node: "a".into(), path: note, stream: seed.is_multiple_of(5) }],
                }),
                Record::Reached { moment: Moment::from_millis(seed.into()), volume: volume.clone(), offset: 9, tag: "t".into(), work: Work { written_bytes: 1, hole_bytes: 2, fetched_bytes: 3, requests: seed.into() } },
                Record::ByList { volume: volume.clone() },
                Record::LeavesOut { volume: volume.clone() },
                Record::Granted { node: "node-a".into(), volume: volume.clone(), bytes: seed.into() },
                Record::Restored { volume, work: Work::default() },
            ];
            let bytes = encode(&records);
            prop_assert_eq!(decode(&bytes), Ok(records));
            for cut in 0..bytes.len() {
                prop_assert!(decode(&bytes[..cut]).is_err());
            }
        }
    }
}
