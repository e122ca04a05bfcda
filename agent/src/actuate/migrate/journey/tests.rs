//! Journeys between two hosts that a test plays.

use super::*;
use gnomon_common::wire::{HostId, Migration, VmId};
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use uuid::Uuid;

const BY_MIGRATION: Standing = Standing::Stopped { by_migration: true };

/// Two hosts. What they answer is taken from the front of a list, of which the last stays.
#[derive(Default)]
struct Played {
    immovable: Option<Immovable>,
    says: Option<Result<(), String>>,
    jobs: VecDeque<Option<Option<Job>>>,
    here: VecDeque<Option<Standing>>,
    there: VecDeque<Option<Standing>>,
    aborts: usize,
    resumed_after: Vec<Option<Standing>>,
    hanging: Option<Sender<Result<(), String>>>,
    paused: Duration,
    kept: Vec<Option<String>>,
    /// What has to be made on the other host, what that says, and what it has made and removed.
    copies: Option<CopyRecord>,
    not_made: VecDeque<Option<NotMade>>,
    unremovable: usize,
    made: Vec<String>,
    removed: Vec<String>,
    recorded: Vec<CopyRecord>,
    unrecordable: bool,
    /// How often it was told that it ran there.
    ran_there: usize,
}

struct Shared<'a>(&'a Mutex<Played>);

fn next<T: Copy>(list: &mut VecDeque<T>) -> Option<T> {
    if list.len() > 1 { list.pop_front() } else { list.front().copied() }
}

impl Sides for Shared<'_> {
    fn check(&mut self) -> Result<Option<CopyRecord>, Refusal> {
        let mut played = self.0.lock().unwrap();
        let copies = played.copies.clone();
        played.immovable.take().map_or(Ok(copies), |why| Err(Refusal::Immovable(why)))
    }

    fn make_copy(&mut self, file: &str) -> Result<(), NotMade> {
        let mut played = self.0.lock().unwrap();
        assert!(!played.recorded.is_empty(), "it was not written down before");
        played.made.push(file.to_owned());
        played.not_made.pop_front().flatten().map_or(Ok(()), Err)
    }

    fn remove_copy(&mut self, file: &str) -> Result<(), String> {
        let mut played = self.0.lock().unwrap();
        if played.unremovable > 0 {
            played.unremovable -= 1;
            return Err("busy".to_owned());
        }
        played.removed.push(file.to_owned());
        Ok(())
    }

    fn keep(&mut self, keepsake: Option<&str>) {
        self.0.lock().unwrap().kept.push(keepsake.map(str::to_owned));
    }

    fn begin(&mut self) -> Receiver<Result<(), String>> {
        let (tell, ended) = channel();
        let mut played = self.0.lock().unwrap();
        match played.says.take() {
            Some(said) => tell.send(said).unwrap(),
            None => played.hanging = Some(tell),
        }
        ended
    }

    fn job(&mut self) -> Option<Option<Job>> {
        next(&mut self.0.lock().unwrap().jobs).unwrap_or(Some(None))
    }

    fn abort(&mut self) {
        let mut played = self.0.lock().unwrap();
        played.aborts += 1;
        if let Some(tell) = played.hanging.take() {
            tell.send(Err("operation aborted".to_owned())).unwrap();
        }
    }

    fn here(&mut self) -> Option<Standing> {
        next(&mut self.0.lock().unwrap().here).flatten()
    }

    fn there(&mut self) -> Option<Standing> {
        next(&mut self.0.lock().unwrap().there).flatten()
    }

    fn resume(&mut self) -> Result<(), String> {
        let mut played = self.0.lock().unwrap();
        let there = played.there.front().copied().flatten();
        played.resumed_after.push(there);
        played.here = [Some(Standing::Active)].into();
        Ok(())
    }

    fn completed(&mut self) -> Option<Job> {
        Some(Job { sent_bytes: 10, downtime_us: Some(90_000), ..Job::default() })
    }

    fn pause(&mut self, pause: Duration) {
        self.0.lock().unwrap().paused += pause;
    }
}

