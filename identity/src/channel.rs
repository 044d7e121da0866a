//! gRPC channels to a coordinator, over TLS with certificates on both sides.

use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::tls::{Credentials, TlsError};

/// The default port.
pub const PORT: u16 = 7411;
/// The interval of keep-alive pings. A coordinator that is gone without closing the connection is noticed after about
/// twice this time.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Where a coordinator is: `https://host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoordinatorUrl {
    host: String,
    port: u16,
}

/// Not a coordinator's URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no coordinator: write https://host or https://host:port")]
pub struct BadUrl(String);

impl FromStr for CoordinatorUrl {
    type Err = BadUrl;
    fn from_str(s: &str) -> Result<Self, BadUrl> {
        let bad = || BadUrl(s.to_owned());
        let uri: Uri = s.parse().map_err(|_| bad())?;
        let plain = uri.path().trim_matches('/').is_empty() && uri.query().is_none();
        match (uri.scheme_str(), uri.host()) {
            (Some("https"), Some(host)) if plain => {
                Ok(Self { host: host.to_owned(), port: uri.port_u16().unwrap_or(PORT) })
            }
            _ => Err(bad()),
        }
    }
}

impl CoordinatorUrl {
    pub(crate) fn host(&self) -> &str {
        &self.host
    }
}

impl std::fmt::Display for CoordinatorUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "https://{}:{}", self.host, self.port)
    }
}

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// There is no connection.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The connection does not speak HTTP/2.
    #[error("no gRPC with {0}")]
    Http(String, #[source] tonic::transport::Error),
}

/// Bytes of one call that may be in flight before they are read. With the default, 64 KiB, each page of a plan would
/// take several round trips.
pub const STREAM_WINDOW: u32 = 4 << 20;
/// Bytes of all calls of a connection that may be in flight: the maximum of HTTP/2. With less, a few calls that are not
/// read, since their readers wait for something else, could fill the window, and the answer they wait for would never
/// come.
pub const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// Connects. The channel connects again by itself when the connection is lost.
///
/// # Errors
/// [`DialError`].
pub async fn dial(credentials: &Credentials, url: &CoordinatorUrl) -> Result<Channel, DialError> {
    let why: Arc<Mutex<Option<TlsError>>> = Arc::default();
    let (credentials, to, failed) = (credentials.clone(), url.clone(), why.clone());
    let connector = tower::service_fn(move |_: Uri| {
        let (credentials, to, failed) = (credentials.clone(), to.clone(), failed.clone());
        async move {
            match credentials.connect(&to.host, to.port).await {
                Ok(stream) => Ok(TokioIo::new(stream)),
                Err(e) => {
                    let text = e.to_string();
                    *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
                    Err(std::io::Error::other(text))
                }
            }
        }
    });
    let connected = Endpoint::from_static("http://coordinator")
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await;
    connected.map_err(|e| match why.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(tls) => tls.into(),
        None => DialError::Http(url.to_string(), e),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_https_with_a_host() {
        let url = |s: &str| s.parse::<CoordinatorUrl>().map(|u| u.to_string());
        assert_eq!(url("https://c.example"), Ok("https://c.example:7411".into()));
        assert_eq!(url("https://10.0.0.1:99/"), Ok("https://10.0.0.1:99".into()));
        assert_eq!(url("https://[::1]:99"), Ok("https://[::1]:99".into()));
        for bad in ["c.example:7411", "http://c.example", "https://", "https://c/x", "", "https://c?x=1"] {
            assert!(url(bad).is_err(), "{bad}");
        }
    }
}
