//! Random files; a seed always gives the same ones.

use super::{Case, Expect};

const HEAD: &str = "apiVersion: milkrun.test/v1\nkind: Probe\nmetadata: {name: NAME}\n";

pub(crate) fn files(seed: u64, count: usize) -> impl Iterator<Item = Case> {
    let mut make = Make(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    (0..count).map(move |i| {
        let text = match i % 4 {
            0 | 1 => make.scalars(),
            2 => format!("l: &x {{a: 1}}\nm: &y b\nx: {}\n", make.node(3, 1, false)),
            _ => format!("l: &x {{a: 1}}\nx: {}\n", make.soup()),
        };
        Case { bytes: format!("{HEAD}{text}").into_bytes(), expect: Expect::Any }
    })
}

struct Make(u64);

impl Make {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 11) as usize % n
    }

    fn of(&mut self, list: &[&'static str]) -> &'static str {
        list[self.below(list.len())]
    }

    /// Scalars: most look like a number, and some are words with a meaning in YAML.
    fn scalar(&mut self) -> String {
        match self.below(8) {
            0..=2 => {
                let parts = [
                    "0", "1", "7", "8", "9", "_", ".", "e", "E", "+", "-", "x", "o", "b", "a", "F", ":", "inf", "nan",
                    "0x", "0b", "0o", "y", "n", "N", "~", "T", "Z",
                ];
                (0..=self.below(6)).map(|_| self.of(&parts)).collect()
            }
            3 => format!("{}", f64::from_bits(self.next())),
            4 => format!("{:e}", f64::from_bits(self.next())),
            5 => format!("{}", self.next().cast_signed() >> self.below(64)),
            6 => format!("{:#x}", self.next() >> self.below(64)),
            _ => self
                .of(&[
                    "yes",
                    "No",
                    "ON",
                    "null",
                    "Null",
                    "true",
                    "False",
                    ".5",
                    ".5_0",
                    "1_0.5",
                    "0_7",
                    "<<",
                    "=",
                    "!",
                    "2001-12-14",
                    "2001-1-1",
                    "2001-12-14T01:02:03Z",
                    "2001-12-14 1:2:3.4",
                    "2001-02-30",
                    "9223372036854775807",
                    "9223372036854775808",
                    "18446744073709551615",
                    "18446744073709551616",
                    "-9223372036854775808",
                    "-9223372036854775809",
                    "1e400",
                    "1e-400",
                    "4.9e-324",
                    "0x8000000000000000",
                    "0x10000000000000000",
                ])
                .to_owned(),
        }
    }

    /// Scalars as values and keys, some with tags and quotes.
    fn scalars(&mut self) -> String {
        let mut text = String::new();
        for i in 0..=self.below(3) {
            let tag = match self.below(3) {
                0 => self.of(&[
                    "!!str ",
                    "!!int ",
                    "!!float ",
                    "!!bool ",
                    "!!null ",
                    "!!timestamp ",
                    "!!binary ",
                    "!x ",
                    "! ",
                    "!<tag:yaml.org,2002:int> ",
                ]),
                _ => "",
            };
            let quote = self.of(&["", "", "", "", "'", "\""]);
            let value = self.scalar();
            text += &match self.below(5) {
                0 => format!("{tag}{quote}{value}{quote}: {i}\n"),
                _ => format!("k{i}: {tag}{quote}{value}{quote}\n"),
            };
        }
        text
    }

    fn leaf(&mut self, indent: usize, flow: bool) -> String {
        let pad = " ".repeat(indent);
        match self.below(12) {
            0 => "\"q\\tr\\u00e4\\x41\"".into(),
            1 => "'it''s'".into(),
            2 => String::new(),
            3 if !flow => {
                format!("|{}\n{pad}  line\n{pad}    more\n\n{pad}  end\n\n", self.of(&["", "-", "+", "2", "2-"]))
            }
            4 if !flow => {
                format!(">{}\n{pad}  line\n{pad}  more\n\n{pad}   x\n{pad}  end\n\n", self.of(&["", "-", "+", "1"]))
            }
            5 => format!("two\n{pad}{}words", self.of(&["", " ", "  "])),
            6 => format!("\"two\n{pad}{}words\"", self.of(&["", " ", "  ", "\t"])),
            7 => "w # c".into(),
            8 => "a:b".into(),
            _ => self.scalar(),
        }
    }

    fn node(&mut self, depth: usize, indent: usize, flow: bool) -> String {
        let anchor = self.of(&["", "", "", "", "", "", "&x ", "&y "]);
        let tag = self.of(&["", "", "", "", "", "", "", "", "!!str ", "!!map ", "!x ", "!!seq "]);
        let alias = self.below(15) == 0;
        match self.below(4) {
            _ if alias => self.of(&["*x", "*y"]).to_owned(),
            _ if depth == 0 => format!("{anchor}{tag}{}", self.leaf(indent, flow)),
            0 => format!("{anchor}{tag}{}", self.leaf(indent, flow)),
            1 => format!("{anchor}{tag}{}", self.flow(depth, indent)),
            _ if flow => format!("{anchor}{tag}{}", self.flow(depth, indent)),
            _ => format!("{anchor}{tag}{}", self.block(depth, indent)),
        }
    }

    fn flow(&mut self, depth: usize, indent: usize) -> String {
        let mapping = self.below(2) == 0;
        let mut entries = Vec::new();
        let keys = ["a", "b", "\"c\"", "<<", "1", "? d", "e", "yes"];
        let first = self.below(keys.len());
        for i in 0..self.below(4) {
            let key = keys[(first + i) % keys.len()];
            // Only a mapping can be merged.
            let value = if mapping && key == "<<" { "*x".to_owned() } else { self.node(depth - 1, indent, true) };
            let colon = self.of(&[": ", ": ", ": ", " : "]);
            entries.push(if mapping { format!("{key}{colon}{value}") } else { value });
        }
        let entries = entries.join(self.of(&[", ", ", ", ",\n  ", " , "]));
        let end = self.of(&["", "", " ,", "\n", " "]);
        if mapping { format!("{{{entries}{end}}}") } else { format!("[{entries}{end}]") }
    }

    fn block(&mut self, depth: usize, indent: usize) -> String {
        let inner = indent + self.below(3);
        let pad = " ".repeat(inner);
        let mapping = self.below(2) == 0;
        let mut text = String::new();
        for i in 0..=self.below(3) {
            if mapping {
                let key = self.of(&["a", "b", "c", "1", "\"d\"", "? e\n", "y"]);
                text += &format!("\n{pad}{key}{i}: {}", self.node(depth - 1, inner + 1, false));
            } else {
                text += &format!("\n{pad}- {}", self.node(depth - 1, inner + 2, false));
            }
        }
        text
    }

    /// Random tokens of YAML. Both refuse most of these files.
    fn soup(&mut self) -> String {
        let tokens = [
            "a",
            "b",
            "1",
            "0644",
            "yes",
            ": ",
            ":",
            "- ",
            "-",
            "\n  ",
            "\n    ",
            "\n ",
            "  ",
            " ",
            "{",
            "}",
            "[",
            "]",
            ",",
            ", ",
            "? ",
            "&y ",
            "*x",
            "*x ",
            "!!str ",
            "!!int ",
            "!t ",
            "|",
            "|\n",
            ">\n",
            "'",
            "\"",
            "#",
            " # c",
            "\n---\n",
            "\n...\n",
            "\t",
            "<<: *x",
            "<<",
            "~",
            "\\n",
            "\r\n",
            "%",
            "@",
            "`",
            "|-\n  ",
            "|+\n  ",
            "a: ",
            "\na: ",
            "\nb: ",
            "\n  a: ",
            "\n- ",
            "\n  - ",
            "{a: ",
            "[a, ",
            "\"a\"",
            "'a'",
            "\"a\": ",
            "1.5",
            "null",
            "x y",
            ".",
            "=",
            "\u{e4}",
            "\u{1f600}",
        ];
        (0..=self.below(7)).map(|_| self.of(&tokens)).collect()
    }
}
