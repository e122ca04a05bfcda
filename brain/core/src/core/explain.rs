//! Why a VM has the size it has, in words.

use std::collections::BTreeMap;
use std::time::Duration;

use gnomon_common::wire::{
    ExitReason, ExitShare, GuestDisk, HostId, InterfaceWindow, LatencyHistogram, Means, QueueWindow, Setting, VmId,
    VmState,
};

use super::planning::{balloon_sizing, sizing};
use super::{Core, views};
use crate::fleet::{Host, Vm};
use crate::forecast::FIT_STEPS_MIN;
use crate::io::Hold;
use crate::plan::mib;
use crate::plan::size::{Bounds, live_cores};
use crate::policy::Mode;
use crate::view::{Explanation, ModeView, WaitView};

/// How far the long run is told ahead.
const DAY: Duration = Duration::from_hours(23);

/// Bytes of a MiB.
const MIB: f64 = (1 << 20) as f64;

impl Core {
    /// Why a VM has the size it has. `None` for a VM that is on no host.
    pub fn explain(&self, id: VmId) -> Option<Explanation> {
        let vm = self.fleet.vms.get(&id)?;
        let host_id = vm.host.as_ref()?;
        let host = self.fleet.hosts.get(host_id)?;
        let view = self.vm_view(id, vm, host_id);
        let mut lines = vec![demand(vm)];
        lines.extend(view.waited.as_ref().and_then(waited));
        lines.push(self.learnt(vm));
        lines.extend(long_run(vm));
        lines.extend(self.outlook_line(vm));
        lines.extend(self.promise(vm));
        lines.extend(self.size(vm, host));
        lines.extend(self.memory(vm, host));
        lines.extend(baselines(vm));
        lines.extend(network(vm));
        lines.extend(disk(vm));
        lines.extend(exits(vm));
        lines.extend(self.shadow_in_words(id));
        lines.extend(self.dirties(vm));
        lines.extend(self.disks_of_its_own(vm, host_id));
        lines.extend(stays(id, host));
        lines.extend(self.restraints(id, vm, host));
        Some(Explanation {
            vm: view,
            wanted_cores: vm.verdict.map(|verdict| verdict.wanted_cores),
            wanted_bytes: vm.balloon_verdict.map(|verdict| verdict.wanted_bytes),
            lines,
            recent: vm.recent.iter().cloned().collect(),
        })
    }

    /// What a move of it would take, where that was asked for lately.
    fn dirties(&self, vm: &Vm) -> Option<String> {
        Some(match vm.travel.dirty_rate(self.now)? {
            Ok(_) => format!("To move it, {}.", self.haul(vm)),
            Err(why) => format!("How fast its guest writes to its memory could not be measured: {why}."),
        })
    }

    /// What only its host has of its disks, and whether that may go along.
    fn disks_of_its_own(&self, vm: &Vm, host: &HostId) -> Option<String> {
        let storage = vm.storage?;
        let (own, images) = (mib(storage.own_bytes), mib(storage.image_bytes));
        let may_go = match self.storage_stays(vm, host) {
            Some(why) => format!("it stays there: {why}"),
            None => "they are copied along where it is moved".to_owned(),
        };
        Some(format!(
            "Only its host has its disks, {own} in its own files and {images} in images below these: {may_go}."
        ))
    }

    fn learnt(&self, vm: &Vm) -> String {
        let measured = vm.history.measured();
        let Some(forecaster) = vm.ready() else {
            return format!(
                "There is no forecast yet: {measured} steps of history are known, {FIT_STEPS_MIN} are the least. \
                 Its size follows live demand."
            );
        };
        let step = Duration::from_millis(vm.history.resolution_ms());
        if let Some(season_ms) = views::season_ms(vm) {
            let skill = forecaster.relative_error().map_or_else(String::new, |error| {
                format!(", with {:.0} % of the error of \"the same as a season ago\"", error * 100.0)
            });
            return format!(
                "A season of {:.1} s was found in {measured} steps of history and forecasts demand{skill}.",
                season_ms as f64 / 1000.0
            );
        }
        match forecaster.season_unearned_steps() {
            Some(steps) => format!(
                "A season of {:.1} s was found in {measured} steps of history, but it forecasts hardly better than \
                 \"no change\": its size follows live demand.",
                step.mul_f64(steps).as_secs_f64()
            ),
            None => format!("No season was found in {measured} steps of history: its size follows live demand."),
        }
    }

