//! Makes the nodes of a document from the parser's events.

use std::collections::HashMap;

use libyaml_safer::{Encoding, Error, EventData, MappingStyle, Parser, ScalarStyle, SequenceStyle};

use super::tags;
use crate::manifests::json::DEPTH_LIMIT;
use crate::manifests::problem::Problem;

/// The index of a node in [`Tree::nodes`].
pub(super) type Id = usize;

/// A document's nodes.
pub(super) struct Tree {
    nodes: Vec<Node>,
    root: Id,
}

pub(super) struct Node {
    /// From 1.
    pub(super) line: usize,
    pub(super) content: Content,
}

pub(super) enum Content {
    Scalar {
        text: String,
        /// It has no quotes and is no block.
        plain: bool,
        /// The full tag (`tag:yaml.org,2002:int`), or `!`, or a local tag.
        tag: Option<String>,
    },
    Sequence(Vec<Id>),
    Mapping(Vec<(Id, Id)>),
    Alias(Id),
}

impl Tree {
    pub(super) fn root(&self) -> Id {
        self.root
    }

    pub(super) fn line(&self) -> usize {
        self.nodes.get(self.root).map_or(1, |n| n.line)
    }

    pub(super) fn node(&self, id: Id) -> Option<&Node> {
        self.nodes.get(id)
    }
}

/// The nodes of the only document of a text, if there is one.
pub(super) fn compose(text: &str) -> Result<Option<Tree>, Problem> {
    let guarded = tags::guard(text);
    let mut parser = Parser::new();
    parser.set_encoding(Encoding::Utf8);
    parser.set_input(std::io::BufReader::new(guarded.text.as_bytes()));
    let mut composer = Composer {
        tree: Tree { nodes: Vec::new(), root: 0 },
        open: Vec::new(),
        anchors: HashMap::new(),
        ended: false,
        mark: guarded.mark,
    };
    loop {
        let event = parser.parse().map_err(|e| composer.syntax(&e))?;
        let line = line(event.start_mark.line);
        match event.data {
            EventData::StreamEnd => return Ok(composer.ended.then_some(composer.tree)),
            EventData::DocumentEnd { .. } => composer.ended = true,
            EventData::DocumentStart { .. } if composer.ended => return Err(after_end(line)),
            event => composer.take(event, line)?,
        }
    }
}

/// The line, from 1; the parser counts from 0.
fn line(parsers: u64) -> usize {
    usize::try_from(parsers).unwrap_or(usize::MAX).saturating_add(1)
}

/// A mapping or list whose end has not been reached.
struct Open {
    id: Id,
    children: Vec<Id>,
    flow: bool,
}

struct Composer {
    tree: Tree,
    open: Vec<Open>,
    anchors: HashMap<String, Id>,
    /// Whether the document's end was seen.
    ended: bool,
    /// The character that stands for some `!` (see `tags`).
    mark: Option<char>,
}

impl Composer {
    fn syntax(&self, e: &Error) -> Problem {
        let line = e.problem_mark().map_or(1, |m| line(m.line));
        if self.ended { after_end(line) } else { Problem::new(line, e.problem()) }
    }

    fn take(&mut self, event: EventData, line: usize) -> Result<(), Problem> {
        match event {
            EventData::Scalar { anchor, tag, value, style, .. } => {
                let plain = style == ScalarStyle::Plain;
                let text = self.checked(value, plain, line)?;
                self.add(Content::Scalar { text, plain, tag }, anchor, line);
            }
            EventData::Alias { anchor } => {
                let Some(&target) = self.anchors.get(&anchor) else {
                    return Err(Problem::new(line, format!("there is no anchor {anchor:?} before this")));
                };
                self.add(Content::Alias(target), None, line);
            }
            EventData::SequenceStart { anchor, style, .. } => {
                self.start(Content::Sequence(Vec::new()), style == SequenceStyle::Flow, anchor, line)?;
            }
            EventData::MappingStart { anchor, style, .. } => {
                self.start(Content::Mapping(Vec::new()), style == MappingStyle::Flow, anchor, line)?;
            }
            EventData::SequenceEnd | EventData::MappingEnd => self.end(),
            _ => {}
        }
        Ok(())
    }

    /// The text as it stands in the document, if kubectl's parser reads it in the same way.
    fn checked(&self, text: String, plain: bool, line: usize) -> Result<String, Problem> {
        // kubectl's parser sees the beginning of a key where this parser goes on with the text.
        if plain && text.contains('?') && self.open.last().is_some_and(|o| o.flow) {
            return Err(Problem::new(line, format!("{text:?} needs quotes: it has a `?` within braces or brackets")));
        }
        match self.mark {
            Some(mark) if plain && text.starts_with(mark) => {
                Err(Problem::new(line, "a comma right after a tag: a space must be between them"))
            }
            Some(mark) if text.contains(mark) => Ok(text.replace(mark, "!")),
            _ => Ok(text),
        }
    }

    fn add(&mut self, content: Content, anchor: Option<String>, line: usize) -> Id {
        let id = self.tree.nodes.len();
        self.tree.nodes.push(Node { line, content });
        match self.open.last_mut() {
            Some(parent) => parent.children.push(id),
            None => self.tree.root = id,
        }
        if let Some(anchor) = anchor {
            self.anchors.insert(anchor, id);
        }
        id
    }

    fn start(&mut self, content: Content, flow: bool, anchor: Option<String>, line: usize) -> Result<(), Problem> {
        if self.open.len() >= DEPTH_LIMIT {
            return Err(Problem::new(line, format!("mappings and lists nest deeper than {DEPTH_LIMIT}")));
        }
        let id = self.add(content, anchor, line);
        self.open.push(Open { id, children: Vec::new(), flow });
        Ok(())
    }

    fn end(&mut self) {
        let Some(Open { id, children, .. }) = self.open.pop() else { return };
        match self.tree.nodes.get_mut(id).map(|n| &mut n.content) {
            Some(Content::Sequence(items)) => *items = children,
            Some(Content::Mapping(pairs)) => {
                *pairs = children.as_chunks::<2>().0.iter().map(|&[k, v]| (k, v)).collect();
            }
            _ => {}
        }
    }
}

fn after_end(line: usize) -> Problem {
    let reason = "this stands after the document's end (kubectl would drop it): begin a document with a line `---`";
    Problem::new(line, reason)
}
