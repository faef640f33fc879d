//! The processes that run for long: what `serve` and `heald` are made of, and what the
//! commands share with them.
//!
//! * One image served: [`serve`] puts it together from [`options`] and [`startup`];
//!   [`frontend_loop`] serves one front-end after the other, [`ownership_worker`] has a session
//!   as long as the image is ours, behind the [`switchable_gate`]; [`served_image`] is what the
//!   other threads see of it.
//! * [`control_service`] answers on the control socket.
//! * [`upgrade`] replaces the process; [`upgrade_state`] is what it leaves to the next one.
//! * A host's images healed: [`heald`].
//! * Sessions: [`session_setup`] finds an image and opens it, [`maintenance_session`] is one
//!   without a guest, [`brick_view`] looks at the bricks without a session, [`promote`] makes a
//!   stale copy the fresh one.
//! * [`failure`] has every exit code; [`target`] what people name; [`listener`], [`shutdown`],
//!   [`logging`], [`bus_error`] are the process's edges.
//!
//! Nothing here decides about copies and marks: that is [`crate::image`]'s. The words of the
//! command line are [`crate::cli`]'s, which calls this room and is not called by it.

pub mod brick_view;
pub mod bus_error;
pub mod control_service;
pub mod failure;
pub mod frontend_loop;
pub mod growth;
pub mod heald;
pub mod listener;
pub mod logging;
pub mod maintenance_session;
pub mod open_files;
pub mod options;
pub mod ownership_worker;
pub mod promote;
pub mod serve;
pub mod served_image;
pub mod session_setup;
pub mod shutdown;
pub mod startup;
pub mod switchable_gate;
pub mod target;
pub mod upgrade;
pub mod upgrade_state;
