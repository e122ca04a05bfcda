//! Copies that are sent to a host that the test plays.

use super::*;
use crate::actuate::shadow::Task;
use crate::actuate::shadow::image::GiveUp;
use crate::config::ShadowConfig;
use crate::host::libvirt::storage::Pool;
use crate::host::libvirt::upload::PoolFile;
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Action, Command, CommandId, Fence, HostId, Imaging};
use std::collections::BTreeMap;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::panic::AssertUnwindSafe;
use uuid::Uuid;

const MIB: u64 = 1 << 20;
const SHADOW: VmId = VmId(Uuid::from_u128(9));
const SOON: Patience = Patience { quiet_max: Duration::from_millis(60), pause: Duration::from_millis(1) };

/// The other host.
struct World {
    /// Its files, and how much of each is written.
    files: BTreeMap<PathBuf, (Vec<u8>, u64)>,
    free_bytes: u64,
    has_pool: bool,
    /// Each part that came, and those that do not.
    parts: Vec<Range<u64>>,
    fails: Vec<NotSent>,
    /// How long a part takes, of which some comes all the while.
    trickle: Duration,
    /// After so many parts its host is as if it were off.
    dies_after: usize,
    /// What is said of the next file in place of making it.
    refuses: Option<NotMade>,
    removes: bool,
    /// The agent is killed while it makes its file with this number, which is made before that or is not.
    kills: Option<(usize, bool)>,
}

impl There for World {
    fn folder(&mut self, to: &Receiving) -> Result<Option<Folder>, String> {
        let file = |(path, (content, written)): (&PathBuf, &(Vec<u8>, u64))| PoolFile {
            name: path.file_name().unwrap().to_string_lossy().into_owned(),
            bytes: content.len() as u64,
            allocated_bytes: *written,
        };
        assert!(self.files.keys().all(|path| path.parent() == Some(Path::new(&to.directory))));
        let pool = Pool { name: "p".into(), capacity_bytes: 100 * MIB, available_bytes: self.free_bytes };
        Ok(self.has_pool.then(|| Folder { pool, files: self.files.iter().map(file).collect() }))
    }

    fn make(&mut self, _: &Receiving, file: &Path, bytes: u64) -> Result<(), NotMade> {
        if let Some(why) = self.refuses.take() {
            return Err(why);
        }
        assert!(!self.files.contains_key(file), "nothing is overwritten");
        let killed = self.kills.take_if(|(at, _)| *at == self.files.len());
        if killed.is_none_or(|(_, is_made)| is_made) {
            self.files.insert(file.to_owned(), (vec![0; bytes as usize], 0));
        }
        assert!(killed.is_none(), "the agent is killed");
        Ok(())
    }

    fn remove(&mut self, _: &Receiving, file: &Path) -> Result<(), String> {
        if !self.removes {
            return Err("no answer within 15 s".to_owned());
        }
        self.files.remove(file);
        Ok(())
    }

    fn send(
        &mut self,
        _: &Receiving,
        part: &Part,
        watch: &mut dyn FnMut(u64) -> Result<(), Snag>,
    ) -> Result<(), NotSent> {
        watch(0).map_err(NotSent::Over)?;
        if let Some(why) = self.fails.pop() {
            return Err(why);
        }
        if self.parts.len() >= self.dies_after {
            return Err(NotSent::Again("the line is cut".to_owned()));
        }
        let begun = Instant::now();
        for sent in 1..part.bytes.end - part.bytes.start {
            if begun.elapsed() >= self.trickle {
                break;
            }
            watch(sent).map_err(NotSent::Over)?;
            std::thread::sleep(Duration::from_millis(1));
        }
        let (content, written) = self.files.get_mut(&part.to).expect("it was made before");
        let range = part.bytes.start as usize..part.bytes.end as usize;
        std::fs::File::open(&part.from).unwrap().read_exact_at(&mut content[range], part.bytes.start).unwrap();
        *written = part.bytes.end;
        self.parts.push(part.bytes.clone());
        watch(part.bytes.end - part.bytes.start).map_err(NotSent::Over)
    }
}

struct Bench {
    _folder: tempfile::TempDir,
    copies: Copies,
    made: Vec<(String, DiskCopy)>,
    imaging: Imaging,
    give_up: GiveUp,
    waited: Duration,
}

