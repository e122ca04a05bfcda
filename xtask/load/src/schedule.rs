//! Schedules: demand in cores as a function of the time since the guest's program started.
//!
//! Text form, one word without spaces, because it travels on a kernel command line:
//! `constant:0.3`, `script:30@0.2,10@0.9`, `periodic:period_s=240,phase_s=17,base=0.1,peak=0.9,width_s=60,shoulder_s=15`,
//! `walk:seed=7,step_s=5,step=0.1,low=0.1,high=0.9`.

pub mod draw;
mod random;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use random::SplitMix64;

/// No schedule asks for more cores than this: a lab guest has a handful of vCPUs and a thread is kept for each core.
pub const LEVEL_MAX: f64 = 16.0;
/// A script on a kernel command line (2 KiB in all) cannot be longer than this.
pub const SCRIPT_STEPS_MAX: usize = 100;

/// Demand for CPU over time. Levels are in cores, times in seconds.
#[derive(Debug, Clone, PartialEq)]
pub enum Schedule {
    /// The same level for ever.
    Constant(
        /// Cores.
        f64,
    ),
    /// A compressed day that repeats: base, a rise, a plateau, a fall.
    Periodic(Periodic),
    /// A seeded random walk, reflected at its bounds.
    Walk(Walk),
    /// Levels for given durations; the last level stays.
    Script(
        /// In order of time, never empty.
        Vec<Step>,
    ),
}

/// A compressed day. `shoulder_s` is spent in the rise and again in the fall, both inside `width_s`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Periodic {
    /// Length of the day.
    pub period_s: f64,
    /// Start of the rise, counted from the start of the day.
    pub phase_s: f64,
    /// Cores outside the peak.
    pub base: f64,
    /// Cores on the plateau.
    pub peak: f64,
    /// From the foot of the rise to the foot of the fall.
    pub width_s: f64,
    /// Length of the rise, and of the fall: half a cosine each.
    pub shoulder_s: f64,
}

/// A random walk: every `step_s` the level moves by a uniform draw from `[-step, step]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Walk {
    /// Same seed, same walk.
    pub seed: u64,
    /// Time between two moves.
    pub step_s: f64,
    /// Largest move, in cores.
    pub step: f64,
    /// Lower bound, in cores.
    pub low: f64,
    /// Upper bound, in cores.
    pub high: f64,
}

/// One entry of a script.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// How long the level holds.
    pub duration_s: f64,
    /// Cores.
    pub level: f64,
}

/// Why a text is not a schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduleError(String);

impl fmt::Display for ScheduleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a schedule: {}; write e.g. constant:0.3 or script:30@0.2,10@0.9", self.0)
    }
}

impl std::error::Error for ScheduleError {}

impl Schedule {
    /// Demand in cores, `t_s` seconds after the start of the guest's program. Before the start it is zero.
    pub fn level(&self, t_s: f64) -> f64 {
        if t_s < 0.0 {
            return 0.0;
        }
        match self {
            Schedule::Constant(level) => *level,
            Schedule::Periodic(day) => day.level(t_s),
            Schedule::Walk(walk) => walk.level(t_s),
            Schedule::Script(steps) => script_level(steps, t_s),
        }
    }

    /// The highest level that the schedule can reach: it says how many threads are needed.
    pub fn level_max(&self) -> f64 {
        match self {
            Schedule::Constant(level) => *level,
            Schedule::Periodic(day) => day.base.max(day.peak),
            Schedule::Walk(walk) => walk.high,
            Schedule::Script(steps) => steps.iter().map(|step| step.level).fold(0.0, f64::max),
        }
    }

    fn checked(self) -> Result<Self, ScheduleError> {
        let error = |what: String| Err(ScheduleError(what));
        let levels_and_times = match &self {
            Schedule::Constant(level) => (vec![*level], vec![]),
            Schedule::Periodic(day) => {
                if 2.0 * day.shoulder_s > day.width_s || day.width_s > day.period_s {
                    return error("the peak needs 2 * shoulder_s <= width_s <= period_s".into());
                }
                if day.shoulder_s < 0.0 || day.phase_s < 0.0 {
                    return error("shoulder_s and phase_s are not negative".into());
                }
                (vec![day.base, day.peak], vec![day.period_s, day.width_s])
            }
            Schedule::Walk(walk) => {
                if walk.low > walk.high {
                    return error(format!("low={} is above high={}", walk.low, walk.high));
                }
                (vec![walk.low, walk.high, walk.step], vec![walk.step_s])
            }
            Schedule::Script(steps) if steps.is_empty() || steps.len() > SCRIPT_STEPS_MAX => {
                return error(format!("a script has 1 to {SCRIPT_STEPS_MAX} steps, not {}", steps.len()));
            }
            Schedule::Script(steps) => {
                (steps.iter().map(|step| step.level).collect(), steps.iter().map(|step| step.duration_s).collect())
            }
        };
        if let Some(level) = levels_and_times.0.iter().find(|level| !(0.0..=LEVEL_MAX).contains(*level)) {
            return error(format!("level {level} is outside 0..={LEVEL_MAX} cores"));
        }
        if let Some(time_s) = levels_and_times.1.iter().find(|time_s| !(time_s.is_finite() && **time_s > 0.0)) {
            return error(format!("{time_s} is not a time above zero"));
        }
        Ok(self)
    }
}

