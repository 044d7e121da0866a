//! Files written by hand: one for each rule.

use super::Case;
use super::Expect::{self, Laxer, Refused, Same, Stricter};

const HEAD: &str = "apiVersion: milkrun.test/v1\nkind: Probe\nmetadata: {name: NAME}\n";

pub(crate) fn all() -> Vec<Case> {
    let values = VALUES.iter().map(|(expect, value)| case(*expect, format!("{HEAD}x: {value}\n")));
    let bodies = BODIES.iter().map(|(expect, body)| case(*expect, format!("{HEAD}{body}")));
    let files = FILES.iter().map(|(expect, text)| case(*expect, (*text).to_owned()));
    values.chain(bodies).chain(files).chain(large()).chain(encodings()).collect()
}

fn case(expect: Expect, text: String) -> Case {
    Case { bytes: text.into_bytes(), expect }
}

/// Values of a key.
const VALUES: &[(Expect, &str)] = &[
    // Truth values and null.
    (Same, "[y, Y, yes, Yes, YES, true, True, TRUE, on, On, ON, yEs, tRue]"),
    (Same, "[n, N, no, No, NO, false, False, FALSE, off, Off, OFF, nO, fALSE]"),
    (Same, "[~, null, Null, NULL, nULL, '', \"\", 'null', ]"),
    (Same, ""),
    // Integers.
    (Same, "[0, -0, +0, 1, +1, -1, 00, 007, 0644, -0644, +0644, 08, 0899, 0o644, 0O7, -0o7, 0o8, 0o, 0_644]"),
    (
        Same,
        "[0x1F, 0X1f, -0x1F, +0x1, 0xG, 0x, 0x_1, 0b101, 0B11, -0b11, 0b2, 0b, 0b-1, 0b+1, -0b-1, 1_000, 1__0, 1_, _1, -_1, +_]",
    ),
    (Same, "[9223372036854775807, 9223372036854775808, -9223372036854775808, -9223372036854775809]"),
    (Same, "[18446744073709551615, 18446744073709551616, +18446744073709551615, 123456789012345678901234567890]"),
    (
        Same,
        "[0x7fffffffffffffff, 0x8000000000000000, 0xffffffffffffffff, 0x10000000000000000, 01777777777777777777777]",
    ),
    // Floats.
    (Same, "[1.0, 1., 1.5, -1.5, +1.5, .5, -.5, +.5, 1e3, 1E3, 1e+3, 1e-3, 1_e3, 1.5e300, 0.1e-7, 1e21, 1e20, -1e21]"),
    (Same, "[-0.0, 0e0, 1e400, -1e400, 1e-400, 4.9e-324, 1.7976931348623157e308, 1.7976931348623159e308]"),
    (
        Same,
        "[0.1, 103340282176.61371, 5.167242759862e270, 9223372036854774784.0, 9007199254740993.0, 1e15, 123456789.0]",
    ),
    (Same, "[., ._5, .5_0, .5__0, .5_, .5e3, .e5, .5e400, 1_0.5, 1._5, 1e, 1e+, e1, 1.2.3, 1.5f, 0x1p4, 1e1.5]"),
    (Refused, ".inf"),
    (Refused, "-.INF"),
    (Refused, "+.Inf"),
    (Refused, ".NaN"),
    (Same, "[inf, nan, Infinity, NaN, -inf, .iNF]"),
    // Values that other tools read differently.
    (Same, "[1:20, 190:20:30, 1:20.5, 2001-12-14, 2001-12-14T21:59:43Z, 2001-12-14 21:59:43.10 -5, =, <<]"),
    (Same, "[1.2.3.4, 1e2e3, 12abc, 0x1g, -, --, +, -+1, 1-1, 1 2, 10%, $1]"),
    // Tags.
    (Same, "[!!str 0644, !!str yes, !!str ~, !!str '', !!str , !local 0644, !local yes, ! 0644, ! yes, ! ~, ! ]"),
    (Same, "[!!int '5', !!int \"0x10\", !!int 0644, !!float 1, !!float '1.5', !!bool 'yes', !!null '', !!null ~]"),
    (Same, "[!<tag:yaml.org,2002:int> '5', !<tag:yaml.org,2002:str> 5, !<!local> 5, !%C3%A4 x]"),
    (Same, "[!!timestamp 2001-12-14, !!timestamp '2001-1-2', !!timestamp 2001-12-14t21:59:43.1-05:00]"),
    (Same, "{a: !!map {b: 1}, c: !!seq [1], d: !!str {e: 1}, f: !!str [1], g: !!set {h, i}, j: !!omap [k: 1]}"),
    (Same, "[!!binary aGVsbG8=, !!binary \"aGVs\\nbG8=\", !!binary , !!binary aGVsbG9=]"),
    (Same, "!!binary |\n  aGVs\n  bG8=\n"),
    (Refused, "!!binary aGVsbG8"),
    (Refused, "!!binary '*'"),
    (Refused, "!!binary aGVs bG8="),
    (Stricter("JSON can't hold it"), "!!binary gIGC"),
    (Refused, "!!int 1.5"),
    (Refused, "!!int x"),
    (Refused, "!!int ''"),
    (Refused, "!!int 2001-12-14"),
    (Refused, "!!float x"),
    (Refused, "!!float 18446744073709551615"),
    (Refused, "!!bool 1"),
    (Refused, "!!bool 'maybe'"),
    (Refused, "!!null 0"),
    (Refused, "!!timestamp 5"),
    (Refused, "!!timestamp 2001-02-30"),
    (Refused, "!!timestamp 2001-12-14 21:59"),
    (Refused, "!e!x 5"),
    (Refused, "!!int .inf"),
    (Stricter("a comma right after a tag"), "[!!str, a]"),
    // Keys.
    (
        Same,
        "{yes: 1, no: 2, 12: 3, 0x10: 4, 010: 5, 1.5: 6, 1e3: 7, 1e6: 8, 1e-5: 9, 2001-12-14: 10, .inf: 11, .nan: 12}",
    ),
    (Same, "{1000000: 1, 100000.0: 2, 0.0001: 3}"),
    (Same, "{!!str yes: 1, '0644': 2, !!int '7': 3, !x 0645: 4, \"\": 5, '~': 6}"),
    (Stricter("make another number of"), "{16777217.0: 1}"),
    (Stricter("make another number of"), "{1e39: 1}"),
    (Stricter("make another number of"), "{0.1234567890123: 1}"),
    (Refused, "{~: 1}"),
    (Refused, "{: 1}"),
    (Refused, "{? [a] : 1}"),
    (Refused, "{? {a: b} : 1}"),
    (Refused, "{18446744073709551615: 1}"),
    (Stricter("stands twice"), "{a: 1, a: 2}"),
    (Stricter("stands twice"), "{a: 1, \"a\": 2}"),
    (Stricter("stands twice"), "{a: {b: 1, b: 1}}"),
    // Flow style.
    (Same, "{a, b: , \"c\":1, 'd':2, e : 3, ? f : 4, ? g}"),
    (Same, "[a, b: 1, ? c, \"d\": 2, [], {}, [a, ], {a: 1, }]"),
    (Same, "[a:b, http://x/y, -1, -a, a#b, 'a'  , a b,\n  c\n  d]"),
    (Same, "{\n  a: 1,\n\tb: 2\n}"),
    (Same, "{a:b}"),
    (Stricter("found unexpected ':'"), "{a:}"),
    (Stricter("found unexpected ':'"), "[a:, b]"),
    (Refused, "[a?b]"),
    (Refused, "{a: http://x/?y=z}"),
    (Refused, "[a]]"),
    (Refused, "[a"),
    (Refused, "{a: 1} b"),
    (Refused, "[,]"),
    (Refused, "[a,, b]"),
    (Refused, "[-]x"),
    (Same, "[-]"),
    (Same, "a?b"),
    // Quotes and escapes.
    (Same, "\"\\0\\a\\b\\t\\n\\v\\f\\r\\e\\ \\\"\\\\\\N\\_\\L\\P\\x41\\u00e4\\U0001F600\""),
    (Same, "\"a\\\n  b\n\n  c  \n  d\\n\\\n  \\  e\""),
    (Same, "'it''s\n\n  a\n  b'"),
    (Refused, "\"\\q\""),
    (Refused, "\"\\ud83d\\ude00\""),
    (Refused, "\"\\x4\""),
    (Refused, "'a"),
    (Refused, "'a' b"),
    // The escape of JSON and YAML 1.2. It can have only one meaning.
    (Laxer, "\"a\\/b\""),
    // An escape that no version of YAML has.
    (Stricter("unknown escape"), "\"a\\'b\""),
    // Block scalars.
    (Same, "|\n  a\n   b\n\n  c\n\n"),
    (Same, "|-\n  a\n\n"),
    (Same, "|+\n  a\n\n\n"),
    (Same, ">\n  a\n  b\n\n  c\n   d\n  e\n"),
    (Same, ">-\n\n  a\n\n\n  b\n"),
    (Same, ">+ # comment\n  a\n\n"),
    (Same, "|2\n   a\n  b\n"),
    (Same, "|1-\n  a\n"),
    (Same, "|\n  a\t\n  \tb\n"),
    (Same, "|\n  ---\n  ...\n  # no comment\n"),
    (Same, "|\n"),
    (Same, "|+\n\n\n"),
    (Refused, "!!int |\n  5"),
    (Refused, "|0\n  a\n"),
    (Refused, "|x\n  a\n"),
    (Refused, "|\n\ta\n"),
    (Refused, "|\n    a\n  b: c\n"),
    // Plain text over lines, comments, tabs.
    (Same, "a\n  b\n\n  c # comment\n"),
    (Same, "a#b #c"),
    (Same, "\ta\t# c"),
    (Same, "'a'\t"),
    (Same, "a\tb"),
    (Refused, "\n\ta: 1"),
    (Refused, "a: b"),
    (Refused, "- a"),
    (Refused, "@a"),
    (Refused, "`a"),
    (Refused, "%a"),
    (Same, "a%b@c`d"),
    (Same, "\n- a\n- - b\n  - c\n-\n  d: 1\n  e: 2\n- \n"),
    (Same, "\n? a\n? b\n: c\n"),
    (Refused, "\"a\u{7f}\""),
    (Same, "'\u{e4}\u{1f600}\u{a0}\u{feff}'"),
    (Refused, "\u{7}"),
    (Stricter("ends a line for some tools"), "a\u{2028}  b"),
    (Stricter("ends a line for some tools"), "'a\u{85}  b'"),
    (Same, "a\r  b"),
];

