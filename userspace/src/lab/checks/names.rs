//! Names: asked of a resolver that does not exist, answered by the gateway's.

use super::super::handle::Lab;
use super::super::plan::Family;
use super::super::report::{Path, Row};
use super::{Check, Problem};

/// One question over UDP and one over TCP.
pub(super) fn all(lab: &Lab, family: Family) -> [Row; 2] {
    [("dns over udp", "+notcp"), ("dns over tcp", "+tcp")].map(|(name, transport)| {
        let who = family.addresses();
        let check = Check {
            name: name.to_owned(),
            src: who.app1.to_string(),
            dst: format!("{} port 53", who.resolver),
            expected: Path::Gateway,
        };
        check.row(ask(lab, family, transport))
    })
}

/// Whoever answers is the gateway: nobody has the resolver's address.
fn ask(lab: &Lab, family: Family, transport: &str) -> Result<(Path, String), Problem> {
    let who = family.addresses();
    let kind = match family {
        Family::V4 => "A",
        Family::V6 => "AAAA",
    };
    let at = format!("@{}", who.resolver);
    let args = [
        &at, "lab.test", kind, transport, "+short", "+time=2", "+tries=2",
    ];
    let answer = lab.app1().cmd("dig", args)?;
    if answer.trim() != who.outside.to_string() {
        return Err(Problem::on(
            Path::Gateway,
            format!("lab.test is {:?}", answer.trim()),
        ));
    }
    Ok((Path::Gateway, format!("lab.test is {}", who.outside)))
}
