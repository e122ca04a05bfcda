//! A provider that is a program: the document on its standard input, the key in its environment, its exit status the answer.

use super::{ANSWER_BYTES_MAX, Provider, document, first_line};
use gnomon_core::{CapacityAnswer, CapacityRequest};
use rustix::process::{Pid, Signal, kill_process_group};
use std::io::{self, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

/// The environment variable with the request's key.
const KEY_VARIABLE: &str = "GNOMON_IDEMPOTENCY_KEY";
/// The exit status that refuses for good. Every other one but 0 is tried again: a script with a mistake in it ends with 1, 2, 126 or 127.
const REFUSED_STATUS: i32 = 3;
/// How often it is looked whether the program has ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// What a program has written arrives within this of its end, unless somebody else holds its output open.
const OUTPUT_GRACE: Duration = Duration::from_secs(1);

pub(super) struct Command {
    arguments: Vec<String>,
    timeout: Duration,
}

impl Command {
    pub(super) fn new(arguments: Vec<String>, timeout: Duration) -> Self {
        Self { arguments, timeout }
    }

    /// Runs the program; its status, and what it wrote to standard output and error.
    fn run(&self, request: &CapacityRequest) -> io::Result<(ExitStatus, String, String)> {
        let [program, arguments @ ..] = &self.arguments[..] else { return Err(io::ErrorKind::InvalidInput.into()) };
        let mut child = std::process::Command::new(program)
            .args(arguments)
            .env(KEY_VARIABLE, request.key.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Of its own, so that a program that takes too long ends with all that it has started.
            .process_group(0)
            .spawn()?;
        let output = child.stdout.take().map(read_on);
        let error = child.stderr.take().map(read_on);
        if let Some(mut input) = child.stdin.take() {
            // Smaller than a pipe; a program need not read it.
            let _ = input.write_all(document(request).as_bytes());
        }
        let status = self.wait(&mut child)?;
        let written = |pipe: Option<Receiver<String>>| {
            pipe.and_then(|pipe| pipe.recv_timeout(OUTPUT_GRACE).ok()).unwrap_or_default()
        };
        Ok((status, written(output), written(error)))
    }

    fn wait(&self, child: &mut Child) -> io::Result<ExitStatus> {
        let deadline = Instant::now() + self.timeout;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
                child.wait()?;
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("it took longer than {:?}", self.timeout)));
            }
            thread::sleep(LOOK_INTERVAL);
        }
    }
}

impl Provider for Command {
    fn ask(&self, request: &CapacityRequest) -> CapacityAnswer {
        let program = self.arguments.first().map_or("", String::as_str);
        match self.run(request) {
            Ok((status, output, _)) if status.success() => CapacityAnswer::Accepted(first_line(&output).to_owned()),
            Ok((status, output, error)) => {
                let said = [&error, &output].map(|text| first_line(text)).into_iter().find(|line| !line.is_empty());
                let said = format!("{program}: {status}{}", said.map_or_else(String::new, |line| format!(": {line}")));
                match status.code() {
                    Some(REFUSED_STATUS) => CapacityAnswer::Refused(said),
                    _ => CapacityAnswer::Unreachable(said),
                }
            }
            Err(error) => CapacityAnswer::Unreachable(format!("{program}: {error}")),
        }
    }
}

/// Reads a pipe to its end, on a thread of its own: a program that writes much must not wait for it. Keeps the beginning.
fn read_on(mut pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (done, text) = channel();
    thread::spawn(move || {
        let mut beginning = Vec::new();
        let _ = pipe.by_ref().take(ANSWER_BYTES_MAX).read_to_end(&mut beginning);
        // Nobody waits for it after a while.
        let _ = done.send(String::from_utf8_lossy(&beginning).into_owned());
        let _ = io::copy(&mut pipe, &mut io::sink());
    });
    text
}
