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

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::marker::PhantomData;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use milkrun_identity::NodeName;
use milkrun_repository::id::AppName;
use milkrun_repository::units;
use serde::{Deserialize, Deserializer, de};

use super::{
    Application, Bandwidth, Inventory, InventoryError, Loads, NodeLimits, Reach, SourceSpec, StoreLimits, bandwidth,
};

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

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Document {
    store: Store,
    repositories: Unique<Store>,
    nodes: Unique<Option<Node>>,
    applications: Unique<App>,
}

/// A mapping in which no key occurs twice. Otherwise, of two volumes with one name, the last would win, and the other would be in
/// no restore point.
#[derive(Debug)]
struct Unique<V>(BTreeMap<String, V>);

impl<V> Default for Unique<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> de::Visitor<'de> for Visitor<V> {
            type Value = BTreeMap<String, V>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut out = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    if out.contains_key(&key) {
                        return Err(de::Error::custom(format!("{key:?} stands twice")));
                    }
                    out.insert(key, map.next_value()?);
                }
                Ok(out)
            }
        }
        d.deserialize_map(Visitor(PhantomData)).map(Self)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Store {
    volumes: Option<usize>,
    bytes_in_flight: Option<String>,
    zone: Option<String>,
    bandwidth: Vec<bandwidth::Written>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Node {
    volumes: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct App {
    rpo: Option<String>,
    volumes: Unique<Volume>,
    targets: Vec<Target>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Volume {
    at: Unique<String>,
    #[serde(default)]
    stream: bool,
    size: Option<String>,
    changed_from: Option<String>,
    #[serde(default)]
    skip_free: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Target {
    node: String,
    path: String,
}

/// A document that was parsed and checked.
struct Checked {
    store: StoreLimits,
    repositories: BTreeMap<String, StoreLimits>,
    nodes: BTreeMap<String, NodeLimits>,
    applications: BTreeMap<AppName, Application>,
}

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

/// Refuses relative paths: their meaning depends on where an agent was started.
fn absolute(path: &str, what: &str) -> Result<(), String> {
    if path.starts_with('/') { Ok(()) } else { Err(format!("{what}: {path:?} does not begin with a slash")) }
}

fn parse(text: &str) -> Result<Checked, String> {
    let document: Document = serde_yaml_ng::from_str(text).map_err(|e| e.to_string())?;
    let at_least_one = |n: Option<usize>, what: &str, otherwise: usize| match n {
        Some(0) => Err(format!("{what}: volumes must be at least 1")),
        n => Ok(n.unwrap_or(otherwise)),
    };
    let mut nodes = BTreeMap::new();
    for (name, node) in document.nodes.0 {
        name.parse::<NodeName>().map_err(|e| e.to_string())?;
        let volumes = node.unwrap_or_default().volumes;
        let volumes = at_least_one(volumes, &format!("node {name}"), NodeLimits::default().volumes)?;
        nodes.insert(name, NodeLimits { volumes });
    }
    let mut applications = BTreeMap::new();
    for (name, app) in document.applications.0 {
        let app_name: AppName = name.parse().map_err(|e| format!("{e}"))?;
        applications.insert(app_name, application(&name, app, &nodes)?);
    }
    let limits = |what: &str, written: Store| {
        let Store { volumes, bytes_in_flight, zone, bandwidth } = written;
        let bytes_in_flight = bytes_in_flight.as_deref().map(units::size).transpose();
        Ok::<_, String>(StoreLimits {
            volumes: at_least_one(volumes, what, StoreLimits::default().volumes)?,
            bytes_in_flight: bytes_in_flight.map_err(|e| format!("{what}: bytes_in_flight: {e}"))?,
            bandwidth: Bandwidth::new(zone.as_deref(), bandwidth).map_err(|e| format!("{what}: {e}"))?,
        })
    };
    let store = limits("store", document.store)?;
    let mut repositories = BTreeMap::new();
    for (name, written) in document.repositories.0 {
        let what = format!("repositories.{name}");
        if written.volumes.is_some() {
            return Err(format!("{what}: volumes are counted over all repositories: write volumes under store"));
        }
        repositories.insert(name, limits(&what, written)?);
    }
    Ok(Checked { store, repositories, nodes, applications })
}

/// Refuses a node that is not listed.
fn known(nodes: &BTreeMap<String, NodeLimits>, node: &str, what: String) -> Result<(), String> {
    match nodes.contains_key(node) {
        true => Ok(()),
        false => Err(format!("{what} names the node {node:?}, which is not listed under nodes")),
    }
}

/// Checks an application.
fn application(name: &str, app: App, nodes: &BTreeMap<String, NodeLimits>) -> Result<Application, String> {
    let mut sources = Vec::new();
    if app.volumes.0.is_empty() {
        return Err(format!("the application {name} has no volumes: there is nothing to back up"));
    }
    // The key is node and path; paths are compared as the system reads them.
    let mut places: HashMap<(String, PathBuf), String> = HashMap::new();
    for (volume, v) in app.volumes.0 {
        sources.push(source(name, &volume, v, nodes, &mut places)?);
    }
    let mut targets = Vec::new();
    for t in app.targets {
        known(nodes, &t.node, format!("a target of {name}"))?;
        absolute(&t.path, &format!("a target of {name}"))?;
        targets.push(Reach { node: Some(t.node), path: t.path });
    }
    let rpo = app.rpo.as_deref().map(units::duration).transpose().map_err(|e| format!("{name}: rpo: {e}"))?;
    Ok(Application { sources, targets, rpo })
}

/// Checks a volume of an application. `places` are those of its other volumes.
fn source(
    name: &str,
    volume: &str,
    v: Volume,
    nodes: &BTreeMap<String, NodeLimits>,
    places: &mut HashMap<(String, PathBuf), String>,
) -> Result<SourceSpec, String> {
    let what = format!("volume {volume} of {name}");
    if v.at.0.is_empty() {
        return Err(format!("{what} is nowhere: name at least one node under at"));
    }
    let mut reach = Vec::new();
    for (node, path) in v.at.0 {
        known(nodes, &node, what.clone())?;
        if path.is_empty() || path == "-" {
            return Err(format!("{what} has no path on {node}"));
        }
        absolute(&path, &what)?;
        let place = (node.clone(), PathBuf::from(&path));
        if let Some(other) = places.insert(place, volume.to_owned()) {
            return Err(format!("volumes {other} and {volume} of {name} are the same: {path} on {node}"));
        }
        reach.push(Reach { node: Some(node), path });
    }
    let size = v.size.as_deref().map(units::size).transpose().map_err(|e| format!("{what}: size: {e}"))?;
    let source_name = volume.parse().map_err(|e| format!("{what}: {e}"))?;
    let changed_from = v.changed_from;
    if let Some(list) = &changed_from {
        absolute(list, &format!("{what}: changed_from"))?;
    }
    if v.stream && changed_from.is_some() {
        return Err(format!("applications.{name}.volumes.{source_name}: a stream has no list of changes"));
    }
    if v.stream && v.skip_free {
        return Err(format!("applications.{name}.volumes.{source_name}: a stream has no file system"));
    }
    let skip_free = v.skip_free;
    if skip_free && changed_from.is_some() {
        let what = "changed_from and skip_free exclude each other: what is free need not be on a list of changes";
        return Err(format!("applications.{name}.volumes.{source_name}: {what}"));
    }
    Ok(SourceSpec {
        name: source_name,
        stream: v.stream,
        size,
        reach,
        changed_from,
        skip_free,
        moment: None,
        claim: String::new(),
    })
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
