//! TLS between coordinator, agents and people: version 1.3, certificates on both sides, HTTP/2. Certificates are read from a
//! folder with the three files of a Kubernetes TLS secret, anew for each connection, so that they can be replaced at any time.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::peer::{Peer, PeerError};

/// The authority's certificate.
pub const CA_FILE: &str = "ca.crt";
/// One's own certificate.
pub const CERTIFICATE_FILE: &str = "tls.crt";
/// Its key.
pub const KEY_FILE: &str = "tls.key";

/// Who connects and says nothing holds a place no longer than this.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// Where one's own certificate lies.
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
    /// Key and certificate don't fit, or the like.
    #[error("the certificate in {folder:?} can't be used")]
    Unusable {
        /// Where they lie.
        folder: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
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
    /// A certificate that names nobody.
    #[error("{with} is refused")]
    Nobody {
        /// The other side's address.
        with: String,
        /// Why.
        #[source]
        source: PeerError,
    },
}

/// A connection that was accepted, and who is at its other end.
pub struct Accepted {
    /// The connection.
    pub stream: server::TlsStream<TcpStream>,
    /// Who.
    pub peer: Peer,
}

impl Credentials {
    /// Those in `folder`: [`CA_FILE`], [`CERTIFICATE_FILE`], [`KEY_FILE`].
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    fn certificates(&self, name: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let path = self.folder.join(name);
        let pem = read(&path)?;
        let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        parsed.ok().filter(|c| !c.is_empty()).ok_or(TlsError::Pem { path, what: "certificate" })
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

    /// Whom one's own certificate names.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn own_peer(&self) -> Result<Peer, TlsError> {
        let path = self.folder.join(CERTIFICATE_FILE);
        let own = self.certificates(CERTIFICATE_FILE)?;
        let first = own.first().ok_or(TlsError::Pem { path: path.clone(), what: "certificate" })?;
        Peer::of(first).map_err(|source| TlsError::Nobody { with: path.display().to_string(), source })
    }