fn order(is_new: bool, timeout_ms: u64) -> Order {
    let migration = Migration {
        to: HostId::new("h2").unwrap(),
        uri: "qemu+tcp://h2/system".to_owned(),
        timeout_ms,
        bandwidth_bytes_per_s: None,
        auto_converge: false,
        copy_storage: true,
    };
    Order {
        vm: VmId(Uuid::from_u128(1)),
        migration,
        keepsake: None,
        waited: Duration::ZERO,
        copies: None,
        ran_there: false,
        given_up: false,
        is_new,
    }
}

/// Goes the journey; returns how it ended, and whether it was told to be parked.
fn go(played: &Mutex<Played>, order: &Order, asked: bool) -> (OutcomeResult, usize) {
    let (book, asked) = (MigrationBook::default(), Arc::new(AtomicBool::new(asked)));
    let begun = Instant::now();
    let mut parked = 0;
    let journey = Journey { order, sides: Shared(played), asked, begun, book: &book, sent_storage_bytes: None };
    let mut told = |news| match news {
        News::Parked(OutcomeResult::NotMoved { whereabouts: Whereabouts::Parked, .. }) => parked += 1,
        News::RanThere => played.lock().unwrap().ran_there += 1,
        other => panic!("{other:?}"),
    };
    let mut record = |copies: &CopyRecord| {
        let mut played = played.lock().unwrap();
        played.recorded.push(copies.clone());
        !played.unrecordable
    };
    let result = journey.run(&mut told, &mut record);
    (result, parked)
}

fn here(error: &str) -> OutcomeResult {
    OutcomeResult::NotMoved { error: error.to_owned(), whereabouts: Whereabouts::Here }
}

#[test]
fn what_libvirt_says_has_moved_and_is_gone_has_moved() {
    let played = Mutex::new(Played { says: Some(Ok(())), here: [Some(Standing::Absent)].into(), ..Played::default() });
    let (result, parked) = go(&played, &order(true, 60_000), false);
    let moved = Moved { took_us: 0, downtime_us: Some(90_000), sent_bytes: Some(10), copied: None };
    assert_eq!((result, parked), (OutcomeResult::Moved(moved), 0));
}

#[test]
fn what_goes_with_it_is_taken_back_where_it_does_not_go() {
    let played =
        || Played { says: Some(Err("no".to_owned())), here: [Some(Standing::Active)].into(), ..Played::default() };
    let with = |is_new| Order { keepsake: Some("undo".to_owned()), ..order(is_new, 60_000) };
    let stays = Mutex::new(played());
    go(&stays, &with(true), false);
    assert_eq!(stays.into_inner().unwrap().kept, [Some("undo".to_owned()), None]);
    let goes = Mutex::new(Played { says: Some(Ok(())), here: [Some(Standing::Absent)].into(), ..Played::default() });
    go(&goes, &with(true), false);
    assert_eq!(goes.into_inner().unwrap().kept, [Some("undo".to_owned())]);
    let followed = Mutex::new(played());
    go(&followed, &with(false), false);
    assert_eq!(followed.into_inner().unwrap().kept, [None]);
}

#[test]
fn what_is_immovable_is_not_begun() {
    let immovable = Some(Immovable::AlreadyThere);
    let played = Mutex::new(Played { immovable, says: Some(Ok(())), ..Played::default() });
    assert_eq!(go(&played, &order(true, 60_000), false).0, OutcomeResult::Immovable(Immovable::AlreadyThere));
    assert!(played.into_inner().unwrap().says.is_some(), "it was begun");
}

#[test]
fn a_time_out_aborts_and_says_so() {
    let played = Mutex::new(Played { here: [Some(Standing::Active)].into(), ..Played::default() });
    let (result, _) = go(&played, &order(true, 300), false);
    assert_eq!(result, here("given up: it had not ended after 0.3 s"));
    assert_eq!(played.into_inner().unwrap().aborts, 1);
}

