//! A working set of a known size.

use std::hint::black_box;
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

const CHUNK_BYTES: usize = 1 << 20;
const PAGE_BYTES: usize = 4096;
/// How often all of it is touched again.
const ROUND: Duration = Duration::from_secs(1);

/// Steps of a duration in seconds and a size in MiB; the last size stays.
#[derive(Debug, Clone)]
pub(crate) struct Sizes(Vec<(f64, usize)>);

impl FromStr for Sizes {
    type Err = String;

    /// `20@0,30@64`: nothing for 20 seconds, then 64 MiB.
    fn from_str(text: &str) -> Result<Self, String> {
        let step = |step: &str| {
            let (duration_s, mib) = step.split_once('@')?;
            Some((duration_s.parse().ok()?, mib.parse().ok()?))
        };
        let steps: Option<Vec<_>> = text.split(',').map(step).collect();
        steps.map(Sizes).ok_or_else(|| format!("{text:?} is not SECONDS@MIB,..."))
    }
}

impl Sizes {
    fn at(&self, t_s: f64) -> usize {
        let mut end_s = 0.0;
        for &(duration_s, mib) in &self.0 {
            end_s += duration_s;
            if t_s < end_s {
                return mib;
            }
        }
        self.0.last().map_or(0, |&(_, mib)| mib)
    }
}

/// Holds and touches what the steps say, for ever. What is freed goes back to the kernel: chunks of this size are mapped each by itself, or trimmed off the
/// end of the heap.
pub(crate) fn hold(sizes: &Sizes, start: Instant) {
    let mut chunks: Vec<Vec<u8>> = Vec::new();
    loop {
        chunks.resize_with(sizes.at(start.elapsed().as_secs_f64()), || vec![1; CHUNK_BYTES]);
        for page in chunks.iter_mut().flat_map(|chunk| chunk.chunks_mut(PAGE_BYTES)) {
            page[0] = black_box(page[0].wrapping_add(1));
        }
        thread::sleep(ROUND);
    }
}
