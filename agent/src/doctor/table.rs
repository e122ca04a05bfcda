//! The diagnosis for people.

use super::{Check, Diagnosis, State};

const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const GREEN: &str = "\x1b[32m";
const PLAIN: &str = "\x1b[0m";

/// Width of the widest state.
const STATE_WIDTH: usize = "unavailable".len();

pub(super) fn render(diagnosis: &Diagnosis, colour: bool) -> String {
    let width =
        |of: fn(&Check) -> &str| diagnosis.checks.iter().map(|check| of(check).chars().count()).max().unwrap_or(0);
    let (signals, sources) = (width(|check| check.signal), width(|check| &check.source));
    let mut text = format!("{:STATE_WIDTH$}  {:signals$}  {:sources$}  FOUND\n", "STATE", "SIGNAL", "SOURCE");
    for check in &diagnosis.checks {
        let (name, paint) = match check.state {
            State::Ok => ("ok", GREEN),
            State::Degraded => ("degraded", YELLOW),
            State::Unavailable if check.needed => ("MISSING", RED),
            State::Unavailable => ("unavailable", YELLOW),
        };
        let state = format!("{name:STATE_WIDTH$}");
        let state = if colour { format!("{paint}{state}{PLAIN}") } else { state };
        text += &format!("{state}  {:signals$}  {:sources$}  {}\n", check.signal, check.source, first_line(&check.why));
        if let Some(how) = &check.enable {
            text += &format!("{:STATE_WIDTH$}  {:signals$}  -> {}\n", "", "", first_line(how));
        }
    }
    text + &match diagnosis.missing().as_slice() {
        [] => "Everything that the agent needs is there.\n".to_owned(),
        missing => format!("The agent lacks what it needs: {}.\n", missing.join(", ")),
    }
}

/// The verifier's words have many lines; `--json` has them all.
fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_ways_out_stand_below() {
        let checks = vec![
            Check::ok("BTF", "/sys/kernel/btf/vmlinux", "5 MiB"),
            Check::unavailable("libvirt", "qemu:///system", "no socket\nmore").needed().enable("start libvirtd"),
        ];
        let diagnosis = Diagnosis::new(checks);
        let expected = "\
            STATE        SIGNAL   SOURCE                   FOUND\n\
            ok           BTF      /sys/kernel/btf/vmlinux  5 MiB\n\
            MISSING      libvirt  qemu:///system           no socket\n\
            \u{20}                     -> start libvirtd\n\
            The agent lacks what it needs: libvirt.\n";
        assert_eq!(render(&diagnosis, false), expected);
        assert!(render(&diagnosis, true).contains("\x1b[31mMISSING    \x1b[0m"));
    }
}
