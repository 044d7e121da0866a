//! Reading a map, leaf by leaf, in the order of the volume. Memory: one node per level.

use async_trait::async_trait;
use bytes::Bytes;

use super::{Leaf, MapRef, MapRoot, Node};

/// The source of map chunks. The caller checks ids.
#[async_trait]
pub trait MapSource: Send + Sync {
    /// Why a chunk was not available.
    type Error: Send;
    /// The plaintext of a chunk.
    async fn chunk(&self, r: &MapRef) -> Result<Bytes, Self::Error>;
    /// The error for a chunk that opens but is not a sound map.
    fn malformed(&self, r: &MapRef, what: &'static str) -> Self::Error;
}

/// The next piece of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Zeros, as far as they reach at this level of the tree.
    Hole {
        /// Where they begin.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// A leaf.
    Leaf {
        /// Where it begins.
        offset: u64,
        /// Which chunk it is.
        reference: MapRef,
        /// The leaf.
        leaf: Leaf,
    },
}

struct Open {
    node: Node,
    next: usize,
}

/// Walks a map.
pub struct MapCursor {
    root: MapRoot,
    stack: Vec<Open>,
    offset: u64,
    /// Everything that ends before this offset is skipped.
    from: u64,
    started: bool,
    /// Every map chunk that was visited, to collect the packs that a point needs.
    visited: Vec<MapRef>,
}

impl MapCursor {
    /// A cursor at the start of a volume.
    pub fn new(root: MapRoot) -> Self {
        Self::starting_at(root, 0)
    }

    /// A cursor at the first leaf or hole that ends after `from`; everything before is not read.
    pub fn starting_at(root: MapRoot, from: u64) -> Self {
        Self { root, stack: Vec::new(), offset: 0, from, started: false, visited: Vec::new() }
    }

    /// Where the next leaf or hole begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The inner nodes and leaves that were read since the last call.
    pub fn take_visited(&mut self) -> Vec<MapRef> {
        std::mem::take(&mut self.visited)
    }

    /// The next leaf or hole; `None` at the end.
    ///
    /// # Errors
    /// Any error of the source, or its `malformed` for a map that contradicts itself.
    pub async fn next<S: MapSource + ?Sized>(&mut self, source: &S) -> Result<Option<Step>, S::Error> {
        if !self.started {
            self.started = true;
            let MapRoot { len, level, chunk } = self.root;
            if self.from >= len {
                self.offset = len;
                return Ok(None);
            }
            match chunk {
                None => return Ok(Some(self.hole(len))),
                Some(r) => {
                    if let Some(step) = self.enter(r, level, len, source).await? {
                        return Ok(Some(step));
                    }
                }
            }
        }
        loop {
            let Some(open) = self.stack.last_mut() else { return Ok(None) };
            let Some(child) = open.node.children.get(open.next).copied() else {
                self.stack.pop();
                continue;
            };
            open.next += 1;
            let level = open.node.level - 1;
            if self.offset.saturating_add(child.len) <= self.from {
                self.offset += child.len;
                continue;
            }
            match child.chunk {
                None => return Ok(Some(self.hole(child.len))),
                Some(r) => {
                    if let Some(step) = self.enter(r, level, child.len, source).await? {
                        return Ok(Some(step));
                    }
                }
            }
        }
    }

    fn hole(&mut self, len: u64) -> Step {
        let offset = self.offset;
        self.offset += len;
        Step::Hole { offset, len }
    }

    /// Opens a chunk: a leaf is the next step, a node is descended into.
    async fn enter<S: MapSource + ?Sized>(
        &mut self,
        r: MapRef,
        level: u8,
        len: u64,
        source: &S,
    ) -> Result<Option<Step>, S::Error> {
        let bytes = source.chunk(&r).await?;
        self.visited.push(r);
        if level == 0 {
            let leaf = Leaf::decode(&bytes).map_err(|e| source.malformed(&r, e.what))?;
            if leaf.len() != len {
                return Err(source.malformed(&r, "leaf length"));
            }
            let offset = self.offset;
            self.offset += len;
            return Ok(Some(Step::Leaf { offset, reference: r, leaf }));
        }
        let node = Node::decode(&bytes).map_err(|e| source.malformed(&r, e.what))?;
        if node.level != level || node.len() != len {
            return Err(source.malformed(&r, "node length or level"));
        }
        if node.children.is_empty() {
            return Err(source.malformed(&r, "empty node"));
        }
        self.stack.push(Open { node, next: 0 });
        Ok(None)
    }
}
