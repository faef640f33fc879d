//! The files that an image has when it has grown: of one in pieces there may be more than before.
//!
//! Made and opened by the session's owner, when the session's thread says that it is time.

use uuid::Uuid;

use crate::image::layout::Layout;
use crate::image::local::CopyWatch;

use super::resize::ResizeError;

/// See the module.
pub struct Extension {
    /// All files, those of before among them.
    pub layout: Layout,
    /// Those that are new, on the local brick.
    pub watches: Vec<Box<dyn CopyWatch>>,
}

/// Told the size to be, in bytes.
pub type Extend = Box<dyn FnOnce(u64) -> Result<Extension, ResizeError> + Send>;

/// Of an image that is one file, and stays so.
pub fn of_whole(gfid: Uuid) -> Extend {
    Box::new(move |to| {
        Ok(Extension {
            layout: Layout::new(gfid, to, None),
            watches: Vec::new(),
        })
    })
}
