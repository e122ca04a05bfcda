//! From the accounts of threads to the counters of VMs: pure book-keeping.
//!
//! An account is one thread's and is used again after it; a VM's counters are for ever. So the ledger adds to the VM what each
//! account has gained since it was last seen. A thread that ends, an index that is used again, a count that wraps around: none
//! of them can make a VM's counters decrease.

use crate::reading::{SchedCounters, SchedEvents};
use gnomon_common::abi::sched::{Stretch, THREAD_GONE, THREAD_VACANT, ThreadAccount, WAIT_BUCKETS};
use std::collections::BTreeMap;

/// How long an index is kept back after its thread has gone. A scheduler hook that looked the account up just before may still be
/// writing to it; it holds a run-queue lock and is done within microseconds.
pub(super) const RECYCLE_GRACE_NS: u64 = 1_000_000_000;

/// Per VM slot the sums, per index what they contain already.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    seats: Vec<Seat>,
    slots: BTreeMap<u32, Sums>,
}

/// What the threads of a slot have counted.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    run_ns: u64,
    wait_ns: u64,
    events: SchedEvents,
    threads: u32,
}

/// What is known of one account.
#[derive(Clone, Copy, Debug)]
enum Seat {
    /// Nobody's since this generation.
    Vacant { generation: u32 },
    /// A living thread's, whose counts are contained in its VM's as far as `seen`.
    Taken { generation: u32, slot: u32, seen: Seen },
    /// Its thread has gone and its last counts are in.
    Retired { generation: u32, since_ns: u64 },
}

/// The part of an account that is contained in the sums.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    run_ns: u64,
    wait_ns: u64,
    wakeups: u32,
    preemptions: u32,
    wait_log2: [u32; WAIT_BUCKETS],
}

impl Ledger {
    /// Takes in one account as it was at `taken_ns` or a moment later. Returns whether its index may be given back to the kernel.
    pub(super) fn observe(&mut self, index: u32, account: &ThreadAccount, taken_ns: u64) -> bool {
        let index = index as usize;
        if self.seats.len() <= index {
            self.seats.resize(index + 1, Seat::Vacant { generation: 0 });
        }
        match self.seats[index] {
            Seat::Retired { generation, since_ns } if generation == account.generation => {
                let rested = taken_ns.saturating_sub(since_ns) >= RECYCLE_GRACE_NS;
                if rested {
                    self.seats[index] = Seat::Vacant { generation };
                }
                rested
            }
            Seat::Vacant { generation } if generation == account.generation => false,
            Seat::Taken { generation, slot, seen } if generation == account.generation => {
                self.book(index, slot, seen, account, taken_ns);
                false
            }
            // Only the kernel starts a generation, and only after the index was given back.
            Seat::Vacant { .. } | Seat::Taken { .. } | Seat::Retired { .. } => {
                if account.state == THREAD_VACANT {
                    self.seats[index] = Seat::Vacant { generation: account.generation };
                } else {
                    let slot = u32::from(account.slot);
                    self.slots.entry(slot).or_default().threads += 1;
                    self.book(index, slot, Seen::default(), account, taken_ns);
                }
                false
            }
        }
    }

    fn book(&mut self, index: usize, slot: u32, mut seen: Seen, account: &ThreadAccount, taken_ns: u64) {
        let generation = account.generation;
        let sums = self.slots.entry(slot).or_default();
        seen.add_to(sums, account, taken_ns);
        self.seats[index] = if account.state == THREAD_GONE {
            sums.threads -= 1;
            Seat::Retired { generation, since_ns: taken_ns }
        } else {
            Seat::Taken { generation, slot, seen }
        };
    }

    /// Indexes of threads believed to be alive, with their generations.
    pub(super) fn living(&self) -> Vec<(u32, u32)> {
        let living = |(index, seat): (usize, &Seat)| match seat {
            Seat::Taken { generation, .. } => Some((index as u32, *generation)),
            Seat::Vacant { .. } | Seat::Retired { .. } => None,
        };
        self.seats.iter().enumerate().filter_map(living).collect()
    }

    /// The counters of a slot.
    pub(super) fn counters(&self, slot: u32) -> SchedCounters {
        let Sums { run_ns, wait_ns, events, threads } = self.slots.get(&slot).copied().unwrap_or_default();
        SchedCounters { run_ns, wait_ns, events: Some(events), threads }
    }

