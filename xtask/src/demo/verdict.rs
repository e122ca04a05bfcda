//! The demo's verdict: pure arithmetic on what was recorded, and the conditions that must hold.

use super::reactive::{self, Reactive};
use super::record::{Kind, Row, Track};
use serde::Serialize;

/// Demand above the allocation by no more than this does not count as a violation: the resolution of a quota, in cores.
const TOLERANCE_CORES: f64 = 0.01;
/// A change of the allocation by less than this share is no rise or fall.
const STEP_SHARE: f64 = 0.05;
/// A surge is provided for when the allocation reaches this share of its highest demand.
const PROVIDED_SHARE: f64 = 0.95;
/// In a trough the allocation must fall to this share of what the surge before it had.
const TROUGH_SHARE: f64 = 0.5;
/// How long before a rise live demand may have called for it, in seconds: windows, planning and actuation take a few.
const LIVE_MEMORY_S: f64 = 8.0;
/// A live demand that Gnomon says it saw is believed up to this share above what the guest's schedule asked for, and this many cores: what
/// a window measures of a guest with an emulator and a busy host around it.
const SEEN_SHARE: f64 = 1.25;
const SEEN_CORES: f64 = 0.02;

/// Surges that must be anticipated, of every five.
const ANTICIPATED_OF_FIVE: f64 = 4.0 / 5.0;

/// How an allocation served a demand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Service {
    /// Seconds in which more was wanted than allocated.
    pub(super) violated_s: usize,
    /// Share of what was allocated that was not wanted, 0..=1.
    pub(super) slack: f64,
    /// How often the allocation changed.
    pub(super) resizes: usize,
}

/// Measures pairs of (wanted, allocated) cores, one a second.
pub(super) fn service(pairs: impl Iterator<Item = (f64, f64)>) -> Service {
    let (mut violated_s, mut unused, mut allocated, mut resizes) = (0, 0.0, 0.0, 0);
    let mut before = None;
    for (wanted, allocation) in pairs {
        violated_s += usize::from(wanted > allocation + TOLERANCE_CORES);
        unused += (allocation - wanted).max(0.0);
        allocated += allocation;
        resizes += usize::from(before.is_some_and(|before: f64| (before - allocation).abs() > TOLERANCE_CORES));
        before = Some(allocation);
    }
    Service { violated_s, slack: if allocated > 0.0 { unused / allocated } else { 0.0 }, resizes }
}

/// One surge of a periodic guest and how it was met.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Surge {
    /// When demand crossed half-way to its peak, in seconds of the recording.
    pub(super) at_s: f64,
    /// How long before that the allocation was large enough; negative when it came late; `None` when it never was.
    pub(super) lead_s: Option<f64>,
    /// Whether the allocation fell in the trough before it; also where of that no more than its end is in the record, when it may have risen again.
    pub(super) fell_before: bool,
}

/// The surges of a periodic guest in `rows`: demand crossing half-way between its lowest and highest value.
pub(super) fn surges(rows: &[Row]) -> Vec<Surge> {
    let lowest = rows.iter().map(|row| row.wanted).fold(f64::INFINITY, f64::min);
    let highest = rows.iter().map(|row| row.wanted).fold(0.0, f64::max);
    let half = (lowest + highest) / 2.0;
    let rising = |pair: &[Row]| pair[0].wanted <= half && pair[1].wanted > half;
    let starts: Vec<usize> = rows.windows(2).enumerate().filter(|(_, pair)| rising(pair)).map(|(i, _)| i + 1).collect();
    let enough = highest * PROVIDED_SHARE;
    starts
        .iter()
        .enumerate()
        .filter_map(|(nth, &start)| {
            let end = rows[start..].iter().position(|row| row.wanted <= half).map(|length| start + length)?;
            // The trough before: from the end of the previous surge, or the start of the rows.
            let previous = if nth == 0 { 0 } else { starts[nth - 1] };
            let trough = previous + rows[previous..start].iter().position(|row| row.wanted <= half)?;
            // Less than half a period before the first surge.
            let is_end_alone = trough == 0 && starts.get(1).is_some_and(|next| start * 2 < next - start);
            let fell_before =
                is_end_alone || rows[trough..start].iter().any(|row| row.allocation <= highest * TROUGH_SHARE);
            // The latest rise to enough: walk back from the surge while it is enough, else forward until it is.
            let reached = if rows[start].allocation >= enough {
                let below = rows[trough..start].iter().rposition(|row| row.allocation < enough);
                Some(below.map_or(trough, |below| trough + below + 1))
            } else {
                rows[start..end].iter().position(|row| row.allocation >= enough).map(|late| start + late)
            };
            let lead_s = reached.map(|reached| rows[start].at_s - rows[reached].at_s);
            Some(Surge { at_s: rows[start].at_s, lead_s, fell_before })
        })
        .collect()
}