fn to() -> Receiving {
    let uri = "qemu+tls://h2/system".to_owned();
    Receiving { uri, directory: "/srv/r".into(), owner: 0, group: 0, bytes_max: 5 * MIB }
}

/// Two copies that are whole, of 3 MiB and a little and of one byte.
fn bench() -> (Bench, World) {
    let folder = tempfile::tempdir().unwrap();
    let config = ShadowConfig { copies_directory: Some(folder.path().join("c")), ..ShadowConfig::default() };
    let copies = Copies::new(&config, &HostId::new("h1").unwrap()).unwrap();
    copies.begin(SHADOW, VmId(Uuid::from_u128(1)), &[]).unwrap();
    let copy = |device: &str, bytes: u64| {
        let file = copies.file(SHADOW, device);
        std::fs::write(&file, (0..bytes).map(|at| (at % 251) as u8).collect::<Vec<u8>>()).unwrap();
        let path = file.to_string_lossy().into_owned();
        (device.to_owned(), DiskCopy { path, bytes, sha256: "0a".repeat(32) })
    };
    let made = vec![copy("vda", 3 * MIB + 7), copy("vdb", 1)];
    let note = copies.note(SHADOW).unwrap().unwrap();
    copies.finish(SHADOW, note, made.clone()).unwrap();
    // A part is a MiB.
    let imaging = Imaging { shadow: SHADOW, bandwidth_bytes_per_s: Some(1), timeout_ms: 10_000, send_to: Some(to()) };
    let world = World {
        files: BTreeMap::new(),
        free_bytes: 50 * MIB,
        has_pool: true,
        parts: Vec::new(),
        trickle: Duration::ZERO,
        fails: Vec::new(),
        dies_after: usize::MAX,
        refuses: None,
        removes: true,
        kills: None,
    };
    (Bench { _folder: folder, copies, made, imaging, give_up: GiveUp::new(), waited: Duration::ZERO }, world)
}

impl Bench {
    fn send(&self, world: &mut World) -> Result<Vec<(String, DiskCopy)>, Snag> {
        let command = Command {
            id: CommandId { term: 1, number: 1 },
            vm: VmId(Uuid::from_u128(1)),
            action: Action::Image(self.imaging.clone()),
            fence: Fence::default(),
            time_to_live_ms: 1_000,
            reason: String::new(),
        };
        let (at, time_left, waited) = (Timestamp::from_unix_ms(0), Duration::ZERO, self.waited);
        let task = Task { command, at, time_left, waited };
        let order = Order { task: &task, imaging: &self.imaging, begun: Instant::now(), give_up: &self.give_up };
        send(world, &self.copies, &order, &to(), &self.made, &SOON, |sent, total| assert!(sent <= total))
    }

    /// Whether the files are here.
    fn is_here(&self) -> bool {
        self.made.iter().all(|(device, _)| self.copies.file(SHADOW, device).exists())
    }

    fn is_whole_in(&self, world: &World) -> bool {
        let is = |(device, copy): &(String, DiskCopy)| {
            let there = &world.files[Path::new(&to().file(SHADOW, device))].0;
            *there == (0..copy.bytes).map(|at| (at % 251) as u8).collect::<Vec<u8>>()
        };
        world.files.len() == self.made.len() && self.made.iter().all(is)
    }
}

