//! An error in a manifest.

/// The error, and the line that it is in, from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// The line.
    pub(super) line: usize,
    /// The error in that line.
    pub(super) reason: String,
}

impl Problem {
    pub(super) fn new(line: usize, reason: impl Into<String>) -> Self {
        Self { line, reason: reason.into() }
    }

    /// The same error, with its line counted from the beginning of the file.
    pub(super) fn after(self, lines: usize) -> Self {
        Self { line: self.line + lines, ..self }
    }
}
