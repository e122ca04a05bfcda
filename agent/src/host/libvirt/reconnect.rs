//! A connection that is opened when needed and again after it broke, with growing pauses in between.

use super::{Hypervisor, HypervisorError};
use std::time::{Duration, Instant};

/// Pause after a first failure: a restart of libvirtd takes about this long.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Longest pause: an operator who starts libvirtd again should not wait longer for the agent to notice.
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// How long to leave something alone that failed: doubling pauses, with a bound. Pure: the caller brings the clock.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    pause: Duration,
    until: Option<Instant>,
}

impl Backoff {
    /// How long from `now` until the next attempt; zero when it is time.
    pub fn remaining(&self, now: Instant) -> Duration {
        self.until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }

    /// An attempt failed at `now`.
    pub fn failed(&mut self, now: Instant) {
        self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        self.until = Some(now + self.pause);
    }

    /// An attempt succeeded.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }
}

/// A [`Hypervisor`] that reconnects. Belongs to one thread, like the connection itself.
pub struct Reconnecting {
    uri: String,
    connection: Option<Hypervisor>,
    backoff: Backoff,
    opened: u64,
}

impl Reconnecting {
    /// Does not connect yet.
    pub fn new(uri: impl Into<String>) -> Self {
        Self { uri: uri.into(), connection: None, backoff: Backoff::default(), opened: 0 }
    }

    /// A live connection: the present one, or else a new one, on which `setup` is called first. Blocks while it connects; while it
    /// backs off after a failure it returns [`HypervisorError::BackingOff`] at once.
    pub fn get_with(
        &mut self,
        setup: impl FnOnce(&mut Hypervisor) -> Result<(), HypervisorError>,
    ) -> Result<&Hypervisor, HypervisorError> {
        self.connection = self.connection.take().filter(Hypervisor::is_alive);
        if self.connection.is_none() {
            let wait = self.backoff.remaining(Instant::now());
            if !wait.is_zero() {
                let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                return Err(HypervisorError::BackingOff { uri: self.uri.clone(), wait_ms });
            }
            let opened = Hypervisor::open(&self.uri).and_then(|mut hypervisor| {
                setup(&mut hypervisor)?;
                Ok(hypervisor)
            });
            match opened {
                Ok(hypervisor) => {
                    self.backoff.succeeded();
                    self.opened += 1;
                    self.connection = Some(hypervisor);
                }
                Err(error) => {
                    self.backoff.failed(Instant::now());
                    return Err(error);
                }
            }
        }
        self.connection.as_ref().ok_or_else(|| HypervisorError::BackingOff { uri: self.uri.clone(), wait_ms: 0 })
    }

    /// [`Self::get_with`] without set-up.
    pub fn get(&mut self) -> Result<&Hypervisor, HypervisorError> {
        self.get_with(|_| Ok(()))
    }

    /// How long until a new connection may be tried; zero while connected.
    pub fn pause(&self) -> Duration {
        if self.connection.is_some() { Duration::ZERO } else { self.backoff.remaining(Instant::now()) }
    }

    /// How often a connection was opened.
    pub fn opened(&self) -> u64 {
        self.opened
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_success_forgets_them() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        assert_eq!(backoff.remaining(now), Duration::ZERO);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            backoff.failed(now);
            pauses.push(backoff.remaining(now).as_millis());
        }
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 15000, 15000, 15000]);
        assert_eq!(backoff.remaining(now + Duration::from_secs(16)), Duration::ZERO);
        backoff.succeeded();
        assert_eq!(backoff.remaining(now), Duration::ZERO);
    }

    #[test]
    fn a_dead_end_is_tried_once_and_then_left_alone_for_a_while() {
        let mut link = Reconnecting::new("qemu:///system?socket=/nonexistent/gnomon.sock");
        assert!(matches!(link.get(), Err(HypervisorError::Connect { .. })));
        assert!(matches!(link.get(), Err(HypervisorError::BackingOff { wait_ms: 1.., .. })));
        assert!(link.pause() > Duration::ZERO);
        assert_eq!(link.opened(), 0);
    }

    #[test]
    fn a_connection_is_opened_once_and_used_again() {
        let mut link = Reconnecting::new("test:///default");
        assert!(link.get().unwrap().is_alive());
        assert!(link.get().unwrap().is_alive());
        assert_eq!((link.opened(), link.pause()), (1, Duration::ZERO));
    }

    #[test]
    fn a_connection_whose_set_up_fails_is_not_kept() {
        let mut link = Reconnecting::new("test:///default");
        assert!(link.get_with(|_| Err(HypervisorError::EventLoop("no".into()))).is_err());
        assert!(matches!(link.get(), Err(HypervisorError::BackingOff { .. })));
    }
}
