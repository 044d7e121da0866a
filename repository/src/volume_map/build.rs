//! Building a map from its leaves, in order. No I/O: finished chunks are handed to the caller.

use super::{Child, FAN_OUT, MapRef, MapRoot, Node};

/// Collects children level by level. Nodes are cut by position (each [`FAN_OUT`] children), not by content, so that a
/// change in one place leaves all other subtrees as they are.
#[derive(Default)]
pub struct MapBuilder {
    /// Open children per level, from the leaves up; how many positions are filled counts merged holes singly.
    levels: Vec<Level>,
}

#[derive(Default)]
struct Level {
    children: Vec<Child>,
    positions: usize,
}

/// Stores one encoded node and returns where it is.
pub trait PutNode {
    /// Why it could not.
    type Error;
    /// Stores the chunk.
    fn put(&mut self, bytes: Vec<u8>) -> impl Future<Output = Result<MapRef, Self::Error>> + Send;
}

impl<E, F, Fut> PutNode for F
where
    F: FnMut(Vec<u8>) -> Fut,
    Fut: Future<Output = Result<MapRef, E>> + Send,
{
    type Error = E;
    fn put(&mut self, bytes: Vec<u8>) -> impl Future<Output = Result<MapRef, E>> + Send {
        self(bytes)
    }
}

impl MapBuilder {
    /// An empty map.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next leaf, or a hole in its place.
    ///
    /// # Errors
    /// Whatever `put` fails with.
    pub async fn push<P: PutNode>(&mut self, child: Child, put: &mut P) -> Result<(), P::Error> {
        let mut child = child;
        let mut at = 0;
        loop {
            if self.levels.len() == at {
                self.levels.push(Level::default());
            }
            let level = &mut self.levels[at];
            level.add(child);
            if level.positions < FAN_OUT {
                return Ok(());
            }
            child = Self::close(level, at, put).await?;
            at += 1;
        }
    }

    /// Closes all levels.
    ///
    /// # Errors
    /// Whatever `put` fails with.
    pub async fn finish<P: PutNode>(mut self, put: &mut P) -> Result<MapRoot, P::Error> {
        let mut at = 0;
        loop {
            let top = at + 1 >= self.levels.len();
            let Some(level) = self.levels.get_mut(at) else {
                return Ok(MapRoot { len: 0, level: 0, chunk: None });
            };
            if top && level.children.len() == 1 {
                let child = level.children[0];
                let level = if child.chunk.is_some() { u8::try_from(at).unwrap_or(u8::MAX) } else { 0 };
                return Ok(MapRoot { len: child.len, level, chunk: child.chunk });
            }
            if level.children.is_empty() {
                at += 1;
                continue;
            }
            let child = Self::close(level, at, put).await?;
            at += 1;
            if self.levels.len() == at {
                self.levels.push(Level::default());
            }
            self.levels[at].add(child);
        }
    }

    async fn close<P: PutNode>(level: &mut Level, at: usize, put: &mut P) -> Result<Child, P::Error> {
        let level = std::mem::take(level);
        let len = level.children.iter().map(|c| c.len).sum();
        if level.children.iter().all(|c| c.chunk.is_none()) {
            return Ok(Child { len, chunk: None });
        }
        let node = Node { level: u8::try_from(at + 1).unwrap_or(u8::MAX), children: level.children };
        Ok(Child { len, chunk: Some(put.put(node.encode()).await?) })
    }
}

impl Level {
    fn add(&mut self, child: Child) {
        self.positions += 1;
        match self.children.last_mut() {
            Some(last) if last.chunk.is_none() && child.chunk.is_none() => last.len += child.len,
            _ => self.children.push(child),
        }
    }
}
