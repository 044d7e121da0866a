//! The document in an inventory file: its form, and the checks of what it says.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;

use milkrun_identity::NodeName;
use milkrun_repository::id::AppName;
use milkrun_repository::units;
use serde::{Deserialize, Deserializer, de};

use crate::inventory::{Application, Bandwidth, NodeLimits, Reach, SourceSpec, StoreLimits, bandwidth};

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
pub(super) struct Checked {
    pub(super) store: StoreLimits,
    pub(super) repositories: BTreeMap<String, StoreLimits>,
    pub(super) nodes: BTreeMap<String, NodeLimits>,
    pub(super) applications: BTreeMap<AppName, Application>,
}

/// Refuses relative paths: their meaning depends on where an agent was started.
fn absolute(path: &str, what: &str) -> Result<(), String> {
    if path.starts_with('/') { Ok(()) } else { Err(format!("{what}: {path:?} does not begin with a slash")) }
}

/// Parses a document and checks it. Returns what is wrong with it.
pub(super) fn parse(text: &str) -> Result<Checked, String> {
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
