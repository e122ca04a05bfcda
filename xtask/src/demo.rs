//! `cargo xtask demo`: the main job, for real. Three lab hosts, three kinds of guests, agents, a brain; live in the terminal; a
//! verdict at the end, beside a reactive policy on the same recorded workload.

mod foresight;
mod picture;
mod reactive;
mod real;
mod record;
mod report;
mod requirements;
mod screen;
mod simulated;
mod verdict;
mod world;

use anyhow::Context;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use record::{Kind, Track};
use screen::Scene;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use verdict::{Terms, Verdict};
use world::{Second, World};

/// Days a periodic guest lives before it is judged: the forecaster must see a season repeat before it may trust it.
const WARM_DAYS: f64 = 3.0;
/// Surges judged after that.
const JUDGED_SURGES: usize = 5;
/// Days recorded after warm-up: one more than the surges, since the recording starts and ends anywhere within a day.
const JUDGED_DAYS: f64 = JUDGED_SURGES as f64 + 1.1;
/// Share of the judged seconds that each guest's recording must have.
const RECORDED_SHARE: f64 = 0.9;
/// Longest silence of a guest: an agent that restarts is back well before.
const SILENCE_S: usize = 30;
/// Every guest of the demo has one vCPU.
const GUEST_VCPUS: f64 = 1.0;
/// How often progress is printed where there is no terminal.
const PLAIN_PROGRESS: Duration = Duration::from_secs(15);
/// From demand to changed limit on Gnomon's own live path, in seconds: one window, its report, a plan, an actuation.
const LIVE_LAG_S: usize = 2;

/// Show Gnomon at work: real VMs grow before their surges and shrink after them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// End after five surges past warm-up, judge, and exit 0 only if everything promised held (about 10 minutes).
    #[arg(long)]
    once: bool,
    /// Use the simulated fleet although real VMs may be possible.
    #[arg(long)]
    simulated: bool,
    /// Draws the guests' workloads; a fresh one each run by default.
    #[arg(long)]
    seed: Option<u64>,
    /// Write the recording and the verdict as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the recording as a picture.
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,
    /// Do not install what is missing; run the simulated fleet if something is.
    #[arg(long)]
    no_setup: bool,
}

/// Runs the demo; the error says what did not hold.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let seed = args.seed.unwrap_or_else(rand::random);
    let mut world = choose_world(args, seed)?;
    let mut recording = Recording::new(world.as_ref());
    let finished = recording.live(world.as_mut(), args.once)?;
    drop(world);
    let terms = recording.terms();
    let verdict = verdict::judge(&recording.tracks, &terms);
    println!("\n{}", report::text(&verdict, &terms));
    println!("workloads drawn from --seed {seed}");
    recording.write(args, &verdict, &terms)?;
    if !args.once {
        return Ok(());
    }
    anyhow::ensure!(finished, "stopped before the end: nothing is proven");
    anyhow::ensure!(
        verdict.failures.is_empty(),
        "the demo did not hold what it promises:\n  {}",
        verdict.failures.join("\n  ")
    );
    Ok(())
}

fn choose_world(args: &Args, seed: u64) -> anyhow::Result<Box<dyn World>> {
    if !args.simulated {
        let missing = requirements::prepare(!args.no_setup);
        if missing.is_empty() {
            return Ok(Box::new(real::RealWorld::start(seed).context("starting the real demo")?));
        }
        println!("Real VMs are not possible here:");
        for lack in &missing {
            println!("  - {lack}");
        }
        println!("Running the simulated fleet instead: the same brain core, simulated hosts and guests.\n");
    }
    Ok(Box::new(simulated::SimulatedWorld::new(seed)))
}

/// Records a world while showing it.
struct Recording {
    title: &'static str,
    tracks: Vec<Track>,
    warm_s: f64,
    end_s: f64,
    latest: Second,
}

impl Recording {
    fn new(world: &dyn World) -> Self {
        let tracks: Vec<Track> = world
            .guests()
            .into_iter()
            .map(|guest| Track {
                name: guest.name,
                host: guest.host,
                kind: guest.kind,
                period_s: guest.period_s,
                rows: Vec::new(),
            })
            .collect();
        let day_s = tracks.iter().filter_map(|track| track.period_s).fold(0.0, f64::max);
        let warm_s = day_s * WARM_DAYS;
        Self { title: world.title(), tracks, warm_s, end_s: warm_s + day_s * JUDGED_DAYS, latest: Second::default() }
    }

