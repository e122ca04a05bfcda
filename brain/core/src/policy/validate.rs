//! Which settings make sense.

use super::{
    CAPACITY_OPEN_LIMIT, HORIZON_STEPS_LIMIT, MOVES_LIMIT, Mode, PROPOSALS_LIMIT, Policy, PolicyError, QUANTILES,
    RESIZES_LIMIT, SEASON_STEPS_LIMIT, SHADOWS_LIMIT, SHRINK_STEP_LIMIT, ShadowPolicy, WAIT_LIMIT_MS,
};

impl Policy {
    /// Whether every value makes sense, alone and together. The core refuses a policy that does not pass.
    pub fn validate(&self) -> Result<(), PolicyError> {
        let Self { mode: _, forecast, cpu, memory, resize, migrate, capacity, approve, windows, anomaly, shadow } =
            self;
        let check =
            |good: bool, setting, problem: String| if good { Ok(()) } else { Err(PolicyError { setting, problem }) };
        check(
            (100..=3_600_000).contains(&forecast.resolution_ms),
            "forecast.resolution_ms",
            format!("{} is not within 100..=3600000 (0.1 s to 1 h)", forecast.resolution_ms),
        )?;
        check(
            (1..=HORIZON_STEPS_LIMIT).contains(&forecast.horizon_steps),
            "forecast.horizon_steps",
            format!("{} is not within 1..={HORIZON_STEPS_LIMIT}", forecast.horizon_steps),
        )?;
        check(
            forecast.season_steps_min >= 4 && forecast.season_steps_min <= forecast.season_steps_max,
            "forecast.season_steps_min",
            format!("{} is not within 4..=season_steps_max", forecast.season_steps_min),
        )?;
        check(
            forecast.season_steps_max <= SEASON_STEPS_LIMIT,
            "forecast.season_steps_max",
            format!("{} is over {SEASON_STEPS_LIMIT}; use a coarser resolution", forecast.season_steps_max),
        )?;
        check(
            forecast.skill_min.is_none_or(|skill| (-1.0..1.0).contains(&skill)),
            "forecast.skill_min",
            format!(
                "{:?} is not within -1..1 (0.1 asks for a tenth less error than \"the same as a season ago\")",
                forecast.skill_min.unwrap_or_default()
            ),
        )?;
        forecast.calendar()?;
        shadow.validate()?;
        windows.windows()?;
        check(
            QUANTILES.contains(&cpu.quantile),
            "cpu.quantile",
            format!("{} is none of 0.5, 0.9, 0.95, 0.99", cpu.quantile),
        )?;
        check(
            (1.0..=10.0).contains(&cpu.headroom),
            "cpu.headroom",
            format!("{} is not within 1..=10 (1.1 leaves a tenth to spare)", cpu.headroom),
        )?;
        check(
            cpu.violation_rate == 0.0 || (1e-4..=0.1).contains(&cpu.violation_rate),
            "cpu.violation_rate",
            format!(
                "{} is neither 0 nor a share within 0.0001..=0.1 (0.005 is half a percent of the time)",
                cpu.violation_rate
            ),
        )?;
        check(
            cpu.lead_ms > 0 && cpu.lead_ms <= forecast.resolution_ms * forecast.horizon_steps as u64,
            "cpu.lead_ms",
            format!(
                "{} is not within 1..={}, the forecast's horizon",
                cpu.lead_ms,
                forecast.resolution_ms * forecast.horizon_steps as u64
            ),
        )?;
        check(
            (0.01..=1024.0).contains(&cpu.floor_cores),
            "cpu.floor_cores",
            format!("{} is not within 0.01..=1024", cpu.floor_cores),
        )?;
        check(
            (0.0..=0.5).contains(&cpu.hysteresis),
            "cpu.hysteresis",
            format!("{} is not a share within 0..=0.5", cpu.hysteresis),
        )?;
        check(cpu.command_ttl_ms > 0, "cpu.command_ttl_ms", "0 would make every command void at once".to_owned())?;
        check(
            (1.0..=10.0).contains(&memory.headroom),
            "memory.headroom",
            format!("{} is not within 1..=10 (1.2 leaves a fifth to spare)", memory.headroom),
        )?;
        check(
            memory.floor_bytes >= 1 << 20,
            "memory.floor_bytes",
            format!("{} is less than a MiB, with which no guest lives", memory.floor_bytes),
        )?;
        check(
            memory.shrink_step_max > 0.0 && memory.shrink_step_max <= SHRINK_STEP_LIMIT,
            "memory.shrink_step_max",
            format!("{} is not within 0..={SHRINK_STEP_LIMIT}, above 0", memory.shrink_step_max),
        )?;
        check(
            (0.0..=0.5).contains(&memory.hysteresis),
            "memory.hysteresis",
            format!("{} is not a share within 0..=0.5", memory.hysteresis),
        )?;
        for (setting, per_hour_max) in [
            ("resize.vm_per_hour_max", resize.vm_per_hour_max),
            ("resize.fleet_per_hour_max", resize.fleet_per_hour_max),
        ] {
            let problem = format!("{per_hour_max} is not within 1..={RESIZES_LIMIT}: use mode to resize nothing");
            check((1..=RESIZES_LIMIT).contains(&per_hour_max), setting, problem)?;
        }
        let share = |of: f64| (0.0..=0.9).contains(&of);
        check(
            share(migrate.reserve_share),
            "migrate.reserve_share",
            format!("{} is not a share within 0..=0.9", migrate.reserve_share),
        )?;
        check(
            share(migrate.gain_min),
            "migrate.gain_min",
            format!("{} is not a share within 0..=0.9", migrate.gain_min),
        )?;
        check(
            migrate.lead_ms <= forecast.resolution_ms * forecast.horizon_steps as u64,
            "migrate.lead_ms",
            format!(
                "{} is beyond {}, the forecast's horizon",
                migrate.lead_ms,
                forecast.resolution_ms * forecast.horizon_steps as u64
            ),
        )?;
        check(migrate.rounds > 0, "migrate.rounds", "0 reports cannot be too full in a row".to_owned())?;
        check(
            (1..=MOVES_LIMIT).contains(&migrate.per_hour_max),
            "migrate.per_hour_max",
            format!("{} is not within 1..={MOVES_LIMIT}", migrate.per_hour_max),
        )?;
        check(migrate.at_once_max > 0, "migrate.at_once_max", "0 would let no VM go: use mode".to_owned())?;
        check(
            (1_000..=86_400_000).contains(&migrate.timeout_ms),
            "migrate.timeout_ms",
            format!("{} is not within 1000..=86400000 (1 s to a day)", migrate.timeout_ms),
        )?;
        check(
            migrate.bandwidth_bytes_per_s.is_none_or(|bandwidth| bandwidth >= 1 << 20),
            "migrate.bandwidth_bytes_per_s",
            "less than a MiB a second moves nothing".to_owned(),
        )?;
        check(
            (1..=CAPACITY_OPEN_LIMIT).contains(&capacity.open_max),
            "capacity.open_max",
            format!("{} is not within 1..={CAPACITY_OPEN_LIMIT}", capacity.open_max),
        )?;
        check(
            (1..=100).contains(&capacity.attempts_max),
            "capacity.attempts_max",
            format!("{} is not within 1..=100", capacity.attempts_max),
        )?;
        check(
            (1..=PROPOSALS_LIMIT).contains(&approve.open_max),
            "approve.open_max",
            format!("{} is not within 1..={PROPOSALS_LIMIT}", approve.open_max),
        )?;
        check(
            (0.0..=2.0).contains(&anomaly.surplus_share),
            "anomaly.surplus_share",
            format!("{} is not a share within 0..=2 (0.5 gives half as much on top)", anomaly.surplus_share),
        )?;
        for (setting, cores) in
            [("anomaly.host_cores_max", anomaly.host_cores_max), ("anomaly.fleet_cores_max", anomaly.fleet_cores_max)]
        {
            check((0.0..=1e6).contains(&cores), setting, format!("{cores} is not within 0..=1000000 cores"))?;
        }
        let times = [
            ("capacity.full_for_ms", capacity.full_for_ms),
            ("capacity.cool_down_ms", capacity.cool_down_ms),
            ("capacity.approval_timeout_ms", capacity.approval_timeout_ms),
            ("capacity.arrival_timeout_ms", capacity.arrival_timeout_ms),
            ("approve.timeout_ms", approve.timeout_ms),
            ("approve.cool_down_ms", approve.cool_down_ms),
            ("anomaly.lasts_ms", anomaly.lasts_ms),
        ];
        let wrong = times.into_iter().find(|(_, ms)| !(1_000..=WAIT_LIMIT_MS).contains(ms));
        wrong.map_or(Ok(()), |(setting, ms)| {
            check(false, setting, format!("{ms} is not within 1000..={WAIT_LIMIT_MS} (1 s to 30 days)"))
        })
    }
}

