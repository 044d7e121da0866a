//! Which authorities are trusted. When one takes the place of another, certificates of the former one are still in use for a while.

use std::time::Duration;

use milkrun_repository::clock::Moment;
use serde::{Deserialize, Serialize};

/// How long a former authority is trusted: longer than any certificate of an agent or an operator is valid.
const FORMER: Duration = Duration::from_secs(25 * 3600);
/// Authorities that are trusted at most. Each is tried for each connection.
const MAX: usize = 8;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Trusted {
    /// PEM.
    certificate: String,
    /// Until when, in milliseconds since 1970. The present one has no end but its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<i64>,
}

/// The authorities that are trusted: the present one first, then former ones, the last of them first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trust(Vec<Trusted>);

impl Trust {
    /// What is trusted once `certificate` is that of the present authority.
    pub(super) fn with(&self, certificate: &str, now: Moment) -> Self {
        let mut all = vec![Trusted { certificate: certificate.to_owned(), until: None }];
        for former in self.0.iter().filter(|known| known.certificate != certificate) {
            let until = former.until.unwrap_or(now.plus(FORMER).millis());
            if until > now.millis() {
                all.push(Trusted { until: Some(until), ..former.clone() });
            }
        }
        all.truncate(MAX);
        Self(all)
    }

    /// All their certificates, in PEM.
    pub(super) fn bundle(&self) -> String {
        let texts: Vec<&str> = self.0.iter().map(|trusted| trusted.certificate.trim_end()).collect();
        texts.join("\n") + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hour(hours: i64) -> Moment {
        Moment::from_millis(hours * 3_600_000)
    }

    #[test]
    fn a_former_authority_is_trusted_as_long_as_its_certificates_may_be_in_use() {
        let first = Trust::default().with("a", hour(0));
        assert_eq!(first.bundle(), "a\n");
        assert_eq!(first.with("a", hour(1000)), first);
        let second = first.with("b", hour(1000));
        assert_eq!(second.bundle(), "b\na\n");
        assert_eq!(second.with("b", hour(1024)), second);
        assert_eq!(second.with("b", hour(1025)).bundle(), "b\n");
    }

    #[test]
    fn one_that_comes_back_is_the_present_one_again() {
        let back = Trust::default().with("a", hour(0)).with("b", hour(1)).with("a", hour(2));
        assert_eq!(back.bundle(), "a\nb\n");
        assert_eq!(back.with("a", hour(26)).bundle(), "a\nb\n");
        assert_eq!(back.with("a", hour(27)).bundle(), "a\n");
    }

    #[test]
    fn there_are_never_too_many() {
        let many = (0..20).fold(Trust::default(), |trust, n| trust.with(&format!("{n:02}"), hour(0)));
        assert_eq!(many.bundle(), "19\n18\n17\n16\n15\n14\n13\n12\n");
    }
}
