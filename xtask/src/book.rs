//! The book: mdBook builds it, and every link between pages of this tree is checked.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Markdown files for people, besides the book's pages.
const PAGES: [&str; 7] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/performance.md",
    "docs/performance-history.md",
    "repository/FORMAT.md",
];

/// The targets of all links.
fn links(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            code = !code;
        }
        if code {
            continue;
        }
        for part in line.split("](").skip(1) {
            if let Some((target, _)) = part.split_once(')') {
                out.push(target.to_owned());
            }
        }
    }
    out
}

/// The anchors of a page, as mdBook and GitHub make them from its headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let heading = |line: &str| line.starts_with('#').then(|| line.trim_start_matches('#').trim().to_lowercase());
    let kept = |c: char| c.is_alphanumeric() || c == '-' || c == '_' || c == ' ';
    text.lines()
        .filter_map(heading)
        .map(|h| h.chars().filter(|c| kept(*c)).collect::<String>().replace(' ', "-"))
        .collect()
}

fn pages(root: &Path) -> Result<Vec<PathBuf>, String> {
    let folder = root.join("docs/src");
    let entries = std::fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut all: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "md")).collect();
    all.extend(PAGES.iter().map(|p| root.join(p)));
    all.sort();
    Ok(all)
}

/// Fails if a link is broken, and names it.
pub(crate) fn check_links(root: &Path) -> Result<(), String> {
    let mut broken = String::new();
    for page in pages(root)? {
        let text = std::fs::read_to_string(&page).map_err(|e| format!("{}: {e}", page.display()))?;
        for link in links(&text).into_iter().filter(|l| !l.contains("://") && !l.starts_with("mailto:")) {
            let (file, anchor) = link.split_once('#').map_or((link.as_str(), None), |(f, a)| (f, Some(a)));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap_or(root).join(file) };
            let sound = match (target.exists(), anchor) {
                (false, _) => false,
                (true, None) => true,
                (true, Some(anchor)) => std::fs::read_to_string(&target).is_ok_and(|t| anchors(&t).contains(anchor)),
            };
            if !sound {
                broken.push_str(&format!("  {}: {link}\n", page.display()));
            }
        }
    }
    if broken.is_empty() { Ok(()) } else { Err(format!("links that lead nowhere:\n{broken}")) }
}

/// Builds the book into `target/book`.
pub(crate) fn build(root: &Path, mdbook: Option<&Path>) -> Result<(), String> {
    check_links(root)?;
    let mdbook = mdbook.ok_or("there is no mdbook")?;
    let output =
        Command::new(mdbook).arg("build").arg(root.join("docs")).output().map_err(|e| format!("{mdbook:?}: {e}"))?;
    let log = String::from_utf8_lossy(&output.stderr);
    // mdBook succeeds even if it can't include a file; the log has the error.
    if output.status.success() && !log.contains("ERROR") { Ok(()) } else { Err(log.into_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_anchors_are_found() {
        let text = "# A `b` C\n[x](y.md#z), [w](#a-b-c)\n```\n[no](no.md)\n```\n";
        assert_eq!(links(text), ["y.md#z", "#a-b-c"]);
        assert!(anchors(text).contains("a-b-c"));
    }

    #[test]
    fn no_link_of_this_tree_is_broken() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        assert_eq!(check_links(root), Ok(()));
    }
}
