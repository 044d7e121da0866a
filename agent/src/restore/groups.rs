//! Puts the ranges of a stream's plan into groups. Groups are written one after the other; the writes of a group are
//! sorted first.

use milkrun_repository::restore_plan::Write;
use milkrun_repository::volume_map::LEAF_BYTES_MAX;

use super::RestoreError;
use crate::rpc::{CallError, GrantedRange, Page};

/// The group whose pages come now, and how far the groups before it reach.
#[derive(Debug, Default)]
pub(super) struct Groups {
    open: Vec<GrantedRange>,
    /// Bytes that the open group writes.
    open_bytes: u64,
    /// The plan covers everything before this offset.
    covered: u64,
    /// For a plan without groups: more ranges of the current window are still to come.
    in_a_window: bool,
    /// The plan has groups. Such a plan also covers a hole at the end of the volume.
    grouped: bool,
}

/// The largest number of bytes that a group writes: a group waits in memory until it is whole.
const GROUP_BYTES_MAX: u64 = LEAF_BYTES_MAX;

impl Groups {
    /// The groups that are complete with this page. Coordinators of the last release send ranges in order, without
    /// groups: then each range is a group.
    ///
    /// # Errors
    /// If the page makes no sense.
    pub(super) fn of(&mut self, page: Page) -> Result<Vec<Vec<GrantedRange>>, CallError> {
        if page.grouped {
            self.grouped = true;
            self.open_bytes = page
                .ranges
                .iter()
                .flat_map(writes)
                .map(|w| u64::from(w.len))
                .fold(self.open_bytes, u64::saturating_add);
            self.open.extend(page.ranges);
            if self.open_bytes > GROUP_BYTES_MAX {
                return Err(CallError::Nonsense("more than a group has"));
            }
        } else if self.grouped {
            return Err(CallError::Nonsense("a range of no group"));
        } else {
            self.in_a_window = page.until.is_none() && !page.ranges.is_empty();
            self.covered = page.until.unwrap_or(self.covered);
            return Ok(page.ranges.into_iter().map(|range| vec![range]).collect());
        }
        let Some(until) = page.until else { return Ok(Vec::new()) };
        let (from, bytes) = (std::mem::replace(&mut self.covered, until), std::mem::take(&mut self.open_bytes));
        let whole = std::mem::take(&mut self.open);
        let inside = |w: &Write| {
            let end = w.volume_offset.checked_add(w.len.into());
            from <= w.volume_offset && end.is_some_and(|end| end <= until)
        };
        if until < from || bytes > until - from || !whole.iter().flat_map(writes).all(inside) {
            return Err(CallError::Nonsense("a group that writes elsewhere"));
        }
        Ok(if whole.is_empty() { Vec::new() } else { vec![whole] })
    }

    /// Checks the plan after its last page.
    ///
    /// # Errors
    /// If the plan does not cover the volume, as far as that is known: the rest would look like a hole.
    pub(super) fn end(&self, len: u64) -> Result<(), RestoreError> {
        let covered = self.covered;
        let short = self.in_a_window || !self.open.is_empty() || (self.grouped && covered != len);
        if short { Err(RestoreError::Incomplete { covered, len }) } else { Ok(()) }
    }
}

