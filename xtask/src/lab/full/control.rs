//! The way into a full lab's host: scripts over a virtio port, one at a time.
//!
//! The other end is the loop at the end of host.sh. Answers carry the id of their request, so that one which came too late
//! for its own caller is not taken for the next one's.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// What an emulated machine may need on top of a script's own patience, to take the request and to give the answer.
const TRANSPORT_PATIENCE: Duration = Duration::from_secs(30);
/// How long a read waits before the clock is looked at.
const READ_TIMEOUT: Duration = Duration::from_millis(200);
/// No script of the lab says more; a host that does has gone wild.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// What `timeout` returns when it had to end the script.
const STATUS_TIMED_OUT: i32 = 124;

/// A connection to the port. Dropping it leaves the host as it is.
#[derive(Debug)]
pub(super) struct Control {
    stream: UnixStream,
    received: Vec<u8>,
}

/// What became of a script.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    id: u32,
    status: i32,
    out: String,
    err: String,
}

impl Control {
    pub(super) fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
        stream.set_read_timeout(Some(READ_TIMEOUT))?;
        Ok(Control { stream, received: Vec::new() })
    }

    /// Runs a bash script (with -eu) on the host and returns what it wrote; a failure carries what it said.
    pub(super) fn run(&mut self, script: &str, patience: Duration) -> Result<String> {
        let id: u32 = rand::random();
        let request = format!("run {id} {} {}\n{script}", patience.as_secs().max(1), script.len());
        self.stream.write_all(request.as_bytes()).context("the host does not take requests: QEMU has ended")?;
        let deadline = Instant::now() + patience + TRANSPORT_PATIENCE;
        loop {
            while let Some(answer) = take_answer(&mut self.received)? {
                if answer.id == id {
                    return answer.judge(patience);
                }
            }
            ensure!(Instant::now() < deadline, "no answer within {} s", (patience + TRANSPORT_PATIENCE).as_secs());
            let mut chunk = [0; 16 << 10];
            match self.stream.read(&mut chunk) {
                Ok(0) => bail!("QEMU has ended"),
                Ok(count) => self.received.extend_from_slice(&chunk[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error).context("reading the host's answer"),
            }
        }
    }
}

impl Answer {
    fn judge(self, patience: Duration) -> Result<String> {
        match self.status {
            0 => Ok(self.out),
            STATUS_TIMED_OUT => bail!("not done within {} s: {}", patience.as_secs(), self.err.trim()),
            status => bail!("exit code {status}: {}", self.err.trim()),
        }
    }
}

/// Takes the first whole answer, if there is one.
fn take_answer(received: &mut Vec<u8>) -> Result<Option<Answer>> {
    let Some(end) = received.iter().position(|&byte| byte == b'\n') else { return Ok(None) };
    let header = String::from_utf8_lossy(&received[..end]).into_owned();
    let mut words = header.split(' ');
    ensure!(words.next() == Some("done"), "not an answer: {header:?}");
    let mut number = || words.next().and_then(|word| word.parse::<u32>().ok()).context("not an answer");
    let (id, status, out, err) = (number()?, number()?, number()? as usize, number()? as usize);
    ensure!(out.saturating_add(err) <= ANSWER_BYTES_MAX, "an answer of {} bytes", out.saturating_add(err));
    let (out_end, err_end) = (end + 1 + out, end + 1 + out + err);
    if received.len() < err_end {
        return Ok(None);
    }
    let text = |from: usize, to: usize| String::from_utf8_lossy(&received[from..to]).into_owned();
    let answer = Answer {
        id,
        status: i32::try_from(status).unwrap_or(i32::MAX),
        out: text(end + 1, out_end),
        err: text(out_end, err_end),
    };
    received.drain(..err_end);
    Ok(Some(answer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn an_answer_is_taken_once_it_is_whole() {
        let whole = b"done 7 1 3 4\nabcerr\ndone 8 0 0 0\n";
        for end in 0..whole.len() - 14 {
            assert_eq!(take_answer(&mut whole[..end].to_vec()).unwrap(), None, "{end}");
        }
        let mut received = whole.to_vec();
        let first = take_answer(&mut received).unwrap();
        assert_eq!(first, Some(Answer { id: 7, status: 1, out: "abc".into(), err: "err\n".into() }));
        assert_eq!(take_answer(&mut received).unwrap().map(|answer| answer.id), Some(8));
        assert!(received.is_empty());
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for text in ["nonsense\n", "done 1 x 0 0\n", "done 1 0 4294967295 1\n"] {
            assert!(take_answer(&mut text.as_bytes().to_vec()).is_err(), "{text}");
        }
    }

    #[test]
    fn an_answer_that_came_too_late_is_not_taken_for_the_next_one() {
        let (own, mut other) = UnixStream::pair().unwrap();
        own.set_read_timeout(Some(READ_TIMEOUT)).unwrap();
        let mut control = Control { stream: own, received: b"done 0 0 4 0\nlate".to_vec() };
        let host = thread::spawn(move || {
            let mut request = vec![0; 100];
            let count = other.read(&mut request).unwrap();
            let request = String::from_utf8_lossy(&request[..count]).into_owned();
            let id = request.split(' ').nth(1).unwrap().to_owned();
            other.write_all(format!("done {id} 0 3 0\nnow").as_bytes()).unwrap();
            request
        });
        assert_eq!(control.run("echo now", Duration::from_secs(5)).unwrap(), "now");
        assert!(host.join().unwrap().ends_with(" 5 8\necho now"));
    }

    #[test]
    fn a_host_that_ends_is_noticed_at_once() {
        let (own, other) = UnixStream::pair().unwrap();
        drop(other);
        let mut control = Control { stream: own, received: Vec::new() };
        let error = format!("{:#}", control.run("true", Duration::from_secs(60)).unwrap_err());
        assert!(error.contains("QEMU has ended"), "{error}");
    }
}
