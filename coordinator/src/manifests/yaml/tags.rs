//! Guards the parser, which does not survive a comma right after a tag, as in `[!!str, a]`.

use std::borrow::Cow;

/// A text that the parser survives.
pub(super) struct Guarded<'t> {
    pub(super) text: Cow<'t, str>,
    /// The character that stands for some of its `!`.
    pub(super) mark: Option<char>,
}

/// Replaces each `!` that may begin a tag with a comma right after it by a mark: a character that the text does not have. If the
/// `!` did begin a tag, the mark begins plain text, which no `!` could. Anywhere else the mark is a part of text, and becomes `!`
/// again.
pub(super) fn guard(text: &str) -> Guarded<'_> {
    let marks: Vec<usize> =
        text.match_indices('!').filter(|(i, _)| comma_follows(&text.as_bytes()[i + 1..])).map(|(i, _)| i).collect();
    let unused = ('\u{e000}'..='\u{f8ff}').find(|&c| !marks.is_empty() && !text.contains(c));
    let Some(mark) = unused else {
        return Guarded { text: Cow::Borrowed(text), mark: None };
    };
    let mut out = String::with_capacity(text.len() + 2 * marks.len());
    let mut from = 0;
    for at in marks {
        out.push_str(&text[from..at]);
        out.push(mark);
        from = at + 1;
    }
    out.push_str(&text[from..]);
    Guarded { text: Cow::Owned(out), mark: Some(mark) }
}

/// Whether a comma ends the tag, where `rest` is the text after its `!`.
fn comma_follows(rest: &[u8]) -> bool {
    let end = match rest {
        [b'<', ..] => rest.iter().position(|b| *b == b'>' || b.is_ascii_whitespace()).map_or(rest.len(), |end| end + 1),
        _ => rest.iter().take_while(|b| is_tag(**b)).count(),
    };
    rest.get(end) == Some(&b',')
}

fn is_tag(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"-_;/?:@&=+$.%!~*'()".contains(&b)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::manifests::yaml::parse;

    #[test]
    fn a_comma_ends_no_tag() {
        for text in
            ["[!!str, a]", "{a: !x, b: 1}", "[!<tag:yaml.org,2002:str>, a]", "[!, a]", "['a'!x, b]", "{? !x, : 1}"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn any_other_mark_stays() {
        for (text, want) in [
            ("['!x', \"!y\", a!z, b !c, d!, '!']", json!(["!x", "!y", "a!z", "b !c", "d!", "!"])),
            ("a: b !important, c # !x,", json!({"a": "b !important, c"})),
            ("a: |\n  !x, y\n", json!({"a": "!x, y\n"})),
            ("a: !<tag:yaml.org,2002:int> '5'", json!({"a": 5})),
            ("[!!str , !!str a]", json!(["", "a"])),
            ("\u{e000}: '!a,'", json!({"\u{e000}": "!a,"})),
        ] {
            assert_eq!(parse(&format!("{text}\n")).unwrap().unwrap().1, want, "{text}");
        }
    }
}
