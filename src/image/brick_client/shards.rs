//! The pieces of an image in shards: looked up on every brick, and made where no brick has
//! them, as AFR makes files.
//!
//! Called before the image is opened, through connections of its own. To make an empty piece
//! changes nothing of the disk: it read as zeros before, and any mount that reads there makes
//! it, too. So no lock of a session is needed, only the lock that AFR takes for names.

mod making;
mod size;

use uuid::Uuid;

use crate::gluster::{Brick, BrickError, BrickSpec, Gfid, Identity, Timeouts};
use crate::image::error_chain::chain;
use crate::image::layout::error::{MOST_FILES, PIECE_UNIT, ShardsError};
use crate::image::layout::found::{self, PieceRefusal};
use crate::image::layout::shards::{self, Cut};
use crate::image::layout::{Layout, Pieces};
use crate::image::locate::Located;
use crate::image::replica::brick_set::{BrickSet, Shape};
use crate::image::replica::names::Names;

/// An image in pieces with its size and its pieces. With `make`, those that no brick has are made;
/// without, they have no gfid. One that is not in pieces is as it was.
///
/// # Errors
/// See [`ShardsError`].
pub fn find(
    located: Located,
    shape: &Shape,
    identity: &Identity,
    timeouts: &Timeouts,
    make: bool,
) -> Result<Located, ShardsError> {
    let Some(Cut { block, .. }) = located.cut() else {
        return Ok(located);
    };
    let mut search = PieceSearch::connect(&located, shape, identity, timeouts);
    let found = search.settle_size().and_then(|size| {
        let pieces = search.find(Cut { block, size }, make)?;
        Ok((size, pieces))
    });
    search.close();
    let (size, pieces) = found?;
    Ok(located.in_pieces(size, pieces))
}

/// The pieces of an image that is to be cut like this; those that no brick has are made.
///
/// # Errors
/// See [`ShardsError`].
pub fn make(
    located: &Located,
    cut: Cut,
    shape: &Shape,
    identity: &Identity,
    timeouts: &Timeouts,
) -> Result<Pieces, ShardsError> {
    let mut search = PieceSearch::connect(located, shape, identity, timeouts);
    let made = search.find(cut, true);
    search.close();
    made
}

/// An image in pieces with its size and its pieces as any brick that is reached knows them,
/// whatever it takes to open it; pieces that none has have no gfid. One that is not in pieces
/// is as it was.
///
/// # Errors
/// [`ShardsError::TooMany`], [`ShardsError::Make`] of a brick that answers with an error.
pub fn seen(
    located: Located,
    identity: &Identity,
    timeouts: &Timeouts,
) -> Result<Located, ShardsError> {
    let Some(cut) = located.cut() else {
        return Ok(located);
    };
    let shape = located.shape(0);
    let mut search = PieceSearch::connect(&located, &shape, identity, timeouts);
    let size = search.settle_size().unwrap_or(cut.size);
    let rows = search.name_pieces(Cut { size, ..cut });
    let rows = rows.and_then(|()| search.look());
    search.close();
    let rows = rows?;
    let known = |index: usize| rows.iter().flatten().find_map(|row| *row.get(index)?);
    let gfids = (0..search.pieces.len()).map(|index| known(index).unwrap_or_default());
    let gfids = gfids.collect();
    let pieces = Pieces {
        size: cut.block,
        gfids,
    };
    Ok(located.in_pieces(size, pieces))
}

pub(super) use size::asked as size_on;
/// What one brick has: a gfid for each name.
type Row = Vec<Option<Uuid>>;

struct PieceSearch<'a> {
    located: &'a Located,
    shape: &'a Shape,
    names: Names,
    /// The pieces' names.
    pieces: Vec<String>,
    /// In child order; without those that are away.
    bricks: Vec<Option<Brick>>,
    away: Vec<String>,
}

impl<'a> PieceSearch<'a> {
    fn connect(
        located: &'a Located,
        shape: &'a Shape,
        identity: &Identity,
        timeouts: &Timeouts,
    ) -> Self {
        let connect =
            |spec: &BrickSpec| Brick::connect(spec, located.volume_id, identity, timeouts);
        let connected: Vec<_> = std::thread::scope(|scope| {
            let specs = located.set.bricks.iter();
            let asked: Vec<_> = specs
                .map(|spec| scope.spawn(move || connect(spec)))
                .collect();
            let answers = asked.into_iter().map(|thread| thread.join().ok());
            answers.collect()
        });
        let (mut bricks, mut away) = (Vec::new(), Vec::new());
        for (spec, answer) in located.set.bricks.iter().zip(connected) {
            match answer {
                Some(Ok(brick)) => bricks.push(Some(brick)),
                failed => {
                    let why = failed.and_then(Result::err).map(|error| chain(&error));
                    away.push(format!("{spec}: {}", why.unwrap_or_default()));
                    bricks.push(None);
                }
            }
        }
        Self {
            located,
            shape,
            names: located.names(),
            pieces: Vec::new(),
            bricks,
            away,
        }
    }