/// Rises of the allocation that live demand had not called for: times in seconds.
///
/// A rise counts when the allocation before it would still have covered the highest demand in the seconds before: what the guest's
/// schedule asked for, what it ran and, by the kernel's counter, was kept from running by its own quota, or the live demand that Gnomon
/// gave as its reason, as far as that is near the schedule. Waiting for a busy host is left out, or it would excuse every rise.
pub(super) fn anticipatory_rises(rows: &[Row], terms: &Terms) -> Vec<f64> {
    let live = |row: &Row| {
        // The guests have one vCPU: a quota holds it back for this share of the time at most.
        let held_back = (row.demand_high - row.demand_low).clamp(0.0, row.throttled.max(0.0));
        let seen = row.grown_for.filter(|seen| *seen <= row.wanted * SEEN_SHARE + SEEN_CORES).unwrap_or_default();
        (row.demand_low + held_back).min(terms.ceiling_cores).max(row.wanted).max(seen)
    };
    rows.windows(2)
        .filter(|pair| {
            let rose = pair[1].allocation > pair[0].allocation * (1.0 + STEP_SHARE) + TOLERANCE_CORES;
            let from_s = pair[1].at_s - LIVE_MEMORY_S;
            let recent = rows.iter().filter(|row| row.at_s >= from_s && row.at_s <= pair[1].at_s);
            let demand = recent.map(live).fold(0.0, f64::max);
            rose && demand * (1.0 + STEP_SHARE) < pair[0].allocation / terms.headroom
        })
        .map(|pair| pair[1].at_s)
        .collect()
}

/// One guest's result.
#[derive(Clone, Debug, Serialize)]
pub(super) struct GuestVerdict {
    /// The guest's name.
    pub(super) name: String,
    /// Its kind of day.
    pub(super) kind: Kind,
    /// Seconds judged.
    pub(super) recorded_s: usize,
    /// How Gnomon served it.
    pub(super) gnomon: Service,
    /// Seconds in which its quota held it back for more than a tenth of the time, by the kernel's counter.
    pub(super) throttled_s: usize,
    /// Its surges (periodic guests).
    pub(super) surges: Vec<Surge>,
    /// When its allocation rose although live demand did not call for it.
    pub(super) anticipatory_rises_s: Vec<f64>,
    /// Window, headroom and service of the reactive policy at equal slack (periodic guests).
    pub(super) reactive: Option<(usize, f64, Service)>,
}

/// The whole demo's result.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Verdict {
    /// Guest by guest.
    pub(super) guests: Vec<GuestVerdict>,
    /// What had to hold and did not, in words; empty means passed.
    pub(super) failures: Vec<String>,
}

