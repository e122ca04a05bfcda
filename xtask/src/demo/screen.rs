//! The live picture in the terminal: hosts, and per guest its demand, forecast band and allocation over time.

use super::record::Track;
use super::world::Second;
use ratatui::Frame;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Chart, Dataset, Gauge, GraphType, LegendPosition, Row, Table};

/// Seconds of the past shown.
const PAST_S: f64 = 180.0;
/// Seconds of the forecast shown.
const AHEAD_S: f64 = 45.0;
/// The size of the picture printed where there is no terminal.
const PRINTED: (u16, u16) = (118, 46);

/// Everything the screen shows.
pub(super) struct Scene<'a> {
    /// What is running.
    pub(super) title: &'a str,
    /// How far it is, 0..=1, if it ends by itself.
    pub(super) progress: Option<f64>,
    /// What is going on, in words.
    pub(super) stage: &'a str,
    /// The recordings so far.
    pub(super) tracks: &'a [Track],
    /// The latest second.
    pub(super) second: &'a Second,
}

/// Draws the scene.
pub(super) fn draw(frame: &mut Frame<'_>, scene: &Scene<'_>) {
    let hosts_height = u16::try_from(scene.second.hosts.len()).unwrap_or(8).min(8) + 3;
    let [head, hosts, guests] =
        Layout::vertical([Constraint::Length(3), Constraint::Length(hosts_height), Constraint::Min(6)])
            .areas(frame.area());
    draw_head(frame, head, scene);
    draw_hosts(frame, hosts, scene.second);
    let rows = Layout::vertical(scene.tracks.iter().map(|_| Constraint::Fill(1))).split(guests);
    for (index, track) in scene.tracks.iter().enumerate() {
        draw_guest(frame, rows[index], track, scene.second, index);
    }
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, scene: &Scene<'_>) {
    let block = Block::bordered().title(format!(" Gnomon: {} ", scene.title)).title_bottom(" q quits ");
    match scene.progress {
        Some(done) => frame.render_widget(
            Gauge::default().block(block).gauge_style(Color::Cyan).ratio(done.clamp(0.0, 1.0)).label(scene.stage),
            area,
        ),
        None => frame.render_widget(ratatui::widgets::Paragraph::new(scene.stage).block(block), area),
    }
}

fn draw_hosts(frame: &mut Frame<'_>, area: Rect, second: &Second) {
    let rows = second.hosts.iter().map(|host| {
        let agent = if host.connected { "connected".green() } else { "lost".red() };
        Row::new(vec![
            Span::raw(host.name.clone()),
            agent,
            Span::raw(format!("{:.2} of {:.2}", host.used_cores, host.capacity_cores)),
            Span::raw(format!("{:.2}", host.allocated_cores)),
            Span::raw(host.vms.to_string()),
        ])
    });
    let widths =
        [Constraint::Fill(2), Constraint::Fill(1), Constraint::Fill(1), Constraint::Fill(1), Constraint::Length(5)];
    let header = Row::new(["host", "agent", "cores used", "cores allocated", "VMs"]).style(Style::new().bold());
    frame.render_widget(Table::new(rows, widths).header(header).block(Block::bordered()), area);
}

fn draw_guest(frame: &mut Frame<'_>, area: Rect, track: &Track, second: &Second, index: usize) {
    let now_s = track.rows.last().map_or(0.0, |row| row.at_s);
    let from_s = (now_s - PAST_S).max(0.0);
    let past = track.since(from_s);
    let points = |value: fn(&super::record::Row) -> f64| -> Vec<(f64, f64)> {
        past.iter().map(|row| (row.at_s, value(row))).collect()
    };
    let wanted = points(|row| row.demand_high);
    let allocation = points(|row| row.allocation);
    let (mut p50, mut p95) = (Vec::new(), Vec::new());
    for row in past {
        p50.extend(row.forecast_p50.map(|value| (row.at_s, value)));
        p95.extend(row.forecast_p95.map(|value| (row.at_s, value)));
    }
    let guest = second.guests.get(index);
    for (step, (median, high)) in guest.map_or(&[][..], |guest| &guest.ahead).iter().enumerate() {
        let at_s = now_s + step as f64;
        if at_s <= now_s + AHEAD_S {
            p50.push((at_s, *median));
            p95.push((at_s, *high));
        }
    }
    let top = [&wanted, &allocation, &p95].into_iter().flatten().map(|point| point.1).fold(0.5, f64::max) * 1.1;
    let line = |name: &'static str, color, data| {
        Dataset::default().name(name).marker(Marker::Braille).graph_type(GraphType::Line).style(color).data(data)
    };
    let day = track.period_s.map_or(String::new(), |_| ", a surge a day".to_owned());
    let reason = guest.map_or("", |guest| guest.reason.as_str());
    let title = Line::from(vec![
        Span::raw(format!(" {} on {} ({:?}{day}) ", track.name, track.host, track.kind)).bold(),
        Span::raw(format!("{reason} ")).dim(),
    ]);
    let chart = Chart::new(vec![
        line("forecast p95", Color::DarkGray, &p95),
        line("forecast p50", Color::Blue, &p50),
        line("demand", Color::Yellow, &wanted),
        line("allocated", Color::Green, &allocation),
    ])
    .block(Block::bordered().title(title))
    .legend_position(Some(LegendPosition::TopLeft))
    .x_axis(Axis::default().bounds([from_s, (now_s + AHEAD_S).max(60.0)]).labels([
        format!("{from_s:.0} s"),
        format!("now {now_s:.0} s"),
        format!("+{AHEAD_S:.0} s"),
    ]))
    .y_axis(Axis::default().bounds([0.0, top]).labels(["0".to_owned(), format!("{top:.1} cores")]));
    frame.render_widget(chart, area);
}

/// The scene as text, for logs and pipes.
pub(super) fn text(scene: &Scene<'_>) -> String {
    let Ok(mut terminal) = Terminal::new(TestBackend::new(PRINTED.0, PRINTED.1));
    let Ok(_) = terminal.draw(|frame| draw(frame, scene));
    let buffer = terminal.backend().buffer();
    let line = |y: u16| -> String { (0..PRINTED.0).map(|x| buffer[(x, y)].symbol()).collect() };
    (0..PRINTED.1).map(|y| line(y).trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::super::record::{Kind, Row};
    use super::*;

    #[test]
    fn the_picture_names_the_guest_and_draws_its_lines() {
        let rows = (0..100)
            .map(|at| Row { at_s: f64::from(at), demand_high: 0.4, allocation: 0.6, ..Row::default() })
            .collect();
        let track = Track { name: "web".into(), host: "h1".into(), kind: Kind::Flat, period_s: None, rows };
        let scene =
            Scene { title: "test", progress: Some(0.5), stage: "half", tracks: &[track], second: &Second::default() };
        let text = text(&scene);
        assert!(text.contains("web on h1"), "{text}");
        assert!(text.contains("allocated") && text.chars().any(|c| ('\u{2801}'..='\u{28ff}').contains(&c)), "{text}");
    }
}
