//! Using grants: HTTP for presigned URLs, files for directories.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use tokio::sync::watch;

use super::directory::object::LocalObject;
use super::directory::{self, Root};
use super::grant::{GetGrant, PutGrant, Redeem, trouble_of};
use super::throttle::Throttle;
use super::{CreateError, Failure, GetError, Key, Operation, Trouble, Version};
use crate::clock::Moment;

/// The real redeemer: HTTP for presigned URLs (HTTP/1.1, one connection per request in flight), files for directories.
pub struct Redeemer {
    http: reqwest::Client,
    throttle: Throttle,
    stalled_after: Duration,
    files: FileGrants,
}

/// Which directories grants may name. Otherwise anybody who gives grants could have any file written here.
#[derive(Clone, Debug, PartialEq, Eq)]
enum FileGrants {
    /// Any directory: this process itself gives the grants.
    Any,
    /// Only those that both sides see. If the list is empty, the repositories are elsewhere.
    Only(Vec<PathBuf>),
}

/// A transfer that makes no progress for this long counts as dead, however long it may take in total.
const STALLED_AFTER: Duration = Duration::from_secs(60);
/// Uploads go to the connection in pieces of this many bytes. Each piece counts as progress.
const PIECE: usize = 128 << 10;

/// The HTTP client could not be made.
#[derive(Debug, thiserror::Error)]
pub enum HttpSetupError {
    /// The file of the private CA can't be read.
    #[error("can't read the CA file {path:?}")]
    CaFile {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It holds no certificate.
    #[error("the CA file {path:?} holds no PEM certificate")]
    CaContent {
        /// Which file.
        path: PathBuf,
    },
    /// TLS could not be set up.
    #[error("can't set up TLS")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Redeemer {
    /// A redeemer with an optional private CA (PEM) and a bound on bandwidth.
    ///
    /// # Errors
    /// [`HttpSetupError`] for a CA file that can't be used.
    pub fn new(ca_file: Option<&std::path::Path>, throttle: Throttle) -> Result<Self, HttpSetupError> {
        let mut builder = reqwest::Client::builder()
            .http1_only()
            .connect_timeout(Duration::from_secs(10))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never());
        if let Some(path) = ca_file {
            let pem = std::fs::read(path).map_err(|source| HttpSetupError::CaFile { path: path.to_owned(), source })?;
            let roots = reqwest::Certificate::from_pem_bundle(&pem)
                .ok()
                .filter(|c| !c.is_empty())
                .ok_or_else(|| HttpSetupError::CaContent { path: path.to_owned() })?;
            builder = builder.tls_certs_merge(roots);
        }
        let http = builder.build().map_err(|e| HttpSetupError::Tls(e.into()))?;
        Ok(Self { http, throttle, stalled_after: STALLED_AFTER, files: FileGrants::Any })
    }

    /// For grants from another process: a file grant is used only in `directories`. Each of them is one repository's, and both
    /// sides see it.
    #[must_use]
    pub fn files_only_in(self, directories: Vec<PathBuf>) -> Self {
        Self { files: FileGrants::Only(directories), ..self }
    }

    fn check_file(&self, operation: Operation, root: &std::path::Path, key: &Key) -> Result<(), Failure> {
        let why = match &self.files {
            FileGrants::Any => return Ok(()),
            FileGrants::Only(directories) if directories.is_empty() => {
                format!(
                    "a grant for a file in {root:?}, which is not shared with this machine (--repository-directory)"
                )
            }
            FileGrants::Only(directories) if !directories.iter().any(|directory| directory == root) => {
                let shared: Vec<String> = directories.iter().map(|d| format!("{d:?}")).collect();
                format!("a grant for {root:?}, and only {} is a repository here", shared.join(", "))
            }
            FileGrants::Only(_) if root.join(Key::config().as_str()).exists() => return Ok(()),
            FileGrants::Only(_) => format!("{root:?} holds no repository here: is it mounted?"),
        };
        Err(Failure::new(operation, key, Trouble::Refused).because(why))
    }

    /// Sets how long a transfer may make no progress.
    #[must_use]
    pub fn stalled_after(self, stalled_after: Duration) -> Self {
        Self { stalled_after, ..self }
    }

    /// The body in pieces. Each piece is reported to `moved`.
    fn body(&self, body: Bytes, moved: watch::Sender<()>) -> reqwest::Body {
        let piece = self.throttle.piece().min(PIECE);
        let pieces = futures::stream::unfold(
            (body, moved, self.throttle.clone()),
            move |(mut rest, moved, throttle)| async move {
                if rest.is_empty() {
                    return None;
                }
                let piece = rest.split_to(piece.min(rest.len()));
                throttle.take(piece.len()).await;
                moved.send_replace(());
                Some((Ok::<_, std::io::Error>(piece), (rest, moved, throttle)))
            },
        );
        reqwest::Body::wrap_stream(pieces)
    }

