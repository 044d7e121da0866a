//! Listings, page by page. If a page fails, only that page is requested again.
//!
//! A listing is treated as a set. Some stores repeat an entry at the border of two pages. Some stop one entry too early if an
//! entry at the border is deleted meanwhile. Some leave out entries between folders with similar names.

use std::collections::HashSet;

use super::{Failure, Key, Listed, Operation, Store, Trouble};

/// Where a page ends and the next one begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// A key, or whatever the store gives instead.
    pub key: String,
    /// A version of it.
    pub version: Option<String>,
}

/// A part of a listing.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// Its entries.
    pub items: Vec<T>,
    /// Where the next page starts; `None`: this was the last.
    pub next: Option<Mark>,
}

impl<T> Page<T> {
    /// The only page of a listing.
    pub fn whole(items: Vec<T>) -> Self {
        Self { items, next: None }
    }
}

/// Checks that a listing moves on: one that does not would never end.
fn goes_on(prefix: &str, before: Option<&Mark>, next: &Mark) -> Result<(), Failure> {
    if before != Some(next) {
        return Ok(());
    }
    let why = "a page of the listing goes on where it began";
    Err(Failure::new(Operation::List, prefix, Trouble::Garbled).because(why))
}

pub(super) async fn versions<S: Store + ?Sized>(store: &S, prefix: &str) -> Result<Vec<Listed>, Failure> {
    let (mut out, mut from) = (Vec::new(), None);
    loop {
        let page = store.versions_page(prefix, from.as_ref()).await?;
        out.extend(page.items);
        let Some(next) = page.next else { return Ok(in_order(out)) };
        goes_on(prefix, from.as_ref(), &next)?;
        from = Some(next);
    }
}

async fn keys(store: &dyn Store, prefix: &str) -> Result<HashSet<Key>, Failure> {
    let (mut out, mut from) = (HashSet::new(), None);
    loop {
        let page = store.keys_page(prefix, from.as_ref()).await?;
        out.extend(page.items);
        let Some(next) = page.next else { return Ok(out) };
        goes_on(prefix, from.as_ref(), &next)?;
        from = Some(next);
    }
}

/// Like [`Store::versions`], but compared with the plain listing of keys, so that an entry missing from one of the two is still
/// found. Use it where an object that is not listed counts as missing.
///
/// # Errors
/// As [`Store::versions`].
pub async fn versions_checked(store: &dyn Store, prefix: &str) -> Result<Vec<Listed>, Failure> {
    let mut listed = store.versions(prefix).await?;
    let mut left_out = keys(store, prefix).await?;
    for l in &listed {
        left_out.remove(&l.key);
    }
    if left_out.is_empty() {
        return Ok(listed);
    }
    tracing::warn!(
        prefix,
        keys = left_out.len(),
        "the store left keys out of its listing of versions; each is asked for"
    );
    for key in left_out {
        listed.extend(store.versions(key.as_str()).await?.into_iter().filter(|l| l.key == key));
    }
    Ok(in_order(listed))
}

/// Sorts by key; within a key the latest comes first, then the order of the store's listing. Dates are not used: some stores
/// change them when a lock is extended.
fn in_order(mut listed: Vec<Listed>) -> Vec<Listed> {
    let mut seen = HashSet::new();
    listed.retain(|l| seen.insert((l.key.clone(), l.version.clone(), l.delete_marker)));
    listed.sort_by(|a, b| a.key.cmp(&b.key).then(b.latest.cmp(&a.latest)));
    listed
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::Moment;
    use crate::store::Version;
    use crate::store::faulty::{Fault, Faulty};
    use crate::store::memory::Memory;
    use crate::store::retry::{Patience, Retrying};

    /// A store that gives a version a new date when its lock is extended, and repeats an entry at the border of a page.
    #[test]
    fn listings_are_sets_in_the_order_of_the_store() {
        let listed = |key: &str, version: &str, modified: i64, latest: bool, delete_marker: bool| Listed {
            key: Key::new(key),
            version: Version(version.into()),
            length: 1,
            modified: Moment::from_millis(modified),
            delete_marker,
            latest,
        };
        let planted = listed("points/a", "planted", 5, false, false);
        let authentic = listed("points/a", "authentic", 9, false, false);
        let marker = listed("points/a", "marker", 7, true, true);
        let other = listed("points/0", "x", 1, true, false);
        let page = vec![planted.clone(), authentic.clone(), authentic.clone(), other.clone(), marker.clone()];
        assert_eq!(in_order(page), [other, marker, planted, authentic]);
    }

    fn filled(objects: usize) -> Memory {
        let memory = Memory::new().paged(2);
        (0..objects).for_each(|n| memory.overwrite(&Key::new(format!("points/{n}")), "x", None));
        memory
    }

    /// Each page has its own retries: a page that fails is requested again, and the pages before it are not.
    #[tokio::test]
    async fn a_listing_goes_on_where_it_stopped() {
        let memory = Arc::new(filled(9));
        let shared: Arc<dyn Store> = memory.clone();
        // There are more failures in total than one call may have retries.
        let faulty =
            Faulty::new(shared, Arc::new(|n, _, _| (n % 4 != 0).then_some(Fault::Before(Trouble::Unreachable))));
        let store = Retrying::new(faulty, Patience::TEST);
        assert_eq!(store.versions("points/").await.unwrap().len(), 9);
        assert_eq!(memory.pages_listed(), 5, "each page once");
    }

    #[tokio::test]
    async fn what_one_listing_leaves_out_the_other_has() {
        let memory = filled(9);
        memory.leave_out(&Key::new("points/4"));
        assert_eq!(memory.versions("points/").await.unwrap().len(), 8);
        let keys: Vec<String> =
            versions_checked(&memory, "points/").await.unwrap().iter().map(|l| l.key.to_string()).collect();
        assert_eq!(keys, (0..9).map(|n| format!("points/{n}")).collect::<Vec<_>>());
    }
}
