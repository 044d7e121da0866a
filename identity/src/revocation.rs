//! Lists of revoked certificates (RFC 5280), in PEM, one for each authority.

use std::collections::HashSet;

use tokio_rustls::rustls::pki_types::CertificateRevocationListDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::certificate::Serial;

/// The file with the lists, beside the authority's certificate.
pub const CRL_FILE: &str = "ca.crl";

/// Lists, and the serial numbers in them.
#[derive(Clone, Debug, Default)]
pub struct RevocationLists {
    lists: Vec<CertificateRevocationListDer<'static>>,
    serials: HashSet<Serial>,
}

impl RevocationLists {
    /// From PEM. `None` if it is no PEM, or holds no list.
    pub(crate) fn parse(pem: &[u8]) -> Option<Self> {
        let lists: Vec<_> = CertificateRevocationListDer::pem_slice_iter(pem).collect::<Result<_, _>>().ok()?;
        let mut serials = HashSet::new();
        for list in &lists {
            let (_, parsed) = CertificateRevocationList::from_der(list.as_ref()).ok()?;
            serials.extend(parsed.iter_revoked_certificates().map(|c| Serial::from_bytes(c.raw_serial())));
        }
        (!lists.is_empty()).then_some(Self { lists, serials })
    }

    /// Whether a certificate is revoked.
    pub fn contains(&self, serial: &Serial) -> bool {
        self.serials.contains(serial)
    }

    /// Whether there is no list.
    pub fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// Adds the serial numbers of lists that were read at another time: a revoked certificate stays revoked.
    pub fn extend(&mut self, other: &Self) {
        self.serials.extend(other.serials.iter().cloned());
    }

    /// The serial numbers in the lists.
    pub(crate) fn serials(&self) -> &HashSet<Serial> {
        &self.serials
    }

    pub(crate) fn into_der(self) -> Vec<CertificateRevocationListDer<'static>> {
        self.lists
    }
}