    /// Waits for `work` as long as there is progress.
    async fn unless_stalled<T>(
        &self,
        operation: Operation,
        url: &str,
        mut moves: watch::Receiver<()>,
        work: impl Future<Output = Result<T, reqwest::Error>>,
    ) -> Result<T, Failure> {
        let stalled = async {
            // Without a sender only the answer counts as progress.
            while let Ok(Ok(())) = tokio::time::timeout(self.stalled_after, moves.changed()).await {}
            if moves.has_changed().is_err() {
                tokio::time::sleep(self.stalled_after).await;
            }
        };
        tokio::select! {
            result = work => result.map_err(|e| transport(operation, url, e)),
            () = stalled => {
                let why = format!("nothing moved for {} s", self.stalled_after.as_secs());
                Err(Failure::new(operation, shown(url), Trouble::Unreachable).because(why))
            }
        }
    }
}

/// The URL without its query. The query of a presigned URL is a secret for as long as it is valid.
fn shown(url: &str) -> &str {
    url.split('?').next().unwrap_or(url)
}

fn transport(operation: Operation, url: &str, e: reqwest::Error) -> Failure {
    let trouble = if e.is_body() || e.is_decode() { Trouble::Garbled } else { Trouble::Unreachable };
    Failure::new(operation, shown(url), trouble).because(e.without_url())
}

/// The text of an S3 error answer.
#[derive(Debug, thiserror::Error)]
#[error("HTTP {status}: {text}")]
struct Answer {
    status: u16,
    text: String,
}

/// A query parameter of a presigned URL, as it is written there.
fn parameter<'a>(url: &'a str, name: &str) -> Option<&'a str> {
    let query = url.split_once('?')?.1;
    query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// Whether the credentials that signed a presigned URL are those of a session, which ends.
fn is_of_session(url: &str) -> bool {
    parameter(url, "X-Amz-Security-Token").is_some()
}

/// Whether the time of a presigned URL is over (Signature Version 4, query parameters).
fn has_expired(url: &str, now: Moment) -> bool {
    let value = |name: &str| parameter(url, name);
    let end = || {
        let signed = jiff::fmt::strtime::parse("%Y%m%dT%H%M%SZ", value("X-Amz-Date")?).ok()?.to_datetime().ok()?;
        let signed = signed.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
        let lifetime = Duration::from_secs(value("X-Amz-Expires")?.parse().ok()?);
        Some(Moment::from_millis(signed.as_millisecond()).plus(lifetime))
    };
    end().is_some_and(|end| end <= now)
}

async fn refused(operation: Operation, url: &str, response: reqwest::Response) -> Failure {
    let status = response.status().as_u16();
    // Our own clock may be wrong.
    let said = response.headers().get("date").and_then(|date| jiff::fmt::rfc2822::parse(date.to_str().ok()?).ok());
    let now = said.map_or_else(Moment::now, |said| Moment::from_millis(said.timestamp().as_millisecond()));
    let text: String = response.text().await.unwrap_or_default().chars().take(2000).collect();
    let code = text.split_once("<Code>").and_then(|(_, r)| r.split_once("</Code>")).map_or("", |(c, _)| c);
    let trouble = match trouble_of(status, code) {
        // Amazon's code for this is the one of every refusal.
        Trouble::Denied if has_expired(url, now) => Trouble::Expired,
        // SeaweedFS forgets the keys of a session that is over.
        Trouble::Denied if code == "InvalidAccessKeyId" && is_of_session(url) => Trouble::Expired,
        other => other,
    };
    let failure = Failure::new(operation, shown(url), trouble);
    let failure = if status >= 500 { failure.maybe() } else { failure };
    failure.because(Answer { status, text })
}

/// What the headers of an answer say about its body.
struct Part {
    /// Its first byte in the object.
    start: Option<u64>,
    /// Bytes of the object.
    total: Option<u64>,
}

impl Part {
    /// From `Content-Range: bytes 0-9/100` (RFC 9110, 14.4), or, for a whole object, from its length.
    fn of(response: &reqwest::Response) -> Self {
        let text = response.headers().get("content-range").and_then(|v| v.to_str().ok()).unwrap_or_default();
        let (range, total) = text.trim_start_matches("bytes ").split_once('/').unwrap_or_default();
        let start = range.split_once('-').and_then(|(start, _)| start.parse().ok());
        let whole = (response.status().as_u16() == 200).then(|| response.content_length()).flatten();
        Self { start, total: total.parse().ok().or(whole) }
    }
}

/// Checks that a complete answer holds all of the range; otherwise the object is too short.
fn exact(out: &[u8], wanted: usize, what: impl ToString) -> Result<(), GetError> {
    if out.len() == wanted {
        return Ok(());
    }
    let cause = format!("{} bytes instead of {wanted}", out.len());
    Err(Failure::new(Operation::Get, what, Trouble::Short).because(cause).into())
}

