//! The inspection engine by its public face: frames in, verdicts and events out. Names say what must hold.

#[path = "dpi/any.rs"]
mod any;
#[path = "../../common/tests/support/frame.rs"]
#[expect(dead_code, reason = "the frames of all tests")]
mod frame;
#[path = "dpi/policy.rs"]
mod policy;
#[path = "dpi/recognise.rs"]
mod recognise;
#[path = "dpi/sessions.rs"]
mod sessions;
#[path = "dpi/talk.rs"]
mod talk;
