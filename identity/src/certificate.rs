//! The content of a certificate: whom it names, until when it is valid, and its serial number.

use std::fmt;
use std::str::FromStr;

use milkrun_repository::clock::Moment;
use tokio_rustls::rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::peer::{Peer, PeerError};

/// A certificate's serial number: unique among those of its authority.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(Vec<u8>);

/// Not a serial number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no serial number: write it in hexadecimal digits, as logs show it")]
pub struct BadSerial(String);

/// RFC 5280: at most 20 bytes.
const SERIAL_BYTES_MAX: usize = 20;

impl Serial {
    /// From its bytes, big-endian. Leading zeros are dropped.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let zeros = bytes.iter().take_while(|b| **b == 0).count();
        Self(bytes[zeros..].to_vec())
    }

    /// Its bytes, big-endian.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Serial {
    type Err = BadSerial;
    fn from_str(s: &str) -> Result<Self, BadSerial> {
        let bad = || BadSerial(s.to_owned());
        let digits: String = s.chars().filter(|c| *c != ':').collect();
        if digits.is_empty() || digits.len() > 2 * SERIAL_BYTES_MAX || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let even = if digits.len().is_multiple_of(2) { digits } else { format!("0{digits}") };
        let byte = |at: usize| u8::from_str_radix(&even[at..at + 2], 16).map_err(|_| bad());
        let bytes: Vec<u8> = (0..even.len()).step_by(2).map(byte).collect::<Result<_, _>>()?;
        Ok(Self::from_bytes(&bytes))
    }
}

/// A certificate whose signature and dates TLS has checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Whom it names.
    pub peer: Peer,
    /// Its number.
    pub serial: Serial,
    /// It is valid until then.
    pub until: Moment,
}

impl Certificate {
    /// From its bytes.
    ///
    /// # Errors
    /// [`PeerError`].
    pub fn parse(certificate: &CertificateDer<'_>) -> Result<Self, PeerError> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| PeerError::Malformed)?;
        let names = parsed.subject_alternative_name().map_err(|_| PeerError::Malformed)?;
        let uris = names.iter().flat_map(|n| &n.value.general_names).filter_map(|n| match n {
            GeneralName::URI(uri) => uri.strip_prefix("milkrun://"),
            _ => None,
        });
        Ok(Self {
            peer: Peer::parse(uris)?,
            serial: Serial::from_bytes(parsed.raw_serial()),
            until: Moment::from_millis(parsed.validity().not_after.timestamp().saturating_mul(1000)),
        })
    }
}

/// From when until when the first certificate of a PEM text is valid; `None`: there is none.
pub(crate) fn validity(pem: &str) -> Option<(Moment, Moment)> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
    let of = pem.parse_x509().ok()?.validity().clone();
    let moment = |seconds: i64| Moment::from_millis(seconds.saturating_mul(1000));
    Some((moment(of.not_before.timestamp()), moment(of.not_after.timestamp())))
}

/// The public key of the first certificate of a PEM text: a SubjectPublicKeyInfo in DER; `None`: there is none.
pub(crate) fn public_key(pem: &str) -> Option<Vec<u8>> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
    Some(pem.parse_x509().ok()?.public_key().raw.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_numbers_are_parsed_and_written() {
        let serial = |s: &str| s.parse::<Serial>().map(|s| s.to_string());
        assert_eq!(serial("00:AB:01"), Ok("ab01".into()));
        assert_eq!(serial("abc"), Ok("0abc".into()));
        for bad in ["", "xyz", "é1", &"0".repeat(41)] {
            assert!(serial(bad).is_err(), "{bad}");
        }
    }
}
