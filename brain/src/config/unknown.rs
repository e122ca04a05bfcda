//! Turns serde's "unknown field" into a question that answers itself.

/// Names further than this many edits away are not suggested: they would only confuse.
const DISTANCE_MAX: usize = 4;

/// Rewrites a deserializer's message about an unknown key or variant (`unknown field `x`, expected one of `a`, `b``);
/// others are returned as they are.
pub(super) fn explain(message: &str) -> String {
    let Some((what, rest)) = ["field", "variant"].iter().find_map(|kind| {
        let what = if *kind == "field" { "key" } else { "value" };
        message.strip_prefix(&format!("unknown {kind} ")).map(|rest| (what, rest))
    }) else {
        return message.to_owned();
    };
    let mut names = rest.split('`').skip(1).step_by(2);
    let Some(unknown) = names.next() else { return message.to_owned() };
    let known: Vec<&str> = names.collect();
    let nearest = known.iter().map(|name| (strsim::damerau_levenshtein(unknown, name), name)).min();
    match nearest {
        Some((distance, name)) if distance <= DISTANCE_MAX => {
            format!("unknown {what} `{unknown}`, did you mean `{name}`?")
        }
        _ => format!("unknown {what} `{unknown}`; known here: {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_suggested_and_a_far_one_is_not() {
        let near = "unknown field `adress`, expected one of `address`, `agents_max`";
        assert_eq!(explain(near), "unknown key `adress`, did you mean `address`?");
        let far = "unknown field `colour`, expected `address` or `agents_max`";
        assert_eq!(explain(far), "unknown key `colour`; known here: address, agents_max");
        let variant = "unknown variant `autoo`, expected one of `observe`, `recommend`, `approve`, `auto`";
        assert_eq!(explain(variant), "unknown value `autoo`, did you mean `auto`?");
        assert_eq!(explain("missing field `listen`"), "missing field `listen`");
    }
}
