//! Builds the value of a document from its nodes.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::compose::{Content, Id, Node, Tree};
use super::number;
use super::resolve::{self, Scalar};
use crate::manifests::json::{self, DEPTH_LIMIT};
use crate::manifests::problem::Problem;

/// How much of a document aliases may repeat: in bytes of text, plus 64 for each node.
const REPEAT_LIMIT: usize = 32 << 20;
const NODE_COST: usize = 64;

/// The value of a document.
pub(super) fn build(tree: &Tree) -> Result<Value, Problem> {
    let mut builder = Builder { tree, steps: 0, repeated: 0, cost: 0, through: Vec::new() };
    // The document itself counts as a step.
    builder.step(tree.line(), 0)?;
    builder.value(tree.root(), 0)
}

struct Builder<'b> {
    tree: &'b Tree,
    /// How many nodes were visited.
    steps: usize,
    /// How many of them were reached through an alias.
    repeated: usize,
    /// The size of the nodes that were reached through an alias.
    cost: usize,
    /// The targets of the aliases that the builder is inside of.
    through: Vec<Id>,
}

impl<'b> Builder<'b> {
    fn node(&self, id: Id) -> Result<&'b Node, Problem> {
        self.tree.node(id).ok_or_else(|| Problem::new(self.tree.line(), "a part of the document is missing"))
    }

    /// Counts a visit. A few aliases to aliases could ask for more than fits in any memory.
    fn step(&mut self, line: usize, text: usize) -> Result<(), Problem> {
        self.steps += 1;
        if !self.through.is_empty() {
            self.repeated += 1;
            self.cost = self.cost.saturating_add(text + NODE_COST);
        }
        let excessive = self.repeated > 100
            && self.steps > 1000
            && self.repeated as f64 / self.steps as f64 > most_repeated(self.steps);
        if excessive || self.cost > REPEAT_LIMIT {
            return Err(Problem::new(line, "aliases repeat too much of the document"));
        }
        Ok(())
    }

    fn value(&mut self, id: Id, depth: usize) -> Result<Value, Problem> {
        let tree = self.tree;
        let Some(node) = tree.node(id) else { return self.node(id).map(|_| Value::Null) };
        match &node.content {
            Content::Scalar { .. } => value_of(self.scalar(id)?).map_err(|reason| Problem::new(node.line, reason)),
            Content::Alias(alias) => {
                self.step(node.line, 0)?;
                self.follow(*alias, node.line, |builder, target| builder.value(target, depth))
            }
            Content::Sequence(items) => {
                self.enter(node.line, depth)?;
                let mut out = Vec::with_capacity(items.len());
                for &item in items {
                    out.push(self.value(item, depth + 1)?);
                }
                Ok(Value::Array(out))
            }
            Content::Mapping(_) => {
                let mut out = Map::new();
                self.fill(id, depth, &mut out)?;
                Ok(Value::Object(out))
            }
        }
    }

    fn enter(&mut self, line: usize, depth: usize) -> Result<(), Problem> {
        if depth >= DEPTH_LIMIT {
            return Err(Problem::new(line, format!("mappings and lists nest deeper than {DEPTH_LIMIT}")));
        }
        self.step(line, 0)
    }

    fn scalar(&mut self, id: Id) -> Result<Scalar, Problem> {
        let tree = self.tree;
        match tree.node(id) {
            Some(Node { line, content: Content::Scalar { text, plain, tag } }) => {
                self.step(*line, text.len())?;
                resolve::resolve(text, *plain, tag.as_deref()).map_err(|reason| Problem::new(*line, reason))
            }
            other => Err(Problem::new(other.map_or(1, |n| n.line), "a key that is no text")),
        }
    }

    /// Calls a function with the target of an alias.
    fn follow<T>(
        &mut self,
        target: Id,
        line: usize,
        act: impl FnOnce(&mut Self, Id) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        if self.through.contains(&target) || self.through.len() >= DEPTH_LIMIT {
            return Err(Problem::new(line, "an anchor's value contains itself"));
        }
        self.through.push(target);
        let result = act(self, target);
        self.through.pop();
        result
    }

    /// Puts a mapping's entries into a map, in their order: an entry replaces what was merged before it, and what is merged after
    /// it replaces the entry. This is kubectl's rule for merges; YAML's own rule differs.
    fn fill(&mut self, id: Id, depth: usize, out: &mut Map<String, Value>) -> Result<(), Problem> {
        let tree = self.tree;
        let Some(Node { line, content: Content::Mapping(pairs) }) = tree.node(id) else { return Ok(()) };
        self.enter(*line, depth)?;
        let mut own = HashSet::with_capacity(pairs.len());
        for &(key, value) in pairs {
            let node = self.node(key)?;
            let line = node.line;
            if let Content::Scalar { text, plain, tag } = &node.content
                && resolve::is_merge(text, *plain, tag.as_deref())
            {
                self.merge(value, depth, out)?;
                continue;
            }
            let key = self.key(key)?;
            if !own.insert(key.clone()) {
                return Err(Problem::new(line, format!("the key {key:?} stands twice")));
            }
            let value = self.value(value, depth + 1)?;
            out.insert(key, value);
        }
        Ok(())
    }

    fn merge(&mut self, id: Id, depth: usize, out: &mut Map<String, Value>) -> Result<(), Problem> {
        let tree = self.tree;
        match tree.node(id) {
            // Where several have a key, the first one wins.
            Some(Node { content: Content::Sequence(items), .. }) => {
                items.iter().rev().try_for_each(|&item| self.merge_one(item, depth, out))
            }
            _ => self.merge_one(id, depth, out),
        }
    }

    fn merge_one(&mut self, id: Id, depth: usize, out: &mut Map<String, Value>) -> Result<(), Problem> {
        let tree = self.tree;
        let is_mapping = |id| matches!(tree.node(id), Some(Node { content: Content::Mapping(_), .. }));
        match tree.node(id) {
            Some(Node { content: Content::Mapping(_), .. }) => self.fill(id, depth, out),
            Some(&Node { line, content: Content::Alias(alias) }) if is_mapping(alias) => {
                self.step(line, 0)?;
                self.follow(alias, line, |builder, target| builder.fill(target, depth, out))
            }
            other => {
                let line = other.map_or(1, |n| n.line);
                Err(Problem::new(line, "only a mapping or a list of mappings can be merged with `<<`"))
            }
        }
    }

    /// A key as JSON has it: always text. In YAML, keys may be other values.
    fn key(&mut self, id: Id) -> Result<String, Problem> {
        let tree = self.tree;
        let line = self.node(id)?.line;
        let scalar = match tree.node(id) {
            Some(&Node { content: Content::Alias(alias), .. }) => {
                self.step(line, 0)?;
                self.follow(alias, line, Self::scalar)?
            }
            _ => self.scalar(id)?,
        };
        match scalar {
            Scalar::Text(text) => Ok(text),
            Scalar::Bool(b) => Ok(b.to_string()),
            Scalar::Int(int) => Ok(int.to_string()),
            Scalar::Float(f) => number::key(f)
                .ok_or_else(|| Problem::new(line, "a key that kubectl would make another number of: it needs quotes")),
            Scalar::Null | Scalar::Uint(_) => Err(Problem::new(line, "a key that is no text")),
        }
    }
}

/// How much of a document may come from aliases. This is go-yaml's own limit, so that both accept the same documents.
fn most_repeated(steps: usize) -> f64 {
    let (low, high) = (400_000.0, 4_000_000.0);
    let above = (steps as f64).clamp(low, high) - low;
    0.99 - 0.89 * above / (high - low)
}

fn value_of(scalar: Scalar) -> Result<Value, String> {
    let float = |f| json::number(f).map(Value::Number).ok_or_else(|| format!("{f} is no number that JSON can hold"));
    match scalar {
        Scalar::Null => Ok(Value::Null),
        Scalar::Bool(b) => Ok(b.into()),
        Scalar::Int(int) => Ok(int.into()),
        // Above the largest `int64`, Kubernetes has only floats.
        Scalar::Uint(uint) => float(uint as f64),
        Scalar::Float(f) => float(f),
        Scalar::Text(text) => Ok(text.into()),
    }
}
