//! What a program did with a frame. The assertions cover everything that [`super::Node::run`] compared:
//! the action, the bytes, the verdict, every reason, the flow that counted it, flow entries made and gone.

use fsm_common::{reason::Reason, stats::Verdict};

use super::{Hook, frame::check_sums};

/// TCX_NEXT.
const NEXT: i32 = -1;
const TC_SHOT: i32 = 2;
const TC_REDIRECT: i32 = 7;
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;
const XDP_TX: i32 = 3;
const XDP_REDIRECT: i32 = 4;

/// One entry of the flow table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub packets: u64,
    pub bytes: u64,
    /// The tuple after translation.
    pub to: String,
    /// The other direction's tuple.
    pub pair: String,
    pub nf: u8,
    pub tcp: u8,
    /// What the state is derived from.
    pub side: fsm_common::track::Side,
    pub ifindex: u32,
    pub generation: u32,
    /// Device and MAC, where `nf` says so.
    pub redirect: (u32, [u8; 6]),
}

/// See the module.
#[derive(Debug)]
#[must_use]
pub struct Seen {
    pub hook: Hook,
    pub before: Vec<u8>,
    pub action: i32,
    pub frame: Vec<u8>,
    pub mark: u32,
    pub verdict: Option<Verdict>,
    /// One for each count.
    pub reasons: Vec<Reason>,
    /// The flow that counted the frame.
    pub flow: Option<String>,
    /// Flow entries made.
    pub made: usize,
    /// Flow entries gone.
    pub gone: usize,
}

/// What the kernel is told where a frame goes on.
pub fn pass_action(hook: Hook) -> i32 {
    if hook == Hook::Xdp { XDP_PASS } else { NEXT }
}

/// And where it is dropped.
pub fn drop_action(hook: Hook) -> i32 {
    if hook == Hook::Xdp { XDP_DROP } else { TC_SHOT }
}

impl Seen {
    fn pass_action(&self) -> i32 {
        pass_action(self.hook)
    }

    /// The frame went on as it came; no flow knows of it.
    #[track_caller]
    pub fn untouched(&self, reasons: &[Reason]) {
        let expected = (
            self.pass_action(),
            Some(Verdict::Pass),
            reasons,
            None,
            made(reasons),
        );
        self.is(expected);
        assert_eq!(self.frame, self.before, "changed");
    }

    /// The frame went on as it came, counted in its flow.
    #[track_caller]
    pub fn follows(&self, flow: &str, reasons: &[Reason]) {
        let action = self.pass_action();
        self.is((
            action,
            Some(Verdict::Pass),
            reasons,
            Some(flow),
            made(reasons),
        ));
        assert_eq!(self.frame, self.before, "changed");
    }

    /// The frame was dropped for this reason alone.
    #[track_caller]
    pub fn dropped(&self, reason: Reason) {
        let action = drop_action(self.hook);
        self.is((action, Some(Verdict::Drop), &[reason], None, 0));
        assert_eq!(self.frame, self.before, "changed");
    }

    /// The frame went on translated, with right checksums, counted in its flow; gives it.
    #[track_caller]
    pub fn translated(&self, flow: &str, reasons: &[Reason]) -> Vec<u8> {
        self.is((
            self.pass_action(),
            Some(Verdict::Nat),
            reasons,
            Some(flow),
            made(reasons),
        ));
        assert_ne!(self.frame, self.before, "not translated");
        assert_eq!(check_sums(&self.frame), Ok(()));
        self.frame.clone()
    }

    /// The frame was redirected past the stack, counted in its flow; gives it.
    #[track_caller]
    pub fn redirected(&self, flow: &str, reasons: &[Reason]) -> Vec<u8> {
        let action = if self.hook == Hook::Xdp {
            XDP_REDIRECT
        } else {
            TC_REDIRECT
        };
        self.is((
            action,
            Some(Verdict::Redirect),
            reasons,
            Some(flow),
            made(reasons),
        ));
        assert_eq!(check_sums(&self.frame), Ok(()));
        self.frame.clone()
    }

    /// The frame was translated and sent out of a device past the stack, counted in its flow; gives it.
    #[track_caller]
    pub fn sent_on(&self, flow: &str, reasons: &[Reason]) -> Vec<u8> {
        self.is((
            TC_REDIRECT,
            Some(Verdict::Nat),
            reasons,
            Some(flow),
            made(reasons),
        ));
        assert_eq!(check_sums(&self.frame), Ok(()));
        self.frame.clone()
    }

    /// The frame was dropped, and its sender gets an answer by the device that it came from; its flow, of two
    /// entries, is gone.
    #[track_caller]
    pub fn answered(&self, reason: Reason) -> Vec<u8> {
        let found = (self.action, self.verdict, self.reasons.as_slice());
        assert_eq!(found, (TC_REDIRECT, Some(Verdict::Drop), &[reason][..]));
        assert_eq!((self.made, self.gone), (0, 2), "flow entries");
        assert_eq!(check_sums(&self.frame), Ok(()));
        self.frame.clone()
    }

    /// The frame went to a worker, counted in this flow, or in none; gives it.
    #[track_caller]
    pub fn taken(&self, flow: Option<&str>, reasons: &[Reason]) -> Vec<u8> {
        let action = if self.hook == Hook::Xdp {
            XDP_REDIRECT
        } else {
            TC_REDIRECT
        };
        self.is((
            action,
            Some(Verdict::Escalate),
            reasons,
            flow,
            made(reasons),
        ));
        assert_eq!(check_sums(&self.frame), Ok(()));
        self.frame.clone()
    }

    /// The frame went back as a SYN-ACK with a cookie, with right checksums; gives it.
    #[track_caller]
    pub fn cookie(&self) -> Vec<u8> {
        let reasons = &[Reason::SynCookieSent];
        self.is((XDP_TX, Some(Verdict::Answer), reasons, None, 0));
        let mut untagged = self.frame.clone();
        while [[0x81, 0], [0x88, 0xa8]].contains(&[untagged[12], untagged[13]]) {
            untagged.drain(12..16);
        }
        assert_eq!(check_sums(&untagged), Ok(()));
        self.frame.clone()
    }

    /// An ICMP error went on translated, with right checksums, counted in no flow; gives it.
    #[track_caller]
    pub fn error_translated(&self) -> Vec<u8> {
        let reasons = &[Reason::IcmpTranslated];
        self.is((self.pass_action(), Some(Verdict::Nat), reasons, None, 0));
        assert_eq!(check_sums(&self.frame), Ok(()));
        self.frame.clone()
    }

    #[track_caller]
    fn is(&self, expected: (i32, Option<Verdict>, &[Reason], Option<&str>, usize)) {
        let found = (
            self.action,
            self.verdict,
            self.reasons.as_slice(),
            self.flow.as_deref(),
            self.made,
        );
        assert_eq!(
            found, expected,
            "(action, verdict, reasons, flow, entries made) at {:?}",
            self.hook
        );
        assert_eq!(self.gone, 0, "flow entries removed");
    }
}

/// Entries that a frame with these reasons makes: a new flow has two.
fn made(reasons: &[Reason]) -> usize {
    if reasons.contains(&Reason::FlowNew) {
        2
    } else {
        0
    }
}
