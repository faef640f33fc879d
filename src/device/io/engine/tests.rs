//! What an engine reports besides operations.

#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;

fn engine() -> (Engine, Arc<EventFd>) {
    let file = tempfile::tempfile().unwrap();
    let files = Arc::new(Table::new(vec![file], false));
    let wake = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    (Engine::new(&files, 8, Arc::clone(&wake)).unwrap(), wake)
}

/// Has `engine` look out for a new event fd.
fn new_kick(engine: &mut Engine) -> File {
    let kick = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
    let kick = File::from(kick);
    engine.set_kick(Some(Arc::new(kick.try_clone().unwrap())));
    kick
}

fn write(event: impl std::os::fd::AsFd) {
    rustix::io::write(event, &1u64.to_ne_bytes()).unwrap();
}

/// Sleeps, and returns what ended that.
fn sleep(engine: &mut Engine) -> Vec<Event> {
    engine.sleep().unwrap();
    let reaped = std::iter::from_fn(|| engine.reap());
    reaped
        .map(|reaped| match reaped {
            Reaped::Event(event) => event,
            Reaped::Operation(_) => panic!("nothing is in flight"),
        })
        .collect()
}

#[test]
fn each_write_to_an_event_fd_that_nobody_reads_ends_a_sleep() {
    let (mut engine, wake) = engine();
    let kick = new_kick(&mut engine);
    for _ in 0..1000 {
        write(&kick);
        assert_eq!(sleep(&mut engine), [Event::Kick]);
        wake.write(1).unwrap();
        assert_eq!(sleep(&mut engine), [Event::Wake]);
    }
}

#[test]
fn a_write_while_the_thread_sleeps_ends_that() {
    let (mut engine, wake) = engine();
    let kick = new_kick(&mut engine);
    for _ in 0..100 {
        let kick = kick.try_clone().unwrap();
        let guest = std::thread::spawn(move || write(&kick));
        assert_eq!(sleep(&mut engine), [Event::Kick]);
        guest.join().unwrap();
    }
    drop(wake);
}

#[test]
fn only_the_newest_kick_is_looked_out_for() {
    let (mut engine, wake) = engine();
    let mut before = new_kick(&mut engine);
    for _ in 0..100 {
        write(&before);
        let kick = new_kick(&mut engine);
        write(&before);
        wake.write(1).unwrap();
        assert_eq!(sleep(&mut engine), [Event::Wake]);
        write(&before);
        write(&kick);
        assert_eq!(sleep(&mut engine), [Event::Kick]);
        before = kick;
    }
    engine.set_kick(None);
    write(&before);
    wake.write(1).unwrap();
    assert_eq!(sleep(&mut engine), [Event::Wake]);
}

#[test]
fn an_event_fd_that_is_replaced_is_let_go() {
    let (mut engine, wake) = engine();
    let (ours, theirs) = std::io::pipe().unwrap();
    let ours = std::os::fd::OwnedFd::from(ours);
    engine.set_kick(Some(Arc::new(ours.into())));
    wake.write(1).unwrap();
    assert_eq!(sleep(&mut engine), [Event::Wake]);
    rustix::io::write(&theirs, b"x").unwrap();
    assert_eq!(sleep(&mut engine), [Event::Kick]);
    engine.set_kick(None);
    wake.write(1).unwrap();
    assert_eq!(sleep(&mut engine), [Event::Wake]);
    let written = rustix::io::write(&theirs, b"x");
    assert_eq!(written, Err(rustix::io::Errno::PIPE));
}

#[test]
fn who_cannot_be_told_of_kicks_does_not_idle_here() {
    let (mut engine, wake) = engine();
    assert!(!engine.can_idle(), "there is no kick");
    // Always ready, so there is nothing to wait for.
    engine.set_kick(Some(Arc::new(tempfile::tempfile().unwrap())));
    wake.write(1).unwrap();
    let _ = sleep(&mut engine);
    assert!(!engine.can_idle());
    let kick = new_kick(&mut engine);
    write(&kick);
    assert_eq!(sleep(&mut engine), [Event::Kick]);
}
