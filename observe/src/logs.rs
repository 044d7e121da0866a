//! Logs, on standard error.

use std::io::IsTerminal;

use clap::ValueEnum;

/// What is logged unless MILKRUN_LOG says otherwise. The AWS SDK warns of every presigned URL that may outlive the credentials that
/// signed it, which is known (`repository/src/store/s3/role.rs`).
const DEFAULT: &str = "info,aws_runtime=error";

/// How a log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object a line
    Json,
}

/// Begins to log, as much as `MILKRUN_LOG` says (`info` unless set).
pub fn begin(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("MILKRUN_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(DEFAULT));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
        // The innermost span says whose line it is; the list would say it twice.
        LogFormat::Json => log.with_ansi(false).json().with_span_list(false).init(),
    }
}
