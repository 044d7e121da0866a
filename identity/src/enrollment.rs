//! Getting a certificate in a cluster: a process shows its projected ServiceAccount token, whose audience is ours, and gets
//! a certificate for a key that never leaves it. The token is read anew each time, since the kubelet replaces it.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use milkrun_proto::identity::v1::EnrollRequest;
use milkrun_proto::identity::v1::enrollment_client::EnrollmentClient;
use milkrun_repository::clock::Moment;
use rcgen::{KeyPair, PublicKeyData};
use tonic::transport::{Endpoint, Uri};

use crate::channel::CoordinatorUrl;
use crate::tls::{CA_FILE, CERTIFICATE_FILE, Credentials, KEY_FILE, TlsError};

/// The port of the enrolment, beside the coordinator's own.
pub const PORT: u16 = 7412;
/// The audience of tokens for the coordinator.
pub const AUDIENCE: &str = "milkrun.dev";
/// The pause before another attempt.
const AGAIN: Duration = Duration::from_secs(2);

/// How often the file of the authorities is looked at. The kubelet takes a minute to change it.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How long the file of the authorities may differ from what the coordinator said: its answer may have been lost on the way there.
const DIFFERENT_MAX: Duration = Duration::from_secs(600);

/// What a process needs to get its certificate.
#[derive(Debug, Clone)]
pub struct Enrollment {
    /// The coordinator. Its enrolment is at [`PORT`].
    pub url: CoordinatorUrl,
    /// The file of the authorities' certificates: a ConfigMap that is mounted.
    pub authority: PathBuf,
    /// The file of the token.
    pub token: PathBuf,
    /// Where the certificate goes: a folder in memory.
    pub folder: PathBuf,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum EnrollmentError {
    /// A file can't be read or written.
    #[error("can't read or write {path:?}")]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No key can be made.
    #[error("can't make a key")]
    Key(#[from] rcgen::Error),
    /// The coordinator can't be reached.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The connection does not speak HTTP/2.
    #[error("no gRPC with {0}")]
    Http(String, #[source] tonic::transport::Error),
    /// The coordinator gives no certificate.
    #[error("the coordinator gives no certificate: {}", .0.message())]
    Refused(Box<tonic::Status>),
}

fn file(path: &Path) -> impl FnOnce(std::io::Error) -> EnrollmentError + '_ {
    move |source| EnrollmentError::File { path: path.to_owned(), source }
}

impl Enrollment {
    /// Gets a certificate, and returns the folder with it as [`Credentials`].
    ///
    /// # Errors
    /// [`EnrollmentError`].
    pub async fn enroll(&self) -> Result<Credentials, EnrollmentError> {
        let token = fs::read_to_string(&self.token).map_err(file(&self.token))?;
        let public_key = self.key()?.subject_public_key_info();
        let mut client = EnrollmentClient::new(self.channel().await?);
        let request = EnrollRequest { token: token.trim().to_owned(), public_key: public_key.into() };
        let reply = client.enroll(request).await.map_err(|status| EnrollmentError::Refused(Box::new(status)))?;
        let reply = reply.into_inner();
        self.write(CA_FILE, &reply.authority)?;
        self.write(CERTIFICATE_FILE, &reply.certificate)?;
        Ok(Credentials::new(&self.folder))
    }

    /// Gets a certificate, however long that takes. `failed` hears of each attempt that failed.
    pub async fn enroll_at_last(&self, mut failed: impl FnMut(&EnrollmentError)) -> Credentials {
        loop {
            match self.enroll().await {
                Ok(credentials) => return credentials,
                Err(e) => failed(&e),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Gets a new certificate when half of the time of the present one is over, and when authorities have changed, again and again.
    pub async fn renew(&self, mut failed: impl FnMut(&EnrollmentError)) {
        let mut credentials = Credentials::new(&self.folder);
        loop {
            let until = credentials.own_certificate().map_or(0, |own| own.until.millis());
            let left = u64::try_from(until - Moment::now().millis()).unwrap_or(0);
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(left / 2).max(AGAIN)) => {}
                () = self.other_authorities() => {}
            }
            credentials = self.enroll_at_last(&mut failed).await;
        }
    }

    /// Waits until the file of the authorities has changed; or, for long, says something else than the coordinator did.
    async fn other_authorities(&self) {
        let known = fs::read(&self.authority).ok();
        let given = fs::read(self.folder.join(CA_FILE)).ok();
        let began = Instant::now();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = fs::read(&self.authority).ok();
            if now.is_some() && (now != known || now != given && began.elapsed() > DIFFERENT_MAX) {
                return;
            }
        }
    }

    /// The key of this process. It is made once, so that certificate and key always match.
    fn key(&self) -> Result<KeyPair, EnrollmentError> {
        let path = self.folder.join(KEY_FILE);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(KeyPair::from_pem(&text)?),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let key = KeyPair::generate()?;
                self.write(KEY_FILE, &key.serialize_pem())?;
                Ok(key)
            }
            Err(e) => Err(file(&path)(e)),
        }
    }

    /// Replaces a file whole.
    fn write(&self, name: &str, text: &str) -> Result<(), EnrollmentError> {
        fs::create_dir_all(&self.folder).map_err(file(&self.folder))?;
        let (path, new) = (self.folder.join(name), self.folder.join(format!("{name}.new")));
        let mut options = fs::OpenOptions::new();
        let opened = options.write(true).create(true).truncate(true).mode(0o600).open(&new);
        let written = opened.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()));
        written.and_then(|()| fs::rename(&new, &path)).map_err(file(&path))
    }

    async fn channel(&self) -> Result<tonic::transport::Channel, EnrollmentError> {
        let why: Arc<Mutex<Option<TlsError>>> = Arc::default();
        let (authority, host, failed) = (self.authority.clone(), self.url.host().to_owned(), why.clone());
        let connector = tower::service_fn(move |_: Uri| {
            let (authority, host, failed) = (authority.clone(), host.clone(), failed.clone());
            async move {
                let connected = Credentials::connect_stranger(&authority, &host, PORT).await;
                connected.map(TokioIo::new).map_err(|e| {
                    let text = e.to_string();
                    *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
                    std::io::Error::other(text)
                })
            }
        });
        let channel = Endpoint::from_static("http://coordinator").connect_with_connector(connector).await;
        channel.map_err(|e| match why.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(tls) => tls.into(),
            None => EnrollmentError::Http(self.url.to_string(), e),
        })
    }
}
