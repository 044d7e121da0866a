//! The ranges of a stream's plan, put into groups: groups are written one after the other, what a group writes is put in order first.

use super::RestoreError;
use crate::rpc::{GrantedRange, Page};

/// The group that comes now, and how far those before it go.
#[derive(Debug, Default)]
pub(super) struct Groups {
    open: Vec<GrantedRange>,
    /// All before it was told; of a coordinator that tells no groups, nothing.
    told: Option<u64>,
}

impl Groups {
    /// The groups that are complete with this page. Coordinators of the last release tell all in order: each range is a group.
    pub(super) fn of(&mut self, page: Page) -> Vec<Vec<GrantedRange>> {
        if !page.grouped {
            return page.ranges.into_iter().map(|range| vec![range]).collect();
        }
        self.open.extend(page.ranges);
        if page.until.is_none() {
            return Vec::new();
        }
        self.told = page.until;
        let whole = std::mem::take(&mut self.open);
        if whole.is_empty() { Vec::new() } else { vec![whole] }
    }

    /// That was all.
    ///
    /// # Errors
    /// If it is not all of the volume: the rest would look like a hole.
    pub(super) fn end(&self, len: u64) -> Result<(), RestoreError> {
        let covered = self.told.unwrap_or(0);
        let whole = self.open.is_empty() && self.told.is_none_or(|told| told == len);
        if whole { Ok(()) } else { Err(RestoreError::Incomplete { covered, len }) }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use milkrun_repository::id::PackId;
    use milkrun_repository::store::Key;
    use milkrun_repository::store::grant::GetGrant;

    use super::*;

    fn page(starts: &[u64], until: Option<u64>, grouped: bool) -> Page {
        let pack = PackId::from_bytes([1; 16]);
        let grant = GetGrant::File { root: PathBuf::from("/r"), key: Key::pack(&pack) };
        let range =
            |&start: &u64| GrantedRange { pack, grant: grant.clone(), start, end: start + 1, slots: Vec::new() };
        Page { holes: Vec::new(), ranges: starts.iter().map(range).collect(), until, grouped }
    }

    fn told(groups: &mut Groups, page: Page) -> Vec<Vec<u64>> {
        groups.of(page).iter().map(|group| group.iter().map(|range| range.start).collect()).collect()
    }

    #[test]
    fn a_group_ends_where_its_page_says_so() {
        let mut groups = Groups::default();
        assert!(told(&mut groups, page(&[5, 1], None, true)).is_empty());
        assert!(groups.end(0).is_err(), "a group without its end");
        assert_eq!(told(&mut groups, page(&[3], Some(100), true)), [[5, 1, 3]]);
        // A hole.
        assert!(told(&mut groups, page(&[], Some(200), true)).is_empty());
        assert!(groups.end(200).is_ok());
        assert!(matches!(groups.end(300), Err(RestoreError::Incomplete { covered: 200, len: 300 })));
        assert!(told(&mut groups, page(&[7], None, true)).is_empty());
        assert!(groups.end(200).is_err(), "a group without its end");
    }

    #[test]
    fn each_range_of_a_plan_in_order_is_a_group() {
        let mut groups = Groups::default();
        assert_eq!(told(&mut groups, page(&[1, 2], Some(100), false)), [[1], [2]]);
        assert!(groups.end(1 << 40).is_ok(), "such a plan says nothing of holes");
    }
}