/// What the demo must know to judge.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// Rows before this are warm-up and are not judged, in seconds of the recording.
    pub(super) warm_s: f64,
    /// From demand to changed limit on the live path, in seconds: what the reactive policy is given too.
    pub(super) lag_s: usize,
    /// The bounds of an allocation, in cores.
    pub(super) floor_cores: f64,
    /// The bounds of an allocation, in cores.
    pub(super) ceiling_cores: f64,
    /// The planner's headroom: demand times this calls for an allocation.
    pub(super) headroom: f64,
    /// How many surges a periodic guest must have had after warm-up.
    pub(super) surges_min: usize,
    /// How many seconds of each guest must have been recorded after warm-up.
    pub(super) rows_min: usize,
}

/// Judges a recording.
pub(super) fn judge(tracks: &[Track], terms: &Terms) -> Verdict {
    let guests: Vec<GuestVerdict> = tracks.iter().map(|track| judge_guest(track, terms)).collect();
    let failures = guests.iter().flat_map(|guest| failures(guest, terms)).collect();
    Verdict { guests, failures }
}

fn judge_guest(track: &Track, terms: &Terms) -> GuestVerdict {
    let rows = track.since(terms.warm_s);
    let gnomon = service(rows.iter().map(|row| (row.wanted, row.allocation)));
    let periodic = track.kind == Kind::Periodic;
    let reactive = periodic
        .then(|| reactive::at_equal_slack(rows, &gnomon, terms.lag_s, terms.floor_cores, terms.ceiling_cores))
        .flatten()
        .map(|Reactive { window_s, headroom, service }| (window_s, headroom, service));
    GuestVerdict {
        name: track.name.clone(),
        kind: track.kind,
        recorded_s: rows.len(),
        gnomon,
        throttled_s: rows.iter().filter(|row| row.throttled > 0.1).count(),
        surges: if periodic { surges(rows) } else { Vec::new() },
        anticipatory_rises_s: anticipatory_rises(rows, terms),
        reactive,
    }
}

fn failures(guest: &GuestVerdict, terms: &Terms) -> Vec<String> {
    let name = &guest.name;
    let mut failures = Vec::new();
    if guest.recorded_s < terms.rows_min {
        failures.push(format!("{name}: {} s were recorded, {} are needed to judge", guest.recorded_s, terms.rows_min));
    }
    if guest.kind != Kind::Periodic {
        if !guest.anticipatory_rises_s.is_empty() {
            failures.push(format!("{name} rose without demand at {:.0?} s", guest.anticipatory_rises_s));
        }
        return failures;
    }
    let met = guest.surges.iter().filter(|surge| surge.lead_s.is_some_and(|lead_s| lead_s > 0.0)).count();
    let seen = guest.surges.len();
    if seen < terms.surges_min {
        failures.push(format!("{name} had {seen} surges after warm-up, {} are needed to judge", terms.surges_min));
    }
    if (met as f64) < seen as f64 * ANTICIPATED_OF_FIVE {
        failures.push(format!("{name} was grown before {met} of {seen} surges, not 4 of 5"));
    }
    let stuck = guest.surges.iter().filter(|surge| !surge.fell_before).count();
    if stuck > 0 {
        failures.push(format!("{name} did not shrink in {stuck} of {seen} troughs"));
    }
    match &guest.reactive {
        Some((_, _, reactive)) if reactive.violated_s > guest.gnomon.violated_s => {}
        Some((_, _, reactive)) => failures.push(format!(
            "{name}: {} s under-provisioned, the reactive policy {} s at the same slack",
            guest.gnomon.violated_s, reactive.violated_s
        )),
        None => failures.push(format!("{name}: no reactive policy has comparable slack")),
    }
    failures
}

#[cfg(test)]
mod tests {
    use super::*;

    fn track(kind: Kind, allocation: impl Fn(usize) -> f64) -> Track {
        let wanted = |at: usize| match kind {
            Kind::Periodic if at % 60 >= 40 => 0.8,
            _ => 0.1,
        };
        let row = |at: usize| Row {
            at_s: at as f64,
            wanted: wanted(at),
            demand_low: wanted(at),
            demand_high: wanted(at),
            allocation: allocation(at),
            ..Row::default()
        };
        Track { name: "g".into(), host: "h".into(), kind, period_s: Some(60.0), rows: (0..360).map(row).collect() }
    }

