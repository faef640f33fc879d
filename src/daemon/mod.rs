//! ROOM

pub mod brick_view;
pub mod bus_error;
pub mod control_service;
pub mod failure;
pub mod frontend_loop;
pub mod heald;
pub mod listener;
pub mod logging;
pub mod maintenance_session;
pub mod options;
pub mod ownership_worker;
pub mod serve;
pub mod served_image;
pub mod session_setup;
pub mod shutdown;
pub mod startup;
pub mod switchable_gate;
pub mod target;
pub mod upgrade;
pub mod upgrade_state;
