//! The size of an image in pieces: an attribute of its first file, asked of every brick that is
//! reached. A brick that was away when the image grew has an old one until Gluster has healed
//! it, and says nothing of that itself.

use crate::gluster::{Brick, BrickError, Gfid};
use crate::image::layout::error::ShardsError;
use crate::image::layout::found::{self, SizeSeen};
use crate::image::layout::shards::{BadCut, FILE_SIZE, size_of};
use crate::image::locate::Located;
use crate::image::replica::brick_set::BrickSet;

use super::PieceSearch;

/// What a brick says of it, as it stands in the answer.
pub(in crate::image::brick_client) fn asked(
    brick: &Brick,
    located: &Located,
    gfid: Gfid,
) -> Result<Result<SizeSeen, BadCut>, BrickError> {
    let names = located.set.pending_names.iter().map(String::as_str);
    let wanted: Vec<_> = names.chain([FILE_SIZE]).collect();
    let entry = brick.lookup_gfid(gfid, &wanted)?;
    let accuses = |name: &String| {
        let pending = entry.pending(name);
        // What cannot be read says nothing good.
        pending.map_or(true, |pending| pending.metadata != 0)
    };
    let children = located.set.pending_names.iter().enumerate();
    let accused: BrickSet = children
        .filter(|(_, name)| accuses(name))
        .map(|(child, _)| child)
        .collect();
    let size = size_of(entry.xattrs.get(FILE_SIZE).map(Vec::as_slice));
    Ok(size.map(|size| SizeSeen {
        size,
        accuses: accused,
    }))
}

impl PieceSearch<'_> {
    /// As all bricks that are reached say.
    pub(super) fn settle_size(&self) -> Result<u64, ShardsError> {
        let gfid = Gfid(self.located.gfid);
        let seen = self.ask_each(|brick| asked(brick, self.located, gfid));
        let row = |seen: Result<Result<_, _>, BrickError>| match seen {
            // It has no such image: the session will say so.
            Err(error) if error.is_no_file() => Ok(None),
            Err(error) => Err(self.failed(error)),
            Ok(seen) => seen.map(Some).map_err(|source| {
                let image = self.located.image.clone();
                ShardsError::BadSize { image, source }
            }),
        };
        let rows = seen.into_iter().map(|seen| seen.map_or(Ok(None), row));
        let rows: Vec<_> = rows.collect::<Result<_, _>>()?;
        found::settle_size(&rows).map_err(|refusal| self.refused(refusal))
    }
}
