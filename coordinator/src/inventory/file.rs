//! An inventory in a YAML file. It is read again whenever it has changed, so that it can be edited at any time.
//!
//! ```yaml
//! store:                            # all nodes together
//!   volumes: 64                     # at once
//!   bytes_in_flight: 1GiB           # of packs on their way
//!   zone: Europe/Berlin             # for the times below; UTC if left out
//!   bandwidth:                      # of packs per second; outside of these hours as fast as it goes
//!     - { from: 08:00, to: 18:00, rate: 50MiB }
//! repositories:                     # of a coordinator that has several: limits of their own, in place of those of store
//!   dr: { bytes_in_flight: 256MiB }
//! nodes:
//!   node-a: { volumes: 4 }          # at once
//!   node-b: {}
//! applications:
//!   shop:
//!     rpo: 4h
//!     volumes:
//!       data:                       # where it can be read; more than one place for storage that several nodes reach
//!         size: 100GiB              # optional: bounds what an agent may store for it
//!         changed_from: /run/changes/shop-data   # optional: a list on the node of what changed since the parent
//!         skip_free: true             # optional: leave out what a clean ext4 says is free
//!         at: { node-a: /dev/vg/shop-data, node-b: /dev/mapper/shop-data }
//!       wal: { at: { node-a: /dev/vg/shop-wal } }
//!       dump: { stream: true, at: { node-b: /run/shop/dump.fifo } }
//!     targets:                      # where restores may write, besides the volumes' own places
//!       - { node: node-c, path: /dev/vg/shop-new }
//! ```

mod document;

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use milkrun_repository::id::AppName;

use super::{Application, Inventory, InventoryError, Loads, NodeLimits};
use document::{Checked, parse};

/// An inventory file.
#[derive(Clone)]
pub struct InventoryFile {
    path: PathBuf,
    /// The content when it was last read.
    last: Arc<Mutex<Option<Seen>>>,
}

/// How a changed file is recognized: size, time of change, inode.
type Stamp = (u64, i64, i64, u64);
type Seen = (Stamp, Arc<Checked>);

impl InventoryFile {
    /// Uses this file. It is read and checked at once, and again on each request if it has changed.
    ///
    /// # Errors
    /// [`InventoryError`] when it can't be read or makes no sense.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, InventoryError> {
        let file = Self { path: path.into(), last: Arc::default() };
        file.load()?;
        Ok(file)
    }

    fn load(&self) -> Result<Arc<Checked>, InventoryError> {
        let fail = |source| InventoryError::Read { path: self.path.clone(), source };
        let meta = std::fs::metadata(&self.path).map_err(fail)?;
        let stamp = (meta.len(), meta.ctime(), meta.ctime_nsec(), meta.ino());
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((seen, checked)) = &*last
            && *seen == stamp
        {
            return Ok(checked.clone());
        }
        let text = std::fs::read_to_string(&self.path).map_err(fail)?;
        let checked = parse(&text).map_err(|what| InventoryError::Nonsense { path: self.path.clone(), what })?;
        let checked = Arc::new(checked);
        *last = Some((stamp, checked.clone()));
        Ok(checked)
    }
}

impl Inventory for InventoryFile {
    fn trusts_orders(&self) -> bool {
        false
    }

    fn node(&self, node: &str) -> Result<Option<NodeLimits>, InventoryError> {
        Ok(self.load()?.nodes.get(node).copied())
    }

    fn nodes(&self) -> Result<Vec<String>, InventoryError> {
        Ok(self.load()?.nodes.keys().cloned().collect())
    }

    fn loads(&self) -> Result<Loads, InventoryError> {
        let checked = self.load()?;
        let (store, repositories) = (checked.store.clone(), checked.repositories.clone());
        Ok(Loads { store, repositories, nodes: Some(checked.nodes.clone()) })
    }

    fn application(&self, name: &AppName) -> Result<Application, InventoryError> {
        self.load()?.applications.get(name).cloned().ok_or_else(|| InventoryError::NoApplication(name.clone()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::inventory::{Bandwidth, Reach};

    const SAMPLE: &str = "
store: { volumes: 8, bytes_in_flight: 1GiB, bandwidth: [ { from: 08:00, to: 18:00, rate: 50MiB } ] }
nodes:
  node-a: { volumes: 2 }
  node-b:
applications:
  shop:
    rpo: 4h
    volumes:
      data: { size: 1GiB, at: { node-a: /dev/a, node-b: /dev/b } }
      dump: { stream: true, at: { node-b: /run/dump } }
    targets:
      - { node: node-b, path: /dev/new }
";

    #[test]
    fn a_file_says_what_there_is() {
        let c = parse(SAMPLE).unwrap();
        assert_eq!((c.store.volumes, c.nodes["node-a"].volumes, c.nodes["node-b"].volumes), (8, 2, 4));
        assert_eq!(c.store.bytes_in_flight, Some(1 << 30));
        assert_ne!(c.store.bandwidth, Bandwidth::default());
        let shop = &c.applications[&"shop".parse().unwrap()];
        assert_eq!(shop.rpo, Some(Duration::from_secs(4 * 3600)));
        let [data, dump] = &shop.sources[..] else { panic!("{shop:?}") };
        assert_eq!((data.reach.len(), data.size, data.stream), (2, Some(1 << 30), false));
        assert!(dump.stream && shop.targets == [Reach { node: Some("node-b".into()), path: "/dev/new".into() }]);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (from, to, why) in [
            ("node-a: /dev/a", "node-x: /dev/a", "node-x"),
            ("volumes: 2", "volumes: 0", "at least 1"),
            ("volumes: 2", "volume: 2", "unknown field"),
            ("rpo: 4h", "rpo: soon", "rpo"),
            ("08:00", "8 o'clock", "no time"),
            ("in_flight: 1GiB", "in_flight: much", "bytes_in_flight"),
            ("1GiB", "big", "size"),
            ("at: { node-b: /run/dump }", "at: {}", "nowhere"),
            ("node-b:\n", "Node_B:\n", "no node name"),
            ("/run/dump", "'-'", "no path"),
            ("  shop:\n", "  shop: { volumes: { a: { at: { node-a: /dev/z } } } }\n  shop:\n", "\"shop\" stands twice"),
            ("      dump:", "      data:", "\"data\" stands twice"),
            ("node-b: /dev/b }", "node-a: /dev/b }", "\"node-a\" stands twice"),
            ("  node-b:\n", "  node-a:\n", "\"node-a\" stands twice"),
            ("rpo: 4h", "rpo: 4h\n    rpo: 5h", "duplicate field"),
            ("/run/dump", "/dev/./b/", "data and dump of shop are the same"),
            ("/run/dump", "run/dump", "does not begin with a slash"),
            ("/dev/new", "new", "does not begin with a slash"),
            ("size: 1GiB,", "changed_from: list,", "does not begin with a slash"),
            ("applications:\n", "applications:\n  empty: { rpo: 4h }\n", "has no volumes"),
            ("stream: true", "stream: true, skip_free: true", "no file system"),
            ("size: 1GiB", "size: 1GiB, skip_free: true, changed_from: /list", "exclude each other"),
        ] {
            let text = SAMPLE.replacen(from, to, 1);
            assert_ne!(text, SAMPLE);
            let e = parse(&text).err().unwrap_or_default();
            assert!(e.contains(why), "{to}: {e}");
        }
    }
}
