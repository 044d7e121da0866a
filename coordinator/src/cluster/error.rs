//! Why the coordinator can't work in its cluster.

use milkrun_identity::authority::AuthorityError;
use milkrun_identity::tls::TlsError;

/// Why the coordinator can't work in its cluster.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    /// It runs outside of a cluster, or its account is not mounted.
    #[error("can't find the cluster's API server: run in a pod, or set KUBECONFIG")]
    Client(#[source] kube::Error),
    /// The API server can't be asked, or refuses.
    #[error("can't {what}")]
    Api {
        /// What was asked.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// The Lease can't be kept.
    #[error("can't take the Lease")]
    Lease(#[from] kube_lease_manager::LeaseManagerError),
    /// The Secret of the authority does not hold one.
    #[error(
        "the Secret {0} holds no authority: it needs tls.crt and tls.key, as cert-manager makes them, or ca.crt and ca.key"
    )]
    Authority(&'static str),
    /// Somebody else keeps the authority, and there is none.
    #[error("there is no Secret {0}")]
    NoAuthority(&'static str),
    /// What is written down of former authorities makes no sense.
    #[error(
        "the Secret {0} does not say which authorities are trusted: remove it, and agents get new certificates within a day"
    )]
    Trusted(&'static str),
    /// No certificate can be made.
    #[error(transparent)]
    Certificate(#[from] AuthorityError),
    /// The own certificate can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A file can't be written.
    #[error("can't write the own certificate")]
    File(#[from] std::io::Error),
}

/// Makes an error of the API server's answer.
pub(crate) fn api(what: &'static str) -> impl FnOnce(kube::Error) -> ClusterError {
    move |source| ClusterError::Api { what, source: Box::new(source) }
}
