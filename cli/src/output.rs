//! The output for people and scripts: tables, JSON documents, exit codes, errors with advice.

use std::borrow::Cow;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::sync::OnceLock;

use milkrun_observe::start::{Standard, was_closed};
use milkrun_repository::keys::wrapped::UnwrapError;
use milkrun_repository::point::catalog::chain;
use milkrun_repository::repository::OpenError;
use milkrun_repository::store::{Failure, Trouble};
use serde_json::{Value, json};

/// The version of the JSON documents. Fields are added within one version, never changed or removed.
const SCHEMA: u32 = 1;

/// How a command ends. Scripts rely on the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// Wrong usage.
    Usage = 2,
    /// Damage found.
    Damage = 3,
    /// The store could not be asked: nothing is known.
    Unknown = 4,
}

/// An error for a person: what happened, and what to do next.
#[derive(Debug)]
pub(crate) struct CliError {
    pub(crate) exit: Exit,
    pub(crate) message: String,
    pub(crate) advice: Option<&'static str>,
}

impl CliError {
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self { exit: Exit::Failed, message: message.into(), advice: None }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, message: message.into(), advice: None }
    }

    pub(crate) fn with(mut self, advice: &'static str) -> Self {
        self.advice = Some(advice);
        self
    }

    /// From any error, with all its causes.
    pub(crate) fn from_error(e: &dyn std::error::Error) -> Self {
        Self::failed(chain(e))
    }
}

const ADVICE_UNREACHABLE: &str =
    "Nothing is known about the repository. Check network, endpoint (AWS_ENDPOINT_URL) and proxy; then try again.";
const ADVICE_GONE: &str =
    "Nothing is known about the repository. Check whether its file system is mounted; then try again.";
const ADVICE_DENIED: &str =
    "Check the credentials and the bucket policy (`milkrun init` prints those of the three roles).";
const ADVICE_DENIED_FILE: &str = "Check who may read and write in the repository's directory, and whose its files are.";
const ADVICE_COORDINATOR: &str =
    "Check whether the coordinator runs and can be reached, and whether your certificate is one of its authority.";
const ADVICE_EXPIRED: &str =
    "Renew the credentials of the store (a session of a role ends after some hours), and try again.";
const ADVICE_SKEW: &str =
    "Set the clock of this host right (NTP): S3 refuses requests that are off by 15 minutes, and locks would be wrong.";
const ADVICE_FULL: &str = "Make room where the repository is, and try again. Nothing half done is listed.";
const ADVICE_DAMAGE: &str =
    "Run `milkrun verify --data` to see how far it goes; restore from another copy or an earlier point.";

const ADVICE_ROLE: &str =
    "Roles stand in your certificate; whoever has the authority gives more with `milkrun certs user NAME --role ROLE`.";

/// The advice for a directory or for a bucket. In a directory a call of the operating system failed, and the message
/// has its number.
fn denied_advice(message: &str) -> &'static str {
    if message.contains("(os error") { ADVICE_DENIED_FILE } else { ADVICE_DENIED }
}

fn unreachable_advice(message: &str) -> &'static str {
    if message.contains("holds no repository any more") { ADVICE_GONE } else { ADVICE_UNREACHABLE }
}

impl From<Failure> for CliError {
    fn from(f: Failure) -> Self {
        let message = chain(&f);
        let (exit, advice) = match f.trouble {
            Trouble::Unreachable | Trouble::Busy => (Exit::Unknown, Some(unreachable_advice(&message))),
            Trouble::Denied => (Exit::Failed, Some(denied_advice(&message))),
            Trouble::Expired | Trouble::NoCredentials => (Exit::Failed, Some(ADVICE_EXPIRED)),
            Trouble::Skewed => (Exit::Failed, Some(ADVICE_SKEW)),
            Trouble::Full => (Exit::Failed, Some(ADVICE_FULL)),
            Trouble::Garbled => (Exit::Unknown, Some(ADVICE_UNREACHABLE)),
            Trouble::Short | Trouble::Foreign => (Exit::Damage, Some(ADVICE_DAMAGE)),
            Trouble::Refused => (Exit::Failed, None),
        };
        Self { exit, message, advice }
    }
}

impl From<OpenError> for CliError {
    fn from(e: OpenError) -> Self {
        let advice = match &e {
            OpenError::Store(_) => {
                let OpenError::Store(f) = e else { unreachable!("matched above") };
                return f.into();
            }
            OpenError::None(_) => Some("Make one with `milkrun init`, or check the URL."),
            OpenError::Config(milkrun_repository::config::ConfigError::Newer { .. }) => {
                Some("Use a newer release of milkrun.")
            }
            OpenError::Password { last: UnwrapError::WrongPassword, .. } => {
                Some("Give the right secret by MILKRUN_PASSWORD_FILE, MILKRUN_PASSWORD, or at the prompt.")
            }
            OpenError::Config(milkrun_repository::config::ConfigError::Older { .. }) => None,
            OpenError::OtherRecoveryKey => {
                Some("Compare the public key that `init` printed with each of your recovery keys.")
            }
            OpenError::NoKeys | OpenError::ForeignKeys(_) => Some("Give the recovery key: --recovery-key-file FILE."),
            OpenError::Config(_) | OpenError::Password { .. } | OpenError::Tampered => Some(
                "On a versioned bucket an older version may be sound: look at the object's versions before anything else.",
            ),
        };
        let exit = match &e {
            OpenError::Config(
                milkrun_repository::config::ConfigError::Newer { .. }
                | milkrun_repository::config::ConfigError::Older { .. },
            )
            | OpenError::OtherRecoveryKey
            | OpenError::None(_)
            | OpenError::Password { last: UnwrapError::WrongPassword | UnwrapError::Newer(_), .. } => Exit::Failed,
            _ => Exit::Damage,
        };
        Self { exit, message: chain(&e), advice }
    }
}