    fn outlook_line(&self, vm: &Vm) -> Option<String> {
        let lead = self.fleet.hosts.get(vm.host.as_ref()?)?.lead(&self.policy);
        let outlook = vm.outlook(vm.window_end, lead, &self.policy, self.policy.forecast.skill_min)?;
        let level = self.policy.cpu.quantile * 100.0;
        let lead_s = lead.as_secs_f64();
        let use_of_it =
            if outlook.seasonal_cores >= outlook.most_cores { "grow for" } else { "hold back shrinking for" };
        Some(format!(
            "Within the lead time of {lead_s:.1} s demand stays below {:.2} cores with {level:.0} % certainty: \
             a size to {use_of_it}.",
            outlook.most_cores
        ))
    }

    /// What a forecast asks for and does not get, because it has too little skill.
    fn doubt(&self, vm: &Vm) -> Option<String> {
        let skill_min = self.policy.forecast.skill_min?;
        let lead = self.fleet.hosts.get(vm.host.as_ref()?)?.lead(&self.policy);
        let doubted = vm.outlook(vm.window_end, lead, &self.policy, Some(skill_min))?.doubted_cores;
        let skills: Vec<String> = vm.skills().iter().flatten().map(|skill| format!("{:.0} %", skill * 100.0)).collect();
        (doubted > 0.0).then(|| {
            format!(
                "A forecast of up to {doubted:.2} cores within the lead time is not acted on: it avoids {} of the error of \"the same as a season \
                 ago\", and policy asks for {:.0} %. It holds back shrinking, and growth follows live demand.",
                skills.join(" and "),
                skill_min * 100.0
            )
        })
    }

    fn promise(&self, vm: &Vm) -> Option<String> {
        let cores = vm.promised_cores?;
        Some(format!(
            "It is sized for the fleet's promise, too small for {:.2} % of the time at most: by what the fleet's past says of VMs like it, \
             that is {cores:.2} cores.",
            self.policy.cpu.violation_rate * 100.0
        ))
    }

    fn size(&self, vm: &Vm, host: &Host) -> Option<String> {
        if vm.state != VmState::Running {
            return Some(format!("It is not running ({:?}): nothing is planned and nothing is learnt.", vm.state));
        }
        if !host.facts.means.contains(&Means::CpuQuota) {
            return Some("Its host's agent is not configured to change CPU quotas.".to_owned());
        }
        let bounds = Bounds::new(&self.policy.cpu, &host.facts.cpu_bounds, vm.allocation.vcpus);
        let Some(bounds) = bounds else {
            return Some(format!(
                "No size is allowed: the policy's floor is {} cores, the agent's bounds are {} to {}, and it has {} vCPUs.",
                self.policy.cpu.floor_cores,
                host.facts.cpu_bounds.floor_cores,
                host.facts.cpu_bounds.ceiling_cores,
                vm.allocation.vcpus
            ));
        };
        let sizing = sizing(vm, host, &self.policy, self.policy.forecast.skill_min, vm.window_end)?;
        let headroom = self.policy.cpu.headroom;
        let (needed, comfortable) = sizing.quotas(headroom);
        let now = vm.allocation.quota_cores.map_or("unlimited".to_owned(), |quota| format!("{quota:.2} cores"));
        Some(format!(
            "With a headroom of {headroom} and within {:.2} to {:.2} cores, {:.2} are needed now and {:.2} would be \
             comfortable; its quota is {now}.",
            bounds.floor, bounds.ceiling, needed, comfortable
        ))
    }

