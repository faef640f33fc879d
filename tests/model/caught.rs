//! Each protection is needed: without it an invariant breaks, and the model shows it.

use super::beginnings::*;
use super::*;
use protocol::properties::{
    ENDS_WELL, MARKED, NO_FALSE_CLEAN, NO_STALE_OPEN, NO_STALE_WRITE, NOT_UNDERNEATH, ONE_WRITER,
};
use protocol::setting::Protection::*;

/// A test that `$without` is needed for `$invariant`.
macro_rules! caught {
    ($($name:ident: $setting:expr, without $without:expr => $invariant:expr;)*) => {
        $(#[test]
        fn $name() {
            breaks(Setting { without: &$without, ..$setting }, $invariant);
        })*
    };
}

caught! {
    marks_on_the_local_brick_only: ONE_FAULT, without [MarksOnPeers] => MARKED;
    writes_before_the_marks: ONE_FAULT, without [MarksBeforeGate] => ONE_WRITER;
    marks_that_are_not_fsynced: ONE_FAULT, without [MarksDurable] => MARKED;
    marks_taken_off_with_a_lost_brick: ONE_FAULT, without [MarksStayOnLoss] => NO_FALSE_CLEAN;
    the_local_copy_marked_beside_the_others: ONE_FAULT, without [LocalMarkedLast] => ENDS_WELL;
    the_local_file_marked_without_a_quorum: TWO, without [LocalFileGuarded] => ENDS_WELL;
    the_local_file_marked_though_it_accuses_itself: THREE, without [LocalFileRead] => ENDS_WELL;
    a_last_brick_lost_in_a_round_that_does_not_close_the_gate: MARKED_AGAIN, without [LossesCarriedOut] => MARKED;
    a_round_over_two_connections: TWO, without [RoundKeepsConnection] => ENDS_WELL;
    marks_read_locally_that_a_crash_undoes: LOST_ONE, without [ReadIsDurable] => ENDS_WELL;
    a_file_that_was_healed_meanwhile: ONE_FAULT, without [FileCompared, FileWatched] => NOT_UNDERNEATH;
    no_heal_lock: ONE_FAULT, without [HealLock] => NO_FALSE_CLEAN;
    session_locks_on_the_local_brick_only: ONE_FAULT, without [LocksOnPeers] => NO_FALSE_CLEAN;
    marks_not_read_again: TWO, without [MarksReadAgain, FileCompared, FileWatched] => NO_STALE_WRITE;
    a_loss_of_locks_that_was_not_noticed: BESIDE, without [AnswersCounted] => ENDS_WELL;
    an_accusation_overruled_by_locks_that_may_be_lost: ONE_FAULT, without [OverruledByAnswer] => ENDS_WELL;
    self_accusers_not_believed: ONE_FAULT, without [SelfAccusersBelieved] => NO_STALE_OPEN;
    opening_without_a_quorum: ONE_FAULT, without [OpenQuorum] => NO_STALE_OPEN;
    a_write_that_the_map_learns_of_too_late: HEALING, without [MapBeforeWrite] => NO_FALSE_CLEAN;
    a_map_believed_after_a_crash_of_its_host: HEALING, without [MapDistrusted] => NO_FALSE_CLEAN;
    a_map_believed_though_somebody_else_marked: CLIENT, without [StampsCompared, ForeignMarksNoted] => NO_FALSE_CLEAN;
    a_copy_cleared_though_a_write_came_in: HEALING, without [CopyingFlag] => NO_FALSE_CLEAN;
    a_copy_cleared_before_the_peer_s_fsync: HEALING, without [PeerFsynced] => NO_FALSE_CLEAN;
    unmarking_with_the_gate_open: HEALING, without [GateHeld] => NO_FALSE_CLEAN;
    unmarking_in_any_order: HEALING, without [BelievedUnmarkedFirst] => ENDS_WELL;
    unmarking_whoever_is_clean: IN_TURNS, without [RemovableOnly] => ENDS_WELL;
    unmarking_that_a_crash_undoes: HEALING, without [RemovalDurable] => ENDS_WELL;
    a_healer_that_asks_nobody: HEALING, without [RecordChecked, StampUnderLock] => NO_FALSE_CLEAN;
    a_healer_of_a_session_whose_marks_may_be_gone: WRITTEN_ON_ONE, without [StampUnderLock] => NO_FALSE_CLEAN;
    a_session_that_does_not_try_the_copy_lock: HEALING, without [CopyLock, StampUnderLock] => NO_FALSE_CLEAN;
    a_healer_that_does_not_look_at_the_peer_s_own_mark: CLIENT, without [StampUnderLock] => NO_FALSE_CLEAN;
    a_promotion_that_does_not_accuse_the_old_copy: PROMOTING, without [OldCopyAccused] => NO_FALSE_CLEAN;
    a_promotion_with_brick_after_brick_believed: PROMOTING, without [AllAccusedFirst] => ENDS_WELL;
    a_promotion_recorded_before_it_stands: PROMOTING, without [RecordedLate] => NO_FALSE_CLEAN;
    a_promoted_copy_that_is_no_witness: PROMOTING, without [PromotedWitness] => ENDS_WELL;
}
