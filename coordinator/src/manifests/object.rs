//! Parsed objects, and their form as lines of JSON.

use serde_json::Value;

use super::Identity;

/// A parsed object.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// The fields that identify it.
    pub identity: Identity,
    /// The whole object.
    pub value: Value,
}

/// Why a value is not a Kubernetes object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAnObject {
    /// It is not a mapping.
    #[error("is not an object")]
    Shape,
    /// A field that each object has is missing.
    #[error("has no {0} (a non-empty text)")]
    Field(&'static str),
    /// A field that identifies the object is a number, a truth value or the like.
    #[error("has a {0} that is no text: it reads as {1} (a text like that needs quotes)")]
    NotText(&'static str, String),
}

impl Object {
    /// Reads the fields that identify an object.
    ///
    /// # Errors
    /// [`NotAnObject`] without apiVersion, kind or metadata.name, or if one of them or the namespace is not text.
    pub fn new(value: Value) -> Result<Self, NotAnObject> {
        let map = value.as_object().ok_or(NotAnObject::Shape)?;
        let metadata = map.get("metadata").and_then(Value::as_object);
        let api_version = required(map.get("apiVersion"), "apiVersion")?;
        let kind = required(map.get("kind"), "kind")?.to_owned();
        let name = required(metadata.and_then(|m| m.get("name")), "metadata.name")?.to_owned();
        // An empty namespace and `null` mean none, as in Kubernetes.
        let namespace = text(metadata.and_then(|m| m.get("namespace")), "metadata.namespace")?.to_owned();
        let group = api_version.split_once('/').map_or("", |(group, _)| group).to_owned();
        Ok(Self { identity: Identity { group, kind, namespace, name }, value })
    }
}

fn required<'v>(value: Option<&'v Value>, field: &'static str) -> Result<&'v str, NotAnObject> {
    Some(text(value, field)?).filter(|s| !s.is_empty()).ok_or(NotAnObject::Field(field))
}

fn text<'v>(value: Option<&'v Value>, field: &'static str) -> Result<&'v str, NotAnObject> {
    match value {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(s)) => Ok(s),
        Some(Value::Array(_)) => Err(NotAnObject::NotText(field, "a list".into())),
        Some(Value::Object(_)) => Err(NotAnObject::NotText(field, "a mapping".into())),
        Some(other) => Err(NotAnObject::NotText(field, other.to_string())),
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

/// An object of a restore point. Points of earlier releases may have a namespace that is not text: such objects must still be
/// restored.
fn stored(value: Value) -> Option<Object> {
    let odd = value.pointer("/metadata/namespace").filter(|n| !n.is_string() && !n.is_null()).cloned();
    let Some(namespace) = odd else { return Object::new(value).ok() };
    let mut named = value.clone();
    *named.pointer_mut("/metadata/namespace")? = Value::String(namespace.to_string());
    Some(Object { value, ..Object::new(named).ok()? })
}

/// Objects from JSON lines.
///
/// # Errors
/// The number of the first line that is not an object, from 1.
pub fn decode(bytes: &[u8]) -> Result<Vec<Object>, usize> {
    let lines = bytes.split(|&b| b == b'\n').filter(|l| !l.is_empty());
    lines.enumerate().map(|(i, line)| serde_json::from_slice(line).ok().and_then(stored).ok_or(i + 1)).collect()
}
