//! Traffic that the usual tools do not make: UDP echo and a paced stream of it that counts losses,
//! and many TCP connections that share source ports. Run in the lab's hosts as hidden sub-verbs
//! of `lab`; each prints one JSON object.

pub mod load;
pub mod udp;
