//! Identities: certificates that name an agent's node, a coordinator, or a person with roles; an authority that issues
//! them; and TLS (1.3 only, with certificates on both sides), which proves the identity of the other side.
//!
//! ```text
//! milkrun certs authority ─> DIR/ca.crt, DIR/ca.key
//! milkrun certs agent N   ─> DIR/agent-N/{ca.crt, tls.crt, tls.key}      the layout of a Kubernetes TLS secret
//! milkrun certs revoke C  ─> DIR/ca.crl, DIR/coordinator-*/ca.crl
//! ```
//! Certificates hold the identity as URIs (`milkrun://agent/node-a`, `milkrun://user/ann`,
//! `milkrun://role/backup/shop`); a host name is not an identity. In a cluster nobody hands out certificates: a process
//! shows its ServiceAccount token, and gets one ([`enrollment`]).

pub mod authority;
pub mod certificate;
pub mod channel;
pub mod enrollment;
pub mod peer;
pub mod revocation;
pub mod tls;

pub use certificate::{Certificate, Serial};
pub use peer::{Action, NodeName, Peer, Role};
