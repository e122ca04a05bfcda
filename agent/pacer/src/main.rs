//! gnomon-pacer: see the library beside it, or `gnomon-pacer --help`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use gnomon_pacer::port::{self, Port};
use gnomon_pacer::{FRAME_BYTES, FRAME_BYTES_MIN, Scratch, Uplink, pace};

const HELP: &str = "\
Makes a load inside a guest that is a shadow: as much CPU time, memory, disk and network traffic as its host asks for.

Usage: gnomon-pacer [OPTIONS]

The host's gnomon-agent writes profiles to the virtio-serial port org.gnomon.pacer.0, one line each, and reads from it once a
second what was wanted and what was made. Without a profile, or once one has ended, it does nothing and costs next to nothing.

Options:
  --port PATH         The port [default: /dev/virtio-ports/org.gnomon.pacer.0, or found in /sys/class/virtio-ports]
  --scratch PATH      Where disk traffic goes [default: /var/lib/gnomon-pacer]: a directory, in which it has a file of
                      64 MiB without a name; or a disk such as /dev/vdb, which must be empty and not in use, of which
                      the first 64 MiB are overwritten
  --interface NAME    Where network traffic goes [default: the first one that is a device]. Frames are addressed to the
                      interface itself, so that a switch drops them where they come from
  --frame-bytes N     Size of a frame, 60 to 1514 [default: 1514]
  --help              This text
  --version           The version

What the guest does not have is told at the start and made as 0; it is no error. An interface that comes later is found once
traffic is wanted. Everything it holds ends with it, however it ends: memory is unmapped, and the scratch file never had a
name. By hand, with the port's UNIX socket on the host:

  echo 'gnomon-pacer/1 profile valid_ms=60000 after_ms=0 cpu_cores=0.5 memory_bytes=67108864' | socat - UNIX-CONNECT:SOCKET
";

/// What the command line says.
#[derive(Debug, PartialEq)]
struct Arguments {
    port: Option<PathBuf>,
    scratch: PathBuf,
    interface: Option<String>,
    frame_bytes: u16,
}

impl Arguments {
    /// `Ok(None)` where the text alone was asked for, which `say` is then given.
    fn parse(words: impl IntoIterator<Item = String>, say: &mut impl FnMut(&str)) -> Result<Option<Self>, String> {
        let (port, interface) = (None, None);
        let mut arguments =
            Arguments { port, scratch: "/var/lib/gnomon-pacer".into(), interface, frame_bytes: FRAME_BYTES };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} takes a value"));
            match word.as_str() {
                "--help" | "-h" => {
                    say(HELP);
                    return Ok(None);
                }
                "--version" | "-V" => {
                    say(concat!("gnomon-pacer ", env!("CARGO_PKG_VERSION"), "\n"));
                    return Ok(None);
                }
                "--port" => arguments.port = Some(value()?.into()),
                "--scratch" => arguments.scratch = value()?.into(),
                "--interface" => arguments.interface = Some(value()?),
                "--frame-bytes" => {
                    let range = FRAME_BYTES_MIN..=FRAME_BYTES;
                    let bytes = value()?.parse().ok().filter(|bytes| range.contains(bytes));
                    arguments.frame_bytes = bytes.ok_or("--frame-bytes is from 60 to 1514")?;
                }
                _ => return Err(format!("{word:?} is no option")),
            }
        }
        Ok(Some(arguments))
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gnomon-pacer: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let parsed = Arguments::parse(std::env::args().skip(1), &mut |text| print!("{text}"));
    let Some(arguments) = parsed.map_err(|error| format!("{error}; gnomon-pacer --help"))? else { return Ok(()) };
    let path =
        arguments.port.or_else(port::find).ok_or("this guest has no port org.gnomon.pacer.0: it is no shadow")?;
    let port = open(&path)?;
    let scratch = Scratch::open(&arguments.scratch);
    let scratch = scratch.inspect_err(|error| eprintln!("gnomon-pacer: no disk traffic: {error}")).ok();
    let mut uplink = Uplink::new(arguments.interface, arguments.frame_bytes);
    if let Err(error) = uplink.open() {
        eprintln!("gnomon-pacer: no network traffic yet: {error}");
    }
    pace::follow(port, scratch, uplink).map_err(|error| format!("{}: {error}", path.display()))
}

fn open(path: &Path) -> Result<Port, String> {
    Port::open(path).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Option<Arguments>, String> {
        Arguments::parse(words.split_whitespace().map(str::to_owned), &mut |text| assert!(!text.is_empty()))
    }

    #[test]
    fn options_are_read_and_others_refused() {
        let all = parse("--port /p --scratch /dev/vdb --interface eth1 --frame-bytes 60").unwrap().unwrap();
        assert_eq!((all.port, all.frame_bytes), (Some("/p".into()), 60));
        assert_eq!((all.scratch, all.interface), ("/dev/vdb".into(), Some("eth1".to_owned())));
        assert_eq!(parse("--help"), Ok(None));
        for wrong in ["--prot /p", "--port", "--frame-bytes 59", "--frame-bytes 1515", "x"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
