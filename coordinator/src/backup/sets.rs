//! Volumes that form a file system only together. A point that has only some members of a set says so. Pure.

use std::collections::HashMap;

use milkrun_repository::point::root::{SET_MEMBER, VolumeEntry};

/// How many devices a volume's set has, and which set it is.
fn set_of(volume: &VolumeEntry) -> Option<(u64, &str)> {
    let said = volume.notes.iter().find_map(|n| n.strip_prefix(SET_MEMBER))?;
    let (devices, set) = said.split_once(" devices: ")?;
    Some((devices.parse().ok()?, set))
}

/// Adds notes to each volume whose set is not complete.
pub(super) fn note_incomplete(volumes: &mut [&mut VolumeEntry]) {
    let mut members: HashMap<String, u64> = HashMap::new();
    for (_, set) in volumes.iter().filter_map(|v| set_of(v)) {
        *members.entry(set.to_owned()).or_default() += 1;
    }
    for volume in volumes {
        let Some((devices, set)) = set_of(volume) else { continue };
        let here = members.get(set).copied().unwrap_or_default();
        if here < devices {
            let note = format!("THIS POINT HAS {here} OF THE {devices} DEVICES of its set: back up the others with it");
            volume.notes.push(note);
        }
    }
}

#[cfg(test)]
mod tests {
    use milkrun_repository::clock::Moment;
    use milkrun_repository::point::root::{FileSystem, Layout, MapId, VolumeKind};

    use super::*;

    #[test]
    fn a_set_that_is_not_whole_is_told_at_each_of_its_members() {
        let volume = |name: &str, note: &str| VolumeEntry {
            name: name.parse().unwrap(),
            kind: VolumeKind::Image,
            sector_bytes: 512,
            map: MapId { len: 0, level: 0, chunk: None },
            hole_bytes: 0,
            new_bytes: 0,
            stored_bytes: 0,
            notes: vec![note.into()],
            layout: Layout::default(),
            moment: Moment::from_millis(0),
            file_system: FileSystem::default(),
            claim: String::new(),
        };
        let btrfs = format!("{SET_MEMBER}2 devices: btrfs a");
        let mut volumes = [
            volume("a", &btrfs),
            volume("b", &btrfs),
            volume("c", &format!("{SET_MEMBER}3 devices: RAID (md) b")),
            volume("d", "something else"),
        ];
        note_incomplete(&mut volumes.each_mut());
        assert!(volumes.each_ref().map(|v| v.notes.len()) == [1, 1, 2, 1]);
        assert!(volumes[2].notes[1].contains("HAS 1 OF THE 3"));
    }
}