    /// What its memory is and is to be; nothing where nobody asked for that to be planned.
    fn memory(&self, vm: &Vm, host: &Host) -> Option<String> {
        if !self.policy.memory.manage || vm.state != VmState::Running {
            return None;
        }
        let Some(sizing) = balloon_sizing(vm, host, &self.policy) else {
            return Some("Its host's agent is not configured to change memory.".to_owned());
        };
        let sizing = match sizing {
            Ok(sizing) => sizing,
            Err(why) => return Some(format!("Its memory is left as it is: {why}.")),
        };
        let headroom = self.policy.memory.headroom;
        let starved = if sizing.starved { " It starves: what it wants cannot be seen." } else { "" };
        Some(format!(
            "Its guest has {} of memory and wants {}.{starved} With a headroom of {headroom}, a reserve of {} and within {} to {}, \
             {} are wanted. Its host has {} to spare for balloons that grow.",
            mib(sizing.balloon),
            mib(sizing.demand),
            mib(sizing.reserve),
            mib(sizing.floor),
            mib(sizing.ceiling),
            mib(sizing.enough(headroom)),
            mib(vm.host.as_ref().map_or(0, |host| self.spare_bytes(host))),
        ))
    }

    /// What keeps Gnomon from acting, one line each.
    fn restraints(&self, id: VmId, vm: &Vm, host: &Host) -> Vec<String> {
        let mut lines = Vec::new();
        let ModeView { mode, by } = self.told_mode_of(id);
        let what_follows = match mode {
            Mode::Observe => Some("no plan is made"),
            Mode::Recommend => Some("plans are shown, not carried out"),
            Mode::Approve => Some("what is planned waits for an operator"),
            Mode::Auto => None,
        };
        lines.extend(what_follows.map(|what| format!("Its mode is {mode}, by the word of {by}: {what}.")));
        match self.holds.on_vm(id, vm.host.as_ref()) {
            Some(Hold::Paused) => lines.push("An operator paused it: no command is sent.".to_owned()),
            Some(Hold::Released) => {
                let done = if vm.restored { "has been restored" } else { "is to be restored" };
                lines.push(format!("An operator released it: its baseline {done}, then it is left alone."));
            }
            None => {}
        }
        if !self.windows.are_open(&self.calendar, self.now) {
            let until = self.windows.change(&self.calendar, self.now);
            let until = until.map_or_else(|| "for a week at least".to_owned(), |at| format!("until {at}"));
            lines.push(format!(
                "By the maintenance windows of the policy, plans neither shrink nor move VMs {until}; they still grow."
            ));
        }
        lines.extend(self.budget_in_words(vm));
        lines.extend(self.doubt(vm));
        lines.extend(vm.host.as_ref().and_then(|host| self.surplus_in_words(id, vm, host)));
        lines.extend(self.proposals_in_words(id));
        for setting in self.holds.settings_of(id) {
            lines.push(format!(
                "An operator set the {} to {setting}: it is left alone until the VM is resumed or released.",
                setting.means()
            ));
        }
        if vm.stood_down {
            lines.push(
                "Its host's agent stands down for it, because someone else changed its limits: nothing is planned until it is \
                 resumed or released."
                    .to_owned(),
            );
        }
        if !host.connected {
            lines.push("Its host's agent is not connected.".to_owned());
        }
        if host.facts.dry_run {
            lines.push("Its host's agent runs dry: commands are judged there, not carried out.".to_owned());
        }
        if let Some(flight) = &vm.flight {
            lines.push(format!("Command {} is on its way.", flight.record.command.id));
        }
        for (what, backoff) in [("", &vm.pace.backoff), (" about its memory", &vm.balloon_pace.backoff)] {
            if let Some(until) = backoff.until(self.now) {
                let left = until.since(self.now).as_secs_f64();
                lines.push(format!(
                    "After commands{what} that were not carried out, nothing is tried for another {left:.0} s."
                ));
            }
        }
        lines
    }
}

/// Why it does not leave a host that is emptied or too full, where no VM does.
fn stays(id: VmId, host: &Host) -> Option<String> {
    let told = host.stuck.as_ref()?.vms.iter().find(|stays| stays.vm == id)?;
    Some(format!("Its host is emptied, or will be too full, and none of its VMs goes; of this one: {}.", told.why))
}

