//! Takes the control socket's connections and answers each on a thread of its own, for one
//! request may take long. What is answered is the caller's.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::control::line;
use crate::control::unix_socket::{ACCEPT_PAUSE, Acceptor};

use super::{Answer, Request};

/// The longest time that a client may take to send its request, and again to read the
/// answer.
pub const LINE_TIMEOUT: Duration = Duration::from_secs(5);
/// Requests that are answered at one time. More wait in the listener's queue.
const MAX_CLIENTS: usize = 16;

/// Answers requests on a thread of its own until the process ends.
///
/// # Errors
/// When no thread can be had.
pub fn start(
    listener: UnixListener,
    answer: impl Fn(Request) -> Answer + Send + Sync + 'static,
) -> io::Result<()> {
    let run = move || run(&listener, Arc::new(answer));
    let thread = std::thread::Builder::new().name("control".to_owned());
    thread.spawn(run).map(drop)
}

fn run<A>(listener: &UnixListener, answer: Arc<A>)
where
    A: Fn(Request) -> Answer + Send + Sync + 'static,
{
    let places = Arc::new(ClientPlaces::default());
    let mut acceptor = Acceptor::default();
    loop {
        let place = ClientPlaces::take(&places);
        let accepted = listener.accept();
        let taken = accepted.and_then(|(stream, _)| serve_beside(stream, place, &answer));
        if acceptor.note(taken, "control socket").is_none() {
            std::thread::sleep(ACCEPT_PAUSE);
        }
    }
}

fn serve_beside<A>(stream: UnixStream, place: Place, answer: &Arc<A>) -> io::Result<()>
where
    A: Fn(Request) -> Answer + Send + Sync + 'static,
{
    let answer = answer.clone();
    let serve = move || {
        let _place = place;
        if let Err(error) = serve(&stream, &*answer) {
            log::debug!("control socket: {error}");
        }
    };
    let thread = std::thread::Builder::new().name("control-client".to_owned());
    thread.spawn(serve).map(drop)
}

fn serve(stream: &UnixStream, answer: &impl Fn(Request) -> Answer) -> io::Result<()> {
    let answer = match serde_json::from_str(&line::read(stream, LINE_TIMEOUT)?) {
        Ok(request) => answer(request),
        Err(error) => Answer::Refused {
            why: error.to_string(),
        },
    };
    line::write(stream, &serde_json::to_string(&answer)?, LINE_TIMEOUT)
}

/// How many clients are being answered.
#[derive(Default)]
struct ClientPlaces {
    taken: Mutex<usize>,
    given_back: Condvar,
}

/// One of them, until it is dropped.
struct Place(Arc<ClientPlaces>);

impl ClientPlaces {
    /// Waits for one.
    fn take(places: &Arc<Self>) -> Place {
        let taken = places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = places
            .given_back
            .wait_while(taken, |taken| *taken >= MAX_CLIENTS);
        *wait.unwrap_or_else(PoisonError::into_inner) += 1;
        Place(places.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        *taken -= 1;
        self.0.given_back.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::control::socket;

    #[test]
    fn a_client_too_many_waits_its_turn_and_then_has_a_thread_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let (begun, at_work) = mpsc::channel();
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let (open, entered) = (gate.clone(), Mutex::new(begun));
        start(listener, move |_| {
            let name = std::thread::current().name().map(str::to_owned);
            entered.lock().unwrap().send(name).unwrap();
            let (may_go, changed) = &*open;
            drop(changed.wait_while(may_go.lock().unwrap(), |may_go| !*may_go));
            Answer::Done
        })
        .unwrap();
        let clients: Vec<_> = (0..=MAX_CLIENTS)
            .map(|_| {
                let path = path.clone();
                std::thread::spawn(move || socket::ask(&path, &Request::Force))
            })
            .collect();
        for _ in 0..MAX_CLIENTS {
            assert_eq!(at_work.recv().unwrap().as_deref(), Some("control-client"));
        }
        let one_more = at_work.recv_timeout(Duration::from_millis(200));
        assert!(one_more.is_err(), "it waits");
        *gate.0.lock().unwrap() = true;
        gate.1.notify_all();
        for client in clients {
            assert!(matches!(client.join().unwrap(), Ok(Answer::Done)));
        }
        assert_eq!(at_work.recv().unwrap().as_deref(), Some("control-client"));
    }
}
