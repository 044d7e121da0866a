//! The book's page about the command line, made from the definitions of the arguments. A test compares the page in
//! `docs/` with them.

use clap::{Command, CommandFactory};

use crate::args::Args;

/// Columns of a page.
const WIDTH: usize = 110;

fn section(command: &mut Command, name: &str, depth: usize, out: &mut String) {
    // Values from this machine's environment are left out. So are the options that all commands have: they have a page
    // of their own.
    let shown = command.clone().term_width(WIDTH).mut_args(|a| {
        let all = a.is_global_set();
        a.hide_env_values(true).hide(all)
    });
    let help = { shown }.render_long_help().to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    out.push_str(&format!("{} {name}\n\n```text\n{}\n```\n\n", "#".repeat(depth), lines.join("\n").trim_end()));
    for inner in command.get_subcommands_mut() {
        if inner.get_name() != "help" {
            let name = format!("{name} {}", inner.get_name());
            section(inner, &name, depth + 1, out);
        }
    }
}

/// The page, in Markdown.
fn page() -> String {
    let mut command = Args::command().bin_name("milkrun");
    command.build();
    let mut out =
        "# Command line\n\nThis page is made from the definitions of the arguments: it is what `--help` prints, but for the options that all commands have: those\nare on the page [Options, secrets, exit codes](exit-codes.md).\n\n"
            .to_owned();
    for inner in command.get_subcommands_mut() {
        if inner.get_name() != "help" {
            let name = format!("milkrun {}", inner.get_name());
            section(inner, &name, 2, &mut out);
        }
    }
    format!("{}\n", out.trim_end())
}

#[test]
fn the_page_is_what_the_arguments_say() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/src/command-line.md");
    if std::env::var_os("MILKRUN_BLESS").is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == page(), "docs/src/command-line.md is old: run this test with MILKRUN_BLESS=1");
}
