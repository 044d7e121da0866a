//! Divides a file into documents in the way kubectl does.
//!
//! | text                                   | documents                                                            |
//! |----------------------------------------|----------------------------------------------------------------------|
//! | begins with `{`                        | JSON values one after the other, whatever the file's name ends with  |
//! | the first or second of them is no JSON | all that is left is YAML                                             |
//! | a line begins with `---`               | the next YAML document; only a comment may follow in that line       |
//! | nothing, comments, `null`              | none                                                                 |
//! | content after a document's end (`...`) | refused; kubectl drops it without a word                             |

use std::borrow::Cow;

use serde_json::Value;

use super::problem::Problem;
use super::{json, yaml};

/// A document: the line at which it begins, from 1, and its value.
type Document = (usize, Value);

/// All documents of a text, without the empty ones.
pub(super) fn parse(text: &str) -> Result<Vec<Document>, Problem> {
    let mut out = Vec::new();
    if !text.trim_start().starts_with('{') {
        yaml_documents(text, 0, &mut out)?;
        return Ok(out);
    }
    let mut rest = text;
    let mut lines = 0;
    for count in 0.. {
        let space = rest.len() - rest.trim_start_matches(json::SPACE).len();
        lines += line_breaks(&rest[..space]);
        let begin = &rest[space..];
        if begin.is_empty() {
            break;
        }
        match json::end_of_value(begin) {
            Ok(len) => {
                let (value, after) = begin.split_at(len);
                let parsed = json::parse(value).map_err(|p| p.after(lines))?;
                if !parsed.is_null() {
                    out.push((lines + 1, parsed));
                }
                lines += line_breaks(value);
                rest = after;
            }
            // From the third value on, kubectl is sure that it reads JSON.
            Err(problem) if count > 1 => return Err(problem.after(lines)),
            Err(problem) => {
                let json = problem.after(lines);
                let yaml = after_break(rest);
                let before = line_breaks(&text[..text.len() - yaml.len()]);
                // Of the two errors, the one later in the text is more likely the real one.
                yaml_documents(yaml, before, &mut out).map_err(|yaml| {
                    if yaml.line > json.line {
                        return yaml;
                    }
                    Problem::new(json.line, format!("as JSON: {}; as YAML: {}", json.reason, yaml.reason))
                })?;
                break;
            }
        }
    }
    Ok(out)
}

/// The text after its first line break, if there is only space before that; otherwise the text without its leading space.
fn after_break(text: &str) -> &str {
    let trimmed = text.trim_start();
    let space = &text[..text.len() - trimmed.len()];
    space.find('\n').map_or(trimmed, |at| &text[at + 1..])
}

fn line_breaks(text: &str) -> usize {
    text.bytes().filter(|&b| b == b'\n').count()
}

/// YAML documents from a text that begins after `before` lines of its file.
fn yaml_documents(text: &str, before: usize, out: &mut Vec<Document>) -> Result<(), Problem> {
    let text = unix_lines(text);
    // Where the next document begins that is not parsed yet.
    let mut from = 0;
    let mut lines = before;
    let mut at = 0;
    for (i, line) in text.split_inclusive('\n').enumerate() {
        if let Some(rest) = line.strip_prefix("---") {
            let rest = rest.trim();
            if !rest.is_empty() && !rest.starts_with('#') {
                let reason =
                    format!("only a comment may follow the mark `---` in its line, as for kubectl, not {rest:?}");
                return Err(Problem::new(before + i + 1, reason));
            }
            // A mark with nothing before it belongs to the document after it.
            if at > from {
                yaml_document(&text[from..at], lines, out)?;
                from = at + line.len();
                lines = before + i + 1;
            }
        }
        at += line.len();
    }
    yaml_document(&text[from..], lines, out)
}

fn yaml_document(text: &str, before: usize, out: &mut Vec<Document>) -> Result<(), Problem> {
    if let Some((line, value)) = yaml::parse(text).map_err(|p| p.after(before))?
        && !value.is_null()
    {
        out.push((before + line, value));
    }
    Ok(())
}

/// The text with `\n` at the end of each line, also of the last one.
fn unix_lines(text: &str) -> Cow<'_, str> {
    match (text.contains("\r\n"), text.ends_with('\n')) {
        (false, true) => Cow::Borrowed(text),
        (false, false) => Cow::Owned(format!("{text}\n")),
        (true, true) => Cow::Owned(text.replace("\r\n", "\n")),
        (true, false) => Cow::Owned(text.replace("\r\n", "\n") + "\n"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lines(text: &str) -> Vec<usize> {
        parse(text).unwrap().into_iter().map(|(line, _)| line).collect()
    }

    fn refused(text: &str) -> Problem {
        parse(text).unwrap_err()
    }

    #[test]
    fn documents_begin_where_their_content_does() {
        assert_eq!(lines("a: 1\n---\n\n# c\nb: 1\n--- # c\n---\n---\n# none\n---\nnull\n---\nc: 1"), [1, 5, 13]);
        assert_eq!(lines("---\r\na: 1\r\n---\r\nb: 1\r\n"), [2, 4]);
        assert_eq!(lines("\n {\"a\":1}\n\n{\"b\":2} {}null"), [2, 4, 4]);
        assert_eq!(lines("{\"a\":1}\n---\nb: 1\n---\n{c: 1}"), [1, 3, 5]);
        assert_eq!(lines(""), [0; 0]);
        assert_eq!(lines("---"), [0; 0]);
        assert_eq!(lines("a: 1\n...\n# none\n---\nb: 1\n...\n"), [1, 5]);
    }

    #[test]
    fn what_begins_with_a_brace_may_be_yaml() {
        assert_eq!(parse("{a: 0644,\n b}").unwrap(), [(1, json!({"a": 420, "b": null}))]);
        assert_eq!(parse("{\"a\": \"\\ud83d\\ude00\"}").unwrap(), [(1, json!({"a": "\u{1f600}"}))]);
    }

    #[test]
    fn many_values_take_no_longer_each() {
        assert_eq!(lines(&"{}\n".repeat(200_000)).len(), 200_000);
    }

    #[test]
    fn nothing_is_dropped() {
        assert_eq!(refused("a: 1\n...\nb: 1\n").line, 3);
        assert_eq!(refused("{a: 1}\n{b: 1}\n").line, 2);
        assert_eq!(refused("{\"a\": 1}{}\n{b: 1}\n").line, 2);
        assert_eq!(refused("---\na: 1\n---\nb: 1\n--- text\n").line, 5);
        assert_eq!(refused("%YAML 1.1\n---\na: 1\n").line, 2);
    }
}
