//! Who is who: certificates that name an agent's node, a coordinator, or a person with roles; an authority that issues them;
//! and TLS (1.3 only, both sides show a certificate) that tells who the other side is.
//!
//! ```text
//! milkrun certs authority ─> DIR/ca.crt, DIR/ca.key
//! milkrun certs agent N   ─> DIR/agent-N/{ca.crt, tls.crt, tls.key}      the layout of a Kubernetes TLS secret
//! milkrun certs revoke C  ─> DIR/ca.crl, DIR/coordinator-*/ca.crl
//! ```
//! Names stand in the certificate as URIs (`milkrun://agent/node-a`, `milkrun://user/ann`, `milkrun://role/backup/shop`): a
//! host name is nobody's identity. In a cluster a projected token will say the same as a certificate does here.

pub mod authority;
pub mod certificate;
pub mod channel;
pub mod peer;
pub mod revocation;
pub mod tls;

pub use certificate::{Certificate, Serial};
pub use peer::{Action, NodeName, Peer, Role};