    const TERMS: Terms = Terms {
        warm_s: 0.0,
        lag_s: 2,
        floor_cores: 0.05,
        ceiling_cores: 1.0,
        headroom: 1.1,
        surges_min: 5,
        rows_min: 300,
    };

    #[test]
    fn an_allocation_that_rises_early_and_falls_passes() {
        let verdict = judge(&[track(Kind::Periodic, |at| if at % 60 >= 35 { 0.9 } else { 0.15 })], &TERMS);
        assert_eq!(verdict.failures, Vec::<String>::new());
        assert!(verdict.guests[0].surges.iter().all(|surge| surge.lead_s == Some(5.0)));
        assert_eq!(verdict.guests[0].gnomon.violated_s, 0);
    }

    #[test]
    fn an_allocation_that_follows_late_fails() {
        let verdict = judge(&[track(Kind::Periodic, |at| if at % 60 >= 43 { 0.9 } else { 0.15 })], &TERMS);
        assert!(verdict.failures.iter().any(|failure| failure.contains("before 0 of")), "{:?}", verdict.failures);
    }

    #[test]
    fn an_allocation_that_never_falls_fails() {
        let verdict = judge(&[track(Kind::Periodic, |_| 0.9)], &TERMS);
        assert!(verdict.failures.iter().any(|failure| failure.contains("did not shrink")), "{:?}", verdict.failures);
    }

    #[test]
    fn a_trough_of_which_only_the_end_was_recorded_says_nothing_and_half_of_one_does() {
        let rows = track(Kind::Periodic, |at| if at < 60 || at % 60 >= 35 { 0.9 } else { 0.15 }).rows;
        let fell = |from: usize| surges(&rows[from..]).iter().map(|surge| surge.fell_before).collect::<Vec<_>>();
        assert!(fell(36).iter().all(|fell| *fell), "{:?}", fell(36));
        assert_eq!(fell(5).iter().position(|fell| !fell), Some(0));
    }

    #[test]
    fn a_flat_guest_that_rises_for_no_reason_fails() {
        let verdict = judge(&[track(Kind::Flat, |at| if at > 100 { 0.9 } else { 0.15 })], &TERMS);
        assert!(verdict.failures[0].contains("rose without demand"), "{:?}", verdict.failures);
    }

    #[test]
    fn a_flat_guest_that_rises_because_its_quota_held_it_back_passes_and_for_a_busy_host_fails() {
        let failures = |throttled: f64| {
            let mut held = track(Kind::Flat, |at| if at > 100 { 0.35 } else { 0.15 });
            held.rows[98..=100].iter_mut().for_each(|row| (row.demand_high, row.throttled) = (0.4, throttled));
            judge(&[held], &TERMS).failures
        };
        assert_eq!(failures(0.2), Vec::<String>::new());
        assert!(failures(0.0)[0].contains("rose without demand"));
    }

    #[test]
    fn a_live_demand_that_gnomon_gives_as_its_reason_excuses_a_rise_as_far_as_it_is_near_the_truth() {
        let failures = |seen: f64| {
            let mut seen_by_gnomon = track(Kind::Flat, |at| if at > 100 { 0.17 } else { 0.14 });
            seen_by_gnomon.rows[100].grown_for = Some(seen);
            judge(&[seen_by_gnomon], &TERMS).failures
        };
        assert_eq!(failures(0.13), Vec::<String>::new());
        assert!(failures(0.2)[0].contains("rose without demand"));
    }

    #[test]
    fn a_recording_without_surges_is_no_pass() {
        let mut short = track(Kind::Periodic, |_| 0.9);
        short.rows.truncate(30);
        assert!(!judge(&[short], &TERMS).failures.is_empty());
    }
}
