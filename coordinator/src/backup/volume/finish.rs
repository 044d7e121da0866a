//! Completes the map of a volume once all its regions were taken, and makes the volume's entry in the root.

use milkrun_proto::agent::v1 as wire;
use milkrun_repository::point::journal::{self, Record};
use milkrun_repository::point::root::{FREE_LEFT_OUT, FileSystem, Layout, MapId, VolumeEntry};

use super::Finished;
use crate::assignment::RefusedCall;
use crate::backup::{BackupError, Run};
use crate::one_line::one_line;

/// The most notes of a volume.
const NOTES_MAX: usize = 64;
const NOTE_MAX: usize = 256;
/// The most characters of a file system's kind, and of its label: btrfs has the longest.
const FILE_SYSTEM_TEXT_MAX: usize = 256;

/// The file system of a volume as an agent reports it. It is recorded in the root.
fn file_system(done: &wire::FinishRequest) -> FileSystem {
    let text = |text: &str| one_line(text, FILE_SYSTEM_TEXT_MAX);
    FileSystem { kind: text(&done.file_system), label: text(&done.file_system_label) }
}

impl Run {
    /// All regions were taken: completes the map.
    ///
    /// # Errors
    /// [`BackupError::Nonsense`] when they do not fill the volume.
    pub async fn finish(&self, volume: &str, done: wire::FinishRequest) -> Result<(), BackupError> {
        let noted = volume.parse().map(|volume| journal::Finished {
            volume,
            len: done.length,
            sector_bytes: done.sector_bytes,
            read_bytes: done.read_bytes,
            new_bytes: done.new_bytes,
            stored_bytes: done.stored_bytes,
            notes: done.notes.clone(),
            file_system: file_system(&done),
        });
        self.take_finish(volume, done).await?;
        match noted {
            Ok(finished) => self.write_down(Record::Finished(finished)).await,
            Err(_) => Ok(()),
        }
    }

    /// As [`Self::finish`], but only in memory.
    pub(in crate::backup) async fn take_finish(
        &self,
        volume: &str,
        done: wire::FinishRequest,
    ) -> Result<(), BackupError> {
        let Some(build) = self.build_of(volume) else { return Ok(()) };
        let mut build = build.lock().await;
        if done.assignment.as_ref().is_none_or(|a| a.attempt != build.attempt) {
            return Err(RefusedCall::Stale.into());
        }
        if build.finished.as_ref().is_some_and(|f| f.entry.map.len == done.length) {
            // The volume was done before, and its agent did not get the answer.
            return Ok(());
        }
        if done.length != build.next || build.finished.is_some() {
            let what = "regions that do not fill the volume";
            return Err(BackupError::Nonsense { volume: volume.to_owned(), what });
        }
        let mut put = |bytes: Vec<u8>| async move { self.put_metadata(bytes).await };
        let map = build.builder.finish(&mut put).await?;
        if map.len != done.length {
            let what = "a map that does not fill the volume";
            return Err(BackupError::Nonsense { volume: volume.to_owned(), what });
        }
        // An agent that found its list wrong read everything, unless it went on from a checkpoint.
        build.by_list &= done.by_list || build.resumed_at > 0;
        let by_lists = if build.by_list { build.lists_before.saturating_add(1) } else { 0 };
        let sampled_bytes = if build.by_list { done.sampled_bytes } else { 0 };
        let mut notes = done.notes.clone();
        // Notes are recorded in the root: a compromised agent could fill it with them.
        notes.truncate(NOTES_MAX);
        for note in &mut notes {
            *note = one_line(note, NOTE_MAX);
        }
        if build.leaves_out && build.resumed_at > 0 && !notes.iter().any(|n| n.starts_with(FREE_LEFT_OUT)) {
            // Regions that an earlier attempt handed over stay.
            notes.push(format!("{FREE_LEFT_OUT}perhaps, by an earlier attempt, as far as it came"));
        }
        // Some numbers are known only to the agent: they are limited to what is possible.
        let data = map.len.saturating_sub(build.hole_bytes);
        let (new_bytes, stored_bytes) = (done.new_bytes.min(data), done.stored_bytes.min(self.stored_bytes()));
        let read_bytes = done.read_bytes.min(map.len.saturating_add(sampled_bytes).saturating_mul(2));
        if let Some(listed) = self.size_of(volume).filter(|listed| map.len > *listed) {
            notes.push(format!("the inventory says {listed} bytes, and its agent says {}", map.len));
        }
        let layout = Layout { by_lists, sampled_bytes, ..std::mem::take(&mut build.effort).finish().await? };
        let entry = VolumeEntry {
            name: build.name.clone(),
            kind: build.kind,
            sector_bytes: done.sector_bytes,
            map: MapId { len: map.len, level: map.level, chunk: map.chunk.map(|c| c.id) },
            hole_bytes: build.hole_bytes,
            new_bytes,
            stored_bytes,
            notes,
            layout,
            moment: build.facts.moment,
            file_system: file_system(&done),
            claim: build.facts.claim.clone(),
        };
        build.finished = Some(Finished { entry, read_bytes, map });
        Ok(())
    }
}