/// What the long history tells.
fn long_run(vm: &Vm) -> Option<String> {
    let (shares, skill) = vm.pattern.models()?;
    let day = vm.pattern.ahead(vm.window_end, DAY)?;
    let most = |place: usize| day.quantiles.iter().map(|step| step[place]).fold(0.0, f64::max);
    let seasons = vm.pattern.seasons();
    let seasons = match seasons {
        [] => "no season".to_owned(),
        seasons => format!(
            "seasons of {}",
            seasons.iter().map(|season| season.period.to_string()).collect::<Vec<_>>().join(" and ")
        ),
    };
    let use_of_it = if vm.pattern.is_earned() { "" } else { " Seasons forecast hardly better than \"no change\"." };
    let mut best: Vec<_> = shares.iter().filter(|share| share.weight >= 0.05).collect();
    best.sort_by(|one, other| other.weight.total_cmp(&one.weight));
    let models = best
        .iter()
        .map(|share| format!("{} {:.0} %", share.model, share.weight * 100.0))
        .collect::<Vec<_>>()
        .join(", ");
    Some(format!(
        "Its long history has {seasons}; models combined ({models}) avoid {:.0} % of the error of \"the same as a season ago\".{use_of_it} \
         Within a day its mean demand of 5 minutes reaches {:.2} cores at the median, {:.2} with 5 % chance.",
        skill * 100.0,
        most(0),
        most(2)
    ))
}

fn demand(vm: &Vm) -> String {
    let Some(cpu) = vm.cpu else { return "Its latest window does not tell its demand.".to_owned() };
    let (low, high) = (cpu.demand_low.mean, cpu.demand_high.mean);
    let live = live_cores(&cpu, &vm.allocation);
    format!(
        "In the latest window it ran for {low:.2} cores and wanted at most {high:.2}; its quota held it back for {:.0} % of \
         the time. That counts as a live demand of {live:.2} cores.",
        cpu.throttled.mean * 100.0
    )
}

/// What it does on disks; nothing where that is not measured.
fn disk(vm: &Vm) -> Option<String> {
    let disk = vm.disk.as_ref()?;
    let (reads, writes) = (&disk.read, &disk.write);
    let latency =
        disk.latency.quantile_ms(0.99).map_or_else(String::new, |ms| format!(", 99 % of them within {ms:.2} ms"));
    Some(format!(
        "On disks it reads {:.2} and writes {:.2} MiB/s in {:.1} requests/s{latency}, with {:.2} under way in the mean.{}",
        reads.bytes_per_s.mean / MIB,
        writes.bytes_per_s.mean / MIB,
        reads.operations_per_s + writes.operations_per_s,
        disk.queue_depth,
        above_page_cache(&disk.guest)
    ))
}

/// What its guest does on disks behind the host's page cache; empty where it has none.
fn above_page_cache(disks: &[GuestDisk]) -> String {
    if disks.is_empty() {
        return String::new();
    }
    let sum = |value: fn(&GuestDisk) -> f64| disks.iter().map(value).sum::<f64>();
    let targets: Vec<&str> = disks.iter().map(|disk| disk.target.as_str()).collect();
    format!(
        " Its guest reads {:.2} and writes {:.2} MiB/s in {:.1} requests/s on {}, with the host's page cache between.",
        sum(|disk| disk.read_bytes_per_s) / MIB,
        sum(|disk| disk.write_bytes_per_s) / MIB,
        sum(|disk| disk.read_operations_per_s + disk.write_operations_per_s),
        targets.join(", ")
    )
}

/// What a release would give back.
fn baselines(vm: &Vm) -> Option<String> {
    let had: Vec<String> = vm.baselines.iter().map(Setting::to_string).collect();
    (!had.is_empty())
        .then(|| format!("Before Gnomon's first change it had {}: a release gives that back.", had.join(", ")))
}

