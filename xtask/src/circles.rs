//! Circular imports: no file may import a file that imports it, directly or through others.
//!
//! Files are nodes. The files of the same crate that a file names (`use crate::…`, `super::…`, paths in code) are its
//! edges. A submodule that imports from its parent module makes no edge: it is a part of the parent. Tests are left
//! out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};

/// A module's path in its crate, without the crate.
type Module = Vec<String>;

/// The names that a file uses, as paths from the crate's root.
struct Names {
    /// The module that is being visited: the file's, or a module within it.
    at: Module,
    found: BTreeSet<Module>,
}

impl Names {
    fn add(&mut self, path: &[String]) {
        let mut base = match path.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("self") => self.at.clone(),
            Some("super") => self.at[..self.at.len().saturating_sub(1)].to_vec(),
            _ => return,
        };
        for name in &path[1..] {
            match name.as_str() {
                "super" => drop(base.pop()),
                name => base.push(name.to_owned()),
            }
        }
        self.found.insert(base);
    }

    fn tree(&mut self, before: &[String], tree: &syn::UseTree) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(p) => self.tree(&with(&p.ident), &p.tree),
            syn::UseTree::Name(n) if n.ident == "self" => self.add(before),
            syn::UseTree::Name(n) => self.add(&with(&n.ident)),
            syn::UseTree::Rename(r) => self.add(&with(&r.ident)),
            syn::UseTree::Glob(_) => self.add(before),
            syn::UseTree::Group(g) => g.items.iter().for_each(|item| self.tree(before, item)),
        }
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|a| a.path().is_ident("cfg") && quote(a).contains("test"))
}

fn quote(a: &syn::Attribute) -> String {
    match &a.meta {
        syn::Meta::List(list) => list.tokens.to_string(),
        _ => String::new(),
    }
}

impl<'a> Visit<'a> for Names {
    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        // Re-exports are left out: the file that uses one names it itself.
        if !is_test(&item.attrs) && matches!(item.vis, syn::Visibility::Inherited) {
            self.tree(&[], &item.tree);
        }
    }

    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        if is_test(&item.attrs) {
            return;
        }
        self.at.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.at.pop();
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        self.add(&names);
        visit::visit_path(self, path);
    }
}

fn sources(folder: &Path, out: &mut Vec<PathBuf>) -> Result<(), String> {
    let entries = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, out)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
    Ok(())
}

/// `backup/claims.rs` is the module `backup::claims`. `lib.rs` and `main.rs` are the crate itself.
fn module_of(relative: &Path) -> Module {
    let mut module: Module = relative.with_extension("").iter().map(|p| p.to_string_lossy().into_owned()).collect();
    if matches!(module.last().map(String::as_str), Some("lib" | "main" | "mod")) {
        module.pop();
    }
    module
}

/// The files of a crate, and the files that each imports.
fn imports(src: &Path) -> Result<BTreeMap<Module, BTreeSet<Module>>, String> {
    let mut files = Vec::new();
    sources(src, &mut files)?;
    let mut named: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
    for file in &files {
        let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
        let parsed = syn::parse_file(&text).map_err(|e| format!("{}: {e}", file.display()))?;
        let module = module_of(file.strip_prefix(src).unwrap_or(file));
        if module.last().is_some_and(|last| last == "tests") {
            continue;
        }
        let mut names = Names { at: module.clone(), found: BTreeSet::new() };
        names.visit_file(&parsed);
        named.entry(module).or_default().extend(names.found);
    }
    let modules: BTreeSet<Module> = named.keys().cloned().collect();
    let file_of = |name: &Module| (0..=name.len()).rev().map(|n| name[..n].to_vec()).find(|m| modules.contains(m));
    let edges = named.iter().map(|(from, names)| {
        let to = names.iter().filter_map(file_of).filter(|to| !from.starts_with(to));
        (from.clone(), to.collect())
    });
    Ok(edges.collect())
}

/// Groups of files that import each other, by Tarjan's algorithm.
fn circles(edges: &BTreeMap<Module, BTreeSet<Module>>) -> Vec<Vec<Module>> {
    struct Search<'a> {
        edges: &'a BTreeMap<Module, BTreeSet<Module>>,
        order: BTreeMap<&'a Module, (usize, usize)>,
        stack: Vec<&'a Module>,
        found: Vec<Vec<Module>>,
    }
    impl<'a> Search<'a> {
        fn visit(&mut self, at: &'a Module) -> usize {
            let number = self.order.len();
            self.order.insert(at, (number, number));
            self.stack.push(at);
            let mut lowest = number;
            for next in self.edges.get(at).into_iter().flatten() {
                lowest = match self.order.get(next) {
                    None => lowest.min(self.visit(next)),
                    Some((number, _)) if self.stack.contains(&next) => lowest.min(*number),
                    Some(_) => lowest,
                };
            }
            if lowest == number {
                let from = self.stack.iter().position(|m| *m == at).unwrap_or(0);
                let group: Vec<Module> = self.stack.split_off(from).into_iter().cloned().collect();
                if group.len() > 1 {
                    self.found.push(group);
                }
            }
            lowest
        }
    }
    let mut search = Search { edges, order: BTreeMap::new(), stack: Vec::new(), found: Vec::new() };
    for module in edges.keys() {
        if !search.order.contains_key(module) {
            search.visit(module);
        }
    }
    search.found
}

/// Fails if a crate of the workspace has circular imports, and names them.
pub(crate) fn check(root: &Path) -> Result<(), String> {
    let mut report = String::new();
    for name in ["agent", "cli", "coordinator", "identity", "observe", "repository", "xtask"] {
        let edges = imports(&root.join(name).join("src"))?;
        for circle in circles(&edges) {
            report.push_str(&format!("{name} has a circle of imports:\n"));
            for from in &circle {
                let to: Vec<String> = edges[from].iter().filter(|m| circle.contains(m)).map(|m| m.join("::")).collect();
                report.push_str(&format!("  {} -> {}\n", from.join("::"), to.join(", ")));
            }
        }
    }
    if report.is_empty() { Ok(()) } else { Err(report) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edges(all: &[(&str, &[&str])]) -> BTreeMap<Module, BTreeSet<Module>> {
        let module = |s: &&str| vec![(*s).to_owned()];
        all.iter().map(|(from, to)| (module(from), to.iter().map(module).collect())).collect()
    }

    #[test]
    fn circles_are_found_and_chains_are_accepted() {
        let found = circles(&edges(&[("a", &["b"]), ("b", &["c"]), ("c", &["a"]), ("d", &["a", "e"]), ("e", &[])]));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].len(), 3);
        assert!(circles(&edges(&[("a", &["b", "c"]), ("b", &["c"]), ("c", &[])])).is_empty());
    }

    #[test]
    fn this_tree_has_no_circles() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        assert_eq!(check(root), Ok(()));
    }
}
