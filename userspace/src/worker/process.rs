//! From a packet to what becomes of it: asks the engine, and survives it. No sockets here, and no clock.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use fsm_common::{
    escalate::{Escalated, taken, verdict},
    stats::Hook,
};

use super::stats::Counters;
use crate::dpi::{Engine, Event, Meta, Verdict};

/// Makes the engine of a worker, by its number: at the start, and again when one has panicked.
pub type Factory = Arc<dyn Fn(usize) -> Box<dyn Engine> + Send + Sync>;

/// What becomes of a packet, and what the kernel is told of its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// It goes back to where it was taken.
    pub goes_on: bool,
    /// One of [`verdict`]; 0: nothing.
    pub judged: u8,
    /// Both ends get an RST.
    pub reset: bool,
}

impl Decision {
    const fn new(goes_on: bool, judged: u8) -> Self {
        Self {
            goes_on,
            judged,
            reset: judged == verdict::RESET,
        }
    }
}

/// What a verdict means. A copy goes nowhere, and stops nothing: the packet itself went on already.
pub const fn decide(said: Verdict, is_copy: bool) -> Decision {
    match (said, is_copy) {
        (Verdict::Pass, false) => Decision::new(true, 0),
        (Verdict::Allow, _) => Decision::new(!is_copy, verdict::ALLOW),
        (Verdict::Deny, false) => Decision::new(false, verdict::DENY),
        (Verdict::Reset, false) => Decision::new(false, verdict::RESET),
        _ => Decision::new(false, 0),
    }
}

/// What the engine is told of a packet.
pub const fn meta(said: &Escalated) -> Meta {
    Meta {
        ifindex: said.ifindex,
        is_ingress: said.hook != Hook::TcEgress as u8,
        is_reply: said.flags & taken::REPLY != 0,
        is_copy: said.flags & taken::COPY != 0,
        policy: said.policy,
    }
}

/// An engine, and what is needed to make another.
pub struct Desk {
    worker: usize,
    engine: Box<dyn Engine>,
    make: Factory,
    has_logged: bool,
}

impl Desk {
    /// With a fresh engine.
    pub fn new(worker: usize, make: Factory) -> Self {
        Self {
            worker,
            engine: make(worker),
            make,
            has_logged: false,
        }
    }

    /// Has a packet judged. Where the engine panics, `fail_open` says whether the packet goes on.
    pub fn judge(
        &mut self,
        now_ns: u64,
        said: &Escalated,
        frame: &[u8],
        fail_open: bool,
        counters: &mut Counters,
        tell: &mut dyn FnMut(Event),
    ) -> Decision {
        let meta = meta(said);
        counters.judged += 1;
        counters.copies += u64::from(meta.is_copy);
        let Some(verdict) =
            self.guarded(counters, |engine| engine.judge(now_ns, &meta, frame, tell))
        else {
            return Decision::new(fail_open && !meta.is_copy, 0);
        };
        *match verdict {
            Verdict::Pass => &mut counters.passed,
            Verdict::Allow => &mut counters.allowed,
            Verdict::Drop => &mut counters.dropped,
            Verdict::Deny => &mut counters.denied,
            Verdict::Reset => &mut counters.reset,
        } += 1;
        decide(verdict, meta.is_copy)
    }

    /// Calls the engine; where it panics, another takes its place.
    pub fn guarded<R>(
        &mut self,
        counters: &mut Counters,
        call: impl FnOnce(&mut dyn Engine) -> R,
    ) -> Option<R> {
        // What the engine leaves behind is not looked at again; nothing else is changed within.
        match catch_unwind(AssertUnwindSafe(|| call(&mut *self.engine))) {
            Ok(result) => Some(result),
            Err(panic) => {
                counters.restarts += 1;
                self.renew(&*panic);
                None
            }
        }
    }

    fn renew(&mut self, panic: &(dyn Any + Send)) {
        if !std::mem::replace(&mut self.has_logged, true) {
            let text = panic
                .downcast_ref::<&str>()
                .copied()
                .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
                .unwrap_or("no message");
            tracing::error!(
                worker = self.worker,
                "the inspection engine has panicked and is made anew, without its sessions \
                 (further panics are counted only): {text}"
            );
        }
        let fresh = (self.make)(self.worker);
        let old = std::mem::replace(&mut self.engine, fresh);
        // Its state may be such that even dropping it panics.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(old)));
    }

    /// The engine, to look at.
    pub fn engine(&self) -> &dyn Engine {
        &*self.engine
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dpi::{SessionView, Stats};

    /// Says what the frame's first byte says; panics at the rest.
    #[derive(Default)]
    struct Spoken {
        judged: u64,
    }

    impl Engine for Spoken {
        fn judge(&mut self, _: u64, _: &Meta, frame: &[u8], _: &mut dyn FnMut(Event)) -> Verdict {
            self.judged += 1;
            match frame[0] {
                0 => Verdict::Pass,
                1 => Verdict::Allow,
                2 => Verdict::Drop,
                3 => Verdict::Deny,
                4 => Verdict::Reset,
                _ => panic!("byte {}", frame[0]),
            }
        }
        fn tick(&mut self, _: u64, _: &mut dyn FnMut(Event)) {}
        fn stats(&self) -> Stats {
            Stats {
                no_room: self.judged,
                ..Stats::default()
            }
        }
        fn sessions(&self, _: u64, _: usize) -> Vec<SessionView> {
            Vec::new()
        }
    }

    fn judge(
        desk: &mut Desk,
        counters: &mut Counters,
        byte: u8,
        flags: u8,
        open: bool,
    ) -> Decision {
        let said = Escalated {
            flags,
            ..Escalated::ZERO
        };
        desk.judge(0, &said, &[byte], open, counters, &mut |_| ())
    }

    #[test]
    fn each_verdict_means_one_thing_and_copies_stop_nothing() {
        let mut desk = Desk::new(0, Arc::new(|_| Box::new(Spoken::default())));
        let mut counters = Counters::default();
        let taken: Vec<_> = (0..5)
            .map(|byte| judge(&mut desk, &mut counters, byte, 0, true))
            .map(|d| (d.goes_on, d.judged, d.reset))
            .collect();
        let (allow, deny, reset) = (verdict::ALLOW, verdict::DENY, verdict::RESET);
        let expected = [
            (true, 0, false),
            (true, allow, false),
            (false, 0, false),
            (false, deny, false),
            (false, reset, true),
        ];
        assert_eq!(taken, expected);
        for byte in 0..5 {
            let decision = judge(&mut desk, &mut counters, byte, taken::COPY, true);
            let judged = if byte == 1 { allow } else { 0 };
            assert_eq!(decision, Decision::new(false, judged));
        }
        assert_eq!((counters.judged, counters.copies), (10, 5));
        assert_eq!((counters.passed, counters.reset), (2, 2));
    }

    #[test]
    fn a_panic_costs_the_sessions_and_nothing_else() {
        let mut desk = Desk::new(0, Arc::new(|_| Box::new(Spoken::default())));
        let mut counters = Counters::default();
        judge(&mut desk, &mut counters, 0, 0, true);
        assert_eq!(desk.engine().stats().no_room, 1);
        assert!(judge(&mut desk, &mut counters, 9, 0, true).goes_on);
        assert!(!judge(&mut desk, &mut counters, 9, 0, false).goes_on);
        assert!(!judge(&mut desk, &mut counters, 9, taken::COPY, true).goes_on);
        assert_eq!(counters.restarts, 3);
        assert_eq!(desk.engine().stats().no_room, 0, "a fresh one");
        assert!(judge(&mut desk, &mut counters, 0, 0, false).goes_on);
    }
}
