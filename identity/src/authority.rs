//! A small certificate authority in a folder: `ca.crt`, `ca.key`, and a folder for each certificate that it issued. It
//! is for installations without an authority of their own. Any other authority works too if its certificates have the
//! same URIs.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use milkrun_repository::clock::{Moment, entropy};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData, RevokedCertParams, SanType, SerialNumber,
    SubjectPublicKeyInfo,
};
use time::OffsetDateTime;

use crate::certificate::{Serial, public_key, validity as validity_of};
use crate::peer::Peer;
use crate::revocation::{CRL_FILE, RevocationLists};
use crate::tls::{CA_FILE, CERTIFICATE_FILE, Credentials, KEY_FILE, TlsError};

/// Certificates are valid from a little before they were made, since clocks differ.
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
    /// There is a file of this name already.
    #[error("{0:?} exists already; nothing is overwritten")]
    Exists(PathBuf),
    /// There is no authority.
    #[error("there is no certificate authority in {0:?}: make one with `milkrun certs authority`")]
    None(PathBuf),
    /// Key and certificate are not of one authority.
    #[error("in {0:?}, the key is not that of the authority's certificate")]
    OtherKey(PathBuf),
    /// A file can't be read or written.
    #[error("can't read or write {path:?}")]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The authority's files or the request make no sense.
    #[error("can't make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// A time that no calendar has.
    #[error("the certificate would end after the year 9999")]
    Time,
    /// Neither a certificate nor a serial number.
    #[error("{0:?} is neither a folder with a certificate, nor a certificate, nor a serial number")]
    NoCertificate(String),
    /// The certificate, or the list of what was revoked before, can't be read.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The date of the next list, which each list must name. Lists are not made by date: a certificate is revoked when
/// there is need.
const NEXT_LIST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// What was revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// The certificate.
    pub serial: Serial,
    /// The revocation lists that were written.
    pub lists: Vec<PathBuf>,
    /// Where its folder was moved, so that a new certificate can have its name.
    pub moved: Option<PathBuf>,
}

fn at(moment: Moment) -> Result<OffsetDateTime, AuthorityError> {
    OffsetDateTime::from_unix_timestamp(moment.millis() / 1000).map_err(|_| AuthorityError::Time)
}

fn validity(params: &mut CertificateParams, valid: Duration) -> Result<(), AuthorityError> {
    let now = Moment::now();
    params.not_before = at(Moment::from_millis(now.millis() - i64::try_from(BEFORE.as_millis()).unwrap_or(0)))?;
    params.not_after = at(now.plus(valid))?;
    Ok(())
}

/// Writes a new file that only its owner can read.
fn write(path: &Path, content: &str) -> Result<(), AuthorityError> {
    let fail = |source: std::io::Error| match source.kind() {
        ErrorKind::AlreadyExists => AuthorityError::Exists(path.to_owned()),
        _ => AuthorityError::File { path: path.to_owned(), source },
    };
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(fail)?;
    file.write_all(content.as_bytes()).and_then(|()| file.sync_all()).map_err(fail)
}

/// Replaces a file atomically, or makes it.
fn replace(path: &Path, content: &str) -> Result<(), AuthorityError> {
    let fail = |source| AuthorityError::File { path: path.to_owned(), source };
    let new = path.with_extension("new");
    // Left over from an attempt that was interrupted.
    let _ = fs::remove_file(&new);
    write(&new, content)?;
    fs::rename(&new, path).map_err(fail)
}

fn make_folder(folder: &Path) -> Result<(), AuthorityError> {
    fs::create_dir_all(folder).map_err(|source| AuthorityError::File { path: folder.to_owned(), source })
}

/// What a certificate says of a peer.
fn params(peer: &Peer, name: &str, hosts: &[String], valid: Duration) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::new(hosts.to_vec())?;
    for uri in peer.uris() {
        params.subject_alt_names.push(SanType::URI(uri.try_into()?));
    }
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![match peer {
        Peer::Coordinator => ExtendedKeyUsagePurpose::ServerAuth,
        _ => ExtendedKeyUsagePurpose::ClientAuth,
    }];
    params.use_authority_key_identifier_extension = true;
    validity(&mut params, valid)?;
    Ok(params)
}