    /// Forgets a slot's counters, if none of its threads is left; returns whether it did.
    pub(super) fn forget(&mut self, slot: u32) -> bool {
        let empty = self.counters(slot).threads == 0;
        if empty {
            self.slots.remove(&slot);
        }
        empty
    }
}

impl Seen {
    /// Adds what `account` has gained to the sums, and remembers it.
    fn add_to(&mut self, sums: &mut Sums, account: &ThreadAccount, taken_ns: u64) {
        // A thread that is gone has no stretch in progress, whatever its last switch left there.
        let stretch = if account.state == THREAD_GONE { Stretch::ASLEEP } else { account.stretch };
        let open_ns = if stretch.is_asleep() { 0 } else { taken_ns.saturating_sub(stretch.since_ns()) };
        let (running_ns, waiting_ns) = if stretch.is_on_cpu() { (open_ns, 0) } else { (0, open_ns) };
        gain_ns(&mut sums.run_ns, &mut self.run_ns, account.run_ns + running_ns);
        gain_ns(&mut sums.wait_ns, &mut self.wait_ns, account.wait_ns + waiting_ns);
        gain_count(&mut sums.events.wakeups, &mut self.wakeups, account.wakeups);
        gain_count(&mut sums.events.preemptions, &mut self.preemptions, account.preemptions);
        for (bucket, count) in account.wait_log2.iter().enumerate() {
            gain_count(&mut sums.events.wait_log2[bucket], &mut self.wait_log2[bucket], *count);
        }
    }
}

/// An open stretch may have been counted too long (its end was lost, or it ended between the clock and the copy): then the sum
/// waits until the account has caught up.
fn gain_ns(sum: &mut u64, seen: &mut u64, now: u64) {
    let gain = now.saturating_sub(*seen);
    *sum += gain;
    *seen += gain;
}