/// What went through its interfaces; nothing where it has none that is measured.
fn network(vm: &Vm) -> Option<String> {
    let sum = |value: fn(&InterfaceWindow) -> f64| vm.interfaces.iter().map(value).sum::<f64>();
    let (received, sent) = (sum(|it| it.received.bytes_per_s.mean), sum(|it| it.sent.bytes_per_s.mean));
    let dropped = sum(|it| it.received.dropped_per_s + it.sent.dropped_per_s);
    let mut reasons: BTreeMap<&str, f64> = BTreeMap::new();
    for drop in vm.interfaces.iter().flat_map(|interface| interface.drops.iter().flatten()) {
        *reasons.entry(&drop.reason).or_default() += drop.packets_per_s;
    }
    // The device's own counter knows only some of the reasons.
    let dropped = dropped.max(reasons.values().sum());
    let why: Vec<String> = reasons.iter().map(|(reason, packets)| format!("{reason} {packets:.1}")).collect();
    let why = if why.is_empty() { String::new() } else { format!(" ({})", why.join(", ")) };
    let dropped =
        if dropped > 0.0 { format!(", and {dropped:.1} packets were dropped there{why}") } else { String::new() };
    let mut timed = LatencyHistogram::default();
    let queues = || vm.interfaces.iter().filter_map(|interface| interface.queue.as_ref());
    queues().for_each(|queue| timed.add(&queue.waits));
    let waited =
        QueueWindow::mean_wait_ms(queues()).zip(timed.quantile_ms(0.99)).map_or_else(String::new, |(mean, most)| {
            format!(
                ", packets waited {mean:.2} ms in the mean until it took them, 99 % of them no longer than {most:.2} ms"
            )
        });
    let names: Vec<&str> = vm.interfaces.iter().map(|interface| interface.device.as_str()).collect();
    (!names.is_empty()).then(|| {
        let (received, sent) = (received / 1e6, sent / 1e6);
        format!(
            "Through {} it received {received:.2} MB and sent {sent:.2} MB each second{waited}{dropped}.",
            names.join(", ")
        )
    })
}

/// Why its vCPUs left their guest: how much of them had nothing to do, and what cost most of the rest.
fn exits(vm: &Vm) -> Option<String> {
    let shares = vm.exits.as_ref()?;
    let exits_per_s: f64 = shares.iter().map(|share| share.exits_per_s).sum();
    let halted: f64 =
        shares.iter().filter(|share| share.reason == ExitReason::Halt).map(|share| share.away_vcpus).sum();
    let mut busy: Vec<&ExitShare> = shares
        .iter()
        .filter(|share| share.reason != ExitReason::Halt && share.away_vcpus >= WAITED_CORES_MIN)
        .collect();
    busy.sort_by(|one, other| other.away_vcpus.total_cmp(&one.away_vcpus));
    let told: Vec<String> =
        busy.iter().take(3).map(|share| format!("{:.2} for {}", share.away_vcpus, share.reason.name())).collect();
    let rest =
        if told.is_empty() { String::new() } else { format!(", and were away from it otherwise: {}", told.join(", ")) };
    Some(format!(
        "Its vCPUs left their guest {exits_per_s:.0} times a second; {halted:.2} of them had nothing to do{rest}."
    ))
}

/// Less than this is not worth a word, in cores.
const WAITED_CORES_MIN: f64 = 0.005;

/// Who had the CPU while it waited; nothing where it hardly did.
fn waited(wait: &WaitView) -> Option<String> {
    let culprits = wait.culprits.iter().map(|culprit| {
        let kind = if culprit.vm.is_some() { "the VM" } else { "the host's" };
        (culprit.cores, format!("{kind} {}", culprit.name))
    });
    let rest = [
        (wait.own_quota_cores.unwrap_or(0.0), "its own quota"),
        (wait.own_cores, "its own other threads"),
        (wait.others_cores, "others"),
    ];
    let mut all: Vec<(f64, String)> = culprits.chain(rest.map(|(cores, what)| (cores, what.to_owned()))).collect();
    all.sort_by(|one, other| other.0.total_cmp(&one.0));
    let total: f64 = all.iter().map(|(cores, _)| cores).sum();
    let told: Vec<String> = all
        .iter()
        .filter(|(cores, _)| *cores >= WAITED_CORES_MIN)
        .map(|(cores, what)| format!("{cores:.2} for {what}"))
        .collect();
    let unknown =
        if wait.own_quota_cores.is_none() { " Its host does not tell what its quota has to do with it." } else { "" };
    (!told.is_empty()).then(|| format!("It waited for {total:.2} cores: {}.{unknown}", told.join(", ")))
}
