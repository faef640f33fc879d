//! What an image needs that grows: of one in shards more shards, made on all bricks and opened
//! here. The session asks for it when it is time ([`crate::image::session::extension`]); who
//! owns the session takes over what came of it.

use std::sync::{Arc, Mutex};

use crate::gluster::Timeouts;
use crate::image::brick_client::session_port::identity;
use crate::image::brick_client::shards;
use crate::image::layout::Pieces;
use crate::image::layout::shards::Cut;
use crate::image::local::{self, LocalTerms, PieceFile};
use crate::image::session::extension::{Extend, Extension, of_whole};
use crate::image::session::resize::ResizeError;

use super::brick_view::lock_owner;
use super::session_setup::Place;

/// The files that an image has besides, and how it is cut then; of a whole one there are none.
#[derive(Default)]
pub struct Grown {
    /// Opened and claimed, as long as this lives.
    pub files: Vec<Arc<PieceFile>>,
    pieces: Option<Pieces>,
}

/// What came of it, once the session has grown.
#[derive(Clone, Default)]
pub struct Slot(Arc<Mutex<Grown>>);

impl Slot {
    /// Nothing, if the session was not asked for it.
    pub fn take(&self) -> Grown {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(|e| e.into_inner()))
    }
}

impl Grown {
    /// The image is `size` bytes from now on.
    pub fn note(&self, place: &mut Place, size: u64) {
        place.located.size = size;
        if let Some(pieces) = &self.pieces {
            place.located.pieces = Some(pieces.clone());
        }
    }
}

/// For [`crate::image::session::life::Session::grow`] of the image at this place.
pub fn extension(place: &Place) -> (Extend, Slot) {
    let (place, slot) = (place.clone(), Slot::default());
    if place.located.pieces.is_none() {
        return (of_whole(place.located.gfid), slot);
    }
    let filled = slot.clone();
    let extend = move |to| {
        let (grown, extension) = extend(place, to)?;
        *filled.0.lock().unwrap_or_else(|e| e.into_inner()) = grown;
        Ok(extension)
    };
    (Box::new(extend), slot)
}

fn extend(mut place: Place, to: u64) -> Result<(Grown, Extension), ResizeError> {
    let located = &place.located;
    let before = located.layout().len();
    let owner = lock_owner(&place.me).map_err(|error| ResizeError::NotNow(error.to_string()))?;
    let block = located.layout().piece();
    let pieces = shards::make(
        located,
        Cut { block, size: to },
        &located.shape(place.local),
        &identity(owner),
        &Timeouts::default(),
    )?;
    let mut grown = Grown {
        files: Vec::new(),
        pieces: Some(pieces),
    };
    grown.note(&mut place, to);
    // The guest writes there, too.
    let terms = LocalTerms {
        read_only: false,
        force_raw: true,
    };
    grown.files = local::open_more(&place.local_place(), before, terms)?;
    let names: Arc<[String]> = place.located.set.pending_names.clone().into();
    let watches = grown.files.iter().map(|file| file.watch(names.clone()));
    let extension = Extension {
        layout: place.located.layout(),
        watches: watches.collect::<Result<_, _>>()?,
    };
    Ok((grown, extension))
}
