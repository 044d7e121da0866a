//! Gets the secret from a file, the environment, or a prompt.

use std::io::IsTerminal;
use std::path::Path;

use milkrun_coordinator::secret::{Password, SecretError, from_environment};
use milkrun_repository::keys::{Secret, recovery};
use zeroize::Zeroizing;

use crate::output::CliError;

/// The recovery key in a file.
pub(crate) fn recovery_key(path: &Path) -> Result<Secret, CliError> {
    let text = std::fs::read_to_string(path).map(Zeroizing::new);
    let text = text.map_err(|e| CliError::failed(format!("can't read the recovery key {path:?}: {e}")))?;
    recovery::parse(&text).map_err(|e| CliError::usage(format!("{path:?}: {e}")))
}

/// Asks for the secret; twice for a new one.
pub(crate) fn password(new: bool) -> Result<Password, CliError> {
    let empty = || CliError::usage(SecretError::Empty.to_string());
    match from_environment() {
        Ok(Some(password)) => return Ok(password),
        Err(SecretError::Empty) => return Err(empty()),
        Err(e) => return Err(CliError::from_error(&e)),
        Ok(None) if !std::io::stdin().is_terminal() => {
            return Err(CliError::usage("no password: set MILKRUN_PASSWORD_FILE or MILKRUN_PASSWORD"));
        }
        Ok(None) => {}
    }
    let ask = |prompt: &str| {
        rpassword::prompt_password(prompt)
            .map(|p| Zeroizing::new(p.into_bytes()))
            .map_err(|e| CliError::failed(format!("can't read the password: {e}")))
    };
    let first = ask("Password of the repository: ")?;
    if new && *ask("The same once more: ")? != *first {
        return Err(CliError::usage("the two passwords differ"));
    }
    if first.is_empty() { Err(empty()) } else { Ok(first) }
}
