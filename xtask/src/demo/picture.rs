//! The recording as an SVG, for the README and for people who look rather than read.

use super::record::{Kind, Row, Track};
use super::verdict::{GuestVerdict, Verdict};
use std::fmt::Write;

const WIDTH: f64 = 960.0;
const PANEL: f64 = 190.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 24.0;

/// Draws all tracks, one panel each, with the judged part's verdict in the captions.
pub(super) fn svg(title: &str, tracks: &[Track], verdict: &Verdict, warm_s: f64) -> String {
    let height = TOP + PANEL * tracks.len() as f64 + 8.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"18\" font-size=\"15\" font-weight=\"bold\">{}</text>\n",
        escape(title)
    );
    let legend = [("demand", "#e08a00"), ("forecast p50 to p95", "#9db8e8"), ("allocated", "#1a7f37")];
    for (nth, (name, color)) in legend.iter().enumerate() {
        let x = LEFT + 150.0 * nth as f64;
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"26\" width=\"14\" height=\"8\" fill=\"{color}\"/><text x=\"{}\" y=\"34\">{name}</text>",
            x + 18.0
        );
    }
    for (nth, track) in tracks.iter().enumerate() {
        let guest = verdict.guests.iter().find(|guest| guest.name == track.name);
        panel(&mut out, TOP + PANEL * nth as f64, track, guest, warm_s);
    }
    out.push_str("</svg>\n");
    out
}

fn panel(out: &mut String, y: f64, track: &Track, guest: Option<&GuestVerdict>, warm_s: f64) {
    let (Some(first), Some(last)) = (track.rows.first(), track.rows.last()) else { return };
    let plot = PANEL - BOTTOM - 22.0;
    let top_cores =
        track.rows.iter().map(|row| row.allocation.max(row.demand_high)).fold(0.2, f64::max).min(1.3) * 1.05;
    let span_s = (last.at_s - first.at_s).max(1.0);
    let x = |at_s: f64| LEFT + (at_s - first.at_s) / span_s * (WIDTH - LEFT - RIGHT);
    let level = |cores: f64| y + 22.0 + plot * (1.0 - (cores / top_cores).clamp(0.0, 1.0));
    let base = level(0.0);
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"{}\"><tspan font-weight=\"bold\">{}</tspan> on {}: {}</text>",
        y + 14.0,
        escape(&track.name),
        escape(&track.host),
        escape(&caption(track, guest))
    );
    let _ = writeln!(
        out,
        "<rect x=\"{LEFT}\" y=\"{}\" width=\"{}\" height=\"{plot}\" fill=\"#f2f2f2\"/>",
        y + 22.0,
        x(warm_s.max(first.at_s)) - LEFT
    );
    for cores in [0.0, 0.5, 1.0] {
        if cores < top_cores {
            let _ = writeln!(
                out,
                "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{1}\" y2=\"{1}\" stroke=\"#dddddd\"/><text x=\"{2}\" y=\"{3}\" text-anchor=\"end\" fill=\"#666666\">{cores:.1}</text>",
                WIDTH - RIGHT,
                level(cores),
                LEFT - 6.0,
                level(cores) + 4.0
            );
        }
    }
    band(out, &track.rows, &x, &level);
    line(out, &track.rows, &x, &level, |row| row.demand_high, "#e08a00");
    line(out, &track.rows, &x, &level, |row| row.allocation, "#1a7f37");
    let mut minute = 0.0;
    while minute <= span_s / 60.0 {
        let at = x(first.at_s + minute * 60.0);
        let _ = writeln!(
            out,
            "<text x=\"{at}\" y=\"{}\" text-anchor=\"middle\" fill=\"#666666\">{minute:.0} min</text>",
            base + 15.0
        );
        minute += 1.0;
    }
}

fn caption(track: &Track, guest: Option<&GuestVerdict>) -> String {
    let Some(guest) = guest else { return format!("{:?}", track.kind).to_lowercase() };
    let slack = guest.gnomon.slack * 100.0;
    match track.kind {
        Kind::Periodic => {
            let met = guest.surges.iter().filter(|surge| surge.lead_s.is_some_and(|lead| lead > 0.0)).count();
            let reactive = guest
                .reactive
                .as_ref()
                .map_or(String::new(), |(_, _, service)| format!(" (reactive, same slack: {} s)", service.violated_s));
            format!(
                "grown before {met} of {} surges, {} s under-provisioned{reactive}, slack {slack:.0} %",
                guest.surges.len(),
                guest.gnomon.violated_s
            )
        }
        Kind::Flat | Kind::Walk => {
            format!("no season: {} rises without demand, slack {slack:.0} %", guest.anticipatory_rises_s.len())
        }
    }
}

fn line(
    out: &mut String,
    rows: &[Row],
    x: &impl Fn(f64) -> f64,
    level: &impl Fn(f64) -> f64,
    value: fn(&Row) -> f64,
    color: &str,
) {
    let points: Vec<String> = rows.iter().map(|row| format!("{:.1},{:.1}", x(row.at_s), level(value(row)))).collect();
    let _ = writeln!(
        out,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.4\"/>",
        points.join(" ")
    );
}

/// The forecast band as one polygon per stretch in which there was a forecast.
fn band(out: &mut String, rows: &[Row], x: &impl Fn(f64) -> f64, level: &impl Fn(f64) -> f64) {
    for stretch in rows.split(|row| row.forecast_p50.is_none()).filter(|stretch| stretch.len() > 1) {
        let upper = stretch.iter().map(|row| (row.at_s, row.forecast_p95.unwrap_or_default()));
        let lower = stretch.iter().rev().map(|row| (row.at_s, row.forecast_p50.unwrap_or_default()));
        let points: Vec<String> =
            upper.chain(lower).map(|(at_s, cores)| format!("{:.1},{:.1}", x(at_s), level(cores))).collect();
        let _ = writeln!(
            out,
            "<polygon points=\"{}\" fill=\"#9db8e8\" fill-opacity=\"0.7\" stroke=\"#9db8e8\"/>",
            points.join(" ")
        );
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
