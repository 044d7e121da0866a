//! What is wrong with a manifest.

/// What is wrong, and in which line, from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// The line.
    pub(super) line: usize,
    /// What is wrong there.
    pub(super) reason: String,
}

impl Problem {
    pub(super) fn new(line: usize, reason: impl Into<String>) -> Self {
        Self { line, reason: reason.into() }
    }

    /// The same one, told from the beginning of the file.
    pub(super) fn after(self, lines: usize) -> Self {
        Self { line: self.line + lines, ..self }
    }
}
