//! Who the other side is, and what it may do.

use std::fmt;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// Characters that are escaped in a URI of a certificate. Application names are free text.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_');

/// A node's name, by the rules of Kubernetes (RFC 1123 subdomain).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(String);

/// Not a node's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no node name: lower-case letters, digits, - and ., at most 253, beginning and ending with a letter or digit"
)]
pub struct BadNodeName(String);

impl NodeName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for NodeName {
    type Err = BadNodeName;
    fn from_str(s: &str) -> Result<Self, BadNodeName> {
        let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let ends = |c: Option<&u8>| c.is_some_and(|&c| inner(c));
        let bytes = s.as_bytes();
        let sound = bytes.len() <= 253 && ends(bytes.first()) && ends(bytes.last());
        if sound && bytes.iter().all(|&c| inner(c) || c == b'-' || c == b'.') {
            Ok(Self(s.to_owned()))
        } else {
            Err(BadNodeName(s.to_owned()))
        }
    }
}

/// What a role allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// See runs, agents, restore points.
    View,
    /// Start and stop backups.
    Backup,
    /// Start and stop restores. They write to devices.
    Restore,
    /// Drain nodes, and put them back to work. For all applications only.
    Operate,
    /// Open runs and name what they read and write, and where: what a cluster's operator does. For all applications only.
    Orchestrate,
}

impl Action {
    fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Backup => "backup",
            Self::Restore => "restore",
            Self::Operate => "operate",
            Self::Orchestrate => "operator",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An action, for one application or for all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Role {
    /// The action.
    pub action: Action,
    /// The application; `None`: all of them.
    pub application: Option<String>,
}

/// Not a role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no role: write view, backup or restore (of all applications), view:APP, backup:APP or restore:APP, operate, or operator"
)]
pub struct BadRole(String);

impl FromStr for Role {
    type Err = BadRole;
    fn from_str(s: &str) -> Result<Self, BadRole> {
        let bad = || BadRole(s.to_owned());
        let (action, application) = match s.split_once(':') {
            Some((action, application)) => (action, Some(application.to_owned())),
            None => (s, None),
        };
        let all = [Action::View, Action::Backup, Action::Restore, Action::Operate, Action::Orchestrate];
        let action = all.into_iter().find(|a| a.as_str() == action).ok_or_else(bad)?;
        let sound = application
            .as_deref()
            .is_none_or(|a| !a.is_empty() && !matches!(action, Action::Operate | Action::Orchestrate));
        if sound { Ok(Self { action, application }) } else { Err(bad()) }
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The same process: coordinator and agent are one.
    Local,
    /// The agent of a node.
    Agent(NodeName),
    /// A coordinator.
    Coordinator,
    /// A person, or a program of theirs.
    User {
        /// Its name, for logs.
        name: String,
        /// What it may do.
        roles: Vec<Role>,
    },
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("this process"),
            Self::Agent(node) => write!(f, "the agent of node {node}"),
            Self::Coordinator => f.write_str("a coordinator"),
            Self::User { name, .. } => write!(f, "user {name}"),
        }
    }
}

/// Why a certificate identifies nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// It can't be parsed.
    #[error("the certificate can't be parsed")]
    Malformed,
    /// It names nobody that milkrun knows, or two at once.
    #[error("the certificate names no milkrun agent, coordinator or user (or two at once)")]
    Nobody,
}

impl Peer {
    /// The node, if this is an agent.
    pub fn node(&self) -> Option<&str> {
        match self {
            Self::Agent(node) => Some(node.as_str()),
            _ => None,
        }
    }

    /// Whether it may do this to an application (`None`: to all of them).
    pub fn may(&self, action: Action, application: Option<&str>) -> bool {
        match self {
            Self::Local => true,
            Self::Agent(_) | Self::Coordinator => false,
            Self::User { roles, .. } => roles.iter().any(|r| {
                // Every other role of an application includes `view`.
                let enough = match r.action {
                    Action::Orchestrate => action != Action::Operate,
                    of => of == action || (action == Action::View && of != Action::Operate),
                };
                enough && r.application.as_deref().is_none_or(|of| application == Some(of))
            }),
        }
    }

    /// Whether it may do this to at least one application.
    pub fn may_some(&self, action: Action) -> bool {
        match self {
            Self::Local => true,
            Self::User { roles, .. } => roles.iter().any(|r| self.may(action, r.application.as_deref())),
            Self::Agent(_) | Self::Coordinator => false,
        }
    }

