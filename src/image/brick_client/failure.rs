//! What a brick's error means for who asked: one mapping for the session, a healer and a
//! comparison. Pure.

use crate::gluster::{BrickError, Errno, tls};
use crate::image::error_chain::chain;
use crate::image::heal::PeerError;
use crate::image::replica::brick_port::PortError;

/// What is left after an error, and what helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FailureKind {
    /// The connection is not to be used any more: whether the brick did it, or will do it yet,
    /// is unknown. Another connection may be tried.
    Retry,
    /// The brick said no, or was not asked. The connection stands.
    Refused,
    /// There is no connection, and another attempt ends in the same way until somebody
    /// changes something: the brick does not let this host in, or does not speak the protocol.
    Fatal,
}

fn kind(error: &BrickError) -> FailureKind {
    match error {
        BrickError::Refused { .. } | BrickError::Path { .. } | BrickError::TooLong { .. } => {
            FailureKind::Refused
        }
        BrickError::Tls { .. } | BrickError::Protocol { .. } => FailureKind::Fatal,
        BrickError::Handshake {
            errno: Errno::ACCES | Errno::INVAL,
            ..
        } => FailureKind::Fatal,
        BrickError::Port { .. } | BrickError::Disconnected { .. }
            if tls::cause(error).is_some() =>
        {
            FailureKind::Fatal
        }
        // A handshake that is refused otherwise: it starts up, or is just being reconfigured.
        BrickError::Handshake { .. }
        | BrickError::Port { .. }
        | BrickError::Unreachable { .. }
        | BrickError::Disconnected { .. }
        | BrickError::Timeout { .. } => FailureKind::Retry,
    }
}

/// For the session, which tries again at its own pace and tells why it has to.
pub(super) fn port_error(error: BrickError) -> PortError {
    match kind(&error) {
        FailureKind::Refused => PortError::Refused(chain(&error)),
        FailureKind::Retry | FailureKind::Fatal => PortError::Away(chain(&error)),
    }
}

/// For who opens the image's file on a brick (`peer`: `host:path`) or works on it.
pub(super) fn peer_error(peer: &str, error: BrickError) -> PeerError {
    let (kind, peer, source) = (kind(&error), peer.to_owned(), Box::new(error));
    match kind {
        FailureKind::Retry => PeerError::Away { peer, source },
        FailureKind::Refused => PeerError::Refused { peer, source },
        FailureKind::Fatal => PeerError::Unusable { peer, source },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::gluster::ProtocolError;

    fn brick() -> String {
        "host:/brick".to_owned()
    }

    fn refused() -> BrickError {
        BrickError::Refused {
            brick: brick(),
            operation: "WRITE",
            errno: Errno(libc::ENOSPC),
        }
    }

    fn timeout() -> BrickError {
        BrickError::Timeout {
            brick: brick(),
            operation: "WRITE",
            after: Duration::from_secs(1),
        }
    }

    fn handshake(errno: Errno) -> BrickError {
        BrickError::Handshake {
            brick: brick(),
            errno,
            reason: "no".to_owned(),
        }
    }

    fn unreadable() -> BrickError {
        BrickError::Protocol {
            brick: brick(),
            operation: "WRITE",
            source: ProtocolError::Missing("a counter".to_owned()),
        }
    }

    #[test]
    fn a_brick_that_says_no_keeps_its_connection_for_everybody() {
        assert!(matches!(port_error(refused()), PortError::Refused(_)));
        let error = peer_error("b", refused());
        assert!(matches!(error, PeerError::Refused { .. }));
    }

    #[test]
    fn after_silence_nobody_uses_the_connection_any_more() {
        assert!(matches!(port_error(timeout()), PortError::Away(_)));
        let error = peer_error("b", timeout());
        assert!(matches!(error, PeerError::Away { .. }));
    }

    #[test]
    fn who_is_not_let_in_is_not_told_to_look_at_the_network() {
        for error in [handshake(Errno::ACCES), unreadable()] {
            let error = peer_error("b", error);
            assert!(matches!(error, PeerError::Unusable { .. }));
        }
        // It is starting up.
        let error = peer_error("b", handshake(Errno::AGAIN));
        assert!(matches!(error, PeerError::Away { .. }));
    }

    #[test]
    fn every_reason_reaches_who_asked() {
        for error in [refused(), timeout(), handshake(Errno::BUSY), unreadable()] {
            let told = chain(&error);
            assert_eq!(port_error(error).to_string(), told);
        }
    }
}