/// Content below the name.
const BODIES: &[(Expect, &str)] = &[
    // Anchors and aliases.
    (Same, "a: &a {b: [1]}\nc: *a\nd: &a 5\ne: *a\n"),
    (Same, "a: &a x\n*a : y\n"),
    (Same, "a: &a\nb: *a\n"),
    (Same, "a: &a !!str 5\nb: !!int &b '5'\nc: [*a, *b]\n"),
    (Refused, "a: *b\n"),
    (Refused, "a: *b\nb: &b 1\n"),
    (Refused, "a: &a [*a]\n"),
    (Refused, "a: &a {<<: *a}\n"),
    (Refused, "a: &a [1]\n*a : 1\n"),
    (Refused, "a: &a.b 1\nb: *a.b\n"),
    (Refused, "a: &a 1\nb: !!str *a\n"),
    // Merges.
    (Same, "l: &l {tier: db, zone: a}\nx: {<<: *l, tier: web}\n"),
    (Same, "l: &l {tier: db, zone: a}\nx: {tier: web, <<: *l}\n"),
    (Same, "l: &l {tier: db, zone: a}\nx:\n  tier: web\n  <<: *l\n  zone: b\n"),
    (Same, "l: &l {a: 1}\nm: &m {a: 2, b: 2}\nx: {<<: [*l, *m]}\ny: {<<: [*m, *l], c: 3}\n"),
    (Same, "l: &l {a: 1}\nm: &m {a: 2, b: 2}\nx: {<<: *l, <<: *m}\n"),
    (Same, "x: {<<: {<<: {a: 1}, b: 2}, c: 3}\n"),
    (Same, "x: {<<: [{a: 1}, {a: 2}, {b: 3}]}\ny: {<<: []}\nz: {<<: {}}\n"),
    (Same, "x: {\"<<\": {a: 1}}\ny: {!!str <<: {a: 1}}\nz: {!!merge <<: {a: 1}}\n"),
    (Same, "x: {! <<: {a: 1}}\n"),
    (Same, "<<: {a: 1, b: &b {c: 2}}\nd: *b\n"),
    (Refused, "x: {<<: 1}\n"),
    (Refused, "x: {<<: ~}\n"),
    (Refused, "x: {<<: [1]}\n"),
    (Refused, "x: {<<: [[{a: 1}]]}\n"),
    (Refused, "l: &l [{a: 1}]\nx: {<<: *l}\n"),
    (Refused, "l: &l 1\nx: {<<: [*l]}\n"),
    (Stricter("stands twice"), "l: &l {a: 1}\nx: {a: 1, <<: *l, a: 2}\n"),
    (Stricter("stands twice"), "metadata: {name: NAME}\n"),
    // The document's end.
    (Same, "a: 1\n...\n"),
    (Same, "a: 1\n...\n# comment\n\n"),
    (Same, "a: 1\n... # comment\n"),
    (Stricter("after the document's end"), "a: 1\n...\nb: 1\n"),
    (Stricter("after the document's end"), "a: 1\n...\n]\n"),
    (Refused, "a: 1\n]\n"),
    (Stricter("after the document's end"), "a: 1\n...\n%YAML 1.1\n---\n"),
    // Indentation.
    (Same, "a:\n- 1\n- 2\nb:\n    c: 1\n"),
    (Refused, "a:\n    b: 1\n  c: 2\n"),
    (Refused, " a: 1\n"),
    (Refused, "a: 1\n b: 2\n"),
    (Same, "a: {\n}\nb: [\n1\n]\nc: \"d\ne\"\n"),
    (Same, "a: b\r\nc: |\r\n  d\r\n  e\r\n"),
    (Stricter("byte order mark"), "a: {\n\u{feff}b: 1}\n"),
];

