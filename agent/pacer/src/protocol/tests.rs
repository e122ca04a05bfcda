use super::*;
use proptest::prelude::*;

fn load() -> impl Strategy<Value = Load> {
    let cores = (0u64..=1_024_000_000).prop_map(|micros| micros as f64 / 1e6);
    let rates = any::<(u64, u64, u64, u64)>();
    (cores, rates).prop_map(|(cpu_cores, (memory_bytes, read, write, network_bytes_per_s))| Load {
        cpu_cores,
        memory_bytes,
        disk_read_bytes_per_s: read,
        disk_write_bytes_per_s: write,
        network_bytes_per_s,
    })
}

fn profile() -> impl Strategy<Value = Profile> {
    let burst = (1_000u32..=60_000).prop_map(|thousandths| f64::from(thousandths) / 1e3);
    let step = (any::<u64>(), load(), burst).prop_map(|(after_ms, load, network_burst)| Step {
        after_ms,
        load,
        network_burst,
    });
    (any::<u64>(), proptest::collection::vec(step, 0..=STEPS_MAX)).prop_map(|(valid_ms, mut steps)| {
        steps.sort_by_key(|step| step.after_ms);
        Profile { valid_ms, steps }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_profile_survives_the_line_and_the_longest_fits(profile in profile()) {
        let line = profile.to_string();
        prop_assert!(line.len() <= LINE_BYTES_MAX, "{} bytes", line.len());
        prop_assert_eq!(Profile::parse(&line), Ok(profile));
    }

    #[test]
    fn a_status_survives_the_line(refused: u64, left_ms: u64, wanted in load(), made in load()) {
        let said = Said::Status(Status { refused, left_ms, wanted, made });
        prop_assert_eq!(Said::parse(&said.to_string()), Ok(said));
    }

    #[test]
    fn the_rest_of_a_profile_is_what_was_to_come(
        afters in proptest::collection::vec(0u64..1_000, 0..8), valid_ms in 0u64..1_200, elapsed in 0u64..1_200, then in 0u64..1_200,
    ) {
        let mut afters = afters;
        afters.sort_unstable();
        let step = |(cores, &after_ms): (usize, &u64)| {
            Step { after_ms, load: Load { cpu_cores: cores as f64, ..Load::default() }, network_burst: 1.0 }
        };
        let profile = Profile { valid_ms, steps: afters.iter().enumerate().map(step).collect() };
        let load = |step: Option<&Step>| step.map(|step| step.load);
        prop_assert_eq!(load(profile.rest(elapsed).at(then)), load(profile.at(elapsed + then)));
    }

    #[test]
    fn any_bytes_are_lines_or_refused_and_take_bounded_room(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..20)) {
        let mut lines = Lines::default();
        for chunk in &chunks {
            for line in lines.push(chunk).into_iter().flatten() {
                prop_assert!(Profile::parse(&line).is_err() && Said::parse(&line).is_err());
            }
            prop_assert!(lines.buffer.len() <= LINE_BYTES_MAX);
        }
    }

    #[test]
    fn lines_are_the_same_however_they_arrive(at in 0usize..60) {
        let bytes = b"gnomon-pacer/1 profile valid_ms=1\n\ngnomon-pacer/1 profile valid_ms=2\n";
        let mut lines = Lines::default();
        let mut seen = lines.push(&bytes[..at]);
        seen.extend(lines.push(&bytes[at..]));
        let valid: Vec<u64> = seen.iter().map(|line| Profile::parse(line.as_ref().unwrap()).unwrap().valid_ms).collect();
        prop_assert_eq!(valid, [1, 2]);
    }
}

#[test]
fn a_profile_by_hand_needs_only_what_it_wants() {
    let line = "gnomon-pacer/1 profile valid_ms=60000 after_ms=0 cpu_cores=0.5 after_ms=10 network_bytes_per_s=9 network_burst=10";
    let profile = Profile::parse(line).unwrap();
    assert_eq!(profile.at(9).unwrap().load, Load { cpu_cores: 0.5, ..Load::default() });
    assert_eq!(profile.at(10).unwrap().load, Load { network_bytes_per_s: 9, ..Load::default() });
    assert_eq!((profile.steps[0].network_burst, profile.steps[1].network_burst), (1.0, 10.0));
    assert_eq!(profile.at(60_000), None);
}

#[test]
fn what_is_out_of_bounds_is_refused_with_its_place() {
    let refused = |rest: &str| Profile::parse(&format!("gnomon-pacer/1 profile {rest}")).unwrap_err();
    assert_eq!(refused(""), LineError::Steps);
    assert_eq!(refused("valid_ms=1 valid_ms=2"), LineError::Field(3));
    assert_eq!(refused("valid_ms=1 cpu_cores=1"), LineError::Field(3));
    for value in ["-1", "NaN", "inf", "1025", ""] {
        assert_eq!(refused(&format!("valid_ms=1 after_ms=0 cpu_cores={value}")), LineError::Field(4), "{value}");
    }
    assert_eq!(refused("valid_ms=1 after_ms=0 network_burst=0.5"), LineError::Field(4));
    assert_eq!(refused("valid_ms=1 after_ms=2 after_ms=1"), LineError::Steps);
    assert_eq!(refused(&format!("valid_ms=1{}", " after_ms=0".repeat(STEPS_MAX + 1))), LineError::Steps);
    for line in ["gnomon-pacer/2 profile valid_ms=1", "gnomon-pacer/1 dance", "profile valid_ms=1", "gnomon-pacer/1"] {
        assert_eq!(Profile::parse(line), Err(LineError::Unknown), "{line}");
    }
}

#[test]
fn a_line_without_an_end_costs_no_more_than_the_longest_and_is_one_refusal() {
    let mut lines = Lines::default();
    for _ in 0..10 {
        assert!(lines.push(&[b'x'; LINE_BYTES_MAX]).is_empty());
        assert!(lines.buffer.len() <= LINE_BYTES_MAX);
    }
    assert_eq!(lines.push(b"\nnext\n"), [Err(LineError::Long), Ok("next".to_owned())]);
}

#[test]
fn a_refusal_is_told_with_its_reason() {
    let said = Said::Refused { refused: 3, why: LineError::Unknown.to_string() };
    assert_eq!(said.to_string(), "gnomon-pacer/1 error refused=3 why=not a line of gnomon-pacer/1");
    assert_eq!(Said::parse(&said.to_string()), Ok(said));
}
