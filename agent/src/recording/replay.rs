//! A recording -> the windows that the agent told.

use super::file::{FileError, Frames, Torn};
use crate::sample::{HostReport, HostSeries, LiveLoads, SampleMetrics, Start, Tick};

/// The windows of a recording, made anew. Ends at the recording's end, or at what is wrong with it.
pub struct Replay {
    frames: Frames,
    series: HostSeries,
    failed: bool,
}

impl Replay {
    /// Of a recording's bytes.
    ///
    /// # Errors
    /// If they are no recording of this format, or nothing was recorded.
    pub fn new(bytes: Vec<u8>) -> Result<Self, FileError> {
        let mut frames = Frames::new(bytes)?;
        let start: Option<Start> = frames.next()?;
        let start = start.ok_or(FileError::Empty(frames.offset()))?;
        let series = HostSeries::new(&start, LiveLoads::default(), SampleMetrics::default());
        Ok(Self { frames, series, failed: false })
    }

    /// What was left unread of the last frame, once all windows were told.
    pub fn torn(&self) -> Option<Torn> {
        self.frames.torn()
    }
}

impl Iterator for Replay {
    type Item = Result<HostReport, FileError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.failed {
            match self.frames.next::<Tick>() {
                Ok(Some(tick)) => {
                    if let Some(report) = self.series.apply(tick) {
                        return Some(Ok(report));
                    }
                }
                Ok(None) => return None,
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}
