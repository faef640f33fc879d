//! A connection against a peer that does what each test tells it.

mod calls;
mod encrypted;
mod ending;
mod resting;

use super::*;
use crate::gluster::fake_peer::PATIENCE;
use crate::gluster::rpc::FILE_OPERATIONS;

const ECHO: Call<'_> = Call {
    program: FILE_OPERATIONS,
    procedure: 1,
    credentials: &Credentials::None,
    arguments: &[],
    payload: &[],
};

/// Nothing but a test's own doing ends a wait or a connection.
fn patient() -> Timeouts {
    Timeouts {
        connect: PATIENCE,
        call: PATIENCE,
        send: PATIENCE,
        ping_interval: PATIENCE,
        idle_interval: PATIENCE,
        ping_timeout: PATIENCE,
    }
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_millis(20))
}

fn ask(connection: &Connection, arguments: &[u8]) -> PendingCall {
    let call = Call { arguments, ..ECHO };
    let deadline = Deadline::after(PATIENCE);
    connection.call(&call, Weight::Counted, deadline).unwrap()
}

fn answer(call: PendingCall) -> Answer {
    call.wait(Deadline::after(PATIENCE))
}