impl Periodic {
    fn level(&self, t_s: f64) -> f64 {
        let into_s = (t_s - self.phase_s).rem_euclid(self.period_s);
        let until_end_s = self.width_s - into_s;
        if until_end_s <= 0.0 {
            return self.base;
        }
        let from_edge_s = into_s.min(until_end_s);
        let share = if from_edge_s >= self.shoulder_s {
            1.0
        } else {
            0.5 - 0.5 * (std::f64::consts::PI * from_edge_s / self.shoulder_s).cos()
        };
        self.base + (self.peak - self.base) * share
    }
}

impl Walk {
    // Replayed from the start at each call: a run of an hour has 720 steps of 5 s, and purity is worth more here.
    fn level(&self, t_s: f64) -> f64 {
        let mut random = SplitMix64::new(self.seed);
        let mut level = (self.low + self.high) / 2.0;
        for _ in 0..(t_s / self.step_s) as u64 {
            level += self.step * (2.0 * random.unit() - 1.0);
            if level > self.high {
                level = 2.0 * self.high - level;
            } else if level < self.low {
                level = 2.0 * self.low - level;
            }
            level = level.clamp(self.low, self.high);
        }
        level
    }
}

fn script_level(steps: &[Step], t_s: f64) -> f64 {
    let mut end_s = 0.0;
    for step in steps {
        end_s += step.duration_s;
        if t_s < end_s {
            return step.level;
        }
    }
    steps.last().map_or(0.0, |step| step.level)
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Schedule::Constant(level) => write!(f, "constant:{level}"),
            Schedule::Periodic(Periodic { period_s, phase_s, base, peak, width_s, shoulder_s }) => write!(
                f,
                "periodic:period_s={period_s},phase_s={phase_s},base={base},peak={peak},width_s={width_s},shoulder_s={shoulder_s}"
            ),
            Schedule::Walk(Walk { seed, step_s, step, low, high }) => {
                write!(f, "walk:seed={seed},step_s={step_s},step={step},low={low},high={high}")
            }
            Schedule::Script(steps) => {
                f.write_str("script:")?;
                for (index, Step { duration_s, level }) in steps.iter().enumerate() {
                    write!(f, "{}{duration_s}@{level}", if index == 0 { "" } else { "," })?;
                }
                Ok(())
            }
        }
    }
}

impl FromStr for Schedule {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let (kind, rest) = text.split_once(':').ok_or_else(|| ScheduleError(format!("{text:?} names no kind")))?;
        let schedule = match kind {
            "constant" => Schedule::Constant(number(rest)?),
            "script" => Schedule::Script(rest.split(',').map(step).collect::<Result<_, _>>()?),
            "periodic" => {
                let mut fields = Fields::parse(rest)?;
                let day = Periodic {
                    period_s: number(fields.take("period_s")?)?,
                    phase_s: number(fields.take("phase_s")?)?,
                    base: number(fields.take("base")?)?,
                    peak: number(fields.take("peak")?)?,
                    width_s: number(fields.take("width_s")?)?,
                    shoulder_s: number(fields.take("shoulder_s")?)?,
                };
                fields.end()?;
                Schedule::Periodic(day)
            }
            "walk" => {
                let mut fields = Fields::parse(rest)?;
                let seed = fields.take("seed")?;
                let walk = Walk {
                    seed: seed.parse().map_err(|_| ScheduleError(format!("seed={seed} is not a whole number")))?,
                    step_s: number(fields.take("step_s")?)?,
                    step: number(fields.take("step")?)?,
                    low: number(fields.take("low")?)?,
                    high: number(fields.take("high")?)?,
                };
                fields.end()?;
                Schedule::Walk(walk)
            }
            _ => return Err(ScheduleError(format!("{kind:?} is no kind (constant, periodic, walk, script)"))),
        };
        schedule.checked()
    }
}

fn number(text: &str) -> Result<f64, ScheduleError> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        _ => Err(ScheduleError(format!("{text:?} is not a number"))),
    }
}

fn step(text: &str) -> Result<Step, ScheduleError> {
    let (duration_s, level) =
        text.split_once('@').ok_or_else(|| ScheduleError(format!("step {text:?} is not SECONDS@LEVEL")))?;
    Ok(Step { duration_s: number(duration_s)?, level: number(level)? })
}

struct Fields<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Fields<'a> {
    fn parse(text: &'a str) -> Result<Self, ScheduleError> {
        let mut fields = BTreeMap::new();
        for field in text.split(',') {
            let (key, value) =
                field.split_once('=').ok_or_else(|| ScheduleError(format!("{field:?} is not KEY=VALUE")))?;
            if fields.insert(key, value).is_some() {
                return Err(ScheduleError(format!("{key} is given twice")));
            }
        }
        Ok(Fields(fields))
    }

    fn take(&mut self, key: &str) -> Result<&'a str, ScheduleError> {
        self.0.remove(key).ok_or_else(|| ScheduleError(format!("{key} is missing")))
    }

    fn end(self) -> Result<(), ScheduleError> {
        match self.0.keys().next() {
            Some(key) => Err(ScheduleError(format!("{key} is not a field of this kind"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