    /// Those of an image that is cut like this are meant from now on.
    fn name_pieces(&mut self, cut: Cut) -> Result<(), ShardsError> {
        let image = self.located.image.clone();
        if !cut.block.is_multiple_of(PIECE_UNIT) {
            let block = cut.block;
            return Err(ShardsError::Block { image, block });
        }
        let files = Layout::count(cut.size, cut.block);
        if files > MOST_FILES {
            return Err(ShardsError::TooMany { image, files });
        }
        let name = |piece| shards::name(self.located.gfid, piece);
        self.pieces = (1..files).map(name).collect();
        Ok(())
    }

    fn find(&mut self, cut: Cut, make: bool) -> Result<Pieces, ShardsError> {
        self.name_pieces(cut)?;
        self.refuse_removed()?;
        let gfids = match self.settle(self.look()?)? {
            gfids if make && gfids.contains(&None) => self.make()?,
            gfids => gfids,
        };
        let gfids = gfids.into_iter().map(Option::unwrap_or_default);
        Ok(Pieces {
            size: cut.block,
            gfids: gfids.collect(),
        })
    }

    fn reached(&self) -> impl Iterator<Item = (usize, &Brick)> {
        let bricks = self.bricks.iter().enumerate();
        bricks.filter_map(|(child, brick)| Some((child, brick.as_ref()?)))
    }

    fn away(&self) -> BrickSet {
        let reached: BrickSet = self.reached().map(|(child, _)| child).collect();
        self.shape.all().without(reached)
    }

    fn close(&self) {
        self.reached().for_each(|(_, brick)| brick.close());
    }

    fn failed(&self, source: BrickError) -> ShardsError {
        let image = self.located.image.clone();
        ShardsError::Make { image, source }
    }

    /// Asks all bricks that are reached at one time; the answers in child order.
    fn ask_each<T: Send>(&self, ask: impl Fn(&Brick) -> T + Sync) -> Vec<Option<T>> {
        let ask = &ask;
        std::thread::scope(|scope| {
            let asked: Vec<_> = self
                .bricks
                .iter()
                .map(|brick| brick.as_ref().map(|brick| scope.spawn(move || ask(brick))))
                .collect();
            let answer = |thread: std::thread::ScopedJoinHandle<'_, T>| {
                let answer = thread.join();
                // What a brick has done is not known then: nobody goes on with that.
                answer.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            let answers = asked.into_iter().map(|thread| thread.map(answer));
            answers.collect()
        })
    }

    /// A client that removes an image says so before it removes anything.
    fn refuse_removed(&self) -> Result<(), ShardsError> {
        let (folder, gfid) = (Gfid(shards::REMOVED_GFID), self.located.gfid);
        let found = self.ask_each(|brick| brick.lookup(folder, &gfid.to_string(), &[]));
        for (child, found) in found.into_iter().enumerate() {
            match found {
                Some(Ok(_)) => {
                    return Err(ShardsError::BeingRemoved {
                        image: self.located.image.clone(),
                        gfid,
                        brick: self.names.one(child),
                    });
                }
                Some(Err(error)) if !error.is_no_file() => return Err(self.failed(error)),
                // No image, or no image in shards, was ever removed.
                Some(Err(_)) | None => {}
            }
        }
        Ok(())
    }

    fn look(&self) -> Result<Vec<Option<Row>>, ShardsError> {
        let folder = Gfid(shards::FOLDER_GFID);
        let rows = self.ask_each(|brick| brick.lookup_all(folder, &self.pieces, &[]));
        let gfids = |entries: Vec<Option<crate::gluster::Entry>>| {
            let gfids = entries.into_iter().map(|entry| Some(entry?.iatt.gfid.0));
            gfids.collect::<Row>()
        };
        let row = |row: Result<_, _>| row.map(gfids).map_err(|source| self.failed(source));
        rows.into_iter()
            .map(|answer| answer.map(row).transpose())
            .collect()
    }

    fn settle(&self, rows: Vec<Option<Row>>) -> Result<Row, ShardsError> {
        let settled = found::settle(self.shape, &rows, self.pieces.len() as u64);
        settled.map_err(|refusal| self.refused(refusal))
    }

    fn refused(&self, refusal: PieceRefusal) -> ShardsError {
        let image = self.located.image.clone();
        let name = |piece: u64| shards::name(self.located.gfid, piece);
        match refusal {
            PieceRefusal::NoQuorum { reached } => ShardsError::NoQuorum {
                image,
                reached: self.names.list(reached),
                why: self.away.join("; "),
            },
            PieceRefusal::NotHere { piece, on } => ShardsError::NotHere {
                image,
                name: name(piece),
                on: self.names.list(on),
            },
            PieceRefusal::IdentitiesDiffer { piece } => ShardsError::IdentitiesDiffer {
                image,
                name: name(piece),
            },
            PieceRefusal::SizeUnknown { old } => ShardsError::SizeUnknown {
                image,
                old: self.names.list(old),
            },
            PieceRefusal::SizesDiffer { one, other } => {
                ShardsError::SizesDiffer { image, one, other }
            }
        }
    }
}

#[cfg(test)]
mod tests;
