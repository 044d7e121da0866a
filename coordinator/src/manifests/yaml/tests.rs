use serde_json::json;

use super::*;

/// The value of a document.
fn value(text: &str) -> Value {
    parse(text).unwrap().map_or(Value::Null, |(_, value)| value)
}

fn refused(text: &str) -> Problem {
    parse(text).unwrap_err()
}

#[test]
fn plain_text_is_what_yaml_1_1_says() {
    for (text, want) in [
        ("y", json!(true)),
        ("Yes", json!(true)),
        ("ON", json!(true)),
        ("n", json!(false)),
        ("off", json!(false)),
        ("yEs", json!("yEs")),
        ("~", json!(null)),
        ("Null", json!(null)),
        ("nULL", json!("nULL")),
        ("0644", json!(420)),
        ("-0644", json!(-420)),
        ("0o644", json!(420)),
        ("0O644", json!(420)),
        ("0899", json!(899)),
        ("0x1F", json!(31)),
        ("-0X1f", json!(-31)),
        ("0x", json!("0x")),
        ("0b101", json!(5)),
        ("0b-1", json!(-1)),
        ("-0b11", json!(-3)),
        ("0b2", json!("0b2")),
        ("1_000", json!(1000)),
        ("0_644", json!(420)),
        ("_1", json!("_1")),
        ("1e3", json!(1000)),
        ("1_e3", json!(1000)),
        ("1.0", json!(1)),
        ("1.", json!(1)),
        ("1.5_0", json!(1.5)),
        (".5", json!(0.5)),
        (".5_0", json!(0.5)),
        ("._5", json!("._5")),
        (".", json!(".")),
        ("+.5", json!(0.5)),
        ("1.2.3", json!("1.2.3")),
        ("1e", json!("1e")),
        ("1e400", json!("1e400")),
        ("1e-400", json!(0)),
        ("+1", json!(1)),
        ("+-1", json!("+-1")),
        ("--", json!("--")),
        ("1:20", json!("1:20")),
        ("2001-12-14", json!("2001-12-14")),
        ("9223372036854775807", json!(i64::MAX)),
        ("-9223372036854775808", json!(i64::MIN)),
        ("18446744073709551615", json!(18_446_744_073_709_551_615_f64)),
        ("123456789012345678901234567890", json!(1.2345678901234568e29)),
        ("-0", json!(0)),
        ("-0.0", json!(0)),
        ("<<", json!("<<")),
        ("=", json!("=")),
        ("'0644'", json!("0644")),
        ("\"yes\"", json!("yes")),
    ] {
        assert_eq!(value(&format!("a: {text}\n")), json!({"a": want}), "{text}");
    }
    for text in [".inf", "-.INF", "+.Inf", ".nan"] {
        assert!(refused(&format!("a: {text}\n")).reason.contains("JSON"), "{text}");
    }
}

#[test]
fn tags_are_kept_or_refused() {
    for (text, want) in [
        ("!!str 0644", json!("0644")),
        ("!!str", json!("")),
        ("!!int \"0x10\"", json!(16)),
        ("!!int '5'", json!(5)),
        ("!!float 1", json!(1)),
        ("!!bool 'no'", json!(false)),
        ("!!null ''", json!(null)),
        ("!!timestamp 2001-12-14", json!("2001-12-14")),
        ("!!binary aGVs\n  bG8=", json!("hel\u{0}lo")),
        ("!local 0644", json!("0644")),
        ("! 0644", json!("0644")),
        ("!<tag:yaml.org,2002:int> '5'", json!(5)),
        ("!!set {b, c}", json!({"b": null, "c": null})),
        ("!!str [1]", json!([1])),
    ] {
        let want = if text.contains("binary") { json!("hello") } else { want };
        let text = text.replace("aGVs\n  bG8=", "\"aGVs\\nbG8=\"");
        assert_eq!(value(&format!("a: {text}\n")), json!({"a": want}), "{text}");
    }
    for text in [
        "!!int 1.5",
        "!!int 18446744073709551616",
        "!!float x",
        "!!bool 1",
        "!!null 0",
        "!!timestamp 5",
        "!!float 18446744073709551615",
    ] {
        assert!(refused(&format!("a: {text}\n")).reason.contains("is no !!"), "{text}");
    }
    assert!(refused("a: !!binary '*'\n").reason.contains("base64"));
    assert!(refused("a: !!binary gIGC\n").reason.contains("JSON can't hold"));
    assert_eq!(refused("\n\na:\n- !!int x\n").line, 4);
}

