//! The changed-block list: the ranges of a volume that may have changed since a restore point. A storage system, a
//! device mapper target or a CSI driver makes it. It is text, one entry a line:
//!
//! ```text
//! # a comment
//! since rp-20261124t120000z-0123456789abcdef
//! 0 1048576
//! 7340032 4096
//! end
//! ```
//! A range is an offset and a length in bytes. Ranges may come in any order and overlap. `since` appears once, before
//! the first range. `end` is the last line; without it the list was cut short. A list without ranges says that nothing
//! changed.

use std::io::{BufRead, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use milkrun_repository::chunk::PAGE;
use milkrun_repository::id::PointId;

use crate::ranges::merge;

/// Ranges that may have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// The restore point that they are relative to.
    pub since: PointId,
    /// Whole pages, in order, not touching each other.
    ranges: Vec<Range<u64>>,
    /// The ranges have more than a few pages on average, so many of these pages may be unchanged.
    coarse: bool,
}

/// Why a list can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ChangesError {
    /// It can't be read.
    #[error("can't read the list of changes {path:?}")]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It makes no sense.
    #[error("{path:?}, line {line}: {what}")]
    Line {
        /// Which one.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// It was cut short.
    #[error("the list of changes {0:?} has no last line \"end\": it was cut short, or is still being written")]
    NoEnd(PathBuf),
    /// It does not name a restore point.
    #[error(
        "the list of changes {0:?} does not say since which restore point: its first line must be, say, \"since rp-20261124t120000z-0123456789abcdef\""
    )]
    NoSince(PathBuf),
}

/// Ranges that are longer on average may hold much that did not change.
const COARSE_BYTES: u64 = 4 * PAGE as u64;

impl Changes {
    /// Reads a list.
    ///
    /// # Errors
    /// [`ChangesError`].
    pub fn read(path: &Path) -> Result<Self, ChangesError> {
        let read = |source| ChangesError::Read { path: path.to_owned(), source };
        Self::parse(std::io::BufReader::new(std::fs::File::open(path).map_err(read)?), path)
    }

    /// Reads a list from any source. Errors name it by `name`.
    ///
    /// # Errors
    /// [`ChangesError`].
    pub fn parse(text: impl BufRead, name: &Path) -> Result<Self, ChangesError> {
        parse(text).map_err(|e| match e {
            Bad::Read(source) => ChangesError::Read { path: name.to_owned(), source },
            Bad::NoSince => ChangesError::NoSince(name.to_owned()),
            Bad::NoEnd => ChangesError::NoEnd(name.to_owned()),
            Bad::Line(line, what) => ChangesError::Line { path: name.to_owned(), line, what },
        })
    }

    /// The listed pages of a part of the volume.
    pub fn within(&self, part: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let first = self.ranges.partition_point(|r| r.end <= part.start);
        let inside = self.ranges[first..].iter().take_while(move |r| r.start < part.end);
        inside.map(move |r| r.start.max(part.start)..r.end.min(part.end))
    }

    /// Whether a page is listed.
    pub fn names(&self, offset: u64) -> bool {
        self.within(offset..offset + 1).next().is_some()
    }

    /// Whether it is worth checking which of the listed pages really changed.
    pub fn is_coarse(&self) -> bool {
        self.coarse
    }
}

