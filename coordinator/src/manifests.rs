//! An application's manifests: Kubernetes objects from YAML and JSON, as one stream of JSON lines, and back as files.
//!
//! They are parsed, not copied: what can't be understood is refused with file and line before a byte is transferred. They mean the
//! same as to kubectl, so that a restore gives what kubectl would have applied. A stored object is canonical JSON (keys sorted), so
//! that equal objects have equal bytes.
//!
//! | step                      | rules                                                             |
//! |---------------------------|-------------------------------------------------------------------|
//! | [`load_paths`]            | which files are read; each object stands once                     |
//! | `text`                    | UTF-8, or UTF-16 with a byte order mark                           |
//! | `documents`               | where a file's documents begin and end, and which of them are JSON |
//! | `json`, `yaml`            | what a document means                                             |
//! | [`Object::new`]           | what names an object                                              |
//! | [`encode`], [`decode`]    | objects as lines                                                  |
//! | [`Identity::file_name`]   | the file of an object                                             |

mod documents;
mod identity;
mod json;
mod load;
mod object;
mod problem;
mod text;
mod yaml;

pub use identity::Identity;
pub use load::{LoadError, Source, load, load_paths};
pub use object::{NotAnObject, Object, decode, encode};

#[cfg(test)]
mod tests;
