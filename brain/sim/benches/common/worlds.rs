//! Many worlds, on every CPU.

use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// Lives through the worlds of all seeds below `seeds` and returns what became of each, by seed. Tells after every `told_every`.
pub(crate) fn on_every_cpu<T: Send>(seeds: u64, told_every: u64, live: impl Fn(u64) -> T + Sync) -> Vec<(u64, T)> {
    let next = AtomicU64::new(0);
    let worker = || {
        let mut lived = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return lived;
            }
            lived.push((seed, live(seed)));
            if (seed + 1).is_multiple_of(told_every) {
                eprintln!("{} of {seeds} worlds", seed + 1);
            }
        }
    };
    let workers = thread::available_parallelism().map_or(1, NonZero::get);
    let mut lived: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_else(|_| panic!("a worker panicked"))).collect()
    });
    lived.sort_by_key(|(seed, _)| *seed);
    lived
}
