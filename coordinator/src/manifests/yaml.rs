//! One YAML document as kubectl reads it: YAML 1.1 as `sigs.k8s.io/yaml` understands it, with its exceptions.
//!
//! | text                                            | value                                                     |
//! |-------------------------------------------------|-----------------------------------------------------------|
//! | `yes` `no` `on` `off` `y` `n` `true` `false`    | a truth value; also `Yes`, `YES` and so on                |
//! | `null` `Null` `NULL` `~` and nothing            | null                                                      |
//! | `10` `+10` `-10` `1_000`                        | an integer, if it fits in 64 bits; else a float           |
//! | `0644` `0o644` `0x1a4` `0b110100100`            | 420; but `0899` is 899, as a float                        |
//! | `1.5` `1e3` `.5` `1.`                           | a float; without a fraction it becomes an integer in JSON |
//! | `.inf` `-.inf` `.nan`                           | refused: JSON has none                                    |
//! | `1:20` `2001-12-14`                             | text: neither base 60 nor times are resolved              |
//! | `!!str` `!!int` `!!float` `!!bool` `!!null`     | read as that, or refused                                  |
//! | `!!timestamp`                                   | text, if it is a time                                     |
//! | `!!binary`                                      | the decoded text; refused if that is not UTF-8            |
//! | any other tag on text                           | text                                                      |
//! | any tag on a mapping or list                    | nothing                                                   |
//! | `<<: *a`, `<<: [*a, *b]`                        | merged where it stands: it replaces the keys before it    |
//! | a key that is a number or truth value           | text; a float in Go's short form (`1e+06`)                |
//! | a key that is null, a mapping or a list         | refused                                                   |
//!
//! Stricter than kubectl, so that nothing is lost or read two ways:
//!
//! * A key occurs once in a mapping, and nothing may follow the document's end. kubectl drops the others.
//! * A float as a key must be the same number as a `float32`. kubectl makes a different key of it.
//! * U+0085, U+2028 and U+2029, which YAML 1.1 takes for line ends, need an escape. A byte order mark may only begin a file.
//! * `{a:}` is refused: a key `a:` to kubectl, a key `a` to others. So are a comma right after a tag, and `\'` in double
//!   quotes.
//! * Nesting is limited. Beside kubectl's own limit on aliases, the bytes that they repeat are limited.
//!
//! Less strict: the escape `\/` in double quotes is read, as in JSON.

mod build;
mod compose;
mod number;
mod resolve;
mod tags;
mod timestamp;

use serde_json::Value;

use super::problem::Problem;

/// The document of a text, with the line at which it begins. An empty text has none.
pub(super) fn parse(text: &str) -> Result<Option<(usize, Value)>, Problem> {
    check_characters(text)?;
    match compose::compose(text)? {
        Some(tree) => Ok(Some((tree.line(), build::build(&tree)?))),
        None => Ok(None),
    }
}

/// Refuses characters that YAML does not allow, not even in a comment.
fn check_characters(text: &str) -> Result<(), Problem> {
    // Few texts have bytes that need a closer look.
    let suspect = |b: &u8| matches!(b, 0..=8 | 11 | 12 | 14..=0x1f | 0x7f | 0xc2 | 0xe2 | 0xef);
    if !text.as_bytes().iter().any(suspect) {
        return Ok(());
    }
    let mut line = 1;
    let mut last = '\n';
    for c in text.chars() {
        match c {
            '\n' => line += 1,
            '\t' | '\r' => {}
            '\u{feff}' if matches!(last, '\n' | '\r') => {
                return Err(Problem::new(line, "a byte order mark is only allowed at the beginning of the file"));
            }
            '\u{85}' | '\u{2028}' | '\u{2029}' => {
                let reason = format!(
                    "the character {c:?} ends a line for some tools and not for others: write it as {} in double quotes",
                    escape(c)
                );
                return Err(Problem::new(line, reason));
            }
            '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => {
                return Err(Problem::new(line, format!("the control character {c:?} is not allowed in YAML")));
            }
            _ => {}
        }
        last = c;
    }
    Ok(())
}

fn escape(c: char) -> &'static str {
    match c {
        '\u{85}' => "\\N",
        '\u{2028}' => "\\L",
        _ => "\\P",
    }
}

#[cfg(test)]
mod tests;