/// Whole files.
const FILES: &[(Expect, &str)] = &[
    (Same, ""),
    (Same, "\n# nothing\n---\n---\n# c\n---\nnull\n---\n~\n"),
    (
        Same,
        "---\n{apiVersion: a/v1, kind: A, metadata: {name: NAME-1}}\n---\n\n---\n# c\napiVersion: a/v1\nkind: A\nmetadata: {name: NAME-2}\n",
    ),
    (
        Same,
        "--- # comment\napiVersion: a/v1\nkind: A\nmetadata: {name: NAME-1}\n---   \napiVersion: a/v1\nkind: A\nmetadata: {name: NAME-2}\n---",
    ),
    (Same, "---\r\napiVersion: a/v1\r\nkind: A\r\nmetadata: {name: NAME}\r\n---\r\n"),
    (Same, "---\n---\napiVersion: a/v1\nkind: A\nmetadata: {name: NAME}\n...\n---\n---\n"),
    (Refused, "--- text\napiVersion: a/v1\nkind: A\nmetadata: {name: NAME}\n"),
    (Refused, "--- {apiVersion: a/v1, kind: A, metadata: {name: NAME}}\n"),
    (Refused, "apiVersion: a/v1\nkind: A\nmetadata: {name: NAME}\n---x\n"),
    (Refused, "%YAML 1.1\n---\napiVersion: a/v1\nkind: A\nmetadata: {name: NAME}\n"),
    (Refused, "%TAG ! tag:x,2000:\n---\napiVersion: a/v1\nkind: A\nmetadata: {name: NAME}\n"),
    (Refused, "...\napiVersion: a/v1\nkind: A\nmetadata: {name: NAME}\n"),
    (Refused, "- apiVersion: a/v1\n  kind: A\n  metadata: {name: NAME}\n"),
    (Refused, "text"),
    // An indented first line: for YAML the document ends where the indentation does.
    (Stricter("after the document's end"), "  apiVersion: a/v1\n  kind: A\n  metadata: {name: NAME}\ndata: {a: b}\n"),
    (
        Stricter("after the document's end"),
        "{apiVersion: a/v1, kind: A, metadata: {name: NAME-1}}\n{apiVersion: a/v1, kind: A, metadata: {name: NAME-2}}\n",
    ),
    // JSON, and text that looks like JSON.
    (
        Same,
        "{\"apiVersion\": \"a/v1\", \"kind\": \"A\", \"metadata\": {\"name\": \"NAME\"}, \"x\": [1.0, 1e3, -0, -0.0, 1e21, 9223372036854775808]}",
    ),
    (
        Same,
        "{\"apiVersion\": \"a/v1\", \"kind\": \"A\", \"metadata\": {\"name\": \"NAME\"}, \"x\": \"\\ud83d\\ude00\\/\u{2028}\u{85}\u{7f}\"}",
    ),
    (
        Same,
        "\n {\"apiVersion\":\"a/v1\",\"kind\":\"A\",\"metadata\":{\"name\":\"NAME-1\"}}{\"apiVersion\":\"a/v1\",\"kind\":\"A\",\"metadata\":{\"name\":\"NAME-2\"}}\nnull\n",
    ),
    (
        Same,
        "{\"apiVersion\":\"a/v1\",\"kind\":\"A\",\"metadata\":{\"name\":\"NAME-1\"}}\n---\napiVersion: a/v1\nkind: A\nmetadata: {name: NAME-2}\nx: 0644\n",
    ),
    (
        Same,
        "{\"apiVersion\":\"a/v1\",\"kind\":\"A\",\"metadata\":{\"name\":\"NAME-1\"}}\n---\n{\"apiVersion\":\"a/v1\",\"kind\":\"A\",\"metadata\":{\"name\":\"NAME-2\"}}\n",
    ),
    (Same, "{\"apiVersion\":\"a/v1\",\"kind\":\"A\",\"metadata\":{\"name\":\"NAME\"},\n\t\"x\": 0644, }"),
    (Same, "{apiVersion: a/v1, kind: A, metadata: {name: NAME}, # comment\n x: 0644}"),
    (Refused, "{\"apiVersion\":\"a/v1\",\"kind\":\"A\",\"metadata\":{\"name\":\"NAME\"},\"x\":1e400}"),
    (
        Refused,
        "{\"apiVersion\":\"a/v1\",\"kind\":\"A\",\"metadata\":{\"name\":\"NAME-1\"}}{}\n---\n{\"apiVersion\":\"a/v1\",\"kind\":\"A\",\"metadata\":{\"name\":\"NAME-2\"}}\n",
    ),
    (Refused, "{\"apiVersion\":\"a/v1\",\"kind\":\"A\",\"metadata\":{\"name\":\"NAME\"}"),
    (Refused, "[{\"apiVersion\":\"a/v1\",\"kind\":\"A\",\"metadata\":{\"name\":\"NAME\"}}]"),
    (
        Stricter("stands twice"),
        "{\"apiVersion\":\"a/v1\",\"kind\":\"A\",\"metadata\":{\"name\":\"NAME\"},\"x\":1,\"x\":2}",
    ),
    (
        Stricter("hex escape"),
        "{\"apiVersion\":\"a/v1\",\"kind\":\"A\",\"metadata\":{\"name\":\"NAME\"},\"x\":\"\\ud800\"}",
    ),
    // Lists.
    (
        Same,
        "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: a/v1, kind: A, metadata: {name: NAME-1}}\n- {apiVersion: a/v1, kind: A, metadata: {name: NAME-2}}\n",
    ),
    (
        Same,
        "apiVersion: a/v1\nkind: AList\nitems:\n- {metadata: {name: NAME-1}, x: 1}\n- {apiVersion: v1, kind: B, metadata: {name: NAME-2}}\n",
    ),
    // kubectl fails, and does not say where.
    (Stricter("no apiVersion"), "apiVersion: v1\nkind: List\nitems:\n- {metadata: {name: NAME}}\n"),
    // Kubernetes' own kinds.
    (
        Same,
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: NAME, namespace: shop}\ndata: {a: 'yes', b: \"0644\", c: \"x\\n\"}\n",
    ),
    (
        Same,
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: NAME}\nspec: {template: {spec: {volumes: [{name: a, configMap: {name: x, defaultMode: 0644}}]}}}\n",
    ),
    (Refused, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: NAME, namespace: true}\n"),
    (Refused, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: on, labels: {x: NAME}}\n"),
    (Refused, "apiVersion: v1\nmetadata: {name: NAME}\n"),
    // An object twice.
    (
        Stricter("already"),
        "apiVersion: a/v1\nkind: A\nmetadata: {name: NAME}\n---\napiVersion: a/v1\nkind: A\nmetadata: {name: NAME}\n",
    ),
];

