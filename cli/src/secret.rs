//! Where the secret comes from: a file, the environment, or a prompt.

use std::io::IsTerminal;

use zeroize::Zeroizing;

use crate::output::CliError;

pub(crate) type Password = Zeroizing<Vec<u8>>;

/// Asks for the secret; twice for a new one.
pub(crate) fn password(new: bool) -> Result<Password, CliError> {
    let found = if let Some(path) = std::env::var_os("MILKRUN_PASSWORD_FILE") {
        let text = std::fs::read(&path);
        let text = text.map_err(|e| CliError::failed(format!("can't read MILKRUN_PASSWORD_FILE {path:?}: {e}")))?;
        let mut text = Zeroizing::new(text);
        // Editors end a file with a line break, which is no part of the secret.
        while text.last().is_some_and(|b| matches!(b, b'\n' | b'\r')) {
            text.pop();
        }
        text
    } else if let Some(text) = std::env::var_os("MILKRUN_PASSWORD") {
        Zeroizing::new(text.into_encoded_bytes())
    } else if std::io::stdin().is_terminal() {
        let ask = |prompt: &str| {
            rpassword::prompt_password(prompt)
                .map(|p| Zeroizing::new(p.into_bytes()))
                .map_err(|e| CliError::failed(format!("can't read the password: {e}")))
        };
        let first = ask("Password of the repository: ")?;
        if new && *ask("The same once more: ")? != *first {
            return Err(CliError::usage("the two passwords differ"));
        }
        first
    } else {
        return Err(CliError::usage("no password: set MILKRUN_PASSWORD_FILE or MILKRUN_PASSWORD"));
    };
    if found.is_empty() { Err(CliError::usage("the password is empty")) } else { Ok(found) }
}