#[test]
fn an_abort_before_it_begins_begins_nothing() {
    let played = Mutex::new(Played { says: Some(Ok(())), ..Played::default() });
    assert_eq!(go(&played, &order(true, 60_000), true).0, here("given up, as a command said"));
    assert!(played.into_inner().unwrap().says.is_some(), "it was begun");
}

#[test]
fn one_of_an_earlier_life_is_followed_and_never_begun() {
    let jobs = [Some(Some(Job::default())), None, Some(Some(Job::default())), Some(None)].into();
    let played =
        Mutex::new(Played { says: Some(Ok(())), jobs, here: [Some(Standing::Active)].into(), ..Played::default() });
    assert_eq!(go(&played, &order(false, 60_000), false).0, here("the agent was restarted while it was under way"));
    let played = played.into_inner().unwrap();
    assert!(played.says.is_some() && played.aborts == 0);
}

#[test]
fn an_error_of_libvirt_s_says_nothing_of_where_it_is() {
    let says = Some(Err("connection lost".to_owned()));
    let (here, there) = ([Some(Standing::Absent)].into(), [None, Some(Standing::Active)].into());
    let played = Mutex::new(Played { says, here, there, ..Played::default() });
    assert!(matches!(go(&played, &order(true, 60_000), false).0, OutcomeResult::Moved(_)));
}

#[test]
fn it_stands_still_until_the_other_host_says_that_it_does_not_have_it() {
    let says = Some(Err("connection lost".to_owned()));
    // Silent, then with a copy that is still being received, then without.
    let there = [None, None, Some(BY_MIGRATION), Some(BY_MIGRATION), Some(Standing::Absent)].into();
    let played = Mutex::new(Played { says, here: [Some(BY_MIGRATION)].into(), there, ..Played::default() });
    assert_eq!(go(&played, &order(true, 60_000), false), (here("connection lost"), 1));
    let played = played.into_inner().unwrap();
    assert_eq!(played.resumed_after, [Some(Standing::Absent)]);
}

#[test]
fn one_that_is_gone_here_while_the_other_host_is_silent_is_told_once() {
    let says = || Some(Err("connection lost".to_owned()));
    for (silent, told) in [(9, 0), (30, 1)] {
        let here = [Some(Standing::Absent)].into();
        let there = std::iter::repeat_n(None, silent).chain([Some(Standing::Active)]).collect();
        let played = Mutex::new(Played { says: says(), here, there, ..Played::default() });
        let (result, parked) = go(&played, &order(true, 60_000), false);
        assert!(matches!(result, OutcomeResult::Moved(_)) && parked == told, "{silent}: {result:?}, {parked}");
    }
}

#[test]
fn a_copy_that_ran_there_once_is_never_followed_by_the_older_one_here() {
    // It runs there, or has run; then it has gone on to a third host. A person looks in the end, and stops the old copy here.
    for seen in [Standing::Active, Standing::Off, Standing::Stopped { by_migration: false }] {
        let says = Some(Err("connection lost".to_owned()));
        let still = [Some(BY_MIGRATION); 9].into_iter();
        let here = still.chain([Some(Standing::Absent)]).collect();
        let there = [None, None, None, Some(seen), Some(Standing::Absent)].into();
        let played = Mutex::new(Played { says, here, there, ..Played::default() });
        let (result, parked) = go(&played, &order(true, 60_000), false);
        assert!(matches!(result, OutcomeResult::Failed { .. }) && parked == 1, "{seen:?}: {result:?}");
        let played = played.into_inner().unwrap();
        assert_eq!((played.resumed_after, played.ran_there), (vec![], 1), "{seen:?}");
    }
}

#[test]
fn a_copy_that_an_earlier_life_saw_run_there_is_not_followed_either() {
    let here = [Some(BY_MIGRATION), Some(BY_MIGRATION), Some(BY_MIGRATION), Some(Standing::Absent)].into();
    let played = Mutex::new(Played { here, there: [Some(Standing::Absent)].into(), ..Played::default() });
    let (result, parked) = go(&played, &Order { ran_there: true, ..order(false, 60_000) }, false);
    assert!(matches!(result, OutcomeResult::Failed { .. }) && parked == 1, "{result:?}");
    assert_eq!(played.into_inner().unwrap().resumed_after, []);
}