fn busy(result: Result<Vec<(String, DiskCopy)>, Snag>) -> String {
    match result {
        Err(Snag::Busy(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn copies_are_there_part_by_part_and_not_here_any_more() {
    let (bench, mut world) = bench();
    let sent = bench.send(&mut world).unwrap();
    let paths: Vec<&str> = sent.iter().map(|(_, copy)| copy.path.as_str()).collect();
    assert_eq!(paths, [to().file(SHADOW, "vda"), to().file(SHADOW, "vdb")]);
    assert!(sent.iter().zip(&bench.made).all(|((_, there), (_, here))| there.sha256 == here.sha256));
    assert_eq!(world.parts, [0..MIB, MIB..2 * MIB, 2 * MIB..3 * MIB, 3 * MIB..3 * MIB + 7, 0..1]);
    assert!(bench.is_whole_in(&world) && !bench.copies.file(SHADOW, "vda").exists());
    assert!(bench.copies.is_sent(SHADOW).unwrap());
    // Again is as once, also where it was killed before the files were deleted here.
    std::fs::write(bench.copies.file(SHADOW, "vda"), "x").unwrap();
    assert_eq!((bench.send(&mut world).unwrap(), world.parts.len()), (sent, 5));
    assert!(!bench.copies.file(SHADOW, "vda").exists());
}

#[test]
fn a_slow_line_is_not_given_up_while_something_comes_over() {
    let (bench, mut world) = bench();
    world.trickle = SOON.quiet_max * 3;
    bench.send(&mut world).unwrap();
    assert!(bench.is_whole_in(&world) && !bench.is_here());
}

#[test]
fn what_was_killed_goes_on_with_the_part_that_was_not_written_down() {
    let (bench, mut world) = bench();
    bench.give_up.set("the agent is killed").unwrap();
    // As an earlier life has left it: two files, and two parts of the first.
    for (device, copy) in &bench.made {
        world.files.insert(to().file(SHADOW, device).into(), (vec![0; copy.bytes as usize], 0));
    }
    let first = world.files.get_mut(Path::new(&to().file(SHADOW, "vda"))).unwrap();
    std::fs::File::open(bench.copies.file(SHADOW, "vda")).unwrap().read_exact_at(&mut first.0[..2 << 20], 0).unwrap();
    bench
        .copies
        .note_sending(SHADOW, &Sending { to: to(), made: 2, begun: 2, bytes: 2 * MIB, is_whole: false })
        .unwrap();
    let bench = Bench { give_up: GiveUp::new(), ..bench };
    bench.send(&mut world).unwrap();
    assert_eq!(world.parts, [2 * MIB..3 * MIB, 3 * MIB..3 * MIB + 7, 0..1]);
    assert!(bench.is_whole_in(&world) && !bench.is_here());
}

#[test]
fn what_was_killed_between_making_a_file_and_noting_that_finds_it_and_goes_on_or_removes_it() {
    for (at, is_made, goes_on) in [0, 1].into_iter().flat_map(|at| {
        [(true, true), (true, false), (false, true), (false, false)].map(|(is_made, goes_on)| (at, is_made, goes_on))
    }) {
        let (bench, mut world) = bench();
        world.kills = Some((at, is_made));
        let killed = std::panic::catch_unwind(AssertUnwindSafe(|| bench.send(&mut world)));
        assert!(killed.is_err() && world.files.len() == at + usize::from(is_made));
        if goes_on {
            bench.send(&mut world).unwrap();
            assert!(bench.is_whole_in(&world) && !bench.is_here(), "{at} {is_made}");
        } else {
            bench.give_up.set("its shadow is retired").unwrap();
            assert_eq!(busy(bench.send(&mut world)), "given up: its shadow is retired");
            assert!(world.files.is_empty() && bench.is_here(), "{at} {is_made}");
        }
    }
    // One that was refused is nobody's that is known, also if it is killed right after that.
    let (bench, mut world) = bench();
    world.refuses = Some(NotMade::Refused("it exists".into()));
    busy(bench.send(&mut world));
    assert_eq!(bench.copies.sending(SHADOW).unwrap().map(|sending| (sending.made, sending.begun)), Some((0, 0)));
    // And one of another length is not what was asked for.
    let (bench, mut world) = self::bench();
    bench.copies.note_sending(SHADOW, &Sending { to: to(), made: 0, begun: 1, bytes: 0, is_whole: false }).unwrap();
    world.files.insert(to().file(SHADOW, "vda").into(), (vec![1], 1));
    world.refuses = Some(NotMade::Refused("it exists".into()));
    assert!(busy(bench.send(&mut world)).contains("was not made on the target: it exists"));
    assert_eq!(world.files.len(), 1);
}

#[test]
fn a_part_that_does_not_come_over_is_sent_again_but_not_for_ever() {
    let (bench, mut world) = bench();
    world.fails = vec![NotSent::Again("cut".into()), NotSent::Again("cut".into())];
    bench.send(&mut world).unwrap();
    assert!(bench.is_whole_in(&world));

    let (bench, mut world) = self::bench();
    world.dies_after = 2;
    let why = busy(bench.send(&mut world));
    assert!(why.contains("nothing has come over for 0 s: the line is cut"), "{why}");
    assert!(world.files.is_empty() && world.parts.len() == 2 && bench.is_here());
}

#[test]
fn whatever_ends_it_removes_what_was_made_there_and_says_what_is_left() {
    let (bench, mut world) = bench();
    bench.give_up.set("its shadow is retired").unwrap();
    assert_eq!(busy(bench.send(&mut world)), "given up: its shadow is retired");
    assert!(world.files.is_empty() && bench.is_here());

    let (bench, mut world) = self::bench();
    world.fails = vec![NotSent::Never("it is not there any more".into())];
    assert!(busy(bench.send(&mut world)).contains("not there any more"));
    assert!(world.files.is_empty() && world.parts.is_empty());

    let (bench, mut world) = self::bench();
    (world.fails, world.removes) = (vec![NotSent::Never("no".into())], false);
    let why = busy(bench.send(&mut world));
    assert!(
        why.ends_with(&format!(
            "left there until its agent deletes it: {}, {}",
            to().file(SHADOW, "vda"),
            to().file(SHADOW, "vdb")
        )),
        "{why}"
    );
    assert_eq!(world.files.len(), 2);

    let (mut bench, mut world) = self::bench();
    bench.waited = Duration::from_secs(11);
    assert!(busy(bench.send(&mut world)).contains("not done after 10 s"));
}

#[test]
fn only_what_is_known_to_have_been_made_is_removed() {
    for why in [NotMade::Refused("it exists".into()), NotMade::Unclear("no answer".into())] {
        let (bench, mut world) = bench();
        // What another one has, or what may be the very file that was asked for.
        let theirs = PathBuf::from(to().file(SHADOW, "vda"));
        world.refuses = Some(why);
        bench.copies.note_sending(SHADOW, &Sending { to: to(), made: 0, begun: 0, bytes: 0, is_whole: false }).unwrap();
        world.files.insert(theirs.clone(), (vec![1], 1));
        busy(bench.send(&mut world));
        assert_eq!(world.files.keys().collect::<Vec<_>>(), [&theirs]);
    }
    // What is there before anything was begun is told.
    let (bench, mut world) = bench();
    world.files.insert(to().file(SHADOW, "vdc").into(), (vec![1], 1));
    assert!(busy(bench.send(&mut world)).contains("nothing is overwritten"));
    assert_eq!(world.files.len(), 1);
    // And copies that go elsewhere are not sent here.
    let elsewhere = Receiving { uri: "qemu+tls://h3/system".into(), ..to() };
    bench
        .copies
        .note_sending(SHADOW, &Sending { to: elsewhere, made: 1, begun: 1, bytes: 0, is_whole: false })
        .unwrap();
    assert!(busy(bench.send(&mut world)).contains("were being sent elsewhere"));
}

#[test]
fn no_more_is_sent_than_a_host_takes_and_has_room_for() {
    let no_room = |change: &dyn Fn(&mut World)| {
        let (bench, mut world) = bench();
        change(&mut world);
        let files = world.files.len();
        let sent = bench.send(&mut world);
        assert_eq!(world.files.len(), files);
        match sent {
            Err(Snag::Unshadowable(Unshadowable::NoRoom(why))) => why,
            other => panic!("{other:?}"),
        }
    };
    let other = |bytes: u64, written: u64| (PathBuf::from("/srv/r/other"), (vec![0; bytes as usize], written));
    assert!(no_room(&|world| world.has_pool = false).contains("no storage pool"));
    let why = no_room(&|world| world.files.extend([other(2 * MIB, 2 * MIB)]));
    assert!(why.contains(&format!("would have {} bytes, and may have {}", 5 * MIB + 8, 5 * MIB)), "{why}");
    // A twentieth of 100 MiB stays free, and what another one has begun is to come yet.
    let why = no_room(&|world| world.free_bytes = 8 * MIB + 7);
    assert!(why.contains(&format!("copies need {}, and {} are to stay free", 3 * MIB + 8, 5 * MIB)), "{why}");
    let (bench, mut world) = bench();
    world.free_bytes = 8 * MIB + 8;
    bench.send(&mut world).unwrap();
    let why = no_room(&|world| {
        world.files.extend([other(MIB, 0)]);
        world.free_bytes = 9 * MIB + 7;
    });
    assert!(why.contains(&format!("copies need {}", 4 * MIB + 8)), "{why}");
}

#[test]
fn before_anything_is_copied_it_is_asked_whether_there_is_a_place() {
    let (_, mut world) = bench();
    let full = |to: &Receiving, world: &mut World| may_begin(world, to, SHADOW).is_err();
    assert!(!full(&to(), &mut world));
    assert!(full(&Receiving { bytes_max: 0, ..to() }, &mut world));
    world.has_pool = false;
    assert!(full(&to(), &mut world));
}
