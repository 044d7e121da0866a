//! Reads the repository's secret for programs: from a file or the environment, never from an argument.

use std::ffi::OsString;

use zeroize::Zeroizing;

/// The secret.
pub type Password = Zeroizing<Vec<u8>>;

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file can't be read.
    #[error("can't read MILKRUN_PASSWORD_FILE {path:?}")]
    File {
        /// The file.
        path: OsString,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is nothing in it.
    #[error("the password is empty")]
    Empty,
}

/// The secret of one of several repositories: from `MILKRUN_PASSWORD_FILE_<NAME>`, else `MILKRUN_PASSWORD_<NAME>`, else as for a
/// single one. In `<NAME>`, letters are capitals, and `-` becomes `_`.
///
/// # Errors
/// [`SecretError`].
pub fn of_repository(name: &str) -> Result<Option<Password>, SecretError> {
    let suffix = format!("_{}", name.to_ascii_uppercase().replace('-', "_"));
    match if name.is_empty() { None } else { from_variables(&suffix)? } {
        Some(password) => Ok(Some(password)),
        None => from_environment(),
    }
}

/// From `MILKRUN_PASSWORD_FILE`, else `MILKRUN_PASSWORD`; `None` if neither is set.
///
/// # Errors
/// [`SecretError`].
pub fn from_environment() -> Result<Option<Password>, SecretError> {
    from_variables("")
}

fn from_variables(suffix: &str) -> Result<Option<Password>, SecretError> {
    let found = if let Some(path) = std::env::var_os(format!("MILKRUN_PASSWORD_FILE{suffix}")) {
        let text = std::fs::read(&path).map_err(|source| SecretError::File { path, source })?;
        let mut text = Zeroizing::new(text);
        // Editors end a file with a line break, which does not belong to the secret.
        while text.last().is_some_and(|b| matches!(b, b'\n' | b'\r')) {
            text.pop();
        }
        text
    } else if let Some(text) = std::env::var_os(format!("MILKRUN_PASSWORD{suffix}")).filter(|text| !text.is_empty()) {
        Zeroizing::new(text.into_encoded_bytes())
    } else {
        return Ok(None);
    };
    if found.is_empty() { Err(SecretError::Empty) } else { Ok(Some(found)) }
}
