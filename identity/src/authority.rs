//! A small certificate authority in a folder: `ca.crt`, `ca.key`, and a folder for each certificate that it issued. For
//! installations without one of their own; any other authority that writes the same names will do.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use milkrun_repository::clock::{Moment, entropy};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use time::OffsetDateTime;

use crate::peer::Peer;
use crate::tls::{CA_FILE, CERTIFICATE_FILE, KEY_FILE};

/// Certificates are valid from a little before they were made: clocks differ.
const BEFORE: Duration = Duration::from_secs(5 * 60);

/// An authority, opened.
pub struct Authority {
    folder: PathBuf,
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Why nothing was issued.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// There is one already.
    #[error("{0:?} exists already; nothing is overwritten")]
    Exists(PathBuf),
    /// There is none.
    #[error("there is no certificate authority in {0:?}: make one with `milkrun certs authority`")]
    None(PathBuf),
    /// A file can't be read or written.
    #[error("can't read or write {path:?}")]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The authority's files, or what is asked of it, make no sense.
    #[error("can't make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// A time that no calendar has.
    #[error("the certificate would end after the year 9999")]
    Time,
}

fn validity(params: &mut CertificateParams, valid: Duration) -> Result<(), AuthorityError> {
    let now = Moment::now();
    let at = |m: Moment| OffsetDateTime::from_unix_timestamp(m.millis() / 1000).map_err(|_| AuthorityError::Time);
    params.not_before = at(Moment::from_millis(now.millis() - i64::try_from(BEFORE.as_millis()).unwrap_or(0)))?;
    params.not_after = at(now.plus(valid))?;
    Ok(())
}

/// Writes a new file, readable by its owner alone.
fn write(path: &Path, content: &str) -> Result<(), AuthorityError> {
    let fail = |source: std::io::Error| match source.kind() {
        ErrorKind::AlreadyExists => AuthorityError::Exists(path.to_owned()),
        _ => AuthorityError::File { path: path.to_owned(), source },
    };
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(fail)?;
    file.write_all(content.as_bytes()).and_then(|()| file.sync_all()).map_err(fail)
}

fn make_folder(folder: &Path) -> Result<(), AuthorityError> {
    fs::create_dir_all(folder).map_err(|source| AuthorityError::File { path: folder.to_owned(), source })
}

impl Authority {
    /// Makes one in a folder that has none.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn create(folder: &Path, valid: Duration) -> Result<Self, AuthorityError> {
        make_folder(folder)?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // Each has a name of its own: of two with one name the wrong one is found, and its signature called false.
        let own = entropy::<4>().iter().map(|b| format!("{b:02x}")).collect::<String>();
        params.distinguished_name.push(DnType::CommonName, format!("milkrun authority {own}"));
        validity(&mut params, valid)?;
        let certificate = params.self_signed(&key)?.pem();
        // The key first: a certificate without its key would look like an authority.
        write(&folder.join("ca.key"), &key.serialize_pem())?;
        write(&folder.join(CA_FILE), &certificate)?;
        Ok(Self { folder: folder.to_owned(), certificate, issuer: Issuer::new(params, key) })
    }

    /// Opens the one in a folder.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn open(folder: &Path) -> Result<Self, AuthorityError> {
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).map_err(|source| match source.kind() {
                ErrorKind::NotFound => AuthorityError::None(folder.to_owned()),
                _ => AuthorityError::File { path, source },
            })
        };
        let (certificate, key) = (read(CA_FILE)?, read("ca.key")?);
        let issuer = Issuer::from_ca_cert_pem(&certificate, KeyPair::from_pem(&key)?)?;
        Ok(Self { folder: folder.to_owned(), certificate, issuer })
    }

    /// Issues a certificate and its key into a folder of its own, and returns that folder. Only a coordinator serves, and has
    /// `hosts`: the names and addresses at which others reach it.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn issue(&self, peer: &Peer, hosts: &[String], valid: Duration) -> Result<PathBuf, AuthorityError> {
        let (kind, name) = match peer {
            Peer::Agent(node) => ("agent", node.to_string()),
            Peer::User { name, .. } => ("user", name.clone()),
            Peer::Coordinator | Peer::Local => ("coordinator", hosts.first().cloned().unwrap_or_default()),
        };
        let mut params = CertificateParams::new(hosts.to_vec())?;
        for uri in peer.uris() {
            params.subject_alt_names.push(SanType::URI(uri.try_into()?));
        }
        params.distinguished_name.push(DnType::CommonName, format!("{kind} {name}"));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match peer {
            Peer::Coordinator => ExtendedKeyUsagePurpose::ServerAuth,
            _ => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        params.use_authority_key_identifier_extension = true;
        validity(&mut params, valid)?;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let safe: String =
            name.chars().map(|c| if c.is_alphanumeric() || "-._".contains(c) { c } else { '_' }).collect();
        let folder = self.folder.join(format!("{kind}-{safe}"));
        make_folder(&folder)?;
        write(&folder.join(KEY_FILE), &key.serialize_pem())?;
        write(&folder.join(CERTIFICATE_FILE), &certificate.pem())?;
        write(&folder.join(CA_FILE), &self.certificate)?;
        Ok(folder)
    }
}
