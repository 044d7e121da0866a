//! Ids and names. Each kind is its own type; there is no conversion between them.

use std::fmt;
use std::str::FromStr;

use crate::clock::{Moment, entropy};
use crate::wire::{Decoder, Encoder, Malformed};

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident: $len:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Width in bytes.
            pub const LEN: usize = $len;

            /// From raw bytes.
            pub const fn from_bytes(b: [u8; $len]) -> Self {
                Self(b)
            }

            /// The raw bytes.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// Lower-case hexadecimal.
            pub fn hex(&self) -> String {
                hex::encode(self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), hex::encode(self.0))
            }
        }

        impl FromStr for $name {
            type Err = NotAnId;
            fn from_str(s: &str) -> Result<Self, NotAnId> {
                let mut out = [0; $len];
                // Only the canonical (lower-case) form is accepted: two spellings of one id would be two object keys.
                if s.bytes().any(|b| b.is_ascii_uppercase()) || hex::decode_to_slice(s, &mut out).is_err() {
                    return Err(NotAnId { kind: stringify!($name), text: s.to_owned() });
                }
                Ok(Self(out))
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = NotAnId;
            fn try_from(b: &[u8]) -> Result<Self, NotAnId> {
                b.try_into().map(Self).map_err(|_| NotAnId { kind: stringify!($name), text: hex::encode(b) })
            }
        }
    )*};
}

ids! {
    /// Names one repository for ever; part of every AAD.
    RepositoryId: 16;
    /// Keyed BLAKE3 of a chunk's plaintext, under the key of its dedup domain.
    ChunkId: 32;
    /// Random name of a pack.
    PackId: 16;
    /// Random name of an index segment.
    SegmentId: 16;
    /// Random name of a run.
    RunId: 8;
    /// Keyed hash of an application's name, as it stands in object keys.
    AppHash: 16;
    /// Random name of a wrapped secret.
    KeyId: 8;
    /// Random name of a note on damaged packs.
    NoteId: 8;
}

macro_rules! random {
    ($($name:ident)*) => {$(
        impl $name {
            /// A fresh random id.
            pub fn random() -> Self {
                Self(entropy())
            }
        }
    )*};
}

random! { RepositoryId PackId SegmentId RunId KeyId NoteId }

/// Text or bytes that are not an id of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {kind}")]
pub struct NotAnId {
    kind: &'static str,
    text: String,
}

/// Names a restore point: when its run started, and which run. Shown as `rp-20261122t143000z-0123456789abcdef`,
/// a shape that [`AppName`] refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PointId {
    second: i64,
    run: RunId,
}

impl PointId {
    /// The id of the point that `run` makes, whose snapshot is of `moment` (to the second).
    pub fn new(moment: Moment, run: RunId) -> Self {
        Self { second: moment.seconds(), run }
    }

    /// The run that made it.
    pub fn run(&self) -> RunId {
        self.run
    }

    /// The second of its moment.
    pub fn second(&self) -> Moment {
        Moment::from_millis(self.second.saturating_mul(1000))
    }

    /// `<time>-<run>`, the last part of the root's object key.
    pub fn key_part(&self) -> String {
        format!("{}-{}", self.second().compact(), self.run)
    }
}

impl fmt::Display for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rp-{}", self.key_part())
    }
}

impl FromStr for PointId {
    type Err = NotAnId;

    fn from_str(s: &str) -> Result<Self, NotAnId> {
        let bad = || NotAnId { kind: "restore point id", text: s.to_owned() };
        let (time, run) = s.strip_prefix("rp-").and_then(|r| r.split_once('-')).ok_or_else(bad)?;
        let run: RunId = run.parse().map_err(|_| bad())?;
        let digits: Vec<&str> = match time.as_bytes() {
            [d @ .., b'z'] if d.len() == 15 && d[8] == b't' && time.is_ascii() => {
                vec![&time[..4], &time[4..6], &time[6..8], &time[9..11], &time[11..13], &time[13..15]]
            }
            _ => return Err(bad()),
        };
        let text = format!("{}-{}-{}T{}:{}:{}Z", digits[0], digits[1], digits[2], digits[3], digits[4], digits[5]);
        let point = Self::new(Moment::parse(&text).map_err(|_| bad())?, run);
        if point.to_string() == s { Ok(point) } else { Err(bad()) }
    }
}

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It is empty.
    #[error("a {kind} needs a name of at least one character")]
    Empty {
        /// Application, volume, cluster or namespace.
        kind: &'static str,
    },
    /// Too long.
    #[error("the {kind} name has {bytes} bytes; the most is {most}")]
    Long {
        /// Application, volume, cluster or namespace.
        kind: &'static str,
        /// Its length.
        bytes: usize,
        /// The bound.
        most: usize,
    },
    /// A character that has a meaning elsewhere.
    #[error("the {kind} name {name:?} contains {found:?}, which is not allowed in names")]
    Character {
        /// Application, volume, cluster or namespace.
        kind: &'static str,
        /// The name.
        name: String,
        /// The character.
        found: char,
    },
    /// It looks like the id of a restore point.
    #[error("{name:?} has the shape of a restore point id; an application can't be called that")]
    PointShape {
        /// The name.
        name: String,
    },
}

const NAME_BYTES_MAX: usize = 1024;