#[async_trait]
impl Redeem for Redeemer {
    async fn put(&self, grant: &PutGrant, body: Bytes) -> Result<Option<Version>, CreateError> {
        match grant {
            PutGrant::Presigned { url, headers } => {
                let length = body.len();
                let (moved, moves) = watch::channel(());
                let mut request = self.http.put(url).body(self.body(body, moved));
                for (name, value) in headers {
                    if !name.eq_ignore_ascii_case("content-length") {
                        request = request.header(name, value);
                    }
                }
                request = request.header("content-length", length);
                Operation::Create.count();
                let sent = self.unless_stalled(Operation::Create, url, moves, request.send()).await;
                let response = sent.map_err(Failure::maybe)?;
                match response.status().as_u16() {
                    200..300 => {
                        let version = response.headers().get("x-amz-version-id").and_then(|v| v.to_str().ok());
                        Ok(version.map(|v| Version(v.to_owned())))
                    }
                    // Another conditional PUT of the same key is under way: try again.
                    409 => {
                        let failure = refused(Operation::Create, url, response).await;
                        Err(Failure { trouble: Trouble::Busy, ..failure }.into())
                    }
                    412 => Err(CreateError::Exists(shown(url).to_owned())),
                    _ => Err(refused(Operation::Create, url, response).await.into()),
                }
            }
            PutGrant::File { root, key, lock } => {
                self.check_file(Operation::Create, root, key)?;
                let root = Root::of_repository(root.clone());
                directory::create(root, key.clone(), body, *lock, self.throttle.clone()).await.map(Some)
            }
        }
    }

    async fn get(&self, grant: &GetGrant, range: Range<u64>, out: &mut Vec<u8>) -> Result<(), GetError> {
        let wanted = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        match grant {
            GetGrant::Presigned { url, headers } => {
                let mut request = self.http.get(url);
                for (name, value) in headers {
                    request = request.header(name, value);
                }
                let request = request.header("range", format!("bytes={}-{}", range.start, range.end - 1));
                // No body is sent, so only the answer counts as progress.
                let still = || watch::channel(()).1;
                Operation::Get.count();
                let response = self.unless_stalled(Operation::Get, url, still(), request.send()).await?;
                let status = response.status().as_u16();
                let part = Part::of(&response);
                match status {
                    206 | 200 => {}
                    404 => return Err(GetError::NotFound(shown(url).to_owned())),
                    416 if part.total.is_none_or(|total| total < range.end) => {
                        return Err(Failure::new(Operation::Get, shown(url), Trouble::Short).into());
                    }
                    _ => return Err(refused(Operation::Get, url, response).await.into()),
                }
                let garbled = |why: String| Failure::new(Operation::Get, shown(url), Trouble::Garbled).because(why);
                // A server that ignores ranges sends the whole object. The bytes before the range are dropped as they arrive.
                let whole = status == 200;
                if !whole && part.start.is_some_and(|start| start != range.start) {
                    return Err(garbled(format!("bytes from {:?} instead of {}", part.start, range.start)).into());
                }
                let mut before = if whole { usize::try_from(range.start).unwrap_or(usize::MAX) } else { 0 };
                out.clear();
                out.reserve_exact(wanted);
                let mut stream = response.bytes_stream();
                while let Some(piece) =
                    self.unless_stalled(Operation::Get, url, still(), stream.next().map(Option::transpose)).await?
                {
                    let skipped = before.min(piece.len());
                    before -= skipped;
                    let piece = &piece[skipped..];
                    let room = wanted - out.len();
                    if piece.len() > room && !whole {
                        return Err(garbled(format!("more than the {wanted} bytes that were asked for")).into());
                    }
                    out.extend_from_slice(&piece[..piece.len().min(room)]);
                    if whole && out.len() == wanted {
                        break;
                    }
                }
                // Too few bytes are damage only if the server says that the object has no more. Otherwise something on the way
                // cut the answer.
                if out.len() < wanted && part.total.is_none_or(|total| total >= range.end) {
                    return Err(garbled(format!("{} bytes instead of {wanted}", out.len())).into());
                }
                exact(out, wanted, shown(url))
            }
            GetGrant::File { root, key } => {
                self.check_file(Operation::Get, root, key)?;
                let buffer = std::mem::take(out);
                *out = directory::read(Root::of_repository(root.clone()), key.clone(), Some(range), buffer).await?;
                exact(out, wanted, key)
            }
        }
    }

    async fn open(&self, grant: &GetGrant, range: Range<u64>) -> Result<Option<LocalObject>, GetError> {
        match grant {
            GetGrant::Presigned { .. } => Ok(None),
            GetGrant::File { root, key } => {
                self.check_file(Operation::Get, root, key)?;
                directory::open(Root::of_repository(root.clone()), key.clone(), range).await.map(Some)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_expires_when_it_says() {
        let url = "https://store/bucket/key?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date=20261201T080000Z&X-Amz-Expires=900&x-id=PutObject";
        let at = |text: &str| Moment::parse(text).unwrap();
        assert!(!has_expired(url, at("2026-12-01T08:14:59Z")));
        assert!(has_expired(url, at("2026-12-01T08:15:00Z")));
        assert!(!is_of_session(url) && is_of_session(&format!("{url}&X-Amz-Security-Token=abc")));
        for other in [
            "https://store/key",
            "https://store/key?X-Amz-Date=20261201T080000Z",
            "https://store/key?X-Amz-Date=x&X-Amz-Expires=1",
        ] {
            assert!(!has_expired(other, at("2030-01-01T00:00:00Z")), "{other}");
        }
    }
}