#[test]
fn nothing_is_concluded_while_a_job_is_under_way() {
    let says = Some(Err("connection lost".to_owned()));
    let jobs = [Some(None), Some(Some(Job::default())), Some(Some(Job::default())), Some(None)].into();
    let here = [Some(BY_MIGRATION)].into();
    let played = Mutex::new(Played { says, jobs, here, there: [Some(Standing::Absent)].into(), ..Played::default() });
    go(&played, &order(true, 60_000), false);
    let played = played.into_inner().unwrap();
    assert!(played.jobs.len() == 1 && played.resumed_after.len() == 1, "resumed beside a job");
}

#[test]
fn a_vm_that_runs_nowhere_has_ended() {
    let says = Some(Err("domain is not running".to_owned()));
    let (here, there) = ([Some(Standing::Absent)].into(), [Some(Standing::Absent)].into());
    let played = Mutex::new(Played { says, here, there, ..Played::default() });
    assert!(matches!(go(&played, &order(true, 60_000), false).0, OutcomeResult::Failed { retryable: false, .. }));
}

fn two_files() -> CopyRecord {
    CopyRecord { files: vec!["/srv/a".to_owned(), "/srv/b".to_owned()], made: 0, is_layered: true, bytes: 10 }
}

/// The same when so many are made.
fn made(made: usize) -> CopyRecord {
    CopyRecord { made, ..two_files() }
}

#[test]
fn disks_that_went_along_stay_here_and_are_told() {
    // QEMU counts 40 of its disks, of which 30 are empty, and 10 of its memory.
    for (counted, bytes, sent_bytes) in [(40, Some(10), 20), (4, Some(4), 14), (0, None, 10)] {
        let played = Mutex::new(Played {
            copies: Some(two_files()),
            jobs: [Some(Some(Job { sent_storage_bytes: counted, ..Job::default() }))].into(),
            here: [Some(Standing::Absent)].into(),
            ..Played::default()
        });
        // It is seen how far it is, then it is over.
        let result = std::thread::scope(|scope| {
            let gone = scope.spawn(|| go(&played, &order(true, 60_000), false).0);
            let tell = loop {
                std::thread::sleep(2 * LOOK_INTERVAL);
                if let Some(tell) = played.lock().unwrap().hanging.take() {
                    break tell;
                }
            };
            tell.send(Ok(())).unwrap();
            gone.join().unwrap()
        });
        let OutcomeResult::Moved(moved) = result else { panic!("{result:?}") };
        assert_eq!(moved.copied, Some(Copied { bytes, is_layered: true, left: two_files().files }));
        assert_eq!(moved.sent_bytes, Some(sent_bytes));
        let played = played.into_inner().unwrap();
        assert_eq!(played.recorded, [made(0), made(1), made(2)], "before and after each");
        assert_eq!((played.made, played.removed), (two_files().files, vec![]));
    }
}

#[test]
fn copies_of_a_vm_that_stays_are_removed_once_the_other_host_does_not_know_it() {
    for is_new in [true, false] {
        // The agent's first life begins it; another one finds what that has made in its ledger.
        let there = [Some(BY_MIGRATION), None, Some(Standing::Absent)].into();
        let (copies, says) = (Some(two_files()), Some(Err("no".to_owned())));
        let here_ = [Some(Standing::Active)].into();
        let played = Mutex::new(Played { copies, says, here: here_, there, ..Played::default() });
        let order = Order { copies: (!is_new).then(|| made(2)), ..order(is_new, 60_000) };
        let error = if is_new { "no" } else { "the agent was restarted while it was under way" };
        assert_eq!(go(&played, &order, false).0, here(error));
        let played = played.into_inner().unwrap();
        assert_eq!(played.removed, two_files().files, "{is_new}");
    }
}

