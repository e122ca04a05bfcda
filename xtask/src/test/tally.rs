//! How many tests there were, from the reports of their runners.

use std::fmt;
use std::ops::AddAssign;

use anyhow::{Context as _, Result};

/// A test that finds its machine unfit prints a line that begins so, in either case, and passes; it is counted apart.
const SKIP_MARK: &str = "skipped";

/// Counted tests. Printed as the closing line of a run: `12 passed, 0 failed, 1 skipped`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) passed: u64,
    /// Of the passed those that failed at first: see `.config/nextest.toml` for which are tried twice.
    pub(super) at_second_try: u64,
    pub(super) failed: u64,
    pub(super) skipped: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed", self.passed)?;
        if self.at_second_try > 0 {
            write!(f, " ({} at the second try)", self.at_second_try)?;
        }
        write!(f, ", {} failed, {} skipped", self.failed, self.skipped)
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.at_second_try += other.at_second_try;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl Tally {
    /// Counts the test cases of a JUnit report. Nextest leaves ignored tests out of it.
    pub(super) fn of_junit(xml: &str) -> Result<Self> {
        let document = roxmltree::Document::parse(xml).context("not XML")?;
        let mut tally = Self::default();
        for case in document.descendants().filter(|node| node.has_tag_name("testcase")) {
            let unfit = case
                .children()
                .filter(|node| node.has_tag_name("system-out") || node.has_tag_name("system-err"))
                .filter_map(|node| node.text())
                .any(|text| text.lines().any(tells_of_skipping));
            if case.children().any(|node| node.has_tag_name("failure") || node.has_tag_name("error")) {
                tally.failed += 1;
            } else if case.children().any(|node| node.has_tag_name("skipped")) || unfit {
                tally.skipped += 1;
            } else {
                tally.passed += 1;
                let was_tried_twice = case.children().any(|node| node.has_tag_name("flakyFailure"));
                tally.at_second_try += u64::from(was_tried_twice);
            }
        }
        Ok(tally)
    }

    /// Reads the closing line of Rust's own test runner: `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
    pub(super) fn of_libtest(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let count = |word: &str| {
            counts.split("; ").find_map(|part| part.strip_suffix(word)?.trim().parse::<u64>().ok()).unwrap_or_default()
        };
        Some(Self { passed: count("passed"), failed: count("failed"), skipped: count("ignored"), ..Self::default() })
    }
}

/// Rust's test runner writes `test NAME ... ` before the first line of a test's own output, on the same line.
fn tells_of_skipping(line: &str) -> bool {
    let said = if line.starts_with("test ") { line.split_once(" ... ").map_or(line, |(_, said)| said) } else { line };
    said.get(..SKIP_MARK.len()).is_some_and(|start| start.eq_ignore_ascii_case(SKIP_MARK))
}

#[cfg(test)]
mod tests {
    use super::*;

    const JUNIT: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="5" failures="1" errors="1">
    <testsuite name="gnomon-agent" tests="4" disabled="0" errors="1" failures="1">
        <testcase name="a" classname="gnomon-agent" time="0.01"><system-out>running 1 test</system-out></testcase>
        <testcase name="b"><system-err>noise
skipped: not root</system-err></testcase>
        <testcase name="c"><failure type="test failure">skipped: too late</failure></testcase>
        <testcase name="d"><error type="execution failure"/></testcase>
        <testcase name="e"><flakyFailure type="test failure">too late</flakyFailure></testcase>
    </testsuite>
</testsuites>"#;

    #[test]
    fn passed_failed_and_unfit_tests_are_told_apart() {
        assert_eq!(Tally::of_junit(JUNIT).unwrap(), Tally { passed: 2, at_second_try: 1, failed: 2, skipped: 1 });
    }

    #[test]
    fn a_test_says_that_it_was_skipped_at_the_start_of_a_line() {
        assert!(tells_of_skipping("skipped: not root"));
        assert!(tells_of_skipping("SKIPPED, no lab on this machine"));
        assert!(tells_of_skipping("test probe::tests::counts_wakeups ... skipped: no BTF"));
        assert!(!tells_of_skipping("test result: ok. 1 passed; 0 failed"));
        assert!(!tells_of_skipping("3 ticks were skipped"));
        assert!(!tells_of_skipping("é"));
    }

    #[test]
    fn what_passed_only_at_the_second_try_is_said() {
        let tally = Tally { passed: 2, at_second_try: 1, ..Tally::default() };
        assert_eq!(tally.to_string(), "2 passed (1 at the second try), 0 failed, 0 skipped");
        assert_eq!(Tally { passed: 2, ..Tally::default() }.to_string(), "2 passed, 0 failed, 0 skipped");
    }

    #[test]
    fn a_broken_report_is_an_error() {
        assert!(Tally::of_junit(&JUNIT[..JUNIT.len() - 5]).is_err());
    }

    #[test]
    fn the_closing_line_of_doc_tests_is_read() {
        let line = "test result: ok. 3 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(Tally::of_libtest(line), Some(Tally { passed: 3, skipped: 2, ..Tally::default() }));
        assert_eq!(Tally::of_libtest("running 3 tests"), None);
    }
}