impl ShadowPolicy {
    fn validate(&self) -> Result<(), PolicyError> {
        let check =
            |good: bool, setting, problem: String| if good { Ok(()) } else { Err(PolicyError { setting, problem }) };
        check(
            matches!(self.mode, Mode::Observe | Mode::Auto),
            "shadow.mode",
            format!("{} is neither \"observe\" nor \"auto\": shadows are not proposed one by one", self.mode.name()),
        )?;
        let share = |share: f64, setting| {
            let problem = format!("{share} is not a share within 0.01..=0.5 (0.1 is a tenth of the production)");
            check((0.01..=0.5).contains(&share), setting, problem)
        };
        share(self.cpu_share, "shadow.cpu_share")?;
        share(self.memory_share, "shadow.memory_share")?;
        share(self.disk_share, "shadow.disk_share")?;
        share(self.network_share, "shadow.network_share")?;
        check(
            self.fleet_max <= SHADOWS_LIMIT,
            "shadow.fleet_max",
            format!("{} is over {SHADOWS_LIMIT}", self.fleet_max),
        )?;
        check(
            (0.01..=4.0).contains(&self.cpu_floor_cores),
            "shadow.cpu_floor_cores",
            format!("{} is not within 0.01..=4 cores", self.cpu_floor_cores),
        )?;
        check(
            (16 << 20..=1 << 40).contains(&self.memory_floor_bytes),
            "shadow.memory_floor_bytes",
            format!("{} is not within 16777216..=1099511627776 (16 MiB to 1 TiB)", self.memory_floor_bytes),
        )?;
        for (setting, bytes_per_s) in [
            ("shadow.disk_bytes_per_s_max", self.disk_bytes_per_s_max),
            ("shadow.network_bytes_per_s_max", self.network_bytes_per_s_max),
            ("shadow.copy_bytes_per_s_max", self.copy_bytes_per_s_max),
        ] {
            let problem = format!("{bytes_per_s} is neither 0 nor within 1024..=1099511627776 bytes per second");
            check(bytes_per_s == 0 || (1 << 10..=1 << 40).contains(&bytes_per_s), setting, problem)?;
        }
        for (setting, bytes_per_s) in [
            ("shadow.disk_floor_bytes_per_s", self.disk_floor_bytes_per_s),
            ("shadow.network_floor_bytes_per_s", self.network_floor_bytes_per_s),
        ] {
            let problem = format!("{bytes_per_s} is not within 1024..=1099511627776 bytes per second");
            check((1 << 10..=1 << 40).contains(&bytes_per_s), setting, problem)?;
        }
        check(
            (0.0..=1.0).contains(&self.fidelity),
            "shadow.fidelity",
            format!("{} is not within 0..=1", self.fidelity),
        )?;
        for (setting, least_ms, value_ms) in [
            ("shadow.lead_ms", 0, self.lead_ms),
            ("shadow.pace_ms", 1_000, self.pace_ms),
            ("shadow.boot_timeout_ms", 90_000, self.boot_timeout_ms),
            ("shadow.cool_down_ms", 1_000, self.cool_down_ms),
            ("shadow.copy_timeout_ms", 10_000, self.copy_timeout_ms),
        ] {
            let problem = format!("{value_ms} is not within {least_ms}..=86400000 (a day)");
            check((least_ms..=86_400_000).contains(&value_ms), setting, problem)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_make_sense() {
        assert_eq!(Policy::default().validate(), Ok(()));
    }

    #[test]
    fn a_value_that_makes_no_sense_is_named() {
        let refused = |change: fn(&mut Policy)| {
            let mut policy = Policy::default();
            change(&mut policy);
            policy.validate().unwrap_err().setting
        };
        assert_eq!(refused(|p| p.cpu.quantile = 0.8), "cpu.quantile");
        assert_eq!(refused(|p| p.cpu.quantile = f64::NAN), "cpu.quantile");
        assert_eq!(refused(|p| p.cpu.headroom = 0.9), "cpu.headroom");
        assert_eq!(refused(|p| p.cpu.violation_rate = 0.5), "cpu.violation_rate");
        assert_eq!(refused(|p| p.cpu.lead_ms = 3_600_001), "cpu.lead_ms");
        assert_eq!(refused(|p| p.forecast.resolution_ms = 0), "forecast.resolution_ms");
        assert_eq!(refused(|p| p.forecast.season_steps_min = 2000), "forecast.season_steps_min");
        assert_eq!(refused(|p| p.forecast.time_zone = "Mars/Olympus".to_owned()), "forecast.time_zone");
        assert_eq!(refused(|p| p.forecast.holidays = vec!["25.12.2026".to_owned()]), "forecast.holidays");
        assert_eq!(refused(|p| p.cpu.command_ttl_ms = 0), "cpu.command_ttl_ms");
        assert_eq!(refused(|p| p.memory.headroom = f64::NAN), "memory.headroom");
        assert_eq!(refused(|p| p.memory.floor_bytes = 0), "memory.floor_bytes");
        assert_eq!(refused(|p| p.memory.shrink_step_max = 0.06), "memory.shrink_step_max");
        assert_eq!(refused(|p| p.memory.shrink_step_max = 0.0), "memory.shrink_step_max");
        assert_eq!(refused(|p| p.memory.hysteresis = 0.6), "memory.hysteresis");
        assert_eq!(refused(|p| p.resize.vm_per_hour_max = 0), "resize.vm_per_hour_max");
        assert_eq!(refused(|p| p.resize.fleet_per_hour_max = usize::MAX), "resize.fleet_per_hour_max");
        assert_eq!(refused(|p| p.forecast.skill_min = Some(1.0)), "forecast.skill_min");
        assert_eq!(refused(|p| p.forecast.skill_min = Some(f64::NAN)), "forecast.skill_min");
        assert_eq!(refused(|p| p.anomaly.surplus_share = 2.1), "anomaly.surplus_share");
        assert_eq!(refused(|p| p.anomaly.host_cores_max = f64::NAN), "anomaly.host_cores_max");
        assert_eq!(refused(|p| p.anomaly.fleet_cores_max = -1.0), "anomaly.fleet_cores_max");
        assert_eq!(refused(|p| p.anomaly.lasts_ms = 0), "anomaly.lasts_ms");
        assert_eq!(refused(|p| p.windows.allow = vec!["nights".to_owned()]), "windows.allow");
        assert_eq!(refused(|p| p.windows.freeze = vec!["Fri 25:00-26:00".to_owned()]), "windows.freeze");
        assert_eq!(refused(|p| p.approve.open_max = 0), "approve.open_max");
        assert_eq!(refused(|p| p.approve.timeout_ms = 0), "approve.timeout_ms");
        assert_eq!(refused(|p| p.capacity.open_max = 0), "capacity.open_max");
        assert_eq!(refused(|p| p.capacity.attempts_max = 0), "capacity.attempts_max");
        assert_eq!(refused(|p| p.capacity.cool_down_ms = 999), "capacity.cool_down_ms");
        assert_eq!(refused(|p| p.capacity.arrival_timeout_ms = u64::MAX), "capacity.arrival_timeout_ms");
    }
}
