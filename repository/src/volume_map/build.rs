//! Building a map from its leaves, in order. No I/O: finished chunks are handed to the caller.

use super::{Child, FAN_OUT, MapRef, MapRoot, Node};

/// Collects children level by level. Nodes are cut by position (after [`FAN_OUT`] children), not by content, so that a change in
/// one place leaves all other subtrees as they are.
#[derive(Default)]
pub struct MapBuilder {
    /// Open children per level, from the leaves up. The count of filled positions counts each merged hole.
    levels: Vec<Level>,
}

#[derive(Default)]
struct Level {
    children: Vec<Child>,
    positions: usize,
}

/// Stores one encoded node and returns where it is.
pub trait PutNode {
    /// Why it could not be stored.
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
    /// Any error of `put`. The child was then not added, and may be pushed again.
    pub async fn push<P: PutNode>(&mut self, child: Child, put: &mut P) -> Result<(), P::Error> {
        self.make_room(0, put).await?;
        if self.levels.is_empty() {
            self.levels.push(Level::default());
        }
        self.levels[0].add(child);
        Ok(())
    }

    /// Closes all levels.
    ///
    /// # Errors
    /// Any error of `put`. This may then be called again.
    pub async fn finish<P: PutNode>(&mut self, put: &mut P) -> Result<MapRoot, P::Error> {
        let mut at = 0;
        loop {
            let top = at + 1 >= self.levels.len();
            let Some(level) = self.levels.get(at) else {
                return Ok(MapRoot { len: 0, level: 0, chunk: None });
            };
            if top && level.children.len() == 1 {
                let child = level.children[0];
                let level = if child.chunk.is_some() { u8::try_from(at).unwrap_or(u8::MAX) } else { 0 };
                return Ok(MapRoot { len: child.len, level, chunk: child.chunk });
            }
            if !level.children.is_empty() {
                self.make_room(at + 1, put).await?;
                self.close(at, put).await?;
            }
            at += 1;
        }
    }

    /// Closes the full levels from `from` up to the first one that is not full. It starts at the top, so that the node of each
    /// closed level finds room in the level above.
    async fn make_room<P: PutNode>(&mut self, from: usize, put: &mut P) -> Result<(), P::Error> {
        let above = self.levels.iter().skip(from);
        let full = above.take_while(|level| level.positions == FAN_OUT).count();
        for at in (from..from + full).rev() {
            self.close(at, put).await?;
        }
        Ok(())
    }

    /// Makes a node of a level's children and adds it to the level above, which has room.
    async fn close<P: PutNode>(&mut self, at: usize, put: &mut P) -> Result<(), P::Error> {
        let children = self.levels[at].children.clone();
        let len = children.iter().map(|c| c.len).sum();
        let chunk = if children.iter().all(|c| c.chunk.is_none()) {
            None
        } else {
            let node = Node { level: u8::try_from(at + 1).unwrap_or(u8::MAX), children };
            let bytes = node.encode();
            // A point whose map can't be read is useless: better to have no point.
            assert!(Node::decode(&bytes).is_ok_and(|read| read == node), "a node that nobody can read");
            Some(put.put(bytes).await?)
        };
        // The level is cleared only now, so that nothing is lost if `put` fails.
        self.levels[at] = Level::default();
        if self.levels.len() == at + 1 {
            self.levels.push(Level::default());
        }
        self.levels[at + 1].add(Child { len, chunk });
        Ok(())
    }
}

impl Level {
    fn add(&mut self, child: Child) {
        assert!(self.positions < FAN_OUT, "a node with more children than it has places");
        self.positions += 1;
        match self.children.last_mut() {
            Some(last) if last.chunk.is_none() && child.chunk.is_none() => last.len += child.len,
            _ => self.children.push(child),
        }
    }
}