    /// Both sides of the configuration, to see at the start whether the files can be used.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn check(&self) -> Result<(), TlsError> {
        self.own_peer()?;
        self.client().map(drop)
    }

    fn client(&self) -> Result<ClientConfig, TlsError> {
        let (certificates, key) = self.own()?;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| self.unusable(e))?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(certificates, key)
            .map_err(|e| self.unusable(e))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    fn server(&self) -> Result<ServerConfig, TlsError> {
        let (certificates, key) = self.own()?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), provider())
            .build()
            .map_err(|e| self.unusable(rustls::Error::General(e.to_string())))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| self.unusable(e))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates, key)
            .map_err(|e| self.unusable(e))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A certificate is looked at whenever somebody connects: nobody comes back on an old session.
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// Accepts a connection from somebody with a certificate of the same authority.
    ///
    /// # Errors
    /// [`TlsError`]: who it was, as far as that is known, and why it is refused.
    pub async fn accept(&self, connection: TcpStream, from: SocketAddr) -> Result<Accepted, TlsError> {
        // Small messages must not wait for others.
        let _ = connection.set_nodelay(true);
        let acceptor = TlsAcceptor::from(Arc::new(self.server()?));
        let fail = |source| TlsError::Handshake { with: from.to_string(), source };
        let stream = timely(acceptor.accept(connection)).await.map_err(fail)?;
        let peer = of_chain(stream.get_ref().1.peer_certificates());
        let peer = peer.map_err(|source| TlsError::Nobody { with: from.to_string(), source })?;
        Ok(Accepted { stream, peer })
    }

    /// Connects to a coordinator, whose certificate must be of the same authority and name `host`.
    ///
    /// # Errors
    /// [`TlsError`].
    pub async fn connect(&self, host: &str, port: u16) -> Result<client::TlsStream<TcpStream>, TlsError> {
        let address = format!("{host}:{port}");
        let connector = TlsConnector::from(Arc::new(self.client()?));
        let fail = |source| TlsError::Connect { address: address.clone(), source };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let connection = timely(TcpStream::connect((bare, port))).await.map_err(fail)?;
        let _ = connection.set_nodelay(true);
        let name =
            ServerName::try_from(bare.to_owned()).map_err(|e| fail(std::io::Error::new(ErrorKind::InvalidInput, e)))?;
        let fail = |source| TlsError::Handshake { with: address.clone(), source };
        let stream = timely(connector.connect(name, connection)).await.map_err(fail)?;
        match of_chain(stream.get_ref().1.peer_certificates()) {
            Ok(Peer::Coordinator) => Ok(stream),
            Ok(_) => Err(TlsError::Nobody { with: address, source: PeerError::Nobody }),
            Err(source) => Err(TlsError::Nobody { with: address, source }),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::File { path: path.to_owned(), source })
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn of_chain(chain: Option<&[CertificateDer<'static>]>) -> Result<Peer, PeerError> {
    Peer::of(chain.and_then(<[_]>::first).ok_or(PeerError::Nobody)?)
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
    use crate::authority::{Authority, AuthorityError};

    const HOUR: Duration = Duration::from_secs(3600);

    fn agent(node: &str) -> Peer {
        Peer::Agent(node.parse().unwrap())
    }

    /// What both sides say of one connection.
    async fn meet(server: &Credentials, client: &Credentials) -> (Result<Peer, String>, Result<(), String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let text = |e: &dyn std::error::Error| milkrun_repository::point::catalog::chain(e);
        let accept = async {
            let (connection, from) = listener.accept().await.unwrap();
            let mut accepted = server.accept(connection, from).await.map_err(|e| text(&e))?;
            accepted.stream.write_all(b"x").await.map_err(|e| text(&e))?;
            Ok(accepted.peer)
        };
        let connect = async {
            let mut stream = client.connect("127.0.0.1", port).await.map_err(|e| text(&e))?;
            // With TLS 1.3 the client's handshake ends before the server has looked at its certificate.
            stream.read_exact(&mut [0]).await.map(drop).map_err(|e| text(&e))
        };
        tokio::join!(accept, connect)
    }

    #[tokio::test]
    async fn only_certificates_of_the_same_authority_are_taken_and_both_sides_know_why() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(&folder.path().join("ours"), HOUR).unwrap();
        let foreign = Authority::create(&folder.path().join("theirs"), HOUR).unwrap();
        let hosts = ["127.0.0.1".to_owned()];
        let of = |a: &Authority, peer: &Peer, hosts: &[String], valid| {
            Credentials::new(a.issue(peer, hosts, valid).unwrap())
        };
        let server = of(&authority, &Peer::Coordinator, &hosts, HOUR);
        let (peer, ok) = meet(&server, &of(&authority, &agent("a"), &[], HOUR)).await;
        assert_eq!((peer, ok), (Ok(agent("a")), Ok(())));

        let (peer, client) = meet(&server, &of(&foreign, &agent("b"), &[], HOUR)).await;
        assert!(client.clone().unwrap_err().contains("UnknownIssuer"), "{client:?}");
        assert!(peer.clone().unwrap_err().contains("UnknownCA"), "{peer:?}");

        let expired = of(&authority, &agent("old"), &[], Duration::ZERO);
        tokio::time::sleep(Duration::from_millis(2100)).await;
        let (peer, client) = meet(&server, &expired).await;
        assert!(peer.clone().unwrap_err().to_lowercase().contains("expired"), "{peer:?}");
        assert!(client.clone().unwrap_err().contains("CertificateExpired"), "{client:?}");

        // An agent can't play the coordinator: its certificate is not for serving.
        let (_, client) =
            meet(&of(&authority, &agent("c"), &hosts, HOUR), &of(&authority, &agent("d"), &[], HOUR)).await;
        assert!(client.is_err(), "{client:?}");
        // Nor is a coordinator's taken for another host.
        let elsewhere = of(&authority, &Peer::Coordinator, &["elsewhere.example".into()], HOUR);
        let (_, client) = meet(&elsewhere, &of(&authority, &agent("e"), &[], HOUR)).await;
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
        assert_eq!(Credentials::new(&own).own_peer().unwrap(), agent("a"));
        assert!(matches!(again.issue(&agent("a"), &[], HOUR), Err(AuthorityError::Exists(_))));
        assert!(matches!(Credentials::new(folder.path()).check(), Err(TlsError::File { .. })));
    }
}
