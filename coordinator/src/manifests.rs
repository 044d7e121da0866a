//! An application's manifests: Kubernetes objects from YAML and JSON, as one stream of JSON lines, and back as files.
//!
//! They are parsed, not copied: what can't be understood is refused with file and line before a byte is moved. A stored
//! object is canonical JSON (keys sorted), so that equal objects have equal bytes.

mod parse;

pub use parse::{LoadError, Source, load, load_paths};

use serde_json::Value;

/// What names an object within a restore point.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// `apps`, or nothing for the core group.
    pub group: String,
    /// `Deployment`
    pub kind: String,
    /// Its namespace, or nothing.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.kind)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        f.write_str(" ")?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

impl Identity {
    /// The file that it is restored to: readable, and one of its own for each object.
    pub fn file_name(&self) -> String {
        let part = |s: &str| -> String {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            s.chars().map(|c| if plain(c) { c } else { '_' }).take(60).collect()
        };
        let parts = [part(&self.kind), part(&self.group), part(&self.namespace), part(&self.name)];
        let readable: Vec<String> = parts.into_iter().filter(|p| !p.is_empty()).collect();
        let readable = readable.join("_").to_lowercase();
        // What was replaced or cut, or differs in case alone, must not collide.
        let exact = self.file_parts();
        if readable == exact {
            format!("{readable}.json")
        } else {
            format!("{readable}-{:08x}.json", fnv(&exact, self))
        }
    }

    fn file_parts(&self) -> String {
        let parts = [&self.kind, &self.group, &self.namespace, &self.name];
        let parts: Vec<String> = parts.into_iter().filter(|p| !p.is_empty()).map(|p| p.to_lowercase()).collect();
        let lower = parts.join("_");
        let clean = self.name == self.name.to_lowercase() && self.namespace == self.namespace.to_lowercase();
        // The kind is always in camel case; only names decide.
        if clean { lower } else { format!("{lower}?") }
    }
}

/// FNV-1a over the identity's fields: names need not be secret, only apart.
fn fnv(exact: &str, id: &Identity) -> u32 {
    let mut hash = 0x811c_9dc5_u32;
    for field in [exact, &id.group, &id.kind, &id.namespace, &id.name] {
        for byte in field.bytes().chain([0]) {
            hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        }
    }
    hash
}

/// A parsed object.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// What names it.
    pub identity: Identity,
    /// All of it.
    pub value: Value,
}

/// Why a value is no Kubernetes object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAnObject {
    /// Not a mapping.
    #[error("is not an object")]
    Shape,
    /// A field that each object has.
    #[error("has no {0} (a non-empty text)")]
    Field(&'static str),
}

impl Object {
    /// Reads what names an object.
    ///
    /// # Errors
    /// [`NotAnObject`] without apiVersion, kind or metadata.name.
    pub fn new(value: Value) -> Result<Self, NotAnObject> {
        let map = value.as_object().ok_or(NotAnObject::Shape)?;
        let text = |v: Option<&Value>, field| match v.and_then(Value::as_str) {
            Some(s) if !s.is_empty() => Ok(s.to_owned()),
            _ => Err(NotAnObject::Field(field)),
        };
        let api_version = text(map.get("apiVersion"), "apiVersion")?;
        let kind = text(map.get("kind"), "kind")?;
        let metadata = map.get("metadata").and_then(Value::as_object);
        let name = text(metadata.and_then(|m| m.get("name")), "metadata.name")?;
        let namespace = metadata.and_then(|m| m.get("namespace")).and_then(Value::as_str).unwrap_or_default();
        let group = api_version.split_once('/').map_or("", |(group, _)| group).to_owned();
        let identity = Identity { group, kind, namespace: namespace.to_owned(), name };
        Ok(Self { identity, value })
    }
}

/// Objects as JSON lines, sorted by identity.
pub fn encode(objects: &mut [Object]) -> Vec<u8> {
    objects.sort_by(|a, b| a.identity.cmp(&b.identity));
    let mut out = Vec::new();
    for object in objects.iter() {
        out.extend_from_slice(object.value.to_string().as_bytes());
        out.push(b'\n');
    }
    out
}

/// Objects from JSON lines.
///
/// # Errors
/// The number of the first line that is none, from 1.
pub fn decode(bytes: &[u8]) -> Result<Vec<Object>, usize> {
    let lines = bytes.split(|&b| b == b'\n').filter(|l| !l.is_empty());
    lines
        .enumerate()
        .map(|(i, line)| serde_json::from_slice(line).ok().and_then(|v| Object::new(v).ok()).ok_or(i + 1))
        .collect()
}

#[cfg(test)]
mod tests;
