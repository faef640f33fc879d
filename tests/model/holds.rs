//! Every order of events within bounds keeps every invariant.

use super::beginnings::*;
use super::*;

#[test]
fn with_two_bricks_and_stock_heals() {
    holds(Setting {
        faults: 2 + if_long(1),
        ..TWO
    });
}

#[test]
fn with_three_bricks_and_stock_heals() {
    holds(Setting {
        faults: 1 + if_long(1),
        ..THREE
    });
}

#[test]
fn with_an_arbiter_and_stock_heals() {
    holds(Setting {
        arbiter: true,
        faults: 1 + if_long(1),
        ..THREE
    });
}

#[test]
fn with_marks_stored_again() {
    holds(Setting {
        faults: 2 + if_long(1),
        ..MARKED_AGAIN
    });
}

#[test]
fn with_two_bricks_and_our_healers() {
    holds(Setting {
        faults: 1 + if_long(1),
        ..HEALING_TWO
    });
}

#[test]
fn with_two_extents() {
    holds(Setting {
        extents: 2,
        faults: 1,
        opens: 2 + if_long(1),
        ..HEALING_TWO
    });
}

#[test]
fn with_a_stock_client_between_sessions() {
    holds(Setting {
        clients: 1 + if_long(1),
        faults: if_long(1),
        opens: 3,
        ..HEALING_TWO
    });
}

#[test]
fn with_three_bricks_and_our_healers() {
    holds(Setting {
        faults: if_long(1),
        writes: 2,
        stuck: 1,
        ..HEALING_THREE
    });
}

#[test]
fn with_three_bricks_our_healers_and_a_fault() {
    holds(Setting {
        faults: 1,
        writes: 1 + if_long(1),
        ..HEALING_THREE
    });
}

#[test]
fn with_peers_that_are_away_in_turns() {
    holds(IN_TURNS);
}

#[test]
fn with_a_peer_that_cannot_be_healed() {
    holds(Setting {
        writes: 1 + if_long(1),
        ..STUCK
    });
}

#[test]
fn with_a_session_that_another_one_wrote_beside() {
    holds(BESIDE);
}

#[test]
fn with_an_arbiter_and_our_healers() {
    holds(Setting {
        arbiter: true,
        faults: if_long(1),
        ..HEALING_THREE
    });
}

#[test]
fn with_two_bricks_and_a_promotion() {
    holds(Setting {
        bricks: 2,
        faults: 1 + if_long(1),
        ..PROMOTING
    });
}

#[test]
fn with_three_bricks_and_a_promotion() {
    holds(Setting {
        faults: if_long(1),
        ..PROMOTING
    });
}

#[test]
fn with_a_promotion_and_our_healers() {
    holds(Setting {
        healing: true,
        writes: 1 + if_long(1),
        opens: 2 + if_long(1),
        ..PROMOTING
    });
}