impl Authority {
    /// Makes an authority in a folder that has none.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn create(folder: &Path, valid: Duration) -> Result<Self, AuthorityError> {
        make_folder(folder)?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // Each authority has a unique name. If two had the same name, TLS could pick the wrong one, and report a bad
        // signature instead of an unknown authority.
        let unique = entropy::<4>().iter().map(|b| format!("{b:02x}")).collect::<String>();
        params.distinguished_name.push(DnType::CommonName, format!("milkrun authority {unique}"));
        validity(&mut params, valid)?;
        let certificate = params.self_signed(&key)?.pem();
        // The key is written first: a certificate without its key would look like an authority.
        write(&folder.join("ca.key"), &key.serialize_pem())?;
        write(&folder.join(CA_FILE), &certificate)?;
        Ok(Self { folder: folder.to_owned(), certificate, issuer: Issuer::new(params, key) })
    }

    /// Opens the authority in a folder.
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
        let key = KeyPair::from_pem(&key)?;
        // Whatever such a pair signed, nobody would accept.
        if public_key(&certificate).is_none_or(|of| of != key.subject_public_key_info()) {
            return Err(AuthorityError::OtherKey(folder.to_owned()));
        }
        let issuer = Issuer::from_ca_cert_pem(&certificate, key)?;
        Ok(Self { folder: folder.to_owned(), certificate, issuer })
    }

    /// Issues a certificate and its key into a new folder, and returns that folder. `hosts` are for a coordinator only:
    /// the names and addresses at which others reach it.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn issue(&self, peer: &Peer, hosts: &[String], valid: Duration) -> Result<PathBuf, AuthorityError> {
        let (kind, name) = match peer {
            Peer::Agent(node) => ("agent", node.to_string()),
            Peer::User { name, .. } => ("user", name.clone()),
            Peer::Coordinator | Peer::Local => ("coordinator", hosts.first().cloned().unwrap_or_default()),
        };
        let params = params(peer, &format!("{kind} {name}"), hosts, valid)?;
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

    /// Signs a certificate for a key that stays with its owner. `public_key` is a SubjectPublicKeyInfo in DER. Returns PEM.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn sign(&self, peer: &Peer, public_key: &[u8], valid: Duration) -> Result<String, AuthorityError> {
        let key = SubjectPublicKeyInfo::from_der(public_key)?;
        Ok(params(peer, &peer.to_string(), &[], valid)?.signed_by(&key, &self.issuer)?.pem())
    }

    /// The authority's certificate, in PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// From when until when the authority's certificate is valid.
    ///
    /// # Errors
    /// [`AuthorityError`] if it can't be read.
    pub fn validity(&self) -> Result<(Moment, Moment), AuthorityError> {
        validity_of(&self.certificate).ok_or_else(|| AuthorityError::NoCertificate(CA_FILE.to_owned()))
    }

    /// Revokes a certificate of this authority. `what` is its folder, its file, or its serial number. The list is
    /// written beside the authority's certificate, and into the folders of coordinators beside it.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn revoke(&self, what: &str) -> Result<Revoked, AuthorityError> {
        let (serial, folder) = self.find(what)?;
        let own_list = self.folder.join(CRL_FILE);
        let mut serials = Credentials::new(&self.folder).revoked()?.serials().clone();
        serials.insert(serial.clone());
        let mut serials: Vec<Serial> = serials.into_iter().collect();
        serials.sort();
        let now = Moment::now();
        let one = |serial: &Serial| -> Result<RevokedCertParams, AuthorityError> {
            Ok(RevokedCertParams {
                serial_number: SerialNumber::from_slice(serial.as_bytes()),
                revocation_time: at(now)?,
                reason_code: None,
                invalidity_date: None,
            })
        };
        let params = CertificateRevocationListParams {
            this_update: at(now)?,
            next_update: at(now.plus(NEXT_LIST))?,
            crl_number: SerialNumber::from(now.millis().unsigned_abs()),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(one).collect::<Result<_, _>>()?,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer)?.pem()?;
        debug_assert!(RevocationLists::parse(list.as_bytes()).is_some_and(|l| l.contains(&serial)));
        let mut lists = vec![own_list];
        lists.extend(self.coordinators()?.into_iter().map(|folder| folder.join(CRL_FILE)));
        for path in &lists {
            replace(path, &list)?;
        }
        let moved = match folder.filter(|f| f.parent() == Some(&*self.folder)) {
            Some(folder) => Some(move_aside(&folder, &serial)?),
            None => None,
        };
        Ok(Revoked { serial, lists, moved })
    }

    /// The certificate that `what` names, and its folder if it lies in one.
    fn find(&self, what: &str) -> Result<(Serial, Option<PathBuf>), AuthorityError> {
        let path = [PathBuf::from(what), self.folder.join(what)].into_iter().find(|p| p.exists());
        match path {
            Some(path) if path.is_dir() => {
                let folder = fs::canonicalize(&path).unwrap_or(path);
                // If the folder lies in this authority's, its path is written in the same way: `revoke` compares the
                // parent.
                let ours = folder.file_name().map(|name| self.folder.join(name)).filter(|p| same(p, &folder));
                let folder = ours.unwrap_or(folder);
                Ok((Credentials::new(&folder).own_certificate()?.serial, Some(folder)))
            }
            Some(path) => Ok((Credentials::certificate_in(&path)?.serial, None)),
            None => match what.parse() {
                Ok(serial) => Ok((serial, None)),
                Err(_) => Err(AuthorityError::NoCertificate(what.to_owned())),
            },
        }
    }

    /// Folders of coordinators beside the authority.
    fn coordinators(&self) -> Result<Vec<PathBuf>, AuthorityError> {
        let fail = |source| AuthorityError::File { path: self.folder.clone(), source };
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            if entry.file_name().as_encoded_bytes().starts_with(b"coordinator-") && entry.path().is_dir() {
                found.push(entry.path());
            }
        }
        found.sort();
        Ok(found)
    }
}

fn same(a: &Path, b: &Path) -> bool {
    fs::canonicalize(a).is_ok_and(|a| a == b)
}

/// Moves the folder of a revoked certificate, so that a new one can have its name.
fn move_aside(folder: &Path, serial: &Serial) -> Result<PathBuf, AuthorityError> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let to = folder.with_file_name(format!("revoked-{serial}-{name}"));
    fs::rename(folder, &to).map_err(|source| AuthorityError::File { path: folder.to_owned(), source })?;
    Ok(to)
}
