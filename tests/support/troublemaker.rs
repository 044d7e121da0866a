//! A server between milkrun and a real S3 server. It passes everything on, except where a script wants a fault: the
//! faults of real networks and real stores, at the level of HTTP.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, LAST_MODIFIED, RANGE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A fault of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// An S3 error with this status and code; the server never sees the request.
    Answer(u16, &'static str),
    /// The connection is reset; the server never sees the request.
    Reset,
    /// No answer ever comes; the server never sees the request.
    Stall,
    /// The answer says success, and the server never sees the request.
    Lie,
    /// The server handles the request, and the connection is reset instead of an answer.
    DoneThenReset,
    /// The server handles the request, and no answer ever comes.
    DoneThenStall,
    /// The server handles the request, and the answer is an error.
    DoneThen(u16, &'static str),
    /// The connection ends in the middle of the answer's body.
    Truncate,
    /// One bit of the answer's body is flipped.
    Flip,
    /// The answer has this `Last-Modified`.
    Dated(&'static str),
    /// The requested range is ignored, and the whole object is returned.
    Whole,
    /// The answer has half of the range, and its length is stated as complete.
    Shorter,
    /// The answer is longer than the range.
    Longer,
    /// The answer lacks all headers whose names begin like this.
    Without(&'static str),
}

/// Decides on the fault of the n-th request.
pub type Script = Arc<dyn Fn(u64, &Request<Incoming>) -> Option<Trouble> + Send + Sync>;

/// The server.
#[derive(Clone)]
pub struct Troublemaker {
    shared: Arc<Shared>,
    address: SocketAddr,
}

struct Shared {
    upstream: String,
    script: Mutex<Script>,
    requests: AtomicU64,
    troubles: AtomicU64,
}

/// No answer is given: the connection is to be reset.
#[derive(Debug, thiserror::Error)]
#[error("reset on purpose")]
struct ResetNow;

type Body = UnsyncBoxBody<Bytes, ResetNow>;

fn passing() -> Script {
    Arc::new(|_, _| None)
}

#[expect(clippy::expect_used, reason = "a test helper")]
impl Troublemaker {
    /// Listens on loopback in front of `upstream` (host and port).
    ///
    /// # Panics
    /// If it can't.
    pub async fn start(upstream: &str) -> Self {
        Self::serve(upstream, None).await
    }

    /// As [`Self::start`], with TLS. Returns the certificate of the CA that has to be trusted, in PEM.
    ///
    /// # Panics
    /// If it can't.
    pub async fn start_tls(upstream: &str) -> (Self, String) {
        let ca_key = rcgen::KeyPair::generate().expect("a key");
        let mut ca = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        ca.distinguished_name.push(rcgen::DnType::CommonName, "milkrun test CA");
        let ca_certificate = ca.self_signed(&ca_key).expect("a certificate");
        let issuer = rcgen::Issuer::new(ca, ca_key);
        let key = rcgen::KeyPair::generate().expect("a key");
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certificate = rcgen::CertificateParams::new(names).expect("parameters").signed_by(&key, &issuer);
        let certificate = certificate.expect("a certificate");
        let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .expect("a TLS configuration");
        let server = Self::serve(upstream, Some(TlsAcceptor::from(Arc::new(config)))).await;
        (server, ca_certificate.pem())
    }

    async fn serve(upstream: &str, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            upstream: upstream.trim_start_matches("http://").to_owned(),
            script: Mutex::new(passing()),
            requests: AtomicU64::new(0),
            troubles: AtomicU64::new(0),
        });
        let server = Self { shared, address };
        let accepting = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (this, tls) = (accepting.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        // A client that does not trust the certificate hangs up, which is expected.
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                this.connection(stream, None).await;
                            }
                        }
                        None => {
                            let Ok(stream) = stream.into_std() else { return };
                            let Ok(second) = stream.try_clone() else { return };
                            let Ok(stream) = TcpStream::from_std(stream) else { return };
                            this.connection(stream, Some(second)).await;
                        }
                    }
                });
            }
        });
        server
    }

    /// Host and port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Uses this script from now on.
    ///
    /// # Panics
    /// Never, but for a poisoned lock.
    pub fn script(&self, script: impl Fn(u64, &Request<Incoming>) -> Option<Trouble> + Send + Sync + 'static) {
        *self.shared.script.lock().expect("not poisoned") = Arc::new(script);
    }

    /// Makes no faults from now on. Returns the number of faults since the last call.
    ///
    /// # Panics
    /// Never, but for a poisoned lock.
    pub fn behave(&self) -> u64 {
        *self.shared.script.lock().expect("not poisoned") = passing();
        self.shared.troubles.swap(0, Ordering::SeqCst)
    }

    /// The number of requests so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }

    async fn connection(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send,
        socket: Option<std::net::TcpStream>,
    ) {
        let service = service_fn(|request| self.answer(request));
        let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        if served.await.is_err()
            && let Some(socket) = socket
        {
            // With a linger time of zero, closing sends RST instead of FIN.
            let now = nix::libc::linger { l_onoff: 1, l_linger: 0 };
            let _ = nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Linger, &now);
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, ResetNow> {
        let n = self.shared.requests.fetch_add(1, Ordering::SeqCst);
        let script = self.shared.script.lock().expect("not poisoned").clone();
        let Some(trouble) = script(n, &request) else { return self.pass_on(request).await };
        self.shared.troubles.fetch_add(1, Ordering::SeqCst);
        match trouble {
            Trouble::Answer(status, code) => {
                let head = request.method() == Method::HEAD;
                // Like a real server, this reads the request's body before it answers.
                request.into_body().collect().await.map_err(|_| ResetNow)?;
                Ok(error(status, code, head))
            }
            Trouble::Reset => Err(ResetNow),
            Trouble::Stall => forever().await,
            Trouble::Lie => {
                request.into_body().collect().await.map_err(|_| ResetNow)?;
                Ok(Response::new(whole(Bytes::new())))
            }
            Trouble::DoneThenReset => {
                self.pass_on(request).await?;
                Err(ResetNow)
            }
            Trouble::DoneThenStall => {
                self.pass_on(request).await?;
                forever().await
            }
            Trouble::DoneThen(status, code) => {
                let head = request.method() == Method::HEAD;
                self.pass_on(request).await?;
                Ok(error(status, code, head))
            }
            Trouble::Truncate => {
                let (head, body) = self.pass_on(request).await?.into_parts();
                let body = body.collect().await?.to_bytes();
                let half = Ok(Frame::data(body.slice(..body.len() / 2)));
                let frames = tokio_stream::iter([half, Err(ResetNow)]);
                Ok(Response::from_parts(head, StreamBody::new(frames).boxed_unsync()))
            }
            Trouble::Flip => {
                let (head, body) = self.pass_on(request).await?.into_parts();
                let mut body = body.collect().await?.to_bytes().to_vec();
                let middle = body.len() / 2;
                if let Some(byte) = body.get_mut(middle) {
                    *byte ^= 0x10;
                }
                Ok(Response::from_parts(head, whole(body.into())))
            }
            Trouble::Dated(when) => {
                let mut answer = self.pass_on(request).await?;
                answer.headers_mut().insert(LAST_MODIFIED, when.parse().expect("a header's value"));
                Ok(answer)
            }
            Trouble::Whole => {
                let mut request = request;
                request.headers_mut().remove(RANGE);
                self.pass_on(request).await
            }
            Trouble::Shorter => self.resized(request, |body| body.slice(..body.len() / 2)).await,
            Trouble::Longer => self.resized(request, |body| [&body[..], b"more"].concat().into()).await,
            Trouble::Without(start) => {
                let (mut head, body) = self.pass_on(request).await?.into_parts();
                // A repeated header comes without its name; no header here is repeated.
                head.headers = head
                    .headers
                    .into_iter()
                    .filter_map(|(n, v)| Some((n?, v)))
                    .filter(|(n, _)| !n.as_str().starts_with(start))
                    .collect();
                Ok(Response::from_parts(head, body))
            }
        }
    }

    async fn resized(
        &self,
        request: Request<Incoming>,
        resize: impl FnOnce(Bytes) -> Bytes,
    ) -> Result<Response<Body>, ResetNow> {
        let (mut head, body) = self.pass_on(request).await?.into_parts();
        let body = resize(body.collect().await?.to_bytes());
        head.headers.insert(CONTENT_LENGTH, body.len().into());
        Ok(Response::from_parts(head, whole(body)))
    }

    async fn pass_on(&self, request: Request<Incoming>) -> Result<Response<Body>, ResetNow> {
        let stream = TcpStream::connect(&self.shared.upstream).await.map_err(|_| ResetNow)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|_| ResetNow)?;
        tokio::spawn(connection);
        let (mut head, body) = request.into_parts();
        // As a proxy, it gets an absolute URI, and the server needs only the path. The Host header, which is signed,
        // stays.
        head.uri = head.uri.path_and_query().expect("a path").as_str().parse().expect("a path");
        let answer = sender.send_request(Request::from_parts(head, body)).await.map_err(|_| ResetNow)?;
        let (mut head, body) = answer.into_parts();
        let body = body.collect().await.map_err(|_| ResetNow)?.to_bytes();
        // The body is complete, so its length is known, and is stated even if the body came in chunks. The answer to a
        // HEAD has no body, and keeps the stated length.
        if !body.is_empty() {
            head.headers.remove("transfer-encoding");
            head.headers.insert(CONTENT_LENGTH, body.len().into());
        }
        Ok(Response::from_parts(head, whole(body)))
    }
}

fn whole(body: Bytes) -> Body {
    Full::new(body).map_err(|e: Infallible| match e {}).boxed_unsync()
}

async fn forever() -> Result<Response<Body>, ResetNow> {
    // Waits until the client hangs up. The time is bounded, so that no test hangs.
    tokio::time::sleep(Duration::from_secs(600)).await;
    Err(ResetNow)
}

#[expect(clippy::expect_used, reason = "a test helper")]
fn error(status: u16, code: &str, head: bool) -> Response<Body> {
    let text = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>on purpose</Message></Error>");
    let mut answer = Response::new(whole(if head { Bytes::new() } else { text.into() }));
    *answer.status_mut() = StatusCode::from_u16(status).expect("a status");
    answer
}