fn gain_count(sum: &mut u64, seen: &mut u32, now: u32) {
    *sum += u64::from(now.wrapping_sub(*seen));
    *seen = now;
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_common::abi::sched::THREAD_LIVE;
    use proptest::prelude::*;

    fn account(generation: u32, slot: u16) -> ThreadAccount {
        ThreadAccount { generation, slot, state: THREAD_LIVE, ..Default::default() }
    }

    #[test]
    fn a_stretch_in_progress_counts() {
        let mut ledger = Ledger::default();
        let running = ThreadAccount { run_ns: 50, stretch: Stretch::on_cpu(1_000), ..account(1, 3) };
        let waiting = ThreadAccount { wait_ns: 7, stretch: Stretch::waiting(900), ..account(1, 3) };
        ledger.observe(0, &running, 1_200);
        ledger.observe(1, &waiting, 1_200);
        let sums = ledger.counters(3);
        assert_eq!((sums.run_ns, sums.wait_ns, sums.threads), (250, 307, 2));
    }

    #[test]
    fn an_ended_threads_time_is_kept_and_its_index_rests_before_it_is_given_back() {
        let mut ledger = Ledger::default();
        let mut dying = ThreadAccount { run_ns: 500, ..account(1, 0) };
        assert!(!ledger.observe(0, &dying, 0));
        dying.run_ns = 800;
        dying.state = THREAD_GONE;
        assert!(!ledger.observe(0, &dying, 10));
        assert!(!ledger.observe(0, &dying, 10 + RECYCLE_GRACE_NS - 1));
        assert!(ledger.observe(0, &dying, 10 + RECYCLE_GRACE_NS));
        assert!(!ledger.observe(0, &dying, 10 + 2 * RECYCLE_GRACE_NS), "given back twice");
        let heir = ThreadAccount { run_ns: 30, ..account(2, 5) };
        ledger.observe(0, &heir, 11 + 2 * RECYCLE_GRACE_NS);
        assert_eq!((ledger.counters(0).run_ns, ledger.counters(0).threads), (800, 0));
        assert_eq!((ledger.counters(5).run_ns, ledger.counters(5).threads), (30, 1));
    }

    #[test]
    fn counts_that_wrap_around_go_on() {
        let mut ledger = Ledger::default();
        let mut busy = ThreadAccount { wakeups: u32::MAX - 1, ..account(1, 0) };
        ledger.observe(0, &busy, 0);
        busy.wakeups = busy.wakeups.wrapping_add(5);
        ledger.observe(0, &busy, 1);
        assert_eq!(ledger.counters(0).events.unwrap().wakeups, u64::from(u32::MAX) + 4);
    }

    #[test]
    fn a_slot_is_not_forgotten_while_a_thread_is_left_in_it() {
        let mut ledger = Ledger::default();
        let mut last = account(1, 9);
        ledger.observe(0, &last, 0);
        assert!(!ledger.forget(9));
        last.state = THREAD_GONE;
        ledger.observe(0, &last, 1);
        assert!(ledger.forget(9));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Spawn(u16),
        Run(prop::sample::Index, u64),
        Wake(prop::sample::Index),
        Exit(prop::sample::Index),
        Drain,
    }

    fn step() -> impl Strategy<Value = Step> {
        use prop::sample::Index;
        prop_oneof![
            (0u16..3).prop_map(Step::Spawn),
            (any::<Index>(), 1u64..10_000_000).prop_map(|(thread, ns)| Step::Run(thread, ns)),
            any::<Index>().prop_map(Step::Wake),
            any::<Index>().prop_map(Step::Exit),
            Just(Step::Drain),
        ]
    }

    /// A kernel of four accounts, and what every slot should have in the end.
    struct Kernel {
        accounts: Vec<ThreadAccount>,
        free: Vec<u32>,
        live: Vec<usize>,
        truth: [(u64, u64); 3],
        now_ns: u64,
    }

    impl Kernel {
        fn apply(&mut self, step: &Step) {
            match step {
                Step::Spawn(slot) => {
                    if let Some(index) = self.free.pop() {
                        let generation = self.accounts[index as usize].generation + 1;
                        self.accounts[index as usize] = account(generation, *slot);
                        self.live.push(index as usize);
                    }
                }
                Step::Run(which, ns) if !self.live.is_empty() => {
                    let account = &mut self.accounts[*which.get(&self.live)];
                    account.enter_cpu(self.now_ns);
                    self.now_ns += ns;
                    account.leave_cpu(self.now_ns, account.exec_ns + ns, false);
                    self.truth[account.slot as usize].0 += ns;
                }
                Step::Wake(which) if !self.live.is_empty() => {
                    let account = &mut self.accounts[*which.get(&self.live)];
                    if account.stretch.is_asleep() {
                        account.wake(self.now_ns);
                        self.truth[account.slot as usize].1 += 1;
                    }
                }
                Step::Exit(which) if !self.live.is_empty() => {
                    let index = self.live.swap_remove(which.index(self.live.len()));
                    self.accounts[index].state = THREAD_GONE;
                }
                _ => {}
            }
        }

        fn drain_into(&mut self, ledger: &mut Ledger) {
            self.now_ns += RECYCLE_GRACE_NS / 2;
            for index in 0..self.accounts.len() {
                if ledger.observe(index as u32, &self.accounts[index], self.now_ns) {
                    self.free.push(index as u32);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_happens_nothing_is_lost_and_nothing_decreases(steps in prop::collection::vec(step(), 0..300)) {
            let mut ledger = Ledger::default();
            let mut kernel = Kernel {
                accounts: vec![ThreadAccount::default(); 4],
                free: (0..4).rev().collect(),
                live: Vec::new(),
                truth: [(0, 0); 3],
                now_ns: 1,
            };
            let mut before = [SchedCounters::default(); 3];
            for step in steps.iter().chain(&[Step::Drain]) {
                kernel.apply(step);
                if matches!(step, Step::Drain) {
                    kernel.drain_into(&mut ledger);
                    for (slot, before) in before.iter_mut().enumerate() {
                        let now = ledger.counters(slot as u32);
                        prop_assert!(now.run_ns >= before.run_ns && now.wait_ns >= before.wait_ns && now.events.unwrap().wakeups >= before.events.unwrap_or_default().wakeups);
                        let live = kernel.live.iter().filter(|&&index| kernel.accounts[index].slot as usize == slot).count();
                        prop_assert_eq!(now.threads as usize, live);
                        *before = now;
                    }
                }
            }
            for (slot, truth) in kernel.truth.iter().enumerate() {
                let sums = ledger.counters(slot as u32);
                prop_assert_eq!((sums.run_ns, sums.events.unwrap().wakeups), *truth);
            }
        }
    }
}
