//! Text from agents, prepared to be shown to people: one line of a bounded length. A line break in it could pass for a line of our
//! own.

/// Control characters become spaces; what is longer than `max` characters is cut.
pub(crate) fn one_line(text: &str, max: usize) -> String {
    text.chars().take(max).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_looks_like_a_line_of_its_own() {
        assert_eq!(one_line("disk\nrp-1  shop  ok\r\u{1b}[2J", 64), "disk rp-1  shop  ok  [2J");
        assert_eq!(one_line("äöü", 2), "äö");
    }
}
