//! The verdict as text.

use super::record::Kind;
use super::verdict::{GuestVerdict, Terms, Verdict};
use std::fmt::Write;

/// The table and the list of what failed, for people.
pub(super) fn text(verdict: &Verdict, terms: &Terms) -> String {
    let mut out = format!("Verdict, measured after {:.0} s of learning\n", terms.warm_s);
    let _ = writeln!(
        out,
        "{:<12} {:<16} {:>18} {:>12} {:>8} {:>8}",
        "guest", "policy", "under-provisioned", "throttled", "slack", "resizes"
    );
    for guest in &verdict.guests {
        rows(&mut out, guest);
    }
    for guest in verdict.guests.iter().filter(|guest| guest.kind == Kind::Periodic) {
        let leads: Vec<String> = guest
            .surges
            .iter()
            .map(|surge| surge.lead_s.map_or("never".to_owned(), |lead| format!("{lead:+.0} s")))
            .collect();
        let _ = writeln!(out, "{}: provided for before each surge by {}", guest.name, leads.join(", "));
    }
    if verdict.failures.is_empty() {
        out.push_str("Passed: grown before the surges, shrunk in the troughs, no rise without a reason, fewer violations than reactive.");
    } else {
        let _ = write!(out, "FAILED:\n  {}", verdict.failures.join("\n  "));
    }
    out
}

fn rows(out: &mut String, guest: &GuestVerdict) {
    let gnomon = &guest.gnomon;
    let _ = writeln!(
        out,
        "{:<12} {:<16} {:>16} s {:>10} s {:>6.0} % {:>8}",
        guest.name,
        "gnomon",
        gnomon.violated_s,
        guest.throttled_s,
        gnomon.slack * 100.0,
        gnomon.resizes
    );
    if let Some((window_s, headroom, service)) = &guest.reactive {
        let policy = format!("reactive {window_s}s x{headroom:.2}");
        let _ = writeln!(
            out,
            "{:<12} {:<16} {:>16} s {:>12} {:>6.0} % {:>8}",
            "",
            policy,
            service.violated_s,
            "-",
            service.slack * 100.0,
            service.resizes
        );
    }
    if guest.kind != Kind::Periodic {
        let _ =
            writeln!(out, "{:<12} rises that live demand had not called for: {}", "", guest.anticipatory_rises_s.len());
    }
}
