use super::*;
use gnomon_pacer::protocol::{LINE_BYTES_MAX, Profile};
use proptest::prelude::*;
use std::os::unix::net::UnixListener;
use tempfile::TempDir;

/// QEMU and the guest behind it.
struct Guest {
    dir: TempDir,
    listener: UnixListener,
}

impl Guest {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("port")).unwrap();
        Guest { dir, listener }
    }

    fn link(&self) -> PacerLink {
        PacerLink::new(&self.dir.path().join("port"))
    }

    fn accept(&self) -> UnixStream {
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    }
}

/// What the pacer's own code understands of what has come.
fn profiles(stream: &mut UnixStream) -> Vec<Profile> {
    let (mut lines, mut profiles, mut bytes) = (Lines::default(), Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = stream.read(&mut bytes) {
        profiles.extend(lines.push(&bytes[..count]).into_iter().map(|line| Profile::parse(&line.unwrap()).unwrap()));
    }
    profiles
}

fn say(stream: &mut UnixStream, left_ms: u64, cores: f64) {
    let load = protocol::Load { cpu_cores: cores, memory_bytes: (cores * 1e6) as u64, ..protocol::Load::default() };
    let status = Status { refused: 0, left_ms, wanted: protocol::Load::default(), made: load };
    stream.write_all(format!("{}\n", Said::Status(status)).as_bytes()).unwrap();
}

fn order(valid_ms: u64) -> wire::Profile {
    let step = |after_ms, cpu_cores| wire::ProfileStep {
        after_ms,
        load: wire::Load { cpu_cores, ..wire::Load::default() },
        network_burst: 0.0,
    };
    wire::Profile { valid_ms, steps: vec![step(0, 0.25), step(10_000, 0.5)] }
}

const NONE: [u64; 0] = [];
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_profile_goes_to_a_guest_once_it_speaks_and_what_is_over_of_it_does_not() {
    let (guest, begin) = (Guest::new(), Instant::now());
    let mut link = guest.link();
    link.pace(&order(60_000), begin).unwrap();
    link.turn(begin).unwrap();
    let mut stream = guest.accept();
    assert_eq!(profiles(&mut stream), []);
    say(&mut stream, 0, 0.0);
    link.turn(begin + 12 * SECOND).unwrap();
    let got = profiles(&mut stream);
    assert_eq!(got.len(), 1);
    assert_eq!((got[0].valid_ms, got[0].steps.len(), got[0].steps[0].load.cpu_cores), (48_000, 1, 0.5));
    link.turn(begin + 13 * SECOND).unwrap();
    assert_eq!(profiles(&mut stream), [], "once is enough");
}

#[test]
fn a_guest_that_began_anew_gets_what_is_left_and_one_whose_profile_ended_gets_nothing() {
    let (guest, begin) = (Guest::new(), Instant::now());
    let mut link = guest.link();
    link.pace(&order(30_000), begin).unwrap();
    link.turn(begin).unwrap();
    let mut stream = guest.accept();
    let mut after = |seconds: u32, left_ms| {
        say(&mut stream, left_ms, 0.0);
        link.turn(begin + seconds * SECOND).unwrap();
        profiles(&mut stream).iter().map(|profile| profile.valid_ms).collect::<Vec<_>>()
    };
    assert_eq!(after(1, 0), [29_000]);
    assert_eq!(after(2, 0), NONE, "it may not have read it yet");
    assert_eq!(after(3, 27_000), NONE);
    assert_eq!(after(20, 0), [10_000]);
    assert_eq!(after(31, 0), NONE);
}

#[test]
fn a_connection_that_broke_is_made_again_and_the_last_window_grows_old() {
    let (guest, begin) = (Guest::new(), Instant::now());
    let mut link = guest.link();
    link.turn(begin).unwrap();
    assert_eq!(link.latest(begin), None);
    let mut stream = guest.accept();
    say(&mut stream, 0, 0.5);
    link.turn(begin).unwrap();
    drop(stream);
    assert!(matches!(link.turn(begin + SECOND), Err(LinkError::Broken(_))));
    link.pace(&order(60_000), begin + SECOND).unwrap();
    link.turn(begin + 2 * SECOND).unwrap();
    let mut stream = guest.accept();
    assert_eq!(link.latest(begin + 2 * SECOND).unwrap().age, 2 * SECOND);
    say(&mut stream, 5_000, 0.5);
    link.turn(begin + 3 * SECOND).unwrap();
    assert_eq!(profiles(&mut stream).len(), 1, "what it has may be an older one");
    let none = PacerLink::new(Path::new("/nowhere/port")).turn(begin);
    assert!(matches!(none, Err(LinkError::Connect { .. })));
}

#[test]
fn a_hypervisor_that_does_not_accept_holds_up_nobody() {
    let (guest, begin) = (Guest::new(), Instant::now());
    // Many more than the socket lets wait.
    let turns: Vec<_> = (0..5000).map(|_| guest.link()).map(|mut link| (link.turn(begin).is_ok(), link)).collect();
    assert!(turns.iter().any(|(connected, _)| *connected) && begin.elapsed() < 10 * SECOND);
}

#[test]
fn a_window_is_the_mean_of_the_last_seconds() {
    let (guest, begin) = (Guest::new(), Instant::now());
    let mut link = guest.link();
    link.turn(begin).unwrap();
    let mut stream = guest.accept();
    for second in 0..30 {
        say(&mut stream, 1, f64::from(second));
    }
    link.turn(begin).unwrap();
    let made = link.latest(begin).unwrap().window.made;
    assert_eq!((made.cpu_cores, made.memory_bytes), (24.5, 24_500_000));
}

#[test]
fn what_a_pacer_would_refuse_is_refused_here_and_the_profile_before_stands() {
    let (guest, begin) = (Guest::new(), Instant::now());
    let mut link = guest.link();
    link.pace(&order(60_000), begin).unwrap();
    let mut wrong = order(1_000);
    wrong.steps.reverse();
    assert_eq!(link.pace(&wrong, begin), Err(LineError::Steps));
    wrong.steps = vec![wire::ProfileStep { network_burst: f64::NAN, ..wire::ProfileStep::default() }];
    assert!(matches!(link.pace(&wrong, begin), Err(LineError::Field(_))));
    link.turn(begin).unwrap();
    let mut stream = guest.accept();
    say(&mut stream, 0, 0.0);
    link.turn(begin).unwrap();
    assert_eq!(profiles(&mut stream)[0].valid_ms, 60_000);
}

#[test]
fn a_guest_that_floods_is_read_so_much_a_turn() {
    let (guest, begin) = (Guest::new(), Instant::now());
    let mut link = guest.link();
    link.turn(begin).unwrap();
    let mut stream = guest.accept();
    let mut written = 0;
    while let Ok(count) = stream.write(&b"x\n".repeat(4096)) {
        written += count;
    }
    assert!(written > READ_BYTES * READS_MAX, "the socket holds more than a turn reads");
    link.turn(begin).unwrap();
    assert!((1..=(READ_BYTES * READS_MAX / 2) as u64).contains(&link.counts().garbage), "{:?}", link.counts());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_of_a_guest_do_harm(parts in proptest::collection::vec(
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            Just(b"\n".to_vec()),
            Just(vec![b'9'; LINE_BYTES_MAX / 4]),
            "gnomon-pacer/1 (status|error) (refused|left_ms|made\\.cpu_cores|why)=[0-9.eE+-]{0,400}\n".prop_map(String::into_bytes),
        ], 0..12,
    )) {
        let (guest, begin) = (Guest::new(), Instant::now());
        let mut link = guest.link();
        link.pace(&order(60_000), begin).unwrap();
        link.turn(begin).unwrap();
        let mut stream = guest.accept();
        for bytes in parts {
            stream.write_all(&bytes).unwrap();
            link.turn(begin).unwrap();
        }
        if let Some(Latest { window, .. }) = link.latest(begin) {
            prop_assert!((0.0..=protocol::CORES_MAX).contains(&window.made.cpu_cores));
        }
        prop_assert!(link.heard.len() <= WINDOW_SECONDS);
    }
}