/// Files too large to be written out.
fn large() -> Vec<Case> {
    let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    let bomb = |levels: usize, each: usize| {
        let mut text = format!("{HEAD}a0: &a0 [x, x]\n");
        for i in 1..levels {
            text += &format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); each].join(", "));
        }
        text
    };
    let long = "x".repeat(2000);
    vec![
        case(Same, format!("{HEAD}x: {}\n", nested(120))),
        case(Same, bomb(4, 5)),
        case(Refused, bomb(9, 9)),
        // Few nodes with much text: kubectl does not limit that.
        case(
            Stricter("repeat too much"),
            format!("{HEAD}a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), ["*a"; 40].join(",")),
        ),
        case(
            Same,
            format!("{HEAD}{long}: 1\nx: {long}\n").replace(&format!("{long}: 1"), &format!("{}: 1", &long[..1000])),
        ),
        case(Refused, format!("{HEAD}{long}: 1\n")),
        case(Same, format!("{HEAD}? {long}\n: 1\n")),
    ]
}

fn encodings() -> Vec<Case> {
    let text = format!("\u{feff}{HEAD}x: \u{e4}\u{1f600}\n");
    let wide = |unit: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(unit).collect::<Vec<u8>>();
    let with = |end: &[u8]| [HEAD.as_bytes(), b"x: ", end].concat();
    let bytes = |expect, bytes| Case { bytes, expect };
    vec![
        case(Same, text.clone()),
        bytes(Same, wide(u16::to_le_bytes)),
        bytes(Same, wide(u16::to_be_bytes)),
        // kubectl replaces what it can't decode by U+FFFD.
        bytes(Stricter("not UTF-8"), with(b"\xe4\n")),
        bytes(Stricter("not UTF-8"), with(b"\xed\xa0\x80\n")),
        bytes(Stricter("begins as UTF-16"), [wide(u16::to_le_bytes), b"#\x00\x00\xd8\n\x00".to_vec()].concat()),
        bytes(Refused, with(b"a\0b\n")),
    ]
}