fn writes(range: &GrantedRange) -> impl Iterator<Item = &Write> {
    range.slots.iter().flat_map(|slot| &slot.writes)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use milkrun_repository::chunk::codec::Codec;
    use milkrun_repository::id::{ChunkId, PackId};
    use milkrun_repository::pack::Place;
    use milkrun_repository::store::Key;
    use milkrun_repository::store::grant::GetGrant;

    use super::*;
    use crate::rpc::GrantedSlot;

    /// A page with ranges that each write ten bytes at one of these offsets.
    fn page(at: &[u64], until: Option<u64>, grouped: bool) -> Page {
        let pack = PackId::from_bytes([1; 16]);
        let grant = GetGrant::File { root: PathBuf::from("/r"), key: Key::pack(&pack) };
        let place = Place { pack, slot: 0, offset: 0, sealed_len: 26, plain_len: 10, codec: Codec::Raw };
        let range = |&volume_offset: &u64| {
            let writes = vec![Write { volume_offset, chunk_offset: 0, len: 10 }];
            let slot = GrantedSlot { id: ChunkId::from_bytes([2; 32]), place, key: [3; 32].into(), writes };
            GrantedRange { pack, grant: grant.clone(), start: 0, end: 26, slots: vec![slot] }
        };
        Page { holes: Vec::new(), ranges: at.iter().map(range).collect(), until, grouped }
    }

    fn offsets_of(groups: &mut Groups, page: Page) -> Result<Vec<Vec<u64>>, &'static str> {
        let offsets = |group: &Vec<GrantedRange>| group.iter().flat_map(writes).map(|w| w.volume_offset).collect();
        match groups.of(page) {
            Ok(whole) => Ok(whole.iter().map(offsets).collect()),
            Err(CallError::Nonsense(what)) => Err(what),
            Err(e) => panic!("{e}"),
        }
    }

    #[test]
    fn a_group_ends_where_its_page_says_so() {
        let mut groups = Groups::default();
        assert_eq!(offsets_of(&mut groups, page(&[50, 10], None, true)), Ok(vec![]));
        assert!(groups.end(0).is_err(), "a group without its end");
        assert_eq!(offsets_of(&mut groups, page(&[30], Some(100), true)), Ok(vec![vec![50, 10, 30]]));
        // A hole; then the same end once more.
        assert_eq!(offsets_of(&mut groups, page(&[], Some(200), true)), Ok(vec![]));
        assert_eq!(offsets_of(&mut groups, page(&[], Some(200), true)), Ok(vec![]));
        assert!(groups.end(200).is_ok());
        assert!(matches!(groups.end(300), Err(RestoreError::Incomplete { covered: 200, len: 300 })));
        assert_eq!(offsets_of(&mut groups, page(&[210], None, true)), Ok(vec![]));
        assert!(groups.end(200).is_err(), "a group without its end");
    }

    #[test]
    fn an_empty_plan_covers_an_empty_volume() {
        let mut groups = Groups::default();
        assert!(groups.end(0).is_ok());
        assert_eq!(offsets_of(&mut groups, page(&[], None, true)), Ok(vec![]));
        assert!(groups.end(0).is_ok());
        assert!(groups.end(1).is_err());
    }

    #[test]
    fn groups_that_make_no_sense_are_refused() {
        let elsewhere = Err("a group that writes elsewhere");
        for (at, until) in [(&[91][..], 100), (&[u64::MAX], 100), (&[0, 0], 15)] {
            assert_eq!(offsets_of(&mut Groups::default(), page(at, Some(until), true)), elsewhere, "{at:?}");
        }
        let mut groups = Groups::default();
        offsets_of(&mut groups, page(&[0], Some(100), true)).unwrap();
        assert_eq!(offsets_of(&mut groups, page(&[], Some(99), true)), elsewhere, "backwards");
        let mut groups = Groups::default();
        offsets_of(&mut groups, page(&[0], Some(100), true)).unwrap();
        assert_eq!(offsets_of(&mut groups, page(&[99], Some(200), true)), elsewhere, "before it");
        let mut groups = Groups::default();
        offsets_of(&mut groups, page(&[0], Some(100), true)).unwrap();
        assert_eq!(offsets_of(&mut groups, page(&[100], Some(200), false)), Err("a range of no group"));
        let mut large = page(&[0], None, true);
        large.ranges[0].slots[0].writes = vec![Write { volume_offset: 0, chunk_offset: 0, len: 4 << 20 }; 17];
        assert_eq!(offsets_of(&mut Groups::default(), large), Err("more than a group has"));
    }

    #[test]
    fn each_range_of_a_plan_in_order_is_a_group() {
        let mut groups = Groups::default();
        assert_eq!(offsets_of(&mut groups, page(&[10, 20], None, false)), Ok(vec![vec![10], vec![20]]));
        assert!(groups.end(30).is_err(), "it broke off");
        assert_eq!(offsets_of(&mut groups, page(&[20], Some(100), false)), Ok(vec![vec![20]]));
        assert!(groups.end(1 << 40).is_ok(), "such a plan says nothing of a hole at the end");
        assert!(Groups::default().end(1 << 40).is_ok());
    }
}
