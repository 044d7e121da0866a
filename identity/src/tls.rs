//! TLS between coordinator, agents and people: version 1.3, certificates on both sides, HTTP/2. Certificates are read
//! from a folder with the three files of a Kubernetes TLS secret. They are read again for each connection, so that they
//! can be replaced at any time. A fourth file, which is optional, lists revoked certificates.

mod stranger;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use milkrun_repository::clock::Moment;
use tokio::net::TcpStream;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::certificate::Certificate;
use crate::peer::PeerError;
use crate::revocation::{CRL_FILE, RevocationLists};

/// The authority's certificate.
pub const CA_FILE: &str = "ca.crt";
/// The own certificate.
pub const CERTIFICATE_FILE: &str = "tls.crt";
/// Its key.
pub const KEY_FILE: &str = "tls.key";

/// A connection that does not finish its handshake is closed after this time.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// The folder with the own certificate, its key and the authority's certificate.
#[derive(Clone, Debug)]
pub struct Credentials {
    folder: PathBuf,
}

/// Why there is no secure connection.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("can't read {path:?}")]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is no PEM, or lacks what it should hold.
    #[error("{path:?} holds no {what} in PEM")]
    Pem {
        /// Which one.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// Key and certificate do not match, or the like.
    #[error("the certificate in {folder:?} can't be used")]
    Unusable {
        /// Where they lie.
        folder: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The own certificate is no longer valid.
    #[error("the certificate in {folder:?} ended at {until}: put a new one in its place")]
    Ended {
        /// Where it lies.
        folder: PathBuf,
        /// When it ended.
        until: Moment,
    },
    /// The other side can't be reached.
    #[error("can't reach {address}")]
    Connect {
        /// Where it should be.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// One side refuses the other.
    #[error("the TLS handshake with {with} failed")]
    Handshake {
        /// The other side's address.
        with: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The certificate of the other side identifies nobody.
    #[error("{with} is refused")]
    Nobody {
        /// The other side's address.
        with: String,
        /// Why.
        #[source]
        source: PeerError,
    },
}

/// An accepted connection, and the identity of its other end.
pub struct Accepted {
    /// The connection.
    pub stream: server::TlsStream<TcpStream>,
    /// The certificate of the other end.
    pub certificate: Certificate,
}

impl Credentials {
    /// Those in `folder`: [`CA_FILE`], [`CERTIFICATE_FILE`], [`KEY_FILE`].
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    fn certificates(&self, name: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        certificates(&self.folder.join(name))
    }

    fn roots(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates(CA_FILE)? {
            roots.add(certificate).map_err(|e| self.unusable(e))?;
        }
        Ok(roots)
    }

    fn own(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        let path = self.folder.join(KEY_FILE);
        let key =
            PrivateKeyDer::from_pem_slice(&read(&path)?).map_err(|_| TlsError::Pem { path, what: "private key" })?;
        Ok((self.certificates(CERTIFICATE_FILE)?, key))
    }

    fn unusable(&self, source: rustls::Error) -> TlsError {
        TlsError::Unusable { folder: self.folder.clone(), source }
    }

    /// The own certificate.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn own_certificate(&self) -> Result<Certificate, TlsError> {
        Self::certificate_in(&self.folder.join(CERTIFICATE_FILE))
    }

    /// The first certificate in a file.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn certificate_in(path: &Path) -> Result<Certificate, TlsError> {
        let all = certificates(path)?;
        let first = all.first().ok_or_else(|| TlsError::Pem { path: path.to_owned(), what: "certificate" })?;
        let parsed = Certificate::parse(first);
        parsed.map_err(|source| TlsError::Nobody { with: path.display().to_string(), source })
    }

    /// Checks at the start that the files can be used.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn check(&self) -> Result<(), TlsError> {
        self.own_certificate()?;
        self.client().map(drop)
    }

    /// The lists of revoked certificates, as they are in the folder now.
    ///
    /// # Errors
    /// [`TlsError`] if the file exists and can't be read.
    pub fn revoked(&self) -> Result<RevocationLists, TlsError> {
        let path = self.folder.join(CRL_FILE);
        let pem = match std::fs::read(&path) {
            Ok(pem) => pem,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(RevocationLists::default()),
            Err(source) => return Err(TlsError::File { path, source }),
        };
        RevocationLists::parse(&pem).ok_or(TlsError::Pem { path, what: "list of revoked certificates" })
    }

    fn client(&self) -> Result<ClientConfig, TlsError> {
        let (certificates, key) = self.own()?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(self.roots()?), provider())
            .with_crls(self.revoked()?.into_der())
            .only_check_end_entity_revocation()
            .allow_unknown_revocation_status()
            .build()
            .map_err(|e| self.unusable(rustls::Error::General(e.to_string())))?;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| self.unusable(e))?
            .with_webpki_verifier(verifier)
            .with_client_auth_cert(certificates, key)
            .map_err(|e| self.unusable(e))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    fn server(&self) -> Result<ServerConfig, TlsError> {
        let (certificates, key) = self.own()?;
        // An authority without a list has revoked nothing.
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), provider())
            .with_crls(self.revoked()?.into_der())
            .only_check_end_entity_revocation()
            .allow_unknown_revocation_status()
            .build()
            .map_err(|e| self.unusable(rustls::Error::General(e.to_string())))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| self.unusable(e))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates, key)
            .map_err(|e| self.unusable(e))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        // Sessions are not resumed, so that the certificate is checked for each connection.
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// Accepts a connection from somebody with a certificate of the same authority.
    ///
    /// # Errors
    /// [`TlsError`]: who was refused, as far as that is known, and why.
    pub async fn accept(&self, connection: TcpStream, from: SocketAddr) -> Result<Accepted, TlsError> {
        // Small messages must not wait for others.
        let _ = connection.set_nodelay(true);
        let acceptor = TlsAcceptor::from(Arc::new(self.server()?));
        let fail = |source| TlsError::Handshake { with: from.to_string(), source };
        let stream = timely(acceptor.accept(connection)).await.map_err(fail)?;
        let certificate = of_chain(stream.get_ref().1.peer_certificates());
        let certificate = certificate.map_err(|source| TlsError::Nobody { with: from.to_string(), source })?;
        Ok(Accepted { stream, certificate })
    }

    /// Connects to a coordinator, whose certificate must be of the same authority and name `host`.
    ///
    /// # Errors
    /// [`TlsError`].
    pub async fn connect(&self, host: &str, port: u16) -> Result<client::TlsStream<TcpStream>, TlsError> {
        // Checked here, since the other side only closes the connection, and its reason is easily lost.
        let until = self.own_certificate()?.until;
        if until < Moment::now() {
            return Err(TlsError::Ended { folder: self.folder.clone(), until });
        }
        stranger::connect_as(TlsConnector::from(Arc::new(self.client()?)), host, port).await
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::File { path: path.to_owned(), source })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path)?;
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    parsed.ok().filter(|c| !c.is_empty()).ok_or_else(|| TlsError::Pem { path: path.to_owned(), what: "certificate" })
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn of_chain(chain: Option<&[CertificateDer<'static>]>) -> Result<Certificate, PeerError> {
    Certificate::parse(chain.and_then(<[_]>::first).ok_or(PeerError::Nobody)?)
}

async fn timely<T>(work: impl Future<Output = std::io::Result<T>>) -> std::io::Result<T> {
    match tokio::time::timeout(HANDSHAKE_LIMIT, work).await {
        Ok(result) => result,
        Err(_) => {
            Err(std::io::Error::new(ErrorKind::TimedOut, format!("no answer within {} s", HANDSHAKE_LIMIT.as_secs())))
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::Peer;
    use crate::authority::{Authority, AuthorityError};

    const HOUR: Duration = Duration::from_secs(3600);

    fn agent(node: &str) -> Peer {
        Peer::Agent(node.parse().unwrap())
    }

    /// Connects two sides, and returns the result of each.
    async fn handshake(server: &Credentials, client: &Credentials) -> (Result<Peer, String>, Result<(), String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let text = |e: &dyn std::error::Error| milkrun_repository::point::catalog::chain(e);
        let accept = async {
            let (connection, from) = listener.accept().await.unwrap();
            let mut accepted = server.accept(connection, from).await.map_err(|e| text(&e))?;
            accepted.stream.write_all(b"x").await.map_err(|e| text(&e))?;
            Ok(accepted.certificate.peer)
        };
        let connect = async {
            let mut stream = client.connect("127.0.0.1", port).await.map_err(|e| text(&e))?;
            // With TLS 1.3 the client's handshake ends before the server has checked its certificate.
            stream.read_exact(&mut [0]).await.map(drop).map_err(|e| text(&e))
        };
        tokio::join!(accept, connect)
    }

    #[tokio::test]
    async fn only_certificates_of_the_same_authority_are_accepted_and_both_sides_know_why() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(&folder.path().join("ours"), HOUR).unwrap();
        let foreign = Authority::create(&folder.path().join("theirs"), HOUR).unwrap();
        let hosts = ["127.0.0.1".to_owned()];
        let of = |a: &Authority, peer: &Peer, hosts: &[String], valid| {
            Credentials::new(a.issue(peer, hosts, valid).unwrap())
        };
        let server = of(&authority, &Peer::Coordinator, &hosts, HOUR);
        let (peer, ok) = handshake(&server, &of(&authority, &agent("a"), &[], HOUR)).await;
        assert_eq!((peer, ok), (Ok(agent("a")), Ok(())));

        let (peer, client) = handshake(&server, &of(&foreign, &agent("b"), &[], HOUR)).await;
        assert!(client.clone().unwrap_err().contains("UnknownIssuer"), "{client:?}");
        assert!(peer.clone().unwrap_err().contains("UnknownCA"), "{peer:?}");

        let expired = of(&authority, &agent("old"), &[], Duration::ZERO);
        tokio::time::sleep(Duration::from_millis(2100)).await;
        // The client notices this itself, and does not connect.
        let refused = expired.connect("127.0.0.1", 1).await;
        assert!(matches!(refused, Err(TlsError::Ended { .. })), "{:?}", refused.err());

        // A revoked certificate is refused from then on, and a new one may have its name. Others stay valid.
        let (revoked_peer, valid_client) = (agent("gone"), of(&authority, &agent("stays"), &[], HOUR));
        let revoked_folder = authority.issue(&revoked_peer, &[], HOUR).unwrap();
        let lost = folder.path().join("lost");
        std::fs::create_dir(&lost).unwrap();
        for file in [CA_FILE, CERTIFICATE_FILE, KEY_FILE] {
            std::fs::copy(revoked_folder.join(file), lost.join(file)).unwrap();
        }
        assert_eq!(handshake(&server, &Credentials::new(&lost)).await.0, Ok(revoked_peer.clone()));
        let revoked = authority.revoke(revoked_folder.to_str().unwrap()).unwrap();
        assert_eq!(revoked.lists.len(), 2, "the authority's own, and that of the coordinator beside it");
        assert!(!revoked_folder.exists() && revoked.moved.as_ref().is_some_and(|m| m.exists()));
        let (peer, client) = handshake(&server, &Credentials::new(&lost)).await;
        assert!(peer.clone().unwrap_err().contains("Revoked"), "{peer:?}");
        assert!(client.clone().unwrap_err().contains("CertificateRevoked"), "{client:?}");
        assert_eq!(handshake(&server, &of(&authority, &revoked_peer, &[], HOUR)).await.0, Ok(revoked_peer));
        assert_eq!(handshake(&server, &valid_client).await.0, Ok(agent("stays")));
        // The next list has both. A certificate can be revoked by its serial number. Anything else is refused.
        let serial = valid_client.own_certificate().unwrap().serial;
        authority.revoke(&serial.to_string()).unwrap();
        let listed = server.revoked().unwrap();
        assert!(listed.contains(&serial) && listed.contains(&revoked.serial));
        assert!(handshake(&server, &valid_client).await.0.is_err());
        assert!(matches!(authority.revoke("no such"), Err(AuthorityError::NoCertificate(_))));

        // An agent can't play the coordinator: its certificate is not for serving.
        let (_, client) =
            handshake(&of(&authority, &agent("c"), &hosts, HOUR), &of(&authority, &agent("d"), &[], HOUR)).await;
        assert!(client.is_err(), "{client:?}");
        // A coordinator's certificate is not accepted for another host.
        let elsewhere = of(&authority, &Peer::Coordinator, &["elsewhere.example".into()], HOUR);
        let (_, client) = handshake(&elsewhere, &of(&authority, &agent("e"), &[], HOUR)).await;
        assert!(client.clone().unwrap_err().contains("not valid for name"), "{client:?}");
    }

    #[test]
    fn nothing_is_overwritten_and_an_authority_opens_again() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Authority::open(folder.path()), Err(AuthorityError::None(_))));
        Authority::create(folder.path(), HOUR).unwrap();
        assert!(matches!(Authority::create(folder.path(), HOUR), Err(AuthorityError::Exists(_))));
        let again = Authority::open(folder.path()).unwrap();
        let own = again.issue(&agent("a"), &[], HOUR).unwrap();
        assert_eq!(Credentials::new(&own).own_certificate().unwrap().peer, agent("a"));
        assert!(matches!(again.issue(&agent("a"), &[], HOUR), Err(AuthorityError::Exists(_))));
        assert!(matches!(Credentials::new(folder.path()).check(), Err(TlsError::File { .. })));
        let (from, until) = again.validity().unwrap();
        assert!(from < Moment::now() && Moment::now() < until);
        let other = tempfile::tempdir().unwrap();
        Authority::create(other.path(), HOUR).unwrap();
        std::fs::copy(other.path().join("ca.key"), folder.path().join("ca.key")).unwrap();
        assert!(matches!(Authority::open(folder.path()), Err(AuthorityError::OtherKey(_))));
    }
}
