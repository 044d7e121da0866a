//! Connections of somebody who has no certificate yet; and how any connection is made.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::{Credentials, TlsError, certificates, of_chain, provider, timely};
use crate::certificate::Certificate;
use crate::peer::{Peer, PeerError};

impl Credentials {
    /// Accepts a connection from somebody who has no certificate yet.
    ///
    /// # Errors
    /// [`TlsError`].
    pub async fn accept_stranger(
        &self,
        connection: TcpStream,
        from: SocketAddr,
    ) -> Result<server::TlsStream<TcpStream>, TlsError> {
        let (certificates, key) = self.own()?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| self.unusable(e))?
            .with_no_client_auth()
            .with_single_cert(certificates, key)
            .map_err(|e| self.unusable(e))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        let fail = |source| TlsError::Handshake { with: from.to_string(), source };
        timely(TlsAcceptor::from(Arc::new(config)).accept(connection)).await.map_err(fail)
    }

    /// Connects to a coordinator as somebody who has no certificate yet. `authority` is the file of the authority's
    /// certificate; the coordinator's must be of it, and name `host`.
    ///
    /// # Errors
    /// [`TlsError`].
    pub async fn connect_stranger(
        authority: &Path,
        host: &str,
        port: u16,
    ) -> Result<client::TlsStream<TcpStream>, TlsError> {
        let mut roots = RootCertStore::empty();
        let unusable = |source| TlsError::Unusable { folder: authority.to_owned(), source };
        for certificate in certificates(authority)? {
            roots.add(certificate).map_err(unusable)?;
        }
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        connect_as(TlsConnector::from(Arc::new(config)), host, port).await
    }
}

/// Connects to a coordinator, whose certificate must be that of one.
pub(super) async fn connect_as(
    connector: TlsConnector,
    host: &str,
    port: u16,
) -> Result<client::TlsStream<TcpStream>, TlsError> {
    let address = format!("{host}:{port}");
    let fail = |source| TlsError::Connect { address: address.clone(), source };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let connection = timely(TcpStream::connect((bare, port))).await.map_err(fail)?;
    let _ = connection.set_nodelay(true);
    let name =
        ServerName::try_from(bare.to_owned()).map_err(|e| fail(std::io::Error::new(ErrorKind::InvalidInput, e)))?;
    let fail = |source| TlsError::Handshake { with: address.clone(), source };
    let stream = timely(connector.connect(name, connection)).await.map_err(fail)?;
    match of_chain(stream.get_ref().1.peer_certificates()) {
        Ok(Certificate { peer: Peer::Coordinator, .. }) => Ok(stream),
        Ok(_) => Err(TlsError::Nobody { with: address, source: PeerError::Nobody }),
        Err(source) => Err(TlsError::Nobody { with: address, source }),
    }
}