    fn terms(&self) -> Terms {
        let cpu = gnomon_sim::demo::demo_policy().cpu;
        Terms {
            warm_s: self.warm_s,
            lag_s: LIVE_LAG_S,
            floor_cores: cpu.floor_cores,
            headroom: cpu.headroom,
            ceiling_cores: GUEST_VCPUS,
            surges_min: JUDGED_SURGES,
            rows_min: ((self.end_s - self.warm_s) * RECORDED_SHARE) as usize,
        }
    }

    /// Lives until the end (`once`) or until the user quits; tells whether the end was reached.
    fn live(&mut self, world: &mut dyn World, once: bool) -> anyhow::Result<bool> {
        if std::io::stdout().is_terminal() {
            let mut terminal = ratatui::init();
            let lived = self.live_on(world, once, |scene| {
                terminal.draw(|frame| screen::draw(frame, scene))?;
                Ok(!quit_pressed()?)
            });
            ratatui::restore();
            return lived;
        }
        let mut printed = None::<Instant>;
        let finished = self.live_on(world, once, |scene| {
            if printed.is_none_or(|at| at.elapsed() >= PLAIN_PROGRESS) {
                printed = Some(Instant::now());
                println!("{}", plain_line(scene));
            }
            Ok(true)
        })?;
        println!("{}", screen::text(&self.scene("recorded", None)));
        Ok(finished)
    }

    fn live_on(
        &mut self,
        world: &mut dyn World,
        once: bool,
        mut show: impl FnMut(&Scene<'_>) -> anyhow::Result<bool>,
    ) -> anyhow::Result<bool> {
        let mut silent_s = vec![0; self.tracks.len()];
        loop {
            let second = world.next_second()?;
            for ((track, guest), silent_s) in self.tracks.iter_mut().zip(&second.guests).zip(&mut silent_s) {
                track.rows.extend(&guest.rows);
                *silent_s = if guest.rows.is_empty() { *silent_s + 1 } else { 0 };
                anyhow::ensure!(*silent_s < SILENCE_S, "nothing was heard of {} for {SILENCE_S} s", track.name);
            }
            self.latest = second;
            let now_s = self.tracks.first().and_then(|track| track.rows.last()).map_or(0.0, |row| row.at_s);
            let stage = self.stage(now_s);
            let progress = once.then_some(now_s / self.end_s);
            if !show(&self.scene(&stage, progress))? {
                return Ok(false);
            }
            if once && now_s >= self.end_s {
                return Ok(true);
            }
        }
    }

    fn stage(&self, now_s: f64) -> String {
        if now_s < self.warm_s {
            return format!("learning the days: {now_s:.0} of {:.0} s", self.warm_s);
        }
        let surges: usize = self
            .tracks
            .iter()
            .filter(|track| track.kind == Kind::Periodic)
            .map(|track| verdict::surges(track.since(self.warm_s)).len())
            .sum();
        format!("judged: {:.0} of {:.0} s, {surges} surges", now_s - self.warm_s, self.end_s - self.warm_s)
    }

    fn scene<'a>(&'a self, stage: &'a str, progress: Option<f64>) -> Scene<'a> {
        Scene { title: self.title, progress, stage, tracks: &self.tracks, second: &self.latest }
    }

    fn write(&self, args: &Args, verdict: &Verdict, terms: &Terms) -> anyhow::Result<()> {
        if let Some(path) = &args.json {
            let json = serde_json::json!({ "source": self.title, "tracks": self.tracks, "verdict": verdict });
            std::fs::write(path, serde_json::to_vec_pretty(&json)?)
                .with_context(|| format!("writing {}", path.display()))?;
        }
        if let Some(path) = &args.svg {
            let title = format!("Gnomon, {}: demand, forecast and allocation (shaded: learning)", self.title);
            let svg = picture::svg(&title, &self.tracks, verdict, terms.warm_s);
            std::fs::write(path, svg).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }
}

fn quit_pressed() -> anyhow::Result<bool> {
    while event::poll(Duration::ZERO)? {
        if let Event::Key(key) = event::read()? {
            let interrupted = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            if interrupted || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn plain_line(scene: &Scene<'_>) -> String {
    let guests = scene.tracks.iter().filter_map(|track| {
        let row = track.rows.last()?;
        Some(format!("{} wants {:.2} has {:.2}", track.name, row.demand_high, row.allocation))
    });
    format!("{}; {}", scene.stage, guests.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_simulated_fleet_keeps_every_promise_of_the_demo() {
        for seed in 1..=5 {
            let mut world = simulated::SimulatedWorld::with_pace(seed, Duration::ZERO);
            let mut recording = Recording::new(&world);
            let finished = recording.live_on(&mut world, true, |_| Ok(true)).unwrap();
            let verdict = verdict::judge(&recording.tracks, &recording.terms());
            assert!(finished);
            assert_eq!(verdict.failures, Vec::<String>::new(), "seed {seed}");
        }
    }
}
