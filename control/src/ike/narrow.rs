//! Traffic selector narrowing (RFC 7296 2.9).

use mobikex_common::ts::TrafficSelector;

/// The part of `proposed` that `allowed` covers, in the order of `proposed`, without repetition. Empty means
/// TS_UNACCEPTABLE.
pub(super) fn narrow(allowed: &[TrafficSelector], proposed: &[TrafficSelector]) -> Vec<TrafficSelector> {
    let mut out: Vec<TrafficSelector> = Vec::new();
    for theirs in proposed {
        for both in allowed.iter().filter_map(|ours| ours.intersection(theirs)) {
            if !out.iter().any(|have| have.covers(&both)) {
                out.push(both);
            }
        }
    }
    out
}

/// For the log: `10.1.0.0/16 10.2.0.0/16`.
pub(super) fn show(selectors: &[TrafficSelector]) -> String {
    selectors.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_a_subset_of_both() {
        let list = |text: &str| text.split(' ').map(|t| t.parse().unwrap()).collect::<Vec<TrafficSelector>>();
        let narrowed = narrow(&list("10.1.0.0/16 10.2.0.0/16"), &list("10.1.5.5 10.0.0.0/8 192.0.2.0/24"));
        assert_eq!(show(&narrowed), "10.1.5.5/32 10.1.0.0/16 10.2.0.0/16");
        assert!(narrow(&list("10.1.0.0/16"), &list("11.0.0.0/8")).is_empty());
    }
}