fn check_name(kind: &'static str, name: &str, banned: &[char]) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty { kind });
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(NameError::Long { kind, bytes: name.len(), most: NAME_BYTES_MAX });
    }
    if let Some(found) = name.chars().find(|c| c.is_control() || banned.contains(c)) {
        return Err(NameError::Character { kind, name: name.to_owned(), found });
    }
    Ok(())
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident($kind:literal, $banned:expr);)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

names! {
    /// The cluster that an application belongs to. In Kubernetes it is the UID of `kube-system`, elsewhere a name that people
    /// choose. Several clusters may share a repository.
    ClusterId("cluster", &['@', '/']);
    /// The namespace that an application belongs to.
    Namespace("namespace", &['@', '/']);
    /// The name of what is protected as one thing. Up to 1024 bytes of any Unicode except control characters and `@`. Slashes and
    /// dots are allowed, since object keys carry only a keyed hash of the name.
    AppName("application", &['@']);
    /// The name of a volume or stream of an application: like [`AppName`], but without `=`, which separates it from its path.
    VolumeName("volume", &['@', '=']);
}

impl FromStr for AppName {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        check_name("application", s, &['@'])?;
        if s.parse::<PointId>().is_ok() {
            return Err(NameError::PointShape { name: s.to_owned() });
        }
        Ok(Self(s.to_owned()))
    }
}

impl FromStr for ClusterId {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        check_name("cluster", s, &['@', '/'])?;
        Ok(Self(s.to_owned()))
    }
}

impl ClusterId {
    /// The cluster of applications that belong to no cluster. The command line uses it unless told otherwise.
    pub const LOCAL: &str = "local";
}

impl Default for ClusterId {
    fn default() -> Self {
        Self(Self::LOCAL.to_owned())
    }
}

impl FromStr for Namespace {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        check_name("namespace", s, &['@', '/'])?;
        Ok(Self(s.to_owned()))
    }
}

/// The identity of an application among all that share a repository.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AppId {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its namespace; `None` outside of Kubernetes, and for objects that belong to a cluster as a whole.
    pub namespace: Option<Namespace>,
    /// Its name.
    pub name: AppName,
}

impl AppId {
    /// An application of no cluster and no namespace.
    pub fn local(name: AppName) -> Self {
        Self { cluster: ClusterId::default(), namespace: None, name }
    }

    /// Its name, if it belongs to this cluster and to no namespace: then the name alone identifies it.
    pub fn name_in(&self, cluster: &ClusterId) -> Option<&AppName> {
        (self.cluster == *cluster && self.namespace.is_none()).then_some(&self.name)
    }

    pub(crate) fn encode(&self, e: &mut Encoder) {
        let namespace = self.namespace.as_ref().map_or("", Namespace::as_str);
        e.text(self.cluster.as_str()).text(namespace).text(self.name.as_str());
    }

    pub(crate) fn decode(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        let cluster = d.text("cluster")?.parse().map_err(|_| d.bad("cluster"))?;
        let namespace = Some(d.text("namespace")?).filter(|n| !n.is_empty());
        let namespace = namespace.map(|n| n.parse()).transpose().map_err(|_| d.bad("namespace"))?;
        Ok(Self { cluster, namespace, name: d.text("application")?.parse().map_err(|_| d.bad("application"))? })
    }
}

impl From<AppName> for AppId {
    fn from(name: AppName) -> Self {
        Self::local(name)
    }
}

/// For people: its name, and what distinguishes it from others of that name.
impl fmt::Display for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)?;
        match (&self.namespace, self.cluster.as_str()) {
            (None, ClusterId::LOCAL) => Ok(()),
            (None, cluster) => write!(f, " (cluster {cluster})"),
            (Some(namespace), ClusterId::LOCAL) => write!(f, " (namespace {namespace})"),
            (Some(namespace), cluster) => write!(f, " (namespace {namespace}, cluster {cluster})"),
        }
    }
}

/// A dedup domain: the points of one application that were made under the same keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainId {
    /// The application.
    pub app: AppHash,
    /// Which of the application's keys: 0 is the first; a higher number means that the earlier ones were erased or lost.
    pub number: u32,
}

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:08}", self.app, self.number)
    }
}

impl FromStr for VolumeName {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        check_name("volume", s, &['@', '='])?;
        Ok(Self(s.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn point_ids_round_trip_and_are_no_application_names() {
        let p = PointId::new(Moment::parse("2026-11-22T14:30:00Z").unwrap(), RunId::from_bytes([7; 8]));
        let text = p.to_string();
        assert_eq!(text, "rp-20261122t143000z-0707070707070707");
        assert_eq!(text.parse::<PointId>().unwrap(), p);
        assert!(matches!(text.parse::<AppName>(), Err(NameError::PointShape { .. })));
        for bad in [
            "rp-",
            "rp-20261322t143000z-0707070707070707",
            "rp-20261122t143000z-07",
            "rp-20261122T143000Z-0707070707070707",
            "rp-ääääääää-0707070707070707",
        ] {
            assert!(bad.parse::<PointId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_take_slashes_dots_unicode_and_300_characters() {
        for good in ["shop", "a/b/../c", "...", "名前", &"x".repeat(300)] {
            assert_eq!(good.parse::<AppName>().unwrap().as_str(), good);
            assert!(good.parse::<VolumeName>().is_ok());
        }
        for bad in ["", "a@b", "a\nb", &"x".repeat(1025)] {
            assert!(bad.parse::<AppName>().is_err(), "{bad:?}");
        }
        assert!("a=b".parse::<VolumeName>().is_err());
    }
}
