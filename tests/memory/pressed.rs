//! A guest whose balloon is set below what it wants for a while, so that it swaps.

use std::fs::File;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use gnomon_common::wire::{DemandSource, MemoryWindow};
use gnomon_e2e::redefine;
use xtask::lab::{Guest, GuestOptions, Lab};
use xtask::stack::Stack;

use super::{MIB, TOLERANCE, window};

/// What it holds, in MiB, from when on, in seconds since the start of its program. Before, it holds nothing.
const WORKING_SET: u64 = 128;
const HOLDS_S: u64 = 45;
/// In so many seconds before, what it wants is its kernel's own.
const OWN_S: u64 = 8;
/// When its balloon leaves it less than that and its kernel's own, and how little, in MiB.
const PRESSED_S: u64 = 62;
const PRESSED_MIB: u64 = 128;
/// When it is given its memory back.
const RELIEVED_S: u64 = 95;
/// A balloon moves, and the next statistics are told, within this, in seconds.
const SETTLES_S: u64 = 8;
/// What it swaps to holds all of its memory.
const SWAP_BYTES: u64 = 256 << 20;

/// Windows under pressure that are looked at, at least. Of equal ones in a row only the first is.
const WINDOWS_MIN: usize = 9;
/// In how many of them the guest must have told something of late.
const TELLS_MIN: f64 = 0.9;
/// How many of the windows under pressure have the truth within their interval.
const CONTAINS_MIN: f64 = 0.9;
/// How far the upper end may be below the truth in any window, as a multiple of it.
const SHORT_MIN: f64 = 0.85;
/// How far the upper end may be above the truth, as a multiple of it.
const WIDE_MAX: f64 = 1.5;
/// It thrashes if it reads this much back from swap, in bytes per second, in most windows.
const THRASHES_BYTES_PER_S: f64 = MIB as f64;

/// A window, and when it was seen, in seconds since the start of the guest's program.
#[derive(Debug)]
struct Seen {
    t_s: f64,
    window: MemoryWindow,
}

/// What a window says that the guest wants, by its own word, in bytes, and what it reads from swap.
#[derive(Debug)]
struct Told {
    low: f64,
    high: f64,
    swap_in_bytes_per_s: f64,
}

impl Told {
    fn of(window: &MemoryWindow) -> Option<Self> {
        let demand = window.demand.filter(|demand| demand.source == DemandSource::Guest)?;
        let swap_in_bytes_per_s = window.guest.map_or(0.0, |guest| guest.swap_in_bytes_per_s);
        Some(Told { low: demand.low_bytes as f64, high: demand.high_bytes as f64, swap_in_bytes_per_s })
    }
}

/// Defines the guest, with a disk to swap to.
pub(super) fn define(lab: &Lab) -> Result<Guest> {
    let host = &lab.hosts()[0];
    let mut options = GuestOptions::new("pressed", "constant:0.02".parse()?);
    (options.memory_mib, options.memory_mib_max) = (256, 256);
    let guest = lab.define(host, &options)?;
    let file = host.dir().join("pressed.swap");
    File::create(&file).and_then(|swap| swap.set_len(SWAP_BYTES)).context("making a disk to swap to")?;
    let disk = format!(
        "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{}'/>\
         <target dev='vda' bus='virtio'/></disk></devices>",
        file.display()
    );
    redefine(&guest, |xml| {
        let xml = xml.replace("</devices>", &disk);
        let words = format!("gnomon.swap=vda gnomon.memory={HOLDS_S}@0,1@{WORKING_SET} gnomon.load=");
        Ok(xml.replace("gnomon.load=", &words))
    })?;
    Ok(guest)
}