    /// The URIs that name it in a certificate.
    pub fn uris(&self) -> Vec<String> {
        let escape = |text: &str| utf8_percent_encode(text, ESCAPED).to_string();
        match self {
            Self::Local => Vec::new(),
            Self::Agent(node) => vec![format!("milkrun://agent/{node}")],
            Self::Coordinator => vec!["milkrun://coordinator".into()],
            Self::User { name, roles } => {
                let role = |r: &Role| match &r.application {
                    Some(application) => format!("milkrun://role/{}/{}", r.action, escape(application)),
                    None => format!("milkrun://role/{}", r.action),
                };
                std::iter::once(format!("milkrun://user/{}", escape(name))).chain(roles.iter().map(role)).collect()
            }
        }
    }

    /// The peer that the URIs of a certificate name. Each URI comes without its `milkrun://`.
    ///
    /// # Errors
    /// [`PeerError::Nobody`].
    pub(crate) fn parse<'a>(uris: impl Iterator<Item = &'a str>) -> Result<Self, PeerError> {
        let plain = |text: &str| percent_decode_str(text).decode_utf8().map(|t| t.into_owned());
        let (mut who, mut roles) = (None, Vec::new());
        for uri in uris {
            let named = match uri.split_once('/') {
                Some(("agent", node)) => Self::Agent(node.parse().map_err(|_| PeerError::Nobody)?),
                Some(("user", name)) => {
                    Self::User { name: plain(name).map_err(|_| PeerError::Nobody)?, roles: Vec::new() }
                }
                Some(("role", role)) => {
                    let role = plain(&role.replacen('/', ":", 1)).map_err(|_| PeerError::Nobody)?;
                    roles.push(role.parse().map_err(|_| PeerError::Nobody)?);
                    continue;
                }
                None if uri == "coordinator" => Self::Coordinator,
                _ => return Err(PeerError::Nobody),
            };
            if who.replace(named).is_some() {
                return Err(PeerError::Nobody);
            }
        }
        match who {
            Some(Self::User { name, .. }) => Ok(Self::User { name, roles }),
            Some(other) if roles.is_empty() => Ok(other),
            _ => Err(PeerError::Nobody),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(roles: &[&str]) -> Peer {
        Peer::User { name: "änn/1".into(), roles: roles.iter().map(|r| r.parse().unwrap()).collect() }
    }

    #[test]
    fn peers_survive_the_way_through_a_certificate() {
        for peer in [
            Peer::Agent("node-a.example".parse().unwrap()),
            Peer::Coordinator,
            user(&[]),
            user(&["view", "backup:shop", "restore:a/b: ü%2F", "operate"]),
        ] {
            let uris = peer.uris();
            assert!(uris.iter().all(|u| u.is_ascii()));
            assert_eq!(Peer::parse(uris.iter().map(|u| u.strip_prefix("milkrun://").unwrap())), Ok(peer));
        }
    }

    #[test]
    fn two_names_are_refused_and_so_are_roles_of_an_agent() {
        for uris in [&[][..], &["agent/a", "user/b"], &["agent/a", "role/view"], &["role/view"], &["agent/A"], &["x/y"]]
        {
            assert_eq!(Peer::parse(uris.iter().copied()), Err(PeerError::Nobody), "{uris:?}");
        }
    }

    #[test]
    fn a_role_allows_what_it_says_and_no_more() {
        let peer = user(&["backup:shop", "restore"]);
        assert!(peer.may(Action::Backup, Some("shop")) && !peer.may(Action::Backup, Some("bank")));
        assert!(!peer.may(Action::Backup, None) && peer.may(Action::Restore, None));
        assert!(peer.may(Action::View, Some("bank")), "who may restore it may see it");
        let peer = user(&["backup:shop", "operate"]);
        assert!(peer.may(Action::View, Some("shop")) && !peer.may(Action::View, Some("bank")));
        assert!(peer.may_some(Action::View) && !peer.may_some(Action::Restore));
        assert!(peer.may(Action::Operate, None));
        for nobody in [Peer::Agent("a".parse().unwrap()), Peer::Coordinator] {
            assert!(!nobody.may(Action::View, None) && !nobody.may_some(Action::View));
        }
        for bad in ["", "admin", "view:", "operate:shop", "backup shop"] {
            assert!(bad.parse::<Role>().is_err(), "{bad}");
        }
    }
}