#[test]
fn what_cannot_be_removed_is_told() {
    let played = || Played { copies: Some(two_files()), says: Some(Err("no".to_owned())), ..Played::default() };
    let active = || [Some(Standing::Active)].into();
    // The first of them is removed at the second try, when the other one is gone.
    let slow =
        Mutex::new(Played { here: active(), there: [Some(Standing::Absent)].into(), unremovable: 1, ..played() });
    assert_eq!(go(&slow, &order(true, 60_000), false).0, here("no"));
    assert_eq!(slow.into_inner().unwrap().removed, ["/srv/b", "/srv/a"]);
    // The other host has it still, or does not say.
    for there in [None, Some(BY_MIGRATION), Some(Standing::Active), Some(Standing::Off)] {
        let silent = Mutex::new(Played { here: active(), there: [there].into(), ..played() });
        let told = "no; on the target there are left, to be removed by hand: /srv/a, /srv/b";
        assert_eq!(go(&silent, &order(true, 60_000), false).0, here(told));
        assert_eq!(silent.into_inner().unwrap().removed, [""; 0], "{there:?}");
    }
}

#[test]
fn nothing_is_removed_that_another_one_has_made_meanwhile() {
    let active = || [Some(Standing::Active)].into();
    let with = |not_made| Played {
        copies: Some(two_files()),
        not_made: [None, Some(not_made)].into(),
        here: active(),
        there: [Some(Standing::Absent)].into(),
        says: Some(Ok(())),
        ..Played::default()
    };
    let refused = Mutex::new(with(NotMade::Refused("exists".to_owned())));
    assert_eq!(go(&refused, &order(true, 60_000), false).0, here("/srv/b was not made on the target: exists"));
    let refused = refused.into_inner().unwrap();
    assert!(refused.removed == ["/srv/a"] && refused.says.is_some(), "{:?}", refused.removed);
    let unclear = Mutex::new(with(NotMade::Unclear("no answer".to_owned())));
    let told = "making /srv/b on the target: no answer; on the target there may be left, to be removed by hand: /srv/b";
    assert_eq!(go(&unclear, &order(true, 60_000), false).0, here(told));
    assert_eq!(unclear.into_inner().unwrap().removed, ["/srv/a"]);
}

#[test]
fn an_agent_that_was_killed_removes_only_what_it_knows_to_have_made() {
    for known in 0..=2 {
        let played = Mutex::new(Played {
            here: [Some(Standing::Active)].into(),
            there: [Some(Standing::Absent)].into(),
            ..Played::default()
        });
        let order = Order { copies: Some(made(known)), ..order(false, 60_000) };
        let OutcomeResult::NotMoved { error, .. } = go(&played, &order, false).0 else { panic!() };
        let (ours, others) = (&two_files().files[..known], &two_files().files[known..]);
        assert_eq!(played.into_inner().unwrap().removed, ours);
        assert_eq!(error.contains("may be left"), !others.is_empty(), "{error}");
        assert!(others.iter().all(|file| error.contains(file)), "{error}");
    }
}

#[test]
fn nothing_is_made_that_cannot_be_written_down() {
    let played = Mutex::new(Played { copies: Some(two_files()), unrecordable: true, ..Played::default() });
    assert!(matches!(go(&played, &order(true, 60_000), false).0, OutcomeResult::NotMoved { .. }));
    let played = played.into_inner().unwrap();
    assert!(played.made.is_empty() && played.removed.is_empty());
}

#[test]
fn both_copies_stay_where_it_is_not_known_which_ran_last() {
    let played = Mutex::new(Played {
        copies: Some(two_files()),
        says: Some(Err("domain is not running".to_owned())),
        here: [Some(Standing::Absent)].into(),
        there: [Some(Standing::Absent)].into(),
        ..Played::default()
    });
    let OutcomeResult::Failed { error, .. } = go(&played, &order(true, 60_000), false).0 else { panic!() };
    assert!(error.contains("/srv/a, /srv/b"), "{error}");
    assert!(played.into_inner().unwrap().removed.is_empty());
}