/// Presses it and relieves it, until `end`, and holds what was told against the truth.
pub(super) fn check(stack: &Stack, guest: &Guest, start: SystemTime, end: SystemTime) -> Result<()> {
    let mut balloon = [(PRESSED_S, PRESSED_MIB), (RELIEVED_S, 256)].into_iter().peekable();
    let mut seen: Vec<Seen> = Vec::new();
    let first = start + Duration::from_secs(HOLDS_S - OWN_S);
    thread::sleep(first.duration_since(SystemTime::now()).unwrap_or_default());
    while SystemTime::now() < end {
        let t_s = start.elapsed().unwrap_or_default().as_secs_f64();
        if let Some((_, mib)) = balloon.next_if(|(at_s, _)| t_s >= *at_s as f64) {
            guest.host().virsh(["setmem", guest.name(), &format!("{mib}M"), "--live"])?;
        }
        let window = window(stack, guest)?;
        if seen.last().is_none_or(|last| last.window != window) {
            seen.push(Seen { t_s, window });
        }
        thread::sleep(Duration::from_millis(500));
    }
    judge(&seen, end.duration_since(start)?.as_secs_f64())
}

fn judge(seen: &[Seen], end_s: f64) -> Result<()> {
    let of_guest = |from_s: f64, to_s: f64| -> Vec<Told> {
        let within = seen.iter().filter(|seen| (from_s..to_s).contains(&seen.t_s));
        within.filter_map(|seen| Told::of(&seen.window)).collect()
    };
    let (own_low, own) = median_ends(&of_guest((HOLDS_S - OWN_S) as f64, HOLDS_S as f64))?;
    let truth = own + (WORKING_SET * MIB) as f64;
    ensure!(own_low == own, "a guest that lacks nothing wants {own_low} to {own} bytes");

    let (from_s, to_s) = ((PRESSED_S + SETTLES_S) as f64, RELIEVED_S as f64);
    let pressed = of_guest(from_s, to_s);
    let windows = seen.iter().filter(|seen| (from_s..to_s).contains(&seen.t_s)).count();
    ensure!(windows >= WINDOWS_MIN, "only {windows} windows in {:.0} s", to_s - from_s);
    ensure!(pressed.len() as f64 >= TELLS_MIN * windows as f64, "its guest tells in {} of {windows}", pressed.len());
    let share =
        |holds: &dyn Fn(&Told) -> bool| pressed.iter().filter(|told| holds(told)).count() as f64 / pressed.len() as f64;
    let thrashes = share(&|told| told.swap_in_bytes_per_s >= THRASHES_BYTES_PER_S);
    let contains = share(&|told| told.low <= truth * (1.0 + TOLERANCE) && told.high >= truth * (1.0 - TOLERANCE));
    let (low, high) = median_ends(&pressed)?;
    let least = pressed.iter().map(|told| told.high).fold(f64::INFINITY, f64::min);
    let most = pressed.iter().map(|told| told.high).fold(0.0, f64::max);
    let mib = |bytes: f64| bytes / MIB as f64;
    println!(
        "{PRESSED_MIB} MiB are left to a guest that wants {:.0}: it tells {:.0} to {:.0} (the upper end {:.0} to {:.0}), the truth is in {:.0} % of {} windows; \
         it swaps in {:.0} %",
        mib(truth),
        mib(low),
        mib(high),
        mib(least),
        mib(most),
        contains * 100.0,
        pressed.len(),
        thrashes * 100.0
    );
    ensure!(thrashes > 0.5, "it is not short of memory");
    ensure!(contains >= CONTAINS_MIN, "the truth is in {contains:.2} of the windows");
    // What the planner provides for.
    ensure!(least >= SHORT_MIN * truth, "{:.0} MiB are wanted, {:.0} told at most", mib(truth), mib(least));
    ensure!(high <= WIDE_MAX * truth, "{:.0} MiB are wanted, up to {:.0} told", mib(truth), mib(high));

    let (low, high) = median_ends(&of_guest(end_s - 5.0, end_s))?;
    println!("relieved, it tells {:.0} to {:.0}", mib(low), mib(high));
    ensure!(low >= truth * (1.0 - 2.0 * TOLERANCE) && high <= truth * (1.0 + 2.0 * TOLERANCE), "{low} {high} {truth}");
    Ok(())
}

fn median_ends(windows: &[Told]) -> Result<(f64, f64)> {
    let median = |of: fn(&Told) -> f64| -> Result<f64> {
        let mut values: Vec<f64> = windows.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().context("its guest tells in no window")
    };
    Ok((median(|told| told.low)?, median(|told| told.high)?))
}
