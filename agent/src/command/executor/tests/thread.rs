//! The thread around the executor.

use super::*;

#[test]
fn the_thread_answers_refuses_an_overflow_and_ends_with_its_last_user() {
    let (_folder, path, world) = host();
    let executor = executor(&path, &world, false);
    let held = world.lock().unwrap(); // the executor stops at its first look at the host
    let (commands, thread) = spawn(executor).unwrap();
    let received = Now { wall: Timestamp::from_unix_ms(1_000), boot: BootInstant { boot: Uuid::from_u128(1), us: 0 } };
    for number in 1..=COMMANDS_WAITING_MAX as u64 {
        commands.submit(set(number, 1.0), received).unwrap();
    }
    assert_eq!(commands.submit(set(999, 1.0), received), Err(crate::command::NotTaken::Full));
    commands.acknowledge(set(1, 1.0).id).unwrap(); // still has room
    drop(held);
    let mut answers = commands.answers();
    let patience = Instant::now() + Duration::from_secs(20);
    // The first was acknowledged, all others are pending.
    while answers.borrow_and_update().pending.len() != COMMANDS_WAITING_MAX - 1 {
        assert!(Instant::now() < patience, "{} outcomes", answers.borrow().pending.len());
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(commands);
    thread.join().unwrap();
}

#[test]
fn steady_traffic_does_not_keep_an_intent_from_being_resolved() {
    const RESOLVE: Duration = Duration::from_millis(50);
    let (_folder, path, world) = host();
    let mut executor_1 = executor(&path, &world, false);
    world.lock().unwrap().crash = Some((Point::BeforeActuation, path));
    send(&mut executor_1, &world, &set(1, 1.5));
    let left = world.lock().unwrap().back_to_the_kill().unwrap();
    world.lock().unwrap().failing = Some(ActuateError::Unavailable("down".to_owned()));
    let mut executor_2 = executor(&left, &world, false);
    let (queue, requests) = sync_channel(COMMANDS_WAITING_MAX);
    let (publish, answers) = watch::channel(Answers::default());
    let thread = std::thread::spawn(move || executor_2.run_every(RESOLVE, &requests, &AtomicUsize::new(0), &publish));
    let patience = Instant::now() + Duration::from_secs(20);
    while answers.borrow().pending.is_empty() {
        assert!(Instant::now() < patience, "the intent starves");
        // Far more often than the interval, so that the queue is never silent for as long as it.
        queue.send(Request::Term(1)).unwrap();
        std::thread::sleep(RESOLVE / 50);
        // The first answers come after the first try, which has failed by then.
        if answers.has_changed().unwrap() {
            world.lock().unwrap().failing = None;
        }
    }
    drop(queue);
    thread.join().unwrap();
    assert_eq!(world.lock().unwrap().changes.last(), Some(&(vm(1), Some(1.5))));
}