impl From<tonic::Status> for CliError {
    fn from(s: tonic::Status) -> Self {
        // A status with a source was made on this side: there is no connection to the coordinator.
        if let Some(why) = std::error::Error::source(&s) {
            let message = format!("no connection to the coordinator: {}", chain(why));
            return Self { exit: Exit::Unknown, message, advice: Some(ADVICE_COORDINATOR) };
        }
        let message = s.message().to_owned();
        let (exit, advice) = match s.code() {
            tonic::Code::Unavailable => (Exit::Unknown, Some(unreachable_advice(&message))),
            tonic::Code::DataLoss => (Exit::Damage, Some(ADVICE_DAMAGE)),
            tonic::Code::InvalidArgument => (Exit::Usage, None),
            tonic::Code::PermissionDenied => (Exit::Failed, Some(ADVICE_ROLE)),
            tonic::Code::NotFound => (Exit::Failed, Some("`milkrun points` lists what there is.")),
            _ if message.contains("no space left") => (Exit::Failed, Some(ADVICE_FULL)),
            _ if message.contains("access denied") => (Exit::Failed, Some(denied_advice(&message))),
            _ => (Exit::Failed, None),
        };
        Self { exit, message, advice }
    }
}

/// Prints a document with the version of the schema.
pub(crate) fn print_json(mut document: Value) {
    if let Value::Object(map) = &mut document {
        map.insert("schema".into(), SCHEMA.into());
    }
    print_raw(&json_text(&document));
}

/// The first error of a write to standard output.
static UNPRINTED: OnceLock<std::io::Error> = OnceLock::new();

/// JSON that is safe to show on a terminal: control characters are escaped in the way of JSON.
fn json_text(document: &Value) -> String {
    let text = format!("{document:#}\n");
    let escaped = |c: char| if is_control(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    if text.contains(is_control) { text.chars().map(escaped).collect() } else { text }
}

/// Prints to standard output. [`end`] reports a failure. A reader that has closed the pipe is no failure.
pub(crate) fn print(text: &str) {
    print_raw(&plain(text));
}

fn print_raw(text: &str) {
    let printed = match was_closed(Standard::Out) {
        true => Err(std::io::Error::other("it is closed")),
        false => {
            let mut out = std::io::stdout().lock();
            out.write_all(text.as_bytes()).and_then(|()| out.flush())
        }
    };
    if let Err(e) = printed
        && e.kind() != ErrorKind::BrokenPipe
    {
        // The first error is enough.
        let _ = UNPRINTED.set(e);
    }
}

/// The exit code, or a failure if some output could not be printed.
pub(crate) fn end(exit: Exit) -> ExitCode {
    let Some(e) = UNPRINTED.get() else { return ExitCode::from(exit as u8) };
    note(&format!("milkrun: can't write to standard output: {e}"));
    if exit == Exit::Done {
        note("  What was asked for was done; its output is not all there.");
        return ExitCode::from(Exit::Failed as u8);
    }
    ExitCode::from(exit as u8)
}

/// Whether a terminal interprets a character instead of showing it: control characters, and marks that change the
/// direction of text.
fn is_control(c: char) -> bool {
    (c.is_control() && !matches!(c, '\n' | '\t'))
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Text that is safe to show on a terminal. Names, reasons and notes come from other sources, so control characters are
/// escaped.
fn plain(text: &str) -> Cow<'_, str> {
    if !text.contains(is_control) {
        return Cow::Borrowed(text);
    }
    text.chars().map(|c| if is_control(c) { c.escape_unicode().to_string() } else { c.to_string() }).collect()
}

/// Prints a line to standard error.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", plain(text));
}

/// Prints an error, and returns its exit code.
pub(crate) fn fail(e: &CliError, json: bool) -> ExitCode {
    if json {
        print_json(json!({ "error": e.message, "advice": e.advice, "exit": e.exit as u8 }));
    }
    note(&format!("milkrun: {}", e.message));
    if let Some(advice) = e.advice {
        note(&format!("  {advice}"));
    }
    ExitCode::from(e.exit as u8)
}

/// Rows of cells, padded to columns. The first row is the header.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().enumerate().map(|(c, cell)| {
            let pad = widths[c].saturating_sub(cell.chars().count());
            // Numbers are aligned to the right.
            let number = cell.starts_with(|c: char| c.is_ascii_digit()) && !cell.contains('-');
            if number { format!("{}{cell}", " ".repeat(pad)) } else { format!("{cell}{}", " ".repeat(pad)) }
        });
        out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{json_text, plain};

    #[test]
    fn json_stays_json() {
        let document = serde_json::json!({ "a\u{202e}": ["\u{7f}", "\u{9b}", "\x1b", "\u{200f}"] });
        let text = json_text(&document);
        assert!(text.is_ascii(), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), document);
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(plain("a\tb\n\u{e4} \u{1f600}"), "a\tb\n\u{e4} \u{1f600}");
        assert_eq!(plain("\x1b[2J\r\u{9b}x\u{202e}y"), "\\u{1b}[2J\\u{d}\\u{9b}x\\u{202e}y");
    }
}
