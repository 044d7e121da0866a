//! Reading manifests from files and folders.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::{NotAnObject, Object};

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
    /// Neither YAML nor JSON.
    #[error("{at}: {reason}")]
    Syntax {
        /// File and line.
        at: Source,
        /// What the parser says.
        reason: String,
    },
    /// Parses, and is no Kubernetes object.
    #[error("{at}: the document {reason}")]
    NotAnObject {
        /// File and line.
        at: Source,
        /// Why.
        reason: NotAnObject,
    },
    /// Two objects of one identity.
    #[error("{second}: {identity} is at {first} already")]
    Twice {
        /// Which object.
        identity: String,
        /// The first.
        first: Source,
        /// The second.
        second: Source,
    },
    /// A folder without any manifest.
    #[error("there is no .yaml, .yml or .json file in {0:?}")]
    Nothing(PathBuf),
}

/// Loads files and folders (the files in a folder and below it, sorted).
///
/// # Errors
/// [`LoadError`]: the first thing that is wrong.
pub fn load_paths(paths: &[PathBuf]) -> Result<Vec<Object>, LoadError> {
    let mut texts = Vec::new();
    for path in paths {
        let mut files = Vec::new();
        collect(path, true, &mut files)?;
        if files.is_empty() {
            return Err(LoadError::Nothing(path.clone()));
        }
        files.sort();
        for file in files {
            let text =
                std::fs::read_to_string(&file).map_err(|source| LoadError::Read { path: file.clone(), source })?;
            texts.push((file, text));
        }
    }
    load(&texts)
}

fn collect(path: &Path, named: bool, out: &mut Vec<PathBuf>) -> Result<(), LoadError> {
    let fail = |source| LoadError::Read { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(fail)?.is_dir() {
        for entry in std::fs::read_dir(path).map_err(fail)? {
            let entry = entry.map_err(fail)?;
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

/// Parses texts by file.
///
/// # Errors
/// [`LoadError`]: the first thing that is wrong.
pub fn load(texts: &[(PathBuf, String)]) -> Result<Vec<Object>, LoadError> {
    let mut objects = Vec::new();
    let mut seen: HashMap<super::Identity, Source> = HashMap::new();
    for (file, text) in texts {
        let json = file.extension().is_some_and(|e| e == "json") || text.trim_start().starts_with('{');
        let documents = if json { json_documents(file, text)? } else { yaml_documents(file, text)? };
        for (at, value) in documents {
            unroll(value, &at, &mut |object| {
                if let Some(first) = seen.insert(object.identity.clone(), at.clone()) {
                    let identity = object.identity.to_string();
                    return Err(LoadError::Twice { identity, first, second: at.clone() });
                }
                objects.push(object);
                Ok(())
            })?;
        }
    }
    Ok(objects)
}

/// A `List` is its items; anything else is an object.
fn unroll(value: Value, at: &Source, put: &mut impl FnMut(Object) -> Result<(), LoadError>) -> Result<(), LoadError> {
    let is_list = value.get("kind").and_then(Value::as_str).is_some_and(|k| k.ends_with("List"));
    match value {
        Value::Object(mut map) if is_list && map.get("items").is_some_and(Value::is_array) => {
            if let Some(Value::Array(items)) = map.remove("items") {
                for item in items {
                    unroll(item, at, put)?;
                }
            }
            Ok(())
        }
        value => put(Object::new(value).map_err(|reason| LoadError::NotAnObject { at: at.clone(), reason })?),
    }
}

fn json_documents(file: &Path, text: &str) -> Result<Vec<(Source, Value)>, LoadError> {
    let mut out = Vec::new();
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Strict>();
    loop {
        let begin = stream.byte_offset();
        let at = |line| Source { file: file.to_owned(), line };
        let skipped = text[begin..].len() - text[begin..].trim_start().len();
        match stream.next() {
            None => return Ok(out),
            Some(Ok(Strict(value))) => out.push((at(line_of(text, begin + skipped)), value)),
            Some(Err(e)) => return Err(LoadError::Syntax { at: at(e.line()), reason: e.to_string() }),
        }
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|&&b| b == b'\n').count() + 1
}

/// YAML documents, split at their markers, so that each error has a line of the file and one document of 50 MB does not
/// make the next ones slow.
fn yaml_documents(file: &Path, text: &str) -> Result<Vec<(Source, Value)>, LoadError> {
    let mut out = Vec::new();
    let mut first_line = 1;
    let mut document = String::new();
    let mut flush = |document: &mut String, first_line: usize| -> Result<(), LoadError> {
        let body = std::mem::take(document);
        let empty = |l: &str| l.trim().is_empty() || l.trim_start().starts_with('#') || l.trim_end() == "---";
        if body.lines().all(empty) {
            return Ok(());
        }
        let at = |line| Source { file: file.to_owned(), line };
        match serde_yaml_ng::from_str::<Strict>(&body) {
            Ok(Strict(Value::Null)) => Ok(()),
            Ok(Strict(value)) => {
                let skipped = body.lines().take_while(|l| empty(l)).count();
                out.push((at(first_line + skipped), value));
                Ok(())
            }
            Err(e) => {
                let line = e.location().map_or(0, |l| l.line().saturating_sub(1));
                Err(LoadError::Syntax { at: at(first_line + line), reason: e.to_string() })
            }
        }
    };
    for (i, line) in text.lines().enumerate() {
        let marker = line.trim_end();
        if marker == "---" || marker.starts_with("--- ") || marker == "..." {
            flush(&mut document, first_line)?;
            first_line = i + 2;
            if let Some(rest) = marker.strip_prefix("--- ") {
                first_line = i + 1;
                document.push_str(rest);
                document.push('\n');
            }
        } else {
            document.push_str(line);
            document.push('\n');
        }
    }
    flush(&mut document, first_line)?;
    Ok(out)
}

/// A JSON value from YAML or JSON that refuses what JSON can't hold and keys that stand twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON can hold")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Value, E> {
        serde_json::Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("not a number that JSON can hold"))
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(self)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(Strict(v)) = seq.next_element()? {
            out.push(v);
        }
        Ok(Value::Array(out))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = map.next_key::<Text>()? {
            let Strict(value) = map.next_value()?;
            if out.insert(key.0.clone(), value).is_some() {
                return Err(de::Error::custom(format!("the key {:?} stands twice", key.0)));
            }
        }
        Ok(Value::Object(out))
    }
}

/// A key of a mapping. YAML knows others than text; JSON spells them out, as kubectl does.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match d.deserialize_any(StrictVisitor)? {
            Value::String(s) => Ok(Self(s)),
            v @ (Value::Number(_) | Value::Bool(_)) => Ok(Self(v.to_string())),
            _ => Err(de::Error::custom("a key that is no text")),
        }
    }
}
