//! Manifests from files and folders.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::documents;
use super::problem::Problem;
use super::{Identity, NotAnObject, Object, text};

/// Files with these endings are read from folders.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];

/// Where a document came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The file.
    pub file: PathBuf,
    /// The line at which the document begins, from 1.
    pub line: usize,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// Why manifests were refused.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file or folder can't be read.
    #[error("can't read {path:?}")]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is no text, or neither YAML nor JSON.
    #[error("{at}: {reason}")]
    Syntax {
        /// File and line.
        at: Source,
        /// The parser's message.
        reason: String,
    },
    /// The document parses, but is no Kubernetes object.
    #[error("{at}: the document {reason}")]
    NotAnObject {
        /// File and line.
        at: Source,
        /// Why.
        reason: NotAnObject,
    },
    /// Two objects have the same identity.
    #[error("{second}: {identity} is at {first} already")]
    Twice {
        /// Which object.
        identity: String,
        /// The first.
        first: Source,
        /// The second.
        second: Source,
    },
    /// A folder has no manifest.
    #[error("there is no .yaml, .yml or .json file in {0:?}")]
    Nothing(PathBuf),
}

/// Loads files and folders (the files in a folder and below it, sorted).
///
/// A folder's entries that begin with `..` are not read. The kubelet uses such names for the data behind a mounted ConfigMap or
/// Secret, and links each file of it beside them.
///
/// # Errors
/// [`LoadError`]: the first error that is found.
pub fn load_paths(paths: &[PathBuf]) -> Result<Vec<Object>, LoadError> {
    let mut contents = Vec::new();
    for path in paths {
        let mut files = Vec::new();
        collect(path, true, &mut files)?;
        if files.is_empty() {
            return Err(LoadError::Nothing(path.clone()));
        }
        files.sort();
        for file in files {
            let bytes = std::fs::read(&file).map_err(|source| LoadError::Read { path: file.clone(), source })?;
            contents.push((file, bytes));
        }
    }
    load(&contents)
}

fn collect(path: &Path, named: bool, out: &mut Vec<PathBuf>) -> Result<(), LoadError> {
    let fail = |source| LoadError::Read { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(fail)?.is_dir() {
        for entry in std::fs::read_dir(path).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            if entry.file_name().as_encoded_bytes().starts_with(b"..") {
                continue;
            }
            // A link to a folder could lead in circles.
            if !(entry.file_type().map_err(fail)?.is_symlink() && entry.path().is_dir()) {
                collect(&entry.path(), false, out)?;
            }
        }
    } else if named || path.extension().and_then(|e| e.to_str()).is_some_and(|e| ENDINGS.contains(&e)) {
        out.push(path.to_owned());
    }
    Ok(())
}

/// Parses files that were already read.
///
/// # Errors
/// [`LoadError`]: the first error that is found.
pub fn load<B: AsRef<[u8]>>(files: &[(PathBuf, B)]) -> Result<Vec<Object>, LoadError> {
    let mut objects = Vec::new();
    let mut seen: HashMap<Identity, Source> = HashMap::new();
    for (file, bytes) in files {
        let at = |line| Source { file: file.clone(), line };
        let syntax = |p: Problem| LoadError::Syntax { at: at(p.line), reason: p.reason };
        let text = text::decode(bytes.as_ref()).map_err(syntax)?;
        for (line, value) in documents::parse(&text).map_err(syntax)? {
            unroll(value, &at(line), &mut |object| {
                if let Some(first) = seen.insert(object.identity.clone(), at(line)) {
                    let identity = object.identity.to_string();
                    return Err(LoadError::Twice { identity, first, second: at(line) });
                }
                objects.push(object);
                Ok(())
            })?;
        }
    }
    Ok(objects)
}

/// Unpacks a `List` into its items; any other value is an object.
fn unroll(value: Value, at: &Source, put: &mut impl FnMut(Object) -> Result<(), LoadError>) -> Result<(), LoadError> {
    match value {
        Value::Object(mut map)
            if text_of(&map, "kind").ends_with("List") && map.get("items").is_some_and(Value::is_array) =>
        {
            if let Some(Value::Array(items)) = map.remove("items") {
                for mut item in items {
                    inherit(&map, &mut item);
                    unroll(item, at, put)?;
                }
            }
            Ok(())
        }
        value => put(Object::new(value).map_err(|reason| LoadError::NotAnObject { at: at.clone(), reason })?),
    }
}

/// The API server leaves kind and version off the items of a typed list (a `ConfigMapList`). kubectl takes them from
/// the list.
fn inherit(list: &Map<String, Value>, item: &mut Value) {
    let kind = text_of(list, "kind").strip_suffix("List").unwrap_or_default();
    if let Value::Object(map) = item
        && !kind.is_empty()
        && text_of(map, "kind").is_empty()
        && text_of(map, "apiVersion").is_empty()
    {
        map.insert("kind".into(), kind.into());
        map.insert("apiVersion".into(), text_of(list, "apiVersion").into());
    }
}

fn text_of<'m>(map: &'m Map<String, Value>, field: &str) -> &'m str {
    map.get(field).and_then(Value::as_str).unwrap_or_default()
}