/// What is wrong with a list.
#[derive(Debug)]
enum Bad {
    Read(std::io::Error),
    NoSince,
    NoEnd,
    /// Which line, counted from 1, and what.
    Line(usize, &'static str),
}

/// Longer lines are refused.
const LINE_BYTES_MAX: u64 = 4096;

fn parse(mut text: impl BufRead) -> Result<Changes, Bad> {
    let page = PAGE as u64;
    let mut since = None;
    let mut ended = false;
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let mut line = Vec::new();
    for n in 1.. {
        let bad = |what| Bad::Line(n, what);
        line.clear();
        let read = text.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line).map_err(Bad::Read)?;
        if read == 0 {
            break;
        }
        let line = std::str::from_utf8(&line).map_err(|_| bad("not text"))?.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if ended {
            return Err(bad("something behind \"end\""));
        }
        if line == "end" {
            ended = true;
            continue;
        }
        let (first, second) =
            line.split_once(char::is_whitespace).ok_or_else(|| bad("neither \"since POINT\" nor \"OFFSET LENGTH\""))?;
        let second = second.trim();
        if first == "since" {
            let point: PointId = second.parse().map_err(|_| bad("no id of a restore point"))?;
            if since.replace(point).is_some() {
                return Err(bad("\"since\" for the second time"));
            }
            continue;
        }
        if since.is_none() {
            return Err(Bad::NoSince);
        }
        let offset: u64 = first.parse().map_err(|_| bad("an offset is a number of bytes"))?;
        let len: u64 = second.parse().map_err(|_| bad("a length is a number of bytes"))?;
        let end = offset.checked_add(len).and_then(|end| end.checked_next_multiple_of(page));
        let end = end.filter(|_| len > 0).ok_or_else(|| bad("a range of no bytes, or behind any volume's end"))?;
        ranges.push(offset - offset % page..end);
    }
    let since = since.ok_or(Bad::NoSince)?;
    if !ended {
        return Err(Bad::NoEnd);
    }
    let listed = ranges.len() as u64;
    merge(&mut ranges);
    let bytes: u64 = ranges.iter().map(|r| r.end - r.start).sum();
    Ok(Changes { since, ranges, coarse: bytes > listed * COARSE_BYTES })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SINCE: &str = "since rp-20261124t120000z-0123456789abcdef\n";

    #[test]
    fn a_list_is_read() {
        let list = parse(format!("# made by x\n{SINCE}\n 8192 1\n0\t4097\r\n20480 8192\nend").as_bytes()).unwrap();
        assert_eq!(list.since.to_string(), "rp-20261124t120000z-0123456789abcdef");
        assert_eq!(list.ranges, [0..12288, 20480..28672]);
        assert_eq!(list.within(4096..24576).collect::<Vec<_>>(), [4096..12288, 20480..24576]);
        assert!(list.names(8192) && !list.names(12288) && !list.is_coarse());
        assert!(parse(format!("{SINCE}0 1048576\nend\n").as_bytes()).unwrap().is_coarse());
        assert!(parse(format!("{SINCE}end\n\n").as_bytes()).unwrap().ranges.is_empty());
    }

    #[test]
    fn errors_name_the_line() {
        for (text, line) in [
            ("", 0),
            ("0 4096", 0),
            ("since yesterday", 1),
            ("since rp-20261124t120000z-0123456789abcdef\nsince rp-20261124t120000z-0123456789abcdef", 2),
            ("since rp-20261124t120000z-0123456789abcdef\n\n5", 3),
            ("since rp-20261124t120000z-0123456789abcdef\n-5 1", 2),
            ("since rp-20261124t120000z-0123456789abcdef\n5 0", 2),
            ("since rp-20261124t120000z-0123456789abcdef\n5 18446744073709551615", 2),
            ("since rp-20261124t120000z-0123456789abcdef\n5 1 1", 2),
            ("since rp-20261124t120000z-0123456789abcdef\nend\n0 4096", 3),
        ] {
            let found = match parse(text.as_bytes()).unwrap_err() {
                Bad::Line(n, _) => n,
                Bad::NoSince => 0,
                bad => panic!("{bad:?}: {text:?}"),
            };
            assert_eq!(found, line, "{text:?}");
        }
        assert!(matches!(parse(&b"\xff\xfe"[..]), Err(Bad::Line(1, _))));
        // A list that is cut short at any byte is refused.
        let whole = format!("{SINCE}7340032 4096\nend");
        for cut in 0..whole.len() {
            assert!(parse(&whole.as_bytes()[..cut]).is_err(), "{cut}");
        }
    }

    proptest! {
        #[test]
        fn every_listed_byte_is_within(parts in proptest::collection::vec((0u64..500_000, 1u64..50_000), 0..30), from in 0u64..600_000, len in 1u64..100_000) {
            let lines: String = parts.iter().map(|(o, l)| format!("{o} {l}\n")).collect();
            let list = parse(format!("{SINCE}{lines}end\n").as_bytes()).unwrap();
            let listed = |at: u64| parts.iter().any(|&(o, l)| at / 4096 >= o / 4096 && at / 4096 <= (o + l - 1) / 4096);
            let within: Vec<_> = list.within(from..from + len).collect();
            for at in (from..from + len).step_by(997) {
                prop_assert_eq!(within.iter().any(|r| r.contains(&at)), listed(at), "{}", at);
                prop_assert_eq!(list.names(at), listed(at));
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&text[..]);
        }
    }
}