#[test]
fn keys_become_text() {
    let keys = "yes: 0\n12: 0\n0x10: 0\n1.5: 0\n1e3: 0\n1e6: 0\n.inf: 0\n1e-7: 0\n.nan: 0\n2001-12-14: 0\n";
    let value = value(keys);
    let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
    assert_eq!(keys, [".inf", ".nan", "1.5", "1000", "12", "16", "1e+06", "1e-07", "2001-12-14", "true"]);
    for text in ["~: 0", "? [a]\n: 0", "? {a: b}\n: 0", "18446744073709551615: 0", "a: &x [1]\n*x : 1"] {
        assert!(refused(text).reason.contains("no text"), "{text}");
    }
    for text in ["16777217.0: 0", "1e39: 0", "1390914.25: 0", "1e-60: 0"] {
        assert!(refused(text).reason.contains("another number"), "{text}");
    }
    assert_eq!(refused("a: 1\n1: 0\nb: 1\n\"1\": 0\n"), Problem::new(4, "the key \"1\" stands twice"));
}

#[test]
fn merges_replace_what_is_before_them() {
    let base = "l: &l {tier: db, zone: a}\nm: &m {tier: cache, k: 1}\n";
    for (text, want) in [
        ("{<<: *l, tier: web}", json!({"tier": "web", "zone": "a"})),
        ("{tier: web, <<: *l}", json!({"tier": "db", "zone": "a"})),
        ("{<<: [*l, *m]}", json!({"tier": "db", "zone": "a", "k": 1})),
        ("{<<: *l, <<: *m}", json!({"tier": "cache", "zone": "a", "k": 1})),
        ("{<<: {<<: *l, zone: b}}", json!({"tier": "db", "zone": "b"})),
        ("{!!merge <<: *l}", json!({"tier": "db", "zone": "a"})),
        ("{\"<<\": *l}", json!({"<<": {"tier": "db", "zone": "a"}})),
        ("{<<: []}", json!({})),
    ] {
        assert_eq!(value(&format!("{base}v: {text}\n"))["v"], want, "{text}");
    }
    for text in ["{<<: 1}", "{<<: ~}", "{<<: [1]}", "{<<: &s [{}], a: {<<: *s}}"] {
        assert!(refused(&format!("{base}v: {text}\n")).reason.contains("merged"), "{text}");
    }
    assert!(refused(&format!("{base}v: {{a: 1, <<: *l, a: 2}}\n")).reason.contains("twice"));
}

#[test]
fn aliases_have_bounds() {
    assert_eq!(value("a: &a [1]\nb: *a\nc: &a 2\nd: *a\n"), json!({"a": [1], "b": [1], "c": 2, "d": 2}));
    assert!(refused("a: *b\n").reason.contains("anchor"));
    assert!(refused("a: &a [*a]\n").reason.contains("itself"));
    assert!(refused("a: &a {<<: *a}\n").reason.contains("itself"));
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for i in 1..100 {
        let list = format!("*a{}, ", i - 1).repeat(10);
        bomb += &format!("a{i}: &a{i} [{list}]\n");
    }
    assert!(refused(&bomb).reason.contains("repeat too much"));
    let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), "*a, ".repeat(40));
    assert!(refused(&long).reason.contains("repeat too much"));
    assert_eq!(
        value(&long.replace("*a, *a, *a, *a, *a, *a, *a, *a, *a, *a, ", "*a, "))["b"].as_array().unwrap().len(),
        4
    );
}

#[test]
fn depth_is_what_can_be_read_back() {
    let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    let deepest = value(&nested(127)).to_string();
    assert!(serde_json::from_str::<Value>(&deepest).is_ok());
    assert!(parse(&nested(128)).is_err());
    let block: String = (0..128).map(|i| format!("{}a:\n", " ".repeat(i))).collect();
    assert!(parse(&block).is_err());
    assert!(parse(&"- ".repeat(100_000)).is_err());
    assert!(parse(&"[".repeat(1_000_000)).is_err());
    assert!(parse(&"{a: ".repeat(1_000_000)).is_err());
    // Nesting through aliases counts, too.
    let twice = format!("a: &a {}\nb: {}\n", nested(100), nested(100).replace("[]", "[*a]"));
    assert!(refused(&twice).reason.contains("deeper"));
}

#[test]
fn nothing_is_read_two_ways() {
    assert!(refused("a: x\u{2028}y\n").reason.contains("\\L"));
    assert!(refused("a: b\n# \u{85}\n").reason.contains("\\N"));
    assert_eq!(value("a: \"x\\L\\N\"\n"), json!({"a": "x\u{2028}\u{85}"}));
    assert_eq!(refused("a: b\nc: \u{7}\n").line, 2);
    assert!(refused("{a: b?c}\n").reason.contains("quotes"));
    assert_eq!(value("a: b?c\nd: {e: 'f?'}\n"), json!({"a": "b?c", "d": {"e": "f?"}}));
    assert!(parse("a: &b.c 1\n").is_err());
    assert!(refused("a: b\n\u{feff}c: d\n").reason.contains("byte order"));
}

#[test]
fn long_text_is_read_in_pieces() {
    // With one of these shifts at least, the parser's buffer ends within a character.
    for shift in 0..4 {
        let text = format!("{}\u{1f600}\u{e4}\u{20ac}", "x".repeat(shift)).repeat(5000);
        assert_eq!(value(&format!("a: {text}\n")), json!({"a": text}));
    }
}
