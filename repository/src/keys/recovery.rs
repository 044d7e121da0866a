//! The recovery key: the secret as text that people can write down. It opens a repository whose `keys/` are gone.
//!
//! Its form is `milkrun-` and nine groups of eight hexadecimal digits: the 32 bytes of the secret and 4 bytes of a checksum. The
//! checksum distinguishes a mistyped key from a wrong one.

use zeroize::Zeroizing;

use super::Secret;

const PREFIX: &str = "milkrun-";
const CHECK_LEN: usize = 4;

/// Text that is not a recovery key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRecoveryKey {
    /// It has another form.
    #[error(
        "this is no recovery key: one begins with milkrun- and has nine groups of eight of the characters 0-9 and a-f"
    )]
    Form,
    /// It is mistyped.
    #[error("this recovery key has a mistake: its last group does not fit the others")]
    Checksum,
}

fn check(secret: &[u8]) -> [u8; CHECK_LEN] {
    let full = blake3::derive_key("milkrun v2 recovery key checksum", secret);
    [full[0], full[1], full[2], full[3]]
}

/// The recovery key of a secret, as text.
pub fn to_text(secret: &Secret) -> Zeroizing<String> {
    let bytes = Zeroizing::new([secret.as_bytes().as_slice(), &check(secret.as_bytes())].concat());
    let hex = Zeroizing::new(hex::encode(&*bytes));
    let mut out = Zeroizing::new(String::from(PREFIX.trim_end_matches('-')));
    for at in (0..hex.len()).step_by(8) {
        out.push('-');
        out.push_str(&hex[at..at + 8]);
    }
    out
}

/// The secret from a recovery key. Case, spaces and line ends don't matter.
///
/// # Errors
/// [`BadRecoveryKey`].
pub fn parse(text: &str) -> Result<Secret, BadRecoveryKey> {
    let text = Zeroizing::new(text.to_lowercase());
    let rest = text.trim().strip_prefix(PREFIX).ok_or(BadRecoveryKey::Form)?;
    let digits = Zeroizing::new(rest.chars().filter(|c| !c.is_whitespace() && *c != '-').collect::<String>());
    let mut bytes = Zeroizing::new([0; 32 + CHECK_LEN]);
    hex::decode_to_slice(&*digits, bytes.as_mut_slice()).map_err(|_| BadRecoveryKey::Form)?;
    let mut secret = Zeroizing::new([0; 32]);
    secret.copy_from_slice(&bytes[..32]);
    if bytes[32..] == check(secret.as_slice()) {
        Ok(Secret::from_bytes(*secret))
    } else {
        Err(BadRecoveryKey::Checksum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_a_pencil_and_notices_mistakes() {
        let secret = Secret::from_bytes([0xa7; 32]);
        let text = to_text(&secret);
        assert_eq!(text.len(), 7 + 9 * 9, "{}", *text);
        let spoken = format!(" {} \n", text.to_uppercase().replace('-', " - ").replacen("MILKRUN - ", "MILKRUN-", 1));
        for form in [text.as_str(), &spoken] {
            assert_eq!(parse(form).unwrap().as_bytes(), secret.as_bytes());
        }
        assert_eq!(parse(&text.replacen('7', "8", 1)).err(), Some(BadRecoveryKey::Checksum));
        for bad in ["", "milkrun-", &text[..60], "hunter2"] {
            assert_eq!(parse(bad).err(), Some(BadRecoveryKey::Form), "{bad}");
        }
    }
}
